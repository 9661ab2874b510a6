"""Runs .tflite files as microcontrollers do: with the kernels of TensorFlow Lite Micro, on this machine.

They are the same integer kernels as on a device, in portable C++; the time they take here says nothing about one.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgecompress.artifacts import Artifact, TensorInfo, read_artifact
from edgecompress.benchmark.runner import save_arrays
from edgecompress.data import Array
from edgecompress.errors import DataError, ExecutionError, UnavailableError
from edgecompress.flatbuffer import read_model
from edgecompress.graphs import Graph, decode_graphs
from edgecompress.isolate import Child, Outcome
from edgecompress.versions import version_of

_CHILD = "edgecompress.benchmark.micro_child"
_TIME_LIMIT_S = 600.0
_LARGE_ARENA = 256 << 20  # bytes; the pages that the runtime does not touch cost nothing
# What native code writes to stderr (tensorflow/lite/micro).
_ARENA = re.compile(r"Arena allocation total (\d+) bytes")
_MISSING = re.compile(r"Failed to get registration from op code\s+(\S+)")
_HYBRID = re.compile(r"Hybrid models are not supported|Input type: FLOAT32 with filter type: \w+ not supported")
_REFUSED = re.compile(r"(.*)\n?Node (\S+) \(number (\d+)\) failed to (?:prepare|invoke)")


@dataclass(frozen=True)
class MicroRun:
    """What came of a run.

    Attributes:
        outputs: One array for each output, of shape (samples, ...), in the file's own number type.
        arena_bytes: Memory that the interpreter took in the arena, as its recording allocator counts it. While
            operators prepare themselves they borrow up to some KiB more, so that an arena has to be that much larger.
    """

    outputs: dict[str, Array]
    arena_bytes: int


def run_micro(
    file: Path, inputs: Mapping[str, Array], *, arena_bytes: int | None = None, time_limit_s: float = _TIME_LIMIT_S
) -> MicroRun:
    """Runs a .tflite file on samples in a child process, each sample from a fresh state.

    Args:
        file: The file; its inputs and outputs take one sample at a time.
        inputs: One array for each input, of shape (samples, ...), by the names of the file's signature, in the file's
            own number type: nothing is quantized here.
        arena_bytes: Memory that the interpreter may use; absent: as much as it wants.
        time_limit_s: Seconds after which the process is ended.

    Raises:
        DataError: Names, shapes or types that do not fit the file.
        ExecutionError: tflite-micro lacks an operator or refuses it, the arena is too small, or it crashed or hung.
        ModelError: There is no such file, or it is damaged.
        UnavailableError: tflite-micro is not installed.
    """
    if version_of("tflite-micro") is None:
        raise UnavailableError("tflite-micro is not installed", fix='pip install "edgecompress[micro]"')
    artifact = read_artifact(file)
    _check(artifact, inputs)
    outcome, found = _run(artifact, inputs, arena_bytes or _LARGE_ARENA, time_limit_s)
    if found is not None:
        return found
    if arena_bytes is not None and not outcome.timed_out:
        # Too small an arena has many faces, crashes among them; a large one tells it from other faults.
        needed = run_micro(file, inputs, time_limit_s=time_limit_s).arena_bytes
        raise ExecutionError(
            "the arena is too small", where=file, expected=f"more than {needed:,} bytes",
            received=f"{arena_bytes:,} bytes", fix="give it a larger arena, or make the model smaller",
        )  # fmt: skip
    raise _error(artifact, outcome)


def _check(artifact: Artifact, inputs: Mapping[str, Array]) -> None:
    file, signature = artifact.path, artifact.signature
    if set(inputs) != set(signature.inputs):
        raise DataError(
            "the input names differ", where=file, expected=sorted(signature.inputs), received=sorted(inputs)
        )
    for name, tensor in {**signature.inputs, **signature.outputs}.items():
        if tensor.shape[:1] != (1,):
            raise DataError("takes or gives no single samples", where=f"{file}: {name!r}", received=tensor.shape)
    samples = len(next(iter(inputs.values()), ()))
    for name, tensor in signature.inputs.items():
        expected = f"{tensor.dtype} ({samples or 'samples'}, {', '.join(str(size) for size in tensor.shape[1:])})"
        values = inputs[name]
        if not samples or str(values.dtype) != tensor.dtype or values.shape != (samples, *tensor.shape[1:]):
            raise DataError(
                "the samples do not fit the file", where=f"{file}: input {name!r}", expected=expected,
                received=f"{values.dtype} {values.shape}",
            )  # fmt: skip


def _run(
    artifact: Artifact, inputs: Mapping[str, Array], arena_bytes: int, time_limit_s: float
) -> tuple[Outcome, MicroRun | None]:
    graph, signature = decode_graphs(read_model(artifact.content))[0], artifact.signature
    with Child(_CHILD) as child, tempfile.TemporaryDirectory(prefix="edgecompress-") as folder:
        samples, results = Path(folder, "samples.npz"), Path(folder, "results.npz")
        save_arrays(str(samples), inputs)
        job = {
            "file": str(artifact.path),
            "samples": str(samples),
            "results": str(results),
            "count": len(next(iter(inputs.values()))),
            "arena_bytes": arena_bytes,
            "inputs": _places(graph, graph.inputs, signature.inputs),
            "outputs": _places(graph, graph.outputs, signature.outputs),
        }
        outcome, answer = child.run(job, time_limit_s=time_limit_s)
        arena = _ARENA.search(outcome.stderr)
        if answer is None or "error" in answer or arena is None:
            return outcome, None
        with np.load(results) as arrays:
            return outcome, MicroRun({name: arrays[name] for name in signature.outputs}, int(arena[1]))


def _places(graph: Graph, indices: Sequence[int], named: Mapping[str, TensorInfo]) -> dict[str, int]:
    tensors = [graph.tensors[index].name for index in indices]
    return {name: tensors.index(tensor.name) for name, tensor in named.items()}


def _error(artifact: Artifact, outcome: Outcome) -> ExecutionError:
    file, said = artifact.path, outcome.stderr
    if missing := _MISSING.search(said):
        foreign = ", ".join((*artifact.custom_ops, *artifact.flex_ops))
        return ExecutionError(
            f"tflite-micro has no operator {foreign if missing[1] == 'CUSTOM' else missing[1]}", where=file,
            fix="replace the layer that it comes from",
        )  # fmt: skip
    if _HYBRID.search(said):
        return ExecutionError(
            "tflite-micro has no kernels for the file's number types", where=file,
            expected="int8 or int16 throughout, or float32",
            received="uint8, or integer weights with float activations", fix="convert with --scheme int8",
        )  # fmt: skip
    if refused := _REFUSED.search(said):
        return ExecutionError(
            f"tflite-micro refuses the operator {refused[2]} (operator {refused[3]} of its subgraph)", where=file,
            received=refused[1] or None, fix="replace the layer that it comes from, or take another --scheme",
        )  # fmt: skip
    return ExecutionError(
        f"tflite-micro {outcome.how_it_ended} while it ran the file", where=file, received=outcome.last_words or None,
        fix="use fewer samples" if outcome.timed_out else "check that the file is intact and made for integers",
    )  # fmt: skip
