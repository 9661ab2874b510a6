"""Integers for ranges and matrices: 0 is exact, kernels with fixed steps have these, biases fit."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from edgecompress.recurrent.cells import Matrix, RecurrentLayer
from edgecompress.recurrent.scales import (
    Scale,
    activation_scales,
    fixed_scale,
    integer_matrix,
    range_of,
    scale_of,
)

GRU = RecurrentLayer("gru", "gru", 3, 3, {}, {})
RANGES = [(-1.0, 1.0), (-0.3, 4.0), (0.0, 6.0), (-5.0, 0.0), (-1e-5, 1e-5), (2.0, 3.0), (-7.0, -6.5), (-1e4, 3.0)]


@pytest.mark.parametrize(("low", "high"), RANGES)
def test_8_bits_hold_0_exactly_and_the_range_within_half_a_step(low, high) -> None:
    scale = scale_of(low, high, 8)
    assert -128 <= scale.zero_point <= 127
    assert scale.integer(0.0) == scale.zero_point
    first, last = range_of(scale)
    assert first == pytest.approx(min(low, 0), abs=0.51 * scale.step)
    assert last == pytest.approx(max(high, 0), abs=0.51 * scale.step)
    assert scale.dtype == "int8"


@pytest.mark.parametrize(("low", "high"), RANGES)
def test_16_bits_are_powers_of_two_that_hold_the_range(low, high) -> None:
    scale = scale_of(low, high, 16)
    assert (scale.zero_point, scale.bits, scale.dtype) == (0, 16, "int16")
    assert math.frexp(scale.step)[0] == 0.5
    largest = max(-low, high)
    assert largest <= 32767 * scale.step < 2 * largest


@pytest.mark.parametrize("bits", [8, 16])
def test_what_never_changes_has_a_scale_all_the_same(bits) -> None:
    scale = scale_of(0.0, 0.0, bits)
    assert scale.step > 1e-12
    assert scale.integer(0.0) == scale.zero_point


@pytest.mark.parametrize(("value", "wanted"), [(0.0, -28), (0.5, 22), (-1.0, -128), (9.0, 127), (-9.0, -128)])
def test_numbers_become_the_nearest_integer_in_the_range(value, wanted) -> None:
    assert Scale(0.01, -28).integer(value) == wanted


@pytest.mark.parametrize(("kind", "step", "zero_point"), [
    ("sigmoid", 1 / 256, -128), ("clip", 1 / 256, -128), ("tanh", 1 / 128, 0),
])  # fmt: skip
def test_kernels_with_fixed_steps(kind, step, zero_point) -> None:
    assert fixed_scale(kind, 8) == Scale(step, zero_point)
    assert fixed_scale(kind, 16) == Scale(1 / 32768, 0, 16)


@pytest.mark.parametrize("bits", [8, 16])
def test_other_activations_write_in_any_scale(bits) -> None:
    assert fixed_scale("relu", bits) is None
    assert fixed_scale("linear", bits) is None


@pytest.mark.parametrize(("bits", "sigmoid", "tanh"), [(8, 6.24, 3.12), (16, 11.1, 5.55)])
def test_sums_reach_as_far_as_their_activation_tells_numbers_apart(bits, sigmoid, tanh) -> None:
    ranges = dict.fromkeys(("gates_sum", "candidate_sum", "x_gates"), (-50.0, 40.0))
    found = activation_scales(GRU, ranges, bits)
    assert found["gates_sum"] == scale_of(-sigmoid, sigmoid, bits)
    assert found["candidate_sum"] == scale_of(-tanh, tanh, bits)
    assert found["x_gates"] == scale_of(-50, 40, bits)
    assert 1 - 1 / (1 + math.exp(-sigmoid)) == pytest.approx(0.5 * fixed_scale("sigmoid", bits).step, rel=0.03)
    assert 1 - math.tanh(tanh) < 1.01 * fixed_scale("tanh", bits).step


@pytest.mark.parametrize("bits", [8, 16])
def test_terms_reach_no_further_than_their_sum_can_tell(bits) -> None:
    ranges = {"x_gates": (-1e4, 900.0), "h_gates": (-2.0, 1.0), "gates_sum": (-1e4, 900.0)}
    ends = {name: range_of(scale) for name, scale in activation_scales(GRU, ranges, bits).items()}
    reach = 8.3 if bits == 8 else 16.1  # of the sigmoid, and 2 that the state can take back
    assert all(abs(end) < reach for end in ends["x_gates"])
    assert ends["h_gates"][0] <= -1.99


def test_what_never_moved_has_steps_that_kernels_take() -> None:
    ranges = {"x": (-1.0, 1.0), "h_gates": (0.0, 0.0), "h_candidate": (0.0, 0.0), "state_0": (-0.5, 0.5)}
    scales = activation_scales(GRU, ranges, 8)
    assert scales["h_gates"].step == scales["h_candidate"].step == pytest.approx(2**-12, rel=0.01)
    assert scales["x"].step == pytest.approx(2 / 255, rel=0.01)


def test_short_sums_keep_their_range() -> None:
    assert activation_scales(GRU, {"gates_sum": (-1.0, 8.0)}, 8)["gates_sum"] == scale_of(-1, 6.24, 8)
    assert activation_scales(GRU, {"gates_sum": (-1.0, 2.0)}, 8)["gates_sum"] == scale_of(-1, 2, 8)


@pytest.mark.parametrize("activation", ["relu", "linear", "hard_sigmoid"])
def test_other_activations_may_need_the_whole_sum(activation) -> None:
    layer = replace(GRU, activation=activation, recurrent_activation=activation)
    found = activation_scales(layer, dict.fromkeys(("gates_sum", "candidate_sum"), (-50.0, 40.0)), 8)
    assert set(found.values()) == {scale_of(-50, 40, 8)}


def test_the_sum_of_a_simple_rnn() -> None:
    layer = replace(GRU, kind="simple_rnn")
    assert activation_scales(layer, {"sum": (-50.0, 40.0)}, 8)["sum"] == scale_of(-3.12, 3.12, 8)


# Matrices

INPUT = Scale(0.02, 3)


def values() -> np.ndarray:
    return (np.random.default_rng(0).normal(size=(5, 4)) * [0.01, 1, 0.1, 3]).astype(np.float32)


@pytest.mark.parametrize("per_channel", [False, True])
def test_weights_are_rounded_to_half_a_step_and_turned_round(per_channel) -> None:
    found = integer_matrix(Matrix(values()), INPUT, per_channel=per_channel)
    assert found.values.dtype == np.int8
    assert found.values.shape == (4, 5)
    assert len(found.scales) == (4 if per_channel else 1)
    steps = found.scales[:, None]
    assert (np.abs(found.values * steps - values().T) <= steps * 0.5001).all()
    assert (np.abs(found.values).max(1) == 127).sum() == (4 if per_channel else 1)
    assert found.values.min() >= -127
    assert not found.bias.any()


@pytest.mark.parametrize(("scale", "dtype"), [(INPUT, np.int32), (Scale(2.0**-12, 0, 16), np.int64)])
@pytest.mark.parametrize("per_channel", [False, True])
def test_biases_have_the_steps_of_the_products(per_channel, scale, dtype) -> None:
    bias = np.float32([0.5, -2, 0, 7])
    found = integer_matrix(Matrix(values(), bias), scale, per_channel=per_channel)
    assert found.bias.dtype == dtype
    np.testing.assert_allclose(found.bias * (found.scales * scale.step), bias, atol=1e-3)


@pytest.mark.parametrize("per_channel", [False, True])
def test_a_bias_that_would_not_fit_widens_the_scale(per_channel) -> None:
    tiny, bias = values() * 1e-9, np.float32([1000, 1, 0, 0])
    found = integer_matrix(Matrix(tiny, bias), INPUT, per_channel=per_channel)
    assert np.abs(found.bias).max() <= 2**30 + 2**10
    np.testing.assert_allclose(found.bias * found.scales * np.float32(INPUT.step), bias, rtol=1e-4, atol=1e-4)
    assert found.scales[0] > 1e3 * np.abs(tiny).max() / 127
    if per_channel:
        assert found.scales[3] < found.scales[0]


@pytest.mark.parametrize("per_channel", [False, True])
def test_a_matrix_of_zeros(per_channel) -> None:
    found = integer_matrix(Matrix(np.zeros((5, 4), np.float32)), INPUT, per_channel=per_channel)
    assert (found.scales > 0).all()
    assert not found.values.any()
