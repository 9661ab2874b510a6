"""Finds the layers of a model that can be written in factors, and says of the others why they cannot."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgecompress.functional import as_functional
from edgecompress.keras_macs import graph_calls
from edgecompress.passes.kernels import Found, find_layers
from edgecompress.passes.low_rank.conv import ConvKind
from edgecompress.passes.low_rank.dense import (
    DenseKind,
    EinsumKind,
    EmbeddingKind,
    TimeDistributedKind,
    one_step,
)
from edgecompress.passes.low_rank.kind import Call, Kind, LeftAloneError, options_of
from edgecompress.passes.low_rank.recurrent import RecurrentKind

_KINDS: dict[str, type[Kind]] = {
    "Dense": DenseKind,
    "EinsumDense": EinsumKind,
    "Embedding": EmbeddingKind,
    "Conv1D": ConvKind,
    "Conv2D": ConvKind,
    "GRU": RecurrentKind,
    "LSTM": RecurrentKind,
    "Bidirectional": RecurrentKind,
}


@dataclass(frozen=True)
class Site:
    """A layer with a kernel.

    Attributes:
        found: The layer and its name.
        kind: How it can be written in factors; None: it cannot, or is better left alone.
        reason: Why not, in words.
    """

    found: Found
    kind: Kind | None
    reason: str = ""

    @property
    def name(self) -> str:
        return self.found.name

    @property
    def is_finite(self) -> bool:
        """Whether no weight of its kernels is NaN or infinite."""
        return all(bool(np.isfinite(kernel.values).all()) for kernel in self.found.kernels)


def find_sites(model: Any) -> tuple[Site, ...]:
    """Returns every layer with weights in the model's order, as `find_layers` names them."""
    graph = as_functional(model)
    calls = defaultdict(list)
    for layer, call in _calls(graph):
        calls[id(layer)].append(call)
    return tuple(_site(found, calls[id(found.layer)]) for found in find_layers(graph))


def _site(found: Found, calls: list[Call]) -> Site:
    if not found.kernels:
        return Site(found, None, "it has no kernel")
    try:
        if not calls:
            raise LeftAloneError("it is not called in the graph of layers itself")
        return Site(found, _kind(found.layer, calls))
    except LeftAloneError as reason:
        return Site(found, None, str(reason))


def _kind(layer: Any, calls: list[Call]) -> Kind:
    name = type(layer).__name__
    if not type(layer).__module__.startswith("keras."):
        ours = type(layer).__module__.startswith("edgecompress.")
        raise LeftAloneError("it is written in factors already" if ours else "what a layer of your own does is unknown")
    if name == "TimeDistributed":
        inner = _kind(layer.layer, [one_step(call) for call in calls])
        return TimeDistributedKind(layer, calls, inner)
    if name not in _KINDS:
        raise LeftAloneError(f"{name} is not written in factors")
    options_of(layer)
    kind = _KINDS[name](layer, calls)
    if max(max(ranks) for ranks in map(kind.full_ranks, kind.methods)) == 1:
        raise LeftAloneError("its matrix has rank 1 already")
    return kind


def _calls(graph: Any) -> Iterator[tuple[Any, Call]]:
    for call in graph_calls(graph) or ():
        if graph_calls(call.layer):
            yield from _calls(call.layer)
        elif call.inputs:
            yield call.layer, Call(call.inputs[0], call.output)
