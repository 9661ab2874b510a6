"""Counts the multiply-accumulates (MACs) of Keras layers, batch 1, from their configuration and shapes.

Layers are known by the names of their classes and of the Keras classes they inherit from: this module imports neither
Keras nor TensorFlow, works for Keras 3 and tf_keras, and counts a subclass of a Keras layer as that layer. The layers
of `edgecompress.layers` are counted, too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

FRAMEWORKS = ("keras", "tf_keras")
_KNOWN = (*FRAMEWORKS, "edgecompress")  # whose layers are known by the names of their classes

Shape = tuple[int | None, ...]

_GATES = {"GRU": 3, "LSTM": 4, "SimpleRNN": 1}
# Layers with weights that only look up, scale or shift.
_ZERO = frozenset(
    {
        "BatchNormalization", "Embedding", "GroupNormalization", "LayerNormalization", "Normalization", "PReLU",
        "RMSNormalization", "UnitNormalization",
    }
)  # fmt: skip
# They hold matrix products without weights of their own, or more than their base class does.
_OPAQUE_CLASSES = frozenset(
    {
        "AdditiveAttention", "Attention", "Conv", "ConvTranspose", "DepthwiseConv", "Dot", "DotProductAttention",
        "Einsum", "Inner", "Lambda", "Matmul", "ReversibleEmbedding", "SeparableConv", "Tensordot", "Vdot",
    }
)  # fmt: skip
_OPAQUE_FUNCTIONS = frozenset(
    {"conv1d", "conv2d", "conv3d", "convolution", "depthwise_conv2d", "einsum", "matmul", "matvec", "tensordot"}
)


class NotCountedError(Exception):
    """Says why multiply-accumulates are not known; `inspection` turns it into a line of its summary."""


@dataclass(frozen=True)
class Call:
    """A call of a layer in the graph of a model.

    Attributes:
        layer: A layer, a nested model, or an operation such as an addition.
        inputs: Shapes of the tensors that it is called with, batch first; None for sizes that vary.
        output: Shape of its first output, batch first.
    """

    layer: Any
    inputs: tuple[Shape, ...]
    output: Shape


def graph_calls(model: Any) -> tuple[Call, ...] | None:
    """Returns the calls in a model's graph in their order, without inputs; None for what has no graph of layers."""
    graph = getattr(model, "_functional", None) or model
    by_depth = getattr(graph, "_nodes_by_depth", None)
    if not by_depth:
        return None
    nodes = [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]]
    calls = [Call(_layer(node), shapes(_inputs(node)), shapes(_flatten(node.outputs))[0]) for node in nodes]
    return tuple(call for call in calls if "InputLayer" not in _kinds(call.layer))


def call_macs(call: Call) -> int:
    """Counts the multiply-accumulates of one call of a layer or nested model for one sample.

    Raises:
        NotCountedError: The layer's class is unknown and has weights, or a size that matters is unknown.
    """
    inner = graph_calls(call.layer)
    if inner is not None:
        return sum(call_macs(each) for each in inner)
    kinds = _kinds(call.layer)
    if (kinds and kinds[0] in _OPAQUE_CLASSES) or _function(call.layer, kinds) in _OPAQUE_FUNCTIONS:
        raise NotCountedError(f"{type(call.layer).__name__} is not counted")
    for kind in kinds:
        if kind in _COUNTERS:
            return _COUNTERS[kind](call)
        if kind in _ZERO:
            return 0
    if getattr(call.layer, "weights", ()):
        raise NotCountedError(f"unknown layer class {type(call.layer).__name__}")
    return 0


def shapes(tensors: Iterable[Any]) -> tuple[Shape, ...]:
    """Returns the shapes of tensors, with None for sizes that vary."""
    return tuple(tuple(None if size is None else int(size) for size in tensor.shape) for tensor in tensors)


def _layer(node: Any) -> Any:
    return node.operation if hasattr(node, "operation") else node.layer


def _inputs(node: Any) -> list[Any]:
    return list(node.keras_inputs if hasattr(node, "keras_inputs") else node.input_tensors)


def _flatten(structure: Any) -> Iterator[Any]:
    if isinstance(structure, dict):
        structure = list(structure.values())
    if isinstance(structure, (list, tuple)):
        for part in structure:
            yield from _flatten(part)
    else:
        yield structure


def _kinds(layer: Any) -> list[str]:
    """Returns the names of a layer's classes that Keras or EdgeCompress defines, the most derived first."""
    return [base.__name__ for base in type(layer).__mro__ if base.__module__.split(".")[0] in _KNOWN]


def _function(layer: Any, kinds: Sequence[str]) -> str:
    """Returns the name of the TensorFlow function that tf_keras wrapped as a layer, e.g. matmul."""
    # The layers are called tf.linalg.matmul, tf.linalg.matmul_1, …
    return re.sub(r"_\d+$", "", str(layer.name).rsplit(".", 1)[-1]) if "TFOpLambda" in kinds else ""


def _product(sizes: Sequence[int | None]) -> int:
    known = [size for size in sizes if size is not None]
    if len(known) < len(sizes):
        steps_and_features = 2
        raise NotCountedError(f"unknown {'sequence length' if len(sizes) == steps_and_features else 'input size'}")
    return math.prod(known)


def _dense(call: Call) -> int:
    return _product(call.inputs[0][1:]) * int(call.layer.units)


def _vectors(call: Call) -> int:
    """Returns how many vectors of features a sample is made of."""
    shape = call.inputs[0]
    return _product(shape[1:]) // _product(shape[-1:])


def _low_rank_dense(call: Call) -> int:
    layer = call.layer
    return _vectors(call) * int(layer.rank) * (int(layer.u.shape[0]) + int(layer.units))


def _factorized_dense(call: Call) -> int:
    """The residual counts whole, because it is multiplied as a whole: its zeros save no arithmetic."""
    return _low_rank_dense(call) + (0 if call.layer.residual_values is None else _dense(call))


def _einsum_dense(call: Call) -> int:
    """Each output element sums over those dimensions of the kernel that the output does not have."""
    kernel, output = call.layer.equation.replace(" ", "").split(",")[1].split("->")
    summed = [size for label, size in zip(kernel, call.layer.kernel.shape, strict=True) if label not in output]
    return _product(call.output[1:]) * _product(summed)


def _conv(call: Call) -> int:
    channels = _channels(call) // int(call.layer.groups)
    return _product(call.output[1:]) * _product(call.layer.kernel_size) * channels


def _depthwise_conv(call: Call) -> int:
    return _product(call.output[1:]) * _product(call.layer.kernel_size)


def _separable_conv(call: Call) -> int:
    filters = int(call.layer.filters)
    depthwise_outputs = _channels(call) * int(call.layer.depth_multiplier)
    positions = _product(call.output[1:]) // filters
    return positions * depthwise_outputs * (_product(call.layer.kernel_size) + filters)


def _conv_transpose(call: Call) -> int:
    """Each input element meets every filter, whether or not the result is cropped afterwards."""
    return _product(call.inputs[0][1:]) * _product(call.layer.kernel_size) * int(call.layer.filters)


def _channels(call: Call) -> int:
    shape = call.inputs[0]
    return _product([shape[1] if call.layer.data_format == "channels_first" else shape[-1]])


def _recurrent(call: Call) -> int:
    gates = next(_GATES[kind] for kind in _kinds(call.layer) if kind in _GATES)
    features, units = _product(call.inputs[0][-1:]), int(call.layer.units)
    return _vectors(call) * gates * units * (features + units)


def _low_rank_recurrent(call: Call) -> int:
    """Each step multiplies with each kernel once, but for the one that comes before and after the reset gate."""
    cell = call.layer.cell
    products: int = sum(math.prod(kernel.shape) for kernel in call.layer.get_prunable_weights())
    if cell.recurrent_rank is not None and cell.gates == "joint" and not getattr(cell, "reset_after", True):
        products += math.prod(cell.recurrent_u.shape)
    return _vectors(call) * products


def _bidirectional(call: Call) -> int:
    directions = (call.layer.forward_layer, call.layer.backward_layer)
    return sum(call_macs(Call(layer, call.inputs, call.output)) for layer in directions)


def _time_distributed(call: Call) -> int:
    def step(shape: Shape) -> Shape:
        return (shape[0], *shape[2:])

    steps = call.inputs[0][1]
    if steps is None:
        raise NotCountedError("unknown sequence length")
    return steps * call_macs(Call(call.layer.layer, tuple(map(step, call.inputs)), step(call.output)))


def _multi_head_attention(call: Call) -> int:
    """Projections of queries, keys, values and results, then queries times keys and attention times values."""
    query, value = call.inputs[0], call.inputs[min(1, len(call.inputs) - 1)]
    if len(query) != len(value) or tuple(vars(call.layer)["_attention_axes"]) != tuple(range(1, len(query) - 1)):
        raise NotCountedError("attention over some of the axes is not counted")
    # Kernels are (features, heads, size of a head), the last (heads, size of a head, features).
    parts = ("query", "key", "value", "output")
    kernels: dict[str, tuple[int, ...]] = {
        part: tuple(vars(call.layer)[f"_{part}_dense"].kernel.shape) for part in parts
    }
    queries, keys = (_product(shape[1:]) // _product(shape[-1:]) for shape in (query, value))
    projections = queries * (math.prod(kernels["query"]) + math.prod(kernels["output"]))
    projections += keys * (math.prod(kernels["key"]) + math.prod(kernels["value"]))
    return projections + queries * keys * (math.prod(kernels["query"][1:]) + math.prod(kernels["value"][1:]))


_COUNTERS: dict[str, Callable[[Call], int]] = {
    "Bidirectional": _bidirectional,
    "Dense": _dense,
    "EinsumDense": _einsum_dense,
    "FactorizedDense": _factorized_dense,
    "LowRankDense": _low_rank_dense,
    "LowRankGRU": _low_rank_recurrent,
    "LowRankLSTM": _low_rank_recurrent,
    "MultiHeadAttention": _multi_head_attention,
    "TimeDistributed": _time_distributed,
    **dict.fromkeys(_GATES, _recurrent),
    **{f"Conv{rank}D": _conv for rank in (1, 2, 3)},
    **{f"Conv{rank}DTranspose": _conv_transpose for rank in (1, 2, 3)},
    **{f"DepthwiseConv{rank}D": _depthwise_conv for rank in (1, 2)},
    **{f"SeparableConv{rank}D": _separable_conv for rank in (1, 2)},
}
