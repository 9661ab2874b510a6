from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from edgecompress.errors import ConversionError, DataError, EdgeCompressError, ModelError
from edgecompress.verify.metrics import Scores, Task, compare_outputs, score

# Four samples of three classes; their likeliest classes are 0, 1, 2, 0.
ANSWERS: Any = np.array([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.2, 0.3, 0.5], [0.5, 0.4, 0.1]], np.float32)


def one(output: Any, labels: Any) -> Scores:
    return score({"out": np.asarray(output)}, np.asarray(labels))


def refusal(error: type[EdgeCompressError], function: Any, *arguments: Any) -> str:
    with pytest.raises(error) as caught:
        function(*arguments)
    assert caught.value.exit_code == 2
    message = str(caught.value)
    assert "\n" not in message
    return message


# Classification


def test_top_1_and_confusion() -> None:
    assert one(ANSWERS, [0, 1, 1, 2]) == Scores(
        task=Task.CLASSIFICATION,
        output="out",
        samples=4,
        accuracy=0.5,
        confusion=((1, 0, 0), (0, 1, 1), (1, 0, 0)),  # [label][predicted]
    )


@pytest.mark.parametrize(
    "labels",
    [
        np.array([0, 1, 1, 2], np.uint8),
        np.array([0, 1, 1, 2], np.float32),
        np.array([[0], [1], [1], [2]]),
        np.array([[0.0], [1.0], [1.0], [2.0]]),
        np.eye(3, dtype=np.int64)[[0, 1, 1, 2]],
        np.eye(3, dtype=np.float32)[[0, 1, 1, 2]],
        np.eye(3, dtype=bool)[[0, 1, 1, 2]],
    ],
    ids=["uint8", "floats", "column", "column of floats", "one-hot", "one-hot floats", "one-hot bools"],
)
def test_labels_may_be_written_in_several_ways(labels: Any) -> None:
    assert one(ANSWERS, labels) == one(ANSWERS, [0, 1, 1, 2])


def test_two_classes_are_no_binary_output() -> None:
    found = one([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]], [0, 1, 1])
    assert found.task is Task.CLASSIFICATION
    assert found.accuracy == pytest.approx(2 / 3)
    assert found.confusion == ((1, 0), (1, 1))


def test_top_5_needs_more_than_five_classes() -> None:
    assert one(np.eye(5), np.arange(5)).top5_accuracy is None
    ranked = np.tile(np.array([5.0, 4, 3, 2, 1, 0]), (6, 1))  # class 5 is the only one not among the five likeliest
    found = one(ranked, np.arange(6))
    assert found.accuracy == pytest.approx(1 / 6)
    assert found.top5_accuracy == pytest.approx(5 / 6)


def test_answers_of_integers() -> None:
    assert one(np.array([[-128, 127], [5, 4]], np.int8), [1, 1]).accuracy == 0.5


def test_a_sequence_counts_each_step() -> None:
    output = np.stack([ANSWERS, ANSWERS[::-1]])  # (2 samples, 4 steps, 3 classes)
    found = one(output, [[0, 1, 2, 0], [0, 2, 1, 1]])
    assert found.samples == 8
    assert found.accuracy == 7 / 8
    assert found.confusion == ((3, 0, 0), (1, 2, 0), (0, 0, 2))


def test_a_sequence_of_as_many_steps_as_classes() -> None:
    output = np.stack([ANSWERS[:3], ANSWERS[:3]])  # (2, 3, 3): the labels must not be taken for one-hot vectors
    found = one(output, [[0, 1, 2], [2, 1, 0]])
    assert found.samples == 6
    assert found.accuracy == pytest.approx(4 / 6)


def test_a_sequence_with_one_hot_labels() -> None:
    output = np.stack([ANSWERS, ANSWERS])
    assert one(output, np.eye(3)[[[0, 1, 2, 0], [0, 1, 2, 1]]]).accuracy == 7 / 8


def test_many_classes_have_no_confusion_matrix() -> None:
    assert one(np.eye(200), np.arange(200)).confusion is not None
    found = one(np.eye(201), np.arange(201))
    assert found.accuracy == 1
    assert found.confusion is None


@pytest.mark.parametrize(("labels", "bad"), [([0, 1, 3, 9], 3), ([0, -1, 2, 2], -1), ([0.0, 1.0, 2.0, 3.0], 3)])
def test_labels_out_of_range(labels: list[float], bad: int) -> None:
    message = refusal(DataError, one, ANSWERS, labels)
    assert f"labels out of range; expected 0 to 2 (the model has 3 classes); received {bad}." in message
    assert "number the classes from 0" in message


# Binary


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
@pytest.mark.parametrize(
    "labels", [[0, 1, 1, 0], [[0], [1], [1], [0]], [False, True, True, False], [0.0, 1.0, 1.0, 0.0]]
)
def test_one_probability(labels: Any, shape: tuple[int, ...]) -> None:
    found = one(np.array([0.2, 0.9, 0.5, 0.7]).reshape(shape), labels)
    assert found.task is Task.BINARY
    assert found.samples == 4
    assert found.accuracy == 0.5  # exactly 0.5 is class 0, as in Keras
    assert found.confusion == ((1, 1), (1, 1))
    assert found.mse is None


def test_one_logit() -> None:
    found = one([[-3.0], [0.4], [2.5], [-0.1]], [0, 1, 1, 1])
    assert found.task is Task.BINARY
    assert found.accuracy == 0.75
    assert found.confusion == ((1, 0), (1, 2))


def test_a_sequence_of_two_steps_of_one_probability() -> None:
    found = one(np.array([[[0.9], [0.1]], [[0.8], [0.7]]]), [[1, 0], [1, 0]])
    assert found.task is Task.BINARY
    assert found.samples == 4
    assert found.accuracy == 0.75


# Regression


def test_regression() -> None:
    found = one([[1.0], [2.0], [4.0]], [1.5, 2.0, 2.0])
    assert found.task is Task.REGRESSION
    assert found.samples == 3
    assert found.mse == pytest.approx((0.25 + 4) / 3)
    assert found.mae == pytest.approx(2.5 / 3)
    assert found.accuracy is None
    assert found.confusion is None


def test_regression_of_vectors_and_whole_numbers() -> None:
    assert one([[1.0, 2.0], [3.0, 4.0]], [[1, 2], [3, 6]]).mse == 1
    assert one([[3.0], [5.0]], [3, 4]).mae == 0.5


def test_several_classes_at_once_are_values() -> None:
    assert one(ANSWERS, [[1, 1, 0]] * 4).task is Task.REGRESSION


# Which output


def test_the_first_output_that_fits_is_scored() -> None:
    outputs = {"boxes": np.zeros((4, 7, 2)), "first": ANSWERS, "second": ANSWERS[::-1]}
    assert score(outputs, np.array([0, 1, 2, 0])).output == "first"


def test_classes_are_preferred_to_values() -> None:
    outputs = {"value": np.zeros((4, 1)), "classes": ANSWERS}
    assert score(outputs, np.array([0, 1, 2, 0])).output == "classes"
    assert score(outputs, np.array([0.5, 1, 2, 0])).output == "value"


@pytest.mark.parametrize(
    "labels", [np.zeros(5), np.zeros((4, 2)), np.full(4, 0.5), np.zeros((3, 4)), np.zeros((1, 12))]
)
def test_labels_that_fit_nothing(labels: Any) -> None:
    message = refusal(DataError, score, {"classes": ANSWERS, "boxes": np.zeros((4, 3, 6))}, labels)
    assert "the labels fit no output; expected classes(4, 3), boxes(4, 3, 6)" in message
    assert f"received labels of shape {labels.shape}" in message


def test_values_in_another_order_do_not_fit() -> None:
    refusal(DataError, one, np.zeros((4, 2, 3)), np.full((4, 3, 2), 0.5))


# Against the float model


def test_signal_to_noise_ratio() -> None:
    reference = np.array([[3.0, 4.0]], np.float32)
    (found,) = compare_outputs({"out": reference}, {"out": reference + np.array([[0.25, 0]], np.float32)})
    assert found.name == "out"
    assert found.snr_db == pytest.approx(10 * math.log10(25 / 0.0625))
    assert found.max_abs_error == 0.25
    assert found.top1_agreement == 1


def test_a_tenth_of_the_amplitude_is_20_db() -> None:
    reference = np.random.default_rng(0).normal(size=(50, 7))
    (found,) = compare_outputs({"out": reference}, {"out": 1.1 * reference})
    assert found.snr_db == pytest.approx(20)


def test_identical_outputs() -> None:
    (found,) = compare_outputs({"out": ANSWERS}, {"out": ANSWERS.copy()})
    assert found.snr_db is None
    assert found.max_abs_error == 0
    assert found.top1_agreement == 1


def test_a_silent_reference_has_a_finite_ratio() -> None:
    (found,) = compare_outputs({"out": np.zeros((2, 2))}, {"out": np.ones((2, 2))})
    assert found.snr_db is not None
    assert found.snr_db < -1000
    assert math.isfinite(found.snr_db)


def test_top_1_agreement() -> None:
    (found,) = compare_outputs({"out": ANSWERS}, {"out": ANSWERS[[0, 1, 2, 2]]})
    assert found.top1_agreement == 0.75


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_one_entry_has_no_top_1(shape: tuple[int, ...]) -> None:
    (found,) = compare_outputs({"out": np.zeros(shape)}, {"out": np.ones(shape)})
    assert found.top1_agreement is None


def test_outputs_are_compared_by_name_and_in_the_order_of_the_reference() -> None:
    found = compare_outputs({"b": ANSWERS, "a": ANSWERS[::-1]}, {"a": ANSWERS[::-1], "b": ANSWERS + 1})
    assert [(each.name, each.max_abs_error) for each in found] == [("b", pytest.approx(1)), ("a", 0)]


def test_integers_are_compared_without_overflow() -> None:
    (found,) = compare_outputs({"out": np.array([[127, 0]], np.int8)}, {"out": np.array([[-128, 0]], np.int8)})
    assert found.max_abs_error == 255


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_file_that_overflows_is_refused(bad: float) -> None:
    outputs = ANSWERS.copy()
    outputs[1, 1] = bad
    message = refusal(ConversionError, compare_outputs, {"out": ANSWERS}, {"out": outputs})
    assert "out: the finished file answers NaN or infinity where the model does not" in message
    assert "--scheme" in message


def test_a_model_that_answers_nan_is_refused() -> None:
    message = refusal(ModelError, compare_outputs, {"out": np.full((2, 2), np.nan)}, {"out": np.zeros((2, 2))})
    assert "out: the model answers NaN. Fix: check its weights" in message


def test_masked_entries_may_be_infinite() -> None:
    reference = np.array([[1.0, -np.inf], [-np.inf, -np.inf]])
    (found,) = compare_outputs({"out": reference}, {"out": np.array([[1.5, -np.inf], [-1e9, -np.inf]])})
    assert found.max_abs_error == 0.5
    (found,) = compare_outputs({"out": np.full((2, 2), -np.inf)}, {"out": np.full((2, 2), -np.inf)})
    assert found.max_abs_error == 0
