"""The order of the steps from a Keras model to a proven file. Each step is one call to the module that knows it.

load -> quantize + convert -> verify -> benchmark -> check -> report
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgecompress.artifacts import Artifact, read_artifact
from edgecompress.benchmark.cpu import benchmark_cpu
from edgecompress.benchmark.execute import run_tflite
from edgecompress.benchmark.measurement import Measurement, MeasurementKind
from edgecompress.calibration import audit_calibration
from edgecompress.check import check_limits
from edgecompress.command import command_line
from edgecompress.converters.ptq import QuantizationJob, io_type, quantize
from edgecompress.converters.tflite import FloatConverter, freeze_graph
from edgecompress.data import Dataset, InputSpec, apply_shapes, fix_shapes, hash_samples, load_data, split_samples
from edgecompress.errors import ConversionError, DataError, ExecutionError, UsageError
from edgecompress.flatbuffer import with_metadata
from edgecompress.machine import describe_machine
from edgecompress.models import LoadedModel, load_model
from edgecompress.outputs import REPORT_FILE, whole_folder
from edgecompress.profiles import Profile, Target, load_profile
from edgecompress.recipes import Recipe
from edgecompress.report import Attempt, DataUsed, Report, SourceModel, Variant
from edgecompress.report.notes import notes_on
from edgecompress.schemes import Algorithm, QuantizationScheme
from edgecompress.verify.metrics import Scores
from edgecompress.verify.verification import Verified, random_inputs, verify, write_golden
from edgecompress.versions import decisive_versions, own_version

Progress = Callable[[str, int, int], None]

METADATA_KEY = "edgecompress"
_RANDOM_SAMPLES = 8
_RUNS = 30
_MIN_SECONDS = 0.3
_CONTROL_FLOW = frozenset({"WHILE", "IF"})


@dataclass(frozen=True)
class _Samples:
    """The three uses of the data. Without data there are no calibration samples and the rest is random."""

    calibration: Dataset | None
    held_out: Dataset
    used: DataUsed | None = None
    class_names: tuple[str, ...] = ()

    @property
    def kind(self) -> Any:
        if self.used is None:
            return "seeded-random"
        return "held-out" if self.used.samples > 1 else "calibration"


def convert(  # noqa: PLR0913 (each is one option of the command line)
    model: object,
    profile: str | Path | Profile = "host",
    *,
    output: str | Path | None = None,
    data: object = None,
    recipe: Recipe | None = None,
    input_shape: Mapping[str, Sequence[int]] | Sequence[int] | None = None,
    input_range: tuple[float, float] | None = None,
    custom_objects: Mapping[str, Any] | None = None,
    unsafe: bool = False,
    benchmark: bool = True,
    progress: Progress | None = None,
) -> Report:
    """Turns a Keras model into a verified .tflite file for a device.

    Args:
        model: A path (.keras, .h5, SavedModel folder) or a Keras model.
        profile: The device: a bundled profile's name, a TOML file, or a Profile.
        output: The folder to write; `<model>-<profile>` in the current folder if absent.
        data: Samples, with labels if there are any: whatever `load_data` takes. Needed for int8 and int16x8.
        recipe: Scheme, algorithm, seed and thresholds; the defaults if absent.
        input_shape: Fixes dimensions that vary: a shape, or shapes by input name; with or without the batch.
        input_range: The range that 8-bit samples are mapped to.
        custom_objects: Custom layers and functions by name.
        unsafe: Accept Lambda layers and pickled arrays, which run code from the file.
        benchmark: Measure the latency on this machine's CPU.
        progress: Called with (step, done, total).

    Returns:
        The report, which is also in the folder as report.json. `report.failed` lists what did not pass.

    Raises:
        EdgeCompressError: One of its kinds, see `edgecompress.errors`. Nothing is left at the destination then.
    """
    say = progress or (lambda _step, _done, _total: None)
    device = profile if isinstance(profile, Profile) else load_profile(profile)
    plan = recipe or Recipe()
    destination = Path(output) if output is not None else Path(f"{_stem(model)}-{device.name}")
    _refuse_scheme(plan, device, data)
    with (
        whole_folder(destination) as folder,
        tempfile.TemporaryDirectory() as scratch_name,
        ThreadPoolExecutor(1) as beside,
        FloatConverter() as converter,
    ):
        scratch = Path(scratch_name)

        say("load", 0, 1)
        source = load_model(model, custom_objects=custom_objects, unsafe=unsafe)
        specs = apply_shapes(source.inputs, _shapes_by_name(input_shape))
        fixed, samples = _prepare_samples(data, specs, plan, input_range, unsafe=unsafe)
        audit = None if samples.calibration is None else audit_calibration(source, samples.calibration)

        say("convert", 0, 1)
        float_file = converter.convert(freeze_graph(source, fixed), scratch)
        # The float model's answers are worked out while the quantizer's process keeps the other core busy; not sooner,
        # because the converter's process needs the memory.
        reference = beside.submit(source.predict, samples.held_out.inputs, fixed=fixed)
        before = _refuse_unresolved(read_artifact(float_file), source)
        quantized, scheme, attempts = _quantize_best(before, source, device, plan, samples.calibration, say)
        final = folder / f"{_stem(model)}.tflite"
        _write_final(quantized, final, source, device, plan, samples.class_names)
        after = read_artifact(final)

        say("verify", 0, 1)
        threads = min(device.runtime.threads, os.cpu_count() or 1)
        outputs = run_tflite(final, dict(samples.held_out.inputs), threads=threads)
        answers = reference.result()
        verified = verify(answers, outputs, samples.held_out.labels, samples.kind)
        write_golden(folder / "golden.npz", samples.held_out.inputs, answers, outputs)

        measured: tuple[Measurement, ...] = ()
        if benchmark:
            say("benchmark", 0, 1)
            measured = _measure([float_file, final], threads)

        violations = check_limits(after, device, latency_ms=_latency_on_device(device, measured[1:]))
        report = Report(
            command=command_line(
                model, device if profile is device else profile, data=data, output=output, recipe=plan,
                input_shape=_shapes_by_name(input_shape), input_range=input_range, custom_objects=custom_objects,
                unsafe=unsafe, benchmark=benchmark,
            ),
            versions=decisive_versions(),
            machine=describe_machine(),
            profile=device.name,
            profile_sha256=hashlib.sha256(device.model_dump_json().encode()).hexdigest(),
            source=_describe_source(source),
            recipe=plan,
            data=samples.used,
            scheme=scheme,
            attempts=attempts,
            audit=audit,
            verified=verified,
            before=_variant(QuantizationScheme.FLOAT32, before, verified.float_scores, measured[:1]),
            after=_variant(scheme, after, verified.scores, measured[1:]),
            violations=violations,
            notes=notes_on(device, plan, scheme, after, samples.used, attempts, verified, measured),
            failed=(*(str(violation) for violation in violations), *_failed_threshold(verified, plan)),
            files={file.name: _sha256(file) for file in sorted(folder.iterdir())},
            output=str(destination),
        )  # fmt: skip
        (folder / REPORT_FILE).write_text(report.to_json(), "utf-8")
    return report


def _stem(model: object) -> str:
    """Returns the model's name without its file suffix; what merely looks like one in a folder's name stays."""
    if isinstance(model, LoadedModel) and model.path is not None:
        model = model.path
    if not isinstance(model, (str, os.PathLike)):
        return str(getattr(model, "name", "model"))
    path = Path(os.path.abspath(model))  # noqa: PTH100 (resolve() would follow links, and name what they point to)
    return path.stem if path.suffix in (".keras", ".h5", ".hdf5") else path.name


def _shapes_by_name(shape: Mapping[str, Sequence[int]] | Sequence[int] | None) -> dict[str, Sequence[int]]:
    if shape is None:
        return {}
    return dict(shape) if isinstance(shape, Mapping) else {"": tuple(shape)}


def _refuse_scheme(plan: Recipe, device: Profile, data: object) -> None:
    """Refuses, before any work, what cannot end well."""
    wanted = plan.quantization.scheme
    allowed = device.quantization.schemes
    if wanted != "auto" and wanted not in allowed:
        raise UsageError(
            f"the profile {device.name!r} does not take the scheme {str(wanted)!r}", expected=", ".join(allowed),
            fix="choose one of these with --scheme, or another profile",
        )  # fmt: skip
    asked_for = allowed if wanted == "auto" else (QuantizationScheme(wanted),)
    if data is None and all(scheme.needs_calibration for scheme in asked_for):
        who = f"the profile {device.name!r} takes" if wanted == "auto" else "you asked for"
        raise DataError(
            f"{who} full integer quantization ({', '.join(asked_for)}), which needs calibration samples",
            fix="pass --data samples.npz (100 to 500 typical inputs)",
        )


def _prepare_samples(
    data: object,
    specs: tuple[InputSpec, ...],
    plan: Recipe,
    input_range: tuple[float, float] | None,
    *,
    unsafe: bool,
) -> tuple[tuple[InputSpec, ...], _Samples]:
    """Returns the inputs with all dimensions fixed, and the samples in their parts; the rest of the data is let go."""
    if data is None:
        fixed = fix_shapes(specs, None)
        inputs = random_inputs(fixed, samples=_RANDOM_SAMPLES, seed=plan.seed)
        return fixed, _Samples(None, Dataset(inputs))
    most = plan.quantization.calibration_samples + plan.verification.samples
    dataset = load_data(data, specs, input_range=input_range, max_samples=most, seed=plan.seed, unsafe=unsafe)
    calibration, held_out = split_samples(
        dataset, calibration=plan.quantization.calibration_samples, held_out=plan.verification.samples, seed=plan.seed
    )
    used = DataUsed(
        source=dataset.source,
        samples=len(dataset),
        calibration=len(calibration),
        held_out=len(held_out),
        sha256=hash_samples(calibration, held_out),
    )
    return fix_shapes(specs, dataset), _Samples(calibration, held_out, used, dataset.class_names)


def _refuse_unresolved(artifact: Artifact, source: LoadedModel) -> Artifact:
    """Refuses a file with operators that small runtimes do not have."""
    foreign = sorted({*artifact.flex_ops, *artifact.custom_ops})
    if foreign:
        raise ConversionError(
            f"the file would need operators that TensorFlow Lite does not have built in: {', '.join(foreign)}",
            where=source.path, fix="replace the layers that these operators come from",
        )  # fmt: skip
    return artifact


def _quantize_best(
    float_artifact: Artifact,
    source: LoadedModel,
    device: Profile,
    plan: Recipe,
    calibration: Dataset | None,
    say: Progress,
) -> tuple[Path, QuantizationScheme, tuple[Attempt, ...]]:
    """Builds the first scheme that the profile (or the recipe) allows and the model takes."""
    wanted = plan.quantization.scheme
    schemes = device.quantization.schemes if wanted == "auto" else (QuantizationScheme(wanted),)
    attempts: list[Attempt] = []
    refusal: ConversionError | None = None
    for scheme in schemes:
        try:
            if scheme.needs_calibration and calibration is None:
                raise ConversionError("needs calibration samples", fix="pass --data")
            file = _quantize(float_artifact, scheme, source, device, plan, calibration, say)
            _prove_it_runs(file, scheme)
        except ConversionError as error:
            refusal = error
            attempts.append(Attempt(scheme=scheme, outcome="refused", reason=str(error)))
            continue
        reason = "asked for" if wanted != "auto" else f"the first that {device.name} prefers and the model takes"
        attempts.append(Attempt(scheme=scheme, outcome="chosen", reason=reason))
        return file, scheme, tuple(attempts)
    assert refusal is not None  # noqa: S101 (a profile has at least one scheme)
    raise refusal


def _quantize(
    float_artifact: Artifact,
    scheme: QuantizationScheme,
    source: LoadedModel,
    device: Profile,
    plan: Recipe,
    calibration: Dataset | None,
    say: Progress,
) -> Path:
    _refuse_settings(plan, scheme)
    if scheme is QuantizationScheme.FLOAT32:
        return float_artifact.path
    if scheme.needs_calibration and any(op.name in _CONTROL_FLOW for op in float_artifact.ops):
        layers = ", ".join(source.recurrent_layers()) or "a loop in its graph"
        raise ConversionError(
            f"{scheme} cannot be made of recurrent layers ({layers}): their activations inside the loop stay float",
            where=source.path, fix="use --scheme dynamic (int8 weights) with a profile that takes it",
        )  # fmt: skip
    settings, defaults = plan.quantization, device.quantization
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


def _refuse_settings(plan: Recipe, scheme: QuantizationScheme) -> None:
    """Refuses what was asked for and a file of this scheme cannot have, rather than leaving it out without a word."""
    settings = plan.quantization
    for side, wanted in (("input", settings.input_type), ("output", settings.output_type)):
        if wanted is not None and io_type(scheme, wanted) is not wanted:
            raise ConversionError(
                f"{scheme} files have no {wanted} {side}s", expected=f"{io_type(scheme, wanted)} {side}s",
                fix=f"leave --{side}-type out, or choose another --scheme",
            )  # fmt: skip
    if scheme in (QuantizationScheme.FLOAT16, QuantizationScheme.FLOAT32) and settings.algorithm != Algorithm.MIN_MAX:
        raise ConversionError(
            f"{scheme} files have no scales for {settings.algorithm} to find",
            fix="leave --algorithm out, or choose another --scheme",
        )


def _prove_it_runs(file: Path, scheme: QuantizationScheme) -> None:
    """A quantizer can write a file that no runtime takes; that is a refusal, found here rather than on the device."""
    specs = tuple(
        InputSpec(name, tensor.shape, tensor.dtype) for name, tensor in read_artifact(file).signature.inputs.items()
    )
    try:
        run_tflite(file, random_inputs(specs, samples=1, seed=0))
    except ExecutionError as error:
        raise ConversionError(f"{scheme} was made, but LiteRT does not run it: {error.what}") from error


def _write_final(
    quantized: Path, final: Path, source: LoadedModel, device: Profile, plan: Recipe, class_names: tuple[str, ...]
) -> None:
    """Writes the file with the facts about its making inside, none of which changes from run to run."""
    facts = {
        "version": own_version(),
        "profile": device.name,
        "recipe": plan.model_dump(mode="json"),
        "source_sha256": source.sha256,
        "class_names": list(class_names),
    }
    metadata = {METADATA_KEY: json.dumps(facts, sort_keys=True).encode()}
    final.write_bytes(with_metadata(quantized.read_bytes(), metadata=metadata))


def _measure(files: Sequence[Path], threads: int) -> tuple[Measurement, ...]:
    """Measures on this machine's CPU; a file that cannot be timed is still a verified file, so that is no error."""
    try:
        return benchmark_cpu(files, threads=threads, runs=_RUNS, min_seconds=_MIN_SECONDS)
    except ExecutionError as error:
        reason = str(error)
        return tuple(
            Measurement(target=Target.CPU, kind=MeasurementKind.MEASURED, unavailable_because=reason) for _ in files
        )


def _variant(
    scheme: QuantizationScheme, artifact: Artifact, scores: Scores | None, measured: Sequence[Measurement]
) -> Variant:
    return Variant(
        scheme=scheme,
        parameters=artifact.parameters,
        macs=artifact.macs,
        size_bytes=artifact.size_bytes,
        gzip_bytes=artifact.gzip_bytes,
        scores=scores,
        measurement=next(iter(measured), None),
    )


def _latency_on_device(device: Profile, measured: Sequence[Measurement]) -> float | None:
    """A latency measured here says something about the device only if the device is this machine."""
    here = device.name == "host" and Target.CPU in device.runtime.targets
    return next((one.latency.median_ms for one in measured if here and one.latency is not None), None)


def _failed_threshold(verified: Verified, plan: Recipe) -> tuple[str, ...]:
    most = plan.verification.max_accuracy_drop
    if most is None:
        return ()
    drop = verified.accuracy_drop
    if drop is None:
        return (f"max_accuracy_drop {most:g} could not be judged: the outputs have no classes",)
    what = "accuracy fell by" if verified.scores is not None else "the share of changed answers is"
    return (f"{what} {drop:.4f}, allowed is {most:g}",) if drop > most else ()


def _describe_source(source: LoadedModel) -> SourceModel:
    return SourceModel(name=source.name, format=source.framework, sha256=source.sha256, size_bytes=source.size_bytes)


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
