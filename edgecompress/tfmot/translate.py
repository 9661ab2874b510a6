"""Makes the tf_keras counterpart of a Keras 3 layer from its configuration, and pairs the weights of the two."""

from __future__ import annotations

import functools
import inspect
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from edgecompress.errors import ConversionError
from edgecompress.tfmot.adapter import hold_function

# Layers that do the same in both, by the names of their classes.
_ALIKE = frozenset({
    "Activation", "ActivityRegularization", "Add", "AdditiveAttention", "AlphaDropout", "Attention", "Average",
    "AveragePooling1D", "AveragePooling2D", "AveragePooling3D", "BatchNormalization", "Bidirectional", "Concatenate",
    "Conv1D", "Conv1DTranspose", "Conv2D", "Conv2DTranspose", "Conv3D", "Conv3DTranspose", "ConvLSTM1D", "ConvLSTM2D",
    "ConvLSTM3D", "Cropping1D", "Cropping2D", "Cropping3D", "Dense", "DepthwiseConv1D", "DepthwiseConv2D", "Dot",
    "Dropout", "ELU", "EinsumDense", "Embedding", "Flatten", "GRU", "GRUCell", "GaussianDropout", "GaussianNoise",
    "GlobalAveragePooling1D", "GlobalAveragePooling2D", "GlobalAveragePooling3D", "GlobalMaxPooling1D",
    "GlobalMaxPooling2D", "GlobalMaxPooling3D", "GroupNormalization", "Identity", "LSTM", "LSTMCell",
    "LayerNormalization", "LeakyReLU", "Masking", "MaxPooling1D", "MaxPooling2D", "MaxPooling3D", "Maximum", "Minimum",
    "MultiHeadAttention", "Multiply", "Normalization", "PReLU", "Permute", "RNN", "ReLU", "RepeatVector", "Rescaling",
    "Reshape", "SeparableConv1D", "SeparableConv2D", "SimpleRNN", "SimpleRNNCell", "Softmax", "SpatialDropout1D",
    "SpatialDropout2D", "SpatialDropout3D", "StackedRNNCells", "Subtract", "TimeDistributed", "UnitNormalization",
    "UpSampling1D", "UpSampling2D", "UpSampling3D", "ZeroPadding1D", "ZeroPadding2D", "ZeroPadding3D",
})  # fmt: skip
_RENAMED = {("LeakyReLU", "negative_slope"): "alpha"}
# Options that are a fixed matter of course in tf_keras, with the value that they have there.
_FIXED = {("LayerNormalization", "rms_scaling"): False, ("ZeroPadding1D", "data_format"): "channels_last"}
# Options that tf_keras takes without naming them in a signature.
_IN_KWARGS = frozenset({"activity_regularizer", "zero_output_for_mask"})
# Options that choose how something is computed, or the random numbers of training: not what comes out.
_NO_MATTER = frozenset({"flash_attention", "seed", "use_cudnn"})
_ACTIVATIONS = {
    name: name
    for name in (
        "elu", "exponential", "gelu", "linear", "mish", "relu", "selu", "sigmoid", "softmax", "softplus", "softsign",
        "tanh",
    )
} | {"silu": "swish", "swish": "swish"}  # fmt: skip
_FUNCTIONS = {"regularizer": "regularizers", "constraint": "constraints"}


class NoCounterpartError(Exception):
    """A Keras 3 layer has to be wrapped whole; the text says why."""


def counterpart(layer: Any, name: str | None = None) -> Any:
    """Returns the tf_keras layer, not built, that does what a Keras 3 layer does.

    Regularizers, constraints, the policy and whether it is trainable are kept. Initializers are not: its weights are
    copied afterwards, and zeros are quick.

    Raises:
        NoCounterpartError: There is none, or not with these options.
    """
    import keras
    import tf_keras

    kind = type(layer).__name__
    if kind not in _ALIKE or type(layer) is not getattr(keras.layers, kind):
        raise NoCounterpartError(f"tf_keras has no {kind}")
    try:
        config = layer.get_config()
    except NotImplementedError:  # a regularizer, say, that does not tell its own
        raise NoCounterpartError("its configuration cannot be had") from None
    if config.get("data_format") == "channels_first":
        raise NoCounterpartError("tf_keras has no channels_first on a CPU")
    options = {"name": name or layer.name, "trainable": layer.trainable, "dtype": _policy(layer)}
    ours: Any = type(layer)
    allowed, defaults = _parameters(getattr(tf_keras.layers, kind)), _parameters(ours)
    fixed = {key: value for (owner, key), value in _FIXED.items() if owner == kind}
    for key, value in config.items():
        renamed = _RENAMED.get((kind, key), key)
        if key in options:
            continue
        if renamed in allowed or key in _IN_KWARGS:
            options[renamed] = _translate(layer, key, value)
        elif key not in _NO_MATTER and value != fixed.get(key, defaults.get(key)):
            raise NoCounterpartError(f"{kind} of tf_keras has no option {key}={value!r}")
    if kind in _SPECIAL:
        options = _SPECIAL[kind](layer, options)
    return getattr(tf_keras.layers, kind)(**options)


@functools.cache
def _parameters(kind: Any) -> dict[str, Any]:
    """Returns the options that a layer class and those it comes from take, and their defaults."""
    found: dict[str, Any] = {}
    for base in kind.__mro__:
        if "__init__" in vars(base):
            parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
            found = {p.name: p.default for p in parameters if p.kind != p.VAR_KEYWORD} | found
            if not any(p.kind == p.VAR_KEYWORD for p in parameters):
                break
    return found


def _policy(layer: Any) -> str:
    import keras

    policy = layer.dtype_policy
    if type(policy) is not keras.DTypePolicy:
        raise NoCounterpartError(f"tf_keras has no policy such as {policy.name}")
    return str(policy.name)


def _translate(layer: Any, key: str, value: Any) -> Any:
    """Returns the value of an option as tf_keras takes it."""
    kind = key.rpartition("_")[2]
    if kind == "initializer":
        return "zeros"
    if kind == "activation":
        return _activation(getattr(layer, key), value)
    if kind in _FUNCTIONS and value is not None:
        return _function(getattr(layer, key, None), value, kind)
    if key == "seed":
        return value if isinstance(value, int) else None
    return value


def _activation(function: Any, config: Any) -> Any:
    import keras

    if isinstance(config, str) and config in _ACTIVATIONS:
        return _ACTIVATIONS[config]
    if isinstance(function, keras.layers.Layer) and function.weights:
        raise NoCounterpartError("an activation with weights")
    return "linear" if function is None else hold_function(function, "activation")


def _function(function: Any, config: Any, kind: str) -> Any:
    """Returns a regularizer or constraint: tf_keras's own where there is one of that name."""
    import tf_keras

    name = config["class_name"] if isinstance(config, dict) and config.get("registered_name") is None else ""
    own = getattr(getattr(tf_keras, _FUNCTIONS[kind]), name, None) if name else None
    if own is not None:
        return own(**config["config"])
    if function is None:
        raise NoCounterpartError(f"its {kind} cannot be had")
    return hold_function(function, kind)


def _bidirectional(layer: Any, options: dict[str, Any]) -> dict[str, Any]:
    # tf_keras puts these prefixes before the names again.
    return options | {
        "layer": counterpart(layer.forward_layer, layer.forward_layer.name.removeprefix("forward_")),
        "backward_layer": counterpart(layer.backward_layer, layer.backward_layer.name.removeprefix("backward_")),
    }


def _normalization(layer: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Gives the statistics as constants, which they are once `adapt` is over."""
    mean, variance, axis = (getattr(layer, name, None) for name in ("mean", "variance", "axis"))
    if mean is None or (axis is not None and len(axis) > 1):
        raise NoCounterpartError("statistics of several axes, or none yet")
    shape: tuple[int, ...] = (-1,) if axis else ()
    return options | {
        name: np.asarray(value, np.float32).reshape(shape) for name, value in (("mean", mean), ("variance", variance))
    }


_SPECIAL: dict[str, Callable[[Any, dict[str, Any]], dict[str, Any]]] = {
    # As Keras 3 computes it: fused, the moving variance would be another (Bessel's correction).
    "BatchNormalization": lambda _layer, options: options | {"fused": False},
    "Bidirectional": _bidirectional,
    "Normalization": _normalization,
    "RNN": lambda layer, options: options | {"cell": counterpart(layer.cell)},
    "StackedRNNCells": lambda layer, options: options | {"cells": [counterpart(cell) for cell in layer.cells]},
    "TimeDistributed": lambda layer, options: options | {"layer": counterpart(layer.layer)},
}


def pair_weights(keras_layer: Any, tf_layer: Any, name: str) -> list[tuple[Any, Any]]:
    """Returns the variables of a Keras 3 layer, each with its counterpart: by name where that is clear, else in order.

    Raises:
        ConversionError: There are more of one kind than of the other, or shapes differ.
    """
    if type(keras_layer).__name__ == "Normalization":
        return []  # statistics: constants of the counterpart
    ours, theirs = list(keras_layer.weights), list(tf_layer.weights)
    names = [variable.name for variable in ours]
    their_names = [variable.name.rpartition("/")[2].partition(":")[0] for variable in theirs]
    if Counter(names) == Counter(their_names) and len(set(names)) == len(names):
        theirs = [theirs[their_names.index(wanted)] for wanted in names]
    shapes, their_shapes = ([tuple(variable.shape) for variable in each] for each in (ours, theirs))
    if shapes != their_shapes:
        raise ConversionError(
            "its weights differ in shape between Keras 3 and tf_keras", where=f"layer {name!r}",
            expected=shapes, received=their_shapes,
        )  # fmt: skip
    return list(zip(ours, theirs, strict=True))
