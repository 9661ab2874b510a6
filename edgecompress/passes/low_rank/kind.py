"""What every kind of layer that can be written in factors can say of itself."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgecompress.data import Array
from edgecompress.decomposition.matrices import Spectrum, relative_error
from edgecompress.passes.kernel_costs import Operator

Shape = tuple[int | None, ...]
Ranks = tuple[int, ...]
Matrices = tuple[tuple[Array, ...], ...]


@dataclass(frozen=True)
class Call:
    """A call of a layer: the shapes of its input and its output, batch first, None for sizes that vary."""

    input: Shape
    output: Shape

    @property
    def is_known(self) -> bool:
        return None not in (*self.input[1:], *self.output[1:])


@dataclass(frozen=True)
class Seen:
    """What a layer is called with on some samples.

    Attributes:
        inputs: Shape (samples, ...).
        mask: The mask of the inputs, if there is one.
        states: What a recurrent layer starts with, if the call says so.
    """

    inputs: Array
    mask: Array | None = None
    states: tuple[Array, ...] = ()


@dataclass(frozen=True)
class Spectra:
    """The decompositions of matrices that have one rank."""

    each: tuple[Spectrum, ...]

    def energy(self, rank: int) -> float:
        """The share of the squared singular values that the worst of them keeps."""
        return min(one.energy(rank) for one in self.each)

    def rank_for_energy(self, energy: float) -> int:
        return max(one.rank_for_energy(energy) for one in self.each)

    def factors(self, rank: int) -> tuple[Array, Array]:
        """The factors of the only matrix."""
        (only,) = self.each
        return only.factors(rank)


class LeftAloneError(Exception):
    """Says why a layer is not written in factors."""


class Kind(ABC):
    """A layer that can be written in factors, in one way or several.

    Attributes:
        layer: The Keras 3 layer.
        calls: Each call of it in the model.
    """

    methods: tuple[str, ...]
    adds_arithmetic = False  # whether factors take arithmetic where the layer itself needs none
    energies_compare = True  # whether matrices at the same energy do about the same harm

    def __init__(self, layer: Any, calls: Sequence[Call]) -> None:
        self.layer = layer
        self.calls = tuple(calls)
        self._spectra: dict[str, tuple[Spectra, ...]] = {}

    @property
    @abstractmethod
    def kernels(self) -> tuple[Array, ...]:
        """The kernels, as Keras has them."""

    @property
    def params(self) -> int:
        """The number of the layer's weights."""
        return sum(math.prod(weight.shape) for weight in self.layer.weights)

    @property
    def seen(self) -> bool:
        """Whether it has observed activations."""
        return False

    @abstractmethod
    def observe(self, seen: Seen) -> None:
        """Takes note of what the layer is called with."""

    @abstractmethod
    def matrices(self, method: str) -> Matrices:
        """The matrices of shape (inputs, outputs) whose ranks are chosen; those that have one rank are together."""

    @abstractmethod
    def decompose(self, method: str) -> tuple[Spectra, ...]:
        """Decomposes the matrices, by the activations that were observed where there are any."""

    @abstractmethod
    def factor_params(self, method: str, ranks: Ranks) -> int:
        """The number of weights of the layers that `build` would return."""

    @abstractmethod
    def operators(self, call: Call, method: str | None = None, ranks: Ranks = ()) -> tuple[Operator, ...]:
        """What a call takes: of the layer as it is, or of its factors. Unknown sizes count as 1."""

    @abstractmethod
    def build(self, method: str, ranks: Ranks) -> list[Any]:
        """Returns new layers, built and with weights, to be called one after the other in the layer's place."""

    @abstractmethod
    def errors(self, method: str, ranks: Ranks) -> tuple[float, float | None]:
        """The relative errors of the weights (Frobenius norm), and of the outputs on the samples, or None."""

    def spectra(self, method: str) -> tuple[Spectra, ...]:
        """What `decompose` returns, worked out once."""
        if method not in self._spectra:
            self._spectra[method] = self.decompose(method)
        return self._spectra[method]

    def full_ranks(self, method: str) -> Ranks:
        return tuple(min(min(matrix.shape) for matrix in together) for together in self.matrices(method))

    def settle(self, method: str, ranks: Ranks) -> Ranks:
        """Returns the ranks with the full rank for each matrix that is better left whole."""
        del method
        return ranks


def positions(shape: Sequence[int | None]) -> int:
    """Returns the product of sizes, those that vary taken as 1."""
    return math.prod(1 if size is None else size for size in shape)


class Moments:
    """The mean of x x^T over vectors x that come a few at a time, shape (size, size)."""

    def __init__(self) -> None:
        self._sum: Array | None = None
        self._count = 0

    def add(self, rows: Array) -> None:
        """Adds vectors, shape (n, size)."""
        # In single precision, which is twice as quick; the sums over batches are in double.
        total = (rows.T @ rows).astype(np.float64)
        self._sum = total if self._sum is None else self._sum + total
        self._count += len(rows)

    @property
    def mean(self) -> Array | None:
        return None if self._sum is None or not self._count else self._sum / self._count


class Kept:
    """The first samples of what a layer is called with, as many as fit into a few megabytes."""

    _VALUES = 500_000

    def __init__(self) -> None:
        # By the shapes of a sample: a layer that is shared may be called with several.
        self._parts: dict[tuple[tuple[int, ...], ...], list[tuple[Array, ...]]] = {}
        self._values = 0

    def __bool__(self) -> bool:
        return bool(self._parts)

    def add(self, *arrays: Array) -> None:
        each = max(1, sum(math.prod(array.shape[1:]) for array in arrays))
        room = (self._VALUES - self._values) // each
        if room > 0 or not self._parts:
            few = tuple(array[: max(1, room)] for array in arrays)
            self._parts.setdefault(tuple(array.shape[1:] for array in few), []).append(few)
            self._values += sum(array.size for array in few)

    def error(self, exact: Callable[..., Array], approximate: Callable[..., Array]) -> float | None:
        """Returns the relative error of the outputs that functions give for the samples; None without samples."""
        if not self._parts:
            return None
        inputs = [[np.concatenate(arrays) for arrays in zip(*parts, strict=True)] for parts in self._parts.values()]
        return relative_error(
            *(np.concatenate([outputs(*each).reshape(-1) for each in inputs]) for outputs in (exact, approximate))
        )


def options_of(layer: Any) -> dict[str, Any]:
    """Returns the options that a layer in the place of another takes over.

    Raises:
        LeftAloneError: It has some that have no meaning for factors.
    """
    if any(getattr(layer, f"{name}_constraint", None) is not None for name in ("kernel", "bias")):
        raise LeftAloneError("it has a constraint, which factors would not keep")
    if getattr(layer, "lora_enabled", False) or getattr(layer, "quantization_mode", None):
        raise LeftAloneError("its kernel is quantized or has LoRA weights")
    return {"dtype": layer.dtype_policy, "trainable": layer.trainable}
