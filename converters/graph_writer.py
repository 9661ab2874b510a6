"""Adds tensors and integer operators to the tree of a .tflite file (`flatbuffer.read_tree`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgecompress.data import Array
from edgecompress.flatbuffer import text
from edgecompress.recurrent.scales import Scale

_CONVERTER_CODES = 127  # the largest code that fits the field of old files
# Versions of the operators whose kernels take these types (tensorflow/lite/tools/versioning/op_version.cc).
_VERSIONS: dict[str, dict[str, int]] = {
    "ADD": {"int8": 2, "int16": 3},
    "CONCATENATION": {"int8": 2, "int16": 3},
    "CONV_2D": {"int8": 3, "int16": 5},
    "DEQUANTIZE": {"int8": 2, "int16": 3, "uint8": 1},
    "BROADCAST_TO": {"int8": 2, "int16": 3},
    "GATHER": {"int8": 2, "int16": 4},
    "LOGISTIC": {"int8": 2, "int16": 3},
    "MUL": {"int8": 2, "int16": 4},
    "QUANTIZE": {"int8": 2, "int16": 2},
    "RELU": {"int8": 2, "int16": 3},
    "SLICE": {"int8": 2, "int16": 4},
    "SPLIT": {"int8": 2, "int16": 4},
    "STRIDED_SLICE": {"int8": 2, "int16": 4},
    "SUB": {"int8": 2, "int16": 5},
    "TANH": {"int8": 2, "int16": 3},
}
_OPTIONS = {"REDUCE_ALL": "ReducerOptions"}  # of others they are called like the operator
_TYPES = {
    name: getattr(schema.TensorType, name.upper())
    for name in ("float32", "int8", "int16", "int32", "int64", "uint8", "bool")
}


@dataclass(frozen=True)
class Value:
    """A tensor of a subgraph.

    Attributes:
        index: Its place among the subgraph's tensors.
        shape: Its shape.
        dtype: Its number type.
        scale: How its integers stand for numbers, or None.
    """

    index: int
    shape: tuple[int, ...]
    dtype: str
    scale: Scale | None = None


class TreeWriter:
    """Adds subgraphs, constants and operator codes to a tree; equal constants are stored once."""

    def __init__(self, tree: Any) -> None:
        self.tree = tree
        self._codes: dict[tuple[str, int], int] = {}
        self._buffers: dict[bytes, int] = {}

    def new_graph(self, name: str) -> GraphWriter:
        """Adds an empty subgraph."""
        graph = schema.SubGraphT()
        graph.name, graph.tensors, graph.operators, graph.inputs, graph.outputs = name.encode(), [], [], [], []
        self.tree.subgraphs.append(graph)
        return GraphWriter(self, len(self.tree.subgraphs) - 1)

    def code(self, name: str, version: int) -> int:
        """Returns the place of an operator's code."""
        key = name, version
        if key not in self._codes:
            code = schema.OperatorCodeT()
            code.builtinCode, code.version = getattr(schema.BuiltinOperator, name), version
            code.deprecatedBuiltinCode = min(code.builtinCode, _CONVERTER_CODES)
            self.tree.operatorCodes.append(code)
            self._codes[key] = len(self.tree.operatorCodes) - 1
        return self._codes[key]

    def buffer(self, values: Array) -> int:
        """Returns the place of a constant's data."""
        content = np.ascontiguousarray(values).tobytes()
        if content not in self._buffers:
            self.tree.buffers.append(schema.BufferT(np.frombuffer(content, np.uint8)))
            self._buffers[content] = len(self.tree.buffers) - 1
        return self._buffers[content]


class GraphWriter:
    """Adds to one subgraph."""

    def __init__(self, file: TreeWriter, number: int) -> None:
        self.file = file
        self.number = number
        self.graph = file.tree.subgraphs[number]
        self._constants: dict[object, Value] = {}
        self._names = Counter(text(tensor.name) for tensor in self.graph.tensors)

    def tensor(self, name: str, shape: Sequence[int], dtype: str, scale: Scale | None = None) -> Value:
        """Adds a tensor that an operator, or whoever runs the subgraph, fills."""
        return self._add(name, tuple(shape), dtype, 0, scale, None)

    def constant(
        self, name: str, values: Array, scales: Array | None = None, scale: Scale | None = None
    ) -> Value:  # fmt: skip
        """Returns a constant; one of the same name and content is used again.

        Args:
            name: Its name.
            values: Its integers.
            scales: Scales of a kernel: one, or one for each row.
            scale: Its scale, if it has one like a result.
        """
        values = np.asarray(values)
        key = name, values.dtype.str, values.shape, values.tobytes()
        if key not in self._constants:
            self._constants[key] = self._add(
                name, values.shape, str(values.dtype), self.file.buffer(values), scale, scales
            )
        return self._constants[key]

    def operator(
        self, name: str, inputs: Sequence[Value | None], outputs: Sequence[Value],
        options: Mapping[str, Any] | None = None, version: int | None = None,
    ) -> None:  # fmt: skip
        """Adds an operator.

        Args:
            name: The builtin operator.
            inputs: None for an input that is not given.
            outputs: Its results.
            options: Fields of its options, by their names in the schema.
            version: Its version; absent: that for the type of its first result.
        """
        operator = schema.OperatorT()
        by_type = _VERSIONS.get(name, {})
        operator.opcodeIndex = self.file.code(name, version or by_type.get(outputs[0].dtype, 1))
        operator.inputs = [-1 if value is None else value.index for value in inputs]
        operator.outputs = [value.index for value in outputs]
        if options is not None:
            kind = _OPTIONS.get(name, name.title().replace("_", "") + "Options")
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, kind)
            operator.builtinOptions = getattr(schema, f"{kind}T")()
            for field, value in options.items():
                setattr(operator.builtinOptions, field, value)
        self.graph.operators.append(operator)

    def take_inputs(self, values: Sequence[Value]) -> list[Value]:
        """Adds inputs of the shapes, types and scales of tensors elsewhere, and returns them."""
        inputs = [
            self.tensor(f"input_{place}", value.shape, value.dtype, value.scale) for place, value in enumerate(values)
        ]
        self.graph.inputs = [value.index for value in inputs]
        return inputs

    def give_outputs(self, values: Sequence[Value]) -> None:
        """Sets the subgraph's outputs."""
        self.graph.outputs = [value.index for value in values]

    def binary(self, name: str, a: Value, b: Value, result: Value) -> None:
        """Adds ADD, SUB or MUL."""
        # By default scales of 16 bits would have to be powers of two.
        options = {"potScaleInt16": False} if name in ("ADD", "SUB") else {}
        self.operator(name, [a, b], [result], options)

    def concatenate(self, name: str, parts: Sequence[Value], *, axis: int) -> Value:
        """Joins tensors of one scale along an axis."""
        shape = list(parts[0].shape)
        shape[axis] = sum(part.shape[axis] for part in parts)
        result = self.tensor(name, shape, parts[0].dtype, parts[0].scale)
        self.operator("CONCATENATION", parts, [result], {"axis": axis})
        return result

    def reshape(self, name: str, x: Value, shape: Sequence[int]) -> Value:
        """Returns x in another shape."""
        if tuple(shape) == x.shape:
            return x
        result = self.tensor(name, shape, x.dtype, x.scale)
        wanted = self.constant(f"{name}/shape", np.asarray(shape, np.int32))
        self.operator("RESHAPE", [x, wanted], [result], {"newShape": list(shape)})
        return result

    def requantize(self, name: str, x: Value, dtype: str, scale: Scale | None) -> Value:
        """Returns x with another scale or type: as it is, if it has these; in float, if there is no scale."""
        if (x.dtype, x.scale) == (dtype, scale):
            return x
        result = self.tensor(name, x.shape, dtype, scale)
        self.convert(x, result)
        return result

    def convert(self, x: Value, result: Value) -> None:
        """Adds the operator that turns x into the type and scale of `result`."""
        if result.scale is None:
            self.operator("DEQUANTIZE", [x], [result], {}, version=_VERSIONS["DEQUANTIZE"][x.dtype])
        else:
            self.operator(
                "QUANTIZE", [x], [result], {}, version=1 if x.scale is None else _VERSIONS["QUANTIZE"]["int8"]
            )

    def _add(
        self, name: str, shape: tuple[int, ...], dtype: str, buffer: int, scale: Scale | None, scales: Array | None
    ) -> Value:
        tensor = schema.TensorT()
        self._names[name] += 1
        count = self._names[name]
        tensor.name = (name if count == 1 else f"{name}_{count}").encode()
        tensor.shape, tensor.type, tensor.buffer = list(shape), _TYPES[dtype], buffer
        if scale is not None:
            tensor.quantization = _quantization([scale.step], [scale.zero_point])
        elif scales is not None:
            tensor.quantization = _quantization(scales, np.zeros(len(scales), np.int64))
        self.graph.tensors.append(tensor)
        return Value(len(self.graph.tensors) - 1, shape, dtype, scale)


def _quantization(steps: Any, zero_points: Any) -> Any:
    quantization = schema.QuantizationParametersT()
    quantization.scale = np.asarray(steps, np.float32)
    quantization.zeroPoint = np.asarray(zero_points, np.int64)
    return quantization
