from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from edgecompress.benchmark.execute import run_tflite
from edgecompress.errors import DataError, ExecutionError, ModelError, UnavailableError

RNG = np.random.default_rng(3)


def test_float_predictions_match_numpy(models: dict[str, Path], reference: SimpleNamespace) -> None:
    x = RNG.uniform(-1, 1, (7, 4)).astype(np.float32)
    outputs = run_tflite(models["dense"], {"x": x})
    assert list(outputs) == ["y"]
    np.testing.assert_allclose(outputs["y"], reference.float_dense(x), rtol=1e-5, atol=1e-6)


def test_int8_predictions_are_quantized_and_dequantized(models: dict[str, Path], reference: SimpleNamespace) -> None:
    x = RNG.uniform(-4, 4, (50, 4)).astype(np.float32)  # beyond what the input can hold, so some values clip
    y = run_tflite(models["int8"], {"x": x})["y"]
    assert y.dtype == np.float32
    steps = y / reference.out_scale + reference.out_zero
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-3)
    assert np.abs(np.round(steps) - reference.int8_dense(x)).max() <= 1  # kernels round the last bit in their own ways
    assert steps.max() > 100 and steps.min() < -100  # noqa: PT018 (so the outputs' whole range was seen)


def test_integers_of_the_inputs_type_count_as_quantized(models: dict[str, Path], reference: SimpleNamespace) -> None:
    integers = np.array([[25, 5, -45, 105]], np.int8)
    x = (integers.astype(np.float32) - reference.in_zero) * reference.in_scale
    quantized, real, wider = (
        run_tflite(models["int8"], {"x": values})["y"] for values in (integers, x, np.round(x).astype(np.int64))
    )
    np.testing.assert_array_equal(quantized, real)
    np.testing.assert_array_equal(wider, run_tflite(models["int8"], {"x": np.round(x)})["y"])


@pytest.mark.parametrize("samples", [1, 4, 10])
def test_the_last_batch_is_filled_up_and_cut(models: dict[str, Path], reference: SimpleNamespace, samples: int) -> None:
    x = RNG.uniform(-1, 1, (samples, 4)).astype(np.float32)
    y = run_tflite(models["batch4"], {"x": x})["y"]
    assert y.shape == (samples, 3)
    np.testing.assert_allclose(y, reference.float_dense(x), rtol=1e-5, atol=1e-6)


def test_inputs_go_by_name_and_not_by_order(models: dict[str, Path]) -> None:
    left, right = RNG.uniform(-1, 1, (2, 5, 2)).astype(np.float32)
    y = run_tflite(models["two_inputs"], {"right": right, "left": left})["y"]
    np.testing.assert_allclose(y, left - right, rtol=1e-6)


def test_without_a_signature_tensor_names_are_used(models: dict[str, Path], reference: SimpleNamespace) -> None:
    x = RNG.uniform(-1, 1, (3, 4))  # float64 is converted
    y = run_tflite(models["unsigned"], {"dense_x": x})["dense_y"]
    np.testing.assert_allclose(y, reference.float_dense(x), rtol=1e-5, atol=1e-6)


def test_samples_do_not_see_each_other_through_a_models_state(models: dict[str, Path]) -> None:
    x = np.repeat(RNG.uniform(-1, 1, (1, 4)).astype(np.float32), 3, axis=0)
    y = run_tflite(models["stateful"], {"x": x})["y"]
    assert np.abs(y[0]).max() > 0
    np.testing.assert_array_equal(y, np.repeat(y[:1], 3, axis=0))


def test_indices_stay_integers_and_whole_floats_become_them(models: dict[str, Path]) -> None:
    index = np.array([[0, 1, 1, 0, 1]])
    expected = np.arange(6, dtype=np.float32).reshape(2, 3)[index]
    for values in (index.astype(np.int32), index.astype(np.int64), index.astype(np.float64)):
        np.testing.assert_array_equal(run_tflite(models["embedding"], {"index": values})["rows"], expected)


@pytest.mark.parametrize(
    ("model", "inputs", "message"),
    [
        ("dense", {"z": np.zeros((1, 4))}, "the input names differ; expected ['x']; received ['z']"),
        ("dense", {}, "the input names differ; expected ['x']; received []"),
        ("dense", {"x": np.zeros((2, 5))}, "input 'x': the shape differs; expected (samples, 4); received (2, 5)"),
        ("dense", {"x": np.zeros(4)}, "input 'x': the shape differs; expected (samples, 4); received (4,)"),
        ("dense", {"x": np.zeros((0, 4))}, "at least one; received {'x': 0}"),
        ("dense", {"x": np.array([["a"] * 4])}, "expected float32; received <U1"),
        ("dense", {"x": np.array([[object()] * 4])}, "Python objects are not numbers"),
        ("int8", {"x": np.full((1, 4), np.nan)}, "input 'x': the values do not fit"),
        ("embedding", {"index": np.full((1, 5), 0.5)}, "expected int32; received float64 such as [0.5, 0.5, 0.5]"),
        ("two_inputs", {"left": np.zeros((2, 2)), "right": np.zeros((3, 2))}, "{'left': 2, 'right': 3}"),
    ],
)
def test_samples_that_do_not_fit_are_refused(
    models: dict[str, Path], model: str, inputs: dict[str, np.ndarray], message: str
) -> None:
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        run_tflite(models[model], inputs)
    assert str(caught.value).startswith(str(models[model]))


@pytest.mark.parametrize("name", ["truncated", "text"])
def test_what_is_not_a_model_is_an_error(models: dict[str, Path], name: str) -> None:
    with pytest.raises(ExecutionError, match=f"{name}.tflite: the runtime refused it"):
        run_tflite(models[name], {"x": np.zeros((1, 4))})


def test_a_crash_of_the_runtime_is_an_error(models: dict[str, Path]) -> None:
    with pytest.raises(ExecutionError, match=r"crashing.tflite: the runtime crashed \(SIGABRT\)"):
        run_tflite(models["crashing"], {"x": np.zeros((1, 4))})


def test_an_index_out_of_range_is_an_error_and_no_crash(models: dict[str, Path]) -> None:
    with pytest.raises(ExecutionError, match="gather index out of bounds"):
        run_tflite(models["embedding"], {"index": np.full((1, 5), 2)})


def test_a_missing_file() -> None:
    with pytest.raises(ModelError, match=r"missing.tflite: no such file"):
        run_tflite(Path("missing.tflite"), {"x": np.zeros((1, 4))})


@pytest.mark.usefixtures("no_runtime")
def test_a_missing_runtime_is_unavailable(models: dict[str, Path]) -> None:
    with pytest.raises(UnavailableError, match="pip install ai-edge-litert"):
        run_tflite(models["dense"], {"x": np.zeros((1, 4))})
