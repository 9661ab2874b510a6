"""The graphs inside a .tflite file as plain values: tensors, operators and what they refer to, all indices checked."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ai_edge_litert import schema_py_generated as schema

from edgecompress.errors import ModelError
from edgecompress.flatbuffer import buffer_bytes, text

_MAX_RANK = 64  # NumPy's limit; the runtime's own is far lower
_CUSTOM = schema.BuiltinOperator.CUSTOM
_BUILTIN_NAMES = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
_DTYPES = {code: name.lower() for name, code in vars(schema.TensorType).items() if isinstance(code, int)}
DTYPE_BITS = {
    "bool": 8, "int2": 2, "int4": 4, "uint4": 4, "int8": 8, "uint8": 8, "int16": 16, "uint16": 16, "int32": 32,
    "uint32": 32, "int64": 64, "uint64": 64, "float16": 16, "bfloat16": 16, "float32": 32, "float64": 64,
    "complex64": 64, "complex128": 128, "float8_e4m3fn": 8, "float8_e5m2": 8,
}  # fmt: skip
# Options that say which subgraphs an operator runs, and which way round a matrix is: (union, class, fields).
_OPTIONS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "BATCH_MATMUL": ("BuiltinOptions", "BatchMatMulOptions", ("AdjX",)),
    "CALL": ("BuiltinOptions", "CallOptions", ("Subgraph",)),
    "CALL_ONCE": ("BuiltinOptions", "CallOnceOptions", ("InitSubgraphIndex",)),
    "IF": ("BuiltinOptions", "IfOptions", ("ThenSubgraphIndex", "ElseSubgraphIndex")),
    "STABLEHLO_COMPOSITE": ("BuiltinOptions2", "StableHLOCompositeOptions", ("DecompositionSubgraphIndex",)),
    "WHILE": ("BuiltinOptions", "WhileOptions", ("CondSubgraphIndex", "BodySubgraphIndex")),
}


@dataclass(frozen=True)
class Tensor:
    """A tensor of a subgraph.

    Attributes:
        name: Its name in the file.
        shape: Its shape; -1 for a dimension that is known only while running.
        dtype: Its number type, e.g. `float32` or `int8`.
        buffer: Index of the buffer that holds its data.
        data: Its data where it is a constant, else None.
        scales: Quantization scales: none, one, or one for each channel.
        zero_points: As many zero points.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    buffer: int
    data: bytes | memoryview | None
    scales: tuple[float, ...] = ()
    zero_points: tuple[int, ...] = ()

    @property
    def known_size(self) -> int:
        """Number of elements, where unknown dimensions count as 1."""
        return math.prod(size for size in self.shape if size >= 0)

    @property
    def unknown_dims(self) -> int:
        return sum(size < 0 for size in self.shape)

    @property
    def size_bytes(self) -> int:
        """Bytes of the elements in `known_size`; 0 for strings and handles, whose size is known only while running."""
        return (self.known_size * DTYPE_BITS.get(self.dtype, 0) + 7) // 8

    def int_constant(self) -> int | None:
        """The value of a constant with one int32 or int64 element, else None."""
        form = {"int32": "<i", "int64": "<q"}.get(self.dtype)
        if self.data is None or form is None or self.known_size != 1 or len(self.data) != struct.calcsize(form):
            return None
        value: int = struct.unpack(form, self.data)[0]
        return value


@dataclass(frozen=True)
class Operator:
    """An operator of a subgraph.

    Attributes:
        name: The builtin operator's name, e.g. `CONV_2D`, or a custom operator's code.
        version: Version of the operator's interface.
        custom: Whether it is none of the builtin operators.
        inputs: Tensor indices; -1 for an optional input that is not given.
        outputs: Tensor indices.
        options: The options that `edgecompress.tflite_macs` needs, by their names in the schema.
    """

    name: str
    version: int
    custom: bool
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: dict[str, int] = field(default_factory=dict)

    @property
    def subgraphs(self) -> tuple[int, ...]:
        """The subgraphs that it runs."""
        return tuple(index for name, index in self.options.items() if "Subgraph" in name)


@dataclass(frozen=True)
class Graph:
    """A subgraph: tensors, and operators in the order in which they run."""

    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]


def decode_graphs(model: Any) -> tuple[Graph, ...]:
    """Returns the subgraphs of a model that `flatbuffer.read_model` opened.

    Raises:
        ModelError: The file refers to a tensor, buffer, operator code or subgraph that it does not have.
    """
    codes = _all(model.OperatorCodes, model.OperatorCodesLength())
    constants = [buffer_bytes(model, index) for index in range(model.BuffersLength())]
    graphs = tuple(_graph(graph, codes, constants) for graph in _all(model.Subgraphs, model.SubgraphsLength()))
    for operator in (operator for graph in graphs for operator in graph.operators):
        _check(operator.subgraphs, len(graphs), "a subgraph")
    return graphs


def _graph(graph: Any, codes: list[Any], constants: list[bytes | memoryview]) -> Graph:
    tensors = tuple(_tensor(tensor, constants) for tensor in _all(graph.Tensors, graph.TensorsLength()))
    inputs, outputs = _vector(graph.InputsAsNumpy()), _vector(graph.OutputsAsNumpy())
    operators = tuple(_operator(operator, codes) for operator in _all(graph.Operators, graph.OperatorsLength()))
    _check((*inputs, *outputs), len(tensors), "a tensor")
    for operator in operators:
        _check((*(index for index in operator.inputs if index != -1), *operator.outputs), len(tensors), "a tensor")
    return Graph(text(graph.Name()), inputs, outputs, tensors, operators)


def _tensor(tensor: Any, constants: list[bytes | memoryview]) -> Tensor:
    shape = _vector(tensor.ShapeAsNumpy())
    signature = _vector(tensor.ShapeSignatureAsNumpy())
    if len(shape) > _MAX_RANK:
        raise ModelError("damaged file: a tensor has too many dimensions", expected=_MAX_RANK, received=len(shape))
    index = tensor.Buffer()
    if constants or index:
        _check((index,), len(constants), "a buffer")
    data = constants[index] if index and len(constants[index]) else None
    quantization = tensor.Quantization()
    return Tensor(
        name=text(tensor.Name()),
        shape=signature if len(signature) == len(shape) else shape,
        dtype=_DTYPES.get(tensor.Type(), f"type_{tensor.Type()}"),
        buffer=index,
        data=data,
        scales=() if quantization is None else _vector(quantization.ScaleAsNumpy()),
        zero_points=() if quantization is None else _vector(quantization.ZeroPointAsNumpy()),
    )


def _operator(operator: Any, codes: list[Any]) -> Operator:
    _check((operator.OpcodeIndex(),), len(codes), "an operator code")
    code = codes[operator.OpcodeIndex()]
    # Files from before builtin_code existed have only the old 8-bit field; newer ones fill in both.
    builtin = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
    custom = builtin == _CUSTOM
    name = text(code.CustomCode()) or "CUSTOM" if custom else _BUILTIN_NAMES.get(builtin, f"BUILTIN_{builtin}")
    return Operator(
        name=name,
        version=code.Version(),
        custom=custom,
        inputs=_vector(operator.InputsAsNumpy()),
        outputs=_vector(operator.OutputsAsNumpy()),
        options={} if custom else _options(operator, name),
    )


def _options(operator: Any, name: str) -> dict[str, int]:
    if name not in _OPTIONS:
        return {}
    union, kind, fields = _OPTIONS[name]
    table = getattr(operator, union)()
    if table is None or getattr(operator, f"{union}Type")() != getattr(getattr(schema, union), kind):
        raise ModelError(f"damaged file: a {name} operator has no {kind}")
    options = getattr(schema, kind)()
    options.Init(table.Bytes, table.Pos)
    try:
        return {field: int(getattr(options, field)()) for field in fields}
    except struct.error:
        raise ModelError(f"truncated or damaged .tflite file: {kind} lie outside it") from None


def _all(get: Callable[[int], Any], count: int) -> list[Any]:
    return [get(index) for index in range(count)]


def _vector(values: Any) -> tuple[Any, ...]:
    """Returns a vector of numbers; the accessors say 0 where the file has none."""
    return () if isinstance(values, int) else tuple(values.tolist())


def _check(indices: tuple[int, ...], count: int, what: str) -> None:
    for index in indices:
        if not 0 <= index < count:
            raise ModelError(f"damaged file: {what} that does not exist is used", received=index)
