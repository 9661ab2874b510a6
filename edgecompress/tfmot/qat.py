"""Quantization-aware training of Keras 3 models by TFMOT's wrappers (Jacob et al. 2018, arXiv:1712.05877)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from edgecompress.data import Dataset, InputSpec, split_samples
from edgecompress.errors import ConversionError, DataError, InternalError, ModelError, UsageError
from edgecompress.loaded import LoadedModel, flatten_layers
from edgecompress.passes.base import LayerPlan, LayerProof, PassContext, PassResult
from edgecompress.schemes import Granularity, QuantizationScheme
from edgecompress.techniques import Qat
from edgecompress.tfmot.folding import fold
from edgecompress.tfmot.lowering import Lowered, lower
from edgecompress.tfmot.patterns import cluster_numbers
from edgecompress.tfmot.quantized_graph import QuantizedGraph, build_quantized, trains_quantized
from edgecompress.tfmot.scales import assign_scales, measure_ranges, observe_cells, raise_floors, run_lowered
from edgecompress.tfmot.training import fine_tune

_RANGE_SAMPLES = 256
_PROOF_SAMPLES = 4
_TOLERANCE = 1e-3  # of the largest output: the order of sums is another
_TOLERANCE_16_BIT = 0.05  # for a model that computes in float16 or bfloat16, which the lowered graph does not


def plan_qat(model: Any, spec: Qat, fixed: Sequence[InputSpec]) -> tuple[LayerPlan, ...]:
    """Says of each layer whether it can be trained with quantization.

    Args:
        model: A Keras 3 model.
        spec: What to leave out.
        fixed: Its inputs with every dimension but the batch known.

    Raises:
        UsageError: An `exclude` pattern names no layer.
    """
    lowered = lower(model, fixed, spec.exclude)
    return _plan(lowered, fold(lowered), spec)


def _plan(lowered: Lowered, folded: Lowered, spec: Qat) -> tuple[LayerPlan, ...]:
    names = [name for name, _, _ in lowered.layers]
    for pattern in spec.exclude:
        if not any(re.match(pattern, name) for name in names):
            raise UsageError(
                f"exclude {pattern!r} matches no layer", received=", ".join(names[:8]), fix="see `edgecompress plan`"
            )
    refused = {refusal.layer: refusal for refusal in lowered.refusals}
    written = {node.layer for node in lowered.nodes}
    operations: dict[str, list[str]] = {}
    for node in folded.nodes:
        operations.setdefault(node.layer, []).append(node.kind)
    plans = []
    for name, kind, excluded in lowered.layers:
        facts: dict[str, Any] = {"applies": True, "detail": f"quantized as {', '.join(operations.get(name, ()))}"}
        if name not in operations:
            folds = name in written
            facts = {"applies": folds, "detail": "folded into the layer before" if folds else "nothing in inference"}
        if excluded:
            facts = {"applies": False, "detail": "excluded: stays in float"}
        if name in refused:
            facts = {"applies": False, "refused": True, "detail": refused[name].reason, "fix": refused[name].fix}
        plans.append(LayerPlan(layer=name, kind=kind, technique="qat", **facts))
    return tuple(plans)


def train_quantized(
    source: LoadedModel, spec: Qat, *, fixed: Sequence[InputSpec], scheme: QuantizationScheme, context: PassContext,
    recurrent: Granularity = Granularity.PER_CHANNEL,
) -> tuple[LoadedModel, PassResult]:  # fmt: skip
    """Trains a model with the rounding of a scheme simulated.

    Args:
        source: A Keras 3 model; it is not changed.
        spec: What to leave out and what to keep.
        fixed: Its inputs with every dimension but the batch known.
        scheme: `int8`, or one whose rounding of weights (and 16-bit activations) is simulated.
        context: Training samples and settings, and who teaches.
        recurrent: Of the kernels of recurrent layers.

    Returns:
        A tf_keras model with the names of the source. For `int8` its graph holds fake-quantization operations, from
        which the converter takes all scales, and its recurrent layers know their `ranges`. For other schemes it is a
        float model with the trained weights.

    Raises:
        ConversionError: A layer cannot be quantized and was not excluded.
        DataError: There are no training samples, or they do not fit.
        UsageError: The scheme rounds nothing, or training failed.
    """
    if context.data is None:
        raise DataError("quantization-aware training needs training samples", fix="pass --train data.npz with labels")
    if not trains_quantized(scheme):
        raise UsageError(
            f"{scheme} rounds nothing that training could get used to", expected="int8, int16x8, dynamic, int4_weights",
            fix="leave --qat out, or choose another --scheme",
        )  # fmt: skip
    lowered = lower(source.model, fixed, spec.exclude)
    for one in lowered.refusals:
        raise ConversionError(f"{one.kind} cannot be trained quantized: {one.reason}", where=one.layer, fix=one.fix)
    _prove(source, lowered, fixed, context.data)
    if spec.preserve_clusters:
        for node in lowered.nodes:
            node.clusters = cluster_numbers(node.weights["kernel"]) if "kernel" in node.weights else None
    folded = fold(lowered)
    plan = _plan(lowered, folded, spec)
    graph = _build(folded, spec, fixed, scheme, context, recurrent)
    graph.settle()
    context = replace(context, identity=str(scheme)).of_pass(spec, source.model)
    trained = fine_tune(graph.model, context, spec, source=source.model)
    graph.settle()
    model = graph.model if scheme is QuantizationScheme.INT8 else graph.plain
    result = PassResult(kind="qat", plan=plan, proof=_proof(graph), trained=trained)
    return replace(source, model=model, framework="tf_keras", inputs=tuple(fixed)), result


def _samples(data: Dataset, fixed: Sequence[InputSpec], count: int, seed: int) -> list[Any]:
    chosen, _ = split_samples(data, calibration=count, held_out=1, seed=seed)
    return [chosen.inputs[spec.name] for spec in fixed]


def _build(
    lowered: Lowered, spec: Qat, fixed: Sequence[InputSpec], scheme: QuantizationScheme, context: PassContext,
    recurrent: Granularity,
) -> QuantizedGraph:  # fmt: skip
    assert context.data is not None  # noqa: S101 (looked at by the caller)
    scales = assign_scales(lowered)
    samples = _samples(context.data, fixed, _RANGE_SAMPLES, context.seed)
    observe_cells(lowered, samples)
    ranges = measure_ranges(lowered, scales, samples)
    if raise_floors(scales, ranges):
        observe_cells(lowered, samples)
        ranges = measure_ranges(lowered, scales, samples)
    return build_quantized(lowered, scales, ranges, fixed, scheme, spec, recurrent)


def _prove(source: LoadedModel, lowered: Lowered, fixed: Sequence[InputSpec], data: Dataset) -> None:
    """Compares the lowered graph with the model on real samples: a rule that computes something else is found here."""
    inputs = _samples(data, fixed, _PROOF_SAMPLES, 0)
    narrow = any("16" in str(getattr(layer, "compute_dtype", "")) for layer in flatten_layers(source.model))
    wanted = source.predict(dict(zip((spec.name for spec in fixed), inputs, strict=True)), fixed=fixed)
    for name, found in zip(source.outputs, run_lowered(lowered, inputs), strict=True):
        if not np.isfinite(wanted[name]).all():
            raise ModelError("the model answers NaN or infinity", where=name, fix="check its weights and the samples")
        size = max(float(np.abs(wanted[name]).max()), 1e-6)
        error = float(np.abs(found.reshape(wanted[name].shape) - wanted[name]).max()) / size
        if not error <= (_TOLERANCE_16_BIT if narrow else _TOLERANCE):
            raise InternalError(
                f"output {name!r} of the quantizable graph differs from the model by {error:.2g} of its size",
                where=source.name, fix="convert without --qat, and please report it with the model's architecture",
            )  # fmt: skip


def _proof(graph: QuantizedGraph) -> tuple[LayerProof, ...]:
    """Counts in the integers that the file will hold."""
    proofs = []
    for kernel in graph.kernels:
        bits = kernel.quantizer.num_bits
        step = np.asarray(kernel.ranges["max_var"]) / (2 ** (bits - 1) - 1)
        rounded = np.asarray(kernel.quantizer(kernel.variable, False, weights=kernel.ranges))
        integers = np.rint(rounded / step).astype(np.int64)
        channels = integers.reshape(-1, integers.shape[-1]).T if np.ndim(step) else [integers]
        proofs.append(LayerProof(
            layer=kernel.layer_name, weights=integers.size, sparsity=float(np.mean(integers == 0)),
            distinct=max(len(np.unique(channel)) for channel in channels), wanted=f"{bits}-bit integers",
        ))  # fmt: skip
    return tuple(proofs)
