"""Whatever a user gets wrong: exit code, one clear line that names the thing and the remedy, nothing half-written."""

import json
import os
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def samples(tmp_path):
    """Writes an .npz that fits the CNN, changed as asked; returns its path."""

    def write(**changes: object) -> Path:
        arrays = {"x": np.zeros((30, 8, 8, 1), np.float32), "y": np.arange(30) % 10, **changes}
        path = tmp_path / "samples.npz"
        np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
        return path

    return write


def test_missing_model(refused) -> None:
    line = refused("convert", "nothing.keras")
    assert "nothing.keras: no such file or folder" in line


def test_not_a_model(refused, tmp_path) -> None:
    (tmp_path / "notes.txt").write_text("hello, this is no model")
    line = refused("convert", "notes.txt")
    assert "notes.txt: not a model" in line
    assert "expected a .keras or .h5 file, or a SavedModel folder" in line


def test_truncated_keras_file(refused, digits_cnn, tmp_path) -> None:
    (tmp_path / "half.keras").write_bytes(digits_cnn[0].read_bytes()[:5000])
    line = refused("convert", "half.keras")
    assert "half.keras: not a whole .keras file" in line
    assert "it may be truncated" in line


def test_lambda_layer(refused, tmp_path) -> None:
    import keras

    layers = [keras.Input((4,)), keras.layers.Lambda(lambda x: x * 2, name="double"), keras.layers.Dense(2)]
    keras.Sequential(layers).save(tmp_path / "lambda.keras")
    line = refused("convert", "lambda.keras")
    assert "layer 'double' is a Lambda" in line
    assert "--unsafe" in line


def test_unknown_custom_layer(refused, tmp_path) -> None:
    import keras

    class Odd(keras.layers.Layer):
        def call(self, x):
            return x + 1

    keras.Sequential([keras.Input((4,)), Odd(name="odd")]).save(tmp_path / "odd.keras")
    line = refused("convert", "odd.keras")
    for word in ("'odd'", "'Odd'", "custom class"):
        assert word in line
    assert "--custom-objects" in line


def test_custom_objects_that_cannot_be_imported(refused, digits_cnn) -> None:
    assert "--custom-objects takes module:NAME" in refused("convert", digits_cnn[0], "--custom-objects", "Odd")
    assert "no_such_module" in refused("convert", digits_cnn[0], "--custom-objects", "no_such_module:Odd")


def test_pickled_arrays(refused, digits_cnn, samples) -> None:
    path = samples(x=np.array([{"code": 1}] * 30, dtype=object))
    line = refused("convert", digits_cnn[0], "--data", path)
    assert "holds pickled objects" in line
    assert "--unsafe" in line


def test_missing_data(refused, digits_cnn) -> None:
    line = refused("convert", digits_cnn[0], "--data", "nothing.npz")
    assert "nothing.npz: no such file or folder" in line


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"x": np.zeros((30, 9, 9, 1), np.float32)}, ["image: wrong shape", "('samples', 8, 8, 1)", "(30, 9, 9, 1)"]),
        ({"x": np.zeros((8, 8, 1), np.float32), "y": None}, ["one sample without the samples axis", "x[None]"]),
        ({"x": np.full((30, 8, 8, 1), "a")}, ["not an array of numbers", "<U1"]),
        ({"x": np.full((30, 8, 8, 1), np.nan, np.float32)}, ["NaN or infinite", "sample 0"]),
        ({"x": np.zeros((0, 8, 8, 1), np.float32), "y": np.zeros(0, int)}, ["there are no samples"]),
        ({"y": np.arange(29) % 10}, ["different lengths", "image: 30", "labels: 29"]),
        ({"y": np.full(30, 10)}, ["labels out of range", "0 to 9", "received 10"]),
        ({"y": np.full(30, -1)}, ["labels out of range", "received -1"]),
        ({"y": np.zeros((30, 4))}, ["the labels fit no output", "labels of shape (6, 4)"]),
        ({"x": None, "pictures": np.zeros((30, 8, 8, 1)), "masks": np.zeros(30)}, ["not the model's inputs", "image"]),
    ],
)  # fmt: skip
def test_data_that_does_not_fit(refused, digits_cnn, samples, changes, words) -> None:
    line = refused("convert", digits_cnn[0], "--data", samples(**changes), "--no-benchmark")
    for word in words:
        assert word in line


def test_unknown_profile(refused, digits_cnn) -> None:
    line = refused("convert", digits_cnn[0], "--profile", "pixle")
    assert "no profile is called 'pixle'" in line
    assert "did you mean 'pixel'?" in line


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[runtime]\nthread = 4\n", ["unknown key", "'runtime.thread'", "did you mean 'threads'?"]),
        ('[runtime]\nthreads = "four"\n', ["runtime.threads", "'four'"]),
        ("schema_version = ", ["not valid TOML"]),
    ],
)  # fmt: skip
def test_bad_profile_file(refused, digits_cnn, tmp_path, text, words) -> None:
    from edgecompress.profiles import load_profile

    whole = load_profile("host").model_dump(mode="json", exclude_none=True)
    part = text.partition("\n")[0]
    lines = ['name = "mine"', 'title = "Mine"', f'[chip]\nname = "{whole["chip"]["name"]}"\nisa = "any"\ncpu = "any"']
    lines += ['[quantization]\nschemes = ["int8"]', "[check]\nrules = []"]
    runtime = text if part == "[runtime]" else f'[runtime]\nname = "litert"\ntargets = ["cpu"]\n{text}'
    if part == "[runtime]":
        runtime += 'name = "litert"\ntargets = ["cpu"]\n'
    (tmp_path / "mine.toml").write_text("\n".join([*lines, runtime]))
    for command in (["convert", digits_cnn[0], "--profile", "mine.toml"], ["profiles", "validate", "mine.toml"]):
        line = refused(*command)
        assert "mine.toml" in line
        for word in words:
            assert word in line


def test_a_destination_that_is_something_else(refused, digits_cnn, tmp_path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    line = refused("convert", digits_cnn[0], "-o", "thesis")
    assert "the folder holds something else" in line
    assert "chapter.tex" in line
    (tmp_path / "file").write_text("")
    assert "exists and is not a folder" in refused("convert", digits_cnn[0], "-o", "file")
    assert "cannot be written" in refused("convert", digits_cnn[0], "-o", "file/out")
    assert "names a file" in refused("convert", digits_cnn[0], "-o", "model.tflite")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_destination(refused, digits_cnn, tmp_path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    assert "cannot be written (Permission denied)" in refused("convert", digits_cnn[0], "-o", "locked/out")


@pytest.mark.parametrize("profile", ["coral-usb", "cortex-m4", "ethos-u55-128"])
def test_a_profile_that_needs_data(refused, digits_cnn, profile) -> None:
    line = refused("convert", digits_cnn[0], "--profile", profile)
    assert f"the profile '{profile}' takes full integer quantization" in line
    assert "--data" in line


def test_a_scheme_that_needs_data(refused, digits_cnn) -> None:
    assert "you asked for full integer quantization (int8)" in refused("convert", digits_cnn[0], "--scheme", "int8")


def test_a_scheme_that_the_profile_does_not_take(refused, digits_cnn) -> None:
    line = refused("convert", digits_cnn[0], "--profile", "cortex-m4", "--scheme", "float32")
    assert "does not take the scheme 'float32'" in line
    assert "int8" in line


@pytest.mark.parametrize("options", [["--scheme", "int8"], ["--scheme", "int16x8"], ["--profile", "cortex-m4"]])
def test_loops_whose_layers_are_not_known(refused, digits_gru, tmp_path, options) -> None:
    """Nothing is known of the layers of a SavedModel; sent to TFLiteConverter's own int8, its loop ends the process."""
    import keras

    model, signature = keras.models.load_model(digits_gru.model), [keras.InputSpec(shape=(1, 8, 8), dtype="float32")]
    model.export(tmp_path / "saved", input_signature=signature, verbose=False)
    line = refused("convert", "saved", "--data", digits_gru.data, *options)
    assert "saved: " in line
    assert "cannot be made of a loop in the graph" in line
    assert "convert the Keras model that it was made of" in line


def test_dimensions_that_vary(refused, tmp_path) -> None:
    import keras

    keras.Sequential([keras.Input((None, 3), name="steps"), keras.layers.Dense(2)]).save(tmp_path / "any.keras")
    line = refused("convert", "any.keras")
    assert "input 'steps' has dimensions that vary: (None, None, 3)" in line
    assert "--input-shape steps=?,3" in line
    assert "contradicts the model" in refused("convert", "any.keras", "--input-shape", "5,4")
    assert "names no input" in refused("convert", "any.keras", "--input-shape", "pictures=5,3")
    assert "is not a shape" in refused("convert", "any.keras", "--input-shape", "5,x")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--scheme", "int9"], "'int9' is not one of"),
        (["--input-range", "1,0"], "the first number must be the smaller one"),
        (["--input-range", "one"], "is not a range such as 0,1"),
        (["--max-accuracy-drop", "2"], "2.0 is not in the range"),
        (["--calibration-samples", "0"], "0 is not in the range"),
        (["--recipe", "nothing.toml"], "nothing.toml: no such file"),
        (["--recpie", "x"], "No such option '--recpie'"),
    ],
)
def test_bad_options(refused, digits_cnn, options, words) -> None:
    assert words in refused("convert", digits_cnn[0], *options)


def test_unknown_command(refused) -> None:
    assert "No such command 'convrt'" in refused("convrt")


def test_bad_recipe(refused, digits_cnn, tmp_path) -> None:
    (tmp_path / "recipe.toml").write_text("[quantization]\nschem = 'int8'\n")
    line = refused("convert", digits_cnn[0], "--recipe", "recipe.toml")
    assert "unknown key 'quantization.schem'" in line
    assert "did you mean 'scheme'?" in line


def test_with_json_an_error_is_a_document(edgecompress) -> None:
    done = edgecompress("convert", "nothing.keras", "--json")
    assert done.code == 2
    assert done.err == ""
    assert json.loads(done.out) == {
        "schema": "edgecompress.error/1",
        "error": {
            "kind": "ModelError",
            "message": "nothing.keras: no such file or folder. Fix: check the path of the model",
            "exit_code": 2,
        },
    }


def test_a_fault_of_ours_is_code_4_and_says_how_to_report_it(edgecompress, digits_cnn, monkeypatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("edgecompress.pipeline.load_profile", broken)
    done = edgecompress("convert", digits_cnn[0])
    assert done.code == 4
    assert "internal error: ZeroDivisionError: oops" in done.err
    assert done.err.count("\n") == 1
    log = Path(done.err.split("report it with ")[1].strip())
    assert "Traceback" in log.read_text("utf-8")
    log.unlink()


def test_a_failed_run_leaves_no_folders_that_it_made(refused) -> None:
    assert "no such file" in refused("convert", "nothing.keras", "-o", "new/deep/out")


def test_a_place_where_nobody_may_write(refused, digits_cnn) -> None:
    line = refused("convert", digits_cnn[0], "-o", "/proc/edgecompress/out")
    assert "/proc/edgecompress/out: cannot be written" in line


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--scheme", "dynamic", "--input-type", "int8"], "dynamic files have no int8 inputs; expected float32 inputs"),
        (["--scheme", "int8", "--output-type", "int16"], "int8 files have no int16 outputs; expected int8 outputs"),
        (["--scheme", "float16", "--algorithm", "gptq"], "float16 files have no scales for gptq to find"),
    ],
)
def test_options_that_the_scheme_cannot_keep(refused, digits_cnn, options, words) -> None:
    assert words in refused("convert", digits_cnn[0], "--data", digits_cnn[1], *options)


def test_custom_objects_in_a_broken_module(refused, digits_cnn, tmp_path) -> None:
    (tmp_path / "broken.py").write_text("def half(:\n")
    line = refused("convert", digits_cnn[0], "--custom-objects", "broken:half")
    assert "broken:half: --custom-objects cannot import it (SyntaxError" in line


def test_a_converter_that_crashes(refused, digits_cnn, monkeypatch, tmp_path_factory) -> None:
    folder = tmp_path_factory.mktemp("stand_in")
    (folder / "crashing_child.py").write_text(
        "import os, signal, sys\nsys.stdin.readline()\nos.kill(os.getpid(), signal.SIGSEGV)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(folder))
    from edgecompress.converters import tflite

    original = tflite.Child
    monkeypatch.setattr(tflite, "Child", lambda _module, **options: original("crashing_child", **options))
    line = refused("convert", digits_cnn[0], "--data", digits_cnn[1])
    assert "digits_cnn.keras: the TensorFlow Lite converter crashed (SIGSEGV)" in line
    assert "Fix: " in line
