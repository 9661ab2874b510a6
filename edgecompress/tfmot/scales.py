"""Decides which results of a lowered graph share a scale, and measures the ranges that training starts from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgecompress.data import Array
from edgecompress.tfmot.lowering import Lowered, Node
from edgecompress.tfmot.primitives import PRIMITIVES, Range, apply

_BATCH = 32
_STEPS = 255  # of an 8-bit scale
_SMALLEST_RANGE = 1e-4  # a scale near zero would make the runtime divide by it


@dataclass(frozen=True)
class Scale:
    """The scale of one or more results.

    Attributes:
        nodes: The results that are rounded to it. Results of operators that only move or choose values are not: they
            have it already.
        tables: Embeddings whose table has it.
        others: Results that have it because their operators only move or choose values.
        fixed: The range that the kernel writes in, where it has one and nobody shares the scale.
    """

    nodes: tuple[Node, ...]
    tables: tuple[Node, ...]
    others: tuple[Node, ...]
    fixed: tuple[float, float] | None

    @property
    def members(self) -> tuple[Node, ...]:
        return (*self.nodes, *self.tables, *self.others)

    @property
    def shared(self) -> bool:
        """Whether one result does not decide the range: there are others, or a constant may lie outside of it."""
        bounds = any(node.settings.get("bound") for node in self.others if node.kind != "floor")
        return bounds or len(self.nodes) + len(self.tables) > 1


def range_of(node: Node) -> Range:
    """Where the scale of a node's result comes from."""
    return PRIMITIVES[node.kind].range if node.kind in PRIMITIVES else Range.OWN


def assign_scales(lowered: Lowered) -> tuple[Scale, ...]:
    """Groups the results: what CONCATENATION joins, and what MAXIMUM compares, must have one scale.

    So must the calls of one layer. A result that only a ReLU takes has none, if the kernel applies the ReLU itself
    before it rounds.
    """
    without = _fused(lowered) | _indices(lowered)
    parent: dict[Node, Node] = {}

    def root(node: Node) -> Node:
        while parent.get(node, node) is not node:
            node = parent[node]
        return node

    floating = [node for node in lowered.nodes if not node.is_integer and node not in without]
    for node in floating:
        if range_of(node) is Range.SAME:
            for each in node.inputs:
                if not each.is_integer and each not in without:
                    parent[root(each)] = root(node)
    calls: dict[object, Node] = {}
    for node in floating:
        if node.weights:  # all calls of a layer go through one wrapper
            parent[root(node)] = root(calls.setdefault(node.key, node))
    groups: dict[Node, list[Node]] = {}
    for node in floating:
        groups.setdefault(root(node), []).append(node)
    return tuple(scale for scale in map(_scale, groups.values()) if scale.nodes or scale.tables)


def _scale(members: Sequence[Node]) -> Scale:
    nodes = tuple(node for node in members if range_of(node) is Range.OWN)
    tables = tuple(node for node in members if range_of(node) is Range.TABLE)
    others = tuple(node for node in members if range_of(node) is Range.SAME)
    scale = Scale(nodes, tables, others, None)
    alone = not scale.shared and nodes and nodes[0].kind in PRIMITIVES
    return replace(scale, fixed=PRIMITIVES[nodes[0].kind].fixed) if alone else scale


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
    would arrive; for a shared one all that occurred. Both hold 0.
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
    samples = len(inputs[0])
    size = min(samples, _BATCH)
    found = np.array([
        [[np.asarray(bound) for bound in pair] for pair in measure(*(array[start : start + size] for array in inputs))]
        for start in range(0, samples - size + 1, size)
    ])  # fmt: skip
    return [_settle(found[:, index], shared=scale.shared) for index, scale in enumerate(scales)]


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
    low, high = min(float(low), 0.0), max(float(high), 0.0)
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
