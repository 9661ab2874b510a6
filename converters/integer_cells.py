"""Carries out the operations of recurrent cells by adding integer operators to a .tflite file.

Products are convolutions of size 1, over tensors of four dimensions: TFLite Micro and LiteRT's reference kernels round
them alike, which they do not with FULLY_CONNECTED, and they are as quick.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgecompress.converters.graph_writer import GraphWriter, Value
from edgecompress.recurrent.cells import RecurrentLayer
from edgecompress.recurrent.scales import Scale, fixed_scale, integer_matrix

_BYTE = 8
_PRODUCT = {"padding": 1, "strideH": 1, "strideW": 1, "dilationHFactor": 1, "dilationWFactor": 1}  # 1: valid
_OPERATORS = {"tanh": "TANH", "sigmoid": "LOGISTIC", "relu": "RELU"}


@dataclass(frozen=True)
class IntegerLayer:
    """A recurrent layer and the scales of its results.

    Attributes:
        layer: What is computed.
        scales: By the names of the results; those of activations whose kernels write in fixed steps are not looked at.
        bits: Of activations: 8 or 16.
        per_channel: Kernels may have a scale for each column: those for which it pays have.
        name: What its tensors begin with.
    """

    layer: RecurrentLayer
    scales: Mapping[str, Scale]
    bits: int
    per_channel: bool
    name: str

    def state_scale(self, state: str) -> Scale:
        """Returns the scale of a state, which may be that of a kernel with fixed steps."""
        fixed = fixed_scale(self.layer.activation, self.bits) if self.layer.kind == "simple_rnn" else None
        return fixed or self.scales[state]


class IntegerOperations:
    """Adds an operator for each operation; values are (rows, 1, 1, columns)."""

    def __init__(self, graph: GraphWriter, plan: IntegerLayer) -> None:
        self._graph = graph
        self._plan = plan

    def dense(self, name: str, x: Value, matrix: str) -> Value:
        assert x.scale is not None  # noqa: S101 (all values here are quantized)
        plan, graph = self._plan, self._graph
        wanted = plan.layer.matrices[matrix]
        rounded = integer_matrix(
            wanted, x.scale, per_channel=plan.per_channel and (wanted.per_channel or plan.bits > _BYTE)
        )
        columns, rows = rounded.values.shape
        kernel = graph.constant(
            f"{plan.name}/{matrix}", rounded.values.reshape(columns, 1, 1, rows), scales=rounded.scales
        )
        steps = (np.float64(x.scale.step) * rounded.scales).astype(np.float32)
        # XNNPACK leaves convolutions without a bias, or with one that has no scales, to slow kernels.
        bias = graph.constant(f"{plan.name}/{matrix}/bias", rounded.bias, scales=steps)
        result = self._result(name, (*x.shape[:3], columns))
        graph.operator("CONV_2D", [x, kernel, bias], [result], _PRODUCT)
        return result

    def shift(self, name: str, x: Value, offset: str) -> Value:
        values = self._plan.layer.offsets[offset]
        assert x.scale is not None  # noqa: S101
        step_size = float(np.float32(max(np.abs(values).max(), 1e-6) / (2 ** (x.scale.bits - 1) - 1)))
        integers = np.rint(values / step_size).astype(x.dtype).reshape(1, 1, 1, -1)
        scale = Scale(step_size, 0, x.scale.bits)
        return self._binary(
            "ADD", name, x, self._graph.constant(f"{self._plan.name}/{offset}/offset", integers, scale=scale)
        )

    def add(self, name: str, a: Value, b: Value) -> Value:
        return self._binary("ADD", name, a, b)

    def subtract(self, name: str, a: Value, b: Value) -> Value:
        return self._binary("SUB", name, a, b)

    def multiply(self, name: str, a: Value, b: Value) -> Value:
        return self._binary("MUL", name, a, b)

    def activate(self, name: str, x: Value, kind: str) -> Value:
        fixed = fixed_scale(kind, self._plan.bits)
        if kind == "clip":  # the integers of the result reach from 0 to 1: they do the clipping
            return self._graph.requantize(self._name(name), x, x.dtype, fixed)
        result = self._result(name, x.shape, fixed)
        self._graph.operator(_OPERATORS[kind], [x], [result])
        return result

    def split(self, x: Value, count: int) -> Sequence[Value]:
        shape = (*x.shape[:3], x.shape[3] // count)
        parts = [
            self._graph.tensor(f"{self._plan.name}/part_{place}", shape, x.dtype, x.scale) for place in range(count)
        ]
        axis = self._graph.constant("axis", np.asarray(3, np.int32))
        self._graph.operator("SPLIT", [axis, x], parts, {"numSplits": count})
        return parts

    def join(self, name: str, parts: Sequence[Value]) -> Value:
        return self._graph.concatenate(self._name(name), parts, axis=3)

    def _binary(self, operator: str, name: str, a: Value, b: Value) -> Value:
        result = self._result(name, a.shape)
        self._graph.binary(operator, a, b, result)
        return result

    def _result(self, name: str, shape: Sequence[int], scale: Scale | None = None) -> Value:
        scale = scale or self._plan.scales[name]
        return self._graph.tensor(self._name(name), shape, scale.dtype, scale)

    def _name(self, name: str) -> str:
        return f"{self._plan.name}/{name}"
