"""What machine this is, in a line that makes a measurement repeatable."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def describe_machine() -> str:
    """Returns e.g. 'Intel(R) Xeon(R) Processor @ 2.60GHz, 2 cores, Linux x86_64'."""
    return f"{cpu_name()}, {os.cpu_count() or 1} cores, {platform.system()} {platform.machine()}"


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Hardware", "Model"))]
    return names[0] if names else platform.processor() or platform.machine()
