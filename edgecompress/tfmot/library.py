"""Imports TFMOT without its side effect."""

from __future__ import annotations

import os

from edgecompress.errors import UnavailableError

_VARIABLE = "TF_USE_LEGACY_KERAS"


def import_tfmot() -> None:
    """Imports TFMOT; to be called before anything is imported from it.

    It sets an environment variable that turns the `tf.keras` of this process, and of those that it starts, into Keras 2
    wherever that was not used yet. Here both stay what they are.

    Raises:
        UnavailableError: It is not installed.
    """
    import tensorflow as tf

    before = os.environ.get(_VARIABLE)
    _ = tf.keras.Model  # its first use decides which Keras it is
    try:
        import tensorflow_model_optimization.python.core.keras.compat  # noqa: F401
    except ImportError:
        raise UnavailableError(
            "passes need TFMOT (tensorflow-model-optimization), which is not installed",
            fix='pip install "edgecompress[convert]"',
        ) from None
    finally:
        if before is None:
            os.environ.pop(_VARIABLE, None)
        else:
            os.environ[_VARIABLE] = before
