from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgecompress.data import Dataset
from edgecompress.errors import UsageError
from edgecompress.passes.base import PassContext
from edgecompress.techniques import LowRank, Training

keras = pytest.importorskip("keras")
pytest.importorskip("tf_keras")

from edgecompress.layers import LowRankDense, LowRankGRU  # noqa: E402
from edgecompress.tfmot.retrain import retrain  # noqa: E402


@pytest.fixture(scope="module")
def rows(digits):
    """Digits as sequences of rows, and those held out."""
    (x, y), (x_test, y_test) = digits.digits(as_rows=True)
    return Dataset({"rows": x}, y, source="digits"), x_test, y_test


@pytest.fixture(scope="module")
def few(rows):
    return rows[0].select(np.arange(300))


def context(samples, **options):
    training = {"epochs": 2, "learning_rate": 3e-3, **options.pop("training", {})}
    return PassContext(training=Training(**training), data=samples, **{"seed": 1, **options})


def again(model, teacher, settings, **fields):
    return retrain(model, replace(settings, teacher=teacher), LowRank(**fields))


def answers(model, x):
    return np.asarray(model(x, training=False))


def accuracy(model, x, y):
    return float(np.mean(answers(model, x).argmax(-1) == y))


def weights_of(model):
    return b"".join(np.asarray(weight).tobytes() for weight in model.weights)


def net(units, activation, *, hidden=16, seed=0):
    keras.utils.set_random_seed(seed)
    return keras.Sequential([
        keras.Input((8, 8), name="rows"),
        keras.layers.Flatten(),
        keras.layers.Dense(hidden, "relu"),
        keras.layers.Dense(units, activation, name="digit"),
    ])  # fmt: skip


def low_rank_gru(whole, rank):
    """Returns a copy of a model with a GRU of this rank in the place of its own."""

    def replace(layer):
        if isinstance(layer, keras.layers.GRU):
            return LowRankGRU.from_layer(layer, rank, rank)
        return type(layer).from_config(layer.get_config())

    twin = keras.models.clone_model(whole, clone_function=replace)
    twin.layers[-1].set_weights(whole.layers[-1].get_weights())
    return twin


def test_a_gru_of_low_rank_gets_back_what_it_lost(digits_gru, rows):
    data, x, y = rows
    whole = keras.saving.load_model(digits_gru.model)
    model, as_it_was = low_rank_gru(whole, 6), answers(whole, x)
    before = accuracy(whole, x, y)
    assert accuracy(model, x, y) < before - 0.1
    trained = again(model, whole, context(data), epochs=3, distill=0.5)
    assert accuracy(model, x, y) > before - 0.02
    assert trained.kept_epoch > 0
    assert trained.loss == "0.5 x SparseCategoricalCrossentropy + 0.5 x distillation (KL, T = 2)"
    last = trained.epochs[-1].figures
    assert last["val_accuracy"] > before - 0.1
    assert last["loss"] == pytest.approx(0.5 * last["digit_loss"] + 0.5 * last["distillation_loss"], rel=1e-4)
    np.testing.assert_array_equal(answers(whole, x), as_it_was)


CASES = {
    "softmax": (10, "softmax", lambda y, _: y, "KL, T = 2"),
    "logits": (10, None, lambda y, _: y, "KL, T = 2"),
    "one-hot": (10, "softmax", lambda y, _: np.eye(10)[y], "KL, T = 2"),
    "sigmoid": (1, "sigmoid", lambda y, _: y % 2, "KL, T = 2"),
    "sigmoid logits": (1, None, lambda y, _: y % 2, "KL, T = 2"),
    "values": (2, None, lambda _, x: x.mean((1, 2))[:, None] + [0.0, 1.0], "squared error / variance"),
}


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("case", CASES)
def test_every_kind_of_output_learns_from_labels_and_teacher(few, case, share):
    units, activation, label, how = CASES[case]
    x = few.inputs["rows"]
    samples = Dataset(few.inputs, label(few.labels, x), source="digits")
    teacher, model = net(units, activation, seed=1), net(units, activation, seed=2)
    before = np.square(answers(model, x) - answers(teacher, x)).mean()
    trained = again(model, teacher, context(samples), epochs=2, distill=share)
    first, last = (trained.epochs[number].figures for number in (0, -1))
    assert last["loss"] < first["loss"]
    assert ("val_accuracy" in last) == (case != "values")
    assert (f"{share:g} x distillation ({how})" in trained.loss) == (share > 0)
    assert (" + " in trained.loss) == (share == 0.5)
    if share == 1:
        assert np.square(answers(model, x) - answers(teacher, x)).mean() < 0.8 * before


def test_at_1_labels_are_only_measured_by(few):
    found = []
    for labels in (few.labels, few.labels[::-1]):
        model = net(10, "softmax", seed=2)
        samples = Dataset(few.inputs, labels, source="digits")
        options = context(samples, training={"validation": 0})
        trained = again(model, net(10, "softmax", seed=1), options, epochs=1, distill=1.0)
        found.append((weights_of(model), trained.epochs[0].figures))
    assert found[0][0] == found[1][0]
    assert found[0][1]["loss"] == found[1][1]["loss"]
    assert found[0][1]["digit_loss"] != found[1][1]["digit_loss"]


def test_weights_that_no_epoch_betters_are_kept(few):
    model = net(10, "softmax")
    model.compile(keras.optimizers.Adam(1e-2), "sparse_categorical_crossentropy")
    model.fit(few.inputs["rows"], few.labels, epochs=10, verbose=0)
    before = weights_of(model)
    ruinous = context(few, training={"learning_rate": 3.0})
    trained = again(model, model, ruinous, epochs=2)
    assert weights_of(model) == before
    assert (trained.kept_epoch, len(trained.epochs)) == (0, 2)
    assert trained.notes[-1].startswith("no epoch was better than the weights before training (validation loss 0.")
    unjudged = context(few, training={"learning_rate": 3.0, "validation": 0})
    assert again(model, model, unjudged, epochs=1).kept_epoch == 1


def test_the_same_seed_draws_the_same_dropout(few):
    def run(seed):
        keras.utils.set_random_seed(seed)  # on which nothing may depend
        gru = LowRankGRU(12, input_rank=4, dropout=0.3, recurrent_dropout=0.2)
        model = keras.Sequential([keras.Input((8, 8), name="rows"), gru, keras.layers.Dense(10, "softmax")])
        random = np.random.default_rng(0)
        model.set_weights([random.normal(0, 0.3, weight.shape) for weight in model.get_weights()])
        again(model, model, context(few, training={"validation": 0}), epochs=1)
        return weights_of(model)

    assert run(1) == run(2)


class KilledError(Exception):
    """Stands for a killed process."""


def test_a_resumed_run_ends_as_one_that_was_never_interrupted(few, tmp_path):
    def run(**options):
        model, distill = net(10, "softmax", seed=2), options.pop("distill", 0.5)
        settings = context(few, **options)
        trained = again(model, net(10, "softmax", seed=1), settings, epochs=3, distill=distill)
        return trained, weights_of(model)

    def kill(step, _done, _total):
        if "epoch 3/3" in step:
            raise KilledError

    whole, weights = run()
    with pytest.raises(KilledError):
        run(checkpoints=tmp_path, say=kill)
    with pytest.raises(UsageError, match="of another run"):
        run(checkpoints=tmp_path, resume=True, distill=0.6)
    resumed, found = run(checkpoints=tmp_path, resume=True)
    assert resumed.resumed_at == 3
    assert (found, resumed.epochs, resumed.kept_epoch) == (weights, whole.epochs, whole.kept_epoch)


def test_outputs_without_labels_are_to_answer_as_the_teacher_does(few):
    def two(seed):
        keras.utils.set_random_seed(seed)
        x = keras.Input((8, 8), name="rows")
        flat = keras.layers.Flatten(name="distillation")(x)  # the name that the repeated output has otherwise
        heads = [keras.layers.Dense(3, name="place")(flat), keras.layers.Dense(10, "softmax", name="digit")(flat)]
        return keras.Model(x, heads)

    teacher, model = two(1), two(2)
    x = few.inputs["rows"]
    wanted = np.asarray(teacher(x)[0])
    before = np.square(np.asarray(model(x)[0]) - wanted).mean()
    settings = context(few, training={"learning_rate": 1e-2})
    trained = again(model, teacher, settings, epochs=3, distill=0.5)
    assert np.square(np.asarray(model(x)[0]) - wanted).mean() < 0.5 * before
    assert {"place_loss", "digit_loss", "digit_accuracy", "distillation_loss"} < set(trained.epochs[0].figures)
    assert "output 'place' has no labels: it was trained to answer as before" in trained.notes


def test_layers_that_need_to_know_how_many_steps_there_are(few):
    """`fit` does not say; Keras 3's TimeDistributed, which is called whole around a layer of ours, asks."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential([
        keras.Input((8, 8), name="rows"), layers.TimeDistributed(LowRankDense(16, 4), name="each"), layers.Flatten(),
        layers.Dense(10, "softmax", name="digit"),
    ])  # fmt: skip
    before = weights_of(model)
    trained = again(model, keras.models.clone_model(model), context(few), epochs=1)
    assert trained.samples == 270
    assert weights_of(model) != before
