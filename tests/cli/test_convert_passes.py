"""`edgecompress convert` with passes: pruned, clustered and quantization-aware trained files, from the command line."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from edgecompress.artifacts import read_artifact

PASSES = ["--prune", "0.8,epochs=1", "--qat", "--epochs", "2", "--profile", "ethos-u55-128", "--no-benchmark"]
RECIPE = """
[[passes]]
kind = "prune"
sparsity = 0.8
epochs = 1
[[passes]]
kind = "qat"
[training]
epochs = 2
"""


@pytest.fixture(autouse=True)
def _converters_here(in_process):
    """Spares the runs of this process the start of others; the command of `trained` has them."""
    with in_process():
        yield


@pytest.fixture(scope="module")
def trained(digits_cnn, train_file, tmp_path_factory) -> tuple[Path, dict]:
    """The CNN pruned and trained for int8, by the installed command; its file and its report."""
    folder = tmp_path_factory.mktemp("trained")
    program = Path(sys.executable).with_name("edgecompress")
    words = [program, "convert", digits_cnn.model, *PASSES, "--train", train_file, "-o", "out", "--json"]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert [entry.name for entry in folder.iterdir()] == ["out"]
    return folder / "out" / "digits_cnn.tflite", json.loads(done.stdout)


def test_the_file_is_whole_int8_with_the_names_of_the_source(trained) -> None:
    artifact = read_artifact(trained[0])
    assert not artifact.float_ops
    assert {name: tensor.dtype for name, tensor in artifact.signature.inputs.items()} == {"image": "int8"}
    assert {name: tensor.dtype for name, tensor in artifact.signature.outputs.items()} == {"digit": "int8"}


def test_the_report_has_the_passes_the_sizes_and_the_original_as_before(trained, train_file) -> None:
    report = trained[1]
    assert [one["kind"] for one in report["passes"]] == ["prune", "qat"]
    prune, qat = report["passes"]
    assert {layer["layer"]: layer["sparsity"] > 0.79 for layer in prune["proof"]}["conv_2"]
    assert {layer["layer"]: layer["sparsity"] > 0.79 for layer in qat["proof"]}["conv_2"]
    assert [len(one["trained"]["epochs"]) for one in (prune, qat)] == [1, 2]
    (attempt,) = report["attempts"]
    assert (attempt["scheme"], attempt["outcome"]) == ("int8", "chosen")
    assert attempt["reason"] == "the first that ethos-u55-128 prefers, trained for by qat"
    before, after = report["before"], report["after"]
    assert before["scheme"] == "float32"
    assert before["scores"]["accuracy"] > 0.8
    assert after["gzip_bytes"] < 0.4 * before["gzip_bytes"]
    assert before["vela_flash_bytes"] is None
    assert 1000 < after["vela_flash_bytes"] < after["size_bytes"]
    assert report["data"]["calibration"] == 0
    assert report["data"]["held_out"] == 80
    assert report["training"] == {**report["training"], "source": str(train_file), "samples": 320}
    assert report["audit"] is None
    assert any("gzip shows what they save" in note for note in report["notes"])


def test_a_recipe_that_says_the_same_gives_the_same_file(edgecompress, digits_cnn, train_file, trained) -> None:
    Path("recipe.toml").write_text(RECIPE)
    words = [
        "--recipe",
        "recipe.toml",
        "--profile",
        "ethos-u55-128",
        "--no-benchmark",
        "--train",
        train_file,
        "-o",
        "out",
    ]
    done = edgecompress("convert", digits_cnn.model, *words)
    assert done.code == 0
    assert Path("out/digits_cnn.tflite").read_bytes() == trained[0].read_bytes()
    report = json.loads(Path("out/report.json").read_text("utf-8"))
    assert report["command"] == trained[1]["command"]
    text = " ".join(done.out.split())
    for part in (
        "Vela flash",
        "prune: 3 layers",
        "qat:",
        "2 epochs on",
        "trained on" if report["audit"] else "verified",
    ):
        assert part in text


def test_a_run_killed_in_its_last_pass_goes_on_and_gives_the_same_file(
    edgecompress, digits_cnn, train_file, trained, tmp_path
) -> None:
    words = ["convert", str(digits_cnn.model), *PASSES, "--train", str(train_file), "-o", "out"]
    process = subprocess.Popen(
        [Path(sys.executable).with_name("edgecompress"), *words, "--quiet"], cwd=tmp_path, start_new_session=True
    )
    deadline = time.monotonic() + 180
    try:
        while not list(tmp_path.glob(".out.training/2-qat/training.npz")):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.02)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert not Path("out").exists()
    done = edgecompress(*words, "--resume", "--json")
    assert done.code == 0, done.err
    assert Path("out/digits_cnn.tflite").read_bytes() == trained[0].read_bytes()
    assert json.loads(done.out)["passes"][1]["trained"]["resumed_at"] is not None
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_other_schemes_are_trained_for_and_made_by_the_quantizer(edgecompress, digits_cnn, train_file) -> None:
    words = ["--qat", "--scheme", "int16x8", "--epochs", 1, "--train", train_file, "--no-benchmark", "-o", "out"]
    done = edgecompress("convert", digits_cnn.model, *words)
    assert done.code == 0, done.err
    report = json.loads(Path("out/report.json").read_text("utf-8"))
    assert report["scheme"] == "int16x8"
    assert report["data"]["calibration"] == 200
    assert report["before"]["scores"]["accuracy"] - report["after"]["scores"]["accuracy"] < 0.1
    assert any("200 others calibrate" in note for note in report["notes"])


def test_training_samples_calibrate_where_there_is_no_data(edgecompress, digits_cnn, train_file) -> None:
    words = [
        "--cluster",
        "8",
        "--epochs",
        1,
        "--train",
        train_file,
        "--profile",
        "pixel",
        "--no-benchmark",
        "-o",
        "out",
    ]
    done = edgecompress("convert", digits_cnn.model, *words)
    assert done.code == 0, done.err
    report = json.loads(Path("out/report.json").read_text("utf-8"))
    assert report["scheme"] == "int8"
    assert report["audit"]["samples"] == report["data"]["calibration"] == 200
    assert all(layer["distinct"] <= 9 for layer in report["passes"][0]["proof"])


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--qat"], ["qat trains the model, which needs training samples", "pass --train"]),
        (
            ["--epochs", "3"],
            ["settings of the training would have no effect", "add --distill, --low-rank, --prune, --cluster"],
        ),
        (["--train", "TRAIN"], ["no pass trains the model, so --train would have no effect"]),
        (["--resume"], ["--resume would have no effect"]),
        (["--qat", "--train", "TRAIN", "--scheme", "float16"], ["float16 rounds nothing", "leave --qat out"]),
        (["--qat", "--train", "TRAIN", "--algorithm", "mse"], ["qat trains the scales", "leave --algorithm out"]),
        (["--qat", "--train", "TRAIN", "--scheme", "dynamic", "--input-type", "int8"], ["dynamic files have no int8"]),
        (["--qat", "--train", "TRAIN", "--qat-options", "exclude=['nothing']"], ["'nothing' matches no layer"]),
        (["--prune", "0.8", "--profile", "cortex-m4"], ["needs calibration samples", "pass --data"]),
        (["--prune", "1.0"], ["--prune: key 'sparsity'", "received 1.0"]),
        (["--distill", "width=0.5"], ["distill trains the model, which needs training samples", "pass --train"]),
        (["--distill", "0.5"], ["'0.5' is not a value such as width=0.5"]),
        (["--distill", "teacher=no.keras", "--train", "TRAIN"], ["no.keras: no such file or folder"]),
    ],
)
def test_careless_users(refused, digits_cnn, train_file, words, parts) -> None:
    line = refused("convert", digits_cnn.model, *(train_file if word == "TRAIN" else word for word in words))
    for part in parts:
        assert part in line


def test_what_is_no_model_of_keras_3_has_no_passes(refused, digits_cnn, tmp_path) -> None:
    import keras

    keras.models.load_model(digits_cnn.model).export(tmp_path / "saved", verbose=False)
    line = refused("convert", "saved", "--prune", "0.5")
    assert "take models of Keras 3; received a SavedModel" in line
    assert "model.save('model.keras')" in line


def test_samples_in_another_range_than_the_models_are_found(edgecompress, digits_cnn, train_file) -> None:
    with np.load(train_file) as data:
        np.savez("pixels.npz", x=(data["x"] * 255).astype(np.uint8), y=data["y"])
    words = ["--prune", "0.5", "--epochs", 1, "--train", "pixels.npz", "-o", "small.keras", "--json"]
    notes = json.loads(edgecompress("compress", digits_cnn.model, *words).out)["notes"]
    assert any(note.startswith("WARNING: training samples: ") and "--input-range 0,1" in note for note in notes)
