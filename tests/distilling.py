"""What tests of distillation share: small students of the digits, and the losses in NumPy."""

from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from edgecompress.distill import Distiller


def mlp_student(units=12, *, activation="softmax", seed=0, **dense):
    """A student of images that computes the same however samples are split into batches."""
    keras.utils.set_random_seed(seed)
    return keras.Sequential([
        keras.Input((8, 8, 1), name="image"),
        layers.Flatten(),
        layers.Dense(units, activation="relu", name="hidden", **dense),
        layers.Dense(10, activation=activation, name="digit"),
    ], name="small")  # fmt: skip


def mlp_teacher(*, activation="softmax", seed=5, name="big"):
    """A teacher with a regularizer, a dropout and a normalization that has seen nothing yet; it is not trained."""
    keras.utils.set_random_seed(seed)
    return keras.Sequential([
        keras.Input((8, 8, 1), name="image"),
        layers.Flatten(),
        layers.Dense(24, activation="relu", kernel_regularizer=keras.regularizers.L2(0.1)),
        layers.BatchNormalization(),
        layers.Dropout(0.5),
        layers.Dense(10, activation=activation, kernel_initializer=keras.initializers.RandomNormal(stddev=1.0)),
    ], name=name)  # fmt: skip


def compiled(student, teacher, *, optimizer=None, loss="sparse_categorical_crossentropy", options=None, **settings):
    distiller = Distiller(student, teacher, **settings)
    distiller.compile(optimizer or keras.optimizers.SGD(0.1), loss, **(options or {}))
    return distiller


def crossentropies(probabilities, labels):
    return -np.log(probabilities[np.arange(len(labels)), labels])


def divergences(teacher, student, temperature):
    """T^2 * KL(teacher || student) of probabilities, for each sample."""
    wanted, found = (_softened(np.log(side), temperature) for side in (teacher, student))
    return temperature**2 * np.sum(wanted * (np.log(wanted) - np.log(found)), axis=-1)


def _softened(logits, temperature):
    exponentials = np.exp(logits / temperature - np.max(logits / temperature, axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def weights_of(model):
    return [variable.numpy() for variable in model.weights]


def assert_same_weights(one, other, atol=0.0):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=atol)


class CountedTeacher(layers.Layer):
    """Passes on what it gets, and counts how many samples came by in a graph."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.asked = tf.Variable(0, trainable=False)

    def call(self, inputs):
        self.asked.assign_add(tf.shape(inputs)[0])
        return inputs


def counted(teacher):
    """The teacher, and the number of samples that it was asked for, as a TensorFlow variable."""
    counter = CountedTeacher()
    image = keras.Input(teacher.input_shape[1:], name="image")
    return keras.Model(image, teacher(counter(image)), name="counted"), counter.asked


def saved(model, path: Path) -> Path:
    model.save(path)
    return path


def normal(*shape, seed=0, scale=2.0):
    """Random numbers that are the same each time."""
    return np.random.default_rng(seed).normal(0, scale, shape).astype(np.float32)


def softmax(logits):
    return _softened(logits, temperature=1.0)


def divergence(p, q):
    """KL(p || q) over the last axis."""
    return np.sum(p * (np.log(p) - np.log(q)), axis=-1)
