from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from edgecompress.data import Dataset
from edgecompress.passes.base import PassContext
from edgecompress.techniques import Prune

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")
tf_keras = pytest.importorskip("tf_keras")

from edgecompress.tfmot.compiling import choose_objective, output_keys  # noqa: E402
from edgecompress.tfmot.distillation import divergence, teach  # noqa: E402

X = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
CLASSES = np.arange(40) % 3


def twin(model):
    """Returns the same model with other weights."""
    other = keras.models.clone_model(model)
    other.set_weights([weight[..., ::-1] + 0.1 for weight in model.get_weights()])
    return other


def pair(activation, *, units=3):
    """Returns a Keras 3 model, and one of tf_keras that answers the same."""
    source = keras.Sequential([keras.Input((5,), name="x"), keras.layers.Dense(units, activation, name="cls")])
    model = tf_keras.Sequential([tf_keras.Input((5,), name="x"), tf_keras.layers.Dense(units, activation, name="cls")])
    model.set_weights(source.get_weights())
    return source, model


def test_outputs_without_labels_are_to_answer_as_before():
    x = keras.Input((5,), name="x")
    dense = keras.layers.Dense
    outputs = {
        "next": dense(2)(x),
        "cls": dense(3, "softmax")(x),
        "index": keras.ops.argmax(dense(4)(x), axis=-1),
        "zero": x * 0,
    }
    source = keras.Model(x, outputs)
    made = tf_keras.Input((5,), name="x")
    layers = [tf_keras.layers.Dense(units, name=f"quant_{units}") for units in (3, 4, 2, 5)]
    heads = [layer(made) for layer in layers]
    heads[1] = tf_keras.backend.argmax(heads[1], axis=-1)
    model = tf_keras.Model(made, heads)  # in the order of the source's names
    data = Dataset({"x": X}, CLASSES)
    settings = PassContext(data=data, teacher=source)
    objective = choose_objective(model, settings, source)
    same, found, told = teach(model, objective, settings, Prune())
    assert same is model
    assert told.identity != teach(model, objective, replace(settings, teacher=twin(source)), Prune())[2].identity
    assert (found.names, found.output) == (("cls", "index", "next", "zero"), 0)
    assert sorted(found.kept) == [2, 3]
    assert found.notes[-1] == "output 'next', 'zero' have no labels: they were trained to answer as before"
    answers = np.asarray(source(X)["next"])
    np.testing.assert_allclose(found.kept[2].answers, answers, rtol=1e-4, atol=1e-5)
    assert found.kept[2].answers.dtype == np.float32
    assert found.kept[2].weight == pytest.approx(1 / answers.var(axis=0).mean(), rel=0.02)
    assert found.kept[3].weight == 1.0  # it always answers 0
    found.compile(model)
    assert np.isfinite(model.train_on_batch(X, found.targets(model, np.arange(40)))).all()
    key = output_keys(model)[2]
    assert found.title(model, f"val_{key}_loss") == "val_next_loss"
    assert found.title(model, "val_loss") == "val_loss"


def test_without_a_teacher_or_anything_to_teach_nothing_changes():
    source, model = pair("softmax")
    settings = PassContext(data=Dataset({"x": X}, CLASSES))
    objective = choose_objective(model, settings, source)
    taught = replace(settings, teacher=source)
    for context, spec in ((settings, Prune()), (settings, Prune(distill=0.5)), (taught, Prune())):
        assert all(
            a is b for a, b in zip(teach(model, objective, context, spec), (model, objective, context), strict=True)
        )


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_temperature_is_that_of_the_pass(temperature):
    source, model = pair(None)
    settings = PassContext(data=Dataset({"x": X}, CLASSES), teacher=twin(source))
    objective = choose_objective(model, settings, source)
    longer, found, _ = teach(model, objective, settings, Prune(distill=0.25, temperature=temperature))
    found.compile(longer)
    losses = longer.evaluate(X, found.targets(longer, np.arange(40)), verbose=0, return_dict=True)
    p, q = (softened(np.asarray(each(X)), temperature) for each in (settings.teacher, source))
    expected = temperature**2 * (p * np.log(p / q)).sum(-1).mean()
    assert losses["distillation_loss"] == pytest.approx(expected, rel=1e-3)
    assert losses["loss"] == pytest.approx(0.75 * losses["cls_loss"] + 0.25 * expected, rel=1e-3)
    assert found.loss_text.endswith(f" + 0.25 x distillation (KL, T = {temperature:g})")


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_of_rounded_probabilities_the_logits_are_compared(kind):
    """Steps of 1/256 would hide what the small ones tell."""
    classes = CLASSES if kind == "softmax" else CLASSES % 2

    class Rounded(tf_keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.layer = SimpleNamespace(kind=kind)

        def call(self, logits):
            return tf.round(256 * getattr(tf.nn, kind)(9 * logits)) / 256

    source, plain = pair(None, units=3 if kind == "softmax" else 1)
    model = tf_keras.Model(plain.inputs, Rounded()(plain.outputs[0]))
    probable = keras.Sequential([twin(source), keras.layers.Activation(kind)])
    settings = PassContext(data=Dataset({"x": X}, classes), teacher=probable)
    objective = choose_objective(model, settings, probable)
    longer, found, _ = teach(model, objective, settings, Prune(distill=1.0))
    assert (len(longer.outputs), len(model.outputs)) == (2, 1)
    found.compile(longer)
    losses = longer.evaluate(X, found.targets(longer, np.arange(40)), verbose=0, return_dict=True)
    p, q = (np.asarray(each(X)) for each in (twin(source), source))
    if kind == "sigmoid":
        p, q = (np.concatenate([np.zeros_like(each), each], -1) for each in (p, q))
    p, q = softened(p), softened(q)
    assert losses["distillation_loss"] == pytest.approx(4 * (p * np.log(p / q)).sum(-1).mean(), rel=1e-3)


def test_a_probability_that_was_rounded_to_0_has_no_slope():
    """Not one of 10 million, which it would have where the rounding lets gradients through."""
    rounded = tf.constant([[0.5, 0.5, 0.0]])
    with tf.GradientTape() as tape:
        tape.watch(rounded)
        distance = divergence(2.0, binary=False, from_logits=False)(np.float32([[0.3, 0.3, 0.4]]), rounded)
    gradient = tape.gradient(distance, rounded).numpy()
    assert gradient[0, 2] == 0
    assert 0 < np.abs(gradient).max() < 10


def softened(logits, temperature=2.0):
    powers = np.exp(logits / temperature)
    return powers / powers.sum(-1, keepdims=True)


@pytest.mark.parametrize("from_logits", [True, False])
def test_the_divergence_is_that_of_softened_probabilities(from_logits):
    rng = np.random.default_rng(0)
    wanted, found = rng.normal(0, 3, (2, 6, 4)).astype(np.float32)
    p, q = softened(wanted), softened(found)
    expected = 4 * (p * np.log(p / q)).sum(-1).mean()
    if not from_logits:
        wanted, found = (np.exp(each) / np.exp(each).sum(-1, keepdims=True) for each in (wanted, found))
    measured = float(divergence(2.0, binary=False, from_logits=from_logits)(wanted, found))
    assert measured == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("from_logits", [True, False])
def test_one_probability_stands_for_two_classes(from_logits):
    wanted, found = np.float32([[-2.0], [0.5]]), np.float32([[1.0], [0.7]])
    pair = [np.concatenate([np.zeros_like(each), each], -1) for each in (wanted, found)]
    expected = float(divergence(2.0, binary=False, from_logits=True)(*pair))
    if not from_logits:
        wanted, found = (1 / (1 + np.exp(-each)) for each in (wanted, found))
    assert float(divergence(2.0, binary=True, from_logits=from_logits)(wanted, found)) == pytest.approx(
        expected, rel=1e-4
    )
