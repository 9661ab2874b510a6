"""The quantized file of what is left of a network when its recurrent layers are cut out."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edgecompress.artifacts import read_artifact
from edgecompress.converters.cut import has_loops
from edgecompress.converters.ptq import QuantizationJob, quantize
from edgecompress.converters.tflite import FloatConverter, FrozenGraph
from edgecompress.data import Array, Dataset
from edgecompress.errors import ConversionError
from edgecompress.flatbuffer import read_model
from edgecompress.graphs import Operator, decode_graphs
from edgecompress.isolate import Progress
from edgecompress.recurrent.scales import Range
from edgecompress.schemes import IoType, QuantizationScheme

# Operators that only move values: whether they are there may depend on the number of steps.
_MOVES = frozenset({"RESHAPE", "EXPAND_DIMS", "SQUEEZE", "TRANSPOSE"})


@dataclass(frozen=True)
class Outer:
    """A quantized file.

    Attributes:
        content: The file; its inputs and outputs are integers.
        floats: The float file that it was made of, or None if the ranges were trained.
        ranges: Of its activations, by the names of the float file's tensors.
    """

    content: bytes
    floats: bytes | None = None
    ranges: Mapping[str, Range] | None = None


def trained_outer(graph: FrozenGraph, folder: Path) -> Outer:
    """Converts a graph that holds trained ranges, to int8."""
    with FloatConverter() as converter:
        return Outer(converter.convert(graph, folder, borders=(IoType.INT8, IoType.INT8)).read_bytes())


def quantized_outer(
    graph: FrozenGraph, folder: Path, job: QuantizationJob, samples: Mapping[str, Array], ranges: Mapping[str, Range],
    *, like: Outer | None = None, progress: Progress | None = None,
) -> Outer:  # fmt: skip
    """Converts a float graph.

    Args:
        graph: What is left of the network.
        folder: Where files are written.
        job: How it is quantized; its inputs and outputs become integers.
        samples: They set the ranges of activations; one array an input.
        ranges: Ranges of inputs that are known.
        like: The same for sequences of another length: what both have in common gets the ranges that it has there.
        progress: Called with (samples done, samples).

    Raises:
        ConversionError: It has a loop that no recurrent layer makes, or is refused.
    """
    with FloatConverter() as converter:
        source = converter.convert(graph, folder)
    if has_loops(read_artifact(source)):
        raise ConversionError(
            f"{job.scheme} cannot be made of a loop besides the recurrent layers: its activations stay float",
            where=graph.model_name, fix="use --scheme dynamic (int8 weights) with a profile that takes it",
        )  # fmt: skip
    border = IoType.INT16 if job.scheme is QuantizationScheme.INT16X8 else IoType.INT8
    destination, statistics = source.with_name("outer.tflite"), source.with_name("ranges.npz")
    floats = source.read_bytes()
    quantize(
        source, destination, replace(job, input_type=border, output_type=border),
        calibration=Dataset({name: samples[name] for name in graph.inputs}), threads=os.cpu_count() or 1,
        ranges={**_shared_ranges(floats, like), **ranges}, statistics=statistics, progress=progress,
    )  # fmt: skip
    with np.load(statistics) as found:
        rows = zip(found["names"].tolist(), found["ranges"].tolist(), strict=True)
        known = {name: (low, high) for name, (low, high) in rows}
    return Outer(destination.read_bytes(), floats, known)


def _shared_ranges(floats: bytes, like: Outer | None) -> dict[str, Range]:
    """Returns the ranges that activations of one file have in another, of the same operators in the same order."""
    if like is None or like.floats is None or like.ranges is None:
        return {}
    (mine, own), (theirs, others) = _results(floats), _results(like.floats)
    if mine != theirs:
        return {}
    pairs = zip(own, others, strict=True)
    return {name: like.ranges[other] for name, other in pairs if other in like.ranges}


def _results(content: bytes) -> tuple[list[str], list[str]]:
    """Returns the operators of a file, and the names of their results."""
    graph = decode_graphs(read_model(content))[0]
    operators: list[Operator] = [each for each in graph.operators if each.name not in _MOVES]
    return [each.name for each in operators], [graph.tensors[each.outputs[0]].name for each in operators]
