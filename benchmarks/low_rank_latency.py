"""Layers beside their low-rank factors: latency of .tflite files with that one layer, in turns.

    python benchmarks/low_rank_latency.py --save benchmarks/results/low_rank_latency.json

Each layer is written in factors in every way that the pass `low_rank` knows, at several ranks that save weights and
multiply-accumulates. The original and its factors run by turns in one process on one thread; figures are medians in
microseconds, the call from Python included. The last columns are what `edgecompress.passes.kernel_costs` expects.
Pairs that it lets pass and that were slower are measured again and listed at the end.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from results import save_results

from edgecompress.benchmark.runner import ClassicModel, find_runtime, time_in_turns
from edgecompress.converters.graph_child import convert_graph
from edgecompress.converters.ptq_child import quantize_file
from edgecompress.converters.tflite import freeze_graph
from edgecompress.data import fix_shapes
from edgecompress.flatbuffer import Signature, with_metadata
from edgecompress.loaded import LoadedModel
from edgecompress.models import load_model
from edgecompress.passes.kernel_costs import Operator, saves_time
from edgecompress.passes.low_rank.kind import Kind, Ranks
from edgecompress.passes.low_rank.sites import find_sites
from edgecompress.passes.rewrite import rewrite
from edgecompress.schemes import QuantizationScheme

SHARES = (1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4)  # of the full ranks
MULTIPLE = 8
ONLY_DYNAMIC = ("GRU", "LSTM", "Embedding")  # layers of which no fully quantized file is made, or none that differs
LARGEST_CP = 64  # channels: to find the factors of larger kernels takes minutes
SLOWER = 1.02
AGAIN = 3  # measurements of a pair that was slower
DENSE = (
    ((64,), 64), ((128,), 64), ((128,), 128), ((256,), 128), ((256,), 256), ((784,), 128), ((512,), 512),
    ((1024,), 1024), ((16, 64), 64), ((32, 64), 256), ((49, 256), 256), ((16, 512), 512), ((100, 128), 512),
)  # fmt: skip
CONV2D = (  # height = width, inputs, outputs, kernel, stride
    (8, 16, 32, 3, 1), (16, 32, 32, 3, 1), (32, 16, 32, 3, 1), (16, 32, 64, 3, 2), (28, 64, 64, 3, 1),
    (14, 128, 128, 3, 1), (7, 256, 256, 3, 1), (32, 3, 32, 3, 1), (16, 16, 32, 5, 1), (28, 32, 32, 5, 1),
    (14, 64, 128, 1, 1), (28, 128, 128, 1, 1), (7, 512, 512, 1, 1),
)  # fmt: skip
CONV1D = ((128, 32, 64, 5), (64, 128, 128, 5), (256, 16, 32, 3))  # steps, inputs, outputs, kernel
RECURRENT = ((8, 8, 64), (10, 16, 32), (20, 32, 64), (50, 64, 128), (30, 128, 256))  # steps, inputs, units
EMBEDDING = ((20, 1000, 64), (50, 10_000, 128))  # steps, words, columns


class Layer(NamedTuple):
    """A layer to measure; `make` returns a new one."""

    title: str
    make: Callable[[], Any]
    shape: tuple[int, ...]


class Pair(NamedTuple):
    """A layer and one of the ways to write it in factors."""

    title: str
    method: str
    ranks: Ranks
    before: tuple[Operator, ...]
    after: tuple[Operator, ...]
    files: tuple[Path, Path]


def layers() -> Iterator[Layer]:
    from keras import layers as kinds

    for shape, units in DENSE:
        yield Layer(f"Dense {shape}->{units}", lambda n=units: kinds.Dense(n), shape)
    for size, inputs, outputs, kernel, stride in CONV2D:
        title = f"Conv2D {size}x{size}x{inputs}->{outputs} {kernel}x{kernel}/{stride}"
        conv = {"kernel_size": kernel, "strides": stride, "padding": "same"}
        yield Layer(title, lambda n=outputs, o=conv: kinds.Conv2D(n, **o), (size, size, inputs))
    for steps, inputs, outputs, kernel in CONV1D:
        title = f"Conv1D {steps}x{inputs}->{outputs} {kernel}"
        yield Layer(title, lambda n=outputs, k=kernel: kinds.Conv1D(n, k, padding="same"), (steps, inputs))
    for steps, inputs, units in RECURRENT:
        for kind in (kinds.GRU, kinds.LSTM):
            yield Layer(f"{kind.__name__} {steps}x{inputs}->{units}", lambda k=kind, n=units: k(n), (steps, inputs))
    for steps, words, columns in EMBEDDING:
        title = f"Embedding {steps} of {words}x{columns}"
        yield Layer(title, lambda w=words, c=columns: kinds.Embedding(w, c), (steps,))


def ranks_to_try(kind: Kind, method: str) -> Iterator[Ranks]:
    """Yields ranks with fewer weights and multiply-accumulates than the layer has."""
    call, full = kind.calls[0], kind.full_ranks(method)
    tried = {}
    for share in SHARES:
        ranks = tuple(min(limit, max(MULTIPLE, round(share * limit / MULTIPLE) * MULTIPLE)) for limit in full)
        tried[kind.settle(method, ranks)] = None
    for ranks in tried:
        before, after = kind.operators(call), kind.operators(call, method, ranks)
        smaller = kind.factor_params(method, ranks) < kind.params
        if smaller and (kind.adds_arithmetic or _macs(after) < _macs(before)):
            yield ranks


def _macs(operators: Sequence[Operator]) -> int:
    return sum(each.macs for each in operators)


def convert(layer: Layer, scheme: QuantizationScheme, folder: Path) -> Iterator[Pair]:
    """Writes the files of a layer and of all its factors."""
    import keras

    inputs = keras.Input(layer.shape, 1, dtype="int32" if layer.title.startswith("Embedding") else "float32")
    model = keras.Model(inputs, layer.make()(inputs))
    original = write(model, scheme, folder / "original")
    (site,) = find_sites(model)
    kind = site.kind
    if kind is None:
        raise SystemExit(f"{layer.title}: {site.reason}")
    for method in kind.methods:
        if method == "cp" and max(kind.kernels[0].shape) > LARGEST_CP:
            continue
        for ranks in ranks_to_try(kind, method):
            factors = rewrite(model, {id(kind.layer): kind.build(method, ranks)})
            file = write(factors, scheme, folder / f"{method}-{'-'.join(map(str, ranks))}")
            call = kind.calls[0]
            before, after = kind.operators(call), kind.operators(call, method, ranks)
            yield Pair(layer.title, method, ranks, before, after, (original, file))


def write(model: Any, scheme: QuantizationScheme, folder: Path) -> Path:
    """Converts in this process, as the toolkit does in a child for each file: there are hundreds."""
    folder.mkdir(parents=True)
    loaded = load_model(model)
    graph = freeze_graph(loaded, fix_shapes(loaded.inputs, None))
    source, file, quantized = (folder / name for name in ("graph.pb", "float.tflite", "quantized.tflite"))
    source.write_bytes(graph.graph_def)
    job = {"graph": source, "inputs": list(graph.inputs.values()), "outputs": list(graph.outputs.values())}
    refuse(convert_graph({**job, "destination": file}, print))
    signature = Signature("serving_default", tuple(graph.inputs), tuple(graph.outputs))
    file.write_bytes(with_metadata(file.read_bytes(), signature=signature, metadata={}))
    if scheme is QuantizationScheme.FLOAT32:
        return file
    settings = {"algorithm": "min_max", "dense": "per_channel", "threads": 1}
    settings["calibration"] = some_samples(loaded, folder) if scheme.needs_calibration else {}
    io = {"input_type": "float32", "output_type": "float32"}
    refuse(quantize_file({"source": file, "destination": quantized, "scheme": scheme, **settings, **io}, print))
    return quantized


def some_samples(loaded: LoadedModel, folder: Path) -> dict[str, str]:
    """Writes a few random samples: only the latency of the file matters here."""
    (spec,) = loaded.inputs
    file = folder / "samples.npy"
    np.save(file, np.random.default_rng(0).normal(size=(4, *spec.sample_shape)).astype(spec.dtype))
    return {spec.name: str(file)}


def refuse(result: dict[str, Any]) -> None:
    if "error" in result:
        raise SystemExit(result["error"])


def measure(files: Sequence[Path], seconds: float) -> tuple[float, ...]:
    """Returns the median latency of each file in microseconds; they take turns."""
    runtime = find_runtime("litert")
    options = argparse.Namespace(threads=1, xnnpack=True)
    models = [ClassicModel(str(file), runtime, options) for file in files]
    for model in models:
        model.fill(np.random.default_rng(0))
    calls = [model.invoke for model in models]
    for _ in range(2):  # the first round warms up
        deadline = time.perf_counter_ns() + round(1e9 * 10 * seconds)
        times = time_in_turns(calls, runs=20, seconds=seconds, deadline_ns=deadline)
    return tuple(statistics.median(each) / 1e3 for each in times)


def row_of(pair: Pair, figures: Sequence[float], scheme: QuantizationScheme) -> dict[str, Any]:
    before, after = figures
    return {
        "layer": pair.title, "method": pair.method, "ranks": pair.ranks, "scheme": str(scheme),
        "original_us": round(before, 2), "low_rank_us": round(after, 2), "ratio": round(after / before, 3),
        "macs_ratio": round(_macs(pair.after) / max(1, _macs(pair.before)), 3),
        "expected_us": [_expected_us(side, scheme) for side in (pair.before, pair.after)],
        "accepted": saves_time(pair.before, pair.after, dynamic=scheme is not QuantizationScheme.FLOAT32),
    }  # fmt: skip


def _expected_us(operators: Sequence[Operator], scheme: QuantizationScheme) -> float:
    return round(sum(each.estimated_us(dynamic=scheme is QuantizationScheme.DYNAMIC) for each in operators), 2)


def show(row: dict[str, Any]) -> None:
    ranks, (before, after) = "-".join(map(str, row["ranks"])), row["expected_us"]
    print(
        f"{row['layer']:26} {row['scheme']:8} {row['method']:8} {ranks:8} {row['original_us']:9.1f} "
        f"{row['low_rank_us']:9.1f} {row['ratio']:6.2f} {row['macs_ratio']:6.2f} {before:9.1f} {after:9.1f} "
        f"{'accepted' if row['accepted'] else ''}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="layers whose title begins so")
    parser.add_argument("--schemes", nargs="+", default=["float32", "dynamic", "int8"])
    parser.add_argument("--seconds", type=float, default=0.15, help="of timed runs, for each file of a pair")
    parser.add_argument("--save", type=Path)
    options = parser.parse_args()
    rows, slower = [], []
    titles = f"{'us':>9} {'factors':>9} {'ratio':>6} {'MACs':>6}"
    print(f"{'layer':26} {'scheme':8} {'method':8} {'ranks':8} {titles} expected")
    with tempfile.TemporaryDirectory() as folder:
        for layer in (each for each in layers() if each.title.startswith(options.only)):
            for scheme in map(QuantizationScheme, options.schemes):
                if scheme.needs_calibration and layer.title.startswith(ONLY_DYNAMIC):
                    continue
                place = Path(folder, f"{layer.title}-{scheme}".replace("/", "_"))
                for pair in convert(layer, scheme, place):
                    row = row_of(pair, measure(pair.files, options.seconds), scheme)
                    if row["accepted"] and row["ratio"] > SLOWER:
                        again = [measure(pair.files, options.seconds) for _ in range(AGAIN)]
                        row = row_of(pair, [statistics.median(each) for each in zip(*again, strict=True)], scheme)
                        if row["ratio"] > SLOWER:
                            slower.append(row)
                    show(row)
                    rows.append(row)
    accepted = [row for row in rows if row["accepted"]]
    quick = [row for row in rows if row["ratio"] <= 0.9]
    print(f"\n{len(accepted)} of {len(rows)} accepted; {sum(row['accepted'] for row in quick)} of {len(quick)} "
          f"that take at most 0.9 of the time; {len(slower)} accepted and slower:")  # fmt: skip
    for row in slower:
        show(row)
    save_results(options.save, {"pairs": rows})
    sys.exit(1 if slower else 0)


if __name__ == "__main__":
    main()
