"""The pre-flight plan: layer by layer, what each technique will do, what it leaves alone and why, before any epoch."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from edgecompress.data import InputSpec, apply_shapes, fix_shapes
from edgecompress.errors import DataError, ModelError, UsageError
from edgecompress.loaded import LoadedModel
from edgecompress.models import load_model
from edgecompress.passes import registry
from edgecompress.passes.base import LayerPlan
from edgecompress.passes.prune import layers_with_zeros
from edgecompress.profiles import Profile, find_profile
from edgecompress.recipes import Recipe
from edgecompress.scheme_choice import refuse_scheme, trained_scheme
from edgecompress.schemes import QuantizationScheme
from edgecompress.techniques import Cluster, Distill, Fuse, LowRank, Prune, Qat, Technique, Training, Trains
from edgecompress.tfmot.qat import plan_qat

_REBUILDS = ("distill", "low_rank", "fuse")  # passes after which the model has other layers


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class PassPlan(_Part):
    """What one pass will do with each layer."""

    technique: Technique
    layers: tuple[LayerPlan, ...]

    @property
    def refused(self) -> LayerPlan | None:
        """The first layer that would end the run with an error, or None."""
        return next((layer for layer in self.layers if layer.refused), None)


class Plan(_Part):
    """What a recipe's passes will do with a model.

    Attributes:
        model: The model's name.
        profile: The device that the plan was made for, or None.
        scheme: The number types that qat trains for; None: nothing is trained for some.
        asked: Whether the passes were asked for; otherwise each is shown alone, with its defaults.
        passes: The plan of each pass, in their order.
        notes: What a reader of the plan must know about it.
    """

    schema_name: Literal["edgecompress.plan/1"] = Field("edgecompress.plan/1", alias="schema")
    model: str
    profile: str | None
    scheme: QuantizationScheme | None = None
    asked: bool
    passes: tuple[PassPlan, ...]
    notes: tuple[str, ...] = ()

    @property
    def refused(self) -> LayerPlan | None:
        """The first layer that would end the run with an error, or None."""
        return next((one.refused for one in self.passes if one.refused is not None), None)

    def require(self) -> Plan:
        """Returns the plan if the run can go on.

        Raises:
            ModelError: A layer would end it; names the layer and what to do.
        """
        layer = self.refused
        if layer is not None:
            raise ModelError(f"{layer.technique}: {layer.detail}", where=f"layer {layer.layer!r}", fix=layer.fix)
        return self


def plan(
    model: object,
    recipe: Recipe | None = None,
    profile: str | Path | Profile | None = None,
    *,
    input_shape: Mapping[str, Sequence[int]] | Sequence[int] | None = None,
    custom_objects: Mapping[str, Any] | None = None,
    unsafe: bool = False,
) -> Plan:
    """Says what the passes of a recipe will do with each layer of a model, without training anything.

    Args:
        model: A path of a Keras 3 model, or a Keras 3 model.
        recipe: Its passes are planned; absent or without passes: each technique on its own, with its defaults.
        profile: The device, where it matters: a bundled profile's name, a TOML file, or a Profile; absent with qat:
            that of this machine, as for `convert`.
        input_shape: Fixes dimensions that vary, which qat must know.
        custom_objects: Custom layers and functions by name.
        unsafe: Accept Lambda layers, which run code from the file.

    Raises:
        EdgeCompressError: The model cannot be read, or is none of Keras 3; the device does not take what is asked for.
    """
    trains = recipe is not None and recipe.qat is not None
    if profile is None and trains:
        profile = "host"
    device = find_profile(profile)
    scheme = None
    if recipe is not None and device is not None:
        refuse_scheme(recipe, device, samples=True)
        scheme = trained_scheme(recipe, device) if trains else None
    source = load_model(model, custom_objects=custom_objects, unsafe=unsafe)
    specs = apply_shapes(source.inputs, shapes_by_name(input_shape))
    asked = recipe.passes if recipe is not None else ()
    techniques: tuple[Technique, ...] = asked or (LowRank(), Fuse(), Prune(), Cluster(), Qat())
    if any(isinstance(one, Qat) for one in techniques):
        specs = fix_shapes(specs, None)
    return plan_passes(source, techniques, specs, device, scheme=scheme, asked=bool(asked))


def plan_passes(
    source: LoadedModel,
    techniques: Sequence[Technique],
    fixed: Sequence[InputSpec],
    device: Profile | None = None,
    *,
    scheme: QuantizationScheme | None = None,
    asked: bool = True,
) -> Plan:
    """Plans passes for a model that is loaded; see `plan`.

    Args:
        source: The model.
        techniques: The passes.
        fixed: The model's inputs; with every dimension known if qat is among the passes.
        device: What the result is for, or None.
        scheme: What qat trains for, or None.
        asked: Whether the passes were asked for.

    Raises:
        ModelError: The model is none of Keras 3.
    """
    if source.framework != "keras":
        kind = {"tf_keras": "a model of Keras 2", "saved_model": "a SavedModel"}[source.framework]
        raise ModelError(
            "distill, low_rank, fuse, prune, cluster and qat take models of Keras 3", where=source.name, received=kind,
            fix="build the model with Keras 3, load its weights, and give what model.save('model.keras') writes",
        )  # fmt: skip
    return Plan(
        model=source.name,
        profile=None if device is None else device.name,
        scheme=scheme,
        asked=asked,
        passes=tuple(_plan_each(source.model, techniques, fixed, device, asked=asked)),
        notes=tuple(_on_rebuilding(techniques)) if asked else (),
    )


def shapes_by_name(shape: Mapping[str, Sequence[int]] | Sequence[int] | None) -> dict[str, Sequence[int]]:
    """Returns shapes by input name; a shape without a name is that of the only input, called ""."""
    if shape is None:
        return {}
    return dict(shape) if isinstance(shape, Mapping) else {"": tuple(shape)}


def refuse_unready(recipe: Recipe, *, train: object, data: object, resume: bool) -> None:
    """Refuses passes without what they need, and what only passes need where there are none.

    Raises:
        UsageError: Training was asked for, but no pass trains.
        DataError: Training was asked for, but there is nothing to train on; a budget is to be shared, but there are no
            samples to judge the layers by.
    """
    settings = recipe.training != Training()
    for one in recipe.passes:
        if isinstance(one, LowRank):
            refuse_unsampled(one, samples=train is not None or data is not None)
    if all(isinstance(one, Fuse) for one in recipe.passes):
        given = {"--train": train is not None, "--resume": resume, "the settings of the training": settings}
        name = next((name for name, is_given in given.items() if is_given), None)
        if name is not None:
            raise UsageError(
                f"no pass trains the model, so {name} would have no effect",
                fix="add --distill, --low-rank, --prune, --cluster or --qat (or [[passes]]), or leave it out",
            )
    elif train is None:
        fix = "pass --train samples.npz, with labels as y"
        if recipe.qat is not None:
            raise DataError("qat trains the model, which needs training samples", fix=fix)
        if any(isinstance(one, Distill) for one in recipe.passes):
            raise DataError("distill trains the model, which needs training samples", fix=fix)
        taught = next((one.kind for one in recipe.passes if isinstance(one, Trains) and one.distill), None)
        if taught is not None:
            raise DataError(f"{taught}: distill trains the model, which needs training samples", fix=fix)
        if settings or resume or any(getattr(one, "epochs", None) is not None for one in recipe.passes):
            what = "--resume" if resume else "how to train (epochs or the like)"
            raise DataError(f"{what} was given, but nothing to train on", fix=fix)


def refuse_unsampled(spec: LowRank, *, samples: bool) -> None:
    """Refuses a budget without samples: it is shared over the layers by what each does to their outputs.

    Raises:
        DataError: There are none.
    """
    choice, _ = spec.choice
    if choice.endswith("_budget") and not samples:
        raise DataError(
            f"low_rank: {choice} is shared over the layers by the error of their outputs, which needs samples",
            fix="pass --train or --data, or choose ranks by energy, ratio or evbmf",
        )


def _on_rebuilding(techniques: Sequence[Technique]) -> Iterator[str]:
    kinds = [one.kind for one in techniques]
    first = next((kind for kind in kinds[:-1] if kind in _REBUILDS), None)
    if first is not None:
        after = ", ".join(kinds[kinds.index(first) + 1 :])
        yield f"{first} makes new layers: the plan of {after} is for the layers as they are before it."


def _plan_each(
    model: Any, techniques: Sequence[Technique], fixed: Sequence[InputSpec], device: Profile | None, *, asked: bool
) -> Iterator[PassPlan]:
    sparse: set[str] = set()  # layers that the passes planned so far leave zeros in
    for one in techniques:
        yield PassPlan(technique=one, layers=_plan_one(model, one, fixed, sparse, device))
        if asked and isinstance(one, Prune):
            sparse |= layers_with_zeros(model, one)


def _plan_one(
    model: Any, technique: Technique, fixed: Sequence[InputSpec], sparse: Collection[str], device: Profile | None
) -> tuple[LayerPlan, ...]:
    if isinstance(technique, Qat):
        return plan_qat(model, technique, fixed)
    plan_pass, _ = registry()[technique.kind]
    if isinstance(technique, Cluster):
        return plan_pass(model, technique, sparse=sparse)
    if isinstance(technique, Fuse) and device is not None:
        return plan_pass(model, technique, prefers=device.kernels.prefers)
    return plan_pass(model, technique)
