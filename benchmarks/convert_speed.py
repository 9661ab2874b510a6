"""`edgecompress convert` against `tf.lite.TFLiteConverter`: MobileNetV2 at 224 x 224 to int8 with 100 samples.

Both load the same .keras file and the same samples in a fresh process and write an int8 file. EdgeCompress also runs
its whole pipeline: audit, verification against the float model, golden vectors, latency, report. Runs alternate; wall
time and the peak of the proportional set size of the process and its children are medians.

usage: convert_speed.py [--runs 3] [--folder KEEP] [--save FILE]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from results import save_results

MAKE = """
import keras, numpy as np
keras.utils.set_random_seed(0)
model = keras.applications.MobileNetV2(weights=None, input_shape=(224, 224, 3))
samples = np.random.default_rng(0).random((125, 224, 224, 3), dtype=np.float32)
norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
for norm in norms:
    norm.momentum = 0.0
model(samples[:16], training=True)  # untrained statistics would collapse the scales
for norm in norms:
    norm.momentum = 0.99
model.save("model.keras")
np.save("samples.npy", samples)
"""
TFLITE_CONVERTER = """
import keras, numpy as np, tensorflow as tf
model = keras.models.load_model("model.keras", compile=False)
samples = np.load("samples.npy")[:100]
converter = tf.lite.TFLiteConverter.from_keras_model(model)
converter.optimizations = [tf.lite.Optimize.DEFAULT]
converter.representative_dataset = lambda: ([sample[None]] for sample in samples)
converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
open("tflite_converter.tflite", "wb").write(converter.convert())
"""
EDGECOMPRESS = ["-m", "edgecompress", "convert", "model.keras", "--profile", "host", "--scheme", "int8"]
OPTIONS = ["--data", "samples.npy", "--calibration-samples", "100", "-o", "out", "--quiet"]
CONTENDERS = {
    "TFLiteConverter": ["-c", TFLITE_CONVERTER],
    "edgecompress convert": [*EDGECOMPRESS, *OPTIONS],
    "edgecompress convert --no-benchmark": [*EDGECOMPRESS, *OPTIONS, "--no-benchmark"],
}


def measure(arguments: list[str], folder: Path) -> tuple[float, float]:
    """Returns wall seconds, and peak megabytes (PSS, so that shared pages count once) of the process tree."""
    start = time.perf_counter()
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen([sys.executable, *arguments], cwd=folder, stdout=log, stderr=log)
        tree, peak = psutil.Process(process.pid), 0
        while process.poll() is None:
            peak = max(peak, resident(tree))
            time.sleep(0.05)
    seconds = time.perf_counter() - start
    if process.returncode != 0:
        raise SystemExit((folder / "log.txt").read_text())
    return seconds, peak / 1e6


def resident(tree: psutil.Process) -> int:
    total = 0
    try:
        for process in (tree, *tree.children(recursive=True)):
            total += process.memory_full_info().pss
    except psutil.Error:
        pass  # it ended between two looks
    return total


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="keep the models here")
    parser.add_argument("--save", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = options.folder or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, "-c", MAKE], cwd=folder, check=True, capture_output=True)
        found: dict[str, list[tuple[float, float]]] = {contender: [] for contender in CONTENDERS}
        for _ in range(options.runs):
            for contender, arguments in CONTENDERS.items():
                found[contender].append(measure(arguments, folder))
    rows = {
        contender: {
            "seconds": statistics.median(s for s, _ in runs),
            "megabytes": statistics.median(m for _, m in runs),
        }
        for contender, runs in found.items()
    }
    base = rows["TFLiteConverter"]
    print(f"{'':38}{'seconds':>9}{'ratio':>8}{'peak MB':>10}{'ratio':>8}")
    for contender, row in rows.items():
        row["time_ratio"], row["memory_ratio"] = row["seconds"] / base["seconds"], row["megabytes"] / base["megabytes"]
        print(
            f"{contender:38}{row['seconds']:9.1f}{row['time_ratio']:8.2f}"
            f"{row['megabytes']:10.0f}{row['memory_ratio']:8.2f}"
        )
    save_results(options.save, rows)


if __name__ == "__main__":
    main()
