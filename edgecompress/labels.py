"""What labels mean to a model's output: class numbers, one-hot vectors, the probability of one class, or values."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from edgecompress.errors import DataError

Array = npt.NDArray[Any]


class Task(StrEnum):
    """What the labels mean."""

    CLASSIFICATION = "classification"
    BINARY = "binary"  # one output: the probability, or the logit, of the class 1
    REGRESSION = "regression"


def task_of(shape: Sequence[int], labels: Array) -> Task | None:
    """Returns what labels mean to an output of this shape, (samples, …), or None if they do not fit it."""
    classes = shape[-1] if len(shape) > 1 else 1
    # Keras takes class numbers stored as floats, too.
    integral = labels.dtype.kind in "iub" or bool((labels == np.round(labels)).all())
    if classes > 1 and integral and labels.shape in (tuple(shape[:-1]), (*shape[:-1], 1)):
        return Task.CLASSIFICATION
    if classes > 1 and labels.shape == tuple(shape) and is_one_hot(labels):
        return Task.CLASSIFICATION
    if len(labels) == shape[0] and _without_ones(labels.shape) == _without_ones(shape):
        binary = classes == 1 and integral and set(np.unique(labels)) <= {0, 1}
        return Task.BINARY if binary else Task.REGRESSION
    return None


def is_one_hot(labels: Array) -> bool:
    """Whether each vector along the last axis has a single 1 and zeros else."""
    return bool(np.isin(labels, (0, 1)).all() and (labels.sum(-1) == 1).all())


def class_numbers(labels: Array, classes: int) -> Array:
    """Returns labels as a flat array of class numbers.

    Raises:
        DataError: A label is not one of the `classes` classes.
    """
    numbers = labels.reshape(-1).astype(np.int64)
    if numbers.min() < 0 or numbers.max() >= classes:
        bad = int(numbers[(numbers < 0) | (numbers >= classes)][0])
        raise DataError(
            "labels out of range", expected=f"0 to {classes - 1} (the model has {classes} classes)", received=bad,
            fix="number the classes from 0, in the order of the model's outputs",
        )  # fmt: skip
    return numbers


def _without_ones(shape: Sequence[int]) -> list[int]:
    return [size for size in shape if size != 1]
