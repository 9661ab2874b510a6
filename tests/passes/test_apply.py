from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgecompress.data import fix_shapes
from edgecompress.errors import UsageError
from edgecompress.models import load_model
from edgecompress.passes import apply_passes, registry
from edgecompress.passes.base import PassContext
from edgecompress.schemes import QuantizationScheme
from edgecompress.techniques import Cluster, Fuse, Prune, Qat, Training
from edgecompress.tfmot.qat import train_quantized

PRUNE, CLUSTER = Prune(sparsity=0.6, epochs=2), Cluster(clusters=8, epochs=2)


def context(net, samples=None, **options):
    training = Training(learning_rate=1e-3)
    return PassContext(training=training, data=samples, compile_config=net.get_compile_config(), seed=1, **options)


def weights(model):
    return [np.asarray(weight).tobytes() for weight in model.weights]


def test_clustering_after_pruning_keeps_both(net, samples, accuracy):
    before = weights(net)
    model, (pruned, clustered) = apply_passes(net, [PRUNE, CLUSTER], context(net, samples))
    assert (pruned.kind, clustered.kind) == ("prune", "cluster")
    assert all(proof.sparsity >= 0.59 and proof.distinct <= 8 for proof in clustered.proof)
    assert pruned.notes == clustered.notes == ()
    assert accuracy(model) > accuracy(net) - 0.15
    assert weights(net) == before


@pytest.fixture(scope="module")
def two_heads(keras, samples):
    """A model of the digits that says the next digit, too."""
    keras.utils.set_random_seed(0)
    (name, x), y = next(iter(samples.inputs.items())), samples.labels
    image = keras.Input(x.shape[1:], name=name)
    trunk = keras.layers.Dense(32, "relu")(keras.layers.Flatten()(image))
    outputs = {key: keras.layers.Dense(10, "softmax", name=f"{key}_layer")(trunk) for key in ("digit", "next")}
    model = keras.Model(image, outputs)
    model.compile(keras.optimizers.Adam(3e-3), dict.fromkeys(outputs, "sparse_categorical_crossentropy"))
    model.fit(x, {"digit": y, "next": (y + 1) % 10}, epochs=15, verbose=0)
    return model


@pytest.mark.parametrize("kind", ["prune", "cluster", "qat"])
def test_outputs_without_labels_go_on_answering_as_before(two_heads, samples, kind):
    said = []
    shown = replace(context(two_heads, samples, say=lambda *facts: said.append(facts)), training=Training(epochs=4))
    if kind == "qat":
        source = load_model(two_heads)
        fixed, scheme = fix_shapes(source.inputs, samples), QuantizationScheme.INT8
        loaded, result = train_quantized(source, Qat(), fixed=fixed, scheme=scheme, context=shown)
        model, at = loaded.model, 1
    else:
        model, (result,) = apply_passes(two_heads, [{"prune": Prune(sparsity=0.6), "cluster": Cluster()}[kind]], shown)
        at = "next"
    x = next(iter(samples.inputs.values()))
    before, after = np.asarray(two_heads(x)["next"]), np.asarray(model(x)[at])
    assert np.mean(before.argmax(-1) == after.argmax(-1)) > 0.95
    assert result.trained.notes == ("output 'next' has no labels: it was trained to answer as before",)
    wanted = {"loss", "digit_loss", "digit_accuracy", "next_loss"}
    assert set(result.trained.epochs[0].figures) == wanted | {f"val_{name}" for name in wanted}
    assert "digit_accuracy 0." in said[-1][0]


def test_pruning_after_clustering_is_noted(net):
    _, (_, pruned) = apply_passes(net, [CLUSTER, PRUNE], context(net))
    assert pruned.notes[-1].startswith("pruned after clustering")
    assert all(proof.sparsity >= 0.59 for proof in pruned.proof)


def test_fusing_after_pruning_is_noted(keras):
    layers = keras.layers
    model = keras.Sequential([
        keras.Input((8,)), layers.Dense(16, name="dense"), layers.BatchNormalization(), layers.Dense(4)
    ])  # fmt: skip
    _, (_, fused) = apply_passes(model, [PRUNE, Fuse()], PassContext())
    assert fused.fusions
    assert "fuse first" in fused.notes[-1]
    _, (fused, _) = apply_passes(model, [Fuse(), PRUNE], PassContext())
    assert not any("fuse first" in note for note in fused.notes)


def test_no_passes_change_nothing(net):
    model, results = apply_passes(net, [], context(net))
    assert model is net
    assert results == ()


def test_each_pass_goes_on_from_checkpoints_of_its_own(net, samples, tmp_path):
    class KilledError(Exception):
        pass

    def kill(step, done, _total):
        if step.startswith("cluster, epoch 2/2") and done > 3:
            raise KilledError

    whole, _ = apply_passes(net, [PRUNE, CLUSTER], context(net, samples))
    with pytest.raises(KilledError):
        apply_passes(net, [PRUNE, CLUSTER], context(net, samples, checkpoints=tmp_path, say=kill))
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["1-prune", "2-cluster"]
    said = []
    again = context(net, samples, checkpoints=tmp_path, resume=True, say=lambda *facts: said.append(facts))
    resumed, results = apply_passes(net, [PRUNE, CLUSTER], again)
    assert results[1].trained.resumed_at == 2
    assert not [step for step, *_ in said if step.startswith("prune")], "that was done"
    assert weights(resumed) == weights(whole)


def test_a_pass_that_ends_in_a_file_is_not_applied_here(net):
    assert sorted(registry()) == ["cluster", "fuse", "low_rank", "prune"]
    with pytest.raises(
        UsageError, match="the pass 'qat' does not end in a Keras model; expected cluster, fuse, low_rank, prune"
    ):
        apply_passes(net, [Qat()], context(net))
