"""The operations that a quantized network is built of: each becomes one TensorFlow Lite operator with int8 kernels.

`edgecompress.tfmot.lowering` writes a Keras 3 model in them; `edgecompress.tfmot.qat` makes layers of them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from edgecompress.recurrent.cells import RecurrentLayer
from edgecompress.tfmot.recurrent import run_cell

Tensor = Any
Function = Callable[..., Tensor]


class Range(Enum):
    """Where the scale of an operation's result comes from."""

    OWN = "own"  # the result has a scale of its own
    SAME = "same"  # operator kernels demand the scale of the inputs: values are moved or chosen, not computed
    TABLE = "table"  # an embedding: the scale of the table that it looks up


@dataclass(frozen=True)
class Primitive:
    """An operation.

    Attributes:
        function: Takes the list of input tensors, the weights by name, and the settings.
        range: Where the scale of its result comes from.
        fixed: The range that its kernel always writes in, if it has one.
        fuses_relu: Whether its kernel can apply ReLU or ReLU6 before it rounds.
        per_channel: Names of the weights with a scale for each entry of their last axis.
        per_tensor: Names of the weights with one scale. Others, such as biases and constants, are left to the
            converter, which makes 32-bit integers of biases and finds the scale of a constant itself.
    """

    function: Function
    range: Range = Range.OWN
    fixed: tuple[float, float] | None = None
    fuses_relu: bool = False
    per_channel: tuple[str, ...] = ()
    per_tensor: tuple[str, ...] = ()


PRIMITIVES: dict[str, Primitive] = {}

# The kernels of softmax and sigmoid write in steps of 1/256 from 0, those of tanh in steps of 1/128 around 0
# (tensorflow/lite/g3doc/performance/quantization_spec.md).
_UNIT = (0.0, 255 / 256)
_SIGNED_UNIT = (-1.0, 127 / 128)


def _primitive(name: str, **facts: Any) -> Callable[[Function], Function]:
    def register(function: Function) -> Function:
        if name in PRIMITIVES:
            raise ValueError(f"there is a primitive {name!r} already")
        PRIMITIVES[name] = Primitive(function, **facts)
        return function

    return register


def apply(name: str, inputs: Sequence[Tensor], weights: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Tensor:
    """Returns the result of a primitive, a tensor whose first axis is the batch."""
    return PRIMITIVES[name].function(list(inputs), weights, **settings)


@_primitive("input")
def _input(inputs: list[Tensor], _weights: Mapping[str, Tensor], *, shape: Sequence[int]) -> Tensor:
    """Says what shape the samples have: tf_keras forgets it while it trains, and others need it.

    What is known stays: a network that is run step by step is given sequences of one step.
    """
    if None in inputs[0].shape[1:]:
        inputs[0].set_shape((None, *shape))
    return inputs[0]


@_primitive("move", range=Range.SAME)
@_primitive("compute")
def _call(inputs: list[Tensor], _weights: Mapping[str, Tensor], *, function: Callable[..., Tensor]) -> Tensor:
    """Calls a Keras 3 operation, or a function over tensors, that becomes a single operator."""
    return function(*inputs)


@_primitive("cast")
def _cast(inputs: list[Tensor], _weights: Mapping[str, Tensor]) -> Tensor:
    """Makes floats of an input of integers, which then have a scale as others do."""
    import tensorflow as tf

    return tf.cast(inputs[0], tf.float32)


@_primitive("reshape", range=Range.SAME)
def _reshape(inputs: list[Tensor], _weights: Mapping[str, Tensor], *, shape: Sequence[int]) -> Tensor:
    import tensorflow as tf

    return tf.reshape(inputs[0], (-1, *shape))


@_primitive("conv", fuses_relu=True, per_channel=("kernel",))
def _conv(
    inputs: list[Tensor],
    weights: Mapping[str, Tensor],
    *,
    strides: Sequence[int],
    padding: str,
    dilations: Sequence[int],
) -> Tensor:
    import tensorflow as tf

    result = tf.nn.conv2d(inputs[0], weights["kernel"], strides, padding, dilations=dilations)
    return _add_bias(result, weights)


@_primitive("depthwise", fuses_relu=True, per_channel=("kernel",))
def _depthwise(
    inputs: list[Tensor],
    weights: Mapping[str, Tensor],
    *,
    strides: Sequence[int],
    padding: str,
    dilations: Sequence[int],
) -> Tensor:
    """The kernel is (height, width, 1, channels * multiplier): its last axis is that of the scales."""
    import tensorflow as tf

    height, width, _, outputs = weights["kernel"].shape
    channels = inputs[0].shape[-1]
    kernel = tf.reshape(weights["kernel"], (height, width, channels, outputs // channels))
    result = tf.nn.depthwise_conv2d(inputs[0], kernel, (1, *strides, 1), padding, dilations=dilations)
    return _add_bias(result, weights)


@_primitive("conv_transpose", per_tensor=("kernel",))
def _conv_transpose(
    inputs: list[Tensor], weights: Mapping[str, Tensor], *, strides: Sequence[int], padding: str, output_padding: Any
) -> Tensor:
    import keras

    result = keras.ops.conv_transpose(
        inputs[0], weights["kernel"], strides=strides, padding=padding, output_padding=output_padding
    )
    return _add_bias(result, weights)


@_primitive("dense", fuses_relu=True, per_tensor=("kernel",))
def _dense(inputs: list[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
    import tensorflow as tf

    # One matrix product whatever the rank: a batched one would not become FULLY_CONNECTED.
    return _add_bias(tf.tensordot(inputs[0], weights["kernel"], 1), weights)


@_primitive("embedding", range=Range.TABLE, per_tensor=("table",))
def _embedding(inputs: list[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
    import tensorflow as tf

    return tf.gather(weights["table"], tf.cast(inputs[0], tf.int32))


@_primitive("affine", fuses_relu=True, per_channel=("scale",))
def _affine(inputs: list[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
    """Scale, of shape (1, 1, 1, channels), and offset for each entry of the last axis: a depthwise convolution.

    Unlike MUL and ADD it rounds once, and its scales are per channel.
    """
    import tensorflow as tf

    x = inputs[0]
    inner = x.shape[1:]
    channels = inner[-1]
    image = x if len(inner) == 3 else tf.reshape(x, (-1, 1, _product(inner[:-1]), channels))  # noqa: PLR2004 (h, w, c)
    kernel = tf.reshape(weights["scale"], (1, 1, channels, 1))
    result = tf.nn.depthwise_conv2d(image, kernel, (1, 1, 1, 1), "VALID")
    result = tf.nn.bias_add(result, weights["bias"])
    return result if image is x else tf.reshape(result, (-1, *inner))


@_primitive("add", fuses_relu=True)
def _add(inputs: list[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
    return inputs[0] + _other(inputs, weights)


@_primitive("subtract", fuses_relu=True)
def _subtract(inputs: list[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
    return inputs[0] - _other(inputs, weights)


@_primitive("multiply", fuses_relu=True, per_tensor=("alpha",))
def _multiply(inputs: list[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
    return inputs[0] * _other(inputs, weights)


@_primitive("divide")
def _divide(inputs: list[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
    return inputs[0] / _other(inputs, weights)


@_primitive("maximum", range=Range.SAME)
def _maximum(inputs: list[Tensor], _weights: Mapping[str, Tensor], *, bound: float | None = None) -> Tensor:
    import tensorflow as tf

    return tf.maximum(inputs[0], inputs[1] if bound is None else bound)


@_primitive("minimum", range=Range.SAME)
def _minimum(inputs: list[Tensor], _weights: Mapping[str, Tensor], *, bound: float | None = None) -> Tensor:
    import tensorflow as tf

    return tf.minimum(inputs[0], inputs[1] if bound is None else bound)


@_primitive("floor", range=Range.SAME)
def _floor(inputs: list[Tensor], _weights: Mapping[str, Tensor], *, bound: float = 0.0) -> Tensor:
    """Keeps 0 from functions that are infinite or infinitely steep there; rounding makes it of small numbers.

    `edgecompress.tfmot.scales` raises the bound to one step of the scale.
    """
    import tensorflow as tf

    return tf.maximum(inputs[0], bound)


@_primitive("matmul")
def _matmul(inputs: list[Tensor], _weights: Mapping[str, Tensor], *, transpose_b: bool = False) -> Tensor:
    import tensorflow as tf

    return tf.matmul(inputs[0], inputs[1], transpose_b=transpose_b)


@_primitive("squared_difference")
def _squared_difference(inputs: list[Tensor], _weights: Mapping[str, Tensor]) -> Tensor:
    import tensorflow as tf

    return tf.math.squared_difference(inputs[0], inputs[1])


@_primitive("reduce")
def _reduce(inputs: list[Tensor], _weights: Mapping[str, Tensor], *, how: str, axes: Any, keepdims: bool) -> Tensor:
    import tensorflow as tf

    return getattr(tf, f"reduce_{how}")(inputs[0], axes, keepdims)


@_primitive("relu")
def _relu(inputs: list[Tensor], _weights: Mapping[str, Tensor]) -> Tensor:
    import tensorflow as tf

    return tf.nn.relu(inputs[0])


@_primitive("relu6")
def _relu6(inputs: list[Tensor], _weights: Mapping[str, Tensor]) -> Tensor:
    import tensorflow as tf

    return tf.nn.relu6(inputs[0])


@_primitive("leaky_relu")
def _leaky_relu(inputs: list[Tensor], _weights: Mapping[str, Tensor], *, slope: float) -> Tensor:
    import tensorflow as tf

    return tf.nn.leaky_relu(inputs[0], slope)


@_primitive("sigmoid", fixed=_UNIT)
def _sigmoid(inputs: list[Tensor], _weights: Mapping[str, Tensor]) -> Tensor:
    import tensorflow as tf

    return tf.sigmoid(inputs[0])


@_primitive("recurrent")
def _recurrent(inputs: list[Tensor], weights: Mapping[str, Tensor], *, layer: RecurrentLayer) -> list[Tensor]:
    """A whole recurrent layer; it gives the list of its results, each of which is an 'output' of it."""
    return run_cell(layer, weights, inputs)[0]


@_primitive("output")
def _output(inputs: list[Tensor], _weights: Mapping[str, Tensor], *, index: int, state: str) -> Tensor:
    """One of the results of a recurrent layer, a state of it; it may have been taken from the list already."""
    del state
    return inputs[0][index] if isinstance(inputs[0], list) else inputs[0]


@_primitive("softmax", fixed=_UNIT)
def _softmax(inputs: list[Tensor], _weights: Mapping[str, Tensor]) -> Tensor:
    import tensorflow as tf

    return tf.nn.softmax(inputs[0])


@_primitive("tanh", fixed=_SIGNED_UNIT)
def _tanh(inputs: list[Tensor], _weights: Mapping[str, Tensor]) -> Tensor:
    import tensorflow as tf

    return tf.tanh(inputs[0])


@_primitive("gelu")
def _gelu(inputs: list[Tensor], _weights: Mapping[str, Tensor], *, approximate: bool) -> Tensor:
    import tensorflow as tf

    return tf.nn.gelu(inputs[0], approximate)


@_primitive("hard_swish")
def _hard_swish(inputs: list[Tensor], _weights: Mapping[str, Tensor]) -> Tensor:
    import tensorflow as tf

    return inputs[0] * tf.nn.relu6(inputs[0] + 3.0) / 6.0


@_primitive("l2_normalize", fixed=_SIGNED_UNIT)
def _l2_normalize(inputs: list[Tensor], _weights: Mapping[str, Tensor]) -> Tensor:
    import tensorflow as tf

    return tf.nn.l2_normalize(inputs[0], -1)


def _other(inputs: list[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
    """The second operand: another tensor, or the only weight."""
    return inputs[1] if len(inputs) > 1 else next(iter(weights.values()))


def _add_bias(result: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    import tensorflow as tf

    return tf.nn.bias_add(result, weights["bias"]) if "bias" in weights else result


def _product(sizes: Sequence[int]) -> int:
    return functools.reduce(lambda a, b: a * b, sizes, 1)
