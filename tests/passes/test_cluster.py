from __future__ import annotations

import hashlib
import tomllib

import numpy as np
import pytest

from edgecompress.data import Dataset
from edgecompress.errors import DataError, UsageError
from edgecompress.functional import clone_model
from edgecompress.passes.base import PassContext
from edgecompress.passes.cluster import apply_cluster, plan_cluster
from edgecompress.passes.prune import apply_prune
from edgecompress.techniques import Cluster, Prune, Training

KERNELS = ("conv", "conv_2", "hidden", "digit")


def context(net, samples=None, **options):
    training = Training(**{"epochs": 1, "learning_rate": 1e-3, **options.pop("training", {})})
    return PassContext(
        training=training, data=samples, compile_config=net.get_compile_config(), **{"seed": 1, **options}
    )


def kernels(model):
    return {name: np.asarray(model.get_layer(name).kernel) for name in KERNELS}


def digest(model):
    return hashlib.sha256(b"".join(np.asarray(weight).tobytes() for weight in model.weights)).hexdigest()


@pytest.fixture(scope="module")
def pruned(net):
    return apply_prune(net, Prune(sparsity=0.6), context(net))[0]


@pytest.mark.parametrize("centroids", ["kmeans++", "linear", "density", "random"])
@pytest.mark.parametrize("with_data", [False, True])
def test_each_way_of_beginning_ends_with_few_values(net, samples, accuracy, centroids, with_data):
    before = digest(net)
    spec = Cluster(clusters=16, centroids=centroids)
    clustered, result = apply_cluster(net, spec, context(net, samples if with_data else None))
    for proof, values in zip(result.proof, kernels(clustered).values(), strict=True):
        assert proof.distinct == len(np.unique(values)) <= 16
        assert proof.wanted == "16 distinct values"
    assert accuracy(clustered) > accuracy(net) - 0.15
    assert digest(net) == before, "the model itself is left as it is"
    assert (result.trained is not None) == with_data
    assert result.notes == (() if with_data else (result.notes[0],))


def test_one_shot_clusters_are_means_of_their_weights(net):
    clustered, _ = apply_cluster(net, Cluster(clusters=8), context(net))
    for name, values in kernels(clustered).items():
        original = kernels(net)[name]
        for value in np.unique(values):
            assert original[values == value].mean() == pytest.approx(value, abs=2e-3)
    others = [w for w in clustered.weights if w.name != "kernel"]
    assert all(
        np.array_equal(a, b) for a, b in zip(others, [w for w in net.weights if w.name != "kernel"], strict=True)
    )


def test_training_makes_few_clusters_better(net, samples, accuracy):
    spec = Cluster(clusters=3, epochs=4)
    cut, trained = (apply_cluster(net, spec, context(net, data))[0] for data in (None, samples))
    assert accuracy(trained) > accuracy(cut) + 0.02


def test_clusters_by_layer(net):
    spec = Cluster(clusters=16, layers={"conv$": 0, "conv": 4, "hidden": 32})
    clustered, result = apply_cluster(net, spec, context(net))
    assert np.array_equal(kernels(clustered)["conv"], kernels(net)["conv"])
    found = {name: len(np.unique(values)) for name, values in kernels(clustered).items()}
    assert (found["conv_2"], found["hidden"], found["digit"]) == (4, 32, 16)
    assert {entry.layer: entry.detail for entry in result.plan if not entry.applies} == {
        "conv": "left as it is: 0 clusters",
        "norm": "it has no kernel",
    }


@pytest.mark.parametrize("with_data", [False, True])
@pytest.mark.parametrize("centroids", ["kmeans++", "density"])
def test_zeros_stay_zero(pruned, samples, with_data, centroids):
    spec = Cluster(clusters=8, centroids=centroids)
    clustered, result = apply_cluster(pruned, spec, context(pruned, samples if with_data else None))
    for name, values in kernels(clustered).items():
        assert not values[kernels(pruned)[name] == 0].any()
        assert len(np.unique(values)) <= 8
    assert {proof.wanted for proof in result.proof} == {"8 distinct values, one of them zero, and zeros kept"}
    assert all(proof.sparsity >= 0.59 for proof in result.proof)


def test_zeros_may_be_given_up(pruned):
    _, result = apply_cluster(pruned, Cluster(clusters=2, preserve_sparsity=False), context(pruned))
    assert {proof.distinct for proof in result.proof} == {2}
    assert {proof.wanted for proof in result.proof} == {"2 distinct values"}
    with pytest.raises(UsageError, match=r"'conv'.*2 clusters are too few to keep its zeros.*Fix: give 3 or more"):
        apply_cluster(pruned, Cluster(clusters=2), context(pruned))


@pytest.mark.parametrize("with_data", [False, True])
def test_per_channel(net, samples, with_data):
    spec = Cluster(clusters=4, per_channel=True)
    clustered, result = apply_cluster(net, spec, context(net, samples if with_data else None))
    values = kernels(clustered)["conv_2"]
    assert max(len(np.unique(values[..., channel])) for channel in range(16)) == 4
    assert len(np.unique(values)) > 30
    assert len(np.unique(kernels(clustered)["hidden"])) == 4
    plan = {entry.layer: entry.detail for entry in result.plan}
    assert plan["conv_2"] == "4 distinct values in each output channel"
    assert plan["hidden"] == "4 distinct values"


def test_per_channel_keeps_zeros(pruned, samples):
    spec = Cluster(clusters=3, per_channel=True, layers={"hidden|digit": 0})
    clustered, _ = apply_cluster(pruned, spec, context(pruned, samples))
    for name in ("conv", "conv_2"):
        assert not kernels(clustered)[name][kernels(pruned)[name] == 0].any()


def test_a_channel_of_zeros_is_clustered_with_the_others(pruned):
    model = clone_model(pruned)
    kernel = model.get_layer("conv_2").kernel
    kernel.assign(np.concatenate([np.asarray(kernel)[..., :-1], np.zeros((3, 3, 8, 1))], axis=-1))
    clustered, result = apply_cluster(model, Cluster(clusters=8, per_channel=True), context(pruned))
    assert len(np.unique(kernels(clustered)["conv_2"])) <= 8
    plan = {entry.layer: entry.detail for entry in result.plan}
    assert plan["conv_2"] == "8 distinct values, one of them zero, and zeros kept"


def test_a_kernel_with_hardly_any_weights_left(net, samples):
    bare, _ = apply_prune(net, Prune(sparsity=0.99), context(net))
    clustered, result = apply_cluster(bare, Cluster(clusters=16), context(net, samples))
    for name, values in kernels(clustered).items():
        assert np.count_nonzero(values) <= np.count_nonzero(kernels(bare)[name])
    assert all(proof.distinct <= 16 for proof in result.proof)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (
            Cluster(clusters=100),
            r"layer 'conv': cluster: 100 clusters, but its kernel has 72 weights. Fix: .*layers = {conv = 0}$",
        ),
        (
            Cluster(clusters=16, per_channel=True),
            r"layer 'conv': cluster: 16 clusters, but each channel of its kernel has 9 weights",
        ),
        (Cluster(clusters=4, layers={"digit": 999}), r"layer 'digit': cluster: 999 clusters, but .* 320 weights"),
        (Cluster(layers={"nothing": 4}), "cluster.layers: the pattern 'nothing' matches no layer"),
    ],
)
def test_what_cannot_be_done_is_refused(net, spec, words):
    with pytest.raises(UsageError, match=words):
        apply_cluster(net, spec, context(net))


def test_names_in_advice_are_keys_of_toml(keras):
    layers = keras.layers
    inner = keras.Sequential([keras.Input((2,)), layers.Dense(2, name="a.b")], name="inner")
    (entry,) = plan_cluster(keras.Sequential([keras.Input((2,)), inner]), Cluster(clusters=99))
    advice = entry.fix.partition("layers = ")[2]
    (pattern,) = tomllib.loads(f"layers = {advice}")["layers"]
    assert plan_cluster(keras.Sequential([keras.Input((2,)), inner]), Cluster(layers={pattern: 0}))[0].fix is None
    assert pattern == r"inner/a\.b"


def test_zeros_that_an_earlier_pass_will_leave(net, pruned):
    plan = plan_cluster(net, Cluster(clusters=8, layers={"digit": 2}), sparse={"conv", "digit"})
    after = plan_cluster(pruned, Cluster(clusters=8, layers={"digit": 2}))
    assert [entry for entry in plan if entry.layer in ("conv", "digit")] == [after[0], after[-1]]
    assert after[-1].refused
    assert {entry.layer: entry.detail for entry in plan}["hidden"] == "8 distinct values"


def test_the_plan_says_what_would_be_refused(net):
    plan = plan_cluster(net, Cluster(clusters=100, layers={"digit": 0}))
    assert [(entry.layer, entry.applies, entry.refused) for entry in plan] == [
        ("conv", False, True),
        ("norm", False, False),
        ("conv_2", True, False),
        ("hidden", True, False),
        ("digit", False, False),
    ]
    assert plan[0].fix is not None


def test_as_many_clusters_as_weights_are_allowed(net):
    clustered, _ = apply_cluster(net, Cluster(clusters=72, layers={"conv$": 72, "": 0}), context(net))
    assert np.allclose(kernels(clustered)["conv"], kernels(net)["conv"], atol=1e-6)


def test_a_kernel_of_equal_weights(net):
    model = clone_model(net)
    shape = kernels(net)["digit"].shape
    model.get_layer("digit").kernel.assign(np.full(shape, 0.5))
    clustered, _ = apply_cluster(model, Cluster(clusters=4, layers={"digit": 4, "": 0}), context(net))
    assert np.unique(kernels(clustered)["digit"]).tolist() == [0.5]


def test_nothing_to_cluster_trains_nothing(net, samples):
    same, result = apply_cluster(net, Cluster(layers={"": 0}), context(net, samples))
    assert digest(same) == digest(net)
    assert (result.proof, result.trained, result.notes) == ((), None, ())


@pytest.mark.parametrize("centroids", ["kmeans++", "random"])
def test_the_same_seed_gives_the_same_bytes(net, samples, centroids):
    spec = Cluster(clusters=6, centroids=centroids)
    first, second, other = (digest(apply_cluster(net, spec, context(net, samples, seed=seed))[0]) for seed in (1, 1, 2))
    assert first == second != other


def test_a_resumed_run_ends_as_one_that_was_never_interrupted(net, samples, tmp_path):
    class KilledError(Exception):
        pass

    def kill(step, done, _total):
        if step.startswith("cluster, epoch 3/3") and done > 3:
            raise KilledError

    spec = Cluster(clusters=6, epochs=3)
    whole, expected = apply_cluster(net, spec, context(net, samples))
    with pytest.raises(KilledError):
        apply_cluster(net, spec, context(net, samples, checkpoints=tmp_path, say=kill))
    resumed, result = apply_cluster(net, spec, context(net, samples, checkpoints=tmp_path, resume=True))
    assert result.trained.resumed_at == 3
    assert result.trained.epochs == expected.trained.epochs
    assert digest(resumed) == digest(whole)


def test_samples_that_do_not_fit_are_refused(net, samples):
    with pytest.raises(DataError, match="labels out of range"):
        apply_cluster(net, Cluster(), context(net, Dataset(samples.inputs, samples.labels + 5)))
    with pytest.raises(DataError, match=r"the loss became NaN or infinite"):
        apply_cluster(net, Cluster(), context(net, samples, training={"learning_rate": 1e30}))
