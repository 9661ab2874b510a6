"""Recognizes what clustering left in a kernel."""

from __future__ import annotations

import numpy as np

from edgecompress.data import Array

_MOST_CLUSTERS = 256  # with more distinct values than int8 has, there is nothing to keep
_SMALLEST_CLUSTER = 4  # mean number of weights that share a value; chance does not make that of trained weights


def cluster_numbers(kernel: Array) -> Array | None:
    """Returns the number of the cluster that each weight is in, an array of the kernel's shape; None if there are none.

    A kernel clustered for each channel on its own has clusters in each; together they are too many, and are found
    where the channels, the last axis, are looked at one by one.
    """
    whole = _numbers(kernel.reshape(-1))
    if whole is not None:
        return whole.reshape(kernel.shape)
    columns = kernel.reshape(-1, kernel.shape[-1])
    each = [_numbers(columns[:, channel]) for channel in range(columns.shape[1])]
    if any(numbers is None for numbers in each):
        return None
    found = [numbers for numbers in each if numbers is not None]
    starts = np.cumsum([0, *(int(numbers.max()) + 1 for numbers in found[:-1])])
    numbers = np.stack([part + start for part, start in zip(found, starts, strict=True)], axis=-1)
    return numbers.reshape(kernel.shape).astype(np.int32)


def _numbers(values: Array) -> Array | None:
    distinct, numbers = np.unique(values, return_inverse=True)
    few = len(distinct) <= min(_MOST_CLUSTERS, values.size // _SMALLEST_CLUSTER)
    return numbers.astype(np.int32) if few else None
