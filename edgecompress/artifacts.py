"""What a .tflite file is and holds: size, hash, signature, operators, parameters and multiply-accumulates."""

from __future__ import annotations

import gzip
import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, computed_field

from edgecompress.errors import ModelError
from edgecompress.flatbuffer import buffer_bytes, read_bytes, read_model, text
from edgecompress.graphs import Graph, Operator, Tensor, decode_graphs
from edgecompress.tflite_macs import MacCount, count_macs

_DEFAULT_SIGNATURE = "serving_default"
_FLOATS = frozenset({"float16", "float32", "float64", "bfloat16"})
# They convert between number types, or run other subgraphs: what they join or run does the arithmetic.
_NOT_ARITHMETIC = frozenset({"CALL", "CALL_ONCE", "DEQUANTIZE", "IF", "QUANTIZE", "WHILE"})
# Every float or quantized constant that these read is a weight or a bias.
_WEIGHT_OPS = frozenset(
    {
        "BATCH_MATMUL", "BIDIRECTIONAL_SEQUENCE_LSTM", "BIDIRECTIONAL_SEQUENCE_RNN", "CONV_2D", "CONV_3D",
        "CONV_3D_TRANSPOSE", "DENSIFY", "DEPTHWISE_CONV_2D", "DEQUANTIZE", "EMBEDDING_LOOKUP", "FULLY_CONNECTED",
        "GATHER", "GATHER_ND", "LSTM", "PRELU", "RNN", "SVDF", "TRANSPOSE_CONV", "UNIDIRECTIONAL_SEQUENCE_LSTM",
        "UNIDIRECTIONAL_SEQUENCE_RNN",
    }
)  # fmt: skip
# Of these, constants with more than one element are (biases and scales that were not fused into another operator).
_ELEMENTWISE_OPS = frozenset({"ADD", "DIV", "MUL", "SUB"})
_MAX_NOTES = 5


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TensorInfo(_Value):
    """A tensor that an application sees."""

    name: str = Field(description="The tensor's name in the file.")
    shape: tuple[int, ...] = Field(description="Batch first; -1 for a dimension that is known only while running.")
    dtype: str = Field(description="Number type, e.g. 'float32' or 'int8'.")
    scale: float | None = Field(description="Quantization scale; absent if not quantized, or per channel.")
    zero_point: int | None = Field(description="Quantization zero point; absent if not quantized, or per channel.")
    per_channel: bool = Field(description="Whether each channel has a scale of its own.")
    bytes: int = Field(description="Size of its data for a batch of 1; 0 for strings.")


class OpInfo(_Value):
    """An operator of the file."""

    index: int = Field(description="Its place in its subgraph.")
    subgraph: int = Field(description="Its subgraph.")
    name: str = Field(description="Builtin name, e.g. 'CONV_2D', or the code of a custom operator.")
    version: int = Field(description="Version of the operator's interface.")
    custom: bool = Field(description="Whether it is none of the builtin operators.")
    float_arithmetic: bool = Field(description="Whether its outputs or its non-constant inputs are floating point.")
    input_dtypes: tuple[str, ...] = Field(description="Number types of the inputs that are given.")
    output_name: str | None = Field(description="Name of its first output; converters put the layer's name in it.")
    output_shape: tuple[int, ...] | None = Field(description="Shape of its first output, if it has one.")
    output_dtype: str | None = Field(description="Number type of its first output, if it has one.")
    macs: int | None = Field(description="Multiply-accumulates of one run, all turns of a loop; absent if not known.")
    weight_bytes: int = Field(description="Bytes of the weights and biases that it reads.")
    parameters: int = Field(description="Number of weights and biases that it reads.")


class Signature(_Value):
    """The names by which an application reaches the inputs and outputs."""

    key: str | None = Field(description="Its name; absent where the file has none and tensor names stand in.")
    inputs: dict[str, TensorInfo]
    outputs: dict[str, TensorInfo]


class Artifact(_Value):
    """A .tflite file.

    `parameters` counts the elements of constant float or quantized tensors that convolutions, matrix products,
    recurrent operators, embeddings, PReLU and DEQUANTIZE read, and of those with more than one element that ADD, SUB,
    MUL and DIV read. Shapes, axes, initial states and scalars do not count; a tensor that several operators share
    counts once. Converters fold batch normalization and add zero biases, so a few more or fewer than the Keras model
    has are normal.
    """

    path: Path
    sha256: str
    size_bytes: int = Field(description="Size of the file.")
    signature: Signature
    ops: tuple[OpInfo, ...] = Field(description="All operators, subgraph by subgraph.")
    parameters: int = Field(description="Number of weights and biases.")
    macs: int | None = Field(description="Multiply-accumulates of one run at batch 1; absent if not known.")
    macs_note: str = Field(description="Why `macs` is not known, or how loops were counted; may be empty.")
    min_runtime_version: str | None = Field(description="Oldest TensorFlow Lite that runs the file, as it says itself.")
    metadata: tuple[str, ...] = Field(description="Names of the metadata in the file.")
    content: bytes = Field(description="The file as it was read.", exclude=True, repr=False)

    @computed_field(description="Size after gzip at level 9: what a download costs.")  # type: ignore[prop-decorator]
    @cached_property
    def gzip_bytes(self) -> int:
        # Computed when asked for: on pruned weights level 9 takes more than a second for each megabyte.
        return len(gzip.compress(self.content, compresslevel=9, mtime=0))

    @property
    def op_counts(self) -> dict[str, int]:
        """How often each operator occurs, the most frequent first."""
        return dict(Counter(op.name for op in self.ops).most_common())

    @property
    def float_ops(self) -> tuple[OpInfo, ...]:
        """Operators that work on floating point; QUANTIZE, DEQUANTIZE and control flow are not among them."""
        return tuple(op for op in self.ops if op.float_arithmetic)

    @property
    def flex_ops(self) -> tuple[str, ...]:
        """Names of TensorFlow operators, which run only where TensorFlow's own kernels are linked in."""
        return tuple(name for name in self._custom_names() if name.startswith("Flex"))

    @property
    def custom_ops(self) -> tuple[str, ...]:
        """Names of operators that a runtime or delegate must bring along, e.g. 'edgetpu-custom-op'."""
        return tuple(name for name in self._custom_names() if not name.startswith("Flex"))

    def _custom_names(self) -> list[str]:
        return list(dict.fromkeys(op.name for op in self.ops if op.custom))


def read_artifact(path: str | os.PathLike[str]) -> Artifact:
    """Reads a .tflite file, without a runtime and without TensorFlow.

    Raises:
        ModelError: Not a .tflite file, truncated or damaged.
    """
    file = Path(path)
    data = read_bytes(file)
    try:
        return _describe(file, data)
    except ModelError as error:
        error.where = error.where or file
        raise


def _describe(file: Path, data: bytes) -> Artifact:
    model = read_model(data)
    graphs = decode_graphs(model)
    signature, main = _signature(model, graphs)
    counted = count_macs(graphs, main)
    metadata = {text(entry.Name()): entry.Buffer() for entry in map(model.Metadata, range(model.MetadataLength()))}
    version = metadata.get("min_runtime_version")
    return Artifact(
        path=file,
        sha256=hashlib.sha256(data).hexdigest(),
        size_bytes=len(data),
        signature=signature,
        ops=tuple(_ops(graphs, counted)),
        parameters=_parameters(graphs),
        macs=_total(counted),
        macs_note=_note(counted.notes),
        min_runtime_version=None if version is None else text(bytes(buffer_bytes(model, version))).strip("\0") or None,
        metadata=tuple(metadata),
        content=data,
    )


def _signature(model: Any, graphs: Sequence[Graph]) -> tuple[Signature, int]:
    """Returns the default signature, or else the first, and the subgraph that it runs."""
    found = [model.SignatureDefs(index) for index in range(model.SignatureDefsLength())]
    if not found:
        main = graphs[0]
        inputs, outputs = (
            {main.tensors[index].name: _tensor_info(main.tensors[index]) for index in indices}
            for indices in (main.inputs, main.outputs)
        )
        return Signature(key=None, inputs=inputs, outputs=outputs), 0
    chosen = next((entry for entry in found if text(entry.SignatureKey()) == _DEFAULT_SIGNATURE), found[0])
    if chosen.SubgraphIndex() >= len(graphs):
        raise ModelError("damaged file: a subgraph that does not exist is used", received=chosen.SubgraphIndex())
    graph = graphs[chosen.SubgraphIndex()]
    inputs = _named(graph, (chosen.Inputs(index) for index in range(chosen.InputsLength())))
    outputs = _named(graph, (chosen.Outputs(index) for index in range(chosen.OutputsLength())))
    return Signature(key=text(chosen.SignatureKey()), inputs=inputs, outputs=outputs), chosen.SubgraphIndex()


def _named(graph: Graph, entries: Iterable[Any]) -> dict[str, TensorInfo]:
    named = {}
    for entry in entries:
        if entry.TensorIndex() >= len(graph.tensors):
            raise ModelError("damaged file: a tensor that does not exist is used", received=entry.TensorIndex())
        named[text(entry.Name())] = _tensor_info(graph.tensors[entry.TensorIndex()])
    return named


def _tensor_info(tensor: Tensor) -> TensorInfo:
    single = len(tensor.scales) == 1
    return TensorInfo(
        name=tensor.name,
        shape=tensor.shape,
        dtype=tensor.dtype,
        scale=tensor.scales[0] if single else None,
        zero_point=tensor.zero_points[0] if single and tensor.zero_points else None,
        per_channel=len(tensor.scales) > 1,
        bytes=tensor.size_bytes,
    )


def _ops(graphs: Sequence[Graph], counted: MacCount) -> Iterable[OpInfo]:
    for subgraph, graph in enumerate(graphs):
        for index, operator in enumerate(graph.operators):
            inputs = [graph.tensors[number] for number in operator.inputs if number >= 0]
            outputs = [graph.tensors[number] for number in operator.outputs]
            weights = _weights(graph, operator)
            moving = [*outputs, *(tensor for tensor in inputs if tensor.data is None)]
            yield OpInfo(
                index=index,
                subgraph=subgraph,
                name=operator.name,
                version=operator.version,
                custom=operator.custom,
                float_arithmetic=operator.name not in _NOT_ARITHMETIC and any(t.dtype in _FLOATS for t in moving),
                input_dtypes=tuple(tensor.dtype for tensor in inputs),
                output_name=outputs[0].name if outputs else None,
                output_shape=outputs[0].shape if outputs else None,
                output_dtype=outputs[0].dtype if outputs else None,
                macs=counted.macs[subgraph][index],
                weight_bytes=sum(len(weight.data or b"") for weight in weights),
                parameters=sum(weight.known_size for weight in weights),
            )


def _weights(graph: Graph, operator: Operator) -> list[Tensor]:
    smallest = 1 if operator.name in _WEIGHT_OPS else 2 if operator.name in _ELEMENTWISE_OPS else None
    if smallest is None:
        return []
    constants = [graph.tensors[index] for index in operator.inputs if index >= 0]
    return [
        tensor
        for tensor in constants
        if tensor.data is not None and tensor.known_size >= smallest and (tensor.dtype in _FLOATS or tensor.scales)
    ]


def _parameters(graphs: Sequence[Graph]) -> int:
    by_buffer = {
        weight.buffer: weight.known_size
        for graph in graphs
        for operator in graph.operators
        for weight in _weights(graph, operator)
    }
    return sum(by_buffer.values())


def _total(counted: MacCount) -> int | None:
    macs = [count for counts in counted.macs for count in counts]
    return None if None in macs else sum(count for count in macs if count is not None)


def _note(notes: Sequence[str]) -> str:
    more = len(notes) - _MAX_NOTES
    return "; ".join([*notes[:_MAX_NOTES], *([f"and {more} more"] if more > 0 else [])])
