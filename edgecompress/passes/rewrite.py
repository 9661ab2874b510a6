"""Copies a Keras 3 model with layers replaced by others: what passes that change a model's structure build on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgecompress.errors import InternalError
from edgecompress.functional import as_functional, call_keywords, copy_weights, copying, functional_graph, graph_nodes

Substitutes = Mapping[int, Sequence[Any]]


def rewrite(model: Any, substitutes: Substitutes) -> Any:
    """Returns a copy of a Keras 3 model in which layers are replaced by chains of others.

    Nested models stay nested, layers that are called several times stay shared, and names of the model, its inputs and
    the layers that stay are kept. Weights are copied; the copy is not compiled.

    Args:
        model: A functional, Sequential or traceable subclassed model; it is left as it is.
        substitutes: By `id()` of a layer that the graph calls, also inside nested models: the new layers, called one
            after the other. The first one gets the arguments of the call; without any, the layer's input is passed on.

    Raises:
        ModelError: The model is no graph of layers, or a layer cannot be made again from its configuration.
        InternalError: A layer to replace is not called in the graph.
    """
    writer = _Rewriter(substitutes)
    with copying(model):
        copy = writer.model(as_functional(model))
        for original, made in writer.copies:
            _give_state(original, made)
    if missing := set(substitutes) - writer.replaced:
        raise InternalError(f"{len(missing)} layers to be replaced are not called in its graph", where=model.name)
    return copy


def _give_state(original: Any, copy: Any) -> None:
    copy_weights(original, copy)
    for layer, made in zip(original._flatten_layers(), copy._flatten_layers(), strict=True):  # noqa: SLF001
        made.trainable = layer.trainable
        made.name = layer.name  # which the configuration of a custom layer may leave out


class _Rewriter:
    """Keeps what was made, so that a layer found again, in whatever nested model, is the same layer in the copy.

    Attributes:
        copies: Pairs of a layer and the layer made from its configuration.
        replaced: The ids of the layers that were replaced.
    """

    def __init__(self, substitutes: Substitutes) -> None:
        self.copies: list[tuple[Any, Any]] = []
        self.replaced: set[int] = set()
        self._substitutes = substitutes
        self._made: dict[int, Any] = {}

    def model(self, model: Any) -> Any:
        """Returns the copy of a model that is a graph of layers."""
        import keras

        self._avoid_clashes(model)
        if isinstance(model, keras.Sequential):
            return self._sequential(model)
        graph = functional_graph(model)
        inputs = [_new_input(tensor) for tensor in graph.inputs]
        tensors = dict(zip(map(id, graph.inputs), inputs, strict=True))

        def fill(leaf: Any) -> Any:
            return tensors[id(leaf)] if isinstance(leaf, keras.KerasTensor) else leaf

        for node in graph_nodes(graph):
            args, kwargs = keras.tree.map_structure(fill, (node.arguments.args, call_keywords(node)))
            outputs = keras.tree.flatten(self._call(node.operation, args, kwargs))
            tensors.update(zip(map(id, node.outputs), outputs, strict=True))
        outputs = [tensors[id(tensor)] for tensor in graph.outputs]
        return keras.Model(
            keras.tree.pack_sequence_as(graph._inputs_struct, inputs),  # noqa: SLF001
            keras.tree.pack_sequence_as(graph._outputs_struct, outputs),  # noqa: SLF001
            name=model.name,
        )

    def _avoid_clashes(self, model: Any) -> None:
        """Gives new layers another name where a layer that stays has theirs."""
        taken = {layer.name for layer in model.layers if id(layer) not in self._substitutes}
        for layer in model.layers:
            for new in self._substitutes.get(id(layer), ()):
                base, number = new.name, 0
                while new.name in taken:
                    number += 1
                    new.name = f"{base}_{number}"
                taken.add(new.name)

    def _sequential(self, model: Any) -> Any:
        import keras

        layers = [new for layer in model.layers for new in self._chain(layer)] or [keras.layers.Identity()]
        return keras.Sequential([_new_input(model.inputs[0]), *layers], name=model.name)

    def _call(self, operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        chain = self._chain(operation)
        if not chain:
            return args[0] if args else next(iter(kwargs.values()))
        outputs = chain[0](*args, **kwargs)
        for layer in chain[1:]:
            outputs = layer(outputs)
        return outputs

    def _chain(self, operation: Any) -> Sequence[Any]:
        if id(operation) in self._substitutes:
            self.replaced.add(id(operation))
            return self._substitutes[id(operation)]
        if id(operation) not in self._made:
            self._made[id(operation)] = self._remake(operation)
        return (self._made[id(operation)],)

    def _remake(self, operation: Any) -> Any:
        import keras

        if not isinstance(operation, keras.layers.Layer):
            return operation  # an operation of keras.ops has no state
        if isinstance(operation, keras.Model) and (
            functional_graph(operation) is not None or self._is_inside(operation)
        ):
            return self.model(as_functional(operation))
        copy = type(operation).from_config(operation.get_config())
        copy.name = operation.name
        self.copies.append((operation, copy))
        return copy

    def _is_inside(self, model: Any) -> bool:
        return any(id(layer) in self._substitutes for layer in model._flatten_layers())  # noqa: SLF001


def _new_input(tensor: Any) -> Any:
    layer = tensor._keras_history.operation  # noqa: SLF001
    return type(layer).from_config(layer.get_config()).output
