"""Divides the data a run is given into the uses it has: calibration, verification, training. No two of them meet."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from edgecompress.data import Dataset, InputSpec, fix_shapes, hash_samples, load_data, split_samples
from edgecompress.errors import DataError
from edgecompress.recipes import Recipe
from edgecompress.report.model import DataUsed, TrainingData
from edgecompress.techniques import Distill, Fuse, LowRank
from edgecompress.verify.verification import SampleKind, random_inputs

_RANDOM_SAMPLES = 8
_FEW_SAMPLES = 20  # fewer than these to train on are worth a warning
_HELD_OUT_SHARE = 5  # one in five, at most, where the samples are to be trained on


@dataclass(frozen=True)
class Samples:
    """The uses of the data. Without data there are no calibration samples and those held out are random.

    Attributes:
        fixed: The model's inputs with every dimension fixed.
        calibration: What sets the ranges of activations, and shows low_rank the activations; or None.
        held_out: What the result is verified on.
        training: What the passes train on, or None.
        used: Where calibration and held-out samples come from, or None.
        trained_on: Where the training samples come from, or None.
        class_names: What the labels mean, or empty.
        notes: What a reader of the report must know about it.
    """

    fixed: tuple[InputSpec, ...]
    calibration: Dataset | None
    held_out: Dataset
    training: Dataset | None = None
    used: DataUsed | None = None
    trained_on: TrainingData | None = None
    class_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def activations(self) -> Dataset | None:
        """What passes may look at the activations of: whatever does not verify the result."""
        return self.calibration if self.training is None else self.training

    @property
    def kind(self) -> SampleKind:
        """What the verified samples are."""
        if self.used is None:
            return "seeded-random"
        return "held-out" if self.used.samples > 1 else "calibration"


def prepare_samples(
    data: object,
    train: object,
    specs: tuple[InputSpec, ...],
    recipe: Recipe,
    *,
    calibrate: bool,
    input_range: tuple[float, float] | None,
    unsafe: bool,
) -> Samples:
    """Loads the data and divides it; whatever has no use is let go.

    Args:
        data: Samples to calibrate with and verify on, or None: they come from the training samples.
        train: Labelled samples to train on, or None.
        specs: The model's inputs.
        recipe: Says how many samples each use takes, and the seed; with low_rank among its passes, and nothing to train
            on, some of the data show it the activations.
        calibrate: Whether samples have to set the ranges of activations.
        input_range: The range that 8-bit samples are mapped to.
        unsafe: Accept pickled arrays.

    Raises:
        DataError: Samples cannot be read or do not fit the model; training samples have no labels, or there is one
            only and no `data`.
    """
    training = None if train is None else _load_training(train, specs, recipe, input_range, unsafe=unsafe)
    if train is None and any(isinstance(each, LowRank) for each in recipe.passes):
        calibrate = True
    wanted = recipe.quantization.calibration_samples if calibrate else 0
    if data is None:
        return _without_data(training, specs, recipe, wanted)
    held = recipe.verification.samples
    dataset = load_data(
        data, specs, input_range=input_range, max_samples=wanted + held, seed=recipe.seed, unsafe=unsafe
    )
    calibration, held_out = split_samples(dataset, calibration=wanted, held_out=held, seed=recipe.seed)
    return Samples(
        fixed=fix_shapes(specs, dataset),
        calibration=calibration if calibrate else None,
        held_out=held_out,
        training=training,
        used=_used(dataset, calibration if calibrate else None, held_out),
        trained_on=_trained_on(training),
        class_names=dataset.class_names,
        notes=(*_too_few(training), *_seen_before(training, held_out)),
    )


def _load_training(
    train: object,
    specs: Sequence[InputSpec],
    recipe: Recipe,
    input_range: tuple[float, float] | None,
    *,
    unsafe: bool,
) -> Dataset:
    try:
        dataset = load_data(train, specs, input_range=input_range, seed=recipe.seed, unsafe=unsafe)
    except DataError as error:
        fix = None if error.fix is None else error.fix.replace("--data", "--train")
        raise DataError(
            error.what, where=error.where, expected=error.expected, received=error.received, fix=fix
        ) from None
    if dataset.labels is None and not _needs_no_labels(recipe):
        raise DataError(
            "training needs labels, and there are none", where=dataset.source,
            fix="save them in the .npz as y, or sort the images into one folder for each class",
        )  # fmt: skip
    return dataset


def _needs_no_labels(recipe: Recipe) -> bool:
    """Whether all that trains learns from a teacher alone."""
    training = [one for one in recipe.passes if not isinstance(one, Fuse)]
    return bool(training) and all(isinstance(one, Distill) and one.alpha == 1 for one in training)


def _without_data(
    training: Dataset | None, specs: tuple[InputSpec, ...], recipe: Recipe, calibration_samples: int
) -> Samples:
    if training is None:
        fixed = fix_shapes(specs, None)
        return Samples(fixed, None, Dataset(random_inputs(fixed, samples=_RANDOM_SAMPLES, seed=recipe.seed)))
    total, seed = len(training), recipe.seed
    if total == 1:
        raise DataError(
            "there is one sample only: none would be left to verify the result on", where=training.source,
            fix="give more samples with --train, or others to verify on with --data",
        )  # fmt: skip
    held = min(recipe.verification.samples, max(1, total // _HELD_OUT_SHARE))
    trained, held_out = split_samples(training, calibration=total - held, held_out=held, seed=seed)
    calibration = None
    note = f"No --data was given: {len(held_out):,} of the {total:,} samples of --train verify the result instead"
    if calibration_samples:
        calibration, _ = split_samples(trained, calibration=calibration_samples, held_out=1, seed=seed)
        note += f", and {len(calibration):,} others calibrate"
    note += "; those that verify were not trained on."
    return Samples(
        fixed=fix_shapes(specs, training),
        calibration=calibration,
        held_out=held_out,
        training=trained,
        used=_used(training, calibration, held_out),
        trained_on=_trained_on(trained),
        class_names=training.class_names,
        notes=(*_too_few(trained), note),
    )


def _used(dataset: Dataset, calibration: Dataset | None, held_out: Dataset) -> DataUsed:
    return DataUsed(
        source=dataset.source,
        samples=len(dataset),
        calibration=0 if calibration is None else len(calibration),
        held_out=len(held_out),
        sha256=hash_samples(*(() if calibration is None else (calibration,)), held_out),
    )


def _trained_on(training: Dataset | None) -> TrainingData | None:
    if training is None:
        return None
    return TrainingData(source=training.source, samples=len(training), sha256=hash_samples(training))


def _too_few(training: Dataset | None) -> Iterator[str]:
    if training is not None and len(training) < _FEW_SAMPLES:
        samples = "1 sample" if len(training) == 1 else f"{len(training)} samples"
        yield (
            f"WARNING: only {samples} to train on: the result may know them by heart, and do worse on all others. "
            "Give more with --train."
        )


def _seen_before(training: Dataset | None, held_out: Dataset) -> Iterator[str]:
    """Says so if the samples that judge the result are among those that it learns."""
    if training is None:
        return
    known = set(_fingerprints(training))
    seen = sum(one in known for one in _fingerprints(held_out))
    if seen:
        yield (
            f"WARNING: {seen:,} of the {len(held_out):,} samples that verify the result are also in --train: its "
            "accuracy on new samples may be lower. Give other samples with --data."
        )


def _fingerprints(dataset: Dataset) -> Iterator[bytes]:
    arrays = [np.ascontiguousarray(array) for _, array in sorted(dataset.inputs.items())]
    for index in range(len(dataset)):
        yield hashlib.sha1(b"".join(array[index].tobytes() for array in arrays), usedforsecurity=False).digest()
