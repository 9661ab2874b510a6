from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from edgecompress.errors import ModelError
from edgecompress.flatbuffer import read_metadata, with_metadata
from edgecompress.streaming import METADATA_KEY, Stream, StreamState, read_stream, with_stream
from tests.handmade import dense_model
from tests.handsteps import SUM, clamped_sum

STATES = ({"input": "sum", "output": "next_sum"},)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return clamped_sum(tmp_path / "sum.tflite")


def rewrite(file: Path, content: bytes) -> Path:
    file.write_bytes(with_metadata(file.read_bytes(), metadata={METADATA_KEY: content}))
    return file


def test_a_file_says_how_its_steps_are_run(file: Path) -> None:
    stream = read_stream(file)
    assert stream == SUM
    assert stream.states == (StreamState(input="sum", output="next_sum"),)
    assert json.loads(read_metadata(file)[METADATA_KEY]) == {
        "stream": {"steps": 10, "inputs": ["x"], "outputs": ["sums"], "states": list(STATES)}
    }


def test_other_facts_and_metadata_stay(file: Path) -> None:
    facts = {"version": "1", "class_names": ["no", "yes"]}
    content = with_metadata(
        file.read_bytes(), metadata={METADATA_KEY: json.dumps(facts).encode(), "min_runtime_version": b"2.0"}
    )
    changed = Stream(inputs=("x",), states=STATES)
    file.write_bytes(with_stream(content, changed))
    assert read_stream(file) == changed
    metadata = read_metadata(file)
    assert metadata["min_runtime_version"] == b"2.0"
    assert json.loads(metadata[METADATA_KEY]) == {**facts, "stream": changed.model_dump(mode="json")}


@pytest.mark.parametrize("facts", [None, {}, {"profile": "host"}])
def test_other_files_have_no_steps(tmp_path: Path, facts: dict[str, str] | None) -> None:
    file = tmp_path / "dense.tflite"
    metadata = {} if facts is None else {METADATA_KEY: json.dumps(facts).encode()}
    file.write_bytes(with_metadata(dense_model().pack(), metadata=metadata))
    assert read_stream(file) is None


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "metadata 'edgecompress' is damaged: not JSON (Expecting"),
        (b"\xff\xfe\xfd", "is damaged: not JSON ("),
        (b"[1]", "is damaged: not a JSON object but a list"),
        (b'{"stream": 7}', "is damaged: "),
        (b'{"stream": {"inputs": ["x"]}}', "key 'states' is missing: The states."),
        (b'{"stream": {"inputs": [], "states": [{"input": "sum", "output": "next_sum"}]}}', "key 'inputs'"),
        (b'{"stream": {"inputs": ["x"], "states": [], "steps": 3}}', "key 'states'"),
        (
            b'{"stream": {"inputs": ["x"], "states": [{"input": "sum", "output": "next_sum"}], "step": 3}}',
            "unknown key 'step': did you mean 'steps'",
        ),
        (
            b'{"stream": {"inputs": ["x"], "states": [{"input": "x", "output": "next_sum"}]}}',
            "the input 'x' is named twice",
        ),
    ],
)
def test_damaged_metadata_is_an_error(file: Path, content: bytes, said: str) -> None:
    rewrite(file, content)
    with pytest.raises(ModelError, match=re.escape(said)) as caught:
        read_stream(file)
    assert caught.value.where == file
    assert str(caught.value).count("Fix: convert the model again") == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"inputs": ("y",)}, "the input 'y', which the file lacks. Fix: Allowed: sum, x"),
        ({"outputs": ("sum",)}, "the output 'sum', which the file lacks. Fix: did you mean 'sums'?"),
        ({"states": ({"input": "smu", "output": "next_sum"},)}, "the input 'smu', which the file lacks"),
        ({"states": ({"input": "sum", "output": "next"},)}, "the output 'next', which the file lacks"),
    ],
)
def test_names_that_the_file_lacks_are_an_error(file: Path, changes: dict[str, object], said: str) -> None:
    stream = Stream.model_validate({**SUM.model_dump(), **changes})
    file.write_bytes(with_stream(file.read_bytes(), stream))
    with pytest.raises(ModelError, match=re.escape(said)) as caught:
        read_stream(file)
    assert caught.value.where == file


def test_what_is_no_tflite_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        read_stream(tmp_path / "missing.tflite")
    with pytest.raises(ModelError, match=r"not a \.tflite file"):
        with_stream(b"PK\x03\x04 and more", SUM)


def test_a_number_of_steps_is_positive() -> None:
    with pytest.raises(ValidationError, match="steps"):
        Stream(steps=0, inputs=("x",), states=STATES)
