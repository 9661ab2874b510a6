"""What a tf_keras model is trained for, in the terms of its `compile` and `fit`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgecompress.data import Array, Dataset
from edgecompress.errors import DataError
from edgecompress.models import load_model
from edgecompress.objectives import choosing
from edgecompress.passes.base import PassContext


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
class Objective(choosing.Objective):
    """What a tf_keras model is trained for.

    Attributes:
        kept: What other outputs are trained for, by their index; those that are absent are not trained.
        weight: Of `loss` in the whole loss.
        distilled: What else the same output is trained for, in words: the model's last output repeats it, or its
            logits, then.
    """

    kept: Mapping[int, KeptAnswers] = field(default_factory=dict)
    weight: float = 1.0
    distilled: str = ""

    @property
    def loss_text(self) -> str:
        own = super().loss_text
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
    import tf_keras

    if context.data is None:
        raise DataError("training needs samples with labels", fix="give an .npz file with the arrays x and y")
    names = output_keys(model) if source is None else load_model(source).outputs
    chosen = choosing.choose(
        tf_keras, context.data, _first_answers(model, context.data), names, context.compile_config,
        learning_rate=context.training.learning_rate, source=source,
    )  # fmt: skip
    return Objective(**vars(chosen))


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


def flat_outputs(model: Any) -> list[Any]:
    """Returns the tensors that a tf_keras model answers with, in flat order."""
    import tensorflow as tf

    flat: list[Any] = tf.nest.flatten(model.output)
    return flat


def _is_dict(model: Any) -> bool:
    return isinstance(getattr(model, "_nested_outputs", None), dict)


def _first_answers(model: Any, data: Dataset) -> list[Array]:
    import tensorflow as tf

    few = [tf.convert_to_tensor(array[: choosing.LOOKED_AT]) for array in input_arrays(model, data)]
    try:
        outputs = model(few if len(few) > 1 else few[0], training=False)
    except (ValueError, TypeError, tf.errors.InvalidArgumentError) as error:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in few)
        raise DataError(
            "the training samples do not fit the model", where=data.source, received=f"arrays of shape {shapes}",
            fix="check the shape of the samples",
        ) from error  # fmt: skip
    return [np.asarray(tensor, np.float32) for tensor in tf.nest.flatten(outputs)]
