"""A teacher's graph of layers, seen with blocks left out and nested models opened."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from edgecompress.data import InputSpec
from edgecompress.errors import ModelError
from edgecompress.functional import as_functional, explicit_arguments, functional_graph, graph_nodes


class View:
    """What of a model's graph is taken, in the same way whenever it is walked through."""

    def __init__(self) -> None:
        self._graphs: dict[int, Any] = {}
        self._nodes: dict[int, list[Any]] = {}
        self._left_out: set[int] = set()
        self._stand_ins: dict[int, Any] = {}

    def graph(self, model: Any, tensors: Sequence[Any] = ()) -> Any:
        """Returns the graph that a model is, or can be traced to; None if there is none.

        Args:
            model: Any layer or operation.
            tensors: What it is called with, which has `shape`s: for models that have to be traced.
        """
        import keras

        if not isinstance(model, keras.Model):
            return None
        if id(model) not in self._graphs:
            graph = functional_graph(model)
            if graph is None and tensors:
                dtype = model.input_dtype
                specs = [
                    InputSpec(f"x{number}", tuple(tensor.shape), getattr(tensor, "dtype", dtype))
                    for number, tensor in enumerate(tensors)
                ]
                with contextlib.suppress(ModelError):  # then it is a layer like any other
                    graph = functional_graph(as_functional(model, specs))
            self._graphs[id(model)] = graph
        return self._graphs[id(model)]

    def nodes(self, graph: Any) -> list[Any]:
        """Returns the calls that lead to an output, in an order in which they can be done.

        Keras has calls in a graph, too, that only compute masks that layers pass on unasked.
        """
        if id(graph) not in self._nodes:
            wanted, kept = {id(tensor) for tensor in graph.outputs}, []
            for node in reversed(list(graph_nodes(graph))):
                if wanted & set(map(id, node.outputs)):
                    kept.append(node)
                    wanted |= set(map(id, tensors_of(node)))
            self._nodes[id(graph)] = kept[::-1]
        return [node for node in self._nodes[id(graph)] if id(node) not in self._left_out]

    def leave_out(self, nodes: Sequence[Any], entry: Any, leaving: Any) -> None:
        """Leaves out calls, and takes `entry` for what they return, `leaving`."""
        self._left_out |= set(map(id, nodes))
        self._stand_ins[id(leaving)] = entry

    def tensor(self, tensor: Any) -> Any:
        """Returns the tensor that is taken for another one, or that one itself."""
        while id(tensor) in self._stand_ins:
            tensor = self._stand_ins[id(tensor)]
        return tensor


def tensors_of(node: Any) -> list[Any]:
    """Returns the symbolic tensors that a call is given, masks left out that Keras passes on by itself."""
    import keras

    leaves = keras.tree.flatten((node.arguments.args, explicit_arguments(node)))
    return [leaf for leaf in leaves if isinstance(leaf, keras.KerasTensor)]
