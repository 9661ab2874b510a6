"""Writes a wide dense layer as a product of two: by its weights alone (plain SVD), and by what it is fed with.

usage: low_rank_linear.py [epochs]
"""

from __future__ import annotations

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from digits import digits

import edgecompress

EPOCHS = int(sys.argv[1]) if len(sys.argv) > 1 else 10


def make_wide(layer: keras.layers.Layer) -> keras.Model:
    """Returns a dense network of handwritten digits with a given layer, 512 to 512, in its middle."""
    layers = keras.layers
    first = layers.Dense(512, activation="relu", name="first")
    last = layers.Dense(10, activation="softmax", name="digit")
    return keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(), first, layer, last], name="wide_digits")


def train(model: keras.Model, samples: tuple[np.ndarray, np.ndarray], *, epochs: int, rate: float = 1e-3) -> None:
    model.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(*samples, epochs=epochs, verbose=0)


def bytes_of(model: keras.Model) -> tuple[int, int]:
    """Returns the size of the model's float .tflite file, raw and as gzip."""
    recipe = edgecompress.Recipe(quantization={"scheme": "float32"})
    file = edgecompress.convert(model, "host", recipe=recipe, output="wide_digits-host", benchmark=False).after
    return file.size_bytes, file.gzip_bytes


def main() -> None:
    keras.utils.set_random_seed(0)
    samples, (x, y) = digits(as_rows=False)
    model = make_wide(keras.layers.Dense(512, activation="relu", name="wide"))
    train(model, samples, epochs=EPOCHS)
    exact = keras.Model(model.inputs, model.get_layer("wide").output).predict(x, verbose=0)
    print(f"dense: {model.evaluate(x, y, verbose=0)[1]:.2%} right, {bytes_of(model)[0]:,} bytes")
    for rank in (8, 32):
        for how, aware in (("plain SVD", False), ("activation-aware", True)):
            low_rank = edgecompress.LowRank(layers={"wide": rank, ".": 0}, activation_aware=aware)
            recipe = edgecompress.Recipe(passes=(low_rank,))
            edgecompress.compress(model, "wide_digits_small.keras", recipe=recipe, data=samples)
            small = keras.models.load_model("wide_digits_small.keras", compile=False)
            lost = keras.Model(small.inputs, small.get_layer("wide").output).predict(x, verbose=0) - exact
            error, right = np.linalg.norm(lost) / np.linalg.norm(exact), small.predict(x, verbose=0).argmax(-1) == y
            print(f"rank {rank}, {how}: output error {error:.4f}, {right.mean():.2%} right")
        print(f"rank {rank}: {bytes_of(small)[0]:,} bytes")


if __name__ == "__main__":
    main()
