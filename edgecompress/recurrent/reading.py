"""Reads recurrent layers of Keras 3, tf_keras and this project into `RecurrentLayer`s."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from edgecompress.data import Array
from edgecompress.recurrent.cells import Matrix, RecurrentLayer

_KINDS = {
    "GRUCell": "gru", "LSTMCell": "lstm", "SimpleRNNCell": "simple_rnn", "LowRankGRUCell": "gru",
    "LowRankLSTMCell": "lstm",
}  # fmt: skip
_KNOWN_HOMES = ("keras", "tf_keras", "edgecompress")
# For each product of the inputs or of the state: its gates, in the order in which they are stacked, by their place in
# Keras's kernels.
_GATES: dict[str, dict[str, tuple[int, ...]]] = {
    "gru": {"gates": (0, 1), "candidate": (2,)},
    "lstm": {"gates": (0, 1, 3), "candidate": (2,)},
    "simple_rnn": {"state": (0,)},
}
_ACTIVATIONS = ("tanh", "sigmoid", "relu", "linear")
# hard_sigmoid limits slope * x + 1/2 to [0, 1]; Keras 3 changed its slope.
_LARGEST = 8  # times the typical weight, which has 127 / 8 steps then
_HARD_SIGMOID_SLOPES = {"keras": 1 / 6, "tf_keras": 0.2}


class UnsupportedLayerError(Exception):
    """Says why a recurrent layer has no integer form, and in `fix` what to do instead."""

    def __init__(self, reason: str, fix: str) -> None:
        super().__init__(reason)
        self.fix = fix


def is_recurrent(layer: Any) -> bool:
    """Returns whether a layer runs a loop over steps itself; a Bidirectional has two that do."""
    return hasattr(layer, "recurrent_layer") or any(base.__name__ == "RNN" for base in type(layer).__mro__)


def is_bidirectional(layer: Any) -> bool:
    """Returns whether a layer is Keras's wrapper around two recurrent ones."""
    return any(base.__name__ == "Bidirectional" for base in type(layer).__mro__)


def read_recurrent(layer: Any, *, in_order: bool = False) -> RecurrentLayer:
    """Reads a built layer.

    Args:
        layer: A GRU, LSTM or SimpleRNN of Keras 3 or tf_keras (or an RNN of their cells), a LowRankGRU or LowRankLSTM,
            or a layer that has its `recurrent_layer` ready.
        in_order: See `RecurrentLayer`.

    Raises:
        UnsupportedLayerError: Its cell, an activation or an option has no integer form.
    """
    ready: RecurrentLayer | None = getattr(layer, "recurrent_layer", None)
    if ready is not None:
        return ready
    cell = layer.cell
    kind = _kind(cell)
    if getattr(layer, "stateful", False):
        raise UnsupportedLayerError(
            "it is stateful, and would have to remember its state from run to run",
            "build it with stateful=False and give it the weights of this one",
        )
    activation = _activation(cell, "activation", _ACTIVATIONS)
    of_gates = "linear" if kind == "simple_rnn" else _activation(
        cell, "recurrent_activation", (*_ACTIVATIONS, "hard_sigmoid")
    )  # fmt: skip
    kernels = _Kernels(kind, cell, hard_sigmoid=of_gates == "hard_sigmoid")
    return RecurrentLayer(
        name=layer.name, kind=kind, units=kernels.units, features=kernels.features, matrices=kernels.matrices,
        products=kernels.products, offsets=kernels.offsets, activation=activation, recurrent_activation=of_gates,
        reset_after=kernels.reset_after, go_backwards=bool(layer.go_backwards),
        return_sequences=bool(layer.return_sequences), return_state=bool(layer.return_state),
        zero_masked=bool(getattr(layer, "zero_output_for_mask", False)), in_order=in_order,
    )  # fmt: skip


def _kind(cell: Any) -> str:
    name, home = type(cell).__name__, type(cell).__module__.split(".")[0]
    if name not in _KINDS or home not in _KNOWN_HOMES:
        raise UnsupportedLayerError(
            f"nothing is known of how its cell {name} computes",
            "use GRU, LSTM, SimpleRNN, LowRankGRU or LowRankLSTM, or --scheme dynamic with a profile that takes it",
        )
    return _KINDS[name]


def _activation(cell: Any, option: str, known: Sequence[str]) -> str:
    function = getattr(cell, option)
    name, home = getattr(function, "__name__", str(function)), getattr(function, "__module__", "").split(".")[0]
    if name not in known or home not in _KNOWN_HOMES:
        raise UnsupportedLayerError(
            f"its {option} {name} has no integer kernel here", f"use one of {', '.join(known)}, or --scheme dynamic"
        )
    return str(name)


class _Kernels:
    """Cuts and stacks the kernels of a cell."""

    def __init__(self, kind: str, cell: Any, *, hard_sigmoid: bool) -> None:
        self._cell, self._gates = cell, _GATES[kind]
        self._count = sum(len(gates) for gates in self._gates.values())
        self.units = int(cell.units)
        self.reset_after = kind == "gru" and bool(getattr(cell, "reset_after", False))
        self.matrices: dict[str, Matrix] = {}
        self.products: dict[str, tuple[tuple[str, ...], ...]] = {}
        self.offsets: dict[str, Array] = {}
        slope = _HARD_SIGMOID_SLOPES["tf_keras" if type(cell).__module__.startswith("tf_keras") else "keras"]
        self._slope = slope if hard_sigmoid else None
        self.features = self._add_inputs()
        self._add_states()
        self.matrices = {name: replace(each, per_channel=_channels_pay(each)) for name, each in self.matrices.items()}

    def _add_inputs(self) -> int:
        ready = not getattr(self._cell, "project_inputs", True)
        for group in self._gates:
            bias = self._input_bias(group)
            if ready:
                self.products[f"x_{group}"] = ()
                if bias is not None and bias.any():
                    self.offsets[f"x_{group}"] = bias
            else:
                self._add_product("x", group, "kernel", bias)
        if ready:
            return self._count * self.units
        kernel = getattr(self._cell, "kernel", None)
        return int((self._cell.kernel_u if kernel is None else kernel).shape[0])

    def _add_states(self) -> None:
        for group in self._gates:
            bias = self._bias()[1] if self.reset_after and group == "candidate" and self._bias() is not None else None
            whole = "recurrent_kernel"
            self._add_product("h", group, whole, None if bias is None else self._stack(bias, group))

    def _bias(self) -> Any:
        bias = getattr(self._cell, "bias", None)
        return None if bias is None else np.asarray(bias, np.float32)

    def _input_bias(self, group: str) -> Array | None:
        """The bias of a product of the inputs. That of the gates' recurrent product is added to it: both are summed."""
        bias = self._bias()
        if bias is not None and self.reset_after:
            bias = bias.sum(0) if group == "gates" else bias[0]
        result = None if bias is None else self._stack(bias, group)
        if self._slope is not None and group == "gates":
            width = len(self._gates[group]) * self.units
            result = (np.zeros(width, np.float32) if result is None else result * self._slope) + np.float32(0.5)
        return result

    def _add_product(self, side: str, group: str, whole: str, bias: Array | None) -> None:
        kernel, short = getattr(self._cell, whole, None), "kernel" if whole == "kernel" else "recurrent"
        name, gates = f"{side}_{group}", self._gates[group]
        slope = self._slope if self._slope is not None and group == "gates" else 1.0
        if kernel is not None:
            self.matrices[name] = Matrix(self._stack(np.asarray(kernel, np.float32), group) * np.float32(slope), bias)
            self.products[name] = ((name,),)
            return
        u, v = (np.asarray(getattr(self._cell, f"{short}_{side}"), np.float32) for side in ("u", "v"))
        if self._cell.gates == "joint":
            self.matrices.setdefault(f"{side}_factor", Matrix(u))
            self.matrices[name] = Matrix(self._stack(v, group) * np.float32(slope), bias)
            self.products[name] = ((f"{side}_factor", name),)
            return
        rank, chains = v.shape[1], []
        for place, gate in enumerate(gates):
            first, second = f"{side}_factor_{gate}", f"{name}_{gate}"
            own = None if bias is None else bias[place * self.units : (place + 1) * self.units]
            self.matrices[first] = Matrix(u[:, gate * rank : (gate + 1) * rank])
            self.matrices[second] = Matrix(v[gate] * np.float32(slope), own)
            chains.append((first, second))
        self.products[name] = tuple(chains)

    def _stack(self, values: Array, group: str) -> Array:
        """Takes the columns of a group's gates out of (…, gates * units)."""
        return np.concatenate(
            [values[..., gate * self.units : (gate + 1) * self.units] for gate in self._gates[group]], axis=-1
        )


def _channels_pay(matrix: Matrix) -> bool:
    """Whether one scale for all columns would leave too few steps for typical weights.

    A scale for each column takes twelve bytes of the file, and as much again for the bias: a twelfth of the weights of
    128 units. Of usual weights the largest is some five times the typical one.
    """
    typical = math.sqrt(float(np.mean(np.square(matrix.values, dtype=np.float64))))
    return float(np.abs(matrix.values).max(initial=0.0)) > _LARGEST * typical
