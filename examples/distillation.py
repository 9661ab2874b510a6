"""A .tflite file teaches a smaller network: its answers stand in the place of labels that nobody has any more.

usage: distillation.py [epochs]
"""

from __future__ import annotations

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from digits import digits

import edgecompress
from edgecompress.distill import Distiller, make_student

LABELS = 300
EPOCHS = int(sys.argv[1]) if len(sys.argv) > 1 else 20


def make_teacher() -> keras.Model:
    layers = keras.layers
    return keras.Sequential([
        keras.Input((8, 8, 1), name="image"),
        layers.Conv2D(32, 3, padding="same", activation="relu"),
        layers.Conv2D(64, 3, padding="same", activation="relu"),
        layers.MaxPooling2D(),
        layers.Flatten(),
        layers.Dense(128, activation="relu"),
        layers.Dropout(0.3),
        layers.Dense(10, activation="softmax", name="digit"),
    ], name="digits_teacher")  # fmt: skip


def train(model: keras.Model, samples: object, labels: np.ndarray | None = None) -> None:
    model.compile(keras.optimizers.Adam(3e-3), None if labels is None else "sparse_categorical_crossentropy")
    model.fit(samples, labels, epochs=EPOCHS, verbose=0)


def main() -> None:
    (x, y), (x_test, y_test) = digits(as_rows=False)
    keras.utils.set_random_seed(0)
    teacher = make_teacher()
    train(teacher, x, y)
    report = edgecompress.convert(teacher, "pixel", data=(x, y), output="shipped", benchmark=False)
    shipped = f"shipped/{next(name for name in report.files if name.endswith('.tflite'))}"

    student, alone = make_student(teacher, width=0.2), make_student(teacher, width=0.2)
    alone.set_weights(student.get_weights())
    train(alone, x[:LABELS], y[:LABELS])
    distiller = Distiller(student, shipped, alpha=1.0, temperature=2.0)
    train(distiller, distiller.with_answers(x, cache="answers"))

    print(f"shipped int8 file: {edgecompress.evaluate(shipped, (x_test, y_test)).scores.accuracy:.2%} right")
    print(f"student: {student.count_params() / teacher.count_params():.1%} of the weights")
    for how, model in {f"the {LABELS} labels that are left": alone, f"{len(x):,} answers of the file": student}.items():
        right = np.mean(model.predict(x_test, verbose=0).argmax(-1) == y_test)
        print(f"taught by {how}: {right:.2%} right")


if __name__ == "__main__":
    main()
