"""What is left of a network without its recurrent layers becomes integers, whose ranges files can share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecompress.artifacts import read_artifact
from edgecompress.benchmark.execute import run_tflite
from edgecompress.converters.outer import Outer, quantized_outer
from edgecompress.converters.ptq import QuantizationJob
from edgecompress.converters.tflite import FrozenGraph, freeze_graph
from edgecompress.data import InputSpec
from edgecompress.errors import ConversionError
from edgecompress.flatbuffer import read_model
from edgecompress.graphs import decode_graphs
from edgecompress.models import load_model
from edgecompress.schemes import QuantizationScheme

keras = pytest.importorskip("keras")
layers = keras.layers

FEATURES, STEPS, SAMPLES = 4, 6, 20
JOB = QuantizationJob(QuantizationScheme.INT8)


@pytest.fixture(scope="module")
def model() -> Any:
    keras.utils.set_random_seed(0)
    body = layers.Dense(5, activation="relu", name="hidden"), layers.Dense(3, name="answer")
    return keras.Sequential([keras.Input((None, FEATURES), name="x"), *body])


def graph(model: Any, steps: int) -> FrozenGraph:
    return freeze_graph(load_model(model), [InputSpec("x", (1, steps, FEATURES), "float32")])


def samples(steps: int, size: float = 1.0) -> dict[str, np.ndarray]:
    return {"x": size * np.random.default_rng(0).uniform(-1, 1, (SAMPLES, steps, FEATURES)).astype(np.float32)}


@pytest.fixture
def quantized(in_process, tmp_path):
    """A function from a graph, samples and options to the quantized file."""

    def call(graph: FrozenGraph, samples: dict[str, np.ndarray], ranges=None, **options: Any) -> Outer:
        with in_process():
            return quantized_outer(graph, tmp_path, options.pop("job", JOB), samples, ranges or {}, **options)

    return call


def scales(outer: Outer) -> list[tuple[float, int]]:
    """Scales and zero points of the results of the operators that compute something."""
    found = decode_graphs(read_model(outer.content))[0]
    results = [found.tensors[each.outputs[0]] for each in found.operators if each.name == "FULLY_CONNECTED"]
    return [(tensor.scales[0], tensor.zero_points[0]) for tensor in results]


def test_files_of_other_lengths_share_ranges(model, quantized) -> None:
    whole = quantized(graph(model, STEPS), samples(STEPS))
    alone = quantized(graph(model, 1), samples(1, 0.1))
    shared = quantized(graph(model, 1), samples(1, 0.1), like=whole)
    assert len(scales(whole)) == 2
    assert scales(shared) == scales(whole)
    assert all(mine[0] < 0.5 * other[0] for mine, other in zip(scales(alone), scales(whole), strict=True))


def test_files_of_other_operators_share_nothing(model, quantized) -> None:
    keras.utils.set_random_seed(0)
    other = keras.Sequential([keras.Input((None, FEATURES), name="x"), layers.Dense(5, activation="tanh")])
    whole = quantized(graph(other, STEPS), samples(STEPS))
    assert scales(quantized(graph(model, 1), samples(1), like=whole)) == scales(quantized(graph(model, 1), samples(1)))


def test_ranges_that_are_known_are_kept(model, quantized, tmp_path) -> None:
    outer = quantized(graph(model, STEPS), samples(STEPS), {"x": (-2.0, 2.0)})
    file = tmp_path / "file.tflite"
    file.write_bytes(outer.content)
    (given,) = read_artifact(file).signature.inputs.values()
    assert given.dtype == "int8"
    assert given.scale == pytest.approx(4 / 255, rel=0.02)
    x = samples(STEPS)["x"]
    found = run_tflite(file, {"x": x})["answer"]
    assert np.abs(found - model.predict(x, verbose=0)).max() < 0.05


def test_the_border_is_that_of_the_scheme(model, quantized, tmp_path) -> None:
    outer = quantized(graph(model, 1), samples(1), job=QuantizationJob(QuantizationScheme.INT16X8))
    file = Path(tmp_path, "file.tflite")
    file.write_bytes(outer.content)
    signature = read_artifact(file).signature
    assert {each.dtype for each in (*signature.inputs.values(), *signature.outputs.values())} == {"int16"}


def test_a_loop_besides_the_recurrent_layers_is_refused(quantized) -> None:
    looped = keras.Sequential([keras.Input((STEPS, FEATURES), name="x"), layers.GRU(3)], name="looped")
    with pytest.raises(ConversionError, match="looped: int8 cannot be made of a loop besides the recurrent layers"):
        quantized(graph(looped, STEPS), samples(STEPS))
