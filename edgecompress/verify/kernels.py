"""Counts zeros and distinct values in the weights of a finished file: what pruning and clustering left there."""

from __future__ import annotations

import os
import re
from collections.abc import Container, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from edgecompress.data import Array
from edgecompress.flatbuffer import read_bytes, read_model
from edgecompress.graphs import Graph, Operator, Tensor, decode_graphs
from edgecompress.passes.base import LayerProof, PassResult
from edgecompress.techniques import Qat

# Operators with a kernel as their second input.
_KERNEL_OPS = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV", "BATCH_MATMUL"})
_NUMBERS = {"int8": np.int8, "int16": np.int16, "float32": np.float32, "float16": np.float16, "uint8": np.uint8}
_NAMED = 5
_ROUNDED_AWAY = 0.001  # share of weights that may become zero or stay; rounding adds zeros, it never removes any


class KernelInFile(BaseModel):
    """A kernel as the file stores it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tensor: str = Field(description="Name of its tensor, in which converters keep the names of layers.")
    op: str = Field(description="The operator that takes it.")
    integers: bool = Field(description="Whether it is stored in integers, with scales.")
    weights: int = Field(description="Number of weights.")
    sparsity: float = Field(description="Share that is zero.")
    distinct: int = Field(description="Number of distinct values; with a scale for each channel, the largest of any.")


def kernels_in(path: str | os.PathLike[str]) -> tuple[KernelInFile, ...]:
    """Returns the kernels of a .tflite file, each once; those stored with 4 bits are left out.

    Raises:
        ModelError: Not a .tflite file, truncated or damaged.
    """
    found: dict[int, KernelInFile] = {}
    for graph in decode_graphs(read_model(read_bytes(Path(path)))):
        for operator in graph.operators:
            tensor = _kernel(graph, operator)
            if tensor is not None and tensor.buffer not in found:
                found[tensor.buffer] = _describe(tensor, operator)
    return tuple(found.values())


class KernelCheck(NamedTuple):
    """What became of the zeros and shared values that passes left in kernels."""

    lost: tuple[str, ...]
    unknown: tuple[str, ...]

    @property
    def notes(self) -> tuple[str, ...]:
        """What a report says of kernels that were not compared."""
        if not self.unknown:
            return ()
        more = len(self.unknown) - _NAMED
        names = ", ".join(self.unknown[:_NAMED]) + (f" and {more} more" if more > 0 else "")
        return (f"Whether zeros and shared values survived is not known of {names}: the file does not name them.",)


def check_kernels(passes: Iterable[PassResult], kernels: Sequence[KernelInFile], qat: Qat | None = None) -> KernelCheck:
    """Compares what the passes reached with what the file holds.

    Args:
        passes: What they reached; of a kernel that several changed, the last says what there is to keep.
        kernels: What the file holds.
        qat: The last pass, if it is that one: what the passes before it reached counts too, where it was to be kept.

    Returns:
        A line for each kernel that lost something, and the names of those that cannot be told apart in the file,
        because the converter merged or renamed them.
    """
    wanted: dict[tuple[str, int], LayerProof] = {}
    for one in passes:
        for proof in one.proof:
            key = proof.layer.split(" (")[0], proof.weights
            wanted[key] = _kept(wanted.get(key), proof, qat if one.kind == "qat" else None)
    names = {name for name, _ in wanted}
    found = {key: _find(*key, kernels, names) for key in wanted}
    return KernelCheck(
        lost=tuple(line for key, kernel in found.items() if kernel for line in _lost(wanted[key], kernel)),
        unknown=tuple(wanted[key].layer for key, kernel in found.items() if kernel is None),
    )


def _kept(before: LayerProof | None, proof: LayerProof, qat: Qat | None) -> LayerProof:
    """What there is to keep after a pass: what it reached, and what it was to keep of an earlier one."""
    if before is None or qat is None:
        return proof
    sparsity = max(proof.sparsity, before.sparsity) if qat.preserve_sparsity else proof.sparsity
    distinct = min(proof.distinct, before.distinct) if qat.preserve_clusters else proof.distinct
    return proof.model_copy(update={"sparsity": sparsity, "distinct": distinct})


def _lost(proof: LayerProof, kernel: KernelInFile) -> Iterator[str]:
    if kernel.sparsity < proof.sparsity - _ROUNDED_AWAY:
        yield f"{proof.layer}: sparsity was {proof.sparsity:.1%}, in the file it is {kernel.sparsity:.1%}"
    # With float weights the converter multiplies channels by the factors of a batch normalization; with integers each
    # channel has a scale of its own, which takes them up.
    if kernel.distinct > proof.distinct and kernel.integers:
        yield f"{proof.layer}: {proof.distinct} distinct values became {kernel.distinct} in the file"


def _find(layer: str, weights: int, kernels: Sequence[KernelInFile], layers: Container[str]) -> KernelInFile | None:
    """Returns the kernel of a layer; TensorFlow may have numbered the layer's name once more."""
    name = re.escape(layer.replace("/", "_"))
    exact: list[KernelInFile] = []
    numbered: list[KernelInFile] = []
    for kernel in kernels:
        found = re.search(rf"(?:^|[/;]|quant_)({name})(_\d+)?(?:/|;|$)", kernel.tensor)
        if found is None or kernel.weights != weights:
            continue
        if found[2] is None:
            exact.append(kernel)
        elif layer + found[2] not in layers:
            numbered.append(kernel)
    fits = exact or numbered
    return fits[0] if len(fits) == 1 else None


def _kernel(graph: Graph, operator: Operator) -> Tensor | None:
    if operator.name not in _KERNEL_OPS or len(operator.inputs) < 2:  # noqa: PLR2004 (the kernel is the second)
        return None
    tensor = graph.tensors[operator.inputs[1]]
    for producer in graph.operators:  # float16 weights pass a DEQUANTIZE
        if tensor.data is None and producer.name == "DEQUANTIZE" and operator.inputs[1] in producer.outputs:
            tensor = graph.tensors[producer.inputs[0]]
    return tensor if tensor.data is not None and tensor.dtype in _NUMBERS else None


def _describe(tensor: Tensor, operator: Operator) -> KernelInFile:
    assert tensor.data is not None  # noqa: S101 (looked at by the caller)
    values: Array = np.frombuffer(tensor.data, _NUMBERS[tensor.dtype]).reshape(tensor.shape)
    zero = tensor.zero_points[0] if tensor.zero_points else 0
    axis = values.ndim - 1 if operator.name == "DEPTHWISE_CONV_2D" else 0
    channels = np.moveaxis(values, axis, 0) if len(tensor.scales) > 1 else [values]
    return KernelInFile(
        tensor=tensor.name, op=operator.name, integers=bool(tensor.scales), weights=values.size,
        sparsity=float(np.mean(values == zero)),
        distinct=max(len(np.unique(channel)) for channel in channels),
    )  # fmt: skip
