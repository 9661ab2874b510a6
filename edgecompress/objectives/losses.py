"""Decides by which loss a model is trained: its own where the labels fit it, else one that they call for."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgecompress.data import Array
from edgecompress.functional import cause_of, last_activation
from edgecompress.labels import Task, is_one_hot
from edgecompress.objectives.optimizers import accepted

_CROSSENTROPIES = ("SparseCategoricalCrossentropy", "CategoricalCrossentropy")
_FUNCTIONS = {
    "sparse_categorical_crossentropy": "SparseCategoricalCrossentropy",
    "categorical_crossentropy": "CategoricalCrossentropy",
    "binary_crossentropy": "BinaryCrossentropy",
    "mean_squared_error": "MeanSquaredError",
    "mse": "MeanSquaredError",
    "mean_absolute_error": "MeanAbsoluteError",
    "mae": "MeanAbsoluteError",
}


@dataclass(frozen=True)
class Labelled:
    """The output that the labels belong to.

    Attributes:
        output: Its index.
        name: What the user calls it.
        task: What the labels mean to it.
        given: The labels as the user gave them.
        labels: The labels in the form that built-in losses take.
        answers: Its answers to the first samples.
    """

    output: int
    name: str
    task: Task
    given: Array
    labels: Array
    answers: Array

    @property
    def numbers(self) -> bool:
        """Whether the labels are class numbers."""
        return self.labels.shape[1:] != self.answers.shape[1:]


@dataclass(frozen=True)
class Chosen:
    """A loss.

    Attributes:
        loss: Of the framework of the model.
        labels: The labels in the form that it takes.
        own: Whether the model was compiled with it.
        notes: Why it is another than the model's own; a warning if the model's own was the user's code.
    """

    loss: Any
    labels: Array
    own: bool
    notes: tuple[str, ...] = ()


def describe_loss(loss: Any) -> str:
    """Returns what reports call a loss."""
    from_logits = loss.get_config().get("from_logits", False)
    return f"{type(loss).__name__}{' from logits' if from_logits else ''}"


def choose_loss(world: Any, config: Mapping[str, Any], found: Labelled, source: Any) -> Chosen:
    """Returns the loss for the output that the labels belong to.

    Args:
        world: The module `keras` or `tf_keras`, whose losses are to be used.
        config: What Keras stored of `compile`, perhaps empty; the user's own losses as objects (see `LoadedModel`).
        found: The output and its labels.
        source: The Keras 3 model whose last layer says whether it answers with probabilities, or None.
    """
    stored = _stored_loss(config, found, source)
    if not callable(stored):
        name, settings = _named(stored)
        stored = _only_in_keras_3(world, name, settings)
        if stored is None:
            return _choose_built_in(world, name, settings, found, source)
    loss, why = _try_own(world, stored, found)
    if why is not None:
        return _replace_own(world, _title(stored), why, found, source)
    return Chosen(loss, found.given, own=True)


def answers_logits(loss: Any, found: Labelled, source: Any) -> bool:
    """Whether an output gives logits: as its loss has it, else as its last layer or its answers tell."""
    stated = loss.get_config().get("from_logits")
    return not _answers_probabilities(source, found) if stated is None else bool(stated)


def _choose_built_in(world: Any, name: str, settings: Mapping[str, Any], found: Labelled, source: Any) -> Chosen:
    kind = getattr(world.losses, name, None) if name else None
    if name and kind is None:
        return _replace_own(world, name, "it is unknown here: pass it with --custom-objects", found, source)
    if kind is not None and name in _CROSSENTROPIES and found.task is not Task.BINARY:
        wanted = _CROSSENTROPIES[0] if found.numbers else _CROSSENTROPIES[1]
        kind = getattr(world.losses, wanted)
        if wanted == name:
            return Chosen(kind(**accepted(kind, settings)), found.labels, own=True)
        note = f"{wanted} was used in place of the model's {name}, because of the form of the labels"
        return Chosen(kind(from_logits=bool(settings.get("from_logits", False))), found.labels, False, (note,))
    if kind is not None and name not in _CROSSENTROPIES and not found.numbers:
        return Chosen(kind(**accepted(kind, settings)), found.labels, own=True)
    loss = _infer_loss(world, found, source)
    why = f"the model's {name} does not fit them" if name else "the model was saved without one"
    note = f"the loss {describe_loss(loss)} was inferred from the labels: {why}"
    return Chosen(loss, found.labels, False, (note,))


def _only_in_keras_3(world: Any, name: str, settings: Mapping[str, Any]) -> Any:
    """Returns a loss of Keras 3 that the other framework does not have as a class, or None."""
    import keras

    kind = getattr(keras.losses, name, None) if name else None
    if kind is None or inspect.isclass(getattr(world.losses, name, None)):
        return None
    return kind(**accepted(kind, settings)) if inspect.isclass(kind) else kind


def _replace_own(world: Any, name: str, why: str, found: Labelled, source: Any) -> Chosen:
    loss = _infer_loss(world, found, source)
    used = f"{describe_loss(loss)}, inferred from the labels, was used instead"
    return Chosen(loss, found.labels, False, (f"WARNING: the model's own loss {name!r} was not used ({why}); {used}",))


def _try_own(world: Any, own: Any, found: Labelled) -> tuple[Any, str | None]:
    """Returns the user's loss as one of the framework, and why it cannot be used, found out on a few samples."""
    loss = _wrap_own(world, own, found.given.shape[1:])
    try:
        value = float(loss(found.given[: len(found.answers)], found.answers))
    except Exception as error:  # noqa: BLE001 (it is the user's code)
        return loss, f"it fails on the labels: {type(error).__name__}: {cause_of(error)}"
    return loss, None if np.isfinite(value) else f"on the labels it is {value}"


def _wrap_own(world: Any, own: Any, label_shape: Sequence[int]) -> Any:
    """Returns a loss of the framework that calls a loss of Keras 3, as Keras 3 would call it.

    Keras 3 functions and losses take TensorFlow's tensors as they are.
    """
    import keras
    import tensorflow as tf

    class FromFunction(keras.losses.Loss):  # type: ignore[misc]
        def call(self, y_true: Any, y_pred: Any) -> Any:
            narrow = len(y_true.shape) + 1 == len(y_pred.shape) and y_pred.shape[-1] == 1
            return own(keras.ops.expand_dims(y_true, -1) if narrow else y_true, y_pred)

    FromFunction.__name__ = _title(own)  # which is what reports call it
    loss = own if isinstance(own, keras.losses.Loss) else FromFunction()
    if world is keras:
        return loss

    @tf.autograph.experimental.do_not_convert  # type: ignore[untyped-decorator]
    def call(_self: Any, y_true: Any, y_pred: Any) -> Any:
        return loss(tf.reshape(y_true, (-1, *label_shape)), y_pred)  # tf_keras makes (batch, 1) of (batch,)

    return type(_title(own), (world.losses.Loss,), {"call": call})()


def _title(own: Any) -> str:
    return str(getattr(own, "__name__", None) or type(own).__name__)


def _stored_loss(config: Mapping[str, Any], found: Labelled, source: Any) -> Any:
    """Returns what is stored of the loss of an output: a name, a configuration, the user's object, or None."""
    stored, output = config.get("loss"), found.output
    if isinstance(stored, Mapping) and "class_name" not in stored:
        names = list(getattr(source, "output_names", None) or stored)
        return next((stored[name] for name in (found.name, *names[output : output + 1]) if name in stored), None)
    if isinstance(stored, (list, tuple)):
        return stored[output] if output < len(stored) else None
    return stored


def _named(stored: Any) -> tuple[str, Mapping[str, Any]]:
    """Returns the name of the class of a built-in loss, or "", and its settings."""
    if isinstance(stored, Mapping):
        settings = stored.get("config")
        if isinstance(settings, Mapping):
            return str(stored["class_name"]), settings
        stored = settings  # a function, by its name
    name = str(stored or "")
    return _FUNCTIONS.get(name, name), {}


def _infer_loss(world: Any, found: Labelled, source: Any) -> Any:
    losses = world.losses
    if found.task is Task.REGRESSION:
        return losses.MeanSquaredError()
    from_logits = not _answers_probabilities(source, found)
    if found.task is Task.BINARY:
        return losses.BinaryCrossentropy(from_logits=from_logits)
    one_hot = not found.numbers and is_one_hot(found.labels)
    kind = losses.CategoricalCrossentropy if one_hot else losses.SparseCategoricalCrossentropy
    return kind(from_logits=from_logits)


def _answers_probabilities(source: Any, found: Labelled) -> bool:
    """Whether an output gives probabilities: by its last layer where that is plain, else by its answers."""
    activation = last_activation(source, found.output)
    if activation in ("softmax", "sigmoid"):
        return True
    if activation == "linear":
        return False
    answers = found.answers
    bounded = bool(answers.min() >= 0 and answers.max() <= 1)
    return bounded and (found.task is Task.BINARY or bool(np.allclose(answers.sum(-1), 1, atol=1e-2)))
