"""Samples that bring a teacher's answers with them: their order, their structure, and what `fit` makes of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecompress.distill.cache import AnswerCache
from edgecompress.distill.taught import taught_samples
from edgecompress.errors import DataError

SAMPLES = 50
BATCH = 8


def pairs(dataset: Any) -> Iterator[tuple[int, int]]:
    for number in range(len(dataset)):
        (x, y) = dataset[number]
        np.testing.assert_array_equal(x["taught"][0], x["inputs"] * 2)
        np.testing.assert_array_equal(x["inputs"][:, 0], y)
        yield from zip(x["inputs"][:, 0].tolist(), y.tolist(), strict=True)


def test_batches_are_all_samples_in_an_order_of_the_epoch() -> None:
    x = np.arange(SAMPLES, dtype=np.float32)[:, None]

    def make(*, shuffle: bool, seed: int = 0) -> Any:
        return taught_samples(x, x[:, 0], None, [x * 2], batch_size=BATCH, shuffle=shuffle, seed=seed)

    dataset = make(shuffle=True)
    orders = []
    for _ in range(2):
        dataset.on_epoch_begin()
        orders.append(list(pairs(dataset)))
        dataset.on_epoch_end()
    dataset.on_epoch_end()  # not of an epoch
    assert dataset.epoch == 2
    in_order = [(number, number) for number in range(SAMPLES)]
    assert sorted(orders[0]) == sorted(orders[1]) == in_order
    assert orders[0] != orders[1] != in_order
    resumed = make(shuffle=True)
    resumed.epoch = 1
    assert list(pairs(resumed)) == orders[1]
    assert list(pairs(make(shuffle=True, seed=1))) != orders[0]
    assert list(pairs(make(shuffle=False))) == in_order


def test_batches_keep_the_structure_of_what_is_given() -> None:
    x = np.arange(6, dtype=np.float16)
    dataset = taught_samples({"a": x, "b": [x, x]}, [x, {"c": x}], x, (x, x), batch_size=4, shuffle=False, seed=0)
    inputs, y, weights = dataset[1]
    np.testing.assert_equal(inputs, {"inputs": {"a": x[4:], "b": (x[4:], x[4:])}, "taught": (x[4:], x[4:])})
    np.testing.assert_equal(y, (x[4:], {"c": x[4:]}))
    np.testing.assert_equal(weights, x[4:])
    assert inputs["taught"][0].dtype == np.float32
    assert inputs["inputs"]["a"].dtype == np.float16
    alone = taught_samples(x, None, None, [x], batch_size=4, shuffle=False, seed=0)
    assert len(alone) == 2
    assert len(alone[0]) == 1
    with pytest.raises(DataError, match=r"received float16\(6,\), float16\(3,\), float16\(6,\)"):
        taught_samples(x, x[:3], None, [x], batch_size=4, shuffle=False, seed=0)
    with pytest.raises(DataError, match="weights but no labels"):
        taught_samples(x, None, x, [x], batch_size=4, shuffle=False, seed=0)


def fit(folder: Path, *, weights: Any, epochs: tuple[int, ...]) -> list[Any]:
    """Trains a layer to answer what was taught, with one `fit` for each number of epochs; returns its weights."""
    import keras

    keras.utils.set_random_seed(0)
    x = np.random.default_rng(1).normal(size=(40, 3)).astype(np.float32)
    other = x[:, :1]
    answers = AnswerCache(folder).answers(
        teacher="t", inputs=[x, other], ask=lambda batch: [batch[0] @ np.ones((3, 2), np.float32), batch[1]]
    )

    class Taught(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.layer = keras.layers.Dense(2)

        def call(self, batch: Any) -> Any:
            first, second = batch["inputs"]
            taught, same = batch["taught"]
            self.add_loss(keras.ops.mean(keras.ops.abs(same - second)))
            return self.layer(first) - taught

    model = Taught()
    model.compile(keras.optimizers.SGD(0.1), "mse")
    dataset = taught_samples([x, other], np.zeros((40, 2)), weights, answers, batch_size=16, shuffle=True, seed=3)
    history = []
    for end in epochs:
        # Keras would shuffle the batches again by Python's own generator, which no seed of ours sets.
        history += model.fit(dataset, epochs=end, verbose=0, shuffle=False).history["loss"]
    return [*model.get_weights(), history]


def test_fit_learns_what_was_taught(tmp_path: Path) -> None:
    kernel, _, history = fit(tmp_path, weights=None, epochs=(30,))
    assert history[-1] < 0.01 * history[0]
    np.testing.assert_allclose(kernel, np.ones((3, 2)), atol=0.05)


def test_fit_follows_the_seed_and_the_weights(tmp_path: Path) -> None:
    weights = np.linspace(0, 1, 40)
    once, again = (fit(tmp_path, weights=weights, epochs=(4,)) for _ in range(2))
    for one, other in zip(once, again, strict=True):
        np.testing.assert_array_equal(one, other)
    # A training of several fits is the same as one of one fit: the dataset counts the epochs.
    in_parts = fit(tmp_path, weights=weights, epochs=(1, 3))
    np.testing.assert_array_equal(in_parts[0], once[0])
    assert not np.array_equal(fit(tmp_path, weights=None, epochs=(4,))[0], once[0])
