"""What the ways of merging two layers have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgecompress.data import Array
from edgecompress.errors import ModelError
from edgecompress.functional import cause_of
from edgecompress.passes.fuse.stages import Shape


@dataclass(frozen=True)
class Merge:
    """What two layers become.

    Attributes:
        first: Stands in the place of the first; None: it is gone.
        second: Stands in the place of the second; None: it is gone.
        detail: What is done, in words.
    """

    first: Any
    second: Any
    detail: str


def made(kind: type[Any], config: Mapping[str, Any], shape: Shape, where: str) -> Any:
    """Returns a new layer, built.

    Args:
        kind: Its class.
        config: Its configuration.
        shape: Of its inputs, batch first.
        where: The layer that the configuration comes from.

    Raises:
        ModelError: The configuration names something that Keras does not know, such as an initializer of one's own.
    """
    try:
        layer = kind.from_config(dict(config))
    except Exception as error:
        raise ModelError(
            f"cannot be made again from its configuration: {cause_of(error)}", where=where,
            fix="register what is your own in it with keras.saving.register_keras_serializable",
        ) from error  # fmt: skip
    layer.build(shape)
    return layer


def remade(layer: Any, shape: Shape, weights: Sequence[Array], **changes: Any) -> Any:
    """Returns a built layer with the configuration of another, but for some changes.

    Args:
        layer: A Keras 3 layer.
        shape: Of its inputs, batch first.
        weights: In the order of the new layer's weights.
        **changes: What its configuration says otherwise.
    """
    new = made(type(layer), layer.get_config() | changes, shape, layer.name)
    new.set_weights(list(weights))
    return new


def is_linear(layer: Any) -> bool:
    """Says whether a layer has no activation."""
    import keras

    return getattr(layer, "activation", None) in (None, keras.activations.linear)


def reason_against(first: Any, second: Any) -> str | None:
    """Returns why two layers cannot be merged whatever they compute, or None."""
    for layer in (first, second):
        of_weights = getattr(layer, "cell", layer)
        if getattr(of_weights, "quantization_mode", None) or getattr(of_weights, "lora_enabled", False):
            return f"{layer.name!r} does not have its kernel as plain numbers (it is quantized, or has LoRA weights)"
        constrained = [key for key, value in vars(of_weights).items() if key.endswith("_constraint") and value]
        if constrained or layer.activity_regularizer is not None:
            what = constrained[0] if constrained else "activity_regularizer"
            return f"{layer.name!r} has {what}, which a merged layer could not keep"
    types = [layer.dtype_policy.name for layer in (first, second)]
    if types[0] != types[1]:
        return f"{first.name!r} computes in {types[0]}, {second.name!r} in {types[1]}"
    return None


def plain_weights(layer: Any) -> list[Array]:
    """Returns a layer's weights as float64, in which they are multiplied."""
    return [np.asarray(weight, np.float64) for weight in layer.get_weights()]
