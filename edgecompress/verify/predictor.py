"""One way to ask any model for its answers, whatever file it is in."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgecompress.artifacts import read_artifact
from edgecompress.benchmark.execute import run_tflite
from edgecompress.data import Array, Dataset, InputSpec, apply_shapes, fix_shapes
from edgecompress.loaded import LoadedModel
from edgecompress.models import load_model
from edgecompress.streaming import read_stream


@dataclass(frozen=True)
class Predictor:
    """A model that can be asked.

    Attributes:
        name: What tables call it.
        specs: Its inputs in the user's terms: float where a .tflite file quantizes them itself.
        predict: From samples to outputs, arrays of shape (samples, …) by output name.
        source: The .tflite file, or the Keras model.
    """

    name: str
    specs: tuple[InputSpec, ...]
    predict: Callable[[Dataset], dict[str, Array]]
    source: Path | LoadedModel


def is_tflite(model: object) -> bool:
    """Says whether this is the path of a .tflite file, by its content where there is one."""
    if not isinstance(model, (str, os.PathLike)):
        return False
    path = Path(model)
    if path.is_file():
        with path.open("rb") as file:
            return file.read(8)[4:] == b"TFL3"
    return path.suffix == ".tflite"


def open_predictor(
    model: object,
    *,
    input_shape: Mapping[str, Sequence[int]] | None = None,
    custom_objects: Mapping[str, Any] | None = None,
    unsafe: bool = False,
    threads: int = 1,
) -> Predictor:
    """Opens a .tflite file (run in a child process) or a Keras model.

    Raises:
        ModelError: It is neither.
    """
    if is_tflite(model) or (isinstance(model, (str, os.PathLike)) and Path(model).suffix == ".tflite"):
        return _open_tflite(Path(str(model)), threads)
    loaded = load_model(model, custom_objects=custom_objects, unsafe=unsafe)
    specs = apply_shapes(loaded.inputs, input_shape or {})
    return Predictor(
        loaded.name, specs, lambda data: loaded.predict(data.inputs, fixed=fix_shapes(specs, data)), loaded
    )


def _open_tflite(path: Path, threads: int) -> Predictor:
    stream = read_stream(path)
    states = () if stream is None else tuple(state.input for state in stream.states)
    specs = tuple(
        InputSpec(
            name,
            _shape(tensor.shape, is_sequence=stream is not None and name in stream.inputs),
            "float32" if tensor.scale is not None else tensor.dtype,
        )
        for name, tensor in read_artifact(path).signature.inputs.items()
        if name not in states
    )
    return Predictor(path.name, specs, lambda data: run_tflite(path, dict(data.inputs), threads=threads), path)


def _shape(shape: Sequence[int], *, is_sequence: bool) -> tuple[int | None, ...]:
    """Returns the shape of samples: any number of them, and of a file of single steps any number of steps."""
    known = [None if size < 0 else size for size in shape[1:]]
    return (None, None, *known[1:]) if is_sequence else (None, *known)
