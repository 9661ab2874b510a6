"""Copies of models with layers replaced: what stays is equal, what is replaced is gone, and the structure is kept."""

import keras
import numpy as np
import pytest
from keras import layers

from edgecompress.errors import InternalError, ModelError
from edgecompress.models import load_model
from edgecompress.passes.rewrite import rewrite

RANDOM = np.random.default_rng(0)
A = RANDOM.normal(size=(3, 6, 4)).astype("float32")
TOKENS = np.array([[3, 5, 0, 0], [1, 0, 0, 0], [2, 2, 7, 4]])


class Halve(layers.Layer):
    """A custom layer that Keras does not know."""

    def call(self, x):
        return x / 2


def split(dense: layers.Dense, x_shape: tuple[int | None, ...]) -> list[layers.Layer]:
    """Two Dense layers that do what one does: a first one that changes nothing, and itself."""
    size = x_shape[-1]
    first = layers.Dense(size, use_bias=False, name=f"{dense.name}_first")
    first.build(x_shape)
    first.set_weights([np.eye(size)])
    second = layers.Dense.from_config(dense.get_config())
    second.build(x_shape)
    second.set_weights(dense.get_weights())
    return [first, second]


def assert_alike(model: keras.Model, copy: keras.Model, sample, *, rtol: float = 1e-5) -> None:
    expected, received = model(sample), copy(sample)
    keras.tree.assert_same_structure(expected, received)
    for a, b in zip(keras.tree.flatten(expected), keras.tree.flatten(received), strict=True):
        np.testing.assert_allclose(b, a, rtol=rtol, atol=rtol)
    assert not {id(v) for v in model.variables} & {id(v) for v in copy.variables}
    assert copy.name == model.name
    assert [x.name for x in copy.inputs] == [x.name for x in model.inputs]


def test_a_chain_stands_in_the_place_of_a_layer_of_a_sequential_model(digits_cnn, tmp_path) -> None:
    model = load_model(digits_cnn.model).model
    before = model.get_weights()
    dense = model.get_layer("digit")
    copy = rewrite(model, {id(dense): split(dense, (None, 32))})
    assert isinstance(copy, keras.Sequential)
    assert [layer.name for layer in copy.layers] == [layer.name for layer in model.layers[:-1]] + [
        "digit_first",
        "digit",
    ]
    with np.load(digits_cnn.data) as data:
        assert_alike(model, copy, data["x"][:50])
    copy.save(tmp_path / "copy.keras")
    assert_alike(model, keras.models.load_model(tmp_path / "copy.keras"), np.ones((1, 8, 8, 1)))
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_without_layers_the_input_is_passed_on() -> None:
    x = keras.Input((4,), name="x")
    y = layers.Dense(4, name="y")(x)
    model = keras.Model(x, layers.Dropout(0.5, name="gone")(layers.Activation("linear", name="gone_too")(y)))
    copy = rewrite(model, {id(model.get_layer(name)): () for name in ("gone", "gone_too")})
    assert [layer.name for layer in copy.layers] == ["x", "y"]
    assert_alike(model, copy, A[:, 0])


def test_branches_shared_layers_operations_and_several_inputs_and_outputs(tmp_path) -> None:
    left, right = keras.Input((4,), name="left"), keras.Input((4,), name="right")
    shared, halve = layers.Dense(5, activation="relu", name="shared"), Halve(name="halve")
    shared.trainable = False
    a, b = shared(left), shared(inputs=right)
    both = halve(layers.Concatenate(name="both")([a, b])) * 3
    outputs = {"sum": layers.Dense(2, name="last")(both) + a[:, :2], "right": halve(b)}
    model = keras.Model({"left": left, "right": right}, outputs, name="branches")
    copy = rewrite(model, {id(shared): split(shared, (None, 4)), id(model.get_layer("last")): [layers.Dense(2)]})
    sample = {"left": A[:, 0], "right": A[:, 1]}
    assert set(copy(sample)) == {"sum", "right"}
    assert copy.get_layer("shared").kernel.shape == (4, 5)
    assert len(copy.get_layer("shared_first")._inbound_nodes) == 2
    np.testing.assert_allclose(copy(sample)["right"], model(sample)["right"], rtol=1e-5)
    assert not np.allclose(copy(sample)["sum"], model(sample)["sum"])
    assert_alike(model, rewrite(model, {id(shared): split(shared, (None, 4))}), sample)
    model.save(tmp_path / "model.keras")  # the graph of the original is whole
    again = keras.models.load_model(tmp_path / "model.keras", custom_objects={"Halve": Halve})
    assert_alike(model, again, sample)


def test_what_is_replaced_in_nested_models_leaves_them_nested_and_their_layers_shared() -> None:
    dense, frozen = layers.Dense(4, name="dense"), layers.BatchNormalization(name="frozen", trainable=False)
    x = keras.Input((4,))
    inner = keras.Model(x, frozen(dense(x)) + x, name="inner")
    row = keras.Sequential([keras.Input((4,)), inner, layers.Dense(3, name="dense")], name="row")
    x = keras.Input((4,), name="x")
    model = keras.Model(x, [row(inner(x, training=False)), dense(x)])
    copy = rewrite(model, {id(dense): split(dense, (None, 4))})
    assert_alike(model, copy, A[:, 0])
    assert {layer.name for layer in copy.layers} == {"x", "inner", "row", "dense_first", "dense"}
    nested = copy.get_layer("inner")
    assert copy.get_layer("row").layers[0] is nested
    assert nested.get_layer("dense") is copy.get_layer("dense")
    assert not nested.get_layer("frozen").trainable
    assert [v.shape for v in copy.trainable_variables] == [(4, 4), (4, 4), (4,), (4, 3), (3,)]


def test_masks_and_states_go_on_to_a_recurrent_layer() -> None:
    tokens, state = keras.Input((None,), dtype="int32", name="tokens"), keras.Input((2,), name="state")
    embedding = layers.Embedding(9, 4, mask_zero=True, name="embedding")
    gru = layers.GRU(3, return_state=True, return_sequences=True, name="gru")
    outputs = gru(layers.Dense(4, name="dense")(embedding(tokens)))
    last = layers.GRU(2, name="last")(outputs[0], mask=keras.ops.greater(tokens, 2), initial_state=state)
    model = keras.Model([tokens, state], [*outputs, last])
    narrow, widen = layers.Embedding(9, 2, mask_zero=True, name="embedding"), layers.Dense(4, use_bias=False)
    rows, columns = RANDOM.normal(size=(9, 2)), RANDOM.normal(size=(2, 4))
    narrow.build((None, 4))
    widen.build((None, 4, 2))
    narrow.set_weights([rows])
    widen.set_weights([columns])
    embedding.set_weights([rows @ columns])
    copy = rewrite(model, {id(embedding): [narrow, widen]})
    assert_alike(model, copy, [TOKENS, A[:, 0, :2]])
    shortened = copy([TOKENS[:1, :2], A[:1, 0, :2]])
    np.testing.assert_allclose(shortened[1], copy([TOKENS[:1], A[:1, 0, :2]])[1], rtol=1e-5)  # 0 is masked


def test_a_residual_network() -> None:
    x = keras.Input((32, 32, 3), name="image")
    model = keras.applications.ResNet50V2(weights=None, input_tensor=x, classes=4)
    last = model.get_layer("predictions")
    copy = rewrite(model, {id(last): split(last, (None, 2048))})
    assert len(copy.layers) == len(model.layers) + 1
    assert_alike(model, copy, [RANDOM.uniform(size=(1, 32, 32, 3)).astype("float32")], rtol=1e-4)


def test_mixed_precision_and_wrappers_stay() -> None:
    x = keras.Input((6, 4), name="x")
    half = {"dtype": "mixed_float16"}
    y = layers.Bidirectional(layers.GRU(3, return_sequences=True, **half), name="both", **half)(x)
    y = layers.TimeDistributed(layers.Dense(2, name="each", **half), name="steps", **half)(y)
    model = keras.Model(x, layers.Dense(2, dtype="float32", name="last")(y))
    model.get_layer("steps").layer.trainable = False
    last = model.get_layer("last")
    copy = rewrite(model, {id(last): split(last, (None, 6, 2))})
    assert_alike(model, copy, A)
    assert copy.get_layer("steps").compute_dtype == "float16"
    assert not copy.get_layer("steps").trainable_variables


def test_a_subclassed_model_is_rewritten_as_the_graph_that_it_is() -> None:
    class Mine(keras.Model):
        def __init__(self) -> None:
            super().__init__(name="mine")
            self.dense = layers.Dense(4, name="dense")

        def call(self, x):
            return keras.ops.relu(self.dense(x))

    model = Mine()
    model(A[:, 0])
    x = keras.Input((4,), name="x")
    outer = keras.Model(x, layers.Dense(2)(model(x)))
    for whole in (model, outer):
        copy = rewrite(whole, {id(model.dense): split(model.dense, (None, 4))})
        np.testing.assert_allclose(copy(A[:, 0]), whole(A[:, 0]), rtol=1e-5)
        assert len(copy.weights) == len(whole.weights) + 1


def test_a_layer_that_is_not_called_or_cannot_be_made_again_is_refused() -> None:
    class NoConfig(layers.Layer):
        def __init__(self, function) -> None:
            super().__init__()
            self.function = function

        def call(self, x):
            return self.function(x)

    x = keras.Input((4,))
    with pytest.raises(ModelError, match=r"mine: cannot be copied: .*get_config"):
        rewrite(keras.Model(x, NoConfig(keras.ops.relu)(x), name="mine"), {})
    with pytest.raises(InternalError, match="mine: 1 layers to be replaced are not called"):
        rewrite(keras.Model(x, layers.ReLU()(x), name="mine"), {0: ()})


def test_new_layers_do_not_take_the_names_of_others(keras):
    layers = keras.layers
    model = keras.Sequential([
        keras.Input((4,)), layers.Dense(3, name="in"), layers.Dense(5, name="out"), layers.Dense(6, name="in_1")
    ])  # fmt: skip
    chain = [layers.Dense(2, name="in"), layers.Dense(5, name="out")]
    copy = rewrite(model, {id(model.get_layer("out")): chain})
    assert [layer.name for layer in copy.layers] == ["in", "in_2", "out", "in_1"]


def test_a_copy_keeps_what_a_normalization_was_adapted_to() -> None:
    norm, dense = layers.Normalization(), layers.Dense(2)
    norm.adapt(10 * A + 5)
    model = keras.Sequential([keras.Input((6, 4), name="x"), norm, dense])
    assert_alike(model, rewrite(model, {}), A)
    assert_alike(model, rewrite(model, {id(dense): split(dense, (None, 6, 4))}), A)
