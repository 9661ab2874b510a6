"""Carries out recurrent cells on tensors, in float or with the rounding of an integer file simulated."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from edgecompress.data import Array
from edgecompress.recurrent.cells import RecurrentLayer, project, step
from edgecompress.recurrent.scales import activation_scales, fixed_scale, range_of

Tensor = Any
Extremes = dict[str, tuple[Tensor, Tensor]]
_ENDLESS = 1e9  # a range that no result exceeds


@dataclass(frozen=True)
class Rounding:
    """How the results of a cell are rounded.

    Attributes:
        bits: 8 or 16.
        fixed: (low, high) of the results whose kernels have ranges of their own; see `fixed_ranges`.
        ranges: Of all others.
        watched: Whether the extremes of these others are wanted.
    """

    bits: int
    fixed: Mapping[str, tuple[float, float]]
    ranges: Mapping[str, tuple[Tensor, Tensor]]
    watched: bool


def initial_weights(layer: RecurrentLayer) -> dict[str, Array]:
    """Returns what there is to train in a layer, by name: its matrices, their biases, and its offsets."""
    weights = {name: matrix.values for name, matrix in layer.matrices.items()}
    weights |= {_bias(name): each.bias for name, each in layer.matrices.items() if each.bias is not None}
    return weights | {offset_name(name): values for name, values in layer.offsets.items()}


def with_weights(layer: RecurrentLayer, weights: Mapping[str, Array]) -> RecurrentLayer:
    """Returns the layer with other weights, named as by `initial_weights`."""
    matrices = {
        name: replace(matrix, values=weights[name], bias=weights.get(_bias(name)))
        for name, matrix in layer.matrices.items()
    }
    return replace(layer, matrices=matrices, offsets={name: weights[offset_name(name)] for name in layer.offsets})


def _bias(matrix: str) -> str:
    return f"{matrix}_bias"


def offset_name(name: str) -> str:
    """Returns the name among the weights of what is added to a product of the inputs."""
    return f"{name}_offset"


def fixed_ranges(layer: RecurrentLayer, bits: int) -> dict[str, tuple[float, float]]:
    """Returns the ranges of the results that come from kernels which always write in the same steps."""
    kinds = {"gates": layer.recurrent_activation, "candidate": layer.activation, "carry": layer.activation}
    if layer.kind == "simple_rnn":
        kinds["state_0"] = layer.activation
    scales = {name: fixed_scale("clip" if kind == "hard_sigmoid" else kind, bits) for name, kind in kinds.items()}
    return {name: range_of(scale) for name, scale in scales.items() if scale is not None}


def limits(layer: RecurrentLayer, names: Iterable[str], bits: int) -> dict[str, float]:
    """Returns how far from 0 the range of each result reaches at most in the file."""
    scales = activation_scales(layer, dict.fromkeys(names, (-_ENDLESS, _ENDLESS)), bits)
    return {name: scale.step * (2**bits - 1) / 2 for name, scale in scales.items()}


def run_cell(
    layer: RecurrentLayer, weights: Mapping[str, Tensor], inputs: Sequence[Tensor], rounding: Rounding | None = None
) -> tuple[list[Tensor], Extremes]:
    """Carries out a layer on a sequence.

    Args:
        layer: The layer.
        weights: As named by `initial_weights`; they are taken for those of the layer.
        inputs: The sequence (batch, steps, features), and the states that it begins with, (batch, units) each; without
            these, zeros.
        rounding: How results are rounded; None: they are not.

    Returns:
        The output (batch, units), or with return_sequences (batch, steps, units), and with return_state the states;
        and the extremes of the results in all steps, if they are watched.
    """
    import tensorflow as tf

    x, *states = inputs
    ops = _TensorOperations(weights, rounding)
    if not states:
        states = [tf.zeros((tf.shape(x)[0], layer.units), x.dtype) for _ in layer.states]
    now = tuple(ops.see(name, state) for name, state in zip(layer.states, states, strict=True))
    ops.watch("x", x)  # whoever made it has rounded it
    output, now = _loop(layer, ops, project(layer, ops, x), now)
    return [output, *(now if layer.return_state else ())], ops.extremes


def _loop(
    layer: RecurrentLayer, ops: _TensorOperations, projected: Sequence[Tensor], now: tuple[Tensor, ...]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Returns the output and the last states.

    Moving averages cannot be kept in a loop: extremes are carried along like states, for an update after all steps.
    """
    import tensorflow as tf

    steps, batch = projected[0].shape[1], tf.shape(projected[0])[0]
    read = [tf.TensorArray(part.dtype, steps).unstack(tf.transpose(part, (1, 0, 2))) for part in projected]
    written = tf.TensorArray(now[0].dtype, steps if layer.return_sequences else 0, element_shape=(None, layer.units))

    def body(index: Tensor, states: Any, sequence: Any, extremes: Any) -> Any:
        place = steps - 1 - index if layer.go_backwards else index
        ops.extremes = dict(extremes)
        new = step(layer, ops, [part.read(place) for part in read], states)
        if layer.return_sequences:
            sequence = sequence.write(place if layer.in_order else index, new[0])
        return index + 1, new, sequence, ops.extremes

    _, now, written, extremes = tf.while_loop(
        lambda index, *_: index < steps, body, (0, now, written, ops.extremes), maximum_iterations=steps
    )
    ops.extremes = extremes
    if not layer.return_sequences:
        return now[0], now
    return tf.transpose(tf.reshape(written.stack(), (steps, batch, layer.units)), (1, 0, 2)), now


class _TensorOperations:
    """Operations on tensors of shape (batch, …, columns)."""

    def __init__(self, weights: Mapping[str, Tensor], rounding: Rounding | None) -> None:
        self._weights = weights
        self._rounding = rounding
        watched = rounding.ranges if rounding is not None and rounding.watched else ()
        self.extremes: Extremes = dict.fromkeys(watched, (0.0, 0.0))  # 0 is in all ranges

    def watch(self, name: str, value: Tensor) -> None:
        """Widens what is known of a result's extremes."""
        import tensorflow as tf

        if name in self.extremes:
            (low, high), value = self.extremes[name], tf.stop_gradient(value)
            self.extremes[name] = tf.minimum(low, tf.reduce_min(value)), tf.maximum(high, tf.reduce_max(value))

    def see(self, name: str, value: Tensor) -> Tensor:
        """Rounds a result, and keeps its extremes."""
        import tensorflow as tf

        rounding = self._rounding
        if rounding is None:
            return value
        if name in rounding.fixed:
            return tf.quantization.fake_quant_with_min_max_args(value, *rounding.fixed[name], rounding.bits)
        self.watch(name, value)
        return tf.quantization.fake_quant_with_min_max_vars(value, *rounding.ranges[name], rounding.bits)

    def dense(self, name: str, x: Tensor, matrix: str) -> Tensor:
        import tensorflow as tf

        result = tf.tensordot(x, self._weights[matrix], 1)  # a batched product would not become FULLY_CONNECTED
        bias = self._weights.get(_bias(matrix))
        return self.see(name, result if bias is None else tf.nn.bias_add(result, bias))

    def shift(self, name: str, x: Tensor, offset: str) -> Tensor:
        return self.see(name, x + self._weights[offset_name(offset)])

    def add(self, name: str, a: Tensor, b: Tensor) -> Tensor:
        return self.see(name, a + b)

    def subtract(self, name: str, a: Tensor, b: Tensor) -> Tensor:
        return self.see(name, a - b)

    def multiply(self, name: str, a: Tensor, b: Tensor) -> Tensor:
        return self.see(name, a * b)

    def activate(self, name: str, x: Tensor, kind: str) -> Tensor:
        import tensorflow as tf

        result = tf.clip_by_value(x, 0.0, 1.0) if kind == "clip" else getattr(tf.nn, kind)(x)
        return self.see(name, result)

    def split(self, x: Tensor, count: int) -> Sequence[Tensor]:
        import tensorflow as tf

        parts: Sequence[Tensor] = tf.split(x, count, axis=-1)
        return parts

    def join(self, _name: str, parts: Sequence[Tensor]) -> Tensor:
        import tensorflow as tf

        return tf.concat(parts, -1)
