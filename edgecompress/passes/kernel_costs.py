"""Estimates the time of operators on a CPU, so that factors are refused where they would take longer.

Fewer multiply-accumulates are not always quicker: a second operator has a cost of its own, and XNNPACK's kernels
compute 32 outputs at a time, so that 24 take as long as 32, or longer.

Files whose activations are quantized while they run (dynamic range) have costs of their own. There the kernel of
DEPTHWISE_CONV_2D is a slow one, and dense layers and 1 x 1 convolutions quantize each vector by itself, which takes
longer than multiplying it does where it is short: of what would be quicker in float, a quarter is slower.

The constants were fitted to pairs of a layer and its factors that `benchmarks/low_rank_latency.py` measured (LiteRT
2.3, XNNPACK, one thread, AMD EPYC with AVX-512: 357 in float32, as many in dynamic range), so that none is let pass
that was slower. In a later run, which is in `benchmarks/results/low_rank_latency.json`, none was either, nor any of the
103 of 246 pairs in int8 that pass by both. They are estimates for that machine only; what they are used for, the ratio
of two, was not measured on others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

_TILE = 32  # outputs that are computed at a time,
_HALF_TILE = 16  # or half as many,
_UNEVEN = 1.3  # which takes this much longer than its share; so do numbers that are no multiple of it


@dataclass(frozen=True)
class _Costs:
    """What things take.

    Attributes:
        operator_us: An operator besides its arithmetic.
        in_loop_us: The same in the body of a loop.
        step_us: What there is in the body of a recurrent layer's loop besides products.
        vector_us: What a dense layer or a 1 x 1 convolution does with each vector besides arithmetic.
        dense: Multiply-accumulates of a dense layer in a microsecond.
        lone: Those of a dense layer with one vector, which waits for the weights.
        conv: Those of a convolution.
        depthwise: Those of a depthwise convolution.
    """

    operator_us: float
    in_loop_us: float
    step_us: float
    vector_us: float
    dense: int
    lone: int
    conv: int
    depthwise: int


_FLOAT = _Costs(0.25, 0.09, 0.85, 0.0, dense=110_000, lone=35_000, conv=140_000, depthwise=18_000)
_DYNAMIC = _Costs(0.2, 0.15, 0.6, 0.024, dense=450_000, lone=110_000, conv=450_000, depthwise=800)


@dataclass(frozen=True)
class Operator:
    """A product of vectors with a kernel, or a step of a loop without its products.

    Attributes:
        kind: What kernel does it; 'pointwise': a 1 x 1 convolution.
        places: How many vectors there are: steps, or pixels of the output.
        inputs: Values that an output sums over.
        outputs: Values of the output for each vector.
        calls: How often it is called for one sample: the steps of a loop.
    """

    kind: Literal["dense", "pointwise", "conv", "depthwise", "step"]
    places: int = 0
    inputs: int = 0
    outputs: int = 0
    calls: int = 1

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all calls."""
        return self.calls * self.places * self.inputs * self.outputs

    def estimated_us(self, *, dynamic: bool = False) -> float:
        """About how many microseconds all calls take: in float, or where activations are quantized while it runs."""
        costs = _DYNAMIC if dynamic else _FLOAT
        if self.kind == "step":
            return self.calls * costs.step_us
        own = costs.operator_us if self.calls == 1 else costs.in_loop_us
        if self.kind in ("dense", "pointwise"):
            own += self.places * costs.vector_us
        if self.kind == "dense":
            rate = costs.lone if self.places == 1 else costs.dense
        else:
            rate = costs.depthwise if self.kind == "depthwise" else costs.conv
        return self.calls * (own + self.places * self.inputs * _width(self.outputs) / rate)


def saves_time(
    before: Sequence[Operator], after: Sequence[Operator], margin: float = 0.1, *, dynamic: bool = False
) -> bool:
    """Whether some operators are expected to take less time than others, by at least a share `margin`.

    Args:
        before: The operators of a layer.
        after: Those of its factors.
        margin: The least share of the time to save.
        dynamic: Whether they have to in dynamic range, too, and not only in float.
    """
    kernels = (False, True) if dynamic else (False,)
    return all(_total_us(after, dynamic=each) <= (1 - margin) * _total_us(before, dynamic=each) for each in kernels)


def _total_us(operators: Sequence[Operator], *, dynamic: bool) -> float:
    return sum(each.estimated_us(dynamic=dynamic) for each in operators)


def _width(outputs: int) -> float:
    """Returns how many outputs take as long as these."""
    if outputs <= _HALF_TILE:
        return _HALF_TILE * _UNEVEN
    return -(-outputs // _TILE) * _TILE * (_UNEVEN if outputs % _HALF_TILE else 1)
