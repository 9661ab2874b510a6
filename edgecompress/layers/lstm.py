"""An LSTM whose kernels are products of smaller ones."""

from __future__ import annotations

from typing import Any, ClassVar

import keras
from keras import ops

from edgecompress.layers.recurrent import LowRankCell, LowRankRNN


class LowRankLSTMCell(LowRankCell, keras.layers.LSTMCell):  # type: ignore[misc]
    """One step of `LowRankLSTM`, on inputs that are multiplied already: (batch, 4 * units)."""

    gate_count = 4  # input, forget, candidate, output

    def bias_start(self) -> tuple[tuple[int, ...], Any]:
        """Returns the shape and the initializer of the bias."""
        shape = (self.gate_count * self.units,)
        if not self.unit_forget_bias:
            return shape, self.bias_initializer

        def draw(_shape: Any, dtype: Any = None) -> Any:
            zeros, ones = self.bias_initializer, keras.initializers.Ones()
            parts = ((zeros, 1), (ones, 1), (zeros, 2))
            return ops.concatenate([start((count * self.units,), dtype=dtype) for start, count in parts])

        return shape, draw

    def input_bias(self) -> Any:
        """Returns what is added to the inputs of all steps, or None."""
        return self.bias

    def call(self, inputs: Any, states: Any) -> tuple[Any, Any]:
        state, carry = self.drop_state(states[0]), states[1]
        gates = ops.split(inputs + self.recur(state), self.gate_count, axis=-1)  # see LowRankGRUCell on the `+`
        admit, forget, output = (self.recurrent_activation(gates[number]) for number in (0, 1, 3))
        carry = forget * carry + admit * self.activation(gates[2])
        new = output * self.activation(carry)
        return new, [new, carry]


@keras.saving.register_keras_serializable(package="edgecompress")
class LowRankLSTM(LowRankRNN):
    """An LSTM (Hochreiter and Schmidhuber 1997) of which each kernel may be a product U V of low rank.

    With full ranks, or none, it answers as `keras.layers.LSTM` with the same kernels, and is called in the same way.
    The weights are in its `cell`: `kernel` (features, 4 * units), or `kernel_u` (features, rank) and `kernel_v` (rank,
    4 * units); `recurrent_kernel` (units, 4 * units), or `recurrent_u` and `recurrent_v`; `bias`. With separate gates
    U is (rows, 4 * rank) and V (4, rank, units).

    Args:
        units: Size of the state and the output.
        input_rank: Rank of the input kernel, to min(features, 4 * units); None: it is whole.
        recurrent_rank: Rank of the recurrent kernel, to units; None: it is whole.
        gates: "joint": one pair of factors for all gates; "separate": one for each gate, each of these ranks.
        project_inputs: False: the inputs are what the input kernel would give, (batch, steps, 4 * units), and there
            is none. The bias is added all the same.
        **kwargs: What `keras.layers.LSTM` takes, but `use_cudnn`. Regularizers and constraints are applied to each
            factor, initializers give the variance of their product, and dropout draws one mask for all gates.

    Input shape: `(batch, steps, features)`. Output shape: `(batch, units)`, with return_sequences `(batch, steps,
    units)`; with return_state also the state and the carry, `(batch, units)` each.

    Raises:
        ValueError: A rank is no whole number from 1, or larger than its kernel allows.
    """

    cell_class: ClassVar[type[Any]] = LowRankLSTMCell
    keras_class: ClassVar[type[Any]] = keras.layers.LSTM
