from __future__ import annotations

import numpy as np
import pytest

from edgecompress.errors import UsageError
from edgecompress.functional import clone_model
from edgecompress.passes.cluster import plan_cluster
from edgecompress.passes.kernels import Found, find_layers, find_layers_of, kernels_of, layer_names, refuse_unmatched
from edgecompress.passes.prune import plan_prune
from edgecompress.techniques import Cluster, Prune


def built(layer, *shape):
    layer(np.zeros((1, *shape), np.float32))
    return layer


def paths(layer):
    return [kernel.path for kernel in kernels_of(layer)]


def test_the_kernels_of_plain_layers(keras):
    layers = keras.layers
    assert paths(built(layers.Dense(3), 4)) == ["kernel"]
    assert paths(built(layers.EinsumDense("ab,bc->ac", 3), 4)) == ["kernel"]
    for kind in (layers.Conv2D, layers.Conv2DTranspose):
        assert paths(built(kind(3, 2), 5, 5, 2)) == ["kernel"]
    assert paths(built(layers.SeparableConv2D(3, 2), 5, 5, 2)) == ["pointwise_kernel"]
    assert paths(built(layers.DepthwiseConv2D(3), 5, 5, 2)) == []
    assert paths(built(layers.Embedding(9, 4), 3)) == ["embeddings"]
    for layer in (layers.BatchNormalization(), layers.PReLU(), layers.LayerNormalization()):
        assert paths(built(layer, 4)) == []


def test_the_kernels_of_layers_inside_layers(keras):
    layers = keras.layers
    assert paths(built(layers.GRU(3), 4, 2)) == ["cell.kernel", "cell.recurrent_kernel"]
    assert paths(built(layers.RNN([layers.LSTMCell(3), layers.GRUCell(2)]), 4, 2)) == [
        "cell.cells.0.kernel",
        "cell.cells.0.recurrent_kernel",
        "cell.cells.1.kernel",
        "cell.cells.1.recurrent_kernel",
    ]
    assert paths(built(layers.Bidirectional(layers.SimpleRNN(3)), 4, 2)) == [
        f"{side}_layer.cell.{kind}" for side in ("forward", "backward") for kind in ("kernel", "recurrent_kernel")
    ]
    assert paths(built(layers.TimeDistributed(layers.Dense(3)), 4, 2)) == ["layer.kernel"]
    attention = layers.MultiHeadAttention(2, 3)
    attention(np.zeros((1, 4, 6)), np.zeros((1, 4, 6)))
    assert paths(attention) == [f"_{name}_dense.kernel" for name in ("query", "key", "value", "output")]


def test_a_custom_layer_says_what_its_kernels_are_or_calls_them_as_keras_does(keras):
    class Plain(keras.layers.Layer):
        def build(self, shape):
            self.bias = self.add_weight(shape=(3,), name="bias")
            self.kernel = self.add_weight(shape=(shape[-1], 3), name="w")

        def call(self, x):
            return x @ self.kernel + self.bias

    class Deep(keras.layers.Layer):
        def build(self, shape):
            self.first, self.norm = keras.layers.Dense(3, name="first"), keras.layers.BatchNormalization()
            self.second = keras.layers.Dense(2, name="second")
            for layer, width in ((self.first, shape[-1]), (self.norm, 3), (self.second, 3)):
                layer.build((None, width))

        def call(self, x):
            return self.second(self.norm(self.first(x)))

    class Says(Plain):
        def get_prunable_weights(self):
            return [self.bias]

    plain = built(Plain(), 4)
    assert [kernel.variable for kernel in kernels_of(plain)] == [plain.kernel]
    deep = built(Deep(), 4)
    assert [kernel.variable for kernel in kernels_of(deep)] == [deep.first.kernel, deep.second.kernel]
    assert [kernel.title for kernel in kernels_of(deep)] == ["first/kernel", "second/kernel"]
    says = built(Says(), 4)
    assert [Found("mine", layer, kernels_of(layer)).fix for layer in (plain, deep, says)] == [None] * 3
    assert [kernel.variable for kernel in kernels_of(says)] == [says.bias]


def test_a_custom_layer_whose_weights_have_names_of_their_own_gets_advice(keras):
    class Own(keras.layers.Layer):
        def build(self, shape):
            self.table = self.add_weight(shape=(shape[-1], 3), name="table")

        def call(self, x):
            return x @ self.table

    class Silent(Own):
        def get_prunable_weights(self):
            return []

    class Scale(keras.layers.Layer):
        def build(self, shape):
            self.scale = self.add_weight(shape=(shape[-1],), name="scale")

        def call(self, x):
            return x * self.scale

    model = keras.Sequential([keras.Input((4,)), Own(), Silent(), Scale(), keras.layers.BatchNormalization()])
    advice = "define get_prunable_weights() on it, which returns the weights to compress"
    assert [found.fix for found in find_layers(model)] == [advice, None, None, None]
    for plan in (plan_prune(model, Prune()), plan_cluster(model, Cluster())):
        assert [entry.fix for entry in plan] == [advice, None, None, None]


def test_layers_of_nested_models_are_found_once_and_named_by_their_path(keras):
    inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, name="in")], name="outer")
    x = keras.Input((4,))
    shared = keras.layers.Dense(4, name="shared")
    y = keras.layers.ReLU(name="relu")(shared(inner(inner(shared(x)))))
    model = keras.Model(x, keras.layers.BatchNormalization(name="norm")(y))
    assert layer_names(model) == ("shared", "outer/in", "relu", "norm")
    found = find_layers(model)
    assert [(layer.name, layer.kind, len(layer.kernels)) for layer in found] == [
        ("shared", "Dense", 1), ("outer/in", "Dense", 1), ("norm", "BatchNormalization", 0)
    ]  # fmt: skip
    assert found[0].label(found[0].kernels[0]) == "shared"
    assert found[0].kernels[0].shape == (4, 4)


def test_layers_of_a_copy_have_the_names_in_the_model(keras):
    class Nameless(keras.layers.Dense):
        def get_config(self):
            return {"units": self.units}

    model = keras.Sequential([keras.Input((4,)), Nameless(3, name="mine")])
    assert [found.name for found in find_layers_of(clone_model(model), model)] == ["mine"]


def test_a_pattern_that_matches_nothing_is_refused(net):
    refuse_unmatched(net, {"conv": 0.5, ".*it$": 0}, "prune.layers")
    with pytest.raises(UsageError, match=r"prune.layers: the pattern 'hiden' matches no layer.*did you mean 'hidden'"):
        refuse_unmatched(net, {"conv": 0.5, "hiden": 0.5}, "prune.layers")
