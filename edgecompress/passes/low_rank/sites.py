"""Finds the layers of a model that can be written in factors, and says of the others why they cannot."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgecompress import keras_macs
from edgecompress.data import InputSpec
from edgecompress.functional import as_functional
from edgecompress.passes.kernels import Found, find_layers
from edgecompress.passes.low_rank.activations import call_on_zeros
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

_DEPTHWISE = "a depthwise kernel has few weights already"


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
        """Whether none of its weights is NaN or infinite."""
        return all(bool(np.isfinite(np.asarray(weight)).all()) for weight in self.found.layer.weights)


def find_calls(model: Any, fixed: Sequence[InputSpec] | None = None) -> tuple[keras_macs.Call, ...]:
    """Returns the calls of the layers and operations in a model's graph, those of nested models in their place.

    Args:
        model: A functional or Sequential Keras 3 model.
        fixed: Its inputs with every dimension known: then the shapes of all calls of layers are known, too.
    """
    calls = tuple(_calls(model))
    layers = {id(call.layer): call.layer for call in calls if hasattr(call.layer, "call")}
    if fixed is None or all(None not in shape[1:] for call in calls for shape in (*call.inputs, call.output)):
        return calls
    seen: list[keras_macs.Call] = []

    def see(layer: Any, args: Any, kwargs: Any, outputs: Any) -> None:
        given = [args, [value for name, value in kwargs.items() if not name.endswith("mask")]]
        seen.append(keras_macs.Call(layer, keras_macs.shapes(_tensors(given)), keras_macs.shapes(_tensors(outputs))[0]))

    call_on_zeros(model, fixed, list(layers.values()), see)
    return (*seen, *(call for call in calls if id(call.layer) not in layers))


def find_sites(model: Any, calls: Sequence[keras_macs.Call] | None = None) -> tuple[Site, ...]:
    """Returns every layer with weights in the model's order, as `find_layers` names them.

    Args:
        model: A Keras 3 model.
        calls: What `find_calls` returns, if the sizes of its inputs are known.
    """
    graph = as_functional(model)
    by_layer = defaultdict(list)
    for call in find_calls(graph) if calls is None else calls:
        if call.inputs:
            by_layer[id(call.layer)].append(Call(call.inputs[0], call.output))
    return tuple(_site(found, by_layer[id(found.layer)]) for found in find_layers(graph))


def _site(found: Found, calls: list[Call]) -> Site:
    if not found.kernels:
        return Site(found, None, _DEPTHWISE if "Depthwise" in found.kind else "it has no kernel")
    try:
        if not calls:
            raise LeftAloneError("it is not called in the graph of layers itself")
        return Site(found, _kind(found.layer, calls))
    except LeftAloneError as reason:
        return Site(found, None, str(reason))


def _kind(layer: Any, calls: list[Call]) -> Kind:
    name = type(layer).__name__
    for each in (layer, layer.forward_layer, layer.backward_layer) if name == "Bidirectional" else (layer,):
        module = type(each).__module__
        if not module.startswith("keras."):
            ours = module.startswith("edgecompress.")
            raise LeftAloneError(
                "it is written in factors already" if ours else "what a layer of your own does is unknown"
            )
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


def _calls(graph: Any) -> Iterator[keras_macs.Call]:
    for call in keras_macs.graph_calls(graph) or ():
        if keras_macs.graph_calls(call.layer):
            yield from _calls(call.layer)
        else:
            yield call


def _tensors(structure: Any) -> list[Any]:
    import keras

    return [each for each in keras.tree.flatten(structure) if hasattr(each, "shape")]
