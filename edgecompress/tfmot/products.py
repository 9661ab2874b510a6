"""Matrix products and the reshapes and transposes around them, in primitives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from edgecompress.data import Array
from edgecompress.tfmot.lowering import Lowering, Node, UnsupportedError


def dense(low: Lowering, x: Node, kernel: Any, bias: Any) -> Node:
    """A matrix product over the last axis; kernel of shape (inputs, units)."""
    return low.add("dense", x, weights={"kernel": kernel, "bias": bias})


def reshape(low: Lowering, x: Node, shape: Sequence[int]) -> Node:
    """Gives samples another shape; where it is the same, nothing is added."""
    return x if tuple(shape) == x.shape else low.add("reshape", x, shape=tuple(shape))


def transpose(low: Lowering, x: Node, order: Sequence[int]) -> Node:
    """Reorders axes, the batch being axis 0; where the order is the same, nothing is added."""
    import tensorflow as tf

    if list(order) == sorted(order):
        return x
    return low.add("move", x, function=lambda tensor: tf.transpose(tensor, order))


def join(low: Lowering, inputs: Sequence[Node], axis: int) -> Node:
    """Joins tensors along an axis, the batch being axis 0."""
    import tensorflow as tf

    return low.add("move", *inputs, function=lambda *tensors: tf.concat(tensors, axis))


def arithmetic(low: Lowering, kind: str, x1: Any, x2: Any) -> Node:
    """Adds, subtracts, multiplies or divides two tensors, or a tensor and a constant.

    Raises:
        UnsupportedError: All tensors hold integers, or a constant is divided by a tensor.
    """
    tensors = [x for x in (x1, x2) if isinstance(x, Node)]
    if all(x.is_integer for x in tensors):
        raise UnsupportedError("arithmetic on integers")
    if len(tensors) == 2:  # noqa: PLR2004 (both)
        return low.add(kind, x1, x2)
    (node,) = tensors
    constant = np.asarray(x2 if node is x1 else x1, np.float32)
    if kind == "divide":
        if node is not x1:
            raise UnsupportedError("division of a constant by a tensor")
        return low.add("multiply", node, weights={"constant": 1 / constant})
    if kind == "subtract" and node is not x1:
        node, kind = low.add("multiply", node, weights={"constant": -1.0}), "add"
    return low.add(kind, node, weights={"constant": constant})


def einsum(low: Lowering, x: Node, equation: str, kernel: Array, bias: Array | None) -> Node:
    """The product of a tensor and a kernel by an equation such as `abc,cd->abd`, as one matrix product.

    The axes that are summed go to the end, the product makes the new axes there, and they go where they belong.

    Raises:
        UnsupportedError: The equation is not one matrix product.
    """
    operands, result = equation.replace(" ", "").split("->")
    left, right = operands.split(",")
    left, result = (_without_dots(labels, len(x.shape) + 1, right) for labels in (left, result))
    kept = [label for label in result if label in left]
    summed = [label for label in right if label in left]
    new = [label for label in right if label not in left]
    if {*result} != {*kept, *new} or {*left} != {*kept, *summed} or {*kept} & {*summed} or kept[0] != left[0]:
        raise UnsupportedError(f"the equation {equation!r} is not one matrix product")
    size = dict(zip(left[1:], x.shape, strict=True)) | dict(zip(right, kernel.shape, strict=True))
    rows, columns = ([size[label] for label in labels] for labels in (summed, new))
    inner = [size[label] for label in kept[1:]]
    matrix = kernel.transpose([right.index(label) for label in (*summed, *new)]).reshape(math.prod(rows), -1)
    whole, vector = _bias(bias, [size[label] for label in result[1:]], [result[1:].index(label) for label in new])
    x = transpose(low, x, [left.index(label) for label in (*kept, *summed)])
    x = dense(low, reshape(low, x, (*inner, math.prod(rows))), matrix, vector)
    x = transpose(low, reshape(low, x, (*inner, *columns)), [(*kept, *new).index(label) for label in result])
    return x if whole is None else low.add("add", x, weights={"constant": whole})


def _without_dots(labels: str, rank: int, taken: str) -> str:
    """Writes `...ab` with a label for each axis."""
    free = [label for label in "ABCDEFGHIJ" if label not in taken]
    return labels.replace("...", "".join(free[: rank - (len(labels) - 3)]))


def _bias(bias: Array | None, shape: Sequence[int], new: Sequence[int]) -> tuple[Array | None, Array | None]:
    """Returns a bias as the array to add afterwards, or as the vector that the product adds, if it is one.

    Args:
        bias: It broadcasts to `shape`.
        shape: The shape of one result.
        new: The axes of the result that come from the kernel, in the kernel's order.
    """
    if bias is None:
        return None, None
    whole = np.broadcast_to(bias, shape)
    others = [axis for axis in range(len(shape)) if axis not in new]
    ordered = whole.transpose(*new, *others).reshape(math.prod(shape[axis] for axis in new), -1)
    return (None, ordered[:, 0]) if (ordered == ordered[:, :1]).all() else (np.ascontiguousarray(whole), None)
