from __future__ import annotations

import numpy as np
import pytest

from edgecompress.errors import UsageError
from edgecompress.passes.base import PassContext
from edgecompress.passes.kernels import find_layers
from edgecompress.techniques import Cluster
from edgecompress.tfmot import cluster as clustering
from edgecompress.tfmot.bridge import cross
from edgecompress.tfmot.cluster_wrapper import ClusterTarget, _lloyd, wrapper_class


@pytest.fixture(scope="module")
def keras():
    return pytest.importorskip("keras")


def targets_of(model, clusters, *, preserve=False):
    return [
        ClusterTarget(found.layer, found.kernels, clusters, False, preserve)
        for found in find_layers(model)
        if found.kernels
    ]


def wrap_all(model, clusters, spec=None):
    wrappers, targets = [], {id(target.layer): target for target in targets_of(model, clusters)}

    def wrap(crossed):
        target = targets.get(id(crossed.keras_layer))
        if target is None:
            return crossed.tf_layer
        centroids = clustering._centroids(spec or Cluster(), target)
        wrappers.append(wrapper_class()(clustering._held(crossed, target), target, centroids))
        return wrappers[-1]

    return cross(model, wrap=wrap), wrappers


def share(model, values):
    """Gives all kernels these values only, so that as many clusters change nothing."""
    rng = np.random.default_rng(0)
    for found in find_layers(model):
        for kernel in found.kernels:
            kernel.variable.assign(rng.choice(values, kernel.shape))


@pytest.mark.filterwarnings("ignore:.*destroyed mask information:UserWarning")
def test_the_wrapper_hands_on_masks_and_arguments(keras):
    layers = keras.layers
    x = keras.Input((5,), dtype="int32")
    y = layers.Bidirectional(layers.GRU(4, return_sequences=True))(layers.Embedding(9, 4, mask_zero=True)(x))
    y = layers.MultiHeadAttention(2, 3)(y, keras.ops.flip(y, 1), use_causal_mask=True)
    model = keras.Model(x, layers.LSTM(3)(y))
    share(model, [-0.5, -0.1, 0.2, 0.6])
    bridged, wrappers = wrap_all(model, 4)
    for wrapper in wrappers:
        wrapper.settle()
    samples = np.array([[1, 2, 0, 0, 0], [3, 0, 4, 5, 0]])
    assert len(wrappers) == 4
    assert np.allclose(model(samples), bridged.model(samples), atol=1e-5)


def test_stripping_puts_the_variables_back_in_their_order(keras):
    layers = keras.layers
    x = keras.Input((4, 6))
    model = keras.Model(x, layers.Bidirectional(layers.GRU(3))(layers.MultiHeadAttention(2, 3)(x, x)))
    bridged, wrappers = wrap_all(model, 3)
    before = [[tuple(w.shape) for w in crossed.keras_layer.weights] for crossed in bridged.layers]
    bridged.model(np.zeros((1, 4, 6), np.float32))
    for wrapper in wrappers:
        wrapper.strip()
    assert [[tuple(w.shape) for w in crossed.tf_layer.weights] for crossed in bridged.layers] == before
    bridged.write_back()
    for found in find_layers(model):
        assert all(len(np.unique(kernel.values)) <= 3 for kernel in found.kernels)


def test_a_frozen_layer_stays_frozen(keras):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, name="a"), keras.layers.Dense(4, name="b")])
    model.get_layer("a").trainable = False
    bridged, _ = wrap_all(model, 3)
    assert len(bridged.model.trainable_weights) == 3, "kernel, bias and centroids of the second layer"
    assert len(bridged.model.weights) == 8


def test_statistics_in_a_custom_layer_move_in_training_only(keras):
    class Block(keras.layers.Layer):
        def build(self, shape):
            self.dense, self.norm = keras.layers.Dense(4), keras.layers.BatchNormalization(momentum=0.5)
            self.dense.build(shape)
            self.norm.build((*shape[:-1], 4))

        def call(self, x, training=None):
            return self.norm(self.dense(x), training=training)

    model = keras.Sequential([keras.Input((4,)), Block()])
    norm = model.layers[0].norm
    bridged, (wrapper,) = wrap_all(model, 3)
    data = np.random.default_rng(0).normal(3, 2, (16, 4)).astype(np.float32)
    bridged.model(data)
    assert not np.asarray(norm.moving_mean).any()
    bridged.model.compile("sgd", "mse")
    bridged.model.fit(data, data, verbose=0)
    assert np.asarray(norm.moving_mean).all()
    wrapper.strip()
    assert len(np.unique(np.asarray(model.layers[0].dense.kernel))) <= 3


@pytest.mark.parametrize("way", ["kmeans++", "linear", "density", "random"])
def test_each_way_of_finding_centroids_is_tfmots(keras, way):
    model = keras.Sequential([keras.Input((9,)), keras.layers.Dense(9)])
    (target,) = targets_of(model, 4)
    assert clustering._centroids(Cluster(centroids=way), target).name == {
        "kmeans++": "KMEANS_PLUS_PLUS", "linear": "LINEAR", "density": "DENSITY_BASED", "random": "RANDOM"
    }[way]  # fmt: skip


def test_too_few_weights_for_k_means_begin_evenly_spaced(keras):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    model.layers[0].kernel.assign([[0, 0, 0.5], [0, -0.5, 0]])
    (target,) = targets_of(model, 4, preserve=True)
    assert clustering._fewest_values(target) == 3
    assert clustering._centroids(Cluster(), target).name == "LINEAR"


def test_centroids_settle_at_the_means_of_their_weights():
    values = np.array([[0.0, 0.1, 1.0], [1.2, 5, 5.2]], np.float32)
    found = _lloyd(values, np.array([4.0, 0.2, 1.0], np.float32), keep_zero=False)
    assert found == pytest.approx([5.1, 0.05, 1.1]), "in the order in which they were given"
    assert found.dtype == np.float32


def test_a_centroid_of_zero_and_one_without_weights_stay():
    values = np.array([0.1, 0.2, 0.3, 4.0])
    assert _lloyd(values, np.array([9.0, 0.0, 4.0]), keep_zero=True) == pytest.approx([9.0, 0.0, 4.0])
    assert _lloyd(values, np.array([9.0, 0.0, 4.0]), keep_zero=False) == pytest.approx([9.0, 0.2, 4.0])


def test_a_nested_model_that_is_called_as_a_whole_is_refused(keras):
    inner = keras.Sequential([keras.Input((4, 1)), keras.layers.Dense(4, name="in")], name="outer")
    x = keras.Input((4,))
    model = keras.Model(x, inner(x))  # Keras adds the last axis, so that the call cannot be dissolved
    with pytest.raises(UsageError, match=r"layer 'in': .*called as a whole.*Fix: leave it alone"):
        clustering.cluster(model, Cluster(), targets_of(model, 3), PassContext())
