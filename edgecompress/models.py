"""Loads .keras, .h5 and SavedModel files, refusing whatever could run code, and saves Keras models.

Keras 3 reads its own formats; files of Keras 2 that it refuses are read by tf_keras; SavedModels are read by
TensorFlow. What comes back is one `LoadedModel`, whichever it was.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import os
import re
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgecompress.compile_config import find_own_losses, read_compile_config
from edgecompress.data import Array, InputSpec
from edgecompress.errors import ModelError, UnavailableError, UsageError
from edgecompress.functional import as_functional, cause_of, no_inputs
from edgecompress.safety import (
    advise_custom_object,
    refuse_dangerous_operations,
    refuse_unknown_classes,
    refuse_unsafe_layers,
)
from edgecompress.sources import users_code

_PREDICT_BATCH = 32
# What `zipfile` and `json` raise for the many ways in which an archive can be damaged.
_DAMAGED_ZIP = (
    EOFError, KeyError, NotImplementedError, OSError, RuntimeError, TypeError, ValueError, zipfile.BadZipFile,
    zlib.error,
)  # fmt: skip
_PREDICT_VALUES = 1_000_000  # input values a batch may hold: activations of photographs would take gigabytes else
# Zip files know no earlier time.
_NO_TIME, _NO_DATE = (1980, 1, 1, 0, 0, 0), "1980-01-01@00:00:00"
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
        tree = _tree(self.framework)
        arguments = tree.pack_sequence_as(_structures(self.model)[0], list(tensors))
        flat: list[Any] = tree.flatten(self.model(arguments, training=False))
        return flat

    def predict(self, inputs: Mapping[str, Array], *, fixed: Sequence[InputSpec]) -> dict[str, Array]:
        """Runs the float model.

        Args:
            inputs: Arrays of shape (samples, …), by input name.
            fixed: The inputs with every dimension but the batch fixed; says which batch the model takes.

        Returns:
            Arrays of shape (samples, …), by output name.
        """
        samples = len(next(iter(inputs.values())))
        own_batch = next((spec.shape[0] for spec in self.inputs if spec.shape[0] is not None), None)
        values = sum(math.prod(array.shape[1:]) for array in inputs.values())
        batch = own_batch or min(_PREDICT_BATCH, max(1, _PREDICT_VALUES // max(1, values)))
        function = self._trace(fixed, batch=own_batch)
        parts: list[list[Array]] = []
        for start in range(0, samples, batch):
            rows = np.arange(start, min(start + batch, samples))
            if own_batch:  # a model that takes whole batches only gets some of the last samples twice
                rows = np.resize(rows, own_batch)
            chunk = [inputs[spec.name][rows] for spec in fixed]
            parts.append([_without_16_bits(np.asarray(tensor)) for tensor in function(*chunk)])
        return {name: np.concatenate([p[i] for p in parts])[:samples] for i, name in enumerate(self.outputs)}

    def _trace(self, fixed: Sequence[InputSpec], *, batch: int | None) -> Callable[..., list[Any]]:
        """Traces the model once, for every batch size: the last batch is a smaller one."""
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


def load_model(source: object, *, custom_objects: Mapping[str, Any] | None = None, unsafe: bool = False) -> LoadedModel:
    """Loads a model from a file or folder, or takes one that is already in memory.

    Args:
        source: Path of a .keras file, an .h5 file (Keras 3 or 2) or a SavedModel folder; or a Keras model.
        custom_objects: Custom layers and functions by name.
        unsafe: Accept Lambda layers, which run code stored in the file.

    Raises:
        ModelError: Not a model, damaged, or needing something that was not given.
        UnavailableError: TensorFlow is not installed.
    """
    _require_tensorflow()
    if not isinstance(source, (str, os.PathLike)):
        return _from_memory(source)
    path = Path(source)
    if not path.exists():
        raise ModelError("no such file or folder", where=path, fix="check the path of the model")
    if path.is_dir():
        return _load_saved_model(path, unsafe=unsafe)
    try:
        with path.open("rb") as file:
            magic = file.read(8)
    except OSError as error:
        raise ModelError(f"cannot be read: {error.strerror}", where=path, fix="check its permissions") from None
    objects = dict(custom_objects or {})
    archive = path.suffix == ".keras" and zipfile.is_zipfile(path)  # how Keras decides, whatever the file begins with
    if magic == b"\x89HDF\r\n\x1a\n" and not archive:
        return _load_h5(path, objects, unsafe=unsafe)
    if magic.startswith(b"PK") or path.suffix == ".keras":
        return _load_keras(path, objects, unsafe=unsafe)
    if magic[4:8] == b"TFL3":
        raise ModelError(
            "already a .tflite file", where=path, fix="give the Keras model it was made from, or use `inspect`"
        )
    raise ModelError("not a model", where=path, expected="a .keras or .h5 file, or a SavedModel folder")


def save_model(model: Any, path: str | Path) -> None:
    """Writes a Keras 3 model as a .keras file, whole or not at all; the same model gives the same bytes."""
    destination = Path(path)
    written, timeless = (destination.with_name(f".{destination.stem}.{os.getpid()}.{n}.keras") for n in (1, 2))
    try:
        model.save(written)
        _write_without_times(written, timeless)
        timeless.replace(destination)
    finally:
        written.unlink(missing_ok=True)
        timeless.unlink(missing_ok=True)


def _write_without_times(source: Path, destination: Path) -> None:
    """Copies a .keras file, with the time of writing, which Keras puts into it, replaced by a fixed one."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(destination, "w") as new:
        for entry in old.infolist():
            timeless = zipfile.ZipInfo(entry.filename, date_time=_NO_TIME)
            timeless.file_size = entry.file_size
            with old.open(entry) as content, new.open(timeless, "w") as copy:
                if entry.filename == "metadata.json":
                    copy.write(json.dumps(json.load(content) | {"date_saved": _NO_DATE}).encode())
                else:
                    shutil.copyfileobj(content, copy)


def import_custom_objects(names: Sequence[str]) -> dict[str, Any]:
    """Imports what `--custom-objects module:NAME` names.

    Raises:
        UsageError: A name is not of that form, or cannot be imported.
    """
    objects: dict[str, Any] = {}
    with users_code():
        for text in names:
            module, _, name = text.partition(":")
            if not module or not name:
                raise UsageError("--custom-objects takes module:NAME", received=text)
            try:
                objects[name] = getattr(importlib.import_module(module), name)
            except (Exception, SystemExit) as error:
                reason = f"{type(error).__name__}: {error}"
                raise UsageError(f"--custom-objects cannot import it ({reason})", where=text) from error
    return objects


def _require_tensorflow() -> None:
    # TensorFlow's start-up messages would stand between a user and the one line that matters.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        import tensorflow  # noqa: F401, ICN001 (only its presence matters here)
    except ImportError:
        raise UnavailableError(
            "Keras models need TensorFlow, which is not installed", fix='pip install "edgecompress[convert]"'
        ) from None


def _load_keras(path: Path, objects: dict[str, Any], *, unsafe: bool) -> LoadedModel:
    try:
        with zipfile.ZipFile(path) as archive:
            config = json.loads(archive.read("config.json"))
            version = json.loads(archive.read("metadata.json"))["keras_version"]
            broken = archive.testzip()
    except _DAMAGED_ZIP as error:
        raise ModelError(
            f"not a whole .keras file ({error})", where=path, fix="save or copy the model again: it may be truncated"
        ) from None
    if broken is not None:
        raise ModelError(f"damaged: {broken!r} inside fails its checksum", where=path, fix="copy the file again")
    _refuse_suffix(path, ".keras")
    loaded = _rebuild(path, config, str(version), objects, unsafe=unsafe)
    return replace(loaded, compile_config=find_own_losses(path, config.get("compile_config"), objects))


def _load_h5(path: Path, objects: dict[str, Any], *, unsafe: bool) -> LoadedModel:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            text, version = file.attrs.get("model_config"), str(file.attrs.get("keras_version", ""))
            training = json.loads(file.attrs.get("training_config", "null"))
        if training and "optimizer_config" in training:
            training["optimizer"] = training.pop("optimizer_config")  # the key that .keras files have
        config = None if text is None else json.loads(text)
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise ModelError(f"not a whole .h5 file ({cause_of(error)})", where=path, fix="copy the file again") from None
    if config is None:
        raise ModelError(
            "holds weights but no model", where=path,
            fix="build the model in Python, model.load_weights(...), model.save('model.keras'), and give that",
        )  # fmt: skip
    _refuse_suffix(path, ".h5", ".hdf5", ".keras")  # the last: Keras 2 could write either kind under that name
    loaded = _rebuild(path, config, version, objects, unsafe=unsafe)
    return replace(loaded, compile_config=find_own_losses(path, training, objects))


def _refuse_suffix(path: Path, *allowed: str) -> None:
    if path.suffix not in allowed:
        raise ModelError(
            f"holds what a {allowed[0]} file holds, but Keras goes by the name", where=path,
            fix=f"rename it to {path.with_suffix(allowed[0]).name}",
        )  # fmt: skip


def _rebuild(path: Path, config: object, version: str, objects: dict[str, Any], *, unsafe: bool) -> LoadedModel:
    """Builds a model from its file: with Keras 3, or, where Keras 2 wrote the file and Keras 3 refuses it, tf_keras."""
    import keras

    if not unsafe:
        refuse_unsafe_layers(path, config)
    refuse_unknown_classes(path, config, objects)
    try:
        model = keras.saving.load_model(path, objects, compile=False, safe_mode=not unsafe)
    except Exception as error:
        if version.startswith("3"):
            raise _not_rebuilt(path, "Keras 3", error) from error
    else:
        return _from_keras(model, "keras", path)
    try:
        import tf_keras

        model = tf_keras.models.load_model(path, objects, compile=False, safe_mode=not unsafe)
    except Exception as error:
        raise _not_rebuilt(path, "tf_keras", error) from error
    return _from_keras(model, "tf_keras", path)


def _not_rebuilt(path: Path, who: str, error: Exception) -> ModelError:
    cause = cause_of(error)
    unknown = re.match(r"(?:Unknown [\w ]+:|Could not locate \w+) '?([\w.>]+)'?", cause)
    if unknown:
        name = unknown[1].split(">")[-1]
        return ModelError(f"{name!r} is a custom class or function", where=path, fix=advise_custom_object(name))
    return ModelError(f"{who} cannot rebuild it: {cause}", where=path)


def _load_saved_model(path: Path, *, unsafe: bool) -> LoadedModel:
    import tensorflow as tf
    from tensorflow.core.protobuf import saved_model_pb2

    graph_file = path / "saved_model.pb"
    if not graph_file.is_file():
        raise ModelError("not a SavedModel folder: there is no saved_model.pb in it", where=path)
    description = saved_model_pb2.SavedModel()
    try:
        description.ParseFromString(graph_file.read_bytes())
        if not unsafe:
            refuse_dangerous_operations(path, description)
        loaded = tf.saved_model.load(str(path))
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"TensorFlow cannot load it: {cause_of(error)}", where=path) from error
    signatures = dict(loaded.signatures)
    key = "serving_default" if "serving_default" in signatures else next(iter(signatures), None)
    if key is None or (len(signatures) > 1 and key != "serving_default"):
        raise ModelError(
            "no signature is called 'serving_default'", where=path,
            received=", ".join(sorted(signatures)) or "no signatures",
            fix="export it with model.export(folder)",
        )  # fmt: skip
    function = signatures[key]
    # The signature is a protobuf map, whose order changes from process to process: sorted, files come out the same.
    specs = tuple(
        InputSpec(name, _shape(spec.shape), _number_type(name, spec.dtype.name))
        for name, spec in sorted(function.structured_input_signature[1].items())
    )
    digest, size = _hash_path(path)
    outputs = tuple(sorted(function.structured_outputs))
    return LoadedModel(function, "saved_model", specs, outputs, digest, size, path, _keep_alive=loaded)


def _from_memory(model: object) -> LoadedModel:
    if isinstance(model, LoadedModel):
        return model
    modules = {base.__module__.split(".")[0] for base in type(model).__mro__}
    for framework in ("keras", "tf_keras"):
        if framework in modules and hasattr(model, "weights"):
            return replace(_from_keras(model, framework, None), compile_config=read_compile_config(model, framework))
    raise ModelError("not a model", expected="a path or a Keras model", received=type(model).__name__)


def _from_keras(model: Any, framework: str, path: Path | None) -> LoadedModel:
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
