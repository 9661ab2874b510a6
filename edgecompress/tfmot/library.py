"""Imports TFMOT without its side effect."""

from __future__ import annotations

import os

_VARIABLE = "TF_USE_LEGACY_KERAS"


def import_tfmot() -> None:
    """Imports TFMOT; to be called before anything is imported from it.

    It sets an environment variable that turns the `tf.keras` of this process, and of those that it starts, into Keras 2
    wherever that was not used yet. Here both stay what they are.
    """
    import tensorflow as tf

    before = os.environ.get(_VARIABLE)
    _ = tf.keras.Model  # its first use decides which Keras it is
    try:
        import tensorflow_model_optimization.python.core.keras.compat  # noqa: F401
    finally:
        if before is None:
            os.environ.pop(_VARIABLE, None)
        else:
            os.environ[_VARIABLE] = before
