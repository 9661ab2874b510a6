"""What of layers is compared, on numbers worked out in NumPy from the papers' formulas."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from edgecompress.distill import (
    AttentionMatrices,
    AttentionTransfer,
    Distiller,
    Features,
    HiddenStates,
    SimilarityPreserving,
    SoftLabels,
)
from edgecompress.errors import UsageError
from tests.distilling import divergence, normal, softmax

OF_LAYERS = [Features("a", "b"), HiddenStates("a", "b"), AttentionTransfer("a", "b"), SimilarityPreserving("a", "b")]


class TestFeatures:
    def test_of_images_each_sample_has_a_value(self):
        a, b = normal(3, 4, 4, 2), normal(3, 4, 4, 2, seed=1)
        weights = np.array([0.0, 1.0, 5.0])
        loss = Features("a", "b").compute_loss(a, b, sample_weight=weights)
        np.testing.assert_allclose(loss, np.mean(weights * ((a - b) ** 2).mean(axis=(1, 2, 3))), rtol=1e-4)

    def test_of_sequences_each_step_has_a_value(self):
        a, b = normal(2, 3, 4), normal(2, 3, 4, seed=1)
        mask = np.array([[True, True, False], [True, False, False]])
        student = tf.constant(b)
        student._keras_mask = tf.constant(mask)
        each = ((a - b) ** 2).mean(axis=-1)
        np.testing.assert_allclose(HiddenStates("a", "b").compute_loss(a, student), each[mask].mean(), rtol=1e-4)

    def test_weights_of_other_steps_are_averaged(self):
        a, b = normal(2, 3, 4), normal(2, 3, 4, seed=1)
        weights = np.array([[1, 2, 3, 4, 5, 6], [0, 0, 0, 0, 0, 6.0]])
        loss = Features("a", "b").compute_loss(a, b, sample_weight=weights)
        np.testing.assert_allclose(loss, np.mean(((a - b) ** 2).mean(axis=(1, 2)) * [3.5, 1.0]), rtol=1e-4)

    @pytest.mark.parametrize("shape", [(6,), (5, 6), (4, 4, 6)])
    def test_a_linear_projector_maps_the_channels(self, shape):
        wide = (*shape[:-1], 9)
        term = Features("a", "b", projector="linear")
        term.build((None, *wide), (None, *shape))
        assert [tuple(weight.shape) for weight in term.projector.weights] == [(6, 9)]
        a, b = normal(3, *wide), normal(3, *shape, seed=1)
        expected = np.mean((b @ term.projector.kernel.numpy() - a) ** 2)
        np.testing.assert_allclose(term.compute_loss(a, b), expected, rtol=1e-4)

    def test_a_given_projector_is_used_as_it_is(self):
        projector = layers.Conv2D(9, 3, strides=2, padding="same")
        term = Features("a", "b", projector=projector)
        term.build((None, 4, 4, 9), (None, 8, 8, 6))
        a, b = normal(3, 4, 4, 9), normal(3, 8, 8, 6, seed=1)
        np.testing.assert_allclose(term.compute_loss(a, b), np.mean((projector(b).numpy() - a) ** 2), rtol=1e-4)

    @pytest.mark.parametrize(
        ("teacher", "student", "projector", "fix"),
        [
            ((4, 4, 9), (4, 4, 6), None, "projector='linear' learns a map from 6 to 9 channels"),
            ((9,), (6,), None, "projector='linear' learns a map from 6 to 9 channels"),
            ((4, 4, 9), (8, 8, 9), None, r"same resolution, or give a Keras layer as projector .* is \(4, 4, 9\)"),
            ((4, 4, 9), (8, 8, 6), "linear", r"same resolution, or give a Keras layer as projector .* is \(4, 4, 9\)"),
            ((4, 9), (9,), None, r"a Keras layer as projector whose output is \(4, 9\)"),
            ((4, 4, 9), (16, 9), "linear", "choose layers whose outputs have the same number of axes"),
            ((4, 4, 9), (4, 4, 6), layers.Dense(5), r"a Keras layer as projector whose output is \(4, 4, 9\)"),
        ],
    )
    def test_shapes_that_cannot_be_compared(self, teacher, student, projector, fix):
        term = Features("conv_3", "conv_2", projector)
        where = r"^teacher layer 'conv_3' and student layer 'conv_2': Features: shapes that cannot be compared; "
        with pytest.raises(UsageError, match=f"{where}expected the teacher's .* received the student's .*{fix}"):
            term.build((None, *teacher), (None, *student))

    def test_unknown_sizes_are_taken_to_fit(self):
        Features("a", "b").build((None, None, 4), (None, 7, 4))
        with pytest.raises(UsageError, match="number of axes"):
            Features("a", "b", "linear").build((None, 7, None), (None, 7, 4))

    @pytest.mark.parametrize("projector", ["conv", 3, layers.Dense])
    def test_what_is_no_projector(self, projector):
        with pytest.raises(UsageError, match="Features: not a projector; expected 'linear', a Keras layer or None"):
            Features("a", "b", projector)


class TestAttentionTransfer:
    def maps(self, features):
        flat = (features**2).sum(axis=-1).reshape(len(features), -1)
        return flat / np.linalg.norm(flat, axis=-1, keepdims=True)

    def test_maps_of_other_channels(self):
        a, b = normal(3, 4, 4, 7), normal(3, 4, 4, 2, seed=1)
        each = ((self.maps(a) - self.maps(b)) ** 2).sum(axis=-1) / 2
        np.testing.assert_allclose(AttentionTransfer("a", "b").compute_loss(a, b), each.mean(), rtol=1e-4)

    def test_scale_does_not_count(self):
        a = normal(3, 4, 4, 7)
        np.testing.assert_allclose(AttentionTransfer("a", "b").compute_loss(a, 5 * a), 0, atol=1e-6)

    def test_the_teachers_map_is_resized(self):
        a, b = normal(3, 8, 8, 7), normal(3, 4, 4, 2, seed=1)
        summed = (a**2).sum(axis=-1)
        halves = summed.reshape(3, 4, 2, 4, 2).mean(axis=(2, 4))  # bilinear at half the size: means of 2 x 2
        each = ((self.maps(np.sqrt(halves)[..., None]) - self.maps(b)) ** 2).sum(axis=-1) / 2
        np.testing.assert_allclose(AttentionTransfer("a", "b").compute_loss(a, b), each.mean(), rtol=1e-4)

    def test_masked_steps_do_not_count(self):
        a, b = normal(2, 5, 7), normal(2, 5, 2, seed=1)
        mask = np.arange(5) < np.array([[3], [5]])
        student = tf.constant(b)
        student._keras_mask = tf.constant(mask)
        cut = (self.maps((side * mask[..., None])[:, :, None]) for side in (a, b))
        expected = (np.subtract(*cut) ** 2).sum(axis=-1).mean() / 2
        np.testing.assert_allclose(AttentionTransfer("a", "b").compute_loss(a, student), expected, rtol=1e-4)

    @pytest.mark.parametrize(("teacher", "student"), [((4, 4, 3), (16, 3)), ((3,), (3,)), ((5, 3), (4, 3))])
    def test_other_shapes_are_refused(self, teacher, student):
        with pytest.raises(UsageError, match=r"'a' and student layer 'b': AttentionTransfer: .* choose convolutions"):
            AttentionTransfer("a", "b").build((None, *teacher), (None, *student))


class TestAttentionMatrices:
    def test_each_head(self):
        a, b = softmax(normal(3, 2, 4, 5)), softmax(normal(3, 2, 4, 5, seed=1))
        loss = AttentionMatrices("a", "b").compute_loss(a, b)
        np.testing.assert_allclose(loss, divergence(a, b).mean(), rtol=1e-4)

    def test_other_numbers_of_heads(self):
        a, b = softmax(normal(3, 6, 4, 5)), softmax(normal(3, 2, 4, 5, seed=1))
        AttentionMatrices("a", "b").build((None, *a.shape[1:]), (None, *b.shape[1:]))
        loss = AttentionMatrices("a", "b").compute_loss(a, b)
        np.testing.assert_allclose(loss, divergence(a.mean(axis=1), b.mean(axis=1)).mean(), rtol=1e-4)

    def test_queries_that_a_mask_leaves_out_do_not_count(self):
        a, b = softmax(normal(3, 2, 4, 5)), softmax(normal(3, 2, 4, 5, seed=1))
        expected = divergence(a[:, :, :3], b[:, :, :3]).mean()
        a[:, :, 3] = b[:, :, 3] = 0  # as Keras has them
        np.testing.assert_allclose(AttentionMatrices("a", "b").compute_loss(a, b), expected, rtol=1e-4)

    @pytest.mark.parametrize("student", [(2, 4, 6), (2, 5, 5), (4, 2, 4, 5)])
    def test_other_lengths_are_refused(self, student):
        with pytest.raises(UsageError, match=r"AttentionMatrices: .* sequences of the same length"):
            AttentionMatrices("a", "b").build((None, 2, 4, 5), (None, *student))


class TestSimilarityPreserving:
    def similarities(self, features):
        flat = features.reshape(len(features), -1)
        products = flat @ flat.T
        return products / np.linalg.norm(products, axis=1, keepdims=True)

    def test_is_that_of_the_paper(self):
        a, b = normal(6, 4, 4, 3), normal(6, 9, seed=1)
        difference = self.similarities(a) - self.similarities(b)
        loss = SimilarityPreserving("a", "b").compute_loss(a, b)
        np.testing.assert_allclose(loss, np.linalg.norm(difference) ** 2 / 6**2, rtol=1e-4)

    def test_masked_steps_do_not_count(self):
        a, b = normal(3, 5, 7), normal(3, 5, 2, seed=1)
        mask = np.arange(5) < np.array([[3], [5], [1]])
        student = tf.constant(b)
        student._keras_mask = tf.constant(mask)
        difference = np.subtract(*(self.similarities(side * mask[..., None]) for side in (a, b)))
        loss = SimilarityPreserving("a", "b").compute_loss(a, student)
        np.testing.assert_allclose(loss, np.linalg.norm(difference) ** 2 / 3**2, rtol=1e-4)


@pytest.mark.parametrize("term", OF_LAYERS, ids=lambda term: type(term).__name__)
def test_layers_that_are_the_same_cost_nothing(term):
    features = tf.Variable(normal(3, 4, 5))
    with tf.GradientTape() as tape:
        loss = term.compute_loss(tf.constant(features), features)
    np.testing.assert_allclose(loss, 0, atol=1e-6)
    np.testing.assert_allclose(tape.gradient(loss, features), 0, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("term", [*OF_LAYERS, AttentionMatrices("a", "b")], ids=lambda term: type(term).__name__)
def test_features_of_zero_have_finite_losses_and_gradients(term, dtype):
    shape = (3, 2, 4, 4)
    student = tf.Variable(tf.zeros(shape, dtype))
    with tf.GradientTape() as tape:
        loss = term.compute_loss(tf.fill(shape, tf.cast(0.25, dtype)), student)
    assert loss.dtype == tf.float32
    assert np.isfinite(loss)
    assert np.isfinite(tape.gradient(loss, student)).all()


@pytest.mark.parametrize("term", [*OF_LAYERS, AttentionMatrices("a", "b")], ids=lambda term: type(term).__name__)
def test_xla_compiles_it(term):
    a = softmax(normal(4, 8, 8, 5) if isinstance(term, AttentionTransfer) else normal(4, 4, 4, 5))
    b = softmax(normal(4, 4, 4, 5, seed=1))
    compiled = tf.function(term.compute_loss, jit_compile=True, autograph=False)
    np.testing.assert_allclose(compiled(a, b), term.compute_loss(a, b), rtol=1e-4)


@pytest.mark.parametrize(
    "term",
    [
        Features("a", "b/c"), Features("a", "b", "linear"), Features("a", "b", layers.Dense(3, name="mine")),
        HiddenStates("a", "b", "linear"), AttentionTransfer("a", "b"), AttentionMatrices("a", "b"),
        SimilarityPreserving("a", "b"),
    ],
    ids=lambda term: type(term).__name__,
)  # fmt: skip
def test_it_can_be_stored(term):
    stored = keras.saving.serialize_keras_object(term)
    again = keras.saving.deserialize_keras_object(stored)
    assert stored["registered_name"] == f"edgecompress>{type(term).__name__}"
    assert type(again) is type(term)
    assert again.get_config() == term.get_config()


def test_attention_maps_of_sizes_that_are_not_known_are_resized():
    def net(strides, channels):
        image = keras.Input((None, None, 3))
        x = keras.layers.Conv2D(channels, 3, strides=strides, padding="same", name="conv")(image)
        return keras.Model(image, keras.layers.Dense(4, activation="softmax")(keras.layers.GlobalMaxPooling2D()(x)))

    distiller = Distiller(net(2, 4), net(1, 8), losses=[SoftLabels(), AttentionTransfer("conv", "conv")], alpha=1.0)
    distiller.compile("sgd")
    images = np.random.default_rng(0).normal(size=(4, 8, 6, 3)).astype("float32")
    shapes = tf.TensorSpec((None, None, None, 3))
    samples = tf.data.Dataset.from_generator(lambda: [images, images[:, :6]], output_signature=shapes)
    history = distiller.fit(samples.repeat(), steps_per_epoch=2, verbose=0, shuffle=False).history
    assert np.isfinite(history["loss"]).all()
