"""Carries out cells in float on samples, and finds the range of each of their results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgecompress.data import Array
from edgecompress.recurrent.cells import RecurrentLayer, project, step
from edgecompress.schemes import Observer

_BINS = 2048
_BATCH = 64
_PERCENTILE = 0.9999  # of the values lie inside of the range
_CLIPPINGS = np.linspace(0.5, 1.0, 26)  # shares of the whole range that MSE tries
_STEPS = 255


@dataclass
class _Histogram:
    """Counts values; its bins grow with their range."""

    low: float = 0.0
    high: float = 0.0
    counts: Any = None

    def add(self, values: Array) -> None:
        low, high = min(self.low, float(values.min(initial=0))), max(self.high, float(values.max(initial=0)))
        if high == low:
            return
        counts, edges = np.histogram(values, _BINS, (low, high))
        if self.counts is not None:
            if (low, high) == (self.low, self.high):
                counts = counts + self.counts
            else:
                width = (self.high - self.low) / _BINS
                centres = self.low + (np.arange(_BINS) + 0.5) * width
                counts = counts + np.histogram(centres, edges, weights=self.counts)[0]
        self.low, self.high, self.counts = low, high, counts

    def range(self, observer: Observer) -> tuple[float, float]:
        if self.counts is None or observer is Observer.MIN_MAX:
            return self.low, self.high
        if observer is Observer.PERCENTILE:
            share = np.cumsum(self.counts) / self.counts.sum()
            edges = np.linspace(self.low, self.high, _BINS + 1)
            first, last = np.searchsorted(share, (1 - _PERCENTILE, _PERCENTILE))
            return float(min(edges[first], 0.0)), float(max(edges[min(last + 1, _BINS)], 0.0))
        return min(
            ((self.low * float(share), self.high * float(share)) for share in _CLIPPINGS),
            key=lambda ends: self._error(*ends),
        )

    def _error(self, low: float, high: float) -> float:
        centres = self.low + (np.arange(_BINS) + 0.5) * (self.high - self.low) / _BINS
        scale = (high - low) / _STEPS
        rounded = np.clip(np.rint(centres / scale), np.rint(low / scale), np.rint(high / scale)) * scale
        return float(np.sum(self.counts * np.square(centres - rounded)))


class _InFloat:
    """Operations on arrays of shape (samples, …, columns)."""

    def __init__(self, layer: RecurrentLayer, histograms: dict[str, _Histogram] | None = None) -> None:
        self._layer = layer
        self._histograms = histograms
        self.counts: Array | None = None

    def see(self, name: str, values: Array) -> Array:
        """Notes values; those of steps that do not count are no result of anything."""
        if self._histograms is not None:
            noted = values if self.counts is None else values[self.counts]
            self._histograms.setdefault(name, _Histogram()).add(noted)
        return values

    def dense(self, name: str, x: Array, matrix: str) -> Array:
        values = self._layer.matrices[matrix]
        return self.see(name, x @ values.values + (0 if values.bias is None else values.bias))

    def shift(self, name: str, x: Array, offset: str) -> Array:
        return self.see(name, x + self._layer.offsets[offset])

    def add(self, name: str, a: Array, b: Array) -> Array:
        return self.see(name, a + b)

    def subtract(self, name: str, a: Array, b: Array) -> Array:
        return self.see(name, a - b)

    def multiply(self, name: str, a: Array, b: Array) -> Array:
        return self.see(name, a * b)

    def activate(self, name: str, x: Array, kind: str) -> Array:
        return self.see(name, _FUNCTIONS[kind](x))

    def split(self, x: Array, count: int) -> Sequence[Array]:
        return np.split(x, count, axis=-1)

    def join(self, name: str, parts: Sequence[Array]) -> Array:
        del name  # seen already
        return np.concatenate(parts, axis=-1)


def _sigmoid(x: Array) -> Array:
    return np.asarray(0.5 * np.tanh(0.5 * x) + 0.5, x.dtype)


_FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    "tanh": np.tanh,
    "sigmoid": _sigmoid,
    "relu": lambda x: np.maximum(x, 0),
    "clip": lambda x: np.clip(x, 0, 1),
}


def run(
    layer: RecurrentLayer, x: Array, states: Sequence[Array] = (), mask: Array | None = None,
    histograms: dict[str, _Histogram] | None = None,
) -> list[Array]:  # fmt: skip
    """Carries out a layer in float.

    Args:
        layer: The layer.
        x: (samples, steps, features).
        states: What it begins with, (samples, units) each; none: zeros.
        mask: (samples, steps), 0 where a step does not count: states stay what they were; None: all count.
        histograms: Filled with the values of each result, if given.

    Returns:
        The output (samples, units), or with return_sequences (samples, steps, units); with return_state the states.
    """
    ops = _InFloat(layer, histograms)
    now = tuple(states) or tuple(np.zeros((len(x), layer.units), np.float32) for _ in layer.states)
    for name, state in zip(layer.states, now, strict=True):
        ops.see(name, state)
    ops.counts = None if mask is None else mask != 0
    projected = project(layer, ops, ops.see("x", np.asarray(x, np.float32)))
    given: Array = np.zeros_like(now[0])
    sequence = []
    for index in range(x.shape[1] - 1, -1, -1) if layer.go_backwards else range(x.shape[1]):
        ops.counts = None if mask is None else mask[:, index] != 0
        new = step(layer, ops, [part[:, index] for part in projected], now)
        counts = True if ops.counts is None else ops.counts[:, None]
        given = np.where(counts, new[0], 0 if layer.zero_masked else given)
        now = tuple(np.where(counts, after, before) for after, before in zip(new, now, strict=True))
        sequence.append(given)
    if layer.in_order and layer.go_backwards:
        sequence.reverse()
    outputs = [np.stack(sequence, axis=1) if layer.return_sequences else given]
    return [*outputs, *(now if layer.return_state else ())]


def observe(
    layer: RecurrentLayer, x: Array, states: Sequence[Array] = (), mask: Array | None = None,
    observer: Observer = Observer.MIN_MAX,
) -> Mapping[str, tuple[float, float]]:  # fmt: skip
    """Returns the range of each result of a layer on samples, with 0 in it; arguments as for `run`."""
    histograms: dict[str, _Histogram] = {}
    for start in range(0, len(x), _BATCH):
        rows = slice(start, start + _BATCH)
        few = None if mask is None else mask[rows]
        run(layer, x[rows], [state[rows] for state in states], few, histograms)
    return {name: histogram.range(observer) for name, histogram in histograms.items()}
