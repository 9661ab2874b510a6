"""Counts zeros and distinct values in the weights of a finished file: what pruning and clustering left there."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from edgecompress.data import Array
from edgecompress.flatbuffer import read_bytes, read_model
from edgecompress.graphs import Graph, Operator, Tensor, decode_graphs
from edgecompress.passes.base import LayerProof, PassResult

# Operators with a kernel as their second input.
_KERNEL_OPS = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV", "BATCH_MATMUL"})
_NUMBERS = {"int8": np.int8, "int16": np.int16, "float32": np.float32, "float16": np.float16, "uint8": np.uint8}
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


def lost_in_file(passes: Iterable[PassResult], kernels: Sequence[KernelInFile]) -> tuple[str, ...]:
    """Says of each kernel whose zeros or shared values a conversion did not keep, in a line each.

    Args:
        passes: What the passes reached; of a kernel that several changed, the last says what there is to keep.
        kernels: What the file holds. A kernel of the passes that the converter merged or renamed beyond recognition
            cannot be compared and is passed over.
    """
    reached = {proof.layer: proof for one in passes for proof in one.proof}
    return tuple(line for proof in reached.values() for line in _lost(proof, _find(proof, kernels)))


def _lost(proof: LayerProof, kernel: KernelInFile | None) -> Iterator[str]:
    if kernel is None:
        return
    if kernel.sparsity < proof.sparsity - _ROUNDED_AWAY:
        yield f"{proof.layer}: sparsity was {proof.sparsity:.1%}, in the file it is {kernel.sparsity:.1%}"
    # With float weights the converter multiplies channels by the factors of a batch normalization; with integers each
    # channel has a scale of its own, which takes them up.
    if kernel.distinct > proof.distinct and kernel.integers:
        yield f"{proof.layer}: {proof.distinct} distinct values became {kernel.distinct} in the file"


def _find(proof: LayerProof, kernels: Sequence[KernelInFile]) -> KernelInFile | None:
    name = re.escape(proof.layer.replace("/", "_").split(":")[0])
    fits = [
        kernel
        for kernel in kernels
        if kernel.weights == proof.weights and re.search(rf"(^|[/;]|quant_){name}(_\d+)?(/|;|$)", kernel.tensor)
    ]
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
