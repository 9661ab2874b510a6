import keras
import numpy as np
import pytest
from keras import layers

from edgecompress.data import InputSpec
from edgecompress.tfmot.folding import fold
from edgecompress.tfmot.lowering import Lowered, lower
from edgecompress.tfmot.patterns import cluster_numbers
from edgecompress.tfmot.scales import run_lowered

IMAGE, ROWS = (6, 6, 3), (6, 3)


def shaken_norm() -> layers.Layer:
    """A batch normalization that does something."""
    some = keras.initializers.RandomUniform(0.5, 2.0, seed=1)
    return layers.BatchNormalization(
        beta_initializer=some, gamma_initializer=some, moving_mean_initializer=some, moving_variance_initializer=some
    )


def beside(x):
    return layers.Add()([x, shaken_norm()(x)])


def folded(shape: tuple[int, ...], body) -> tuple[Lowered, np.ndarray, np.ndarray]:
    """The folded graph, its results and the model's."""
    x = keras.Input(shape, name="x")
    model = keras.Model(x, body(x))
    samples = np.random.default_rng(0).normal(size=(4, *shape)).astype("float32")
    lowered = fold(lower(model, [InputSpec("x", (None, *shape), "float32")]))
    return lowered, run_lowered(lowered, [samples])[0], np.asarray(model(samples))


@pytest.mark.parametrize(
    ("shape", "before"),
    [
        (IMAGE, lambda: layers.Conv2D(4, 3)),
        (IMAGE, lambda: layers.Conv2D(4, 3, use_bias=False)),
        (IMAGE, lambda: layers.DepthwiseConv2D(3, depth_multiplier=2)),
        (IMAGE, lambda: layers.SeparableConv2D(4, 3)),
        (IMAGE, lambda: layers.Conv2DTranspose(4, 3, strides=2)),
        (ROWS, lambda: layers.Conv1D(4, 3)),
        (ROWS, lambda: layers.Dense(4)),
        (IMAGE, lambda: layers.Rescaling(2.0, 1.0)),
    ],
)
def test_normalization_is_folded_into_the_layer_before(shape: tuple[int, ...], before) -> None:
    layer = before()
    lowered, found, wanted = folded(shape, lambda x: shaken_norm()(layer(x)))
    expected = 1 if isinstance(layer, layers.Rescaling) else 0  # of two in a row one is left
    assert sum(node.kind == "affine" for node in lowered.nodes) == expected
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "body",
    [
        lambda x: shaken_norm()(x),
        lambda x: shaken_norm()(layers.Conv2D(4, 3, activation="relu")(x)),
        lambda x: beside(layers.Conv2D(4, 3)(x)),
    ],
    ids=["nothing before", "an activation between", "another taker"],
)
def test_normalization_that_cannot_be_folded_stays(body) -> None:
    lowered, found, wanted = folded(IMAGE, body)
    assert sum(node.kind == "affine" for node in lowered.nodes) == 1
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_a_layer_that_is_called_twice_is_not_folded_into() -> None:
    shared = layers.Conv2D(3, 3, padding="same")
    lowered, found, wanted = folded(IMAGE, lambda x: shaken_norm()(shared(shared(x))))
    assert sum(node.kind == "affine" for node in lowered.nodes) == 1
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_relu_moves_before_the_reshape_of_a_sequence() -> None:
    lowered, found, wanted = folded(ROWS, lambda x: layers.ReLU()(shaken_norm()(layers.Conv1D(4, 3)(x))))
    assert [node.kind for node in lowered.nodes] == ["input", "reshape", "conv", "relu", "reshape"]
    assert lowered.nodes[3].shape == (1, 4, 4)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_what_nothing_uses_is_left_out() -> None:
    x = keras.Input((4,), name="x")
    unused = layers.Dense(3)(x)
    model = keras.Model(x, [layers.Dense(2)(x), unused])
    lowered = lower(model, [InputSpec("x", (None, 4), "float32")])
    alone = fold(Lowered(lowered.inputs, lowered.outputs[:1], lowered.nodes, lowered.layers, ()))
    assert [node.kind for node in alone.nodes] == ["input", "dense"]


def test_a_clustered_kernel_with_one_scale_is_not_folded_into() -> None:
    x = keras.Input((8,), name="x")
    dense = layers.Dense(8)
    model = keras.Model(x, shaken_norm()(dense(x)))
    dense.set_weights([np.sign(dense.get_weights()[0]), np.zeros(8)])
    lowered = lower(model, [InputSpec("x", (None, 8), "float32")])
    for node in lowered.nodes:
        node.clusters = cluster_numbers(node.weights["kernel"]) if node.kind == "dense" else None
    assert [node.kind for node in fold(lowered).nodes] == ["input", "dense", "affine"]


def test_a_frozen_layer_stays_frozen_after_folding() -> None:
    x = keras.Input(IMAGE, name="x")
    model = keras.Model(x, shaken_norm()(layers.Conv2D(4, 3)(x)))
    model.trainable = False
    folded_graph = fold(lower(model, [InputSpec("x", (None, *IMAGE), "float32")]))
    assert [node.trainable for node in folded_graph.nodes if node.kind == "conv"] == [False]
