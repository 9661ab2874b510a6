"""`edgecompress compress` and `plan` on a real model, from the command line to the file."""

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

PASSES = ["--prune", "0.8", "--cluster", "8", "--epochs", "2", "--seed", "3"]
RECIPE = """
seed = 3
[[passes]]
kind = "prune"
sparsity = 0.8
[[passes]]
kind = "cluster"
clusters = 8
[training]
epochs = 2
"""


@pytest.fixture(scope="module")
def compressed(digits_cnn, train_file, tmp_path_factory) -> tuple[Path, dict]:
    """The CNN pruned and clustered by the installed command, in a process of its own; its file and the document."""
    folder = tmp_path_factory.mktemp("compressed")
    program = Path(sys.executable).with_name("edgecompress")
    words = [program, "compress", digits_cnn.model, *PASSES, "--train", train_file, "-o", "small.keras", "--json"]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert [entry.name for entry in folder.iterdir()] == ["small.keras"]
    return folder / "small.keras", json.loads(done.stdout)


def test_the_file_is_a_keras_3_model_with_zeros_and_shared_values(compressed, digits_cnn) -> None:
    import keras

    with warnings.catch_warnings():
        # Keras warns that the optimizer, which the file names, begins anew.
        warnings.filterwarnings("ignore", "Skipping variable loading for optimizer")
        model = keras.models.load_model(compressed[0])
    assert type(model.optimizer).__name__ == "Adam"
    with np.load(digits_cnn.data) as data:
        assert model.predict(data["x"][:3], verbose=0).shape == (3, 10)
    kernel = np.asarray(model.get_layer("conv_2").kernel)
    assert np.mean(kernel == 0) > 0.79
    assert len(np.unique(kernel)) <= 9


def test_the_document_says_what_was_reached(compressed, digits_cnn, train_file) -> None:
    file, report = compressed
    assert report["schema"] == "edgecompress.compress/1"
    assert [one["kind"] for one in report["passes"]] == ["prune", "cluster"]
    for one in report["passes"]:
        proof = {layer["layer"]: layer for layer in one["proof"]}
        assert proof["conv_2"]["sparsity"] > 0.79
        assert len(one["trained"]["epochs"]) == 2
    assert proof["conv_2"]["distinct"] <= 9
    assert report["after"]["size_bytes"] == file.stat().st_size
    assert report["after"]["gzip_bytes"] < 0.5 * report["before"]["gzip_bytes"]
    assert report["data"]["held_out"] == 80
    assert report["training"]["samples"] == 320
    assert report["verified"]["float_scores"]["accuracy"] > 0.8
    assert "of the 400 samples of --train verify the result" in " ".join(report["notes"])
    assert report["command"] == [
        "edgecompress", "compress", str(digits_cnn.model), "--train", str(train_file), "--output", "small.keras",
        "--prune", "0.8", "--cluster", "8", "--seed", "3", "--epochs", "2",
    ]  # fmt: skip


def test_a_recipe_that_says_the_same_gives_the_same_weights(edgecompress, digits_cnn, train_file, compressed) -> None:
    Path("recipe.toml").write_text(RECIPE)
    words = ["--recipe", "recipe.toml", "--train", train_file, "-o", "small.keras"]
    done = edgecompress("compress", digits_cnn.model, *words, "--json")
    assert done.code == 0
    assert done.err == ""
    report = json.loads(done.out)
    for key in ("weights_sha256", "command", "recipe", "passes"):
        assert report[key] == compressed[1][key]


def test_a_killed_run_goes_on_and_ends_as_if_it_had_not_been_killed(
    edgecompress, digits_cnn, train_file, compressed, tmp_path
) -> None:
    words = ["compress", str(digits_cnn.model), *PASSES, "--train", str(train_file), "-o", "small.keras"]
    process = subprocess.Popen(
        [Path(sys.executable).with_name("edgecompress"), *words, "--quiet"], cwd=tmp_path, start_new_session=True
    )
    deadline = time.monotonic() + 120
    try:
        while not list(tmp_path.glob(".small.keras.training/*/*")):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.02)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert not Path("small.keras").exists()

    other = edgecompress(*words, "--resume", "--batch-size", 8)
    assert other.code == 2
    assert "of a run with another training" in other.err
    assert "leave --resume out" in other.err

    done = edgecompress(*words, "--resume", "--json")
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert report["weights_sha256"] == compressed[1]["weights_sha256"]
    assert any("went on from the checkpoints" in note for note in report["notes"])
    assert report["command"] == compressed[1]["command"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["small.keras"]


def test_without_training_samples_the_model_is_pruned_once(edgecompress, digits_cnn) -> None:
    done = edgecompress("compress", digits_cnn.model, "--prune", "0.5", "--data", digits_cnn.data)
    assert done.code == 0
    assert done.err == ""
    text = " ".join(done.out.split())
    for words in (
        "digits_cnn-compressed.keras",
        "gzip",
        "accuracy (top-1)",
        "conv_2",
        "50.0%",
        "not trained",
        "again:",
    ):
        assert words in text
    assert Path("digits_cnn-compressed.keras").is_file()


def test_too_large_a_loss_exits_with_1(edgecompress, digits_cnn) -> None:
    words = ["--prune", "0.95", "--data", digits_cnn.data, "--max-accuracy-drop", "0.01", "-o", "small.keras"]
    done = edgecompress("compress", digits_cnn.model, *words)
    assert done.code == 1
    assert "FAILED accuracy fell by" in done.out
    assert Path("small.keras").is_file()


def test_what_changes_nothing_says_so(edgecompress, digits_cnn) -> None:
    notes = json.loads(edgecompress("compress", digits_cnn.model, "--prune", "0", "--json").out)["notes"]
    assert notes[0] == "WARNING: prune changed nothing: it has no kernel; left as it is: sparsity 0."
    assert not any("Zeros and shared values" in note for note in notes)


def test_checkpoints_that_are_removed_are_spoken_of(edgecompress, digits_cnn, train_file) -> None:
    folder = Path(".small.keras.training")
    (folder / "1-prune").mkdir(parents=True)
    (folder / "1-prune" / "training.npz").touch()
    words = ["--prune", "0.5", "--epochs", 1, "--train", train_file, "-o", "small.keras"]
    done = edgecompress("compress", digits_cnn.model, *words)
    text = " ".join(done.out.split())
    assert "The checkpoints of an earlier run were removed; --resume would have gone on with them." in text
    assert " 1 epoch on " in text
    assert not folder.exists()


def test_resume_without_checkpoints_says_so(edgecompress, digits_cnn, train_file) -> None:
    words = ["--prune", "0.5", "--epochs", 1, "--train", train_file, "--resume"]
    done = edgecompress("compress", digits_cnn.model, *words)
    assert done.code == 0
    assert "--resume found no checkpoints: the training began at the beginning" in " ".join(done.out.split())


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (
            [],
            ["there is nothing to do", "add --distill width=0.5, --low-rank 0.5, --fuse, --prune 0.8 or --cluster 16"],
        ),
        (["--qat"], ["qat ends in an integer .tflite file", "use `edgecompress convert`"]),
        (["--prune", "2"], ["--prune: key 'sparsity'", "less than 1"]),
        (["--prune", "abc"], ["'--prune': 'abc' is not a value such as 0.8, 2:4", "compress --help"]),
        (["--cluster", "1"], ["--cluster: key 'clusters'"]),
        (["--prune", "0.8", "--epochs", "0"], ["--epochs"]),
        (["--prune", "0.8", "--epochs", "3"], ["nothing to train on", "pass --train"]),
        (["--prune", "0.8", "--resume"], ["--resume was given, but nothing to train on"]),
        (["--prune", "0.8", "--train", "nothing.npz"], ["nothing.npz: no such file or folder", "--train takes"]),
        (["--prune", "0.8", "-o", "small.tflite"], ["does not end in .keras", "-o small.tflite.keras"]),
        (["--prune", "layers={dens=0.5}"], ["dens"]),
        (["--cluster", "5000"], ["layer 'conv'", "Fix: "]),
    ],
)
def test_careless_users(refused, digits_cnn, words, parts) -> None:
    line = refused("compress", digits_cnn.model, *words)
    for part in parts:
        assert part in line


def test_a_folder_where_the_file_should_go(refused, digits_cnn) -> None:
    Path("small.keras").mkdir()
    line = refused("compress", digits_cnn.model, "--prune", "0.8", "-o", "small.keras")
    assert "is a folder, but a file is written" in line


def test_a_recipe_with_qat_before_prune(refused, digits_cnn) -> None:
    Path("recipe.toml").write_text('[[passes]]\nkind = "qat"\n[[passes]]\nkind = "prune"\n')
    line = refused("convert", digits_cnn.model, "--recipe", "recipe.toml")
    assert "recipe.toml: key 'passes': 'qat' must be the last pass" in line


def test_unlabelled_and_misfit_training_samples(refused, digits_cnn) -> None:
    np.savez("unlabelled.npz", x=np.zeros((20, 8, 8, 1), np.float32))
    line = refused("compress", digits_cnn.model, "--prune", "0.8", "--train", "unlabelled.npz")
    assert "unlabelled.npz: training needs labels, and there are none" in line
    np.savez("misfit.npz", x=np.zeros((20, 9, 9, 1), np.float32), y=np.zeros(20, int))
    line = refused("compress", digits_cnn.model, "--prune", "0.8", "--train", "misfit.npz")
    assert "wrong shape" in line
    np.savez("classes.npz", x=np.zeros((20, 8, 8, 1), np.float32), y=np.full(20, 10))
    assert "10" in refused("compress", digits_cnn.model, "--prune", "0.8", "--train", "classes.npz")


# The plan


def test_the_plan_of_a_run(edgecompress, digits_cnn) -> None:
    done = edgecompress("plan", digits_cnn.model, "--prune", "0.8", "--qat", "--epochs", 3, "--profile", "pixel")
    assert done.code == 0
    assert done.err == ""
    for word in (
        "layer",
        "prune",
        "qat",
        "conv_2",
        "for pixel",
        "qat trains for int8",
        "80 % zeros",
        "it has no kernel",
    ):
        assert word in done.out
    assert not list(Path().iterdir())


def test_a_line_of_convert_can_be_planned_as_it_is(edgecompress, refused, digits_cnn) -> None:
    words = ["plan", digits_cnn.model, "--qat", "--train", "train.npz", "--data", "data.npz", "-o", "out"]
    words += ["--no-benchmark", "--input-range", "0,1", "--verify-samples", 9, "--profile", "pixel"]
    done = edgecompress(*words, "--scheme", "dynamic")
    assert done.code == 0
    assert "qat trains for dynamic" in done.out
    assert "float32 rounds nothing that qat could train for" in refused(*words, "--scheme", "float32")


def test_the_plan_as_a_document(edgecompress, digits_cnn) -> None:
    found = json.loads(edgecompress("plan", digits_cnn.model, "--json").out)
    assert found["schema"] == "edgecompress.plan/1"
    kinds = [one["technique"]["kind"] for one in found["passes"]]
    assert kinds == ["low_rank", "fuse", "prune", "cluster", "qat"]
    assert not found["asked"]


def test_a_plan_of_a_run_that_would_be_refused_exits_with_2(edgecompress, digits_cnn) -> None:
    done = edgecompress("plan", digits_cnn.model, "--cluster", 5000)
    assert done.code == 2
    assert "REFUSED" in done.out
    assert edgecompress("plan", digits_cnn.model, "--cluster", 5000, "--quiet") == (2, "", "")
