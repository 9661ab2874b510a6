"""Quantization of a trained network: types, granularity, accuracy, and a named error for what cannot be."""

from pathlib import Path

import numpy as np
import pytest

from edgecompress.artifacts import read_artifact
from edgecompress.benchmark.execute import run_tflite
from edgecompress.converters import ptq
from edgecompress.converters.ptq import QuantizationJob, io_type, quantize
from edgecompress.data import Dataset
from edgecompress.errors import ConversionError, UnavailableError
from edgecompress.flatbuffer import read_bytes, read_model
from edgecompress.graphs import decode_graphs
from edgecompress.isolate import Child
from edgecompress.schemes import Algorithm, Granularity, IoType, QuantizationScheme

pytest.importorskip("litert_quantizer")

Scheme = QuantizationScheme
CALIBRATED = (Scheme.INT8, Scheme.INT16X8)
MADE = tuple(scheme for scheme in Scheme if scheme is not Scheme.FLOAT32)
DENSE_UNITS = 10


@pytest.fixture(scope="module")
def float_file(digits_cnn, to_tflite, tmp_path_factory) -> Path:
    return to_tflite(digits_cnn.model, tmp_path_factory.mktemp("float"))


@pytest.fixture(scope="module")
def samples(digits_cnn):
    with np.load(digits_cnn.data) as data:
        return Dataset({"image": data["x"]}, data["y"])


@pytest.fixture(scope="module")
def float_accuracy(float_file, samples) -> float:
    return accuracy(float_file, samples)


def accuracy(file: Path, samples: Dataset) -> float:
    answers = run_tflite(file, dict(samples.inputs))["digit"]
    return float(np.mean(answers.argmax(-1) == samples.labels))


@pytest.fixture
def make_in_child(float_file, samples, tmp_path):
    """A function from a job to the quantized file."""

    def quantized(job: QuantizationJob, name: str = "quantized.tflite", **options) -> Path:
        calibration = samples.select(np.arange(60))
        quantize(float_file, tmp_path / name, job, **{"calibration": calibration, "threads": 1, **options})
        return tmp_path / name

    return quantized


@pytest.fixture
def make(make_in_child, in_process):
    """The same, sooner."""
    with in_process():
        yield make_in_child


def refusal(call) -> str:
    with pytest.raises(ConversionError) as caught:
        call()
    line = str(caught.value)
    assert "\n" not in line
    assert len(line) < 600
    return line


@pytest.mark.parametrize("scheme", MADE)
def test_each_scheme_keeps_the_accuracy(make_in_child, samples, float_accuracy, float_file, scheme) -> None:
    file = make_in_child(QuantizationJob(scheme))
    artifact = read_artifact(file)
    assert accuracy(file, samples) == pytest.approx(float_accuracy, abs=0.05 if "int4" in scheme else 0.02)
    assert artifact.size_bytes < 0.8 * float_file.stat().st_size
    assert list(artifact.signature.inputs) == ["image"]
    assert list(artifact.signature.outputs) == ["digit"]
    assert (len(artifact.float_ops) == 0) == scheme.needs_calibration


@pytest.mark.parametrize("wanted", [IoType.FLOAT32, IoType.INT8, IoType.UINT8])
@pytest.mark.parametrize("scheme", CALIBRATED)
def test_the_types_of_inputs_and_outputs(make, samples, float_accuracy, scheme, wanted) -> None:
    file = make(QuantizationJob(scheme, input_type=wanted, output_type=wanted))
    signature = read_artifact(file).signature
    expected = "int16" if scheme is Scheme.INT16X8 and wanted is not IoType.FLOAT32 else str(wanted)
    for tensor in (signature.inputs["image"], signature.outputs["digit"]):
        assert tensor.dtype == expected
        assert (tensor.scale is not None) == (wanted is not IoType.FLOAT32)
    assert read_artifact(file).float_ops == ()
    assert accuracy(file, samples) == pytest.approx(float_accuracy, abs=0.02)


def test_the_types_may_differ(make) -> None:
    file = make(QuantizationJob(Scheme.INT8, input_type=IoType.UINT8, output_type=IoType.FLOAT32))
    signature = read_artifact(file).signature
    assert signature.inputs["image"].dtype == "uint8"
    assert signature.outputs["digit"].dtype == "float32"


@pytest.mark.parametrize("scheme", [Scheme.DYNAMIC, Scheme.FLOAT16])
def test_files_that_compute_in_float_stay_float_outside(make, scheme) -> None:
    signature = read_artifact(make(QuantizationJob(scheme, input_type=IoType.INT8, output_type=IoType.INT8))).signature
    assert signature.inputs["image"].dtype == signature.outputs["digit"].dtype == "float32"


def test_the_border_that_a_scheme_really_has() -> None:
    assert {io_type(Scheme.INT8, wanted) for wanted in IoType} == {IoType.FLOAT32, IoType.INT8, IoType.UINT8}
    assert {io_type(Scheme.INT16X8, wanted) for wanted in IoType} == {IoType.FLOAT32, IoType.INT16}
    assert {io_type(Scheme.DYNAMIC, wanted) for wanted in IoType} == {IoType.FLOAT32}


def weight_scales(file: Path, operator: str) -> int:
    (graph,) = decode_graphs(read_model(read_bytes(file)))
    found = next(each for each in graph.operators if each.name == operator)
    return len(graph.tensors[found.inputs[1]].scales)


@pytest.mark.parametrize("algorithm", [Algorithm.MIN_MAX, Algorithm.OCTAV])
@pytest.mark.parametrize("scheme", [Scheme.INT8, Scheme.DYNAMIC])
def test_the_granularity_of_dense_kernels(make, scheme, algorithm) -> None:
    per_tensor = make(QuantizationJob(scheme, algorithm, Granularity.PER_TENSOR))
    assert weight_scales(per_tensor, "FULLY_CONNECTED") == 1
    assert weight_scales(per_tensor, "CONV_2D") == 16
    per_channel = make(QuantizationJob(scheme, algorithm, Granularity.PER_CHANNEL))
    assert weight_scales(per_channel, "FULLY_CONNECTED") == DENSE_UNITS
    assert weight_scales(per_channel, "CONV_2D") == 16


@pytest.mark.parametrize("algorithm", list(Algorithm))
@pytest.mark.parametrize("scheme", CALIBRATED)
def test_each_algorithm_keeps_the_accuracy(make, samples, float_accuracy, scheme, algorithm) -> None:
    file = make(QuantizationJob(scheme, algorithm))
    assert read_artifact(file).float_ops == ()
    assert accuracy(file, samples) == pytest.approx(float_accuracy, abs=0.02)


@pytest.mark.parametrize("algorithm", [Algorithm.MSE, Algorithm.OCTAV, Algorithm.GPTQ])
@pytest.mark.parametrize("scheme", [Scheme.DYNAMIC, Scheme.INT4_WEIGHTS, Scheme.FLOAT16])
def test_each_algorithm_makes_files_of_weights_alone(make, samples, float_accuracy, scheme, algorithm) -> None:
    file = make(QuantizationJob(scheme, algorithm))
    assert accuracy(file, samples) == pytest.approx(float_accuracy, abs=0.06 if "int4" in scheme else 0.02)


def test_algorithms_find_other_scales(make) -> None:
    files = {make(QuantizationJob(Scheme.INT8, algorithm)).read_bytes() for algorithm in Algorithm}
    assert len(files) == len(Algorithm)


def test_progress_counts_the_samples(make_in_child) -> None:
    seen = []
    make_in_child(QuantizationJob(Scheme.INT8), progress=lambda *step: seen.append(step))
    assert seen == [(done, 60) for done in range(1, 61)]


def test_more_calibration_never_narrows_a_range(make, samples) -> None:
    """One bright image among many dark ones decides the input's range."""
    dark = samples.select(np.arange(60))
    images = dark.inputs["image"] * 0.1
    images[17] *= 10
    job = QuantizationJob(Scheme.INT8, input_type=IoType.INT8)
    scale = read_artifact(make(job, calibration=Dataset({"image": images}))).signature.inputs["image"].scale
    assert scale == pytest.approx(images.max() / 255, rel=0.01)


def test_the_same_bytes_twice(make, make_in_child) -> None:
    for scheme in (Scheme.INT8, Scheme.DYNAMIC):
        job = QuantizationJob(scheme)
        assert make(job, "one.tflite").read_bytes() == make_in_child(job, "two.tflite").read_bytes()


@pytest.mark.parametrize(("scheme", "border"), [(Scheme.INT8, IoType.INT8), (Scheme.INT16X8, IoType.INT16)])
def test_a_range_of_an_input_that_is_known_otherwise(make, samples, float_accuracy, scheme, border) -> None:
    job = QuantizationJob(scheme, input_type=border)
    seen, known = (
        read_artifact(make(job, f"{name}.tflite", ranges=ranges)).signature.inputs["image"]
        for name, ranges in (("seen", {}), ("known", {"image": (-1.0, 3.0)}))
    )
    assert known.scale == pytest.approx((4 / 255 if scheme is Scheme.INT8 else 3 / 32767), rel=0.01)
    assert known.scale > 2.9 * seen.scale
    if scheme is Scheme.INT8:
        assert known.zero_point == pytest.approx(-64, abs=1)
    assert accuracy(make(job, ranges={"image": (-1.0, 3.0)}), samples) == pytest.approx(float_accuracy, abs=0.03)


def activation_scales(file: Path) -> list[tuple[float, int]]:
    (graph,) = decode_graphs(read_model(read_bytes(file)))
    results = [graph.tensors[each.outputs[0]] for each in graph.operators]
    return [(each.scales[0], each.zero_points[0]) for each in results if each.dtype == "int8"]


def test_ranges_are_written_and_can_be_given_again(make, samples, tmp_path) -> None:
    """A file made of the ranges of another has the scales of that, whatever its own samples are."""
    job, ranges = QuantizationJob(Scheme.INT8), tmp_path / "ranges.npz"
    first = make(job, "first.tflite", statistics=ranges)
    with np.load(ranges) as found:
        known = dict(zip(found["names"].tolist(), map(tuple, found["ranges"].tolist()), strict=True))
    assert all(low <= high for low, high in known.values())
    dark = Dataset({"image": samples.inputs["image"][:60] * 0.1})
    other = make(job, "other.tflite", calibration=dark)
    again = make(job, "again.tflite", calibration=dark, ranges=known)
    assert len(activation_scales(first)) > 4
    assert activation_scales(again) == activation_scales(first)
    assert activation_scales(other) != activation_scales(first)


@pytest.mark.parametrize(
    "job",
    [QuantizationJob(Scheme.INT8), QuantizationJob(Scheme.INT16X8), QuantizationJob(Scheme.DYNAMIC, Algorithm.GPTQ)],
)
def test_missing_calibration(make, job) -> None:
    line = refusal(lambda: make(job, calibration=None))
    assert "needs calibration samples" in line
    assert "--data" in line


def test_a_file_that_is_no_model(samples, tmp_path) -> None:
    for number, content in enumerate((b"", b"garbage " * 50, b"\x1c\0\0\0TFL3" + bytes(range(200)))):
        source = tmp_path / f"{number}.tflite"
        source.write_bytes(content)
        line = refusal(
            lambda source=source: quantize(
                source, tmp_path / "out.tflite", QuantizationJob(Scheme.INT8), calibration=samples, threads=1
            )
        )
        assert "litert-quantizer" in line
        assert "--scheme" in line
        assert not (tmp_path / "out.tflite").exists()


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Lets another module do the child's work."""

    def use(source: str) -> None:
        (tmp_path / "stand_in.py").write_text(source)
        environment = {"PYTHONPATH": str(tmp_path)}
        monkeypatch.setattr(ptq, "Child", lambda _module: Child("stand_in", environment=environment))

    return use


def test_a_crash_and_a_hang_are_named(make_in_child, stand_in, monkeypatch) -> None:
    stand_in("import os, signal, sys\nsys.stdin.readline()\nos.kill(os.getpid(), signal.SIGABRT)")
    line = refusal(lambda: make_in_child(QuantizationJob(Scheme.DYNAMIC)))
    assert "litert-quantizer crashed (SIGABRT) while it made dynamic" in line
    monkeypatch.setattr(ptq, "_TIME_LIMIT_S", 0.5)
    stand_in("import time\ntime.sleep(60)")
    assert "was ended at its time limit" in refusal(lambda: make_in_child(QuantizationJob(Scheme.DYNAMIC)))


def test_a_missing_package_is_named(make_in_child, stand_in) -> None:
    stand_in("import sys\nsys.path.clear()\nimport litert_quantizer")
    with pytest.raises(UnavailableError, match=r"litert-quantizer is not installed.*edgecompress\[convert\]"):
        make_in_child(QuantizationJob(Scheme.DYNAMIC))


@pytest.mark.parametrize(
    ("scheme", "calibrated", "largest", "dtype"),
    [
        (Scheme.DYNAMIC, False, 1, "int8"),
        (Scheme.DYNAMIC, True, 1, "int8"),
        (Scheme.DYNAMIC, False, 30, "float32"),  # one scale for all: others would be 0 or 0.12
        (Scheme.INT4_WEIGHTS, False, 1, "int8"),
        (Scheme.INT4_WEIGHTS, True, 1, "int8"),
    ],
)
def test_tables_of_lookups_have_8_bits_where_only_weights_are_quantized(
    to_tflite, tmp_path, scheme, calibrated, largest, dtype
) -> None:
    keras = pytest.importorskip("keras")
    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential([
        keras.Input((6,), dtype="int32", name="words"), layers.Embedding(400, 32, name="table"),
        layers.GRU(24, name="gru"), layers.Dense(4, name="mood"),
    ])  # fmt: skip
    table = np.random.default_rng(0).normal(0, 0.3, (400, 32))
    table[-1, 0] = largest
    model.get_layer("table").embeddings.assign(table)
    float_file, file = to_tflite(model, tmp_path), tmp_path / "quantized.tflite"
    words = np.random.default_rng(1).integers(0, 400, (20, 6)).astype(np.int32)
    samples = Dataset({"words": words}) if calibrated else None
    quantize(float_file, file, QuantizationJob(scheme), calibration=samples, threads=1)
    tables = [
        graph.tensors[operator.inputs[0]] for graph in decode_graphs(read_model(read_bytes(file)))
        for operator in graph.operators if operator.name == "GATHER"
    ]  # fmt: skip
    assert [(table.shape, table.dtype) for table in tables if table.data is not None] == [((400, 32), dtype)]
    expected, received = (run_tflite(each, {"words": words})["mood"] for each in (float_file, file))
    limit = 0.03 if scheme is Scheme.DYNAMIC else 0.2
    assert np.abs(received - expected).max() < limit * np.abs(expected).max()
