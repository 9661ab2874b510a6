"""Each kind of layer is pruned and clustered, at once and with training; TFMOT itself refuses most of these."""

from __future__ import annotations

import numpy as np
import pytest

from edgecompress.data import Dataset
from edgecompress.passes.base import PassContext
from edgecompress.passes.cluster import apply_cluster
from edgecompress.passes.kernels import find_layers
from edgecompress.passes.prune import apply_prune
from edgecompress.techniques import Cluster, Prune, Training

SAMPLES = 48


def sequence(keras, *layers, shape=(6, 8), dtype="float32"):
    return keras.Sequential([keras.Input(shape, dtype=dtype, name="x"), *layers, keras.layers.Dense(3, name="end")])


def attention(keras):
    x = keras.Input((6, 8), name="x")
    y = keras.layers.MultiHeadAttention(2, 4, name="attention")(x, x, use_causal_mask=True)
    z = keras.layers.GroupQueryAttention(4, 2, 2, name="grouped")(y, y, x)
    return keras.Model(x, keras.layers.Dense(3, name="end")(keras.layers.GlobalAveragePooling1D()(z)))


def shared(keras):
    x, again = keras.Input((8,), name="x"), keras.layers.Dense(8, activation="relu", name="again")
    return keras.Model(x, keras.layers.Dense(3, name="end")(again(again(x)) + again(x * 2)))


def nested(keras):
    inner = keras.Sequential([keras.Input((8,)), keras.layers.Dense(8, name="in")], name="outer")
    x = keras.Input((8,), name="x")
    return keras.Model(x, keras.layers.Dense(3, name="end")(inner(x)))


def custom(keras):
    class Block(keras.layers.Layer):
        """A layer made of layers, which tf_keras knows nothing of."""

        def build(self, shape):
            self.first, self.norm = keras.layers.Dense(8, name="first"), keras.layers.BatchNormalization()
            self.second = keras.layers.Dense(8, activation="tanh", name="second")
            for layer in (self.first, self.norm, self.second):
                layer.build((*shape[:-1], 8))

        def call(self, x, training=None):
            return self.second(self.norm(self.first(x), training=training))

    class Own(keras.layers.Dense):
        """A subclass, which TFMOT's registries do not know."""

    return sequence(keras, Block(name="block"), Own(8, name="own"), shape=(8,))


def frozen(keras):
    model = sequence(keras, keras.layers.Dense(8, name="frozen"), shape=(8,))
    model.get_layer("frozen").trainable = False
    return model


def mixed(keras):
    layers = [keras.layers.Conv2D(8, 3, dtype="mixed_float16", name="half"), keras.layers.Flatten(dtype="float32")]
    return sequence(keras, *layers, shape=(6, 6, 2))


KINDS = {
    "dense": lambda k: sequence(k, k.layers.EinsumDense("abc,cd->abd", (6, 5)), k.layers.Flatten()),
    "conv 1-D": lambda k: sequence(k, k.layers.Conv1D(8, 3), k.layers.SeparableConv1D(8, 2), k.layers.Flatten()),
    "conv 2-D": lambda k: sequence(
        k,
        k.layers.Conv2D(8, 3),
        k.layers.DepthwiseConv2D(2),
        k.layers.SeparableConv2D(8, 2),
        k.layers.Conv2DTranspose(8, 2),
        k.layers.Flatten(),
        shape=(6, 6, 4),
    ),
    "conv 3-D": lambda k: sequence(k, k.layers.Conv3D(8, 2), k.layers.Flatten(), shape=(4, 4, 4, 2)),
    "masked": lambda k: sequence(
        k,
        k.layers.Embedding(20, 8, mask_zero=True),
        k.layers.Dense(8),
        k.layers.LSTM(8),
        shape=(4,),
        dtype="int32",
    ),
    "recurrent": lambda k: sequence(
        k,
        k.layers.Bidirectional(k.layers.SimpleRNN(8, return_sequences=True)),
        k.layers.TimeDistributed(k.layers.Dense(4)),
        k.layers.RNN([k.layers.GRUCell(8), k.layers.GRUCell(8)]),
    ),
    "convolutional LSTM": lambda k: sequence(k, k.layers.ConvLSTM2D(4, 2), k.layers.Flatten(), shape=(3, 5, 5, 4)),
    "attention": attention,
    "shared": shared,
    "nested": nested,
    "custom": custom,
    "frozen": frozen,
    "mixed precision": mixed,
}
PASSES = {
    "prune": (apply_prune, Prune(sparsity=0.5)),
    "sensitivity": (apply_prune, Prune(sparsity=0.5, criterion="sensitivity")),
    "cluster": (apply_cluster, Cluster(clusters=4)),
}


def samples_for(model):
    rng = np.random.default_rng(0)
    (tensor,) = model.inputs
    shape = (SAMPLES, *tensor.shape[1:])
    x = rng.integers(0, 20, shape) if tensor.dtype == "int32" else rng.normal(size=shape)
    return Dataset({"x": x.astype(tensor.dtype)}, np.arange(SAMPLES) % 3)


@pytest.mark.filterwarnings("ignore:.*does not support masking:UserWarning")
@pytest.mark.filterwarnings("ignore:.*destroyed mask information:UserWarning")
@pytest.mark.filterwarnings("ignore:.*does not have a `build:UserWarning")
@pytest.mark.parametrize(
    ("kind", "technique"),
    [
        *((kind, technique) for kind in KINDS for technique in ("prune", "cluster")),
        *((kind, "sensitivity") for kind in ("conv 2-D", "attention", "custom")),
    ],
)
def test_every_kernel_is_reached(keras, kind, technique):
    keras.utils.set_random_seed(0)
    model = KINDS[kind](keras)
    apply, spec = PASSES[technique]
    before = {weight.path: np.asarray(weight) for weight in model.weights}
    wanted = sum(len(found.kernels) for found in find_layers(model))
    data = samples_for(model)
    for given in (data,) if technique == "sensitivity" else (None, data):
        compressed, result = apply(model, spec, PassContext(training=Training(epochs=1), data=given))
        assert len(result.proof) == wanted > 1
        for found in find_layers(compressed):
            for kernel in found.kernels:
                values = kernel.values
                if technique == "cluster":
                    assert len(np.unique(values)) <= 4
                else:
                    assert np.count_nonzero(values) <= values.size / 2 + 0.5
        left = sum(np.array_equal(old, new) for old, new in zip(before.values(), compressed.weights, strict=True))
        # All else is trained, too, except biases of frozen layers; without samples nothing else moves.
        assert left == (len(before) - wanted if given is None else kind == "frozen")
    assert all(np.array_equal(before[weight.path], weight) for weight in model.weights)
