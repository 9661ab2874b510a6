"""Runs a float model on samples and keeps what its recurrent layers take and give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgecompress.converters.cut import Cut, Site
from edgecompress.converters.stand_ins import Handlers, RecurrentCall, replaced
from edgecompress.converters.tflite import without_16_bits
from edgecompress.data import Array, Dataset, InputSpec
from edgecompress.errors import ConversionError, InternalError
from edgecompress.loaded import LoadedModel
from edgecompress.recurrent.observing import run

_BATCH = 32
_TOLERANCE = 1e-3  # of the largest value: the order of sums is another
_PROOF_SAMPLES = 4


def record(model: LoadedModel, fixed: Sequence[InputSpec], samples: Dataset, found: Cut) -> dict[str, Array]:
    """Runs the float model on samples and returns what its recurrent layers took and gave, by the names in the cut.

    Raises:
        InternalError: A layer computes something else than was read from it.
    """
    import tensorflow as tf

    model = without_16_bits(model)
    own_batch = next((spec.shape[0] for spec in model.inputs if spec.shape[0] is not None), None)

    def call(*tensors: Any) -> dict[str, Any]:
        seen: dict[str, Any] = {}
        waiting, waiting_masks = iter(found.sites), iter(found.masks)

        def masking(x: Any, value: float) -> Any:
            mask = next(waiting_masks)
            seen[mask.input] = x
            seen[mask.output] = tf.reduce_any(tf.not_equal(x, tf.cast(value, x.dtype)), axis=-1)
            return seen[mask.output]

        def original(made: RecurrentCall) -> Sequence[Any]:
            site, results = next(waiting), _run_layer(made)
            seen.update(zip((*site.inputs, *site.outputs), (made.x, *made.states, *results), strict=True))
            if site.mask is not None:
                seen[site.mask] = made.mask
            return results

        with replaced(model, Handlers(original, masking)):
            model.call(*tensors)
        return seen

    signature = [tf.TensorSpec((own_batch, *spec.sample_shape), spec.dtype) for spec in fixed]
    traced = tf.function(call, input_signature=signature, autograph=False).get_concrete_function()
    parts: dict[str, list[Array]] = {}
    count, batch = len(samples), own_batch or _BATCH
    for start in range(0, count, batch):
        rows = np.resize(np.arange(start, min(start + batch, count)), own_batch or min(batch, count - start))
        chunk = [tf.constant(samples.inputs[spec.name][rows], spec.dtype) for spec in fixed]
        for name, tensor in traced(*chunk).items():
            parts.setdefault(name, []).append(np.asarray(tensor, bool if tensor.dtype.is_bool else np.float32))
    arrays = {name: np.concatenate(arrays)[:count] for name, arrays in parts.items()}
    for site in found.sites:
        _prove(model, site, arrays)
    return arrays


def _prove(model: LoadedModel, site: Site, arrays: Mapping[str, Array]) -> None:
    if not all(np.isfinite(arrays[name]).all() for name in (*site.inputs, *site.outputs)):
        raise ConversionError(
            f"recurrent layer {site.layer.name!r} takes or gives NaN or infinity on these samples", where=model.name,
            fix="check the samples, and the weights and activations of the layer",
        )  # fmt: skip
    x, *states = (arrays[name][:_PROOF_SAMPLES] for name in site.inputs)
    mask = None if site.mask is None else arrays[site.mask][:_PROOF_SAMPLES]
    for name, result in zip(site.outputs, run(site.layer, x, states, mask), strict=True):
        wanted = arrays[name][:_PROOF_SAMPLES]
        error = float(np.abs(result - wanted).max()) / max(float(np.abs(wanted).max()), 1e-6)
        if not error <= _TOLERANCE:
            raise InternalError(
                f"layer {site.layer.name!r} written in integer operations differs by {error:.2g} of its size",
                where=model.name, fix="use --scheme dynamic, and please report it with the layer's configuration",
            )  # fmt: skip


def _run_layer(made: RecurrentCall) -> list[Any]:
    """Calls a recurrent layer itself, past its stand-in."""
    import tensorflow as tf

    layer, states = made.layer, list(made.states)
    call = type(layer).call.__get__(layer)
    if hasattr(layer, "recurrent_layer"):
        result = call([made.x, *states] if states else made.x)
    else:
        options = {"initial_state": states} if states else {}
        result = call(made.x, mask=made.mask, training=False, **options)
    outputs = list(result) if isinstance(result, (list, tuple)) else [result]
    if made.in_order and layer.go_backwards and layer.return_sequences:
        outputs[0] = tf.reverse(outputs[0], [1])
    return outputs
