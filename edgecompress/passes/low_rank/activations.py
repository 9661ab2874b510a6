"""Runs a model on samples and shows each layer's inputs to what wants to see them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from edgecompress.data import Array, Dataset, InputSpec
from edgecompress.errors import DataError
from edgecompress.functional import as_functional
from edgecompress.models import load_model
from edgecompress.passes.low_rank.kind import Kind, Seen
from edgecompress.states import at_rest

See = Callable[[Any, Any, Any, Any], None]
_SAMPLES = 256
_BATCH = 32
_VALUES = 4_000_000  # of inputs in a batch: photographs come a few at a time


def observe(model: Any, kinds: Mapping[int, Kind], data: Dataset, seed: int) -> None:
    """Shows layers their inputs on some samples.

    Args:
        model: A Keras 3 model.
        kinds: What wants to see them, by the identity of the layer.
        data: The samples, fitted to the model's inputs.
        seed: Of the choice of samples.

    Raises:
        DataError: The samples have other inputs than the model.
    """
    loaded = load_model(as_functional(model))
    names = [spec.name for spec in loaded.inputs]
    if set(names) != set(data.inputs):
        raise DataError(
            "the samples do not fit the model's inputs", where=data.source, expected=", ".join(names),
            received=", ".join(data.inputs), fix="name the arrays as the inputs of the model",
        )  # fmt: skip
    chosen = data.select(np.sort(np.random.default_rng(seed).permutation(len(data))[:_SAMPLES]))
    each = sum(array[0].size for array in chosen.inputs.values())
    fixed = next((spec.shape[0] for spec in loaded.inputs if spec.shape[0] is not None), None)
    batch = fixed or max(1, min(_BATCH, _VALUES // max(1, each)))
    if fixed:  # a model that takes whole batches only sees some samples twice
        chosen = chosen.select(np.resize(np.arange(len(chosen)), -(-len(chosen) // fixed) * fixed))

    def see(layer: Any, args: Any, kwargs: Any, _outputs: Any) -> None:
        inputs = args[0] if args else next(iter(kwargs.values()))
        states = args[1] if len(args) > 1 else kwargs.get("initial_state")
        kinds[id(layer)].observe(Seen(_array(inputs), _mask_of(inputs, kwargs), _arrays(states)))

    with watched([kind.layer for kind in kinds.values()], see), at_rest(model._flatten_layers()):  # noqa: SLF001
        for start in range(0, len(chosen), batch):
            loaded.call(*(chosen.inputs[name][start : start + batch] for name in names))


def call_on_zeros(graph: Any, fixed: Sequence[InputSpec], layers: Sequence[Any], see: See) -> None:
    """Calls a model once with inputs of these shapes, of which only the shapes matter, and shows calls of layers."""
    loaded = load_model(graph)
    zeros = [
        np.zeros([size or 1 for size in (spec.shape[0], *known.sample_shape)], spec.dtype)
        for spec, known in zip(loaded.inputs, fixed, strict=True)
    ]
    with watched(layers, see), at_rest(graph._flatten_layers()):  # noqa: SLF001
        loaded.call(*zeros)


@contextmanager
def watched(layers: Sequence[Any], see: See) -> Iterator[None]:
    """Has layers show the arguments and the outputs of their calls: `see(layer, args, kwargs, outputs)`."""

    def shown(layer: Any, original: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            outputs = original(*args, **kwargs)
            see(layer, args, kwargs, outputs)
            return outputs

        return call

    try:
        for layer in layers:
            # Around Keras's own __setattr__, which would take note of the function as a part of the layer.
            vars(layer)["call"] = shown(layer, layer.call)
        yield
    finally:
        for layer in layers:
            vars(layer).pop("call", None)


def _array(tensor: Any) -> Array:
    array = np.asarray(tensor)
    return array if array.dtype.kind in "iub" else array.astype(np.float32)


def _arrays(states: Any) -> tuple[Array, ...]:
    if states is None:
        return ()
    return tuple(map(_array, states)) if isinstance(states, (list, tuple)) else (_array(states),)


def _mask_of(inputs: Any, kwargs: Mapping[str, Any]) -> Array | None:
    mask = kwargs.get("mask", getattr(inputs, "_keras_mask", None))
    return None if mask is None or isinstance(mask, (list, tuple)) else np.asarray(mask, bool)
