"""A model ready to be converted: what it takes and gives, how it is called, which layers it has."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgecompress.data import Array, InputSpec
from edgecompress.errors import ModelError
from edgecompress.functional import as_functional, no_inputs
from edgecompress.states import at_rest

_PREDICT_BATCH = 32
_PREDICT_VALUES = 1_000_000  # input values a batch may hold: activations of photographs would take gigabytes else
_RECURRENT = frozenset({"RNN", "GRU", "LSTM", "SimpleRNN", "Bidirectional", "ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D"})


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to be converted, with what the rest of the pipeline needs to know about it.

    Attributes:
        model: The Keras 3 or tf_keras model, or the TensorFlow function of a SavedModel's signature.
        framework: `keras`, `tf_keras` or `saved_model`.
        inputs: Its inputs, in signature order.
        outputs: Names of its outputs, in signature order.
        sha256: Hash of the file or folder it came from; of its weights if it came from memory.
        size_bytes: Size of that file or folder, or None.
        path: Where it came from, or None.
        compile_config: What Keras stored of its optimizer, loss and metrics, or None; the user's own losses as objects,
            if they are known.
    """

    model: Any
    framework: str
    inputs: tuple[InputSpec, ...]
    outputs: tuple[str, ...]
    sha256: str
    size_bytes: int | None = None
    path: Path | None = None
    compile_config: Mapping[str, Any] | None = None
    _keep_alive: object = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """What tables and errors call it: the name of its file or folder, or the model's own."""
        return self.path.name if self.path is not None else str(getattr(self.model, "name", "model"))

    @property
    def is_keras(self) -> bool:
        return self.framework != "saved_model"

    def call(self, *tensors: Any) -> list[Any]:
        """Calls the model in inference mode; takes and returns flat lists of tensors, in signature order."""
        if self.framework == "saved_model":
            results = self.model(**{spec.name: tensor for spec, tensor in zip(self.inputs, tensors, strict=True)})
            return [results[name] for name in self.outputs]
        return self._call_keras(self.model, tensors)

    def call_body(self, *tensors: Any) -> list[Any]:
        """Does what `call` does for a Keras model, on shapes that the model does not say it takes."""
        return self._call_keras(self.model.call, tensors)

    def nested_inputs(self, flat: Sequence[Any]) -> Any:
        """Returns one thing for each input of a Keras model, nested as its inputs are."""
        return _tree(self.framework).pack_sequence_as(_structures(self.model)[0], list(flat))

    def nested_outputs(self, flat: Sequence[Any]) -> Any:
        """Returns one thing for each output of a Keras model, nested as its outputs are."""
        return _tree(self.framework).pack_sequence_as(_structures(self.model)[1], list(flat))

    def _call_keras(self, function: Callable[..., Any], tensors: Sequence[Any]) -> list[Any]:
        flat: list[Any] = _tree(self.framework).flatten(function(self.nested_inputs(tensors), training=False))
        return flat

    def predict(self, inputs: Mapping[str, Array], *, fixed: Sequence[InputSpec]) -> dict[str, Array]:
        """Runs the float model, which keeps what its stateful layers remember; they begin with zeros here.

        Args:
            inputs: Arrays of shape (samples, …), by input name.
            fixed: The inputs with every dimension but the batch fixed.

        Returns:
            Arrays of shape (samples, …), by output name.
        """
        samples = len(next(iter(inputs.values())))
        own_batch = next((spec.shape[0] for spec in self.inputs if spec.shape[0] is not None), None)
        values = sum(math.prod(array.shape[1:]) for array in inputs.values())
        batch = own_batch or min(_PREDICT_BATCH, max(1, _PREDICT_VALUES // max(1, values)))
        function = self._trace(fixed, batch=own_batch)
        parts: list[list[Array]] = []
        with at_rest(self.model._flatten_layers() if self.is_keras else ()):  # noqa: SLF001
            for start in range(0, samples, batch):
                rows = np.arange(start, min(start + batch, samples))
                if own_batch:  # a model that takes whole batches only gets some of the last samples twice
                    rows = np.resize(rows, own_batch)
                chunk = [inputs[spec.name][rows] for spec in fixed]
                parts.append([_without_16_bits(np.asarray(tensor)) for tensor in function(*chunk)])
        return {name: np.concatenate([p[i] for p in parts])[:samples] for i, name in enumerate(self.outputs)}

    def _trace(self, fixed: Sequence[InputSpec], *, batch: int | None) -> Callable[..., list[Any]]:
        """Traces the model once, for its own batch, or for every size: the last batch is a smaller one."""
        import tensorflow as tf

        signature = [tf.TensorSpec((batch, *spec.sample_shape), spec.dtype) for spec in fixed]
        traced = tf.function(self.call, input_signature=signature, autograph=False).get_concrete_function()
        return lambda *arrays: traced(
            *(tf.constant(array, spec.dtype) for array, spec in zip(arrays, fixed, strict=True))
        )

    def recurrent_layers(self) -> tuple[str, ...]:
        """Returns the names of the recurrent layers, empty for a SavedModel (its graph has no layers)."""
        if not self.is_keras:
            return ()
        return tuple(
            layer.name
            for layer in flatten_layers(self.model)
            if any(base.__name__ in _RECURRENT for base in type(layer).__mro__)
        )


def flatten_layers(model: Any) -> Iterator[Any]:
    """Yields the layers of a Keras model, those of nested models in the place of the model."""
    for layer in getattr(model, "layers", ()):
        if getattr(layer, "layers", None):
            yield from flatten_layers(layer)
        else:
            yield layer


def graph_layers(model: Any) -> Iterator[tuple[Any, Sequence[Any]]]:
    """Yields the layers and nested models in a Keras model's graph, each with its input tensors, in their order."""
    graph = getattr(model, "_functional", None) or model
    by_depth = getattr(graph, "_nodes_by_depth", None) or {}
    for depth in sorted(by_depth, reverse=True):
        for node in by_depth[depth]:
            if hasattr(node, "operation"):  # Keras 3
                yield node.operation, node.input_tensors
            else:
                yield node.layer, node.keras_inputs


def from_keras(model: Any, framework: str, path: Path | None = None) -> LoadedModel:
    """Takes a model of Keras 3 ("keras") or tf_keras, which came from a file or from memory.

    Raises:
        ModelError: It has no known inputs, or takes something else than numbers.
    """
    if framework == "keras":
        model = as_functional(model, where=path)
    tensors = getattr(model, "inputs", None)
    if not tensors:
        raise no_inputs(path or model.name)
    inputs, outputs = _structures(model)
    names = _names(framework, inputs, [_layer_name(tensor) for tensor in tensors])
    specs = tuple(
        InputSpec(name, _shape(tensor.shape), _number_type(name, str(getattr(tensor.dtype, "name", tensor.dtype))))
        for name, tensor in zip(names, tensors, strict=True)
    )
    output_names = getattr(model, "output_names", None) or [model.layers[-1].name]
    if path is None:
        digest, size = hashlib.sha256(b"".join(np.asarray(w).tobytes() for w in model.weights)).hexdigest(), None
    else:
        digest, size = _hash_path(path)
    return LoadedModel(model, framework, specs, _names(framework, outputs, output_names), digest, size, path)


def from_saved_model(loaded: Any, function: Any, path: Path) -> LoadedModel:
    """Takes a function of a SavedModel that was loaded from a folder.

    Raises:
        ModelError: It takes something else than numbers.
    """
    # The signature is a protobuf map, whose order changes from process to process: sorted, files come out the same.
    specs = tuple(
        InputSpec(name, _shape(spec.shape), _number_type(name, spec.dtype.name))
        for name, spec in sorted(function.structured_input_signature[1].items())
    )
    digest, size = _hash_path(path)
    outputs = tuple(sorted(function.structured_outputs))
    return LoadedModel(function, "saved_model", specs, outputs, digest, size, path, _keep_alive=loaded)


def _tree(framework: str) -> Any:
    """Returns the functions with which a framework flattens nested inputs and outputs: their orders differ."""
    if framework == "keras":
        import keras

        return keras.tree
    import tensorflow as tf

    return tf.nest


def _structures(model: Any) -> tuple[Any, Any]:
    """Returns how a model's inputs and outputs are nested, as it was built: tensors in lists or dicts."""
    graph = getattr(model, "_functional", None) or model  # a Sequential of Keras 3 holds the functional model it is
    for inputs, outputs in (("_inputs_struct", "_outputs_struct"), ("_nested_inputs", "_nested_outputs")):
        if hasattr(graph, inputs):
            return getattr(graph, inputs), getattr(graph, outputs)
    return model.inputs, model.outputs


def _names(framework: str, structure: Any, otherwise: Sequence[str]) -> tuple[str, ...]:
    """Names tensors as the user knows them: the keys of a dict of tensors, else the names of their layers."""
    positions = _tree(framework).pack_sequence_as(structure, list(range(len(otherwise))))
    if isinstance(positions, dict) and all(isinstance(position, int) for position in positions.values()):
        return tuple(str(key) for key in sorted(positions, key=positions.__getitem__))
    return _unique(otherwise)


def _layer_name(tensor: Any) -> str:
    history: Any = getattr(tensor, "_keras_history", None)
    return str((history.operation if hasattr(history, "operation") else history.layer).name)


def _unique(names: Sequence[str]) -> tuple[str, ...]:
    seen: dict[str, int] = {}
    result = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        result.append(name if seen[name] == 1 else f"{name}_{seen[name] - 1}")
    return tuple(result)


def _number_type(name: str, dtype: str) -> str:
    if dtype in ("string", "resource", "variant"):
        raise ModelError(
            f"input {name!r} takes {dtype}s, and .tflite files here take numbers",
            fix="leave the text preprocessing out of the model and feed it the numbers that come out",
        )
    return dtype


def _without_16_bits(array: Array) -> Array:
    """Returns the answers of a model that computes in 16 bits as what its .tflite file answers."""
    return array.astype(np.float32) if array.dtype.name in ("float16", "bfloat16") else array


def _shape(shape: Any) -> tuple[int | None, ...]:
    if getattr(shape, "rank", 0) is None:
        raise ModelError("an input has no known rank", fix="export the model with an input signature")
    return tuple(None if size is None else int(size) for size in shape)


def _hash_path(path: Path) -> tuple[str, int]:
    """Returns the SHA-256 and the size of a file, or of a folder's files in name order."""
    digest, size = hashlib.sha256(), 0
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    for file in files:
        if path.is_dir():
            digest.update(str(file.relative_to(path)).encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
                size += len(block)
    return digest.hexdigest(), size
