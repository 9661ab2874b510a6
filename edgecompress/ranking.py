"""What low-rank decomposition would keep, save and cost in each layer of a model, before anything is changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from edgecompress.data import Dataset, apply_shapes, fix_shapes, load_data, split_samples
from edgecompress.models import load_model
from edgecompress.passes.base import LayerRank, PassContext, Progress
from edgecompress.passes.low_rank import analyse
from edgecompress.planning import plan_passes, refuse_unsampled, shapes_by_name
from edgecompress.profiles import Kernels, Profile, find_profile
from edgecompress.recipes import CALIBRATION_SAMPLES
from edgecompress.scheme_choice import may_quantize
from edgecompress.techniques import LowRank
from edgecompress.token_ids import refuse_unknown_ids


class RankReport(BaseModel):
    """What each layer would cost and keep at several ranks, and which rank would be chosen.

    Attributes:
        model: The model's name.
        profile: The device whose kernels ranks should suit, or None.
        technique: How ranks are chosen.
        multiple: Ranks are multiples of this.
        data: Where the samples come from, or None: then layers are judged by their weights alone.
        samples: How many samples showed the activations.
        layers: Every layer that has weights, those that are left alone among them.
        params_before: Weights of the model as it is.
        params_after: Those of the model with the chosen ranks.
        macs_before: Multiply-accumulates, for one sample, of the layers that can be factorized, as they are; None where
            not known.
        macs_after: Those with the chosen ranks.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    schema_name: Literal["edgecompress.ranks/1"] = Field("edgecompress.ranks/1", alias="schema")
    model: str
    profile: str | None
    technique: LowRank
    multiple: int
    data: str | None
    samples: int
    layers: tuple[LayerRank, ...]
    params_before: int
    params_after: int
    macs_before: int | None
    macs_after: int | None


def ranks(  # noqa: PLR0913 (each is one option of the command line)
    model: object,
    data: object = None,
    *,
    technique: LowRank | None = None,
    profile: str | Path | Profile | None = None,
    input_shape: Mapping[str, Sequence[int]] | Sequence[int] | None = None,
    input_range: tuple[float, float] | None = None,
    custom_objects: Mapping[str, Any] | None = None,
    unsafe: bool = False,
    samples: int = CALIBRATION_SAMPLES,
    seed: int = 0,
    progress: Progress | None = None,
) -> RankReport:
    """Says what low-rank decomposition would make of each layer of a model, which stays as it is.

    Args:
        model: A path of a Keras 3 model, or a Keras 3 model.
        data: Samples whose activations count: whatever `load_data` takes; labels are not used.
        technique: How ranks are chosen; absent: by an energy of 0.95.
        profile: The device whose kernels ranks should suit: a bundled profile's name, a TOML file, or a Profile; if it
            is absent, ranks are multiples of 8, and factors have to be quicker in float only.
        input_shape: Fixes dimensions that vary: a shape, or shapes by input name; with or without the batch.
        input_range: The range that 8-bit samples are mapped to.
        custom_objects: Custom layers and functions by name.
        unsafe: Accept Lambda layers and pickled arrays, which run code from the file.
        samples: How many of the samples are used, at most, chosen by `seed`.
        seed: Seed of every random choice.
        progress: Called with (step, done, total).

    Raises:
        EdgeCompressError: The model or the data cannot be read; a kernel holds NaN; a rank is larger than a matrix; a
            pattern matches no layer; a budget cannot be met, or was given without data.
    """
    spec = technique or LowRank()
    device = find_profile(profile)
    refuse_unsampled(spec, samples=data is not None)
    source = load_model(model, custom_objects=custom_objects, unsafe=unsafe)
    specs = apply_shapes(source.inputs, shapes_by_name(input_shape))
    plan_passes(source, (spec,), specs, device).require()
    chosen = None
    if data is not None:
        dataset = load_data(data, specs, input_range=input_range, max_samples=samples, seed=seed, unsafe=unsafe)
        chosen = _few(dataset, samples, seed)
        refuse_unknown_ids(source, chosen)
    kernels = Kernels() if device is None else device.kernels
    known = chosen is not None or all(None not in each.sample_shape for each in specs)
    context = PassContext(
        seed=seed, calibration=chosen, fixed=fix_shapes(specs, chosen) if known else None,
        multiple=kernels.rank_multiple, quantized=device is not None and may_quantize(device.quantization.schemes),
    )  # fmt: skip
    if progress is not None:
        progress("ranks", 0, 1)
    layers = analyse(source.model, spec, context)
    weights = source.model.count_params()
    saved = sum(one.params - one.chosen.params for one in layers if one.accepted and one.chosen is not None)
    before, after = _total_macs(layers)
    return RankReport(
        model=source.name,
        profile=None if device is None else device.name,
        technique=spec,
        multiple=spec.multiple or context.multiple,
        data=None if chosen is None else chosen.source,
        samples=0 if chosen is None else len(chosen),
        layers=layers,
        params_before=weights,
        params_after=weights - saved,
        macs_before=before,
        macs_after=after,
    )


def _few(dataset: Dataset, samples: int, seed: int) -> Dataset:
    if len(dataset) <= samples:
        return dataset
    return split_samples(dataset, calibration=samples, held_out=1, seed=seed)[0]


def _total_macs(layers: Sequence[LayerRank]) -> tuple[int | None, int | None]:
    """Returns the multiply-accumulates of all layers that have any, before and after; None if some are not known."""
    before = after = 0
    for one in layers:
        if one.chosen is None and not one.points:
            continue  # it cannot be factorized: no more is known of it than that it stays
        new = one.chosen.macs if one.accepted and one.chosen is not None else one.macs
        if one.macs is None or new is None:
            return None, None
        before, after = before + one.macs, after + new
    return before, after
