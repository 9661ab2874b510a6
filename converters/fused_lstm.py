"""Writes an LSTM into a .tflite file as a single operator, UNIDIRECTIONAL_SEQUENCE_LSTM, in 8-bit integers.

Its kernel rounds in other places than the cells of `edgecompress.recurrent` (Li and Alvarez 2021, arXiv:2101.05453):
sums, gates and the carry have 16 bits. So it is nearer to float, but its integers are not those of the other forms. And
it remembers: whoever runs the file resets its variable tensors before each sequence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgecompress.converters.graph_writer import GraphWriter, Value
from edgecompress.converters.integer_cells import IntegerLayer
from edgecompress.errors import ConversionError
from edgecompress.recurrent.cells import Matrix
from edgecompress.recurrent.scales import Scale, integer_matrix

# The gates in the operator's order: the matrices that hold them, and their places among the columns of these.
_GATES = (("gates", 0), ("gates", 1), ("candidate", 0), ("gates", 2))
_PRODUCTS = ("x_gates", "x_candidate", "h_gates", "h_candidate")
# The carry reaches to ±2^0 … ±2^6, for which the kernel has a tanh; beyond 64 tanh is 1 anyway.
_CARRY_POWERS = (0, 6)


def write_fused(
    graph: GraphWriter, plan: IntegerLayer, x: Value, states: Sequence[Value] = (), mask: Value | None = None
) -> list[Value]:  # fmt: skip
    """Writes all steps as one operator.

    Args:
        graph: Where to.
        plan: The layer; of its scales, only those of the states are looked at.
        x: (1, steps, features), int8.
        states: None: it begins with zeros.
        mask: None: all steps count.

    Returns:
        The output alone, (1, units) or with return_sequences (1, steps, units): the last states are out of reach.

    Raises:
        ConversionError: The operator cannot compute this layer; says why.
    """
    require_fused(plan, has_states=len(states) > 0, has_mask=mask is not None)
    layer, scale = plan.layer, plan.state_scale("state_0")
    input_kernels, biases = _write_gates(graph, plan, "x", x.scale)
    state_kernels, _ = _write_gates(graph, plan, "h", scale)
    memory = [_variable(graph, plan, "state_0", scale), _variable(graph, plan, "state_1", _carry_scale(plan))]
    output = graph.tensor(f"{plan.name}/sequence", (1, x.shape[1], layer.units), scale.dtype, scale)
    peepholes, projection, normalization = [None] * 3, [None] * 2, [None] * 4  # Keras's LSTM has none of these
    graph.operator(
        "UNIDIRECTIONAL_SEQUENCE_LSTM",
        [x, *input_kernels, *state_kernels, *peepholes, *biases, *projection, *memory, *normalization],
        [output],
    )
    _complete_operator(graph, plan, scale)
    return [output if layer.return_sequences else _last_step(graph, plan, output)]


def require_fused(plan: IntegerLayer, *, has_states: bool, has_mask: bool) -> None:
    """Refuses a layer that the operator cannot compute; of the plan, only the layer and the bits are looked at."""
    layer = plan.layer
    activations = layer.activation, layer.recurrent_activation
    faults = {
        f"it is of the kind {layer.kind!r}, not an LSTM": layer.kind != "lstm",
        "its kernels are factorized": layer.products != {name: ((name,),) for name in _PRODUCTS},
        f"its activations are {' and '.join(activations)}, not tanh and sigmoid": activations != ("tanh", "sigmoid"),
        "it reads backwards": layer.go_backwards,
        "it returns its last states, which stay inside": layer.return_state,
        "it is given the states that it begins with": has_states,
        "a mask reaches it": has_mask,
        "there is no kernel with 16-bit activations": plan.bits > 8,  # noqa: PLR2004
    }
    reason = next((reason for reason, found in faults.items() if found), None)
    if reason is not None:
        raise ConversionError(
            f"recurrent layer {layer.name!r} does not fit into one UNIDIRECTIONAL_SEQUENCE_LSTM: {reason}",
            fix="use --recurrent loop, step or unrolled",
        )


def _write_gates(
    graph: GraphWriter, plan: IntegerLayer, side: str, scale: Scale | None
) -> tuple[list[Value], list[Value]]:
    """Adds the kernels of the gates for inputs ("x") or states ("h") of this scale; biases are with the inputs."""
    assert scale is not None  # noqa: S101 (all values here are quantized)
    units, kernels, biases = plan.layer.units, [], []
    for group, place in _GATES:
        name, columns = f"{side}_{group}", slice(place * units, (place + 1) * units)
        matrix = plan.layer.matrices[name]
        bias = np.zeros(units, np.float32) if matrix.bias is None else matrix.bias[columns]
        part = Matrix(matrix.values[:, columns], bias if side == "x" else None)
        rounded = integer_matrix(part, scale, per_channel=False)
        kernels.append(graph.constant(f"{plan.name}/{name}_{place}", rounded.values, scales=rounded.scales))
        if rounded.bias is not None:
            steps = np.float64(scale.step) * rounded.scales
            biases.append(graph.constant(f"{plan.name}/{name}_{place}/bias", rounded.bias, scales=steps))
    return kernels, biases


def _variable(graph: GraphWriter, plan: IntegerLayer, name: str, scale: Scale) -> Value:
    value = graph.tensor(f"{plan.name}/{name}/memory", (1, plan.layer.units), scale.dtype, scale)
    graph.graph.tensors[value.index].isVariable = True
    return value


def _carry_scale(plan: IntegerLayer) -> Scale:
    """Returns the scale of the carry in 16 bits: a power of two that reaches at least as far as its range."""
    scale = plan.state_scale("state_1")
    largest = scale.step * max(128 + scale.zero_point, 127 - scale.zero_point)
    lowest, highest = _CARRY_POWERS
    return Scale(2.0 ** (min(max(math.ceil(math.log2(largest)), lowest), highest) - 15), 0, 16)


def _complete_operator(graph: GraphWriter, plan: IntegerLayer, scale: Scale) -> None:
    """Gives the operator just added its options and its five intermediates."""
    operator = graph.graph.operators[-1]
    operator.builtinOptionsType = schema.BuiltinOptions.UnidirectionalSequenceLSTMOptions
    operator.builtinOptions = schema.UnidirectionalSequenceLSTMOptionsT()
    operator.builtinOptions.fusedActivationFunction = schema.ActivationFunctionType.TANH
    # Those of the gates are for layer normalization; the kernel computes with the scale of the last, the new state.
    gates = [graph.tensor(f"{plan.name}/intermediate_{place}", (0,), "float32") for place in range(len(_GATES))]
    state = graph.tensor(f"{plan.name}/intermediate_state", (0,), scale.dtype, scale)
    operator.intermediates = [value.index for value in (*gates, state)]


def _last_step(graph: GraphWriter, plan: IntegerLayer, sequence: Value) -> Value:
    result = graph.tensor(f"{plan.name}/output", (1, plan.layer.units), sequence.dtype, sequence.scale)
    corners = [graph.constant(f"{plan.name}/{name}", np.asarray(corner, np.int32)) for name, corner in (
        ("begin", (0, -1, 0)), ("end", (0, 0, 0)), ("strides", (1, 1, 1))
    )]  # fmt: skip
    whole = 0b101  # of samples and of units
    options = {"beginMask": whole, "endMask": whole, "shrinkAxisMask": 0b010}
    graph.operator("STRIDED_SLICE", [sequence, *corners], [result], options)
    return result
