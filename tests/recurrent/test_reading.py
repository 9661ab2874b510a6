"""What is read from recurrent layers, which layers are recurrent, and why some have no integer form."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from edgecompress.layers import LowRankGRU, LowRankLSTM
from edgecompress.recurrent.cells import RecurrentLayer
from edgecompress.recurrent.reading import UnsupportedLayerError, is_bidirectional, is_recurrent, read_recurrent

keras = pytest.importorskip("keras")
tf_keras = pytest.importorskip("tf_keras")
layers = keras.layers

STEPS, FEATURES, UNITS = 5, 6, 4
RANKS = {"input_rank": 2, "recurrent_rank": 3}
BOTH = pytest.mark.parametrize("world", [keras, tf_keras], ids=["keras", "tf_keras"])


def built(layer: Any, features: int = FEATURES) -> Any:
    layer.build((None, STEPS, features))
    random = np.random.default_rng(1)
    layer.set_weights([random.normal(0, 0.35, weight.shape) for weight in layer.get_weights()])
    return layer


def read(layer: Any, features: int = FEATURES) -> RecurrentLayer:
    return read_recurrent(built(layer, features))


# What is read


def test_gates_with_the_same_activation_are_stacked() -> None:
    layer = built(layers.LSTM(UNITS, name="memory"))
    kernel, recurrent, bias = layer.get_weights()
    found = read_recurrent(layer)
    assert (found.name, found.kind, found.units, found.features) == ("memory", "lstm", UNITS, FEATURES)
    own = [*range(2 * UNITS), *range(3 * UNITS, 4 * UNITS)]  # Keras has the candidate third
    np.testing.assert_array_equal(found.matrices["x_gates"].values, kernel[:, own])
    np.testing.assert_array_equal(found.matrices["x_gates"].bias, bias[own])
    np.testing.assert_array_equal(found.matrices["h_gates"].values, recurrent[:, own])
    np.testing.assert_array_equal(found.matrices["x_candidate"].values, kernel[:, 2 * UNITS : 3 * UNITS])
    assert found.matrices["h_gates"].bias is None
    assert found.products == {name: ((name,),) for name in ("x_gates", "x_candidate", "h_gates", "h_candidate")}


def test_both_biases_of_the_gates_of_a_gru_are_one() -> None:
    layer = built(layers.GRU(UNITS))
    *_, bias = layer.get_weights()
    found = read_recurrent(layer)
    np.testing.assert_allclose(found.matrices["x_gates"].bias, bias.sum(0)[: 2 * UNITS], rtol=1e-6)
    assert found.matrices["h_gates"].bias is None
    np.testing.assert_array_equal(found.matrices["x_candidate"].bias, bias[0, 2 * UNITS :])
    np.testing.assert_array_equal(found.matrices["h_candidate"].bias, bias[1, 2 * UNITS :])


def test_no_biases() -> None:
    found = read(layers.GRU(UNITS, use_bias=False))
    assert all(matrix.bias is None for matrix in found.matrices.values())


@pytest.mark.parametrize(("world", "slope"), [(keras, 1 / 6), (tf_keras, 0.2)], ids=["keras", "tf_keras"])
def test_the_slope_of_hard_sigmoid_is_in_the_kernels(world, slope) -> None:
    layer = built(world.layers.LSTM(UNITS, recurrent_activation="hard_sigmoid"))
    kernel, recurrent, bias = layer.get_weights()
    found = read_recurrent(layer)
    np.testing.assert_allclose(found.matrices["x_gates"].values[:, :UNITS], kernel[:, :UNITS] * slope, rtol=1e-5)
    np.testing.assert_allclose(found.matrices["h_gates"].values[:, :UNITS], recurrent[:, :UNITS] * slope, rtol=1e-5)
    np.testing.assert_allclose(found.matrices["x_gates"].bias[:UNITS], bias[:UNITS] * slope + 0.5, rtol=1e-5)
    candidate = slice(2 * UNITS, 3 * UNITS)
    np.testing.assert_array_equal(found.matrices["x_candidate"].values, kernel[:, candidate])


def test_joint_factors_are_multiplied_with_once() -> None:
    found = read(LowRankGRU(UNITS, **RANKS))
    assert found.products["x_gates"] == (("x_factor", "x_gates"),)
    assert found.products["h_candidate"] == (("h_factor", "h_candidate"),)
    assert found.matrices["x_factor"].values.shape == (FEATURES, 2)
    assert found.matrices["h_factor"].values.shape == (UNITS, 3)
    assert found.features == FEATURES


def test_separate_factors_are_a_chain_for_each_gate() -> None:
    found = read(LowRankLSTM(UNITS, **RANKS, gates="separate"))
    assert found.products["x_gates"] == tuple((f"x_factor_{gate}", f"x_gates_{gate}") for gate in (0, 1, 3))
    assert found.products["x_candidate"] == (("x_factor_2", "x_candidate_2"),)
    assert found.matrices["x_factor_3"].values.shape == (FEATURES, 2)
    assert found.matrices["x_gates_3"].values.shape == (2, UNITS)


def test_inputs_that_are_multiplied_already_have_offsets() -> None:
    found = read(LowRankGRU(UNITS, project_inputs=False), 3 * UNITS)
    assert found.products["x_gates"] == found.products["x_candidate"] == ()
    assert {name: offset.shape for name, offset in found.offsets.items()} == {
        "x_gates": (2 * UNITS,), "x_candidate": (UNITS,)
    }  # fmt: skip
    assert read(LowRankGRU(UNITS, project_inputs=False, use_bias=False), 3 * UNITS).offsets == {}


@pytest.mark.parametrize("option", ["go_backwards", "return_sequences", "return_state"])
@BOTH
def test_options(world, option) -> None:
    plain, changed = (read(world.layers.GRU(UNITS, **{option: each})) for each in (False, True))
    assert not getattr(plain, option)
    assert getattr(changed, option)


@pytest.mark.parametrize("reset_after", [False, True])
@BOTH
def test_reset_after(world, reset_after) -> None:
    assert read(world.layers.GRU(UNITS, reset_after=reset_after)).reset_after is reset_after


@BOTH
def test_zeros_for_what_is_masked_and_the_order(world) -> None:
    layer = built(world.layers.RNN(world.layers.LSTMCell(UNITS), zero_output_for_mask=True, return_sequences=True))
    assert read_recurrent(layer).zero_masked
    assert not read_recurrent(layer).in_order
    assert read_recurrent(layer, in_order=True).in_order


def test_a_layer_that_has_it_ready_is_believed() -> None:
    class Ready:
        recurrent_layer = RecurrentLayer("ready", "gru", UNITS, FEATURES, {}, {})

    assert is_recurrent(Ready())
    assert read_recurrent(Ready()) is Ready.recurrent_layer


@pytest.mark.parametrize(("largest", "pays"), [(1, False), (8, False), (20, True)])
def test_a_scale_for_each_column_pays_where_one_weight_is_large(largest, pays) -> None:
    """More than eight times the typical one; with 240 others of 1, one of 8 makes the typical one 1.12."""
    layer = built(layers.GRU(20))
    weights = [np.ones_like(weight) for weight in layer.get_weights()]
    weights[0][0, 0] = largest
    layer.set_weights(weights)
    found = read_recurrent(layer).matrices
    assert found["x_gates"].per_channel is pays
    assert not any(found[name].per_channel for name in ("x_candidate", "h_gates", "h_candidate"))


# Which layers are recurrent


@BOTH
def test_layers_that_run_over_steps(world) -> None:
    recurrent = (
        world.layers.GRU(2), world.layers.LSTM(2), world.layers.SimpleRNN(2),
        world.layers.RNN(world.layers.GRUCell(2)), world.layers.ConvLSTM1D(2, 1),
    )  # fmt: skip
    assert all(is_recurrent(layer) for layer in recurrent)
    two_ways = world.layers.Bidirectional(world.layers.GRU(2))
    assert is_bidirectional(two_ways)
    assert not is_recurrent(two_ways)
    for other in (world.layers.Dense(2), world.layers.TimeDistributed(world.layers.Dense(2)), world.layers.GRUCell(2)):
        assert not is_recurrent(other)
        assert not is_bidirectional(other)


def test_layers_of_this_project_and_subclasses() -> None:
    class Own(layers.GRU):
        pass

    assert is_recurrent(LowRankLSTM(2))
    assert is_recurrent(Own(2))
    assert read(Own(UNITS)).kind == "gru"


# What is refused


class GRUCell(layers.Layer):
    """Called like one of Keras's, but not one."""

    units = state_size = UNITS

    def call(self, x, states):
        return x, states


def tanh(x):
    return 2 * keras.ops.tanh(x)


@pytest.mark.parametrize(
    ("layer", "reason", "fix"),
    [
        (lambda: layers.GRU(2, activation="elu"), "its activation elu", "use one of tanh, sigmoid, relu, linear"),
        (lambda: layers.GRU(2, activation="hard_sigmoid"), "its activation hard_sigmoid", "use one of tanh, sigmoid"),
        (lambda: layers.LSTM(2, recurrent_activation="softplus"), "its recurrent_activation softplus", "hard_sigmoid"),
        (lambda: layers.GRU(2, activation=tanh), "its activation tanh", "--scheme dynamic"),
        (lambda: layers.SimpleRNN(2, activation=keras.layers.LeakyReLU()), "its activation .*LeakyReLU", "use one of"),
        (lambda: layers.RNN(GRUCell()), "nothing is known of how its cell GRUCell computes", "use GRU, LSTM"),
        (lambda: layers.RNN([layers.GRUCell(2), layers.GRUCell(3)]), "its cell StackedRNNCells", "use GRU, LSTM"),
        (lambda: layers.ConvLSTM1D(2, 1), "its cell ConvLSTMCell", "--scheme dynamic with a profile that takes it"),
        (lambda: layers.LSTM(2, stateful=True), "it is stateful", "build it with stateful=False"),
        (lambda: tf_keras.layers.GRU(2, activation="selu"), "its activation selu", "use one of"),
        (lambda: tf_keras.layers.LSTM(2, stateful=True), "it is stateful", "build it with stateful=False"),
    ],
    ids=lambda each: each.replace(" ", "-") if isinstance(each, str) else "",
)
def test_what_has_no_integer_form(layer, reason, fix) -> None:
    with pytest.raises(UnsupportedLayerError) as caught:
        read_recurrent(layer())
    assert re.search(reason, str(caught.value))
    assert fix in caught.value.fix
