"""How the widths of tensors go through each kind of layer, and which of its settings have to follow."""

from __future__ import annotations

import functools
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from edgecompress.distill.students import operations
from edgecompress.distill.students.attention import RULES as ATTENTION_RULES
from edgecompress.distill.students.calls import (
    Call,
    concatenate,
    divisor,
    keep_all,
    match_all,
    regroup,
    set_shape,
)  # fmt: skip
from edgecompress.distill.students.recurrent import RULES as RECURRENT_RULES
from edgecompress.distill.students.widths import Axes, Width, common_multiple, hold, scaled

Rule = Callable[[Call], list[Axes]]
# What custom layers call the size of what they return, and sizes inside of them.
_OUTER = (
    "units", "filters", "channels", "output_dim", "embed_dim", "embedding_dim", "projection_dim", "hidden_dim",
    "hidden_size", "d_model", "dim",
)  # fmt: skip
_INNER = ("ff_dim", "feed_forward_dim", "intermediate_dim", "intermediate_size", "mlp_dim", "dff")


def rule_for(operation: Any) -> Rule:
    """Returns the rule of a layer or operation, which is that of the nearest class of Keras it is one of."""
    import keras

    if not isinstance(operation, keras.layers.Layer):
        return operations.rule_for(operation)
    for base in type(operation).__mro__:
        known = base.__module__.startswith(("keras.src.layers.", "edgecompress.layers."))
        if known and base.__name__ in _RULES:
            return _RULES[base.__name__]
    if type(operation).__module__.startswith("keras.src.layers."):
        return _any_keras_layer
    return _custom


def _dense(call: Call) -> list[Axes]:
    layer, rank = call.operation, len(call.x.shape)
    units = call.widths.own(layer, "units", layer.units)
    return [call.output({**dict(enumerate(call.x.widths[: rank - 1])), -1: units})]


def _low_rank_dense(call: Call) -> list[Axes]:
    layer, x = call.operation, call.x
    units = call.widths.own(layer, "units", layer.units)

    def rank() -> int:
        return min(scaled(layer.rank, call.share), x.new_shape[-1] or units.new, units.new)

    call.widths.set(layer, "rank", rank)
    return _dense(call)


def _einsum_dense(call: Call) -> list[Axes]:
    layer = call.operation
    given, kernel, returned = layer.equation.replace("->", ",").replace(" ", "").split(",")
    if "..." in given:
        if not (given.startswith("...") and returned.startswith("...")):
            return keep_all(call)
        given, returned = given[3:], returned[3:]
    places = {letter: number - len(given) for number, letter in enumerate(given)}
    outputs: dict[int, Width | None] = {
        number - len(returned): call.x.widths[places[letter]]
        for number, letter in enumerate(returned)
        if letter in places
    }
    before = len(call.shapes[0]) - len(returned)
    outputs |= dict(enumerate(call.x.widths[:before]))
    if returned[-1] not in places and returned[-1] in kernel:
        outputs[-1] = call.widths.of(layer, "output_shape", call.shapes[0][-1])  # type: ignore[arg-type]
    output = call.output(outputs)
    set_shape(call, "output_shape", layer.partial_output_shape, output)
    return [output]


def _conv(call: Call) -> list[Axes]:
    layer, axis = call.operation, _channel_axis(call.operation)
    filters = call.widths.own(layer, "filters", layer.filters)
    hold(width for number, width in enumerate(call.x.widths) if number != axis % len(call.x.shape))
    channels, groups = call.x.widths[axis], getattr(layer, "groups", 1)
    if groups > 1 and channels is None:
        common_multiple(filters, groups)
    elif groups > 1 and channels is not None:
        each = channels.size // groups
        common_multiple(channels, each)
        call.widths.set(layer, "groups", lambda: channels.new // each)
        call.widths.follow(filters, Fraction(layer.filters, channels.size), channels)
    return [call.output({axis: filters})]


def _depthwise(call: Call) -> list[Axes]:
    axis = _channel_axis(call.operation)
    (output,) = call.carry({axis: axis})
    return [output.having({axis: call.widths.times(Fraction(call.operation.depth_multiplier), output.widths[axis])})]


def _channel_axis(layer: Any) -> int:
    return -1 if getattr(layer, "data_format", None) != "channels_first" else 1


def _pool(call: Call) -> list[Axes]:
    axis = _channel_axis(call.operation)
    return call.carry({axis: axis})


def _embedding(call: Call) -> list[Axes]:
    layer = call.operation
    hold(call.x.widths)
    return [call.output({-1: call.widths.own(layer, "output_dim", layer.output_dim)})]


def _group_normalization(call: Call) -> list[Axes]:
    layer, x = call.operation, call.x
    (output,) = match_all(call)
    width = output.widths[layer.axis]
    if width is not None and layer.groups > 1:
        call.widths.set(layer, "groups", lambda: divisor(width.new, layer.groups))
    return [Axes(x.shape, output.widths)]


def _permute(call: Call) -> list[Axes]:
    return call.carry({0: 0} | {number + 1: axis for number, axis in enumerate(call.operation.dims)})


def _repeat_vector(call: Call) -> list[Axes]:
    return call.carry({0: 0, 2: 1})


def _reshape(call: Call) -> list[Axes]:
    output = regroup(call)
    set_shape(call, "target_shape", call.operation.target_shape, output)
    return [output]


def _flatten(call: Call) -> list[Axes]:
    if call.operation.data_format == "channels_first" and len(call.x.shape) > 1:
        x = call.x  # Keras puts the channels last before it flattens
        turned = Axes((x.shape[0], *x.shape[2:], x.shape[1]), (x.widths[0], *x.widths[2:], x.widths[1]))
        call = Call(call.operation, (turned,), {}, call.shapes, call.widths, call.share)
    return [regroup(call)]


def _any_keras_layer(call: Call) -> list[Axes]:
    """Of what has no widths of its own: activations, normalization, dropout, and what changes sizes of images."""
    layer = call.operation
    if layer.weights and learns_nothing(layer):
        return keep_all(call)  # because it keeps its weights
    if all(each.shape == shape for each in call.inputs for shape in call.shapes):
        return match_all(call)
    axis = _channel_axis(layer)
    sizes = {each.shape[axis] for each in call.inputs} | {shape[axis] for shape in call.shapes}
    if hasattr(layer, "data_format") and len(call.shapes) == len(call.inputs) == len(sizes) == 1:
        return _pool(call)
    return keep_all(call)


def learns_nothing(layer: Any) -> bool:
    """Whether training leaves a layer as it is: a normalization that was adapted to data, but not of batches."""
    import keras

    if isinstance(layer, keras.layers.BatchNormalization):
        return False
    return not any(each._trainable_variables for each in layer._flatten_layers())  # noqa: SLF001


def _custom(call: Call) -> list[Axes]:
    """Of layers that Keras does not have: settings with common names are scaled; else they keep what they get.

    One that returns the shape that it is given is taken for one that works at any width, unless that turns out false.
    """
    layer, config, shape = call.operation, call.config(), call.shapes[0]
    if len(call.shapes) > 1 or not shape or not call.inputs:
        return keep_all(call)
    sizes = {key for key, value in config.items() if isinstance(value, int) and not isinstance(value, bool)}
    outer = [key for key in _OUTER if key in sizes and config[key] == shape[-1]]
    alike = all(each.shape == shape for each in call.inputs)
    if not outer and (not alike or (layer.weights and learns_nothing(layer))):
        return keep_all(call)
    width: Width | None
    if alike:
        (output,) = match_all(call)
        width = output.widths[-1]
    else:
        same = range(len(shape) - 1) if call.x.shape[:-1] == shape[:-1] else ()
        (output,) = call.carry({axis: axis for axis in same})
        width = call.widths.of(layer, outer[0], config[outer[0]])
    if width is not None:
        for key in outer:
            call.widths.set(layer, key, functools.partial(getattr, width, "new"))
    for key in sizes.intersection(_INNER):
        call.widths.own(layer, key, config[key])
    return [output.having({-1: width})]


_RULES: dict[str, Rule] = {
    "Dense": _dense,
    "LowRankDense": _low_rank_dense,
    "EinsumDense": _einsum_dense,
    "BaseConv": _conv,
    "BaseConvTranspose": _conv,
    "BaseSeparableConv": _conv,
    "BaseDepthwiseConv": _depthwise,
    "BasePooling": _pool,
    "BaseGlobalPooling": _pool,
    "Embedding": _embedding,
    "GroupNormalization": _group_normalization,
    "Merge": match_all,
    "Concatenate": concatenate,
    "Permute": _permute,
    "RepeatVector": _repeat_vector,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Dot": keep_all,
    **ATTENTION_RULES,
    **RECURRENT_RULES,
}
