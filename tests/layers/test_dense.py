"""LowRankDense and FactorizedDense as stand-ins of a Dense layer."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from edgecompress.artifacts import read_artifact
from edgecompress.errors import ModelError
from edgecompress.layers import FactorizedDense, LowRankDense

FEATURES, UNITS = 24, 16


@pytest.fixture
def dense():
    keras.utils.set_random_seed(0)
    layer = keras.layers.Dense(UNITS, "relu", bias_initializer="normal", kernel_regularizer="l2", name="hidden")
    layer.build((None, FEATURES))
    return layer


@pytest.fixture
def spiked(dense):
    """A Dense layer with a kernel of rank 3 and 20 large weights, which no matrix of low rank comes near."""
    random = np.random.default_rng(0)
    kernel = random.normal(size=(FEATURES, 3)) @ random.normal(size=(3, UNITS))
    kernel.flat[random.choice(kernel.size, 20, replace=False)] += 10
    dense.kernel.assign(kernel)
    return dense


def error_of(kernel, dense):
    return np.linalg.norm(np.asarray(kernel, np.float64) - np.asarray(dense.kernel)) / np.linalg.norm(dense.kernel)


@pytest.mark.parametrize("shape", [(3, FEATURES), (2, 5, FEATURES)])
@pytest.mark.parametrize(
    "make", [lambda d: LowRankDense.from_dense(d, UNITS), lambda d: FactorizedDense.from_dense(d, 2, 1.0)]
)
def test_with_all_of_the_kernel_it_answers_the_same(dense, make, shape):
    x = np.random.default_rng(0).normal(size=shape).astype("float32")
    layer = make(dense)
    np.testing.assert_allclose(layer(x), dense(x), atol=1e-5)
    assert (layer.name, layer.kernel_regularizer.get_config()) == ("hidden", dense.kernel_regularizer.get_config())


@pytest.mark.parametrize("rank", [1, 4, UNITS])
def test_the_product_is_the_nearest_of_its_rank(dense, rank):
    layer = LowRankDense.from_dense(dense, rank)
    missed = np.asarray(layer.u) @ np.asarray(layer.v) - np.asarray(dense.kernel)
    best = np.linalg.svd(np.asarray(dense.kernel), compute_uv=False)[rank:]
    assert np.linalg.norm(missed) == pytest.approx(np.sqrt(np.sum(best**2)), abs=1e-5)


def test_a_residual_holds_what_a_product_misses(spiked):
    low_rank = LowRankDense.from_dense(spiked, 3)
    factorized = FactorizedDense.from_dense(spiked, 3, 20 / (FEATURES * UNITS))
    assert factorized.residual_values.shape == (20,)
    assert error_of(np.asarray(low_rank.u) @ np.asarray(low_rank.v), spiked) > 0.3
    # One round is a product, and then the rest; taking turns finds more of the two parts.
    once = np.linalg.svd(spiked.kernel, full_matrices=False)
    missed = np.sort(np.abs(np.asarray(spiked.kernel) - (once[0][:, :3] * once[1][:3]) @ once[2][:3]), axis=None)
    one_round = np.linalg.norm(missed[:-20]) / np.linalg.norm(spiked.kernel)
    assert error_of(factorized.kernel_matrix(), spiked) < 0.7 * one_round


def test_the_kernel_matrix_is_what_the_layer_multiplies_with(spiked):
    for density in (0, 0.1):
        layer = FactorizedDense.from_dense(spiked, 2, density)
        answer = layer.activation(np.eye(FEATURES) @ layer.kernel_matrix() + np.asarray(layer.bias))
        np.testing.assert_allclose(layer(np.eye(FEATURES, dtype="float32")), answer, atol=1e-5)


def test_positions_are_drawn_by_seed_and_differ():
    def positions(seed):
        layer = FactorizedDense(UNITS, 2, 0.25, seed=seed)
        layer.build((None, FEATURES))
        return np.asarray(layer.residual_indices)

    first = positions(1)
    assert first.shape == (FEATURES * UNITS // 4, 2)
    assert len(np.unique(first, axis=0)) == len(first)
    assert first.max(axis=0).tolist() < [FEATURES, UNITS]
    assert np.array_equal(first, positions(1))
    assert not np.array_equal(first, positions(2))


def test_zeros_of_a_residual_stay_in_training(spiked):
    layer = FactorizedDense.from_dense(spiked, 2, 0.1)
    layer.trainable = True
    before = layer.residual_matrix()
    model = keras.Sequential([keras.Input((FEATURES,)), layer])
    model.compile("adam", "mse")
    random = np.random.default_rng(0)
    model.fit(random.normal(size=(64, FEATURES)), random.normal(size=(64, UNITS)), verbose=0)
    assert np.array_equal(before == 0, layer.residual_matrix() == 0)
    assert not np.array_equal(before, layer.residual_matrix())


def test_a_large_residual_is_one_constant_of_the_file(to_tflite, answer_of_file, tmp_path):
    """The converter folds constants of more than 100 KB in some cases only."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((200,)), FactorizedDense(300, 4, 0.1)])
    weights = model.layers[0].residual_values
    weights.assign(np.random.default_rng(0).normal(size=weights.shape))
    file = to_tflite(model, tmp_path)
    found = read_artifact(file)
    assert dict(found.op_counts) == {"FULLY_CONNECTED": 3, "ADD": 1}
    x = np.ones((1, 200), "float32")
    np.testing.assert_allclose(answer_of_file(file, x), model(x), rtol=1e-4, atol=1e-4)


def test_the_product_starts_with_the_variance_of_a_kernel():
    keras.utils.set_random_seed(0)
    for initializer in ("glorot_uniform", "he_normal", keras.initializers.RandomNormal(stddev=0.3, seed=1)):
        layer = LowRankDense(200, 10, kernel_initializer=initializer)
        layer.build((None, 100))
        whole = keras.initializers.get(initializer)((100, 200))
        assert np.var(np.asarray(layer.u) @ np.asarray(layer.v)) == pytest.approx(np.var(whole), rel=0.1)
    layer = LowRankDense(8, 2, kernel_initializer="zeros")
    layer.build((None, 4))
    assert not np.any(layer.u)


@pytest.mark.parametrize("make", [LowRankDense, lambda units, rank: FactorizedDense(units, rank, 0.1)])
def test_ranks_that_there_are_not(make):
    for rank in (0, -1, 1.5, "8"):
        with pytest.raises(ValueError, match=f"rank is not a rank; expected a whole number from 1; received {rank!r}"):
            make(UNITS, rank)
    layer = make(UNITS, UNITS + 1)
    with pytest.raises(
        ValueError, match=r"rank is larger than its kernel \(24, 16\) allows; expected at most 16;.*Fix"
    ):
        layer.build((None, FEATURES))


@pytest.mark.parametrize("density", [-0.1, 1.1, float("nan")])
def test_densities_that_there_are_not(density):
    with pytest.raises(ValueError, match="density is not a share; expected a number from 0 to 1; received"):
        FactorizedDense(UNITS, 2, density)


@pytest.mark.parametrize("make", [LowRankDense.from_dense, FactorizedDense.from_dense])
def test_layers_that_none_can_be_made_of(dense, make):
    with pytest.raises(ValueError, match=r"keras.layers.Dense; received Conv1D"):
        make(keras.layers.Conv1D(4, 3), 2)
    with pytest.raises(ValueError, match=r"no weights yet.*build it first"):
        make(keras.layers.Dense(4), 2)
    held = keras.layers.Dense(UNITS, kernel_constraint="non_neg", name="held")
    held.build((None, FEATURES))
    with pytest.raises(ValueError, match=r"held: factors would not keep.*no kernel_constraint"):
        make(held, 2)
    dense.kernel.assign(np.where(np.arange(UNITS) == 3, np.nan, dense.kernel))
    with pytest.raises(ModelError, match=r"24 of 384 weights are NaN or infinite"):
        make(dense, 2)
