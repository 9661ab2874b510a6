from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgecompress.benchmark.execute import run_tflite
from edgecompress.benchmark.streaming import StreamRunner
from edgecompress.errors import DataError, ExecutionError, ModelError, UnavailableError, UsageError
from tests.handsteps import FEATURES, SUM, sum_steps

RNG = np.random.default_rng(5)


def test_steps_one_by_one_are_the_whole_sequence(step_files: dict[str, Path]) -> None:
    x = RNG.normal(0, 2, (40, FEATURES))
    whole = run_tflite(step_files["sum"], {"x": x[None]})
    runner = StreamRunner(step_files["sum"])
    assert runner.stream == SUM
    steps = [runner.step(x=row) for row in x]
    assert steps[0]["sums"].shape == (FEATURES,)
    np.testing.assert_array_equal(np.stack([step["sums"] for step in steps]), whole["sums"][0])
    np.testing.assert_array_equal(steps[-1]["doubled"], whole["doubled"][0])
    again = runner.run(x=x)  # begins anew
    np.testing.assert_array_equal(again["sums"], whole["sums"][0])
    np.testing.assert_array_equal(again["doubled"], whole["doubled"][0])


def test_reset_forgets_what_was_before(step_files: dict[str, Path]) -> None:
    runner = StreamRunner(step_files["sum"])
    first = runner.step(x=[1.0, 2.0, 3.0, -1.0])["sums"]
    np.testing.assert_array_equal(first, [1.0, 2.0, 3.0, -1.0])
    np.testing.assert_array_equal(runner.step(x=[1.0, 2.0, 3.0, -1.0])["sums"], 2 * first)
    runner.reset()
    np.testing.assert_array_equal(runner.step(x=[1.0, 2.0, 3.0, -1.0])["sums"], first)


def test_integers_of_the_inputs_type_count_as_quantized(step_files: dict[str, Path]) -> None:
    x = RNG.integers(-128, 128, (5, FEATURES)).astype(np.int8)
    runner = StreamRunner(step_files["sum"])
    sums = np.stack([runner.step(x=row)["sums"] for row in x])
    np.testing.assert_array_equal(sums, (sum_steps(x[None])[0].astype(np.float32) - 3) * 0.125)


def test_single_numbers_and_whole_inputs(step_files: dict[str, Path]) -> None:
    tokens = StreamRunner(step_files["tokens"])
    assert [tokens.step(ids=number)["sums"].tolist() for number in (2, 1)] == [[20, 21], [30, 32]]
    shifted = StreamRunner(step_files["shifted"])
    for total in ([11, 22], [22, 44]):
        assert shifted.step(a=[1, 2], b=[0, 0], offset=[10, 20])["total"].tolist() == total


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"y": np.zeros(4)}, "the input names differ"),
        ({"x": np.zeros(3)}, "input 'x': the shape differs"),
        ({"x": np.zeros((2, 4))}, "input 'x': the shape differs"),
        ({"x": np.full(4, np.nan)}, "input 'x': the values do not fit"),
    ],
)
def test_a_step_that_does_not_fit_is_refused(
    step_files: dict[str, Path], inputs: dict[str, np.ndarray], said: str
) -> None:
    with pytest.raises(DataError, match=said) as caught:
        StreamRunner(step_files["sum"]).step(**inputs)
    assert str(caught.value).startswith(str(step_files["sum"]))


def test_an_index_out_of_range_is_an_error(step_files: dict[str, Path]) -> None:
    with pytest.raises(ExecutionError, match="gather index out of bounds"):
        StreamRunner(step_files["tokens"]).step(ids=3)


def test_files_that_are_not_of_one_step(models: dict[str, Path], step_files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not a file of one time step"):
        StreamRunner(models["dense"])
    with pytest.raises(ModelError, match="no such file"):
        StreamRunner(tmp_path / "missing.tflite")
    with pytest.raises(ModelError, match="'sum' and its output 'next_sum' differ"):
        StreamRunner(step_files["two_scales"])


def test_an_unknown_runtime_and_ragged_numbers(step_files: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match=r"there is no such runtime; received litrt.*did you mean 'litert'"):
        StreamRunner(step_files["sum"], runtime="litrt")
    runner = StreamRunner(step_files["sum"])
    (name,) = runner.stream.inputs
    with pytest.raises(DataError, match=f"input '{name}': not an array of numbers"):
        runner.step(**{name: [[1.0], [2.0, 3.0]]})


def test_a_missing_runtime_is_unavailable(step_files: dict[str, Path]) -> None:
    with pytest.raises(UnavailableError, match="pip install tflite-runtime"):
        StreamRunner(step_files["sum"], runtime="tflite-runtime")
