"""GRU and LSTM in factors, and Bidirectional around them: the input and the recurrent kernel have a rank each."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from edgecompress.data import Array
from edgecompress.decomposition.matrices import Spectrum, relative_error, spectrum
from edgecompress.passes.kernel_costs import Operator
from edgecompress.passes.low_rank.kind import (
    Call,
    Kept,
    Kind,
    LeftAloneError,
    Matrices,
    Moments,
    Ranks,
    Seen,
    Spectra,
    options_of,
    positions,
)

_GATES = {"GRU": 3, "LSTM": 4}
_MATRIX = 2


class _Direction:
    """A GRU or LSTM that runs one way, with what it was seen to multiply."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        self.gates = _GATES[type(layer).__name__]
        self.inputs, self.states = Moments(), Moments()
        if layer.cell.kernel_constraint is not None or layer.cell.recurrent_constraint is not None:
            raise LeftAloneError("its kernels have constraints, which say nothing about factors")

    @property
    def resets_before(self) -> bool:
        return not getattr(self.layer, "reset_after", True)

    @functools.cached_property
    def kernels(self) -> tuple[Array, Array]:
        """The input kernel (features, gates * units) and the recurrent one (units, gates * units)."""
        cell = self.layer.cell
        return np.asarray(cell.kernel, np.float32), np.asarray(cell.recurrent_kernel, np.float32)

    def observe(self, seen: Seen) -> None:
        inputs, mask = seen.inputs, seen.mask
        self.inputs.add(inputs.reshape(-1, inputs.shape[-1]) if mask is None else inputs[mask])
        twin = type(self.layer).from_config(
            self.layer.get_config() | {"return_sequences": True, "return_state": False, "stateful": False}
        )
        twin.build(inputs.shape)
        twin.set_weights(self.layer.get_weights())
        states = np.asarray(twin(inputs, mask=mask, initial_state=list(seen.states) or None), np.float32)
        start = seen.states[0][:, None] if seen.states else np.zeros_like(states[:, :1])
        before = np.concatenate([start, states[:, :-1]], axis=1)  # what a step multiplies
        self.states.add(before.reshape(-1, states.shape[-1]))

    def matrices(self, kernel: Array, method: str) -> tuple[Array, ...]:
        return tuple(np.split(kernel, self.gates, axis=1)) if method == "separate" else (kernel,)

    def decompose(self, method: str) -> tuple[Spectra, Spectra]:
        pairs = zip(self.kernels, (self.inputs.mean, self.states.mean), strict=True)
        kernel, recurrent = (
            Spectra(tuple(spectrum(each, input_moments=moments) for each in self.matrices(matrix, method)))
            for matrix, moments in pairs
        )
        return kernel, recurrent


class RecurrentKind(Kind):
    """`keras.layers.GRU` becomes `LowRankGRU`, `LSTM` becomes `LowRankLSTM`; alone or inside Bidirectional."""

    methods = ("joint", "separate")
    energies_compare = False  # few directions hold nearly all energy of the states; the others matter all the same

    def __init__(self, layer: Any, calls: Sequence[Call]) -> None:
        super().__init__(layer, calls)
        both = (layer.forward_layer, layer.backward_layer) if type(layer).__name__ == "Bidirectional" else (layer,)
        kinds = {type(each).__name__ for each in both}
        if not kinds <= set(_GATES):
            raise LeftAloneError(f"{' and '.join(sorted(kinds))} inside it is neither a GRU nor an LSTM")
        self._directions = tuple(_Direction(each) for each in both)
        self._kept = Kept()

    @property
    def kernels(self) -> tuple[Array, ...]:
        return tuple(kernel for direction in self._directions for kernel in direction.kernels)

    @property
    def seen(self) -> bool:
        return bool(self._kept)

    def observe(self, seen: Seen) -> None:
        if any(direction.layer.stateful for direction in self._directions):
            return  # what it answers depends on what it was asked before
        mask = np.ones(seen.inputs.shape[:_MATRIX], bool) if seen.mask is None else seen.mask
        self._kept.add(seen.inputs, mask, *seen.states)
        few = len(seen.states) // len(self._directions)
        for number, direction in enumerate(self._directions):
            direction.observe(replace(seen, states=seen.states[number * few : (number + 1) * few]))

    def matrices(self, method: str) -> Matrices:
        kernel, recurrent = (
            tuple(
                matrix for direction in self._directions
                for matrix in direction.matrices(direction.kernels[number], method)
            )
            for number in (0, 1)
        )  # fmt: skip
        return kernel, recurrent

    def decompose(self, method: str) -> tuple[Spectra, ...]:
        found = [direction.decompose(method) for direction in self._directions]
        return tuple(Spectra(tuple(one for each in found for one in each[number].each)) for number in (0, 1))

    def settle(self, method: str, ranks: Ranks) -> Ranks:
        return tuple(
            rank if sum(rank * sum(m.shape) for m in together) < sum(m.size for m in together) else full
            for rank, full, together in zip(ranks, self.full_ranks(method), self.matrices(method), strict=True)
        )

    def factor_params(self, method: str, ranks: Ranks) -> int:
        change = 0
        for rank, full, together in zip(ranks, self.full_ranks(method), self.matrices(method), strict=True):
            if rank < full:
                change += sum(rank * sum(matrix.shape) - matrix.size for matrix in together)
        return self.params + change

    def operators(self, call: Call, method: str | None = None, ranks: Ranks = ()) -> tuple[Operator, ...]:
        steps = positions(call.input[1:2])
        found: list[Operator] = []
        for direction in self._directions:
            found.append(Operator("step", calls=steps))
            for number, kernel in enumerate(direction.kernels):
                (inputs, outputs), whole = kernel.shape, method is None
                if method is not None:
                    whole = ranks[number] >= self.full_ranks(method)[number]
                # Keras multiplies the input inside the loop; our layers multiply all steps at once before it.
                places, calls = (1, steps) if number or method is None else (steps, 1)
                if whole:
                    found.append(Operator("dense", places, inputs, outputs, calls))
                    continue
                apart = direction.gates if method == "separate" else 1
                first = Operator("dense", places, inputs, apart * ranks[number], calls)
                # Reset before the product, the candidate multiplies another state than the other gates do.
                found += [first] * (2 if number and apart == 1 and direction.resets_before else 1)
                found += [Operator("dense", places, ranks[number], outputs // apart, calls)] * apart
        return tuple(found)

    def build(self, method: str, ranks: Ranks) -> list[Any]:
        import keras

        layer = self.layer
        options: dict[str, Any] = {
            "gates": method,
            **{
                name: rank if rank < full else None
                for name, rank, full in zip(
                    ("input_rank", "recurrent_rank"), ranks, self.full_ranks(method), strict=True
                )
            },
        }
        parts = [_unbuilt(direction, options) for direction in self._directions]
        new = parts[0]
        if len(parts) > 1:
            new = keras.layers.Bidirectional(
                parts[0], merge_mode=layer.merge_mode, backward_layer=parts[1], name=layer.name, **options_of(layer)
            )
        new.build(self.calls[0].input)
        places = [new] if len(self._directions) == 1 else [new.forward_layer, new.backward_layer]
        for number, (place, direction) in enumerate(zip(places, self._directions, strict=True)):
            for name, kernel, rank, found in zip(
                ("kernel", "recurrent"), direction.kernels, ranks, self.spectra(method), strict=True
            ):
                few = len(found.each) // len(self._directions)
                _fill(place.cell, name, kernel, rank, found.each[number * few : (number + 1) * few])
            if direction.layer.cell.bias is not None:
                place.cell.bias.assign(direction.layer.cell.bias)
        return [new]

    def errors(self, method: str, ranks: Ranks) -> tuple[float, float | None]:
        approximate, exact = [], []
        for rank, full, found, together in zip(
            ranks, self.full_ranks(method), self.spectra(method), self.matrices(method), strict=True
        ):
            for one, matrix in zip(found.each, together, strict=True):
                approximate.append((matrix if rank >= full else np.matmul(*one.factors(rank))).reshape(-1))
                exact.append(matrix.reshape(-1))
        lost_weights = relative_error(np.concatenate(exact), np.concatenate(approximate))
        if not self.seen:
            return lost_weights, None
        (new,) = self.build(method, ranks)
        return lost_weights, self._kept.error(functools.partial(_answers, self.layer), functools.partial(_answers, new))


def _answers(layer: Any, inputs: Array, mask: Array, *states: Array) -> Array:
    """Returns all that a layer answers, flat."""
    import keras

    outputs = keras.tree.flatten(layer(inputs, mask=mask, initial_state=list(states) or None))
    return np.concatenate([np.asarray(each, np.float32).reshape(-1) for each in outputs])


def _unbuilt(direction: _Direction, options: dict[str, Any]) -> Any:
    from edgecompress.layers import LowRankGRU, LowRankLSTM

    kind = LowRankGRU if type(direction.layer).__name__ == "GRU" else LowRankLSTM
    return kind.from_config(direction.layer.get_config() | options)


def _fill(cell: Any, name: str, kernel: Array, rank: int, gates: Sequence[Spectrum]) -> None:
    """Gives a cell its kernel, whole or in factors. `name` is 'kernel' or 'recurrent'."""
    if getattr(cell, f"{name}_u", None) is None:
        getattr(cell, "kernel" if name == "kernel" else "recurrent_kernel").assign(kernel)
        return
    factors = [one.factors(rank) for one in gates]
    getattr(cell, f"{name}_u").assign(np.concatenate([u for u, _ in factors], axis=1))
    getattr(cell, f"{name}_v").assign(np.stack([v for _, v in factors]) if len(factors) > 1 else factors[0][1])
