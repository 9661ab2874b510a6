"""Probabilities and logits, softened, against NumPy."""

import numpy as np
import pytest
import tensorflow as tf

from edgecompress.distill.answers import AnswerKind, as_logits, log_probabilities, logits_of

LOGITS, PROBABILITIES = AnswerKind(), AnswerKind(probabilities=True)
BINARY_LOGITS, BINARY = AnswerKind(binary=True), AnswerKind(probabilities=True, binary=True)


def softmax(logits):
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def sigmoid(logits):
    return 1 / (1 + np.exp(-logits))


@pytest.fixture
def logits():
    return np.random.default_rng(0).normal(0, 3, (4, 3, 5)).astype(np.float32)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_softened_probabilities_are_the_same_of_logits_and_of_probabilities(logits, temperature):
    expected = np.log(softmax(logits / temperature))
    for answers, kind in ((logits, LOGITS), (softmax(logits), PROBABILITIES)):
        found = log_probabilities(tf.constant(answers), kind, temperature)
        np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_binary_answers_are_about_two_classes_each(logits, temperature):
    yes = sigmoid(logits / temperature)
    expected = np.log(np.stack([1 - yes, yes], axis=-1))
    for answers, kind in ((logits, BINARY_LOGITS), (sigmoid(logits), BINARY)):
        found = log_probabilities(tf.constant(answers), kind, temperature)
        assert found.shape == (4, 3, 5, 2)
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_logits_keep_the_shape_of_the_answers_where_that_is_asked_for(logits):
    np.testing.assert_array_equal(as_logits(tf.constant(logits), LOGITS), logits)
    np.testing.assert_allclose(as_logits(tf.constant(sigmoid(logits)), BINARY), logits, atol=1e-3)
    found = as_logits(tf.constant(softmax(logits)), PROBABILITIES).numpy()
    np.testing.assert_allclose(found - found[..., :1], logits - logits[..., :1], atol=1e-4)
    assert logits_of(tf.constant(logits), BINARY_LOGITS).shape == (4, 3, 5, 2)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("kind", [PROBABILITIES, BINARY])
def test_certain_answers_have_finite_logits(kind, dtype):
    found = logits_of(tf.cast([[0.0, 1.0], [1.0, 0.0]], dtype), kind)
    assert found.dtype == tf.float32
    assert np.isfinite(found).all()
    assert np.argmax(log_probabilities(tf.constant([[0.0, 1.0]]), PROBABILITIES)) == 1


def test_a_softmax_in_32_bits_tells_small_probabilities_from_none():
    small = tf.constant([[1.0, 1e-20, 1e-25]])
    np.testing.assert_allclose(logits_of(small, PROBABILITIES)[0], np.log([1, 1e-20, 1e-25]), rtol=1e-5)


def test_titles():
    assert (LOGITS.title, PROBABILITIES.title) == ("logits", "probabilities")
