"""Files of one time step, judged and timed like files of whole sequences; they are built by hand."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from edgecompress.comparison import compare
from edgecompress.data import load_data
from edgecompress.errors import DataError
from edgecompress.report.terminal import print_comparison, print_measurements
from edgecompress.verify.evaluation import evaluate
from edgecompress.verify.predictor import open_predictor
from tests.handmade import Model, pack, tensor
from tests.handsteps import FEATURES, SCALE, ZERO, clamped_sum, shifted_sum, sum_steps

SAMPLES, STEPS = 6, 10


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return clamped_sum(tmp_path / "step.tflite")


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(0).normal(0, 1, (SAMPLES, STEPS, FEATURES)).astype(np.float32)


def last_sums(x: np.ndarray) -> np.ndarray:
    integers = np.clip(np.rint(x / SCALE) + ZERO, -128, 127).astype(np.int8)
    return (sum_steps(integers)[:, -1].astype(np.float32) - ZERO) * SCALE


def whole(path: Path) -> Path:
    """A file of the same sequences, which keeps them as they are."""
    model, shape = Model(), (1, STEPS, FEATURES)
    model.graph([tensor("x", shape), tensor("y", shape)], [0], [1], [model.op("RELU", [0], [1])])
    path.write_bytes(pack(model.tree))
    return path


def test_samples_are_sequences_of_any_length_and_states_are_no_inputs(file, tmp_path, x) -> None:
    predictor = open_predictor(file)
    (spec,) = predictor.specs
    assert (spec.name, spec.shape, spec.dtype) == ("x", (None, None, FEATURES), "float32")
    a, b, offset = open_predictor(shifted_sum(tmp_path / "shifted.tflite")).specs
    assert (a.shape, b.shape, offset.shape) == ((None, None, 2), (None, None, 2), (None, 2))
    for length in (1, 3, STEPS):
        short = x[:, :length]
        found = predictor.predict(load_data(short, predictor.specs))
        assert found["sums"].shape == short.shape
        np.testing.assert_array_equal(found["doubled"], 2 * last_sums(short))


def test_evaluate_runs_whole_sequences(file, x) -> None:
    """The labels are those of the last step, to which "doubled" belongs."""
    aims = 2 * last_sums(x)
    found = evaluate(file, (x, aims))
    assert (found.model, found.scores.output, found.scores.samples) == ("step.tflite", "doubled", SAMPLES)
    assert found.scores.mae == 0
    assert evaluate(file, (x, aims + 1)).scores.mae == pytest.approx(1)
    with pytest.raises(DataError, match="x: wrong shape"):
        evaluate(file, (x[..., :2], aims))


def test_compare_times_single_steps_and_says_so(file, tmp_path, capsys) -> None:
    found = compare([whole(tmp_path / "whole.tflite"), file], runs=3)
    assert [row.measurement.steps_per_run for row in found.rows] == [None, 1]
    print_comparison(found)
    sequence, step = rows(capsys.readouterr().out)
    assert "1.00 x" in sequence
    assert "a step" not in sequence
    assert re.search(r"\d ms a step", step)
    assert not re.search(r"\d x", step)  # a step and a sequence are not comparable
    print_measurements([row.model for row in found.rows], [row.measurement for row in found.rows])
    sequence, step = rows(capsys.readouterr().out)[:2]
    assert "a step" not in sequence
    assert step.count("ms a step") == 1


def test_steps_are_compared_with_steps(file, capsys) -> None:
    print_comparison(compare([file, file], runs=3))
    for line in rows(capsys.readouterr().out):
        assert re.search(r"ms a step +\S+ x", line)


def rows(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.lstrip().startswith(("step.tflite", "whole.tflite"))]
