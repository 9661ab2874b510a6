"""Whole models beside what the pass `low_rank` makes of them: `edgecompress.compare`, both in one run, by turns.

    python benchmarks/low_rank_models.py --save benchmarks/results/low_rank_models.json

Files are compared in float32, in dynamic range and in int8. Latency does not depend on what the weights are, so nothing
is trained and ranks are shares of the weights, which every kernel has. A model that was slower is measured again, and
the script ends with 1 if it stays so.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import keras
import numpy as np
from digits import make_cnn, make_gru
from results import save_results
from reviews import make_gru as make_sentiment

from edgecompress import LowRank, QuantizationScheme, Recipe, compare, convert
from edgecompress.passes.base import PassContext
from edgecompress.passes.low_rank import apply_low_rank
from edgecompress.recipes import Quantization

SHARES = (0.25, 0.5, 0.75)
SLOWER = 1.02
AGAIN = 3
SAMPLES = 8
layers = keras.layers


def make_wide_cnn() -> keras.Model:
    """Four 3 x 3 convolutions of 32 to 128 channels and a Dense layer."""
    stack: list[Any] = [keras.Input((32, 32, 3))]
    for filters, strides in ((32, 1), (64, 2), (64, 1), (128, 2)):
        stack += [layers.Conv2D(filters, 3, strides=strides, padding="same", use_bias=False),
                  layers.BatchNormalization(), layers.ReLU()]  # fmt: skip
    return keras.Sequential([*stack, layers.Flatten(), layers.Dense(256, "relu"), layers.Dense(10)])


def make_lstm() -> keras.Model:
    return keras.Sequential([
        keras.Input((50, 40)), layers.Bidirectional(layers.LSTM(64, return_sequences=True)),
        layers.TimeDistributed(layers.Dense(64, "relu")), layers.LSTM(96), layers.Dense(12),
    ])  # fmt: skip


MODELS: dict[str, Callable[[], keras.Model]] = {
    "digits CNN": make_cnn,
    "digits GRU": make_gru,
    "sentiment GRU": make_sentiment,
    "wide CNN, 32 x 32": make_wide_cnn,
    "two LSTMs, 50 steps": make_lstm,
    "MLP, 784-512-512-10": lambda: keras.Sequential([
        keras.Input((784,)), layers.Dense(512, "relu"), layers.Dense(512, "relu"), layers.Dense(10)
    ]),
    "MobileNetV2, 96 x 96": lambda: keras.applications.MobileNetV2((96, 96, 3), weights=None),
}  # fmt: skip


def has_int8_file(model: keras.Model) -> bool:
    """Whether an int8 file can be made of it: not of recurrent layers and embeddings."""
    return not any(isinstance(layer, (layers.RNN, layers.Bidirectional, layers.Embedding)) for layer in model.layers)


def write(model: keras.Model, scheme: QuantizationScheme, folder: Path) -> Path:
    """Converts for this machine; calibrated on noise, as only the latency of the file matters here."""
    noise = np.random.default_rng(0).normal(size=(SAMPLES, *model.input_shape[1:])).astype("float32")
    recipe = Recipe(quantization=Quantization(scheme=scheme))
    data = noise if scheme.needs_calibration else None
    convert(model, output=folder, data=data, recipe=recipe, benchmark=False)
    (file,) = folder.glob("*.tflite")
    return file


def measure(files: list[Path], runs: int) -> tuple[Any, Any, float]:
    """Returns the rows of both files, and the ratio of their median latencies."""
    before, after = compare(files, runs=runs).rows
    return before, after, after.measurement.latency.median_ms / before.measurement.latency.median_ms


def rows_of(name: str, runs: int) -> Iterator[dict[str, Any]]:
    """Yields what each scheme and share makes of a model; with no figures where no layer was replaced."""
    keras.utils.set_random_seed(0)
    model = MODELS[name]()
    schemes = [QuantizationScheme.FLOAT32, QuantizationScheme.DYNAMIC]
    schemes += [QuantizationScheme.INT8] * has_int8_file(model)
    for scheme in schemes:
        with tempfile.TemporaryDirectory() as scratch:
            original = write(model, scheme, Path(scratch, "original"))
            for share in SHARES:
                context = PassContext(multiple=16, quantized=scheme is not QuantizationScheme.FLOAT32)
                small, result = apply_low_rank(model, LowRank(ratio=share), context)
                replaced = sum(one.accepted for one in result.ranks)
                row = {"model": name, "scheme": str(scheme), "share": share, "replaced": replaced,
                       "left_alone": len(result.ranks) - replaced}  # fmt: skip
                if replaced:
                    files = [original, write(small, scheme, Path(scratch, str(share)))]
                    row |= figures_of(files, runs) | {"parameters": [model.count_params(), small.count_params()]}
                yield row


def figures_of(files: list[Path], runs: int) -> dict[str, Any]:
    before, after, ratio = measure(files, runs)
    if ratio > SLOWER:
        ratio = statistics.median(measure(files, runs)[2] for _ in range(AGAIN))
    return {
        "macs": [before.macs, after.macs], "size_bytes": [before.size_bytes, after.size_bytes],
        "median_ms": [before.measurement.latency.median_ms, after.measurement.latency.median_ms],
        "ratio": round(ratio, 3),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--save", type=Path)
    options = parser.parse_args()
    rows = []
    titles = f"{'weights':>22} {'MACs':>6} {'bytes':>22} {'ms':>16} {'ratio':>6}"
    print(f"{'model':22} {'scheme':8} {'share':>5} {'layers':>6} {titles}")
    for name in MODELS:
        for row in rows_of(name, options.runs):
            print(f"{name:22} {row['scheme']:8} {row['share']:5.2f} {row['replaced']:6} {_shown(row)}", flush=True)
            rows.append(row)
    save_results(options.save, rows)
    sys.exit(1 if any(row.get("ratio", 0) > SLOWER for row in rows) else 0)


def _shown(row: dict[str, Any]) -> str:
    if not row["replaced"]:
        return "none of its layers is replaced"
    weights, macs, sizes, ms = row["parameters"], row["macs"], row["size_bytes"], row["median_ms"]
    fewer = f"{macs[1] / macs[0]:.2f}" if None not in macs else "?"
    return (
        f"{weights[0]:10,} -> {weights[1]:9,} {fewer:>6} {sizes[0]:10,} -> {sizes[1]:9,} "
        f"{ms[0]:7.3f} -> {ms[1]:5.3f} {row['ratio']:6.2f}"
    )


if __name__ == "__main__":
    main()
