"""`edgecompress distill`, from the command line to the student's file, and `convert`, `compress` and `plan` with it."""

import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest

from edgecompress.artifacts import read_artifact
from edgecompress.report import CompressReport
from tests.distilling import mlp_student

WIDTH = ["--student", "width=0.5", "--epochs", "2", "--seed", "3"]


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """A student that has learnt nothing yet."""
    path = tmp_path_factory.mktemp("small") / "small.keras"
    mlp_student(8).save(path)
    return path


@pytest.fixture(scope="module")
def teachers(digits_cnn, digits_int8, tmp_path_factory) -> dict[str, Path]:
    """Models of digits, each in a file of another kind."""
    import tf_keras

    folder = tmp_path_factory.mktemp("teachers")
    keras.saving.load_model(digits_cnn.model).export(folder / "saved", verbose=False)
    old = tf_keras.Sequential([
        tf_keras.layers.Input((8, 8, 1), name="image"), tf_keras.layers.Flatten(),
        tf_keras.layers.Dense(10, activation="softmax"),
    ])  # fmt: skip
    with pytest.warns(UserWarning, match="HDF5"):
        old.save(folder / "old.h5")
    return {
        "keras": digits_cnn.model, "tflite": digits_int8, "saved_model": folder / "saved", "keras_2": folder / "old.h5",
    }  # fmt: skip


@pytest.fixture(scope="module")
def distilled(digits_cnn, train_file, tmp_path_factory) -> tuple[Path, dict]:
    """Half of the CNN, taught by the installed command; its file and the document."""
    folder = tmp_path_factory.mktemp("distilled")
    program = Path(sys.executable).with_name("edgecompress")
    words = [
        program,
        "distill",
        "--teacher",
        digits_cnn.model,
        *WIDTH,
        "--train",
        train_file,
        "-o",
        "s.keras",
        "--json",
    ]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert [entry.name for entry in folder.iterdir()] == ["s.keras"], "the teacher's answers are gone"
    return folder / "s.keras", json.loads(done.stdout)


def test_the_student_is_written_and_the_teacher_is_what_was_before(distilled, digits_cnn) -> None:
    file, report = distilled
    found = CompressReport.model_validate(report)
    (one,) = found.passes
    student = keras.saving.load_model(file, compile=False)
    assert one.distilled.student_params == student.count_params() < one.distilled.teacher_params / 3
    assert len(one.trained.epochs) == 2
    assert found.verified.float_scores.accuracy > 0.8
    assert found.before.size_bytes > found.after.size_bytes == file.stat().st_size
    assert found.source.name == digits_cnn.model.name
    assert (found.data.held_out, found.training.samples) == (80, 320)


def test_the_same_seed_gives_the_same_bytes(edgecompress, digits_cnn, train_file, distilled) -> None:
    words = ["--teacher", digits_cnn.model, *WIDTH, "--train", train_file, "-o", "s.keras", "--quiet"]
    assert edgecompress("distill", *words) == (0, "", "")
    assert Path("s.keras").read_bytes() == distilled[0].read_bytes()


def test_the_printed_command_repeats_the_run(edgecompress, distilled) -> None:
    program, *words = distilled[1]["command"]
    assert (program, words[0]) == ("edgecompress", "compress")
    assert edgecompress(*words, "--quiet") == (0, "", "")
    assert Path("s.keras").read_bytes() == distilled[0].read_bytes()


def test_a_recipe_that_says_the_same_gives_the_same_weights(edgecompress, digits_cnn, train_file, distilled) -> None:
    Path("recipe.toml").write_text('seed = 3\n[[passes]]\nkind = "distill"\nwidth = 0.5\n[training]\nepochs = 2\n')
    words = ["--recipe", "recipe.toml", "--train", train_file, "-o", "s.keras", "--json"]
    report = json.loads(edgecompress("compress", digits_cnn.model, *words).out)
    for key in ("weights_sha256", "recipe", "command"):
        assert report[key] == distilled[1][key]


def test_a_killed_run_goes_on_and_ends_as_if_it_had_not_been_killed(
    edgecompress, digits_cnn, train_file, tmp_path
) -> None:
    words = ["distill", "--teacher", str(digits_cnn.model), "--student", "width=0.5", "--train", str(train_file)]
    words += ["--epochs", "4", "--batch-size", "8"]
    process = subprocess.Popen(
        [Path(sys.executable).with_name("edgecompress"), *words, "-o", "s.keras", "--quiet"],
        cwd=tmp_path, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    try:
        while not list(tmp_path.glob(".s.keras.training/1-distill/training.npz")):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not Path("s.keras").exists()
    assert list(Path(".s.keras.training/1-distill/answers").rglob("*.npy")), "what the teacher answered is kept"

    for change in (["--alpha", "0.5"], ["--temperature", "2"], ["--teacher", digits_cnn.model]):
        other = edgecompress(*words, "-o", "s.keras", "--resume", *change)
        assert other.code == 2
        assert "of a run with another " in other.err
        assert other.err.count("\n") == 1

    done = edgecompress(*words, "-o", "s.keras", "--resume", "--json")
    assert done.code == 0, done.err
    resumed = json.loads(done.out)
    assert resumed["passes"][0]["trained"]["resumed_at"] is not None
    assert [entry.name for entry in tmp_path.iterdir()] == ["s.keras"]
    assert edgecompress(*words, "-o", "whole.keras", "--quiet").code == 0
    assert Path("s.keras").read_bytes() == Path("whole.keras").read_bytes()


def test_another_teacher_of_the_same_name_is_refused_on_resuming(edgecompress, train_file, small, monkeypatch) -> None:
    """The command is the same; the file is another."""
    mlp_student(16, seed=1).save("big.keras")
    words = ["distill", "--teacher", "big.keras", "--student", small, "--train", train_file, "-o", "s.keras"]
    with monkeypatch.context() as patch:
        patch.setattr("edgecompress.pipeline.save_model", lambda model, path: _fail_at(path, "s.keras", model))
        assert edgecompress(*words, "--epochs", 1).code != 0
    assert Path(".s.keras.training/1-distill/training.npz").exists()
    mlp_student(16, seed=2).save("big.keras")
    done = edgecompress(*words, "--epochs", 1, "--resume")
    assert done.code == 2
    assert "this checkpoint is of another run" in done.err
    assert edgecompress(*words, "--epochs", 1, "--quiet").code == 0


def _fail_at(path: Path, name: str, model: object) -> None:
    if path.name == name:
        raise KeyboardInterrupt
    model.save(path)


@pytest.mark.parametrize("kind", ["keras", "tflite", "saved_model", "keras_2"])
def test_files_of_every_kind_teach(edgecompress, train_file, small, teachers, kind) -> None:
    words = ["--teacher", teachers[kind], "--student", small, "--train", train_file, "--epochs", 1, "-o", "s.keras"]
    done = edgecompress("distill", *words)
    assert done.code == 0, done.err
    text = " ".join(done.out.split())
    assert f"{teachers[kind].name} taught a student of 610 weights" in text
    assert "on 80 held-out samples" in text.partition("verified against ")[2]
    assert f"--distill teacher={teachers[kind]}" in text.replace(" ", "").replace("--distill", "--distill ")


def test_several_teachers_teach_by_their_mean(edgecompress, train_file, small, teachers) -> None:
    two = ["--teacher", teachers["keras"], "--teacher", teachers["tflite"]]
    done = edgecompress(
        "distill", *two, "--student", small, "--train", train_file, "--epochs", 1, "-o", "s.keras", "--json"
    )
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert report["passes"][0]["distilled"]["teachers"] == [str(teachers["keras"]), str(teachers["tflite"])]
    assert report["before"]["size_bytes"] == sum(teachers[kind].stat().st_size for kind in ("keras", "tflite"))
    assert report["verified"]["float_scores"]["accuracy"] > 0.8


def test_without_labels_and_without_answers_on_disk(edgecompress, digits_cnn, train_file, small) -> None:
    with np.load(train_file) as data:
        np.savez("unlabelled.npz", x=data["x"])
    words = [
        "--teacher",
        digits_cnn.model,
        "--student",
        small,
        "--train",
        "unlabelled.npz",
        "--epochs",
        1,
        "--alpha",
        1,
    ]
    done = edgecompress("distill", *words, "-o", "a.keras")
    assert done.code == 0, done.err
    assert "task_loss" not in done.out
    assert "SoftLabels(T = 4)" in done.out
    assert "The data has no labels" in done.out
    assert edgecompress("distill", *words, "-o", "b.keras", "--no-cache", "--quiet").code == 0
    one, other = (keras.saving.load_model(name, compile=False).get_weights() for name in ("a.keras", "b.keras"))
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_losses_of_layers(edgecompress, digits_cnn, train_file, small) -> None:
    words = ["--teacher", digits_cnn.model, "--student", small, "--train", train_file, "--epochs", 1, "-o", "s.keras"]
    features = "features,teacher_layer=pool,student_layer=hidden,projector=linear,weight=0.1"
    done = edgecompress("distill", *words, "--loss", "soft_labels", "--loss", features, "--temperature", 2)
    assert done.code == 0, done.err
    text = " ".join(done.out.split())
    assert "SoftLabels(T = 2) + 0.1 x Features(pool -> hidden)" in text
    again = shlex.split(text.partition("again: edgecompress ")[2])
    assert edgecompress(*again[:-2], "--epochs", 1, "--quiet").code == 0


def test_a_student_that_is_too_weak_exits_with_1(edgecompress, digits_cnn, train_file, small) -> None:
    words = ["--teacher", digits_cnn.model, "--student", small, "--train", train_file, "--epochs", 1]
    done = edgecompress("distill", *words, "--max-accuracy-drop", "0.01")
    assert done.code == 1
    assert "FAILED accuracy fell by" in done.out
    assert Path("small-distilled.keras").is_file()


# In other commands


@pytest.fixture
def _converters_here(in_process):
    with in_process():
        yield


@pytest.mark.usefixtures("_converters_here")
@pytest.mark.parametrize(
    "passes",
    [
        [],
        ["--qat", "--qat-options", "distill=0.5"],
        ["--low-rank", "ratio=0.5", "--prune", "sparsity=0.5,distill=0.5"],
    ],
)
def test_convert_makes_an_integer_file_of_the_student(edgecompress, digits_cnn, train_file, passes) -> None:
    words = ["--profile", "pixel", "--distill", "width=0.5", *passes, "--epochs", 1, "--train", train_file]
    done = edgecompress("convert", digits_cnn.model, *words, "--no-benchmark", "-o", "out")
    assert done.code == 0, done.err
    report = json.loads(Path("out/report.json").read_text("utf-8"))
    assert report["scheme"] == "int8"
    assert report["passes"][0]["kind"] == "distill"
    assert report["after"]["parameters"] < report["before"]["parameters"] / 3
    assert report["before"]["scores"]["accuracy"] > 0.8
    assert not read_artifact(Path("out/digits_cnn.tflite")).float_ops
    for one in report["passes"][1:]:
        if one["kind"] != "low_rank":
            assert "0.5 x distillation" in one["trained"]["loss"]


@pytest.mark.usefixtures("_converters_here")
def test_convert_by_a_recipe_whose_teacher_is_a_file(edgecompress, digits_cnn, train_file, small) -> None:
    Path("recipe.toml").write_text(
        f'[[passes]]\nkind = "distill"\nteacher = "{digits_cnn.model}"\nepochs = 1\n'
        '[[passes.losses]]\nkind = "soft_labels"\n[[passes.losses]]\nkind = "logits"\nweight = 0.5\n'
    )
    words = ["--recipe", "recipe.toml", "--profile", "pixel", "--train", train_file, "--no-benchmark", "-o", "out"]
    done = edgecompress("convert", small, *words)
    assert done.code == 0, done.err
    assert f"verified against {digits_cnn.model}" in done.out.replace("\n", "")
    report = json.loads(Path("out/report.json").read_text("utf-8"))
    assert report["before"]["scores"]["accuracy"] > 0.8
    assert "SoftLabels(T = 4) + 0.5 x Logits" in report["passes"][0]["trained"]["loss"]
    line = edgecompress(
        "convert", small, "--distill", "teacher=out/small.tflite", "--train", train_file, "-o", "out"
    ).err
    assert "out: would change out/small.tflite, which teaches" in line


@pytest.mark.usefixtures("_converters_here")
def test_convert_a_student_of_sequences_for_a_microcontroller(edgecompress, digits_gru, digits) -> None:
    (x, y), _ = digits.digits(as_rows=True)
    np.savez("rows.npz", x=x[:150], y=y[:150])
    words = ["--distill", "width=0.25", "--epochs", 1, "--train", "rows.npz", "--no-benchmark", "-o", "out"]
    done = edgecompress("convert", digits_gru.model, "--profile", "cortex-m4", *words)
    assert done.code == 0, done.err
    report = json.loads(Path("out/report.json").read_text("utf-8"))
    assert report["scheme"] == "int8"
    assert report["after"]["parameters"] < report["before"]["parameters"] / 4


def test_the_plan_shows_the_students_weights_by_layer(edgecompress, digits_cnn) -> None:
    done = edgecompress("plan", digits_cnn.model, "--distill", "width=0.5", "--prune", "0.5")
    assert done.code == 0
    assert done.err == ""
    assert "4,640 -> 1,168 weights" in done.out
    assert "distill makes new layers: the plan of prune is for the layers as they are before it" in done.out
    shown = json.loads(edgecompress("plan", digits_cnn.model, "--distill", "teacher=big.keras", "--json").out)
    assert {layer["detail"] for layer in shown["passes"][0]["layers"]} == {"trained by big.keras"}


# Careless users


@pytest.mark.parametrize(
    ("student", "parts"),
    [
        ("width=2", ["--student: key 'width'", "less than or equal to 1; received 2"]),
        ("width=0", ["--student: key 'width'", "greater than 0"]),
        ("depth=0", ["--student: key 'depth'", "greater than 0"]),
        ("width=abc", ["--student: key 'width'", "'abc'"]),
        ("rank=0", ["--student: key 'rank'", "greater than 0"]),
        ("nothing=1", ["'nothing=1' is neither a file nor a size such as width=0.5"]),
        ("teacher=big.keras,width=0.5", ["is neither a file nor a size such as width=0.5"]),
        ("0.5", ["'0.5' is neither a file nor a size such as width=0.5"]),
        ("depth=0.5", ["nothing becomes smaller with depth 0.5"]),
        ("nothere.keras", ["nothere.keras: no such file or folder"]),
        ("width", ["width: no such file or folder"]),
        ("TFLITE", ["already a .tflite file"]),
        ("SAVED", ["take models of Keras 3; received a SavedModel"]),
        ("CNN", ["a model cannot teach itself", "width=1, which makes a new model"]),
    ],
)
def test_a_student_that_cannot_be(refused, digits_cnn, train_file, teachers, student, parts) -> None:
    files = {"TFLITE": teachers["tflite"], "SAVED": teachers["saved_model"], "CNN": digits_cnn.model}
    words = ["--teacher", digits_cnn.model, "--student", files.get(student, student), "--train", train_file]
    line = refused("distill", *words, "-o", "s.keras")
    for part in parts:
        assert part in line


def test_a_student_of_keras_2_that_keras_3_cannot_read(refused, digits_cnn, train_file, tmp_path) -> None:
    import tf_keras

    x = tf_keras.Input((8, 8, 1), name="image")
    hidden = tf_keras.layers.Flatten()(x)
    old = tf_keras.Model(x, tf_keras.layers.Dense(10)(hidden + 1.0))  # an operator layer, which Keras 3 does not have
    with pytest.warns(UserWarning, match="HDF5"):
        old.save(tmp_path / "old.h5")
    line = refused(
        "distill", "--teacher", digits_cnn.model, "--student", "old.h5", "--train", train_file, "-o", "s.keras"
    )
    assert "take models of Keras 3; received a model of Keras 2" in line


@pytest.mark.parametrize(
    ("teacher", "parts"),
    [
        ("nothere.keras", ["nothere.keras: no such file or folder"]),
        ("nothere.tflite", ["nothere.tflite: no such file"]),
        ("TEXT", ["not a model"]),
        ("GRU", ["the teacher takes something else than the student", "rows", "image"]),
        ("SEVEN", ["different answers", "7", "10"]),
    ],
)
def test_a_teacher_that_cannot_be(refused, digits_gru, train_file, small, tmp_path, teacher, parts) -> None:
    layers = keras.layers
    seven = keras.Sequential([keras.Input((8, 8, 1), name="image"), layers.Flatten(), layers.Dense(7)])
    seven.save(tmp_path / "seven.keras")
    (tmp_path / "text.txt").write_text("not a model")
    files = {"TEXT": "text.txt", "GRU": digits_gru.model, "SEVEN": "seven.keras"}
    line = refused(
        "distill", "--teacher", files.get(teacher, teacher), "--student", small, "--train", train_file, "-o", "s.keras"
    )
    for part in parts:
        assert part in line


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--temperature", "0"], ["'--temperature'", "0.0 is not in the range x>0"]),
        (["--temperature", "nan"], ["temperature", "nan"]),
        (["--alpha", "2"], ["'--alpha'", "2.0 is not in the range 0<=x<=1"]),
        (["--alpha", "nan"], ["alpha", "nan"]),
        (["--loss", "nonsense"], ["'nonsense'", "attention_transfer", "soft_labels"]),
        (["--loss", "featurs"], ["'featurs'", "did you mean 'features'?"]),
        (["--loss", "features"], ["give teacher_layer and student_layer"]),
        (["--loss", "features,teacher_layer=pol,student_layer=hidden"], ["'pol'", "did you mean pool"]),
        (["--loss", "features,teacher_layer=pool,student_layer=hiden"], ["'hiden'", "did you mean hidden"]),
        (["--loss", "features,teacher_layer=pool,student_layer=hidden"], ["(None, 32)", "(None, 8)", "projector"]),
        (["--loss", "soft_labels,projector=linear"], ["soft_labels takes no projector"]),
        (["--loss", "logits,weight=0"], ["weight", "greater than 0"]),
        (["--train", "nothere.npz"], ["nothere.npz: no such file or folder", "--train takes"]),
        (["--train", "UNLABELLED"], ["training needs labels", "as y"]),
        (["--train", "MISFIT"], ["wrong shape"]),
        (["-o", "s.tflite"], ["does not end in .keras", "-o s.tflite.keras"]),
        (["-o", "s"], ["does not end in .keras", "-o s.keras"]),
        (["-o", "CNN"], ["would change", "which teaches", "choose another name with -o"]),
        (["-o", "SMALL"], ["is the model itself", "choose another name with -o"]),
    ],
)
def test_careless_users(refused, digits_cnn, train_file, small, tmp_path, words, parts) -> None:
    np.savez(tmp_path / "unlabelled.npz", x=np.zeros((20, 8, 8, 1), np.float32))
    np.savez(tmp_path / "misfit.npz", x=np.zeros((20, 9, 9, 1), np.float32), y=np.zeros(20, int))
    files = {"UNLABELLED": "unlabelled.npz", "MISFIT": "misfit.npz", "CNN": digits_cnn.model, "SMALL": small}
    usual = ["--teacher", digits_cnn.model, "--student", small, "--train", train_file, "-o", "s.keras"]
    before = [digits_cnn.model.read_bytes(), small.read_bytes()]
    line = refused("distill", *usual, *(files.get(word, word) for word in words))
    for part in parts:
        assert part in line
    assert [digits_cnn.model.read_bytes(), small.read_bytes()] == before


def test_what_is_missing(refused, digits_cnn, train_file, small, teachers) -> None:
    assert "'--teacher'" in refused("distill", "--student", small, "--train", train_file)
    assert "'--student'" in refused("distill", "--teacher", digits_cnn.model, "--train", train_file)
    line = refused("distill", "--teacher", digits_cnn.model, "--student", small)
    assert "distill trains the model, which needs training samples. Fix: pass --train" in line
    line = refused("convert", digits_cnn.model, "--distill", "alpha=0.5", "--train", train_file)
    assert "--distill: a model cannot teach itself: give width, depth or rank" in line
    layers = "features,teacher_layer=pool,student_layer=hidden"
    line = refused(
        "distill", "--teacher", teachers["tflite"], "--student", small, "--train", train_file, "--loss", layers
    )
    assert "a .tflite file has no layers to look at" in line


def test_a_teacher_that_is_a_folder_stays_as_it_is(refused, train_file, small, teachers) -> None:
    saved = teachers["saved_model"]
    line = refused("distill", "--teacher", saved, "--student", small, "--train", train_file, "-o", saved / "s.keras")
    assert "which teaches" in line


def test_a_model_that_is_not_there_is_not_blamed_on_the_output(refused, train_file, tmp_path) -> None:
    (tmp_path / "s.keras").touch()
    line = refused("distill", "--teacher", "no.keras", "--student", "width=0.5", "--train", train_file, "-o", "s.keras")
    assert "no.keras: no such file or folder" in line
