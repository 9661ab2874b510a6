"""The layers of a Keras 3 model that follow one another, and what hinders two of them from becoming one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from edgecompress.functional import functional_graph, graph_nodes

Shape = tuple[int | None, ...]


@dataclass(eq=False)
class Stage:
    """A layer, or what it and its neighbours became.

    Attributes:
        prefix: 'outer/' inside a nested model.
        layer: The Keras 3 layer as it is now.
        place: The layer of the model in whose place it stands.
        members: The layers of the model that it is made of, in their order.
        input_shape: Of what it is called with, batch first; None for sizes that vary.
        is_output: Whether the model, or the nested model, returns its output.
    """

    prefix: str
    layer: Any
    place: Any
    members: tuple[Any, ...]
    input_shape: Shape
    is_output: bool

    @property
    def name(self) -> str:
        return f"{self.prefix}{self.layer.name}"

    @property
    def kind(self) -> str:
        """The name of its class if what that does is known: one of Keras or of EdgeCompress; else ''."""
        own = type(self.layer).__module__.split(".")[0] in ("keras", "edgecompress")
        return type(self.layer).__name__ if own else ""

    @property
    def changed(self) -> bool:
        return self.layer is not self.place


@dataclass(frozen=True)
class Link:
    """Two layers of which the second takes the output of the first.

    Attributes:
        first: Key of a stage: the `id()` of a layer of the model.
        second: Likewise.
        obstacle: Why they have to stay two, or None.
    """

    first: int
    second: int
    obstacle: str | None


@dataclass(frozen=True)
class _Call:
    """A call of a layer in a graph.

    Attributes:
        node: The call.
        source: The call whose output it takes; None: it takes an input of the graph, or several tensors.
        users: How many calls take its output, the graph's own output counted in.
    """

    prefix: str
    node: Any
    source: Any
    users: int
    is_output: bool

    @property
    def layer(self) -> Any:
        return self.node.operation


def find_stages(model: Any) -> tuple[dict[int, Stage], tuple[Link, ...]]:
    """Returns the layers of a graph and its nested models by `id()`, and how they follow one another.

    Args:
        model: A Keras 3 model that is a graph of layers.
    """
    calls = tuple(_calls(model, "", set()))
    times = Counter(id(call.layer) for call in calls)
    stages = {id(call.layer): _stage(call) for call in calls}
    owners = Counter(id(variable) for stage in stages.values() for variable in stage.layer.variables)
    by_node = {id(call.node): call for call in calls}

    def obstacle(first: _Call, second: _Call) -> str | None:
        for call in (first, second):
            if times[id(call.layer)] > 1 or any(owners[id(variable)] > 1 for variable in call.layer.variables):
                return f"{call.layer.name!r} is called in several places, or shares its weights"
        return f"the output of {first.layer.name!r} is needed elsewhere, too" if first.users > 1 else None

    pairs = [(by_node.get(id(call.source)), call) for call in calls]
    links = tuple(Link(id(a.layer), id(b.layer), obstacle(a, b)) for a, b in pairs if a is not None)
    return stages, links


def _stage(call: _Call) -> Stage:
    layer = call.layer
    shape = tuple(call.node.input_tensors[0].shape)
    return Stage(call.prefix, layer, layer, (layer,), shape, call.is_output)


def _calls(model: Any, prefix: str, seen: set[int]) -> Iterator[_Call]:
    """Yields the calls of layers, those in nested models at the first call of the model."""
    import keras

    graph = functional_graph(model)
    nodes = tuple(graph_nodes(graph))
    makers = {id(tensor): node for node in nodes for tensor in node.outputs}
    users = Counter(id(tensor) for node in nodes for tensor in node.input_tensors)
    users.update(id(tensor) for tensor in graph.outputs)
    outputs = {id(tensor) for tensor in graph.outputs}
    for node in nodes:
        layer = node.operation
        if isinstance(layer, keras.Model) and functional_graph(layer) is not None:
            if id(layer) not in seen:
                seen.add(id(layer))
                yield from _calls(layer, f"{prefix}{layer.name}/", seen)
        elif isinstance(layer, keras.layers.Layer):
            tensors = keras.tree.flatten(node.arguments.args)
            source = makers.get(id(tensors[0])) if len(tensors) == 1 else None
            of_output = [id(tensor) for tensor in node.outputs]
            yield _Call(prefix, node, source, max(map(users.__getitem__, of_output)), bool(outputs & {*of_output}))
