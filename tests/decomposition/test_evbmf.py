import numpy as np
import pytest

from edgecompress.decomposition.evbmf import _threshold, evbmf_rank
from edgecompress.errors import ModelError


def noisy(shape, rank, noise, seed=0):
    random = np.random.default_rng(seed)
    return random.normal(size=(shape[0], rank)) @ random.normal(size=(rank, shape[1])) + noise * random.normal(
        size=shape
    )


@pytest.mark.parametrize(
    ("shape", "rank", "noise"),
    [((60, 100), 5, 0.3), ((64, 64), 8, 0.5), ((32, 300), 3, 1.0), ((120, 160), 20, 0.1), ((50, 60), 1, 0.3)],
)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_finds_the_rank_below_noise(shape, rank, noise, seed):
    matrix = noisy(shape, rank, noise, seed)
    assert evbmf_rank(matrix) == rank
    assert evbmf_rank(matrix.T) == rank


@pytest.mark.parametrize("shape", [(50, 60), (64, 64), (10, 300), (1, 10), (10, 1)])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_noise_alone_has_no_rank(shape, scale):
    assert evbmf_rank(scale * noisy(shape, 0, 1.0)) <= 1


def test_weak_directions_drown_in_noise():
    strong, weak = noisy((80, 100), 4, 0.0), noisy((80, 100), 3, 0.0, seed=1)
    noise = noisy((80, 100), 0, 1.0, seed=2)
    assert evbmf_rank(strong + 0.01 * weak + noise) == 4
    assert evbmf_rank(strong + weak + noise) == 7


@pytest.mark.parametrize("alpha", [0.001, 0.01, 0.1, 0.5, 1.0])
def test_the_threshold_is_near_the_papers_approximation(alpha):
    """Which is exact for square matrices."""
    tau = 2.5129 * alpha**0.5
    assert _threshold(alpha) == pytest.approx((1 + tau) * (1 + alpha / tau), rel=1e-4 if alpha == 1 else 0.03)


def test_without_noise_it_is_the_rank():
    assert evbmf_rank(noisy((50, 60), 4, 0.0).astype(np.float32)) == 4
    assert evbmf_rank(np.zeros((5, 6), np.float32)) == 0


def test_weights_that_are_no_numbers():
    with pytest.raises(ModelError, match="12 of 12 weights are NaN"):
        evbmf_rank(np.full((3, 4), np.nan))
