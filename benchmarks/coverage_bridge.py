"""Takes every network of keras.applications over to tf_keras and compares the answers of the two.

Weights are random, inputs 96 x 96 (the smallest that every network takes). One-dimensional weights are shaken and the
batch normalizations are given the statistics of a batch, so that nothing is 0 or 1 by accident. Each network runs in a
process of its own. It passes if no output differs by more than 1e-5 of the largest output, `cross` proved the same, and
writing the weights back leaves the Keras 3 model as it was.

usage: coverage_bridge.py [--only REGEX] [--time-limit 900] [--save FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from results import save_results

_LIMIT = 1e-5
_SIZE = 96


def list_networks() -> list[str]:
    """Returns the names of all networks, without importing Keras here."""
    code = "import keras; print(*(n for n in dir(keras.applications) if n[0].isupper()))"
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return result.stdout.split()


def run_child(name: str, time_limit_s: float) -> dict[str, Any]:
    try:
        process = subprocess.run(
            [sys.executable, __file__, "--child", name],
            capture_output=True, text=True, timeout=time_limit_s, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"passed": False, "error": f"not done after {time_limit_s:g} s"}
    if process.returncode != 0:
        last = (process.stderr.strip().splitlines() or ["no message"])[-1]
        return {"passed": False, "error": f"exit code {process.returncode}: {last[:300]}"}
    found: dict[str, Any] = json.loads(process.stdout.strip().splitlines()[-1])
    return found


def measure(name: str) -> dict[str, Any]:
    """Makes a network, crosses it and compares; runs in the child."""
    import keras
    import numpy as np

    from edgecompress.tfmot.adapter import is_whole
    from edgecompress.tfmot.bridge import cross

    keras.utils.set_random_seed(0)
    random = np.random.default_rng(0)
    model = getattr(keras.applications, name)(weights=None, input_shape=(_SIZE, _SIZE, 3))
    shake(model, random)
    start = time.perf_counter()
    bridged = cross(model)
    seconds = time.perf_counter() - start
    images = random.normal(size=(2, _SIZE, _SIZE, 3)).astype("float32")
    expected = keras.ops.convert_to_numpy(model(images, training=False))
    difference = float(np.abs(expected - bridged.model(images, training=False).numpy()).max())
    before = [np.asarray(weight) for weight in model.weights]
    bridged.write_back()
    kept = all(np.array_equal(weight, old) for weight, old in zip(model.weights, before, strict=True))
    relative = difference / float(np.abs(expected).max())
    return {
        "parameters": model.count_params(),
        "layers": len(bridged.layers),
        "whole": sorted({type(c.keras_layer).__name__ for c in bridged.layers if is_whole(c.tf_layer)}),
        "largest_output": float(np.abs(expected).max()),
        "max_difference": difference,
        "relative_difference": relative,
        "cross_s": seconds,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        "written_back": kept,
        "passed": bool(relative <= _LIMIT and kept and np.isfinite(expected).all()),
    }


def shake(model: Any, random: Any) -> None:
    """Moves one-dimensional weights off their first values, then sets the statistics of batch normalizations."""
    import keras

    for variable in model.trainable_variables:
        if len(variable.shape) == 1:
            variable.assign_add(random.normal(scale=0.1, size=variable.shape))
    norms = [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]  # noqa: SLF001
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    if norms:
        model(random.normal(size=(8, _SIZE, _SIZE, 3)).astype("float32"), training=True)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def print_row(name: str, row: dict[str, Any]) -> None:
    if "error" in row:
        print(f"{name:20} FAIL  {row['error']}", flush=True)
    else:
        print(
            f"{name:20}{row['parameters'] / 1e6:9.1f}{row['max_difference']:12.1e}{row['relative_difference']:10.1e}"
            f"{row['cross_s']:9.1f}{row['peak_mb']:9.0f}  {'pass' if row['passed'] else 'FAIL'}"
            f"  {', '.join(row['whole'])}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="", help="regular expression")
    parser.add_argument("--time-limit", type=float, default=900, help="seconds for each network")
    parser.add_argument("--save", type=Path)
    parser.add_argument("--child")
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options.child)))
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    rows: dict[str, dict[str, Any]] = {}
    print(f"{'network':20}{'M params':>9}{'max diff':>12}{'relative':>10}{'seconds':>9}{'peak MB':>9}        whole")
    for name in list_networks():
        if re.search(options.only, name):
            rows[name] = run_child(name, options.time_limit)
            print_row(name, rows[name])
            save_results(options.save, rows)
    print(f"{sum(row['passed'] for row in rows.values())} of {len(rows)} pass at {_LIMIT:g}")


if __name__ == "__main__":
    main()
