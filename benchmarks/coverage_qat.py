"""One network of each family of keras.applications at 96 x 96, through pruning and through quantization-aware training.

Each is pruned to half (crossed to tf_keras, trained one epoch, stripped, written back), and trained one epoch with
quantization and converted to int8, in a process of its own. The networks are not trained otherwise and the samples are
random: this shows what goes through and what stays in float, not accuracy.

usage: coverage_qat.py [--only REGEX] [--save FILE]
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from results import save_results

from edgecompress import Recipe, convert, load_data, load_model, read_artifact
from edgecompress.passes import apply_passes
from edgecompress.passes.base import PassContext
from edgecompress.techniques import Prune, Training

FAMILIES = (
    "MobileNet", "MobileNetV2", "MobileNetV3Small", "EfficientNetB0", "EfficientNetV2B0", "ResNet50", "ResNet50V2",
    "DenseNet121", "NASNetMobile", "Xception", "InceptionV3", "InceptionResNetV2", "VGG16", "ConvNeXtTiny",
)  # fmt: skip
_TIME_LIMIT_S = 1800
_SIZE = 96
_SAMPLES = 32


def measure(name: str) -> dict[str, Any]:
    """Takes a network through both techniques; runs in the child."""
    import keras
    import numpy as np

    keras.utils.set_random_seed(0)
    model = getattr(keras.applications, name)(weights=None, input_shape=(_SIZE, _SIZE, 3), classes=10)
    x = np.random.default_rng(0).random((_SAMPLES, _SIZE, _SIZE, 3), dtype=np.float32) * 255
    y = np.arange(_SAMPLES) % 10
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    for norm in norms:
        norm.momentum = 0.0
    model(x[:16], training=True)  # untrained statistics would collapse the scales
    for norm in norms:
        norm.momentum = 0.99
    training = Training(epochs=1, batch_size=8, learning_rate=1e-5, validation=0.0)
    return {"parameters": model.count_params(), **prune(model, (x, y), training), **quantize(model, (x, y), training)}


def prune(model: Any, samples: tuple[Any, Any], training: Training) -> dict[str, Any]:
    start = time.perf_counter()
    data = load_data(samples, load_model(model).inputs)
    _, (result,) = apply_passes(model, [Prune(sparsity=0.5)], PassContext(training=training, data=data))
    weights = sum(proof.weights for proof in result.proof)
    zeros = sum(proof.weights * proof.sparsity for proof in result.proof)
    return {"pruned": weights, "sparsity": zeros / weights, "prune_s": time.perf_counter() - start}


def quantize(model: Any, samples: tuple[Any, Any], training: Training) -> dict[str, Any]:
    start = time.perf_counter()
    recipe = Recipe.model_validate({
        "passes": [{"kind": "qat"}], "training": training.model_dump(), "quantization": {"scheme": "int8"},
        "verification": {"samples": 8},
    })  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        convert(model, "host", train=samples, recipe=recipe, output=f"{folder}/out", benchmark=False)
        artifact = read_artifact(next(Path(folder, "out").glob("*.tflite")))
    return {
        "qat_s": time.perf_counter() - start,
        "bytes": artifact.size_bytes,
        "ops": len(artifact.ops),
        "float_ops": sorted({op.name for op in artifact.float_ops}),
        "boundaries": {name: n for name, n in artifact.op_counts.items() if name in ("QUANTIZE", "DEQUANTIZE")},
    }


def run_child(name: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TIME_LIMIT_S)
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {_TIME_LIMIT_S} s"}
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return {"failed": f"exit code {done.returncode}: {last[:300]}"}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="")
    parser.add_argument("--save", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options.child)))
        return
    rows = {}
    print(f"{'':20}{'parameters':>12}{'pruned to':>11}{'seconds':>9}{'operators':>11}{'in float':>10}{'seconds':>9}")
    for name in FAMILIES:
        if re.search(options.only, name):
            rows[name] = run_child(name)
            show(name, rows[name])
    passed = sum("failed" not in row and not row["float_ops"] for row in rows.values())
    print(f"{passed} of {len(rows)} networks: pruned, and all operators int8 between QUANTIZE and DEQUANTIZE")
    save_results(options.save, rows)


def show(name: str, row: dict[str, Any]) -> None:
    if "failed" in row:
        print(f"{name:20} {row['failed']}", flush=True)
        return
    print(
        f"{name:20}{row['parameters']:12,}{row['sparsity']:11.1%}{row['prune_s']:9.1f}{row['ops']:11}"
        f"{len(row['float_ops']):10}{row['qat_s']:9.1f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
