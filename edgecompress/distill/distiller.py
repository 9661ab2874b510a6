"""A Keras model that trains a student by a teacher's answers."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import keras
import numpy as np
import tensorflow as tf

from edgecompress.data import Array
from edgecompress.distill.cache import AnswerCache
from edgecompress.distill.losses import TEMPERATURE
from edgecompress.distill.pairing import Pair
from edgecompress.distill.settings import check_share, check_temperature, check_terms, check_weights
from edgecompress.distill.storing import describe_teachers, models_of, read_weights, restore_teachers, write_weights
from edgecompress.distill.taught import taught_samples
from edgecompress.distill.teachers import asker
from edgecompress.errors import ModelError, UsageError
from edgecompress.models import load_model
from edgecompress.passes.base import Progress

_INPUTS, _TAUGHT = "inputs", "taught"  # the keys of samples that come with a teacher's answers; see taught_samples
_LEAST_TEMPERATURE = 1e-3  # what a schedule is held above


@keras.saving.register_keras_serializable(package="edgecompress")
class Distiller(keras.Model):  # type: ignore[misc]
    """Trains a student by labels and by the answers of a teacher; in use it answers as the student does.

        distiller = Distiller(student=small, teacher=big, alpha=0.7, temperature=4.0)
        distiller.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
        distiller.fit(x, y, epochs=10)
        distiller.student.save("small.keras")

    The loss is (1 - alpha) * task + alpha * sum(weight * term) + the student's own losses (`model.losses`); with the
    one term `SoftLabels` that is Hinton, Vinyals and Dean 2015, arXiv:1503.02531. Sample weights, class weights and
    masks count in the task and in the terms. The teacher runs in inference mode and is never changed: its variables are
    none of the Distiller's, and no gradient reaches it. The weights of a Distiller are the student's, and those of
    learned projectors.

    Saved as .keras, it can be loaded and trained on: a teacher of Keras 3 is in the file, one that came from a file of
    another kind is found by its path.

    Args:
        student: A Keras 3 model that is a graph of layers.
        teacher: A Keras model; the path of a .keras, .h5 or .tflite file or a SavedModel folder; a list of these (an
            ensemble); None if only `SelfDistillation` teaches. Its inputs and outputs are the student's.
        losses: Terms of `edgecompress.distill` or losses of `keras.distillation`. None: `SoftLabels` for outputs with
            classes, `Logits` for those with values.
        loss_weights: What each of `losses` is multiplied by; None: 1.
        alpha: Share of the teacher, from 0 to 1, or a Keras schedule of it over the optimizer's steps.
        temperature: What softens the answers, more than 0, or a schedule.
        teacher_from_logits: Whether the teacher answers with logits rather than probabilities; None: as its last
            activation tells.
        student_from_logits: Likewise of the student.
        unsafe: Accept teachers' files with Lambda layers, which run code from the file.
        name: The name of the model.

    Attributes:
        student: The student.
        projectors: Layers that are trained with it, to make its layers comparable.

    Raises:
        ModelError: The teacher takes or gives something else than the student.
        UsageError: A setting is out of range, a layer is not there, or layers cannot be compared.
    """

    def __init__(  # noqa: PLR0913 (each is a setting of its own)
        self,
        student: Any,
        teacher: Any = None,
        *,
        losses: Any = None,
        loss_weights: Sequence[float] | None = None,
        alpha: float | Any = 0.7,
        temperature: float | Any = TEMPERATURE,
        teacher_from_logits: bool | None = None,
        student_from_logits: bool | None = None,
        unsafe: bool = False,
        name: str = "distiller",
        **kwargs: Any,
    ) -> None:
        loaded = load_model(student)
        if loaded.framework != "keras":
            raise ModelError("the student is no Keras 3 model", where=loaded.name, received=loaded.framework)
        super().__init__(name=name, autocast=False, **{"dtype": _policy(loaded.model), **kwargs})
        self._alpha, self._temperature = check_share("alpha", alpha), check_temperature(temperature)
        self._terms, self._from_logits = check_terms(losses), (teacher_from_logits, student_from_logits)
        self._term_weights = check_weights(self._terms, loss_weights)
        self.student = student if isinstance(student, keras.Model) else loaded.model
        terms = None if self._terms is None else list(zip(self._terms, self._term_weights, strict=True))
        self._pair = Pair(loaded, teacher, terms, self._from_logits, unsafe=unsafe)
        self.projectors = self._pair.projectors
        self._task_tracker = keras.metrics.Mean(name="task_loss")
        self._taught_tracker = keras.metrics.Mean(name="distillation_loss")
        self.built = True

    def teachers(self) -> list[Any]:
        """Returns what teaches: Keras models, functions of SavedModels, and paths of .tflite files."""
        return models_of(self._pair.teacher)

    @property
    def alpha(self) -> Any:
        """Share of the teacher in the loss, or its schedule."""
        return self._alpha

    @property
    def teacher_identity(self) -> str:
        """What tells this teacher's answers from those of any other: hashes of its weights, and what is looked at."""
        return "" if self._pair.teacher is None else self._pair.teacher.identity

    @property
    def notes(self) -> tuple[str, ...]:
        """What was converted so that teacher and student can be compared; known once compiled."""
        return self._pair.notes

    @property
    def compared(self) -> str:
        """What student and teacher are compared by, in words; known once compiled."""
        return self._pair.described(self._temperature)

    @property
    def output_names(self) -> list[str]:
        """Names of the student's outputs, which losses and metrics may be given by."""
        return list(self._pair.student.outputs)

    def compile(self, optimizer: Any = "rmsprop", loss: Any = None, **kwargs: Any) -> None:
        """Compiles as any Keras model; see `keras.Model.compile`.

        A teacher outside of TensorFlow's graph (a .tflite file) cannot be compiled by XLA, so `jit_compile="auto"` is
        off for it.

        Raises:
            UsageError: Teacher, student and loss do not agree on logits and probabilities, or nobody can tell.
        """
        teacher = self._pair.teacher
        if teacher is not None and not teacher.in_graph and kwargs.get("jit_compile", "auto") == "auto":
            kwargs["jit_compile"] = False
        self._pair.settle(loss)
        super().compile(optimizer=optimizer, loss=loss, **kwargs)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        return self.student(_split(inputs)[0], training=training)

    def train_step(self, data: Any) -> dict[str, Any]:
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        x, taught = self._with_teacher(x)
        with tf.GradientTape() as tape:
            y_pred, points = self._pair.ask_student(self.student, x, training=True)
            loss = self._total_loss(y, y_pred, points, taught, sample_weight)
            self._track(self._loss_tracker, loss, y_pred)
            scaled = self.optimizer.scale_loss(loss)
        variables = self.trainable_variables
        self.optimizer.apply_gradients(zip(tape.gradient(scaled, variables), variables, strict=True))
        return self._figures(x, y, y_pred, sample_weight)

    def test_step(self, data: Any) -> dict[str, Any]:
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        x, taught = self._with_teacher(x)
        y_pred, points = self._pair.ask_student(self.student, x, training=False)
        self._track(self._loss_tracker, self._total_loss(y, y_pred, points, taught, sample_weight), y_pred)
        return self._figures(x, y, y_pred, sample_weight)

    def with_answers(  # noqa: PLR0913 (as those of fit)
        self,
        x: Any,
        y: Any = None,
        sample_weight: Any = None,
        *,
        cache: str | Path,
        store: Literal["float32", "float16"] = "float32",
        batch_size: int = 32,
        shuffle: bool = True,
        seed: int = 0,
        say: Progress | None = None,
    ) -> Any:
        """Returns samples together with the teacher's answers, for `fit`, which then never runs the teacher.

        The answers are in memory-mapped files in the folder `cache`, by the hashes of the teacher and the samples; the
        first call asks the teacher for them, and goes on where it stopped if it was killed. The samples must be the
        same in each epoch: augmentation belongs into the student then, as layers.

        Args:
            x: Arrays of samples, as `fit` takes them: one, a list, or a dict.
            y: Labels, one array or a list or dict of them, or None.
            sample_weight: Of shape (samples,), or (samples, steps), or a list or dict of them, or None.
            cache: The folder, which is made if it is not there.
            store: How the answers are kept; float16 takes half the space and keeps three digits.
            batch_size: Samples a step.
            shuffle: Draw a new order for each epoch.
            seed: Of that order.
            say: Called with (step, done, total) while the teacher is asked.

        Returns:
            A `keras.utils.PyDataset`; give it to `fit` or `evaluate` in the place of `x`.

        Raises:
            DataError: The arrays have different lengths, or the teacher's answers are not numbers.
            OutputError: The folder cannot be written.
        """
        answers = self.teacher_answers(x, cache, store=store, say=say)
        y, sample_weight = (np.asarray(one) if _is_plain(one) else one for one in (y, sample_weight))
        samples = taught_samples(x, y, sample_weight, answers, batch_size=batch_size, shuffle=shuffle, seed=seed)
        samples.own_order = True  # see fit
        return samples

    def teacher_answers(
        self,
        x: Any,
        cache: str | Path,
        *,
        store: Literal["float32", "float16"] = "float32",
        say: Progress | None = None,
    ) -> list[Array]:
        """Returns what the teacher answers to all samples, from the disk if it was asked before; see `with_answers`."""
        teacher = self._pair.teacher
        if teacher is None:
            raise UsageError("there is no teacher whose answers could be kept")
        flat = [np.asanyarray(array) for array in self._pair.flat_inputs(x)]
        cached = AnswerCache(cache, store=store)
        return cached.answers(teacher=teacher.identity, inputs=flat, ask=asker(teacher), say=say)

    def fit(self, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Trains as any Keras model; see `keras.Model.fit`.

        Samples of `with_answers` bring an order of their own, which goes on from fit to fit, or from `initial_epoch`.
        """
        if getattr(x, "own_order", False):
            # The samples count wrong where Keras goes on after a backup, and where it looks at a batch beforehand.
            given = inspect.signature(super().fit).bind(x, *args, **kwargs).arguments
            begin = 0 if "initial_epoch" in given else x.epoch
            count = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, _: setattr(x, "epoch", begin + epoch))
            given |= {"shuffle": False, "callbacks": [*keras.tree.flatten(given.get("callbacks") or []), count]}
            return super().fit(**given)
        return super().fit(x, *args, **kwargs)

    def get_config(self) -> dict[str, Any]:
        store = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            "student": store(self.student),
            "teacher": describe_teachers(self._pair.teacher),
            "losses": None if self._terms is None else [store(term) for term in self._terms],
            "loss_weights": None if self._terms is None else self._term_weights,
            "alpha": store(self._alpha),
            "temperature": store(self._temperature),
            "teacher_from_logits": self._from_logits[0],
            "student_from_logits": self._from_logits[1],
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Self:
        with keras.saving.custom_object_scope(custom_objects or {}):
            plain = {
                key: keras.saving.deserialize_keras_object(config[key])
                for key in ("student", "losses", "alpha", "temperature")
            }
            return cls(**{**config, **plain, "teacher": restore_teachers(config["teacher"])})

    # Keras asks for these where it writes and reads a whole .keras file, and not where it does so with weights only.

    def save_assets(self, dir_path: str) -> None:
        write_weights(self._pair.teacher, dir_path)

    def load_assets(self, dir_path: str) -> None:
        read_weights(self._pair.teacher, dir_path)

    def compile_from_config(self, config: dict[str, Any]) -> None:
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.optimizer is not None:
            self.optimizer.build(self.trainable_variables)

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        """Does what Keras does before it trains in a strategy, but takes the samples of one replica.

        Keras reduces those of all replicas, and only uses the shape; where there are several workers it fails at that
        (keras-team/keras issue 20585).
        """
        strategy = self._distribute_strategy
        if strategy is not None and iterator is not None:
            _, _, batches = next(iter(iterator))
            first = keras.tree.map_structure(lambda value: strategy.experimental_local_results(value)[0], next(batches))
            iterator, data_batch = None, first
        super()._maybe_symbolic_build(iterator=iterator, data_batch=data_batch)

    def _with_teacher(self, x: Any) -> tuple[Any, list[Any]]:
        """Returns the inputs, and what the teacher makes of them: its outputs, then its points."""
        x, taught = _split(x)
        teacher = self._pair.teacher
        if taught is not None:
            return x, list(taught)
        if teacher is None or self._alpha == 0:
            return x, []
        if self.jit_compile and not teacher.in_graph:
            raise UsageError(
                "XLA cannot compile a step that runs a .tflite file", where=teacher.name, received="jit_compile=True",
                fix="leave jit_compile out, or train on with_answers(…), which runs the teacher once beforehand",
            )  # fmt: skip
        return x, teacher.answers(self._pair.flat_inputs(x))

    def _total_loss(self, y: Any, y_pred: Any, points: list[Any], taught: list[Any], sample_weight: Any) -> Any:
        alpha = self._now(self._alpha, 0.0, 1.0)
        total = tf.zeros(())
        if y is not None and self._compile_loss is not None:
            task = self._compile_loss(y, y_pred, sample_weight)
            self._track(self._task_tracker, task, y_pred)
            total += (1.0 - alpha) * task
        elif not isinstance(self._alpha, (int, float)) or self._alpha < 1:
            raise UsageError(
                "the task has no loss to learn by" if y is not None else "the samples have no labels",
                received=f"alpha={self._alpha}",
                fix="give labels and compile with a loss, or learn by the teacher only: alpha=1",
            )  # fmt: skip
        if self._alpha != 0:
            temperature = self._now(self._temperature, _LEAST_TEMPERATURE, None)
            distilled = self._pair.loss(y_pred, points, taught, sample_weight, temperature)
            self._track(self._taught_tracker, distilled, y_pred)
            total += alpha * distilled
        for loss in self.losses:
            total += tf.cast(self._aggregate_additional_loss(loss), total.dtype)
        return total

    def _now(self, setting: Any, least: float | None, most: float | None) -> Any:
        if isinstance(setting, (int, float)):
            return float(setting)
        value = tf.cast(setting(self.optimizer.iterations), tf.float32)
        value = value if least is None else tf.maximum(value, least)
        return value if most is None else tf.minimum(value, most)

    def _track(self, tracker: Any, loss: Any, y_pred: Any) -> None:
        """Counts a loss, which Keras divides by the number of replicas, for as many samples as there are."""
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        tracker.update_state(loss * replicas, sample_weight=tf.shape(keras.tree.flatten(y_pred)[0])[0])

    def _figures(self, x: Any, y: Any, y_pred: Any, sample_weight: Any) -> dict[str, Any]:
        figures: dict[str, Any] = (
            self.get_metrics_result() if y is None else self.compute_metrics(x, y, y_pred, sample_weight=sample_weight)
        )
        if _has_several_workers():  # whose figures Keras averages over an axis that scalars do not have
            return {name: tf.expand_dims(value, 0) for name, value in figures.items()}
        return figures


def _is_plain(values: Any) -> bool:
    """Whether labels or weights are a list of numbers, rather than a list of arrays for several outputs."""
    return isinstance(values, (list, tuple)) and bool(values) and np.isscalar(values[0])


def _has_several_workers() -> bool:
    strategy = tf.distribute.get_strategy()
    multi = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
    return multi and bool(strategy.extended._in_multi_worker_mode())  # noqa: SLF001


def _policy(student: Any) -> str:
    """Returns the type by which Keras decides whether losses have to be scaled, lest gradients become 0."""
    names = {layer.dtype_policy.name for layer in student._flatten_layers()}  # noqa: SLF001
    return "mixed_float16" if "mixed_float16" in names else "float32"


def _split(x: Any) -> tuple[Any, Any]:
    """Returns the inputs, and the teacher's answers if the samples bring them."""
    if isinstance(x, Mapping) and set(x) == {_INPUTS, _TAUGHT}:
        return x[_INPUTS], x[_TAUGHT]
    return x, None
