"""Finds blocks that a model repeats, and leaves some of them out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from edgecompress.distill.students.views import View, tensors_of
from edgecompress.distill.students.widths import scaled
from edgecompress.functional import explicit_arguments

# What may differ between blocks that are alike: networks with stochastic depth drop more the deeper they are.
_IGNORED = frozenset({"name", "seed", "rate", "drop_path_rate", "trainable", "return_sequences"})


@dataclass(frozen=True)
class Segment:
    """The calls between two tensors that everything passes through.

    Attributes:
        nodes: The calls.
        entry: The tensor before them.
        leaving: The tensor after them.
        kind: What they are, the same for two segments if they do the same.
    """

    nodes: tuple[Any, ...]
    entry: Any
    leaving: Any
    kind: str

    @property
    def learns(self) -> bool:
        return any(getattr(node.operation, "weights", None) for node in self.nodes)


def leave_out_blocks(view: View, graph: Any, share: float) -> int:
    """Leaves repetitions of blocks out of a graph and of those nested in it; returns how many.

    A block is the shortest sequence of segments that is followed by its like, whatever the width of what the first one
    takes. Of the repetitions of a run as many stay as the share says, at least one: the first ones, and the last one,
    which may return something else than the others, as the last layer of a stack of recurrent layers does.

    Args:
        view: What is taken of the graph.
        graph: The teacher's.
        share: Of the repetitions of each run that stay.
    """
    count, repeated = 0, set()
    for run in _runs(_segments(view, graph), set(map(id, graph.outputs))):
        repeated |= {id(node.operation) for block in run for segment in block for node in segment.nodes}
        left_out = _left_out(run, share)
        if _is_closed(view, graph, left_out):
            nodes = [node for block in left_out for segment in block for node in segment.nodes]
            view.leave_out(nodes, left_out[0][0].entry, left_out[-1][-1].leaving)
            count += len(left_out)
    opened: set[int] = set()
    for node in view.nodes(graph):
        inner = view.graph(node.operation, node.input_tensors)
        if inner is not None and id(node.operation) not in repeated | opened:
            opened.add(id(node.operation))
            count += leave_out_blocks(view, inner, share)
    return count


Block = Sequence[Segment]


def _left_out(run: Sequence[Block], share: float) -> Sequence[Block]:
    """Returns what to leave out of a run: the last block stays, which may be an output, or return no sequence."""
    return run[scaled(len(run), share) - 1 : -1]


def _runs(segments: Sequence[Segment], outputs: set[int]) -> Iterator[list[Block]]:
    """Yields sequences of blocks that are alike and fit after one another; none goes on behind an output."""
    start = 0
    while start < len(segments):
        ends = (number for number in range(start, len(segments)) if id(segments[number].leaving) in outputs)
        stretch = segments[start : next(ends, len(segments)) + 1]
        run = next(_runs_from(stretch), None)
        if run is not None:
            yield run
        start += 1 if run is None else sum(map(len, run))


def _runs_from(segments: Sequence[Segment]) -> Iterator[list[Block]]:
    """Yields the runs that start with the first of these segments, those of the shortest blocks first."""
    kinds = [segment.kind for segment in segments]
    for length in range(1, len(segments) // 2 + 1):
        count = 1
        while kinds[count * length : (count + 1) * length] == kinds[:length]:
            count += 1
        run = [segments[number * length : (number + 1) * length] for number in range(count)]
        if count > 1 and any(segment.learns for segment in run[0]) and _fits(run):
            yield run


def _fits(run: Sequence[Block]) -> bool:
    """Whether any block of a run but the last may be left out: then the last one takes what others took."""
    entry, *inside, leaving = (tuple(tensor.shape) for tensor in (run[0][0].entry, *(each[-1].leaving for each in run)))
    return len(set(inside)) == 1 and entry[:-1] == inside[0][:-1] and leaving[-1:] == inside[0][-1:]


def _is_closed(view: View, graph: Any, blocks: Sequence[Block]) -> bool:
    """Whether calls that stay use nothing of these blocks but what they return last."""
    if not blocks:
        return False
    nodes = {id(node) for block in blocks for segment in block for node in segment.nodes}
    inside = {id(tensor) for block in blocks for segment in block for node in segment.nodes for tensor in node.outputs}
    inside.discard(id(blocks[-1][-1].leaving))
    used = {id(tensor) for node in view.nodes(graph) if id(node) not in nodes for tensor in tensors_of(node)}
    return not inside & (used | set(map(id, graph.outputs)))


def _segments(view: View, graph: Any) -> list[Segment]:
    """Returns the shortest segments that a graph can be cut into, in its order."""
    nodes = view.nodes(graph)
    last_use = {id(view.tensor(tensor)): number for number, node in enumerate(nodes) for tensor in tensors_of(node)}
    beside = _beside(graph, nodes)
    live = {id(tensor): tensor for tensor in graph.inputs}
    segments: list[Segment] = []
    entry, begun = _only(live, beside), 0
    for number, node in enumerate(nodes):
        live.update((id(tensor), tensor) for tensor in node.outputs)
        live = {key: tensor for key, tensor in live.items() if last_use.get(key, -1) > number}
        leaving = _only(live, beside) if number < len(nodes) - 1 else node.outputs[0]
        if leaving is None:
            continue
        if entry is not None and leaving is not entry:
            inside = tuple(nodes[begun : number + 1])
            kind = json.dumps(_kind(view, inside, [entry], [leaving]), default=str)
            segments.append(Segment(inside, entry, leaving, kind))
        entry, begun = leaving, number + 1
    return segments


def _only(live: dict[int, Any], beside: set[int]) -> Any:
    """Returns the one tensor that all goes through, if there is one."""
    through = [tensor for key, tensor in live.items() if key not in beside] or list(live.values())
    return through[0] if len(through) == 1 else None


def _beside(graph: Any, nodes: Sequence[Any]) -> set[int]:
    """Returns what runs along a model and is no part of what goes through it: masks, positions and the like."""
    several = len(graph.inputs) > 1
    plain = {id(tensor) for tensor in graph.inputs}
    tensors = list(graph.inputs)
    for node in nodes:
        if not getattr(node.operation, "weights", None) and {id(tensor) for tensor in tensors_of(node)} <= plain:
            plain |= {id(tensor) for tensor in node.outputs}
            tensors += node.outputs
    return {id(tensor) for tensor in tensors if several or "float" not in str(tensor.dtype)}


def _kind(view: View, nodes: Sequence[Any], inputs: Sequence[Any], outputs: Sequence[Any]) -> list[Any]:
    """Describes calls by their layers, their settings and how they are connected, names left out."""
    import keras

    names = {id(tensor): f"input {number}" for number, tensor in enumerate(inputs)}
    for number, node in enumerate(nodes):
        names.update((id(tensor), f"{number}.{place}") for place, tensor in enumerate(node.outputs))

    def name(leaf: Any) -> str:
        return names.get(id(leaf), f"beside {id(leaf)}") if isinstance(leaf, keras.KerasTensor) else str(leaf)

    calls = [
        [
            type(node.operation).__qualname__,
            _settings(view, node),
            [name(leaf) for leaf in keras.tree.flatten((node.arguments.args, explicit_arguments(node)))],
        ]
        for node in nodes
    ]
    return [calls, list(map(name, outputs))]


def _settings(view: View, node: Any) -> Any:
    operation = node.operation
    graph = view.graph(operation, node.input_tensors)
    if graph is not None:
        return _kind(view, view.nodes(graph), graph.inputs, graph.outputs)
    try:
        return _stripped(operation.get_config())
    except Exception:  # noqa: BLE001 (a custom layer may raise anything)
        return id(operation)


def _stripped(config: Any) -> Any:
    if isinstance(config, dict):
        return {str(key): _stripped(value) for key, value in config.items() if key not in _IGNORED}
    return [_stripped(each) for each in config] if isinstance(config, (list, tuple)) else config
