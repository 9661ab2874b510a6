"""What one step of a GRU, an LSTM or a SimpleRNN computes, in operations that integer kernels have.

Each cell is written once, for whoever carries out the operations: in float (to observe ranges), with rounding
simulated (to train), or by adding operators to a .tflite file. All of them therefore round in the same places.

Gates that share an activation are stacked, so that one operator serves them. What does not depend on the state is
left to `project`, which can compute it for all steps at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from edgecompress.data import Array

T = TypeVar("T")


@dataclass(frozen=True)
class Matrix:
    """A kernel, or a factor of one.

    Attributes:
        values: (rows, columns); a product with it has `columns` values.
        bias: (columns,), or None.
        per_channel: Whether a scale for each column pays, where the device takes them.
    """

    values: Array
    bias: Array | None = None
    per_channel: bool = False


@dataclass(frozen=True)
class RecurrentLayer:
    """A recurrent layer, free of any framework.

    Attributes:
        name: What errors and tensors call it.
        kind: "gru", "lstm" or "simple_rnn".
        units: Size of each state.
        features: Size of an input.
        matrices: Its kernels, or their factors, by name; cut and stacked as the cell uses them.
        products: For each product of the cell, by the name of its result: chains of matrices to multiply with in turn,
            whose results are joined. No chain at all: the inputs are multiplied already, and cut.
        offsets: What is added to inputs that are multiplied already, by the name of the result.
        activation: "tanh", "sigmoid", "relu", "linear" or "hard_sigmoid".
        recurrent_activation: The same, of the gates.
        reset_after: Of a GRU: the reset gate is applied after the recurrent product (Keras's default), not before.
        go_backwards: It reads the last step first.
        return_sequences: It gives the state of each step.
        return_state: It gives its last states, too.
        zero_masked: Where a mask says that a step does not count, its sequence has zeros, not what it had before.
        in_order: Its sequence is in the order of the inputs even if it goes backwards, as Bidirectional has it.
    """

    name: str
    kind: str
    units: int
    features: int
    matrices: Mapping[str, Matrix] = field(repr=False)
    products: Mapping[str, tuple[tuple[str, ...], ...]] = field(repr=False)
    offsets: Mapping[str, Array] = field(default_factory=dict, repr=False)
    activation: str = "tanh"
    recurrent_activation: str = "sigmoid"
    reset_after: bool = True
    go_backwards: bool = False
    return_sequences: bool = False
    return_state: bool = False
    zero_masked: bool = False
    in_order: bool = False

    @property
    def states(self) -> tuple[str, ...]:
        """Names of the states' scales, which are those of the results that become the states, too."""
        return ("state_0", "state_1") if self.kind == "lstm" else ("state_0",)

    @property
    def projections(self) -> Mapping[str, int]:
        """The results of `project`, and the columns of each."""
        return {name: len(gates) * self.units for name, gates in _PROJECTIONS[self.kind].items()}


class Operations(Protocol[T]):
    """Carries out the operations of a cell. `name` is that of a result, and of its scale."""

    def dense(self, name: str, x: T, matrix: str) -> T:
        """Multiplies with one of the layer's matrices, and adds its bias."""

    def shift(self, name: str, x: T, offset: str) -> T:
        """Adds one of the layer's offsets."""

    def add(self, name: str, a: T, b: T) -> T:
        """Adds."""

    def subtract(self, name: str, a: T, b: T) -> T:
        """Subtracts b from a."""

    def multiply(self, name: str, a: T, b: T) -> T:
        """Multiplies element by element."""

    def activate(self, name: str, x: T, kind: str) -> T:
        """Applies "tanh", "sigmoid", "relu", or "clip", which limits to [0, 1]."""

    def split(self, x: T, count: int) -> Sequence[T]:
        """Cuts the last axis into equal parts, which keep the scale."""

    def join(self, name: str, parts: Sequence[T]) -> T:
        """Joins along the last axis results that all have this name."""


def project(layer: RecurrentLayer, ops: Operations[T], x: T) -> tuple[T, ...]:
    """Returns what the input kernel makes of inputs (steps, features), for one step or for many."""
    sizes = layer.projections
    if any(layer.products[name] for name in sizes):
        known: dict[str, T] = {}
        return tuple(_multiply(layer, ops, name, x, known) for name in sizes)
    gates = ops.split(x, sum(map(len, _PROJECTIONS[layer.kind].values())))
    return tuple(_take(layer, ops, name, gates) for name in sizes)


def _take(layer: RecurrentLayer, ops: Operations[T], name: str, gates: Sequence[T]) -> T:
    """Returns one of the projections out of inputs that are multiplied already, and lie as in Keras's kernels."""
    own = [gates[place] for place in _PROJECTIONS[layer.kind][name]]
    joined = own[0] if len(own) == 1 else ops.join(name, own)
    return ops.shift(name, joined, name) if name in layer.offsets else joined


def step(layer: RecurrentLayer, ops: Operations[T], projected: Sequence[T], states: Sequence[T]) -> tuple[T, ...]:
    """Returns the new states, of which the first is the output; shapes are (1, …)."""
    return _STEPS[layer.kind](layer, ops, projected, states)


def _gru(layer: RecurrentLayer, ops: Operations[T], projected: Sequence[T], states: Sequence[T]) -> tuple[T, ...]:
    """Cho et al. 2014 (arXiv:1406.1078); h' = c + z * (h - c) is z * h + (1 - z) * c with an operation less."""
    (old,), (x_gates, x_candidate), known = states, projected, dict[str, T]()
    total = ops.add("gates_sum", x_gates, _multiply(layer, ops, "h_gates", old, known))
    update, reset = ops.split(_activate(ops, "gates", total, layer.recurrent_activation), 2)
    if layer.reset_after:
        recurrent = ops.multiply("h_reset", reset, _multiply(layer, ops, "h_candidate", old, known))
    else:
        recurrent = _multiply(layer, ops, "h_candidate", ops.multiply("h_reset", reset, old), {})
    candidate = _activate(ops, "candidate", ops.add("candidate_sum", x_candidate, recurrent), layer.activation)
    kept = ops.multiply("update", update, ops.subtract("difference", old, candidate))
    return (ops.add("state_0", candidate, kept),)


def _lstm(layer: RecurrentLayer, ops: Operations[T], projected: Sequence[T], states: Sequence[T]) -> tuple[T, ...]:
    """Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000."""
    (old, carry), (x_gates, x_candidate), known = states, projected, dict[str, T]()
    total = ops.add("gates_sum", x_gates, _multiply(layer, ops, "h_gates", old, known))
    admit, forget, give = ops.split(_activate(ops, "gates", total, layer.recurrent_activation), 3)
    total = ops.add("candidate_sum", x_candidate, _multiply(layer, ops, "h_candidate", old, known))
    candidate = _activate(ops, "candidate", total, layer.activation)
    kept, new = ops.multiply("kept", forget, carry), ops.multiply("new", admit, candidate)
    carry = ops.add("state_1", kept, new)
    return ops.multiply("state_0", give, _activate(ops, "carry", carry, layer.activation)), carry


def _simple(layer: RecurrentLayer, ops: Operations[T], projected: Sequence[T], states: Sequence[T]) -> tuple[T, ...]:
    """Elman 1990."""
    name = "state_0" if layer.activation == "linear" else "sum"
    total = ops.add(name, projected[0], _multiply(layer, ops, "h_state", states[0], {}))
    return (_activate(ops, "state_0", total, layer.activation),)


def _multiply(layer: RecurrentLayer, ops: Operations[T], name: str, x: T, known: dict[str, T]) -> T:
    """Multiplies with the chains of matrices that give `name`; `known` holds the results of factors that others had."""
    parts = []
    for *factors, last in layer.products[name]:
        value = x
        for factor in factors:
            if factor not in known:
                known[factor] = ops.dense(factor, value, factor)
            value = known[factor]
        parts.append(ops.dense(name, value, last))
    return parts[0] if len(parts) == 1 else ops.join(name, parts)


def _activate(ops: Operations[T], name: str, x: T, kind: str) -> T:
    # The slope and the offset of hard_sigmoid are in the kernels and biases, so that limits are all that is left of it.
    return x if kind == "linear" else ops.activate(name, x, "clip" if kind == "hard_sigmoid" else kind)


_STEPS = {"gru": _gru, "lstm": _lstm, "simple_rnn": _simple}
# The gates that each result of `project` consists of, by their places in Keras's kernels.
_PROJECTIONS: dict[str, dict[str, tuple[int, ...]]] = {
    "gru": {"x_gates": (0, 1), "x_candidate": (2,)},
    "lstm": {"x_gates": (0, 1, 3), "x_candidate": (2,)},
    "simple_rnn": {"x_state": (0,)},
}
