"""A student beside what it learns from: what of the two is compared, and the loss that comes of it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import keras
import tensorflow as tf

from edgecompress.distill.answers import as_stated
from edgecompress.distill.layer_losses import LayerTerm
from edgecompress.distill.losses import DistillationTerm, SelfDistillation
from edgecompress.distill.teachers import Teacher, kind_of_output, open_teacher, shapes_of_outputs
from edgecompress.distill.terms import (
    Comparison,
    Output,
    default_terms,
    describe,
    describe_outputs,
    losses_by_output,
    on_outputs,
    pair_answers,
)
from edgecompress.distill.watching import Point, watch
from edgecompress.errors import UsageError
from edgecompress.loaded import LoadedModel

Side = Literal["teacher", "student"]


class Pair:
    """A student and its teacher, which Keras is to take for no part of the Distiller.

    Args:
        student: What learns.
        teacher: What teaches: see `open_teacher`; None if the student teaches itself.
        terms: What is compared, and what each is multiplied by; None: what goes without saying.
        from_logits: Whether the teacher, and the student, answer with logits; None: as can be seen.
        unsafe: Accept teachers' files with Lambda layers.

    Attributes:
        teacher: What teaches, opened, or None.
        projectors: Layers of the terms that are trained with the student.
        notes: What was converted so that the two can be compared; known once settled.

    Raises:
        ModelError: The teacher takes or gives something else than the student.
        UsageError: There is no teacher, a layer is not there, or layers cannot be compared.
    """

    def __init__(
        self,
        student: LoadedModel,
        teacher: Any,
        terms: Sequence[tuple[Any, float]] | None,
        from_logits: tuple[bool | None, bool | None],
        *,
        unsafe: bool,
    ) -> None:
        if teacher is None and not all(isinstance(term, SelfDistillation) for term, _ in terms or [(None, 0.0)]):
            raise UsageError("there is no teacher", fix="give one, or only SelfDistillation as losses")
        self.student = student
        # Copies: each pair has projectors of its own.
        self._terms = None if terms is None else [(copy.copy(term), weight) for term, weight in terms]
        self._from_logits = from_logits
        points = self._points("teacher")
        self.teacher: Teacher | None = None
        if teacher is not None:
            self.teacher = open_teacher(teacher, student, points, from_logits=from_logits[0], unsafe=unsafe)
        watched = self._points("student")
        self._watched = watch(student.model, watched, who="student") if watched else None
        self.notes: tuple[str, ...] = ()
        self.projectors: list[Any] = []
        self._comparisons: tuple[Comparison, ...] = ()
        self._build_terms()

    def settle(self, loss: Any) -> None:
        """Decides what is compared with what, once the loss of the task is known.

        Raises:
            UsageError: Teacher, student and loss do not agree on logits and probabilities, or nobody can tell.
        """
        outputs = self._describe_outputs(loss)
        terms = default_terms(outputs) if self._terms is None else self._terms
        self._comparisons = tuple(self._compare(term, weight, outputs) for term, weight in terms)
        self.notes = on_outputs(outputs)

    def described(self, temperature: Any) -> str:
        """Returns what is compared, in words."""
        return " + ".join(describe(one.term, one.weight, temperature) for one in self._comparisons)

    def flat_inputs(self, x: Any) -> list[Any]:
        """Returns the inputs in the order of the student's."""
        names = [spec.name for spec in self.student.inputs]
        if isinstance(x, Mapping) and set(x) >= set(names):
            return [x[name] for name in names]
        return list(keras.tree.flatten(x))

    def ask_student(self, model: Any, x: Any, *, training: bool) -> tuple[Any, list[Any]]:
        """Returns the answers of the student, which is `model`, as they are nested, and what its layers gave."""
        if self._watched is None:
            return model(x, training=training), []
        seen = self._watched(x, training=training)
        return seen["answers"], list(seen["points"])

    def loss(self, y_pred: Any, points: list[Any], taught: list[Any], sample_weight: Any, temperature: Any) -> Any:
        """Returns the weighted sum of all comparisons.

        Args:
            y_pred: The student's answers, nested as they are.
            points: What its layers gave.
            taught: The teacher's outputs, then what its layers gave.
            sample_weight: One tensor, or one for each output, or None.
            temperature: What logits are divided by.
        """
        answers = keras.tree.flatten(y_pred)
        weights = self._by_output(sample_weight)
        total = tf.zeros(())
        for one in self._comparisons:
            if one.teacher_point is not None and one.student_point is not None:
                wanted, found = taught[len(answers) + one.teacher_point], points[one.student_point]
                value = _compute(one.term, wanted, found, sample_weight=weights[0])
            elif not one.pairs:  # of keras.distillation, on the outputs
                wanted = keras.tree.pack_sequence_as(y_pred, taught[: len(answers)])
                value = _compute(one.term, wanted, y_pred, sample_weight=None)
            else:
                source = answers if isinstance(one.term, SelfDistillation) else taught
                value = sum(
                    one.term.compute_loss(
                        source[k], answers[n], sample_weight=weights[n], kinds=kinds, temperature=temperature
                    )
                    for k, n, kinds in one.pairs
                )
            total += one.weight * value
        return total

    def _by_output(self, sample_weight: Any) -> list[Any]:
        """Returns the weights of the samples for each output."""
        if isinstance(sample_weight, Mapping):
            return [sample_weight.get(name) for name in self.student.outputs]
        if keras.tree.is_nested(sample_weight):
            return list(keras.tree.flatten(sample_weight))
        return [sample_weight] * len(self.student.outputs)

    def _points(self, side: Side) -> list[Point]:
        """Returns the layers that the terms look at in one of the models, each once."""
        found = (_point(term, side) for term, _ in self._terms or ())
        return list(dict.fromkeys(point for point in found if point is not None))

    def _place(self, term: Any, side: Side) -> int | None:
        """Returns which of these layers a term looks at."""
        point = _point(term, side)
        return None if point is None else self._points(side).index(point)

    def _build_terms(self) -> None:
        """Prepares the terms that compare layers."""
        for term, _ in self._terms or ():
            teacher, student = self._place(term, "teacher"), self._place(term, "student")
            if isinstance(term, LayerTerm) and teacher is not None and student is not None:
                assert self.teacher is not None  # noqa: S101 (terms of layers have one)
                assert self._watched is not None  # noqa: S101
                seen = self._watched.output["points"][student]
                term.build(self.teacher.shapes[len(self.teacher.outputs) + teacher], tuple(seen.shape))
                if term.projector is not None:
                    self.projectors.append(term.projector)

    def _describe_outputs(self, loss: Any) -> tuple[Output, ...]:
        model, names = self.student.model, self.student.outputs
        seen = [as_stated(self._from_logits[1], kind_of_output(model, k)) for k in range(len(names))]
        kinds = () if self.teacher is None else self.teacher.kinds
        taught = [as_stated(self._from_logits[0], kind) for kind in kinds]
        shapes, losses = shapes_of_outputs(self.student), losses_by_output(loss, names)
        return describe_outputs(names, shapes, losses, taught, seen, self._earlier_losses())

    def _earlier_losses(self) -> list[Any]:
        """Returns the loss that each output was compiled with before: the student's, else the teacher's."""
        for loaded in (self.student, getattr(self.teacher, "loaded", None)):
            config = None if loaded is None else loaded.compile_config
            if loaded is not None and config is not None and config.get("loss") is not None:
                return losses_by_output(config["loss"], loaded.outputs)
        return []

    def _compare(self, term: Any, weight: float, outputs: Sequence[Output]) -> Comparison:
        if isinstance(term, DistillationTerm) and not isinstance(term, LayerTerm):
            return Comparison(term, weight, pair_answers(term, outputs))
        teacher, student = self._place(term, "teacher"), self._place(term, "student")
        if teacher is None or student is None:
            return Comparison(term, weight)
        return Comparison(term, weight, teacher_point=teacher, student_point=student)


def _point(term: Any, side: Side) -> Point | None:
    """Returns the layer that a term looks at; losses of keras.distillation name theirs alike."""
    layer = getattr(term, f"{side}_layer_name", None)
    return None if layer is None else Point(layer, getattr(term, "kind", "output"))


def _compute(term: Any, teacher: Any, student: Any, *, sample_weight: Any) -> Any:
    if isinstance(term, DistillationTerm):
        return term.compute_loss(teacher, student, sample_weight=sample_weight)
    term.validate_outputs(teacher, student)
    value = term.compute_loss(teacher, student)  # a mean over the batch, whose samples it does not weigh
    return tf.cast(value, tf.float32) / tf.distribute.get_strategy().num_replicas_in_sync
