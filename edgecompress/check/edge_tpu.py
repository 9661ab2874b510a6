"""What of a file Google's Edge TPU compiler would leave to the CPU, as far as its documented limits say so.

The compiler has further limits that it does not document (most have to do with sizes), so that a file without findings
can still be mapped in part only. It maps what comes before the first operator that it leaves, and nothing after it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgecompress.artifacts import Artifact
from edgecompress.check.violation import Violation
from edgecompress.flatbuffer import read_model, read_tree
from edgecompress.graphs import DTYPE_BITS, Graph, Operator, Tensor, decode_graphs

# Operators by the oldest runtime that runs them (coral.ai/docs/edgetpu/models-intro, "Supported operations"). Which of
# 13 and 14 an operator came with is from memory, partly; the names themselves are not.
_OPERATORS: dict[int, frozenset[str]] = {
    10: frozenset(
        {
            "ADD", "AVERAGE_POOL_2D", "CONCATENATION", "CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED",
            "L2_NORMALIZATION", "LOGISTIC", "MAXIMUM", "MAX_POOL_2D", "MEAN", "MINIMUM", "MUL", "PAD", "RELU", "RELU6",
            "RELU_N1_TO_1", "RESHAPE", "RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR", "SLICE", "SOFTMAX",
            "SPACE_TO_DEPTH", "SPLIT", "SQUEEZE", "STRIDED_SLICE", "SUB", "TANH",
        }
    ),
    13: frozenset({"EXPAND_DIMS", "PACK", "PRELU", "QUANTIZE", "SUM", "TRANSPOSE_CONV"}),
    14: frozenset(
        {"REDUCE_MAX", "REDUCE_MIN", "RSQRT", "SQUARED_DIFFERENCE", "TRANSPOSE", "UNIDIRECTIONAL_SEQUENCE_LSTM"}
    ),
}  # fmt: skip
NEWEST_RUNTIME = 14
_SINCE = {name: runtime for runtime, names in _OPERATORS.items() for name in names}
_DTYPES = ("int8", "uint8")
_INDICES = ("int32", "int64")
_INNERMOST = 3  # dimensions that may be larger than 1
# Inputs that have to be constants, by their places.
_PARAMETERS: dict[str, tuple[int, ...]] = {
    "CONV_2D": (1, 2), "DEPTHWISE_CONV_2D": (1, 2), "EXPAND_DIMS": (1,), "FULLY_CONNECTED": (1, 2), "MEAN": (1,),
    "PAD": (1,), "PRELU": (1,), "REDUCE_MAX": (1,), "REDUCE_MIN": (1,), "RESHAPE": (1,), "RESIZE_BILINEAR": (1,),
    "RESIZE_NEAREST_NEIGHBOR": (1,), "SLICE": (1, 2), "SPLIT": (0,), "STRIDED_SLICE": (1, 2, 3), "SUM": (1,),
    "TRANSPOSE": (1,), "TRANSPOSE_CONV": (0, 1, 3), "UNIDIRECTIONAL_SEQUENCE_LSTM": tuple(range(1, 18)),
}  # fmt: skip
_LARGEST_SOFTMAX = 16_000
_ACTIVATIONS = {code: name for name, code in vars(schema.ActivationFunctionType).items() if isinstance(code, int)}
_REPLACE = "replace the layer that it comes from"


class _Fault(NamedTuple):
    """The fields of a `Violation` but where it is."""

    rule: str
    expected: str
    found: str
    fix: str


@dataclass(frozen=True)
class _Node:
    """An operator of the main graph.

    Attributes:
        operator: What the file says of it.
        inputs: Its inputs; None for those that are not given.
        moving: The activations that it reads and writes: no constants, and no memory of its own.
        outputs: Its results.
        options: The options that the schema has for it, or None.
    """

    operator: Operator
    inputs: tuple[Tensor | None, ...]
    moving: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    options: Any

    def integers(self, place: int) -> list[int]:
        """Returns the values of a constant input, none if it is no such."""
        tensor = self.inputs[place] if place < len(self.inputs) else None
        if tensor is None or tensor.data is None or tensor.dtype not in _INDICES:
            return []
        size = DTYPE_BITS[tensor.dtype] // 8
        values: list[int] = np.frombuffer(tensor.data, tensor.dtype, len(tensor.data) // size).tolist()
        return values

    def option(self, name: str, default: int) -> int:
        """Returns an option by its name in the schema."""
        value: int = getattr(self.options, name, default)
        return value


_Limit = Callable[[_Node], _Fault | None]


def edge_tpu_findings(artifact: Artifact, *, runtime: int = NEWEST_RUNTIME) -> tuple[Violation, ...]:
    """Returns one finding for each operator that the compiler would not map, in the file's order.

    Operators inside of loops and branches are not looked at: the operator that runs them is not mapped itself.

    Args:
        artifact: The file, before the compiler.
        runtime: Version of the Edge TPU runtime that is to run it.

    Raises:
        ModelError: The file is damaged.
    """
    graph, raw = decode_graphs(read_model(artifact.content))[0], read_tree(artifact.content).subgraphs[0]
    found = []
    for index in range(len(graph.operators)):
        node = _node(graph, raw, index)
        fault = _unknown(node, runtime) or next((each for rule in _rules(node) if (each := rule(node))), None)
        if fault is not None:
            names = ", ".join([f"operator {index}", *(repr(each.name) for each in node.outputs[:1])])
            found.append(Violation(where=f"{node.operator.name} ({names})", **fault._asdict()))
    return tuple(found)


def _node(graph: Graph, raw: Any, index: int) -> _Node:
    operator = graph.operators[index]
    moving = [
        place
        for place in (*operator.inputs, *operator.outputs)
        if place >= 0 and graph.tensors[place].data is None and not raw.tensors[place].isVariable
    ]
    return _Node(
        operator=operator,
        inputs=tuple(None if place < 0 else graph.tensors[place] for place in operator.inputs),
        moving=tuple(graph.tensors[place] for place in moving),
        outputs=tuple(graph.tensors[place] for place in operator.outputs),
        options=raw.operators[index].builtinOptions,
    )


def _rules(node: _Node) -> tuple[_Limit, ...]:
    return (_not_constant, _not_integer, _not_fixed, _many_dimensions, *_LIMITS.get(node.operator.name, ()))


def _unknown(node: _Node, runtime: int) -> _Fault | None:
    since = _SINCE.get(node.operator.name)
    if since is None:
        return _Fault("edge_tpu.operator", "an operator that the compiler knows", "unknown to the compiler", _REPLACE)
    if since > runtime:
        return _Fault(
            "edge_tpu.runtime", f"runtime {since} or newer", f"for runtime {runtime}", "update the Edge TPU runtime"
        )
    return None


def _not_constant(node: _Node) -> _Fault | None:
    for place in _PARAMETERS.get(node.operator.name, ()):
        tensor = node.inputs[place] if place < len(node.inputs) else None
        if tensor is not None and tensor.data is None:
            return _Fault(
                "edge_tpu.constant_parameters", "parameters that are constants in the file",
                f"given {tensor.name!r} while running", _REPLACE,
            )  # fmt: skip
    return None


def _not_integer(node: _Node) -> _Fault | None:
    wrong = next((each for each in node.moving if each.dtype not in _DTYPES), None)
    if wrong is None:
        return None
    return _Fault(
        "edge_tpu.dtype", " or ".join(_DTYPES), f"on {wrong.dtype} ({wrong.name!r})",
        "convert with --scheme int8, --input-type int8 and --output-type int8",
    )  # fmt: skip


def _not_fixed(node: _Node) -> _Fault | None:
    wrong = next((each for each in node.moving if each.unknown_dims), None)
    if wrong is None:
        return None
    return _Fault(
        "edge_tpu.static_shapes",
        "sizes fixed in the file",
        f"on {_shape(wrong)}",
        "pass --input-shape",
    )


def _many_dimensions(node: _Node) -> _Fault | None:
    wrong = next((each for each in node.moving if any(size > 1 for size in each.shape[:-_INNERMOST])), None)
    if wrong is None:
        return None
    return _Fault(
        "edge_tpu.innermost_dimensions", f"sizes above 1 in the {_INNERMOST} innermost dimensions only",
        f"on {_shape(wrong)}", "use a batch of 1, and layers of fewer dimensions",
    )  # fmt: skip


def _fused_activation(node: _Node) -> _Fault | None:
    activation = _ACTIVATIONS.get(node.option("fusedActivationFunction", 0), "unknown")
    if activation == "NONE":
        return None
    return _Fault(
        "edge_tpu.fused_activation", "no activation in the operator itself", f"fused with {activation}",
        "put another layer between it and the activation",
    )  # fmt: skip


def _unequal_dilation(node: _Node) -> _Fault | None:
    height, width = node.option("dilationHFactor", 1), node.option("dilationWFactor", 1)
    if height == width:
        return None
    return _Fault(
        "edge_tpu.dilation", "the same dilation in both directions", f"dilated by {height} and {width}", _REPLACE
    )


def _strides(node: _Node) -> _Fault | None:
    strides = node.integers(3)
    if all(stride == 1 for stride in strides):
        return None
    return _Fault("edge_tpu.strides", "strides of 1", f"cut in strides of {strides}", _REPLACE)


def _one_dimensional(node: _Node) -> _Fault | None:
    wrong = next((each for each in node.outputs if any(size != 1 for size in each.shape[:-1])), None)
    if wrong is None:
        return None
    return _Fault(
        "edge_tpu.one_dimensional", "a result with sizes above 1 in its last dimension only", f"on {_shape(wrong)}",
        "use Conv1D or Conv2D with a kernel of size 1 in the place of Dense",
    )  # fmt: skip


def _large_softmax(node: _Node) -> _Fault | None:
    size = max((each.known_size for each in node.outputs), default=0)
    if size <= _LARGEST_SOFTMAX:
        return None
    return _Fault(
        "edge_tpu.softmax_size", f"at most {_LARGEST_SOFTMAX:,} values", f"on {size:,} values", "end with the logits"
    )


def _batch(axes: Callable[[_Node], list[int]]) -> _Limit:
    """Returns the rule that an operator's axes are not that of the batch, the first."""

    def rule(node: _Node) -> _Fault | None:
        rank = max((len(each.shape) for each in node.moving), default=0) or 1
        if all(axis % rank for axis in axes(node)):
            return None
        return _Fault("edge_tpu.batch_dimension", "any dimension but the first, the batch", "along the batch", _REPLACE)

    return rule


def _padded(node: _Node) -> list[int]:
    before_and_after = node.integers(1)
    return sorted({place // 2 for place, size in enumerate(before_and_after) if size})


def _shape(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tensor.shape} ({tensor.name!r})"


_REDUCED = (_batch(lambda node: node.integers(1)),)
# Limits of single operators, from the same table of the documentation.
_LIMITS: dict[str, tuple[_Limit, ...]] = {
    "ADD": (_fused_activation,),
    "AVERAGE_POOL_2D": (_fused_activation,),
    "CONCATENATION": (_fused_activation,),
    "CONV_2D": (_unequal_dilation,),
    "DEPTHWISE_CONV_2D": (_unequal_dilation,),
    "FULLY_CONNECTED": (_one_dimensional,),
    "MAX_POOL_2D": (_fused_activation,),
    "MEAN": _REDUCED,
    "PACK": (_batch(lambda node: [node.option("axis", 0)]),),
    "PAD": (_batch(_padded),),
    "REDUCE_MAX": _REDUCED,
    "REDUCE_MIN": _REDUCED,
    "SOFTMAX": (_one_dimensional, _large_softmax),
    "SPLIT": (_batch(lambda node: node.integers(0)),),
    "STRIDED_SLICE": (_strides,),
    "SUM": _REDUCED,
}
