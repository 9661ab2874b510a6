"""Pruning: sets weights to zero, Keras 3 model in, Keras 3 model out."""

from __future__ import annotations

from typing import Any

from edgecompress.errors import UsageError
from edgecompress.functional import clone_model
from edgecompress.passes.base import LayerPlan, LayerProof, PassContext, PassResult
from edgecompress.passes.kernels import Found, Kernel, find_layers, find_layers_of, refuse_unmatched
from edgecompress.passes.proof import measure, refuse_dense, refuse_dense_blocks, refuse_irregular
from edgecompress.techniques import Prune, setting_for
from edgecompress.tfmot.prune import PruneTarget, prune

_ONE_SHOT = (
    "pruned at once and not trained again, because no training samples were given: expect some loss of accuracy "
    "above about 50 % zeros"
)
_WITHOUT_KERNEL = {
    "DepthwiseConv1D": "depthwise kernels are few weights, and pruning them costs much accuracy",
    "DepthwiseConv2D": "depthwise kernels are few weights, and pruning them costs much accuracy",
}
_MATRIX, _IMAGE_KERNEL = 2, 4  # ranks of the kernels of Dense and Conv2D


def plan_prune(model: Any, spec: Prune) -> tuple[LayerPlan, ...]:
    """Returns what pruning would do with each layer that has weights, and why it leaves others alone.

    Args:
        model: A Keras 3 model.
        spec: The pass.

    Raises:
        UsageError: A pattern of `layers` matches no layer.
    """
    refuse_unmatched(model, spec.layers, "prune.layers")
    return tuple(_plan_layer(found, spec) for found in find_layers(model))


def layers_with_zeros(model: Any, spec: Prune) -> frozenset[str]:
    """Returns the names of the layers that pruning will leave zeros in."""
    plan = plan_prune(model, spec)
    return frozenset(one.layer for one in plan if one.applies and setting_for(one.layer, spec.layers, spec.sparsity))


def apply_prune(model: Any, spec: Prune, context: PassContext) -> tuple[Any, PassResult]:
    """Prunes a copy of a Keras 3 model, trains it if there are samples, and proves the zeros in it.

    Raises:
        UsageError: A pattern matches no layer, or the criterion needs samples that there are not.
        DataError: The training samples do not fit the model.
        InternalError: A kernel has fewer zeros than were asked for.
    """
    plan = plan_prune(model, spec)
    goals = {entry.layer: setting_for(entry.layer, spec.layers, spec.sparsity) for entry in plan if entry.applies}
    copy = clone_model(model)
    if not goals:
        return copy, PassResult(kind=spec.kind, plan=plan, proof=())
    if context.data is None and (spec.criterion == "sensitivity" or spec.l1 is not None):
        what = "criterion = 'sensitivity'" if spec.criterion == "sensitivity" else "l1"
        raise UsageError(f"prune: {what} needs training samples", fix="pass --train samples.npz (arrays x and y)")
    chosen = [
        (found, kernel, goals[found.name])
        for found in find_layers_of(copy, model)
        if found.name in goals
        for kernel in found.kernels
        if _reason_against(found, kernel, spec) is None
    ]
    targets = [PruneTarget(kernel.variable, sparsity) for _, kernel, sparsity in chosen]
    trained, notes = prune(copy, spec, targets, context.of_pass(spec, model))
    if trained is None:
        notes = (_ONE_SHOT, *notes)
    proof = tuple(_prove(found.label(kernel), kernel, spec, sparsity) for found, kernel, sparsity in chosen)
    return copy, PassResult(kind=spec.kind, plan=plan, proof=proof, trained=trained, notes=notes)


def _plan_layer(found: Found, spec: Prune) -> LayerPlan:
    sparsity = setting_for(found.name, spec.layers, spec.sparsity)
    reasons = [_reason_against(found, kernel, spec) for kernel in found.kernels]
    applies = False
    if not found.kernels:
        detail = _WITHOUT_KERNEL.get(found.kind, "it has no kernel")
    elif sparsity == 0:
        applies = spec.l1 is not None
        detail = "not pruned (sparsity 0); L1 penalty while training" if applies else "left as it is: sparsity 0"
    elif None not in reasons:
        detail = str(reasons[0])
    else:
        applies = True
        detail = _describe(spec, sparsity)
        if len(found.kernels) > 1:
            pruned = [kernel.title for kernel, reason in zip(found.kernels, reasons, strict=True) if not reason]
            detail += f" in {', '.join(pruned)}"
    facts: dict[str, Any] = {"applies": applies, "detail": detail, "fix": found.fix}
    return LayerPlan(layer=found.name, kind=found.kind, technique=spec.kind, **facts)


def _describe(spec: Prune, sparsity: float) -> str:
    """Says in words what a kernel gets."""
    if spec.pattern is not None:
        zeros, group = spec.pattern.split(":")
        return f"{zeros} zero{'' if zeros == '1' else 's'} in each {group} weights"
    blocks = "" if spec.block == (1, 1) else f" in blocks of {spec.block[0]} x {spec.block[1]}"
    return f"{100 * sparsity:.4g} % zeros{blocks}"


def _reason_against(found: Found, kernel: Kernel, spec: Prune) -> str | None:
    """Returns why a kernel cannot have the structure that was asked for."""
    rank = len(kernel.shape)
    if spec.block != (1, 1) and rank != _MATRIX:
        return f"blocks need a kernel of two dimensions, this one is {kernel.shape}"
    if spec.pattern is None:
        return None
    if rank not in (_MATRIX, _IMAGE_KERNEL) or "Transpose" in found.kind:
        return f"N:M needs a kernel (inputs, outputs) or (height, width, inputs, outputs), this one is {kernel.shape}"
    group = int(spec.pattern.split(":")[1])
    if kernel.shape[-2] < group:
        return f"N:M needs groups of {group} input channels, this one has {kernel.shape[-2]}"
    return None


def _prove(label: str, kernel: Kernel, spec: Prune, sparsity: float) -> LayerProof:
    weights = kernel.values
    if sparsity == 0:
        return measure(label, weights, "L1 penalty only")
    if spec.pattern is not None:
        zeros, group = map(int, spec.pattern.split(":"))
        refuse_irregular(label, weights, zeros, group)
    elif spec.block != (1, 1):
        refuse_dense_blocks(label, weights, sparsity, spec.block)
    else:
        refuse_dense(label, weights, sparsity)
    return measure(label, weights, _describe(spec, sparsity))
