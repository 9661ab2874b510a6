"""What models of Keras 3 are trained for; those of tf_keras are in tests/tfmot/test_compiling.py."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from edgecompress.data import Dataset
from edgecompress.errors import DataError
from edgecompress.objectives.choosing import choose, describe_optimizer
from edgecompress.objectives.optimizers import build_optimizer

X = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
CLASSES = np.arange(40) % 3
ONE_HOT = np.eye(3, dtype=np.float32)[CLASSES]


def net(*outputs):
    """A model with a Dense output for each (units, activation)."""
    keras.utils.set_random_seed(0)
    x = keras.Input((5,), name="x")
    made = [keras.layers.Dense(units, activation, name=f"out_{k}")(x) for k, (units, activation) in enumerate(outputs)]
    return keras.Model(x, made)


def chosen(model, labels, *, config=None, learning_rate=None):
    answers = [np.asarray(array) for array in keras.tree.flatten(model(X))]
    data = Dataset({"x": X}, labels if labels is None else np.asarray(labels), source="train.npz")
    return choose(
        keras, data, answers, model.output_names, config, learning_rate=learning_rate, source=model
    )  # fmt: skip


def compiled_config(model, **options):
    model.compile(**options)
    return model.get_compile_config()


def trained(model, found):
    """The loss and the metrics of a step with what was chosen."""
    model.compile(found.optimizer, loss=found.loss, metrics=list(found.metrics))
    return model.fit(X, found.labels, epochs=1, batch_size=40, verbose=0).history


@pytest.mark.parametrize(
    ("labels", "output", "loss"),
    [
        (CLASSES, (3, "softmax"), "SparseCategoricalCrossentropy"),
        (CLASSES, (3, None), "SparseCategoricalCrossentropy from logits"),
        (ONE_HOT, (3, "softmax"), "CategoricalCrossentropy"),
        (CLASSES % 2, (1, "sigmoid"), "BinaryCrossentropy"),
        (CLASSES % 2 > 0, (1, None), "BinaryCrossentropy from logits"),
        (X[:, 0], (1, None), "MeanSquaredError"),
        (X[:, :2], (2, None), "MeanSquaredError"),
    ],
)
def test_what_is_not_stored_is_inferred_and_trains(labels, output, loss):
    model = net(output)
    found = chosen(model, labels)
    assert found.loss_text == loss
    assert isinstance(found.loss, keras.losses.Loss)
    assert found.notes == (f"the loss {loss} was inferred from the labels: the model was saved without one",)
    assert found.from_logits == loss.endswith("logits") or loss == "MeanSquaredError"
    history = trained(model, found)
    assert np.isfinite(history["loss"][0])
    assert ("accuracy" in history) == (loss != "MeanSquaredError")


def test_a_models_own_objective_is_carried_over():
    model = net((3, "softmax"))
    config = compiled_config(
        model, optimizer=keras.optimizers.SGD(0.25, momentum=0.5),
        loss=keras.losses.SparseCategoricalCrossentropy(ignore_class=1),
        metrics=[keras.metrics.SparseTopKCategoricalAccuracy(2, name="top2")],
    )  # fmt: skip
    found = chosen(model, CLASSES, config=config)
    assert found.optimizer_text == "SGD, learning rate 0.25"
    assert found.optimizer.momentum == 0.5
    assert found.loss.get_config()["ignore_class"] == 1
    assert [one if isinstance(one, str) else one.name for one in found.metrics] == ["top2", "accuracy"]
    assert found.notes == ()
    assert set(trained(model, found)) == {"loss", "top2", "accuracy"}
    assert chosen(model, CLASSES, config=config, learning_rate=0.5).optimizer_text == "SGD, learning rate 0.5"


@pytest.mark.parametrize("loss", ["huber", "dice", "mean_squared_error"])
def test_losses_by_their_names(loss):
    model = net((3, "softmax"))
    found = chosen(model, ONE_HOT, config=compiled_config(model, loss=loss))
    expected = float(np.mean(keras.losses.get(loss)(ONE_HOT, np.asarray(model(X)))))
    assert trained(model, found)["loss"][0] == pytest.approx(expected, rel=1e-4)
    assert found.notes == ()


def tripled(y_true, y_pred):
    return 3 * keras.ops.mean(keras.ops.square(y_true - y_pred), axis=-1)


class Tripled(keras.losses.Loss):
    def call(self, y_true, y_pred):
        return tripled(y_true, y_pred)


@pytest.mark.parametrize(("own", "labels"), [(tripled, X[:, 0]), (tripled, X[:, :1]), (Tripled(), X[:, :1])])
def test_the_users_own_loss_is_called(own, labels):
    """As Keras calls it: a function gets labels of the rank of the answers, an object gets them as they are."""
    model = net((1, None))
    found = chosen(model, labels, config={"loss": own})
    assert found.loss_text == ("tripled" if own is tripled else "Tripled")
    expected = 3 * float(np.mean(np.square(X[:, :1] - np.asarray(model(X)))))
    assert trained(model, found)["loss"][0] == pytest.approx(expected, rel=1e-4)
    assert found.notes == ()


def test_an_own_loss_that_fails_is_replaced_with_a_warning():
    def broken(_y_true, _y_pred):
        raise ValueError("not today")

    (note,) = chosen(net((3, "softmax")), CLASSES, config={"loss": broken}).notes
    assert note.startswith("WARNING: the model's own loss 'broken' was not used (it fails on the labels: ValueError")
    assert "SparseCategoricalCrossentropy, inferred from the labels, was used instead" in note


@pytest.mark.parametrize(
    ("labels", "output"), [(CLASSES, 0), (ONE_HOT, 0), (X[:, 0], 1), (np.arange(40) % 7, 2)]
)  # fmt: skip
def test_of_several_outputs_the_one_that_the_labels_fit(labels, output):
    model = net((3, "softmax"), (1, None), (7, "softmax"))
    found = chosen(model, labels)
    assert found.output == output
    assert found.names == ("out_0", "out_1", "out_2")


@pytest.mark.parametrize("stored", [{"out_0": "mae", "out_1": "huber"}, ["mae", "huber"]])
def test_each_output_has_its_own_loss(stored):
    model = net((3, "softmax"), (1, None))
    assert chosen(model, ONE_HOT, config={"loss": stored}).loss_text == "MeanAbsoluteError"
    assert "uber" in chosen(model, X[:, 0], config={"loss": stored}).loss_text


@pytest.mark.parametrize(
    ("labels", "words"),
    [(None, "training needs samples with labels"), (X[:, :4], "the labels fit no output"), (CLASSES + 8, "8")],
)
def test_labels_that_do_not_fit_are_refused(labels, words):
    with pytest.raises(DataError, match=words) as caught:
        chosen(net((3, "softmax")), labels)
    assert "train.npz" in str(caught.value) or words == "8"


@pytest.mark.parametrize("name", ["Adam", "AdamW", "SGD", "RMSprop", "Lion", "Adafactor", "Lamb", "Muon"])
def test_optimizers_come_back_as_they_were(name):
    model = net((3, "softmax"))
    config = compiled_config(model, optimizer=getattr(keras.optimizers, name)(3e-3), loss="mse")
    optimizer, notes = build_optimizer(keras, config, None)
    assert (type(optimizer).__name__, describe_optimizer(optimizer)) == (name, f"{name}, learning rate 0.003")
    assert notes == ()


def test_a_schedule_of_the_learning_rate_is_kept_until_another_rate_is_asked_for():
    model = net((3, "softmax"))
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5)
    config = compiled_config(model, optimizer=keras.optimizers.Adam(schedule), loss="mse")
    assert describe_optimizer(build_optimizer(keras, config, None)[0]) == "Adam, learning rate by ExponentialDecay"
    assert describe_optimizer(build_optimizer(keras, config, 0.5)[0]) == "Adam, learning rate 0.5"


def test_without_anything_stored_it_is_adam():
    optimizer, notes = build_optimizer(keras, {}, None)
    assert (describe_optimizer(optimizer), notes) == ("Adam, learning rate 0.001", ())
    optimizer, (note,) = build_optimizer(keras, {"optimizer": {"class_name": "Custom>Mine", "config": {}}}, None)
    assert describe_optimizer(optimizer) == "Adam, learning rate 0.001"
    assert note == "the model's optimizer 'Mine' is not in keras: Adam was used"
