"""Recurrent layers that end the TensorFlow Lite converter's process in int8 or int16x8: here they become files.

Layers on their own need no conversion by TensorFlow; with a Dense behind them they do, which takes longer.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from edgecompress.artifacts import read_artifact
from edgecompress.benchmark.execute import run_tflite
from edgecompress.converters.ptq import QuantizationJob
from edgecompress.converters.recurrent import RecurrentNetwork
from edgecompress.data import Dataset, InputSpec
from edgecompress.errors import ConversionError
from edgecompress.models import load_model
from edgecompress.profiles import RecurrentLowering
from edgecompress.schemes import Observer, QuantizationScheme

keras = pytest.importorskip("keras")
tf_keras = pytest.importorskip("tf_keras")

UNITS, STEPS, FEATURES = 8, 6, 8
SCHEMES = {QuantizationScheme.INT8: 0.05, QuantizationScheme.INT16X8: 0.03}  # and the error, of the largest answer
LAYERS = ("GRU", "LSTM", "SimpleRNN", "Bidirectional")

every_network = pytest.mark.parametrize(
    ("world", "kind"), [(world, kind) for world in (keras, tf_keras) for kind in LAYERS],
    ids=lambda each: getattr(each, "__name__", each),
)  # fmt: skip


@pytest.fixture(scope="module")
def rows(digits) -> np.ndarray:
    (x, _), _ = digits.digits(as_rows=True)
    return x[:60, :STEPS]


def network(world: ModuleType, kind: str, *, head: bool = False, **options: Any) -> Any:
    """A network of one layer; its input is 'rows', and its output the last layer's."""
    (keras if world is keras else tf_keras).utils.set_random_seed(0)
    layers = world.layers
    layer = (
        layers.Bidirectional(layers.GRU(UNITS), name="layer") if kind == "Bidirectional"
        else getattr(layers, kind)(UNITS, name="layer", **options)
    )  # fmt: skip
    return world.Sequential([
        world.Input((STEPS, FEATURES), name="rows"), layer, *([layers.Dense(4, name="head")] if head else []),
    ])  # fmt: skip


def convert(model: Any, scheme: QuantizationScheme, rows: np.ndarray, folder: Path) -> tuple[Path, float]:
    """Writes a loop, and returns it and its largest error, of the largest answer."""
    made = RecurrentNetwork(
        load_model(model), [InputSpec("rows", (1, STEPS, FEATURES), "float32")], QuantizationJob(scheme),
        samples=Dataset({"rows": rows}), observer=Observer.MIN_MAX, folder=folder,
    )  # fmt: skip
    file = made.write(RecurrentLowering.LOOP).path
    (found,), wanted = run_tflite(file, {"rows": rows}).values(), model.predict(rows, verbose=0)
    return file, float(np.abs(found - wanted).max() / np.abs(wanted).max())


def check(model: Any, scheme: QuantizationScheme, rows: np.ndarray, folder: Path) -> None:
    file, error = convert(model, scheme, rows, folder)
    assert error < SCHEMES[scheme]
    artifact = read_artifact(file)
    assert "WHILE" in {op.name for op in artifact.ops}
    assert not artifact.float_ops


@pytest.mark.parametrize("scheme", SCHEMES)
@every_network
def test_a_layer_becomes_a_loop(world, kind, scheme, rows, in_process, tmp_path) -> None:
    with in_process():
        check(network(world, kind), scheme, rows, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
@every_network
def test_with_a_dense_behind_it(world, kind, scheme, rows, in_process, tmp_path) -> None:
    with in_process():
        check(network(world, kind, head=True), scheme, rows, tmp_path)


@pytest.mark.parametrize("world", [keras, tf_keras], ids=["keras", "tf_keras"])
def test_what_has_no_integer_form_is_named(world, rows, tmp_path) -> None:
    x = world.Input(batch_shape=(1, STEPS, FEATURES), name="rows")
    stateful = world.Model(x, world.layers.GRU(UNITS, name="layer", stateful=True)(x))
    for model, reason in (
        (network(world, "GRU", activation="elu"), "its activation elu has no integer kernel here"),
        (stateful, "it is stateful"),
    ):
        with pytest.raises(ConversionError, match=rf"recurrent layer 'layer' \(GRU\) has no integer form: {reason}"):
            convert(model, QuantizationScheme.INT8, rows, tmp_path)
