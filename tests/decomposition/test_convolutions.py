import keras
import numpy as np
import pytest

from edgecompress.decomposition import convolutions
from edgecompress.decomposition.convolutions import (
    channel_factors,
    channel_spectrum,
    compose,
    cp_factors,
    spatial_factors,
    spatial_spectrum,
    tucker_factors,
    tucker_spectra,
)
from edgecompress.decomposition.matrices import relative_error
from edgecompress.errors import ConversionError, ModelError, UsageError


def kernel(shape=(3, 3, 10, 14), seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def images(channels, seed=1):
    return np.random.default_rng(seed).normal(size=(2, 9, 8, channels)).astype(np.float32)


def convolve(inputs, factor, **options):
    return np.asarray(keras.ops.conv(inputs, factor, data_format="channels_last", **options))


def moments(values):
    rows = values.reshape(-1, values.shape[-1]).astype(np.float64)
    return rows.T @ rows / len(rows)


@pytest.fixture(scope="module")
def trained(digits, digits_cnn):
    """The kernel of the second convolution of a CNN that has learnt digits, and its inputs, seen and unseen."""
    model = digits.keras.models.load_model(digits_cnn.model)
    layer = model.get_layer("conv_2")
    before = digits.keras.Sequential(model.layers[: model.layers.index(layer)])
    (x, _), (x_test, _) = digits.digits(as_rows=False)
    return np.asarray(layer.kernel), np.asarray(before(x)), np.asarray(before(x_test))


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize(
    ("strides", "dilation"), [((1, 1), (1, 1)), ((2, 2), (1, 1)), ((2, 1), (1, 1)), ((1, 1), (2, 3))]
)
def test_at_full_rank_chains_do_what_the_convolution_does(padding, strides, dilation):
    exact, inputs = kernel((3, 2, 4, 5)), images(4)
    options = {"strides": strides, "padding": padding, "dilation_rate": dilation}
    expected = convolve(inputs, exact, **options)

    first, second = channel_factors(exact, channel_spectrum(exact), 5)
    np.testing.assert_allclose(convolve(convolve(inputs, first, **options), second), expected, atol=1e-4)

    found = spatial_spectrum(exact)
    vertical, horizontal = spatial_factors(exact, found, found.full_rank)
    rows = {"strides": (strides[0], 1), "padding": padding, "dilation_rate": (dilation[0], 1)}
    columns = {"strides": (1, strides[1]), "padding": padding, "dilation_rate": (1, dilation[1])}
    got = convolve(convolve(inputs, vertical, **rows), horizontal, **columns)
    np.testing.assert_allclose(got, expected, atol=1e-4)

    reduce, core, expand = tucker_factors(exact, (4, 5))
    got = convolve(convolve(convolve(inputs, reduce), core, **options), expand)
    np.testing.assert_allclose(got, expected, atol=1e-4)


def chains(exact, rank):
    yield channel_factors(exact, channel_spectrum(exact), rank)
    yield spatial_factors(exact, spatial_spectrum(exact), rank)
    yield tucker_factors(exact, (rank, rank + 1))
    yield cp_factors(exact, rank, seed=0)


def test_chains_are_the_kernel_that_compose_says():
    inputs = images(10)
    for factors in chains(kernel(), 4):
        values = inputs
        for number, factor in enumerate(factors):
            assert factor.dtype == np.float32
            if len(factors) == 4 and number in (1, 2):
                values = np.asarray(keras.ops.depthwise_conv(values, factor, data_format="channels_last"))
            else:
                values = convolve(values, factor)
        np.testing.assert_allclose(values, convolve(inputs, compose(factors)), atol=1e-4)


def test_shapes():
    shapes = [[factor.shape for factor in factors] for factors in chains(kernel((5, 3, 10, 14)), 4)]
    assert shapes == [
        [(5, 3, 10, 4), (1, 1, 4, 14)],
        [(5, 1, 10, 4), (1, 3, 4, 14)],
        [(1, 1, 10, 4), (5, 3, 4, 5), (1, 1, 5, 14)],
        [(1, 1, 10, 4), (5, 1, 4, 1), (1, 3, 4, 1), (1, 1, 4, 14)],
    ]


@pytest.mark.parametrize("shape", [(1, 5, 6, 8), (5, 1, 6, 8), (1, 1, 6, 8), (3, 3, 1, 8), (3, 3, 6, 1), (1, 3, 1, 1)])
def test_kernels_with_axes_of_one(shape):
    """A Conv1D's, a pointwise one, and images with one channel."""
    exact = kernel(shape)
    channel, spatial = channel_spectrum(exact), spatial_spectrum(exact)
    by_input, by_output = tucker_spectra(exact)
    for factors in (
        channel_factors(exact, channel, channel.full_rank),
        spatial_factors(exact, spatial, spatial.full_rank),
        tucker_factors(exact, (by_input.full_rank, by_output.full_rank)),
    ):
        assert relative_error(exact, compose(factors)) < 1e-6
    assert compose(cp_factors(exact, 1, seed=0)).shape == shape


def test_channel_and_spatial_reach_the_bound_of_their_matrices():
    exact = kernel()
    by_channel = exact.reshape(-1, 14)
    by_row = exact.transpose(0, 2, 1, 3).reshape(30, 42)
    for rank in (1, 5, 12):
        for matrix, factors in (
            (by_channel, channel_factors(exact, channel_spectrum(exact), rank)),
            (by_row, spatial_factors(exact, spatial_spectrum(exact), rank)),
        ):
            singular = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
            least = np.linalg.norm(singular[rank:]) / np.linalg.norm(singular)
            assert relative_error(exact, compose(factors)) == pytest.approx(least, abs=1e-6)


@pytest.mark.parametrize("ranks", [(1, 1), (3, 7), (7, 3), (10, 4), (2, 14)])
def test_tucker_is_within_the_bounds_of_its_spectra(ranks):
    """Never better than either side alone, never worse than both together (De Lathauwer et al. 2000)."""
    exact = kernel()
    lost = [1 - found.energy(rank) for found, rank in zip(tucker_spectra(exact), ranks, strict=True)]
    squared = relative_error(exact, compose(tucker_factors(exact, ranks))) ** 2
    assert max(lost) - 1e-6 <= squared <= sum(lost) + 1e-6


def test_tucker_ranks_that_the_other_side_cannot_fill():
    exact = kernel((1, 2, 12, 12))
    reduce, core, expand = tucker_factors(exact, (12, 2))
    assert (reduce.shape, core.shape, expand.shape) == ((1, 1, 12, 12), (1, 2, 12, 2), (1, 1, 2, 12))
    least = 1 - tucker_spectra(exact)[1].energy(2)
    assert relative_error(exact, compose((reduce, core, expand))) ** 2 == pytest.approx(least, abs=1e-6)


def test_a_trained_convolution_loses_less_by_its_activations(trained):
    exact, seen, unseen = trained
    inputs, outputs = moments(seen), moments(convolve(seen, exact, padding="same"))
    expected = convolve(unseen, exact, padding="same")

    def lost(factors):
        return relative_error(expected, convolve(unseen, compose(factors), padding="same"))

    for rank in (4, 8):
        plain = channel_factors(exact, channel_spectrum(exact), rank)
        assert lost(channel_factors(exact, channel_spectrum(exact, outputs), rank)) < 0.9 * lost(plain)
        plain = spatial_factors(exact, spatial_spectrum(exact), rank)
        assert lost(spatial_factors(exact, spatial_spectrum(exact, inputs), rank)) < lost(plain)
        plain, by_inputs, by_both = (
            lost(tucker_factors(exact, (rank, rank), *given)) for given in ((), (inputs,), (inputs, outputs))
        )
        assert by_both < by_inputs < plain
        assert lost(cp_factors(exact, rank, 0, inputs)) < lost(cp_factors(exact, rank, 0))


def test_moments_keep_full_ranks_exact(trained):
    exact, seen, _ = trained
    inputs, outputs = moments(seen), moments(convolve(seen, exact, padding="same"))
    assert relative_error(exact, compose(tucker_factors(exact, (16, 32), inputs, outputs))) < 1e-5
    dead = np.zeros_like(inputs)
    assert relative_error(exact, compose(tucker_factors(exact, (16, 32), dead, outputs))) < 1e-5


def test_cp_finds_a_kernel_of_rank_three():
    random = np.random.default_rng(0)
    factors = [random.normal(size=(size, 3)) for size in (3, 3, 10, 14)]
    exact = np.einsum("ar,br,cr,dr->abcd", *factors).astype(np.float32)
    assert relative_error(exact, compose(cp_factors(exact, 3, seed=0))) < 1e-3
    assert relative_error(exact, compose(cp_factors(exact, 2, seed=0))) > 0.05
    # Ranks above the kernel's own leave the search products that nothing determines.
    assert relative_error(exact, compose(cp_factors(exact, 8, seed=0))) < 1e-2


def test_cp_is_the_same_each_time_and_balanced():
    exact = kernel()
    first, second = (cp_factors(exact, 16, seed=3) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)
    reduce, vertical, horizontal, expand = first
    lengths = [np.linalg.norm(each.reshape(-1, 16), axis=0) for each in (reduce, vertical, horizontal)]
    lengths.append(np.linalg.norm(expand[0, 0], axis=1))
    np.testing.assert_allclose(lengths, np.broadcast_to(lengths[0], (4, 16)), rtol=1e-4)


def test_cp_more_products_lose_less():
    lost = [relative_error(kernel(), compose(cp_factors(kernel(), rank, seed=0))) for rank in (2, 8, 32)]
    assert lost == sorted(lost, reverse=True)


def test_cp_starts_anew_where_products_cancel_and_gives_up_in_the_end(monkeypatch):
    import tensorly.decomposition as library

    exact, genuine, calls = kernel(), library.parafac, []

    def bad_at_first(*args, **options):
        calls.append(options["l2_reg"])
        weights, factors = genuine(*args, **options)
        return weights, [np.inf * each for each in factors] if len(calls) < 3 else factors

    monkeypatch.setattr(library, "parafac", bad_at_first)
    assert relative_error(exact, compose(cp_factors(exact, 8, seed=0))) < 1
    assert calls[:2] == [0, 0]
    assert calls[2] > 0

    def singular(*_args, **_options):
        raise np.linalg.LinAlgError

    monkeypatch.setattr(library, "parafac", singular)
    with pytest.raises(ConversionError, match="does not converge; expected rank 8"):
        cp_factors(exact, 8, seed=0)


def test_zero_kernels():
    zeros = np.zeros((3, 3, 4, 6), np.float32)
    for factors in chains(zeros, 2):
        composed = compose(factors)
        assert composed.shape == zeros.shape
        assert not composed.any()


def test_ranks_and_weights_that_cannot_be():
    exact = kernel()
    with pytest.raises(UsageError, match=r"input side .* expected 1 to 10; received 11"):
        tucker_factors(exact, (11, 5))
    with pytest.raises(UsageError, match=r"output side .* received 0"):
        tucker_factors(exact, (5, 0))
    with pytest.raises(UsageError, match="no such rank; expected 1 to 90; received 91"):
        cp_factors(exact, 91, seed=0)
    with pytest.raises(UsageError, match="received 15"):
        channel_factors(exact, channel_spectrum(exact), 15)
    with pytest.raises(UsageError, match="moments of the inputs do not fit"):
        tucker_factors(exact, (5, 5), np.eye(14))
    exact[0, 0, 0, 0] = np.nan
    for call in (channel_spectrum, spatial_spectrum, lambda each: tucker_factors(each, (2, 2)),
                 lambda each: cp_factors(each, 2, seed=0)):  # fmt: skip
        with pytest.raises(ModelError, match="1 of 1260 weights"):
            call(exact)


def test_a_start_is_orthonormal_where_the_axis_is_long_enough():
    vectors = convolutions._leading_vectors(kernel().astype(np.float64), 4, np.random.default_rng(0))
    assert [each.shape for each in vectors] == [(3, 4), (3, 4), (10, 4), (14, 4)]
    np.testing.assert_allclose(vectors[2].T @ vectors[2], np.eye(4), atol=1e-9)
