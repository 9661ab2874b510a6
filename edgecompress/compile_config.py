"""What a Keras model was compiled with: optimizer, losses and metrics, a user's own among them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgecompress.functional import cause_of
from edgecompress.safety import find_object, refuse_unknown_classes, refuse_unsafe_layers


def read_compile_config(model: Any, framework: str) -> Mapping[str, Any] | None:
    """Returns what Keras would store of a model's optimizer, loss and metrics."""
    if not (getattr(model, "compiled", False) or getattr(model, "_is_compiled", False)):  # Keras 3, Keras 2
        return None
    config = dict(model.get_compile_config() or {})
    if framework == "keras" and "optimizer" not in config and model.optimizer is not None:
        import keras

        config["optimizer"] = keras.saving.serialize_keras_object(model.optimizer)  # saving as .h5 had taken it out
    if framework == "keras" and "loss" in config:
        config["loss"] = _in_structure(_describe_loss, model.loss)
    return config or None


def _describe_loss(loss: Any) -> Any:
    """Returns a loss as Keras would store it, but the user's own as it is: it may be known to nobody else."""
    import keras

    code = getattr(loss, "fn", loss)
    module = code.__module__ if inspect.isroutine(code) else type(code).__module__
    own = callable(loss) and module.split(".")[0] != "keras"
    return loss if own or loss is None else keras.saving.serialize_keras_object(loss)


def find_own_losses(path: Path, config: Mapping[str, Any] | None, objects: Mapping[str, Any]) -> Any:
    """Returns what was stored of `compile`, the user's own losses as objects where they are given or registered."""
    import keras

    def find(stored: Any) -> Any:
        entry = stored if isinstance(stored, dict) else {"config": stored}
        kind = entry.get("config") if isinstance(entry.get("config"), str) else entry.get("class_name")
        own = find_object(objects, entry.get("registered_name"), kind)
        if not hasattr(own, "from_config"):
            return stored if own is None else own
        try:
            refuse_unknown_classes(path, stored, objects)
            with keras.saving.custom_object_scope(dict(objects)):
                return own.from_config(dict(entry["config"]))
        except Exception:  # noqa: BLE001 (the user's code; what stays a name is reported as a loss that is not known)
            return stored

    if not config:
        return None
    return {**config, "loss": _in_structure(find, config["loss"])} if "loss" in config else config


def _in_structure(change: Callable[[Any], Any], losses: Any) -> Any:
    """Applies a function to each loss, of which there may be one for each output in a dict or list."""
    if isinstance(losses, dict) and "class_name" not in losses:
        return {key: _in_structure(change, loss) for key, loss in losses.items()}
    if isinstance(losses, (list, tuple)):
        return [_in_structure(change, loss) for loss in losses]
    return change(losses)


def compile_as(
    model: Any, config: Mapping[str, Any] | None, *, where: str, objects: Mapping[str, Any] | None = None
) -> str | None:
    """Compiles a Keras 3 model with the optimizer, the losses and the metrics of another.

    The optimizer begins anew: the state of Adam, say, would make a file three times as large.

    Args:
        model: The model.
        config: What that other was compiled with; None: nothing is done.
        where: What errors call it.
        objects: Custom objects by name.

    Returns:
        None, or why the model was left as it is: a file of it could not be read with these custom objects, or Keras
        refuses.
    """
    import keras

    if config is None:
        return None
    settings = dict(config)
    losses = settings.pop("loss", None)
    try:
        with keras.saving.custom_object_scope(dict(objects or {})):
            arguments = {"loss": _rebuild_losses(losses), **keras.saving.deserialize_keras_object(settings)}
            stored = keras.saving.serialize_keras_object(arguments)
            refuse_unsafe_layers(Path(where), stored)
            refuse_unknown_classes(Path(where), stored, objects or {})
            model.compile(**arguments)
    except Exception as error:  # noqa: BLE001 (the user's code may run)
        return cause_of(error)
    return None


def _rebuild_losses(stored: Any) -> Any:
    import keras

    rebuild = keras.saving.deserialize_keras_object
    return _in_structure(lambda loss: loss if callable(loss) else rebuild(loss), stored)
