import keras
import numpy as np
import pytest

from edgecompress.data import InputSpec
from edgecompress.tfmot.lowering import Node, lower
from edgecompress.tfmot.patterns import cluster_numbers


@pytest.fixture
def node() -> Node:
    """A dense layer of 16 to 16 with zeros and few values."""
    x = keras.Input((16,), name="x")
    dense = keras.layers.Dense(16)
    model = keras.Model(x, dense(x))
    kernel = np.random.default_rng(0).choice(np.array([0, 0, 0.5, -1, 0.25], np.float32), size=(16, 16))
    dense.set_weights([kernel, np.zeros(16)])
    found = lower(model, [InputSpec("x", (None, 16), "float32")]).nodes[1]
    found.clusters = cluster_numbers(kernel)
    return found


def moved(node: Node) -> np.ndarray:
    """Its kernel after a training step that moved every weight."""
    return node.weights["kernel"] + np.random.default_rng(1).normal(scale=0.05, size=(16, 16)).astype("float32")


def test_zeros_and_shared_values_survive_a_step(node: Node) -> None:
    from edgecompress.tfmot.quantizers import weight_quantizer

    kept = weight_quantizer(node, "kernel", bits=8, per_channel=False, sparsity=True).keep(moved(node)).numpy()
    original = node.weights["kernel"]
    assert not kept[original == 0].any()
    assert len(np.unique(kept)) == len(np.unique(original)) == 4
    np.testing.assert_allclose(kept[original == 0.5], moved(node)[original == 0.5].mean(), rtol=1e-5)


def test_clusters_are_equal_but_for_what_was_folded_in(node: Node) -> None:
    from edgecompress.tfmot.quantizers import weight_quantizer

    node.factors = np.linspace(0, 3, 16, dtype=np.float32).reshape(1, 16)
    kernel = moved(node) * node.factors
    kept = weight_quantizer(node, "kernel", bits=8, per_channel=True, sparsity=False).keep(kernel).numpy()
    assert not kept[:, 0].any()
    assert len(np.unique(np.round(kept[:, 1:] / node.factors[:, 1:], 5))) == 4


def test_zeros_may_move_where_they_need_not_be_kept(node: Node) -> None:
    from edgecompress.tfmot.quantizers import weight_quantizer

    node.clusters = None
    kept = weight_quantizer(node, "kernel", bits=8, per_channel=False, sparsity=False).keep(moved(node))
    np.testing.assert_array_equal(kept, moved(node))


def test_results_that_share_a_scale_share_its_variables() -> None:
    import tf_keras

    from edgecompress.tfmot.quantizers import result_quantizer

    quantizer = result_quantizer(bits=8, fixed=None, shared=True)
    layers = [tf_keras.layers.Layer(), tf_keras.layers.Layer()]
    first, second = (quantizer.build((None, 4), "output", layer) for layer in layers)
    assert first["max_var"] is second["max_var"]
    quantizer(np.array([-1.0, 2.0], np.float32), True, weights=first)
    quantizer(np.array([-5.0, 1.0], np.float32), True, weights=second)
    assert (first["min_var"].numpy(), first["max_var"].numpy()) == (-5, 2)


def test_sixteen_bits_have_no_fixed_range_and_no_zero_point() -> None:
    from edgecompress.tfmot.quantizers import result_quantizer

    quantizer = result_quantizer(bits=16, fixed=(0.0, 255 / 256), shared=False)
    assert quantizer.num_bits == 16
    assert quantizer.symmetric
