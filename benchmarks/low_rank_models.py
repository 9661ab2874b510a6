"""Whole models beside what the pass `low_rank` makes of them: `edgecompress.compare`, both in one run, by turns.

    python benchmarks/low_rank_models.py --save benchmarks/results/low_rank_models.json

Latency does not depend on what the weights are, so nothing is trained and ranks are shares of the weights, which every
kernel has. A model that was slower is measured again, and the script ends with 1 if it stays so.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import keras
from digits import make_cnn, make_gru
from results import save_results
from reviews import make_gru as make_sentiment

from edgecompress import LowRank, compare
from edgecompress.passes.base import PassContext
from edgecompress.passes.low_rank import apply_low_rank

SHARES = (0.25, 0.5, 0.75)
SLOWER = 1.02
AGAIN = 3
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


def measure(models: list[keras.Model], runs: int) -> tuple[Any, Any, float]:
    """Returns the rows of both models, and the ratio of their median latencies."""
    before, after = compare(models, runs=runs).rows
    return before, after, after.measurement.latency.median_ms / before.measurement.latency.median_ms


def row_of(name: str, share: float, runs: int) -> dict[str, Any] | None:
    keras.utils.set_random_seed(0)
    model = MODELS[name]()
    small, result = apply_low_rank(model, LowRank(ratio=share), PassContext(multiple=16))
    replaced = sum(one.accepted for one in result.ranks)
    if not replaced:
        return None
    before, after, ratio = measure([model, small], runs)
    if ratio > SLOWER:
        ratio = statistics.median(measure([model, small], runs)[2] for _ in range(AGAIN))
    return {
        "model": name, "share": share, "replaced": replaced, "left_alone": len(result.ranks) - replaced,
        "parameters": [before.parameters, after.parameters], "macs": [before.macs, after.macs],
        "median_ms": [before.measurement.latency.median_ms, after.measurement.latency.median_ms],
        "ratio": round(ratio, 3),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--save", type=Path)
    options = parser.parse_args()
    rows = []
    print(f"{'model':22} {'share':>5} {'layers':>6} {'weights':>22} {'MACs':>6} {'ms':>16} {'ratio':>6}")
    for name in MODELS:
        for share in SHARES:
            row = row_of(name, share, options.runs)
            if row is None:
                print(f"{name:22} {share:5.2f} none of its layers is replaced")
                continue
            rows.append(row)
            weights, macs, ms = row["parameters"], row["macs"], row["median_ms"]
            fewer = f"{macs[1] / macs[0]:.2f}" if None not in macs else "?"
            print(
                f"{name:22} {share:5.2f} {row['replaced']:6} {weights[0]:10,} -> {weights[1]:9,} {fewer:>6} "
                f"{ms[0]:7.3f} -> {ms[1]:5.3f} {row['ratio']:6.2f}",
                flush=True,
            )
    save_results(options.save, rows)
    sys.exit(1 if any(row["ratio"] > SLOWER for row in rows) else 0)


if __name__ == "__main__":
    main()
