"""The pass on trained models: what it keeps, what it refuses, what it leaves alone."""

import numpy as np
import pytest

from edgecompress.data import Dataset
from edgecompress.errors import ModelError, UsageError
from edgecompress.functional import clone_model
from edgecompress.passes import apply_passes
from edgecompress.passes.base import PassContext
from edgecompress.passes.low_rank import analyse, apply_low_rank, plan_low_rank
from edgecompress.techniques import LowRank, Prune, Training


@pytest.fixture(scope="module")
def wide(keras, samples):
    """A trained network whose layers are wide enough that factors pay."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential([
        keras.Input((8, 8, 1), name="image"),
        layers.Conv2D(32, 3, padding="same", activation="relu", name="conv"),
        layers.Conv2D(64, 3, padding="same", strides=2, activation="relu", name="conv_2"),
        layers.Flatten(name="flat"),
        layers.Dense(256, activation="relu", name="hidden"),
        layers.Dense(10, activation="softmax", name="digit"),
    ], name="wide")  # fmt: skip
    model.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(samples.inputs["image"], samples.labels, epochs=4, batch_size=32, verbose=0)
    return model


@pytest.fixture(scope="module")
def context(samples):
    return PassContext(calibration=samples)


def test_what_is_replaced_is_smaller_and_answers_nearly_the_same(wide, context, accuracy):
    before = [weight.copy() for weight in wide.get_weights()]
    small, result = apply_low_rank(wide, LowRank(ratio=0.3), context)
    assert [layer.name for layer in small.layers if layer.name in {"conv_2", "hidden"}] == ["conv_2", "hidden"]
    assert small.count_params() < 0.4 * wide.count_params()
    assert accuracy(small) > accuracy(wide) - 0.03
    by_name = {one.layer: one for one in result.ranks}
    assert set(by_name) == {"conv", "conv_2", "hidden", "digit"}
    assert by_name["hidden"].accepted
    assert by_name["hidden"].chosen.params == small.get_layer("hidden").count_params() <= 0.3 * by_name["hidden"].params
    assert by_name["hidden"].chosen.output_error < 0.2
    assert [entry.applies for entry in result.plan] == [one.accepted for one in result.ranks]
    assert "not trained again" in result.notes[0]
    for old, weight in zip(before, wide.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, old)


def test_training_again_wins_back_what_was_lost(wide, samples, accuracy):
    harsh = LowRank(ratio=0.06, conv="channel")
    untrained, _ = apply_low_rank(wide, harsh, PassContext(calibration=samples))
    trained, result = apply_low_rank(
        wide, harsh, PassContext(data=samples, calibration=samples, training=Training(epochs=3))
    )
    assert result.trained.samples == 540
    assert accuracy(trained) > accuracy(untrained)
    assert accuracy(trained) > accuracy(wide) - 0.05
    assert trained.count_params() == untrained.count_params()


def test_energy_is_kept_by_every_matrix(wide, context):
    for energy in (0.8, 0.95):
        accepted = [one for one in analyse(wide, LowRank(energy=energy, multiple=1), context) if one.accepted]
        assert accepted
        for one in accepted:
            assert energy <= one.chosen.energy < energy + 0.1
            assert one.chosen.output_error == pytest.approx((1 - one.chosen.energy) ** 0.5, abs=0.15)


def test_a_layer_that_would_cost_more_is_left_alone_and_says_so(wide, context):
    small, result = apply_low_rank(wide, LowRank(energy=1.0), context)
    assert small.count_params() == wide.count_params()
    assert not any(one.accepted for one in result.ranks)
    (hidden,) = (one for one in result.ranks if one.layer == "hidden")
    assert "weights instead of 262,400" in hidden.reason
    assert result.notes == ()


@pytest.mark.parametrize("budget", [0.7, 0.3])
def test_a_budget_of_weights_is_shared_by_what_it_costs(wide, context, budget):
    small, result = apply_low_rank(wide, LowRank(params_budget=budget), context)
    assert small.count_params() <= budget * wide.count_params()
    assert small.count_params() > 0.5 * budget * wide.count_params()
    # The same number of weights, spent without looking at what each layer loses.
    ratio, other = apply_low_rank(wide, LowRank(ratio=small.count_params() / wide.count_params()), context)
    assert ratio.count_params() <= small.count_params()
    losses = [sum(one.chosen.output_error**2 for one in each.ranks if one.accepted) for each in (result, other)]
    assert losses[0] <= losses[1]


def test_a_budget_of_arithmetic(wide, context):
    (whole,) = {sum(one.macs for one in analyse(wide, LowRank(), context))}
    ranks = analyse(wide, LowRank(flops_budget=0.5), context)
    left = sum(one.chosen.macs if one.accepted else one.macs for one in ranks)
    assert 0.25 * whole < left <= 0.5 * whole
    assert analyse(wide, LowRank(flops_budget=whole), context) == ranks  # a number of FLOPs: twice the MACs


def test_a_budget_that_cannot_be_met(wide, context):
    with pytest.raises(UsageError, match=r"params_budget cannot be met.*at least") as error:
        apply_low_rank(wide, LowRank(params_budget=100), context)
    assert "expected 100" in str(error.value)


def test_evbmf_needs_no_setting(wide, context):
    ranks = {one.layer: one for one in analyse(wide, LowRank(evbmf=True), context)}
    assert ranks["hidden"].accepted
    assert 8 <= ranks["hidden"].chosen.ranks[0] < 128


def test_ranks_are_multiples_of_what_the_device_prefers(wide, samples):
    for multiple in (4, 16):
        found = analyse(wide, LowRank(energy=0.9), PassContext(calibration=samples, multiple=multiple))
        check_multiples(found, multiple)
    check_multiples(analyse(wide, LowRank(energy=0.9, multiple=5), PassContext(calibration=samples)), 5)


def check_multiples(found, multiple):
    accepted = [one.chosen.ranks for one in found if one.accepted]
    assert accepted
    assert all(rank % multiple == 0 for ranks in accepted for rank in ranks)


def test_a_rank_that_is_given_is_taken_as_it_is(wide, context):
    ranks = {one.layer: one for one in analyse(wide, LowRank(rank=13, layers={"conv.*": 0}), context)}
    assert ranks["hidden"].chosen.ranks == (13,)
    assert ranks["conv_2"].reason == "left as it is: rank 0"
    assert "rank 13 is not below the full rank, 10" in ranks["digit"].reason


def test_a_kernel_of_rank_1_is_left_alone_and_said_so(keras):
    model = keras.Sequential([keras.Input((8, 8, 4)), keras.layers.Conv2D(1, 3, name="mask")])
    (by_channel,) = analyse(model, LowRank(ratio=0.5, conv="channel"), PassContext())
    assert by_channel.reason == "its matrix has rank 1 already"
    (by_rows,) = analyse(model, LowRank(ratio=0.5, conv="spatial"), PassContext())
    assert by_rows.chosen.method == "spatial"


def test_layers_have_settings_of_their_own(wide, context):
    spec = LowRank(energy=0.9, layers={"hidden": 20, "conv": 0.5})
    ranks = {one.layer: one for one in analyse(wide, spec, context)}
    assert ranks["hidden"].chosen.ranks == (20,)
    assert ranks["conv_2"].chosen.params <= 0.5 * ranks["conv_2"].params


def test_points_go_from_small_to_large(wide, context):
    for one in analyse(wide, LowRank(conv="channel"), context):
        assert [point.params for point in one.points] == sorted({point.params for point in one.points})
        errors = [point.output_error for point in one.points]
        assert errors == sorted(errors, reverse=True)
        assert all(point.params < one.params for point in one.points)


def test_without_samples_the_weights_decide(wide):
    accepted = [one.chosen for one in analyse(wide, LowRank(ratio=0.5), PassContext()) if one.accepted]
    exact = [point for point in accepted if point.method in ("svd", "channel")]
    assert exact
    assert all(point.output_error is None for point in accepted)
    for point in exact:
        assert point.weight_error == pytest.approx((1 - point.energy) ** 0.5, abs=1e-4)


def test_the_same_seed_gives_the_same_weights(wide, context):
    first, second = (apply_low_rank(wide, LowRank(ratio=0.4), context)[0] for _ in range(2))
    for one, other in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_refusals(wide, context):
    with pytest.raises(UsageError, match=r"low_rank.layers: the pattern 'hiden' matches no layer.*did you mean.*"):
        plan_low_rank(wide, LowRank(layers={"hiden": 4}))
    with pytest.raises(UsageError, match=r"'digit'.*rank 64 is larger than its matrix, of rank 10"):
        apply_low_rank(wide, LowRank(layers={"digit": 64}), context)
    plan = {entry.layer: entry for entry in plan_low_rank(wide, LowRank(rank=5000))}
    assert plan["hidden"].refused
    assert "below 256" in plan["hidden"].fix
    with pytest.raises(UsageError, match=r"rank 5000 is larger than every matrix, of rank 256 at most"):
        apply_low_rank(wide, LowRank(rank=5000), context)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_refused(wide, context, value):
    broken = clone_model(wide)
    weights = np.asarray(broken.get_layer("hidden").kernel).copy()
    weights[3, 4] = value
    broken.get_layer("hidden").kernel.assign(weights)
    (entry,) = (one for one in plan_low_rank(broken, LowRank()) if one.refused)
    assert entry.layer == "hidden"
    with pytest.raises(ModelError, match=r"layer 'hidden'.*NaN or infinite"):
        apply_low_rank(broken, LowRank(), context)


def test_factors_can_be_pruned_afterwards(wide, samples):
    small, (_, pruned) = apply_passes(wide, (LowRank(ratio=0.4), Prune(sparsity=0.5)), PassContext(calibration=samples))
    zeros = {proof.layer: proof.sparsity for proof in pruned.proof}
    assert zeros["hidden (hidden/u)"] == pytest.approx(0.5, abs=0.01)
    assert np.isfinite(np.asarray(small(samples.inputs["image"][:4]))).all()


def test_nested_models_and_shared_layers(keras, samples):
    keras.utils.set_random_seed(0)
    layers = keras.layers
    inner = keras.Sequential([keras.Input((256,)), layers.Dense(512, name="deep"), layers.ReLU()], name="inner")
    shared = layers.Dense(256, name="shared")
    x = keras.Input((8, 8, 1), name="image")
    y = shared(layers.Dense(256, name="wide")(layers.Flatten()(x)))
    model = keras.Model(x, layers.Dense(10, name="digit")(inner(shared(y))))
    data = Dataset({"image": samples.inputs["image"]})
    small, result = apply_low_rank(model, LowRank(ratio=0.5), PassContext(calibration=data))
    by_name = {one.layer: one for one in result.ranks}
    assert {"inner/deep", "shared"} <= set(by_name)
    assert by_name["shared"].macs == 2 * 256 * 256
    assert type(small.get_layer("inner").get_layer("deep")).__name__ == "LowRankDense"
    assert len(small.get_layer("shared")._inbound_nodes) >= 2


def test_stateful_layers_keep_the_states_that_they_had(keras):
    layers = keras.layers
    model = keras.Sequential([
        keras.Input(batch_shape=(32, 5, 8), name="rows"), layers.LSTM(16, stateful=True, name="lstm"),
        layers.Dense(256, name="wide"), layers.Dense(256, name="next"),
    ])  # fmt: skip
    x = np.random.default_rng(0).normal(size=(20, 5, 8)).astype(np.float32)
    model(np.resize(x, (32, 5, 8)))
    states = [np.asarray(state).copy() for state in model.get_layer("lstm").states]
    ranks = {one.layer: one for one in analyse(model, LowRank(), PassContext(calibration=Dataset({"rows": x})))}
    # A batch is larger than all samples: some are seen twice.
    assert ranks["next"].chosen.output_error is not None
    for before, after in zip(states, model.get_layer("lstm").states, strict=True):
        np.testing.assert_array_equal(before, after)


def test_a_weight_that_is_no_number_is_refused_wherever_it_is(keras):
    model = keras.Sequential([
        keras.Input((8,), name="x"), keras.layers.BatchNormalization(name="norm"), keras.layers.Dense(256)
    ])  # fmt: skip
    model.get_layer("norm").beta.assign([np.nan] * 8)
    with pytest.raises(ModelError, match=r"layer 'norm'.*NaN or infinite"):
        apply_low_rank(model, LowRank(), PassContext())


def test_factorizing_after_pruning_is_noted(wide, samples):
    _, (_, factorized) = apply_passes(wide, (Prune(sparsity=0.5), LowRank(ratio=0.4)), PassContext(calibration=samples))
    assert "do it first" in factorized.notes[-1]


def test_the_notes_of_the_training_are_told_once(wide, samples):
    context = PassContext(data=samples, training=Training(epochs=1, learning_rate=1e-12))
    _, result = apply_low_rank(wide, LowRank(ratio=0.5), context)
    assert not set(result.notes) & set(result.trained.notes)


def test_once_more_on_what_has_factors_already(wide, context):
    model, (_, again) = apply_passes(wide, (LowRank(ratio=0.8), LowRank(ratio=0.5)), context)
    assert len({layer.name for layer in model.layers}) == len(model.layers)
    assert any(one.accepted for one in again.ranks)


def test_layers_of_each_step_are_trained_again(keras, samples):
    """In training, `fit` does not say how many steps there are, which Keras's TimeDistributed has to know."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential([
        keras.Input((8, 8, 1), name="image"), layers.Reshape((4, 4, 4, 1)),
        layers.TimeDistributed(layers.Conv2D(64, 3, padding="same"), name="conv"),
        layers.TimeDistributed(layers.Conv2D(64, 3, padding="same"), name="conv_2"), layers.Reshape((4, 1024)),
        layers.TimeDistributed(layers.Dense(256, activation="relu", name="inner"), name="each"), layers.GRU(16),
        layers.Dense(10),
    ])  # fmt: skip
    data = PassContext(data=samples, training=Training(epochs=1))
    small, result = apply_low_rank(model, LowRank(ratio=0.3), data)
    accepted = {one.layer for one in result.ranks if one.accepted}
    assert {"conv_2", "each"} <= accepted
    assert result.trained.samples == 540
    assert type(small.get_layer("each")).__name__ == "LowRankDense"
    assert type(small.get_layer("conv_2")).__name__ == "TimeDistributed"
