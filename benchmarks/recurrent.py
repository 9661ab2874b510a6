"""Recurrent networks in full int8: our forms beside the TensorFlow Lite converter's, dynamic range and float.

    python benchmarks/recurrent.py --mnist mnist.npz --save benchmarks/results/recurrent.json

Four tables: size and latency (all files of a network timed by turns); accuracy on real sequences, after training and
after quantization-aware training; what microcontrollers, Ethos-U and Edge TPU make of the files; and the networks that
crash the TensorFlow Lite converter. Data: images read row by row, of `--mnist` (arrays x_train, y_train, x_test and
y_test) or scikit-learn's digits; and the sentences of examples/reviews.py.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import keras
import numpy as np
from results import save_results
from reviews import make_gru as make_sentiment
from reviews import reviews

from edgecompress import Qat, Recipe, Training, convert
from edgecompress.artifacts import read_artifact
from edgecompress.benchmark.cpu import benchmark_cpu
from edgecompress.benchmark.execute import run_tflite
from edgecompress.benchmark.micro import run_micro
from edgecompress.check.edge_tpu import edge_tpu_findings
from edgecompress.converters.ethos_u import vela_flash_bytes
from edgecompress.converters.ptq import QuantizationJob, quantize
from edgecompress.converters.recurrent import RecurrentNetwork
from edgecompress.converters.tflite import FloatConverter, freeze_graph
from edgecompress.data import Dataset, InputSpec
from edgecompress.errors import ConversionError
from edgecompress.isolate import run_command
from edgecompress.loaded import LoadedModel
from edgecompress.models import load_model
from edgecompress.profiles import RecurrentLowering as Form
from edgecompress.schemes import Granularity, IoType, Observer, QuantizationScheme

layers = keras.layers
CLASSES = 12
CALIBRATION = 200
# name, layer, steps, features: the last is Hello Edge's GRU-L (Zhang et al. 2017, arXiv:1711.07128).
NETWORKS = {
    "GRU(128), 10 steps": (layers.GRU, 128, 10, 40),
    "GRU(128), 100 steps": (layers.GRU, 128, 100, 40),
    "GRU(128), 1,000 steps": (layers.GRU, 128, 1000, 40),
    "LSTM(128), 100 steps": (layers.LSTM, 128, 100, 40),
    "GRU(400), 49 steps": (layers.GRU, 400, 49, 10),
}
MOST_UNROLLED = 100  # steps: beyond, the converter works for many minutes
RUNS = 200


def make_network(kind: type[Any], units: int, steps: int, features: int, *, unroll: bool = False) -> keras.Model:
    return keras.Sequential([
        keras.Input((steps, features), name="x"),
        kind(units, unroll=unroll, name="recurrent"),
        layers.Dense(CLASSES, activation="softmax", name="head"),
    ])  # fmt: skip


def make_stream(samples: int, steps: int, features: int) -> np.ndarray:
    """Returns sequences of real pixels: digits side by side and one below the other, read row by row."""
    from digits import digits

    (x, _), _ = digits(as_rows=True)
    rng = np.random.default_rng(0)
    high, wide = -(-steps // 8), -(-features // 8)
    chosen = x[rng.integers(len(x), size=(samples, high, wide))]
    pages = chosen.transpose(0, 1, 3, 2, 4).reshape(samples, high * 8, wide * 8)
    return np.ascontiguousarray(pages[:, :steps, :features])


class Files:
    """Files of one model."""

    def __init__(self, model: keras.Model, samples: np.ndarray, folder: Path) -> None:
        self.model, self.samples, self.folder = model, samples, folder
        self.source: LoadedModel = load_model(model)
        self.fixed = [InputSpec(spec.name, (1, *samples.shape[1:]), spec.dtype) for spec in self.source.inputs]
        folder.mkdir(exist_ok=True)

    def float_file(self) -> Path:
        with FloatConverter() as converter:
            return converter.convert(freeze_graph(self.source, self.fixed), self.folder)

    def dynamic(self) -> Path:
        file = self.folder / "dynamic.tflite"
        quantize(self.folder / "float.tflite", file, QuantizationJob(QuantizationScheme.DYNAMIC), calibration=None,
                 threads=2)  # fmt: skip
        return file

    def network(self, *, source: LoadedModel | None = None, **job: Any) -> RecurrentNetwork:
        """Prepares the int8 forms; their inputs and outputs are int8, too."""
        job = {"scheme": QuantizationScheme.INT8, "input_type": IoType.INT8, "output_type": IoType.INT8, **job}
        name, folder = self.source.inputs[0].name, Path(tempfile.mkdtemp(dir=self.folder))
        return RecurrentNetwork(
            source or self.source, self.fixed, QuantizationJob(**job), samples=Dataset({name: self.samples}),
            observer=Observer.MIN_MAX, folder=folder, untrained=self.source,
        )  # fmt: skip

    def unrolled_by_tensorflow(self, kind: type[Any], units: int) -> Path | None:
        """Has the TensorFlow Lite converter make an int8 file of the unrolled layer, in a process of its own."""
        steps, features = self.samples.shape[1:]
        if steps > MOST_UNROLLED:
            return None
        unrolled = make_network(kind, units, steps, features, unroll=True)
        unrolled.set_weights(self.model.get_weights())
        unrolled.save(self.folder / "unrolled.keras")
        np.save(self.folder / "samples.npy", self.samples[:20])
        run_command([sys.executable, __file__, "--convert-unrolled", self.folder], time_limit_s=3600)
        file = self.folder / "tensorflow.tflite"
        return file if file.exists() else None


def convert_unrolled(folder: Path) -> None:
    """What `unrolled_by_tensorflow` runs in its process."""
    import tensorflow as tf

    model, samples = keras.models.load_model(folder / "unrolled.keras"), np.load(folder / "samples.npy")
    model.export(folder / "saved", input_signature=[keras.InputSpec(shape=(1, *samples.shape[1:]), dtype="float32")],
                 verbose=False)  # fmt: skip
    converter = tf.lite.TFLiteConverter.from_saved_model(str(folder / "saved"))
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([sample[None]] for sample in samples)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    (folder / "tensorflow.tflite").write_bytes(converter.convert())


def sizes_and_times(folder: Path) -> Iterator[dict[str, Any]]:
    """Yields a row for each file of each network; latencies are of whole sequences, one thread."""
    for name, (kind, units, steps, features) in NETWORKS.items():
        keras.utils.set_random_seed(0)
        files = Files(make_network(kind, units, steps, features), make_stream(CALIBRATION, steps, features),
                      folder / name.replace(" ", "_").replace(",", ""))  # fmt: skip
        made: dict[str, tuple[Path, int]] = {"float": (files.float_file(), 1), "dynamic range": (files.dynamic(), 1)}
        network = files.network(dense=Granularity.PER_CHANNEL)
        for form in (Form.LOOP, Form.STEP, *((Form.UNROLLED,) if steps <= MOST_UNROLLED else ()),
                     *((Form.FUSED,) if kind is layers.LSTM else ())):  # fmt: skip
            made[f"int8 {form}"] = (network.write(form).path, steps if form is Form.STEP else 1)
        made["int8 loop, 5 a turn"] = (network.write(Form.LOOP, per_turn=5 if steps % 5 == 0 else 7).path, 1)
        theirs = files.unrolled_by_tensorflow(kind, units)
        if theirs is not None:
            made["TF converter, unrolled"] = (theirs, 1)
        timed = benchmark_cpu([path for path, _ in made.values()], runs=RUNS, min_seconds=0.5)
        base = next(iter(made.values()))[0].stat().st_size
        for (form, (path, times)), one in zip(made.items(), timed, strict=True):
            yield {
                "network": name, "form": form, "size_bytes": path.stat().st_size,
                "of_float": round(path.stat().st_size / base, 3), "operators": len(read_artifact(path).ops),
                "sequence_ms": round(one.latency.median_ms * times, 4),
            }  # fmt: skip


def print_sizes(rows: list[dict[str, Any]]) -> None:
    print(
        f"\n{'network':22} {'form':24} {'bytes':>10} {'of float':>8} {'ops':>6} {'ms':>8} "
        f"{'of float':>8} {'of dynamic':>10}"
    )
    for row in rows:
        same = {other["form"]: other for other in rows if other["network"] == row["network"]}
        ratios = [row["sequence_ms"] / same[base]["sequence_ms"] for base in ("float", "dynamic range")]
        print(f"{row['network']:22} {row['form']:24} {row['size_bytes']:10,} {row['of_float']:8.3f} "
              f"{row['operators']:6} "
              f"{row['sequence_ms']:8.3f} {ratios[0]:8.2f} {ratios[1]:10.2f}")  # fmt: skip


def rows_of_images(mnist: Path | None) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns images read row by row and their labels: to train on, and to test on."""
    if mnist is None:
        from digits import digits

        (x, y), (x_test, y_test) = digits(as_rows=True)
        return x, y, x_test, y_test
    with np.load(mnist) as file:
        x, y, x_test, y_test = (file[f"{array}_{part}"] for part in ("train", "test") for array in "xy")
    order = np.random.default_rng(0).permutation(len(x))
    return x[order].astype(np.float32) / 255, y[order], x_test.astype(np.float32) / 255, y_test


def sequence_tasks(mnist: Path | None) -> Iterator[tuple[str, keras.Model, Any, Any, int]]:
    """Yields (name, model, training samples, test samples, epochs)."""
    x, y, x_test, y_test = rows_of_images(mnist)
    steps, features = x.shape[1:]
    few = 4 if mnist is not None else 40
    for name, body in (
        ("images, GRU(128)", [layers.GRU(128)]),
        ("images, LSTM(128)", [layers.LSTM(128)]),
        ("images, Conv1D + 2 GRU", [layers.Conv1D(32, 3, padding="same", activation="relu"),
                                    layers.GRU(64, return_sequences=True), layers.GRU(64)]),
        ("images, Bidirectional", [layers.Bidirectional(layers.GRU(64))]),
    ):  # fmt: skip
        keras.utils.set_random_seed(0)
        stack = [keras.Input((steps, features)), *body, layers.Dense(10, activation="softmax")]
        yield name, keras.Sequential(stack), (x, y), (x_test, y_test), few
    keras.utils.set_random_seed(0)
    train, test = reviews()
    yield "sentences, Embedding + GRU", make_sentiment(), train, test, 4


def accuracies(mnist: Path | None, folder: Path) -> Iterator[dict[str, Any]]:
    """Yields a row for each task: the accuracy of the float model, of post-training files and after QAT, in loops."""
    for name, model, train, test, epochs in sequence_tasks(mnist):
        model.compile(keras.optimizers.Adam(2e-3), "sparse_categorical_crossentropy", metrics=["accuracy"])
        model.fit(*train, epochs=epochs, batch_size=64, verbose=0)
        row: dict[str, Any] = {"task": name, "tested_on": len(test[0])}
        ways: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
            "int8": ({}, {}), "int8, percentile": ({"observer": "percentile"}, {}),
            "int8, mse": ({"observer": "mse"}, {}),
            "int16x8": ({"scheme": "int16x8"}, {}), "dynamic": ({"scheme": "dynamic"}, {}),
            "int8, QAT": ({}, {"passes": (Qat(),), "training": Training(epochs=2, batch_size=64, learning_rate=2e-4)}),
        }  # fmt: skip
        for way, (settings, passes) in ways.items():
            quantization = {"scheme": "int8", **settings}
            if quantization["scheme"] != "dynamic":
                quantization["recurrent"] = "loop"
            recipe = Recipe(quantization=quantization, verification={"samples": len(test[0])}, **passes)
            # Without training, 200 of the test samples calibrate, and the float model, too, is judged on the others.
            report = convert(model, "host", data=test, train=train if passes else None, recipe=recipe,
                             output=folder / "out", benchmark=False)  # fmt: skip
            row["float"] = round(report.before.scores.accuracy, 4)
            row[way] = round(report.after.scores.accuracy, 4)
        yield row


def print_accuracies(rows: list[dict[str, Any]]) -> None:
    ways = [key for key in rows[0] if key not in ("task", "tested_on")]
    print(f"\n{'task':28} {'tested on':>9} " + " ".join(f"{way:>16}" for way in ways))
    for row in rows:
        print(f"{row['task']:28} {row['tested_on']:9,} " + " ".join(f"{row[way]:16.2%}" for way in ways))


def on_devices(folder: Path) -> Iterator[dict[str, Any]]:
    """Yields what becomes of each form of a GRU and an LSTM elsewhere, and whether the forms agree, on real pixels."""
    for name, kind, units, steps in (("GRU(128)", layers.GRU, 128, 100), ("LSTM(64)", layers.LSTM, 64, 100)):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((steps, 40), name="x"), kind(units, name="recurrent")])
        files = Files(model, make_stream(CALIBRATION, steps, 40), folder / name)
        for scheme in (QuantizationScheme.INT8, QuantizationScheme.INT16X8):
            kind_of_border = IoType.INT8 if scheme is QuantizationScheme.INT8 else IoType.INT16
            network = files.network(scheme=scheme, input_type=kind_of_border, output_type=kind_of_border,
                                    dense=Granularity.PER_TENSOR)  # fmt: skip
            for form in (Form.LOOP, Form.STEP, Form.UNROLLED):
                path = network.write(form, hoist=False).path
                yield {"network": name, "scheme": str(scheme), "form": str(form), **micro_row(path),
                       **compiler_rows(path)}  # fmt: skip


def micro_row(path: Path) -> dict[str, Any]:
    """Runs a file in tflite-micro and with LiteRT's reference kernels, on random integers."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    reference = Interpreter(str(path), experimental_op_resolver_type=OpResolverType.BUILTIN_REF)
    run = reference.get_signature_runner()
    rng, samples = np.random.default_rng(0), 8
    inputs = {}
    for name, detail in run.get_input_details().items():
        limits = np.iinfo(detail["dtype"])
        shape = (samples, *detail["shape"][1:])
        inputs[name] = rng.integers(limits.min, limits.max, shape, detail["dtype"], endpoint=True)
    answers = [run(**{name: array[i : i + 1] for name, array in inputs.items()}) for i in range(samples)]
    micro = run_micro(path, inputs)
    differ = {
        name: int(np.sum(np.concatenate([one[name] for one in answers]) != micro.outputs[name])) for name in answers[0]
    }
    return {"tflm_differs": sum(differ.values()), "tflm_values": sum(array.size for array in micro.outputs.values()),
            "tflm_arena_bytes": micro.arena_bytes}  # fmt: skip


def compiler_rows(path: Path) -> dict[str, Any]:
    vela = vela_flash_bytes(path, "ethos-u55-128")
    findings = edge_tpu_findings(read_artifact(path))
    return {"vela_cpu_operators": vela.cpu_operators, "vela_npu_operators": vela.npu_operators,
            "edge_tpu_refuses": sorted({str(finding.where) for finding in findings})[:3]}  # fmt: skip


def print_devices(rows: list[dict[str, Any]]) -> None:
    print(
        f"\n{'network':10} {'scheme':8} {'form':9} {'TFLM differs':>20} {'arena':>9} "
        f"{'Vela CPU/NPU':>13} Edge TPU refuses"
    )
    for row in rows:
        differs = f"{row['tflm_differs']:,} of {row['tflm_values']:,}"
        vela = f"{row['vela_cpu_operators']}/{row['vela_npu_operators']}"
        refused = ", ".join(row["edge_tpu_refuses"]) or "nothing"
        print(
            f"{row['network']:10} {row['scheme']:8} {row['form']:9} {differs:>20} "
            f"{row['tflm_arena_bytes']:9,} {vela:>13} {refused}"
        )


def long_parity(folder: Path) -> dict[str, Any]:
    """Compares the host's loop over the step with the loop, in integers, over 1,000 steps of real pixels."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([
        keras.Input((1000, 40), name="x"), layers.GRU(128, return_sequences=True),
        layers.GRU(64, return_sequences=True),
        layers.TimeDistributed(layers.Dense(CLASSES)),
    ])  # fmt: skip
    samples = make_stream(20, 1000, 40)
    files = Files(model, samples, folder / "long")
    network = files.network(output_type=IoType.INT8)
    loop, one = (run_tflite(network.write(form).path, {"x": samples}) for form in (Form.LOOP, Form.STEP))
    (name,) = loop
    return {"values": loop[name].size, "differ": int(np.sum(loop[name] != one[name]))}


def corpus(folder: Path) -> Iterator[dict[str, Any]]:
    """Yields what becomes of the networks that the TensorFlow Lite converter dies of."""
    import tf_keras

    x = make_stream(60, 16, 8)
    for world in (keras, tf_keras):
        for kind in ("GRU", "LSTM", "SimpleRNN", "Bidirectional"):
            for scheme in ("int8", "int16x8"):
                made = world.layers
                body = made.Bidirectional(made.GRU(16)) if kind == "Bidirectional" else getattr(made, kind)(16)
                model = world.Sequential([made.InputLayer((16, 8)), body, made.Dense(4)])
                row = {"world": world.__name__, "layer": kind, "scheme": scheme}
                try:
                    recipe = Recipe(quantization={"scheme": scheme, "calibration_samples": 40})
                    report = convert(model, "host", data=x, recipe=recipe, output=folder / "corpus", benchmark=False)
                    chosen = next(one for one in report.attempts if one.outcome == "chosen")
                    yield {**row, "becomes": str(chosen.recurrent), "bytes": report.after.size_bytes,
                           "snr_db": round(report.verified.outputs[0].snr_db, 1)}  # fmt: skip
                except ConversionError as error:
                    yield {**row, "becomes": f"refused: {error}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path, help=".npz file with x_train, y_train, x_test, y_test")
    parser.add_argument("--only", choices=["sizes", "accuracy", "devices", "corpus"], help="One of the tables.")
    parser.add_argument("--convert-unrolled", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--save", type=Path)
    options = parser.parse_args()
    if options.convert_unrolled is not None:
        convert_unrolled(options.convert_unrolled)
        return
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if options.only in (None, "sizes"):
            results["sizes"] = list(sizes_and_times(folder))
            print_sizes(results["sizes"])
        if options.only in (None, "accuracy"):
            results["accuracy"] = list(accuracies(options.mnist, folder))
            print_accuracies(results["accuracy"])
        if options.only in (None, "devices"):
            results["devices"] = list(on_devices(folder))
            print_devices(results["devices"])
            results["long_parity"] = long_parity(folder)
            found = results["long_parity"]
            print(f"\nhost loop over step against loop, 1,000 steps: {found['differ']} of {found['values']:,} differ")
        if options.only in (None, "corpus"):
            results["corpus"] = list(corpus(folder))
            print(f"\n{'world':9} {'layer':14} {'scheme':8} becomes")
            for row in results["corpus"]:
                figures = f", {row['bytes']:,} bytes, {row['snr_db']} dB SNR" if "bytes" in row else ""
                print(f"{row['world']:9} {row['layer']:14} {row['scheme']:8} {row['becomes']}{figures}")
    save_results(options.save, results)


if __name__ == "__main__":
    main()
