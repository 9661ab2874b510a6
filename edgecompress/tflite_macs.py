"""Counts the multiply-accumulates (MACs) of one run of a .tflite file, batch 1, from shapes alone."""

from __future__ import annotations

import graphlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgecompress.errors import ModelError
from edgecompress.graphs import Graph, Operator, Tensor

# Operators with multiply-accumulates that the shapes of their tensors do not tell, or that no current converter writes.
_NOT_COUNTED = frozenset({"BIDIRECTIONAL_SEQUENCE_LSTM", "BIDIRECTIONAL_SEQUENCE_RNN", "LSTM", "RNN", "SVDF"})
_LSTM_MATRICES = (*range(1, 9), 16)  # four input and four recurrent matrices, and the projection
_RNN_MATRICES = (1, 2)
# How a comparison bounds a loop counter: which side the counter is on, and by how much the bound is moved.
_COMPARISONS = {"LESS": (0, 0), "LESS_EQUAL": (0, 1), "GREATER": (1, 0), "GREATER_EQUAL": (1, 1)}


@dataclass(frozen=True)
class MacCount:
    """Multiply-accumulates of one run.

    Attributes:
        macs: By subgraph and operator, all turns of loops included; None where they cannot be known.
        notes: What was multiplied, what is left out, and why something cannot be known.
    """

    macs: tuple[tuple[int | None, ...], ...]
    notes: tuple[str, ...]


def count_macs(graphs: Sequence[Graph], main: int) -> MacCount:
    """Counts the multiply-accumulates of convolutions, matrix products and recurrent operators; the rest counts 0.

    An operator in the body of a loop counts once for each turn, where the number of turns is a constant of the file.
    Where the batch size is unknown it is taken as 1.

    Args:
        graphs: All subgraphs of the file.
        main: Index of the subgraph that a run starts with.

    Raises:
        ModelError: A subgraph calls itself.
    """
    runs: dict[int, int | None] = {main: 1}
    given: dict[int, list[int | None]] = {}
    notes: dict[str, None] = {}  # an ordered set
    macs: list[tuple[int | None, ...]] = [(0,) * len(graph.operators) for graph in graphs]
    for index in _callers_first(graphs):
        if index not in runs:
            notes[f"subgraph {index} is not run and not counted"] = None
            continue
        graph = graphs[index]
        sizes = _sizes(graph, given.get(index))
        counts = []
        for operator in graph.operators:
            once = _operator_macs(graph, operator, sizes)
            if once is None:
                notes[f"the MACs of {operator.name} cannot be counted"] = None
            counts.append(_times(runs[index], once))
            for callee, times in _calls(graphs, graph, operator, notes).items():
                runs[callee] = _plus(runs.get(callee, 0), _times(times, runs[index]))
                given.setdefault(callee, _arguments(operator, sizes))
        macs[index] = tuple(counts)
    return MacCount(tuple(macs), tuple(notes))


def _callers_first(graphs: Sequence[Graph]) -> list[int]:
    sorter: graphlib.TopologicalSorter[int] = graphlib.TopologicalSorter()
    for index, graph in enumerate(graphs):
        sorter.add(index)
        for callee in (callee for operator in graph.operators for callee in operator.subgraphs):
            sorter.add(callee, index)
    try:
        return list(sorter.static_order())
    except graphlib.CycleError:
        raise ModelError("damaged file: a subgraph runs itself") from None


def _calls(graphs: Sequence[Graph], graph: Graph, operator: Operator, notes: dict[str, None]) -> dict[int, int | None]:
    """Returns how many times an operator runs each of its subgraphs, None where only a run can tell."""
    if operator.name == "IF":
        branches = ", ".join(str(index) for index in operator.subgraphs)
        notes[f"IF runs one of the subgraphs {branches}"] = None
        return dict.fromkeys(operator.subgraphs)
    if operator.name != "WHILE":
        return dict.fromkeys(operator.subgraphs, 1)
    condition, body = operator.subgraphs
    turns = _turns(graph, operator, graphs[condition], graphs[body])
    if turns is None:
        notes[f"the turns of the loop in subgraph {body} are not a constant of the file"] = None
    else:
        notes[f"subgraph {body} is a loop body, counted x {turns} turns"] = None
    return {condition: _plus(turns, 1), body: turns}


def _arguments(operator: Operator, sizes: list[int | None]) -> list[int | None]:
    passed = operator.inputs[1:] if operator.name == "IF" else operator.inputs
    return [sizes[index] if index >= 0 else None for index in passed]


def _times(a: int | None, b: int | None) -> int | None:
    if a == 0 or b == 0:
        return 0
    return None if a is None or b is None else a * b


def _plus(a: int | None, b: int | None) -> int | None:
    return None if a is None or b is None else a + b


def _operator_macs(graph: Graph, operator: Operator, sizes: list[int | None]) -> int | None:
    if operator.custom or operator.name in _NOT_COUNTED:
        return None
    if operator.name.startswith("STABLEHLO_") and operator.name != "STABLEHLO_COMPOSITE":
        return None
    formula = _FORMULAS.get(operator.name)
    if formula is None:
        return 0
    try:
        return formula(_Operands(graph, operator, sizes))
    except (IndexError, ZeroDivisionError):
        raise ModelError(f"damaged file: a {operator.name} operator's inputs do not fit it") from None


@dataclass(frozen=True)
class _Operands:
    graph: Graph
    operator: Operator
    sizes: list[int | None]

    def shape(self, position: int) -> tuple[int, ...]:
        """Shape of an input; empty for an optional one that is not given."""
        index = self.operator.inputs[position]
        return () if index < 0 else self.graph.tensors[index].shape

    def input_size(self, position: int) -> int | None:
        return self.sizes[self.operator.inputs[position]]

    def output_size(self) -> int | None:
        return self.sizes[self.operator.outputs[0]]


def _product(sizes: Sequence[int]) -> int | None:
    return None if any(size < 0 for size in sizes) else math.prod(sizes)


def _recurrent(x: _Operands, matrices: Sequence[int]) -> int | None:
    """Every matrix is applied once in each step of each sample."""
    present = [p for p in matrices if p < len(x.operator.inputs) and x.operator.inputs[p] >= 0]
    size, features = x.input_size(0), x.shape(0)[-1]
    if size is None or features < 0:
        return None
    weights = [_product(x.shape(position)) for position in present]
    return None if None in weights else size // features * sum(w for w in weights if w is not None)


_FORMULAS: dict[str, Callable[[_Operands], int | None]] = {
    # Filters are (filters, height, width, channels of a group).
    "CONV_2D": lambda x: _times(x.output_size(), _product(x.shape(1)[1:])),
    # Filters are (1, height, width, outputs).
    "DEPTHWISE_CONV_2D": lambda x: _times(x.output_size(), _product(x.shape(1)[1:3])),
    # Filters are (depth, height, width, channels of a group, filters).
    "CONV_3D": lambda x: _times(x.output_size(), _product(x.shape(1)[:4])),
    "CONV_3D_TRANSPOSE": lambda x: _times(x.input_size(2), _product(x.shape(1)[:4])),
    # Inputs are output shape, filters (filters, height, width, channels), data; each input element meets each filter.
    "TRANSPOSE_CONV": lambda x: _times(x.input_size(2), _product(x.shape(1)[:3])),
    # Weights are (units, features).
    "FULLY_CONNECTED": lambda x: _times(x.input_size(0), _product(x.shape(1)[:1])),
    "BATCH_MATMUL": lambda x: _times(
        x.output_size(), _product(x.shape(0)[-2 if x.operator.options["AdjX"] else -1 :][:1])
    ),
    "UNIDIRECTIONAL_SEQUENCE_LSTM": lambda x: _recurrent(x, _LSTM_MATRICES),
    "UNIDIRECTIONAL_SEQUENCE_RNN": lambda x: _recurrent(x, _RNN_MATRICES),
}


def _sizes(graph: Graph, given: list[int | None] | None) -> list[int | None]:
    """Returns the number of elements of each tensor for a batch of 1, None where it cannot be known.

    Where a reshape has merged the batch with steps into one unknown dimension, shapes alone would say 1.
    """
    sizes = [tensor.known_size if not tensor.unknown_dims else None for tensor in graph.tensors]
    for position, index in enumerate(graph.inputs):
        tensor = graph.tensors[index]
        if sizes[index] is None and given is not None:
            sizes[index] = given[position] if position < len(given) else None
        elif sizes[index] is None and tensor.shape[0] < 0 and tensor.unknown_dims == 1:
            sizes[index] = tensor.known_size
    for operator in graph.operators:
        for index in operator.outputs:
            if sizes[index] is None:
                sizes[index] = _output_size(graph, operator, graph.tensors[index], sizes)
    return sizes


def _output_size(graph: Graph, operator: Operator, output: Tensor, sizes: list[int | None]) -> int | None:
    inputs = [(graph.tensors[index], sizes[index]) for index in operator.inputs if index >= 0]
    if operator.name == "RESHAPE":
        return inputs[0][1] if inputs else None
    if operator.name == "FULLY_CONNECTED" and len(inputs) > 1:
        weights = inputs[1][0].shape
        if len(weights) != 2 or min(weights) <= 0 or inputs[0][1] is None:  # noqa: PLR2004 (units, features)
            return None
        return inputs[0][1] // weights[1] * weights[0]
    moving = [(tensor, size) for tensor, size in inputs if tensor.unknown_dims]
    if not moving:  # e.g. a state filled with zeros for each sample: its one unknown dimension is the batch
        return output.known_size if output.unknown_dims == 1 else None
    factors = {size // tensor.known_size if size is not None and tensor.known_size else None for tensor, size in moving}
    same = all(tensor.unknown_dims == output.unknown_dims for tensor, _ in moving)
    factor = factors.pop() if same and len(factors) == 1 else None
    return None if factor is None else factor * output.known_size


def _turns(graph: Graph, loop: Operator, condition: Graph, body: Graph) -> int | None:
    """Returns how often a loop turns, if counters against constants are all that its condition looks at.

    Keras writes `counter < steps` twice and joins them: the loop ends at the smallest bound.
    """
    made_by = {index: operator for operator in condition.operators for index in operator.outputs}
    pending = list(condition.outputs[:1])
    seen: set[int] = set()
    turns: list[int] = []
    while pending:
        index = pending.pop()
        operator = made_by.get(index)
        if operator is None or index in seen:
            return None
        seen.add(index)
        if operator.name == "LOGICAL_AND":
            pending.extend(operator.inputs)
            continue
        bound = _bounded_turns(graph, loop, condition, body, operator)
        if bound is None:
            return None
        turns.append(bound)
    return min(turns, default=None)


def _bounded_turns(graph: Graph, loop: Operator, condition: Graph, body: Graph, comparison: Operator) -> int | None:
    if comparison.name not in _COMPARISONS or len(comparison.inputs) != 2:  # noqa: PLR2004 (counter and bound)
        return None
    side, extra = _COMPARISONS[comparison.name]
    counter = comparison.inputs[side]
    bound = condition.tensors[comparison.inputs[1 - side]].int_constant() if comparison.inputs[1 - side] >= 0 else None
    if counter not in condition.inputs:
        return None
    position = condition.inputs.index(counter)
    if position >= min(len(loop.inputs), len(body.inputs), len(body.outputs)) or loop.inputs[position] < 0:
        return None
    start = graph.tensors[loop.inputs[position]].int_constant()
    step = _increment(body, position)
    if start is None or bound is None or step is None or step <= 0:
        return None
    return max(0, -((start - bound - extra) // step))


def _increment(body: Graph, position: int) -> int | None:
    """Returns what one turn adds to a loop variable, if it is a constant."""
    result = body.outputs[position]
    adder = next((operator for operator in body.operators if result in operator.outputs), None)
    if adder is None or adder.name != "ADD" or body.inputs[position] not in adder.inputs:
        return None
    others = [index for index in adder.inputs if index != body.inputs[position]]
    return body.tensors[others[0]].int_constant() if len(others) == 1 and others[0] >= 0 else None
