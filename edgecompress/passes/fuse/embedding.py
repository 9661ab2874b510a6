"""Multiplies the input kernel of a recurrent layer into the embedding before it.

An embedding only looks up rows, so that E W, a row for each word, can be worked out beforehand: the recurrent layer
then multiplies no inputs at all. With an input kernel in factors U V there is a way in between: E U, of few columns.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from edgecompress.passes.fuse.merge import Merge, plain_weights, reason_against, remade
from edgecompress.passes.fuse.recurrent import RECURRENT, input_factors, refusal, with_inputs
from edgecompress.passes.fuse.stages import Stage

_DROPOUTS = frozenset({"Dropout", "SpatialDropout1D", "GaussianDropout", "AlphaDropout"})


def merge_embedding(first: Stage, second: Stage, saves: Literal["size", "speed"]) -> Merge | str | None:
    """Returns what an Embedding and the recurrent layer after it become, why nothing, or None if there are none.

    Args:
        first: A layer.
        second: The layer after it.
        saves: "size": the way with the fewest weights; "speed": the one with the least arithmetic.
    """
    if first.kind != "Embedding":
        return None
    if second.kind in _DROPOUTS:
        return f"{second.layer.name!r} acts on its output in training"
    if second.kind == "Bidirectional":
        return f"the two directions of {second.layer.name!r} would each need a table"
    if second.kind not in RECURRENT:
        return None
    return refusal(second.layer) or reason_against(first.layer, second.layer) or _cheapest(first, second, saves)


def _cheapest(first: Stage, second: Stage, saves: Literal["size", "speed"]) -> Merge | str:
    factors = input_factors(second.layer)
    vocabulary, columns = first.layer.input_dim, factors[-1].shape[1]
    ways = {"as it is": vocabulary * first.layer.output_dim + _kernel_size(second.layer)}
    if len(factors) > 1:
        ways["partial"] = (vocabulary + columns) * len(factors[1])
    ways["table"] = vocabulary * columns
    way = "table" if saves == "speed" else min(ways, key=ways.__getitem__)
    numbers = ", ".join(f"{name} {count:,}" for name, count in ways.items())
    if way == "as it is":
        return f"its product with the input kernel of {second.layer.name!r} is not smaller (weights: {numbers})"
    table = plain_weights(first.layer)[0]
    for factor in factors if way == "table" else factors[:1]:
        table = table @ factor
    rest = factors[1:] if way == "partial" else []
    embedding = remade(first.layer, first.input_shape, [table], output_dim=table.shape[1])
    layer = with_inputs(second.layer, (*second.input_shape[:-1], table.shape[1]), rest, table=not rest)
    return Merge(embedding, layer, f"{way} (weights: {numbers})")


def _kernel_size(layer: Any) -> int:
    kernels = (getattr(layer.cell, name, None) for name in ("kernel", "kernel_u", "kernel_v"))
    return sum(math.prod(kernel.shape) for kernel in kernels if kernel is not None)
