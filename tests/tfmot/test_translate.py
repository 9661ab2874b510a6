"""Counterparts: each layer of Keras that tf_keras has, too, answers the same there, and survives being cloned."""

import numpy as np
import pytest

from edgecompress.errors import ConversionError
from edgecompress.tfmot import translate
from edgecompress.tfmot.adapter import is_whole
from edgecompress.tfmot.bridge import cross
from edgecompress.tfmot.translate import NoCounterpartError, counterpart, pair_weights

keras = pytest.importorskip("keras")
tf_keras = pytest.importorskip("tf_keras")

L = keras.layers
RNG = np.random.default_rng(0)

SEQUENCES = {
    "Conv1D": {"filters": 3, "kernel_size": 3, "padding": "causal", "dilation_rate": 2},
    "Conv1DTranspose": {"filters": 3, "kernel_size": 3, "strides": 2, "padding": "same"},
    "SeparableConv1D": {"filters": 4, "kernel_size": 3, "depth_multiplier": 2, "activation": "relu"},
    "DepthwiseConv1D": {"kernel_size": 3, "depth_multiplier": 2, "strides": 2},
    "ZeroPadding1D": {"padding": (1, 2)}, "Cropping1D": {"cropping": (1, 2)}, "UpSampling1D": {"size": 2},
    "AveragePooling1D": {"pool_size": 3, "strides": 2, "padding": "same"}, "MaxPooling1D": {},
    "GlobalAveragePooling1D": {"keepdims": True}, "GlobalMaxPooling1D": {}, "SpatialDropout1D": {"rate": 0.2},
    "PReLU": {"shared_axes": [1]}, "ELU": {"alpha": 0.5}, "LeakyReLU": {"negative_slope": 0.1},
    "ReLU": {"max_value": 1.5, "negative_slope": 0.2, "threshold": 0.1}, "Softmax": {"axis": 1},
    "Dense": {"units": 3, "use_bias": False},
    "EinsumDense": {"equation": "abc,cd->abd", "output_shape": (None, 4), "bias_axes": "d"},
    "Flatten": {}, "Reshape": {"target_shape": (4, -1)}, "Permute": {"dims": (2, 1)}, "Identity": {},
    "Dropout": {"rate": 0.1, "seed": 3}, "GaussianNoise": {"stddev": 0.1}, "GaussianDropout": {"rate": 0.1},
    "AlphaDropout": {"rate": 0.1}, "ActivityRegularization": {"l1": 0.1}, "GroupNormalization": {"groups": 3},
    "UnitNormalization": {"axis": -1}, "Rescaling": {"scale": [1.0, 2.0, 3.0] * 2, "offset": -1.0}, "Masking": {},
    "BatchNormalization": {"epsilon": 1e-2, "scale": False}, "LayerNormalization": {"axis": [1, 2]},
    "SimpleRNN": {"units": 3, "activation": "relu"},
    "LSTM": {"units": 3, "go_backwards": True, "unit_forget_bias": False},
    "GRU": {"units": 3, "reset_after": False, "return_sequences": True, "dropout": 0.2, "recurrent_activation": "tanh"},
}  # fmt: skip
IMAGES = {
    "Conv2D": {"filters": 4, "kernel_size": 3, "groups": 2, "dilation_rate": 2}, "SpatialDropout2D": {"rate": 0.2},
    "Conv2DTranspose": {"filters": 3, "kernel_size": 3, "strides": 2, "output_padding": 1},
    "SeparableConv2D": {"filters": 3, "kernel_size": 3, "strides": 2},
    "DepthwiseConv2D": {"kernel_size": 3, "depth_multiplier": 2},
    "ZeroPadding2D": {"padding": ((1, 0), (2, 1))}, "Cropping2D": {"cropping": 1},
    "UpSampling2D": {"size": (2, 3), "interpolation": "bilinear"},
    "AveragePooling2D": {"pool_size": 2, "padding": "same"},
    "MaxPooling2D": {"pool_size": 3, "strides": 2}, "GlobalAveragePooling2D": {}, "GlobalMaxPooling2D": {},
    "BatchNormalization": {"axis": 1}, "ConvLSTM1D": {"filters": 2, "kernel_size": 2, "return_sequences": True},
}  # fmt: skip
VOLUMES = {
    "Conv3D": {"filters": 3, "kernel_size": 2}, "Conv3DTranspose": {"filters": 3, "kernel_size": 2, "strides": 2},
    "ZeroPadding3D": {"padding": 1}, "Cropping3D": {"cropping": 1}, "UpSampling3D": {"size": 2},
    "AveragePooling3D": {"pool_size": 2}, "MaxPooling3D": {}, "GlobalAveragePooling3D": {}, "GlobalMaxPooling3D": {},
    "SpatialDropout3D": {"rate": 0.2}, "ConvLSTM2D": {"filters": 2, "kernel_size": 2},
}  # fmt: skip
PAIRS = {
    "Add": {}, "Subtract": {}, "Multiply": {}, "Average": {}, "Maximum": {}, "Minimum": {}, "Concatenate": {"axis": 1},
    "Dot": {"axes": 2, "normalize": True}, "Attention": {"use_scale": True}, "AdditiveAttention": {},
}  # fmt: skip
CASES = [
    *((name, options, (8, 6)) for name, options in SEQUENCES.items()),
    *((name, options, (7, 7, 4)) for name, options in IMAGES.items()),
    *((name, options, (4, 4, 4, 2)) for name, options in VOLUMES.items()),
    ("ConvLSTM3D", {"filters": 2, "kernel_size": 2}, (3, 3, 3, 3, 1)),
]


def compare(model, layer) -> None:
    """Crosses a model of one layer with random weights, and clones what comes out from its configuration."""
    for variable in model.weights:
        variable.assign(np.abs(RNG.normal(size=variable.shape)) + 0.1)
    bridged = cross(model)
    (crossed,) = bridged.layers
    assert not is_whole(crossed.tf_layer)
    assert type(crossed.tf_layer).__name__ == type(layer).__name__
    clone = tf_keras.models.clone_model(bridged.model)
    clone.set_weights(bridged.model.get_weights())
    inputs = [RNG.normal(size=(2, *tensor.shape[1:])).astype(np.float32) for tensor in model.inputs]
    expected = model(inputs[0] if len(inputs) == 1 else inputs)
    for received in (bridged.model(inputs), clone(inputs)):
        np.testing.assert_allclose(received, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "options", "shape"), CASES, ids=[f"{name}-{len(shape)}" for name, _, shape in CASES])
def test_a_layer_of_one_input(name, options, shape) -> None:
    x = keras.Input(shape)
    layer = getattr(L, name)(**options)
    compare(keras.Model(x, layer(x)), layer)


@pytest.mark.parametrize("name", PAIRS)
def test_a_layer_of_two_inputs(name) -> None:
    a, b = keras.Input((5, 4)), keras.Input((5, 4))
    layer = getattr(L, name)(**PAIRS[name])
    compare(keras.Model([a, b], layer([a, b])), layer)


def test_every_layer_in_the_list_is_tried_or_wraps_another() -> None:
    elsewhere = {
        "Activation",
        "Bidirectional",
        "Embedding",
        "GRUCell",
        "LSTMCell",
        "MultiHeadAttention",
        "Normalization",
    }
    elsewhere |= {"RNN", "RepeatVector", "SimpleRNNCell", "StackedRNNCells", "TimeDistributed"}
    assert {name for name, _, _ in CASES} | set(PAIRS) | elsewhere == translate._ALIKE


@pytest.mark.parametrize("make", [
    lambda x: L.RepeatVector(3)(L.Flatten()(x)),
    lambda x: L.MultiHeadAttention(2, 3, value_dim=4, output_shape=5, use_bias=False)(x, x, key=x),
    L.Bidirectional(L.GRU(3), merge_mode="ave"),
    L.Bidirectional(
        L.LSTM(3, return_sequences=True), backward_layer=L.GRU(3, go_backwards=True, return_sequences=True)
    ),
    L.TimeDistributed(L.BatchNormalization()),
    L.Conv1D(3, 2, activation=L.LeakyReLU(negative_slope=0.3)),
])  # fmt: skip
def test_layers_in_layers(make) -> None:
    x = keras.Input((8, 6))
    bridged = cross(keras.Model(x, make(x)))
    assert not any(is_whole(crossed.tf_layer) for crossed in bridged.layers)
    bridged.write_back()


NOT_ACTIVATIONS = {"get", "serialize", "deserialize", "threshold"}  # the last needs arguments


@pytest.mark.parametrize("name", sorted(n for n in dir(keras.activations) if n not in NOT_ACTIVATIONS and n[0] != "_"))
def test_activations(name) -> None:
    x = keras.Input((3, 8))
    layer = L.Dense(4, activation=name)
    compare(keras.Model(x, layer(x)), layer)


def own_activation(x):
    return keras.ops.sin(x) + 1


def test_an_activation_of_ones_own() -> None:
    x = keras.Input((8,))
    layer = L.Dense(4, activation=own_activation)
    compare(keras.Model(x, layer(x)), layer)
    translated = counterpart(layer)
    assert translated.activation.__name__ == "own_activation"


def test_regularizers_and_constraints_are_kept() -> None:
    class Cubed(keras.regularizers.Regularizer):
        def __call__(self, x):
            return keras.ops.sum(keras.ops.abs(x) ** 3)

        def get_config(self):
            return {}

    layer = L.Dense(
        2, kernel_regularizer=keras.regularizers.L1L2(0.1, 0.2), bias_regularizer=Cubed(),
        kernel_constraint=keras.constraints.MaxNorm(1.5), bias_constraint=keras.ops.relu,
        activity_regularizer="l2", name="dense",
    )  # fmt: skip
    x = keras.Input((3,))
    model = keras.Model(x, layer(x))
    layer.bias.assign([1.0, 2.0])
    translated = cross(model).layers[0].tf_layer
    assert isinstance(translated.kernel_regularizer, tf_keras.regularizers.L1L2)
    assert isinstance(translated.kernel_constraint, tf_keras.constraints.MaxNorm)
    assert isinstance(translated.activity_regularizer, tf_keras.regularizers.L2)
    assert float(translated.bias_regularizer(translated.bias)) == pytest.approx(9)
    np.testing.assert_array_equal(translated.bias_constraint(np.array([-1.0, 1.0])), [0, 1])


def test_normalization_keeps_what_it_learnt() -> None:
    layer = L.Normalization()
    layer.adapt(RNG.normal(3, 2, size=(50, 6)).astype(np.float32))
    x = keras.Input((6,))
    model = keras.Model(x, layer(x))
    bridged = cross(model)
    assert bridged.layers[0].tf_layer.weights == []
    clone = tf_keras.models.clone_model(bridged.model)
    batch = RNG.normal(size=(2, 6)).astype(np.float32)
    np.testing.assert_allclose(clone(batch), model(batch), rtol=1e-5)


@pytest.mark.parametrize(("make", "why"), [
    (L.RMSNormalization, "no RMSNormalization"),
    (lambda: type("Dense", (L.Dense,), {})(3), "no Dense"),
    (lambda: L.MultiHeadAttention(2, 3, use_gate=True), "no option use_gate=True"),
    (lambda: L.Dense(3, dtype="int8_from_float32"), "no policy such as"),
    (lambda: L.MaxPooling2D(data_format="channels_first"), "channels_first"),
    (L.Normalization, "statistics"),
    (lambda: L.Dense(3, kernel_regularizer=keras.regularizers.Regularizer()), "its configuration cannot be had"),
    (lambda: L.TimeDistributed(L.RMSNormalization()), "no RMSNormalization"),
])  # fmt: skip
def test_what_has_no_counterpart_says_why(make, why) -> None:
    with pytest.raises(NoCounterpartError, match=why):
        counterpart(make())


def test_an_activation_with_weights_has_no_counterpart() -> None:
    layer = L.Dense(3, activation=L.PReLU())
    layer(np.ones((1, 2)))
    with pytest.raises(NoCounterpartError, match="activation with weights"):
        counterpart(layer)


def test_weights_of_other_shapes_are_refused() -> None:
    ours, theirs = L.Dense(3), tf_keras.layers.Dense(4)
    ours.build((None, 2))
    theirs.build((None, 2))
    with pytest.raises(ConversionError, match="layer 'mine': its weights differ in shape"):
        pair_weights(ours, theirs, "mine")


def test_weights_are_paired_by_name_where_names_are_clear() -> None:
    ours, theirs = L.BatchNormalization(), tf_keras.layers.BatchNormalization()
    ours.build((None, 2))
    theirs.build((None, 2))
    theirs._trainable_weights.reverse()
    pairs = pair_weights(ours, theirs, "norm")
    names = ["gamma", "beta", "moving_mean", "moving_variance"]
    assert [a.name for a, _ in pairs] == names
    assert [b.name.split("/")[-1] for _, b in pairs] == [f"{name}:0" for name in names]
