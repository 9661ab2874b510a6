"""The fusion pass on whole models: nested ones, MobileNetV2, mixed precision, stateful layers; files and refusals."""

import keras
import numpy as np
import pytest
from keras import layers

from edgecompress.errors import InternalError, ModelError
from edgecompress.models import load_model
from edgecompress.passes import apply_passes
from edgecompress.passes.base import PassContext
from edgecompress.passes.fuse import apply_fuse
from edgecompress.passes.fuse.apply import merge_batch_norm
from edgecompress.passes.fuse.merge import Merge
from edgecompress.techniques import Fuse

RANDOM = np.random.default_rng(3)


def test_a_trained_network_answers_as_before(digits_cnn, digits) -> None:
    model = load_model(digits_cnn.model).model
    said = []
    fused, (result,) = apply_passes(model, [Fuse()], PassContext(say=lambda *args: said.append(args)))
    _, (x, _) = digits.digits(as_rows=False)
    np.testing.assert_allclose(fused(x), model(x), atol=1e-5)
    assert [layer.name for layer in fused.layers] == ["conv", "relu", "conv_2", "pool", "digit"]
    assert [(entry.layer, entry.kind, entry.applies) for entry in result.plan] == [
        ("conv", "Conv2D", True), ("norm", "BatchNormalization", True),
    ]  # fmt: skip
    assert said == [("fuse", 0, 1), ("fuse", 1, 1)]


def test_no_batch_normalization_is_left_of_mobilenet(randomize, tmp_path) -> None:
    x = keras.Input((96, 96, 3), name="image")
    model = keras.applications.MobileNetV2(weights=None, input_tensor=x, classes=5)
    randomize(model)
    fused, result = apply_fuse(model, Fuse(), PassContext())
    norms = [layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)]
    assert len(result.fusions) == len(norms) == 52
    assert not [layer for layer in fused.layers if isinstance(layer, layers.BatchNormalization)]
    sample = [RANDOM.uniform(size=(1, 96, 96, 3)).astype("float32")]
    np.testing.assert_allclose(fused(sample), model(sample), rtol=1e-4)
    fused.save(tmp_path / "fused.keras")
    again = load_model(tmp_path / "fused.keras").model
    np.testing.assert_allclose(again(sample), fused(sample), rtol=1e-5)


def test_layers_of_nested_models_are_merged_where_they_are(fuse) -> None:
    block = keras.Sequential(
        [keras.Input((4,)), layers.Dense(4, name="dense"), layers.BatchNormalization(name="norm")], name="block"
    )
    x = keras.Input((4,), name="x")
    model = keras.Model(x, {"once": block(x), "twice": layers.ReLU()(block(block(x)))}, name="outer")
    fused, result = fuse(model, RANDOM.normal(size=(3, 4)).astype("float32"))
    (fusion,) = result.fusions
    assert (fusion.layers, fusion.into) == (("block/dense", "block/norm"), "block/norm")
    assert [layer.name for layer in fused.get_layer("block").layers] == ["norm"]
    assert fused.name == "outer"


def test_a_low_rank_model_with_an_embedding_is_saved_and_loaded(fuse, tmp_path) -> None:
    model = keras.Sequential([
        keras.Input((None,), dtype="int32", name="tokens"), layers.Embedding(9, 12, mask_zero=True),
        layers.GRU(3), layers.Dense(2),
    ])  # fmt: skip
    tokens = RANDOM.integers(0, 9, (3, 6))
    fused, _ = fuse(model, tokens)
    fused.save(tmp_path / "fused.keras")
    np.testing.assert_allclose(load_model(tmp_path / "fused.keras").model(tokens), fused(tokens), rtol=1e-5)


def test_16_bits_are_kept_and_stateful_layers_keep_what_they_remember(randomize) -> None:
    half = {"dtype": "mixed_float16"}
    x = keras.Input(batch_shape=(2, 6, 4), name="x")
    y = layers.BatchNormalization(name="norm", **half)(layers.Dense(5, name="dense", **half)(x))
    y = layers.Dense(12, name="wide", **half)(layers.ReLU(**half)(y))
    gru = layers.GRU(3, stateful=True, name="gru", **half)
    model = keras.Model(x, layers.Dense(2, dtype="float32")(gru(y)))
    randomize(model)
    gru.states[0].assign(np.full((2, 3), 0.5))
    fused, result = apply_fuse(model, Fuse(), PassContext())
    assert [fusion.how for fusion in result.fusions] == ["batch_norm", "linear"]
    assert fused.get_layer("gru").compute_dtype == "float16"
    np.testing.assert_array_equal(gru.states[0], np.full((2, 3), 0.5))
    gru.states[0].assign(np.zeros((2, 3)))
    sample = RANDOM.normal(size=(2, 6, 4)).astype("float32")
    np.testing.assert_allclose(fused(sample), model(sample), atol=0.02)


def test_merged_layers_that_answer_otherwise_are_a_fault_that_is_named(digits_cnn, monkeypatch) -> None:
    def wrong(first, second):
        outcome = merge_batch_norm(first, second)
        if isinstance(outcome, Merge):
            outcome.first.bias.assign_add(np.full(outcome.first.bias.shape, 0.1))
        return outcome

    monkeypatch.setattr("edgecompress.passes.fuse.apply.merge_batch_norm", wrong)
    model = load_model(digits_cnn.model).model
    with pytest.raises(InternalError, match=r"conv \+ norm \(batch_norm\): merged layers answer otherwise.*received"):
        apply_fuse(model, Fuse(), PassContext())
    monkeypatch.setattr("edgecompress.passes.fuse.apply.prove_fusion", lambda *_: None)
    with pytest.raises(InternalError, match=r"digits_cnn, after conv \+ norm \(batch_norm\): merged layers answer"):
        apply_fuse(model, Fuse(), PassContext())


def test_a_subclassed_model_is_merged_as_the_graph_that_it_is_or_refused() -> None:
    class Mine(keras.Model):
        def __init__(self) -> None:
            super().__init__(name="mine")
            self.dense, self.norm = layers.Dense(4), layers.BatchNormalization()

        def call(self, x):
            return keras.ops.relu(self.norm(self.dense(x)))

    with pytest.raises(ModelError, match="no fixed inputs"):
        apply_fuse(Mine(), Fuse(), PassContext())
    model = Mine()
    x = RANDOM.normal(size=(3, 4)).astype("float32")
    model(x)
    fused, result = apply_fuse(model, Fuse(), PassContext())
    assert len(result.fusions) == 1
    np.testing.assert_allclose(fused(x), model(x), rtol=1e-5)


def test_what_cannot_be_made_again_is_refused_by_name() -> None:
    class Mine(keras.initializers.Initializer):
        def __call__(self, shape, dtype=None):
            return keras.ops.ones(shape, dtype)

    dense = layers.Dense(4, kernel_initializer=Mine(), name="dense")
    model = keras.Sequential([keras.Input((4,)), dense, layers.BatchNormalization()])
    with pytest.raises(ModelError, match=r"dense: cannot be made again from its configuration.*Fix: register"):
        apply_fuse(model, Fuse(), PassContext())
