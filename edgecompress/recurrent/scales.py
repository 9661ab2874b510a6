"""From ranges to integers: the scales of a cell's results and of its matrices (Jacob et al. 2018, arXiv:1712.05877)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from edgecompress.data import Array
from edgecompress.recurrent.cells import Matrix, RecurrentLayer

Range = tuple[float, float]
_SMALLEST_RANGE = 1e-6  # the scale of a result that never changes: zero is no scale
_SMALLEST_WEIGHT = 1e-7  # likewise of a channel of zeros
_LARGEST_BIAS = 2**30  # half of what 32 bits hold: the sum of the products needs room, too
_WEIGHT_STEPS = 127
_BYTE = 8  # bits: activations of more have no zero point
# The kernels of these write in fixed steps (tensorflow/lite/g3doc/performance/quantization_spec.md). `clip` is done by
# the limits of the integers, so that its range is that of a sigmoid, too.
_FIXED_8: dict[str, Range] = {"sigmoid": (0.0, 255 / 256), "clip": (0.0, 255 / 256), "tanh": (-1.0, 127 / 128)}
# Beyond these sums, the result is the last step of its scale: rounding them more finely is worth more than reaching
# further. sigmoid(6.24) = 1 - 1/512, tanh(3.12) = 1 - 1/256; in 16 bits likewise with 1/65536 and 1/32768.
_BOUNDED = ("tanh", "sigmoid")
_FINEST = 200  # times as fine: XNNPACK takes less than 256
_USUAL = 16.0  # width of the sums before them: a result that never moved is given a 256th of it in 8 bits
_REACH = {("sigmoid", 8): 6.24, ("tanh", 8): 3.12, ("sigmoid", 16): 11.1, ("tanh", 16): 5.55}


@dataclass(frozen=True)
class Scale:
    """A number is step * (integer - zero_point), the integer in `bits` bits."""

    step: float
    zero_point: int
    bits: int = 8

    @property
    def dtype(self) -> str:
        return f"int{self.bits}"

    def integer(self, value: float) -> int:
        """Returns what stands for a number."""
        half = 2 ** (self.bits - 1)
        return int(np.clip(np.rint(np.float32(value) / np.float32(self.step)) + self.zero_point, -half, half - 1))


def scale_of(low: float, high: float, bits: int) -> Scale:
    """Returns the scale of a range: asymmetric in 8 bits, symmetric in 16; 0 is a step of it.

    Scales of 16 bits are powers of two: with others, runtimes round products differently, and 16 bits have room.
    """
    low, high = min(low, 0.0), max(high, 0.0, min(low, 0.0) + _SMALLEST_RANGE)
    if bits > _BYTE:
        return Scale(2.0 ** math.ceil(math.log2(max(-low, high) / (2 ** (bits - 1) - 1))), 0, bits)
    step = float(np.float32((high - low) / 255))
    return Scale(step, int(np.clip(np.rint(-128 - low / step), -128, 127)), bits)


def range_of(scale: Scale) -> Range:
    """Returns the smallest and the largest number of a scale."""
    half = 2 ** (scale.bits - 1)
    return scale.step * (-half - scale.zero_point), scale.step * (half - 1 - scale.zero_point)


def fixed_scale(kind: str, bits: int) -> Scale | None:
    """Returns the scale that the kernel of an activation writes in, or None if it writes in any."""
    if kind not in _FIXED_8:
        return None
    return scale_of(*_FIXED_8[kind], bits) if bits == _BYTE else Scale(2.0**-15, 0, bits)


def activation_scales(layer: RecurrentLayer, ranges: Mapping[str, Range], bits: int) -> dict[str, Scale]:
    """Returns the scale of each result of a layer's cell that has one of its own.

    Args:
        layer: The layer.
        ranges: Ranges by name, as `observing.observe` finds them.
        bits: 8 or 16.
    """
    reachable = _clip_sums(layer, ranges, bits)
    widths = {name: high - low for name, (low, high) in reachable.items()}
    # What results are measured by: activations of the bounded kinds go from -1 to 1.
    bounded = layer.activation in _BOUNDED
    usual = _USUAL if bounded else max((widths.get(name, 0.0) for name in layer.projections), default=0.0)
    scales = {}
    for name, (low, high) in reachable.items():
        least = 0.0 if name == "x" else (widths.get("x", 0.0) if name.startswith("x_factor") else usual) / 2**bits
        if name in layer.matrices and name in layer.projections:
            # Kernels do not take products in steps that are much finer than the sums they are made of.
            step = widths.get("x", 0.0) * float(np.abs(layer.matrices[name].values).max(initial=0.0)) / _WEIGHT_STEPS
            least = max(least, step / _FINEST)
        scales[name] = scale_of(low, max(high, min(low, 0.0) + least), bits)
    return scales


def _clip_sums(layer: RecurrentLayer, ranges: Mapping[str, Range], bits: int) -> dict[str, Range]:
    """Returns the ranges without what no activation can tell from its limits, in sums and in what is summed."""
    added = {
        "gates_sum": ("x_gates", "h_gates", layer.recurrent_activation),
        "candidate_sum": ("x_candidate", "h_reset" if layer.reset_after else "h_candidate", layer.activation),
        "sum": ("x_state", "h_state", layer.activation),
    }
    found = dict(ranges)
    for total, (first, second, activation) in added.items():
        reach = _REACH.get((activation, bits))
        if reach is None or total not in ranges:
            continue
        found[total] = _clip(ranges[total], reach)
        for term, other in ((first, second), (second, first)):
            if term in ranges and other in ranges:
                found[term] = _clip(ranges[term], reach + max(abs(end) for end in ranges[other]))
    return found


def _clip(ends: Range, limit: float) -> Range:
    return max(ends[0], -limit), min(ends[1], limit)


@dataclass(frozen=True)
class IntegerMatrix:
    """A matrix as kernels take it.

    Attributes:
        values: int8 (columns, rows).
        scales: One, or one for each column.
        bias: (columns,) int32, or int64 for 16-bit inputs, in steps of input step * scale.
    """

    values: Array
    scales: Array
    bias: Array


def integer_matrix(matrix: Matrix, input_scale: Scale, *, per_channel: bool) -> IntegerMatrix:
    """Rounds a matrix, symmetrically; the scale is made larger where the bias would not fit."""
    values = matrix.values.T.astype(np.float64)
    bias = np.zeros(len(values)) if matrix.bias is None else matrix.bias.astype(np.float64)
    needed = np.abs(bias) / input_scale.step / _LARGEST_BIAS * _WEIGHT_STEPS
    largest = np.maximum(np.abs(values).max(1, initial=0.0), needed)
    largest = np.maximum(largest if per_channel else largest.max(keepdims=True), _SMALLEST_WEIGHT)
    scales = (largest / _WEIGHT_STEPS).astype(np.float32)
    integers = np.clip(np.rint(values / scales[:, None]), -_WEIGHT_STEPS, _WEIGHT_STEPS).astype(np.int8)
    steps = np.float64(input_scale.step) * scales
    width = np.int32 if input_scale.bits == _BYTE else np.int64
    return IntegerMatrix(integers, scales, np.rint(bias / steps).astype(width))
