"""Proves that merged layers answer as those that they stand for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edgecompress.errors import InternalError
from edgecompress.functional import as_functional, cause_of, functional_graph
from edgecompress.passes.base import Fusion
from edgecompress.passes.fuse.stages import Shape
from edgecompress.states import at_rest
from edgecompress.tfmot.flat_graph import flatten_graph
from edgecompress.tfmot.proof import random_inputs, relative_difference

_TOLERANCE = 1e-4  # of the largest value of a tensor
_NARROW = {"float16": 2.0**-6, "bfloat16": 2.0**-3}  # 16 steps of these types
_BATCH, _SIZES = 2, (32, 256)  # of samples; for dimensions of unknown size: a network may need a large image


def prove_fusion(fusion: Fusion, before: Sequence[Any], after: Sequence[Any], shape: Shape) -> None:
    """Runs layers and what they became on the same random input.

    Args:
        fusion: What errors name.
        before: Layers, to be called one after the other.
        after: Likewise.
        shape: Of the first one's input, batch first; None for sizes that vary.

    Raises:
        InternalError: They answer otherwise.
    """
    sizes = [(_SIZES[0] if axis else _BATCH) if size is None else size for axis, size in enumerate(shape)]
    random = np.random.default_rng(0)
    rows = getattr(before[0], "input_dim", None)
    sample = random.normal(size=sizes).astype(np.float32) if rows is None else random.integers(0, rows, sizes)
    with at_rest([*before, *after]):
        expected, received = _run(before, sample), _run(after, sample)
    where = f"{' + '.join(fusion.layers)} ({fusion.how})"
    _refuse_difference(expected, received, _tolerance(before), where)


def prove_model(model: Any, fused: Any, fusions: Sequence[Fusion]) -> None:
    """Runs a model and the one with merged layers on the same random input.

    Raises:
        InternalError: They answer otherwise.
    """
    graph = functional_graph(as_functional(model))
    flat = flatten_graph(graph)
    layers = model._flatten_layers()  # noqa: SLF001
    with at_rest([*layers, *fused._flatten_layers()]):  # noqa: SLF001
        for size in _SIZES:
            inputs = list(random_inputs(graph, flat, size))
            try:
                expected = _run([model], _pack(graph, inputs))
            except Exception as error:  # noqa: BLE001 (whatever a layer raises for a size that it does not take)
                failure = cause_of(error)
                continue
            received = _run([fused], _pack(graph, inputs))
            what = ", ".join(f"{' + '.join(fusion.layers)} ({fusion.how})" for fusion in fusions)
            _refuse_difference(expected, received, _tolerance(layers), f"{model.name}, after {what}")
            return
    raise InternalError(
        f"cannot be run on random input to compare it with what it became ({failure})", where=model.name
    )


def _pack(graph: Any, inputs: Sequence[Any]) -> Any:
    import keras

    return keras.tree.pack_sequence_as(graph._inputs_struct, inputs)  # noqa: SLF001


def _run(layers: Sequence[Any], sample: Any) -> list[Any]:
    import keras

    for layer in layers:
        sample = layer(sample)
    return list(keras.tree.flatten(sample))


def _tolerance(layers: Sequence[Any]) -> float:
    return max(_NARROW.get(str(getattr(layer, "compute_dtype", "")), _TOLERANCE) for layer in layers)


def _refuse_difference(expected: list[Any], received: list[Any], tolerance: float, where: str) -> None:
    worst = max(relative_difference(a, b) for a, b in zip(expected, received, strict=True))
    if not worst <= tolerance:
        raise InternalError(
            "merged layers answer otherwise than those they stand for", where=where,
            expected=f"within {tolerance:g} of the largest value", received=f"{worst:.1e}",
        )  # fmt: skip
