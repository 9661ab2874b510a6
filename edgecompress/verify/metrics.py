"""How right a model's outputs are (with labels), and how near two models' outputs are (without)."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from edgecompress.errors import DataError

Array = npt.NDArray[Any]
_TOP = 5


class Task(StrEnum):
    """What the labels mean."""

    CLASSIFICATION = "classification"
    BINARY = "binary"  # one output: the probability, or the logit, of the class 1
    REGRESSION = "regression"


class Scores(BaseModel):
    """Figures of one model on labelled samples.

    Attributes:
        task: What the labels mean.
        output: The output that was scored.
        samples: Number of labels compared (steps count one each in a sequence model).
        accuracy: Share of samples whose likeliest class is right (top-1).
        top5_accuracy: Share with the right class among the five likeliest; only with more than five classes.
        confusion: Counts, `confusion[label][predicted]`.
        mse: Mean squared error (regression).
        mae: Mean absolute error (regression).
    """

    model_config = ConfigDict(frozen=True)

    task: Task
    output: str
    samples: int
    accuracy: float | None = None
    top5_accuracy: float | None = None
    confusion: tuple[tuple[int, ...], ...] | None = None
    mse: float | None = None
    mae: float | None = None


class OutputError(BaseModel):
    """How far one output is from the float model's.

    Attributes:
        name: The output.
        snr_db: Signal-to-noise ratio, 10 log10(sum reference² / sum difference²), in dB; None if there is no difference.
        max_abs_error: Largest absolute difference.
        top1_agreement: Share of samples with the same likeliest entry; None for an output of one entry.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    snr_db: float | None
    max_abs_error: float
    top1_agreement: float | None


def score(outputs: Mapping[str, Array], labels: Array) -> Scores:
    """Compares outputs with labels.

    Args:
        outputs: Arrays of shape (samples, …), by output name; the first one that the labels fit is scored.
        labels: Class numbers of shape (samples,) or (samples, steps), one-hot vectors, or values to be predicted.

    Raises:
        DataError: The labels fit no output, or are out of range.
    """
    fits = [(name, task) for name, output in outputs.items() if (task := _task_of(output, labels)) is not None]
    if not fits:
        shapes = ", ".join(f"{name}{output.shape}" for name, output in outputs.items())
        raise DataError("the labels fit no output", expected=shapes, received=f"labels of shape {labels.shape}")
    name, task = fits[0]
    if task is Task.REGRESSION:
        difference = outputs[name].astype(np.float64).reshape(labels.shape) - labels
        return Scores(
            task=task, output=name, samples=len(labels),
            mse=float(np.mean(difference**2)), mae=float(np.mean(np.abs(difference))),
        )  # fmt: skip
    likelihoods = _likelihoods(outputs[name], task)
    return _classification(name, task, likelihoods, _class_numbers(labels, likelihoods.shape[-1], task))


def compare_outputs(reference: Mapping[str, Array], outputs: Mapping[str, Array]) -> tuple[OutputError, ...]:
    """Compares two models' outputs for the same samples; arrays of shape (samples, …), by output name."""
    return tuple(_compare(name, reference[name].astype(np.float64), outputs[name]) for name in reference)


def _compare(name: str, reference: Array, output: Array) -> OutputError:
    difference = output.astype(np.float64).reshape(reference.shape) - reference
    noise, signal = float(np.sum(difference**2)), float(np.sum(reference**2))
    agreement = None
    if reference.ndim > 1 and reference.shape[-1] > 1:
        same = reference.argmax(-1) == output.reshape(reference.shape).argmax(-1)
        agreement = float(np.mean(same))
    snr = None if noise == 0 else 10 * float(np.log10(max(signal, np.finfo(np.float64).tiny) / noise))
    return OutputError(
        name=name, snr_db=snr, max_abs_error=float(np.abs(difference).max()), top1_agreement=agreement
    )


def _task_of(output: Array, labels: Array) -> Task | None:
    classes = output.shape[-1] if output.ndim > 1 else 1
    integral = labels.dtype.kind in "iub"
    if classes > 1 and integral and labels.shape in (output.shape[:-1], (*output.shape[:-1], 1)):
        return Task.CLASSIFICATION
    if classes > 1 and labels.shape == output.shape and _is_one_hot(labels):
        return Task.CLASSIFICATION
    if labels.size == output.size and len(labels) == len(output):
        binary = classes == 1 and integral and set(np.unique(labels)) <= {0, 1}
        return Task.BINARY if binary else Task.REGRESSION
    return None


def _is_one_hot(labels: Array) -> bool:
    return bool(np.isin(labels, (0, 1)).all() and (labels.sum(-1) == 1).all())


def _likelihoods(output: Array, task: Task) -> Array:
    """Returns one row a label: the entries of all classes."""
    if task is Task.CLASSIFICATION:
        return output.reshape(-1, output.shape[-1]).astype(np.float64)
    flat = output.reshape(-1).astype(np.float64)
    threshold = 0.5 if flat.min() >= 0 and flat.max() <= 1 else 0.0
    return np.stack([np.full_like(flat, threshold), flat], axis=-1)


def _class_numbers(labels: Array, classes: int, task: Task) -> Array:
    if task is Task.CLASSIFICATION and labels.dtype.kind == "f" or labels.ndim > 1 and labels.shape[-1] == classes:
        return labels.reshape(-1, classes).argmax(-1)
    numbers = labels.reshape(-1).astype(np.int64)
    if numbers.min() < 0 or numbers.max() >= classes:
        bad = int(numbers[(numbers < 0) | (numbers >= classes)][0])
        raise DataError(
            "labels out of range", expected=f"0 to {classes - 1} (the model has {classes} classes)", received=bad
        )
    return numbers


def _classification(name: str, task: Task, likelihoods: Array, labels: Array) -> Scores:
    classes = likelihoods.shape[-1]
    predicted = likelihoods.argmax(-1)
    counts = np.bincount(labels * classes + predicted, minlength=classes * classes).reshape(classes, classes)
    top5 = None
    if classes > _TOP:
        best = np.argpartition(-likelihoods, _TOP, axis=-1)[:, :_TOP]
        top5 = float(np.mean((best == labels[:, None]).any(-1)))
    return Scores(
        task=task,
        output=name,
        samples=len(labels),
        accuracy=float(np.mean(predicted == labels)),
        top5_accuracy=top5,
        confusion=tuple(tuple(int(n) for n in row) for row in counts),
    )
