"""What a model is made of: a Keras model's layers, parameters and multiply-accumulates, or a .tflite file's operators.

The caller passes the Keras model; importing this module imports neither Keras nor TensorFlow.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from edgecompress.artifacts import Artifact, read_artifact
from edgecompress.errors import ModelError
from edgecompress.graphs import DTYPE_BITS
from edgecompress.keras_macs import FRAMEWORKS, Call, NotCountedError, Shape, call_macs, graph_calls, shapes


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LayerInfo(_Value):
    """A layer, or an operation such as an addition, of a Keras model."""

    name: str = Field(description="Its name; 'outer/inner' inside a nested model.")
    kind: str = Field(description="Name of its class.")
    output_shape: Shape = Field(description="Shape of its first output, batch first; None where it varies.")
    dtype: str = Field(description="Number type that it computes in.")
    parameters: int
    trainable_parameters: int
    macs: int | None = Field(description="Multiply-accumulates of all its calls for one sample; absent if not known.")
    bytes: int = Field(description="Size of its parameters.")


class TensorSpec(NamedTuple):
    """An input or output: its shape, batch first with None for sizes that vary, and its number type."""

    shape: Shape
    dtype: str


class ModelSummary(_Value):
    """A Keras model, layer by layer."""

    name: str
    path: Path | None = Field(description="Where it came from, if from a file.")
    format: str = Field(description="The Keras that it belongs to: 'keras' (version 3) or 'tf_keras' (version 2).")
    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]
    layers: tuple[LayerInfo, ...] = Field(description="In the order in which they are called, without inputs.")
    parameters: int
    macs: int | None = Field(description="Multiply-accumulates for one sample; absent if any layer's are.")
    bytes: int = Field(description="Size of the parameters.")
    not_counted: tuple[str, ...] = Field(description="The layers whose MACs are not known, and why.")


def inspect(
    source: object, *, custom_objects: Mapping[str, Any] | None = None, unsafe: bool = False
) -> ModelSummary | Artifact:
    """Reads a model of any kind.

    Args:
        source: Path of a .tflite, .keras or .h5 file, or a Keras model.
        custom_objects: Custom layers and functions by name.
        unsafe: Accept Lambda layers, which run code stored in the file.

    Raises:
        ModelError: Not a model, damaged, or a SavedModel, which has no layers.
        UnavailableError: A Keras model, and TensorFlow is not installed.
    """
    if isinstance(source, (str, os.PathLike)) and _is_tflite(Path(source)):
        return inspect_tflite(source)
    from edgecompress.models import load_model

    loaded = load_model(source, custom_objects=custom_objects, unsafe=unsafe)
    if not loaded.is_keras:
        raise ModelError(
            "a SavedModel has no layers to look at", where=loaded.path, fix="convert it, and inspect the .tflite file"
        )
    return summarize_keras(loaded.model).model_copy(update={"path": loaded.path})


def inspect_tflite(path: str | os.PathLike[str]) -> Artifact:
    """Reads a .tflite file: the same as `read_artifact`."""
    return read_artifact(path)


def summarize_keras(model: Any) -> ModelSummary:
    """Lists the layers of a Keras 3 or tf_keras model.

    A layer that is called several times counts its parameters once and its multiply-accumulates each time.

    Raises:
        ModelError: The model has no graph of layers (it is subclassed, or was never built).
    """
    calls = graph_calls(model)
    if calls is None:
        raise ModelError(
            "the model has no graph of layers (it is subclassed, or was never built)",
            where=getattr(model, "name", None),
            fix="wrap it: x = keras.Input(shape); keras.Model(x, model(x))",
        )
    records: dict[int, _Record] = {}
    _collect(calls, "", records)
    layers = tuple(record.info() for record in records.values())
    weights = _distinct(weight for record in records.values() for weight in _weights(record.layer))
    not_counted = tuple(f"{record.name}: {reason}" for record in records.values() for reason in record.reasons)
    return ModelSummary(
        name=model.name,
        path=None,
        format=_framework(model),
        inputs=_named([tensor.name.split(":")[0] for tensor in model.inputs], model.inputs),
        outputs=_named(getattr(model, "output_names", None) or [model.layers[-1].name], model.outputs),
        layers=layers,
        parameters=_count(weights),
        macs=None if not_counted else sum(record.macs for record in records.values()),
        bytes=_bytes(weights),
        not_counted=not_counted,
    )


@dataclass
class _Record:
    """A layer and what its calls add up to."""

    name: str
    layer: Any
    output_shape: Shape
    macs: int = 0
    reasons: dict[str, None] = field(default_factory=dict)  # an ordered set

    def info(self) -> LayerInfo:
        weights = _distinct(_weights(self.layer))
        return LayerInfo(
            name=self.name,
            kind=type(self.layer).__name__,
            output_shape=self.output_shape,
            dtype=str(getattr(self.layer, "compute_dtype", None) or "float32"),
            parameters=_count(weights),
            trainable_parameters=_count(_distinct(getattr(self.layer, "trainable_weights", ()))),
            macs=None if self.reasons else self.macs,
            bytes=_bytes(weights),
        )


def _collect(calls: Iterable[Call], prefix: str, records: dict[int, _Record]) -> None:
    for call in calls:
        name = f"{prefix}{call.layer.name}"
        inner = graph_calls(call.layer)
        if inner is not None:
            _collect(inner, f"{name}/", records)
            continue
        record = records.setdefault(id(call.layer), _Record(name, call.layer, call.output))
        try:
            record.macs += call_macs(call)
        except NotCountedError as reason:
            record.reasons[str(reason)] = None


def _framework(model: Any) -> str:
    modules = {base.__module__.split(".")[0] for base in type(model).__mro__}
    return next(name for name in FRAMEWORKS if name in modules)


def _weights(layer: Any) -> list[Any]:
    return list(getattr(layer, "weights", ()))


def _distinct(weights: Iterable[Any]) -> list[Any]:
    return list({id(weight): weight for weight in weights}.values())


def _size(weight: Any) -> int:
    return math.prod(int(size) for size in weight.shape)


def _count(weights: Iterable[Any]) -> int:
    return sum(_size(weight) for weight in weights)


def _bytes(weights: Iterable[Any]) -> int:
    return sum((_size(weight) * DTYPE_BITS.get(_dtype(weight), 0) + 7) // 8 for weight in weights)


def _dtype(tensor: Any) -> str:
    return str(getattr(tensor.dtype, "name", tensor.dtype))


def _named(names: Sequence[str], tensors: Sequence[Any]) -> dict[str, TensorSpec]:
    """Names each tensor, with _1, _2, … after a name that comes again."""
    named: dict[str, TensorSpec] = {}
    for position, (tensor, shape) in enumerate(zip(tensors, shapes(tensors), strict=True)):
        earlier = list(names[:position]).count(names[position])
        named[f"{names[position]}_{earlier}" if earlier else names[position]] = TensorSpec(shape, _dtype(tensor))
    return named


def _is_tflite(path: Path) -> bool:
    if path.suffix == ".tflite":
        return True
    try:
        with path.open("rb") as file:
            return file.read(8)[4:] == b"TFL3"
    except OSError:
        return False
