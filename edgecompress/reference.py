"""What a result is held against: the float model as it was loaded, or the teachers that it was to learn from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgecompress.data import Array, Dataset, InputSpec
from edgecompress.errors import ModelError, OutputError, UsageError
from edgecompress.loaded import LoadedModel
from edgecompress.recipes import Recipe
from edgecompress.techniques import Distill
from edgecompress.verify.predictor import Predictor, open_predictor


@dataclass(frozen=True)
class Reference:
    """What a result is compared with.

    Attributes:
        answers: From samples to outputs, arrays of shape (samples, …) by the names of the model's outputs.
        files: The teachers' files; empty where it is the model itself.
    """

    answers: Callable[[Dataset], dict[str, Array]]
    files: tuple[Path, ...] = ()


def open_reference(
    source: LoadedModel,
    recipe: Recipe,
    fixed: Sequence[InputSpec],
    *,
    custom_objects: Mapping[str, Any] | None,
    unsafe: bool,
) -> Reference:
    """Returns what a recipe's result is held against: files that teach, by their mean, else the model.

    Raises:
        ModelError: A teacher cannot be read, or answers something else than the model.
    """
    paths = [Path(path) for one in _learning(recipe) for path in one.teachers]
    if not paths:
        return Reference(lambda data: source.predict(data.inputs, fixed=fixed))
    teachers = [open_predictor(path, custom_objects=custom_objects, unsafe=unsafe) for path in paths]

    def answers(data: Dataset) -> dict[str, Array]:
        found = [_in_order(teacher, data, source) for teacher in teachers]
        return {name: np.mean([one[k] for one in found], axis=0) for k, name in enumerate(source.outputs)}

    return Reference(answers, tuple(paths))


def refuse_teachers(recipe: Recipe, model: Path | None, destination: Path) -> None:
    """Refuses files that cannot teach: the model itself, and what the result would replace.

    Args:
        recipe: Its distill passes name the files.
        model: The file of the model, or None.
        destination: The file or folder that is to be written.

    Raises:
        UsageError: The model is to learn from itself.
        OutputError: The result would take the place of a teacher, or lie in its folder.
    """
    written = destination.resolve()
    for one in _learning(recipe):
        for path in map(Path, one.teachers):
            read = path.resolve()
            if read == written or written in read.parents or read in written.parents:
                raise OutputError(
                    f"would change {path}, which teaches", where=destination, fix="choose another name with -o"
                )
            if model is not None and read == model.resolve() and not one.makes_student:
                raise UsageError(
                    "a model cannot teach itself", where=path,
                    fix="give another teacher, or width=1, which makes a new model of the same size",
                )  # fmt: skip


def _learning(recipe: Recipe) -> list[Distill]:
    return [one for one in recipe.passes if isinstance(one, Distill)]


def _in_order(teacher: Predictor, data: Dataset, source: LoadedModel) -> list[Array]:
    wanted, names = [spec.name for spec in teacher.specs], [spec.name for spec in source.inputs]
    arrays = [data.inputs[name] for name in (wanted if set(wanted) == set(names) else names)]
    if len(arrays) != len(wanted):
        raise ModelError(
            "the teacher takes something else than the student", where=teacher.name, expected=", ".join(names),
            received=", ".join(wanted), fix="give a teacher with the student's inputs",
        )  # fmt: skip
    outputs = list(teacher.predict(Dataset(dict(zip(wanted, arrays, strict=True)))).values())
    if len(outputs) != len(source.outputs):
        raise ModelError(
            "teacher and student give different answers", where=teacher.name, expected=f"{len(source.outputs)} outputs",
            received=len(outputs), fix="give a teacher with the student's outputs",
        )  # fmt: skip
    return outputs
