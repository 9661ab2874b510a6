"""TFMOT quantizers for what its own do not do: scales that several results share, and kernels that keep their zeros
and shared values.

TFMOT's cluster-preserving quantizer moves weights between clusters while it trains and lets each kernel be a variable
twice; here a weight stays in its cluster, and a cluster moves as a whole. Importing this module imports TFMOT: it is
imported where it is used.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow_model_optimization.python.core.quantization.keras import quantizers

from edgecompress.data import Array
from edgecompress.tfmot.lowering import Node

_INT8_BITS = 8
_SPARSE = ("kernel", "table")  # zeros elsewhere, as in the slopes of a new PReLU, are no pattern


class SharedRange(quantizers.AllValuesQuantizer):  # type: ignore[misc]
    """One range for the results of several layers: all that any of them took."""

    def __init__(self, num_bits: int, *, symmetric: bool) -> None:
        super().__init__(num_bits=num_bits, per_axis=False, symmetric=symmetric, narrow_range=False)
        self._ranges: Any = None

    def build(self, tensor_shape: Any, name: str, layer: Any) -> Any:
        if self._ranges is None:
            self._ranges = super().build(tensor_shape, name, layer)
        return self._ranges


class KeepingWeights(quantizers.LastValueQuantizer):  # type: ignore[misc]
    """Rounds a kernel whose zeros stay zero and whose equal values stay equal.

    Args:
        num_bits: Width of the integers.
        per_axis: One scale for each entry of the last axis.
        mask: 0 where weights stay zero, 1 elsewhere; or None.
        clusters: The number of the cluster that each weight is in; or None.
        factors: The weights of a cluster are equal once they are divided by these; or None.
    """

    def __init__(
        self, num_bits: int, *, per_axis: bool, mask: Array | None, clusters: Array | None, factors: Array | None
    ) -> None:
        super().__init__(num_bits=num_bits, per_axis=per_axis, symmetric=True, narrow_range=True)
        self._mask = mask
        self._clusters = clusters
        self._factors = factors

    def keep(self, kernel: Any) -> Any:
        """Returns the kernel with its pattern restored; each cluster becomes the mean of its members."""
        if self._clusters is not None:
            factors = 1.0 if self._factors is None else self._factors
            numbers, count = self._clusters.reshape(-1), int(self._clusters.max()) + 1
            values = tf.reshape(tf.math.divide_no_nan(kernel, factors), [-1])
            means = tf.math.unsorted_segment_mean(values, numbers, count)
            kernel = tf.reshape(tf.gather(means, numbers), kernel.shape) * factors
        return kernel if self._mask is None else kernel * self._mask

    def __call__(self, inputs: Any, training: Any, weights: Any, **kwargs: Any) -> Any:
        return super().__call__(self.keep(inputs), training, weights, **kwargs)


def weight_quantizer(node: Node, name: str, *, bits: int, per_channel: bool, sparsity: bool) -> KeepingWeights:
    """Returns the quantizer of a node's weight.

    Args:
        node: Its clusters are kept.
        name: The weight.
        bits: Width of the integers.
        per_channel: One scale for each entry of the last axis.
        sparsity: Keep zeros.
    """
    mask = zero_mask(node.weights[name]) if sparsity and name in _SPARSE else None
    return KeepingWeights(bits, per_axis=per_channel, mask=mask, clusters=node.clusters, factors=node.factors)


def zero_mask(kernel: Array) -> Array | None:
    """Returns 0 where a kernel is 0 and 1 elsewhere; None if there is nothing to keep."""
    return (kernel != 0).astype(np.float32) if kernel.any() and not kernel.all() else None


def result_quantizer(*, bits: int, fixed: tuple[float, float] | None, shared: bool) -> Any:
    """Returns the quantizer of a result, or of the results that share a scale."""
    symmetric = bits > _INT8_BITS  # 16-bit activations have no zero point
    if fixed is not None and not symmetric:
        return quantizers.FixedQuantizer(num_bits=bits, init_min=fixed[0], init_max=fixed[1], narrow_range=False)
    if shared:
        return SharedRange(bits, symmetric=symmetric)
    return quantizers.MovingAverageQuantizer(num_bits=bits, per_axis=False, symmetric=symmetric, narrow_range=False)
