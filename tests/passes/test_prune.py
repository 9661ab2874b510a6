from __future__ import annotations

import hashlib

import numpy as np
import pytest

from edgecompress.data import Dataset
from edgecompress.errors import DataError, UsageError
from edgecompress.passes.base import PassContext
from edgecompress.passes.prune import apply_prune, plan_prune
from edgecompress.techniques import Prune, Training

KERNELS = ("conv", "conv_2", "hidden", "digit")


def context(net, samples=None, **options):
    training = Training(**{"epochs": 2, **options.pop("training", {})})
    return PassContext(
        training=training, data=samples, compile_config=net.get_compile_config(), **{"seed": 1, **options}
    )


def kernels(model):
    return {name: np.asarray(model.get_layer(name).kernel) for name in KERNELS}


def zeros(values):
    return int(np.count_nonzero(values == 0))


def digest(model):
    return hashlib.sha256(b"".join(np.asarray(weight).tobytes() for weight in model.weights)).hexdigest()


def test_one_shot_pruning_takes_the_smallest_weights_of_each_kernel(net):
    before, digest_before = kernels(net), digest(net)
    pruned, result = apply_prune(net, Prune(sparsity=0.6), context(net))
    for name, values in kernels(pruned).items():
        keep = round(before[name].size * 0.4)
        limit = np.sort(np.abs(before[name]), axis=None)[-keep]
        assert np.array_equal(values, np.where(np.abs(before[name]) >= limit, before[name], 0))
        assert zeros(values) == values.size - keep
    others = [w for w in pruned.weights if w.name != "kernel"]
    assert all(
        np.array_equal(a, b) for a, b in zip(others, [w for w in net.weights if w.name != "kernel"], strict=True)
    )
    assert digest(net) == digest_before, "the model itself is left as it is"
    assert result.trained is None
    assert "pruned at once and not trained again" in result.notes[0]
    assert [proof.layer for proof in result.proof] == list(KERNELS)
    assert {proof.wanted for proof in result.proof} == {"60 % zeros"}


@pytest.mark.parametrize(
    "spec",
    [
        Prune(sparsity=0.6),
        Prune(sparsity=0.6, initial_sparsity=0.3, begin=0.2, end=0.9),
        Prune(sparsity=0.6, begin=0.5, end=0.5),
        Prune(sparsity=0.6, schedule="constant"),
        Prune(sparsity=0.6, schedule="constant", begin=0.3),
        Prune(sparsity=0.6, criterion="sensitivity"),
        Prune(sparsity=0.6, l1=1e-4),
    ],
    ids=lambda spec: str(spec.model_dump(exclude_defaults=True)),
)
def test_each_schedule_and_criterion_reaches_the_sparsity(net, samples, accuracy, spec):
    pruned, result = apply_prune(net, spec, context(net, samples))
    for proof, values in zip(result.proof, kernels(pruned).values(), strict=True):
        assert zeros(values) == values.size - round(values.size * 0.4)
        assert proof.sparsity == zeros(values) / values.size
    assert accuracy(pruned) > accuracy(net) - 0.15
    assert result.trained.loss == "SparseCategoricalCrossentropy"
    assert result.trained.optimizer == "Adam, learning rate 0.003"
    assert result.trained.notes == ()


def test_training_recovers_what_one_shot_pruning_loses(net, samples, accuracy):
    spec = Prune(sparsity=0.75, epochs=4)
    cut, trained = (apply_prune(net, spec, context(net, data))[0] for data in (None, samples))
    assert accuracy(trained) > accuracy(cut) + 0.05
    assert accuracy(trained) > accuracy(net) - 0.1


def test_epochs_count_from_the_end_of_the_schedule_on(net, samples):
    _, result = apply_prune(net, Prune(sparsity=0.5, end=1.0, epochs=3), context(net, samples))
    assert result.trained.kept_epoch == 3
    _, result = apply_prune(net, Prune(sparsity=0.5, end=0.5, epochs=3), context(net, samples))
    assert result.trained.kept_epoch in (2, 3)


def test_sparsity_by_layer(net, samples):
    spec = Prune(sparsity=0.5, layers={"conv$": 0.0, "conv": 0.25, "hidden": 0.75})
    pruned, result = apply_prune(net, spec, context(net, samples, training={"epochs": 1}))
    shares = {name: zeros(values) / values.size for name, values in kernels(pruned).items()}
    assert shares == {"conv": 0, "conv_2": 0.25, "hidden": 0.75, "digit": 0.5}
    assert {entry.layer: entry.detail for entry in result.plan if not entry.applies} == {
        "conv": "left as it is: sparsity 0",
        "norm": "it has no kernel",
    }


@pytest.mark.parametrize(("criterion", "with_data"), [("magnitude", False), ("magnitude", True), ("sensitivity", True)])
def test_two_of_four(net, samples, criterion, with_data):
    spec = Prune(pattern="2:4", criterion=criterion, epochs=1)
    pruned, result = apply_prune(net, spec, context(net, samples if with_data else None))
    conv_2, hidden = (np.asarray(pruned.get_layer(name).kernel) for name in ("conv_2", "hidden"))
    for rows in (conv_2.transpose(3, 0, 1, 2), hidden.T):
        groups = rows.reshape(-1, 4)
        assert np.count_nonzero(groups, axis=1).max() == 2
    plan = {entry.layer: entry for entry in result.plan}
    assert not plan["conv"].applies
    assert plan["conv"].detail == "N:M needs groups of 4 input channels, this one has 1"
    assert plan["hidden"].detail == "2 zeros in each 4 weights"
    assert [proof.layer for proof in result.proof] == ["conv_2", "hidden", "digit"]


def test_one_of_eight_and_three_of_four(net):
    for pattern, most, group in (("1:8", 7, 8), ("3:4", 1, 4)):
        pruned, _ = apply_prune(net, Prune(pattern=pattern), context(net))
        groups = np.asarray(pruned.get_layer("hidden").kernel).T.reshape(-1, group)
        assert np.count_nonzero(groups, axis=1).max() == most


@pytest.mark.parametrize("pooling", ["AVG", "MAX"])
@pytest.mark.parametrize("with_data", [True, False])
def test_blocks(net, samples, pooling, with_data):
    spec = Prune(sparsity=0.5, block=(4, 2), block_pooling=pooling, epochs=1)
    pruned, result = apply_prune(net, spec, context(net, samples if with_data else None))
    hidden = np.asarray(pruned.get_layer("hidden").kernel)
    blocks = hidden.reshape(hidden.shape[0] // 4, 4, 16, 2).any(axis=(1, 3))
    assert blocks.sum() == blocks.size / 2
    assert zeros(hidden) == hidden.size / 2
    plan = {entry.layer: entry.detail for entry in result.plan}
    assert plan["hidden"] == "50 % zeros in blocks of 4 x 2"
    assert plan["conv_2"] == "blocks need a kernel of two dimensions, this one is (3, 3, 8, 16)"


def test_l1_makes_weights_small_and_needs_no_pruning(net, samples):
    spec = Prune(sparsity=0.0, l1=1e-2, epochs=2)
    small, result = apply_prune(net, spec, context(net, samples))
    sums = [sum(np.abs(values).sum() for values in kernels(model).values()) for model in (small, net)]
    assert sums[0] < 0.8 * sums[1]
    assert {proof.wanted for proof in result.proof} == {"L1 penalty only"}
    assert result.plan[0].detail == "not pruned (sparsity 0); L1 penalty while training"


def test_equal_weights_are_pruned_too(net):
    from edgecompress.functional import clone_model

    model = clone_model(net)
    model.get_layer("hidden").kernel.assign(np.ones_like(kernels(net)["hidden"]))
    pruned, _ = apply_prune(model, Prune(sparsity=0.7, layers={"hidden": 0.7, "": 0.0}), context(net))
    values = kernels(pruned)["hidden"]
    assert zeros(values) == values.size - round(values.size * 0.3)


def test_a_weight_is_left_in_each_kernel(net):
    pruned, _ = apply_prune(net, Prune(sparsity=0.9999), context(net))
    assert {np.count_nonzero(values) for values in kernels(pruned).values()} == {1}


def test_the_same_seed_gives_the_same_bytes(net, samples):
    spec = Prune(sparsity=0.5, epochs=1)
    first, second, other = (digest(apply_prune(net, spec, context(net, samples, seed=seed))[0]) for seed in (1, 1, 2))
    assert first == second != other


@pytest.mark.parametrize(
    "spec", [Prune(sparsity=0.7, epochs=3), Prune(sparsity=0.7, epochs=3, criterion="sensitivity")]
)
def test_a_resumed_run_ends_as_one_that_was_never_interrupted(net, samples, tmp_path, spec):
    class KilledError(Exception):
        pass

    def kill(step, done, _total):
        if step.startswith("prune, epoch 3/3") and done > 3:
            raise KilledError

    whole, expected = apply_prune(net, spec, context(net, samples))
    with pytest.raises(KilledError):
        apply_prune(net, spec, context(net, samples, checkpoints=tmp_path, say=kill))
    resumed, result = apply_prune(net, spec, context(net, samples, checkpoints=tmp_path, resume=True))
    assert result.trained.resumed_at == 3
    assert result.trained.epochs == expected.trained.epochs
    assert digest(resumed) == digest(whole)
    other = spec.model_copy(update={"sparsity": 0.6})
    with pytest.raises(UsageError, match="of another run"):
        apply_prune(net, other, context(net, samples, checkpoints=tmp_path, resume=True))


def test_nothing_to_prune_trains_nothing(net, samples):
    same, result = apply_prune(net, Prune(sparsity=0.0), context(net, samples))
    assert digest(same) == digest(net)
    assert (result.proof, result.trained, result.notes) == ((), None, ())


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (Prune(layers={"convv": 0.5}), r"prune.layers: the pattern 'convv' matches no layer"),
        (Prune(criterion="sensitivity"), r"criterion = 'sensitivity' needs training samples. Fix: pass --train"),
        (Prune(l1=1e-4), "l1 needs training samples"),
    ],
)
def test_what_cannot_be_done_is_refused(net, spec, words):
    with pytest.raises(UsageError, match=words):
        apply_prune(net, spec, context(net))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x, y: (x[:, :4], y), "the training samples do not fit the model"),
        (lambda x, y: (x, y + 5), "labels out of range; expected 0 to 9"),
        (lambda x, _y: (x, None), "needs samples with labels"),
        (lambda x, _y: (x, np.zeros((len(x), 3))), "the labels fit no output"),
    ],
)
def test_samples_that_do_not_fit_are_refused(net, samples, change, words):
    x, y = change(samples.inputs["image"], samples.labels)
    with pytest.raises(DataError, match=words):
        apply_prune(net, Prune(), context(net, Dataset({"image": x}, y)))


def test_a_learning_rate_that_breaks_the_model_is_refused(net, samples):
    with pytest.raises(DataError, match=r"the loss became NaN or infinite.*Fix: lower --learning-rate"):
        apply_prune(net, Prune(), context(net, samples, training={"learning_rate": 1e30}))


def test_the_plan_is_known_without_training(net):
    plan = plan_prune(net, Prune(sparsity=0.7, layers={"digit": 0}))
    assert [(entry.layer, entry.kind, entry.applies, entry.detail) for entry in plan] == [
        ("conv", "Conv2D", True, "70 % zeros"),
        ("norm", "BatchNormalization", False, "it has no kernel"),
        ("conv_2", "Conv2D", True, "70 % zeros"),
        ("hidden", "Dense", True, "70 % zeros"),
        ("digit", "Dense", False, "left as it is: sparsity 0"),
    ]


def test_depthwise_kernels_are_left_alone_with_the_reason(keras):
    model = keras.Sequential([keras.Input((4, 4, 2)), keras.layers.DepthwiseConv2D(2, name="deep")])
    (entry,) = plan_prune(model, Prune())
    assert not entry.applies
    assert "few weights" in entry.detail
