"""Reads handwritten digits row by row, as they arrive: a GRU as an int8 file of a single time step.

usage: streaming.py [epochs]
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from digits import digits, make_gru

import edgecompress

EPOCHS = int(sys.argv[1]) if len(sys.argv) > 1 else 20


def main() -> None:
    keras.utils.set_random_seed(0)
    train, test = digits(as_rows=True)
    model = make_gru()
    model.compile(keras.optimizers.Adam(3e-3), "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(*train, epochs=EPOCHS, verbose=0)

    for form in ("loop", "step"):
        recipe = edgecompress.Recipe(quantization={"scheme": "int8", "recurrent": form})
        report = edgecompress.convert(model, "host", data=test, recipe=recipe, output=f"digits-{form}", benchmark=False)
        print(f"{form}: {report.after.size_bytes:,} bytes of {report.before.size_bytes:,}")

    # The file says itself which of its inputs and outputs are states, and that they begin with zeros.
    reader = edgecompress.StreamRunner("digits-step/digits_gru.tflite")
    guesses = [reader.step(rows=row)["digit"] for row in test[0][0]]
    print(f"a {test[1][0]}, row by row:", *(f"{guess.argmax()} ({guess.max():.0%})" for guess in guesses))

    # golden.npz has what a file answers to some of the samples: this is that of the loop.
    with np.load(Path("digits-loop", "golden.npz")) as golden:
        pairs = list(zip(golden["input.rows"], golden["output.digit"], strict=True))
    same = sum(np.array_equal(reader.run(rows=rows)["digit"], answer) for rows, answer in pairs)
    print(f"the same as the loop over the whole sequence: {same} of {len(pairs)} answers")


if __name__ == "__main__":
    main()
