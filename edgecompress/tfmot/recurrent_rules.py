"""How recurrent layers are written: each as one node that holds its cell, with one more for each of its results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgecompress.recurrent.reading import UnsupportedLayerError, read_recurrent
from edgecompress.tfmot.lowering import Lowering, Node, UnsupportedError, rule
from edgecompress.tfmot.products import arithmetic, join
from edgecompress.tfmot.recurrent import initial_weights

_SEQUENCE_AXES = 2  # steps, features


@rule("RNN")
def _rnn(low: Lowering, layer: Any, x: Node, initial_state: Any = None) -> list[Node]:
    return _write(low, layer, x, _list(initial_state))


@rule("Bidirectional")
def _bidirectional(low: Lowering, layer: Any, x: Node, initial_state: Any = None) -> list[Node]:
    """Schuster and Paliwal 1997: one layer reads the sequence from its beginning, one from its end."""
    if layer.forward_layer.go_backwards:
        raise UnsupportedError("its forward layer goes backwards")
    given = _list(initial_state)
    half = len(given) // 2
    forward, *states = _write(low, layer.forward_layer, x, given[:half])
    backward, *more = _write(low, layer.backward_layer, x, given[half:], in_order=layer.return_sequences)
    return [*_merge(low, layer.merge_mode, forward, backward), *states, *more]


def _write(low: Lowering, layer: Any, x: Node, states: Sequence[Node], *, in_order: bool = False) -> list[Node]:
    if len(x.shape) != _SEQUENCE_AXES:
        raise UnsupportedError("it reads something else than a sequence (steps, features)")
    try:
        read = read_recurrent(layer, in_order=in_order)
    except UnsupportedLayerError as error:
        raise UnsupportedError(str(error), error.fix) from None
    node = low.add("recurrent", x, *states, weights=initial_weights(read), layer=read)
    # The output is the first state, after each step or after the last.
    of_states = [read.states[0], *(read.states if read.return_state else ())]
    return [low.add("output", node, index=index, state=state) for index, state in enumerate(of_states)]


def _merge(low: Lowering, mode: str | None, forward: Node, backward: Node) -> list[Node]:
    if mode is None:
        return [forward, backward]
    if mode == "concat":
        return [join(low, [forward, backward], -1)]
    if mode == "mul":
        return [low.add("multiply", forward, backward)]
    total = low.add("add", forward, backward)
    return [arithmetic(low, "multiply", total, 0.5) if mode == "ave" else total]


def _list(states: Any) -> list[Any]:
    if states is None:
        return []
    return list(states) if isinstance(states, (list, tuple)) else [states]
