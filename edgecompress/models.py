"""Loads .keras, .h5 and SavedModel files, refusing whatever could run code, and saves Keras models.

Keras 3 reads its own formats; files of Keras 2 that it refuses are read by tf_keras; SavedModels are read by
TensorFlow. What comes back is one `LoadedModel`, whichever it was.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgecompress.compile_config import find_own_losses, read_compile_config
from edgecompress.errors import ModelError, UnavailableError, UsageError
from edgecompress.functional import cause_of
from edgecompress.loaded import LoadedModel, from_keras, from_saved_model
from edgecompress.safety import (
    advise_custom_object,
    refuse_dangerous_operations,
    refuse_unknown_classes,
    refuse_unsafe_layers,
)
from edgecompress.sources import users_code

# What `zipfile` and `json` raise for the many ways in which an archive can be damaged.
_DAMAGED_ZIP = (
    EOFError, KeyError, NotImplementedError, OSError, RuntimeError, TypeError, ValueError, zipfile.BadZipFile,
    zlib.error,
)  # fmt: skip
# Zip files know no earlier time.
_NO_TIME, _NO_DATE = (1980, 1, 1, 0, 0, 0), "1980-01-01@00:00:00"


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
        return from_keras(model, "keras", path)
    try:
        import tf_keras

        model = tf_keras.models.load_model(path, objects, compile=False, safe_mode=not unsafe)
    except Exception as error:
        raise _not_rebuilt(path, "tf_keras", error) from error
    return from_keras(model, "tf_keras", path)


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
    return from_saved_model(loaded, signatures[key], path)


def _from_memory(model: object) -> LoadedModel:
    if isinstance(model, LoadedModel):
        return model
    modules = {base.__module__.split(".")[0] for base in type(model).__mro__}
    for framework in ("keras", "tf_keras"):
        if framework in modules and hasattr(model, "weights"):
            return replace(from_keras(model, framework), compile_config=read_compile_config(model, framework))
    raise ModelError("not a model", expected="a path or a Keras model", received=type(model).__name__)
