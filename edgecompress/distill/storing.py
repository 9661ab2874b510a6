"""Teachers in the file of a Distiller: models of Keras 3 whole, all others by their path and hash."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from edgecompress.artifacts import read_artifact
from edgecompress.distill.teachers import Ensemble, ModelTeacher, Teacher, TfliteTeacher
from edgecompress.errors import ModelError
from edgecompress.models import load_model

_WEIGHTS = "teacher.npz"


def describe_teachers(teacher: Teacher | None) -> list[dict[str, Any]] | None:
    """Returns what can be stored of a teacher, as JSON.

    Raises:
        ModelError: It is a Keras 2 model in memory, which no file of Keras 3 can hold.
    """
    return None if teacher is None else [_describe(one) for one in _members(teacher)]


def restore_teachers(stored: Sequence[Mapping[str, Any]] | None) -> list[Any] | None:
    """Returns what `describe_teachers` described: models with new weights, and paths.

    Raises:
        ModelError: A file is not there any more, or is another.
    """
    return None if stored is None else [_restore(one) for one in stored]


def models_of(teacher: Teacher | None) -> list[Any]:
    """Returns what teaches: Keras models, functions of SavedModels, and paths of .tflite files."""
    return [one.loaded.model if isinstance(one, ModelTeacher) else one.path for one in _members(teacher)]


def write_weights(teacher: Teacher | None, folder: str | Path) -> None:
    """Writes the weights of the teachers that are stored whole."""
    np.savez(Path(folder) / _WEIGHTS, *map(np.asarray, _variables(teacher)))


def read_weights(teacher: Teacher | None, folder: str | Path) -> None:
    """Gives teachers, which were restored with new weights, those that were written."""
    with np.load(Path(folder) / _WEIGHTS, allow_pickle=False) as file:
        for variable, name in zip(_variables(teacher), file.files, strict=True):
            variable.assign(file[name])


def _variables(teacher: Teacher | None) -> list[Any]:
    whole = (one for one in _members(teacher) if isinstance(one, ModelTeacher) and one.loaded.framework == "keras")
    return [variable for one in whole for variable in one.loaded.model.variables]


def _members(teacher: Teacher | None) -> Sequence[Any]:
    if isinstance(teacher, Ensemble):
        return teacher.members
    return [] if teacher is None else [teacher]


def _describe(teacher: Any) -> dict[str, Any]:
    if isinstance(teacher, TfliteTeacher):
        return {"file": str(teacher.path.resolve()), "sha256": teacher.sha256}
    loaded = teacher.loaded
    if loaded.framework == "keras":
        stored: dict[str, Any] = keras.saving.serialize_keras_object(loaded.model)
        return stored
    if loaded.path is None:
        raise ModelError(
            "a Keras 2 model in memory cannot be stored", where=f"teacher {loaded.name}",
            fix="save it as .h5, and give the Distiller the path; or save the student only: distiller.student.save(…)",
        )  # fmt: skip
    return {"file": str(loaded.path.resolve()), "sha256": loaded.sha256}


def _restore(stored: Mapping[str, Any]) -> Any:
    if "file" not in stored:
        return keras.saving.deserialize_keras_object(stored)
    path = Path(stored["file"])
    if not path.exists():
        raise ModelError("the teacher's file is not there any more", where=path, fix="put it back, or distill anew")
    found = read_artifact(path).sha256 if path.suffix == ".tflite" else load_model(path).sha256
    if found != stored["sha256"]:
        raise ModelError("the teacher's file is another than before", where=path, fix="put it back, or distill anew")
    return path
