"""Arm's Vela compiler, asked how much flash a file takes on an Ethos-U, and what of it the Ethos-U can run.

Vela encodes weights anew, and zeros and repeated values cost it less: a pruned or clustered file is smaller in flash,
though not as a .tflite file.
"""

from __future__ import annotations

import csv
import re
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from edgecompress.isolate import run_command
from edgecompress.versions import version_of

_TIME_LIMIT_S = 600.0
_PACKAGE = "ethos-u-vela"
_KIB = 1024
# The memories that hold the compiled network's constants and commands; Vela's summary gives each in KiB.
_FLASH_COLUMNS = ("on_chip_flash_memory_used", "off_chip_flash_memory_used")
_OPERATORS = re.compile(r"^(CPU|NPU) operators = (\d+)", re.MULTILINE)


@dataclass(frozen=True)
class FlashSize:
    """What Vela says of a file.

    Attributes:
        size_bytes: Flash that the compiled network takes, an estimate of Vela's; None if it is not known.
        unavailable_because: Why it is not known.
        cpu_operators: Operators that stay on the processor beside the Ethos-U, by Vela's count; None if not compiled.
        npu_operators: Operators that the Ethos-U runs; Vela counts after it has cut some into several.
    """

    size_bytes: int | None = None
    unavailable_because: str | None = None
    cpu_operators: int | None = None
    npu_operators: int | None = None


def vela_flash_bytes(file: Path, accelerator: str, *, time_limit_s: float = _TIME_LIMIT_S) -> FlashSize:
    """Compiles an integer .tflite file for an Ethos-U in a child process; reads the flash it takes and who runs what.

    Args:
        file: The file; Vela leaves float files to the CPU, so ask for quantized ones only.
        accelerator: Vela's name of it, such as `ethos-u55-128`; system and memory mode are Vela's defaults for it.
        time_limit_s: Seconds after which the compiler is ended.
    """
    if version_of(_PACKAGE) is None:
        return FlashSize(unavailable_because='Vela is not installed: pip install "edgecompress[ethos-u]"')
    with tempfile.TemporaryDirectory() as folder:
        # -P: a folder called ethosu beside the user must not stand in for the package.
        command: list[str | Path] = [sys.executable, "-P", "-m", "ethosu.vela", file]
        command += ["--accelerator-config", accelerator, "--output-dir", folder]
        outcome = run_command(command, time_limit_s=time_limit_s)
        if outcome.returncode != 0:
            said = f": {outcome.last_words[:200]}" if outcome.last_words else ""
            return FlashSize(unavailable_because=f"Vela {outcome.how_it_ended}{said}")
        summary = next(Path(folder).glob("*_summary_*.csv"), None)
        if summary is None:
            return FlashSize(unavailable_because="Vela wrote no summary")
        counts = {name: int(count) for name, count in _OPERATORS.findall(outcome.stdout)}
        size = read_summary(summary.read_text("utf-8"))
        return replace(size, cpu_operators=counts.get("CPU"), npu_operators=counts.get("NPU"))


def read_summary(text: str) -> FlashSize:
    """Returns the flash size in Vela's summary, a CSV table of one line."""
    row = next(csv.DictReader(text.splitlines()), {})
    try:
        used = sum(float(row[column]) for column in _FLASH_COLUMNS)
    except (KeyError, TypeError, ValueError):
        return FlashSize(unavailable_because="Vela's summary has no flash sizes that can be read")
    if used == 0:
        where = row.get("weights_storage_area") or "another memory"
        return FlashSize(unavailable_because=f"Vela keeps the weights in {where} in this system")
    return FlashSize(round(used * _KIB))
