"""Every layer type is trained with quantization for an epoch on real digits, and its int8 file answers the same."""

from collections.abc import Callable

import keras
import numpy as np
import pytest
from keras import layers, ops

from edgecompress.layers import FactorizedDense, LowRankDense

IMAGE, ROWS, PIXELS = (8, 8, 1), (8, 8), (64,)


def functional(shape: tuple[int, ...], body: Callable, dtype: str = "float32") -> Callable[[], keras.Model]:
    """A classifier of digits with `body` before its last layer."""

    def make() -> keras.Model:
        image = keras.Input(shape, dtype=dtype, name="digit")
        x = layers.Flatten()(body(image))
        return keras.Model(image, layers.Dense(10, activation="softmax", name="answer")(x))

    return make


def conv(filters: int = 8, **options: object) -> layers.Layer:
    return layers.Conv2D(filters, 3, padding="same", **options)


def two_branches(merge: layers.Layer) -> Callable:
    return lambda x: merge([conv(activation="relu")(x), conv()(x)])


def attention(x: object) -> object:
    x = layers.Dense(16)(x)
    x = layers.Add()([x, layers.MultiHeadAttention(2, 8)(x, x)])
    return layers.LayerNormalization()(x)


def squeeze_and_excite(x: object) -> object:
    x = conv(activation="relu")(x)
    weights = layers.Dense(8, activation="sigmoid")(layers.GlobalAveragePooling2D()(x))
    return layers.Multiply()([x, layers.Reshape((1, 1, 8))(weights)])


def nested(x: object) -> object:
    inside = keras.Input(IMAGE)
    model = keras.Model(inside, layers.Conv2D(4, 3, activation="relu", name="inner")(inside), name="nested")
    return layers.Add()([model(x), model(layers.ZeroPadding2D(1)(layers.Cropping2D(1)(x)))])


def twice(x: object) -> object:
    shared = conv()
    x = conv(activation="relu")(x)
    return layers.Add()([layers.ReLU()(shared(x)), shared(layers.AveragePooling2D(2, 1, padding="same")(x))])


def prelu() -> layers.Layer:
    return layers.PReLU(shared_axes=[1, 2], alpha_initializer=keras.initializers.Constant(0.2))


LAYERS = {
    "Conv1D": (ROWS, lambda x: layers.Conv1D(16, 3, padding="causal", activation="relu")(x)),
    "Conv1D strided": (ROWS, lambda x: layers.Conv1D(16, 3, strides=2, padding="same", activation="tanh")(x)),
    "SeparableConv1D": (ROWS, lambda x: layers.SeparableConv1D(16, 3, activation="relu")(layers.Conv1D(8, 3)(x))),
    "Conv2D": (IMAGE, lambda x: conv(activation="relu")(x)),
    "Conv2D dilated": (IMAGE, lambda x: conv(dilation_rate=2, activation="relu")(conv()(x))),
    "DepthwiseConv2D": (IMAGE, lambda x: layers.DepthwiseConv2D(3, depth_multiplier=2)(conv(activation="relu")(x))),
    "SeparableConv2D": (IMAGE, lambda x: layers.SeparableConv2D(16, 3, activation="relu")(conv()(x))),
    "Conv2DTranspose": (IMAGE, lambda x: layers.Conv2DTranspose(8, 3, strides=2, activation="relu")(conv()(x))),
    "Conv1DTranspose": (ROWS, lambda x: layers.Conv1DTranspose(8, 3, strides=2)(layers.Conv1D(8, 3)(x))),
    "Dense": (PIXELS, lambda x: layers.Dense(32, activation="relu")(x)),
    "Dense of a sequence": (ROWS, lambda x: layers.Dense(16, activation="relu")(x)),
    "LowRankDense": (PIXELS, lambda x: LowRankDense(32, 8, "relu")(x)),
    "LowRankDense of a sequence": (ROWS, lambda x: LowRankDense(16, 4, use_bias=False)(x)),
    "FactorizedDense": (PIXELS, lambda x: FactorizedDense(32, 8, 0.1, "relu", seed=0)(x)),
    "EinsumDense": (ROWS, lambda x: layers.EinsumDense("abc,cde->abde", (8, 4, 6), bias_axes="de")(x)),
    "EinsumDense over steps": (ROWS, lambda x: layers.EinsumDense("abc,bd->adc", (6, 8), bias_axes="d")(x)),
    "EinsumDense with dots": (ROWS, lambda x: layers.EinsumDense("...x,xy->...y", 12, bias_axes="y")(x)),
    "MultiHeadAttention": (ROWS, attention),
    "LayerNormalization": (ROWS, lambda x: layers.LayerNormalization()(layers.Dense(16)(x))),
    "RMSNormalization": (ROWS, lambda x: layers.RMSNormalization()(layers.Dense(16)(x))),
    "UnitNormalization": (ROWS, lambda x: layers.UnitNormalization()(layers.Dense(16)(x))),
    "BatchNormalization first": (IMAGE, lambda x: conv(activation="relu")(layers.BatchNormalization(momentum=0.8)(x))),
    "Conv, BatchNormalization, ReLU": (
        IMAGE, lambda x: layers.ReLU()(layers.BatchNormalization(momentum=0.8)(conv(use_bias=False)(x))),
    ),
    "Conv, ReLU, BatchNormalization": (
        IMAGE, lambda x: layers.BatchNormalization(momentum=0.8)(conv(activation="relu")(x)),
    ),
    "Dense, BatchNormalization, ReLU": (
        PIXELS, lambda x: layers.ReLU()(layers.BatchNormalization(momentum=0.8)(layers.Dense(32)(x))),
    ),
    "Conv1D, BatchNormalization, ReLU": (
        ROWS, lambda x: layers.ReLU()(layers.BatchNormalization(momentum=0.8)(layers.Conv1D(16, 3)(x))),
    ),
    "Add": (IMAGE, two_branches(layers.Add())),
    "Subtract": (IMAGE, two_branches(layers.Subtract())),
    "Multiply": (IMAGE, two_branches(layers.Multiply())),
    "Average": (IMAGE, two_branches(layers.Average())),
    "Maximum": (IMAGE, two_branches(layers.Maximum())),
    "Minimum": (IMAGE, two_branches(layers.Minimum())),
    "Concatenate": (IMAGE, two_branches(layers.Concatenate())),
    "MaxPooling2D": (IMAGE, lambda x: layers.MaxPooling2D(2)(conv(16, activation="relu")(x))),
    "AveragePooling2D": (IMAGE, lambda x: layers.AveragePooling2D(2)(conv(16, activation="relu")(x))),
    "MaxPooling1D": (ROWS, lambda x: layers.MaxPooling1D(2)(layers.Conv1D(32, 3, activation="relu")(x))),
    "AveragePooling1D": (ROWS, lambda x: layers.AveragePooling1D(2)(layers.Conv1D(32, 3, activation="relu")(x))),
    "GlobalAveragePooling2D": (IMAGE, lambda x: layers.GlobalAveragePooling2D()(conv(32, activation="relu")(x))),
    "GlobalMaxPooling2D": (IMAGE, lambda x: layers.GlobalMaxPooling2D()(conv(32, activation="relu")(x))),
    "GlobalAveragePooling1D": (ROWS, lambda x: layers.GlobalAveragePooling1D()(layers.Conv1D(64, 3)(x))),
    "GlobalMaxPooling1D": (ROWS, lambda x: layers.GlobalMaxPooling1D()(layers.Conv1D(64, 3)(x))),
    "UpSampling2D": (IMAGE, lambda x: layers.UpSampling2D(2)(conv(activation="relu")(x))),
    "UpSampling2D bilinear": (IMAGE, lambda x: layers.UpSampling2D(2, interpolation="bilinear")(conv()(x))),
    "UpSampling1D": (ROWS, lambda x: layers.UpSampling1D(2)(layers.Conv1D(16, 3)(x))),
    "ZeroPadding2D": (IMAGE, lambda x: layers.ZeroPadding2D(1)(conv()(x))),
    "Cropping2D": (IMAGE, lambda x: layers.Cropping2D(1)(conv()(x))),
    "ZeroPadding1D": (ROWS, lambda x: layers.ZeroPadding1D(1)(layers.Conv1D(16, 3)(x))),
    "Cropping1D": (ROWS, lambda x: layers.Cropping1D(1)(layers.Conv1D(16, 3)(x))),
    "Rescaling and Normalization": (
        IMAGE, lambda x: conv()(layers.Normalization(mean=0.6, variance=0.4)(layers.Rescaling(2.0)(x))),
    ),
    "TimeDistributed": (ROWS, lambda x: layers.TimeDistributed(layers.Dense(16, activation="relu"))(x)),
    "TimeDistributed convolution": (
        ROWS, lambda x: layers.TimeDistributed(layers.Conv1D(8, 3, activation="relu"))(layers.Reshape((4, 8, 2))(x)),
    ),
    "Permute, RepeatVector, Reshape": (
        ROWS, lambda x: layers.Permute((2, 1))(layers.Reshape((8, 16))(layers.RepeatVector(2)(layers.Flatten()(x)))),
    ),
    "squeeze and excite": (IMAGE, squeeze_and_excite),
    "a layer called twice, before a ReLU and not": (IMAGE, twice),
    "a nested model called twice": (IMAGE, nested),
    "PReLU": (IMAGE, lambda x: prelu()(conv()(x))),
    "ELU": (IMAGE, lambda x: layers.ELU(0.7)(conv()(x))),
    "LeakyReLU": (IMAGE, lambda x: layers.LeakyReLU(0.1)(conv()(x))),
    "ReLU with a bound": (IMAGE, lambda x: layers.ReLU(max_value=2)(conv()(x))),
    "Softmax over channels": (IMAGE, lambda x: layers.Softmax(axis=1)(conv()(x))),
    "operators": (IMAGE, lambda x: (conv(activation="relu")(x)[:, 1:7, :, ::2] * 2.0 + 0.5 - x[:, 1:7]) / 1.5),
    "keras.ops": (
        IMAGE,
        lambda x: ops.concatenate([ops.max(conv()(x), 1), ops.repeat(ops.sum(x, 2), 8, 2), ops.mean(conv()(x), 2)], 1),
    ),
    "keras.ops.sqrt": (IMAGE, lambda x: ops.sqrt(ops.abs(conv()(x)) * 8 + ops.square(x) + 0.1)),
    "keras.ops.matmul": (ROWS, lambda x: ops.matmul(layers.Dense(8)(x), ops.transpose(x, (0, 2, 1)))),
    "a constant for each step": (
        ROWS, lambda x: layers.Dense(16)(x) + np.linspace(-1, 1, 128, dtype=np.float32).reshape(8, 16),
    ),
}  # fmt: skip
ACTIVATIONS = (
    "relu", "relu6", "leaky_relu", "elu", "selu", "sigmoid", "hard_sigmoid", "tanh", "silu", "hard_silu", "gelu",
    "softmax", "softplus", "softsign", "mish",
)  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_layer(name: str, trained_quantized) -> None:
    shape, body = LAYERS[name]
    found = trained_quantized(functional(shape, body)())
    assert found.agreement >= 0.99
    assert found.artifact.float_ops == ()
    assert found.float_boundaries == {"QUANTIZE": 1, "DEQUANTIZE": 1}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation(name: str, trained_quantized) -> None:
    found = trained_quantized(functional(IMAGE, lambda x: layers.Activation(name)(conv()(x)))())
    assert found.agreement >= 0.99
    assert found.artifact.float_ops == ()
    assert found.float_boundaries == {"QUANTIZE": 1, "DEQUANTIZE": 1}


@pytest.mark.parametrize("dtype", ["int32", "float32"])
def test_embedding(dtype: str, trained_quantized) -> None:
    """Tokens have no scale, whatever type they come in; as floats they pass a CAST."""
    model = functional(PIXELS, layers.Embedding(17, 8), dtype)()
    found = trained_quantized(model)
    assert found.agreement >= 0.99
    assert {op.name for op in found.artifact.float_ops} == ({"CAST"} if dtype == "float32" else set())
    assert found.artifact.op_counts["GATHER"] == 1
    assert found.float_boundaries == {"DEQUANTIZE": 1}


def test_pixels_as_integers(trained_quantized) -> None:
    """They become floats once, at the border of the file."""

    def body(x):
        return conv(activation="relu")(layers.Rescaling(1 / 16)(x))

    found = trained_quantized(functional(IMAGE, body, "uint8")())
    assert found.agreement >= 0.99
    assert [op.name for op in found.artifact.float_ops] == ["CAST"]
    assert found.float_boundaries == {"QUANTIZE": 1, "DEQUANTIZE": 1}


def test_a_mixed_precision_model(trained_quantized) -> None:
    def body(x):
        return layers.MaxPooling2D(2, dtype="mixed_float16")(conv(16, activation="relu", dtype="mixed_float16")(x))

    found = trained_quantized(functional(IMAGE, body)())
    assert found.agreement >= 0.99
    assert found.artifact.float_ops == ()


def constants_in_merges(x: object) -> object:
    x = layers.Add()([conv()(x), np.full((1, 8, 8, 8), 0.5, np.float32)])
    return layers.Multiply()([x, np.linspace(0.5, 1.5, 8, dtype=np.float32).reshape(1, 1, 1, 8)])


def dead_channels(x: object) -> object:
    """Channels that a normalization has set to a constant."""
    some = keras.initializers.Constant([0.0, 1e-8, -1e-6, 0, 1, 1, 1, 1])
    y = layers.BatchNormalization(gamma_initializer=some, beta_initializer="ones")(conv(use_bias=False)(x))
    return layers.Add()([y, conv()(x)])


def one_large_step(x: object) -> object:
    sizes = np.ones((8, 1), np.float32)
    sizes[3] = 10
    return layers.LayerNormalization()(layers.Dense(16)(x) * sizes)


def two_lookups(x: object) -> object:
    return layers.Concatenate()([layers.Embedding(17, 4)(x), layers.Embedding(17, 4)(x)])


HARD = {
    "constants in merges": (IMAGE, constants_in_merges),
    "dead channels": (IMAGE, dead_channels),
    "a step much larger than the others": (ROWS, one_large_step),
    "patches without variance": (
        IMAGE, lambda x: layers.LayerNormalization(epsilon=1e-6)(layers.Conv2D(16, 2, 2, use_bias=False)(x)),
    ),
    "the logarithm of small numbers": (IMAGE, lambda x: ops.log(conv(activation="relu")(x) + 1e-3)),
    "a bound outside of the range": (IMAGE, lambda x: ops.minimum(layers.ReLU()(conv()(x)), -1.0) + conv()(x)),
    "flip": (IMAGE, lambda x: conv(activation="relu")(ops.flip(x, 2))),
    "unstack": (ROWS, lambda x: ops.stack(ops.unstack(layers.Dense(16)(x), axis=1)[::-1], axis=1)),
    "split": (ROWS, lambda x: layers.Add()(ops.split(layers.Dense(16)(x), 2, axis=-1))),
    "pad": (IMAGE, lambda x: ops.pad(conv()(x), ((0, 0), (1, 1), (0, 0), (0, 0)))),
    "TimeDistributed model": (
        ROWS, lambda x: layers.TimeDistributed(
            keras.Sequential([keras.Input((8, 1)), layers.Conv1D(4, 3, activation="relu"), layers.Flatten()])
        )(layers.Reshape((8, 8, 1))(x)),
    ),
    "a layer called by the name of its argument": (IMAGE, lambda x: layers.Dropout(0.1)(inputs=conv()(inputs=x))),
}  # fmt: skip


@pytest.mark.parametrize("name", HARD)
def test_what_is_easy_to_get_wrong(name: str, trained_quantized) -> None:
    shape, body = HARD[name]
    found = trained_quantized(functional(shape, body)())
    assert found.agreement >= 0.99
    assert found.artifact.float_ops == ()
    assert found.float_boundaries == {"QUANTIZE": 1, "DEQUANTIZE": 1}


def test_two_embeddings_joined(trained_quantized) -> None:
    found = trained_quantized(functional(PIXELS, two_lookups, "int32")())
    assert found.agreement >= 0.99
    assert found.artifact.float_ops == ()
