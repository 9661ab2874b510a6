import numpy as np

from edgecompress.tfmot.patterns import cluster_numbers

RNG = np.random.default_rng(0)


def test_a_clustered_kernel_is_known_by_its_few_values() -> None:
    values = RNG.normal(size=8).astype("float32")
    numbers = RNG.integers(0, 8, size=(3, 3, 4, 6))
    found = cluster_numbers(values[numbers])
    assert found is not None
    assert found.shape == numbers.shape
    assert len(np.unique(found)) == 8
    assert all(len(np.unique(found[numbers == number])) == 1 for number in range(8))


def test_a_kernel_clustered_for_each_channel_is_known_by_its_channels() -> None:
    values = RNG.normal(size=(4, 200)).astype("float32")
    kernel = np.stack([values[RNG.integers(0, 4, size=100), channel] for channel in range(200)], axis=-1)
    found = cluster_numbers(kernel)
    assert found is not None
    assert len(np.unique(found)) == 800
    assert len(np.unique(found[:, 7])) == 4


def test_an_ordinary_kernel_has_no_clusters() -> None:
    assert cluster_numbers(RNG.normal(size=(3, 3, 8, 8)).astype("float32")) is None
