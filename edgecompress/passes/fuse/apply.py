"""The fusion pass: finds the layers that can be one, puts the merged ones in their place, and proves the answers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from edgecompress.functional import as_functional, clone_model
from edgecompress.passes.base import Fusion, LayerPlan, PassContext, PassResult
from edgecompress.passes.fuse.batch_norm import merge_batch_norm
from edgecompress.passes.fuse.embedding import merge_embedding
from edgecompress.passes.fuse.linear import merge_linear
from edgecompress.passes.fuse.merge import Merge
from edgecompress.passes.fuse.proof import prove_fusion, prove_model
from edgecompress.passes.fuse.stages import Link, Shape, Stage, find_stages
from edgecompress.passes.rewrite import rewrite
from edgecompress.techniques import Fuse

Preference = Literal["size", "speed"]
Rule = Callable[[Stage, Stage], Merge | str | None]

_ALONE = "does not follow a single layer, whose kernel could take it up"
_FROZEN = "batch normalization is part of kernels and biases now: later training goes on without it"


def plan_fuse(model: Any, spec: Fuse, *, prefers: Preference = "size") -> tuple[LayerPlan, ...]:
    """Returns which layers would be merged, and why others that look like it are left alone.

    Args:
        model: A Keras 3 model.
        spec: The pass.
        prefers: What `embedding = "auto"` saves.

    Raises:
        ModelError: The model is no graph of layers.
    """
    return _Fuser(as_functional(model), spec, prefers).plan()


def apply_fuse(model: Any, spec: Fuse, context: PassContext) -> tuple[Any, PassResult]:
    """Merges layers in a copy of a Keras 3 model, and proves that it answers as before.

    Raises:
        ModelError: The model is no graph of layers, or a layer cannot be made again from its configuration.
        InternalError: The merged layers answer otherwise.
    """
    graph = as_functional(model)
    fuser = _Fuser(graph, spec, context.prefers)
    fusions = tuple(step.fusion for step in fuser.steps)
    for number, step in enumerate(fuser.steps):
        context.say("fuse", number, len(fusions))
        prove_fusion(step.fusion, step.before, step.after, step.shape)
    notes = (_FROZEN,) if any(fusion.how == "batch_norm" for fusion in fusions) else ()
    if fusions:
        fused = rewrite(graph, fuser.substitutes())
        prove_model(graph, fused, fusions)
        context.say("fuse", len(fusions), len(fusions))
    else:
        fused = clone_model(graph)
    return fused, PassResult(kind=spec.kind, plan=fuser.plan(), fusions=fusions, notes=notes)


@dataclass(frozen=True)
class _Step:
    """Two layers that became one, or others."""

    fusion: Fusion
    before: tuple[Any, ...]
    after: tuple[Any, ...]
    shape: Shape


@dataclass
class _Fuser:
    """Goes through the links of a model until nothing more can be merged.

    Attributes:
        steps: What was merged, in that order.
    """

    model: Any
    spec: Fuse
    prefers: Preference
    steps: list[_Step] = field(default_factory=list)
    _done: dict[int, str] = field(default_factory=dict)
    _left: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._stages, self._links = find_stages(self.model)
        self._names = {key: (stage.name, stage.kind) for key, stage in self._stages.items()}
        for how, rule in self._rules():
            while any([self._try(link, how, rule) for link in self._links]):  # noqa: C419 (each link has its turn)
                pass

    def _rules(self) -> list[tuple[str, Rule]]:
        rules: list[tuple[str, Rule]] = []
        if self.spec.batch_norm:
            rules.append(("batch_norm", merge_batch_norm))
        if self.spec.linear:
            rules.append(("linear", merge_linear))
        if self.spec.embedding != "off":
            saves = self.prefers if self.spec.embedding == "auto" else self.spec.embedding
            rules.append(("embedding", functools.partial(merge_embedding, saves=saves)))
        return rules

    def _try(self, link: Link, how: str, rule: Rule) -> bool:
        """Merges the two stages of a link if a rule says so, else takes note of the reason."""
        first, second = self._stages[link.first], self._stages[link.second]
        outcome = None if first is second else rule(first, second)
        if isinstance(outcome, Merge) and link.obstacle is None:
            self._merge(first, second, how, outcome)
            return True
        if outcome is not None:
            subject = link.second if how == "batch_norm" else link.first
            self._left[subject] = outcome if isinstance(outcome, str) else str(link.obstacle)
        return False

    def _merge(self, first: Stage, second: Stage, how: str, merge: Merge) -> None:
        before, shape = (first.layer, second.layer), first.input_shape
        after = tuple(layer for layer in (merge.first, merge.second) if layer is not None)
        fusion = Fusion(
            layers=(first.name, second.name), how=how,
            into=" + ".join(f"{first.prefix}{layer.name}" for layer in after),
            params_before=sum(layer.count_params() for layer in before),
            params_after=sum(layer.count_params() for layer in after), detail=merge.detail,
        )  # fmt: skip
        self.steps.append(_Step(fusion, before, after, shape))
        for stage, layer in ((first, merge.first), (second, merge.second)):
            text = f"{how}: {merge.detail}" if layer is not None else f"{how}: merged into {fusion.into!r}"
            self._done |= {id(member): text for member in stage.members}
            stage.layer = stage.layer if layer is None else layer
        if len(after) == 1:
            kept = first if merge.second is None else second
            kept.members, kept.input_shape, kept.is_output = first.members + second.members, shape, second.is_output
            self._stages |= {id(member): kept for member in kept.members}

    def substitutes(self) -> dict[int, Sequence[Any]]:
        """Returns what `rewrite` takes."""
        changed = [stage for stage in self._stages.values() if stage.changed]
        gone: dict[int, Sequence[Any]] = {id(member): () for stage in changed for member in stage.members}
        return gone | {id(stage.place): (stage.layer,) for stage in changed}

    def plan(self) -> tuple[LayerPlan, ...]:
        """Returns what is merged and what is left alone, in the model's order."""
        if self.spec.batch_norm:
            norms = [key for key, (_, kind) in self._names.items() if kind == "BatchNormalization"]
            self._left = dict.fromkeys(norms, _ALONE) | self._left
        return tuple(
            LayerPlan(
                layer=name, kind=kind, technique=self.spec.kind, applies=key in self._done,
                detail=self._done.get(key) or self._left[key],
            )
            for key, (name, kind) in self._names.items()
            if key in self._done or key in self._left
        )  # fmt: skip
