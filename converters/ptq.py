"""Post-training quantization of a float .tflite file by litert-quantizer, in a child process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgecompress.data import Dataset
from edgecompress.errors import ConversionError, UnavailableError
from edgecompress.isolate import Child, Progress
from edgecompress.schemes import Algorithm, Granularity, IoType, QuantizationScheme

_TIME_LIMIT_S = 3600.0


@dataclass(frozen=True)
class QuantizationJob:
    """What to make of a float .tflite file.

    Attributes:
        scheme: Any scheme but `float32`.
        algorithm: How the scales of the weights are found.
        dense: Granularity of FULLY_CONNECTED weights.
        input_type: Type of the inputs; only `int8` and `int16x8` files can have integers there.
        output_type: Type of the outputs; likewise.
    """

    scheme: QuantizationScheme
    algorithm: Algorithm = Algorithm.MIN_MAX
    dense: Granularity = Granularity.PER_CHANNEL
    input_type: IoType = IoType.FLOAT32
    output_type: IoType = IoType.FLOAT32


def quantize(  # noqa: PLR0913 (each is one of the quantization's conditions)
    source: Path,
    destination: Path,
    job: QuantizationJob,
    *,
    calibration: Dataset | None,
    threads: int,
    ranges: Mapping[str, tuple[float, float]] | None = None,
    statistics: Path | None = None,
    progress: Progress | None = None,
) -> None:
    """Writes the quantized file.

    Args:
        source: A float .tflite file with one signature.
        destination: The file to write.
        job: What to make of it.
        calibration: Samples that set the ranges of the activations; needed by `int8`, `int16x8` and GPTQ.
        threads: Threads of the calibration runs.
        ranges: Ranges that are known otherwise, by the names of inputs in the signature or of tensors.
        statistics: A file to write with the ranges of all activations, by the names of the tensors (.npz).
        progress: Called with (samples done, samples).

    Raises:
        ConversionError: litert-quantizer refused the model, crashed or hung.
        UnavailableError: litert-quantizer is not installed.
    """
    message = {
        "source": str(source),
        "destination": str(destination),
        "scheme": job.scheme.value,
        "algorithm": job.algorithm.value,
        "dense": job.dense.value,
        "input_type": io_type(job.scheme, job.input_type).value,
        "output_type": io_type(job.scheme, job.output_type).value,
        "threads": threads,
        "ranges": dict(ranges or {}),
        "statistics": None if statistics is None else str(statistics),
        "calibration": _write_samples(calibration, source.parent, job) if _needs_samples(job) else {},
    }
    with Child("edgecompress.converters.ptq_child") as child:
        outcome, result = child.run(message, time_limit_s=_TIME_LIMIT_S, progress=progress)
    if result is None:
        if "No module named 'litert_quantizer'" in outcome.stderr:
            raise UnavailableError("litert-quantizer is not installed", fix='pip install "edgecompress[convert]"')
        raise ConversionError(
            f"litert-quantizer {outcome.how_it_ended} while it made {job.scheme}: {outcome.last_words[:200]}",
            fix="try another --scheme or --algorithm",
        )
    if "error" in result:
        raise ConversionError(
            f"litert-quantizer cannot make {job.scheme} of this model: {result['error'][:300]}",
            fix="try another --scheme or --algorithm",
        )


def io_type(scheme: QuantizationScheme, wanted: IoType) -> IoType:
    """Returns the type that a file of this scheme really has where `wanted` was asked for.

    Weight-only schemes compute in float at their borders; an integer border of int16x8 is int16.
    """
    if not scheme.needs_calibration or wanted is IoType.FLOAT32:
        return IoType.FLOAT32
    if scheme is QuantizationScheme.INT16X8:
        return IoType.INT16
    return IoType.UINT8 if wanted is IoType.UINT8 else IoType.INT8


def _needs_samples(job: QuantizationJob) -> bool:
    gptq = job.algorithm is Algorithm.GPTQ and job.scheme is not QuantizationScheme.FLOAT16  # float16 only casts
    return gptq or job.scheme.needs_calibration


def _write_samples(calibration: Dataset | None, folder: Path, job: QuantizationJob) -> dict[str, str]:
    if calibration is None:
        raise ConversionError(f"{job.scheme} by {job.algorithm} needs calibration samples", fix="pass --data")
    files = {}
    for index, (name, array) in enumerate(calibration.inputs.items()):
        file = folder / f"calibration_{index}.npy"
        np.save(file, array)
        files[name] = str(file)
    return files
