"""Builds the optimizer that a Keras model was compiled with, for models of Keras 3 or tf_keras."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

_LEARNING_RATE = 1e-3
# Averages of weights are made final at the end of each `fit`, which here is each epoch: they would not be the same.
_NOT_CARRIED = frozenset({"name", "learning_rate", "use_ema", "ema_momentum", "ema_overwrite_frequency", "jit_compile"})


def build_optimizer(world: Any, config: Mapping[str, Any], learning_rate: float | None) -> tuple[Any, tuple[str, ...]]:
    """Builds the optimizer that a compile configuration describes, else Adam; returns it and notes.

    Args:
        world: The module `keras` or `tf_keras`.
        config: What Keras 3 or Keras 2 stored of `compile`, perhaps empty.
        learning_rate: Replaces the configured one, if given.
    """
    stored = config.get("optimizer") or config.get("optimizer_config")
    if isinstance(stored, str):
        stored = {"class_name": stored, "config": {}}
    if not stored:
        return _make(world.optimizers.Adam, learning_rate or _LEARNING_RATE), ()
    settings = dict(stored.get("config") or {})
    if stored["class_name"] == "LossScaleOptimizer":
        inner = settings.get("inner_optimizer")
        return build_optimizer(world, {"optimizer": inner} if inner else {}, learning_rate)
    rate = learning_rate or _stored_rate(world, settings.get("learning_rate"))
    by_name = {name.lower(): getattr(world.optimizers, name) for name in _classes(world.optimizers)}
    name = str(stored["class_name"]).rpartition(">")[2]  # Keras 2 wrote "Custom>Adam" at times
    kind = by_name.get(name.lower())
    if kind is None:
        note = f"the model's optimizer {name!r} is not in {world.__name__}: Adam was used"
        return _make(world.optimizers.Adam, rate), (note,)
    return _make(kind, rate, **accepted(kind, settings, _NOT_CARRIED)), ()


def accepted(kind: Any, settings: Mapping[str, Any], without: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Returns the settings that a class's constructor takes: Keras 3 and tf_keras differ in a few."""
    known = set(inspect.signature(kind.__init__).parameters) - without
    return {name: value for name, value in settings.items() if name in known}


def _make(kind: Any, learning_rate: Any, **settings: Any) -> Any:
    return kind(learning_rate=learning_rate, **accepted(kind, {"jit_compile": False}), **settings)


def _stored_rate(world: Any, stored: Any) -> Any:
    if isinstance(stored, Mapping):
        kind = getattr(world.optimizers.schedules, str(stored.get("class_name")), None)
        return _LEARNING_RATE if kind is None else kind(**accepted(kind, stored.get("config") or {}))
    return _LEARNING_RATE if stored is None else float(stored)


def _classes(module: Any) -> list[str]:
    return [name for name in dir(module) if inspect.isclass(getattr(module, name))]
