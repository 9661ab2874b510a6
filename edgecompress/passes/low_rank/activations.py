"""Runs a model on samples and shows each layer's inputs to what wants to see them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from edgecompress.data import Array, Dataset
from edgecompress.errors import DataError
from edgecompress.functional import as_functional
from edgecompress.models import load_model
from edgecompress.passes.low_rank.kind import Kind

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
    with ExitStack() as stack:
        for kind in kinds.values():
            stack.enter_context(_watched(kind))
        for start in range(0, len(chosen) - len(chosen) % batch if fixed else len(chosen), batch):
            few = [chosen.inputs[name][start : start + batch] for name in names]
            loaded.call(*few)


@contextmanager
def _watched(kind: Kind) -> Iterator[None]:
    """Has a layer show its inputs while it is called."""
    layer = kind.layer
    original = layer.call

    def call(*args: Any, **kwargs: Any) -> Any:
        inputs = args[0] if args else next(iter(kwargs.values()))
        kind.observe(_array(inputs), _mask_of(inputs, kwargs))
        return original(*args, **kwargs)

    # Around Keras's own __setattr__, which would take note of the function as a part of the layer.
    vars(layer)["call"] = call
    try:
        yield
    finally:
        del vars(layer)["call"]


def _array(tensor: Any) -> Array:
    array = np.asarray(tensor)
    return array if array.dtype.kind in "iub" else array.astype(np.float32)


def _mask_of(inputs: Any, kwargs: Mapping[str, Any]) -> Array | None:
    mask = kwargs.get("mask", getattr(inputs, "_keras_mask", None))
    return None if mask is None or isinstance(mask, (list, tuple)) else np.asarray(mask, bool)
