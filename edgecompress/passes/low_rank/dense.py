"""Dense, EinsumDense and Embedding in factors; TimeDistributed around any layer."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from edgecompress.data import Array
from edgecompress.decomposition.matrices import relative_error, spectrum
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

_SMALL = 1024  # inputs whose second moments are a matrix that is quick to work with


class MatrixKind(Kind):
    """A layer with one matrix; its inputs are observed as vectors."""

    methods = ("svd",)

    def __init__(self, layer: Any, calls: Sequence[Call]) -> None:
        super().__init__(layer, calls)
        inputs, outputs = self.matrix.shape
        self._by_input = inputs <= max(_SMALL, outputs)
        self._moments, self._kept = Moments(), Kept()

    @property
    def matrix(self) -> Array:
        """The kernel as (inputs, outputs)."""
        return self.kernels[0]

    @property
    def seen(self) -> bool:
        return self._moments.mean is not None

    def matrices(self, method: str) -> Matrices:
        del method
        return ((self.matrix,),)

    def decompose(self, method: str) -> tuple[Spectra, ...]:
        del method
        name = "input_moments" if self._by_input else "output_moments"
        return (Spectra((spectrum(self.matrix, **{name: self._moments.mean}),)),)

    def _observe_rows(self, rows: Array) -> None:
        self._moments.add(rows if self._by_input else rows @ self.matrix)
        self._kept.add(rows)

    def errors(self, method: str, ranks: Ranks) -> tuple[float, float | None]:
        approximate = np.matmul(*self.spectra(method)[0].factors(ranks[0]))
        lost = self._kept.error(lambda rows: rows @ self.matrix, lambda rows: rows @ approximate)
        return relative_error(self.matrix, approximate), lost

    def factor_params(self, method: str, ranks: Ranks) -> int:
        del method
        return self.params - self.matrix.size + ranks[0] * sum(self.matrix.shape)


class DenseKind(MatrixKind):
    """`keras.layers.Dense` becomes `LowRankDense`."""

    @property
    def kernels(self) -> tuple[Array, ...]:
        return (np.asarray(self.layer.kernel, np.float32),)

    def observe(self, seen: Seen) -> None:
        inputs, mask = seen.inputs, seen.mask
        rows = inputs if mask is None or mask.shape != inputs.shape[:-1] else inputs[mask]
        self._observe_rows(rows.reshape(-1, inputs.shape[-1]))

    def operators(self, call: Call, method: str | None = None, ranks: Ranks = ()) -> tuple[Operator, ...]:
        inputs, outputs = self.matrix.shape
        places = positions(call.input[1:-1])
        if method is None:
            return (Operator("dense", places, inputs, outputs),)
        return Operator("dense", places, inputs, ranks[0]), Operator("dense", places, ranks[0], outputs)

    def build(self, method: str, ranks: Ranks) -> list[Any]:
        from edgecompress.layers import LowRankDense

        layer = self.layer
        new = LowRankDense(
            layer.units, ranks[0], activation=layer.activation, use_bias=layer.use_bias,
            kernel_regularizer=layer.kernel_regularizer, bias_regularizer=layer.bias_regularizer,
            activity_regularizer=layer.activity_regularizer, name=layer.name, **options_of(layer),
        )  # fmt: skip
        new.build((None, self.matrix.shape[0]))
        _assign(new, zip(("u", "v"), self.spectra(method)[0].factors(ranks[0]), strict=True), bias=layer.bias)
        return [new]


class EinsumKind(MatrixKind):
    """`keras.layers.EinsumDense` becomes two of them, if its kernel is a matrix of contracted and of new axes."""

    def __init__(self, layer: Any, calls: Sequence[Call]) -> None:
        inputs, rest = layer.equation.replace(" ", "").split(",")
        kernel, outputs = rest.split("->")
        # An ellipsis stands for as many axes as are left over.
        free = [label for label in string.ascii_letters if label not in layer.equation]
        dots = "".join(free[: len(calls[0].input) - len(inputs.replace("...", ""))])
        self._inputs, self._outputs = inputs.replace("...", dots), outputs.replace("...", dots)
        self._kernel, self._rank = kernel, free[len(dots)]
        self._summed = "".join(label for label in kernel if label not in outputs)
        self._new = "".join(label for label in kernel if label not in inputs)
        is_matrix = self._summed and self._new and sorted(self._summed + self._new) == sorted(kernel)
        if not is_matrix or not set(self._free) <= set(self._outputs):
            raise LeftAloneError(f"its equation {layer.equation} is no product with one matrix")
        super().__init__(layer, calls)

    @property
    def kernels(self) -> tuple[Array, ...]:
        return (np.asarray(self.layer.kernel, np.float32),)

    @property
    def matrix(self) -> Array:
        kernel: Array = np.einsum(f"{self._kernel}->{self._summed}{self._new}", self.kernels[0])
        return kernel.reshape(positions(kernel.shape[: len(self._summed)]), -1)

    @property
    def _free(self) -> str:
        return "".join(label for label in self._inputs if label not in self._summed)

    def observe(self, seen: Seen) -> None:
        rows = np.einsum(f"{self._inputs}->{self._free}{self._summed}", seen.inputs)  # its axes may be any: no mask
        self._observe_rows(rows.reshape(-1, self.matrix.shape[0]))

    def operators(self, call: Call, method: str | None = None, ranks: Ranks = ()) -> tuple[Operator, ...]:
        inputs, outputs = self.matrix.shape
        sizes = dict(zip(self._inputs[1:], call.input[1:], strict=True))
        places = positions([sizes[label] for label in self._free[1:]])
        if method is None:
            return (Operator("dense", places, inputs, outputs),)
        return Operator("dense", places, inputs, ranks[0]), Operator("dense", places, ranks[0], outputs)

    def build(self, method: str, ranks: Ranks) -> list[Any]:
        import keras

        layer, middle = self.layer, self._free + self._rank
        sizes = self._sizes() | {self._rank: ranks[0]}
        settings = options_of(layer) | {"kernel_regularizer": layer.kernel_regularizer}
        first = keras.layers.EinsumDense(
            f"{self._inputs},{self._summed}{self._rank}->{middle}", [sizes[label] for label in middle[1:]],
            name=f"{layer.name}_in", **settings,
        )  # fmt: skip
        second = keras.layers.EinsumDense(
            f"{middle},{self._rank}{self._new}->{self._outputs}", [sizes[label] for label in self._outputs[1:]],
            activation=layer.activation, bias_axes=layer.bias_axes, bias_regularizer=layer.bias_regularizer,
            activity_regularizer=layer.activity_regularizer, name=layer.name, **settings,
        )  # fmt: skip
        first.build(tuple(sizes[label] for label in self._inputs))
        second.build(tuple(sizes[label] for label in middle))
        u, v = self.spectra(method)[0].factors(ranks[0])
        first.kernel.assign(u.reshape(first.kernel.shape))
        _assign(second, [("kernel", v.reshape(second.kernel.shape))], bias=layer.bias)
        return [first, second]

    def _sizes(self) -> dict[str, int | None]:
        """Returns the sizes of the axes by their labels; None for those that vary, or differ from call to call."""
        labels = self._outputs + self._inputs
        found = [dict(zip(labels, (*call.output, *call.input), strict=True)) for call in self.calls]
        return {label: size if all(each[label] == size for each in found) else None for label, size in found[0].items()}


class EmbeddingKind(MatrixKind):
    """`keras.layers.Embedding` becomes one with fewer columns and a Dense layer."""

    adds_arithmetic = True

    def __init__(self, layer: Any, calls: Sequence[Call]) -> None:
        if layer.embeddings_constraint is not None:
            raise LeftAloneError("its table has a constraint, which says nothing about factors")
        super().__init__(layer, calls)
        self._counts = np.zeros(self.layer.input_dim)  # how often each token was seen

    @property
    def kernels(self) -> tuple[Array, ...]:
        return (np.asarray(self.layer.embeddings, np.float32),)

    @property
    def seen(self) -> bool:
        return bool(self._counts.any())

    def observe(self, seen: Seen) -> None:
        ids = seen.inputs.reshape(-1).astype(np.int64)
        np.add.at(self._counts, ids[ids > 0] if self.layer.mask_zero else ids, 1)

    def decompose(self, method: str) -> tuple[Spectra, ...]:
        del method
        if not self.seen:
            return (Spectra((spectrum(self.matrix),)),)
        # Rare tokens count too, as if each had been seen once more: samples hold a part of the vocabulary only.
        moments = self.matrix.T @ (self.matrix * (self._counts + 1)[:, None].astype(np.float32))
        return (Spectra((spectrum(self.matrix, output_moments=moments / (self._counts + 1).sum()),)),)

    def errors(self, method: str, ranks: Ranks) -> tuple[float, float | None]:
        exact, approximate = self.matrix, np.matmul(*self.spectra(method)[0].factors(ranks[0]))
        lost_weights = relative_error(exact, approximate)
        if not self.seen:
            return lost_weights, None
        ids = np.flatnonzero(self._counts)
        each = np.sqrt(self._counts[ids])[:, None]
        return lost_weights, relative_error(exact[ids] * each, approximate[ids] * each)

    def operators(self, call: Call, method: str | None = None, ranks: Ranks = ()) -> tuple[Operator, ...]:
        if method is None:
            return ()  # a lookup
        return (Operator("dense", positions(call.input[1:]), ranks[0], self.matrix.shape[1]),)

    def build(self, method: str, ranks: Ranks) -> list[Any]:
        import keras

        layer, (rows, columns) = self.layer, self.matrix.shape
        settings = options_of(layer)
        table = keras.layers.Embedding(
            rows, ranks[0], mask_zero=layer.mask_zero, embeddings_regularizer=layer.embeddings_regularizer,
            name=f"{layer.name}_table", **settings,
        )  # fmt: skip
        widen = keras.layers.Dense(
            columns, use_bias=False, activity_regularizer=layer.activity_regularizer, name=layer.name, **settings
        )
        table.build(self.calls[0].input)
        widen.build((None, ranks[0]))
        u, v = self.spectra(method)[0].factors(ranks[0])
        table.embeddings.assign(u)
        widen.kernel.assign(v)
        return [table, widen]


class TimeDistributedKind(Kind):
    """A layer that is called on each step of a sequence: so are its factors."""

    def __init__(self, layer: Any, calls: Sequence[Call], inner: Kind) -> None:
        super().__init__(layer, calls)
        self._inner = inner
        self.methods, self.adds_arithmetic = inner.methods, inner.adds_arithmetic

    @property
    def kernels(self) -> tuple[Array, ...]:
        return self._inner.kernels

    @property
    def seen(self) -> bool:
        return self._inner.seen

    def observe(self, seen: Seen) -> None:
        mask, steps = seen.mask, seen.inputs.reshape(-1, *seen.inputs.shape[2:])
        self._inner.observe(Seen(steps if mask is None or mask.ndim != 2 else steps[mask.reshape(-1)]))  # noqa: PLR2004 (samples, steps)

    def matrices(self, method: str) -> Matrices:
        return self._inner.matrices(method)

    def decompose(self, method: str) -> tuple[Spectra, ...]:
        return self._inner.spectra(method)

    def factor_params(self, method: str, ranks: Ranks) -> int:
        return self._inner.factor_params(method, ranks)

    def operators(self, call: Call, method: str | None = None, ranks: Ranks = ()) -> tuple[Operator, ...]:
        steps = positions(call.input[1:2])
        inner = self._inner.operators(one_step(call), method, ranks)
        return tuple(replace(each, places=steps * each.places) for each in inner)

    def build(self, method: str, ranks: Ranks) -> list[Any]:
        import keras

        chain = self._inner.build(method, ranks)
        inner_name = self._inner.layer.name
        names = [self.layer.name + each.name.removeprefix(inner_name) for each in chain]
        if isinstance(self._inner, DenseKind):  # it takes sequences as they are
            chain[0].name = names[0]
            return chain
        return [
            keras.layers.TimeDistributed(each, name=name, dtype=self.layer.dtype_policy)
            for each, name in zip(chain, names, strict=True)
        ]

    def errors(self, method: str, ranks: Ranks) -> tuple[float, float | None]:
        return self._inner.errors(method, ranks)


def one_step(call: Call) -> Call:
    """Returns the call of the layer inside TimeDistributed."""
    return Call((call.input[0], *call.input[2:]), (call.output[0], *call.output[2:]))


def _assign(layer: Any, weights: Any, *, bias: Any) -> None:
    for name, value in weights:
        getattr(layer, name).assign(value)
    if bias is not None:
        layer.bias.assign(bias)
