"""Writes recurrent layers into a .tflite file in integer operators: as a loop, as one step, or unrolled.

All three carry out the same program (`edgecompress.recurrent.cells`) with the same scales, so that they give the same
integers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from edgecompress.converters.graph_writer import GraphWriter, Value
from edgecompress.converters.integer_cells import IntegerLayer, IntegerOperations
from edgecompress.converters.masks import as_flags, choose, is_set
from edgecompress.recurrent.cells import project, step

_MOST_PARTS = 10  # that TFLite Micro's CONCATENATION takes


def write_step(
    graph: GraphWriter, plan: IntegerLayer, x: Value, states: Sequence[Value], mask: Value | None = None
) -> list[Value]:  # fmt: skip
    """Writes one step.

    Args:
        graph: Where to.
        plan: The layer.
        x: (1, 1, features).
        states: (1, units) each.
        mask: bool (1, 1), whether the step counts; None: it does.

    Returns:
        The output, (1, units) or with return_sequences (1, 1, units), and the new states.
    """
    ops, layer = IntegerOperations(graph, plan), plan.layer
    row = graph.reshape(f"{plan.name}/row", x, (1, 1, 1, layer.features))
    begin = [_as_row(graph, plan, state) for state in states]
    counts = None if mask is None else is_set(graph, plan.name, as_flags(graph, plan.name, mask, (1, 1, 1, 1)))
    given, new = _masked_step(graph, plan, project(layer, ops, row), begin, counts)
    flat = [_as_state(graph, plan, state) for state in new]
    return [
        graph.reshape(f"{plan.name}/steps", given, (1, 1, layer.units)) if layer.return_sequences else flat[0],
        *flat,
    ]


def _begin(graph: GraphWriter, plan: IntegerLayer, states: Sequence[Value], mask: Value | None) -> list[Value]:
    """Returns what is kept from step to step: the states and, where it is not the first of them, the output.

    Before the first step that counts, Keras gives zeros, whatever the state is to begin with.
    """
    rows = [_as_row(graph, plan, state) for state in states or _zeros(graph, plan)]
    if states and mask is not None and not plan.layer.zero_masked:
        rows.append(_as_row(graph, plan, zero_state(graph, plan, "state_0")))
    return rows


def _masked_step(
    graph: GraphWriter, plan: IntegerLayer, projected: Sequence[Value], kept: Sequence[Value], counts: Value | None
) -> tuple[Value, Sequence[Value]]:  # fmt: skip
    """Returns what a step gives to the sequence, and what is kept: as it was, if the step does not count."""
    layer = plan.layer
    new = step(layer, IntegerOperations(graph, plan), projected, kept[: len(layer.states)])
    if counts is None:
        return new[0], new
    # After all else, because XNNPACK has no SELECT_V2 and would be cut in two.
    name = f"{plan.name}/kept"
    chosen = [choose(graph, name, counts, *pair) for pair in zip((*new, new[0]), kept, strict=False)]
    if layer.zero_masked:
        return choose(graph, name, counts, new[0], _as_row(graph, plan, zero_state(graph, plan, "state_0"))), chosen
    return _output(plan, chosen), chosen


def _output(plan: IntegerLayer, kept: Sequence[Value]) -> Value:
    return kept[-1] if len(kept) > len(plan.layer.states) else kept[0]


def _as_row(graph: GraphWriter, plan: IntegerLayer, state: Value) -> Value:
    return graph.reshape(f"{plan.name}/state", state, (1, 1, 1, plan.layer.units))


def _as_state(graph: GraphWriter, plan: IntegerLayer, row: Value) -> Value:
    return graph.reshape(f"{plan.name}/state", row, (1, plan.layer.units))


def write_unrolled(
    graph: GraphWriter, plan: IntegerLayer, x: Value, states: Sequence[Value] = (), mask: Value | None = None
) -> list[Value]:  # fmt: skip
    """Writes all steps, one after the other.

    Args:
        graph: Where to.
        plan: The layer.
        x: (1, steps, features).
        states: What it begins with, (1, units) each; none: zeros.
        mask: bool (1, steps), which steps count; None: all do.

    Returns:
        The output, (1, units) or with return_sequences (1, steps, units), and the last states.
    """
    ops, layer, steps = IntegerOperations(graph, plan), plan.layer, x.shape[1]
    rows = graph.reshape(f"{plan.name}/rows", x, (1, steps, 1, layer.features))
    projected = project(layer, ops, rows)
    kept: Sequence[Value] = _begin(graph, plan, states, mask)
    flags = None if mask is None else as_flags(graph, plan.name, mask, (1, steps, 1, 1))
    sequence = []
    for index in range(steps - 1, -1, -1) if layer.go_backwards else range(steps):
        counts = None if flags is None else is_set(graph, plan.name, _row(graph, plan, flags, index))
        row = [_row(graph, plan, part, index) for part in projected]
        given, kept = _masked_step(graph, plan, row, kept, counts)
        sequence.append(given)
    if not layer.return_sequences:
        return _results(graph, plan, kept)
    if layer.go_backwards and layer.in_order:
        sequence.reverse()
    return _results(graph, plan, kept, _in_one(graph, plan, sequence))


def _in_one(graph: GraphWriter, plan: IntegerLayer, sequence: Sequence[Value]) -> Value:
    """Joins steps, as many at once as TFLite Micro takes."""
    while len(sequence) > 1:
        groups = [sequence[place : place + _MOST_PARTS] for place in range(0, len(sequence), _MOST_PARTS)]
        sequence = [
            group[0] if len(group) == 1 else graph.concatenate(f"{plan.name}/sequence", group, axis=1)
            for group in groups
        ]
    return sequence[0]


def _results(
    graph: GraphWriter, plan: IntegerLayer, kept: Sequence[Value], sequence: Value | None = None
) -> list[Value]:
    """Returns the output, which is the sequence if there is one, and the last states."""
    states = [_as_state(graph, plan, row) for row in kept[: len(plan.layer.states)]]
    if sequence is not None:
        steps = math.prod(sequence.shape) // plan.layer.units
        return [graph.reshape(f"{plan.name}/output", sequence, (1, steps, plan.layer.units)), *states]
    is_state = len(kept) == len(states)
    return [states[0] if is_state else _as_state(graph, plan, kept[-1]), *states]


def _row(graph: GraphWriter, plan: IntegerLayer, x: Value, index: int) -> Value:
    """Returns x[:, index] of (1, steps, 1, columns) as (1, 1, 1, columns)."""
    result = graph.tensor(f"{plan.name}/row", (1, 1, 1, x.shape[3]), x.dtype, x.scale)
    places = ((0, index, 0, 0), (1, index + 1, 1, x.shape[3]), (1, 1, 1, 1))
    ends = [
        graph.constant(f"{plan.name}/{what}", np.asarray(values, np.int32))
        for what, values in zip(("begin", "end", "strides"), places, strict=True)
    ]
    graph.operator("STRIDED_SLICE", [x, *ends], [result], {})
    return result


def _zeros(graph: GraphWriter, plan: IntegerLayer) -> tuple[Value, ...]:
    """Returns states of zeros."""
    return tuple(zero_state(graph, plan, name) for name in plan.layer.states)


def zero_state(graph: GraphWriter, plan: IntegerLayer, name: str) -> Value:
    """Returns a constant state (1, units) of zeros."""
    scale = plan.state_scale(name)
    zeros = np.full((1, plan.layer.units), scale.zero_point, scale.dtype)
    return graph.constant(f"{plan.name}/{name}/zeros", zeros, scale=scale)


def write_loop(
    graph: GraphWriter, plan: IntegerLayer, x: Value, states: Sequence[Value] = (),
    mask: Value | None = None, *,
    per_turn: int = 1, hoist: bool = True,
) -> list[Value]:  # fmt: skip
    """Writes a WHILE over the steps; the file's size does not depend on their number.

    Args:
        graph: Where to.
        plan: The layer.
        x: (1, steps, features).
        states: What it begins with, (1, units) each; none: zeros.
        mask: bool (1, steps), which steps count; None: all do.
        per_turn: Steps in one turn of the loop; must divide the number of steps.
        hoist: Multiply the inputs of all steps before the loop: quicker, but the products need memory.

    Returns:
        As `write_unrolled`.
    """
    return _Loop(graph, plan, x, mask, per_turn, hoist=hoist).write(_begin(graph, plan, states, mask))


class _Loop:
    def __init__(
        self, graph: GraphWriter, plan: IntegerLayer, x: Value, mask: Value | None, per_turn: int, *, hoist: bool
    ) -> None:  # fmt: skip
        self._graph, self._plan, self._layer = graph, plan, plan.layer
        self._x, self._mask, self._hoist = x, mask, hoist
        self._per_turn, self._turns = per_turn, x.shape[1] // per_turn

    def write(self, kept: Sequence[Value]) -> list[Value]:
        graph, plan = self._graph, self._plan
        read = self._inputs()
        carried = [graph.constant(f"{plan.name}/start", np.zeros(1, np.int32)), *kept]
        if self._layer.return_sequences:
            carried.append(self._empty_sequence())
        condition, body = (graph.file.new_graph(f"{plan.name}/{name}") for name in ("condition", "turn"))
        self._write_condition(condition, [*carried, *read])
        self._write_body(body, carried, read)
        results = [
            graph.tensor(f"{plan.name}/loop_{index}", value.shape, value.dtype, value.scale)
            for index, value in enumerate([*carried, *read])
        ]
        options = {"condSubgraphIndex": condition.number, "bodySubgraphIndex": body.number}
        graph.operator("WHILE", [*carried, *read], results, options)
        last = 1 + len(kept)
        return _results(graph, plan, results[1:last], results[last] if self._layer.return_sequences else None)

    def _inputs(self) -> list[Value]:
        """Returns what each turn reads a row of: the inputs or their products and, at the end, the mask."""
        graph, plan, steps = self._graph, self._plan, self._x.shape[1]
        given = graph.reshape(f"{plan.name}/rows", self._x, (steps, 1, 1, self._layer.features))
        inputs = list(project(self._layer, IntegerOperations(graph, plan), given)) if self._hoist else [given]
        if self._mask is not None:
            inputs.append(as_flags(graph, plan.name, self._mask, (steps, 1, 1, 1)))
        return [
            graph.reshape(f"{plan.name}/turns", part, (self._turns, 1, 1, self._per_turn * part.shape[3]))
            for part in inputs
        ]

    def _empty_sequence(self) -> Value:
        """Returns room for the outputs of all steps; as a constant it would take as much of the file."""
        graph, plan, scale = self._graph, self._plan, self._plan.state_scale("state_0")
        shape = (self._turns, 1, 1, self._per_turn * self._layer.units)
        result = graph.tensor(f"{plan.name}/empty", shape, scale.dtype, scale)
        wanted = graph.constant(f"{plan.name}/empty/shape", np.asarray(shape, np.int32))
        zero = graph.constant(f"{plan.name}/zero", np.full((1, 1, 1, 1), scale.zero_point, scale.dtype), scale=scale)
        graph.operator("BROADCAST_TO", [zero, wanted], [result])
        return result

    def _write_condition(self, graph: GraphWriter, carried: Sequence[Value]) -> None:
        inputs = graph.take_inputs(carried)
        result = graph.tensor("goes_on", (1,), "bool")
        limit = graph.constant("limit", np.asarray([self._turns], np.int32))
        graph.operator("LESS", [inputs[0], limit], [result], {})
        graph.give_outputs([result])

    def _write_body(self, graph: GraphWriter, carried: Sequence[Value], read: Sequence[Value]) -> None:
        layer, count = self._layer, len(carried)
        inputs = graph.take_inputs([*carried, *read])
        index = inputs[0]
        kept: Sequence[Value] = inputs[1 : count - 1 if layer.return_sequences else count]
        place = self._from_the_end(graph, index) if layer.go_backwards else index
        rows = self._rows(graph, [self._read(graph, value, place) for value in inputs[count:]])
        sequence = []
        for row in reversed(rows) if layer.go_backwards else rows:
            given, kept = self._write_step(graph, row, kept)
            sequence.append(given)
        results = [self._next(graph, index), *kept]
        if layer.return_sequences:
            if layer.go_backwards and layer.in_order:
                sequence.reverse()
                index = place  # where the inputs were, too
            results.append(self._store(graph, index, sequence, inputs[count - 1]))
        graph.give_outputs([*results, *inputs[count:]])

    def _write_step(
        self, graph: GraphWriter, row: Sequence[Value], kept: Sequence[Value]
    ) -> tuple[Value, Sequence[Value]]:
        plan, counts = self._plan, None
        if self._mask is not None:
            *row, flag = row
            counts = is_set(graph, plan.name, flag)
        projected = row if self._hoist else project(plan.layer, IntegerOperations(graph, plan), row[0])
        return _masked_step(graph, plan, projected, kept, counts)

    def _read(self, graph: GraphWriter, x: Value, index: Value) -> Value:
        """Returns x[index], for TFLite Micro by an operator that it has for 16 bits, too."""
        result = graph.tensor(f"{self._plan.name}/turn", (1, *x.shape[1:]), x.dtype, x.scale)
        if x.dtype == "int8":
            graph.operator("GATHER", [x, index], [result], {"axis": 0})
        else:
            size = graph.constant(f"{self._plan.name}/size", np.asarray(result.shape, np.int32))
            graph.operator("SLICE", [x, self._corner(graph, index), size], [result], {})
        return result

    def _corner(self, graph: GraphWriter, index: Value) -> Value:
        return graph.concatenate("corner", [index, graph.constant("left", np.zeros(3, np.int32))], axis=0)

    def _rows(self, graph: GraphWriter, turn: Sequence[Value]) -> list[tuple[Value, ...]]:
        """Cuts what one turn reads into its steps."""
        if self._per_turn == 1:
            return [tuple(turn)]
        ops = IntegerOperations(graph, self._plan)
        parts = [ops.split(value, self._per_turn) for value in turn]
        return list(zip(*parts, strict=True))

    def _next(self, graph: GraphWriter, index: Value) -> Value:
        result = graph.tensor("next", (1,), "int32")
        graph.operator("ADD", [index, graph.constant("one", np.ones(1, np.int32))], [result], {})
        return result

    def _from_the_end(self, graph: GraphWriter, index: Value) -> Value:
        result = graph.tensor("place", (1,), "int32")
        graph.operator("SUB", [graph.constant("last", np.asarray([self._turns - 1], np.int32)), index], [result], {})
        return result

    def _store(self, graph: GraphWriter, place: Value, sequence: Sequence[Value], into: Value) -> Value:
        """Writes a turn's outputs into the sequence."""
        joined = sequence[0] if len(sequence) == 1 else graph.concatenate("outputs", sequence, axis=3)
        result = graph.tensor("sequence", into.shape, into.dtype, into.scale)
        graph.operator("DYNAMIC_UPDATE_SLICE", [into, joined, self._corner(graph, place)], [result])
        return result
