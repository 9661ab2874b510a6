"""Models side by side, in the order given: accuracy, size and latency of each."""

import zipfile

import numpy as np
import pytest

from edgecompress.comparison import compare
from edgecompress.errors import DataError, ModelError, UsageError
from edgecompress.verify.evaluation import evaluate

keras = pytest.importorskip("keras")


def test_a_keras_model_and_its_int8_file(digits_cnn, digits_int8) -> None:
    found = compare([digits_cnn.model, digits_int8], digits_cnn.data, runs=10)
    before, after = found.rows
    assert (before.model, after.model) == ("digits_cnn.keras", "digits_cnn.tflite")
    assert (before.as_float_tflite, after.as_float_tflite) == (True, False)
    assert found.data == str(digits_cnn.data)
    assert before.scores == evaluate(digits_cnn.model, digits_cnn.data).scores
    assert after.scores == evaluate(digits_int8, digits_cnn.data).scores
    assert before.parameters == pytest.approx(5_178, rel=0.02)  # as Keras counts them, less what was folded
    assert before.macs == after.macs
    assert after.size_bytes == digits_int8.stat().st_size < 0.6 * before.size_bytes
    for row in found.rows:
        assert row.gzip_bytes < row.size_bytes
        assert row.measurement.ran_on == "cpu"
        assert row.measurement.latency.runs == 10
        assert 0 < row.measurement.latency.median_ms < 50


def test_the_order_is_that_of_the_user(digits_cnn, digits_int8) -> None:
    in_memory = keras.saving.load_model(digits_cnn.model)
    found = compare([digits_int8, in_memory, digits_int8], runs=3)
    assert [row.model for row in found.rows] == ["digits_cnn.tflite", "digits_cnn", "digits_cnn.tflite"]
    assert [row.as_float_tflite for row in found.rows] == [False, True, False]
    assert [row.scores for row in found.rows] == [None, None, None]
    assert found.data is None
    assert found.rows[0].size_bytes == found.rows[2].size_bytes


def test_the_data_fixes_dimensions_that_vary(wheel_file, tmp_path) -> None:
    with zipfile.ZipFile(wheel_file("sleepecg", "sleepecg/classifiers/wrn-gru-mesa.zip")) as archive:
        (tmp_path / "sleep.keras").write_bytes(archive.read("classifier.keras"))
    x = keras.Input((12, 36), name="x")
    other = keras.Model(x, keras.layers.Dense(4, activation="softmax")(x), name="other")
    samples = np.random.default_rng(0).normal(size=(8, 12, 36)).astype(np.float32)
    labels = np.zeros((8, 12), np.int64)
    found = compare([tmp_path / "sleep.keras", other], (samples, labels), runs=3)
    assert [row.model for row in found.rows] == ["sleep.keras", "other"]
    assert all(row.scores.samples == 96 for row in found.rows)
    assert found.rows[0].macs is not None
    with pytest.raises(DataError, match="--input-shape"):
        compare([tmp_path / "sleep.keras", other])


@pytest.mark.parametrize("models", [[], ["one.keras"]])
def test_fewer_than_two(models) -> None:
    with pytest.raises(UsageError, match=f"compare takes two or more models; received {len(models)}"):
        compare(models)


def test_a_missing_file_is_named(digits_int8) -> None:
    with pytest.raises(ModelError, match=r"missing\.tflite: no such file"):
        compare([digits_int8, "missing.tflite"])


def test_data_that_fits_one_model_only(digits_int8, digits_gru) -> None:
    with pytest.raises(DataError, match="wrong shape"):
        compare([digits_int8, digits_gru.model], digits_gru.data)
