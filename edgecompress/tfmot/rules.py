"""How each Keras 3 layer is written in primitives. `edgecompress.tfmot.lowering` calls these by the layer's class."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from edgecompress.recurrent.reading import is_recurrent
from edgecompress.tfmot.activation_rules import activate, elu, relu, softmax
from edgecompress.tfmot.lowering import Lowering, Node, UnsupportedError, masked, rule
from edgecompress.tfmot.products import arithmetic, dense, einsum, join, reshape, transpose

_IMAGE_AXES = 3  # height, width, channels
_ALONG_THE_LAST_AXIS = frozenset({"Activation", "Dense", "Dropout", "FactorizedDense", "LowRankDense"})
_NO_VARIANCE = 1e-14  # of the inputs of a Normalization; Keras divides by 1e-7 at least


def array(variable: Any) -> Any:
    """The value of a Keras variable, or None."""
    return None if variable is None else np.asarray(variable)


def _channels_last(layer: Any) -> None:
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        raise UnsupportedError("its data format is channels_first, which TensorFlow Lite does not have")


def _last_axis(layer: Any, x: Node) -> None:
    axes = [layer.axis] if isinstance(layer.axis, int) else list(layer.axis)
    if [axis % (len(x.shape) + 1) for axis in axes] != [len(x.shape)]:
        raise UnsupportedError("it normalizes over another axis than the last")


@rule("Dense")
def _dense(low: Lowering, layer: Any, x: Node) -> Node:
    return activate(low, dense(low, x, array(layer.kernel), array(layer.bias)), layer.activation)


@rule("LowRankDense")
def _low_rank_dense(low: Lowering, layer: Any, x: Node) -> Node:
    return activate(low, _product(low, x, array(layer.u), layer), layer.activation)


@rule("FactorizedDense")
def _factorized_dense(low: Lowering, layer: Any, x: Node) -> Node:
    """The residual is not trained, because its zeros would not stay."""
    result = _product(low, x, array(layer.u) * array(layer.s), layer)
    if layer.residual_values is not None:
        rest = dense(low, x, layer.residual_matrix(), None)
        rest.trainable = False
        result = low.add("add", result, rest)
    return activate(low, result, layer.activation)


def _product(low: Lowering, x: Node, u: Any, layer: Any) -> Node:
    return dense(low, dense(low, x, u, None), array(layer.v), array(layer.bias))


@rule("EinsumDense")
def _einsum_dense(low: Lowering, layer: Any, x: Node) -> Node:
    return activate(low, einsum(low, x, layer.equation, array(layer.kernel), array(layer.bias)), layer.activation)


@rule("Conv2D", "Conv1D")
def _conv(low: Lowering, layer: Any, x: Node) -> Node:
    weights = {"kernel": _image_kernel(layer.kernel), "bias": array(layer.bias)}
    return _as_image(low, x, layer, lambda image, facts: low.add("conv", image, weights=weights, **facts))


@rule("DepthwiseConv2D", "DepthwiseConv1D")
def _depthwise(low: Lowering, layer: Any, x: Node) -> Node:
    weights = {"kernel": _depthwise_kernel(layer.kernel), "bias": array(layer.bias)}
    return _as_image(low, x, layer, lambda image, facts: low.add("depthwise", image, weights=weights, **facts))


@rule("SeparableConv2D", "SeparableConv1D")
def _separable(low: Lowering, layer: Any, x: Node) -> Node:
    def both(image: Node, facts: dict[str, Any]) -> Node:
        middle = low.add("depthwise", image, weights={"kernel": _depthwise_kernel(layer.depthwise_kernel)}, **facts)
        weights = {"kernel": _image_kernel(layer.pointwise_kernel), "bias": array(layer.bias)}
        return low.add("conv", middle, weights=weights, strides=(1, 1), padding="VALID", dilations=(1, 1))

    return _as_image(low, x, layer, both)


@rule("Conv2DTranspose", "Conv1DTranspose")
def _conv_transpose(low: Lowering, layer: Any, x: Node) -> Node:
    _channels_last(layer)
    if any(size != 1 for size in layer.dilation_rate):
        raise UnsupportedError("a dilated transposed convolution has no operator in TensorFlow Lite")
    flat = len(x.shape) < _IMAGE_AXES
    image = reshape(low, x, (1, *x.shape)) if flat else x
    padding = layer.output_padding
    if flat and padding is not None:
        padding = (0, *padding)
    result = low.add(
        "conv_transpose", image, weights={"kernel": _image_kernel(layer.kernel), "bias": array(layer.bias)},
        strides=(1, *layer.strides) if flat else tuple(layer.strides), padding=layer.padding, output_padding=padding,
    )  # fmt: skip
    result = activate(low, result, layer.activation)
    return reshape(low, result, result.shape[1:]) if flat else result


def _as_image(low: Lowering, x: Node, layer: Any, convolve: Any) -> Node:
    """Convolves and activates; a sequence becomes an image of height 1, because per-channel scales need four axes."""
    _channels_last(layer)
    strides, dilations, padding = tuple(layer.strides), tuple(layer.dilation_rate), layer.padding
    flat = len(x.shape) < _IMAGE_AXES
    if padding == "causal":
        left = dilations[0] * (layer.kernel_size[0] - 1)
        x, padding = low.add("move", x, function=functools.partial(_pad, paddings=[[0, 0], [left, 0], [0, 0]])), "valid"
    image = reshape(low, x, (1, *x.shape)) if flat else x
    if flat:
        strides, dilations = strides * 2, (1, *dilations)
    result = convolve(image, {"strides": strides, "padding": padding.upper(), "dilations": dilations})
    result = activate(low, result, layer.activation)
    return reshape(low, result, result.shape[1:]) if flat else result


def _pad(tensor: Any, paddings: list[list[int]]) -> Any:
    import tensorflow as tf

    return tf.pad(tensor, paddings)


def _image_kernel(variable: Any) -> Any:
    kernel = array(variable)
    return kernel if kernel.ndim == _IMAGE_AXES + 1 else kernel[None]


def _depthwise_kernel(variable: Any) -> Any:
    kernel = _image_kernel(variable)
    return kernel.reshape(*kernel.shape[:2], 1, -1)


@rule("Embedding")
def _embedding(low: Lowering, layer: Any, x: Node) -> Node:
    if layer.mask_zero:
        raise masked("mask_zero")
    return low.add("embedding", x, weights={"table": array(layer.embeddings)})


@rule("Masking", "ops.NotEqual")  # the second is what Keras 3 adds to a model for the first
def _masking(_low: Lowering, _layer: Any, *_inputs: Any) -> Node:
    raise masked()


@rule("BatchNormalization")
def _batch_normalization(low: Lowering, layer: Any, x: Node) -> Node:
    _last_axis(layer, x)
    ones = np.ones(x.shape[-1], np.float32)
    gamma = ones if layer.gamma is None else array(layer.gamma)
    beta = 0 * ones if layer.beta is None else array(layer.beta)
    scale = gamma / np.sqrt(array(layer.moving_variance) + layer.epsilon)
    return _affine(low, x, scale, beta - array(layer.moving_mean) * scale)


def _affine(low: Lowering, x: Node, scale: Any, bias: Any, *, trainable: bool = True) -> Node:
    """Scale and offset for each entry of the last axis."""
    channels = x.shape[-1]
    scales = np.broadcast_to(np.asarray(scale, np.float32).reshape(1, 1, 1, -1), (1, 1, 1, channels))
    offsets = np.broadcast_to(np.asarray(bias, np.float32).reshape(-1), (channels,))
    node = low.add("affine", x, weights={"scale": scales, "bias": offsets})
    node.trainable = node.trainable and trainable
    return node


@rule("Rescaling")
def _rescaling(low: Lowering, layer: Any, x: Node) -> Node:
    return _affine(low, x, np.asarray(layer.scale), np.asarray(layer.offset), trainable=False)


@rule("Normalization")
def _normalization(low: Lowering, layer: Any, x: Node) -> Node:
    mean, variance = array(layer.mean), array(layer.variance)
    if layer.invert:
        raise UnsupportedError("a Normalization that inverts")
    if mean.size not in (1, x.shape[-1]):
        raise UnsupportedError("it normalizes over another axis than the last")
    # A feature that never varied is 0 after Keras's own division by almost nothing, which integers cannot follow.
    scale = np.where(variance > _NO_VARIANCE, 1 / np.sqrt(np.maximum(variance, _NO_VARIANCE)), 0)
    return _affine(low, x, scale, -mean * scale, trainable=False)


@rule("LayerNormalization")
def _layer_normalization(low: Lowering, layer: Any, x: Node) -> Node:
    _last_axis(layer, x)
    mean = low.add("reduce", x, how="mean", axes=[-1], keepdims=True)
    centered = low.add("subtract", x, mean)
    variance = low.add("reduce", low.add("squared_difference", x, mean), how="mean", axes=[-1], keepdims=True)
    return _scale_by_root(low, centered, variance, layer.epsilon, array(layer.gamma), array(layer.beta))


@rule("RMSNormalization")
def _rms_normalization(low: Lowering, layer: Any, x: Node) -> Node:
    _last_axis(layer, x)
    power = low.add("reduce", low.add("multiply", x, x), how="mean", axes=[-1], keepdims=True)
    return _scale_by_root(low, x, power, layer.epsilon, array(layer.scale), None)


def _scale_by_root(low: Lowering, x: Node, variance: Node, epsilon: float, gamma: Any, beta: Any) -> Node:
    shifted = low.add("floor", low.add("add", variance, weights={"constant": epsilon}))
    result = low.add("multiply", x, low.add("compute", shifted, function=_rsqrt))
    if gamma is None and beta is None:
        return result
    return _affine(low, result, 1.0 if gamma is None else gamma, 0.0 if beta is None else beta)


def _rsqrt(tensor: Any) -> Any:
    import tensorflow as tf

    return tf.math.rsqrt(tensor)


@rule("UnitNormalization")
def _unit_normalization(low: Lowering, layer: Any, x: Node) -> Node:
    _last_axis(layer, x)
    return low.add("l2_normalize", x)


@rule("LayerScale")
def _layer_scale(low: Lowering, layer: Any, x: Node) -> Node:
    return _affine(low, x, array(layer.gamma), 0.0)


@rule("CustomScaleLayer")
def _custom_scale(low: Lowering, layer: Any, inputs: list[Node]) -> Node:
    return low.add("add", inputs[0], _affine(low, inputs[1], layer.scale, 0.0, trainable=False))


@rule("Activation")
def _activation(low: Lowering, layer: Any, x: Node) -> Node:
    return activate(low, x, layer.activation)


@rule("ReLU")
def _relu(low: Lowering, layer: Any, x: Node) -> Node:
    return relu(
        low, x, negative_slope=float(layer.negative_slope or 0), max_value=layer.max_value,
        threshold=float(layer.threshold or 0),
    )  # fmt: skip


@rule("LeakyReLU")
def _leaky_relu(low: Lowering, layer: Any, x: Node) -> Node:
    return relu(low, x, negative_slope=float(layer.negative_slope))


@rule("PReLU")
def _prelu(low: Lowering, layer: Any, x: Node) -> Node:
    """max(x, 0) + alpha min(x, 0): TensorFlow Lite's own PRELU does not become int8 in the converter."""
    below = low.add("minimum", x, bound=0.0)
    scaled = low.add("multiply", below, weights={"alpha": array(layer.alpha)})
    return low.add("add", low.add("relu", x), scaled)


@rule("ELU")
def _elu(low: Lowering, layer: Any, x: Node) -> Node:
    return elu(low, x, float(layer.alpha))


@rule("Softmax")
def _softmax(low: Lowering, layer: Any, x: Node) -> Node:
    return softmax(low, x, layer.axis)


@rule("Add", "Subtract", "Multiply", "Average")
def _merge(low: Lowering, layer: Any, inputs: list[Node]) -> Node:
    kind = "add" if type(layer).__name__ == "Average" else type(layer).__name__.lower()
    result = functools.reduce(lambda a, b: arithmetic(low, kind, a, b), inputs)
    if type(layer).__name__ == "Average":
        result = low.add("multiply", result, weights={"constant": 1 / len(inputs)})
    return result


@rule("Maximum", "Minimum")
def _choose(low: Lowering, layer: Any, inputs: list[Node]) -> Node:
    return functools.reduce(lambda a, b: low.add(type(layer).__name__.lower(), a, b), inputs)


@rule("Concatenate")
def _concatenate(low: Lowering, layer: Any, inputs: list[Node]) -> Node:
    return join(low, inputs, layer.axis)


@rule(
    "AveragePooling1D", "AveragePooling2D", "MaxPooling1D", "MaxPooling2D", "GlobalMaxPooling1D", "GlobalMaxPooling2D",
    "UpSampling1D", "ZeroPadding1D", "ZeroPadding2D", "Cropping1D", "Cropping2D", "RepeatVector",
    "Permute",
)  # fmt: skip
def _move(low: Lowering, layer: Any, x: Node) -> Node:
    _channels_last(layer)
    return low.add("move", x, function=layer.call)  # calling the layer would cast to its own, maybe 16-bit, type


@rule("UpSampling2D")
def _up_sampling(low: Lowering, layer: Any, x: Node) -> Node:
    _channels_last(layer)
    size = [length * factor for length, factor in zip(x.shape, layer.size, strict=False)]

    def resize(tensor: Any) -> Any:
        import tensorflow as tf

        return tf.image.resize(tensor, size, layer.interpolation)

    if layer.interpolation not in ("nearest", "bilinear"):
        raise UnsupportedError(f"TensorFlow Lite has no {layer.interpolation} interpolation")
    return low.add("move", x, function=resize)


@rule("Reshape")
def _reshape(low: Lowering, layer: Any, x: Node) -> Node:
    known = -math.prod(layer.target_shape)
    return reshape(low, x, [math.prod(x.shape) // known if n == -1 else n for n in layer.target_shape])


@rule("Flatten")
def _flatten(low: Lowering, layer: Any, x: Node) -> Node:
    _channels_last(layer)
    return reshape(low, x, (math.prod(x.shape),))


@rule("GlobalAveragePooling1D", "GlobalAveragePooling2D")
def _global_average(low: Lowering, layer: Any, x: Node) -> Node:
    _channels_last(layer)
    axes = list(range(1, len(x.shape)))
    return low.add("reduce", x, how="mean", axes=axes, keepdims=bool(layer.keepdims))


@rule("TimeDistributed")
def _time_distributed(low: Lowering, layer: Any, x: Node) -> Node:
    """Steps are laid beside the samples, the layer is called once, and they are taken apart again."""
    if type(layer.layer).__name__ in _ALONG_THE_LAST_AXIS:  # which does not care how many steps there are
        along: Node = low.write(layer.layer, x)
        return along
    if any(is_recurrent(each) for each in layer.layer._flatten_layers()):  # noqa: SLF001
        raise UnsupportedError("a recurrent layer that is called for each step of another sequence")
    steps, *inner = x.shape
    result = low.write_inner(layer.layer, low.add("reshape", x, shape=tuple(inner)))
    return low.add("reshape", result, shape=(steps, *result.shape))


@rule("MultiHeadAttention")
def _multi_head_attention(  # noqa: PLR0913, PLR0917 (the layer's own arguments)
    low: Lowering, layer: Any, query: Node, value: Node, key: Node | None = None, query_mask: Any = None,
    value_mask: Any = None, key_mask: Any = None, attention_mask: Any = None, return_attention_scores: bool = False,
    training: Any = None, use_causal_mask: bool = False,
) -> Any:  # fmt: skip
    """softmax(Q K' / sqrt(d)) V for each head (Vaswani et al. 2017, arXiv:1706.03762)."""
    del training
    if any(mask is not None for mask in (query_mask, value_mask, key_mask, attention_mask)) or use_causal_mask:
        raise UnsupportedError("attention masks have no place in an int8 file")
    if len(query.shape) != 2:  # noqa: PLR2004 (steps and features)
        raise UnsupportedError("attention over more than one axis")
    heads = int(layer.num_heads)
    scale = 1 / math.sqrt(float(layer.key_dim))
    q = _project(low, query, layer.query_dense, heads, scale)
    k = _project(low, value if key is None else key, layer.key_dense, heads)
    v = _project(low, value, layer.value_dense, heads)
    weights = low.add("softmax", low.add("matmul", q, k, transpose_b=True))
    mixed = transpose(low, low.add("matmul", weights, v), [0, 2, 1, 3])
    kernel = array(layer.output_dense.kernel)
    flat = reshape(low, mixed, (query.shape[0], math.prod(kernel.shape[:2])))
    result = dense(low, flat, kernel.reshape(flat.shape[-1], -1), array(layer.output_dense.bias))
    return (result, weights) if return_attention_scores else result


def _project(low: Lowering, x: Node, layer: Any, heads: int, scale: float = 1.0) -> Node:
    """Returns (heads, steps, size); the scale of the scores is folded into the query's weights."""
    kernel, bias = array(layer.kernel) * scale, array(layer.bias)
    flat = dense(low, x, kernel.reshape(kernel.shape[0], -1), None if bias is None else bias.reshape(-1) * scale)
    return transpose(low, reshape(low, flat, (x.shape[0], heads, kernel.shape[2])), [0, 2, 1, 3])
