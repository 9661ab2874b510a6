from __future__ import annotations

import math

import numpy as np
import pytest

from edgecompress.data import Dataset
from edgecompress.epochs import run_epochs, split_training, steps_per_epoch
from edgecompress.errors import DataError, UsageError
from edgecompress.passes.base import PassContext
from edgecompress.techniques import Training


class KilledError(Exception):
    """Stands for a killed process."""


class Variable:
    def __init__(self, value):
        self.value = np.array(value, np.float64)

    def numpy(self):
        return self.value.copy()

    def assign(self, array):
        self.value = np.array(array)


class Line:
    """One weight, fitted to the samples' values by gradient descent with momentum, without any framework."""

    optimizer_text = "momentum, learning rate 0.1"
    loss_text = "squared error"
    notes = ("a line",)

    def __init__(self, values, *, batch=10, before_epoch=lambda _line, _epoch: None):
        self.weight, self.speed = Variable(0.0), Variable(0.0)
        self.variables, self.optimizer_variables = [self.weight], [self.speed]
        self.values, self.batch, self.before_epoch = values, batch, before_epoch
        self.orders = []

    def fit(self, epoch, order, held_back, report):
        self.before_epoch(self, epoch)
        self.orders.append(order.tolist())
        total, losses = math.ceil(len(order) / self.batch), []
        for number in range(total):
            chosen = order[number * self.batch : (number + 1) * self.batch]
            losses.append(self.evaluate(chosen))
            step = 2 * float(np.mean(self.weight.value - self.values[chosen]))
            self.speed.assign(0.5 * self.speed.value - 0.1 * step)
            self.weight.assign(self.weight.value + self.speed.value)
            if report(number + 1, total, {"loss": float(np.mean(losses))}):
                break
        figures = {"loss": float(np.mean(losses))}
        return figures | ({"val_loss": self.evaluate(held_back)} if len(held_back) else {})

    def evaluate(self, indices):
        return float(np.square(self.weight.value - self.values[indices]).mean())


VALUES = np.random.default_rng(0).normal(3, 1, 100)


def context(**options):
    training = {"batch_size": 10, **options.pop("training", {})}
    data = Dataset({"x": VALUES}, None, source="values")
    return PassContext(training=Training(**training), data=data, **{"seed": 1, **options})


def test_it_learns_and_says_what_it_did():
    line, said = Line(VALUES), []
    trained = run_epochs(line, context(say=lambda *facts: said.append(facts)), step="fit", epochs=3)
    assert line.weight.value == pytest.approx(VALUES.mean(), abs=0.5)
    assert (trained.samples, trained.validation_samples) == (90, 10)
    assert trained.kept_epoch == 1 + int(np.argmin([log.figures["val_loss"] for log in trained.epochs]))
    assert [log.epoch for log in trained.epochs] == [1, 2, 3]
    assert (trained.optimizer, trained.loss, trained.notes) == (line.optimizer_text, line.loss_text, line.notes)
    assert (trained.stopped, trained.resumed_at) == (None, None)
    last = trained.epochs[-1].figures["loss"]
    assert said[-1] == (f"fit, epoch 3/3: loss {last:.4f}", 9, 9)
    assert sum(done == total for _, done, total in said) == 3, "the end of each epoch is always told"


def test_each_epoch_has_an_order_of_its_own():
    line, again = Line(VALUES), Line(VALUES)
    for each in (line, again):
        run_epochs(each, context(), step="fit", epochs=2)
    assert line.orders == again.orders
    assert line.orders[0] != line.orders[1]
    assert set(line.orders[0]) == set(line.orders[1]) == set(split_training(context())[0])


def worse_from(epoch):
    """Throws the weight far away before an epoch and all after it."""

    def throw(line, number):
        if number >= epoch:
            line.weight.assign(100.0 * number)

    return throw


def test_the_weights_of_the_best_epoch_are_kept():
    whole, line = Line(VALUES), Line(VALUES, before_epoch=worse_from(3))
    run_epochs(whole, context(), step="fit", epochs=2)
    trained = run_epochs(line, context(), step="fit", epochs=4)
    assert trained.kept_epoch == 2
    assert line.weight.value == whole.weight.value


def test_epochs_before_judge_from_do_not_count():
    line = Line(VALUES, before_epoch=worse_from(2))
    assert run_epochs(line, context(), step="fit", epochs=3, judge_from=2).kept_epoch == 2
    assert run_epochs(Line(VALUES), context(), step="fit", epochs=2, judge_from=9).kept_epoch == 2


def test_the_weights_from_before_may_be_kept():
    line = Line(VALUES, before_epoch=worse_from(1))
    line.weight.assign(3.0)
    trained = run_epochs(line, context(), step="fit", epochs=2, judge_from=0)
    assert (trained.kept_epoch, line.weight.value) == (0, 3.0)
    assert trained.notes[-1].startswith("no epoch was better than the weights before training (validation loss ")
    unjudged = Line(VALUES, before_epoch=worse_from(1))
    settings = context(training={"validation": 0})
    assert run_epochs(unjudged, settings, step="fit", epochs=2, judge_from=0).kept_epoch == 2


def test_early_stopping():
    line = Line(VALUES, before_epoch=worse_from(2))
    trained = run_epochs(line, context(training={"early_stopping": 2}), step="fit", epochs=9)
    assert len(trained.epochs) == 3
    assert trained.stopped == "early stopping: no better validation loss in 2 epochs"
    assert trained.kept_epoch == 1


def broken_at(epoch):
    def put_nan(line, number):
        if number == epoch:
            line.weight.assign(math.nan)

    return put_nan


def test_a_loss_that_becomes_nan_ends_the_training_at_the_weights_before():
    line, said = Line(VALUES, before_epoch=broken_at(3)), []
    settings = context(training={"validation": 0}, say=lambda *facts: said.append(facts))
    trained = run_epochs(line, settings, step="fit", epochs=5)
    assert trained.stopped == "the loss became NaN or infinite in epoch 3; the weights of epoch 2 were kept"
    assert len(trained.epochs) == 2
    assert math.isfinite(line.weight.value)
    assert said[-1][1] == 1, "each further step would have been lost"


def test_a_loss_that_was_never_a_number_is_an_error():
    expected = r"NaN or infinite in the first epoch.*\(fit; momentum, learning rate 0.1\).*Fix: lower --learning-rate"
    with pytest.raises(DataError, match=expected) as caught:
        run_epochs(Line(VALUES, before_epoch=broken_at(1)), context(), step="fit", epochs=2)
    assert "values" in str(caught.value)


def test_a_resumed_run_ends_as_one_that_was_never_interrupted(tmp_path):
    def kill(_line, epoch):
        if epoch == 3:
            raise KilledError

    whole, resumed, finished = Line(VALUES), Line(VALUES), Line(VALUES)
    expected = run_epochs(whole, context(), step="fit", epochs=4)
    with pytest.raises(KilledError):
        run_epochs(Line(VALUES, before_epoch=kill), context(checkpoints=tmp_path), step="fit", epochs=4)
    again = context(checkpoints=tmp_path, resume=True)
    trained = run_epochs(resumed, again, step="fit", epochs=4)
    assert (trained.resumed_at, len(resumed.orders)) == (3, 2)
    assert trained.epochs == expected.epochs
    assert resumed.weight.value == whole.weight.value
    assert run_epochs(finished, again, step="fit", epochs=4).epochs == expected.epochs
    assert (finished.orders, finished.weight.value) == ([], whole.weight.value)


@pytest.mark.parametrize("change", ["seed", "epochs", "batch_size", "identity", "loss", "step", "weights"])
def test_a_checkpoint_of_another_run_is_refused(tmp_path, change):
    run_epochs(Line(VALUES), context(checkpoints=tmp_path), step="fit", epochs=1)
    line, options = Line(VALUES), {"checkpoints": tmp_path, "resume": True}
    if change in ("seed", "identity"):
        options[change] = 5
    elif change == "batch_size":
        options["training"] = {change: 5}
    elif change == "weights":
        line.weight.assign(1.0)
    elif change == "loss":
        line.loss_text = "another"
    step, epochs = "other" if change == "step" else "fit", 2 if change == "epochs" else 1
    with pytest.raises(UsageError, match="of another run"):
        run_epochs(line, context(**options), step=step, epochs=epochs)


@pytest.mark.parametrize("kind", [np.int64, np.float32])
def test_the_validation_samples_have_their_share_of_each_class(kind):
    labels = np.repeat(np.arange(4), (40, 40, 80, 240)).astype(kind)
    data = Dataset({"x": np.zeros((400, 1), np.float32)}, labels)
    training, validation = split_training(PassContext(data=data, seed=3))
    assert np.bincount(labels[validation].astype(int)).tolist() == [4, 4, 8, 24]
    assert sorted([*training, *validation]) == list(range(400))
    other = split_training(PassContext(data=data, seed=4))[1]
    assert validation.tolist() == split_training(PassContext(data=data, seed=3))[1].tolist() != other.tolist()


@pytest.mark.parametrize(
    ("total", "share", "expected"), [(1, 0.5, (1, 0)), (2, 0.5, (1, 1)), (4, 0.1, (4, 0)), (10, 0.1, (9, 1))]
)
def test_the_split_of_few_samples(total, share, expected):
    data = Dataset({"x": np.zeros((total, 1), np.float32)}, np.zeros(total))
    training, validation = split_training(PassContext(data=data, training=Training(validation=share)))
    assert (len(training), len(validation)) == expected


def test_no_samples():
    with pytest.raises(DataError, match="no training samples"):
        split_training(PassContext())
    with pytest.raises(DataError, match="no training samples"):
        split_training(PassContext(data=Dataset({})))


def test_steps_per_epoch():
    assert steps_per_epoch(context(training={"batch_size": 20})) == 5
    assert steps_per_epoch(context(training={"batch_size": 1000})) == 1
