"""Makes the file of a float model: the first number types that the device prefers and the model takes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from edgecompress.artifacts import Artifact, read_artifact
from edgecompress.benchmark.execute import run_tflite
from edgecompress.candidates import Candidate, Task, pick
from edgecompress.converters.cut import cut, has_loops, has_recurrent_layers
from edgecompress.converters.ptq import QuantizationJob, quantize
from edgecompress.data import InputSpec
from edgecompress.errors import ConversionError, ExecutionError
from edgecompress.loaded import LoadedModel
from edgecompress.profiles import Profile, RecurrentLowering
from edgecompress.recipes import Recipe
from edgecompress.recurrent_forms import build_forms, refuse_form
from edgecompress.report.model import Attempt
from edgecompress.scheme_choice import refuse_settings, trained_scheme, wanted_schemes
from edgecompress.schemes import QuantizationScheme
from edgecompress.streaming import Stream, read_stream
from edgecompress.verify.verification import random_inputs


@dataclass(frozen=True)
class Quantized:
    """A finished file, its scheme, and what became of the schemes and forms that were considered.

    Attributes:
        file: Its path.
        scheme: Its number types.
        attempts: One entry for each.
        stream: How the file is run, if it is that of one step.
    """

    file: Path
    scheme: QuantizationScheme
    attempts: tuple[Attempt, ...]
    stream: Stream | None = None


def quantize_best(task: Task, float_artifact: Artifact) -> Quantized:
    """Builds the first scheme that the profile (or the recipe) allows and the model takes.

    With qat there is one scheme only, the one that was trained for. Recurrent layers have several forms; these, and
    dynamic-range quantization if the device takes it, are compared with each other.

    Args:
        task: The model and the device.
        float_artifact: The model as a float file.

    Raises:
        ConversionError: The model takes none of them.
    """
    recipe, device = task.recipe, task.device
    wanted = recipe.quantization.scheme
    one_only = wanted != "auto" or recipe.qat is not None
    schemes = (trained_scheme(recipe, device),) if one_only else device.quantization.schemes
    attempts: list[Attempt] = []
    refusal: ConversionError | None = None
    for place, scheme in enumerate(schemes):
        try:
            candidates, refused = _build(task, scheme, float_artifact)
            free = candidates[0].recurrent is not None and recipe.quantization.recurrent == "auto"
            if free and QuantizationScheme.DYNAMIC in schemes[place + 1 :]:
                candidates += _build(task, QuantizationScheme.DYNAMIC, float_artifact)[0]
        except ConversionError as error:
            refusal = refusal or error  # of what the device likes best
            attempts.append(Attempt(scheme=scheme, outcome="refused", reason=str(error)))
            continue
        if candidates[0].recurrent is None:
            file = candidates[0].file
            return Quantized(file, scheme, (*attempts, chosen(scheme, recipe, device)))
        best, compared = pick(task, candidates)
        return Quantized(best.file, best.scheme, (*attempts, *refused, *compared), best.stream)
    assert refusal is not None  # noqa: S101 (a profile has at least one scheme)
    raise refusal


def quantize_trained_loops(task: Task, folder: Path, *, untrained: LoadedModel) -> Quantized:
    """Builds the int8 file of a network with recurrent layers that was trained with rounding simulated.

    Args:
        task: The trained model, and the device.
        folder: Where files are written.
        untrained: The float model that it was made of.

    Raises:
        ConversionError: There is no file in any form.
    """
    candidates, refused = _build_forms(task, QuantizationScheme.INT8, folder, untrained)
    best, compared = pick(task, candidates)
    return Quantized(best.file, best.scheme, (*refused, *compared), best.stream)


def _build(task: Task, scheme: QuantizationScheme, float_artifact: Artifact) -> tuple[list[Candidate], list[Attempt]]:
    """Builds the files of a scheme, each of which runs, and says what was refused."""
    refuse_settings(task.recipe, scheme)
    if scheme.needs_calibration and has_recurrent_layers(task.source):
        return _build_forms(task, scheme, float_artifact.path.with_name(f"{scheme}-forms"), None)
    file = _quantize(task, float_artifact, scheme)
    prove_it_runs(file, scheme)
    return [Candidate(file, scheme)], []


def _build_forms(
    task: Task, scheme: QuantizationScheme, folder: Path, untrained: LoadedModel | None
) -> tuple[list[Candidate], list[Attempt]]:
    candidates, refused = build_forms(task, scheme, _job(task, scheme), folder, untrained=untrained)
    running: list[Candidate] = []
    for candidate in candidates:
        try:
            prove_it_runs(candidate.file, scheme)
        except ConversionError as error:
            if len(candidates) == 1:
                raise
            refused.append(Attempt(scheme=scheme, recurrent=candidate.recurrent, outcome="refused", reason=str(error)))
        else:
            running.append(candidate)
    if not running:
        raise ConversionError("; ".join(f"{one.recurrent}: {one.reason}" for one in refused))
    return running, refused


def chosen(scheme: QuantizationScheme, recipe: Recipe, device: Profile) -> Attempt:
    """Returns the line of the report that says why this scheme was chosen."""
    if recipe.quantization.scheme != "auto":
        reason = "asked for"
    elif recipe.qat is not None:
        reason = f"the first that {device.name} prefers, trained for by qat"
    else:
        reason = f"the first that {device.name} prefers and the model takes"
    return Attempt(scheme=scheme, outcome="chosen", reason=reason)


def _quantize(task: Task, float_artifact: Artifact, scheme: QuantizationScheme) -> Path:
    if scheme is QuantizationScheme.FLOAT32:
        return float_artifact.path
    calibration = task.samples.calibration
    if scheme.needs_calibration and calibration is None:
        raise ConversionError("needs calibration samples", fix="pass --data")
    if scheme.needs_calibration and has_loops(float_artifact):
        raise _loops_stay_float(task.source, scheme)
    destination = float_artifact.path.with_name(f"{scheme}.tflite")
    quantize(
        float_artifact.path, destination, _job(task, scheme), calibration=calibration, threads=os.cpu_count() or 1,
        progress=lambda done, total: task.say("calibrate", done, total),
    )  # fmt: skip
    return destination


def _job(task: Task, scheme: QuantizationScheme) -> QuantizationJob:
    settings, defaults = task.recipe.quantization, task.device.quantization
    return QuantizationJob(
        scheme,
        settings.algorithm,
        defaults.dense,
        settings.input_type or defaults.input_type,
        settings.output_type or defaults.output_type,
    )


def refuse_loops(task: Task, artifact: Artifact) -> None:
    """Refuses, before any training, a model with loops of which the file that is wanted cannot be made.

    Args:
        task: The model and the device.
        artifact: The model as a float file.

    Raises:
        ConversionError: Names the recurrent layers.
    """
    schemes, form = wanted_schemes(task.recipe, task.device), task.recipe.quantization.recurrent
    must = all(scheme.needs_calibration for scheme in schemes)
    if not has_loops(artifact) or not (must or form != "auto"):
        return
    if has_recurrent_layers(task.source):
        parts = cut(task.source, task.samples.fixed)
        if form != "auto":
            refuse_form(parts, RecurrentLowering(form), schemes[0])
    elif must:
        raise _loops_stay_float(task.source, schemes[0])


def _loops_stay_float(source: LoadedModel, scheme: QuantizationScheme) -> ConversionError:
    return ConversionError(
        f"{scheme} cannot be made of a loop in the graph: the activations inside of it stay float",
        where=source.path,
        fix="convert the Keras model that it was made of, whose recurrent layers can be taken out; "
        "or use --scheme dynamic (int8 weights) with a profile that takes it",
    )


def prove_it_runs(file: Path, scheme: QuantizationScheme) -> None:
    """A quantizer can write a file that no runtime takes; that is a refusal, found here rather than on the device."""
    stream = read_stream(file)
    states = () if stream is None else tuple(state.input for state in stream.states)
    specs = tuple(
        InputSpec(name, tensor.shape, tensor.dtype)
        for name, tensor in read_artifact(file).signature.inputs.items()
        if name not in states
    )
    try:
        run_tflite(file, random_inputs(specs, samples=1, seed=0))
    except ExecutionError as error:
        raise ConversionError(f"{scheme} was made, but LiteRT does not run it: {error.what}") from error


def refuse_unresolved(artifact: Artifact, source: LoadedModel) -> Artifact:
    """Refuses a file with operators that small runtimes do not have."""
    foreign = sorted({*artifact.flex_ops, *artifact.custom_ops})
    if foreign:
        raise ConversionError(
            f"the file would need operators that TensorFlow Lite does not have built in: {', '.join(foreign)}",
            where=source.path, fix="replace the layers that these operators come from",
        )  # fmt: skip
    return artifact
