"""Versions of EdgeCompress and of what decides its results, read without importing any of it."""

from __future__ import annotations

import platform
from importlib import metadata

_DECISIVE = (
    "tensorflow", "keras", "tf-keras", "tensorflow-model-optimization", "tensorly", "litert-quantizer",
    "ethos-u-vela", "ai-edge-litert", "tflite-runtime", "numpy",
)  # fmt: skip


def version_of(package: str) -> str | None:
    """Returns the installed version of a distribution, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def own_version() -> str:
    return version_of("edgecompress") or "0+unknown"


def decisive_versions() -> dict[str, str]:
    """Returns what is installed of the packages that decide the bytes and the speed of a converted file."""
    found = {name: version for name in _DECISIVE if (version := version_of(name)) is not None}
    return {"edgecompress": own_version(), "python": platform.python_version(), **found}
