from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecompress.data import InputSpec
from edgecompress.errors import DataError
from edgecompress.verify.verification import GOLDEN_SAMPLES, random_inputs, verify, write_golden

ANSWERS = np.array([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.2, 0.3, 0.5], [0.5, 0.4, 0.1]], np.float32)
OTHER = ANSWERS[[0, 1, 2, 2]]  # the last answer changes from class 0 to class 2


def test_with_labels_both_are_scored() -> None:
    found = verify({"out": ANSWERS}, {"out": OTHER}, np.array([0, 1, 1, 0]), "held-out")
    assert (found.samples, found.kind) == (4, "held-out")
    assert found.float_scores is not None
    assert found.scores is not None
    assert (found.float_scores.accuracy, found.scores.accuracy) == (0.75, 0.5)
    assert found.accuracy_drop == 0.25
    assert found.outputs[0].top1_agreement == 0.75


def test_a_file_may_be_better_than_the_model() -> None:
    assert verify({"out": ANSWERS}, {"out": OTHER}, np.array([0, 1, 1, 2]), "held-out").accuracy_drop == -0.25


def test_without_labels_changed_answers_count_as_lost() -> None:
    found = verify({"out": ANSWERS}, {"out": OTHER}, None, "calibration")
    assert found.scores is None
    assert found.float_scores is None
    assert found.accuracy_drop == 0.25


def test_of_several_outputs_the_worst_counts() -> None:
    reference = {"same": ANSWERS, "value": ANSWERS[:, :1], "other": ANSWERS}
    found = verify(reference, {**reference, "other": OTHER}, None, "held-out")
    assert found.accuracy_drop == 0.25


def test_values_have_no_accuracy_to_lose() -> None:
    values = ANSWERS[:, :1]
    assert verify({"out": values}, {"out": values + 1}, None, "seeded-random").accuracy_drop is None
    found = verify({"out": values}, {"out": values + 1}, values[:, 0], "held-out")
    assert found.scores is not None
    assert found.scores.mae == pytest.approx(1)
    assert found.accuracy_drop is None


def test_both_are_scored_on_the_same_output_whatever_their_order() -> None:
    reference = {"first": ANSWERS, "second": ANSWERS[::-1]}
    outputs = {"second": reference["second"], "first": reference["first"]}
    found = verify(reference, outputs, np.array([0, 1, 2, 0]), "held-out")
    assert found.float_scores is not None
    assert found.scores is not None
    assert found.float_scores.output == found.scores.output == "first"
    assert found.accuracy_drop == 0


def test_labels_that_fit_nothing() -> None:
    with pytest.raises(DataError, match="the labels fit no output"):
        verify({"out": ANSWERS}, {"out": OTHER}, np.zeros((4, 9)), "held-out")


# Random inputs

SPECS = (
    InputSpec("image", (1, 16, 16, 3), "float32"),
    InputSpec("half", (None, None, 2), "float16"),
    InputSpec("tokens", (1, 40), "int32"),
    InputSpec("mask", (1, 40), "bool"),
    InputSpec("scalar", (1,), "uint8"),
)


def test_random_inputs_have_the_shapes_types_and_ranges_of_the_model() -> None:
    inputs = random_inputs(SPECS, samples=6, seed=0)
    assert {name: (array.shape, str(array.dtype)) for name, array in inputs.items()} == {
        "image": ((6, 16, 16, 3), "float32"),
        "half": ((6, 1, 2), "float16"),
        "tokens": ((6, 40), "int32"),
        "mask": ((6, 40), "bool"),
        "scalar": ((6,), "uint8"),
    }
    image = inputs["image"]
    assert 0 <= image.min() < 0.01
    assert 0.99 < image.max() <= 1
    assert image.mean() == pytest.approx(0.5, abs=0.02)
    assert set(np.unique(inputs["tokens"])) == {0, 1}
    assert set(np.unique(inputs["mask"])) == {False, True}


def test_random_inputs_are_seeded() -> None:
    first, again, other = (random_inputs(SPECS, samples=3, seed=seed) for seed in (5, 5, 6))
    for name, array in first.items():
        np.testing.assert_array_equal(array, again[name])
    assert not np.array_equal(first["image"], other["image"])
    assert not np.array_equal(first["tokens"], other["tokens"])


# Golden vectors


def vectors(samples: int) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    rows = np.arange(samples * 2, dtype=np.float32).reshape(samples, 2)
    return {"a": rows, "b/c:0": rows.astype(np.int32)}, {"out": rows / 2}, {"out": rows / 4}


def test_golden_vectors_hold_the_first_samples(tmp_path: Path) -> None:
    write_golden(tmp_path / "golden.npz", *vectors(20))
    inputs, reference, outputs = vectors(GOLDEN_SAMPLES)
    with np.load(tmp_path / "golden.npz") as golden:
        assert set(golden.files) == {"input.a", "input.b/c:0", "float.out", "output.out"}
        np.testing.assert_array_equal(golden["input.a"], inputs["a"])
        np.testing.assert_array_equal(golden["input.b/c:0"], inputs["b/c:0"])
        assert golden["input.b/c:0"].dtype == np.int32
        np.testing.assert_array_equal(golden["float.out"], reference["out"])
        np.testing.assert_array_equal(golden["output.out"], outputs["out"])


def test_fewer_samples_are_all_kept(tmp_path: Path) -> None:
    write_golden(tmp_path / "golden.npz", *vectors(3))
    with np.load(tmp_path / "golden.npz") as golden:
        assert golden["float.out"].shape == (3, 2)


def test_golden_vectors_are_the_same_bytes_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [tmp_path / "first.npz", tmp_path / "second.npz"]
    now = time.time()
    for days, file in enumerate(files):
        moment = now + 86400 * days
        with monkeypatch.context() as patch:
            patch.setattr(time, "time", lambda moment=moment: moment)
            write_golden(file, *vectors(20))
    first, second = (hashlib.sha256(file.read_bytes()).hexdigest() for file in files)
    assert first == second
