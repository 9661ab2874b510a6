"""Subclassed models as graphs, and copies of graphs; `tests/test_models.py` loads such models from files."""

import keras
import numpy as np
import pytest
from keras import layers

from edgecompress.data import InputSpec
from edgecompress.errors import ModelError
from edgecompress.functional import as_functional, clone_model, in_float32
from edgecompress.models import load_model

A = np.random.default_rng(0).normal(size=(5, 3)).astype("float32")


class Double(layers.Layer):
    """A custom layer, unknown to Keras."""

    def call(self, x):
        return x * 2


@keras.saving.register_keras_serializable(package="tests.functional")
class Triple(layers.Layer):
    """A custom layer that Keras knows."""

    def call(self, x):
        return x * 3


class Nameless(layers.Layer):
    """A custom layer whose configuration leaves its name out."""

    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.dense = layers.Dense(3)

    def build(self, shape) -> None:
        self.dense.build(shape)

    def call(self, x):
        return self.dense(x)

    def get_config(self):
        return {}


def test_given_inputs_go_before_what_a_model_was_built_for() -> None:
    class Tokens(keras.Model):
        def __init__(self) -> None:
            super().__init__(name="tokens")
            self.embedding, self.gru = layers.Embedding(9, 3), layers.GRU(2)

        def call(self, tokens):
            return self.gru(self.embedding(tokens))

    model = Tokens()
    graph = as_functional(model, [InputSpec("tokens", (None, None), "int32")])
    assert graph.inputs[0].dtype == "int32"
    tokens = np.array([[1, 2, 8]], np.int32)
    np.testing.assert_allclose(graph(tokens), model(tokens), rtol=1e-5)


def test_a_clone_has_weights_of_its_own(tmp_path) -> None:
    inner = keras.Sequential([keras.Input((3,)), layers.Dense(3, name="frozen"), Triple()], name="inner")
    inner.layers[0].trainable = False
    shared = Double()
    x = keras.Input((3,), name="x")
    model = keras.Model({"x": x}, {"y": layers.BatchNormalization()(shared(inner(shared(x)))) + x[:, :1]})
    before = model.get_weights()
    clone = clone_model(model)
    np.testing.assert_allclose(clone({"x": A})["y"], model({"x": A})["y"], rtol=1e-5)
    assert not {id(v) for v in clone.variables} & {id(v) for v in model.variables}
    assert [layer.name for layer in clone.layers] == [layer.name for layer in model.layers]
    assert not clone.get_layer("inner").layers[0].trainable
    assert len(clone.trainable_variables) == 2
    clone.set_weights([weight + 1 for weight in clone.get_weights()])
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    model.save(tmp_path / "m.keras")  # the graph of the original is whole
    load_model(tmp_path / "m.keras", custom_objects={"Double": Double})


def test_a_clone_keeps_what_a_normalization_was_adapted_to() -> None:
    norm = layers.Normalization()
    norm.adapt(10 * A + 5)
    model = keras.Sequential([keras.Input((3,)), norm, layers.Dense(2)])
    np.testing.assert_array_equal(clone_model(model)(A), model(A))


def test_a_layer_that_cannot_be_made_again_is_refused() -> None:
    class NoConfig(keras.layers.Layer):
        def __init__(self, function) -> None:
            super().__init__()
            self.function = function

        def call(self, x):
            return self.function(x)

    x = keras.Input((3,))
    with pytest.raises(ModelError, match=r"mine: cannot be copied: .*get_config"):
        clone_model(keras.Model(x, NoConfig(keras.ops.relu)(x), name="mine"))


def test_a_clone_keeps_names_that_configurations_leave_out() -> None:
    x = keras.Input((3,))
    model = keras.Model(x, Nameless(name="block")(x))
    assert [layer.name for layer in clone_model(model).layers[1:]] == ["block"]
    assert clone_model(model).get_layer("block").dense.kernel is not model.get_layer("block").dense.kernel


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float16"])
def test_a_model_that_computes_in_16_bits_is_rebuilt_in_float32(policy) -> None:
    keras.config.set_dtype_policy(policy)
    try:
        x = keras.Input((4, 3), name="x")
        inner = keras.Sequential([keras.Input((4, 3)), layers.Dense(4, name="in"), layers.BatchNormalization()])
        y = layers.Bidirectional(layers.GRU(2, return_sequences=True), name="both")(inner(x))
        y = layers.TimeDistributed(layers.Dense(4))(layers.MultiHeadAttention(2, 2)(y, y) + y)
        model = keras.Model(x, layers.Dense(2, dtype="float32", name="y")(Nameless(name="mine")(y)))
    finally:
        keras.config.set_dtype_policy("float32")
    wide = in_float32(model)
    assert {str(layer.compute_dtype) for layer in wide._flatten_layers()} == {"float32"}
    assert [layer.name for layer in wide.layers] == [layer.name for layer in model.layers]
    sample = np.random.default_rng(0).normal(size=(2, 4, 3)).astype("float32")
    np.testing.assert_allclose(wide(sample), model(sample), atol=0.05)
    assert in_float32(wide) is wide


def test_a_model_that_cannot_be_rebuilt_in_float32_is_refused() -> None:
    class Stubborn(layers.Dense):
        @classmethod
        def from_config(cls, _config):
            return cls(2, dtype="mixed_float16", name="stubborn")

    model = keras.Sequential([keras.Input((3,)), Stubborn(2, dtype="mixed_float16", name="stubborn")], name="mine")
    with pytest.raises(ModelError, match=r"mine: computes in 16 bits.*stubborn would still.*Fix: build it under"):
        in_float32(model)
