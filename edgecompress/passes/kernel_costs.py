"""Estimates the time of operators on a CPU, so that factors are refused where they would take longer.

Fewer multiply-accumulates are not always quicker: a second operator has a cost of its own, and XNNPACK's kernels
compute 32 outputs at a time, so that 24 take as long as 32, or longer.

The constants were fitted to such pairs of a layer and its factors as `benchmarks/low_rank_latency.py` measures (LiteRT
2.3, XNNPACK, float32, one thread, Xeon at 2.5 GHz with AVX-512; the figures are in
`benchmarks/results/low_rank_latency.json`), so that none is let pass that was slower. They are estimates for that
machine only; what they are used for, the ratio of two, was not measured on others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

_OPERATOR_US = 0.25
_OPERATOR_IN_LOOP_US = 0.09
_STEP_US = 0.85  # of a recurrent layer: what there is in the body of its loop besides products
_MACS_PER_US = {"conv": 140_000, "dense": 110_000, "depthwise": 18_000}
_MACS_PER_US_OF_VECTOR = 35_000  # a vector times a matrix waits for the weights
_TILE = 32  # outputs that are computed at a time,
_HALF_TILE = 16  # or half as many,
_UNEVEN = 1.3  # which takes this much longer than its share; so do numbers that are no multiple of it


@dataclass(frozen=True)
class Operator:
    """A product of vectors with a kernel, or a step of a loop without its products.

    Attributes:
        kind: What kernel does it.
        places: How many vectors there are: steps, or pixels of the output.
        inputs: Values that an output sums over.
        outputs: Values of the output for each vector.
        calls: How often it is called for one sample: the steps of a loop.
    """

    kind: Literal["dense", "conv", "depthwise", "step"]
    places: int = 0
    inputs: int = 0
    outputs: int = 0
    calls: int = 1

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all calls."""
        return self.calls * self.places * self.inputs * self.outputs

    @property
    def estimated_us(self) -> float:
        """About how many microseconds all calls take."""
        if self.kind == "step":
            return self.calls * _STEP_US
        is_vector = self.kind == "dense" and self.places == 1
        rate = _MACS_PER_US_OF_VECTOR if is_vector else _MACS_PER_US[self.kind]
        own = _OPERATOR_US if self.calls == 1 else _OPERATOR_IN_LOOP_US
        return self.calls * (own + self.places * self.inputs * _width(self.outputs) / rate)


def saves_time(before: Sequence[Operator], after: Sequence[Operator], margin: float = 0.1) -> bool:
    """Whether some operators are expected to take less time than others, by at least a share `margin`."""
    old, new = (sum(each.estimated_us for each in operators) for operators in (before, after))
    return new <= (1 - margin) * old


def _width(outputs: int) -> float:
    """Returns how many outputs take as long as these."""
    if outputs <= _HALF_TILE:
        return _HALF_TILE * _UNEVEN
    return -(-outputs // _TILE) * _TILE * (_UNEVEN if outputs % _HALF_TILE else 1)
