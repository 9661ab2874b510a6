"""A dense layer whose kernel is a product of low rank and a sparse rest."""

from __future__ import annotations

from typing import Any, Self

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from edgecompress.decomposition.matrices import check_weights
from edgecompress.layers.dense import LowRankDense
from edgecompress.layers.factors import wrong_value

_ROUNDS = 10  # of taking the two parts in turn; more lower the error by some percent at most


@keras.saving.register_keras_serializable(package="edgecompress")
class FactorizedDense(LowRankDense):
    """y = activation(x (U diag(s) V + R) + b): a dense layer with a kernel of low rank and a sparse residual R.

    The few large weights that a product of low rank misses are in R, which is stored as the values and the positions
    of the entries that may be other than zero. It is computed as a whole matrix: in a .tflite file R is one, mostly of
    zeros, so that the file becomes smaller than that of a dense layer only when it is packed.

    Args:
        units: Size of the output.
        rank: Number of columns of U and rows of V, from 1 to min(features, units).
        density: Share of the entries of R that may be other than zero, from 0 to 1.
        activation: As of `keras.layers.Dense`.
        seed: Draws the positions of these entries in a new layer.
        **kwargs: As of `LowRankDense`. The regularizer of the kernel is applied to U and to V.

    Input shape: `(batch, ..., features)`. Output shape: `(batch, ..., units)`.

    Raises:
        ValueError: The rank is no whole number from 1, or the density not between 0 and 1, or, when it is built, the
            rank is larger than the kernel allows.
    """

    def __init__(
        self,
        units: int,
        rank: int,
        density: float,
        activation: Any = None,
        *,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(units, rank, activation, **kwargs)
        if not 0 <= density <= 1:
            raise wrong_value("density is not a share", expected="a number from 0 to 1", received=density)
        self.density = density
        self.seed = seed

    def build(self, input_shape: Any) -> None:
        super().build(input_shape)
        features = input_shape[-1]
        count = round(self.density * features * self.units)
        self.s = self.add_weight((self.rank,), "ones", name="s")
        self.residual_values: Any = None
        self.residual_indices: Any = None
        if not count:
            return
        self.residual_values = self.add_weight((count,), "zeros", name="residual_values")
        self.residual_indices = self.add_weight(
            (count, 2), self._draw_positions, dtype="int32", trainable=False, autocast=False, name="residual_indices"
        )

    def _draw_positions(self, shape: Any, dtype: Any = None) -> Any:
        size = self.u.shape[0] * self.units
        order = ops.argsort(keras.random.uniform((size,), seed=self.seed))
        chosen = ops.sort(order[: shape[0]])
        return ops.cast(ops.stack([chosen // self.units, chosen % self.units], axis=1), dtype)

    def call(self, inputs: Any) -> Any:
        x = ops.matmul(ops.matmul(inputs, self.u * self.s), self.v)
        if self.residual_values is not None:
            x = x + ops.matmul(inputs, self._residual())
        return self._finish(x)

    def _residual(self) -> Any:
        # Not ops.scatter: the converter makes one constant of this, but of large scatters into nothing it does not.
        zeros = ops.zeros((self.u.shape[0], self.units), self.compute_dtype)
        return ops.scatter_update(zeros, self.residual_indices, self.residual_values)

    def kernel_matrix(self) -> NDArray[Any]:
        """Returns the kernel of a dense layer that does the same: U diag(s) V + R, (features, units)."""
        u, s, v = (np.asarray(variable, np.float64) for variable in (self.u, self.s, self.v))
        kernel: NDArray[Any] = (u * s) @ v + self.residual_matrix()
        return kernel

    def residual_matrix(self) -> NDArray[Any]:
        """Returns R, (features, units), mostly of zeros."""
        residual = np.zeros((self.u.shape[0], self.units), np.float32)
        if self.residual_values is not None:
            rows, columns = np.asarray(self.residual_indices).T
            residual[rows, columns] = np.asarray(self.residual_values)
        return residual

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "density": self.density, "seed": self.seed}

    @classmethod
    def from_dense(cls, dense: Any, rank: int, density: float = 0.05) -> Self:
        """Returns a built layer that does nearly what a built `keras.layers.Dense` does.

        The product and the residual are taken in turn, each the best for the other, which lowers the error in each
        round (GoDec: Zhou and Tao 2011, ICML).

        Raises:
            ValueError: See the class; or it is no built Dense layer, or has a constraint.
            ModelError: Its kernel holds NaN or infinite values.
        """
        layer = cls._like(dense, rank=rank, density=density)
        kernel = np.asarray(dense.kernel, np.float64)
        check_weights(kernel)
        count = 0 if layer.residual_values is None else layer.residual_values.shape[0]
        rest = np.zeros_like(kernel)
        for _ in range(_ROUNDS if count else 1):
            u, s, v = np.linalg.svd(kernel - rest, full_matrices=False)
            u, s, v = u[:, :rank], s[:rank], v[:rank]
            missed = kernel - (u * s) @ v
            largest = np.sort(np.argsort(-np.abs(missed), axis=None, kind="stable")[:count])
            positions = np.stack(np.unravel_index(largest, kernel.shape), axis=1)
            rest = np.zeros_like(kernel)
            rest.flat[largest] = missed.flat[largest]
        layer.u.assign(u)
        layer.s.assign(s)
        layer.v.assign(v)
        if count:
            layer.residual_values.assign(rest.flat[largest])
            layer.residual_indices.assign(positions)
        return layer
