"""`edgecompress convert` of a recurrent network, from the command line: files for several devices, and wrong uses."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from edgecompress import quantizing
from edgecompress.artifacts import read_artifact
from edgecompress.benchmark.execute import run_tflite
from edgecompress.candidates import Candidate, Task
from edgecompress.cli import cli
from edgecompress.cli.lifecycle import run
from edgecompress.flatbuffer import read_metadata
from edgecompress.streaming import Stream, StreamState, read_stream

STEPS = 8


class Made(NamedTuple):
    """A finished file, its report, what was printed, and the files that were compared, by their form."""

    file: Path
    report: dict[str, Any]
    text: str
    forms: dict[str, Path]

    @property
    def loss(self) -> float:
        """The float model's accuracy less the file's."""
        return self.report["before"]["scores"]["accuracy"] - self.report["after"]["scores"]["accuracy"]

    def outcomes(self) -> dict[str, str]:
        """What became of each form, by its name."""
        return {
            "-".join(str(one[key]) for key in ("scheme", "recurrent", "per_turn")): one["outcome"]
            for one in self.report["attempts"]
        }


@pytest.fixture(autouse=True)
def _converters_here(in_process):
    """Spares these runs the start of other processes."""
    with in_process():
        yield


@pytest.fixture(scope="module")
def make(digits_gru, in_process, tmp_path_factory):
    """A function from the options of a conversion, of the GRU unless said otherwise, to what it made."""
    pick = quantizing.pick

    def call(*options: object, model: Path = digits_gru.model, data: Path = digits_gru.data) -> Made:
        folder, printed, forms = tmp_path_factory.mktemp("made"), io.StringIO(), {}

        def keep(task: Task, candidates: Sequence[Candidate]) -> Any:
            forms.update({str(one.recurrent): Path(shutil.copy(one.file, folder)) for one in candidates})
            return pick(task, candidates)

        words = ["convert", str(model), "--data", str(data), *map(str, options), "-o", str(folder / "out")]
        with pytest.MonkeyPatch.context() as patch, in_process(), contextlib.redirect_stdout(printed):
            patch.setattr(quantizing, "pick", keep)
            code = run(cli, words)
        assert code == 0, printed.getvalue()
        (file,) = (folder / "out").glob("*.tflite")
        report = json.loads((folder / "out" / "report.json").read_text("utf-8"))
        return Made(file, report, " ".join(printed.getvalue().split()), forms)

    return call


@pytest.fixture(scope="module")
def for_cortex(make) -> Made:
    return make("--profile", "cortex-m4", "--no-benchmark")


def operators(file: Path) -> list[str]:
    return [op.name for op in read_artifact(file).ops]


def require_same_answers(made: Made, data: Path) -> None:
    """A host loop over the step, the loop inside of the file and the steps written out agree to the last bit."""
    with np.load(data) as arrays:
        answers = {form: run_tflite(file, {"rows": arrays["x"]})["digit"] for form, file in made.forms.items()}
    assert set(answers) == {"loop", "step", "unrolled"}
    for answer in answers.values():
        np.testing.assert_array_equal(answer, answers["loop"])


def test_on_this_machine_every_form_is_measured_and_the_best_kept(make) -> None:
    made = make("--profile", "host")
    assert set(made.outcomes()) == {
        "int8-loop-1", "int8-loop-4", "int8-step-1", "int8-unrolled-1", "dynamic-None-1",
    }  # fmt: skip
    (chosen,) = (one for one in made.report["attempts"] if one["outcome"] == "chosen")
    assert chosen["recurrent"] != "step"
    assert chosen["size_bytes"] < made.report["after"]["size_bytes"] < chosen["size_bytes"] + 2000  # with its facts
    for one in made.report["attempts"]:
        assert one["latency_ms"] > 0
        assert abs(one["accuracy_drop"]) < 0.02
    assert made.loss < 0.02
    assert made.report["failed"] == []
    for part in ("int8 (loop, 4 steps a turn)", "int8 (step)", "dynamic", "chosen: the fastest on this machine's CPU"):
        assert part in made.text


def test_a_microcontroller_gets_a_loop(for_cortex, digits_gru) -> None:
    assert for_cortex.outcomes() == {
        "int8-loop-1": "chosen", "int8-step-1": "passed over", "int8-unrolled-1": "passed over",
    }  # fmt: skip
    assert {one["latency_ms"] for one in for_cortex.report["attempts"]} == {None}
    artifact = read_artifact(for_cortex.file)
    assert "WHILE" in operators(for_cortex.file)
    assert not artifact.float_ops
    assert artifact.signature.inputs["rows"].dtype == artifact.signature.outputs["digit"].dtype == "int8"
    assert for_cortex.report["after"]["size_bytes"] < 0.5 * for_cortex.report["before"]["size_bytes"]
    assert for_cortex.loss < 0.02
    assert read_stream(for_cortex.file) is None
    require_same_answers(for_cortex, digits_gru.data)


def test_the_form_that_is_asked_for_is_the_same_file(make, for_cortex) -> None:
    made = make("--profile", "cortex-m4", "--recurrent", "loop", "--no-benchmark")
    assert made.outcomes() == {"int8-loop-1": "chosen"}
    assert made.forms["loop"].read_bytes() == for_cortex.forms["loop"].read_bytes()
    command = made.report["command"]
    assert command[command.index("--recurrent") + 1] == "loop"
    assert "--recurrent" not in for_cortex.report["command"]


def test_an_ethos_u_gets_one_step_and_the_file_says_how_it_is_run(make) -> None:
    made = make("--profile", "ethos-u55-128", "--no-benchmark")
    assert made.outcomes() == {"int8-step-1": "chosen", "int8-unrolled-1": "passed over"}
    state = StreamState(input="gru_state_0", output="gru_next_state_0")
    assert read_stream(made.file) == Stream(steps=STEPS, inputs=("rows",), outputs=(), states=(state,))
    facts = json.loads(read_metadata(made.file)["edgecompress"])
    assert facts["profile"] == "ethos-u55-128"
    assert facts["stream"]["states"] == [{"input": "gru_state_0", "output": "gru_next_state_0"}]
    signature = read_artifact(made.file).signature
    assert signature.inputs["rows"].shape == (1, 1, 8)
    before, after = signature.inputs["gru_state_0"], signature.outputs["gru_next_state_0"]
    assert (before.scale, before.zero_point, before.dtype) == (after.scale, after.zero_point, "int8")
    assert made.loss < 0.02
    assert made.report["after"]["vela_flash_bytes"] > 1000
    assert f"{made.report['after']['macs']:,} a step" in made.text
    with np.load(made.file.with_name("golden.npz")) as golden:
        assert set(golden.files) == {"input.rows", "float.digit", "output.digit"}
        assert golden["input.rows"].shape == (8, STEPS, 8)


def test_an_edge_tpu_gets_no_loop_of_an_lstm(make, digits, tmp_path_factory) -> None:
    import keras

    keras.utils.set_random_seed(0)
    stack = [keras.Input((STEPS, 8), name="rows"), keras.layers.LSTM(12), keras.layers.Dense(10, activation="softmax")]
    model, data = digits.train(
        keras.Sequential(stack, name="lstm"), as_rows=True, epochs=4, folder=tmp_path_factory.mktemp("lstm")
    )
    made = make("--profile", "coral-usb", "--no-benchmark", model=model, data=data)
    assert made.outcomes() == {
        "int8-unrolled-1": "chosen", "int8-step-1": "passed over", "int8-fused-1": "passed over",
    }  # fmt: skip
    found = operators(made.file)
    assert "WHILE" not in found
    assert found.count("LOGISTIC") == STEPS
    assert operators(made.forms["fused"]).count("UNIDIRECTIONAL_SEQUENCE_LSTM") == 1
    assert made.loss < 0.02


def test_sixteen_bits_and_ranges_without_outliers(make, digits_gru) -> None:
    made = make("--profile", "cortex-m4", "--scheme", "int16x8", "--observer", "percentile", "--no-benchmark")
    assert made.outcomes() == {
        "int16x8-loop-1": "chosen", "int16x8-step-1": "passed over", "int16x8-unrolled-1": "passed over",
    }  # fmt: skip
    assert read_artifact(made.file).signature.inputs["rows"].dtype == "int16"
    assert made.loss <= 0.005
    require_same_answers(made, digits_gru.data)
    command = made.report["command"]
    assert command[command.index("--observer") + 1] == "percentile"


def test_trained_for_int8(make, digits_gru, tmp_path) -> None:
    with np.load(digits_gru.model.with_name("digits_gru-train.npz")) as data:
        np.savez(tmp_path / "train.npz", x=data["x"][:600], y=data["y"][:600])
    how = ["--qat", "--train", tmp_path / "train.npz", "--epochs", 1, "--learning-rate", 1e-4]
    made = make("--profile", "cortex-m4", "--no-benchmark", *how)
    assert made.outcomes()["int8-loop-1"] == "chosen"
    assert not read_artifact(made.file).float_ops
    assert made.loss < 0.015
    assert [each["kind"] for each in made.report["passes"]] == ["qat"]
    require_same_answers(made, digits_gru.data)


# Wrong uses


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ["--profile", "ethos-u55-128", "--recurrent", "loop"],
            ["'ethos-u55-128' does not take recurrent layers in the form 'loop'", "expected step, fused, unrolled"],
        ),
        (["--recurrent", "loop", "--scheme", "dynamic"], ["recurrent layers of dynamic files", "leave --recurrent"]),
        (["--recurrent", "lop"], ["--recurrent", "'lop'", "'loop'"]),
        (["--observer", "max"], ["--observer", "'max'", "'min_max'"]),
        (["--recurrent", "fused", "--scheme", "int8"], ["'gru' does not fit", "use --recurrent loop"]),
    ],
)  # fmt: skip
def test_forms_that_there_are_not(refused, digits_gru, options, words) -> None:
    line = refused("convert", digits_gru.model, "--data", digits_gru.data, "--no-benchmark", *options)
    for word in words:
        assert word in line


def test_an_integer_only_device_needs_data(refused, digits_gru) -> None:
    assert "--data" in refused("convert", digits_gru.model, "--profile", "cortex-m4", "--recurrent", "loop")


def save(kind: str, path: Path) -> Path:
    import keras

    layers = keras.layers
    x = keras.Input(batch_shape=(1, STEPS, 8), name="rows")
    layer = {
        "elu": layers.GRU(4, activation="elu", name="odd"),
        "stateful": layers.GRU(4, stateful=True, name="odd"),
        "bidirectional": layers.Bidirectional(layers.GRU(4, name="odd")),
    }[kind]
    keras.Model(x, layers.Dense(10, name="digit")(layer(x))).save(path)
    return path


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        (
            "elu", ["--profile", "cortex-m4"],
            ["recurrent layer 'odd' (GRU) has no integer form: its activation elu", "tanh, sigmoid, relu, linear"],
        ),
        ("stateful", ["--profile", "cortex-m4"], ["odd", "stateful=False"]),
        ("bidirectional", ["--recurrent", "step"], ["no single step of a layer that reads backwards"]),
    ],
)  # fmt: skip
def test_layers_that_have_no_such_form(refused, digits_gru, tmp_path, kind, options, words) -> None:
    model = save(kind, tmp_path / f"{kind}.keras")
    line = refused("convert", model, "--data", digits_gru.data, "--no-benchmark", *options)
    for word in words:
        assert word in line
