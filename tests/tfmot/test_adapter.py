"""Whole Keras 3 objects in tf_keras: called as they are, trained as they are, cloned, wrapped by TFMOT and exported."""

import gc
import importlib
import json

import numpy as np
import pytest

from edgecompress.errors import ConversionError
from edgecompress.tfmot.adapter import Slot, adapter_class, hold_function, is_whole, wrap_whole
from edgecompress.tfmot.library import import_tfmot

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")
tf_keras = pytest.importorskip("tf_keras")
import_tfmot()  # first: alone, the next import would turn `tf.keras` into Keras 2 for all tests of this process
tfmot = importlib.import_module("tensorflow_model_optimization")

X = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)


class Gain(keras.layers.Layer):
    """Has a trained and an untrained weight, a regularizer, a loss of its own and a layer inside."""

    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.drop = keras.layers.Dropout(0.5, seed=1)

    def build(self, shape):
        self.gain = self.add_weight(shape=(shape[-1],), initializer="ones", regularizer="l2", name="gain")
        self.offset = self.add_weight(shape=(), initializer="zeros", trainable=False, name="offset")

    def call(self, x):
        self.add_loss(keras.ops.sum(self.gain) * 10)
        return self.drop(x) * self.gain + self.offset


@pytest.fixture
def gain():
    layer = Gain(name="gain")
    layer.build((None, 4))
    return layer


def simple(operation, name="whole"):
    """A whole layer that is called with one tensor."""
    layer = wrap_whole(operation, name)
    assert layer.add_signature((Slot(0),), {}) == 0
    return layer


def in_model(layer):
    x = tf_keras.Input((4,), name="x")
    return tf_keras.Model(x, layer(x))


def test_a_layer_is_called_and_owns_its_variables(gain) -> None:
    layer = simple(gain)
    assert is_whole(layer)
    assert not is_whole(tf_keras.layers.Dense(1))
    assert layer.operation is gain
    np.testing.assert_array_equal(layer(X), X)
    assert [v.shape.as_list() for v in layer.trainable_weights] == [[4]]
    assert [v.shape.as_list() for v in layer.non_trainable_weights] == [[]]
    layer.set_weights([np.full(4, 3.0), 1.0])
    np.testing.assert_array_equal(gain.gain, np.full(4, 3.0))
    layer.trainable = False
    assert layer.trainable_weights == []
    assert len(layer.non_trainable_weights) == 2


def test_a_layer_inside_a_layer_is_told_whether_it_is_trained(gain) -> None:
    """Though the outer one does not take the argument: Keras 3 hands it down."""
    layer = simple(gain)
    assert np.all(layer(X, training=False) == X)
    assert np.any(layer(X, training=True) == 0)


def test_losses_are_those_of_the_call_and_of_the_weights_once(gain) -> None:
    layer = simple(gain)
    x = tf_keras.Input((4,), name="x")
    model = tf_keras.Model(x, layer(layer(x)))
    model(X)
    assert sorted(float(loss) for loss in model.losses) == pytest.approx([0.04, 40, 40])


def test_training_moves_the_keras_3_variables(gain) -> None:
    model = in_model(simple(gain))
    model.compile("sgd", "mse")
    model.fit(X, X, verbose=0)
    assert not np.allclose(gain.gain, 1)
    assert float(gain.offset) == 0


def test_operations_with_constants_and_keywords() -> None:
    tensor = keras.KerasTensor((None, 4))
    mean = keras.ops.mean(tensor, axis=1, keepdims=True)._keras_history.operation
    np.testing.assert_allclose(simple(mean)(X), X.mean(1, keepdims=True), rtol=1e-6)
    add = keras.ops.add(tensor, tensor)._keras_history.operation
    layer = wrap_whole(add, "add")
    layer.add_signature((Slot(0), np.float32(2)), {})
    swapped = layer.add_signature((Slot(1),), {"x2": Slot(0)})
    np.testing.assert_allclose(layer(X), X + 2)
    np.testing.assert_allclose(layer([X, 3 * X], signature=swapped), 4 * X)


def test_several_outputs_are_flat() -> None:
    class Parts(keras.layers.Layer):
        def call(self, x):
            return {"b": x + 1, "a": [x, x * 2]}

    results = simple(Parts())(X)
    assert [float(r[0, 0] - X[0, 0]) for r in results] == pytest.approx([0, float(X[0, 0]), 1], abs=1e-6)


def test_masks_go_in_and_out() -> None:
    class Sums(keras.layers.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.supports_masking = True

        def call(self, x, mask=None):
            return x if mask is None else x * keras.ops.cast(mask, "float32")[..., None]

        def compute_mask(self, _inputs, previous):
            return None if previous is None else keras.ops.logical_not(previous)

    x = tf_keras.Input((3, 1))
    y = simple(Sums())(tf_keras.layers.Masking()(x))
    model = tf_keras.Model(x, [y, tf_keras.layers.GlobalAveragePooling1D()(y)])  # which leaves out what is masked
    values, mean = model(np.array([[[1.0], [0.0], [3.0]]], np.float32))
    np.testing.assert_array_equal(values[0, :, 0], [1, 0, 3])
    np.testing.assert_array_equal(mean, [[0.0]])


def test_integers_and_half_floats_are_not_cast() -> None:
    cast = keras.ops.cast(keras.KerasTensor((None, 4)), "int32")._keras_history.operation
    assert simple(cast)(tf.cast(X, "float16")).dtype == tf.int32
    identity = keras.layers.Identity(dtype="float16")
    assert simple(identity)(tf.cast(X, "float16")).dtype == tf.float16


# Clones


def test_a_clone_shares_the_keras_3_layer(gain) -> None:
    model = in_model(simple(gain))
    config = model.get_config()
    assert json.loads(json.dumps(config))["name"] == model.name
    clone = tf_keras.models.clone_model(model)
    assert clone.layers[-1].operation is gain
    rebuilt = tf_keras.Model.from_config(config, {"WholeKeras3": adapter_class()})
    gain.gain.assign([2.0] * 4)
    for each in (clone, rebuilt):
        np.testing.assert_array_equal(each(X), 2 * X)


def test_a_configuration_outlives_its_layer_and_says_so() -> None:
    config = simple(keras.layers.Identity()).get_config()
    tf_keras.backend.clear_session()
    gc.collect()
    with pytest.raises(ConversionError, match=r"rebuilt after its model is gone.*keep the bridged model alive"):
        adapter_class().from_config(config)


def test_tfmot_clones_models_with_whole_layers(gain) -> None:
    class OutputOnly(tfmot.quantization.keras.QuantizeConfig):
        def get_weights_and_quantizers(self, _layer):
            return []

        def get_activations_and_quantizers(self, _layer):
            return []

        def set_quantize_weights(self, layer, weights):
            pass

        def set_quantize_activations(self, layer, activations):
            pass

        def get_output_quantizers(self, _layer):
            return [
                tfmot.quantization.keras.quantizers.MovingAverageQuantizer(
                    8, per_axis=False, symmetric=False, narrow_range=False
                )
            ]

        def get_config(self):
            return {}

    quantization = tfmot.quantization.keras
    x = tf_keras.Input((4,), name="x")
    y = quantization.quantize_annotate_layer(tf_keras.layers.Dense(4))(x)
    y = quantization.quantize_annotate_layer(simple(gain), quantize_config=OutputOnly())(y)
    with tf_keras.utils.custom_object_scope({"OutputOnly": OutputOnly}):
        model = quantization.quantize_apply(tf_keras.Model(x, y))
    model.compile("sgd", "mse")
    model.fit(X, X, verbose=0)
    assert not np.allclose(gain.gain, 1)


def test_a_model_with_whole_layers_is_exported(tmp_path, gain) -> None:
    model = in_model(simple(gain))
    model.export(str(tmp_path / "saved"))
    gain.gain.assign([2.0] * 4)  # not in what was exported
    exported = tf.saved_model.load(str(tmp_path / "saved"))
    np.testing.assert_allclose(exported.serve(X), X, rtol=1e-6)
    model.save_weights(tmp_path / "weights.weights.h5")
    gain.gain.assign([3.0] * 4)
    model.load_weights(tmp_path / "weights.weights.h5")
    np.testing.assert_array_equal(gain.gain, [2.0] * 4)


# Functions


@pytest.mark.parametrize(("kind", "module"), [
    ("activation", "activations"), ("regularizer", "regularizers"), ("constraint", "constraints")
])  # fmt: skip
def test_a_function_survives_serialization(kind, module) -> None:
    held = hold_function(lambda x: x * 2, kind)
    module = getattr(tf_keras, module)
    again = module.get(module.serialize(held))
    assert type(again) is type(held)
    assert float(again(tf.constant(3.0))) == 6
