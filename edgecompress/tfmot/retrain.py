"""Trains a Keras 3 model again: by its labels, by the answers of the model that it was made from, or by both."""

from __future__ import annotations

from typing import Any

from edgecompress.passes.base import PassContext, Trained
from edgecompress.techniques import Trains
from edgecompress.tfmot.bridge import cross
from edgecompress.tfmot.training import fine_tune, seed_draws


def retrain(model: Any, context: PassContext, spec: Trains) -> Trained:
    """Trains a Keras 3 model in place, through tf_keras, and leaves the weights of its best epoch in it.

    The weights that it came with count as epoch 0: they stay if no epoch has a smaller validation loss.

    Args:
        model: A Keras 3 model, to be changed.
        context: Training samples with labels, settings, seed, checkpoints, teacher; see `fine_tune`.
        spec: The pass that it is trained for.

    Raises:
        DataError: There are no labels, they do not fit, or the loss was never a number.
        ConversionError: tf_keras cannot take the model over.
        UsageError: The checkpoint to resume from is of another run.
    """
    seed_draws(model, context.seed)
    bridged = cross(model)
    trained = fine_tune(bridged.model, context, spec, source=bridged.source, judge_from=0)
    bridged.write_back()
    return trained
