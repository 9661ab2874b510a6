"""What a user may set of a Distiller, checked before anything is built."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from edgecompress.distill.losses import check_positive
from edgecompress.errors import UsageError

Schedule = keras.optimizers.schedules.LearningRateSchedule


def check_share(name: str, value: Any) -> Any:
    """Returns a share: a Python number from 0 to 1, or a schedule that begins with one.

    Raises:
        UsageError: It is neither.
    """
    now = float(value(0)) if isinstance(value, Schedule) else value
    if isinstance(now, bool) or not isinstance(now, numbers.Real) or not 0 <= float(now) <= 1:
        raise UsageError(f"{name} is not a share", expected="a number from 0 to 1, or a schedule", received=repr(now))
    return _plain(value)


def check_temperature(value: Any) -> Any:
    """Returns a temperature: a positive Python number, or a schedule that begins with one.

    Raises:
        UsageError: It is neither.
    """
    check_positive("temperature", float(value(0)) if isinstance(value, Schedule) else _plain(value))
    return _plain(value)


def check_terms(losses: Any) -> list[Any] | None:
    """Returns the terms of a loss as a list; None for those that go without saying.

    Raises:
        UsageError: There are none, or one is no term.
    """
    if losses is None:
        return None
    terms = list(losses) if isinstance(losses, (list, tuple)) else [losses]
    if not terms:
        raise UsageError("losses: the list is empty", fix="leave losses out for soft labels, or set alpha=0 for none")
    for term in terms:
        if not isinstance(term, keras.distillation.DistillationLoss):
            raise UsageError(
                "losses: not a distillation loss", expected="SoftLabels(), Features(…) or others of their kind",
                received=repr(term),
            )  # fmt: skip
    return terms


def check_weights(terms: Sequence[Any] | None, weights: Any) -> list[float]:
    """Returns what each term is multiplied by.

    Raises:
        UsageError: There is not one positive number for each.
    """
    if weights is None:
        return [1.0] * len(terms or ())
    if terms is None:
        raise UsageError("loss_weights without losses", received=repr(weights), fix="give the losses, too")
    given = list(weights) if isinstance(weights, (list, tuple, np.ndarray)) else None
    if given is None or len(given) != len(terms):
        raise UsageError("loss_weights do not fit losses", expected=f"a list of {len(terms)}", received=repr(weights))
    plain = [_plain(weight) for weight in given]
    for weight in plain:
        check_positive("loss_weights: a weight", weight)
    return plain


def _plain(value: Any) -> Any:
    """Returns a number of NumPy as one of Python, which can be stored as JSON."""
    return value.item() if isinstance(value, np.generic) else value
