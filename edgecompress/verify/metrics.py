"""How right a model's outputs are (with labels), and how near two models' outputs are (without)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from edgecompress.errors import ConversionError, DataError, ModelError
from edgecompress.labels import Task, class_numbers, task_of

Array = npt.NDArray[Any]
_TOP = 5
_MOST_CONFUSION_CLASSES = 200  # beyond, the matrix says little and would be most of a report


class Scores(BaseModel):
    """Figures of one model on labelled samples.

    Attributes:
        task: What the labels mean.
        output: The output that was scored.
        samples: Number of labels compared (steps count one each in a sequence model).
        accuracy: Share of samples whose likeliest class is right (top-1).
        top5_accuracy: Share with the right class among the five likeliest; only with more than five classes.
        confusion: Counts, `confusion[label][predicted]`; only with up to 200 classes.
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
        snr_db: Signal-to-noise ratio, 10 log10(sum reference² / sum difference²), in dB; None if nothing differs.
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
        outputs: Arrays of shape (samples, …), by output name; the first one that the labels fit is scored, one with
            classes before one with values.
        labels: Class numbers of shape (samples,) or (samples, steps), whole floats too; one-hot vectors; or values to
            be predicted.

    Raises:
        DataError: The labels fit no output, or are out of range.
    """
    fits = [(name, task) for name, output in outputs.items() if (task := task_of(output.shape, labels)) is not None]
    if not fits:
        shapes = ", ".join(f"{name}{output.shape}" for name, output in outputs.items())
        raise DataError("the labels fit no output", expected=shapes, received=f"labels of shape {labels.shape}")
    name, task = min(fits, key=lambda fit: fit[1] is Task.REGRESSION)
    if task is Task.REGRESSION:
        difference = outputs[name].astype(np.float64).reshape(labels.shape) - labels
        return Scores(
            task=task, output=name, samples=len(labels),
            mse=float(np.mean(difference**2)), mae=float(np.mean(np.abs(difference))),
        )  # fmt: skip
    one_hot = task is Task.CLASSIFICATION and labels.shape == outputs[name].shape
    likelihoods = _likelihoods(outputs[name], task)
    numbers = labels.argmax(-1).reshape(-1) if one_hot else class_numbers(labels, likelihoods.shape[-1])
    return _classification(name, task, likelihoods, numbers)


def compare_outputs(reference: Mapping[str, Array], outputs: Mapping[str, Array]) -> tuple[OutputError, ...]:
    """Compares two models' outputs for the same samples; arrays of shape (samples, …), by output name.

    Raises:
        ModelError: The reference is not a number (NaN).
        ConversionError: An output is NaN or infinite where the reference is a number.
    """
    return tuple(_compare(name, reference[name].astype(np.float64), outputs[name]) for name in reference)


def _compare(name: str, reference: Array, output: Array) -> OutputError:
    if np.isnan(reference).any():
        raise ModelError("the model answers NaN", where=name, fix="check its weights and the range of the samples")
    known = np.isfinite(reference)  # a masked entry may be infinite
    difference = output.reshape(reference.shape)[known] - reference[known]
    if not np.isfinite(difference).all():
        raise ConversionError(
            "the finished file answers NaN or infinity where the model does not", where=name,
            fix="choose another --scheme",
        )  # fmt: skip
    noise, signal = float(np.sum(difference**2)), float(np.sum(reference[known] ** 2))
    agreement = None
    if reference.ndim > 1 and reference.shape[-1] > 1:
        same = reference.argmax(-1) == output.reshape(reference.shape).argmax(-1)
        agreement = float(np.mean(same))
    snr = None if noise == 0 else 10 * float(np.log10(max(signal, np.finfo(np.float64).tiny) / noise))
    return OutputError(
        name=name, snr_db=snr, max_abs_error=float(np.abs(difference).max(initial=0)), top1_agreement=agreement
    )


def _likelihoods(output: Array, task: Task) -> Array:
    """Returns one row a label: the entries of all classes."""
    if task is Task.CLASSIFICATION:
        return output.reshape(-1, output.shape[-1]).astype(np.float64)
    flat = output.reshape(-1).astype(np.float64)
    threshold = 0.5 if flat.min() >= 0 and flat.max() <= 1 else 0.0
    return np.stack([np.full_like(flat, threshold), flat], axis=-1)


def _classification(name: str, task: Task, likelihoods: Array, labels: Array) -> Scores:
    classes = likelihoods.shape[-1]
    predicted = likelihoods.argmax(-1)
    confusion = None
    if classes <= _MOST_CONFUSION_CLASSES:
        counts = np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)
        confusion = tuple(tuple(int(n) for n in row) for row in counts)
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
        confusion=confusion,
    )
