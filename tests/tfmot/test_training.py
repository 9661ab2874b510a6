from __future__ import annotations

import math

import numpy as np
import pytest

from edgecompress.data import Dataset
from edgecompress.errors import DataError, UsageError
from edgecompress.passes.base import PassContext
from edgecompress.techniques import Cluster, Training
from edgecompress.tfmot.training import fine_tune


@pytest.fixture(scope="module")
def tf_keras():
    return pytest.importorskip("tf_keras")


@pytest.fixture(scope="module")
def samples(digits):
    (x, y), _ = digits.digits(as_rows=False)
    return Dataset({"image": x[:400]}, y[:400], source="digits")


def build(tf_keras):
    """Returns the same small network each time; its batch normalization has weights of its own kind."""
    layers = tf_keras.layers
    model = tf_keras.Sequential([
        layers.Input((8, 8, 1), name="image"),
        layers.Conv2D(8, 3, strides=2, activation="relu"),
        layers.BatchNormalization(),
        layers.Flatten(),
        layers.Dense(10),
    ])  # fmt: skip
    rng = np.random.default_rng(0)
    model.set_weights([w if w.ndim == 1 else rng.normal(0, 0.2, w.shape) for w in model.get_weights()])
    return model


@pytest.fixture
def make(tf_keras):
    return lambda: build(tf_keras)


def context(samples, **options):
    training = {"learning_rate": 3e-3, **options.pop("training", {})}
    return PassContext(training=Training(**training), data=samples, **{"seed": 1, **options})


def weights_of(model):
    return b"".join(variable.numpy().tobytes() for variable in model.variables)


def breaking(tf_keras, *, epoch, error=None):
    """A callback that puts NaN into the weights before an epoch, or raises `error` in the middle of it."""

    class Break(tf_keras.callbacks.Callback):
        def on_epoch_begin(self, number, _logs=None):
            if number + 1 == epoch and error is None:
                bias = self.model.trainable_variables[-1]
                bias.assign(bias * math.nan)
            self.now = number + 1

        def on_train_batch_end(self, batch, _logs=None):
            if self.now == epoch and batch == 3 and error is not None:
                raise error

    return Break()


class StoppedError(Exception):
    """Stands for a killed process."""


def test_it_learns_and_says_what_it_did(make, samples):
    model, said = make(), []
    trained = fine_tune(model, context(samples, say=lambda *facts: said.append(facts)), Cluster(epochs=3))
    assert (trained.samples, trained.validation_samples) == (360, 40)
    assert [log.epoch for log in trained.epochs] == [1, 2, 3]
    assert trained.epochs[2].figures["loss"] < 0.7 * trained.epochs[0].figures["loss"]
    assert {"loss", "accuracy", "val_loss", "val_accuracy"} == set(trained.epochs[0].figures)
    assert trained.optimizer == "Adam, learning rate 0.003"
    assert trained.loss == "SparseCategoricalCrossentropy from logits"
    assert (trained.stopped, trained.resumed_at) == (None, None)
    assert said[-1][1:] == (12, 12)
    assert said[-1][0].startswith("cluster, epoch 3/3: loss 1.")
    assert "accuracy" in said[-1][0]


def test_the_weights_of_the_best_epoch_are_kept(make, samples, tf_keras):
    kept = {}

    class Keep(tf_keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, _logs=None):
            if epoch >= 2:
                kernel = self.model.trainable_variables[-2]
                kernel.assign(-9 * kernel)  # makes it worse

        def on_epoch_end(self, epoch, _logs=None):
            kept[epoch + 1] = weights_of(self.model)

    model = make()
    trained = fine_tune(model, context(samples), Cluster(epochs=4), callbacks=[Keep()])
    losses = [log.figures["val_loss"] for log in trained.epochs]
    assert trained.kept_epoch == 1 + int(np.argmin(losses))
    assert trained.kept_epoch == 2
    assert weights_of(model) == kept[trained.kept_epoch]


def test_without_validation_the_last_epoch_is_kept(make, samples):
    trained = fine_tune(make(), context(samples, training={"validation": 0}), Cluster(epochs=2))
    assert (trained.samples, trained.validation_samples, trained.kept_epoch) == (400, 0, 2)
    assert "val_loss" not in trained.epochs[0].figures


def test_early_stopping(make, samples):
    training = {"learning_rate": 1e-30, "early_stopping": 2}
    model = make()
    model.layers[1].momentum = 1.0  # its statistics would move the loss
    trained = fine_tune(model, context(samples, training=training), Cluster(epochs=9))
    assert len(trained.epochs) == 3
    assert trained.stopped == "early stopping: no better validation loss in 2 epochs"
    assert trained.kept_epoch == 1


def test_the_same_seed_gives_the_same_bytes_and_another_one_others(make, samples):
    found = []
    for seed in (1, 1, 2):
        model = make()
        fine_tune(model, context(samples, seed=seed), Cluster(epochs=2))
        found.append(weights_of(model))
    assert found[0] == found[1]
    assert found[0] != found[2]


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_resumed_run_ends_as_one_that_was_never_interrupted(make, samples, tf_keras, tmp_path, optimizer):
    config = {"optimizer": {"class_name": optimizer, "config": {"momentum": 0.9} if optimizer == "sgd" else {}}}
    whole = make()
    expected = fine_tune(whole, context(samples, compile_config=config), Cluster(epochs=4))

    kill = breaking(tf_keras, epoch=3, error=StoppedError())
    with pytest.raises(StoppedError):
        fine_tune(
            make(),
            context(samples, compile_config=config, checkpoints=tmp_path),
            Cluster(epochs=4),
            callbacks=[kill],
        )
    assert [file.name for file in tmp_path.iterdir()] == ["training.npz"]

    resumed, again = make(), context(samples, compile_config=config, checkpoints=tmp_path, resume=True)
    trained = fine_tune(resumed, again, Cluster(epochs=4))
    assert trained.resumed_at == 3
    assert trained.epochs == expected.epochs
    assert trained.kept_epoch == expected.kept_epoch
    assert weights_of(resumed) == weights_of(whole)

    finished, said = make(), []
    context_after = context(
        samples, compile_config=config, checkpoints=tmp_path, resume=True, say=lambda *facts: said.append(facts)
    )
    assert fine_tune(finished, context_after, Cluster(epochs=4)).epochs == expected.epochs
    assert weights_of(finished) == weights_of(whole)
    assert not said, "nothing was left to train"


def test_without_resume_a_checkpoint_is_written_anew(make, samples, tmp_path):
    for _ in range(2):
        trained = fine_tune(make(), context(samples, checkpoints=tmp_path), Cluster(epochs=1))
        assert trained.resumed_at is None
    assert fine_tune(make(), context(samples, resume=True), Cluster(epochs=1)).resumed_at is None


@pytest.fixture(scope="module")
def checkpoint(samples, tf_keras, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    fine_tune(build(tf_keras), context(samples, checkpoints=folder, identity="a"), Cluster(epochs=1))
    return folder


@pytest.mark.parametrize("change", ["seed", "epochs", "batch_size", "samples", "weights", "identity", "learning_rate"])
def test_a_checkpoint_of_another_run_is_refused(make, samples, checkpoint, change):
    model, training = make(), {}
    options = {"seed": 1, "identity": "a", "checkpoints": checkpoint, "resume": True}
    if change in ("batch_size", "learning_rate"):
        training = {change: 16}
    elif change in ("seed", "identity"):
        options[change] = 5
    elif change == "samples":
        samples = samples.select(np.arange(399))
    elif change == "weights":
        model.set_weights([weight * 2 for weight in model.get_weights()])
    with pytest.raises(UsageError, match=r"of another run.*Fix: .*--resume") as caught:
        fine_tune(model, context(samples, training=training, **options), Cluster(epochs=2 if change == "epochs" else 1))
    assert str(checkpoint) in str(caught.value)


def test_a_loss_that_becomes_nan_stops_the_training_and_the_last_good_weights_stay(make, samples, tf_keras):
    good = make()
    fine_tune(good, context(samples, training={"validation": 0}), Cluster(epochs=2))
    model, batches = make(), []
    trained = fine_tune(
        model,
        context(samples, training={"validation": 0}, say=lambda *facts: batches.append(facts)),
        Cluster(epochs=5),
        callbacks=[breaking(tf_keras, epoch=3)],
    )
    assert trained.stopped == "the loss became NaN or infinite in epoch 3; the weights of epoch 2 were kept"
    assert trained.kept_epoch == len(trained.epochs) == 2
    assert weights_of(model) == weights_of(good)
    assert batches[-1][1] == 1, "each further step would have been lost"


@pytest.mark.parametrize("validation", [0, 0.1])
def test_a_loss_that_was_never_a_number_is_an_error(make, samples, validation):
    training = {"learning_rate": 1e30, "validation": validation}
    with pytest.raises(DataError, match=r"NaN or infinite in the first epoch.*1e\+30.*Fix: lower --learning-rate"):
        fine_tune(make(), context(samples, training=training), Cluster(epochs=3))


def test_weights_that_are_broken_by_the_very_last_step_are_not_kept(make, samples):
    few = samples.select(np.arange(32))  # one step: its loss is a number, the weights that it leaves are not
    training = {"learning_rate": 1e39, "validation": 0}
    with pytest.raises(DataError, match="NaN or infinite"):
        fine_tune(make(), context(few, training=training), Cluster(epochs=1))


def test_inputs_go_where_their_names_say(tf_keras):
    left, right = (tf_keras.Input((3,), name=name) for name in ("left", "right"))
    sums = tf_keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")(left - 0 * right)
    model = tf_keras.Model([left, right], sums)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(256, 3)).astype(np.float32)
    target = (x @ [1.0, -2.0, 3.0]).astype(np.float32)
    data = Dataset({"right": np.zeros_like(x), "left": x}, target)
    trained = fine_tune(model, context(data, training={"learning_rate": 0.2}), Cluster(epochs=8))
    assert trained.loss == "MeanSquaredError"
    assert model.layers[-1].kernel.numpy().reshape(-1) == pytest.approx([1, -2, 3], abs=0.1)
