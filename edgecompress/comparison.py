"""Two or more models side by side: the same samples, the same machine, the same minute."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from edgecompress.artifacts import read_artifact
from edgecompress.benchmark.cpu import benchmark_cpu
from edgecompress.benchmark.measurement import Measurement
from edgecompress.converters.tflite import FloatConverter, freeze_graph
from edgecompress.data import Dataset, fix_shapes, load_data
from edgecompress.errors import UsageError
from edgecompress.machine import describe_machine
from edgecompress.verify.metrics import Scores, score
from edgecompress.verify.predictor import Predictor, open_predictor


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
    files: list[Path] = []
    scores: list[Scores | None] = []
    predictors: list[Predictor] = []
    with tempfile.TemporaryDirectory() as scratch:
        for index, model in enumerate(models):
            predictor = open_predictor(
                model, input_shape=input_shape, custom_objects=custom_objects, unsafe=unsafe, threads=threads
            )
            dataset = None
            if data is not None:
                dataset = load_data(data, predictor.specs, input_range=input_range, unsafe=unsafe)
            labels = None if dataset is None else dataset.labels
            scores.append(None if dataset is None or labels is None else score(predictor.predict(dataset), labels))
            files.append(_as_tflite(predictor, dataset, Path(scratch, str(index))))
            predictors.append(predictor)
        measurements = benchmark_cpu(files, threads=threads, runs=runs)
        rows = [_row(*parts) for parts in zip(predictors, files, scores, measurements, strict=True)]
    return Comparison(machine=describe_machine(), data=None if dataset is None else dataset.source, rows=tuple(rows))


def _as_tflite(predictor: Predictor, dataset: Dataset | None, folder: Path) -> Path:
    if isinstance(predictor.source, Path):
        return predictor.source
    folder.mkdir()
    with FloatConverter() as converter:
        return converter.convert(freeze_graph(predictor.source, fix_shapes(predictor.specs, dataset)), folder)


def _row(predictor: Predictor, file: Path, scores: Scores | None, measurement: Measurement) -> Row:
    artifact = read_artifact(file)
    return Row(
        model=predictor.name,
        as_float_tflite=predictor.source is not file,
        parameters=artifact.parameters,
        macs=artifact.macs,
        size_bytes=artifact.size_bytes,
        gzip_bytes=artifact.gzip_bytes,
        scores=scores,
        measurement=measurement,
    )
