"""FULLY_CONNECTED of int8 in NumPy, in both ways in which runtimes bring its 32-bit sums to 8 bits.

LiteRT multiplies a sum by the ratio of the scales and rounds once. TensorFlow Lite Micro rounds the upper half of the
product, and rounds again when it shifts that to the right. Where the first rounding lands on a half, the second goes
up, though the exact result is below: such values differ by one step, and no others do. LiteRT's CONV_2D and MUL without
XNNPACK round twice, too.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edgecompress.flatbuffer import read_model
from edgecompress.graphs import decode_graphs


class Roundings(NamedTuple):
    """The result, (rows, columns) int8, rounded as LiteRT and as TensorFlow Lite Micro do."""

    once: np.ndarray
    twice: np.ndarray


def fully_connected(file: Path, result: str, x: np.ndarray) -> Roundings:
    """Computes one operator of a file, without an activation of its own, from what the file says of it.

    Args:
        file: The .tflite file.
        result: Name of the tensor that the operator writes.
        x: The integers that it reads, (rows, features) int8.
    """
    graph, operator = next(
        (graph, operator)
        for graph in decode_graphs(read_model(file))
        for operator in graph.operators
        if operator.name == "FULLY_CONNECTED" and graph.tensors[operator.outputs[0]].name == result
    )
    given, kernel, *bias = (graph.tensors[index] for index in operator.inputs if index >= 0)
    written = graph.tensors[operator.outputs[0]]
    weights = np.frombuffer(kernel.data, np.int8).reshape(kernel.shape).astype(np.int64)
    sums = (x.reshape(-1, weights.shape[1]).astype(np.int64) - given.zero_points[0]) @ weights.T
    if bias:
        sums += np.frombuffer(bias[0].data, np.int32)
    ratios = given.scales[0] * np.asarray(kernel.scales, np.float64) / written.scales[0]
    pairs = [_integer_ratio(float(ratio)) for ratio in np.broadcast_to(ratios, weights.shape[0])]
    multipliers, shifts = (np.asarray(numbers) for numbers in zip(*pairs, strict=True))
    return Roundings(
        *(
            np.clip(rescale(sums, multipliers, shifts) + written.zero_points[0], -128, 127).astype(np.int8)
            for rescale in (_round_once, _round_twice)
        )
    )


def _integer_ratio(ratio: float) -> tuple[int, int]:
    """Returns m and n of ratio = m / 2**n, m of 31 bits."""
    fraction, exponent = math.frexp(ratio)
    multiplier = math.floor(fraction * 2**31 + 0.5)
    return (2**30, 30 - exponent) if multiplier == 2**31 else (multiplier, 31 - exponent)


def _round_once(sums: np.ndarray, multipliers: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    return (sums * multipliers + (1 << (shifts - 1))) >> shifts


def _round_twice(sums: np.ndarray, multipliers: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    left, right = np.maximum(31 - shifts, 0), np.maximum(shifts - 31, 0)
    upper = _round_once(sums << left, multipliers, np.full_like(shifts, 31))
    half = (1 << right) >> 1
    return np.sign(upper) * ((np.abs(upper) + half) >> right)  # halves go away from zero, above they go up
