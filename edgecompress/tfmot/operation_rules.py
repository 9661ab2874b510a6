"""How operations of `keras.ops`, and operators such as `x + 1` and `x[:, 1:]`, are written in primitives."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from edgecompress.tfmot.activation_rules import ACTIVATIONS, elu, relu, softmax
from edgecompress.tfmot.lowering import Lowering, Node, UnsupportedError, rule
from edgecompress.tfmot.products import arithmetic

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
    return arithmetic(low, _ARITHMETIC[type(operation).__name__], x1, x2)


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


@rule("ops.Absolute")
def _absolute(low: Lowering, operation: Any, x: Node) -> Node:
    return low.add("compute", x, function=operation)


@rule("ops.Log", "ops.Sqrt", "ops.Rsqrt")
def _steep_at_zero(low: Lowering, operation: Any, x: Node) -> Node:
    return low.add("compute", low.add("floor", x), function=operation)


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
    "ops.BroadcastTo", "ops.ExpandDims", "ops.GetItem", "ops.Max", "ops.Min", "ops.Moveaxis", "ops.Ravel",
    "ops.Repeat", "ops.Reshape", "ops.Roll", "ops.Slice", "ops.Squeeze", "ops.Swapaxes", "ops.Tile",
    "ops.Transpose", "ops.MaxPool", "ops.AveragePool", "ops.DepthToSpace", "ops.SpaceToDepth",
)  # fmt: skip
def _move(low: Lowering, operation: Any, x: Node, *args: Any, **kwargs: Any) -> Node:
    return low.add("move", x, function=lambda tensor: operation(tensor, *args, **kwargs))


@rule("ops.Pad")
def _pad(low: Lowering, operation: Any, x: Node, constant_values: Any = None) -> Node:
    if operation.mode == "constant" and constant_values is not None and np.any(np.asarray(constant_values) != 0):
        raise UnsupportedError("padding with another constant than 0")
    return low.add("move", x, function=operation)


@rule("ops.Flip")
def _flip(low: Lowering, operation: Any, x: Node) -> Node:
    """As a slice with steps of -1: the converter leaves REVERSE_V2 in float."""
    rank = len(x.shape) + 1
    axis = range(rank) if operation.axis is None else np.atleast_1d(operation.axis)
    flipped = {int(each) % rank for each in axis}
    if 0 in flipped:
        raise UnsupportedError("it reverses the batch")
    key = tuple(slice(None, None, -1 if each in flipped else None) for each in range(rank))
    return low.add("move", x, function=lambda tensor: tensor[key])


@rule("ops.Concatenate", "ops.Stack")
def _join(low: Lowering, operation: Any, inputs: list[Any]) -> Node:
    if not all(isinstance(item, Node) for item in inputs):
        raise UnsupportedError("it joins tensors and constants")
    return low.add("move", *inputs, function=lambda *tensors: operation(list(tensors)))


@rule("ops.Split")
def _split(low: Lowering, operation: Any, x: Node) -> list[Node]:
    parts = len(operation(_keras_tensor(x)))
    return [low.add("move", x, function=functools.partial(_pick, operation, index)) for index in range(parts)]


def _pick(operation: Any, index: int, tensor: Any) -> Any:
    return operation(tensor)[index]


def _keras_tensor(x: Node) -> Any:
    """A symbolic tensor of Keras of the shape of a node."""
    import keras

    return keras.KerasTensor((None, *x.shape), "float32")


@rule("ops.Unstack")
def _unstack(low: Lowering, operation: Any, x: Node) -> list[Node]:
    """As slices: the converter leaves UNPACK in float."""
    axis = operation.axis % (len(x.shape) + 1)
    if axis == 0:
        raise UnsupportedError("it takes the batch apart")
    keys = [(*[slice(None)] * axis, index) for index in range(x.shape[axis - 1])]
    return [low.add("move", x, function=lambda tensor, key=key: tensor[key]) for key in keys]
