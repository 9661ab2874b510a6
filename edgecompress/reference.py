"""What a result is held against: the float model as it was loaded, or the teachers that it was to learn from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgecompress.data import Array, Dataset, InputSpec
from edgecompress.errors import OutputError, UsageError
from edgecompress.loaded import LoadedModel
from edgecompress.models import load_model
from edgecompress.recipes import Recipe
from edgecompress.techniques import Distill
from edgecompress.verify.predictor import is_tflite

_BATCH = 64


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
    load: Callable[[str], Any],
) -> Reference:
    """Returns what a recipe's result is held against: files that teach, by their mean, else the model.

    Args:
        source: The model.
        recipe: Its distill passes name the files.
        fixed: The model's inputs with every dimension known.
        load: Opens a file that teaches; see `opener`.

    Raises:
        ModelError: A teacher cannot be read, or answers something else than the model.
    """
    paths = [Path(path) for one in _learning(recipe) for path in one.teachers]
    if not paths:
        return Reference(lambda data: source.predict(data.inputs, fixed=fixed))
    from edgecompress.distill.teachers import asker, open_teacher

    teacher = open_teacher([load(str(path)) for path in paths], source, ())
    ask = asker(teacher)

    def answers(data: Dataset) -> dict[str, Array]:
        arrays = [data.inputs[spec.name] for spec in source.inputs]
        parts = [ask([array[start : start + _BATCH] for array in arrays]) for start in range(0, len(data), _BATCH)]
        found = (np.concatenate(column) for column in zip(*parts, strict=True))
        return {
            name: _as_the_student_answers(array, teacher.kinds[k], source, k)
            for k, (name, array) in enumerate(zip(source.outputs, found, strict=True))
        }

    return Reference(answers, tuple(paths))


def _as_the_student_answers(answers: Array, kind: Any, student: LoadedModel, output: int) -> Array:
    """Returns a teacher's logits as probabilities if the student answers so, and the other way round."""
    from edgecompress.distill.answers import as_logits, log_probabilities
    from edgecompress.distill.teachers import kind_of_output

    wanted = kind_of_output(student.model, output)
    if kind is None or wanted is None or kind.probabilities == wanted.probabilities:
        return answers
    if kind.probabilities:
        return np.asarray(as_logits(answers, kind))
    probabilities: Array = np.exp(log_probabilities(answers, replace(kind, binary=wanted.binary)))
    return probabilities[..., 1] if wanted.binary else probabilities


def opener(custom_objects: Mapping[str, Any] | None, *, unsafe: bool) -> Callable[[str], Any]:
    """Returns what opens the files that passes name; a .tflite file stays a path, by which it is opened."""

    def load(path: str) -> Any:
        return path if is_tflite(path) else load_model(path, custom_objects=custom_objects, unsafe=unsafe)

    return load


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
