"""What a student's answers may be compared with its teacher's by; layers are compared in `layer_losses`.

Each class is a `keras.distillation.DistillationLoss`: `keras.distillation.Distiller` takes them, too, where it can do
what they need, and our `Distiller` takes Keras's. Each gives a value for every sample, or every step of a sequence, so
that sample weights and masks count.
"""

from __future__ import annotations

import numbers
from typing import Any, ClassVar, Self

import keras
from keras import ops

from edgecompress.distill.answers import AnswerKind, as_logits, log_probabilities, logits_of
from edgecompress.distill.watching import Kind
from edgecompress.errors import UsageError
from edgecompress.functional import last_activation

Shape = tuple[int | None, ...]
Kinds = tuple[AnswerKind, AnswerKind]

TEMPERATURE = 4.0
_LOGITS = (AnswerKind(), AnswerKind())

registered = keras.saving.register_keras_serializable(package="edgecompress")


class _Mean(keras.losses.Loss):  # type: ignore[misc]
    """The mean of values that were already compared, as Keras weighs, masks and scales a loss for replicas."""

    def call(self, y_true: Any, y_pred: Any) -> Any:
        del y_pred  # brings its mask
        return y_true


_MEAN = _Mean("mean", dtype="float32")


class DistillationTerm(keras.distillation.DistillationLoss):  # type: ignore[misc]
    """A comparison of a student with its teacher.

    Attributes:
        kind: What is looked at in the named layers.
        teacher_layer_name: The teacher's layer; None: its outputs.
        student_layer_name: Likewise.
        projector: A layer that the student's side goes through first, or None.
    """

    kind: ClassVar[Kind] = "output"
    teacher_layer_name: str | None = None
    student_layer_name: str | None = None
    projector: Any = None

    def values(self, teacher: Any, student: Any, kinds: Kinds, temperature: Any) -> Any:
        """Compares two tensors.

        Args:
            teacher: What the teacher gives, of shape (batch, …).
            student: What the student gives.
            kinds: Of answers: whether they are logits or probabilities, the teacher's and the student's.
            temperature: Of answers.

        Returns:
            A float32 tensor of shape (batch,) or (batch, steps).
        """
        raise NotImplementedError

    def build(self, teacher: Shape, student: Shape) -> None:
        """Prepares for tensors of these shapes, batch first.

        Raises:
            UsageError: They cannot be compared.
        """

    def validate_model_compatibility(self, teacher: Any, student: Any) -> None:
        """Is called by `keras.distillation.Distiller`, which can do less than ours.

        Raises:
            UsageError: It would compare something else.
        """
        need = self._need_of_ours(teacher, student)
        if need:
            raise UsageError(
                f"{type(self).__name__}: {need}, which keras.distillation.Distiller does not do",
                fix="use edgecompress.distill.Distiller",
            )  # fmt: skip

    def _need_of_ours(self, teacher: Any, student: Any) -> str:
        """Returns what only our Distiller does for it, in words; "" if there is nothing."""
        del teacher, student
        return "" if self.kind == "output" else "it looks inside of layers"

    def compute_loss(
        self,
        teacher_outputs: Any,
        student_outputs: Any,
        sample_weight: Any = None,
        kinds: Kinds = _LOGITS,
        temperature: Any = TEMPERATURE,
        **_kwargs: Any,
    ) -> Any:
        """Returns the weighted mean over the batch; of several outputs, the sum.

        Args:
            teacher_outputs: Tensors of shape (batch, …), nested as the student's are.
            student_outputs: The tensors to compare with them.
            sample_weight: Of shape (batch,) or (batch, steps), or None.
            kinds: Whether answers are logits or probabilities, the teacher's and the student's.
            temperature: What logits are divided by.
        """
        losses = []
        for teacher, student in zip(*map(keras.tree.flatten, (teacher_outputs, student_outputs)), strict=True):
            values = self.values(teacher, student, kinds, temperature)
            masked = student if len(values.shape) + 1 == len(student.shape) else values
            losses.append(_MEAN(values, masked, _aligned(sample_weight, values)))
        return sum(losses[1:], start=losses[0])

    def get_config(self) -> dict[str, Any]:
        return {}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        return cls(**config)


def _aligned(sample_weight: Any, values: Any) -> Any:
    """Returns sample weights that multiply values of shape (batch,) or (batch, steps)."""
    if sample_weight is None:
        return None
    weight = ops.cast(sample_weight, "float32")
    while len(weight.shape) > len(values.shape):
        weight = ops.mean(weight, axis=-1)
    if len(weight.shape) > 1 and not shapes_fit(tuple(weight.shape[1:]), tuple(values.shape[1:])):
        weight = ops.mean(weight, axis=-1, keepdims=True)  # of other steps than those that are compared
    while len(weight.shape) < len(values.shape):
        weight = ops.expand_dims(weight, -1)
    return ops.broadcast_to(weight, ops.shape(values))


class AnswerTerm(DistillationTerm):
    """A comparison of outputs.

    Args:
        output: Name or index of the output to compare; None: all that hold classes.
    """

    def __init__(self, output: str | int | None = None) -> None:
        self.output = output

    def _need_of_ours(self, teacher: Any, student: Any) -> str:
        ends = {
            last_activation(model, k)
            for model in (teacher, student) for k in range(len(getattr(model, "outputs", None) or ()))
        }  # fmt: skip
        return "it has to turn probabilities into logits" if ends & {"softmax", "sigmoid"} else ""

    def get_config(self) -> dict[str, Any]:
        return {"output": self.output}


@registered
class SoftLabels(AnswerTerm):
    """T^2 * KL(teacher || student) of probabilities softened by the temperature T.

    T^2 keeps the gradients as large as those of the labels' loss. With sigmoids each label is a distribution of its
    own, and their divergences are averaged. Source: Hinton, Vinyals and Dean 2015, arXiv:1503.02531, section 2.

    Args:
        temperature: T; None: the Distiller's.
        output: Name or index of the output to compare; None: all that hold classes.
    """

    def __init__(self, temperature: float | None = None, output: str | int | None = None) -> None:
        super().__init__(output)
        if temperature is not None:
            check_positive("temperature", temperature)
        self.temperature = None if temperature is None else float(temperature)

    def values(self, teacher: Any, student: Any, kinds: Kinds, temperature: Any) -> Any:
        t = temperature if self.temperature is None else self.temperature
        wanted, found = (log_probabilities(side, kind, t) for side, kind in zip((teacher, student), kinds, strict=True))
        return _per_answer(t**2 * ops.sum(ops.exp(wanted) * (wanted - found), axis=-1), kinds)

    def get_config(self) -> dict[str, Any]:
        return {"temperature": self.temperature, **super().get_config()}


@registered
class Logits(AnswerTerm):
    """The mean squared error of the logits, or of the values of a regression.

    Logarithms of a softmax are logits but for a constant, so both sides are centred where one side went through one.
    Source: Ba and Caruana 2014, arXiv:1312.6184, section 2.2.
    """

    def values(self, teacher: Any, student: Any, kinds: Kinds, temperature: Any) -> Any:
        del temperature
        teacher, student = (as_logits(side, kind) for side, kind in zip((teacher, student), kinds, strict=True))
        if any(kind.probabilities and not kind.binary for kind in kinds):
            teacher, student = (side - ops.mean(side, axis=-1, keepdims=True) for side in (teacher, student))
        return _over_last(ops.square(teacher - student))


@registered
class HardLabels(AnswerTerm):
    """Crossentropy with the class that the teacher decides for, as a label.

    Source: Touvron et al. 2021, "Training data-efficient image transformers & distillation through attention",
    arXiv:2012.12877, section 4 (hard-label distillation).
    """

    def values(self, teacher: Any, student: Any, kinds: Kinds, temperature: Any) -> Any:
        del temperature
        decided = ops.argmax(logits_of(teacher, kinds[0]), axis=-1)
        found = log_probabilities(student, kinds[1])
        chosen = ops.sum(ops.one_hot(decided, found.shape[-1], dtype="float32") * found, axis=-1)
        return _per_answer(-chosen, kinds)


@registered
class SelfDistillation(DistillationTerm):
    """Lets one output of the student teach its others: T^2 * KL of softened probabilities.

    For networks with several exits, the deepest of which knows best. It takes no teacher, and may stand beside one.
    Source: Zhang et al. 2019, "Be Your Own Teacher", arXiv:1905.08094, section 3. (A teacher of the same architecture,
    as in born-again networks, is `make_student(teacher)` with `SoftLabels`.)

    Args:
        output: Name or index of the output that teaches.
        temperature: T; None: the Distiller's.
    """

    def __init__(self, output: str | int = -1, temperature: float | None = None) -> None:
        self.output = output
        self._soft = SoftLabels(temperature)

    def values(self, teacher: Any, student: Any, kinds: Kinds, temperature: Any) -> Any:
        return self._soft.values(ops.stop_gradient(teacher), student, kinds, temperature)

    def _need_of_ours(self, teacher: Any, student: Any) -> str:
        del teacher, student
        return "it compares outputs of the student with each other"

    def get_config(self) -> dict[str, Any]:
        return {"output": self.output, "temperature": self._soft.temperature}


def check_positive(name: str, value: object) -> None:
    """Raises a UsageError unless a setting is a positive number."""
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not number or not 0 < value < float("inf"):  # type: ignore[operator]
        raise UsageError(f"{name} is not a positive number", expected="more than 0", received=repr(value))


def shapes_fit(one: Shape, other: Shape) -> bool:
    """Returns whether two shapes can be the same; None is a size that is not known."""
    return len(one) == len(other) and all(a == b or a is None or b is None for a, b in zip(one, other, strict=True))


def _per_answer(values: Any, kinds: Kinds) -> Any:
    """Averages over the labels of binary answers."""
    return _over_last(values) if kinds[1].binary else values


def _over_last(values: Any) -> Any:
    """Averages over the last axis, unless it is the batch: outputs may have no other."""
    return ops.mean(values, axis=-1) if len(values.shape) > 1 else values
