"""Decides what a model is trained for: its optimizer, its loss and its metrics.

They are those that the Keras model was compiled with where the framework has them and the labels fit; what is missing
is inferred from the labels and the model's outputs, and noted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgecompress.data import Array, Dataset
from edgecompress.errors import DataError
from edgecompress.labels import Task, class_numbers, task_of
from edgecompress.objectives.losses import Labelled, answers_logits, choose_loss, describe_loss
from edgecompress.objectives.optimizers import accepted, build_optimizer

LOOKED_AT = 32  # samples whose answers are looked at


@dataclass(frozen=True)
class Objective:
    """What a model is trained for.

    Attributes:
        output: Index of the output that the labels belong to.
        labels: The labels in the form that the loss takes, one a sample.
        optimizer: Of Keras 3 or tf_keras, as the model is.
        loss: Likewise.
        metrics: What else is reported, as `compile` takes it.
        names: What the user calls the outputs, in flat order.
        task: What the labels mean to that output.
        from_logits: Whether that output answers with logits, where there are classes.
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
    notes: tuple[str, ...] = ()

    @property
    def optimizer_text(self) -> str:
        return describe_optimizer(self.optimizer)

    @property
    def loss_text(self) -> str:
        return describe_loss(self.loss)


def describe_optimizer(optimizer: Any) -> str:
    """Returns what reports call an optimizer."""
    rate = optimizer.get_config()["learning_rate"]
    text = f"by {rate['class_name']}" if isinstance(rate, Mapping) else f"{float(rate):g}"
    return f"{type(optimizer).__name__}, learning rate {text}"


def choose(
    world: Any,
    data: Dataset,
    answers: Sequence[Array],
    names: Sequence[str],
    config: Mapping[str, Any] | None,
    *,
    learning_rate: float | None,
    source: Any,
) -> Objective:
    """Decides what to train a model for.

    Args:
        world: The module `keras` or `tf_keras`, as the model is.
        data: The training samples.
        answers: The model's answers to the first of them, by output.
        names: What the user calls the outputs.
        config: What Keras stored of `compile`, or None.
        learning_rate: Replaces the optimizer's, if given.
        source: The Keras 3 model whose last layer says whether it answers with probabilities; None: the answers do.

    Raises:
        DataError: There are no labels, they fit no output, or they are out of range.
    """
    if data.labels is None:
        raise DataError(
            "training needs samples with labels", where=data.source, fix="give an .npz file with the arrays x and y"
        )
    output, task = _find_output(names, answers, data)
    labels = _prepare_labels(answers[output], task, data.labels)
    config = dict(config or {})
    found = Labelled(output, names[output], task, data.labels, labels, answers[output])
    chosen = choose_loss(world, config, found, source)
    optimizer, remark = build_optimizer(world, config, learning_rate)
    return Objective(
        output=output,
        labels=chosen.labels,
        optimizer=optimizer,
        loss=chosen.loss,
        metrics=_choose_metrics(world, config, task, own=chosen.own and len(answers) == 1),
        names=tuple(names),
        task=task,
        from_logits=answers_logits(chosen.loss, found, source),
        notes=(*chosen.notes, *remark),
    )


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


def _choose_metrics(world: Any, config: Mapping[str, Any], task: Task, *, own: bool) -> tuple[Any, ...]:
    """Returns the model's own built-in metrics if its own loss is used; accuracy wherever there are classes."""
    found: list[Any] = []
    stored = config.get("metrics") if own else None
    for entry in stored if isinstance(stored, (list, tuple)) else ():
        if isinstance(entry, str):
            found.append(entry)
        elif isinstance(entry, Mapping) and (kind := getattr(world.metrics, str(entry["class_name"]), None)):
            found.append(kind(**accepted(kind, entry.get("config") or {})))
    named = {entry if isinstance(entry, str) else entry.name for entry in found}
    if task is not Task.REGRESSION and not named & {"accuracy", "acc"}:
        found.append("accuracy")
    return tuple(found)
