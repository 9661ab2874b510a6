"""Looks into a Keras 3 model: one that also returns what named layers inside of it give."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import keras

from edgecompress.errors import UsageError
from edgecompress.functional import as_functional, explicit_arguments, functional_graph, graph_nodes

Kind = Literal["output", "attention", "sequence"]

_SEQUENCE = 3  # rank: (batch, steps, units)


@dataclass(frozen=True)
class Point:
    """What to look at.

    Attributes:
        layer: Name of a layer; 'outer/inner' inside a nested model.
        kind: Its output; the attention scores of a MultiHeadAttention, of shape (batch, heads, queries, keys); or the
            hidden states of a recurrent layer after each step, of shape (batch, steps, units), also of one that returns
            only the last.
    """

    layer: str
    kind: Kind = "output"


def watch(model: Any, points: Sequence[Point], *, who: str) -> Any:
    """Returns a model with the same layers and inputs that also returns what is to be looked at.

    Args:
        model: A Keras 3 model that is a graph of layers, or can be traced as one.
        points: What to look at.
        who: What errors call the model: "student" or "teacher".

    Returns:
        A functional model. Its output is a dict: "answers" holds the model's own outputs, as they are nested, "points"
        a list of tensors.

    Raises:
        ModelError: The model is no graph of layers.
        UsageError: A layer is not there, is called more than once, or has nothing of that kind.
    """
    graph = functional_graph(as_functional(model))
    watcher = _Watcher(points, who, list(_names(graph, "")))
    outputs = watcher.run(graph, graph.inputs, "")
    return keras.Model(
        graph._inputs_struct,  # noqa: SLF001
        {
            "answers": keras.tree.pack_sequence_as(graph._outputs_struct, outputs),  # noqa: SLF001
            "points": [watcher.found[point] for point in points],
        },
        name=f"{model.name}_watched",
    )


def _names(graph: Any, prefix: str) -> Iterator[str]:
    """Yields the names of the calls in a graph, those inside nested models included."""
    for node in graph_nodes(graph):
        name = prefix + node.operation.name
        yield name
        if (inner := functional_graph(node.operation)) is not None:
            yield from _names(inner, f"{name}/")


@dataclass
class _Watcher:
    """Calls a graph's layers again, on symbolic tensors, and keeps what it is asked for."""

    points: Sequence[Point]
    who: str
    names: Sequence[str]
    found: dict[Point, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for point in self.points:
            count = self.names.count(point.layer)
            if count != 1:
                once = [name for name in self.names if self.names.count(name) == 1]
                close = difflib.get_close_matches(point.layer, once, 3)
                fix = f"did you mean {' or '.join(close)}?" if close else f"among them are {', '.join(once[-3:])}"
                raise UsageError(
                    f"the {self.who} calls it {count} times" if count else f"the {self.who} has no layer of this name",
                    where=f"layer {point.layer!r}", expected="the name of a layer that is called once",
                    fix="choose a layer that is called once" if count else fix,
                )  # fmt: skip

    def run(self, graph: Any, inputs: Sequence[Any], prefix: str, training: bool | None = None) -> list[Any]:
        """Returns the flat outputs of a graph for these flat inputs."""
        tensors = dict(zip(map(id, graph.inputs), inputs, strict=True))

        def fill(leaf: Any) -> Any:
            return tensors[id(leaf)] if isinstance(leaf, keras.KerasTensor) else leaf

        for node in graph_nodes(graph):
            args, kwargs = keras.tree.map_structure(fill, (node.arguments.args, explicit_arguments(node)))
            stated = node.arguments.kwargs.get("training")
            called = self._call(
                node.operation, prefix + node.operation.name, args, kwargs, training if stated is None else stated
            )
            tensors.update(zip(map(id, node.outputs), keras.tree.flatten(called), strict=True))
        return [tensors[id(tensor)] for tensor in graph.outputs]

    def _call(
        self, operation: Any, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], training: bool | None
    ) -> Any:
        inner = functional_graph(operation)
        if inner is not None and any(point.layer.startswith(f"{name}/") for point in self.points):
            flat = keras.tree.flatten(args[0] if args else next(iter(kwargs.values())))
            outputs = keras.tree.pack_sequence_as(inner._outputs_struct, self.run(inner, flat, f"{name}/", training))  # noqa: SLF001
        else:
            if training is not None and getattr(operation, "_call_has_training_arg", False):
                kwargs = {**kwargs, "training": training}
            outputs = self._call_watched(operation, name, args, kwargs)
        for point in self.points:
            if point == Point(name):
                self.found[point] = self._single(outputs, point)
        return outputs

    def _call_watched(self, operation: Any, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        scores, states = Point(name, "attention"), Point(name, "sequence")
        if scores in self.points:
            outputs, self.found[scores] = self._attend(operation, args, kwargs, scores)
        elif states in self.points:
            outputs, self.found[states] = self._recur(operation, args, kwargs, states)
        else:
            outputs = operation(*args, **kwargs)
        return outputs

    def _attend(self, layer: Any, args: Sequence[Any], kwargs: Mapping[str, Any], point: Point) -> tuple[Any, Any]:
        if not isinstance(layer, keras.layers.MultiHeadAttention):
            raise self._refuse(point, "has no attention scores", layer, "name a MultiHeadAttention layer")
        if layer._flash_attention:  # noqa: SLF001
            fix = "build the model with flash_attention=False"
            raise self._refuse(point, "never has its attention scores in memory (flash attention)", layer, fix)
        outputs, scores = _Scored(layer)(*args, **kwargs)
        return (outputs, scores) if kwargs.get("return_attention_scores") else outputs, scores

    def _recur(self, layer: Any, args: Sequence[Any], kwargs: Mapping[str, Any], point: Point) -> tuple[Any, Any]:
        fix = "name a GRU, LSTM or SimpleRNN, or any layer whose output is a sequence"
        recurrent = isinstance(layer, keras.layers.RNN)
        if recurrent and not layer.return_sequences and not layer.return_state:
            if layer.stateful or layer.activity_regularizer is not None:
                why = "is stateful" if layer.stateful else "has an activity regularizer"
                what, fix = (
                    f"{why}, and returns its last state only",
                    "let it return sequences; take the last step behind it",
                )
                raise self._refuse(point, what, layer, fix)
            # The last state of a sequence is what the layer would have returned, also with a mask: steps that are
            # masked repeat the state before them.
            sequence = _with_sequences(layer)(*args, **kwargs)
            return sequence[:, -1], sequence
        outputs = layer(*args, **kwargs)
        first = keras.tree.flatten(outputs)[0]
        if not getattr(layer, "return_sequences", not recurrent) or len(first.shape) < _SEQUENCE:
            raise self._refuse(point, "does not return its hidden states as a sequence", layer, fix)
        return outputs, first

    def _single(self, outputs: Any, point: Point) -> Any:
        flat = keras.tree.flatten(outputs)
        if len(flat) != 1:
            raise self._refuse(point, f"has {len(flat)} outputs", None, "name a layer with one output")
        return flat[0]

    def _refuse(self, point: Point, what: str, layer: Any, fix: str) -> UsageError:
        received = {} if layer is None else {"received": type(layer).__name__}
        return UsageError(f"a layer of the {self.who} {what}", where=f"layer {point.layer!r}", fix=fix, **received)


class _Scored(keras.Operation):  # type: ignore[misc]
    """Calls a MultiHeadAttention so that it returns its scores, too.

    It stands for a call of its own in the graph: of a layer Keras only connects as many outputs as its first call had.
    What comes out at steps that a mask leaves out may differ from a call without scores, which takes another kernel.
    """

    def __init__(self, attention: Any) -> None:
        super().__init__(name=f"{attention.name}_scored")
        self._attention = attention

    def call(self, *args: Any, **kwargs: Any) -> Any:
        return self._attention(*args, **{**kwargs, "return_attention_scores": True})


def _with_sequences(layer: Any) -> Any:
    """Returns a recurrent layer that gives its state after each step, with the cell of `layer`, so its weights."""
    own = {"return_sequences": True, "name": f"{layer.name}_sequence", "dtype": layer.dtype_policy}
    if type(layer) is keras.layers.RNN:  # whose configuration holds a cell that Keras may not know
        loop = ("go_backwards", "unroll", "zero_output_for_mask")
        return keras.layers.RNN(layer.cell, **{name: getattr(layer, name) for name in loop}, **own)
    twin = type(layer).from_config({**layer.get_config(), **own})
    del twin.cell
    twin.cell = layer.cell
    return twin
