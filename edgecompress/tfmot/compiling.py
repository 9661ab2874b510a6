"""Decides what a tf_keras model is trained for: its optimizer, its loss and its metrics.

They are those that the Keras 3 model was compiled with where tf_keras has them and the labels fit; what is missing is
inferred from the labels and the model's outputs, and noted.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgecompress.data import Array, Dataset
from edgecompress.errors import DataError
from edgecompress.labels import Task, class_numbers, is_one_hot, task_of
from edgecompress.passes.base import PassContext

_LEARNING_RATE = 1e-3
_LOOKED_AT = 32  # samples whose answers are looked at
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
# Averages of weights are made final at the end of each `fit`, which here is each epoch: they would not be the same.
_NOT_CARRIED = frozenset({"name", "learning_rate", "use_ema", "ema_momentum", "ema_overwrite_frequency", "jit_compile"})


@dataclass(frozen=True)
class Objective:
    """What a model is trained for.

    Attributes:
        output: Index of the output that the labels belong to; the others are not trained.
        labels: The labels in the form that the loss takes, one a sample.
        optimizer: A tf_keras optimizer.
        loss: A tf_keras loss.
        metrics: What else is reported, as tf_keras takes it.
        notes: What was inferred or could not be carried over.
    """

    output: int
    labels: Array
    optimizer: Any
    loss: Any
    metrics: tuple[Any, ...]
    notes: tuple[str, ...] = ()

    @property
    def optimizer_text(self) -> str:
        rate = self.optimizer.get_config()["learning_rate"]
        text = f"by {rate['class_name']}" if isinstance(rate, Mapping) else f"{float(rate):g}"
        return f"{type(self.optimizer).__name__}, learning rate {text}"

    @property
    def loss_text(self) -> str:
        from_logits = self.loss.get_config().get("from_logits", False)
        return f"{type(self.loss).__name__}{' from logits' if from_logits else ''}"

    def compile(self, model: Any) -> None:
        """Compiles the model, so that only the one output is trained."""
        keys = output_keys(model)
        key = keys[self.output]
        alone = len(keys) == 1 and not _is_dict(model)
        model.compile(
            self.optimizer,
            loss=self.loss if alone else {key: self.loss},
            metrics=list(self.metrics) if alone else {key: list(self.metrics)},
        )

    def targets(self, model: Any, indices: Array) -> Any:
        """Returns the labels of some samples as `fit` takes them."""
        keys = output_keys(model)
        labels = self.labels[indices]
        return labels if len(keys) == 1 and not _is_dict(model) else {keys[self.output]: labels}


def choose_objective(model: Any, context: PassContext, source: Any = None) -> Objective:
    """Decides what to train a tf_keras model for, without touching the model.

    Args:
        model: A functional or Sequential tf_keras model.
        context: With training samples that have labels.
        source: The Keras 3 model it was made from, whose last layer says whether it answers with probabilities;
            without it the answers to a few samples do.

    Raises:
        DataError: There are no labels, they fit no output, or they are out of range.
    """
    data = context.data
    if data is None or data.labels is None:
        raise DataError(
            "training needs samples with labels", where=None if data is None else data.source,
            fix="give an .npz file with the arrays x and y",
        )  # fmt: skip
    answers = _first_answers(model, data)
    output, task = _find_output(model, answers, data)
    labels = _prepare_labels(answers[output], task, data.labels)
    config = dict(context.compile_config or {})
    loss, notes, own = _choose_loss(config, output, source, task, labels, answers[output])
    optimizer, remark = build_optimizer(config, context.training.learning_rate)
    return Objective(
        output=output,
        labels=labels,
        optimizer=optimizer,
        loss=loss,
        metrics=_choose_metrics(config, task, own=own and len(answers) == 1),
        notes=(*notes, *remark),
    )


def input_arrays(model: Any, data: Dataset) -> list[Array]:
    """Returns the samples' arrays in the order of a tf_keras model's inputs."""
    names = list(model.input_names)
    if set(names) == set(data.inputs):
        return [data.inputs[name] for name in names]
    if len(names) != len(data.inputs):
        raise DataError(
            "the training samples do not fit the model", where=data.source, expected=", ".join(names),
            received=", ".join(data.inputs),
        )  # fmt: skip
    return list(data.inputs.values())


def output_keys(model: Any) -> list[str]:
    """Returns the names by which `compile` and `fit` know a tf_keras model's outputs, in flat order."""
    return sorted(model._nested_outputs) if _is_dict(model) else list(model.output_names)  # noqa: SLF001


def build_optimizer(config: Mapping[str, Any], learning_rate: float | None) -> tuple[Any, tuple[str, ...]]:
    """Builds the tf_keras optimizer that a compile configuration describes, else Adam; returns it and notes.

    Args:
        config: What Keras 3 or Keras 2 stored of `compile`, perhaps empty.
        learning_rate: Replaces the configured one, if given.
    """
    import tf_keras

    stored = config.get("optimizer") or config.get("optimizer_config")
    if isinstance(stored, str):
        stored = {"class_name": stored, "config": {}}
    if not stored:
        return tf_keras.optimizers.Adam(learning_rate or _LEARNING_RATE, jit_compile=False), ()
    settings = dict(stored.get("config") or {})
    if stored["class_name"] == "LossScaleOptimizer":
        inner = settings.get("inner_optimizer")
        return build_optimizer({"optimizer": inner} if inner else {}, learning_rate)
    rate = learning_rate or _stored_rate(settings.get("learning_rate"))
    by_name = {name.lower(): getattr(tf_keras.optimizers, name) for name in _classes(tf_keras.optimizers)}
    name = str(stored["class_name"]).rpartition(">")[2]  # Keras 2 wrote "Custom>Adam" at times
    kind = by_name.get(name.lower())
    if kind is None:
        note = f"the model's optimizer {name!r} is not in tf_keras: Adam was used"
        return tf_keras.optimizers.Adam(rate, jit_compile=False), (note,)
    return kind(learning_rate=rate, jit_compile=False, **_accepted(kind, settings, _NOT_CARRIED)), ()


def _stored_rate(stored: Any) -> Any:
    import tf_keras

    if isinstance(stored, Mapping):
        kind = getattr(tf_keras.optimizers.schedules, str(stored.get("class_name")), None)
        return _LEARNING_RATE if kind is None else kind(**_accepted(kind, stored.get("config") or {}))
    return _LEARNING_RATE if stored is None else float(stored)


def _accepted(kind: Any, settings: Mapping[str, Any], without: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Returns the settings that a class's constructor takes: Keras 3 and tf_keras differ in a few."""
    known = set(inspect.signature(kind.__init__).parameters) - without
    return {name: value for name, value in settings.items() if name in known}


def _classes(module: Any) -> list[str]:
    return [name for name in dir(module) if inspect.isclass(getattr(module, name))]


def _is_dict(model: Any) -> bool:
    return isinstance(getattr(model, "_nested_outputs", None), dict)


def _first_answers(model: Any, data: Dataset) -> list[Array]:
    import tensorflow as tf

    few = [tf.convert_to_tensor(array[:_LOOKED_AT]) for array in input_arrays(model, data)]
    try:
        outputs = model(few if len(few) > 1 else few[0], training=False)
    except (ValueError, TypeError, tf.errors.InvalidArgumentError) as error:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in few)
        raise DataError(
            "the training samples do not fit the model", where=data.source, received=f"arrays of shape {shapes}",
            fix="check the shape of the samples",
        ) from error  # fmt: skip
    return [np.asarray(tensor, np.float32) for tensor in tf.nest.flatten(outputs)]


def _find_output(model: Any, answers: Sequence[Array], data: Dataset) -> tuple[int, Task]:
    labels = data.labels
    assert labels is not None  # noqa: S101 (`choose_objective` looked)
    shapes = [(len(data), *answer.shape[1:]) for answer in answers]
    fits = [(number, task) for number, shape in enumerate(shapes) if (task := task_of(shape, labels)) is not None]
    if not fits:
        keys = output_keys(model)
        wanted = ", ".join(f"{key}{shape}" for key, shape in zip(keys, shapes, strict=True))
        raise DataError(
            "the labels fit no output of the model", where=data.source, expected=wanted,
            received=f"labels of shape {labels.shape}",
            fix="give one class number, one one-hot vector or one value for each answer",
        )  # fmt: skip
    # Of several outputs with classes, the one with as many as the labels have; of all, one with classes first.
    return min(fits, key=lambda fit: (fit[1] is Task.REGRESSION, not _in_range(labels, shapes[fit[0]], fit[1])))


def _in_range(labels: Array, shape: Sequence[int], task: Task) -> bool:
    numbers = task is Task.CLASSIFICATION and labels.shape != tuple(shape)
    return not numbers or bool(labels.min() >= 0 and labels.max() < shape[-1])


def _prepare_labels(answers: Array, task: Task, labels: Array) -> Array:
    if task is Task.CLASSIFICATION and labels.shape[1:] != answers.shape[1:]:
        numbers: Array = class_numbers(labels, answers.shape[-1]).reshape(len(labels), *answers.shape[1:-1])
        return numbers
    return labels.reshape(len(labels), *answers.shape[1:]).astype(np.float32)


def _choose_loss(
    config: Mapping[str, Any], output: int, source: Any, task: Task, labels: Array, answers: Array
) -> tuple[Any, tuple[str, ...], bool]:
    """Returns the loss, notes, and whether it is the model's own."""
    import tf_keras

    name, settings = _stored_loss(config, output, source)
    numbers = labels.shape[1:] != answers.shape[1:]
    kind = getattr(tf_keras.losses, name, None) if name else None
    if kind is not None and name in _CROSSENTROPIES and task is not Task.BINARY:
        wanted = _CROSSENTROPIES[0] if numbers else _CROSSENTROPIES[1]
        kind = getattr(tf_keras.losses, wanted)
        if wanted == name:
            return kind(**_accepted(kind, settings)), (), True
        note = f"{wanted} was used in place of the model's {name}, because of the form of the labels"
        return kind(from_logits=bool(settings.get("from_logits", False))), (note,), False
    if kind is not None and name not in _CROSSENTROPIES and not numbers:
        return kind(**_accepted(kind, settings)), (), True
    loss = _infer_loss(task, source, output, labels, answers)
    why = f"the model's {name} does not fit or is not built in" if name else "the model was saved without one"
    from_logits = " from logits" if loss.get_config().get("from_logits", False) else ""
    return loss, (f"the loss {type(loss).__name__}{from_logits} was inferred from the labels: {why}",), False


def _stored_loss(config: Mapping[str, Any], output: int, source: Any) -> tuple[str, dict[str, Any]]:
    """Returns the name of the class of the loss that the model was compiled with, or "", and its settings."""
    stored = config.get("loss")
    if isinstance(stored, Mapping) and "class_name" not in stored:
        names = list(getattr(source, "output_names", None) or stored)
        stored = stored.get(names[output]) if output < len(names) else None
    elif isinstance(stored, (list, tuple)):
        stored = stored[output] if output < len(stored) else None
    if isinstance(stored, Mapping):
        settings = stored.get("config")
        if isinstance(settings, Mapping):
            return str(stored["class_name"]), dict(settings)
        stored = settings  # a function, by its name
    name = str(stored or "")
    return _FUNCTIONS.get(name, name), {}


def _infer_loss(task: Task, source: Any, output: int, labels: Array, answers: Array) -> Any:
    import tf_keras

    losses = tf_keras.losses
    if task is Task.REGRESSION:
        return losses.MeanSquaredError()
    from_logits = not _answers_probabilities(source, output, task, answers)
    if task is Task.BINARY:
        return losses.BinaryCrossentropy(from_logits=from_logits)
    one_hot = labels.shape == (len(labels), *answers.shape[1:]) and is_one_hot(labels)
    kind = losses.CategoricalCrossentropy if one_hot else losses.SparseCategoricalCrossentropy
    return kind(from_logits=from_logits)


def _answers_probabilities(source: Any, output: int, task: Task, answers: Array) -> bool:
    """Whether an output gives probabilities: by its last layer where that is plain, else by its answers."""
    activation = _last_activation(source, output)
    if activation in ("softmax", "sigmoid"):
        return True
    if activation == "linear":
        return False
    bounded = bool(answers.min() >= 0 and answers.max() <= 1)
    return bounded and (task is Task.BINARY or bool(np.allclose(answers.sum(-1), 1, atol=1e-2)))


def _last_activation(source: Any, output: int) -> str | None:
    """Returns the activation of the layer that an output comes from, or None if that layer is not a plain one."""
    while True:
        tensors = getattr(source, "outputs", None)
        history = getattr(tensors[output], "_keras_history", None) if tensors else None
        if history is None:
            return None
        layer, output = history.operation, history.tensor_index
        if getattr(layer, "outputs", None) is None or not hasattr(layer, "layers"):
            break
        source = layer
    if type(layer).__name__ in ("Softmax", "Sigmoid"):
        return type(layer).__name__.lower()
    return getattr(getattr(layer, "activation", None), "__name__", None)


def _choose_metrics(config: Mapping[str, Any], task: Task, *, own: bool) -> tuple[Any, ...]:
    """Returns the model's own built-in metrics if its own loss is used; accuracy wherever there are classes."""
    import tf_keras

    found: list[Any] = []
    stored = config.get("metrics") if own else None
    for entry in stored if isinstance(stored, (list, tuple)) else ():
        if isinstance(entry, str):
            found.append(entry)
        elif isinstance(entry, Mapping) and (kind := getattr(tf_keras.metrics, str(entry["class_name"]), None)):
            found.append(kind(**_accepted(kind, entry.get("config") or {})))
    named = {entry if isinstance(entry, str) else entry.name for entry in found}
    if task is not Task.REGRESSION and not named & {"accuracy", "acc"}:
        found.append("accuracy")
    return tuple(found)
