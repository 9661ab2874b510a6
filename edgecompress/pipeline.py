"""The order of the steps from a Keras model to a proven file. Each step is one call to the module that knows it.

load -> plan -> passes -> quantize + convert -> verify -> benchmark -> check -> report
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgecompress.artifacts import Artifact, read_artifact
from edgecompress.benchmark.cpu import benchmark_cpu
from edgecompress.benchmark.execute import run_tflite
from edgecompress.benchmark.measurement import Measurement, MeasurementKind
from edgecompress.calibration import audit_calibration
from edgecompress.candidates import Task
from edgecompress.check import check_limits
from edgecompress.command import command_line, compress_command_line
from edgecompress.compile_config import compile_as
from edgecompress.converters.cut import has_recurrent_layers
from edgecompress.converters.ethos_u import FlashSize, vela_flash_bytes
from edgecompress.converters.tflite import FloatConverter, freeze_graph
from edgecompress.data import apply_shapes
from edgecompress.errors import ExecutionError, UsageError
from edgecompress.flatbuffer import with_metadata
from edgecompress.functional import clone_model
from edgecompress.loaded import LoadedModel
from edgecompress.machine import describe_machine
from edgecompress.models import load_model, save_model
from edgecompress.outputs import REPORT_FILE, TrainingFolder, whole_file, whole_folder
from edgecompress.passes.base import Progress
from edgecompress.planning import plan_passes, refuse_unready, shapes_by_name
from edgecompress.profiles import Profile, Target, find_profile, load_profile
from edgecompress.quantizing import Quantized, quantize_best, refuse_loops, refuse_unresolved
from edgecompress.recipes import Recipe
from edgecompress.reference import open_reference, opener, refuse_teachers
from edgecompress.report import CompressReport, FileSize, Report, SourceModel, Variant
from edgecompress.report.notes import notes_on, notes_on_compression
from edgecompress.samples import Samples, prepare_samples
from edgecompress.scheme_choice import calibrates, refuse_scheme
from edgecompress.schemes import QuantizationScheme
from edgecompress.streaming import METADATA_KEY, with_stream
from edgecompress.token_ids import refuse_unknown_ids
from edgecompress.training import Trained, build_trained, run_passes
from edgecompress.verify.kernels import check_kernels, kernels_in
from edgecompress.verify.metrics import Scores
from edgecompress.verify.verification import Verified, verify, write_golden
from edgecompress.versions import decisive_versions, own_version

_RUNS = 30
_MIN_SECONDS = 0.3


def convert(  # noqa: PLR0913 (each is one option of the command line)
    model: object,
    profile: str | Path | Profile = "host",
    *,
    output: str | Path | None = None,
    data: object = None,
    train: object = None,
    recipe: Recipe | None = None,
    resume: bool = False,
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
        data: Samples, with labels if there are any: whatever `load_data` takes. Needed for int8 and int16x8, unless
            `train` is given: then some of those samples are held out and verify the file.
        train: Samples with labels that the recipe's passes train on.
        recipe: Passes, their training, scheme, algorithm, seed and thresholds; the defaults if absent.
        resume: Go on from the checkpoints that an earlier run of the same kind left beside the output.
        input_shape: Fixes dimensions that vary: a shape, or shapes by input name; with or without the batch.
        input_range: The range that 8-bit samples are mapped to.
        custom_objects: Custom layers and functions by name.
        unsafe: Accept Lambda layers and pickled arrays, which run code from the file.
        benchmark: Measure the latency on this machine's CPU.
        progress: Called with (step, done, total); text after the first ": " of a step is detail that changes.

    Returns:
        The report, which is also in the folder as report.json. `report.failed` lists what did not pass.

    Raises:
        EdgeCompressError: One of its kinds, see `edgecompress.errors`. Nothing is left at the destination then; the
            checkpoints of a training that had begun are left beside it.
    """
    say = progress or _say_nothing
    device = profile if isinstance(profile, Profile) else load_profile(profile)
    recipe = recipe or Recipe()
    destination = Path(output) if output is not None else Path(f"{_stem(model)}-{device.name}")
    refuse_unready(recipe, train=train, data=data, resume=resume)
    refuse_teachers(recipe, _path_of(model), destination)
    refuse_scheme(recipe, device, samples=data is not None or train is not None)
    with (
        TrainingFolder(destination) as checkpoints,
        whole_folder(destination) as folder,
        tempfile.TemporaryDirectory() as scratch_name,
        ThreadPoolExecutor(1) as beside,
        FloatConverter() as converter,
    ):
        scratch = Path(scratch_name)

        say("load", 0, 1)
        source = load_model(model, custom_objects=custom_objects, unsafe=unsafe)
        specs = apply_shapes(source.inputs, shapes_by_name(input_shape))
        samples = prepare_samples(
            data, train, specs, recipe, calibrate=calibrates(recipe, device), input_range=input_range, unsafe=unsafe
        )
        refuse_unknown_ids(source, samples.training, samples.calibration, samples.held_out)
        if recipe.passes:
            plan_passes(source, recipe.passes, samples.fixed, device).require()
        audit = None if samples.calibration is None else audit_calibration(source, samples.calibration)

        say("convert", 0, 1)
        float_file = converter.convert(freeze_graph(source, samples.fixed), scratch)
        # The float model's answers are worked out while the quantizer's process keeps the other core busy; not sooner,
        # because the converter's process needs the memory.
        reference = beside.submit(
            open_reference(source, recipe, samples.fixed, opener(custom_objects, unsafe=unsafe)).answers,
            samples.held_out,
        )
        before = refuse_unresolved(read_artifact(float_file), source)
        task = _new_task(source, device, recipe, samples, reference, say, measure=benchmark)
        if recipe.passes:
            refuse_loops(task, before)  # which no pass takes out
            reference.result()  # training is to have the cores, and TensorFlow's global settings, to itself
            trained = run_passes(
                source, recipe, samples, checkpoints, say, load=opener(custom_objects, unsafe=unsafe), device=device,
                resume=resume,
            )  # fmt: skip
            made = build_trained(replace(task, source=trained.model), scratch / "trained", untrained=source)
        else:
            trained = Trained(source, (), ())
            made = quantize_best(task, before)
        final = folder / f"{_stem(model)}.tflite"
        _write_final(made, final, source, device, recipe, samples.class_names)
        after = read_artifact(final)

        say("verify", 0, 1)
        threads = device.runtime.threads_here
        outputs = run_tflite(final, dict(samples.held_out.inputs), threads=threads)
        answers = reference.result()
        verified = verify(answers, outputs, samples.held_out.labels, samples.kind)
        write_golden(folder / "golden.npz", samples.held_out.inputs, answers, outputs)

        measured: tuple[Measurement, ...] = ()
        if benchmark:
            say("benchmark", 0, 1)
            measured = _measure([float_file, final], threads)

        kernels = kernels_in(final) if recipe.passes else ()
        kept = check_kernels(trained.results, kernels, recipe.qat)
        flash = _flash_size(final, made.scheme, device)
        violations = check_limits(after, device, latency_ms=_latency_on_device(device, measured[1:]))
        report = Report(
            command=command_line(
                model, profile, data=data, train=train, output=output, recipe=recipe,
                input_shape=shapes_by_name(input_shape), input_range=input_range, custom_objects=custom_objects,
                unsafe=unsafe, benchmark=benchmark,
            ),
            versions=decisive_versions(),
            machine=describe_machine(),
            profile=device.name,
            profile_sha256=hashlib.sha256(device.model_dump_json().encode()).hexdigest(),
            source=_describe_source(source),
            recipe=recipe,
            data=samples.used,
            training=samples.trained_on,
            passes=trained.results,
            kernels=kernels,
            scheme=made.scheme,
            attempts=made.attempts,
            audit=audit,
            verified=verified,
            before=_variant(QuantizationScheme.FLOAT32, before, verified.float_scores, measured[:1]),
            after=_variant(made.scheme, after, verified.scores, measured[1:], flash),
            violations=violations,
            notes=notes_on(
                device, recipe, made.scheme, after, samples.used, made.attempts, verified, measured,
                trained=(*samples.notes, *trained.notes, *kept.notes), passes=trained.results,
                flash=flash.unavailable_because,
            ),
            failed=(*(str(violation) for violation in violations), *kept.lost, *_failed_threshold(verified, recipe)),
            files={file.name: _sha256(file) for file in sorted(folder.iterdir())},
            output=str(destination),
        )  # fmt: skip
        (folder / REPORT_FILE).write_text(report.to_json(), "utf-8")
    return report


def compress(  # noqa: PLR0913 (each is one option of the command line)
    model: object,
    output: str | Path | None = None,
    *,
    recipe: Recipe,
    profile: str | Path | Profile | None = None,
    train: object = None,
    data: object = None,
    resume: bool = False,
    input_shape: Mapping[str, Sequence[int]] | Sequence[int] | None = None,
    input_range: tuple[float, float] | None = None,
    custom_objects: Mapping[str, Any] | None = None,
    unsafe: bool = False,
    progress: Progress | None = None,
) -> CompressReport:
    """Distils, factorizes, fuses, prunes and clusters a Keras 3 model; writes it as a .keras file, compiled as it was.

    Args:
        model: A path of a Keras 3 model, or a Keras 3 model, which stays as it is.
        output: The .keras file to write; `<model>-compressed.keras` in the current folder if absent.
        recipe: Its passes are run; qat is none of them, because it ends in an integer file (see `convert`).
        profile: The device whose kernels low_rank and fuse go by: a bundled profile's name, a TOML file, or a Profile;
            absent: ranks are multiples of 8, and fuse saves bytes rather than arithmetic.
        train: Samples with labels to train on; without them the passes change the weights once, and nothing is trained.
        data: Samples to verify on, some of which show low_rank the activations if `train` is absent; absent: some of
            the training samples verify, and are then not trained on.
        resume: Go on from the checkpoints that an earlier run of the same kind left beside the output.
        input_shape: Fixes dimensions that vary: a shape, or shapes by input name; with or without the batch.
        input_range: The range that 8-bit samples are mapped to.
        custom_objects: Custom layers and functions by name.
        unsafe: Accept Lambda layers and pickled arrays, which run code from the file.
        progress: Called with (step, done, total); text after the first ": " of a step is detail that changes.

    Raises:
        EdgeCompressError: One of its kinds, see `edgecompress.errors`. The destination is then as it was.
    """
    say = progress or _say_nothing
    destination = Path(output) if output is not None else Path(f"{_stem(model)}-compressed.keras")
    device = find_profile(profile)
    _refuse_recipe(recipe)
    refuse_unready(recipe, train=train, data=data, resume=resume)
    refuse_teachers(recipe, _path_of(model), destination)
    with (
        TrainingFolder(destination) as checkpoints,
        whole_file(destination, source=_path_of(model)) as file,
        tempfile.TemporaryDirectory() as scratch,
    ):
        say("load", 0, 1)
        source = load_model(model, custom_objects=custom_objects, unsafe=unsafe)
        specs = apply_shapes(source.inputs, shapes_by_name(input_shape))
        samples = prepare_samples(data, train, specs, recipe, calibrate=False, input_range=input_range, unsafe=unsafe)
        refuse_unknown_ids(source, samples.training, samples.calibration, samples.held_out)
        plan_passes(source, recipe.passes, samples.fixed, device).require()
        reference = open_reference(source, recipe, samples.fixed, opener(custom_objects, unsafe=unsafe))
        original = Path(scratch, "original.keras")
        save_model(_as_it_was(source, custom_objects), original)
        answers = reference.answers(samples.held_out)

        trained = run_passes(
            source, recipe, samples, checkpoints, say, load=opener(custom_objects, unsafe=unsafe), device=device,
            resume=resume,
        )  # fmt: skip
        uncompiled = compile_as(trained.model.model, source.compile_config, where=source.name, objects=custom_objects)
        save_model(trained.model.model, file)

        say("verify", 0, 1)
        written = load_model(file, custom_objects=custom_objects, unsafe=unsafe)
        outputs = written.predict(samples.held_out.inputs, fixed=samples.fixed)
        verified = verify(answers, outputs, samples.held_out.labels, samples.kind)
        return CompressReport(
            command=compress_command_line(
                model, profile, data=data, train=train,
                output=output, recipe=recipe, input_shape=shapes_by_name(input_shape), input_range=input_range,
                custom_objects=custom_objects, unsafe=unsafe,
            ),
            versions=decisive_versions(),
            machine=describe_machine(),
            profile=None if device is None else device.name,
            source=_describe_source(source),
            recipe=recipe,
            data=samples.used,
            training=samples.trained_on,
            passes=trained.results,
            verified=verified,
            before=_file_size(*(reference.files or (original,))),
            after=_file_size(file),
            notes=notes_on_compression(
                recipe, verified, samples.used, passes=trained.results,
                trained=(*samples.notes, *trained.notes, *_on_compiling(uncompiled)),
            ),
            failed=_failed_threshold(verified, recipe),
            weights_sha256=_hash_weights(written.model),
            output=str(destination),
        )  # fmt: skip


def _as_it_was(source: LoadedModel, custom_objects: Mapping[str, Any] | None) -> Any:
    """Returns the model to compare sizes with: compiled as the result is, with an optimizer that begins anew, too."""
    copy = clone_model(source.model)
    compile_as(copy, source.compile_config, where=source.name, objects=custom_objects)
    return copy


def _on_compiling(uncompiled: str | None) -> tuple[str, ...]:
    if uncompiled is None:
        return ()
    return (f"The file holds no optimizer, loss and metrics ({uncompiled}): compile the model before training it on.",)


def _say_nothing(_step: str, _done: int, _total: int) -> None:
    pass


def _stem(model: object) -> str:
    """Returns the model's name without its file suffix; what merely looks like one in a folder's name stays."""
    if isinstance(model, LoadedModel) and model.path is not None:
        model = model.path
    if not isinstance(model, (str, os.PathLike)):
        return str(getattr(model, "name", "model"))
    path = Path(os.path.abspath(model))  # noqa: PTH100 (resolve() would follow links, and name what they point to)
    return path.stem if path.suffix in (".keras", ".h5", ".hdf5") else path.name


def _path_of(model: object) -> Path | None:
    path = model.path if isinstance(model, LoadedModel) else model
    return Path(path) if isinstance(path, (str, os.PathLike)) else None


def _refuse_recipe(recipe: Recipe) -> None:
    """Refuses a recipe that `compress` has nothing to do for, or too much."""
    if not recipe.passes:
        raise UsageError(
            "there is nothing to do: no pass was asked for",
            fix="add --distill width=0.5, --low-rank 0.5, --fuse, --prune 0.8 or --cluster 16, or a --recipe",
        )
    if recipe.qat is not None:
        raise UsageError(
            "qat ends in an integer .tflite file, which `compress` does not write",
            fix="use `edgecompress convert` with the same options, or leave --qat out",
        )


def _new_task(
    source: LoadedModel, device: Profile, recipe: Recipe, samples: Samples, reference: Future[dict[str, Any]],
    say: Progress, *, measure: bool,
) -> Task:  # fmt: skip
    """Returns what decides how the file is made; a file is judged by the float model's answers, the `reference`."""

    def judge(file: Path) -> Verified:
        outputs = run_tflite(file, dict(samples.held_out.inputs), threads=device.runtime.threads_here)
        return verify(reference.result(), outputs, samples.held_out.labels, samples.kind)

    if has_recurrent_layers(source):
        reference.result()  # its layers are replaced while it is cut: nobody may run them then
    return Task(source, device, recipe, samples, judge, say, measure=measure)


def _write_final(
    made: Quantized, final: Path, source: LoadedModel, device: Profile, recipe: Recipe, class_names: tuple[str, ...]
) -> None:
    """Writes the file with the facts about its making inside, none of which changes from run to run."""
    facts = {
        "version": own_version(),
        "profile": device.name,
        "recipe": recipe.model_dump(mode="json"),
        "source_sha256": source.sha256,
        "class_names": list(class_names),
    }
    metadata = {METADATA_KEY: json.dumps(facts, sort_keys=True).encode()}
    content = with_metadata(made.file.read_bytes(), metadata=metadata)
    final.write_bytes(content if made.stream is None else with_stream(content, made.stream))


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
    scheme: QuantizationScheme,
    artifact: Artifact,
    scores: Scores | None,
    measured: Sequence[Measurement],
    flash: FlashSize | None = None,
) -> Variant:
    return Variant(
        scheme=scheme,
        parameters=artifact.parameters,
        macs=artifact.macs,
        size_bytes=artifact.size_bytes,
        gzip_bytes=artifact.gzip_bytes,
        vela_flash_bytes=None if flash is None else flash.size_bytes,
        scores=scores,
        measurement=next(iter(measured), None),
    )


def _flash_size(file: Path, scheme: QuantizationScheme, device: Profile) -> FlashSize:
    accelerator = device.check.vela_accelerator
    if accelerator is None:
        return FlashSize()
    if not scheme.needs_calibration:
        return FlashSize(unavailable_because=f"Vela does not compile {scheme} files")
    return vela_flash_bytes(file, accelerator)


def _file_size(*paths: Path) -> FileSize:
    files = [file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    contents = [file.read_bytes() for file in files if file.is_file()]
    return FileSize(
        size_bytes=sum(map(len, contents)),
        gzip_bytes=sum(len(gzip.compress(content, compresslevel=9, mtime=0)) for content in contents),
    )


def _hash_weights(model: Any) -> str:
    return hashlib.sha256(b"".join(np.asarray(weight).tobytes() for weight in model.weights)).hexdigest()


def _latency_on_device(device: Profile, measured: Sequence[Measurement]) -> float | None:
    """A latency measured here says something about the device only if the device is this machine."""
    here = device.name == "host" and Target.CPU in device.runtime.targets
    return next((one.latency.median_ms for one in measured if here and one.latency is not None), None)


def _failed_threshold(verified: Verified, recipe: Recipe) -> tuple[str, ...]:
    most = recipe.verification.max_accuracy_drop
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
