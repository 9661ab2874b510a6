from __future__ import annotations

import platform
import subprocess
import sys
from importlib import metadata

import numpy as np
import pytest

from edgecompress import versions
from edgecompress.versions import decisive_versions, own_version, version_of


def test_the_version_of_a_package() -> None:
    assert version_of("numpy") == np.__version__
    assert version_of("no-such-package") is None


def test_our_own_version() -> None:
    assert own_version() == metadata.version("edgecompress")


def test_our_own_version_without_an_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "version_of", lambda _package: None)
    assert own_version() == "0+unknown"
    assert decisive_versions() == {"edgecompress": "0+unknown", "python": platform.python_version()}


def test_what_decides_results() -> None:
    found = decisive_versions()
    assert list(found)[:2] == ["edgecompress", "python"]
    assert found["python"] == platform.python_version()
    assert found["numpy"] == np.__version__
    assert found["ai-edge-litert"] == metadata.version("ai-edge-litert")
    assert None not in found.values()


def test_nothing_is_imported_for_it() -> None:
    text = "import sys; from edgecompress.versions import decisive_versions; decisive_versions(); "
    text += "print({'numpy', 'tensorflow', 'keras', 'ai_edge_litert'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
