"""Ranges of a cell's results on samples: all of them, without what is rare, or with the least error."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgecompress.recurrent.cells import Matrix, RecurrentLayer
from edgecompress.recurrent.observing import observe, run
from edgecompress.schemes import Observer

UNITS, FEATURES, STEPS, SAMPLES = 3, 4, 6, 150  # samples: more than are looked at at once
NAMES = {
    "gru": {
        "x", "state_0", "x_gates", "x_candidate", "h_gates", "h_candidate", "gates_sum", "gates", "h_reset",
        "candidate_sum", "candidate", "difference", "update",
    },
    "lstm": {
        "x", "state_0", "state_1", "x_gates", "x_candidate", "h_gates", "h_candidate", "gates_sum", "gates",
        "candidate_sum", "candidate", "kept", "new", "carry",
    },
    "simple_rnn": {"x", "state_0", "x_state", "h_state", "sum"},
}  # fmt: skip


def make(kind: str = "simple_rnn", activation: str = "tanh") -> RecurrentLayer:
    random = np.random.default_rng(0)
    gates = {"gru": {"gates": 2, "candidate": 1}, "lstm": {"gates": 3, "candidate": 1}, "simple_rnn": {"state": 1}}
    matrices = {
        f"{side}_{group}": Matrix(random.normal(0, 0.5, (rows, count * UNITS)).astype(np.float32))
        for group, count in gates[kind].items()
        for side, rows in (("x", FEATURES), ("h", UNITS))
    }
    return RecurrentLayer(
        "layer", kind, UNITS, FEATURES, matrices, {name: ((name,),) for name in matrices}, activation=activation
    )


def copier() -> RecurrentLayer:
    """Its state is its input."""
    matrices = {"x_state": Matrix(np.eye(UNITS, dtype=np.float32)), "h_state": Matrix(np.zeros((UNITS, UNITS), "f4"))}
    products = {name: ((name,),) for name in matrices}
    return RecurrentLayer("copier", "simple_rnn", UNITS, UNITS, matrices, products, activation="linear")


def sequences(features: int = FEATURES) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(SAMPLES, STEPS, features)).astype(np.float32)


@pytest.mark.parametrize("kind", NAMES)
def test_each_result_has_a_range_with_0_in_it(kind) -> None:
    ranges = observe(make(kind), sequences())
    assert set(ranges) == NAMES[kind]
    assert all(low <= 0 <= high and low < high for low, high in ranges.values())


@pytest.mark.parametrize("kind", NAMES)
def test_all_that_occurred(kind) -> None:
    x, layer = sequences(), make(kind)
    ranges = observe(layer, x)
    assert ranges["x"] == (x.min(), x.max())
    states = run(replace(layer, return_sequences=True), x)[0]
    assert ranges["state_0"] == pytest.approx((states.min(), states.max()), abs=1e-6)
    gates = next(name for name in ranges if name.startswith("x_"))
    products = x @ layer.matrices[gates].values
    assert ranges[gates] == pytest.approx((products.min(), products.max()), abs=1e-6)


def test_the_last_and_the_first_batch_count() -> None:
    for place in (0, SAMPLES - 1):
        x = sequences()
        x[place, 3, 1] = 40
        assert observe(make(), x)["x"][1] == 40


def test_states_to_begin_with_count() -> None:
    layer, zeros = copier(), np.zeros((2, STEPS, UNITS), np.float32)
    states = np.float32([[-3, 0, 0], [0, 0, 5]])
    assert observe(layer, zeros)["state_0"] == (0, 0)
    assert observe(layer, zeros, [states])["state_0"] == (-3, 5)


def test_steps_that_do_not_count_set_no_range() -> None:
    x, mask = sequences(UNITS), np.ones((SAMPLES, STEPS), bool)
    x[:, 2], mask[:, 2] = 100, False
    masked = observe(copier(), x, mask=mask)
    assert masked["x"] == masked["state_0"] == (x[mask].min(), x[mask].max())
    assert observe(copier(), x)["state_0"][1] == 100


def test_nothing_counts_at_all() -> None:
    ranges = observe(make("gru"), sequences(), mask=np.zeros((SAMPLES, STEPS), bool))
    assert set(ranges.values()) == {(0, 0)}


@pytest.mark.parametrize("outlier", [-50.0, 50.0])
def test_a_percentile_leaves_an_outlier_out_and_mse_weighs_it(outlier) -> None:
    x = np.random.default_rng(0).uniform(-1, 1, (200, 100, UNITS)).astype(np.float32)
    x[7, 7, 1] = outlier
    widths = {}
    for observer in Observer:
        low, high = observe(copier(), x, observer=observer)["x"]
        assert low <= 0 <= high
        widths[observer] = high - low
    assert widths[Observer.MIN_MAX] == pytest.approx(51, abs=0.01)
    assert widths[Observer.PERCENTILE] < 2.2
    assert widths[Observer.PERCENTILE] < widths[Observer.MSE] < widths[Observer.MIN_MAX]


def test_mse_keeps_what_is_spread_evenly() -> None:
    x = np.random.default_rng(0).uniform(-1, 1, (100, 50, UNITS)).astype(np.float32)
    low, high = observe(copier(), x, observer=Observer.MSE)["x"]
    assert (low, high) == pytest.approx((-1, 1), abs=0.03)


@pytest.mark.parametrize("batch", [0, 4, 9])
def test_counts_outlive_a_growing_range(batch) -> None:
    """Of all numbers, those of 16 are too few to count; of the 64 samples that are looked at with them, not."""
    x = np.random.default_rng(0).uniform(-1, 1, (640, 20, UNITS)).astype(np.float32)
    x[batch * 64 + 5, 3] = 0.5, 16, 16
    ranges = {each: observe(copier(), x, observer=each)["x"] for each in (Observer.MIN_MAX, Observer.PERCENTILE)}
    assert ranges[Observer.MIN_MAX][1] == 16
    assert ranges[Observer.PERCENTILE] == pytest.approx((-1, 1), abs=0.03)


def test_positive_numbers_begin_at_0() -> None:
    x = np.random.default_rng(0).uniform(3, 4, (50, STEPS, UNITS)).astype(np.float32)
    for observer in Observer:
        low, high = observe(copier(), x, observer=observer)["x"]
        assert low == 0
        assert 3 < high <= 4.01
