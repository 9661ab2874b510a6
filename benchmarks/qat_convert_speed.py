"""From a model in memory to its .tflite file: MobileNetV2 at 96 x 96, float and after quantization-aware training.

EdgeCompress's route (trace, freeze, convert) against the two ways that TensorFlow documents for the same tf_keras
model: `TFLiteConverter.from_keras_model`, and a SavedModel with `from_saved_model`. Each in a process of its own, which
has TensorFlow imported and the model built before the clock starts; medians over the runs.

usage: qat_convert_speed.py [--runs 3] [--save FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from results import save_results

_SIZE = 96
_CONTENDERS = {
    "edgecompress, float": ("ours", False),
    "edgecompress, QAT": ("ours", True),
    "SavedModel + from_saved_model, QAT": ("export", True),
    "from_keras_model, QAT": ("keras", True),
}


def build(*, quantized: bool) -> tuple[Any, Any]:
    """Returns the model and its inputs with fixed shapes."""
    import keras
    import numpy as np

    from edgecompress.data import fix_shapes, load_data
    from edgecompress.models import load_model
    from edgecompress.passes.base import PassContext
    from edgecompress.schemes import QuantizationScheme
    from edgecompress.techniques import Qat, Training
    from edgecompress.tfmot.qat import train_quantized

    keras.utils.set_random_seed(0)
    source = load_model(keras.applications.MobileNetV2(weights=None, input_shape=(_SIZE, _SIZE, 3), classes=10))
    samples = np.random.default_rng(0).random((16, _SIZE, _SIZE, 3), dtype=np.float32), np.arange(16) % 10
    data = load_data(samples, source.inputs)
    fixed = fix_shapes(source.inputs, data)
    if not quantized:
        return source, fixed
    context = PassContext(training=Training(epochs=1, batch_size=8, learning_rate=1e-5, validation=0.0), data=data)
    return train_quantized(source, Qat(), fixed=fixed, scheme=QuantizationScheme.INT8, context=context)[0], fixed


def measure(route: str, *, quantized: bool) -> dict[str, float]:
    """Converts once; runs in the child."""
    model, fixed = build(quantized=quantized)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        start = time.perf_counter()
        content = _ROUTES[route](model, fixed, folder, quantized=quantized)
        return {"seconds": time.perf_counter() - start, "bytes": len(content)}


def convert_ours(model: Any, fixed: Any, folder: Path, *, quantized: bool) -> bytes:
    from edgecompress.converters.graph_child import convert_graph
    from edgecompress.converters.tflite import freeze_graph

    graph = freeze_graph(model, fixed)
    source, destination = folder / "graph.pb", folder / "model.tflite"
    source.write_bytes(graph.graph_def)
    job = {
        "graph": str(source), "destination": str(destination),
        "inputs": list(graph.inputs.values()), "outputs": list(graph.outputs.values()),
    }  # fmt: skip
    if quantized:
        job |= {"input_type": "float32", "output_type": "float32"}
    failed = convert_graph(job, lambda _done, _total: None)
    if failed:
        raise SystemExit(failed["error"])
    return destination.read_bytes()


def convert_exported(model: Any, fixed: Any, folder: Path, *, quantized: bool) -> bytes:
    import tensorflow as tf

    signature = [tf.TensorSpec(spec.shape, spec.dtype) for spec in fixed]
    serve = tf.function(lambda *tensors: model.model(list(tensors), training=False), input_signature=signature)
    tf.saved_model.save(model.model, str(folder / "saved"), signatures=serve.get_concrete_function())
    return _convert(tf.lite.TFLiteConverter.from_saved_model(str(folder / "saved")), quantized=quantized)


def convert_keras(model: Any, _fixed: Any, _folder: Path, *, quantized: bool) -> bytes:
    import tensorflow as tf

    return _convert(tf.lite.TFLiteConverter.from_keras_model(model.model), quantized=quantized)


def _convert(converter: Any, *, quantized: bool) -> bytes:
    import tensorflow as tf

    converter.optimizations = [tf.lite.Optimize.DEFAULT] if quantized else []
    content: bytes = converter.convert()
    return content


_ROUTES = {"ours": convert_ours, "export": convert_exported, "keras": convert_keras}


def run_child(contender: str) -> dict[str, float]:
    done = subprocess.run([sys.executable, __file__, "--child", contender], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--save", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        route, quantized = _CONTENDERS[options.child]
        print(json.dumps(measure(route, quantized=quantized)))
        return
    found: dict[str, list[dict[str, float]]] = {name: [] for name in _CONTENDERS}
    for _ in range(options.runs):
        for name in _CONTENDERS:
            found[name].append(run_child(name))
    base = statistics.median(run["seconds"] for run in found["edgecompress, float"])
    print(f"{'':34}{'seconds':>9}{'ratio':>8}{'bytes':>12}")
    rows = {}
    for name, runs in found.items():
        seconds = statistics.median(run["seconds"] for run in runs)
        rows[name] = {"seconds": seconds, "ratio": seconds / base, "bytes": runs[0]["bytes"]}
        print(f"{name:34}{seconds:9.1f}{seconds / base:8.2f}{runs[0]['bytes']:12,}")
    save_results(options.save, rows)


if __name__ == "__main__":
    main()
