"""Handwritten digits that come with scikit-learn, and two small Keras models of them: an image CNN and a row GRU.

1,797 images of 8 x 8 pixels (E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI, CC BY 4.0).
"""

from __future__ import annotations

import sys
from pathlib import Path

import keras
import numpy as np
from sklearn.datasets import load_digits

_TRAINING = 1200


def digits(*, as_rows: bool) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Returns (x, y) for training and (x, y) for testing; images (n, 8, 8, 1) or row sequences (n, 8, 8), in [0, 1]."""
    pixels, labels = load_digits(return_X_y=True)
    shape = (-1, 8, 8) if as_rows else (-1, 8, 8, 1)
    x = (pixels / 16).astype(np.float32).reshape(shape)
    return (x[:_TRAINING], labels[:_TRAINING]), (x[_TRAINING:], labels[_TRAINING:])


def make_cnn() -> keras.Model:
    layers = keras.layers
    return keras.Sequential([
        keras.Input((8, 8, 1), name="image"),
        layers.Conv2D(16, 3, padding="same", use_bias=False, name="conv"),
        layers.BatchNormalization(momentum=0.9, name="norm"),
        layers.ReLU(name="relu"),
        layers.Conv2D(32, 3, strides=2, padding="same", activation="relu", name="conv_2"),
        layers.GlobalAveragePooling2D(name="pool"),
        layers.Dense(10, activation="softmax", name="digit"),
    ], name="digits_cnn")  # fmt: skip


def make_gru() -> keras.Model:
    layers = keras.layers
    return keras.Sequential([
        keras.Input((8, 8), name="rows"),
        layers.GRU(64, name="gru"),
        layers.Dense(10, activation="softmax", name="digit"),
    ], name="digits_gru")  # fmt: skip


def train(model: keras.Model, *, as_rows: bool, epochs: int, folder: Path) -> tuple[Path, Path]:
    """Trains a model, and writes it as .keras and the test samples as .npz; returns both paths.

    The training samples are written, too, as `<model>-train.npz`.
    """
    (x, y), (x_test, y_test) = digits(as_rows=as_rows)
    model.compile(keras.optimizers.Adam(3e-3), "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(x, y, epochs=epochs, batch_size=32, verbose=0)
    model_file, data_file = folder / f"{model.name}.keras", folder / f"{model.name}.npz"
    model.save(model_file)
    np.savez(data_file, x=x_test, y=y_test)
    np.savez(folder / f"{model.name}-train.npz", x=x, y=y)
    return model_file, data_file


if __name__ == "__main__":
    keras.utils.set_random_seed(0)
    for build, as_rows in ((make_cnn, False), (make_gru, True)):
        train(build(), as_rows=as_rows, epochs=int(sys.argv[2]), folder=Path(sys.argv[1]))
