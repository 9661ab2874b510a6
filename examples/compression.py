"""Compresses a small CNN of handwritten digits from Python: pruned as a Keras model, then int8 by training.

usage: compression.py [epochs]
"""

from __future__ import annotations

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
from digits import digits, make_cnn

import edgecompress

EPOCHS = int(sys.argv[1]) if len(sys.argv) > 1 else 10


def main() -> None:
    keras.utils.set_random_seed(0)
    train, test = digits(as_rows=False)
    model = make_cnn()
    model.compile(keras.optimizers.Adam(3e-3), "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(*train, epochs=3 * EPOCHS, verbose=0)

    # A recipe says what is done, in which order; a TOML file and the command line say the same.
    training = edgecompress.Training(epochs=EPOCHS)
    prune = edgecompress.Prune(sparsity=0.8, layers={"digit": 0.5})
    pruned = edgecompress.compress(
        model, "digits_pruned.keras", recipe=edgecompress.Recipe(passes=(prune,), training=training),
        train=train, data=test,
    )  # fmt: skip
    for kernel in pruned.passes[0].proof:
        print(f"{100 * kernel.sparsity:.0f} % of {kernel.layer} are zero")

    recipe = edgecompress.Recipe(passes=(edgecompress.Qat(),), training=training)
    report = edgecompress.convert(
        keras.models.load_model("digits_pruned.keras", compile=False), "host", train=train, data=test, recipe=recipe,
        output="digits_cnn-host",
    )  # fmt: skip
    before, after = report.before, report.after
    print(f"{report.scheme}: {before.gzip_bytes:,} bytes as gzip became {after.gzip_bytes:,}")
    if before.scores is not None and after.scores is not None:
        print(f"accuracy: {before.scores.accuracy:.2%} pruned, {after.scores.accuracy:.2%} in integers")


if __name__ == "__main__":
    main()
