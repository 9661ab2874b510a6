"""The commands besides `convert`, on real files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgecompress.cli import _COMMANDS
from edgecompress.tiny import tiny_model


@pytest.fixture(scope="module")
def int8_file(digits_cnn, tmp_path_factory) -> Path:
    from edgecompress import convert

    model, data = digits_cnn
    folder = tmp_path_factory.mktemp("int8") / "out"
    convert(model, "cortex-m4", data=data, output=folder, benchmark=False)
    return folder / "digits_cnn.tflite"


def test_help_lists_every_command_and_its_text_is_the_commands_own(edgecompress) -> None:
    done = edgecompress("--help")
    assert done.code == 0
    for name in _COMMANDS:
        assert name in done.out
        own = edgecompress(name, "--help")
        assert own.code == 0
        assert own.out.startswith(f"Usage: edgecompress {name}")


def test_version(edgecompress) -> None:
    from edgecompress.versions import own_version

    assert edgecompress("--version").out == f"edgecompress {own_version()}\n"


@pytest.mark.parametrize("name", [name for name in _COMMANDS if name != "profiles"])
def test_every_command_has_json_and_quiet(edgecompress, name) -> None:
    text = edgecompress(name, "--help").out
    assert "--json" in text
    assert "--quiet" in text


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("edgecompress con", {"convert"}),
        ("edgecompress convert --profile cor", {"coral-usb", "cortex-m4", "cortex-m7"}),
        ("edgecompress convert --scheme int", {"int8", "int16x8", "int4_weights"}),
        ("edgecompress profiles show eth", {"ethos-u55-128"}),
    ],
)
def test_the_shell_completes(words: str, expected: set[str]) -> None:
    program = Path(sys.executable).with_name("edgecompress")
    environment = {
        **os.environ,
        "_EDGECOMPRESS_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    done = subprocess.run([program], env=environment, capture_output=True, text=True, check=False)
    assert {line.split(",")[1] for line in done.stdout.splitlines()} == expected


def test_inspect_a_keras_model(edgecompress, digits_cnn) -> None:
    done = edgecompress("inspect", digits_cnn[0])
    assert done.code == 0
    assert "total: 5,178 parameters, 83,264 MACs" in done.out
    found = json.loads(edgecompress("inspect", digits_cnn[0], "--json").out)
    assert found["schema"] == "edgecompress.inspect/1"
    assert [layer["name"] for layer in found["layers"]][:2] == ["conv", "norm"]


def test_inspect_a_tflite_file(edgecompress, int8_file) -> None:
    done = edgecompress("inspect", int8_file)
    assert done.code == 0
    for word in ("CONV_2D", "SOFTMAX", "int8", "total: 5,130 parameters", "scale"):
        assert word in done.out
    found = json.loads(edgecompress("inspect", int8_file, "--json").out)
    assert found["schema"] == "edgecompress.inspect/1"
    assert found["ops"][0]["name"] == "CONV_2D"
    assert "float_arithmetic" in found["ops"][0]


def test_evaluate_both_and_compare_them(edgecompress, digits_cnn, int8_file) -> None:
    model, data = digits_cnn
    accuracy = {}
    for file in (model, int8_file):
        found = json.loads(edgecompress("evaluate", file, "--data", data, "--json").out)
        assert found["schema"] == "edgecompress.evaluate/1"
        assert np.sum(found["scores"]["confusion"]) == found["scores"]["samples"] == 597
        accuracy[file] = found["scores"]["accuracy"]
    assert abs(accuracy[model] - accuracy[int8_file]) < 0.02
    text = edgecompress("evaluate", model, "--data", data).out
    assert f"{accuracy[model]:.2%}" in text
    assert "label \\ predicted" in text
    found = json.loads(edgecompress("compare", model, int8_file, "--data", data, "--runs", 5, "--json").out)
    assert [row["scores"]["accuracy"] for row in found["rows"]] == [accuracy[model], accuracy[int8_file]]
    assert [row["as_float_tflite"] for row in found["rows"]] == [True, False]
    assert found["rows"][1]["size_bytes"] == int8_file.stat().st_size
    text = edgecompress("compare", model, int8_file, "--runs", 5).out
    assert "digits_cnn.keras (as float32 .tflite)" in " ".join(text.split())


def test_benchmark(edgecompress, int8_file) -> None:
    words = ["benchmark", int8_file, "--runs", 5, "--per-op"]
    found = json.loads(edgecompress(*words, "--json").out)
    assert found["schema"] == "edgecompress.benchmark/1"
    (one,) = found["measurements"]
    assert one["kind"] == "measured"
    assert one["latency"]["min_ms"] <= one["latency"]["median_ms"] <= one["latency"]["p95_ms"]
    assert one["ran_on"]["runtime"] == "litert"
    assert one["per_op"] is not None
    text = edgecompress(*words).out
    assert "median" in text
    assert "litert" in text


def test_benchmark_takes_its_threads_from_the_profile(edgecompress, int8_file) -> None:
    words = ["benchmark", int8_file, "--runs", 1, "--json", "--profile", "pixel"]
    assert json.loads(edgecompress(*words).out)["measurements"][0]["threads"] == 4
    assert json.loads(edgecompress(*words, "--threads", 2).out)["measurements"][0]["threads"] == 2


@pytest.mark.parametrize("command", ["benchmark", "inspect"])
def test_a_damaged_file(edgecompress, tmp_path, command) -> None:
    (tmp_path / "half.tflite").write_bytes(tiny_model()[:120])
    done = edgecompress(command, "half.tflite")
    assert done.code == 2
    assert done.err.startswith("Error: ")
    assert "half.tflite" in done.err
    assert done.err.count("\n") == 1


def test_profiles(edgecompress) -> None:
    from edgecompress.profiles import list_profiles

    text = edgecompress("profiles", "list").out
    listed = json.loads(edgecompress("profiles", "list", "--json").out)["profiles"]
    assert [row["name"] for row in listed] == list(list_profiles())
    assert all(name in text for name in list_profiles())
    shown = edgecompress("profiles", "show", "coral-usb")
    assert shown.code == 0
    assert "quantization.schemes" in shown.out
    assert json.loads(edgecompress("profiles", "show", "pixel", "--json").out)["name"] == "pixel"
    assert edgecompress("profiles", "validate", *list_profiles()).out.count("valid") == len(list_profiles())
    assert json.loads(edgecompress("profiles", "schema").out)["title"] == "Profile"


def test_doctor(edgecompress) -> None:
    found = json.loads(edgecompress("doctor", "--json").out)
    assert found["schema"] == "edgecompress.doctor/1"
    names = {one["name"] for one in found["found"]}
    assert {"tensorflow", "ai-edge-litert", "LiteRT GPU", "Edge TPU", "adb", "edgetpu_compiler", "vela"} <= names
    assert all((one["fix"] is None) == one["usable"] for one in found["found"])
    assert "tensorflow" in edgecompress("doctor").out


def test_quiet_says_nothing(edgecompress, digits_cnn) -> None:
    for words in (["inspect", digits_cnn[0]], ["doctor"], ["profiles", "list"]):
        assert edgecompress(*words, "--quiet") == (0, "", "")


@pytest.mark.parametrize("words", [[], ["profiles"]])
def test_a_bare_command_shows_its_help_as_it_is(edgecompress, words) -> None:
    done = edgecompress(*words)
    assert done.code == 2
    assert "Error" not in done.err
    assert done.err.startswith("Usage: edgecompress")
    assert done.err.count("\n") > 5


@pytest.mark.parametrize("name", ["list", "show", "validate", "schema"])
def test_every_profiles_command_has_json_and_quiet(edgecompress, name) -> None:
    text = edgecompress("profiles", name, "--help").out
    assert "--json" in text
    assert "--quiet" in text


def test_per_op_imports_nothing_from_the_users_folder(edgecompress, int8_file) -> None:
    Path("json.py").write_text("raise RuntimeError('the user's own')")
    found = json.loads(edgecompress("benchmark", int8_file, "--runs", 1, "--per-op", "--json").out)
    assert found["measurements"][0]["per_op"]


def test_verbose_may_stand_anywhere(edgecompress) -> None:
    assert edgecompress("profiles", "list", "--verbose").code == 0
    assert edgecompress("--verbose", "profiles", "list").code == 0


def test_what_a_users_module_prints_stays_out_of_the_document(edgecompress, digits_cnn) -> None:
    Path("samples.py").write_text(
        "print('hello')\nimport numpy as np\n"
        "def load():\n    print('loading')\n"
        f"    data = np.load({str(digits_cnn[1])!r})\n    return data['x'][:50], data['y'][:50]\n"
    )
    done = edgecompress("evaluate", digits_cnn[0], "--data", "python:samples:load", "--json")
    assert json.loads(done.out)["scores"]["samples"] == 50
