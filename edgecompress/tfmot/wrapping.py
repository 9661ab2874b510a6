"""How a wrapper calls the layer in it."""

from __future__ import annotations

from typing import Any


def call_inside(layer: Any, inputs: Any, training: Any, kwargs: dict[str, Any]) -> Any:
    """Calls a tf_keras layer with those of the arguments that Keras gives a wrapper on its own that the layer takes."""
    if layer._expects_training_arg:  # noqa: SLF001 (how Keras itself decides it)
        kwargs = {**kwargs, "training": training}
    if not layer._expects_mask_arg:  # noqa: SLF001
        kwargs = {name: value for name, value in kwargs.items() if name != "mask"}
    return layer(inputs, **kwargs)
