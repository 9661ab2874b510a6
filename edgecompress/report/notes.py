"""What a conversion skipped, assumed or left alone, and why, in plain words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from edgecompress.artifacts import Artifact
from edgecompress.benchmark.measurement import Measurement
from edgecompress.passes.base import PassResult
from edgecompress.profiles import Profile, Target
from edgecompress.recipes import Quantization, Recipe
from edgecompress.report.model import Attempt, DataUsed
from edgecompress.report.tables import counted
from edgecompress.schemes import Algorithm, QuantizationScheme
from edgecompress.verify.verification import Verified

_LARGE_DROP = 0.05
_LOW_SNR_DB = 10.0
_COMPILERS = {Target.EDGE_TPU: "edgetpu_compiler", Target.NPU: "the vendor's compiler (Vela for Ethos-U)"}


def notes_on(  # noqa: PLR0913, PLR0917 (what there is to say something about)
    device: Profile,
    plan: Recipe,
    scheme: QuantizationScheme,
    after: Artifact,
    data: DataUsed | None,
    attempts: Sequence[Attempt],
    verified: Verified,
    measured: Sequence[Measurement],
    *,
    trained: Sequence[str],
    passes: Sequence[PassResult],
    flash: str | None,
) -> tuple[str, ...]:
    """Returns the notes of a report, the gravest first.

    Args:
        device: What the file is for.
        plan: The recipe.
        scheme: The file's number types.
        after: The file.
        data: The samples that calibrated and verified it.
        attempts: The schemes that were considered.
        verified: How the file compares with the float model.
        measured: Latencies.
        trained: What was noted while the data was divided and the passes ran.
        passes: What the passes did.
        flash: Why the flash size on an Ethos-U is not known, or None.
    """
    refused = (f"{one.name} was not made: {one.reason}" for one in attempts if one.outcome == "refused")
    return (
        *_of_quality(verified, passes=passes),
        *_of_idle(passes),
        *refused,
        *_of_idle_options(plan, attempts),
        *_of_data(data, verified),
        *trained,
        *_of_passes(passes, file=".tflite"),
        *_of_numbers(plan, scheme, after),
        *_of_latency(device, measured),
        *(() if flash is None else (f"The size in flash on the {Target.NPU} is not known: {flash}",)),
        *_of_unchecked(device),
    )


def notes_on_compression(
    recipe: Recipe,
    verified: Verified,
    data: DataUsed | None,
    *,
    trained: Sequence[str],
    passes: Sequence[PassResult],
) -> tuple[str, ...]:
    """Returns the notes of a report on a compressed .keras file, the gravest first."""
    return (
        *_of_quality(verified, passes=passes),
        *_of_idle(passes),
        *_of_data(data, verified),
        *trained,
        *_of_passes(passes, file=".keras"),
        *_of_what_convert_does(recipe),
    )


def _of_idle_options(plan: Recipe, attempts: Sequence[Attempt]) -> Iterator[str]:
    """Says which options about recurrent layers had nothing to do."""
    usual, has_forms = Quantization(), any(one.recurrent for one in attempts)
    for option in ("recurrent", "observer"):
        if getattr(plan.quantization, option) == getattr(usual, option):
            continue
        if not has_forms:
            yield f"--{option} changed nothing: no recurrent layer of this file is in full int8 or int16x8."
        elif option == "observer" and plan.qat is not None:
            yield "--observer changed nothing: qat trained the ranges."


def _of_quality(verified: Verified, *, passes: Sequence[PassResult]) -> Iterator[str]:
    drop = verified.accuracy_drop
    if drop is not None and drop > _LARGE_DROP:
        fell = f"accuracy fell by {100 * drop:.2f} points"
        what = fell if verified.scores is not None else f"the share of changed answers is {drop:.1%}"
        advice = "Check the range of the samples, or try another --scheme or --algorithm."
        if passes:
            advice = "Train for more --epochs, or ask the passes for less."
        yield f"WARNING: {what}. {advice}"
    for output in verified.outputs if not passes else ():  # whose purpose is another model, not the same answers
        if output.snr_db is not None and output.snr_db < _LOW_SNR_DB:
            yield f"WARNING: output {output.name} has only {output.snr_db:.1f} dB SNR against the float model."


def _of_idle(passes: Sequence[PassResult]) -> Iterator[str]:
    for one in passes:
        if not any(layer.applies for layer in one.plan):
            reasons = "; ".join(sorted({layer.detail for layer in one.plan})) or "the model has no layer for it"
            if one.ranks:  # with numbers of its own for each layer, which are printed with it
                reasons = "the reasons, layer by layer, are in the report"
            yield f"WARNING: {one.kind} changed nothing: {reasons}."


def _of_data(data: DataUsed | None, verified: Verified) -> Iterator[str]:
    if data is None:
        yield (
            "No data was given: nothing was calibrated, and the comparison with the float model used seeded random "
            "inputs, so it shows errors of the result but says nothing of accuracy. Pass --data."
        )
    elif verified.kind == "calibration":
        yield "There was one sample only: the file was verified on the sample that calibrated it."
    elif verified.scores is None:
        yield "The data has no labels: agreement with the float model is reported instead of accuracy."


def _of_passes(passes: Sequence[PassResult], *, file: str) -> Iterator[str]:
    for one in passes:
        for note in (*one.notes, *(() if one.trained is None else one.trained.notes)):
            yield f"{one.kind}: {note}"
        for layer in one.plan:
            if not layer.applies and layer.fix is not None:
                yield f"{one.kind} left {layer.layer} alone: {layer.detail}. Fix: {layer.fix}"
    if any(one.proof for one in passes if one.kind != "qat"):
        yield (
            f"Zeros and shared values do not make the {file} file itself smaller: gzip shows what they save in a "
            "download, and the Vela flash size what they save on an Ethos-U."
        )


def _of_what_convert_does(recipe: Recipe) -> Iterator[str]:
    default = Quantization(calibration_samples=recipe.quantization.calibration_samples)
    if recipe.quantization != (default if any(each.kind == "low_rank" for each in recipe.passes) else Quantization()):
        yield "The recipe's [quantization] says how `convert` makes a .tflite file; it has no part in a .keras file."


def _of_numbers(plan: Recipe, scheme: QuantizationScheme, after: Artifact) -> Iterator[str]:
    if scheme is QuantizationScheme.DYNAMIC:
        yield "dynamic: weights are int8, activations are float between operators and quantized while running."
    if scheme.needs_calibration and after.float_ops:
        names = ", ".join(sorted({op.name for op in after.float_ops}))
        yield f"{counted(len(after.float_ops), 'operator')} stayed in float: {names}."
    algorithm = plan.quantization.algorithm
    if algorithm is not Algorithm.MIN_MAX:
        yield f"{algorithm} was used for the operators that litert-quantizer offers it for, min_max for the rest."


def _of_latency(device: Profile, measured: Sequence[Measurement]) -> Iterator[str]:
    for one in measured[:1]:
        if one.unavailable_because is not None:
            yield f"Latency was not measured: {one.unavailable_because}"
        elif device.name != "host":
            yield f"Latency is of this machine's CPU, not of {device.title}."


def _of_unchecked(device: Profile) -> Iterator[str]:
    limits = device.limits
    if limits.arena_bytes is not None:
        yield f"The tensor arena ({limits.arena_bytes:,} bytes at most) was not checked: its size is unknown."
    if limits.latency_ms is not None and device.name != "host":
        yield f"The latency limit ({limits.latency_ms:g} ms) was not checked: the device is not here."
    if device.name != "host":
        rules = ", ".join(device.check.rules)
        yield f"Which operators {', '.join(device.runtime.targets)} take was not checked (rule sets: {rules})."
    for target, compiler in _COMPILERS.items():
        if target in device.runtime.targets:
            yield f"Before it runs on the {target}, the file must pass {compiler}."
