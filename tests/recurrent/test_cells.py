"""Cells, carried out in float, compute what the layers of Keras 3, tf_keras and this project do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edgecompress.layers import LowRankGRU, LowRankLSTM
from edgecompress.recurrent.cells import RecurrentLayer
from edgecompress.recurrent.observing import run
from edgecompress.recurrent.reading import read_recurrent

keras = pytest.importorskip("keras")
tf_keras = pytest.importorskip("tf_keras")

SAMPLES, STEPS, FEATURES, UNITS = 5, 7, 6, 4
BOTH = pytest.mark.parametrize("world", [keras, tf_keras], ids=["keras", "tf_keras"])
RANKS = {"input_rank": 2, "recurrent_rank": 3}


def sequences(features: int = FEATURES) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(SAMPLES, STEPS, features)).astype(np.float32)


def built(layer: Any, features: int = FEATURES) -> Any:
    """Gives it weights that make a difference everywhere, biases too."""
    layer.build((None, STEPS, features))
    random = np.random.default_rng(1)
    layer.set_weights([random.normal(0, 0.35, weight.shape) for weight in layer.get_weights()])
    return layer


def check(layer: Any, x: np.ndarray, states: tuple[np.ndarray, ...] = (), mask: np.ndarray | None = None) -> None:
    begin = [keras.ops.convert_to_tensor(state) for state in states]
    answers = layer(x, mask=mask, **({"initial_state": begin} if states else {}))
    expected = answers if isinstance(answers, (list, tuple)) else [answers]
    found = run(read_recurrent(layer), x, states, mask)
    assert len(found) == len(expected)
    for mine, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, np.asarray(other), rtol=0, atol=1e-5)


CELLS: dict[str, tuple[str, dict[str, Any]]] = {
    "gru": ("GRU", {}),
    "reset before": ("GRU", {"reset_after": False}),
    "gru without bias": ("GRU", {"use_bias": False}),
    "gru, relu": ("GRU", {"activation": "relu"}),
    "gru, linear and tanh": ("GRU", {"activation": "linear", "recurrent_activation": "tanh", "reset_after": False}),
    "gru, hard gates": ("GRU", {"recurrent_activation": "hard_sigmoid", "activation": "sigmoid"}),
    "gru, hard gates, no bias": ("GRU", {"recurrent_activation": "hard_sigmoid", "use_bias": False}),
    "lstm": ("LSTM", {}),
    "lstm without bias": ("LSTM", {"use_bias": False}),
    "lstm, relu": ("LSTM", {"activation": "relu", "recurrent_activation": "hard_sigmoid"}),
    "simple": ("SimpleRNN", {}),
    "simple, linear": ("SimpleRNN", {"activation": "linear"}),
    "simple, sigmoid": ("SimpleRNN", {"activation": "sigmoid", "use_bias": False}),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "last": {},
    "sequence": {"return_sequences": True, "return_state": True},
    "backwards": {"go_backwards": True, "return_state": True},
    "sequence backwards": {"go_backwards": True, "return_sequences": True},
}


@pytest.mark.parametrize("name", CELLS)
@BOTH
def test_cells_of_keras(world, name) -> None:
    kind, options = CELLS[name]
    check(built(getattr(world.layers, kind)(UNITS, **options)), sequences())


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("kind", ["GRU", "LSTM", "SimpleRNN"])
@BOTH
def test_what_layers_give(world, kind, options) -> None:
    check(built(getattr(world.layers, kind)(UNITS, **options)), sequences())


@pytest.mark.parametrize("kind", ["GRU", "LSTM"])
@BOTH
def test_states_to_begin_with(world, kind) -> None:
    layer = built(getattr(world.layers, kind)(UNITS, return_sequences=True, return_state=True))
    begin = np.random.default_rng(2).normal(size=(2, SAMPLES, UNITS)).astype(np.float32)
    check(layer, sequences(), tuple(begin[: len(read_recurrent(layer).states)]))


@pytest.mark.parametrize("cell", ["GRUCell", "LSTMCell", "SimpleRNNCell"])
@BOTH
def test_cells_in_an_rnn(world, cell) -> None:
    check(built(world.layers.RNN(getattr(world.layers, cell)(UNITS), return_sequences=True)), sequences())


@pytest.mark.parametrize("gates", ["joint", "separate"])
@pytest.mark.parametrize("kind", [LowRankGRU, LowRankLSTM])
@pytest.mark.parametrize(
    "options",
    [
        RANKS,
        {"input_rank": 2, "recurrent_activation": "hard_sigmoid"},
        {"recurrent_rank": 3, "use_bias": False},
        {"recurrent_rank": 2, "go_backwards": True, "return_sequences": True},
    ],
    ids=["both", "inputs", "states", "backwards"],
)
def test_layers_of_low_rank(kind, gates, options) -> None:
    check(built(kind(UNITS, gates=gates, **options)), sequences())


def test_a_reset_before_the_product_of_factors() -> None:
    check(built(LowRankGRU(UNITS, **RANKS, gates="separate", reset_after=False)), sequences())


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (LowRankGRU, {}),
        (LowRankGRU, {"reset_after": False}),
        (LowRankGRU, {"use_bias": False}),
        (LowRankLSTM, {"recurrent_rank": 2}),
        (LowRankLSTM, {"use_bias": False, "recurrent_rank": 2, "gates": "separate"}),
    ],
)
def test_inputs_that_are_multiplied_already(kind, options) -> None:
    features = UNITS * (3 if kind is LowRankGRU else 4)
    layer = built(kind(UNITS, project_inputs=False, return_sequences=True, **options), features)
    check(layer, sequences(features))
    assert read_recurrent(layer).features == features


# Masks

MASKS = {
    "behind": lambda sample, step: step < STEPS - sample,
    "in front": lambda sample, step: step >= sample,
    "between": lambda sample, step: (step + sample) % 3 != 0,
    "nothing": lambda sample, step: sample + step < 0,
}


def mask_of(name: str) -> np.ndarray:
    return np.fromfunction(MASKS[name], (SAMPLES, STEPS), dtype=int)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@BOTH
def test_masks(world, options, mask) -> None:
    check(built(world.layers.LSTM(UNITS, **options)), sequences(), mask=mask_of(mask))


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("backwards", [False, True])
@BOTH
def test_zeros_where_a_mask_says_that_nothing_is(world, backwards, mask) -> None:
    layer = world.layers.RNN(
        world.layers.GRUCell(UNITS), return_sequences=True, zero_output_for_mask=True, go_backwards=backwards
    )
    check(built(layer), sequences(), mask=mask_of(mask))


def test_in_order_is_the_sequence_turned_round() -> None:
    layer = built(keras.layers.GRU(UNITS, go_backwards=True, return_sequences=True))
    turned, plain = (run(read_recurrent(layer, in_order=each), sequences())[0] for each in (True, False))
    np.testing.assert_array_equal(turned, plain[:, ::-1])


# What a cell is made of


@pytest.mark.parametrize(
    ("kind", "states", "projections"),
    [
        ("gru", ("state_0",), {"x_gates": 2 * UNITS, "x_candidate": UNITS}),
        ("lstm", ("state_0", "state_1"), {"x_gates": 3 * UNITS, "x_candidate": UNITS}),
        ("simple_rnn", ("state_0",), {"x_state": UNITS}),
    ],
)
def test_states_and_projections(kind, states, projections) -> None:
    layer = RecurrentLayer("layer", kind, UNITS, FEATURES, {}, {})
    assert layer.states == states
    assert layer.projections == projections


def test_many_steps_at_once_and_one_by_one() -> None:
    """The state after some steps is what the rest begins with."""
    layer = replace(read_recurrent(built(keras.layers.LSTM(UNITS))), return_sequences=True, return_state=True)
    whole, *ends = run(layer, sequences())
    states: list[np.ndarray] = []
    for index in range(STEPS):
        given, *states = run(layer, sequences()[:, index : index + 1], states)
        np.testing.assert_allclose(given[:, 0], whole[:, index], atol=1e-6)
    np.testing.assert_allclose(states, ends, atol=1e-6)
