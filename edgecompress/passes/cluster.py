"""Clustering: lets the weights of a kernel share few values, Keras 3 model in, Keras 3 model out."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Any

import numpy as np

from edgecompress.data import Array
from edgecompress.errors import InternalError, UsageError
from edgecompress.functional import clone_model
from edgecompress.passes.base import LayerPlan, LayerProof, PassContext, PassResult
from edgecompress.passes.kernels import Found, find_layers, find_layers_of, refuse_unmatched
from edgecompress.passes.proof import measure, refuse_too_many_values
from edgecompress.techniques import Cluster, setting_for
from edgecompress.tfmot.cluster import cluster
from edgecompress.tfmot.cluster_wrapper import ClusterTarget

_ONE_SHOT = "clustered at once and not trained again, because no training samples were given"
_DEPTHWISE = "depthwise kernels are few weights, and clustering them costs much accuracy"
_LEAST_WITH_ZERO = 3  # TFMOT: zero, and a value of each sign
_PER_CHANNEL = frozenset({"Conv2D"})


def plan_cluster(model: Any, spec: Cluster, *, sparse: Collection[str] = ()) -> tuple[LayerPlan, ...]:
    """Returns what clustering would do with each layer that has weights, and why it leaves others alone.

    Args:
        model: A Keras 3 model.
        spec: The pass.
        sparse: Names of the layers that an earlier pass will leave zeros in, besides those that have some.

    Raises:
        UsageError: A pattern of `layers` matches no layer.
    """
    refuse_unmatched(model, spec.layers, "cluster.layers")
    return tuple(_plan_layer(found, spec, sparse=found.name in sparse) for found in find_layers(model))


def apply_cluster(model: Any, spec: Cluster, context: PassContext) -> tuple[Any, PassResult]:
    """Clusters a copy of a Keras 3 model, trains it if there are samples, and proves the distinct values in it.

    Raises:
        UsageError: A pattern matches no layer, or a kernel has fewer weights than clusters were asked for.
        DataError: The training samples do not fit the model.
        InternalError: A kernel has more distinct values than were asked for, or a zero was lost.
    """
    plan = plan_cluster(model, spec)
    for entry in plan:
        if entry.refused:
            raise UsageError(f"cluster: {entry.detail}", where=f"layer {entry.layer!r}", fix=entry.fix)
    applies = {entry.layer for entry in plan if entry.applies}
    copy = clone_model(model)
    if not applies:
        return copy, PassResult(kind=spec.kind, plan=plan, proof=())
    chosen = [found for found in find_layers_of(copy, model) if found.name in applies]
    targets = [_target(found, spec) for found in chosen]
    before = [[kernel.values.copy() for kernel in found.kernels] for found in chosen]
    trained = cluster(copy, spec, targets, context.of_pass(spec, model))
    proof = tuple(
        _prove(found.label(kernel), kernel.values, old, target)
        for found, target, olds in zip(chosen, targets, before, strict=True)
        for kernel, old in zip(found.kernels, olds, strict=True)
    )
    notes = (_ONE_SHOT,) if trained is None else ()
    return copy, PassResult(kind=spec.kind, plan=plan, proof=proof, trained=trained, notes=notes)


def _plan_layer(found: Found, spec: Cluster, *, sparse: bool) -> LayerPlan:
    clusters = setting_for(found.name, spec.layers, spec.clusters)
    facts: dict[str, Any] = {"applies": False, "fix": found.fix}
    if not found.kernels:
        facts["detail"] = _DEPTHWISE if "Depthwise" in found.kind else "it has no kernel"
    elif clusters == 0:
        facts["detail"] = "left as it is: 0 clusters"
    elif refusal := _refusal(found, spec, clusters, sparse=sparse):
        facts |= {"detail": refusal[0], "fix": refusal[1], "refused": True}
    else:
        facts = {"applies": True, "detail": _describe(_target(found, spec, sparse=sparse))}
    return LayerPlan(layer=found.name, kind=found.kind, technique=spec.kind, **facts)


def _refusal(found: Found, spec: Cluster, clusters: int, *, sparse: bool) -> tuple[str, str] | None:
    """Returns why a layer cannot have so many clusters, and what to do."""
    per_channel = _is_per_channel(found, spec)
    for kernel in found.kernels:
        size = kernel.values[..., 0].size if per_channel else kernel.values.size
        if clusters > size:
            where = "each channel of its kernel has" if per_channel else "its kernel has"
            weights = "1 weight" if size == 1 else f"{size} weights"
            fix = f"set fewer for it, or leave it alone: layers = {{{_key(found.name)} = 0}}"
            return f"{clusters} clusters, but {where} {weights}", fix
    if clusters < _LEAST_WITH_ZERO and _target(found, spec, sparse=sparse).preserve_sparsity:
        what = f"{clusters} clusters are too few to keep its zeros: one of them is zero"
        return what, f"give {_LEAST_WITH_ZERO} or more, or preserve_sparsity = false"
    return None


def _key(name: str) -> str:
    """Writes a layer's name as the key of a TOML table of regular expressions."""
    return name if re.fullmatch(r"[\w-]+", name, re.ASCII) else json.dumps(re.escape(name))


def _is_per_channel(found: Found, spec: Cluster) -> bool:
    return spec.per_channel and found.kind in _PER_CHANNEL


def _target(found: Found, spec: Cluster, *, sparse: bool = False) -> ClusterTarget:
    per_channel = _is_per_channel(found, spec)
    zeros = sparse or any((kernel.values == 0).any() for kernel in found.kernels)
    empty = any(_has_empty_channel(kernel.values) for kernel in found.kernels)
    preserve = spec.preserve_sparsity and bool(zeros)
    return ClusterTarget(
        layer=found.layer,
        kernels=found.kernels,
        clusters=setting_for(found.name, spec.layers, spec.clusters),
        per_channel=per_channel and not (preserve and empty),  # TFMOT cannot divide a channel of zeros
        preserve_sparsity=preserve,
    )


def _has_empty_channel(values: Array) -> bool:
    return not np.moveaxis(values, -1, 0).reshape(values.shape[-1], -1).any(axis=1).all()


def _describe(target: ClusterTarget) -> str:
    """Says in words what a kernel gets."""
    each = " in each output channel" if target.per_channel else ""
    zero = ", one of them zero, and zeros kept" if target.preserve_sparsity else ""
    return f"{target.clusters} distinct values{each}{zero}"


def _prove(label: str, weights: Array, before: Array, target: ClusterTarget) -> LayerProof:
    axis = -1 if target.per_channel else None
    refuse_too_many_values(label, weights, target.clusters, axis)
    if target.preserve_sparsity and (lost := int(np.count_nonzero(weights[before == 0]))):
        raise InternalError("clustering lost zeros", where=label, expected="0", received=lost)
    return measure(label, weights, _describe(target), axis)
