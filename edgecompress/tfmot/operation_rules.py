"""How operations of `keras.ops`, and operators such as `x + 1` and `x[:, 1:]`, are written in primitives."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from edgecompress.tfmot.activation_rules import ACTIVATIONS, elu, relu, softmax
from edgecompress.tfmot.lowering import Lowering, Node, UnsupportedError, rule

_ARITHMETIC = {
    "Add": "add", "Subtract": "subtract", "Multiply": "multiply", "Divide": "divide", "TrueDivide": "divide",
}  # fmt: skip
_NAMES = {
    "Relu": "relu", "Relu6": "relu6", "Sigmoid": "sigmoid", "HardSigmoid": "hard_sigmoid", "Tanh": "tanh",
    "Silu": "silu", "HardSilu": "hard_silu", "Selu": "selu", "Softplus": "softplus", "Softsign": "softsign",
    "Exp": "exponential",
}  # fmt: skip


def _node_and_constant(x1: Any, x2: Any) -> tuple[Node, Any] | None:
    """Returns the tensor and the constant where only one of the two is a tensor."""
    if isinstance(x1, Node) and isinstance(x2, Node):
        return None
    return (x1, np.asarray(x2, np.float32)) if isinstance(x1, Node) else (x2, np.asarray(x1, np.float32))


@rule("ops.Add", "ops.Subtract", "ops.Multiply", "ops.Divide", "ops.TrueDivide")
def _arithmetic(low: Lowering, operation: Any, x1: Any, x2: Any) -> Node:
    kind = _ARITHMETIC[type(operation).__name__]
    found = _node_and_constant(x1, x2)
    if all(node.is_integer for node in (x1, x2) if isinstance(node, Node)):
        raise UnsupportedError("arithmetic on integers")
    if found is None:
        return low.add(kind, x1, x2)
    node, constant = found
    if kind == "divide":
        if not isinstance(x1, Node):
            raise UnsupportedError("division of a constant by a tensor")
        return low.add("multiply", node, weights={"constant": 1 / constant})
    if kind == "subtract" and not isinstance(x1, Node):
        node = low.add("multiply", node, weights={"constant": -1.0})
        kind = "add"
    return low.add(kind, node, weights={"constant": constant})


@rule("ops.Maximum", "ops.Minimum")
def _choose(low: Lowering, operation: Any, x1: Any, x2: Any) -> Node:
    kind = type(operation).__name__.lower()
    found = _node_and_constant(x1, x2)
    if found is None:
        return low.add(kind, x1, x2)
    if found[1].size > 1:
        raise UnsupportedError("a choice between a tensor and an array")
    if kind == "maximum" and float(found[1]) == 0:
        return low.add("relu", found[0])
    return low.add(kind, found[0], bound=float(found[1]))


@rule("ops.Clip")
def _clip(low: Lowering, operation: Any, x: Node) -> Node:
    lower, upper = float(operation.x_min), float(operation.x_max)
    if lower == 0:
        return relu(low, x, max_value=upper)
    return low.add("minimum", low.add("maximum", x, bound=lower), bound=upper)


@rule("ops.Cast")
def _cast(low: Lowering, operation: Any, x: Node) -> Node:
    """Floats of any width are one: the file has integers in their place."""
    if "float" not in str(operation.dtype):
        return low.add("move", x, function=operation)
    return low.add("cast", x) if x.is_integer else x


@rule("ops.Negative")
def _negative(low: Lowering, _operation: Any, x: Node) -> Node:
    return low.add("multiply", x, weights={"constant": -1.0})


@rule("ops.Square")
def _square(low: Lowering, _operation: Any, x: Node) -> Node:
    return low.add("multiply", x, x)


@rule("ops.Absolute", "ops.Log", "ops.Sqrt", "ops.Rsqrt")
def _compute(low: Lowering, operation: Any, x: Node) -> Node:
    return low.add("compute", x, function=operation)


@rule("ops.Mean", "ops.Sum")
def _reduce(low: Lowering, operation: Any, x: Node) -> Node:
    return low.add(
        "reduce", x, how=type(operation).__name__.lower(), axes=operation.axis, keepdims=bool(operation.keepdims)
    )


@rule("ops.Matmul")
def _matmul(low: Lowering, _operation: Any, x1: Any, x2: Any) -> Node:
    if not isinstance(x1, Node):
        raise UnsupportedError("a matrix product with a constant on the left")
    if not isinstance(x2, Node):
        constant = np.asarray(x2, np.float32)
        if constant.ndim != 2:  # noqa: PLR2004 (a matrix)
            raise UnsupportedError("a matrix product with a constant that is no matrix")
        return low.add("dense", x1, weights={"kernel": constant})
    return low.add("matmul", x1, x2)


@rule(*(f"ops.{name}" for name in _NAMES))
def _activation(low: Lowering, operation: Any, x: Node) -> Node:
    return ACTIVATIONS[_NAMES[type(operation).__name__]](low, x)


@rule("ops.LeakyRelu")
def _leaky_relu(low: Lowering, operation: Any, x: Node) -> Node:
    return relu(low, x, negative_slope=float(operation.negative_slope))


@rule("ops.Elu")
def _elu(low: Lowering, operation: Any, x: Node) -> Node:
    return elu(low, x, float(operation.alpha))


@rule("ops.Gelu")
def _gelu(low: Lowering, operation: Any, x: Node) -> Node:
    return low.add("gelu", x, approximate=bool(operation.approximate))


@rule("ops.Softmax")
def _softmax(low: Lowering, operation: Any, x: Node) -> Node:
    return softmax(low, x, operation.axis)


@rule(
    "ops.BroadcastTo", "ops.ExpandDims", "ops.Flip", "ops.GetItem", "ops.Max", "ops.Min", "ops.Moveaxis", "ops.Pad",
    "ops.Ravel", "ops.Repeat", "ops.Reshape", "ops.Roll", "ops.Slice", "ops.Squeeze", "ops.Swapaxes", "ops.Tile",
    "ops.Transpose", "ops.MaxPool", "ops.AveragePool", "ops.DepthToSpace", "ops.SpaceToDepth",
)  # fmt: skip
def _move(low: Lowering, operation: Any, x: Node, *args: Any, **kwargs: Any) -> Node:
    return low.add("move", x, function=lambda tensor: operation(tensor, *args, **kwargs))


@rule("ops.Concatenate", "ops.Stack")
def _join(low: Lowering, operation: Any, inputs: list[Any]) -> Node:
    if not all(isinstance(item, Node) for item in inputs):
        raise UnsupportedError("it joins tensors and constants")
    return low.add("move", *inputs, function=lambda *tensors: operation(list(tensors)))


@rule("ops.Split", "ops.Unstack")
def _part(low: Lowering, operation: Any, x: Node) -> list[Node]:
    with low._scratch.as_default():  # noqa: SLF001 (only how many parts there are)
        parts = len(operation(x.tensor))
    return [low.add("move", x, function=functools.partial(_pick, operation, index)) for index in range(parts)]


def _pick(operation: Any, index: int, tensor: Any) -> Any:
    return operation(tensor)[index]
