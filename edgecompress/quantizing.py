"""Makes the file of a float model: the first number types that the device prefers and the model takes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from edgecompress.artifacts import Artifact, read_artifact
from edgecompress.benchmark.execute import run_tflite
from edgecompress.converters.ptq import QuantizationJob, quantize
from edgecompress.data import Dataset, InputSpec
from edgecompress.errors import ConversionError, ExecutionError
from edgecompress.loaded import LoadedModel
from edgecompress.passes.base import Progress
from edgecompress.profiles import Profile
from edgecompress.recipes import Recipe
from edgecompress.report.model import Attempt
from edgecompress.scheme_choice import refuse_settings, trained_scheme
from edgecompress.schemes import QuantizationScheme
from edgecompress.verify.verification import random_inputs

_CONTROL_FLOW = frozenset({"WHILE", "IF"})


@dataclass(frozen=True)
class Quantized:
    """A finished file, its scheme, and what became of the schemes that were considered."""

    file: Path
    scheme: QuantizationScheme
    attempts: tuple[Attempt, ...]


def quantize_best(
    float_artifact: Artifact,
    source: LoadedModel,
    device: Profile,
    recipe: Recipe,
    calibration: Dataset | None,
    say: Progress,
) -> Quantized:
    """Builds the first scheme that the profile (or the recipe) allows and the model takes.

    With qat there is one scheme only, the one that was trained for.

    Raises:
        ConversionError: The model takes none of them.
    """
    wanted = recipe.quantization.scheme
    one_only = wanted != "auto" or recipe.qat is not None
    schemes = (trained_scheme(recipe, device),) if one_only else device.quantization.schemes
    attempts: list[Attempt] = []
    refusal: ConversionError | None = None
    for scheme in schemes:
        try:
            if scheme.needs_calibration and calibration is None:
                raise ConversionError("needs calibration samples", fix="pass --data")
            file = _quantize(float_artifact, scheme, source, device, recipe, calibration, say)
            prove_it_runs(file, scheme)
        except ConversionError as error:
            refusal = error
            attempts.append(Attempt(scheme=scheme, outcome="refused", reason=str(error)))
            continue
        return Quantized(file, scheme, (*attempts, chosen(scheme, recipe, device)))
    assert refusal is not None  # noqa: S101 (a profile has at least one scheme)
    raise refusal


def chosen(scheme: QuantizationScheme, recipe: Recipe, device: Profile) -> Attempt:
    """Returns the line of the report that says why this scheme was chosen."""
    if recipe.quantization.scheme != "auto":
        reason = "asked for"
    elif recipe.qat is not None:
        reason = f"the first that {device.name} prefers, trained for by qat"
    else:
        reason = f"the first that {device.name} prefers and the model takes"
    return Attempt(scheme=scheme, outcome="chosen", reason=reason)


def _quantize(
    float_artifact: Artifact,
    scheme: QuantizationScheme,
    source: LoadedModel,
    device: Profile,
    recipe: Recipe,
    calibration: Dataset | None,
    say: Progress,
) -> Path:
    refuse_settings(recipe, scheme)
    if scheme is QuantizationScheme.FLOAT32:
        return float_artifact.path
    refuse_loops(float_artifact, source, scheme)
    settings, defaults = recipe.quantization, device.quantization
    job = QuantizationJob(
        scheme,
        settings.algorithm,
        defaults.dense,
        settings.input_type or defaults.input_type,
        settings.output_type or defaults.output_type,
    )
    destination = float_artifact.path.with_name(f"{scheme}.tflite")
    threads = os.cpu_count() or 1
    quantize(
        float_artifact.path, destination, job, calibration=calibration, threads=threads,
        progress=lambda done, total: say("calibrate", done, total),
    )  # fmt: skip
    return destination


def refuse_loops(artifact: Artifact, source: LoadedModel, *schemes: QuantizationScheme) -> None:
    """Refuses a model with loops if none but fully quantized files may be made of it.

    Args:
        artifact: The model as a float file.
        source: The model.
        schemes: What the file may be, the best first.

    Raises:
        ConversionError: Names the recurrent layers.
    """
    loops = any(op.name in _CONTROL_FLOW for op in artifact.ops)
    if loops and all(scheme.needs_calibration for scheme in schemes):
        layers = ", ".join(source.recurrent_layers()) or "a loop in its graph"
        raise ConversionError(
            f"{schemes[0]} cannot be made of recurrent layers ({layers}): their activations inside the loop stay float",
            where=source.path, fix="use --scheme dynamic (int8 weights) with a profile that takes it",
        )  # fmt: skip


def prove_it_runs(file: Path, scheme: QuantizationScheme) -> None:
    """A quantizer can write a file that no runtime takes; that is a refusal, found here rather than on the device."""
    specs = tuple(
        InputSpec(name, tensor.shape, tensor.dtype) for name, tensor in read_artifact(file).signature.inputs.items()
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
