import numpy as np
import pytest

from edgecompress.decomposition.matrices import balance, relative_error, round_rank, spectrum
from edgecompress.errors import ModelError, UsageError

SHAPES = [(1, 7), (7, 1), (1, 1), (5, 5), (12, 30), (30, 12), (64, 40), (3, 200)]


def weights(shape, *, decay=0.7, seed=0):
    """A random matrix whose singular values fall off, float32."""
    random = np.random.default_rng(seed)
    smaller = min(shape)
    left = np.linalg.qr(random.normal(size=(shape[0], smaller)))[0]
    right = np.linalg.qr(random.normal(size=(shape[1], smaller)))[0]
    return ((left * np.arange(1, smaller + 1) ** -decay) @ right.T).astype(np.float32)


def samples(count, size, *, seed=1):
    """Correlated samples, of very unlike sizes along the axes."""
    random = np.random.default_rng(seed)
    mixed = random.normal(size=(count, size)) * np.geomspace(3, 0.05, size)
    return mixed @ np.linalg.qr(random.normal(size=(size, size)))[0]


def moments(rows):
    return rows.T @ rows / len(rows)


@pytest.fixture(scope="module")
def trained_dense(digits):
    """The kernel of a Dense layer that has learnt digits, and its inputs on samples for moments and on others."""
    digits.keras.utils.set_random_seed(0)
    layers = digits.keras.layers
    (x, y), (x_test, _) = digits.digits(as_rows=False)
    x, x_test = x.reshape(len(x), -1), x_test.reshape(len(x_test), -1)
    model = digits.keras.Sequential([
        digits.keras.Input((64,)), layers.Dense(96, activation="relu"), layers.Dense(48, activation="relu"),
        layers.Dense(10, activation="softmax"),
    ])  # fmt: skip
    model.compile(digits.keras.optimizers.Adam(3e-3), "sparse_categorical_crossentropy")
    model.fit(x, y, epochs=5, batch_size=32, verbose=0)
    first, second, _ = model.layers
    return np.asarray(second.kernel), np.asarray(first(x), np.float64), np.asarray(first(x_test), np.float64)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("decay", [0.0, 0.7, 4.0])
def test_plain_reaches_the_eckart_young_bound_at_every_rank(shape, decay):
    matrix = weights(shape, decay=decay)
    singular = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
    found = spectrum(matrix)
    assert found.full_rank == min(shape)
    np.testing.assert_allclose(found.singular, singular, atol=1e-6 * singular[0])
    for rank in range(1, min(shape) + 1):
        first, second = found.factors(rank)
        assert (first.shape, second.shape) == ((shape[0], rank), (rank, shape[1]))
        assert first.dtype == second.dtype == np.float32
        least = np.linalg.norm(singular[rank:]) / np.linalg.norm(singular)
        assert least - 1e-6 <= relative_error(matrix, first.astype(np.float64) @ second) <= least + 1e-6
        assert found.energy(rank) == pytest.approx(1 - least**2, abs=1e-6)


@pytest.mark.parametrize("shape", [(12, 30), (30, 12), (20, 20)])
@pytest.mark.parametrize("side", ["inputs", "outputs"])
def test_moments_reach_what_whitening_reaches(shape, side):
    """The optimum by another way: truncated SVD of the whitened matrix, and the whitening undone."""
    matrix, rows = weights(shape), samples(4000, shape[0])
    given = {"input_moments": moments(rows)} if side == "inputs" else {"output_moments": moments(rows @ matrix)}
    found = spectrum(matrix, **given)
    upper = np.linalg.cholesky(moments(rows)).T
    left, singular, right = np.linalg.svd(upper @ matrix, full_matrices=False)
    outputs = rows @ matrix
    for rank in (1, 3, 8):
        best = np.linalg.solve(upper, left[:, :rank] * singular[:rank]) @ right[:rank]
        least = relative_error(outputs, rows @ best)
        first, second = found.factors(rank)
        reached = relative_error(outputs, rows @ (first.astype(np.float64) @ second))
        assert least - 1e-6 <= reached <= least + 1e-4
        assert found.energy(rank) == pytest.approx(1 - reached**2, abs=1e-6)


@pytest.mark.parametrize("count", [3, 10, 500])
def test_moments_are_never_worse_than_plain_on_the_same_samples(count):
    """Also where there are fewer samples than inputs, so that the moments are singular."""
    for shape in ((24, 16), (16, 24)):
        matrix, rows = weights(shape), samples(count, shape[0])
        outputs = rows @ matrix
        aware, plain = spectrum(matrix, input_moments=moments(rows)), spectrum(matrix)
        for rank in range(1, 16):
            with_moments, without = (
                relative_error(outputs, rows @ (u.astype(np.float64) @ v))
                for u, v in (aware.factors(rank), plain.factors(rank))
            )
            assert with_moments <= without + 1e-6
            assert aware.energy(rank) == pytest.approx(1 - with_moments**2, abs=1e-6)


def test_a_trained_layer_loses_less_by_its_activations(trained_dense):
    """On samples that the moments were not taken of."""
    kernel, seen, unseen = trained_dense
    aware, plain = spectrum(kernel, input_moments=moments(seen)), spectrum(kernel)
    for rank in (4, 8, 16, 32):
        with_moments, without = (
            relative_error(unseen @ kernel, unseen @ u @ v) for u, v in (aware.factors(rank), plain.factors(rank))
        )
        assert with_moments < 0.8 * without


def test_inputs_and_outputs_tell_the_same(trained_dense):
    kernel, seen, _ = trained_dense
    by_input = spectrum(kernel, input_moments=moments(seen))
    by_output = spectrum(kernel, output_moments=moments(seen @ kernel))
    np.testing.assert_allclose(by_input.kept, by_output.kept, atol=1e-6)
    for rank in (4, 16):
        products = [np.matmul(*each.factors(rank)) for each in (by_input, by_output)]
        assert relative_error(*products) < 1e-4


def test_inputs_that_no_sample_uses_are_approximated_by_their_weights():
    matrix, rows = weights((30, 20)), samples(400, 30)
    rows[:, 10:] = 0
    found = spectrum(matrix, input_moments=moments(rows))
    first, second = found.factors(15)
    # Ten directions are enough for the outputs; the next five are those that the other inputs' weights need most.
    assert relative_error(rows @ matrix, rows @ (first.astype(np.float64) @ second)) < 1e-4
    rest = matrix[10:] - matrix[10:] @ np.linalg.pinv(matrix[:10]) @ matrix[:10]
    least = np.linalg.norm(np.linalg.svd(rest, compute_uv=False)[5:])
    assert np.linalg.norm(matrix[10:] - (first @ second)[10:]) == pytest.approx(least, rel=1e-2)


@pytest.mark.parametrize("shape", [(30, 20), (20, 30)])
@pytest.mark.parametrize("side", ["plain", "inputs", "outputs"])
def test_at_full_rank_the_product_is_the_matrix(shape, side):
    matrix, rows = weights(shape, decay=2.0), samples(4, shape[0])
    given = {
        "plain": {},
        "inputs": {"input_moments": moments(rows)},
        "outputs": {"output_moments": moments(rows @ matrix)},
    }
    found = spectrum(matrix, **given[side])
    assert relative_error(matrix, np.matmul(*found.factors(20))) < 1e-6
    assert found.energy(20) == 1


@pytest.mark.parametrize("shape", [(1, 5), (5, 1), (6, 4)])
def test_without_any_weight_or_output_nothing_is_nan(shape):
    zeros = np.zeros(shape, np.float32)
    for matrix, rows in ((zeros, samples(9, shape[0])), (weights(shape), np.zeros((9, shape[0]))), (zeros, zeros.T)):
        found = spectrum(matrix, input_moments=moments(rows))
        first, second = found.factors(1)
        assert np.isfinite(first).all()
        assert np.isfinite(second).all()
        assert found.rank_for_energy(1.0) <= found.full_rank
        if matrix is zeros:
            assert not (first @ second).any()
            assert second.any()  # a factor that can still be trained
        else:
            np.testing.assert_allclose(first @ second, np.matmul(*spectrum(matrix).factors(1)), atol=1e-7)


def test_factors_are_balanced():
    found = spectrum(weights((20, 12)), input_moments=moments(samples(50, 20)))
    first, second = found.factors(8)
    np.testing.assert_allclose(np.linalg.norm(first, axis=0), np.linalg.norm(second, axis=1), rtol=1e-5)


def test_balance_keeps_products_and_takes_more_axes():
    random = np.random.default_rng(0)
    left, right = random.normal(size=(3, 4, 5)), 100 * random.normal(size=(5, 2, 6))
    first, second = balance(left, right)
    np.testing.assert_allclose(np.tensordot(first, second, 1), np.tensordot(left, right, 1))
    assert np.linalg.norm(first[..., 2]) == pytest.approx(np.linalg.norm(second[2]))


@pytest.mark.parametrize("energy", [0.1, 0.5, 0.9, 0.99, 1.0])
def test_rank_for_energy_is_the_smallest(energy):
    found = spectrum(weights((30, 20)))
    rank = found.rank_for_energy(energy)
    assert found.energy(rank) >= energy - 1e-9
    assert rank == 1 or found.energy(rank - 1) < energy


def test_all_energy_of_a_matrix_of_low_rank_is_its_rank():
    random = np.random.default_rng(0)
    matrix = random.normal(size=(40, 3)) @ random.normal(size=(3, 30))
    assert spectrum(matrix.astype(np.float32)).rank_for_energy(1.0) == 3


@pytest.mark.parametrize("energy", [0, -0.1, 1.01, float("nan")])
def test_energy_out_of_range(energy):
    with pytest.raises(UsageError, match="above 0, at most 1"):
        spectrum(weights((5, 4))).rank_for_energy(energy)


@pytest.mark.parametrize("rank", [0, -1, 5])
def test_ranks_that_the_matrix_does_not_have(rank):
    found = spectrum(weights((5, 4)))
    for call in (found.factors, found.energy):
        with pytest.raises(UsageError, match=rf"shape \(5, 4\) has no such rank; expected 1 to 4; received {rank}"):
            call(rank)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers(value):
    matrix = weights((5, 4))
    matrix[2, 1] = value
    with pytest.raises(ModelError, match="1 of 20 weights are NaN or infinite"):
        spectrum(matrix)


def test_moments_that_do_not_fit():
    matrix = weights((5, 4))
    with pytest.raises(UsageError, match=r"moments of the inputs do not fit .* expected \(5, 5\); received \(4, 4\)"):
        spectrum(matrix, input_moments=np.eye(4))
    with pytest.raises(UsageError, match="the outputs are NaN or infinite on some samples"):
        spectrum(matrix, output_moments=np.full((4, 4), np.nan))
    with pytest.raises(UsageError, match="expected one of them"):
        spectrum(matrix, input_moments=np.eye(5), output_moments=np.eye(4))


@pytest.mark.parametrize(
    ("rank", "full", "up", "rounded"),
    [(9, 64, True, 16), (9, 64, False, 8), (16, 64, True, 16), (16, 64, False, 16), (3, 64, False, 8),
     (0, 64, False, 8), (60, 62, True, 62), (100, 64, False, 64), (3, 6, True, 3), (0, 6, True, 1), (9, 6, False, 6)],
)  # fmt: skip
def test_round_rank(rank, full, up, rounded):
    assert round_rank(rank, full, 8, up=up) == rounded


def test_relative_error():
    assert relative_error(np.array([3.0, 4.0]), np.array([3.0, 3.0])) == pytest.approx(0.2)
    assert relative_error(np.zeros(3), np.zeros(3)) == 0
    assert relative_error(np.zeros(3), np.ones(3)) == float("inf")
