"""A dense layer whose kernel is a product of two."""

from __future__ import annotations

from typing import Any, Self

import keras
import numpy as np
from keras import ops

from edgecompress.decomposition.matrices import spectrum
from edgecompress.layers.factors import check_fits, check_rank, check_source, factor_initializers, wrong_value


@keras.saving.register_keras_serializable(package="edgecompress")
class LowRankDense(keras.layers.Layer):  # type: ignore[misc]
    """y = activation(x U V + b): a dense layer of which the kernel W (features, units) has a low rank.

    It has rank * (features + units) weights in the place of features * units, and as many multiply-accumulates for
    each vector.

    Args:
        units: Size of the output.
        rank: Number of columns of U and rows of V, from 1 to min(features, units).
        activation: As of `keras.layers.Dense`.
        use_bias: Whether b is added.
        kernel_initializer: What a whole kernel would start with: U V starts with its variance.
        bias_initializer: As of `keras.layers.Dense`.
        kernel_regularizer: Applied to U and to V.
        bias_regularizer: As of `keras.layers.Dense`.
        **kwargs: What every Keras layer takes, and `activity_regularizer`.

    Input shape: `(batch, ..., features)`. Output shape: `(batch, ..., units)`.

    Raises:
        ValueError: The rank is no whole number from 1, or, when it is built, larger than the kernel allows.
    """

    def __init__(  # noqa: PLR0913 (the arguments of keras.layers.Dense)
        self,
        units: int,
        rank: int,
        activation: Any = None,
        *,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.units = units
        self.rank = check_rank(rank)
        self.activation = keras.activations.get(activation)
        self.use_bias = use_bias
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.bias_regularizer = keras.regularizers.get(bias_regularizer)
        self.input_spec = keras.layers.InputSpec(min_ndim=2)
        self.supports_masking = True

    def build(self, input_shape: Any) -> None:
        features = input_shape[-1]
        check_fits(self.rank, features, self.units, where=self.name)
        of_u, of_v = factor_initializers(self.kernel_initializer, features, self.units, self.rank)
        self.u = self.add_weight((features, self.rank), of_u, name="u", regularizer=self.kernel_regularizer)
        self.v = self.add_weight((self.rank, self.units), of_v, name="v", regularizer=self.kernel_regularizer)
        self.bias = None
        if self.use_bias:
            self.bias = self.add_weight(
                (self.units,), self.bias_initializer, name="bias", regularizer=self.bias_regularizer
            )
        self.input_spec = keras.layers.InputSpec(min_ndim=2, axes={-1: features})

    def call(self, inputs: Any) -> Any:
        return self._finish(ops.matmul(ops.matmul(inputs, self.u), self.v))

    def _finish(self, x: Any) -> Any:
        return self.activation(x if self.bias is None else ops.add(x, self.bias))

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        return (*input_shape[:-1], self.units)

    def get_prunable_weights(self) -> list[Any]:
        """Returns the weights that passes may compress: U and V."""
        return [self.u, self.v]

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "units": self.units,
            "rank": self.rank,
            "activation": keras.activations.serialize(self.activation),
            "use_bias": self.use_bias,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
            "kernel_regularizer": keras.regularizers.serialize(self.kernel_regularizer),
            "bias_regularizer": keras.regularizers.serialize(self.bias_regularizer),
            "activity_regularizer": keras.regularizers.serialize(self.activity_regularizer),
        }

    @classmethod
    def from_dense(cls, dense: Any, rank: int) -> Self:
        """Returns a built layer that does nearly what a built `keras.layers.Dense` does, by truncated SVD.

        Raises:
            ValueError: See the class; or it is no built Dense layer, or has a constraint.
            ModelError: Its kernel holds NaN or infinite values.
        """
        layer = cls._like(dense, rank=rank)
        u, v = spectrum(np.asarray(dense.kernel)).factors(rank)
        layer.u.assign(u)
        layer.v.assign(v)
        return layer

    @classmethod
    def _like(cls, dense: Any, **options: Any) -> Self:
        """Returns a built layer with the options and the bias of a `keras.layers.Dense`."""
        check_source(dense, keras.layers.Dense)
        for constraint in ("kernel_constraint", "bias_constraint"):
            if getattr(dense, constraint) is not None:
                raise wrong_value(
                    "factors would not keep the layer's constraint", where=dense.name, expected=f"no {constraint}"
                )
        own = keras.layers.Layer.get_config(dense)
        alike = (
            "units", "use_bias", "kernel_initializer", "bias_initializer", "kernel_regularizer", "bias_regularizer",
            "activity_regularizer",
        )  # fmt: skip
        layer = cls(
            activation=dense.activation, **{key: getattr(dense, key) for key in alike},
            name=own["name"], trainable=own["trainable"], dtype=own["dtype"], **options,
        )  # fmt: skip
        layer.build((None, dense.kernel.shape[0]))
        if layer.bias is not None:
            layer.bias.assign(dense.bias)
        return layer
