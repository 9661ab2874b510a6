"""What a student's layers may be compared with its teacher's by; see `losses`.

A tensor's last axis is its channels.
"""

from __future__ import annotations

from typing import Any, Literal, Self

import keras
import tensorflow as tf
from keras import ops

from edgecompress.distill.losses import DistillationTerm, Kinds, Shape, registered, shapes_fit
from edgecompress.errors import UsageError

_SEQUENCE, _IMAGE = 3, 4  # ranks: (batch, steps, channels) and (batch, height, width, channels)
_ATTENTION = 4  # (batch, heads, queries, keys)
_TINY = 1e-12


class LayerTerm(DistillationTerm):
    """A comparison of what two layers give.

    Args:
        teacher_layer_name: Name of the teacher's layer; 'outer/inner' inside a nested model.
        student_layer_name: Name of the student's.
    """

    def __init__(self, teacher_layer_name: str, student_layer_name: str) -> None:
        self.teacher_layer_name = teacher_layer_name
        self.student_layer_name = student_layer_name

    def get_config(self) -> dict[str, Any]:
        return {"teacher_layer_name": self.teacher_layer_name, "student_layer_name": self.student_layer_name}

    def _mismatch(self, teacher: Shape, student: Shape, fix: str) -> UsageError:
        return UsageError(
            f"{type(self).__name__}: shapes that cannot be compared",
            where=f"teacher layer {self.teacher_layer_name!r} and student layer {self.student_layer_name!r}",
            expected=f"the teacher's {teacher}", received=f"the student's {student}", fix=fix,
        )  # fmt: skip


@registered
class Features(LayerTerm):
    """The mean squared error of intermediate features ("hints").

    Source: Romero et al. 2015, "FitNets: Hints for Thin Deep Nets", arXiv:1412.6550, section 2.2; the regressor there
    is the projector here.

    Args:
        teacher_layer_name: Name of the teacher's layer.
        student_layer_name: Name of the student's.
        projector: What makes the student's features comparable: "linear" learns a map of its channels (a 1 x 1
            convolution); a Keras layer is used, and trained, as it is; None: they have the same shape.
    """

    def __init__(
        self, teacher_layer_name: str, student_layer_name: str, projector: Literal["linear"] | Any = None
    ) -> None:
        super().__init__(teacher_layer_name, student_layer_name)
        if not (projector is None or projector == "linear" or isinstance(projector, keras.layers.Layer)):
            raise UsageError(
                f"{type(self).__name__}: not a projector", expected="'linear', a Keras layer or None",
                received=repr(projector), fix="projector='linear'",
            )  # fmt: skip
        self._given = projector
        self.projector = projector if isinstance(projector, keras.layers.Layer) else None

    def build(self, teacher: Shape, student: Shape) -> None:
        if self._given == "linear":
            if teacher[-1] is None or len(teacher) != len(student):
                raise self._mismatch(teacher, student, "choose layers whose outputs have the same number of axes")
            name = f"projector_{self.student_layer_name}".replace("/", "_")
            self.projector = keras.layers.Dense(teacher[-1], use_bias=False, name=name)
        projected = student
        if self.projector is not None:
            if not self.projector.built:
                self.projector.build(student)
            projected = tuple(self.projector.compute_output_shape(student))
        if not shapes_fit(teacher, projected):
            raise self._mismatch(teacher, projected, self._remedy(teacher, projected))

    def _need_of_ours(self, teacher: Any, student: Any) -> str:
        return super()._need_of_ours(teacher, student) or ("" if self._given is None else "it trains a projector")

    def _remedy(self, teacher: Shape, student: Shape) -> str:
        if len(teacher) == len(student) and shapes_fit(teacher[:-1], student[:-1]) and self.projector is None:
            return f"projector='linear' learns a map from {student[-1]} to {teacher[-1]} channels"
        wanted = ", ".join(map(str, teacher[1:]))
        return f"choose layers of the same resolution, or give a Keras layer as projector whose output is ({wanted})"

    def values(self, teacher: Any, student: Any, kinds: Kinds, temperature: Any) -> Any:
        del kinds, temperature
        projected = student if self.projector is None else self.projector(student)
        return _per_position(ops.square(_wide(projected) - _wide(teacher)))

    def get_config(self) -> dict[str, Any]:
        projector = self._given
        if isinstance(projector, keras.layers.Layer):
            projector = keras.saving.serialize_keras_object(projector)
        return {**super().get_config(), "projector": projector}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        projector = config.get("projector")
        if isinstance(projector, dict):
            config = {**config, "projector": keras.saving.deserialize_keras_object(projector)}
        return cls(**config)


@registered
class HiddenStates(Features):
    """The mean squared error of the hidden states of GRUs, LSTMs or SimpleRNNs after each step.

    A layer that returns its last state only is looked into, too. A layer that is none of these counts by its output, a
    sequence. Source: hidden-state matching of Jiao et al. 2020, "TinyBERT", arXiv:1909.10351, equation 8, with its
    learned linear map as the projector.
    """

    kind = "sequence"


@registered
class AttentionTransfer(LayerTerm):
    """Half the squared distance of normalized spatial attention maps: sums of the channels' squares.

    The maps have no channels, so the two layers may differ in them; where they differ in height and width, the
    teacher's map is resized. Source: Zagoruyko and Komodakis 2017, "Paying More Attention to Attention",
    arXiv:1612.03928, equation 2, with p = 2, squared as in the authors' program, which takes the mean over the map,
    however, and not half the sum: its weights are other ones.
    """

    def build(self, teacher: Shape, student: Shape) -> None:
        alike = len(teacher) == len(student) and (len(student) == _IMAGE or shapes_fit(teacher[:-1], student[:-1]))
        if not alike or len(student) not in (_SEQUENCE, _IMAGE):
            raise self._mismatch(
                teacher, student, "choose convolutions, with outputs (batch, height, width, channels) or of one length"
            )

    def values(self, teacher: Any, student: Any, kinds: Kinds, temperature: Any) -> Any:
        del kinds, temperature
        teacher, student = _without_masked(teacher, student)
        wanted, found = (ops.sum(ops.square(side), axis=-1, keepdims=True) for side in (teacher, student))
        if len(found.shape) == _IMAGE and (None in found.shape[1:3] or wanted.shape[1:] != found.shape[1:]):
            wanted = tf.image.resize(wanted, tf.shape(found)[1:3])
        return ops.sum(ops.square(_unit(wanted) - _unit(found)), axis=-1) / 2


@registered
class AttentionMatrices(LayerTerm):
    """KL(teacher || student) of the attention of each query, averaged over heads and queries that no mask leaves out.

    For MultiHeadAttention layers; where the numbers of heads differ, the mean over the heads is compared. Source: Wang
    et al. 2020, "MiniLM", arXiv:2002.10957, equation 6.
    """

    kind = "attention"

    def build(self, teacher: Shape, student: Shape) -> None:
        if not (len(student) == _ATTENTION and shapes_fit(teacher[2:], student[2:])):
            raise self._mismatch(teacher, student, "choose attention over the steps of sequences of the same length")

    def values(self, teacher: Any, student: Any, kinds: Kinds, temperature: Any) -> Any:
        del kinds, temperature
        wanted, found = _wide(teacher), _wide(student)
        if wanted.shape[1] != found.shape[1]:
            wanted, found = (ops.mean(side, axis=1, keepdims=True) for side in (wanted, found))
        logs = ops.log(ops.maximum(wanted, _TINY)) - ops.log(ops.maximum(found, _TINY))
        rows = ops.sum(wanted, axis=(1, 2, 3))  # each adds up to 1, and to 0 where a mask leaves its query out
        return ops.sum(wanted * logs, axis=(1, 2, 3)) / ops.maximum(rows, _TINY)


@registered
class SimilarityPreserving(LayerTerm):
    """The squared distance of the matrices that say which samples of a batch are alike.

    The two layers may have any shapes. The loss depends on which samples are in a batch, and on its size. Source: Tung
    and Mori 2019, "Similarity-Preserving Knowledge Distillation", arXiv:1907.09682, equations 1 to 4.
    """

    def values(self, teacher: Any, student: Any, kinds: Kinds, temperature: Any) -> Any:
        del kinds, temperature
        teacher, student = _without_masked(teacher, student)
        difference = _similarity(teacher) - _similarity(student)
        return ops.mean(ops.square(difference), axis=-1)


def _wide(tensor: Any) -> Any:
    return ops.cast(tensor, "float32")


def _per_position(values: Any) -> Any:
    """Averages over all axes but the batch, and the steps of a sequence."""
    first = 2 if len(values.shape) == _SEQUENCE else 1
    axes = tuple(range(first, len(values.shape)))
    return ops.mean(values, axis=axes) if axes else values


def _without_masked(teacher: Any, student: Any) -> tuple[Any, Any]:
    """Returns both as float32, and 0 at steps that the student's mask leaves out, if both are sequences of these."""
    mask, student = getattr(student, "_keras_mask", None), _wide(student)
    teacher = _wide(teacher)
    if mask is None or len(student.shape) != _SEQUENCE:
        return teacher, student
    steps = ops.expand_dims(_wide(mask), -1)
    alike = len(teacher.shape) == _SEQUENCE and shapes_fit(tuple(teacher.shape[1:2]), tuple(student.shape[1:2]))
    return teacher * steps if alike else teacher, student * steps


def _unit(maps: Any) -> Any:
    flat = ops.reshape(maps, (ops.shape(maps)[0], -1))
    return flat / ops.sqrt(ops.maximum(ops.sum(ops.square(flat), axis=-1, keepdims=True), _TINY))


def _similarity(features: Any) -> Any:
    flat = ops.reshape(features, (ops.shape(features)[0], -1))
    return _unit(ops.matmul(flat, ops.transpose(flat)))
