"""Folds batch normalization into the layer before it.

At inference it is y = gamma (x - mean) / sqrt(variance + epsilon) + beta (Ioffe & Szegedy 2015, arXiv:1502.03167): one
factor and one number to add for each channel, which the kernel and the bias before can take up.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgecompress.data import Array
from edgecompress.passes.fuse.merge import Merge, is_linear, plain_weights, reason_against, remade
from edgecompress.passes.fuse.stages import Stage

_TRANSPOSED = frozenset({"Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"})
_DEPTHWISE = frozenset({"DepthwiseConv1D", "DepthwiseConv2D"})
_KINDS = frozenset(
    {
        "Conv1D", "Conv2D", "Conv3D", "SeparableConv1D", "SeparableConv2D", "Dense", "EinsumDense", "LowRankDense",
        *_TRANSPOSED, *_DEPTHWISE,
    }
)  # fmt: skip


def merge_batch_norm(first: Stage, second: Stage) -> Merge | str | None:
    """Returns what a layer and the BatchNormalization after it become, why nothing, or None if there is none."""
    if second.kind != "BatchNormalization":
        return None
    if reason := _reason(first, second):
        return reason
    layer, norm = first.layer, second.layer
    scale, offset = _factors(norm)
    kernel_scale = _for_kernel(layer, first.kind, scale)
    if kernel_scale is None:
        return f"the channels are an axis that the kernel or the bias of {layer.name!r} does not have"
    weights = plain_weights(layer)
    bias = np.zeros(()) if layer.bias is None else weights.pop()
    weights[-1] = weights[-1] * kernel_scale
    changes = {"bias_axes": layer.bias_axes or _last(layer)} if first.kind == "EinsumDense" else {"use_bias": True}
    name = norm.name if second.is_output else layer.name
    new = remade(layer, first.input_shape, [*weights, bias * scale + offset], name=name, **changes)
    return Merge(new, None, f"scale and offset of {len(scale)} channels folded into kernel and bias")


def _reason(first: Stage, second: Stage) -> str | None:
    layer, norm = first.layer, second.layer
    if first.kind not in _KINDS:
        return f"follows {layer.name!r}, into which nothing can be folded ({type(layer).__name__})"
    if not is_linear(layer):
        return f"an activation comes in between: that of {layer.name!r}"
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        return f"{layer.name!r} has its channels first"
    if norm.axis not in (-1, len(second.input_shape) - 1):
        return f"normalizes axis {norm.axis}; the kernel of {layer.name!r} has the last one"
    return reason_against(layer, norm)


def _factors(norm: Any) -> tuple[Array, Array]:
    """Returns scale and offset of each channel: y = scale x + offset."""
    mean, variance = (np.asarray(value, np.float64) for value in (norm.moving_mean, norm.moving_variance))
    scale = 1 / np.sqrt(variance + norm.epsilon)
    if norm.gamma is not None:
        scale = scale * np.asarray(norm.gamma)
    offset = -mean * scale
    return scale, offset if norm.beta is None else offset + np.asarray(norm.beta)


def _for_kernel(layer: Any, kind: str, scale: Array) -> Array | None:
    """Returns the scale in a shape by which the kernel can be multiplied."""
    if kind in _TRANSPOSED:
        return scale[:, None]
    if kind in _DEPTHWISE:
        return scale.reshape(tuple(layer.kernel.shape)[-2:])
    if kind != "EinsumDense":
        return scale
    label, kernel = _last(layer), layer.equation.replace(" ", "").split("->")[0].split(",")[1]
    if not label.isalpha() or label not in kernel or (layer.bias_axes and label not in layer.bias_axes):
        return None
    return scale.reshape([-1 if axis == label else 1 for axis in kernel])


def _last(layer: Any) -> str:
    """Returns the label of the last axis of what an EinsumDense returns."""
    return str(layer.equation.replace(" ", "")[-1])
