"""How ranks are chosen, where the answer can be worked out by hand."""

import numpy as np
import pytest

from edgecompress.data import Dataset, InputSpec
from edgecompress.errors import UsageError
from edgecompress.passes.base import PassContext
from edgecompress.passes.low_rank import analyse
from edgecompress.passes.low_rank.choice import Candidate
from edgecompress.passes.low_rank.sites import find_sites
from edgecompress.techniques import LowRank


def _with_spectrum(layer, values, seed):
    """Gives a layer a kernel with these singular values."""
    random = np.random.default_rng(seed)
    rows, columns = layer.kernel.shape
    u, _ = np.linalg.qr(random.normal(size=(rows, len(values))))
    v, _ = np.linalg.qr(random.normal(size=(columns, len(values))))
    layer.kernel.assign((u * values) @ v.T)


@pytest.fixture
def two(keras):
    """A layer whose kernel has four singular values that count, and one where all 128 count alike."""
    layers = keras.layers
    model = keras.Sequential([
        keras.Input((256,)), layers.Dense(512, name="easy"), layers.ReLU(), layers.Dense(256, name="hard")
    ])  # fmt: skip
    _with_spectrum(model.get_layer("easy"), np.array([4.0, 3, 2, 1]), 0)
    _with_spectrum(model.get_layer("hard"), np.ones(128), 1)
    return model


def _ranks(model, **spec):
    return {one.layer: one for one in analyse(model, LowRank(**spec), PassContext())}


@pytest.mark.parametrize(("energy", "rank"), [(0.5, 1), (0.53, 1), (0.55, 2), (0.9, 3), (0.96, 3), (0.97, 4)])
def test_energy(two, energy, rank):
    """The squares are 16, 9, 4 and 1 of 30."""
    assert _ranks(two, energy=energy, multiple=1)["easy"].chosen.ranks == (rank,)


def test_energy_is_rounded_up_and_a_share_of_the_weights_down(two):
    assert _ranks(two, energy=0.97)["easy"].chosen.ranks == (8,)
    params = 256 * 512 + 512
    fits = (0.1 * params - 512) / (256 + 512)
    assert 16 < fits < 24
    (point,) = {one.chosen for name, one in _ranks(two, ratio=0.1).items() if name == "easy"}
    assert point.ranks == (16,)
    assert point.params == 16 * (256 + 512) + 512


def test_a_share_that_no_multiple_leaves_takes_a_smaller_rank(two):
    one = _ranks(two, ratio=0.02)["easy"]
    assert one.chosen.ranks == (2,)


def test_a_budget_is_taken_where_nothing_is_lost_first(two):
    """The easy layer gives all its weights up before the hard one loses any of its even spectrum."""
    ranks = _ranks(two, params_budget=0.6)
    assert ranks["easy"].accepted
    assert ranks["easy"].chosen.weight_error < 1e-5
    assert ranks["hard"].reason == "left as it is: the budget is met without it"
    tight = _ranks(two, params_budget=0.2)
    assert tight["hard"].accepted
    assert tight["easy"].chosen.weight_error < 0.5 < tight["hard"].chosen.weight_error


def test_a_budget_as_a_number_is_the_same_as_the_share(two):
    total = two.count_params()
    assert _ranks(two, params_budget=total // 2) == _ranks(two, params_budget=0.5)


def test_arithmetic_that_is_not_known_has_no_budget(keras):
    layers = keras.layers
    model = keras.Sequential([keras.Input((None, 64)), layers.GRU(256), layers.Dense(4)])
    with pytest.raises(UsageError, match=r"MACs, which are not known.*--input-shape"):
        analyse(model, LowRank(flops_budget=0.5), PassContext())
    by_name = {one.kind: one for one in analyse(model, LowRank(ratio=0.5), PassContext())}
    assert by_name["GRU"].macs is None
    assert by_name["GRU"].accepted


@pytest.mark.parametrize(("units", "accepted"), [(4, False), (128, True)])
def test_factors_of_a_lookup_must_be_paid_for_by_other_layers(keras, units, accepted):
    layers = keras.layers
    model = keras.Sequential([
        keras.Input((20,), dtype="int32"), layers.Embedding(500, 64, name="words"), layers.GRU(units, name="gru"),
        layers.Dense(2),
    ])  # fmt: skip
    random = np.random.default_rng(0)
    words = model.get_layer("words").embeddings
    words.assign(random.normal(size=(500, 8)) @ random.normal(size=(8, 64)))
    for kernel in (model.get_layer("gru").cell.kernel, model.get_layer("gru").cell.recurrent_kernel):
        rows, columns = kernel.shape
        kernel.assign(random.normal(size=(rows, 4)) @ random.normal(size=(4, columns)) / 8)
    one = _ranks(model, energy=0.99)["words"]
    assert one.chosen.ranks == (8,)
    assert one.accepted == accepted
    assert accepted or "MACs instead of a lookup" in one.reason


def test_ladders_rise_and_save_weights(keras):
    layers = keras.layers
    model = keras.Sequential([keras.Input((9, 48)), layers.LSTM(64)])
    (site,) = find_sites(model)
    for multiple in (8, 16):
        candidate = Candidate(site, site.kind, ("joint",), multiple)
        ladder = candidate.ladder("joint")
        costs = [site.kind.factor_params("joint", ranks) for ranks in ladder]
        assert costs == sorted(costs)
        assert costs[-1] < site.kind.params
        assert all(rank % multiple == 0 for rank, full in zip(ladder[-1], (48, 64), strict=True) if rank < full)
        assert len(candidate.few("joint")) <= 12


@pytest.mark.parametrize(("features", "multiple"), [(8, 16), (24, 8), (64, 16)])
def test_the_kernels_of_a_gru_share_what_it_may_keep_in_the_best_way(keras, features, multiple):
    """Neither can have more without the other having less, and no other such pair does less harm."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((7, features), name="rows"), keras.layers.GRU(96, name="gru")])
    context = PassContext(multiple=multiple, calibration=Dataset({"rows": np.random.default_rng(0).normal(
        size=(24, 7, features)).astype(np.float32)}))  # fmt: skip
    (one,) = analyse(model, LowRank(ratio=0.4), context)
    assert one.chosen.params <= 0.4 * one.params
    (site,) = find_sites(model)
    candidate = Candidate(site, site.kind, ("joint",), multiple)
    pairs = candidate.largest("joint", 0.4 * one.params)
    assert one.chosen.ranks in pairs
    full = site.kind.full_ranks("joint")
    for pair in pairs:
        for more in ((pair[0] + multiple, pair[1]), (pair[0], pair[1] + multiple)):
            wider = site.kind.settle("joint", tuple(min(a, b) for a, b in zip(more, full, strict=True)))
            assert wider == pair or site.kind.factor_params("joint", wider) > 0.4 * one.params
    # Narrow inputs are not given away for ranks of the states that matter less.
    assert one.chosen.output_error < 0.35


def test_a_kernel_too_small_for_the_multiple_stays_whole_by_energy(keras, digits_gru, digits):
    (x, _), _ = digits.digits(as_rows=True)
    model = keras.models.load_model(digits_gru.model, compile=False)
    context = PassContext(calibration=Dataset({"rows": x[:200]}), multiple=16)
    by_name = {one.layer: one for one in analyse(model, LowRank(energy=0.95), context)}
    assert by_name["gru"].chosen.ranks[0] == 8
    assert by_name["gru"].chosen.ranks[1] % 16 == 0
    half = {one.layer: one for one in analyse(model, LowRank(ratio=0.5), context)}["gru"]
    assert half.chosen.output_error < 0.1


def test_shapes_that_are_fixed_by_the_user_are_counted(keras):
    layers = keras.layers
    inner = keras.Sequential([keras.Input((None, None, 32)), layers.Conv2D(64, 3, name="deep")], name="inner")
    image = keras.Input((None, None, 3), name="image")
    x = inner(layers.Conv2D(32, 3, padding="same", name="conv")(image))
    model = keras.Model(image, layers.Dense(4, name="head")(layers.GlobalAveragePooling2D()(x)))
    unknown = {one.layer: one for one in analyse(model, LowRank(ratio=0.5), PassContext())}
    assert unknown["conv"].macs is None
    fixed = (InputSpec("image", (1, 20, 16, 3), "float32"),)
    known = {one.layer: one for one in analyse(model, LowRank(flops_budget=0.5), PassContext(fixed=fixed))}
    assert known["conv"].macs == 20 * 16 * 27 * 32
    assert known["inner/deep"].macs == 18 * 14 * 9 * 32 * 64
    assert known["inner/deep"].accepted
    assert not unknown["inner/deep"].accepted  # of one pixel nothing is quicker


def test_a_budget_that_a_lookup_misses_after_all_is_an_error(keras):
    layers = keras.layers
    model = keras.Sequential([
        keras.Input((20,), dtype="int32"), layers.Embedding(1000, 32, name="words"), layers.GlobalAveragePooling1D(),
        layers.Dense(16),
    ])  # fmt: skip
    with pytest.raises(UsageError, match="params_budget cannot be met"):
        analyse(model, LowRank(params_budget=0.5, layers={"words": 4}), PassContext())


def test_integer_kernels_have_to_be_quicker_too(keras):
    """Depthwise convolutions, of which CP makes two, are slow in dynamic range."""
    model = keras.Sequential([keras.Input((14, 14, 64)), keras.layers.Conv2D(64, 3, name="conv")])
    spec = LowRank(conv="cp", rank=16)
    (in_float,), (in_both,) = (analyse(model, spec, PassContext(quantized=each)) for each in (False, True))
    assert in_float.accepted
    assert not in_both.accepted
    assert "but not quicker" in in_both.reason
