"""What low-rank decomposition would make of a model, as a function."""

import numpy as np
import pytest

from edgecompress.errors import DataError, ModelError, UsageError
from edgecompress.profiles import Kernels, load_profile
from edgecompress.ranking import RankReport, ranks
from edgecompress.techniques import LowRank


@pytest.fixture(scope="module")
def model():
    import keras

    keras.utils.set_random_seed(0)
    layers = keras.layers
    return keras.Sequential([
        keras.Input((256,), name="x"),
        layers.Dense(256, activation="relu", name="hidden"),
        layers.Dense(3, name="head"),
    ], name="net")  # fmt: skip


@pytest.fixture(scope="module")
def samples() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(100, 256)).astype(np.float32)


def test_totals_are_those_of_the_chosen_ranks(model, samples) -> None:
    before = [weight.copy() for weight in model.get_weights()]
    found = ranks(model, samples, technique=LowRank(rank=8))
    hidden, head = found.layers
    assert hidden.accepted
    assert not head.accepted
    assert hidden.chosen.ranks == (8,)
    assert found.params_before == model.count_params()
    assert found.params_after == found.params_before - hidden.params + hidden.chosen.params
    assert found.macs_before - found.macs_after == 256 * 256 - 8 * (256 + 256)
    assert 0 < hidden.chosen.output_error < 1
    assert len(hidden.points) > 1
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    assert RankReport.model_validate_json(found.model_dump_json(by_alias=True)) == found


def test_more_rank_keeps_more(model, samples) -> None:
    points = ranks(model, samples).layers[0].points
    energies = [point.energy for point in points]
    errors = [point.output_error for point in points]
    assert energies == sorted(energies)
    assert errors == sorted(errors, reverse=True)


def test_samples_are_counted_and_chosen_by_a_seed(model, samples) -> None:
    options = {"technique": LowRank(rank=8), "samples": 30}
    first, again, other = (ranks(model, samples, seed=seed, **options) for seed in (0, 0, 1))
    assert first.samples == 30
    assert first == again
    assert first.layers[0].chosen.output_error != other.layers[0].chosen.output_error
    assert ranks(model, samples[:20], **options).samples == 20
    assert ranks(model, technique=LowRank(rank=8)).samples == 0


def test_the_multiple_is_the_techniques_or_the_devices(model) -> None:
    host = load_profile("host").model_copy(update={"kernels": Kernels(rank_multiple=12)})
    found = ranks(model, technique=LowRank(energy=0.3), profile=host)
    assert found.multiple == 12
    assert all(rank % 12 == 0 for rank in found.layers[0].chosen.ranks)
    assert ranks(model, technique=LowRank(energy=0.3, multiple=2), profile=host).multiple == 2
    assert ranks(model).multiple == 8


def test_a_budget_is_shared_over_the_layers(model, samples) -> None:
    found = ranks(model, samples, technique=LowRank(params_budget=0.6))
    assert found.params_after <= 0.6 * found.params_before
    with pytest.raises(DataError, match=r"needs samples\. Fix: pass --train or --data"):
        ranks(model, technique=LowRank(params_budget=0.6))


def test_what_cannot_be_ranked(model, samples, tmp_path) -> None:
    with pytest.raises(UsageError, match="'hiden' matches no layer"):
        ranks(model, technique=LowRank(layers={"hiden": 4}))
    with pytest.raises(DataError, match="wrong shape"):
        ranks(model, samples[:, :5])
    model.export(tmp_path / "saved", verbose=False)
    with pytest.raises(ModelError, match="take models of Keras 3"):
        ranks(tmp_path / "saved")
