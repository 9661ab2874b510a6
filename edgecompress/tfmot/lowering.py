"""Writes a Keras 3 model as a graph of primitives, in which every intermediate result can get a scale.

A Keras layer may become several TensorFlow Lite operators (LayerNormalization becomes seven). Quantization-aware
training of the layer as a whole would leave the results between them in float; here each is a node of its own. Nested
models are written in their place, and calls of one layer share its weights.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgecompress.data import Array, InputSpec
from edgecompress.functional import functional_graph
from edgecompress.tfmot.flat_graph import Call, FlatGraph, Ref, flatten_graph
from edgecompress.tfmot.primitives import apply

# Layers that change nothing in inference; in training they are left out, too.
_PASSED_OVER = frozenset(
    {
        "ActivityRegularization", "AlphaDropout", "Dropout", "GaussianDropout", "GaussianNoise", "Identity",
        "RandomBrightness", "RandomContrast", "RandomFlip", "RandomRotation", "RandomTranslation", "RandomZoom",
        "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D", "StochasticDepth", "ops.StopGradient",
    }
)  # fmt: skip
_KNOWN_HOMES = ("keras", "edgecompress")  # where the classes are from that rules are for
_WITHOUT_MASKS = (
    "build the model without the mask, give it these weights, and pad at the front; or convert without --qat, which "
    "keeps masks"
)
_TAKE_INTEGERS = frozenset({"cast", "embedding", "float", "move", "reshape"})
_USE_OTHERWISE = "name it in the exclude of [[passes]] kind = 'qat', which leaves it in float, or convert without --qat"

Rule = Callable[..., Any]
RULES: dict[str, Rule] = {}


@dataclass(eq=False)
class Node:
    """A primitive in the graph.

    Attributes:
        kind: Its name among the primitives, or 'float' for a layer that is called whole and not quantized.
        inputs: The nodes whose results it takes.
        settings: Keyword arguments of the primitive.
        weights: Initial values of its weights.
        layer: The Keras layer that it is part of; 'outer/inner' inside a nested model.
        key: Nodes with the same key are calls of one layer, and share their weights.
        tensor: Its symbolic result, batch first; a list of several if it is 'recurrent'.
        trainable: Whether its weights are trained; constants never are.
        clusters: The number of the cluster that each weight of its kernel is in, if they are to stay together.
        factors: What folding has multiplied the kernel with, in a shape that broadcasts to it.
        ranges: Of the results inside of a recurrent layer, by name, once they were observed.
    """

    kind: str
    inputs: tuple[Node, ...]
    settings: dict[str, Any]
    weights: dict[str, Array]
    layer: str
    key: object
    tensor: Any = field(repr=False)
    trainable: bool = True
    clusters: Array | None = None
    factors: Array | None = None
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return tuple(self.tensor.shape[1:])

    @property
    def is_integer(self) -> bool:
        """Whether it holds numbers, such as tokens, that have no scale."""
        return self.kind != "recurrent" and not self.tensor.dtype.is_floating


@dataclass(frozen=True)
class Refusal:
    """A layer that cannot be quantized, and why."""

    layer: str
    kind: str
    reason: str
    fix: str


@dataclass(frozen=True)
class Lowered:
    """A model in primitives.

    Attributes:
        inputs: The nodes of its inputs, in order.
        outputs: The nodes of its outputs, in order.
        nodes: All nodes, each after those that it takes.
        layers: (name, class, excluded) of every layer and operation that was met, in order.
        refusals: The layers that cannot be quantized and were not excluded.
    """

    inputs: tuple[Node, ...]
    outputs: tuple[Node, ...]
    nodes: tuple[Node, ...]
    layers: tuple[tuple[str, str, bool], ...]
    refusals: tuple[Refusal, ...]


class UnsupportedError(Exception):
    """Says why a layer cannot be written in primitives, and in `fix` what to do, where that is known."""

    def __init__(self, reason: str, fix: str = _USE_OTHERWISE) -> None:
        super().__init__(reason)
        self.fix = fix


def masked(option: str | None = None) -> UnsupportedError:
    """Returns the refusal of what makes or takes a mask, with the option that asks for it, if one does."""
    reason = "masks have no place in a network that is trained quantized"
    return UnsupportedError(reason if option is None else f"{option}: {reason}", _WITHOUT_MASKS)


def rule(*kinds: str) -> Callable[[Rule], Rule]:
    """Registers how layers of these classes of Keras or ours are written; `ops.NAME` for operations of `keras.ops`."""

    def register(function: Rule) -> Rule:
        for kind in kinds:
            if kind in RULES:
                raise ValueError(f"there is a rule for {kind!r} already")
            RULES[kind] = function
        return function

    return register


def lower(model: Any, fixed: Sequence[InputSpec], exclude: Iterable[str] = ()) -> Lowered:
    """Writes a Keras 3 functional or Sequential model in primitives.

    Args:
        model: The model; it is not changed.
        fixed: Its inputs with every dimension but the batch known.
        exclude: Regular expressions over layer names: these stay in float.
    """
    from edgecompress.tfmot import operation_rules, recurrent_rules, rules  # noqa: F401 (they register themselves)

    return Lowering(tuple(exclude)).run(model, fixed)


class Lowering:
    """What rules write into."""

    def __init__(self, exclude: tuple[str, ...]) -> None:
        import tensorflow as tf

        self._scratch = tf.__internal__.FuncGraph("lowering")
        self._exclude = exclude
        self._nodes: list[Node] = []
        self._layers: dict[str, tuple[str, str, bool]] = {}
        self._refusals: dict[str, Refusal] = {}
        self._name = ""
        self._owner: object = None
        self._count = 0
        self._trainable = True

    def run(self, model: Any, fixed: Sequence[InputSpec]) -> Lowered:
        """Writes a whole model."""
        import tensorflow as tf

        inputs = []
        for spec in fixed:
            with self._scratch.as_default():
                tensor = tf.compat.v1.placeholder(spec.dtype, (None, *spec.sample_shape))
            settings = {"shape": spec.sample_shape}
            inputs.append(self._append(Node("input", (), settings, {}, spec.name, (spec.name,), tensor)))
        outputs = self._write_calls(flatten_graph(functional_graph(model)), inputs)
        self._refuse_shared_tables()
        return Lowered(
            tuple(inputs), tuple(outputs), tuple(self._nodes), tuple(self._layers.values()),
            tuple(self._refusals.values()),
        )  # fmt: skip

    def add(self, kind: str, *inputs: Node, weights: dict[str, Any] | None = None, **settings: Any) -> Node:
        """Adds a primitive of the layer that is being written, and returns it."""
        import numpy as np

        values = {name: np.asarray(value, np.float32) for name, value in (weights or {}).items() if value is not None}
        if not all(isinstance(node, Node) for node in inputs):
            raise UnsupportedError("it takes a constant where it usually takes a tensor")
        if kind not in _TAKE_INTEGERS:
            inputs = tuple(self.add("cast", node) if node.is_integer else node for node in inputs)
        self._count += 1
        tensor = self._evaluate(kind, inputs, values, settings)
        key = (self._owner, self._count)
        return self._append(Node(kind, inputs, settings, values, self._name, key, tensor, self._trainable))

    def _append(self, node: Node) -> Node:
        self._nodes.append(node)
        return node

    def _evaluate(self, kind: str, inputs: Sequence[Node], values: dict[str, Array], settings: dict[str, Any]) -> Any:
        import tensorflow as tf

        with self._scratch.as_default():
            weights = {name: tf.compat.v1.placeholder(tf.float32, value.shape) for name, value in values.items()}
            tensors = [node.tensor for node in inputs]
            if kind == "float":
                return settings["function"](*tensors)
            return apply(kind, tensors, weights, settings)

    def _refuse_shared_tables(self) -> None:
        """The converter leaves a table that several lookups share in float."""
        looked_up = Counter(node.key for node in self._nodes if node.kind == "embedding")
        for node in self._nodes:
            if node.kind == "embedding" and looked_up[node.key] > 1:
                reason = "an embedding that is called more than once"
                self._refusals[node.layer] = Refusal(node.layer, "Embedding", reason, _USE_OTHERWISE)

    def _write_calls(self, graph: FlatGraph, inputs: Sequence[Node]) -> list[Node]:
        import keras

        values: dict[Ref, Node] = dict(zip(graph.inputs, inputs, strict=True))
        for call in graph.calls:
            args, kwargs = keras.tree.map_structure(
                lambda leaf: values[leaf] if isinstance(leaf, Ref) else leaf, (call.args, call.kwargs)
            )
            values.update(zip(call.outputs, self._write_call(call, args, kwargs), strict=True))
        return [values[ref] for ref in graph.outputs]

    def _write_call(self, call: Call, args: Any, kwargs: Any) -> list[Node]:
        """Writes one call of a layer or operation; returns the nodes of its outputs."""
        operation, name = call.operation, call.name
        self._name, self._owner, self._count = name, id(operation), 0
        self._trainable = bool(getattr(operation, "trainable", True))
        excluded = any(re.match(pattern, name) for pattern in self._exclude)
        self._layers.setdefault(name, (name, type(operation).__name__, excluded))
        if not excluded:
            before = len(self._nodes)
            try:
                return _flat(self.write(operation, *args, **kwargs))
            except UnsupportedError as reason:
                del self._nodes[before:]
                self._refusals[name] = Refusal(name, type(operation).__name__, str(reason), reason.fix)
        return self._call_whole(operation, args, kwargs)

    def write(self, operation: Any, *args: Any, **kwargs: Any) -> Any:
        """Writes a call of a layer or operation as part of the one that is being written.

        Raises:
            UnsupportedError: There is no rule for it, or it does what its rule does not know.
        """
        import keras

        if not args and "inputs" in kwargs:
            args = (kwargs.pop("inputs"),)
        if kwargs.get("mask") is not None:
            raise masked()
        prefix = "" if isinstance(operation, keras.Layer) else "ops."
        for base in type(operation).__mro__:
            kind, home = f"{prefix}{base.__name__}", base.__module__.split(".")[0]
            if home in _KNOWN_HOMES:
                if kind in _PASSED_OVER:
                    return args[0]
                if kind in RULES:
                    return RULES[kind](self, operation, *args, **kwargs)
            if home != "keras" and "call" in base.__dict__:
                break  # its own call: what it does is not known
        raise UnsupportedError(f"nothing is known of how {type(operation).__name__} computes")

    def write_inner(self, layer: Any, x: Node) -> Any:
        """Writes the layer or model inside a wrapper such as TimeDistributed."""
        graph = functional_graph(layer)
        if graph is None:
            return self.write(layer, x)
        outer = self._name, self._owner, self._count, self._trainable
        (result,) = self._write_calls(flatten_graph(graph), [x])
        self._name, self._owner, self._count, self._trainable = outer
        return result

    def _call_whole(self, operation: Any, args: Any, kwargs: Any) -> list[Node]:
        """Adds a layer as it is: in float, with the weights it has."""
        import keras

        nodes = _nodes_in((args, kwargs))
        is_layer = isinstance(operation, keras.Layer)
        training = {"training": False} if is_layer and operation._call_has_training_arg else {}  # noqa: SLF001

        def call(*tensors: Any) -> Any:
            waiting = iter(tensors)
            filled = keras.tree.map_structure(lambda x: next(waiting) if isinstance(x, Node) else x, (args, kwargs))
            return operation(*filled[0], **{**filled[1], **training})

        result = self.add("float", *nodes, function=call)
        outputs = result.tensor if isinstance(result.tensor, (list, tuple)) else [result.tensor]
        if len(outputs) == 1:
            return [result]
        self._nodes.pop()
        return [
            self.add("float", *nodes, function=lambda *tensors, index=index: call(*tensors)[index])
            for index in range(len(outputs))
        ]


def _nodes_in(structure: Any) -> list[Node]:
    import keras

    return [item for item in keras.tree.flatten(structure) if isinstance(item, Node)]


def _flat(result: Any) -> list[Node]:
    return list(result) if isinstance(result, (list, tuple)) else [result]
