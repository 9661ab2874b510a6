"""Decides what a tf_keras model is trained for: its optimizer, its losses and its metrics.

They are those that the Keras 3 model was compiled with where tf_keras has them and the labels fit; what is missing is
inferred from the labels and the model's outputs, and noted. Outputs that have no labels are to answer as before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from edgecompress.data import Array, Dataset
from edgecompress.errors import DataError
from edgecompress.labels import Task, class_numbers, task_of
from edgecompress.models import load_model
from edgecompress.passes.base import PassContext
from edgecompress.tfmot.losses import Labelled, answers_logits, choose_loss, describe_loss
from edgecompress.tfmot.optimizers import accepted, build_optimizer

_LOOKED_AT = 32  # samples whose answers are looked at
_STEADY = 1e-3


@dataclass(frozen=True)
class KeptAnswers:
    """What an output is trained to answer in the place of labels.

    Attributes:
        answers: The float model's answers, float32, one a sample.
        weight: Of the distance to them in the loss; of a mean squared error 1 / their variance, which makes it
            comparable.
        distance: A tf_keras loss; None: the mean squared error.
    """

    answers: Array
    weight: float
    distance: Any = None


@dataclass(frozen=True)
class Objective:
    """What a model is trained for.

    Attributes:
        output: Index of the output that the labels belong to.
        labels: The labels in the form that the loss takes, one a sample.
        optimizer: A tf_keras optimizer.
        loss: A tf_keras loss.
        metrics: What else is reported, as tf_keras takes it.
        names: What the user calls the outputs, in flat order.
        task: What the labels mean to that output.
        from_logits: Whether that output answers with logits, where there are classes.
        kept: What other outputs are trained for, by their index; those that are absent are not trained.
        weight: Of `loss` in the whole loss.
        distilled: What else the same output is trained for, in words: the model's last output repeats it then.
        notes: What was inferred or could not be carried over.
    """

    output: int
    labels: Array
    optimizer: Any
    loss: Any
    metrics: tuple[Any, ...]
    names: tuple[str, ...]
    task: Task
    from_logits: bool
    kept: Mapping[int, KeptAnswers] = field(default_factory=dict)
    weight: float = 1.0
    distilled: str = ""
    notes: tuple[str, ...] = ()

    @property
    def optimizer_text(self) -> str:
        rate = self.optimizer.get_config()["learning_rate"]
        text = f"by {rate['class_name']}" if isinstance(rate, Mapping) else f"{float(rate):g}"
        return f"{type(self.optimizer).__name__}, learning rate {text}"

    @property
    def loss_text(self) -> str:
        own = describe_loss(self.loss)
        if not self.distilled:
            return own
        return f"{self.weight:g} x {own} + {self.distilled}" if self.weight else self.distilled

    def compile(self, model: Any) -> None:
        """Compiles the model, so that the output with labels is trained, and those whose answers are kept."""
        import tf_keras

        keys = output_keys(model)
        if _is_alone(model):
            model.compile(self.optimizer, loss=self.loss, metrics=list(self.metrics))
            return
        key = keys[self.output]
        model.compile(
            self.optimizer,
            loss={key: self.loss}
            | {keys[n]: kept.distance or tf_keras.losses.MeanSquaredError() for n, kept in self.kept.items()},
            loss_weights={key: self.weight} | {keys[n]: kept.weight for n, kept in self.kept.items()},
            metrics={key: list(self.metrics)},
        )

    def targets(self, model: Any, indices: Array) -> Any:
        """Returns what `fit` takes as the labels of some samples."""
        labels = self.labels[indices]
        if _is_alone(model):
            return labels
        keys = output_keys(model)
        return {keys[self.output]: labels} | {keys[n]: kept.answers[indices] for n, kept in self.kept.items()}

    def title(self, model: Any, figure: str) -> str:
        """Returns one of `fit`'s figures under the user's name of the output: layers in the model have their own."""
        held_back = "val_" if figure.startswith("val_") else ""
        plain = figure.removeprefix(held_back)
        keys = output_keys(model)
        for number in sorted(range(len(keys)), key=lambda number: -len(keys[number])):
            if not _is_alone(model) and plain.startswith(f"{keys[number]}_"):
                of_output = plain.removeprefix(keys[number])
                only = bool(self.distilled) and number == self.output and len(keys) == 2  # noqa: PLR2004 (and its repetition)
                return held_back + (of_output[1:] if only and of_output != "_loss" else self.names[number] + of_output)
        return figure


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
    names = tuple(output_keys(model)) if source is None else load_model(source).outputs
    output, task = _find_output(names, answers, data)
    labels = _prepare_labels(answers[output], task, data.labels)
    config = dict(context.compile_config or {})
    found = Labelled(output, names[output], task, data.labels, labels, answers[output])
    chosen = choose_loss(config, found, source)
    optimizer, remark = build_optimizer(config, context.training.learning_rate)
    return Objective(
        output=output,
        labels=chosen.labels,
        optimizer=optimizer,
        loss=chosen.loss,
        metrics=_choose_metrics(config, task, own=chosen.own and len(answers) == 1),
        names=names,
        task=task,
        from_logits=answers_logits(chosen.loss, found, source),
        notes=(*chosen.notes, *remark),
    )


def keep_answers(objective: Objective, model: Any, data: Dataset, source: Any) -> Objective:
    """Adds to what a model is trained for: outputs without labels are to go on answering as before.

    Training what they share with the output that has labels would ruin them otherwise (self-distillation; Li and Hoiem
    2016, "Learning without Forgetting", arXiv:1606.09282).

    Args:
        objective: For the output with labels.
        model: The tf_keras model.
        data: The training samples.
        source: The Keras 3 model that it was made from, or that it is to answer like, which is run once on all samples.
    """
    others = [
        number for number, tensor in enumerate(_flat_outputs(model))
        if number != objective.output and tensor.dtype.is_floating
    ]  # fmt: skip
    if not others:
        return objective
    answers = answers_of(source, model, data)
    kept = {number: keep(answers[number]) for number in others}
    titles = ", ".join(repr(objective.names[number]) for number in others)
    have, they = ("has", "it was") if len(others) == 1 else ("have", "they were")
    note = f"output {titles} {have} no labels: {they} trained to answer as before"
    return replace(objective, kept=kept, notes=(*objective.notes, note))


def answers_of(source: Any, model: Any, data: Dataset) -> list[Array]:
    """Returns what a Keras 3 model answers to all samples, by output; `model` is of tf_keras, with the same inputs."""
    loaded = load_model(source)
    arrays = dict(zip((spec.name for spec in loaded.inputs), input_arrays(model, data), strict=True))
    answers = loaded.predict(arrays, fixed=loaded.inputs)
    return [np.asarray(answers[name], np.float32) for name in loaded.outputs]


def keep(answers: Array) -> KeptAnswers:
    """Returns values, one or more a sample, as something to be trained for."""
    # The share of the mean square keeps the weight of an output that always answers the same within bounds.
    spread = float(answers.var(axis=0).mean() + _STEADY * np.square(answers).mean())
    return KeptAnswers(answers, 1 / spread if spread > 0 else 1.0)


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


def _is_alone(model: Any) -> bool:
    return len(output_keys(model)) == 1 and not _is_dict(model)


def _flat_outputs(model: Any) -> list[Any]:
    import tensorflow as tf

    flat: list[Any] = tf.nest.flatten(model.output)
    return flat


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


def _find_output(names: Sequence[str], answers: Sequence[Array], data: Dataset) -> tuple[int, Task]:
    labels = data.labels
    assert labels is not None  # noqa: S101 (`choose_objective` looked)
    shapes = [(len(data), *answer.shape[1:]) for answer in answers]
    fits = [(number, task) for number, shape in enumerate(shapes) if (task := task_of(shape, labels)) is not None]
    if not fits:
        wanted = ", ".join(f"{name}{shape}" for name, shape in zip(names, shapes, strict=True))
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


def _choose_metrics(config: Mapping[str, Any], task: Task, *, own: bool) -> tuple[Any, ...]:
    """Returns the model's own built-in metrics if its own loss is used; accuracy wherever there are classes."""
    import tf_keras

    found: list[Any] = []
    stored = config.get("metrics") if own else None
    for entry in stored if isinstance(stored, (list, tuple)) else ():
        if isinstance(entry, str):
            found.append(entry)
        elif isinstance(entry, Mapping) and (kind := getattr(tf_keras.metrics, str(entry["class_name"]), None)):
            found.append(kind(**accepted(kind, entry.get("config") or {})))
    named = {entry if isinstance(entry, str) else entry.name for entry in found}
    if task is not Task.REGRESSION and not named & {"accuracy", "acc"}:
        found.append("accuracy")
    return tuple(found)
