"""GRU and LSTM with other input kernels: for fewer features, or with their inputs multiplied already."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edgecompress.data import Array
from edgecompress.passes.fuse.merge import made
from edgecompress.passes.fuse.stages import Shape

RECURRENT = {"GRU": "LowRankGRU", "LSTM": "LowRankLSTM", "LowRankGRU": "LowRankGRU", "LowRankLSTM": "LowRankLSTM"}
_RECURRENT_WEIGHTS = ("recurrent_kernel", "recurrent_u", "recurrent_v")


def refusal(layer: Any) -> str | None:
    """Returns why the inputs of a recurrent layer cannot be multiplied by something else, or None."""
    if not getattr(layer.cell, "project_inputs", True):
        return f"the inputs of {layer.name!r} are multiplied already"
    if layer.cell.dropout:
        return f"{layer.name!r} drops some of its inputs in training (dropout={layer.cell.dropout:g})"
    return None


def input_factors(layer: Any) -> list[Array]:
    """Returns the matrices whose product is the input kernel (features, gates * units), in float64."""
    cell = layer.cell
    if getattr(cell, "kernel_u", None) is None:
        return [np.asarray(cell.kernel, np.float64)]
    u, v = np.asarray(cell.kernel_u, np.float64), np.asarray(cell.kernel_v, np.float64)
    if cell.gates == "joint":
        return [u, v]
    parts = np.split(u, len(v), axis=1)
    return [np.concatenate([part @ own for part, own in zip(parts, v, strict=True)], axis=1)]


def with_inputs(
    layer: Any, shape: Shape, factors: Sequence[Array], bias: Array | float = 0.0, *, table: bool = False
) -> Any:
    """Returns a built recurrent layer that does as `layer`, but for its input kernel.

    Args:
        layer: GRU, LSTM, LowRankGRU or LowRankLSTM.
        shape: Of the new layer's inputs, (batch, steps, features).
        factors: The new input kernel as one matrix or two; none where `table` is true.
        bias: What is added to its bias of the inputs, shape (gates * units).
        table: Whether the inputs are what the input kernel would give.
    """
    import edgecompress.layers as ours

    own = type(layer).__name__
    kind = getattr(ours, RECURRENT[own]) if table or len(factors) > 1 or own == RECURRENT[own] else type(layer)
    config = layer.get_config() | {"use_bias": layer.cell.use_bias or np.ndim(bias) > 0}
    if kind is not type(layer) or own == RECURRENT[own]:
        config |= {"input_rank": factors[0].shape[1] if len(factors) > 1 else None, "project_inputs": not table}
        config.pop("use_cudnn", None)
    new = made(kind, config, shape, layer.name)
    names = () if table else ("kernel",) if len(factors) == 1 else ("kernel_u", "kernel_v")
    for name, factor in zip(names, factors, strict=True):
        getattr(new.cell, name).assign(factor)
    for name in _RECURRENT_WEIGHTS:
        if getattr(layer.cell, name, None) is not None:
            getattr(new.cell, name).assign(getattr(layer.cell, name))
    if new.cell.bias is not None:
        new.cell.bias.assign(_bias(layer.cell, bias, tuple(new.cell.bias.shape)))
    return new


def _bias(cell: Any, added: Array | float, shape: tuple[int, ...]) -> Array:
    """Returns the bias with something added to its part for the inputs: the first of two rows, or all of it."""
    bias = np.zeros(shape) if cell.bias is None else np.asarray(cell.bias).astype(np.float64)
    bias[(0,) if bias.ndim > 1 else ...] += added
    return bias
