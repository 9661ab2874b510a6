"""Samples that bring a teacher's answers with them, as Keras takes data."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgecompress.data import Array
from edgecompress.distill.cache import count_samples
from edgecompress.errors import DataError


def taught_samples(  # noqa: PLR0913 (each is one fact of the samples)
    inputs: Any,
    y: Any,
    sample_weight: Any,
    answers: Sequence[Array] | None,
    *,
    batch_size: int,
    shuffle: bool,
    seed: int,
    rows: Array | None = None,
) -> Any:
    """Returns samples, each with what the teacher answered, as a `keras.utils.PyDataset` for `Distiller.fit`.

    Each batch is `({"inputs": …, "taught": (…)}, y, sample_weight)`, without what is None at the end. Lists become
    tuples, which is what tf.data takes. The order depends on the seed and on `epoch` alone, which counts the epochs
    that have ended; set it to go on with a training that was interrupted. Give `fit` shuffle=False: Keras would
    shuffle the batches again, by a seed of its own.

    Args:
        inputs: An array of shape (samples, …), or a list or dict of them.
        y: Labels, likewise, or None.
        sample_weight: Weights of the samples, likewise, or None.
        answers: Arrays of shape (samples, …), such as `AnswerCache.answers` gives; a batch of them is float32. None:
            the samples come without, as x.
        batch_size: Samples in a batch; the last one may have fewer.
        shuffle: Whether the order changes from epoch to epoch.
        seed: Seed of the order.
        rows: Indices of the samples to take, in this order if they are not shuffled; None: all.

    Raises:
        DataError: The arrays do not have one length, or there are weights but no labels.
    """
    import keras

    if y is None and sample_weight is not None:  # Keras cannot make tensors of such batches
        raise DataError("the samples have weights but no labels", fix="give labels, or leave the weights out")

    given = (inputs, y, sample_weight)
    arrays = keras.tree.flatten((*given, tuple(answers or ())))
    samples = count_samples([array for array in arrays if array is not None])
    chosen = np.arange(samples) if rows is None else rows
    given = given[: max(number for number, part in enumerate(given, 1) if part is not None)]

    @functools.lru_cache(maxsize=1)
    def order(epoch: int) -> Array:
        return np.random.default_rng([seed, epoch]).permutation(chosen) if shuffle else chosen

    class TaughtSamples(keras.utils.PyDataset):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.epoch = 0
            self._within_epoch = False

        def __len__(self) -> int:
            return math.ceil(len(chosen) / batch_size)

        def __getitem__(self, number: int) -> tuple[Any, ...]:
            # Within a batch the order means nothing, but a disk reads faster forward.
            few = np.sort(order(self.epoch)[number * batch_size : (number + 1) * batch_size])
            x, *rest = (_take(part, few) for part in given)
            if answers is None:
                return (x, *rest)
            taught = tuple(np.asarray(answer)[few].astype(np.float32, copy=False) for answer in answers)
            return ({"inputs": x, "taught": taught}, *rest)

        def on_epoch_begin(self) -> None:
            self._within_epoch = True

        def on_epoch_end(self) -> None:
            # Keras calls this before the first epoch, too.
            self.epoch += self._within_epoch
            self._within_epoch = False

    return TaughtSamples()


def _take(structure: Any, rows: Array) -> Any:
    if structure is None:
        return None
    if isinstance(structure, Mapping):
        return {name: _take(part, rows) for name, part in structure.items()}
    if isinstance(structure, (list, tuple)):
        return tuple(_take(part, rows) for part in structure)
    return np.asarray(structure)[rows]
