"""A Keras 3 model as a flat list of calls: nested models are dissolved into the layers they are made of."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgecompress.data import InputSpec
from edgecompress.errors import ModelError
from edgecompress.functional import as_functional, explicit_arguments, functional_graph, graph_nodes


@dataclass(frozen=True)
class Ref:
    """Stands for a tensor in the arguments of a call."""

    number: int


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a layer or operation.

    Attributes:
        operation: The Keras 3 layer or operation.
        name: Its name; 'outer/inner' inside a nested model. Calls of one operation share the name.
        args: Positional arguments, `Ref`s in the place of tensors.
        kwargs: Keyword arguments, likewise.
        outputs: What it returns, flat.
    """

    operation: Any
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[Ref, ...]


@dataclass(frozen=True)
class FlatGraph:
    """Calls in an order in which they can be done, with the model's inputs and outputs."""

    inputs: tuple[Ref, ...]
    outputs: tuple[Ref, ...]
    calls: tuple[Call, ...]


def flatten_graph(graph: Any) -> FlatGraph:
    """Dissolves a functional Keras 3 graph (`models.functional_graph`)."""
    flattener = _Flattener()
    inputs = tuple(flattener.new_ref() for _ in graph.inputs)
    outputs = flattener.run(graph, inputs, "")
    return FlatGraph(inputs, outputs, tuple(_needed(flattener.calls, set(outputs))))


def _needed(calls: Sequence[Call], wanted: set[Ref]) -> list[Call]:
    """Leaves out the calls that lead to no output: those that only compute a mask that layers pass on unasked."""
    import keras

    kept = []
    for call in reversed(calls):
        if wanted & set(call.outputs):
            kept.append(call)
            wanted |= {leaf for leaf in keras.tree.flatten((call.args, call.kwargs)) if isinstance(leaf, Ref)}
    return kept[::-1]


@dataclass
class _Flattener:
    calls: list[Call] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=itertools.count)
    _names: dict[int, str] = field(default_factory=dict)
    _graphs: dict[int, Any] = field(default_factory=dict)

    def new_ref(self) -> Ref:
        return Ref(next(self._numbers))

    def run(self, graph: Any, inputs: Sequence[Ref], prefix: str) -> tuple[Ref, ...]:
        import keras

        refs = dict(zip(map(id, graph.inputs), inputs, strict=True))

        def fill(leaf: Any) -> Any:
            return refs[id(leaf)] if isinstance(leaf, keras.KerasTensor) else leaf

        for node in graph_nodes(graph):
            arguments = node.arguments
            outputs = self._dissolve(node, refs, prefix)
            if outputs is None:
                args, kwargs = keras.tree.map_structure(fill, (arguments.args, explicit_arguments(node)))
                outputs = self._call(node.operation, prefix, args, kwargs, len(node.outputs))
            refs.update(zip(map(id, node.outputs), outputs, strict=True))
        return tuple(refs[id(tensor)] for tensor in graph.outputs)

    def _call(self, operation: Any, prefix: str, args: Any, kwargs: Any, count: int) -> tuple[Ref, ...]:
        outputs = tuple(self.new_ref() for _ in range(count))
        name = self._names.setdefault(id(operation), f"{prefix}{operation.name}")
        self.calls.append(Call(operation, name, tuple(args), dict(kwargs), outputs))
        return outputs

    def _dissolve(self, node: Any, refs: dict[int, Ref], prefix: str) -> tuple[Ref, ...] | None:
        """Runs through a nested model in the place of its call; None where it has to be called as a whole."""
        import keras

        graph, arguments = self._graph_of(node), node.arguments
        if graph is None or len(arguments.args) != 1 or set(explicit_arguments(node)):
            return None
        given = arguments.args[0]
        names = [tensor.name for tensor in graph.inputs]
        if isinstance(given, dict) and not isinstance(graph._inputs_struct, dict) and set(names) <= set(given):  # noqa: SLF001
            tensors = [given[name] for name in names]
        else:
            tensors = keras.tree.flatten(given)
        if [len(t.shape) for t in tensors] != [len(t.shape) for t in graph.inputs]:
            return None  # Keras 3 adds or removes an axis
        inner = f"{prefix}{node.operation.name}/"
        pairs = zip(tensors, graph.inputs, strict=True)
        inputs = [self._cast(refs[id(tensor)], tensor, own.dtype, inner) for tensor, own in pairs]
        return self.run(graph, inputs, inner)

    def _graph_of(self, node: Any) -> Any | None:
        """Returns the graph that a nested model is, or that a subclassed one can be traced to."""
        import keras

        model = node.operation
        if not isinstance(model, keras.Model):
            return None
        if id(model) not in self._graphs:
            graph = functional_graph(model)
            if graph is None:
                specs = [InputSpec(f"x{n}", tuple(t.shape), t.dtype) for n, t in enumerate(node.input_tensors)]
                with contextlib.suppress(ModelError):  # then it is called as a whole
                    graph = functional_graph(as_functional(model, specs))
            self._graphs[id(model)] = graph
        return self._graphs[id(model)]

    def _cast(self, ref: Ref, tensor: Any, dtype: str, prefix: str) -> Ref:
        """A nested model casts what it is given to the types of its own inputs."""
        import keras

        if tensor.dtype == dtype:
            return ref
        cast = keras.ops.cast(keras.KerasTensor(tensor.shape, tensor.dtype), dtype)
        return self._call(cast._keras_history.operation, prefix, (ref,), {}, 1)[0]  # noqa: SLF001
