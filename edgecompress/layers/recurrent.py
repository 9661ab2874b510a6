"""What LowRankGRU and LowRankLSTM share: kernels in factors, and the inputs of all steps multiplied at once."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from edgecompress.decomposition.matrices import spectrum
from edgecompress.layers.factors import check_fits, check_rank, check_source, factor_initializers, wrong_value

_GATES = ("joint", "separate")
# Options of the loop over the steps; all others are of the cell.
_OF_THE_LOOP = frozenset(
    {
        "activity_regularizer", "go_backwards", "name", "return_sequences", "return_state", "stateful", "unroll",
        "zero_output_for_mask",
    }
)  # fmt: skip
_OF_BOTH = frozenset({"dtype", "trainable"})


class LowRankCell:
    """Makes a Keras cell of one whose kernels may be in factors; to be mixed in before it.

    Its call takes inputs that `project` has multiplied already.

    Attributes:
        gate_count: How many gates there are side by side in a kernel.
    """

    gate_count: ClassVar[int]

    def __init__(self, units: int, factors: dict[str, Any], **kwargs: Any) -> None:
        super().__init__(units, **kwargs)  # type: ignore[call-arg]
        self.where = ""  # what errors call it
        self.state_mask: Any = None
        self.input_rank: int | None = factors["input_rank"]
        self.recurrent_rank: int | None = factors["recurrent_rank"]
        self.gates: str = factors["gates"]
        self.project_inputs: bool = factors["project_inputs"]
        self.kernel = self.kernel_u = self.kernel_v = None
        self.recurrent_kernel = self.recurrent_u = self.recurrent_v = None
        self.bias: Any = None

    def build(self: Any, input_shape: Any) -> None:
        features = input_shape[-1]
        if self.project_inputs:
            self._add_kernel("kernel", "kernel", features, self.input_rank)
        elif features != self.gate_count * self.units:
            raise wrong_value(
                "the inputs are not what an input kernel gives", where=self.where,
                expected=f"(batch, steps, {self.gate_count * self.units}) because project_inputs is False",
                received=f"(batch, steps, {features})",
            )  # fmt: skip
        self._add_kernel("recurrent_kernel", "recurrent", self.units, self.recurrent_rank)
        if self.use_bias:
            shape, initializer = self.bias_start()
            self.bias = self.add_weight(
                shape, initializer, name="bias", regularizer=self.bias_regularizer, constraint=self.bias_constraint
            )

    def _add_kernel(self: Any, whole: str, short: str, rows: int, rank: int | None) -> None:
        """Adds a kernel (rows, gates * units), or its factors."""
        of_whole = getattr(self, f"{short}_initializer")
        options = {name: getattr(self, f"{short}_{name}") for name in ("regularizer", "constraint")}
        if rank is None:
            shape = (rows, self.gate_count * self.units)
            setattr(self, whole, self.add_weight(shape, of_whole, name=whole, **options))
            return
        parts = self.gate_count if self.gates == "separate" else 1
        columns = self.gate_count // parts * self.units
        option = "input_rank" if whole == "kernel" else "recurrent_rank"
        check_fits(rank, rows, columns, where=self.where, name=option)
        of_u, of_v = factor_initializers(of_whole, rows, columns, rank, parts)
        v_shape = (rank, columns) if parts == 1 else (parts, rank, columns)
        setattr(self, f"{short}_u", self.add_weight((rows, parts * rank), of_u, name=f"{short}_u", **options))
        setattr(self, f"{short}_v", self.add_weight(v_shape, of_v, name=f"{short}_v", **options))

    def project(self: Any, sequences: Any, *, training: bool) -> Any:
        """Returns what the input kernel makes of all steps: (batch, steps, gates * units), the bias added."""
        mask = self._draw_mask(sequences[:, :1], self.dropout, training=training)
        if mask is not None:
            sequences = sequences * mask
        if self.project_inputs:
            sequences = _joined(self._products(sequences, "kernel"))
        return _plus(sequences, self.input_bias())

    def recur(self: Any, state: Any) -> Any:
        """Returns what the recurrent kernel makes of a state: (batch, gates * units)."""
        return _joined(self._products(state, "recurrent"))

    def recur_gates(self: Any, state: Any, bias: Any = None, *, first: int = 0, last: int | None = None) -> list[Any]:
        """Returns what the recurrent kernel makes of a state for gates `first` to `last`: (batch, units) for each.

        A bias is of all gates; without one, only some of the gates may be asked for.
        """
        last = self.gate_count if last is None else last
        products = self._products(state, "recurrent", first, last)
        if len(products) < last - first:
            gates: list[Any] = ops.split(_plus(products[0], bias), last - first, axis=-1)
            return gates
        biases = [None] * len(products) if bias is None else ops.split(bias, len(products))
        return [_plus(product, own) for product, own in zip(products, biases, strict=True)]

    def drop_state(self, state: Any) -> Any:
        """Returns a state as the recurrent kernel gets it: with some of it dropped in training."""
        return state if self.state_mask is None else state * self.state_mask

    def draw_state_mask(self: Any, state: Any, *, training: bool) -> None:
        """Draws what is dropped of the state in the steps to come."""
        self.state_mask = self._draw_mask(state, self.recurrent_dropout, training=training)

    def _draw_mask(self: Any, like: Any, rate: float, *, training: bool) -> Any:
        if not training or not 0 < rate < 1:
            return None
        return keras.random.dropout(ops.ones_like(like), rate, seed=self.seed_generator)

    def get_dropout_mask(self, step_input: Any) -> None:
        """Nothing: Keras asks without knowing of training, and a draw is a variable that changes in inference."""

    get_recurrent_dropout_mask = get_dropout_mask

    def _products(self: Any, x: Any, short: str, first: int = 0, last: int | None = None) -> list[Any]:
        """Multiplies with a kernel ('kernel' or 'recurrent'): one product for all gates, or one for each."""
        last = self.gate_count if last is None else last
        rank, units = self._rank_of(short), self.units
        if rank is None:
            return [ops.matmul(x, _columns(self._whole(short), first, last, units))]
        u, v = getattr(self, f"{short}_u"), getattr(self, f"{short}_v")
        if self.gates == "joint":
            return [ops.matmul(ops.matmul(x, u), _columns(v, first, last, units))]
        inner = ops.matmul(x, _columns(u, first, last, rank))
        parts = [inner] if last - first == 1 else ops.split(inner, last - first, axis=-1)
        return [ops.matmul(part, v[gate]) for part, gate in zip(parts, range(first, last), strict=True)]

    def _rank_of(self, short: str) -> int | None:
        return self.input_rank if short == "kernel" else self.recurrent_rank

    def _whole(self: Any, short: str) -> Any:
        return self.kernel if short == "kernel" else self.recurrent_kernel

    def fill(self: Any, short: str, kernel: NDArray[Any]) -> None:
        """Sets a kernel ('kernel' or 'recurrent'), or its factors by truncated SVD."""
        rank = self._rank_of(short)
        if rank is None:
            self._whole(short).assign(kernel)
            return
        matrices = np.split(kernel, self.gate_count, axis=1) if self.gates == "separate" else [kernel]
        factors = [spectrum(matrix).factors(rank) for matrix in matrices]
        getattr(self, f"{short}_u").assign(np.concatenate([u for u, _ in factors], axis=1))
        v = [v for _, v in factors]
        getattr(self, f"{short}_v").assign(np.stack(v) if self.gates == "separate" else v[0])

    def get_prunable_weights(self: Any) -> list[Any]:
        """Returns the weights that passes may compress: kernels and their factors."""
        kernels = (
            self.kernel, self.kernel_u, self.kernel_v, self.recurrent_kernel, self.recurrent_u, self.recurrent_v,
        )  # fmt: skip
        return [kernel for kernel in kernels if kernel is not None]


def _joined(products: list[Any]) -> Any:
    return products[0] if len(products) == 1 else ops.concatenate(products, -1)


def _plus(x: Any, bias: Any) -> Any:
    return x if bias is None else x + bias


def _columns(matrix: Any, first: int, last: int, width: int) -> Any:
    """Returns columns `first * width` to `last * width`."""
    return matrix if last * width - first * width == matrix.shape[1] else matrix[:, first * width : last * width]


class LowRankRNN(keras.layers.RNN):  # type: ignore[misc]
    """The loop over the steps; see `LowRankGRU` and `LowRankLSTM`.

    The product of the inputs with the input kernel is taken of all steps at once, before the loop: in a .tflite file
    the loop's body then holds only what depends on the state.
    """

    cell_class: ClassVar[type[Any]]
    keras_class: ClassVar[type[Any]]

    def __init__(
        self,
        units: int,
        *,
        input_rank: int | None = None,
        recurrent_rank: int | None = None,
        gates: str = "joint",
        project_inputs: bool = True,
        **kwargs: Any,
    ) -> None:
        ranks = {
            name: None if rank is None else check_rank(rank, name)
            for name, rank in (("input_rank", input_rank), ("recurrent_rank", recurrent_rank))
        }
        if gates not in _GATES:
            raise wrong_value("unknown gates", expected="'joint' or 'separate'", received=repr(gates))
        if not project_inputs and (input_rank is not None or kwargs.get("dropout")):
            raise wrong_value(
                "with project_inputs=False there is no input kernel", expected="neither input_rank nor dropout",
                received=f"input_rank={input_rank}, dropout={kwargs.get('dropout', 0)}",
            )  # fmt: skip
        of_loop = {key: kwargs.pop(key) for key in _OF_THE_LOOP & kwargs.keys()}
        of_both = {key: kwargs.pop(key) for key in _OF_BOTH & kwargs.keys()}
        factors = {**ranks, "gates": gates, "project_inputs": project_inputs}
        super().__init__(self.cell_class(units, factors, **kwargs, **of_both, name="cell"), **of_loop, **of_both)
        self.cell.where = self.name
        self.input_spec = keras.layers.InputSpec(ndim=3)

    def inner_loop(self, sequences: Any, initial_state: Any, mask: Any, training: bool = False) -> Any:
        if keras.tree.is_nested(mask):
            mask = mask[0]
        projected = self.cell.project(sequences, training=training)
        self.cell.draw_state_mask(initial_state[0], training=training)
        try:
            return super().inner_loop(projected, initial_state, mask, training)
        finally:
            self.cell.state_mask = None

    @property
    def units(self) -> int:
        return int(self.cell.units)

    def get_prunable_weights(self) -> list[Any]:
        """Returns the weights that passes may compress: kernels and their factors."""
        kernels: list[Any] = self.cell.get_prunable_weights()
        return kernels

    def get_config(self) -> dict[str, Any]:
        cell = self.cell
        of_cell = {key: value for key, value in cell.get_config().items() if key not in {"name", *_OF_BOTH}}
        of_loop = {key: value for key, value in super().get_config().items() if key != "cell"}
        return {
            **of_cell,
            **of_loop,
            "input_rank": cell.input_rank,
            "recurrent_rank": cell.recurrent_rank,
            "gates": cell.gates,
            "project_inputs": cell.project_inputs,
            "activity_regularizer": keras.regularizers.serialize(self.activity_regularizer),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Self:
        with keras.saving.custom_object_scope(custom_objects or {}):
            return cls(**config)

    @classmethod
    def from_layer(
        cls, layer: Any, input_rank: int | None = None, recurrent_rank: int | None = None, gates: str = "joint"
    ) -> Self:
        """Returns a built layer that does nearly what a built Keras layer does, by truncated SVD of its kernels.

        Args:
            layer: A `keras.layers.GRU` or `keras.layers.LSTM`, as the class is.
            input_rank: Rank of the input kernel; None: it stays whole.
            recurrent_rank: Rank of the recurrent kernel; None: it stays whole.
            gates: See the class.

        Raises:
            ValueError: See the class; or it is another kind of layer, or not built.
            ModelError: A kernel holds NaN or infinite values.
        """
        check_source(layer, cls.keras_class)
        ranks = {"input_rank": input_rank, "recurrent_rank": recurrent_rank}
        new = cls.from_config({**layer.get_config(), **ranks, "gates": gates})
        batch = layer.states[0].shape[0] if layer.stateful else None
        new.build((batch, None, layer.cell.kernel.shape[0]))
        new.cell.fill("kernel", np.asarray(layer.cell.kernel))
        new.cell.fill("recurrent", np.asarray(layer.cell.recurrent_kernel))
        if new.cell.bias is not None:
            new.cell.bias.assign(layer.cell.bias)
        return new
