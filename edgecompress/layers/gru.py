"""A GRU whose kernels are products of smaller ones."""

from __future__ import annotations

from typing import Any, ClassVar

import keras
from keras import ops

from edgecompress.layers.recurrent import LowRankCell, LowRankRNN


class LowRankGRUCell(LowRankCell, keras.layers.GRUCell):  # type: ignore[misc]
    """One step of `LowRankGRU`, on inputs that are multiplied already: (batch, 3 * units)."""

    gate_count = 3  # update, reset, candidate

    def bias_start(self) -> tuple[tuple[int, ...], Any]:
        """Returns the shape and the initializer of the bias."""
        size = self.gate_count * self.units
        return ((2, size) if self.reset_after else (size,)), self.bias_initializer

    def input_bias(self) -> Any:
        """Returns what is added to the inputs of all steps, or None."""
        return self.bias[0] if self.use_bias and self.reset_after else self.bias

    def call(self, inputs: Any, states: Any) -> tuple[Any, Any]:
        old = states[0] if keras.tree.is_nested(states) else states
        state = self.drop_state(old)
        # `+`, because `ops.add` takes one of a batch of 1 for a bias, which becomes three operators more in a .tflite.
        update, reset, candidate = ops.split(inputs, 3, axis=-1)
        if self.reset_after:
            bias = self.bias[1] if self.use_bias else None
            recurrent_update, recurrent_reset, recurrent = self.recur_gates(state, bias)
        else:
            recurrent_update, recurrent_reset = self.recur_gates(state, last=2)
        update = self.recurrent_activation(update + recurrent_update)
        reset = self.recurrent_activation(reset + recurrent_reset)
        if self.reset_after:
            recurrent = reset * recurrent
        else:
            (recurrent,) = self.recur_gates(reset * state, first=2)
        candidate = self.activation(candidate + recurrent)
        # The same as update * old + (1 - update) * candidate, with an operator less.
        new = candidate + update * (old - candidate)
        return new, [new] if keras.tree.is_nested(states) else new


@keras.saving.register_keras_serializable(package="edgecompress")
class LowRankGRU(LowRankRNN):
    """A GRU (Cho et al. 2014, arXiv:1406.1078) of which each kernel may be a product U V of low rank.

    With full ranks, or none, it answers as `keras.layers.GRU` with the same kernels, and is called in the same way.
    The weights are in its `cell`: `kernel` (features, 3 * units), or `kernel_u` (features, rank) and `kernel_v` (rank,
    3 * units); `recurrent_kernel` (units, 3 * units), or `recurrent_u` and `recurrent_v`; `bias`. With separate gates
    U is (rows, 3 * rank) and V (3, rank, units).

    Args:
        units: Size of the state and the output.
        input_rank: Rank of the input kernel, to min(features, 3 * units); None: it is whole.
        recurrent_rank: Rank of the recurrent kernel, to units; None: it is whole.
        gates: "joint": one pair of factors for all gates; "separate": one for each gate, each of these ranks.
        project_inputs: False: the inputs are what the input kernel would give, (batch, steps, 3 * units), and there
            is none. The bias is added all the same.
        **kwargs: What `keras.layers.GRU` takes, but `use_cudnn`. Regularizers and constraints are applied to each
            factor, initializers give the variance of their product, and dropout draws one mask for all gates.

    Input shape: `(batch, steps, features)`. Output shape: `(batch, units)`, with return_sequences `(batch, steps,
    units)`; with return_state also the state `(batch, units)`.

    Raises:
        ValueError: A rank is no whole number from 1, or larger than its kernel allows.
    """

    cell_class: ClassVar[type[Any]] = LowRankGRUCell
    keras_class: ClassVar[type[Any]] = keras.layers.GRU
