"""The compression passes: each takes a Keras 3 model and returns a new one, with what it did and the proof of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from edgecompress.errors import UsageError
from edgecompress.passes.base import LayerPlan, PassContext, PassResult

Apply = Callable[[Any, Any, PassContext], tuple[Any, PassResult]]
Plan = Callable[..., tuple[LayerPlan, ...]]


def registry() -> dict[str, tuple[Plan, Apply]]:
    """Returns what plans and what applies each kind of pass that makes a Keras 3 model of a Keras 3 model.

    `qat` is not among them: it ends in a file, so the pipeline does it.
    """
    from edgecompress.passes.cluster import apply_cluster, plan_cluster
    from edgecompress.passes.distill import apply_distill, plan_distill
    from edgecompress.passes.fuse import apply_fuse, plan_fuse
    from edgecompress.passes.low_rank import apply_low_rank, plan_low_rank
    from edgecompress.passes.prune import apply_prune, plan_prune

    return {
        "cluster": (plan_cluster, apply_cluster),
        "distill": (plan_distill, apply_distill),
        "fuse": (plan_fuse, apply_fuse),
        "low_rank": (plan_low_rank, apply_low_rank),
        "prune": (plan_prune, apply_prune),
    }


def apply_passes(model: Any, passes: Sequence[Any], context: PassContext) -> tuple[Any, tuple[PassResult, ...]]:
    """Applies passes in their order; the model itself is left as it is.

    Args:
        model: A Keras 3 model.
        passes: Configurations of `edgecompress.techniques`, without `qat`.
        context: For all of them; each pass gets a folder of its own for its checkpoints.

    Returns:
        The compressed model, and what each pass did.

    Raises:
        UsageError: A pass of a kind that is not applied here; or see the passes.
    """
    known, results = registry(), []
    for number, spec in enumerate(passes):
        if spec.kind not in known:
            raise UsageError(f"the pass {spec.kind!r} does not end in a Keras model", expected=", ".join(known))
        folder = context.checkpoints and context.checkpoints / f"{number + 1}-{spec.kind}"
        model, result = known[spec.kind][1](model, spec, replace(context, checkpoints=folder))
        results.append(_with_notes(result, [earlier.kind for earlier in passes[:number]]))
    return model, tuple(results)


def _with_notes(result: PassResult, earlier: Sequence[str]) -> PassResult:
    notes = []
    if result.kind == "prune" and "cluster" in earlier:
        notes.append(
            "pruned after clustering: the shared values change in training; cluster after pruning to keep both"
        )
    if result.kind == "distill" and {"prune", "cluster"} & set(earlier):
        notes.append("distilled after pruning or clustering: zeros and shared values are not kept; distill first")
    if result.kind == "low_rank" and {"prune", "cluster"} & set(earlier) and any(one.accepted for one in result.ranks):
        notes.append("factorized after pruning or clustering: factors have none of the zeros and values; do it first")
    if result.fusions and {"prune", "cluster"} & set(earlier):
        notes.append(
            "fused after pruning or clustering: products of kernels have few zeros, and other values; fuse first"
        )
    return result.model_copy(update={"notes": (*result.notes, *notes)}) if notes else result
