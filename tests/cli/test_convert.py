"""`edgecompress convert` on real models and data, from the command line to the files."""

import hashlib
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
from edgecompress.flatbuffer import read_metadata


@pytest.fixture(scope="module")
def converted(digits_cnn: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The CNN for `pixel`, by the installed command in a process of its own; its folder, and what it printed."""
    model, data = digits_cnn
    folder = tmp_path_factory.mktemp("converted")
    program = Path(sys.executable).with_name("edgecompress")
    words = [program, "convert", model, "--profile", "pixel", "--data", data]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return folder / f"{model.stem}-pixel", done.stdout


def test_it_writes_a_file_golden_vectors_and_a_report(converted: tuple[Path, str]) -> None:
    folder, _ = converted
    names = {file.name for file in folder.iterdir()}
    assert names == {"digits_cnn.tflite", "golden.npz", "report.json"}
    report = json.loads((folder / "report.json").read_text("utf-8"))
    assert report["schema"] == "edgecompress.report/1"
    assert report["files"] == {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in ("digits_cnn.tflite", "golden.npz")
    }
    assert report["scheme"] == "int8"
    assert report["failed"] == []
    assert report["data"]["calibration"] == 200
    assert report["verified"]["kind"] == "held-out"
    assert report["verified"]["samples"] == report["data"]["held_out"] == 397
    assert report["before"]["parameters"] == report["after"]["parameters"] == 5130
    assert report["after"]["size_bytes"] < 0.6 * report["before"]["size_bytes"]
    assert report["before"]["scores"]["accuracy"] - report["after"]["scores"]["accuracy"] < 0.02
    assert report["after"]["measurement"]["ran_on"]["runtime"] == "litert"
    assert {"edgecompress", "tensorflow", "keras", "litert-quantizer"} <= set(report["versions"])
    assert report["command"][:3] == ["edgecompress", "convert", report["command"][2]]


def test_the_file_is_whole_int8_with_float_borders_and_says_who_made_it(converted: tuple[Path, str]) -> None:
    file = converted[0] / "digits_cnn.tflite"
    artifact = read_artifact(file)
    assert not artifact.float_ops
    assert list(artifact.signature.inputs) == ["image"]
    assert artifact.signature.inputs["image"].dtype == "float32"
    assert list(artifact.signature.outputs) == ["digit"]
    facts = json.loads(read_metadata(file)["edgecompress"])
    assert facts["profile"] == "pixel"
    assert facts["recipe"]["quantization"]["scheme"] == "auto"
    assert len(facts["source_sha256"]) == 64


def test_the_golden_vectors_are_what_the_file_answers(converted: tuple[Path, str]) -> None:
    from edgecompress.benchmark.execute import run_tflite

    folder, _ = converted
    with np.load(folder / "golden.npz") as golden:
        assert set(golden.files) == {"input.image", "float.digit", "output.digit"}
        answers = run_tflite(folder / "digits_cnn.tflite", {"image": golden["input.image"]})
        np.testing.assert_array_equal(answers["digit"], golden["output.digit"])
        assert golden["input.image"].shape == (8, 8, 8, 1)
        assert np.abs(golden["float.digit"] - golden["output.digit"]).max() < 0.2


def test_the_table_shows_before_and_after(converted: tuple[Path, str]) -> None:
    text = converted[1]
    for word in ("parameters", "MACs", "file", "gzip", "accuracy (top-1)", "latency", "verified", "calibrated on 200"):
        assert word in text
    assert "again: edgecompress convert" in text
    assert "WARNING" not in text


def test_json_is_one_document_and_the_same_as_the_report(edgecompress, digits_cnn) -> None:
    model, data = digits_cnn
    done = edgecompress("convert", model, "--profile", "pixel", "--data", data, "--json", "--no-benchmark", "-o", "out")
    assert done.code == 0
    assert done.err == ""
    assert json.loads(done.out) == json.loads(Path("out/report.json").read_text("utf-8"))


def test_a_second_run_gives_the_same_bytes(edgecompress, digits_cnn, converted) -> None:
    model, data = digits_cnn
    done = edgecompress(
        "convert", model, "--profile", "pixel", "--data", data, "--quiet", "--no-benchmark", "-o", "out"
    )
    assert done == (0, "", "")
    for name in ("digits_cnn.tflite", "golden.npz"):
        assert Path("out", name).read_bytes() == (converted[0] / name).read_bytes()


def test_the_command_in_the_report_repeats_it(edgecompress, digits_cnn) -> None:
    model, data = digits_cnn
    options = ["--scheme", "dynamic", "--algorithm", "octav", "--seed", "3", "--no-benchmark", "--verify-samples", "50"]
    assert edgecompress("convert", model, "--data", data, "-o", "first", *options).code == 0
    command = json.loads(Path("first/report.json").read_text("utf-8"))["command"]
    command[command.index("first")] = "second"
    assert edgecompress(*command[1:]).code == 0
    first, second = (json.loads(Path(name, "report.json").read_text("utf-8")) for name in ("first", "second"))
    assert first["files"] == second["files"]
    assert first["recipe"] == second["recipe"]


def test_a_recipe_and_the_options_that_say_the_same_give_the_same_file(edgecompress, digits_cnn) -> None:
    model, data = digits_cnn
    Path("recipe.toml").write_text(
        'seed = 5\n[quantization]\nscheme = "int8"\nalgorithm = "mse"\ncalibration_samples = 64\ninput_type = "int8"\n'
    )
    common = ["convert", model, "--data", data, "--no-benchmark", "--quiet"]
    assert edgecompress(*common, "--recipe", "recipe.toml", "-o", "a").code == 0
    options = [
        "--seed",
        5,
        "--scheme",
        "int8",
        "--algorithm",
        "mse",
        "--calibration-samples",
        64,
        "--input-type",
        "int8",
    ]
    assert edgecompress(*common, *options, "-o", "b").code == 0
    assert Path("a/digits_cnn.tflite").read_bytes() == Path("b/digits_cnn.tflite").read_bytes()
    assert read_artifact("a/digits_cnn.tflite").signature.inputs["image"].dtype == "int8"


def test_a_microcontroller_gets_integer_borders_and_no_float_inside(edgecompress, digits_cnn) -> None:
    model, data = digits_cnn
    done = edgecompress("convert", model, "--profile", "cortex-m4", "--data", data, "--no-benchmark", "-o", "out")
    assert done.code == 0
    artifact = read_artifact("out/digits_cnn.tflite")
    assert artifact.signature.inputs["image"].dtype == artifact.signature.outputs["digit"].dtype == "int8"
    assert not artifact.float_ops
    assert "The tensor arena (196,608 bytes at most) was not checked" in " ".join(done.out.split())


def test_a_gru_without_an_integer_form_becomes_dynamic_int8_and_the_report_says_why(
    edgecompress, digits, digits_gru
) -> None:
    layers = digits.keras.layers
    stack = [digits.keras.Input((8, 8), name="rows"), layers.GRU(16, activation="elu", name="odd"), layers.Dense(10)]
    digits.keras.Sequential(stack).save("odd.keras")
    words = ["convert", "odd.keras", "--profile", "pixel", "--data", digits_gru.data, "--no-benchmark", "-o", "out"]
    done = edgecompress(*words)
    assert done.code == 0
    report = json.loads(Path("out/report.json").read_text("utf-8"))
    assert [(attempt["scheme"], attempt["outcome"]) for attempt in report["attempts"]] == [
        ("int8", "refused"),
        ("dynamic", "chosen"),
    ]
    assert "recurrent layer 'odd' (GRU) has no integer form" in report["attempts"][0]["reason"]
    assert "int8 was not made" in done.out
    assert report["scheme"] == "dynamic"


def test_without_data_weights_become_int8_and_the_report_says_so(edgecompress, digits_cnn) -> None:
    done = edgecompress("convert", digits_cnn[0], "--profile", "pixel", "--no-benchmark", "-o", "out")
    assert done.code == 0
    report = json.loads(Path("out/report.json").read_text("utf-8"))
    assert report["scheme"] == "dynamic"
    assert report["verified"]["kind"] == "seeded-random"
    assert "No data was given" in " ".join(done.out.split())


def test_too_large_a_loss_exits_with_1_and_the_files_are_there_and_marked(edgecompress, digits_cnn) -> None:
    model, data = digits_cnn
    with np.load(data) as samples:
        np.save("unlabelled.npy", samples["x"])
    options = ["--calibration-samples", "1", "--max-accuracy-drop", "0", "--scheme", "int8", "--no-benchmark"]
    done = edgecompress("convert", model, "--data", "unlabelled.npy", "-o", "out", *options)
    report = json.loads(Path("out/report.json").read_text("utf-8"))
    changed = 1 - report["verified"]["outputs"][0]["top1_agreement"]
    assert changed > 0
    assert done.code == 1
    assert report["failed"] == [f"the share of changed answers is {changed:.4f}, allowed is 0"]
    assert "FAILED" in done.out
    assert Path("out/digits_cnn.tflite").is_file()


def test_too_large_a_file_exits_with_1(edgecompress, digits_cnn, tmp_path) -> None:
    from edgecompress.profiles import load_profile

    profile = Path(load_profile.__code__.co_filename).parents[1] / "device_profiles" / "cortex-m4.toml"
    text = "\n".join(
        "file_bytes = 5000" if line.startswith("file_bytes") else line
        for line in profile.read_text("utf-8").splitlines()
    )
    (tmp_path / "small.toml").write_text(text.replace('name = "cortex-m4"', 'name = "small"'))
    model, data = digits_cnn
    done = edgecompress("convert", model, "--profile", "small.toml", "--data", data, "--no-benchmark")
    assert done.code == 1
    report = json.loads(Path("digits_cnn-small/report.json").read_text("utf-8"))
    assert [violation["rule"] for violation in report["violations"]] == ["limits.file_bytes"]
    assert "allowed is 5,000 bytes" in " ".join(done.out.split())


def test_a_wrong_range_is_found(edgecompress, digits_cnn) -> None:
    model, data = digits_cnn
    with np.load(data) as samples:
        np.savez("pixels.npz", x=(samples["x"] * 255).astype(np.uint8), y=samples["y"])
    done = edgecompress("convert", model, "--data", "pixels.npz", "--no-benchmark", "-o", "wrong")
    assert done.code == 0
    assert "WARNING" in done.out
    assert "--input-range 0,1" in " ".join(done.out.split())
    done = edgecompress(
        "convert", model, "--data", "pixels.npz", "--no-benchmark", "--input-range", "0,1", "-o", "right"
    )
    assert done.code == 0
    assert "WARNING" not in done.out


def test_a_killed_run_leaves_nothing_at_the_destination(digits_cnn, tmp_path) -> None:
    model, data = digits_cnn
    program = Path(sys.executable).with_name("edgecompress")
    words = [program, "convert", model, "--data", data, "-o", "out", "--quiet"]
    process = subprocess.Popen(words, cwd=tmp_path, start_new_session=True)
    deadline = time.monotonic() + 60
    children: list[int] = []
    try:
        while not children or not list(tmp_path.glob(".out.*.partial")):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.05)
            children = [
                int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            ]
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "out").exists()
    while any(Path("/proc", str(pid)).exists() for pid in children):
        assert time.monotonic() < deadline, "a child outlived its killed parent"
        time.sleep(0.05)
    again = subprocess.run([*words, "--no-benchmark"], cwd=tmp_path, check=False)
    assert again.returncode == 0
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]
