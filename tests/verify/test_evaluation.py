"""Accuracy of Keras and .tflite files on real digits, and one clear line for data that does not fit."""

from pathlib import Path

import numpy as np
import pytest

from edgecompress.errors import DataError, EdgeCompressError, ExecutionError, ModelError
from edgecompress.verify.evaluation import evaluate
from edgecompress.verify.predictor import is_tflite, open_predictor
from tests.handmade import Model, pack, tensor

keras = pytest.importorskip("keras")


@pytest.fixture(scope="module")
def arrays(digits_cnn):
    with np.load(digits_cnn.data) as data:
        return data["x"], data["y"]


def refusal(kind: type[EdgeCompressError], *arguments, **options) -> str:
    with pytest.raises(kind) as caught:
        evaluate(*arguments, **options)
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_the_accuracy_is_that_of_keras(digits_cnn, arrays) -> None:
    x, y = arrays
    found = evaluate(digits_cnn.model, digits_cnn.data)
    model = keras.saving.load_model(digits_cnn.model)
    predicted = model.predict(x, verbose=0).argmax(-1)
    assert found.scores.accuracy == pytest.approx(float(np.mean(predicted == y)))
    assert found.scores.accuracy > 0.75
    assert (found.scores.task, found.scores.output, found.scores.samples) == ("classification", "digit", len(y))
    assert sum(map(sum, found.scores.confusion)) == len(y)
    assert (found.model, found.data) == ("digits_cnn.keras", str(digits_cnn.data))
    in_memory = evaluate(model, (x, y))
    assert in_memory.scores == found.scores
    assert (in_memory.model, in_memory.data) == ("digits_cnn", "memory")


def test_the_int8_file_is_nearly_as_good(digits_cnn, digits_int8) -> None:
    float_scores = evaluate(digits_cnn.model, digits_cnn.data).scores
    scores = evaluate(digits_int8, digits_cnn.data, threads=2).scores
    assert scores.accuracy == pytest.approx(float_scores.accuracy, abs=0.02)
    assert scores.output == float_scores.output
    assert scores.samples == float_scores.samples


def test_a_recurrent_network(digits_gru) -> None:
    assert evaluate(digits_gru.model, digits_gru.data).scores.accuracy > 0.75


def test_eight_bit_samples_and_class_names(digits_cnn, digits_int8, arrays) -> None:
    x, y = arrays
    names = np.array([f"digit {number}" for number in range(10)])
    samples = {"x": np.round(x * 255).astype(np.uint8), "y": y, "class_names": names}
    for model in (digits_cnn.model, digits_int8):
        found = evaluate(model, samples, input_range=(0, 1))
        assert found.scores.accuracy > 0.75
        assert found.class_names == tuple(names)


@pytest.mark.parametrize("kind", ["keras", "tflite"])
def test_data_that_does_not_fit(digits_cnn, digits_int8, arrays, kind) -> None:
    model = digits_cnn.model if kind == "keras" else digits_int8
    x, y = arrays
    line = refusal(DataError, model, x)
    assert "the data has no labels" in line
    assert "add an array y" in line
    line = refusal(DataError, model, (x, y + 1))
    assert "labels out of range; expected 0 to 9 (the model has 10 classes); received 10" in line
    line = refusal(DataError, model, (x[:, :4], y))
    assert "image: wrong shape" in line
    assert "(samples, 8, 8, 1)" in line.replace("'", "")
    assert "the labels fit no output" in refusal(DataError, model, (x, np.zeros((len(x), 3))))
    assert "different lengths" in refusal(DataError, model, (x, y[:5]))


def test_dimensions_that_vary_are_taken_from_the_data_or_given() -> None:
    x = keras.Input((None, 3), name="x")
    model = keras.Model(x, keras.layers.GRU(2)(x))
    samples, labels = np.zeros((6, 5, 3), np.float32), np.array([0, 1] * 3)
    assert evaluate(model, (samples, labels)).scores.samples == 6
    line = refusal(DataError, model, (samples, labels), input_shape={"x": (7, 3)})
    assert "wrong shape" in line
    assert "names no input" in refusal(DataError, model, (samples, labels), input_shape={"y": (7, 3)})


# Files


def crashing(path: Path) -> Path:
    """Degenerate scales, which untrained networks get: the runtime ends its process."""
    model = Model()
    tensors = [tensor("x", (1, 4), "INT8", scale=1e30), tensor("y", (1, 4), "INT8", scale=1e-30)]
    model.graph(tensors, [0], [1], [model.op("ADD", [0, 0], [1])])
    path.write_bytes(pack(model.tree))
    return path


def test_a_file_that_ends_the_runtime(tmp_path) -> None:
    file = crashing(tmp_path / "bad.tflite")
    line = refusal(ExecutionError, file, (np.ones((2, 4), np.float32), np.array([0, 1])))
    assert "bad.tflite" in line
    assert "the runtime crashed" in line or "the runtime refused" in line


def test_what_is_no_model(tmp_path, arrays) -> None:
    assert "no such file" in refusal(ModelError, tmp_path / "missing.tflite", arrays)
    (tmp_path / "text.tflite").write_text("No model.")
    assert "text.tflite" in refusal(ModelError, tmp_path / "text.tflite", arrays)
    assert "no such file" in refusal(ModelError, tmp_path / "missing.keras", arrays)


def test_a_tflite_file_is_known_by_its_content(digits_int8, digits_cnn, tmp_path) -> None:
    renamed = tmp_path / "model.bin"
    renamed.write_bytes(digits_int8.read_bytes())
    assert is_tflite(renamed)
    assert is_tflite("missing.tflite")
    assert not is_tflite(digits_cnn.model)
    assert not is_tflite(keras.Sequential())


def test_the_inputs_of_a_quantized_file_are_in_the_users_terms(digits_int8, tmp_path) -> None:
    (spec,) = open_predictor(digits_int8).specs
    assert (spec.name, spec.shape, spec.dtype) == ("image", (None, 8, 8, 1), "float32")
    model = Model()
    model.graph([tensor("x", (1, 1), signature=(1, -1)), tensor("y", (1, 1))], [0], [1], [model.op("RELU", [0], [1])])
    (tmp_path / "varies.tflite").write_bytes(pack(model.tree))
    (spec,) = open_predictor(tmp_path / "varies.tflite").specs
    assert spec.shape == (None, None)
