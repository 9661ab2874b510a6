"""What is installed and usable on this machine, and how to get what is not."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from edgecompress.isolate import run_command
from edgecompress.machine import describe_machine
from edgecompress.versions import version_of

_PROBE_LIMIT_S = 60.0


class Diagnosis(BaseModel):
    """One thing that EdgeCompress can use.

    Attributes:
        name: Its name.
        group: What kind of thing it is.
        usable: Whether it works here.
        detail: Its version, or why it does not work.
        needed_for: What it is good for.
        fix: How to get it; None if it is usable.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    group: Literal["conversion", "runtime", "delegate", "tool"]
    usable: bool
    detail: str
    needed_for: str
    fix: str | None = None


class Diagnoses(BaseModel):
    """The state of this machine."""

    model_config = ConfigDict(frozen=True)

    schema_name: Literal["edgecompress.doctor/1"] = Field("edgecompress.doctor/1", alias="schema")
    machine: str
    found: tuple[Diagnosis, ...]


def diagnose() -> Diagnoses:
    """Looks for everything that EdgeCompress can use; delegates are tried in child processes, nothing is imported."""
    found = (*_packages(), *_delegates(), *_tools())
    return Diagnoses(machine=describe_machine(), found=found)


_CONVERT = 'pip install "edgecompress[convert]"'
_PACKAGES: tuple[tuple[str, Literal["conversion", "runtime"], str, str], ...] = (
    ("tensorflow", "conversion", "convert, and reading Keras models", _CONVERT),
    ("keras", "conversion", "convert, and reading Keras models", _CONVERT),
    ("tf-keras", "conversion", "models saved by Keras 2, and qat", _CONVERT),
    ("tensorflow-model-optimization", "conversion", "prune, cluster, qat", _CONVERT),
    ("tensorly", "conversion", "low_rank of convolutions", _CONVERT),
    ("litert-quantizer", "conversion", "quantized files", _CONVERT),
    ("pillow", "conversion", "image folders as data", 'pip install "edgecompress[images]"'),
    ("matplotlib", "conversion", "ranks --plot", 'pip install "edgecompress[plot]"'),
    ("ai-edge-litert", "runtime", "running .tflite files", "pip install ai-edge-litert"),
    ("tflite-runtime", "runtime", "running .tflite files as old devices do",
     "it needs numpy < 2: install both in an environment of their own and run benchmark/runner.py there"),
    ("tflite-micro", "runtime", "running files as microcontrollers do", 'pip install "edgecompress[micro]"'),
)  # fmt: skip


def _packages() -> Iterator[Diagnosis]:
    for name, group, needed_for, fix in _PACKAGES:
        version = version_of(name)
        yield Diagnosis(
            name=name, group=group, usable=version is not None, detail=version or "not installed",
            needed_for=needed_for, fix=None if version is not None else fix,
        )  # fmt: skip


# Each prints one JSON object {"usable": …, "detail": …}; what native code says goes to stderr.
_PROBES = {
    "XNNPACK (CPU)": """
import json
from edgecompress.tiny import tiny_model
from ai_edge_litert.interpreter import Interpreter
interpreter = Interpreter(model_content=tiny_model()); interpreter.allocate_tensors()
names = [op["op_name"] for op in interpreter._get_ops_details()]
print(json.dumps({"usable": "DELEGATE" in names, "detail": "part of ai-edge-litert"}))
""",
    "LiteRT GPU": """
import json
from edgecompress.tiny import tiny_model
from ai_edge_litert.compiled_model import CompiledModel
from ai_edge_litert.hardware_accelerator import HardwareAccelerator
from ai_edge_litert.options import Options
CompiledModel.from_buffer(tiny_model(), options=Options(hardware_accelerators=HardwareAccelerator.GPU))
print(json.dumps({"usable": True, "detail": ""}))
""",
    "Edge TPU": """
import json
from ai_edge_litert.interpreter import load_delegate
load_delegate("libedgetpu.so.1")
print(json.dumps({"usable": True, "detail": "libedgetpu and a device"}))
""",
}
_DELEGATE_HELP = {
    "XNNPACK (CPU)": ("fast CPU kernels", "pip install ai-edge-litert"),
    "LiteRT GPU": ("measuring the GPU", "install a Vulkan driver (Debian: mesa-vulkan-drivers libvulkan1)"),
    "Edge TPU": ("running on a Coral device", "install libedgetpu1-std from Coral's packages and plug a device in"),
}


def _delegates() -> Iterator[Diagnosis]:
    for name, probe in _PROBES.items():
        outcome = run_command([sys.executable, "-P", "-c", probe], time_limit_s=_PROBE_LIMIT_S)
        usable, detail = False, ""
        if outcome.returncode == 0:
            answer = json.loads(outcome.stdout.strip().splitlines()[-1])
            usable, detail = answer["usable"], answer["detail"] or _adapter(outcome.stderr)
        else:
            detail = _why_not(outcome.stderr) or f"the probe {outcome.how_it_ended}"
        needed_for, fix = _DELEGATE_HELP[name]
        yield Diagnosis(
            name=name, group="delegate", usable=usable, detail=detail, needed_for=needed_for,
            fix=None if usable else fix,
        )  # fmt: skip


def _adapter(stderr: str) -> str:
    chosen = re.search(r"Selected adapter: (.*)", stderr)
    return chosen.group(1).strip() if chosen else "adapter unknown"


def _why_not(stderr: str) -> str:
    for pattern in (r"No adapters found", r"\w[\w.]*: cannot open shared object file", r"No module named \S+"):
        reason = re.search(pattern, stderr)
        if reason:
            return reason.group(0)
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    return lines[-1][:160] if lines else ""


_TOOLS = (
    ("adb", ("version",), "phones", "install Android platform-tools (Debian: adb)"),
    ("edgetpu_compiler", ("--version",), "Edge TPU files",
     "install edgetpu-compiler from Coral's packages (x86-64 Linux)"),
    ("vela", ("--version",), "Ethos-U files", 'pip install "edgecompress[ethos-u]"'),
)  # fmt: skip


def _tools() -> Iterator[Diagnosis]:
    for name, arguments, needed_for, fix in _TOOLS:
        # Tools from packages lie beside this Python, which need not be on the PATH.
        path = shutil.which(name) or shutil.which(name, path=os.path.dirname(sys.executable))  # noqa: PTH120
        usable, detail = (False, "not on the PATH") if path is None else _try_tool(path, arguments)
        yield Diagnosis(
            name=name, group="tool", usable=usable, detail=detail, needed_for=needed_for, fix=None if usable else fix
        )


def _try_tool(path: str, arguments: tuple[str, ...]) -> tuple[bool, str]:
    try:
        outcome = run_command([path, *arguments], time_limit_s=_PROBE_LIMIT_S)
    except OSError as error:  # e.g. built for another processor
        return False, f"{path} cannot be started ({error.strerror})"
    usable = outcome.returncode == 0
    said = (outcome.stdout or outcome.stderr).strip().splitlines()
    return usable, said[0] if usable and said else f"{path} {outcome.how_it_ended}"
