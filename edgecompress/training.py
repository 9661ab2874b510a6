"""Runs a recipe's passes, in order, with checkpoints that a run which was ended can go on from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgecompress.artifacts import read_artifact
from edgecompress.calibration import audit_calibration
from edgecompress.candidates import Task
from edgecompress.converters.cut import has_recurrent_layers
from edgecompress.converters.ptq import io_type
from edgecompress.converters.tflite import FloatConverter, freeze_graph
from edgecompress.errors import UsageError
from edgecompress.loaded import LoadedModel, flatten_layers
from edgecompress.outputs import TrainingFolder
from edgecompress.passes import apply_passes
from edgecompress.passes.base import PassContext, PassResult, Progress
from edgecompress.profiles import Kernels, Profile
from edgecompress.quantizing import (
    Quantized,
    chosen,
    prove_it_runs,
    quantize_best,
    quantize_trained_loops,
    refuse_unresolved,
)
from edgecompress.recipes import Recipe
from edgecompress.report.tables import counted
from edgecompress.samples import Samples
from edgecompress.scheme_choice import may_quantize, trained_scheme, wanted_schemes
from edgecompress.schemes import QuantizationScheme
from edgecompress.techniques import Distill, LowRank, Qat
from edgecompress.tfmot.qat import train_quantized


@dataclass(frozen=True)
class Trained:
    """The model after its passes, what each of them did, and what a reader of the report must know besides."""

    model: LoadedModel
    results: tuple[PassResult, ...]
    notes: tuple[str, ...]


def run_passes(  # noqa: PLR0913 (what a run is made of)
    source: LoadedModel,
    recipe: Recipe,
    samples: Samples,
    folder: TrainingFolder,
    say: Progress,
    *,
    load: Callable[[str], Any] = str,
    device: Profile | None = None,
    resume: bool = False,
) -> Trained:
    """Runs the passes on a copy of the model.

    Args:
        source: A Keras 3 model, which stays as it is.
        recipe: Its passes; qat trains for the scheme of the recipe and the device.
        samples: Those to train on among them; without, nothing is trained.
        folder: Takes the checkpoints.
        say: Called with (step, done, total).
        load: Opens a model file that a pass names.
        device: What the file is for, whose kernels passes go by; needed by qat only.
        resume: Go on from the checkpoints in the folder.

    Returns:
        A model whose inputs and outputs have the names of the source's.
    """
    if samples.training is not None:
        _refuse_stateful(source)
    notes = [*_on_the_range(source, samples), *_on_activations(recipe, samples)]
    kernels = _kernels_of(device)
    context = PassContext(
        training=recipe.training, seed=recipe.seed, data=samples.training, teacher=_teacher(source, recipe),
        calibration=samples.activations, fixed=samples.fixed, multiple=kernels.rank_multiple, prefers=kernels.prefers,
        quantized=_may_quantize(recipe, device), load=load,
        compile_config=source.compile_config, say=say,
    )  # fmt: skip
    if samples.training is not None:
        found = folder.open(_identity(source, recipe, samples, device), resume=resume)
        context = replace(context, checkpoints=folder.path, resume=found)
        notes += _on_resuming(folder, resume=resume, found=found)
    kept = tuple(each for each in recipe.passes if not isinstance(each, Qat))
    model, results = apply_passes(source.model, kept, context) if kept else (source.model, ())
    compressed = replace(source, model=model)
    if recipe.qat is None or device is None:
        return Trained(compressed, results, tuple(notes))
    last = None if context.checkpoints is None else context.checkpoints / f"{len(kept) + 1}-qat"
    trained, result = train_quantized(
        compressed, recipe.qat, fixed=samples.fixed, scheme=trained_scheme(recipe, device),
        recurrent=device.quantization.dense, context=replace(context, checkpoints=last),
    )  # fmt: skip
    return Trained(trained, (*results, result), tuple(notes))


def build_trained(task: Task, folder: Path, *, untrained: LoadedModel) -> Quantized:
    """Makes the file of a model that went through passes.

    After qat for int8 the converter itself makes the integer file, from the ranges that were trained; everything else
    takes the way of a model without passes.

    Args:
        task: The model as its passes left it, and the device.
        folder: A folder to make, for the files.
        untrained: The model before its passes.

    Raises:
        ConversionError: The converter or the quantizer refuses the model.
    """
    task.say("convert", 0, 1)
    folder.mkdir()
    scheme = trained_scheme(task.recipe, task.device)
    trained = task.recipe.qat is not None and scheme is QuantizationScheme.INT8
    if trained and has_recurrent_layers(task.source):
        return quantize_trained_loops(task, folder, untrained=untrained)
    graph = freeze_graph(task.source, task.samples.fixed)
    with FloatConverter() as converter:
        if not trained:
            artifact = refuse_unresolved(read_artifact(converter.convert(graph, folder)), task.source)
            return quantize_best(task, artifact)
        settings, defaults = task.recipe.quantization, task.device.quantization
        wanted = (settings.input_type or defaults.input_type, settings.output_type or defaults.output_type)
        file = converter.convert(graph, folder, borders=(io_type(scheme, wanted[0]), io_type(scheme, wanted[1])))
    refuse_unresolved(read_artifact(file), task.source)
    prove_it_runs(file, scheme)
    return Quantized(file, scheme, (chosen(scheme, task.recipe, task.device),))


def _identity(source: LoadedModel, recipe: Recipe, samples: Samples, device: Profile | None) -> dict[str, object]:
    """What decides the trained weights; a run may go on from another's checkpoints only if it is the same."""
    described = recipe.model_dump(mode="json")
    trained_on = samples.trained_on
    return {
        "model": source.sha256,
        "passes": described["passes"],
        "training": described["training"],
        "seed": recipe.seed,
        "train": None if trained_on is None else trained_on.sha256,
        "kernels": _kernels_of(device).model_dump() | {"quantized": _may_quantize(recipe, device)},
        "scheme": None if recipe.qat is None or device is None else str(trained_scheme(recipe, device)),
    }


def _teacher(source: LoadedModel, recipe: Recipe) -> Any:
    """Returns what all passes keep the answers of: the model as it was loaded, unless it was to learn at first."""
    learns = any(isinstance(each, Distill) and each.teachers for each in recipe.passes)
    return None if learns else source.model


def _refuse_stateful(source: LoadedModel) -> None:
    stateful = [layer.name for layer in flatten_layers(source.model) if getattr(layer, "stateful", False)]
    if stateful:
        raise UsageError(
            "layers that remember earlier samples cannot be trained: samples come in any order", where=source.name,
            received=f"stateful=True in {', '.join(stateful)}",
            fix="leave --train out, or build the model with stateful=False and give it the weights",
        )  # fmt: skip


def _kernels_of(device: Profile | None) -> Kernels:
    return Kernels() if device is None else device.kernels


def _may_quantize(recipe: Recipe, device: Profile | None) -> bool:
    return device is not None and may_quantize(wanted_schemes(recipe, device))


def _on_activations(recipe: Recipe, samples: Samples) -> Iterator[str]:
    """Says which samples low_rank looked at, or that there were none."""
    if not any(isinstance(each, LowRank) and each.activation_aware for each in recipe.passes):
        return
    if samples.activations is None:
        yield (
            "low_rank had no samples: it kept what matters for the weights (plain SVD), not for the outputs. "
            "Pass --data or --train."
        )
    elif samples.training is None:
        yield f"low_rank looked at the activations of {counted(len(samples.activations), 'sample')} of --data."


def _on_the_range(source: LoadedModel, samples: Samples) -> Iterator[str]:
    """Says so if the training samples look unlike those that the model was trained on at first."""
    if samples.training is not None:
        for finding in audit_calibration(source, samples.training).findings:
            if finding.level == "warning":
                fix = f". Fix: {finding.fix}" if finding.fix else ""
                yield f"WARNING: training samples: {finding.text}{fix}"


def _on_resuming(folder: TrainingFolder, *, resume: bool, found: bool) -> Iterator[str]:
    if folder.removed_earlier and not resume:
        yield "The checkpoints of an earlier run were removed; --resume would have gone on with them."
    if found:
        yield "The training went on from the checkpoints of an earlier run (--resume)."
    elif resume:
        yield "--resume found no checkpoints: the training began at the beginning."
