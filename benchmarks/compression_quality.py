"""What each technique costs in accuracy and saves in bytes, on a real task: a small CNN of handwritten digits.

Training and test samples are MNIST's where its file is given (x_train, y_train, x_test, y_test as uint8), else the
1,797 smaller digits of scikit-learn. Bytes of Keras models are those of the float weights in an .npz file, against
those of the dense model; bytes of int8 files are against the float32 .tflite file. Compressed models are trained for
longer than the dense one, so a gain is partly that.

usage: compression_quality.py [--mnist FILE.npz] [--samples 10000] [--epochs 6] [--seed 0] [--save FILE]
"""

from __future__ import annotations

import argparse
import gzip
import io
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from results import save_results
from sklearn.datasets import load_digits

from edgecompress import Recipe, convert
from edgecompress.data import Dataset
from edgecompress.passes import apply_passes
from edgecompress.passes.base import PassContext
from edgecompress.recipes import Quantization, Verification
from edgecompress.schemes import QuantizationScheme
from edgecompress.techniques import Cluster, Prune, Qat, Technique, Training

DENSE_EPOCHS = 8


@dataclass(frozen=True)
class Task:
    """Images of shape (n, height, width, 1) in [0, 1], and their class numbers."""

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    name: str

    @property
    def training(self) -> Dataset:
        return Dataset({"image": self.x}, self.y)


@dataclass(frozen=True)
class Row:
    """One variant's figures; `proof` is the worst of its kernels."""

    accuracy: float
    raw_bytes: int
    gzip_bytes: int
    seconds: float
    proof: str
    float_gzip_bytes: int | None = None


def load_task(mnist: Path | None, samples: int) -> Task:
    if mnist is None:
        pixels, labels = load_digits(return_X_y=True)
        x = (pixels / 16).astype(np.float32).reshape(-1, 8, 8, 1)
        return Task(x[:1200], labels[:1200], x[1200:], labels[1200:], "scikit-learn digits, 1200 for training")
    with np.load(mnist) as file:
        x, x_test = ((file[key] / 255).astype(np.float32)[..., None] for key in ("x_train", "x_test"))
        y, y_test = file["y_train"].astype(np.int64), file["y_test"].astype(np.int64)
    chosen = np.random.default_rng(0).permutation(len(x))[:samples]  # the file may be in the order of the classes
    return Task(x[chosen], y[chosen], x_test, y_test, f"MNIST, {samples} for training, {len(x_test)} for testing")


def train_dense(task: Task) -> keras.Model:
    layers = keras.layers
    model = keras.Sequential([
        keras.Input(task.x.shape[1:], name="image"),
        layers.Conv2D(16, 3, activation="relu", padding="same"),
        layers.Conv2D(32, 3, activation="relu", padding="same", strides=2),
        layers.Conv2D(64, 3, activation="relu", padding="same", strides=2),
        layers.Flatten(),
        layers.Dense(128, activation="relu"),
        layers.Dense(10, activation="softmax"),
    ])  # fmt: skip
    model.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(task.x, task.y, epochs=DENSE_EPOCHS, batch_size=32, verbose=0)
    return model


def measure_keras(model: keras.Model, task: Task, seconds: float, proof: str) -> Row:
    buffer = io.BytesIO()
    np.savez(buffer, *[np.asarray(weight) for weight in model.weights])
    packed = gzip.compress(buffer.getvalue(), 9, mtime=0)
    accuracy = float(np.mean(model.predict(task.x_test, verbose=0).argmax(-1) == task.y_test))
    return Row(accuracy, len(buffer.getvalue()), len(packed), seconds, proof)


def compress(*passes: Technique) -> Callable[[keras.Model, Task, PassContext], Row]:
    def run(model: keras.Model, task: Task, context: PassContext) -> Row:
        start = time.perf_counter()
        compressed, results = apply_passes(model, passes, context)
        seconds = time.perf_counter() - start
        proofs = results[-1].proof
        sparsity, distinct = min(p.sparsity for p in proofs), max(p.distinct for p in proofs)
        return measure_keras(compressed, task, seconds, f"zeros >= {sparsity:.3f}, values <= {distinct}")

    return run


def convert_int8(*passes: Technique) -> Callable[[keras.Model, Task, PassContext], Row]:
    def run(model: keras.Model, task: Task, context: PassContext) -> Row:
        start = time.perf_counter()
        recipe = Recipe(
            seed=context.seed, passes=passes, training=context.training,
            quantization=Quantization(scheme=QuantizationScheme.INT8),
            verification=Verification(samples=len(task.x_test)),
        )  # fmt: skip
        train = (task.x, task.y) if passes else None
        with tempfile.TemporaryDirectory() as folder:
            report = convert(
                model, "host", data=(task.x_test, task.y_test), train=train, recipe=recipe,
                output=f"{folder}/out", benchmark=False,
            )  # fmt: skip
        if report.failed:
            raise SystemExit("\n".join(report.failed))
        proof = ""
        if report.kernels:
            sparsity, distinct = min(k.sparsity for k in report.kernels), max(k.distinct for k in report.kernels)
            proof = f"zeros >= {sparsity:.3f}, values <= {distinct}"
        accuracy = report.verified.scores.accuracy if report.verified.scores else None
        return Row(
            accuracy or 0.0, report.after.size_bytes, report.after.gzip_bytes, time.perf_counter() - start, proof,
            report.before.gzip_bytes,
        )  # fmt: skip

    return run


PRUNE, CLUSTER, QAT = Prune(sparsity=0.8), Cluster(clusters=16), Qat()
VARIANTS: dict[str, Callable[[keras.Model, Task, PassContext], Row]] = {
    "dense": lambda model, task, _context: measure_keras(model, task, 0.0, ""),
    "80 % zeros": compress(PRUNE),
    "80 % zeros, constant schedule": compress(PRUNE.model_copy(update={"schedule": "constant"})),
    "80 % zeros, by sensitivity": compress(PRUNE.model_copy(update={"criterion": "sensitivity"})),
    "16 clusters": compress(CLUSTER),
    "80 % zeros, then 16 clusters": compress(PRUNE, CLUSTER),
    "int8 without training": convert_int8(),
    "int8 by QAT": convert_int8(QAT),
    "int8 by PQAT (80 % zeros)": convert_int8(PRUNE, QAT),
    "int8 by CQAT (16 clusters)": convert_int8(CLUSTER, QAT),
    "int8 by PCQAT (both)": convert_int8(PRUNE, CLUSTER, QAT),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mnist", type=Path)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=6, help="of each pass")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", type=Path)
    options = parser.parse_args()
    keras.utils.set_random_seed(options.seed)
    task = load_task(options.mnist, options.samples)
    dense = train_dense(task)
    context = PassContext(
        training=Training(epochs=options.epochs),
        seed=options.seed,
        data=task.training,
        compile_config=dense.get_compile_config(),
    )
    print(f"{task.name}; {options.epochs} epochs a pass\n")
    print(f"{'':32}{'accuracy':>9}{'points':>8}{'raw kB':>9}{'gzip kB':>9}{'ratio':>7}{'seconds':>9}  proof")
    rows: dict[str, Row] = {}
    for name, run in VARIANTS.items():
        row = rows[name] = run(dense, task, context)
        base = rows["dense"]
        ratio = (row.float_gzip_bytes or base.gzip_bytes) / row.gzip_bytes
        print(
            f"{name:32}{row.accuracy:9.4f}{100 * (row.accuracy - base.accuracy):+8.2f}{row.raw_bytes / 1e3:9.1f}"
            f"{row.gzip_bytes / 1e3:9.1f}{ratio:7.2f}{row.seconds:9.1f}  {row.proof}"
        )
    save_results(options.save, {"task": task.name, **{name: asdict(row) for name, row in rows.items()}})


if __name__ == "__main__":
    main()
