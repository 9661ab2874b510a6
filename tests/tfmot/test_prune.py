from __future__ import annotations

import numpy as np
import pytest

from edgecompress.data import Dataset
from edgecompress.passes.base import PassContext
from edgecompress.passes.kernels import find_layers
from edgecompress.techniques import Prune, Training
from edgecompress.tfmot import prune as pruning
from edgecompress.tfmot.bridge import cross


@pytest.fixture(scope="module")
def keras():
    return pytest.importorskip("keras")


def wrap_all(model, spec, total=10):
    """Returns the bridged model with TFMOT's wrapper around each kernel that has one, and the wrappers."""
    wanted = {id(kernel.variable): spec.sparsity for found in find_layers(model) for kernel in found.kernels}
    wrappers = []

    def wrap(crossed):
        own = pruning._own(crossed, wanted)
        if not own:
            return crossed.tf_layer
        crossed.tf_layer.get_prunable_weights = lambda: list(own.values())
        schedule, _ = pruning._schedule(spec, spec.sparsity, total)
        wrappers.append(pruning._wrapper_class()(crossed.tf_layer, pruning_schedule=schedule, autocast=False))
        return wrappers[-1]

    return cross(model, wrap=wrap), wrappers


@pytest.mark.parametrize("total", [1, 2, 3, 10, 57, 1000, 100_000])
@pytest.mark.parametrize(
    "spec",
    [
        Prune(),
        Prune(begin=0.5, end=1.0),
        Prune(begin=0.3, end=0.3),
        Prune(initial_sparsity=0.4, end=0.9),
        Prune(schedule="constant", begin=0.4),
        Prune(pattern="2:4"),
    ],
    ids=lambda spec: str(spec.model_dump(exclude_defaults=True)),
)
def test_a_schedule_prunes_at_the_step_where_it_reaches_its_goal(spec, total):
    schedule, reached = pruning._schedule(spec, 0.5, total)
    assert 1 <= reached <= max(1, round(spec.end * total), round(spec.begin * total))
    prunes, sparsity = schedule(reached)
    assert bool(prunes)
    assert float(sparsity) == 0.5
    assert not bool(schedule(0)[0]), "the steps are counted from 1"
    if spec.schedule == "polynomial" and spec.pattern is None and total >= 57 and spec.begin < spec.end:
        prunes, sparsity = schedule(np.arange(1, reached + 1))
        updates = sparsity[prunes].numpy()
        assert len(updates) >= 20
        assert (np.diff(updates) >= 0).all()
        assert updates[0] == pytest.approx(spec.initial_sparsity, abs=1e-6)


def test_a_layer_with_less_sparsity_than_the_beginning_begins_with_its_own():
    schedule, _ = pruning._schedule(Prune(sparsity=0.8, initial_sparsity=0.5), 0.3, 100)
    assert np.unique(schedule(np.arange(1, 100))[1]) == pytest.approx([0.3])


def masked(keras):
    layers = keras.layers
    return keras.Sequential([
        keras.Input((5,), dtype="int32"),
        layers.Embedding(9, 4, mask_zero=True),
        layers.Dense(4),
        layers.Bidirectional(layers.LSTM(3)),
    ]), np.array([[1, 2, 0, 0, 0], [3, 0, 4, 5, 0]])  # fmt: skip


def attentive(keras):
    x = keras.Input((4, 6))
    layer = keras.layers.MultiHeadAttention(2, 3)
    y = layer(x, keras.ops.flip(x, 1), use_causal_mask=True)
    return keras.Model(x, y), np.random.default_rng(0).normal(size=(2, 4, 6))


def half(keras):
    layers = [keras.layers.Conv2D(3, 2, dtype="mixed_float16"), keras.layers.BatchNormalization(dtype="mixed_float16")]
    return keras.Sequential([keras.Input((4, 4, 2)), *layers]), np.random.default_rng(0).normal(size=(2, 4, 4, 2))


@pytest.mark.filterwarnings("ignore:.*destroyed mask information:UserWarning")
@pytest.mark.parametrize("make", [masked, attentive, half])
def test_the_wrapper_hands_on_masks_arguments_and_precision(keras, make):
    keras.utils.set_random_seed(0)
    model, x = make(keras)
    bridged, wrappers = wrap_all(model, Prune())
    assert wrappers
    assert np.allclose(model(x), bridged.model(x), atol=1e-3 if make is half else 1e-6)


def test_a_shared_layer_counts_each_step_once_and_epochs_are_judged_by_masked_weights(keras):
    import tf_keras

    seen = []

    class Look(tf_keras.callbacks.Callback):
        def on_test_batch_begin(self, _batch, _logs=None):
            seen.append([int(np.count_nonzero(wrapper.layer.kernel)) for wrapper in wrappers])

    x, layer = keras.Input((8,)), keras.layers.Dense(8)
    bridged, wrappers = wrap_all(keras.Model(x, layer(layer(x))), Prune(schedule="constant", sparsity=0.75))
    bridged.model.compile("sgd", "mse")
    data = np.ones((12, 8), np.float32)
    callback = pruning._callback_class()(fixed=False)
    for _ in range(2):
        bridged.model.fit(
            data, data, validation_data=(data, data), batch_size=4, verbose=0, callbacks=[callback, Look()]
        )
    assert int(wrappers[0].pruning_step) == 6
    assert seen == [[16]] * 6


def test_masks_that_are_fixed_are_not_found_anew(keras):
    bridged, (wrapper,) = wrap_all(keras.Sequential([keras.Input((4,)), keras.layers.Dense(4)]), Prune())
    mask = np.eye(4, dtype=np.float32)
    wrapper.pruning_vars[0][1].assign(mask)
    bridged.model.compile("sgd", "mse")
    data = np.ones((8, 4), np.float32)
    bridged.model.fit(data, data, verbose=0, callbacks=[pruning._callback_class()(fixed=True)])
    assert np.array_equal(wrapper.layer.kernel.numpy() != 0, mask != 0)


def test_ties():
    values = np.array([[1.0, -1, 1], [0, 2, 1]])
    assert np.count_nonzero(pruning._without_smallest(values, 3)) == 3
    assert pruning._without_smallest(values, 1).tolist() == [[0, 0, 0], [0, 2, 0]]
    scores = pruning._break_ties(np.array([0.0, 0, 3, 6]), np.array([1.0, -2, 0.1, 0.1]))
    assert scores[0] < scores[1] < scores[2] < scores[3]
    assert np.isfinite(pruning._break_ties(np.zeros(3), np.zeros(3))).all()


def test_sensitive_weights_are_kept_however_small_they_are(keras):
    """The second input is always zero, so the large weights that multiply it do not matter."""
    model = keras.Sequential([keras.Input((2,), name="x"), keras.layers.Dense(3, use_bias=False)])
    model.layers[0].kernel.assign([[0.1, 0.2, 0.3], [5, 6, 7]])
    rng = np.random.default_rng(0)
    x = np.stack([rng.normal(size=64), np.zeros(64)], axis=1).astype(np.float32)
    context = PassContext(data=Dataset({"x": x}, x @ np.ones((2, 3), np.float32)), training=Training(epochs=1))
    targets = [pruning.PruneTarget(model.layers[0].kernel, 0.5)]
    _, notes = pruning.prune(model, Prune(criterion="sensitivity"), targets, context)
    kernel = np.asarray(model.layers[0].kernel)
    assert kernel[0].all()
    assert not kernel[1].any()
    assert "2 batches" in notes[0]


def test_a_nested_model_that_is_called_as_a_whole_is_pruned_inside(keras):
    inner = keras.Sequential([keras.Input((4, 1)), keras.layers.Dense(4, name="in")], name="outer")
    x = keras.Input((4,))
    model = keras.Model(x, inner(x))  # Keras adds the last axis, so that the call cannot be dissolved
    assert [crossed.name for crossed in cross(model).layers] == ["outer"]
    pruning.prune(model, Prune(), [pruning.PruneTarget(inner.layers[0].kernel, 0.5)], PassContext())
    assert np.count_nonzero(inner.layers[0].kernel) == 2
