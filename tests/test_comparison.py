"""Models side by side, in the order given: accuracy, size and latency of each."""

import zipfile
from pathlib import Path

import numpy as np
import pytest

from edgecompress.comparison import compare
from edgecompress.errors import DataError, ModelError, UsageError
from edgecompress.verify.evaluation import evaluate
from tests.handmade import Model, pack, tensor

keras = pytest.importorskip("keras")


def relu(path: Path, *shape: int) -> Path:
    """A .tflite file of one operator."""
    model = Model()
    model.graph([tensor("x", shape), tensor("y", shape)], [0], [1], [model.op("RELU", [0], [1])])
    path.write_bytes(pack(model.tree))
    return path


def test_a_keras_model_and_its_int8_file(digits_cnn, digits_int8) -> None:
    found = compare([digits_int8, digits_cnn.model, digits_int8], digits_cnn.data, runs=10)
    after, before, again = found.rows
    assert [row.model for row in found.rows] == ["digits_cnn.tflite", "digits_cnn.keras", "digits_cnn.tflite"]
    assert [row.as_float_tflite for row in found.rows] == [False, True, False]
    assert found.data == str(digits_cnn.data)
    assert before.scores == evaluate(digits_cnn.model, digits_cnn.data).scores
    assert after.scores == again.scores == evaluate(digits_int8, digits_cnn.data).scores
    assert before.parameters == pytest.approx(5_178, rel=0.02)  # as Keras counts them, less what was folded
    assert before.macs == after.macs
    assert after.size_bytes == digits_int8.stat().st_size < 0.6 * before.size_bytes
    for row in found.rows:
        assert row.gzip_bytes < row.size_bytes
        assert row.measurement.unavailable_because is None
        assert row.measurement.runs >= 10
        assert 0 < row.measurement.latency.median_ms < 50


def test_without_data_there_are_no_scores(tmp_path) -> None:
    found = compare([relu(tmp_path / "a.tflite", 1, 4), relu(tmp_path / "b.tflite", 1, 9)], runs=3)
    assert [(row.model, row.scores) for row in found.rows] == [("a.tflite", None), ("b.tflite", None)]
    assert found.data is None
    assert found.machine


def test_the_data_fixes_dimensions_that_vary(wheel_file, in_process, tmp_path) -> None:
    with zipfile.ZipFile(wheel_file("sleepecg", "sleepecg/classifiers/wrn-gru-mesa.zip")) as archive:
        (tmp_path / "sleep.keras").write_bytes(archive.read("classifier.keras"))
    models = [tmp_path / "sleep.keras", relu(tmp_path / "relu.tflite", 1, 12, 36)]
    with pytest.raises(DataError, match="--input-shape"):
        compare(models)
    samples = np.random.default_rng(0).normal(size=(8, 12, 36)).astype(np.float32)
    with in_process():
        found = compare(models, (samples, np.zeros((8, 12), np.int64)), runs=3)
    assert [row.model for row in found.rows] == ["sleep.keras", "relu.tflite"]
    assert [row.scores.samples for row in found.rows] == [96, 96]
    assert found.rows[0].macs is not None


@pytest.mark.parametrize("models", [[], ["one.keras"]])
def test_fewer_than_two(models) -> None:
    with pytest.raises(UsageError, match=f"compare takes two or more models; received {len(models)}"):
        compare(models)


def test_a_missing_file_is_named(tmp_path) -> None:
    with pytest.raises(ModelError, match=r"missing\.tflite: no such file"):
        compare([relu(tmp_path / "a.tflite", 1, 4), "missing.tflite"])


def test_data_that_fits_one_model_only(tmp_path) -> None:
    models = [relu(tmp_path / "a.tflite", 1, 4), relu(tmp_path / "b.tflite", 1, 9)]
    with pytest.raises(DataError, match="wrong shape"):
        compare(models, (np.ones((3, 4), np.float32), np.zeros(3, np.int64)))
