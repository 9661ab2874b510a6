"""Runs a file of one time step in this process, as an application does: a step whenever there is one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgecompress.benchmark.child import ERRORS
from edgecompress.benchmark.runner import (
    RUNTIMES,
    Port,
    RunnerError,
    StepLoop,
    check_samples,
    find_runtime,
    from_model,
    open_interpreter,
    predict_samples,
    runtime_errors,
    to_model,
)
from edgecompress.data import Array
from edgecompress.errors import DataError, ModelError, UsageError, did_you_mean
from edgecompress.streaming import read_stream


class StreamRunner:
    """Keeps the states of a file of one time step from step to step; they begin with zeros.

    Inputs and outputs are one sample, without batch, in the numbers of the model's user. Arrays of an input's own
    integer type are taken as already quantized. The file runs in this process, so it should be one that is trusted.

    Example:
        listener = StreamRunner("keywords.tflite")
        for frame in frames:
            probabilities = listener.step(audio=frame)["probabilities"]

    Args:
        path: The .tflite file.
        threads: Threads for the CPU kernels.
        runtime: "litert", "tflite-runtime", "tensorflow", or "auto" for the first of them that is installed.

    Attributes:
        stream: What the file says of its steps.

    Raises:
        ExecutionError: The runtime refused the file.
        ModelError: There is no such file, or it is not one of single steps.
        UnavailableError: The runtime is not installed.
    """

    def __init__(self, path: str | os.PathLike[str], *, threads: int = 1, runtime: str = "auto") -> None:
        self._path = Path(path)
        stream = read_stream(path)
        if stream is None:
            raise ModelError(
                "not a file of one time step", where=path,
                fix="run it with `run_tflite`, or convert the model with --recurrent step",
            )  # fmt: skip
        self.stream = stream
        if runtime not in ("auto", *RUNTIMES):
            raise UsageError(
                "there is no such runtime", received=runtime, fix=did_you_mean(runtime, ("auto", *RUNTIMES))
            )
        with self._named_errors():
            interpreter = open_interpreter(str(path), find_runtime(runtime), threads)
            self._loop = StepLoop(interpreter, stream.model_dump())
            self._loop.reset()

    def reset(self) -> None:
        """Begins a new sequence."""
        self._loop.reset()

    def step(self, **inputs: npt.ArrayLike) -> dict[str, Array]:
        """Runs one step.

        Args:
            inputs: By name, without batch: of a sequence one step, (features…), of others the whole.

        Returns:
            The outputs of this step by name, without batch and step.

        Raises:
            DataError: Names, shapes or types that do not fit the model.
            ExecutionError: The runtime refused the values.
        """
        sequences = self.stream.inputs
        samples = {
            name: _array(name, values)[(None, None) if name in sequences else None] for name, values in inputs.items()
        }
        with self._named_errors():
            check_samples(self._loop.inputs, samples)
            ports = self._loop.inputs.items()
            self._loop.advance({name: to_model(name, samples[name], port, raw=False) for name, port in ports})
            return {name: self._read(name, port) for name, port in self._loop.outputs.items()}

    def run(self, **inputs: npt.ArrayLike) -> dict[str, Array]:
        """Runs a whole sequence from its beginning, as the network would.

        Args:
            inputs: By name, without batch: a sequence is (steps, features…), with any number of steps.

        Returns:
            The outputs by name, without batch: (steps, …) those that have a value for each step.

        Raises:
            DataError: Names, shapes or types that do not fit the model.
            ExecutionError: The runtime refused the values.
        """
        samples = {name: _array(name, values)[None] for name, values in inputs.items()}
        with self._named_errors():
            results = predict_samples(self._loop, samples, raw=False)
        return {name: values[0] for name, values in results.items()}

    def _read(self, name: str, port: Port) -> Array:
        values = self._loop.read(name)[0]
        return from_model(values[0] if name in self.stream.outputs else values, port, raw=False)

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            with runtime_errors(str(self._path)):
                yield
        except RunnerError as error:
            details: Mapping[str, str] = {
                key: value for key, value in error.document.items() if key not in ("error", "kind")
            }
            raise ERRORS[error.document["kind"]](error.document["error"], **details) from None


def _array(name: str, values: npt.ArrayLike) -> Array:
    try:
        return np.asarray(values)
    except ValueError as error:
        raise DataError(f"not an array of numbers: {error}", where=f"input {name!r}") from None
