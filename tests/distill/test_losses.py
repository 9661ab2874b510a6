"""What of answers is compared, on numbers worked out in NumPy from the papers' formulas."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from edgecompress.distill import (
    Distiller,
    Features,
    HardLabels,
    HiddenStates,
    Logits,
    SelfDistillation,
    SimilarityPreserving,
    SoftLabels,
)
from edgecompress.distill.answers import AnswerKind
from edgecompress.errors import UsageError
from tests.distilling import divergence, normal, softmax

LOGITS, PROBABILITIES = AnswerKind(), AnswerKind(probabilities=True)
BINARY_LOGITS, BINARY = AnswerKind(binary=True), AnswerKind(probabilities=True, binary=True)
OF_ANSWERS = [SoftLabels(), Logits(), HardLabels(), SelfDistillation()]


def sigmoid(logits):
    return 1 / (1 + np.exp(-logits))


def given(logits, kind):
    """The answers of a model whose logits are these."""
    if not kind.probabilities:
        return tf.constant(logits, tf.float32)
    return tf.constant(sigmoid(logits) if kind.binary else softmax(logits), tf.float32)


def soft_labels(teacher, student, t):
    """Hinton, Vinyals and Dean 2015, for each sample; from logits."""
    return t**2 * divergence(softmax(teacher / t), softmax(student / t))


def binary_soft_labels(teacher, student, t):
    """The same of each label, which applies or does not, and their mean."""
    p, q = sigmoid(teacher.astype(np.float64) / t), sigmoid(student.astype(np.float64) / t)
    return t**2 * np.mean(divergence(np.stack([p, 1 - p], -1), np.stack([q, 1 - q], -1)), axis=-1)


class TestSoftLabels:
    @pytest.mark.parametrize("temperature", [1.0, 4.0])
    @pytest.mark.parametrize("student", [LOGITS, PROBABILITIES])
    @pytest.mark.parametrize("teacher", [LOGITS, PROBABILITIES])
    def test_classes(self, teacher, student, temperature):
        a, b = normal(6, 5), normal(6, 5, seed=1)
        loss = SoftLabels().compute_loss(
            given(a, teacher), given(b, student), kinds=(teacher, student), temperature=temperature
        )
        np.testing.assert_allclose(loss, soft_labels(a, b, temperature).mean(), rtol=1e-4)

    @pytest.mark.parametrize("temperature", [1.0, 4.0])
    @pytest.mark.parametrize("student", [BINARY_LOGITS, BINARY])
    @pytest.mark.parametrize("teacher", [BINARY_LOGITS, BINARY])
    @pytest.mark.parametrize("labels", [1, 5])
    def test_labels_that_apply_or_do_not(self, labels, teacher, student, temperature):
        a, b = normal(6, labels), normal(6, labels, seed=1)
        loss = SoftLabels().compute_loss(
            given(a, teacher), given(b, student), kinds=(teacher, student), temperature=temperature
        )
        np.testing.assert_allclose(loss, binary_soft_labels(a, b, temperature).mean(), rtol=1e-3)

    def test_an_output_without_a_class_axis(self):
        a, b = normal(6), normal(6, seed=1)
        loss = SoftLabels(1).compute_loss(given(a, BINARY), given(b, BINARY), kinds=(BINARY, BINARY))
        np.testing.assert_allclose(loss, binary_soft_labels(a[:, None], b[:, None], 1).mean(), rtol=1e-3)

    def test_its_own_temperature_comes_before_the_distillers(self):
        a, b = normal(6, 5), normal(6, 5, seed=1)
        loss = SoftLabels(np.float32(2)).compute_loss(a, b, temperature=9.0)
        np.testing.assert_allclose(loss, soft_labels(a, b, 2).mean(), rtol=1e-4)

    @pytest.mark.parametrize("temperature", [0, -1.0, float("inf"), float("nan"), "4", True])
    def test_the_temperature_is_positive(self, temperature):
        with pytest.raises(UsageError, match=r"temperature is not a positive number; expected more than 0; received"):
            SoftLabels(temperature)

    @pytest.mark.parametrize("temperature", [1.0, 4.0])
    def test_gradient_is_t_times_the_difference_of_probabilities(self, temperature):
        a, b = normal(6, 5), tf.Variable(normal(6, 5, seed=1))
        with tf.GradientTape() as tape:
            loss = SoftLabels(temperature).compute_loss(tf.constant(a), b)
        expected = temperature * (softmax(b.numpy() / temperature) - softmax(a / temperature)) / 6
        np.testing.assert_allclose(tape.gradient(loss, b), expected, atol=1e-5)

    def test_gradient_of_a_high_temperature_is_that_of_matching_logits(self):
        """Equation 4 of the paper, times T^2: (z - v) / N for logits of mean 0."""
        a, b = (z - z.mean(axis=-1, keepdims=True) for z in (normal(1, 5), normal(1, 5, seed=1)))
        student = tf.Variable(b)
        with tf.GradientTape() as tape:
            loss = SoftLabels(300.0).compute_loss(tf.constant(a), student)
        np.testing.assert_allclose(tape.gradient(loss, student), (b - a) / 5, atol=0.01)

    def test_steps_with_a_mask_and_weights(self):
        a, b = normal(2, 3, 5), normal(2, 3, 5, seed=1)
        mask = np.array([[True, True, False], [True, False, False]])
        student = tf.constant(b)
        student._keras_mask = tf.constant(mask)
        each = soft_labels(a, b, 4.0)
        term, teacher = SoftLabels(), tf.constant(a)
        np.testing.assert_allclose(term.compute_loss(teacher, tf.constant(b)), each.mean(), rtol=1e-4)
        np.testing.assert_allclose(term.compute_loss(teacher, student), each[mask].mean(), rtol=1e-4)
        by_sample, by_step = np.array([3.0, 0.5]), np.array([[1, 2, 3], [4, 5, 6.0]])
        for weights, wide in ((by_sample, by_sample[:, None]), (by_sample[:, None], by_sample[:, None])):
            loss = term.compute_loss(teacher, tf.constant(b), sample_weight=weights)
            np.testing.assert_allclose(loss, (each * wide).mean(), rtol=1e-4)
        for weights in (by_step, by_step[..., None]):
            loss = term.compute_loss(teacher, tf.constant(b), sample_weight=weights)
            np.testing.assert_allclose(loss, (each * by_step).mean(), rtol=1e-4)
        loss = term.compute_loss(teacher, student, sample_weight=by_step)
        np.testing.assert_allclose(loss, (each * by_step)[mask].mean(), rtol=1e-4)

    def test_a_mask_counts_in_16_bits(self):
        a, b, mask = normal(2, 3, 5), normal(2, 3, 5, seed=1), np.array([[True, False, False], [True, True, False]])
        student = tf.constant(b, tf.float16)
        student._keras_mask = tf.constant(mask)
        loss = SoftLabels().compute_loss(tf.constant(a), student)
        np.testing.assert_allclose(loss, soft_labels(a, b, 4.0)[mask].mean(), rtol=1e-2)

    def test_pixels(self):
        a, b = normal(2, 4, 4, 5), normal(2, 4, 4, 5, seed=1)
        loss = SoftLabels().compute_loss(a, b, sample_weight=np.array([1.0, 0.0]))
        np.testing.assert_allclose(loss, soft_labels(a, b, 4.0)[0].mean() / 2, rtol=1e-4)


class TestLogits:
    def test_of_logits_constants_count(self):
        a, b = normal(6, 5), normal(6, 5, seed=1)
        np.testing.assert_allclose(Logits().compute_loss(a, b), np.mean((a - b) ** 2), rtol=1e-5)
        assert Logits().compute_loss(a, a + 3.0) > 8.9

    @pytest.mark.parametrize(
        "kinds", [(PROBABILITIES, LOGITS), (LOGITS, PROBABILITIES), (PROBABILITIES, PROBABILITIES)]
    )
    def test_of_probabilities_no_constant_counts(self, kinds):
        a, b = normal(6, 5), normal(6, 5, seed=1)
        centred = (z - z.mean(axis=-1, keepdims=True) for z in (a, b))
        expected = np.mean(np.subtract(*centred) ** 2)
        for shift in (0.0, 3.0):
            loss = Logits().compute_loss(given(a, kinds[0]), given(b + shift, kinds[1]), kinds=kinds)
            np.testing.assert_allclose(loss, expected, rtol=1e-3)

    @pytest.mark.parametrize("kinds", [(BINARY, BINARY_LOGITS), (BINARY_LOGITS, BINARY), (BINARY, BINARY)])
    @pytest.mark.parametrize("labels", [1, 5])
    def test_of_sigmoids_it_is_the_same_as_of_their_logits(self, labels, kinds):
        a, b = normal(6, labels), normal(6, labels, seed=1)
        loss = Logits().compute_loss(given(a, kinds[0]), given(b, kinds[1]), kinds=kinds)
        np.testing.assert_allclose(loss, np.mean((a - b) ** 2), rtol=1e-3)

    def test_values_without_a_last_axis(self):
        a, b = normal(6), normal(6, seed=1)
        weights = np.arange(6.0)
        loss = Logits().compute_loss(a, b, sample_weight=weights)
        np.testing.assert_allclose(loss, np.mean(weights * (a - b) ** 2), rtol=1e-5)


class TestHardLabels:
    @pytest.mark.parametrize("kinds", [(LOGITS, LOGITS), (PROBABILITIES, LOGITS), (LOGITS, PROBABILITIES)])
    def test_classes(self, kinds):
        a, b = normal(6, 5), normal(6, 5, seed=1)
        loss = HardLabels().compute_loss(given(a, kinds[0]), given(b, kinds[1]), kinds=kinds)
        np.testing.assert_allclose(loss, -np.log(softmax(b)[np.arange(6), a.argmax(axis=-1)]).mean(), rtol=1e-4)

    @pytest.mark.parametrize("kinds", [(BINARY, BINARY), (BINARY_LOGITS, BINARY), (BINARY, BINARY_LOGITS)])
    def test_labels_that_apply_or_do_not(self, kinds):
        a, b = normal(6, 5), normal(6, 5, seed=1)
        loss = HardLabels().compute_loss(given(a, kinds[0]), given(b, kinds[1]), kinds=kinds)
        expected = -np.mean(np.where(a > 0, np.log(sigmoid(b)), np.log(1 - sigmoid(b))))
        np.testing.assert_allclose(loss, expected, rtol=1e-3)


def test_no_gradient_reaches_the_output_that_teaches_the_others():
    deep, early = tf.Variable(normal(6, 5)), tf.Variable(normal(6, 5, seed=1))
    with tf.GradientTape(persistent=True) as tape:
        loss = SelfDistillation(temperature=3.0).compute_loss(deep, early, temperature=9.0)
    np.testing.assert_allclose(loss, soft_labels(deep.numpy(), early.numpy(), 3).mean(), rtol=1e-4)
    assert tape.gradient(loss, deep) is None
    assert np.abs(tape.gradient(loss, early)).max() > 0


@pytest.mark.parametrize("term", [SoftLabels(), Logits(), SelfDistillation()], ids=lambda term: type(term).__name__)
@pytest.mark.parametrize("kind", [LOGITS, PROBABILITIES, BINARY])
def test_answers_that_are_the_same_cost_nothing(term, kind):
    answers = tf.Variable(given(normal(6, 5), kind))
    with tf.GradientTape() as tape:
        loss = term.compute_loss(tf.constant(answers), answers, kinds=(kind, kind))
    np.testing.assert_allclose(loss, 0, atol=1e-5)
    np.testing.assert_allclose(tape.gradient(loss, answers), 0, atol=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("term", OF_ANSWERS, ids=lambda term: type(term).__name__)
@pytest.mark.parametrize(("kind", "activation"), [(PROBABILITIES, tf.nn.softmax), (BINARY, tf.nn.sigmoid)])
def test_certain_answers_have_finite_losses_and_gradients(term, kind, activation, dtype):
    for certainty in (0.0, 20.0, 1000.0):
        logits = tf.Variable(np.eye(3, dtype=np.float32)[[1, 2, 0]] * certainty)
        with tf.GradientTape() as tape:
            student = activation(tf.cast(logits, dtype))
            loss = term.compute_loss(tf.eye(3, dtype=dtype), student, kinds=(kind, kind), temperature=1.0)
        assert np.isfinite(loss)
        assert np.isfinite(tape.gradient(loss, logits)).all()


@pytest.mark.parametrize("term", OF_ANSWERS, ids=lambda term: type(term).__name__)
def test_answers_in_16_bits(term):
    a, b = normal(6, 5), normal(6, 5, seed=1)
    narrow = term.compute_loss(tf.constant(a, tf.float16), tf.constant(b, tf.float16))
    assert narrow.dtype == tf.float32
    np.testing.assert_allclose(narrow, term.compute_loss(a, b), rtol=2e-2)


@pytest.mark.parametrize("term", OF_ANSWERS, ids=lambda term: type(term).__name__)
def test_xla_compiles_it(term):
    a, b = softmax(normal(4, 5)), softmax(normal(4, 5, seed=1))
    compiled = tf.function(term.compute_loss, jit_compile=True, autograph=False)
    np.testing.assert_allclose(compiled(a, b), term.compute_loss(a, b), rtol=1e-4)


@pytest.mark.parametrize(
    "term",
    [SoftLabels(), SoftLabels(2.5, "digit"), Logits(1), HardLabels("digit"), SelfDistillation("deep", 3.0)],
    ids=lambda term: type(term).__name__,
)
def test_it_can_be_stored(term):
    stored = keras.saving.serialize_keras_object(term)
    again = keras.saving.deserialize_keras_object(stored)
    assert stored["registered_name"] == f"edgecompress>{type(term).__name__}"
    assert type(again) is type(term)
    assert again.get_config() == term.get_config()


def model(units, *, activation=None, name="model", seed=0):
    keras.utils.set_random_seed(seed)
    return keras.Sequential([
        keras.Input((4,)), layers.Dense(units, name="hidden"), layers.Dense(3, activation=activation, name="top"),
    ], name=name)  # fmt: skip


SAMPLES = (normal(8, 4), np.arange(8) % 3)
TASK = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


class TestWithKeras:
    @pytest.mark.parametrize(
        "term",
        [SoftLabels(), Logits(), HardLabels(), Features("hidden", "hidden"), SimilarityPreserving("hidden", "hidden")],
        ids=lambda term: type(term).__name__,
    )
    def test_its_distiller_takes_our_losses(self, term):
        teacher, student = model(6), model(6, seed=1)
        seen = keras.Model(teacher.inputs[0], [teacher.get_layer("hidden").output, teacher.outputs[0]])(SAMPLES[0])
        found = keras.Model(student.inputs[0], [student.get_layer("hidden").output, student.outputs[0]])(SAMPLES[0])
        place = 0 if hasattr(term, "student_layer_name") and term.student_layer_name else 1
        expected = 0.5 * TASK(SAMPLES[1], found[1]) + 0.5 * term.compute_loss(seen[place], found[place])
        distiller = keras.distillation.Distiller(teacher, student, distillation_losses=term, student_loss_weight=0.5)
        distiller.compile("sgd", TASK)
        history = distiller.fit(*SAMPLES, batch_size=8, verbose=0).history
        np.testing.assert_allclose(history["loss"], expected, rtol=1e-4)

    @pytest.mark.parametrize(
        ("term", "activation", "need"),
        [
            (SoftLabels(), "softmax", "SoftLabels: it has to turn probabilities into logits"),
            (SelfDistillation(), None, "SelfDistillation: it compares outputs of the student with each other"),
            (Features("hidden", "hidden", "linear"), None, "Features: it trains a projector"),
            (HiddenStates("hidden", "hidden"), None, "HiddenStates: it looks inside of layers"),
        ],
    )
    def test_its_distiller_is_refused_what_it_cannot_do(self, term, activation, need):
        fix = "which keras.distillation.Distiller does not do. Fix: use edgecompress.distill.Distiller"
        with pytest.raises(UsageError, match=f"{need}, {fix}"):
            keras.distillation.Distiller(model(6), model(5, activation=activation), distillation_losses=term)

    @pytest.mark.parametrize(
        "term",
        [
            keras.distillation.LogitsDistillation(temperature=2.0),
            keras.distillation.FeatureDistillation(
                teacher_layer_name="hidden", student_layer_name="hidden", loss="mean_squared_error"
            ),
        ],
        ids=lambda term: type(term).__name__,
    )
    def test_our_distiller_takes_its_losses(self, term):
        ours, theirs = (
            kind(model(6, seed=1), model(6), **options)
            if kind is Distiller
            else kind(model(6), model(6, seed=1), **options)
            for kind, options in (
                (Distiller, {"losses": term, "alpha": 0.25}),
                (keras.distillation.Distiller, {"distillation_losses": term, "student_loss_weight": 0.75}),
            )
        )
        for distiller in (ours, theirs):
            distiller.compile(keras.optimizers.SGD(0.1), TASK)
            distiller.fit(*SAMPLES, batch_size=8, epochs=2, verbose=0)
        for one, other in zip(ours.student.weights, theirs.student.weights, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)
