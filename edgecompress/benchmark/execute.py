"""Predictions of a .tflite file, made in a child process that a bad file cannot take down with it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgecompress.benchmark.child import run_runner
from edgecompress.benchmark.runner import save_arrays
from edgecompress.errors import DataError
from edgecompress.streaming import read_stream

Array = npt.NDArray[Any]


def run_tflite(
    model: Path,
    inputs: Mapping[str, Array],
    *,
    threads: int = 1,
    runtime: str = "auto",
    time_limit_s: float | None = None,
) -> dict[str, Array]:
    """Runs a file on samples, in the numbers of the model's user: quantization stays inside.

    A file of one time step is run over whole sequences: its inputs and outputs are those of the network that it stands
    for, (samples, steps, ...) where they are sequences of any length, and its states stay inside, too.

    Args:
        model: The .tflite file.
        inputs: One array for each input, of shape (samples, ...), by the names of the file's signature (of its
            tensors if it has none). An array of the input's own integer type is taken as already quantized.
        threads: Threads for the CPU kernels.
        runtime: "litert", "tflite-runtime", "tensorflow", or "auto" for the first of them that is installed.
        time_limit_s: Seconds after which the process is ended; by default ten minutes and five seconds a sample.

    Returns:
        One array for each output, of shape (samples, ...); float32 where the file's output is quantized.

    Raises:
        DataError: Names, shapes or types that do not fit the model.
        ExecutionError: The runtime crashed, hung or refused the file.
        ModelError: There is no such file, or what it says of single steps does not fit it.
        UnavailableError: The runtime is not installed.
    """
    for name, values in inputs.items():
        if values.dtype.hasobject:
            raise DataError("Python objects are not numbers", where=f"{model}: input {name!r}", received=values.dtype)
    if time_limit_s is None:
        time_limit_s = 600.0 + 5.0 * max((len(values) for values in inputs.values()), default=0)
    stream = read_stream(model)
    with tempfile.TemporaryDirectory(prefix="edgecompress-") as folder:
        samples, predictions = Path(folder, "inputs.npz"), Path(folder, "outputs.npz")
        save_arrays(str(samples), inputs)
        options = [f"--inputs={samples}", f"--outputs={predictions}", f"--threads={threads}", f"--runtime={runtime}"]
        if stream is not None:
            options.append(f"--stream={stream.model_dump_json()}")
        run_runner(["predict", model, *options], where=str(model), time_limit_s=time_limit_s)
        with np.load(predictions, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
