"""Whole networks with recurrent layers as integer files: every form answers alike, near to the float network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecompress.artifacts import read_artifact
from edgecompress.benchmark.execute import run_tflite
from edgecompress.converters.ptq import QuantizationJob
from edgecompress.converters.recurrent import RecurrentFile, RecurrentNetwork
from edgecompress.data import Dataset, InputSpec
from edgecompress.errors import ConversionError
from edgecompress.flatbuffer import read_model
from edgecompress.graphs import decode_graphs
from edgecompress.models import load_model
from edgecompress.profiles import RecurrentLowering
from edgecompress.recurrent.observing import observe
from edgecompress.recurrent.reading import read_recurrent
from edgecompress.schemes import Granularity, IoType, Observer, QuantizationScheme
from edgecompress.streaming import read_stream

keras = pytest.importorskip("keras")
layers = keras.layers

LOOP, STEP, UNROLLED, _ = RecurrentLowering
STEPS, FEATURES, WORDS, SAMPLES = 8, 8, 30, 40
INT8 = QuantizationJob(QuantizationScheme.INT8)


@pytest.fixture(scope="module")
def rows(digits) -> np.ndarray:
    (x, _), _ = digits.digits(as_rows=True)
    return x[:SAMPLES]


def stack(x: Any, *body: Any) -> Any:
    """Returns a network with weights of some size, biases too."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([x, *body])
    random = np.random.default_rng(1)
    for weight in model.weights:
        if "bias" in weight.path:
            weight.assign(random.normal(0, 0.2, weight.shape))
    return model


def of_rows(*body: Any) -> Any:
    return stack(keras.Input((STEPS, FEATURES), name="rows"), *body)


def network(
    model: Any, x: np.ndarray, folder: Path, job: QuantizationJob = INT8, observer: Observer = Observer.MIN_MAX
) -> RecurrentNetwork:
    source = load_model(model)
    (spec,) = source.inputs
    fixed = [InputSpec(spec.name, (1, *x.shape[1:]), spec.dtype)]
    return RecurrentNetwork(source, fixed, job, samples=Dataset({spec.name: x}), observer=observer, folder=folder)


# Words with padding, two recurrent layers, a head


@pytest.fixture(scope="module")
def words() -> np.ndarray:
    ids = np.random.default_rng(0).integers(1, WORDS, (SAMPLES, STEPS)).astype(np.int32)
    for sample, row in enumerate(ids):
        row[: sample % 4] = row[STEPS - sample % 3 :] = 0
    return ids


@pytest.fixture(scope="module")
def reader() -> Any:
    return stack(
        keras.Input((STEPS,), dtype="int32", name="words"), layers.Embedding(WORDS, 8, mask_zero=True),
        layers.GRU(12, return_sequences=True, name="gru"), layers.LSTM(8, name="lstm"), layers.Dense(4, name="answer"),
    )  # fmt: skip


@pytest.fixture(scope="module")
def files(reader, words, in_process, tmp_path_factory) -> dict[RecurrentLowering, RecurrentFile]:
    with in_process():
        made = network(reader, words, tmp_path_factory.mktemp("reader"))
        assert (made.steps, made.kinds) == ((STEPS, STEPS), ("gru", "lstm"))
        return {form: made.write(form) for form in (LOOP, UNROLLED, STEP)}


@pytest.fixture(scope="module")
def answers(files, words) -> dict[RecurrentLowering, np.ndarray]:
    return {form: run_tflite(file.path, {"words": words})["answer"] for form, file in files.items()}


@pytest.mark.parametrize("form", [UNROLLED, STEP])
def test_every_form_gives_the_same_answers(answers, form) -> None:
    """Padding in front and behind: the states stay what they were."""
    np.testing.assert_array_equal(answers[form], answers[LOOP])


def test_answers_are_near_to_those_of_the_float_network(answers, reader, words) -> None:
    wanted = reader.predict(words, verbose=0)
    assert np.abs(answers[LOOP] - wanted).max() < 0.06 * np.abs(wanted).max()


def test_every_operator_is_in_integers(files) -> None:
    for file in files.values():
        assert read_artifact(file.path).float_ops == ()


def test_each_form_has_its_operators(files) -> None:
    names = {form: [op.name for op in read_artifact(file.path).ops] for form, file in files.items()}
    assert {form: names[form].count("WHILE") for form in names} == {LOOP: 2, UNROLLED: 0, STEP: 0}
    assert names[UNROLLED].count("LOGISTIC") == 2 * STEPS
    assert names[STEP].count("LOGISTIC") == 2


def test_the_file_of_one_step_says_how_it_is_run(files) -> None:
    stream = files[STEP].stream
    assert read_stream(files[STEP].path) == stream
    assert (stream.steps, stream.inputs, stream.outputs) == (STEPS, ("words",), ())
    assert [state.input for state in stream.states] == ["gru_state_0", "lstm_state_0", "lstm_state_1"]
    assert files[LOOP].stream is files[UNROLLED].stream is None
    assert read_stream(files[LOOP].path) is None


def test_steps_go_on_beyond_the_length_that_was_calibrated(files, reader) -> None:
    long = np.random.default_rng(5).integers(0, WORDS, (3, 10 * STEPS)).astype(np.int32)
    body = keras.Sequential([keras.Input((None,), dtype="int32"), *reader.layers])
    wanted = body.predict(long, verbose=0)
    found = run_tflite(files[STEP].path, {"words": long})["answer"]
    assert np.abs(found - wanted).max() < 0.1 * np.abs(wanted).max()


# Layers alone, of which no part has to be converted


def test_single_steps_give_the_integers_of_a_loop_over_a_long_sequence(rows, tmp_path) -> None:
    """250 real rows of pixels, one after the other."""
    model = stack(
        keras.Input((250, FEATURES), name="rows"), layers.GRU(12, return_sequences=True),
        layers.LSTM(8, return_sequences=True, name="y"),
    )  # fmt: skip
    x = rows[:38].reshape(-1, FEATURES)[:250][None]
    made = network(model, np.concatenate([x, x[:, ::-1]]), tmp_path)
    loop, step = (run_tflite(made.write(form).path, {"rows": x})["y"] for form in (LOOP, STEP))
    assert loop.shape == (1, 250, 8)
    np.testing.assert_array_equal(loop, step)
    assert np.abs(loop - model.predict(x, verbose=0)).max() < 0.06


def test_several_steps_in_a_turn_and_products_in_the_loop(rows, tmp_path) -> None:
    made = network(of_rows(layers.GRU(12, name="y")), rows, tmp_path)
    files = {options: made.write(LOOP, per_turn=options[0], hoist=options[1]).path for options in (
        (1, True), (4, True), (2, False), (STEPS, True),
    )}  # fmt: skip
    plain, *others = (run_tflite(file, {"rows": rows})["y"] for file in files.values())
    for other in others:
        np.testing.assert_array_equal(other, plain)
    counts = {options: sum(op.name == "LOGISTIC" for op in read_artifact(file).ops) for options, file in files.items()}
    assert counts == {(1, True): 1, (4, True): 4, (2, False): 2, (STEPS, True): STEPS}


@pytest.mark.parametrize("scheme", [QuantizationScheme.INT8, QuantizationScheme.INT16X8])
@pytest.mark.parametrize("border", [IoType.FLOAT32, IoType.INT8])
def test_schemes_and_borders(rows, scheme, border, tmp_path) -> None:
    model = of_rows(layers.GRU(12, name="y"))
    made = network(model, rows, tmp_path, QuantizationJob(scheme, input_type=border, output_type=border))
    file = made.write(LOOP).path
    short = "int8" if scheme is QuantizationScheme.INT8 else "int16"
    signature = read_artifact(file).signature
    assert {each.dtype for each in (*signature.inputs.values(), *signature.outputs.values())} == {
        "float32" if border is IoType.FLOAT32 else short
    }
    error = np.abs(run_tflite(file, {"rows": rows})["y"] - model.predict(rows, verbose=0)).max()
    assert error < {"int8": 0.04, "int16": 0.01}[short]


def test_the_observer_sets_the_ranges(rows, tmp_path) -> None:
    """One number in 12,800 is too rare for a percentile."""
    model, x = of_rows(layers.GRU(12, name="y")), np.tile(rows, (5, 1, 1))
    x[3, 4, 5] = 60.0
    job = QuantizationJob(QuantizationScheme.INT8, input_type=IoType.INT8)
    scales = {}
    for observer in (Observer.MIN_MAX, Observer.PERCENTILE):
        file = network(model, x, tmp_path, job, observer).write(LOOP).path
        scales[observer] = read_artifact(file).signature.inputs["rows"].scale
    assert scales[Observer.MIN_MAX] == pytest.approx(60 / 255, rel=0.01)
    assert scales[Observer.PERCENTILE] == pytest.approx(1 / 255, rel=0.05)


@pytest.mark.parametrize(("dense", "counts"), [(Granularity.PER_TENSOR, {1}), (Granularity.PER_CHANNEL, {1, 12})])
def test_the_granularity_of_kernels(rows, dense, counts, tmp_path) -> None:
    model = of_rows(layers.GRU(12, name="y"))
    (layer,) = model.layers
    kernel, *others = layer.get_weights()
    kernel[0, -1] = 20  # one of the candidate's
    layer.set_weights([kernel, *others])
    file = network(model, rows, tmp_path, QuantizationJob(QuantizationScheme.INT8, dense=dense)).write(LOOP).path
    found = {
        len(graph.tensors[each.inputs[1]].scales) for graph in decode_graphs(read_model(file))
        for each in graph.operators if each.name == "CONV_2D"
    }  # fmt: skip
    assert found == counts


def test_trained_ranges_are_kept(rows, in_process, tmp_path) -> None:
    """Samples have no say then."""
    model = of_rows(layers.GRU(12, name="y"))
    layer = model.layers[0]
    layer.ranges = dict(observe(read_recurrent(layer), rows))
    job = QuantizationJob(QuantizationScheme.INT8, input_type=IoType.INT8)
    with in_process():
        file = network(model, rows * 100, tmp_path, job).write(LOOP).path
    assert read_artifact(file).signature.inputs["rows"].scale == pytest.approx(1 / 255, rel=0.01)
    assert np.abs(run_tflite(file, {"rows": rows})["y"] - model.predict(rows, verbose=0)).max() < 0.04


@pytest.mark.parametrize("form", [LOOP, STEP])
def test_files_do_not_grow_with_the_steps(form, rows, tmp_path) -> None:
    sizes = []
    for steps in (10, 1000):
        model = stack(
            keras.Input((steps, FEATURES), name="rows"), layers.GRU(24, return_sequences=True), layers.LSTM(16)
        )
        x = np.resize(rows, (2, steps, FEATURES))
        sizes.append(network(model, x, tmp_path).write(form).path.stat().st_size)
    assert abs(sizes[1] - sizes[0]) <= 256


# What is masked in numbers


@pytest.mark.parametrize("make", [
    lambda: of_rows(layers.Masking(0.0), layers.GRU(10, name="y")),
    lambda: of_rows(layers.Masking(0.0), layers.LSTM(10, return_sequences=True), layers.GRU(6, name="y")),
], ids=["one", "two"])  # fmt: skip
def test_numbers_near_to_nothing_are_told_from_nothing(make: Callable[[], Any], rows, in_process, tmp_path) -> None:
    model, x = make(), rows + 0.1
    x[::2, 5:], x[1::2, 5:] = 0, 1e-3
    with in_process():
        found = run_tflite(network(model, x, tmp_path).write(LOOP).path, {"rows": x})["y"]
    assert np.abs(found - model.predict(x, verbose=0)).max() < 0.04


@pytest.mark.parametrize("size", [1e6, 1e3, 1.0, 1e-6])
@pytest.mark.parametrize("steps", [1, 2])
def test_inputs_of_any_size_and_single_steps_give_files_that_run(rows, size, steps, tmp_path) -> None:
    x = rows[:, :steps] * np.float32(size)
    model = stack(keras.Input((steps, FEATURES), name="rows"), layers.GRU(6, name="memory"))
    made = network(model, x, tmp_path)
    loop, step = (run_tflite(made.write(form).path, {"rows": x})["memory"] for form in (LOOP, STEP))
    assert np.array_equal(loop, step)
    if size == 1.0:
        assert np.abs(loop - np.asarray(model(x))).max() < 0.05


def test_a_layer_that_gives_no_numbers_is_the_models_fault(rows, tmp_path) -> None:
    model = of_rows(layers.SimpleRNN(6, activation="relu", name="explodes"))
    model.layers[0].cell.recurrent_kernel.assign(np.full((6, 6), 1e30, np.float32))
    with pytest.raises(ConversionError, match="layer 'explodes' takes or gives NaN or infinity on these samples"):
        network(model, rows + 1, tmp_path)


def test_a_layer_that_is_owned_and_not_called(rows, tmp_path) -> None:
    class Idle(layers.Layer):
        def __init__(self) -> None:
            super().__init__(name="idle")
            self.memory = layers.GRU(3)
            self.memory.build((None, STEPS, FEATURES))

        def build(self, _shape: Any) -> None:
            self.built = True

        def call(self, x: Any) -> Any:
            return x * 2.0

    made = network(of_rows(Idle(), layers.Dense(2)), rows, tmp_path)
    assert not made.kinds
    with pytest.raises(ConversionError, match="no single step of it: no recurrent layer is called"):
        made.write(STEP)
