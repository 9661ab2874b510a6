"""How a file of one time step is run over a sequence; the file says it itself, in its metadata."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from edgecompress.artifacts import read_artifact
from edgecompress.errors import ModelError, did_you_mean
from edgecompress.flatbuffer import read_metadata, with_metadata
from edgecompress.schemas import explain_validation_error

METADATA_KEY = "edgecompress"  # JSON: facts about a file's making, and how it is run
_KEY = "stream"


class StreamState(BaseModel):
    """A state: an input of the file, and the output that becomes it at the next step."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: str
    output: str


class Stream(BaseModel):
    """How a file of one time step stands for a whole network.

    Its inputs and outputs are those of the network, the sequences with one step, and the states besides. States begin
    with zeros (where they are quantized, with their zero point); they go from output to input as they are.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Steps of the network's sequences; the file takes any number."
    )
    inputs: tuple[str, ...] = Field(
        min_length=1, description="Those that are cut along axis 1; others are given whole at each step."
    )
    outputs: tuple[str, ...] = Field(
        (), description="Those whose steps are joined along axis 1; of others that of the last step counts."
    )
    states: tuple[StreamState, ...] = Field(min_length=1, description="The states.")

    @model_validator(mode="after")
    def _names_differ(self) -> Stream:
        for kind, names in (("input", self.all_inputs), ("output", self.all_outputs)):
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice is not None:
                raise ValueError(f"the {kind} {twice!r} is named twice")
        return self

    @property
    def all_inputs(self) -> tuple[str, ...]:
        """The inputs that it names."""
        return (*self.inputs, *(state.input for state in self.states))

    @property
    def all_outputs(self) -> tuple[str, ...]:
        """The outputs that it names."""
        return (*self.outputs, *(state.output for state in self.states))


def read_stream(path: str | os.PathLike[str]) -> Stream | None:
    """Returns how a .tflite file is run over a sequence, or None if it is not one of single steps.

    Raises:
        ModelError: Not a .tflite file, or damaged; its metadata is not what it should be, or names inputs or outputs
            that the file does not have.
    """
    found = _read_facts(read_metadata(path).get(METADATA_KEY), Path(path)).get(_KEY)
    if found is None:
        return None
    try:
        stream = Stream.model_validate(found)
    except ValidationError as error:
        raise _damaged(Path(path), explain_validation_error(error, Stream)) from None
    signature = read_artifact(path).signature
    _require_known(path, "input", stream.all_inputs, signature.inputs)
    _require_known(path, "output", stream.all_outputs, signature.outputs)
    return stream


def with_stream(model: bytes, stream: Stream) -> bytes:
    """Returns a .tflite file that says how it is run over a sequence; its other metadata stays.

    Raises:
        ModelError: Not a .tflite file, or damaged.
    """
    facts = _read_facts(read_metadata(model).get(METADATA_KEY), None)
    facts[_KEY] = stream.model_dump(mode="json")
    return with_metadata(model, metadata={METADATA_KEY: json.dumps(facts, sort_keys=True).encode()})


def _read_facts(content: bytes | None, path: Path | None) -> dict[str, Any]:
    if content is None:
        return {}
    try:
        facts = json.loads(content)
    except ValueError as error:  # bytes that are not UTF-8 are one, too
        raise _damaged(path, f"not JSON ({error})") from None
    if not isinstance(facts, dict):
        raise _damaged(path, f"not a JSON object but a {type(facts).__name__}")
    return facts


def _damaged(path: Path | None, what: str) -> ModelError:
    return ModelError(f"its metadata {METADATA_KEY!r} is damaged: {what}", where=path, fix="convert the model again")


def _require_known(path: object, kind: str, names: Iterable[str], known: Iterable[str]) -> None:
    have = list(known)
    for name in names:
        if name not in have:
            raise ModelError(
                f"its metadata says how single steps are run, and names the {kind} {name!r}, which the file lacks",
                where=path, fix=did_you_mean(name, have),
            )  # fmt: skip
