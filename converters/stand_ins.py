"""Stand-ins for layers while a model is traced.

Recurrent layers are replaced by whatever a caller wants to have in their place; some others by themselves in a form
that small runtimes take.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edgecompress.errors import ConversionError
from edgecompress.loaded import LoadedModel
from edgecompress.recurrent.reading import is_bidirectional, is_recurrent

_SEQUENCES = 3  # dimensions: (samples, steps, features)


@dataclass(frozen=True)
class RecurrentCall:
    """A call of a recurrent layer: its sequence, the states that it begins with, and which steps count, or None."""

    layer: Any
    x: Any
    states: Sequence[Any]
    mask: Any
    in_order: bool = False


@dataclass(frozen=True)
class Handlers:
    """What is done in the place of layers.

    Attributes:
        recurrent: Takes a call of a recurrent layer; returns its output and, with return_state, its last states.
        masking: Takes a sequence and the number that all features are where it is empty; returns which steps count,
            bool (samples, steps). Called once, however often a model looks for the same.
    """

    recurrent: Callable[[RecurrentCall], Sequence[Any]]
    masking: Callable[[Any, float], Any]


def refused(layer: Any, reason: str, fix: str) -> ConversionError:
    """Returns the error for a recurrent layer of which no integer operators can be made."""
    return ConversionError(
        f"recurrent layer {layer.name!r} ({type(layer).__name__}) has no integer form: {reason}", fix=fix
    )


@contextlib.contextmanager
def replaced(model: LoadedModel, handlers: Handlers) -> Iterator[None]:
    """Has the handlers called in place of each recurrent layer and of what finds masks in numbers.

    TimeDistributed, which calls its layer once for each step, calls it on all steps at once. Embedding does not look
    for negative numbers, which it would count from the end of its table: small runtimes lack what that takes.
    """
    layers = model.model._flatten_layers()  # noqa: SLF001
    nodes = {id(node): node for layer in layers for node in (layer, *_operations(layer))}.values()
    wrappers = [node for node in nodes if is_bidirectional(node)]
    inner = {id(each) for layer in wrappers for each in (layer.forward_layer, layer.backward_layer)}
    refusals: list[ConversionError] = []
    handlers = replace(handlers, masking=_once(handlers.masking))
    calls = {
        node: _noting(refusals, call)
        for node in nodes
        if id(node) not in inner and (call := _instead_of(node, handlers)) is not None
    }
    for layer, call in calls.items():
        object.__setattr__(layer, "call", call)
    try:
        yield
    except Exception:
        if refusals:  # Keras writes the arguments of the call into the message
            raise refusals[0] from None
        raise
    finally:
        for layer in calls:
            object.__delattr__(layer, "call")


def _operations(layer: Any) -> Sequence[Any]:
    """Returns what a functional model of Keras 3 consists of: layers, and operations that are none."""
    functional = getattr(layer, "_functional", None) or layer  # a Sequential has one inside
    operations: Sequence[Any] = getattr(functional, "operations", ())
    return operations


def _once(masking: Callable[[Any, float], Any]) -> Callable[[Any, float], Any]:
    known: dict[tuple[str, float], Any] = {}

    def call(x: Any, value: float) -> Any:
        key = x.name, value
        if key not in known:
            known[key] = masking(x, value)
        return known[key]

    return call


def _noting(refusals: list[ConversionError], call: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a call whose refusals are noted, and which TensorFlow traces as it is."""
    import tensorflow as tf

    def noting(*args: Any, **options: Any) -> Any:
        try:
            return call(*args, **options)
        except ConversionError as error:
            refusals.append(error)
            raise

    unconverted: Callable[..., Any] = tf.autograph.experimental.do_not_convert(noting)
    return unconverted


def _instead_of(layer: Any, handlers: Handlers) -> Callable[..., Any] | None:
    """Returns what is called instead of a layer, or None if it stays."""
    if is_bidirectional(layer):
        return _stand_in(layer, _answer_bidirectional, handlers)
    if is_recurrent(layer):
        return _stand_in(layer, _answer, handlers)
    kind, home = type(layer).__name__, type(layer).__module__.split(".")[0]
    if home not in ("keras", "tf_keras"):
        return None
    if kind == "Masking" and np.ndim(layer.mask_value) == 0:
        return _mask(layer, handlers)
    if kind == "Any":
        return _any(layer, handlers)
    others = {"TimeDistributed": _on_all_steps, "Embedding": _look_up}
    return others[kind](layer) if kind in others else None


def _on_all_steps(layer: Any) -> Callable[..., Any]:
    import tensorflow as tf

    def call(inputs: Any, training: Any = None, mask: Any = None) -> Any:  # noqa: ARG001 (as Keras calls it)
        outer = tf.shape(inputs)[:2] if None in inputs.shape[:2] else inputs.shape[:2]
        result = layer.layer(tf.reshape(inputs, (-1, *inputs.shape[2:])))
        return tf.reshape(result, (*(outer[0], outer[1]), *result.shape[1:]))

    return call


def _look_up(layer: Any) -> Callable[..., Any]:
    import tensorflow as tf

    def call(inputs: Any) -> Any:
        return tf.gather(tf.convert_to_tensor(layer.embeddings), tf.cast(inputs, tf.int32))

    return call


def _mask(layer: Any, handlers: Handlers) -> Callable[..., Any]:
    import tensorflow as tf

    original = type(layer).call.__get__(layer)

    def call(inputs: Any) -> Any:
        if inputs.shape.rank != _SEQUENCES:
            return original(inputs)
        mask = handlers.masking(inputs, float(layer.mask_value))
        result = tf.where(tf.expand_dims(mask, -1), inputs, tf.zeros((), inputs.dtype))
        result._keras_mask = mask  # noqa: SLF001 (as the layer does)
        return result

    return call


def _any(operation: Any, handlers: Handlers) -> Callable[..., Any]:
    """Keras 3 has the mask of a Masking layer computed by operations of the model, too: any(x != value)."""
    import tensorflow as tf

    original = type(operation).call.__get__(operation)

    def call(x: Any) -> Any:
        if x.op.type == "NotEqual" and x.shape.rank == _SEQUENCES and operation.axis == [-1] and not operation.keepdims:
            numbers, value = x.op.inputs[0], tf.get_static_value(x.op.inputs[1])
            if value is not None and np.ndim(value) == 0:
                return handlers.masking(numbers, float(value))
        return original(x)

    return call


def _stand_in(layer: Any, answer: Callable[..., Any], handlers: Handlers) -> Callable[..., Any]:
    def call(sequences: Any, initial_state: Any = None, mask: Any = None, **_options: Any) -> Any:
        return answer(handlers, _arguments(layer, sequences, initial_state, mask))

    return call


def _answer(handlers: Handlers, made: RecurrentCall) -> Any:
    results = list(handlers.recurrent(made))
    return results if made.layer.return_state else results[0]


def _answer_bidirectional(handlers: Handlers, made: RecurrentCall) -> Any:
    layer, half = made.layer, len(made.states) // 2
    if layer.forward_layer.go_backwards:
        raise refused(layer, "its forward layer reads backwards", "exchange its layers")
    forward, backward = (
        list(handlers.recurrent(RecurrentCall(each, made.x, states, made.mask, in_order)))
        for each, states, in_order in (
            (layer.forward_layer, made.states[:half], False),
            (layer.backward_layer, made.states[half:], bool(layer.return_sequences)),
        )
    )
    merged = _merge(layer, forward[0], backward[0])
    if not layer.return_state:
        return merged
    outputs = list(merged) if isinstance(merged, (list, tuple)) else [merged]
    return [*outputs, *forward[1:], *backward[1:]]


def _merge(layer: Any, forward: Any, backward: Any) -> Any:
    import tensorflow as tf

    if layer.merge_mode is None:
        return [forward, backward]
    if layer.merge_mode == "concat":
        return tf.concat([forward, backward], -1)
    if layer.merge_mode == "mul":
        return forward * backward
    return (forward + backward) / (2.0 if layer.merge_mode == "ave" else 1.0)


def _arguments(layer: Any, sequences: Any, initial_state: Any, mask: Any) -> RecurrentCall:
    """Returns what a layer is called with, however it is given it."""
    mask = mask[0] if isinstance(mask, (list, tuple)) else mask  # the others are those of the states
    if isinstance(sequences, (list, tuple)):
        sequences, *given = sequences
        initial_state = given or initial_state
    states = initial_state if isinstance(initial_state, (list, tuple)) else [initial_state]
    return RecurrentCall(layer, sequences, [each for each in states if each is not None], mask)
