"""The one border between Keras 3 and tf_keras, in which TFMOT lives.

`cross` rebuilds the graph of a Keras 3 model layer by layer in tf_keras, copies the weights and proves on random input
that both answer the same. What tf_keras does not have (custom layers, keras.ops, newer layers) is wrapped whole: see
`edgecompress.tfmot.adapter`. `Bridged.write_back` takes the weights home.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from edgecompress.errors import ConversionError
from edgecompress.functional import as_functional, cause_of, functional_graph
from edgecompress.tfmot.adapter import Slot, is_whole, wrap_whole
from edgecompress.tfmot.flat_graph import Call, FlatGraph, Ref, flatten_graph
from edgecompress.tfmot.proof import prove_alike
from edgecompress.tfmot.translate import NoCounterpartError, counterpart, pair_weights


@dataclass(frozen=True)
class Crossed:
    """A Keras 3 layer and what stands for it in tf_keras.

    Attributes:
        name: Its name; 'outer/inner' inside a nested model.
        keras_layer: The Keras 3 layer or operation.
        tf_layer: Its counterpart, not wrapped, built and with its weights; or, where `adapter.is_whole` says so, a
            layer that calls the Keras 3 one and shares its variables.
    """

    name: str
    keras_layer: Any
    tf_layer: Any


@dataclass(frozen=True)
class Bridged:
    """A tf_keras model made from a Keras 3 model.

    Attributes:
        model: The tf_keras functional model; its inputs and outputs are flat lists, in the order of those of `source`.
        source: The Keras 3 model.
        layers: Each distinct layer and operation once, in an order in which they can be called.
    """

    model: Any
    source: Any
    layers: tuple[Crossed, ...]

    def write_back(self, model: Any = None) -> None:
        """Copies the weights of the tf_keras layers into `source`.

        Args:
            model: A tf_keras model to take the layers from, by the name of `Crossed.tf_layer`: what TFMOT's `strip_…`
                made of `self.model`. None: the layers themselves.

        Raises:
            ConversionError: A layer is missing there, or its weights are of other shapes. Nothing is written then.
        """
        by_name = None if model is None else {layer.name: layer for layer in model.layers}
        pairs: list[tuple[Any, Any]] = []
        for crossed in self.layers:
            if is_whole(crossed.tf_layer) or not crossed.keras_layer.weights:
                continue
            layer = crossed.tf_layer if by_name is None else by_name.get(crossed.tf_layer.name)
            if layer is None:
                raise ConversionError(
                    "cannot be written back: the model has no such layer", where=f"layer {crossed.name!r}",
                    fix="strip TFMOT's wrappers first",
                )  # fmt: skip
            pairs += pair_weights(crossed.keras_layer, layer, crossed.name)
        for keras_variable, tf_variable in pairs:
            keras_variable.assign(tf_variable)


def cross(model: Any, *, wrap: Callable[[Crossed], Any] | None = None, prove: bool = True) -> Bridged:
    """Takes a Keras 3 model over to tf_keras.

    Layers that are wrapped whole share their variables with `model`: training moves them at once. Give a copy
    (`models.clone_model`) to keep the model as it is.

    Args:
        model: A functional or Sequential Keras 3 model, or one that can be traced to a functional one. Nested models
            are dissolved into their layers.
        wrap: Called once for each distinct layer and operation; returns what stands in the graph in its place: a
            wrapper of TFMOT, or `tf_layer` itself.
        prove: Compare the two models on random input. Done before anything is wrapped, as wrappers may change answers.

    Raises:
        ConversionError: The two do not answer the same (the first layer that differs is named), or tf_keras refuses a
            layer, or `model` is not of Keras 3.
        ModelError: The model is not a graph of layers and cannot be traced to one.
    """
    import keras

    if not isinstance(model, keras.Model):
        kind = type(model)
        raise ConversionError(
            "not a Keras 3 model", expected="a keras.Model", received=f"{kind.__module__}.{kind.__qualname__}",
            fix="rebuild it with Keras 3, or load its .keras file",
        )  # fmt: skip
    source = as_functional(model)
    graph = functional_graph(source)
    builder = _Builder(source, graph, flatten_graph(graph))
    layers = tuple(builder.crossed.values())
    rebuilt = builder.connect({key: crossed.tf_layer for key, crossed in builder.crossed.items()})
    for crossed in layers:
        if not is_whole(crossed.tf_layer):
            for keras_variable, tf_variable in pair_weights(crossed.keras_layer, crossed.tf_layer, crossed.name):
                tf_variable.assign(keras_variable.value)
    if prove:
        prove_alike(source, rebuilt, builder.flat, builder.call)
    if wrap is not None:
        wrapped = {}
        for key, crossed in builder.crossed.items():
            _forget_graph(crossed.tf_layer)
            wrapped[key] = wrap(crossed)
        rebuilt = builder.connect(wrapped)
    return Bridged(rebuilt, source, layers)


def _forget_graph(layer: Any) -> None:
    """Takes a layer out of the graph it was called in, so that what wraps it finds it in one graph only."""
    layer._inbound_nodes, layer._outbound_nodes = [], []  # noqa: SLF001


class _Builder:
    """Makes the tf_keras layers of a flat graph, and models of them."""

    def __init__(self, source: Any, graph: Any, flat: FlatGraph) -> None:
        self.flat = flat
        self.crossed: dict[int, Crossed] = {}
        self._source, self._graph = source, graph
        self._names: set[str] = set()
        self._input_names = [self._unique(tensor._keras_history.operation.name) for tensor in graph.inputs]  # noqa: SLF001
        self._whole_calls: dict[int, tuple[list[Ref], int]] = {}
        tied = _tied_variables(flat)
        for call in flat.calls:
            key = id(call.operation)
            if key not in self.crossed:
                self.crossed[key] = Crossed(call.name, call.operation, self._make(call, tied))
            layer = self.crossed[key].tf_layer
            if is_whole(layer):
                refs, args, kwargs = _take_out(call)
                self._whole_calls[id(call)] = refs, layer.add_signature(args, kwargs)

    def _make(self, call: Call, tied: set[int]) -> Any:
        import keras

        layer, name = call.operation, self._unique(call.name)
        if isinstance(layer, keras.layers.Layer) and not any(id(v) in tied for v in layer.variables):
            try:
                return counterpart(layer, name)
            except NoCounterpartError:
                pass
        return wrap_whole(layer, name)

    def _unique(self, name: str) -> str:
        """Returns the name as TensorFlow takes it in a name scope."""
        base = re.sub(r"[^A-Za-z0-9_.-]", "_", name.replace("/", "__"))
        base = base if re.match(r"[A-Za-z0-9.]", base) else f"layer{base}"
        unique, number = base, 1
        while unique in self._names:
            unique, number = f"{base}_{number}", number + 1
        self._names.add(unique)
        return unique

    def connect(self, layers: dict[int, Any]) -> Any:
        """Returns a tf_keras model of the graph, with `layers` by the identity of the Keras 3 layer."""
        import tf_keras

        inputs = [
            tf_keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, name=name)
            for tensor, name in zip(self._graph.inputs, self._input_names, strict=True)
        ]
        tensors = dict(zip(self.flat.inputs, inputs, strict=True))
        for call in self.flat.calls:
            tensors.update(zip(call.outputs, self.call(call, tensors, layers[id(call.operation)]), strict=True))
        outputs = [tensors[ref] for ref in self.flat.outputs]
        return tf_keras.Model(inputs, outputs, name=self._source.name)

    def call(self, call: Call, tensors: dict[Ref, Any], layer: Any = None) -> list[Any]:
        """Calls a tf_keras layer, or that of the graph, as the Keras 3 layer is called; returns its flat outputs."""
        import keras
        import tensorflow as tf

        layer = layer or self.crossed[id(call.operation)].tf_layer
        try:
            if id(call) in self._whole_calls:
                refs, signature = self._whole_calls[id(call)]
                inputs = [tensors[ref] for ref in refs]
                extra = {"signature": signature} if signature else {}
                results = layer(inputs[0] if len(inputs) == 1 else inputs, **extra)
            else:
                args, kwargs = keras.tree.map_structure(
                    lambda leaf: tensors[leaf] if isinstance(leaf, Ref) else leaf, _name_arguments(call)
                )
                results = layer(*args, **kwargs)
        except Exception as error:
            raise ConversionError(
                f"tf_keras cannot call it: {cause_of(error)}", where=f"layer {call.name!r}"
            ) from error
        flat: list[Any] = tf.nest.flatten(results)
        return flat


def _name_arguments(call: Call) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Passes all arguments but the first by name, as TFMOT's wrappers hand on no others."""
    import inspect

    names = list(inspect.signature(call.operation.call).parameters)
    later = {
        name: value for name, value in zip(names[1:], call.args[1:], strict=False)
        if value is not None and name != "training"
    }  # fmt: skip
    return call.args[:1], later | call.kwargs


def _take_out(call: Call) -> tuple[list[Ref], Any, Any]:
    """Returns the tensors of a call, and its arguments with `Slot`s in their places."""
    import keras

    refs: list[Ref] = []

    def take(leaf: Any) -> Any:
        if not isinstance(leaf, Ref):
            return leaf
        refs.append(leaf)
        return Slot(len(refs) - 1)

    args, kwargs = keras.tree.map_structure(take, (call.args, call.kwargs))
    return refs, args, kwargs


def _tied_variables(flat: FlatGraph) -> set[int]:
    """Returns the identities of variables that more than one layer uses, or that are given to a call.

    Copies of them would drift apart in training, so their layers have to be wrapped whole.
    """
    operations = {id(call.operation): call.operation for call in flat.calls}
    owned = Counter(
        key for operation in operations.values() for key in {id(v) for v in getattr(operation, "variables", ())}
    )
    return {key for key, owners in owned.items() if owners > 1} | set(_given_variables(flat))


def _given_variables(flat: FlatGraph) -> Iterator[int]:
    import keras

    for call in flat.calls:
        for leaf in keras.tree.flatten((call.args, call.kwargs)):
            if isinstance(leaf, keras.Variable):
                yield id(leaf)
