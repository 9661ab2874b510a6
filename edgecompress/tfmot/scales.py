"""Decides which results of a lowered graph share a scale, and measures the ranges that training starts from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from edgecompress.data import Array
from edgecompress.recurrent.observing import observe
from edgecompress.tfmot.lowering import Lowered, Node
from edgecompress.tfmot.primitives import PRIMITIVES, Range, apply
from edgecompress.tfmot.recurrent import fixed_ranges

_BATCH = 32
_STEPS = 255  # of an 8-bit scale
_SMALLEST_RANGE = 1e-4  # a scale near zero would make the runtime divide by it


@dataclass(frozen=True)
class Scale:
    """The scale of one or more results.

    Attributes:
        nodes: The results that are rounded to it. Results of operators that only move or choose values are not: they
            have it already. Of outputs of a recurrent layer that are the same state, one is here.
        tables: Embeddings whose table has it.
        others: Results that have it because their operators only move or choose values.
        fixed: The range that the kernels write in, where they have one and nobody else shares the scale.
        inner: Whether the results are states of recurrent layers, which round them themselves.
    """

    nodes: tuple[Node, ...]
    tables: tuple[Node, ...]
    others: tuple[Node, ...]
    fixed: tuple[float, float] | None
    inner: bool = False

    @property
    def members(self) -> tuple[Node, ...]:
        return (*self.nodes, *self.tables, *self.others)

    @property
    def shared(self) -> bool:
        """Whether one result does not decide the range: there are others, or a constant may lie outside of it."""
        return _is_bounded(self.others) or len(self.nodes) + len(self.tables) > 1


def range_of(node: Node) -> Range:
    """Where the scale of a node's result comes from."""
    return PRIMITIVES[node.kind].range if node.kind in PRIMITIVES else Range.OWN


def fixed_range(node: Node) -> tuple[float, float] | None:
    """The range that the kernel of a node always writes in, if it has one."""
    if node.kind == "output":
        return fixed_ranges(node.inputs[0].settings["layer"], 8).get(node.settings["state"])
    return PRIMITIVES[node.kind].fixed if node.kind in PRIMITIVES else None


def assign_scales(lowered: Lowered) -> tuple[Scale, ...]:
    """Groups the results: what CONCATENATION joins, and what MAXIMUM compares, must have one scale.

    So must the calls of one layer. A result that only a ReLU takes has none, if the kernel applies the ReLU itself
    before it rounds. Recurrent layers whose outputs are joined get one scale for their states, if nothing else is
    joined to them; otherwise their outputs are rounded once more, because states need all the steps they can get.
    """
    without = _fused(lowered) | _indices(lowered)
    floating = {
        node: None for node in lowered.nodes if not node.is_integer and node not in without and node.kind != "recurrent"
    }
    groups = _Groups(floating)
    for node in floating:
        if range_of(node) is Range.SAME:
            for each in node.inputs:
                if each in floating:
                    groups.unite(each, node)
    calls: dict[object, Node] = {}
    for node in floating:
        if node.weights:  # all calls of a layer go through one wrapper
            groups.unite(node, calls.setdefault(node.key, node))
    for node in [node for group in groups.found() if _are_states(group) for node in group if node.kind == "output"]:
        groups.unite(node, calls.setdefault(state_key(node), node))
    return tuple(scale for scale in map(_scale, groups.found()) if scale.nodes or scale.tables)


class _Groups:
    """Nodes that share a scale."""

    def __init__(self, nodes: Iterable[Node]) -> None:
        self._parent = {node: node for node in nodes}

    def _root(self, node: Node) -> Node:
        while self._parent[node] is not node:
            node = self._parent[node]
        return node

    def unite(self, node: Node, other: Node) -> None:
        self._parent[self._root(node)] = self._root(other)

    def found(self) -> list[list[Node]]:
        groups: dict[Node, list[Node]] = {}
        for node in self._parent:
            groups.setdefault(self._root(node), []).append(node)
        return list(groups.values())


def state_key(node: Node) -> tuple[object, str]:
    """Of an output of a recurrent layer: the layer, which calls share, and the state that it is."""
    return node.inputs[0].key, node.settings["state"]


def _are_states(members: Sequence[Node]) -> bool:
    """Whether all results of a group are outputs of recurrent layers, and states of the same kind."""
    nodes = [node for node in members if range_of(node) is not Range.SAME]
    if any(node.kind != "output" for node in nodes) or _is_bounded(members):
        return False
    kinds = {(node.inputs[0].settings["layer"].kind, node.settings["state"], fixed_range(node)) for node in nodes}
    return len(kinds) == 1


def _is_bounded(members: Sequence[Node]) -> bool:
    return any(node.settings.get("bound") for node in members if node.kind != "floor")


def _scale(members: Sequence[Node]) -> Scale:
    nodes = [node for node in members if range_of(node) is Range.OWN]
    tables = tuple(node for node in members if range_of(node) is Range.TABLE)
    others = [node for node in members if range_of(node) is Range.SAME]
    if inner := _are_states(members):
        first = {state_key(node): node for node in reversed(nodes)}
        others += [node for node in nodes if first[state_key(node)] is not node]
        nodes = [node for node in nodes if first[state_key(node)] is node]
    fixed = {fixed_range(node) for node in nodes}
    own = fixed.pop() if len(fixed) == 1 and not tables and not _is_bounded(members) else None
    return Scale(tuple(nodes), tables, tuple(others), own, inner)


def _fused(lowered: Lowered) -> set[Node]:
    uses = Counter(node for each in lowered.nodes for node in each.inputs)
    uses.update(lowered.outputs)
    found = {
        before
        for node in lowered.nodes
        if node.kind in ("relu", "relu6")
        for before in node.inputs
        if uses[before] == 1 and before.kind in PRIMITIVES and PRIMITIVES[before.kind].fuses_relu
    }
    others = {node.key for node in lowered.nodes if node not in found}
    return {node for node in found if node.key not in others}


def _indices(lowered: Lowered) -> set[Node]:
    """Results that only say which rows of a table are looked up: Keras lets such inputs be floats."""
    takers: dict[Node, list[Node]] = {}
    for node in lowered.nodes:
        for each in node.inputs:
            takers.setdefault(each, []).append(node)
    found: set[Node] = set()
    for node in reversed(lowered.nodes):
        by = takers.get(node, [])
        if by and all(each.kind == "embedding" or each in found for each in by):
            found.add(node)
    return found


def run_lowered(lowered: Lowered, inputs: Sequence[Array]) -> list[Array]:
    """Returns the float results of the outputs for samples of shape (batch, …), one array an input."""
    values = _evaluate(lowered, inputs)
    return [np.asarray(values[node]) for node in lowered.outputs]


def measure_ranges(lowered: Lowered, scales: Sequence[Scale], inputs: Sequence[Array]) -> list[tuple[float, float]]:
    """Returns the range of each scale on samples of shape (samples, …), one array an input.

    For a scale of one result it is the mean of the extremes of the batches, which is where TFMOT's moving average
    would arrive; for a shared one all that occurred, as for states of recurrent layers, which `observe_cells` must
    have looked at. All hold 0.
    """
    import tensorflow as tf

    def extremes(*batch: object) -> list[tuple[object, object]]:
        values = _evaluate(lowered, batch)
        return [
            (
                tf.reduce_min([tf.reduce_min(values[node]) for node in scale.members]),
                tf.reduce_max([tf.reduce_max(values[node]) for node in scale.members]),
            )
            for scale in scales
        ]

    measure = tf.function(extremes, autograph=False)
    found = np.array([
        [[np.asarray(bound) for bound in pair] for pair in measure(*batch)] for batch in _batches(inputs)
    ])  # fmt: skip
    for index, scale in enumerate(scales):
        if scale.inner:
            seen = [node.inputs[0].ranges[node.settings["state"]] for node in scale.members if node.kind == "output"]
            found[:, index] = min(low for low, _ in seen), max(high for _, high in seen)
    return [_settle(found[:, index], shared=scale.shared) for index, scale in enumerate(scales)]


def observe_cells(lowered: Lowered, inputs: Sequence[Array]) -> None:
    """Finds the ranges of the results inside of recurrent layers on samples, and writes them into their nodes."""
    import tensorflow as tf

    cells = [node for node in lowered.nodes if node.kind == "recurrent"]
    if not cells:
        return

    def take(*batch: object) -> list[list[object]]:
        values = _evaluate(lowered, batch)
        return [[values[each] for each in node.inputs] for node in cells]

    traced = tf.function(take, autograph=False)
    taken = [traced(*batch) for batch in _batches(inputs)]
    for index, node in enumerate(cells):
        x, *states = (np.concatenate(parts) for parts in zip(*(batch[index] for batch in taken), strict=True))
        found = observe(node.settings["layer"], x, states)
        node.ranges = {name: _with_width(low, high) for name, (low, high) in found.items()}


def _batches(inputs: Sequence[Array]) -> Iterator[list[Array]]:
    samples = len(inputs[0])
    size = min(samples, _BATCH)
    for start in range(0, samples - size + 1, size):
        yield [array[start : start + size] for array in inputs]


def raise_floors(scales: Sequence[Scale], ranges: Sequence[tuple[float, float]]) -> bool:
    """Raises the bounds of 'floor' nodes to one step of their scale; returns whether there are any.

    What follows them has other ranges then.
    """
    floors = [(node, high) for scale, (_, high) in zip(scales, ranges, strict=True) for node in scale.others
              if node.kind == "floor"]  # fmt: skip
    for node, high in floors:
        node.settings["bound"] = high / _STEPS
    return bool(floors)


def _settle(bounds: Array, *, shared: bool) -> tuple[float, float]:
    low, high = (bounds[:, 0].min(), bounds[:, 1].max()) if shared else bounds.mean(0)
    return _with_width(min(float(low), 0.0), max(float(high), 0.0))


def _with_width(low: float, high: float) -> tuple[float, float]:
    return (low, high) if high - low > _SMALLEST_RANGE else (low, low + _SMALLEST_RANGE)


def _evaluate(lowered: Lowered, inputs: Sequence[object]) -> dict[Node, object]:
    """Computes all nodes in float."""
    import tensorflow as tf

    values: dict[Node, object] = dict(zip(lowered.inputs, map(tf.convert_to_tensor, inputs), strict=True))
    for node in lowered.nodes:
        if node not in values:
            taken = [values[each] for each in node.inputs]
            if node.kind == "float":
                values[node] = node.settings["function"](*taken)
            else:
                weights = {name: tf.constant(value) for name, value in node.weights.items()}
                values[node] = apply(node.kind, taken, weights, node.settings)
    return values
