"""Estimates the time of an operator on a CPU, so that factors are refused where they would take longer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

_OVERHEAD_US = 0.5
_MACS_PER_US = {"dense": 8000.0, "conv": 20000.0, "depthwise": 4000.0, "lookup": 1.0}
_VALUES_PER_US = 2000.0


@dataclass(frozen=True)
class Operator:
    """One operator of a .tflite file.

    Attributes:
        macs: Multiply-accumulates of one call.
        weights: Values of its kernel.
        moved: Values that a call reads and writes besides those.
        kind: What kernel does it.
        calls: How often it is called for one sample: the steps of a loop.
    """

    macs: int
    weights: int
    moved: int
    kind: Literal["dense", "conv", "depthwise", "lookup"]
    calls: int = 1


def estimated_us(operators: Sequence[Operator]) -> float:
    """Returns about how many microseconds operators take for one sample, one after the other."""
    return sum(
        each.calls * (_OVERHEAD_US + each.macs / _MACS_PER_US[each.kind] + each.moved / _VALUES_PER_US)
        for each in operators
    )


def saves_time(before: Sequence[Operator], after: Sequence[Operator], margin: float = 0.1) -> bool:
    """Whether some operators are expected to take less time than others, by at least a share `margin`."""
    return estimated_us(after) <= (1 - margin) * estimated_us(before)
