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


def apply(model, spec, settings):
    """Applies a pass of any kind; returns what it answers with, and its result."""
    if spec.kind != "qat":
        compressed, (result,) = apply_passes(model, [spec], settings)
        return compressed, result
    source = load_model(model)
    fixed, scheme = fix_shapes(source.inputs, settings.data), QuantizationScheme.INT8
    loaded, result = train_quantized(source, spec, fixed=fixed, scheme=scheme, context=settings)
    return loaded.model, result


@pytest.mark.parametrize("kind", ["prune", "cluster", "qat"])
def test_outputs_without_labels_go_on_answering_as_before(two_heads, samples, kind):
    said = []
    shown = replace(context(two_heads, samples, say=lambda *facts: said.append(facts)), training=Training(epochs=4))
    spec = {"prune": Prune(sparsity=0.6), "cluster": Cluster(), "qat": Qat()}[kind]
    model, result = apply(two_heads, spec, shown)
    x = next(iter(samples.inputs.values()))
    before, after = np.asarray(two_heads(x)["next"]), np.asarray(model(x)[1 if kind == "qat" else "next"])
    assert np.mean(before.argmax(-1) == after.argmax(-1)) > 0.95
    assert result.trained.notes == ("output 'next' has no labels: it was trained to answer as before",)
    wanted = {"loss", "digit_loss", "digit_accuracy", "next_loss"}
    assert set(result.trained.epochs[0].figures) == wanted | {f"val_{name}" for name in wanted}
    assert "digit_accuracy 0." in said[-1][0]


TAUGHT = {
    "prune": Prune(sparsity=0.6, l1=1e-6, epochs=2, distill=0.5, temperature=3.0),
    "cluster": Cluster(clusters=8, epochs=2, distill=0.5, temperature=3.0),
    "qat": Qat(epochs=2, distill=0.5, temperature=3.0),
}
WRONG = 3  # added to each label, modulo 10


@pytest.mark.parametrize("kind", TAUGHT)
def test_the_model_teaches_while_a_pass_trains(net, samples, kind):
    _, result = apply(net, TAUGHT[kind], context(net, samples))
    assert result.trained.loss == "0.5 x SparseCategoricalCrossentropy + 0.5 x distillation (KL, T = 3)"
    last = result.trained.epochs[-1].figures
    parts = 0.5 * last["digit_loss"] + 0.5 * last["distillation_loss"]
    if kind == "prune":
        assert 0 < last["loss"] - parts < 1e-2, "the L1 penalty counts, too"
        assert all(proof.sparsity >= 0.59 for proof in result.proof)
    else:
        assert last["loss"] == pytest.approx(parts, rel=1e-3)
    if kind == "cluster":
        assert all(proof.distinct <= 8 for proof in result.proof)
    assert last["accuracy"] > 0.9


@pytest.mark.parametrize("kind", TAUGHT)
def test_at_1_the_labels_do_not_matter(net, samples, kind):
    spec = TAUGHT[kind].model_copy(update={"distill": 1.0, "epochs": 1})
    settings = replace(context(net, samples), training=Training(validation=0))
    wrong = replace(samples, labels=(samples.labels + WRONG) % 10)
    right, misled = (apply(net, spec, replace(settings, data=data))[0] for data in (samples, wrong))
    assert weights(right) == weights(misled)


def test_a_checkpoint_of_another_teacher_or_lesson_is_refused(net, keras, samples, tmp_path):
    spec = Cluster(clusters=8, epochs=1, distill=0.5)
    settings = context(net, samples, checkpoints=tmp_path)
    apply_passes(net, [spec], settings)
    other = keras.models.clone_model(net)
    again = replace(settings, resume=True)
    for changed, shown in (
        (spec.model_copy(update={"distill": 0.6}), again),
        (spec.model_copy(update={"temperature": 3.0}), again),
        (spec, replace(again, teacher=other)),
    ):
        with pytest.raises(UsageError, match="of another run"):
            apply_passes(net, [changed], shown)
    assert apply_passes(net, [spec], again)[1][0].trained.resumed_at == 1


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
    assert sorted(registry()) == ["cluster", "distill", "fuse", "low_rank", "prune"]
    with pytest.raises(
        UsageError, match="the pass 'qat' does not end in a Keras model; expected cluster, distill, fuse"
    ):
        apply_passes(net, [Qat()], context(net))
