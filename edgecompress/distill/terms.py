"""Decides, once the task's loss is known, which outputs are compared by what, and whether both sides are logits."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras

from edgecompress.distill.answers import AnswerKind, as_stated
from edgecompress.distill.losses import (
    AnswerTerm,
    DistillationTerm,
    Kinds,
    Logits,
    SelfDistillation,
    SoftLabels,
)
from edgecompress.errors import UsageError

Shape = tuple[int | None, ...]

_BY_FUNCTION = {
    "binary_crossentropy": "BinaryCrossentropy",
    "binary_focal_crossentropy": "BinaryFocalCrossentropy",
    "categorical_crossentropy": "CategoricalCrossentropy",
    "categorical_focal_crossentropy": "CategoricalFocalCrossentropy",
    "kl_divergence": "KLDivergence",
    "sparse_categorical_crossentropy": "SparseCategoricalCrossentropy",
}
_OF_CLASSES = frozenset(_BY_FUNCTION.values())
_OF_PROBABILITIES = frozenset({"KLDivergence"})  # and never of logits


@dataclass(frozen=True)
class Output:
    """One output of the student.

    Attributes:
        name: What the user calls it.
        shape: Batch first.
        kinds: What the teacher's and the student's answers are; None where that could not be seen.
        classes: Whether it is about classes; else it holds values.
        assumed: Whether that was taken for granted: no loss and no activation tells.
    """

    name: str
    shape: Shape
    kinds: tuple[AnswerKind | None, AnswerKind | None]
    classes: bool
    assumed: bool = False


@dataclass(frozen=True)
class Comparison:
    """One term of the loss.

    Attributes:
        term: Of `edgecompress.distill`, or of `keras.distillation`.
        weight: What it is multiplied by.
        pairs: Of terms that compare answers: indices of the teacher's and the student's outputs, and what they hold.
        teacher_point: Of terms that compare layers: index of the teacher's point.
        student_point: Likewise.
    """

    term: Any
    weight: float
    pairs: tuple[tuple[int, int, Kinds], ...] = ()
    teacher_point: int | None = None
    student_point: int | None = None


def describe_outputs(
    names: Sequence[str],
    shapes: Sequence[Shape],
    losses: Sequence[Any],
    teacher: Sequence[AnswerKind | None],
    student: Sequence[AnswerKind | None],
    earlier: Sequence[Any] = (),
) -> tuple[Output, ...]:
    """Returns what each output holds.

    Args:
        names: Of the student's outputs.
        shapes: Of the same.
        losses: What each is compiled with: a Keras loss, a name, a function, or None.
        teacher: What the teacher's outputs hold, None where unknown; empty without a teacher.
        student: What the student's hold.
        earlier: What each was compiled with before, in the teacher or the student: tells classes from values where it
            has no loss now.

    Raises:
        UsageError: A loss takes logits for probabilities or the other way round, or teacher and student disagree on
            what classes are.
    """
    outputs = []
    for index, (name, shape, loss, seen) in enumerate(zip(names, shapes, losses, student, strict=True)):
        kind, from_logits = _read_loss(loss)
        if seen is not None and from_logits == seen.probabilities:
            raise _other_than_the_loss_takes(name, kind, seen)
        found = as_stated(from_logits, seen)
        taught = teacher[index] if teacher else None
        binary = _are_binary(name, taught, found, kind, shape)
        kinds = tuple(None if one is None else AnswerKind(one.probabilities, binary) for one in (taught, found))
        before = kind or (_read_loss(earlier[index])[0] if earlier else None)
        assumed = before is None and (found is None or not found.probabilities)
        outputs.append(Output(name, shape, (kinds[0], kinds[1]), _is_about_classes(before, found, shape), assumed))
    return tuple(outputs)


def default_terms(outputs: Sequence[Output]) -> list[tuple[DistillationTerm, float]]:
    """Returns soft labels for outputs with classes, and squared errors for those with values."""
    kinds = {output.classes for output in outputs}
    return [(term, 1.0) for term, classes in ((SoftLabels(), True), (Logits(), False)) if classes in kinds]


def pair_answers(term: DistillationTerm, outputs: Sequence[Output]) -> tuple[tuple[int, int, Kinds], ...]:
    """Returns which outputs a term compares: the index of the one that teaches, of the one that learns, and kinds.

    Raises:
        UsageError: It names no output, or nobody knows whether an output holds logits or probabilities.
    """
    if isinstance(term, SelfDistillation):
        best = _index(term.output, outputs)
        others = [k for k, one in enumerate(outputs) if k != best and one.classes and one.shape == outputs[best].shape]
        if not others:
            raise UsageError(
                "SelfDistillation: the student has no other output about the same classes",
                where=f"output {outputs[best].name!r}", received=", ".join(output.name for output in outputs),
                fix="give it another one, from a layer in the middle",
            )  # fmt: skip
        return tuple((best, k, (_known(outputs[best], 1), _known(outputs[k], 1))) for k in others)
    given = term.output if isinstance(term, AnswerTerm) else None
    if given is not None:
        chosen = [_index(given, outputs)]
    elif isinstance(term, Logits):
        chosen = [k for k, output in enumerate(outputs) if not output.classes] or list(range(len(outputs)))
    else:
        chosen = [k for k, output in enumerate(outputs) if output.classes]
        if not chosen:
            raise UsageError(
                f"{type(term).__name__}: no output of the student is about classes",
                received=", ".join(output.name for output in outputs),
                fix=f"use Logits, which compares values, too; or name the output: {type(term).__name__}(output=…)",
            )  # fmt: skip
    return tuple((k, k, _both_known(outputs[k], term)) for k in chosen)


def describe(term: Any, weight: float, temperature: Any) -> str:
    """Returns a term in words, as in '0.1 x Features(conv3 -> conv2)' or 'SoftLabels(T = 4)'."""
    layers = (getattr(term, f"{side}_layer_name", None) for side in ("teacher", "student"))
    facts = " -> ".join(layer for layer in layers if layer is not None)
    own = getattr(term, "temperature", None)
    if hasattr(term, "temperature"):
        value = temperature if own is None else own
        facts = f"T = {value:g}" if isinstance(value, (int, float)) else f"T by {type(value).__name__}"
    return f"{'' if weight == 1 else f'{weight:g} x '}{type(term).__name__}{f'({facts})' if facts else ''}"


def on_outputs(outputs: Sequence[Output]) -> tuple[str, ...]:
    """Says so where logits and probabilities are compared, and where what an output holds was taken for granted."""
    guessed = tuple(
        f"output {one.name!r}: nothing tells whether it holds logits of classes or values; it was taken for "
        f"{'logits (for values, compare by Logits)' if one.classes else 'values'}"
        for one in outputs
        if one.assumed
    )
    return guessed + tuple(
        f"output {one.name!r}: the teacher gives {one.kinds[0].title} and the student {one.kinds[1].title}; both are "
        "compared as logits, the probabilities' logarithms"
        for one in outputs
        if one.classes and one.kinds[0] is not None and one.kinds[1] is not None
        and one.kinds[0].probabilities != one.kinds[1].probabilities
    )  # fmt: skip


def losses_by_output(loss: Any, names: Sequence[str]) -> list[Any]:
    """Returns the loss that each output is compiled with, from what `compile` takes."""
    if isinstance(loss, Mapping) and "class_name" not in loss:  # which is one loss, as Keras stores it
        return [loss.get(name) for name in names]
    if isinstance(loss, (list, tuple)):
        return [*loss, *[None] * len(names)][: len(names)]
    return [loss] * len(names)


def _read_loss(loss: Any) -> tuple[str | None, bool | None]:
    """Returns the name of a loss's class, and whether it takes logits; None where it takes neither."""
    if loss is None:
        return None, None
    if isinstance(loss, Mapping):
        loss = loss["config"] if isinstance(loss.get("config"), str) else loss["class_name"]
    if isinstance(loss, str):
        with contextlib.suppress(ValueError):  # the user's own: known by its name only
            loss = keras.losses.get(loss)
    names = [
        loss if isinstance(loss, str) else getattr(loss, "__name__", ""),
        *(base.__name__ for base in type(loss).__mro__),
    ]
    kinds = [_BY_FUNCTION.get(name, name) for name in names]
    kind = next((kind for kind in kinds if kind in _OF_CLASSES), next(filter(None, kinds)))
    return kind, bool(getattr(loss, "from_logits", False)) if kind in _OF_CLASSES else None


def _is_about_classes(kind: str | None, seen: AnswerKind | None, shape: Shape) -> bool:
    if kind in _OF_CLASSES:
        return True
    if kind is None and (seen is None or not seen.probabilities):
        return len(shape) > 1 and shape[-1] != 1
    return seen is not None and seen.probabilities


def _other_than_the_loss_takes(name: str, kind: str | None, seen: AnswerKind) -> UsageError:
    fix = f"compile with {kind}(from_logits={not seen.probabilities})"
    return UsageError(
        f"the loss takes {'logits' if seen.probabilities else 'probabilities'}, and the student gives {seen.title}",
        where=f"output {name!r}", received=f"{kind} of {'logits' if seen.probabilities else 'probabilities'}",
        fix="let the student end in a softmax" if kind in _OF_PROBABILITIES else fix,
    )  # fmt: skip


def _are_binary(name: str, taught: AnswerKind | None, seen: AnswerKind | None, kind: str | None, shape: Shape) -> bool:
    """Returns whether each value of an output is about a class of its own, as its activation or loss tells.

    Raises:
        UsageError: Teacher and student disagree.
    """
    teacher = taught.binary if taught is not None and taught.probabilities else None
    student = seen.binary if seen is not None and seen.probabilities else None
    if student is None and kind in _OF_CLASSES - _OF_PROBABILITIES:
        student = kind.startswith("Binary")
    if len(shape) == 1 or shape[-1] == 1:
        student = True
    if teacher is not None and student is not None and teacher != student:
        titles = {True: "a sigmoid, for labels that apply or not", False: "a softmax, for classes of which one applies"}
        raise UsageError(
            "teacher and student mean different things", where=f"output {name!r}",
            expected=f"as the teacher: {titles[teacher]}", received=f"the student: {titles[student]}",
            fix="give the student the teacher's last activation",
        )  # fmt: skip
    return bool(teacher if student is None else student)


def _index(given: str | int, outputs: Sequence[Output]) -> int:
    names = [output.name for output in outputs]
    if isinstance(given, str) and given in names:
        return names.index(given)
    if isinstance(given, int) and -len(names) <= given < len(names):
        return given % len(names)
    raise UsageError("the student has no such output", where=repr(given), expected=", ".join(names))


def _both_known(output: Output, term: DistillationTerm) -> Kinds:
    if isinstance(term, Logits) and not output.classes:
        return AnswerKind(), AnswerKind()  # values are compared as they are
    return _known(output, 0), _known(output, 1)


def _known(output: Output, side: int) -> AnswerKind:
    kind = output.kinds[side]
    if kind is None:
        who = ("teacher", "student")[side]
        raise UsageError(
            f"it cannot be seen whether the {who} answers with logits or with probabilities",
            where=f"output {output.name!r}", fix=f"say {who}_from_logits=True or False",
        )  # fmt: skip
    return kind
