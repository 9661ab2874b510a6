"""Crossing: every kind of graph answers the same in tf_keras, and its weights find the way home."""

import importlib

import numpy as np
import pytest

from edgecompress.errors import ConversionError, ModelError
from edgecompress.models import load_model
from edgecompress.tfmot import translate
from edgecompress.tfmot.adapter import is_whole
from edgecompress.tfmot.bridge import Bridged, cross
from edgecompress.tfmot.library import import_tfmot

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")
tf_keras = pytest.importorskip("tf_keras")
import_tfmot()  # first: alone, the next import would turn `tf.keras` into Keras 2 for all tests of this process
tfmot = importlib.import_module("tensorflow_model_optimization")

layers, ops = keras.layers, keras.ops
RNG = np.random.default_rng(0)


@keras.saving.register_keras_serializable(package="test_bridge")
class Scale(keras.layers.Layer):
    """A custom layer with a weight, a regularizer and another behaviour in training."""

    def build(self, shape):
        self.gain = self.add_weight(shape=(shape[-1],), initializer="ones", name="gain", regularizer="l2")

    def call(self, x, training=False):
        return x * self.gain * 2 if training else x * self.gain


def random_weights(model) -> None:
    for variable in model.weights:
        variable.assign(np.abs(RNG.normal(size=variable.shape)) + 0.1)


def check_crossed(model, *arrays) -> Bridged:
    """Crosses with random weights, and compares on samples that the bridge's own proof has not seen."""
    random_weights(model)
    bridged = cross(model)
    loaded = load_model(model)
    expected = loaded.call(*(tf.constant(array) for array in arrays))
    received = tf.nest.flatten(bridged.model([tf.constant(array) for array in arrays], training=False))
    assert len(received) == len(expected)
    for a, b in zip(expected, received, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-6)
    return bridged


def names(bridged) -> list[str]:
    return [crossed.name for crossed in bridged.layers]


def wholes(bridged) -> list[str]:
    return [crossed.name for crossed in bridged.layers if is_whole(crossed.tf_layer)]


def samples(*shape) -> np.ndarray:
    return RNG.normal(size=(3, *shape)).astype(np.float32)


# Graphs


def test_a_functional_model_of_an_image() -> None:
    x = keras.Input((8, 8, 3), name="image")
    y = layers.Conv2D(4, 3, use_bias=False, name="conv")(x)
    y = layers.ReLU(name="relu")(layers.BatchNormalization(name="norm")(y))
    y = layers.GlobalAveragePooling2D(name="pool")(layers.DepthwiseConv2D(2, name="deep")(y))
    bridged = check_crossed(keras.Model(x, layers.Dense(3, activation="softmax", name="y")(y)), samples(8, 8, 3))
    assert names(bridged) == ["conv", "norm", "relu", "deep", "pool", "y"]
    assert wholes(bridged) == []
    assert bridged.model.input_names == ["image"]
    assert bridged.model.output_names == ["y"]
    for crossed in bridged.layers:
        assert type(crossed.tf_layer).__module__.startswith("tf_keras")
        assert crossed.tf_layer.built


def test_a_sequential_model() -> None:
    model = keras.Sequential([keras.Input((4,)), layers.Dense(5, name="a"), layers.Dense(2, name="b")])
    assert names(check_crossed(model, samples(4))) == ["a", "b"]


def test_a_sequential_model_that_was_never_built_is_refused() -> None:
    with pytest.raises(ModelError, match="no fixed inputs"):
        cross(keras.Sequential([layers.Dense(2)]))


def test_nested_models_are_dissolved() -> None:
    deep = keras.Sequential([keras.Input((4,)), layers.Dense(4, name="same")], name="deep")
    a = keras.Input((4,))
    inner = keras.Model(a, layers.Dense(4, name="same", activation="relu")(deep(a)), name="inner")
    x = keras.Input((4,), name="x")
    model = keras.Model(x, layers.Dense(2, name="same")(inner(x)))
    bridged = check_crossed(model, samples(4))
    assert names(bridged) == ["inner/deep/same", "inner/same", "same"]
    assert [layer.name for layer in bridged.model.layers[1:]] == ["inner__deep__same", "inner__same", "same"]


def test_a_nested_model_and_a_layer_are_shared() -> None:
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(4, name="dense")], name="inner")
    shared = layers.Dense(3, name="shared")
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    model = keras.Model([a, b], layers.Concatenate(name="both")([shared(inner(a)), shared(inner(b))]))
    bridged = check_crossed(model, samples(4), samples(4))
    assert names(bridged) == ["inner/dense", "shared", "both"]
    assert len(bridged.model.trainable_variables) == 4


def test_a_subclassed_model_in_a_model_is_dissolved_where_it_can_be() -> None:
    class Block(keras.Model):
        def __init__(self, **options) -> None:
            super().__init__(**options)
            self.dense = layers.Dense(4, name="dense")

        def call(self, x):
            return ops.relu(self.dense(x)) + x

    x = keras.Input((4,), name="x")
    model = keras.Model(x, Block(name="block")(x))
    assert names(check_crossed(model, samples(4)))[0] == "block/dense"


def test_several_inputs_and_outputs_in_dicts_and_lists() -> None:
    a, b = keras.Input((3,), name="zeta"), keras.Input((3,), name="alpha")
    outputs = {"sum": layers.Add()([a, b]), "all": [layers.Subtract()([a, b]), layers.Dense(2)(b)]}
    model = keras.Model([a, {"inner": b}], outputs)
    bridged = check_crossed(model, samples(3), samples(3))
    assert isinstance(bridged.model.input, list)
    assert len(bridged.model.outputs) == 3


def test_dicts_of_inputs_keep_the_order_of_the_model() -> None:
    a, b = keras.Input((3,), name="zeta"), keras.Input((3,), name="alpha")
    model = keras.Model({"zeta": a, "alpha": b}, layers.Subtract()([a, b]))
    bridged = check_crossed(model, samples(3), samples(3))
    assert bridged.model.input_names == [tensor.name for tensor in model.inputs]


def test_an_input_as_output_and_an_output_given_twice() -> None:
    x = keras.Input((3,), name="x")
    y = layers.Dense(2, name="y")(x)
    check_crossed(keras.Model(x, [y, y, x]), samples(3))


def test_operators_and_operations() -> None:
    x = keras.Input((4, 6), name="x")
    y = (2 - x * 3)[:, 1:] / 2 + np.arange(6, dtype=np.float32)
    y = ops.concatenate([y, ops.mean(x, axis=1, keepdims=True)], axis=1)
    first, second = ops.split(y, 2, axis=-1)
    y = ops.where(first > 0, first, second) @ ops.transpose(second, (0, 2, 1))
    bridged = check_crossed(keras.Model(x, y), samples(4, 6))
    assert set(wholes(bridged)) == set(names(bridged))
    assert {crossed.keras_layer.name for crossed in bridged.layers} == set(names(bridged))


def test_a_nested_model_casts_its_inputs() -> None:
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(4, name="dense")], name="inner")
    x = keras.Input((4,), dtype="int32", name="x")
    bridged = check_crossed(keras.Model(x, inner(x)), np.arange(12, dtype=np.int32).reshape(3, 4))
    assert names(bridged)[-1] == "inner/dense"


@pytest.mark.parametrize("size", [None, 32])
def test_images_of_any_size(size) -> None:
    """The proof has to find a size that the network takes."""
    x = keras.Input((size, size, 1), name="x")
    y = x
    for _ in range(4):
        y = layers.Conv2D(2, 3, strides=2, activation="relu")(y)
    check_crossed(keras.Model(x, layers.GlobalMaxPooling2D()(y)), samples(64 if size is None else size, size or 64, 1))


# Sequences


def test_masks_go_on_from_an_embedding() -> None:
    x = keras.Input((None,), dtype="int32", name="x")
    y = layers.Embedding(20, 6, mask_zero=True, name="embedding")(x)
    y = layers.Bidirectional(layers.LSTM(4, return_sequences=True), name="both_ways")(y)
    y = layers.TimeDistributed(layers.Dense(3, activation="tanh"), name="each")(layers.Dropout(0.3, name="drop")(y))
    tokens = np.array([[3, 4, 5, 0, 0], [1, 0, 0, 0, 0], [9, 8, 7, 6, 5]], np.int32)
    bridged = check_crossed(keras.Model(x, layers.GRU(5, name="gru")(y)), tokens)
    assert wholes(bridged) == []
    assert names(bridged) == ["embedding", "both_ways", "drop", "each", "gru"]
    both = next(c.tf_layer for c in bridged.layers if c.name == "both_ways")
    assert isinstance(both.forward_layer, tf_keras.layers.LSTM)


def test_indices_that_come_as_floats() -> None:
    x = keras.Input((6,), name="x")
    y = layers.Embedding(5, 3)(ops.cast(x, "int32")[:, 1:])
    check_crossed(keras.Model(x, layers.Flatten()(y)), RNG.integers(0, 5, (3, 6)).astype(np.float32))


def test_images_of_bytes() -> None:
    x = keras.Input((8, 8, 3), dtype="uint8", name="x")
    y = layers.Conv2D(2, 3)(layers.Rescaling(1 / 255)(x))
    check_crossed(keras.Model(x, y), RNG.integers(0, 256, (3, 8, 8, 3)).astype(np.uint8))


def test_masks_go_on_through_whole_layers() -> None:
    x = keras.Input((5, 3), name="x")

    class Keeps(keras.layers.Layer):
        supports_masking = True

        def __init__(self) -> None:
            super().__init__()
            self.supports_masking = True

        def call(self, x, mask=None):
            return x * ops.cast(mask, "float32")[..., None]

    y = layers.GRU(4)(Keeps()(layers.Masking(0.5)(x)))
    masked = samples(5, 3)
    masked[:, 3:] = 0.5
    check_crossed(keras.Model(x, y), masked)


def test_attention_with_a_mask() -> None:
    tokens = keras.Input((6,), dtype="int32", name="tokens")
    x = layers.Embedding(9, 8, mask_zero=True)(tokens)
    y = layers.MultiHeadAttention(2, 4, name="attention")(x, x, use_causal_mask=True)
    y = layers.LayerNormalization()(layers.Add()([x, y]))
    bridged = check_crossed(
        keras.Model(tokens, layers.GlobalAveragePooling1D()(y)), np.array([[1, 2, 3, 0, 0, 0]] * 3, np.int32)
    )
    assert wholes(bridged) == []


def test_an_explicit_mask_and_an_initial_state() -> None:
    x, mask = keras.Input((5, 3), name="x"), keras.Input((5,), dtype="bool", name="mask")
    state = keras.Input((4,), name="state")
    y = layers.GRU(4, return_sequences=True)(x, mask=mask, initial_state=state)
    arrays = samples(5, 3), RNG.random((3, 5)) < 0.6, samples(4)
    check_crossed(keras.Model([x, mask, state], y), *arrays)


def test_states_of_a_recurrent_layer_as_outputs() -> None:
    x = keras.Input((5, 3), name="x")
    y, h, c = layers.LSTM(4, return_state=True, return_sequences=True)(x)
    check_crossed(keras.Model(x, [h, y, c]), samples(5, 3))


@pytest.mark.parametrize("cells", ["GRUCell", "SimpleRNNCell", "stacked"])
def test_cells(cells) -> None:
    cell = [layers.LSTMCell(3), layers.GRUCell(4)] if cells == "stacked" else getattr(layers, cells)(3)
    x = keras.Input((5, 3), name="x")
    bridged = check_crossed(keras.Model(x, layers.RNN(cell, name="rnn")(x)), samples(5, 3))
    assert wholes(bridged) == []


# Whole layers


def test_what_tf_keras_lacks_is_wrapped_whole() -> None:
    x = keras.Input((5, 4), name="x")
    y = layers.RMSNormalization(name="rms")(layers.Dense(4, name="dense")(x))
    y = Scale(name="scale")(layers.GroupQueryAttention(4, 4, 2, name="attention")(y, y))
    bridged = check_crossed(keras.Model(x, y), samples(5, 4))
    assert wholes(bridged) == ["rms", "attention", "scale"]


def test_a_lambda_in_memory_is_wrapped_whole() -> None:
    x = keras.Input((4,), name="x")
    assert wholes(check_crossed(keras.Model(x, layers.Lambda(lambda t: t * 2, name="twice")(x)), samples(4))) == [
        "twice"
    ]


def test_tied_weights_stay_tied() -> None:
    """A copy of the embedding would drift away from the one that the product uses."""
    tokens = keras.Input((4,), dtype="int32", name="tokens")
    embedding = layers.Embedding(7, 3, name="embedding")
    y = layers.Dense(3, name="dense")(embedding(tokens))
    model = keras.Model(tokens, ops.einsum("bti,vi->btv", y, embedding.embeddings))
    bridged = cross(model)
    assert wholes(bridged) == ["embedding", bridged.layers[-1].name]
    bridged.model.compile("sgd", "mse")
    bridged.model.fit(np.ones((8, 4), np.int32), np.ones((8, 4, 7), np.float32), verbose=0)
    bridged.write_back()
    check = np.arange(4, dtype=np.int32)[None]
    np.testing.assert_allclose(model(check), bridged.model(check), rtol=1e-5)


def test_a_layer_that_uses_the_weights_of_another_stays_with_it() -> None:
    class Tied(keras.layers.Layer):
        def __init__(self, dense, **options) -> None:
            super().__init__(**options)
            self.dense = dense

        def call(self, x):
            return x @ ops.transpose(self.dense.kernel)

    x = keras.Input((4,), name="x")
    dense = layers.Dense(3, name="dense")
    bridged = check_crossed(keras.Model(x, layers.Dense(1, name="y")(Tied(dense, name="tied")(dense(x)))), samples(4))
    assert wholes(bridged) == ["dense", "tied"]
    assert len(bridged.model.trainable_variables) == 4


def test_training_moves_the_variables_of_a_whole_layer() -> None:
    x = keras.Input((4,), name="x")
    scale = Scale(name="scale")
    bridged = cross(keras.Model(x, layers.Dense(2)(scale(x))))
    assert len(bridged.model.losses) == 1
    bridged.model.compile("sgd", "mse")
    bridged.model.fit(samples(4), samples(2), verbose=0)
    assert not np.allclose(scale.gain, 1)
    assert len(bridged.model.trainable_variables) == 3
    np.testing.assert_allclose(bridged.model(samples(4), training=False).shape, (3, 2))


def test_a_whole_layer_is_told_whether_it_is_trained() -> None:
    x = keras.Input((4,), name="x")
    bridged = cross(keras.Model(x, Scale()(x)))
    batch = samples(4)
    np.testing.assert_allclose(bridged.model(batch, training=True), 2 * bridged.model(batch, training=False))
    assert len(bridged.model.losses) == 1


# Policies, flags, options


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64"])
def test_policies(policy) -> None:
    x = keras.Input((8, 8, 2), name="x")
    y = layers.Conv2D(3, 3, dtype=policy, name="conv")(x)
    y = layers.BatchNormalization(dtype=policy)(y) * 2 + 1
    y = Scale(dtype=policy)(layers.Flatten(dtype=policy)(y))
    model = keras.Model(x, layers.Dense(2, dtype="float32", name="y")(y))
    bridged = cross(model)
    conv = bridged.layers[0].tf_layer
    assert conv.compute_dtype == policy.removeprefix("mixed_")
    assert conv.variable_dtype == ("float64" if policy == "float64" else "float32")
    batch = samples(8, 8, 2)
    np.testing.assert_allclose(bridged.model(batch), model(batch), rtol=0.05, atol=0.05)


def test_a_policy_of_the_whole_model() -> None:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        x = keras.Input((4,), name="x")
        model = keras.Model(x, layers.Dense(2, dtype="float32")(layers.Dense(4, activation="relu")(x) + 1))
        bridged = cross(model)
    finally:
        keras.config.set_dtype_policy(before)
    assert bridged.layers[0].tf_layer.compute_dtype == "bfloat16"


def test_frozen_layers_stay_frozen() -> None:
    base = keras.Sequential([keras.Input((4,)), layers.Dense(4, name="a"), layers.BatchNormalization()], name="base")
    base.trainable = False
    x = keras.Input((4,), name="x")
    model = keras.Model(x, Scale(trainable=False)(layers.Dense(2, name="head")(base(x, training=False))))
    bridged = cross(model)
    assert [v.name for v in bridged.model.trainable_variables] == ["head/kernel:0", "head/bias:0"]
    before = bridged.model.get_weights()
    bridged.model.compile("sgd", "mse")
    bridged.model.fit(samples(4), samples(2), verbose=0)
    changed = [not np.array_equal(a, b) for a, b in zip(before, bridged.model.get_weights(), strict=True)]
    assert sum(changed) == 2


# Weights


def test_the_way_home_after_training(digits_cnn) -> None:
    model = keras.models.load_model(digits_cnn.model)
    with np.load(digits_cnn.data) as data:
        x, y = data["x"][:64], data["y"][:64]
    before = model.predict(x, verbose=0)
    bridged = cross(model)
    bridged.model.compile("adam", "sparse_categorical_crossentropy")
    bridged.model.fit(x, y, verbose=0)
    np.testing.assert_array_equal(model.predict(x, verbose=0), before)  # a copy was trained
    bridged.write_back()
    after = model.predict(x, verbose=0)
    assert not np.allclose(after, before)
    np.testing.assert_allclose(after, bridged.model.predict(x, verbose=0), rtol=1e-4, atol=1e-6)


def pruned(crossed):
    if type(crossed.keras_layer).__name__ != "Dense":
        return crossed.tf_layer
    return tfmot.sparsity.keras.prune_low_magnitude(
        crossed.tf_layer, tfmot.sparsity.keras.ConstantSparsity(0.5, 0, frequency=1)
    )


@pytest.fixture
def shared_model():
    x = keras.Input((4,), name="x")
    dense = layers.Dense(4, activation="silu", name="dense")
    return keras.Model(x, layers.Dense(2, name="y")(dense(Scale(name="scale")(dense(x))) + x))


def test_wrap_is_called_once_for_each_layer(shared_model) -> None:
    seen = []

    def wrap(crossed):
        seen.append(crossed.name)
        assert crossed.tf_layer.built
        return pruned(crossed)

    bridged = cross(shared_model, wrap=wrap)
    assert seen == names(bridged)
    assert len(seen) == 4
    assert "prune_low_magnitude_dense" in [layer.name for layer in bridged.model.layers]
    nodes = {crossed.name: len(crossed.tf_layer.inbound_nodes) for crossed in bridged.layers}
    assert nodes["scale"] == 1  # the graph that was proved is forgotten
    batch = samples(4)
    np.testing.assert_allclose(bridged.model(batch), shared_model(batch), rtol=1e-5, atol=1e-6)


def test_the_way_home_from_a_pruned_model(shared_model) -> None:
    bridged = cross(shared_model, wrap=pruned)
    bridged.model.compile("sgd", "mse")
    bridged.model.fit(
        samples(4), samples(2), batch_size=1, verbose=0, callbacks=[tfmot.sparsity.keras.UpdatePruningStep()]
    )
    with pytest.raises(ConversionError, match=r"layer 'dense': cannot be written back.*strip"):
        bridged.write_back(bridged.model)
    stripped = tfmot.sparsity.keras.strip_pruning(bridged.model)
    bridged.write_back(stripped)
    kernel = shared_model.get_layer("dense").kernel.numpy()
    assert np.mean(kernel == 0) == 0.5
    batch = samples(4)
    np.testing.assert_allclose(stripped(batch), shared_model(batch), rtol=1e-5, atol=1e-6)


def test_the_way_home_from_a_clustered_model(shared_model) -> None:
    clustering = tfmot.clustering.keras

    def clustered(crossed):
        if type(crossed.keras_layer).__name__ != "Dense":
            return crossed.tf_layer
        return clustering.cluster_weights(
            crossed.tf_layer, number_of_clusters=3, cluster_centroids_init=clustering.CentroidInitialization.LINEAR
        )

    bridged = cross(shared_model, wrap=clustered)
    bridged.model.compile("sgd", "mse")
    bridged.model.fit(samples(4), samples(2), verbose=0)
    stripped = clustering.strip_clustering(bridged.model)
    bridged.write_back(stripped)  # strip_clustering makes new layers
    assert len(np.unique(shared_model.get_layer("dense").kernel)) <= 3
    batch = samples(4)
    np.testing.assert_allclose(stripped(batch), shared_model(batch), rtol=1e-5, atol=1e-6)


# Proof


def test_the_first_layer_that_differs_is_named(monkeypatch) -> None:
    monkeypatch.setitem(translate._ACTIVATIONS, "gelu", "relu")
    inner = keras.Sequential(
        [keras.Input((4,)), layers.Dense(4), layers.Dense(4, activation="gelu", name="wrong"), layers.Dense(3)],
        name="inner",
    )
    x = keras.Input((4,), name="x")
    with pytest.raises(ConversionError, match="layer 'inner/wrong': is the first layer that differs") as caught:
        cross(keras.Model(x, inner(x)))
    assert "\n" not in str(caught.value)
    cross(keras.Model(x, inner(x)), prove=False)


def test_a_layer_that_answers_differently_each_time_is_named() -> None:
    class Moody(keras.layers.Layer):
        times = 0

        def call(self, x):
            self.times += 1
            return x * self.times

    x = keras.Input((4,), name="x")
    model = keras.Model(x, layers.Dense(2)(Moody(name="moody")(layers.Dense(3)(x))))
    with pytest.raises(ConversionError, match="layer 'moody': is the first layer that differs"):
        cross(model)


def test_random_numbers_with_a_seed_are_the_same_for_both() -> None:
    class Sampling(keras.layers.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.seed = keras.random.SeedGenerator(1)

        def call(self, x):
            return x + keras.random.normal(ops.shape(x), seed=self.seed)

    x = keras.Input((4,), name="x")
    sampling = Sampling()
    model = keras.Model(x, layers.Dense(2)(sampling(x)))
    state = sampling.seed.state.numpy()
    cross(model)
    np.testing.assert_array_equal(sampling.seed.state, state)


def test_what_a_stateful_layer_remembers_is_left_alone() -> None:
    x = keras.Input(batch_shape=(3, 5, 2), name="x")
    gru = layers.GRU(4, stateful=True, name="gru")
    model = keras.Model(x, gru(x))
    first, second = samples(5, 2), samples(5, 2)
    model(first)
    memory = gru.states[0].numpy()
    assert np.any(memory)
    bridged = cross(model)
    np.testing.assert_array_equal(gru.states[0], memory)
    bridged.model(first)  # which begins with nothing
    np.testing.assert_allclose(bridged.model(second), model(second), rtol=1e-5, atol=1e-6)


def test_infinite_outputs_are_proved_layer_by_layer(monkeypatch) -> None:
    x = keras.Input((4,), name="x")
    y = layers.Dense(4, activation="gelu", name="dense")(x)
    model = keras.Model(x, ops.log(-1 - ops.abs(y)))
    cross(model)
    monkeypatch.setitem(translate._ACTIVATIONS, "gelu", "relu")
    with pytest.raises(ConversionError, match="layer 'dense'"):
        cross(model)


def test_a_model_that_cannot_be_run_on_random_input() -> None:
    class Picky(keras.layers.Layer):
        def call(self, x):
            if hasattr(x, "numpy"):
                raise ValueError("I take no real numbers.")
            return x

    x = keras.Input((4,), name="x")
    with pytest.raises(ConversionError, match=r"cannot be run on random input.*no real numbers"):
        cross(keras.Model(x, Picky()(x), name="picky"))


def test_a_model_of_keras_2_is_refused() -> None:
    with pytest.raises(ConversionError, match=r"not a Keras 3 model; expected a keras\.Model; received tf_keras"):
        cross(tf_keras.Sequential([tf_keras.Input((3,)), tf_keras.layers.Dense(1)]))


# Subclassed models


class Subclassed(keras.Model):
    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.dense = layers.Dense(4, name="dense")
        self.scale = Scale(name="scale")

    def call(self, x, training=False):
        return self.scale(ops.relu(self.dense(x)), training=training)


def test_a_subclassed_model_is_traced() -> None:
    model = Subclassed(name="mine")
    model(samples(3))
    bridged = cross(model)
    assert [name for name in names(bridged) if "relu" not in name] == ["dense", "scale"]
    batch = samples(3)
    np.testing.assert_allclose(bridged.model(batch), model(batch), rtol=1e-5, atol=1e-6)
    bridged.model.compile("sgd", "mse")
    bridged.model.fit(batch, samples(4), verbose=0)
    bridged.write_back()
    np.testing.assert_allclose(bridged.model(batch), model(batch), rtol=1e-5, atol=1e-6)


def test_a_subclassed_model_with_python_control_flow_is_refused() -> None:
    class Branches(Subclassed):
        def build(self, shape):
            self.dense.build(shape)

        def call(self, x):
            return self.dense(x) if ops.sum(x) > 0 else x

    model = Branches(name="branches")
    model(samples(4))
    with pytest.raises(ModelError, match="branches: its `call` cannot be turned into a graph of layers") as caught:
        cross(model)
    assert "no `if`, `for` or NumPy" in str(caught.value)
