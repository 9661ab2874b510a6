"""What a model learns from a teacher's answers, besides labels: outputs without labels, and soft labels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from edgecompress.checkpoints import hash_run
from edgecompress.data import Array, Dataset
from edgecompress.labels import Task
from edgecompress.models import load_model
from edgecompress.passes.base import PassContext
from edgecompress.techniques import Trains
from edgecompress.tfmot.compiling import KeptAnswers, Objective, flat_outputs, input_arrays

_LEAST_PROBABILITY = 1e-7  # a sigmoid in float32 is 1 from logits of 17 on, which is about this far from 1
_REPETITION = "distillation"
_STEADY = 1e-3


def teach(model: Any, objective: Objective, context: PassContext, spec: Trains) -> tuple[Any, Objective, PassContext]:
    """Adds to what a tf_keras model is trained for what the context's teacher has to say, if there is one.

    Outputs without labels are trained to answer as the teacher does: training what they share with the output that has
    labels would ruin them otherwise (Li and Hoiem 2016, "Learning without Forgetting", arXiv:1606.09282). The output
    with labels is compared to the teacher's answers by the share `spec.distill` of the loss. For classes the distance
    is the Kullback-Leibler divergence of softened probabilities (Hinton, Vinyals and Dean 2015, arXiv:1503.02531,
    section 2), else the mean squared error over the answers' variance.

    Args:
        model: The tf_keras model.
        objective: For the output with labels.
        context: Its teacher is a Keras 3 model with the same inputs and outputs, which is run once on all samples.
        spec: Its `distill` and `temperature`.

    Returns:
        The model to train, which has the layers of the one given; what it is to be trained for; and the context, whose
        identity tells the teacher's weights if they matter.
    """
    data, teacher = context.data, context.teacher
    assert data is not None  # noqa: S101 (there is an objective)
    others = [
        number for number, tensor in enumerate(flat_outputs(model))
        if number != objective.output and tensor.dtype.is_floating
    ]  # fmt: skip
    if teacher is None or not (others or spec.distill):
        return model, objective, context
    answers = _answers_of(teacher, model, data)
    if others:
        objective = _keep_answers(objective, others, answers)
    if spec.distill:
        model, objective = _distil(model, objective, answers[objective.output], spec)
    return model, objective, replace(context, identity=f"{context.identity} {hash_run(teacher.weights)}")


def _answers_of(source: Any, model: Any, data: Dataset) -> list[Array]:
    """Returns what a Keras 3 model answers to all samples, by output; `model` is of tf_keras, with the same inputs."""
    loaded = load_model(source)
    arrays = dict(zip((spec.name for spec in loaded.inputs), input_arrays(model, data), strict=True))
    answers = loaded.predict(arrays, fixed=loaded.inputs)
    return [np.asarray(answers[name], np.float32) for name in loaded.outputs]


def _keep_answers(objective: Objective, others: list[int], answers: list[Array]) -> Objective:
    kept = {number: _keep(answers[number]) for number in others}
    titles = ", ".join(repr(objective.names[number]) for number in others)
    have, they = ("has", "it was") if len(others) == 1 else ("have", "they were")
    note = f"output {titles} {have} no labels: {they} trained to answer as before"
    return replace(objective, kept=kept, notes=(*objective.notes, note))


def _keep(answers: Array) -> KeptAnswers:
    """Returns values, one or more a sample, as something to be trained for."""
    # The share of the mean square keeps the weight of an output that always answers the same within bounds.
    spread = float(answers.var(axis=0).mean() + _STEADY * np.square(answers).mean())
    return KeptAnswers(answers, 1 / spread if spread > 0 else 1.0)


def _distil(model: Any, objective: Objective, answers: Array, spec: Trains) -> tuple[Any, Objective]:
    """Returns the model with one output twice, to be compared to labels and to a teacher's answers."""
    import tf_keras

    tensor, from_logits = flat_outputs(model)[objective.output], objective.from_logits
    binary = objective.task is Task.BINARY or isinstance(objective.loss, tf_keras.losses.BinaryCrossentropy)
    if binary or objective.task is Task.CLASSIFICATION:
        logits = None if from_logits else _beneath(tensor)
        if logits is not None:
            tensor, from_logits, answers = logits, True, _logits_of(answers, binary=binary)
        distance = divergence(spec.temperature, binary=binary, from_logits=from_logits)
        taught, how = KeptAnswers(answers, spec.distill, distance), f"KL, T = {spec.temperature:g}"
    else:
        taught, how = _keep(answers), "squared error / variance"
        taught = replace(taught, weight=spec.distill * taught.weight)
    return _with_output(model, tensor), replace(
        objective,
        names=(*objective.names, _REPETITION),
        kept={**objective.kept, len(objective.names): taught},
        weight=1 - spec.distill,
        distilled=f"{spec.distill:g} x {_REPETITION} ({how})",
    )


def _beneath(tensor: Any) -> Any:
    """Returns the logits that a quantized softmax or sigmoid makes probabilities of; None if it is none.

    Rounded to steps of 1/256, probabilities lose what the small ones tell; their logits do not.
    """
    history = tensor._keras_history  # noqa: SLF001 (tf_keras has no other way to the layer)
    kind = getattr(getattr(history.layer, "layer", None), "kind", None)
    return history.layer.get_input_at(history.node_index) if kind in ("softmax", "sigmoid") else None


def _logits_of(probabilities: Array, *, binary: bool) -> Array:
    logits = np.log(np.maximum(probabilities, _LEAST_PROBABILITY))
    return logits - np.log(np.maximum(1 - probabilities, _LEAST_PROBABILITY)) if binary else logits


def _with_output(model: Any, tensor: Any) -> Any:
    import tf_keras

    name = _REPETITION
    while name in {layer.name for layer in model.layers}:
        name += "_"
    again = tf_keras.layers.Activation("linear", name=name)(tensor)
    return tf_keras.Model(model.inputs, [*model.outputs, again], name=model.name)


def divergence(temperature: float, *, binary: bool, from_logits: bool) -> Any:
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
        # A bound, not a sum: a probability that rounding made 0 has no slope then, in place of one of 10 million.
        logits = answers if from_logits else tf.math.log(tf.maximum(answers, _LEAST_PROBABILITY))
        return tf.nn.log_softmax(logits / temperature)

    class Divergence(tf_keras.losses.Loss):  # type: ignore[misc]
        def call(self, y_true: Any, y_pred: Any) -> Any:
            wanted, found = soften(y_true), soften(y_pred)
            return temperature**2 * tf.reduce_sum(tf.exp(wanted) * (wanted - found), -1)

    return Divergence()
