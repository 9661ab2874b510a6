from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest

from edgecompress import machine
from edgecompress.machine import cpu_name, describe_machine

INTEL = "processor\t: 0\nmodel\t\t: 85\nmodel name\t: Intel(R) Xeon(R) Processor @ 2.60GHz\n\nprocessor\t: 1\n"
RASPBERRY_PI = "processor\t: 0\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd\n\nModel\t\t: Raspberry Pi 5 Model B Rev 1.0\n"
OLD_RASPBERRY_PI = "model name\t: ARMv7 Processor rev 4 (v7l)\nHardware\t: BCM2835\nModel\t\t: Raspberry Pi Zero 2\n"


@pytest.fixture
def cpuinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "cpuinfo"
    monkeypatch.setattr(machine, "Path", lambda _path: file)
    return file


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (INTEL, "Intel(R) Xeon(R) Processor @ 2.60GHz"),
        (RASPBERRY_PI, "Raspberry Pi 5 Model B Rev 1.0"),
        (OLD_RASPBERRY_PI, "ARMv7 Processor rev 4 (v7l)"),
    ],
)
def test_the_name_of_the_cpu(cpuinfo: Path, text: str, name: str) -> None:
    cpuinfo.write_text(text)
    assert cpu_name() == name
    assert describe_machine() == f"{name}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}"


@pytest.mark.parametrize("text", ["", None], ids=["nameless", "missing"])
def test_a_cpu_without_a_name(cpuinfo: Path, text: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if text is not None:
        cpuinfo.write_text(text)
    monkeypatch.setattr(platform, "processor", lambda: "")
    assert cpu_name() == platform.machine()
    monkeypatch.setattr(platform, "processor", lambda: "arm")
    assert cpu_name() == "arm"


def test_this_machine_has_one_line() -> None:
    assert cpu_name()
    assert "\n" not in describe_machine()
    assert platform.machine() in describe_machine()
