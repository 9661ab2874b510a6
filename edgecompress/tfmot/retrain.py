"""Trains a Keras 3 model again: by its labels, by the answers of the model that it was made from, or by both."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from edgecompress.data import Array
from edgecompress.labels import Task
from edgecompress.passes.base import PassContext, Trained
from edgecompress.tfmot.bridge import cross
from edgecompress.tfmot.compiling import KeptAnswers, Objective, answers_of, choose_objective, keep, keep_answers
from edgecompress.tfmot.training import seed_draws, train

_TEMPERATURE = 2.0
_LEAST_PROBABILITY = 1e-7  # a sigmoid in float32 is 1 from logits of 17 on, which is about this far from 1
_REPETITION = "distillation"


def retrain(model: Any, teacher: Any, context: PassContext, *, step: str, epochs: int, distill: float = 0.0) -> Trained:
    """Trains a Keras 3 model in place, through tf_keras, and leaves the weights of its best epoch in it.

    The weights that it came with count as epoch 0: they stay if no epoch has a smaller validation loss.

    Args:
        model: A Keras 3 model, to be changed.
        teacher: The Keras 3 model that it was made from, with the same inputs and outputs. Outputs without labels are
            trained to answer as it does.
        context: Training samples with labels, settings, seed, checkpoints; `identity` has to tell `distill` and what
            the weights of `teacher` are.
        step: What progress is reported under, e.g. `low_rank`.
        epochs: Rounds over the training samples, at most.
        distill: Weight, from 0 to 1, of the distance to the teacher's answers in the loss of the output with labels;
            at 1 the labels are measured by only. For classes the distance is the Kullback-Leibler divergence of
            softened probabilities (Hinton, Vinyals and Dean 2015, arXiv:1503.02531, section 2), else the mean squared
            error over the answers' variance.

    Raises:
        DataError: There are no labels, they do not fit, or the loss was never a number.
        ConversionError: tf_keras cannot take the model over.
        UsageError: The checkpoint to resume from is of another run.
    """
    seed_draws(model, context.seed)
    bridged = cross(model)
    trained_model, data = bridged.model, context.data
    objective = choose_objective(trained_model, context, bridged.source)
    assert data is not None  # noqa: S101 (`choose_objective` looked)
    objective = keep_answers(objective, trained_model, data, teacher)
    if distill:
        answers = answers_of(teacher, trained_model, data)[objective.output]
        trained_model = _repeat_output(trained_model, objective.output)
        objective = _distil(objective, answers, distill)
    trained = train(trained_model, objective, context, step=step, epochs=epochs, judge_from=0)
    bridged.write_back()
    return trained


def _repeat_output(model: Any, output: int) -> Any:
    """Returns the model with one output twice, so that it can be compared to labels and to a teacher's answers."""
    import tf_keras

    name = _REPETITION
    while name in {layer.name for layer in model.layers}:
        name += "_"
    again = tf_keras.layers.Activation("linear", name=name)(model.outputs[output])
    return tf_keras.Model(model.inputs, [*model.outputs, again], name=model.name)


def _distil(objective: Objective, answers: Array, share: float) -> Objective:
    import tf_keras

    binary = objective.task is Task.BINARY or isinstance(objective.loss, tf_keras.losses.BinaryCrossentropy)
    if binary or objective.task is Task.CLASSIFICATION:
        distance = divergence(binary=binary, from_logits=objective.from_logits)
        taught, how = KeptAnswers(answers, share, distance), f"KL, T = {_TEMPERATURE:g}"
    else:
        taught, how = keep(answers), "squared error / variance"
        taught = replace(taught, weight=share * taught.weight)
    return replace(
        objective,
        names=(*objective.names, _REPETITION),
        kept={**objective.kept, len(objective.names): taught},
        weight=1 - share,
        distilled=f"{share:g} x {_REPETITION} ({how})",
    )


def divergence(*, binary: bool, from_logits: bool) -> Any:
    """Returns a tf_keras loss: T^2 * KL(teacher || model), of probabilities softened by the temperature T.

    T^2 keeps the gradients as large as those of the labels' loss (section 2 of the paper).
    """
    import tensorflow as tf
    import tf_keras

    def soften(answers: Any) -> Any:
        """Returns the logarithms of softened probabilities, the classes in the last axis."""
        answers = tf.cast(answers, tf.float32)
        if binary:
            other = tf.zeros_like(answers) if from_logits else 1 - answers
            answers = tf.stack([other, answers], -1)
        logits = answers if from_logits else tf.math.log(answers + _LEAST_PROBABILITY)
        return tf.nn.log_softmax(logits / _TEMPERATURE)

    class Divergence(tf_keras.losses.Loss):  # type: ignore[misc]
        def call(self, y_true: Any, y_pred: Any) -> Any:
            wanted, found = soften(y_true), soften(y_pred)
            return _TEMPERATURE**2 * tf.reduce_sum(tf.exp(wanted) * (wanted - found), -1)

    return Divergence()
