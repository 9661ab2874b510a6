"""Plans, shows and does what low-rank decomposition makes of a model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgecompress.errors import ModelError, UsageError
from edgecompress.functional import as_functional
from edgecompress.keras_macs import Call, NotCountedError, call_macs
from edgecompress.passes.base import LayerPlan, LayerRank, PassContext, PassResult, RankPoint
from edgecompress.passes.kernels import refuse_unmatched
from edgecompress.passes.low_rank.activations import observe
from edgecompress.passes.low_rank.choice import Candidate, Chosen, choose
from edgecompress.passes.low_rank.sites import Site, find_calls, find_sites
from edgecompress.passes.rewrite import rewrite
from edgecompress.techniques import LowRank, setting_for
from edgecompress.tfmot.retrain import retrain

_AUTO = ("channel", "spatial", "tucker", "svd")
_NOT_TRAINED = "decomposed and not trained again, because no training samples were given"


def plan_low_rank(model: Any, spec: LowRank) -> tuple[LayerPlan, ...]:
    """Returns which layers will be looked at, and why others are left alone; ranks are chosen when it is applied.

    Args:
        model: A Keras 3 model.
        spec: The pass.

    Raises:
        UsageError: A pattern of `layers` matches no layer.
    """
    refuse_unmatched(model, spec.layers, "low_rank.layers")
    return _plan_sites(find_sites(model), spec)


def analyse(model: Any, spec: LowRank, context: PassContext) -> tuple[LayerRank, ...]:
    """Returns what each layer that has weights would cost and keep at several ranks, and which rank is chosen.

    Args:
        model: A Keras 3 model, which stays as it is.
        spec: The pass.
        context: Its calibration samples, seed and preferred multiple count.

    Raises:
        ModelError: A weight is NaN or infinite.
        UsageError: A rank is larger than a matrix that it was given for, or a budget cannot be met.
    """
    graph = as_functional(model)
    return tuple(_describe(one, with_points=True) for one in _decide(graph, spec, context))


def apply_low_rank(model: Any, spec: LowRank, context: PassContext) -> tuple[Any, PassResult]:
    """Replaces layers of a copy of a Keras 3 model by factors, and trains it again if there are samples.

    Raises:
        ModelError: A weight is NaN or infinite.
        UsageError: A pattern matches no layer, a rank is larger than a matrix, or a budget cannot be met.
        DataError: The training samples do not fit the model.
    """
    graph = as_functional(model)
    context.say("low_rank: decompose", 0, 1)
    found = _decide(graph, spec, context)
    ranks = tuple(map(_describe, found))
    chains = {
        id(one.site.found.layer): one.candidate.kind.build(point.method, point.ranks)
        for one in found
        if one.candidate is not None and one.chosen is not None and (point := one.chosen.taken) is not None
    }
    copy = rewrite(graph, chains)
    trained, notes = None, (() if context.data is not None or not chains else (_NOT_TRAINED,))
    if chains and context.data is not None:
        trained = retrain(copy, context.of_pass(spec, graph), spec)
    plan = tuple(
        LayerPlan(layer=one.layer, kind=one.kind, technique=spec.kind, applies=one.accepted, detail=one.reason)
        for one in ranks
    )
    return copy, PassResult(kind=spec.kind, plan=plan, ranks=ranks, trained=trained, notes=notes)


@dataclass(frozen=True)
class _Decided:
    """A layer: what the plan says of it, and, if it may be written in factors, a candidate and what was chosen."""

    site: Site
    plan: LayerPlan
    candidate: Candidate | None
    chosen: Chosen | None


def _decide(graph: Any, spec: LowRank, context: PassContext) -> list[_Decided]:
    refuse_unmatched(graph, spec.layers, "low_rank.layers")
    calls = find_calls(graph, context.fixed)
    sites = find_sites(graph, calls)
    candidates: dict[str, Candidate] = {}
    plans = _plan_sites(sites, spec)
    for site, plan in zip(sites, plans, strict=True):
        if plan.refused:
            kind = UsageError if site.is_finite else ModelError
            raise kind(f"low_rank: {plan.detail}", where=f"layer {site.name!r}", fix=plan.fix)
        if plan.applies and site.kind is not None:
            multiple = spec.multiple or context.multiple
            candidates[site.name] = Candidate(site, site.kind, _methods(site, spec), multiple, context.quantized)
    data = context.calibration or context.data
    if spec.activation_aware and data is not None and candidates:
        kinds = {id(each.kind.layer): each.kind for each in candidates.values()}
        observe(graph, kinds, data, context.seed)
    chosen = choose(tuple(candidates.values()), spec, params=graph.count_params(), macs=_model_macs(calls))
    return [
        _Decided(site, plan, candidates.get(site.name), chosen.get(site.name))
        for site, plan in zip(sites, plans, strict=True)
    ]


def _model_macs(calls: Sequence[Call]) -> int | None:
    try:
        return sum(map(call_macs, calls))
    except NotCountedError:
        return None


def _plan_sites(sites: Sequence[Site], spec: LowRank) -> tuple[LayerPlan, ...]:
    plans = tuple(_plan_site(site, spec) for site in sites)
    looked_at = [site for site, plan in zip(sites, plans, strict=True) if plan.applies]
    named = [site for site in looked_at if setting_for(site.name, spec.layers, None) is not None]
    largest = max((_full_rank(site, spec) for site in looked_at), default=0)
    if spec.rank is None or named or spec.rank <= largest or not looked_at:
        return plans
    facts = {
        "applies": False, "refused": True, "fix": f"give a rank below {largest}, or a ratio or an energy",
        "detail": f"rank {spec.rank} is larger than every matrix, of rank {largest} at most",
    }  # fmt: skip
    return tuple(plan.model_copy(update=facts) if plan.applies else plan for plan in plans)


def _plan_site(site: Site, spec: LowRank) -> LayerPlan:
    named = setting_for(site.name, spec.layers, None)
    facts: dict[str, Any] = {"applies": False, "detail": site.reason}
    if not site.is_finite:
        # Wherever it is, it spoils what the layers after it are judged by.
        fix = "train it again with a lower learning rate, or restore an earlier checkpoint"
        facts |= {"detail": "its weights hold NaN or infinite values", "fix": fix, "refused": True}
    elif site.kind is not None and named == 0:
        facts["detail"] = "left as it is: rank 0"
    elif site.kind is not None and _full_rank(site, spec) == 1:
        facts["detail"] = "its matrix has rank 1 already"
    elif site.kind is not None and isinstance(named, int) and named > (full := _full_rank(site, spec)):
        fix = f"give a rank below {full}, or 0 to leave it alone"
        facts |= {"detail": f"rank {named} is larger than its matrix, of rank {full} at most", "fix": fix,
                  "refused": True}  # fmt: skip
    elif site.kind is not None:
        facts = {"applies": True, "detail": _intention(site, spec, named)}
    return LayerPlan(layer=site.name, kind=site.found.kind, technique=spec.kind, **facts)


def _intention(site: Site, spec: LowRank, named: float | None) -> str:
    shapes = " and ".join(" x ".join(map(str, kernel.shape)) for kernel in site.found.kernels)
    way, value = spec.choice if named is None else ("rank" if isinstance(named, int) else "ratio", named)
    how = way if way == "evbmf" else f"{way} {value:g}"
    return f"kernel {shapes}: factors by {how} where they save weights and MACs"


def _methods(site: Site, spec: LowRank) -> tuple[str, ...]:
    assert site.kind is not None  # noqa: S101 (only such sites are asked)
    wanted = {*_AUTO, spec.gates} if spec.conv == "auto" else {spec.conv, "svd", spec.gates}
    methods = tuple(each for each in site.kind.methods if each in wanted)
    return methods or site.kind.methods[:1]  # a convolution that the one asked for does not suit


def _full_rank(site: Site, spec: LowRank) -> int:
    assert site.kind is not None  # noqa: S101 (only such sites are asked)
    return max(max(site.kind.full_ranks(method)) for method in _methods(site, spec))


def _points(candidate: Candidate) -> tuple[RankPoint, ...]:
    """Returns some ranks of the way that would be taken, the smallest first."""
    found = [candidate.point(method, ranks) for method in candidate.methods for ranks in candidate.few(method)]
    return tuple(sorted(found, key=lambda point: (candidate.methods.index(point.method), point.params)))


def _describe(one: _Decided, *, with_points: bool = False) -> LayerRank:
    kind, candidate, chosen = one.site.kind, one.candidate, one.chosen
    facts: dict[str, Any] = {
        "chosen": None, "accepted": False, "reason": one.plan.detail, "macs": None, "points": (),
        "full_ranks": () if kind is None else kind.full_ranks(kind.methods[0]),
    }  # fmt: skip
    if candidate is not None and chosen is not None:
        point = chosen.point
        method = candidate.methods[0] if point is None else point.method
        facts = {
            "macs": candidate.macs if candidate.is_known else None,
            "full_ranks": candidate.kind.full_ranks(method),
            "points": _points(candidate) if with_points else (),
            "chosen": point,
            "accepted": chosen.taken is not None,
            "reason": _in_words(candidate, point) if chosen.objection is None else _left(point, chosen.objection),
        }
    return LayerRank(
        layer=one.site.name,
        kind=one.site.found.kind,
        shapes=tuple(kernel.shape for kernel in one.site.found.kernels),
        params=sum(math.prod(weight.shape) for weight in one.site.found.layer.weights),
        **facts,
    )


def _in_words(candidate: Candidate, point: RankPoint | None) -> str:
    if point is None:
        return "left as it is"
    full = candidate.kind.full_ranks(point.method)
    parts = [
        "whole" if rank == limit else f"rank {rank} of {limit}" for rank, limit in zip(point.ranks, full, strict=True)
    ]
    params, macs = candidate.kind.params, candidate.macs
    return (
        f"{point.method}, {' and '.join(parts)}: {point.params:,} of {params:,} weights, "
        f"{candidate.macs_of(point):,} of {macs:,} MACs"
    )


def _left(point: RankPoint | None, objection: str) -> str:
    if point is None:
        return objection
    return f"{point.method} at rank {' and '.join(map(str, point.ranks))} would take {objection}"
