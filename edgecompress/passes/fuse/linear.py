"""Merges linear layers that follow one another: a product of matrices is a matrix."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgecompress.data import Array
from edgecompress.passes.fuse.merge import Merge, is_linear, made, plain_weights, reason_against, remade
from edgecompress.passes.fuse.recurrent import RECURRENT, input_factors, refusal, with_inputs
from edgecompress.passes.fuse.stages import Shape, Stage

_DENSE = frozenset({"Dense", "LowRankDense"})
_CONVOLUTIONS = frozenset({"Conv1D", "Conv2D", "Conv3D"})
_LARGER = "one layer for it and {!r} would be larger: {:,} weights in the place of {:,}"
_OF_DENSE = (
    "units", "activation", "use_bias", "kernel_initializer", "bias_initializer", "kernel_regularizer",
    "bias_regularizer", "activity_regularizer", "name", "trainable", "dtype",
)  # fmt: skip


@dataclass(frozen=True)
class _Map:
    """What a dense layer does with the last axis: x M1 M2 ... + bias.

    Attributes:
        matrices: The kernel, or its factors.
        bias: Shape (outputs,), or None.
    """

    matrices: tuple[Array, ...]
    bias: Array | None

    @property
    def whole(self) -> Array:
        return functools.reduce(np.matmul, self.matrices)

    def then(self, bias: Array | None, matrices: Sequence[Array]) -> Array | None:
        """Returns the bias of this and a second map together."""
        if self.bias is None:
            return bias
        moved: Array = functools.reduce(np.matmul, matrices, self.bias)
        return moved if bias is None else moved + bias


def merge_linear(first: Stage, second: Stage) -> Merge | str | None:
    """Returns what two layers become if the first is linear and the second begins with a product.

    They are merged only where that makes neither the weights nor the multiply-accumulates more.

    Returns:
        What they become; or why they stay two; or None if they are no such layers.
    """
    merge = _way(first, second)
    if merge is None or not is_linear(_unwrap(first.layer)):
        return None
    if reason := reason_against(_unwrap(first.layer), _unwrap(second.layer)):
        return reason
    return merge(first, second)


def _way(first: Stage, second: Stage) -> Callable[[Stage, Stage], Merge | str] | None:
    a, b = _kind(first), _kind(second)
    if a in _CONVOLUTIONS and (b == a or b in _DENSE):
        return _convolutions
    if a in _DENSE:
        ways: dict[str, Any] = dict.fromkeys(_DENSE, _dense) | dict.fromkeys(RECURRENT, _into_recurrent)
        ways["Bidirectional"] = _into_directions
        return (ways | dict.fromkeys(_CONVOLUTIONS, _convolutions)).get(b)
    return _into_embedding if a == "Embedding" and b in _DENSE else None


def _kind(stage: Stage) -> str:
    """Returns the kind of a stage; TimeDistributed around a dense layer does what the dense layer alone does."""
    if stage.kind == "TimeDistributed" and type(stage.layer.layer).__name__ in _DENSE:
        return type(stage.layer.layer).__name__
    return stage.kind


def _unwrap(layer: Any) -> Any:
    return layer.layer if type(layer).__name__ == "TimeDistributed" else layer


def _map(layer: Any) -> _Map:
    weights = plain_weights(_unwrap(layer))
    count = len(weights) - _unwrap(layer).use_bias
    return _Map(tuple(weights[:count]), weights[count] if _unwrap(layer).use_bias else None)


def _size(matrices: Sequence[Array]) -> int:
    return sum(math.prod(matrix.shape) for matrix in matrices)


def _fewest(matrices: Sequence[Array], *, factors: bool) -> list[Array]:
    """Returns the product of matrices as one, or, with `factors`, as two if these have fewer entries."""
    ways = [[functools.reduce(np.matmul, matrices)]]
    if factors:
        cuts = range(1, len(matrices))
        ways += [[functools.reduce(np.matmul, part) for part in (matrices[:cut], matrices[cut:])] for cut in cuts]
    return min(ways, key=_size)


def _reason_larger(before: Sequence[Array], after: Sequence[Array], pair: Sequence[Any], result: Any) -> str | None:
    """Returns the reason against a layer that is larger than the two it stands for, or None."""
    kernels = (_size(before), _size(after))
    weights = (sum(layer.count_params() for layer in pair), result.count_params())
    larger = next((counts for counts in (kernels, weights) if counts[1] > counts[0]), None)
    return larger and _LARGER.format(pair[1].name, larger[1], larger[0])


def _dense(first: Stage, second: Stage) -> Merge | str:
    a, b = _map(first.layer), _map(second.layer)
    before = (*a.matrices, *b.matrices)
    after = _fewest(before, factors=len(before) > 2)  # noqa: PLR2004 (two whole kernels as factors are no merger)
    layer = _dense_layer(second.layer, first.input_shape, after, a.then(b.bias, b.matrices))
    reason = _reason_larger(before, after, (first.layer, second.layer), layer)
    return reason or Merge(None, layer, f"{len(before)} kernels became {len(after)}: {_shapes(after)}")


def _dense_layer(like: Any, shape: Shape, matrices: Sequence[Array], bias: Array | None) -> Any:
    """Returns a Dense or LowRankDense with the name and the activation of another."""
    import keras

    from edgecompress.layers import LowRankDense

    inner = _unwrap(like)
    config = {key: value for key, value in inner.get_config().items() if key in _OF_DENSE}
    config |= {"name": like.name, "use_bias": bias is not None}
    kind = keras.layers.Dense if len(matrices) == 1 else LowRankDense
    rank = {} if len(matrices) == 1 else {"rank": matrices[0].shape[1]}
    new = made(kind, config | rank, shape, like.name)
    new.set_weights([*matrices, *([] if bias is None else [bias])])
    return new


def _into_embedding(first: Stage, second: Stage) -> Merge | str:
    if not is_linear(_unwrap(second.layer)):
        return f"{second.layer.name!r} has an activation"
    table, dense = plain_weights(first.layer)[0], _map(second.layer)
    entries, before = len(table) * dense.matrices[-1].shape[1], _size((table, *dense.matrices))
    if entries > before:  # the product may not fit in memory
        return _LARGER.format(second.layer.name, entries, before)
    after = table @ dense.whole + (0 if dense.bias is None else dense.bias)
    embedding = remade(first.layer, first.input_shape, [after], output_dim=after.shape[1])
    return Merge(embedding, None, f"the product is looked up: {_shapes([after])}")


def _into_recurrent(first: Stage, second: Stage) -> Merge | str:
    if reason := refusal(second.layer):
        return reason
    dense, own = _map(first.layer), input_factors(second.layer)
    before = (*dense.matrices, *own)
    joint = getattr(second.layer.cell, "gates", "joint") == "joint"
    after = _fewest(before, factors=joint and len(before) > 2)  # noqa: PLR2004 (as in _dense)
    bias = dense.then(None, own)
    layer = with_inputs(second.layer, first.input_shape, after, 0.0 if bias is None else bias)
    reason = _reason_larger(before, after, (first.layer, second.layer), layer)
    return reason or Merge(None, layer, f"became part of the input kernel: {_shapes(after)}")


def _into_directions(_first: Stage, second: Stage) -> str:
    return f"the two directions of {second.layer.name!r} have an input kernel each"


def _convolutions(first: Stage, second: Stage) -> Merge | str:
    """Merges a convolution and one of a single point, in either order."""
    if reason := _convolution_reason(first.layer, second.layer):
        return reason
    a, b = _map(first.layer), _map(second.layer)
    like = second.layer if first.kind in _DENSE or not _is_point(second.layer) else first.layer
    kernel = _point(first.layer, a) @ _point(second.layer, b)
    kernel = kernel.reshape(*like.kernel_size, *kernel.shape[-2:])
    # A constant before the second one is multiplied by the sum over its window.
    bias = a.then(b.bias, [b.whole.reshape(-1, *b.whole.shape[-2:]).sum(axis=0)])
    last = second.layer.get_config()
    layer = remade(
        like, first.input_shape, [kernel, *([] if bias is None else [bias])],
        filters=kernel.shape[-1], activation=last["activation"], name=last["name"], use_bias=bias is not None,
    )  # fmt: skip
    reason = _reason_larger((*a.matrices, *b.matrices), (kernel,), (first.layer, second.layer), layer)
    return reason or Merge(None, layer, f"became one kernel: {_shapes([kernel])}")


def _point(layer: Any, own: _Map) -> Array:
    """Returns a kernel, as a matrix where the layer is of a single point."""
    return own.whole.reshape(own.whole.shape[-2:]) if _is_point(layer) else own.whole


def _is_point(layer: Any) -> bool:
    """Says whether a layer does with each position by itself the same linear thing."""
    if type(layer).__name__ in _DENSE:
        return True
    return {*layer.kernel_size, *layer.strides, layer.groups} == {1}


def _convolution_reason(first: Any, second: Any) -> str | None:
    for layer in (first, second):
        if getattr(layer, "groups", 1) > 1:
            return f"{layer.name!r} has groups"
        if getattr(layer, "data_format", "channels_last") != "channels_last":
            return f"{layer.name!r} has its channels first"
    if _is_point(second):
        return None
    if not _is_point(first):
        return f"neither it nor {second.name!r} is of a single point (kernel and strides of 1)"
    if second.padding != "valid" and first.use_bias:
        return f"{second.name!r} pads what comes after the bias of {first.name!r}"
    return None


def _shapes(matrices: Sequence[Array]) -> str:
    return " and ".join(" x ".join(map(str, matrix.shape)) for matrix in matrices)
