"""Counts in a kernel what pruning and clustering promised: zeros and distinct values."""

from __future__ import annotations

import math

import numpy as np

from edgecompress.data import Array
from edgecompress.errors import InternalError
from edgecompress.passes.base import LayerProof


def sparsity_of(weights: Array) -> float:
    """Returns the share of zeros."""
    return 1 - np.count_nonzero(weights) / weights.size if weights.size else 0.0


def distinct_of(weights: Array, channel_axis: int | None = None) -> int:
    """Returns the number of distinct values; along an axis, the largest number in one channel of it."""
    if channel_axis is None:
        return len(np.unique(weights))
    channels = np.moveaxis(weights, channel_axis, 0)
    return max((len(np.unique(channel)) for channel in channels), default=0)


def measure(label: str, weights: Array, wanted: str, channel_axis: int | None = None) -> LayerProof:
    """Returns the proof of one kernel."""
    return LayerProof(
        layer=label,
        weights=weights.size,
        sparsity=sparsity_of(weights),
        distinct=distinct_of(weights, channel_axis),
        wanted=wanted,
    )


def kept_by(size: int, sparsity: float) -> int:
    """Returns how many of `size` weights may be left, as TFMOT counts: the nearest whole number, and at least one."""
    return max(1, math.floor(size * (1 - sparsity) + 0.5 + size * 1e-6))  # TFMOT counts in 32-bit floats


def refuse_dense(label: str, weights: Array, sparsity: float) -> None:
    """Checks that a pruned kernel has its zeros.

    Raises:
        InternalError: There are fewer.
    """
    left, allowed = int(np.count_nonzero(weights)), kept_by(weights.size, sparsity)
    if left > allowed:
        raise InternalError(
            "pruning did not reach its sparsity", where=label, expected=f"{allowed} of {weights.size} weights left",
            received=left,
        )  # fmt: skip


def refuse_dense_blocks(label: str, weights: Array, sparsity: float, block: tuple[int, int]) -> None:
    """Checks that a kernel of shape (rows, columns) has its blocks of zeros; those at the edges may be smaller.

    Raises:
        InternalError: There are fewer.
    """
    (rows, columns), (height, width) = weights.shape, block
    padded = np.pad(weights, ((0, -rows % height), (0, -columns % width)))
    blocks = padded.reshape(padded.shape[0] // height, height, padded.shape[1] // width, width)
    used = blocks.any(axis=(1, 3))
    left, allowed = int(used.sum()), kept_by(used.size, sparsity)
    if left > allowed:
        raise InternalError(
            "pruning did not reach its sparsity", where=label, expected=f"{allowed} of {used.size} blocks left",
            received=left,
        )  # fmt: skip


def refuse_irregular(label: str, weights: Array, zeros: int, group: int) -> None:
    """Checks that each `group` weights in a row along the input channels have `zeros` zeros or more.

    Args:
        label: The kernel's name.
        weights: Of shape (inputs, outputs) or (height, width, inputs, outputs).
        zeros: N of N:M.
        group: M of N:M.

    Raises:
        InternalError: A group has fewer.
    """
    rows = np.moveaxis(weights, -1, 0).reshape(-1, weights.shape[-2])
    padded = np.pad(rows, ((0, 0), (0, -rows.shape[1] % group)))
    left = np.count_nonzero(padded.reshape(-1, group), axis=1).max(initial=0)
    if left > group - zeros:
        raise InternalError(
            "pruning did not reach its pattern", where=label, expected=f"{zeros} zeros in each {group} weights",
            received=f"{group - int(left)}",
        )  # fmt: skip


def refuse_too_many_values(label: str, weights: Array, clusters: int, channel_axis: int | None = None) -> None:
    """Checks that a clustered kernel, or each channel of it, has no more distinct values than asked for.

    Raises:
        InternalError: It has more.
    """
    found = distinct_of(weights, channel_axis)
    if found > clusters:
        raise InternalError(
            "clustering left more distinct values than asked for", where=label, expected=clusters, received=found
        )
