"""Two or more models side by side: the same samples, the same machine, the same minute."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from edgecompress.artifacts import read_artifact
from edgecompress.benchmark.cpu import benchmark_cpu
from edgecompress.benchmark.measurement import Measurement
from edgecompress.converters.tflite import FloatConverter, freeze_graph
from edgecompress.data import apply_shapes, fix_shapes, load_data
from edgecompress.errors import UsageError
from edgecompress.machine import describe_machine
from edgecompress.models import load_model
from edgecompress.verify.metrics import Scores, score
from edgecompress.verify.predictor import is_tflite, open_predictor


class Row(BaseModel):
    """One model. A Keras model is measured as the float32 .tflite file it becomes, and `as_float_tflite` says so."""

    model_config = ConfigDict(frozen=True)

    model: str
    as_float_tflite: bool
    parameters: int
    macs: int | None
    size_bytes: int
    gzip_bytes: int
    scores: Scores | None
    measurement: Measurement


class Comparison(BaseModel):
    """Models side by side; `scores` are there if labelled data was given."""

    model_config = ConfigDict(frozen=True)

    schema_name: Literal["edgecompress.compare/1"] = Field("edgecompress.compare/1", alias="schema")
    machine: str
    data: str | None
    rows: tuple[Row, ...]


def compare(  # noqa: PLR0913 (each is one option of the command line)
    models: Sequence[object],
    data: object = None,
    *,
    input_shape: Mapping[str, Sequence[int]] | None = None,
    input_range: tuple[float, float] | None = None,
    custom_objects: Mapping[str, Any] | None = None,
    unsafe: bool = False,
    threads: int = 1,
    runs: int = 50,
) -> Comparison:
    """Compares models by size, accuracy and latency; the latency runs take turns, so that noise meets all alike.

    Args:
        models: Paths of .tflite and Keras files, or Keras models.
        data: Samples with labels, or None to leave accuracy out.
        input_shape: Fixes dimensions that vary, by input name ("" for the only one).
        input_range: The range that 8-bit samples are mapped to.
        custom_objects: Custom layers and functions by name.
        unsafe: Accept Lambda layers and pickled arrays, which run code from the file.
        threads: Threads of the CPU kernels.
        runs: Timed runs of each model.

    Raises:
        UsageError: Fewer than two models.
    """
    if len(models) < 2:  # noqa: PLR2004 (one model has nothing to be compared with)
        raise UsageError("compare takes two or more models", received=len(models), fix="or use `benchmark`")
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        files = [
            _as_tflite(model, Path(scratch, str(index)), stack, input_shape, custom_objects, unsafe=unsafe)
            for index, model in enumerate(models)
        ]
        scores: list[Scores | None] = [None] * len(models)
        source = None
        if data is not None:
            predictors = [
                open_predictor(
                    m, input_shape=input_shape, custom_objects=custom_objects, unsafe=unsafe, threads=threads
                )
                for m in models
            ]
            for index, predictor in enumerate(predictors):
                dataset = load_data(data, predictor.specs, input_range=input_range, unsafe=unsafe)
                source = dataset.source
                if dataset.labels is not None:
                    scores[index] = score(predictor.predict(dataset), dataset.labels)
        measurements = benchmark_cpu(files, threads=threads, runs=runs)
        rows = [
            _row(model, file, found, measured)
            for model, file, found, measured in zip(models, files, scores, measurements, strict=True)
        ]
    return Comparison(machine=describe_machine(), data=source, rows=tuple(rows))


def _as_tflite(
    model: object,
    folder: Path,
    stack: ExitStack,
    input_shape: Mapping[str, Sequence[int]] | None,
    custom_objects: Mapping[str, Any] | None,
    *,
    unsafe: bool,
) -> Path:
    if is_tflite(model):
        return Path(str(model))
    converter = stack.enter_context(FloatConverter())
    loaded = load_model(model, custom_objects=custom_objects, unsafe=unsafe)
    folder.mkdir()
    fixed = fix_shapes(apply_shapes(loaded.inputs, input_shape or {}), None)
    return converter.convert(freeze_graph(loaded, fixed), folder)


def _row(model: object, file: Path, scores: Scores | None, measurement: Measurement) -> Row:
    artifact = read_artifact(file)
    return Row(
        model=Path(model).name if isinstance(model, (str, Path)) else str(getattr(model, "name", "model")),
        as_float_tflite=not is_tflite(model),
        parameters=artifact.parameters,
        macs=artifact.macs,
        size_bytes=artifact.size_bytes,
        gzip_bytes=artifact.gzip_bytes,
        scores=scores,
        measurement=measurement,
    )
