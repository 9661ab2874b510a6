"""Writes a student: the layers of a teacher made anew with other settings, and called in the same way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgecompress.distill.students.ranks import Ranks
from edgecompress.distill.students.rules import learns_nothing
from edgecompress.distill.students.sizing import Sizing
from edgecompress.distill.students.views import View
from edgecompress.errors import ModelError
from edgecompress.functional import call_keywords, cause_of, copy_weights, copying

BY_HAND = "build the student yourself and give it (--student small.keras)"


class Writer:
    """Makes the layers of the student, each once, and calls them as those of the teacher are called.

    Args:
        view: What is taken of the teacher's graph.
        sizing: The sizes.
        ranks: Which layers become those of low rank.
    """

    def __init__(self, view: View, sizing: Sizing, ranks: Ranks) -> None:
        self._keeping: list[tuple[Any, Any]] = []
        self._view = view
        self._sizing = sizing
        self._ranks = ranks
        self._made: dict[int, Any] = {}

    def student(self, teacher: Any) -> Any:
        """Returns the student of a teacher that is a graph of layers.

        Raises:
            ModelError: A layer cannot be made from its configuration, or does not fit at its place in the student.
        """
        with copying(teacher):
            student = self._model(teacher)
            for original, made in self._keeping:
                copy_weights(original, made)
        return student

    def _model(self, model: Any) -> Any:
        import keras

        graph = self._view.graph(model)
        inputs = [self._input(tensor) for tensor in graph.inputs]
        if isinstance(model, keras.Sequential):
            layers = [self._layer(node.operation) for node in self._view.nodes(graph)]
            student = keras.Sequential([inputs[0], *layers], name=model.name)
            self._check_call(model, graph.outputs, student.outputs)
            return student
        tensors = dict(zip(map(id, graph.inputs), inputs, strict=True))

        def fill(leaf: Any) -> Any:
            return tensors[id(self._view.tensor(leaf))] if isinstance(leaf, keras.KerasTensor) else leaf

        for node in self._view.nodes(graph):
            args, kwargs = keras.tree.map_structure(fill, (node.arguments.args, call_keywords(node)))
            outputs = self._call(node, args, kwargs)
            tensors.update(zip(map(id, node.outputs), outputs, strict=True))
        return keras.Model(
            keras.tree.pack_sequence_as(graph._inputs_struct, inputs),  # noqa: SLF001
            keras.tree.pack_sequence_as(graph._outputs_struct, [fill(tensor) for tensor in graph.outputs]),  # noqa: SLF001
            name=model.name,
        )

    def _call(self, node: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        import keras

        layer = self._layer(node.operation)
        try:
            outputs: list[Any] = keras.tree.flatten(layer(*args, **kwargs))
        except Exception as error:
            shapes = ", ".join(
                str(tuple(x.shape)) for x in keras.tree.flatten(args) if isinstance(x, keras.KerasTensor)
            )
            raise ModelError(
                f"the layer cannot take what it is given in the student ({cause_of(error).rstrip('.')})",
                where=f"layer {node.operation.name!r}", received=shapes, fix=BY_HAND,
            ) from error  # fmt: skip
        self._check_call(node.operation, node.outputs, outputs)
        return outputs

    def _check_call(self, operation: Any, originals: Sequence[Any], outputs: Sequence[Any]) -> None:
        expected = [self._sizing.shape(self._view.tensor(tensor)) for tensor in originals]
        received = [tuple(tensor.shape) for tensor in outputs]
        for wanted, shape in zip(expected, received, strict=True):
            pairs = zip(wanted, shape, strict=False)
            if len(wanted) != len(shape) or any(None not in pair and pair[0] != pair[1] for pair in pairs):
                raise ModelError(
                    "the layer returns another shape in the student than its place in the model needs: it has a size "
                    "of its own",
                    where=f"layer {operation.name!r}", expected=wanted, received=shape,
                    fix=f"give it a setting for this size, e.g. `units` in its get_config(), or {BY_HAND}",
                )  # fmt: skip

    def _input(self, tensor: Any) -> Any:
        layer = tensor._keras_history.operation  # noqa: SLF001
        config = layer.get_config() | {"batch_shape": self._sizing.shape(tensor)}
        return type(layer).from_config(config).output

    def _layer(self, operation: Any) -> Any:
        if id(operation) not in self._made:
            self._made[id(operation)] = self._make(operation)
        return self._made[id(operation)]

    def _make(self, operation: Any) -> Any:
        import keras

        if self._view.graph(operation) is not None:
            return self._model(operation)
        if not isinstance(operation, keras.layers.Layer):
            settings = self._sizing.settings(operation)
            return type(operation).from_config(operation.get_config() | settings) if settings else operation
        if isinstance(operation, keras.layers.Lambda) or hasattr(operation, "get_vocabulary"):
            return operation  # nothing in it ever changes, and what it does is not in its configuration
        return self._remade(operation, low_rank=True)

    def _remade(self, operation: Any, *, low_rank: bool) -> Any:
        """Returns a layer made anew."""
        settings, parts = self._sizing.settings(operation), self._parts(operation)
        made = self._ranks.low(operation, settings) if low_rank else None
        if made is None:
            config = {key: value for key, value in operation.get_config().items() if key not in parts} | settings
            made = type(operation)(**parts, **config) if parts else type(operation).from_config(config)
        made.name = operation.name  # which the configuration of a custom layer may leave out
        if operation.weights and learns_nothing(operation):
            self._keeping.append((operation, made))
        else:
            made.trainable = True
        return made

    def _parts(self, layer: Any) -> dict[str, Any]:
        """Returns the layers that a layer is made with, made anew."""
        import keras

        if isinstance(layer, keras.layers.Bidirectional):
            return {"layer": self._layer(layer.forward_layer), "backward_layer": self._layer(layer.backward_layer)}
        if isinstance(layer, keras.layers.TimeDistributed):
            return {"layer": self._layer(layer.layer)}
        if isinstance(layer, keras.layers.Wrapper):  # which may look for a kernel in it
            return {"layer": self._remade(layer.layer, low_rank=False)}
        if type(layer) is keras.layers.RNN:
            return {"cell": self._layer(layer.cell)}
        if isinstance(layer, keras.layers.StackedRNNCells):
            return {"cells": [self._layer(cell) for cell in layer.cells]}
        return {}
