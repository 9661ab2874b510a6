from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from edgecompress.benchmark.execute import run_tflite
from edgecompress.errors import DataError, ExecutionError, ModelError, UnavailableError
from edgecompress.streaming import Stream
from tests.handsteps import FEATURES, SCALE, SUM, ZERO, clamped_sum, sum_steps

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


@pytest.mark.parametrize(("model", "shape"), [("stateful", (1, 4)), ("lstm", (1, 5, 4))])
def test_samples_do_not_see_each_other_through_a_models_state(
    models: dict[str, Path], model: str, shape: tuple[int, ...]
) -> None:
    x = np.repeat(RNG.uniform(-1, 1, shape).astype(np.float32), 3, axis=0)
    y = run_tflite(models[model], {"x": x})["y"]
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


@pytest.mark.parametrize(("name", "said"), [("truncated", "truncated or damaged"), ("text", "not a .tflite file")])
def test_what_is_not_a_model_is_an_error(models: dict[str, Path], name: str, said: str) -> None:
    with pytest.raises(ModelError, match=f"{name}.tflite: {said}"):
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


@pytest.mark.parametrize("file", ["sum", "sum_of_4"])
def test_single_steps_are_the_whole_sequence_to_the_last_bit(step_files: dict[str, Path], file: str) -> None:
    x = RNG.integers(-40, 46, (6, 1000, FEATURES)).astype(np.int8)
    outputs = run_tflite(step_files[file], {"x": x})
    expected = sum_steps(x)
    assert expected.min() == -128 and expected.max() == 127  # noqa: PT018 (so it is no plain sum)
    assert {name: values.shape for name, values in outputs.items()} == {"sums": (6, 1000, 4), "doubled": (6, 4)}
    np.testing.assert_array_equal(outputs["sums"], (expected.astype(np.float32) - ZERO) * SCALE)
    np.testing.assert_array_equal(outputs["doubled"], 2 * outputs["sums"][:, -1])


def test_steps_of_sequences_go_together_and_the_rest_goes_whole(step_files: dict[str, Path]) -> None:
    a, b = RNG.normal(size=(2, 3, 7, 2)).astype(np.float32)
    offset = RNG.normal(size=(3, 2)).astype(np.float32)
    outputs = run_tflite(step_files["shifted"], {"offset": offset, "b": b, "a": a})
    np.testing.assert_allclose(outputs["total"], (a + b).sum(1) + 7 * offset, rtol=1e-5, atol=1e-5)


def test_steps_may_be_token_ids(step_files: dict[str, Path]) -> None:
    ids = np.array([[0, 1, 2], [2, 2, 0]])
    expected = np.array([[0, 1], [10, 11], [20, 21]], np.float32)[ids].cumsum(1)
    np.testing.assert_array_equal(run_tflite(step_files["tokens"], {"ids": ids})["sums"], expected)


def test_states_change_all_at_once(step_files: dict[str, Path]) -> None:
    x = RNG.normal(size=(2, 6, 2)).astype(np.float32)
    y = run_tflite(step_files["delay"], {"x": x})["y"]
    np.testing.assert_array_equal(y, np.pad(x, ((0, 0), (2, 0), (0, 0)))[:, :6])


@pytest.mark.parametrize(
    ("file", "shapes", "message"),
    [
        ("sum", {"x": (2, 0, 4)}, "the same number of steps, at least one; received {'x': 0}"),
        ("sum", {"x": (2, 5, 3)}, "input 'x': the shape differs; expected (samples, steps, 4); received (2, 5, 3)"),
        ("sum", {"x": (2, 4)}, "input 'x': the shape differs; expected (samples, steps, 4); received (2, 4)"),
        ("sum", {"x": (2, 5, 4), "sum": (2, 4)}, "the input names differ; expected ['x']; received ['sum', 'x']"),
        (
            "shifted",
            {"a": (2, 5, 2), "b": (2, 6, 2), "offset": (2, 2)},
            "the same number of steps, at least one; received {'a': 5, 'b': 6}",
        ),
    ],
)
def test_sequences_that_do_not_fit_are_refused(
    step_files: dict[str, Path], file: str, shapes: dict[str, tuple[int, ...]], message: str
) -> None:
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        run_tflite(step_files[file], {name: np.zeros(shape, np.float32) for name, shape in shapes.items()})
    assert str(caught.value).startswith(str(step_files[file]))


def test_a_state_comes_out_as_it_goes_in(step_files: dict[str, Path]) -> None:
    with pytest.raises(ModelError, match="input 'sum' and its output 'next_sum' differ") as caught:
        run_tflite(step_files["two_scales"], {"x": np.zeros((1, 2, 4))})
    assert "scale 0.125, zero point 3; received int8 (1, 4), scale 0.25" in str(caught.value)


def test_what_is_cut_and_joined_has_one_step(tmp_path: Path) -> None:
    stream = Stream(inputs=SUM.inputs, outputs=("doubled",), states=SUM.states)
    file = clamped_sum(tmp_path / "wrong.tflite", stream=stream)
    with pytest.raises(ModelError, match="the output 'doubled' has not one time step along axis 1"):
        run_tflite(file, {"x": np.zeros((1, 2, 4))})
