from __future__ import annotations

import numpy as np
import pytest

from edgecompress.data import Dataset


@pytest.fixture(scope="session")
def keras():
    return pytest.importorskip("keras")


@pytest.fixture(scope="session")
def samples(digits):
    """600 training images (8, 8, 1) and their class numbers."""
    (x, y), _ = digits.digits(as_rows=False)
    return Dataset({"image": x[:600]}, y[:600], source="digits")


@pytest.fixture(scope="session")
def net(keras, samples):
    """A small trained network of two convolutions and two Dense layers; passes copy it."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential([
        keras.Input((8, 8, 1), name="image"),
        layers.Conv2D(8, 3, activation="relu", name="conv"),
        layers.BatchNormalization(name="norm"),
        layers.Conv2D(16, 3, activation="relu", strides=2, name="conv_2"),
        layers.Flatten(name="flat"),
        layers.Dense(32, activation="relu", name="hidden"),
        layers.Dense(10, activation="softmax", name="digit"),
    ])  # fmt: skip
    model.compile(keras.optimizers.Adam(3e-3), "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(samples.inputs["image"], samples.labels, epochs=6, batch_size=32, verbose=0)
    return model


@pytest.fixture(scope="session")
def accuracy(digits):
    """A function from a model to its share of right answers on images that it was not trained on."""
    _, (x, y) = digits.digits(as_rows=False)

    def measure(model):
        return float(np.mean(np.asarray(model(x)).argmax(-1) == y))

    return measure
