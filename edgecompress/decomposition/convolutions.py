"""Convolution kernels as chains of smaller ones; shapes are Keras's (height, width, inputs, outputs).

A chain is called part after part, without bias or activation between them. Of a Conv1D the height is 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgecompress.data import Array
from edgecompress.decomposition.matrices import (
    RIDGE,
    Spectrum,
    balance,
    check_moments,
    check_rank,
    check_weights,
    spectrum,
)
from edgecompress.errors import ConversionError

_TUCKER_ITERATIONS = 5
_CP_PARTS = 4
_CP_ITERATIONS = 60
_CP_TOLERANCE = 1e-6  # of the relative error: a gain below it ends the search
_CP_DAMPING = 1e-3  # keeps products from growing against each other, for a kernel of norm 1
_CP_LARGEST = 10.0  # products longer than this, for a kernel of norm 1, cancel each other out and cannot be quantized


def channel_spectrum(kernel: Array, output_moments: Array | None = None) -> Spectrum:
    """Decomposes a kernel as a matrix (height * width * inputs, outputs) (Zhang et al. 2016, arXiv:1505.06798).

    Args:
        kernel: Shape (height, width, inputs, outputs).
        output_moments: E[y^T y] of the outputs y without bias, shape (outputs, outputs): makes the error of the
            outputs the least, as in `matrices.spectrum`.

    Raises:
        ModelError: The kernel holds NaN or infinite values.
        UsageError: The moments do, or have another shape.
    """
    return spectrum(kernel.reshape(-1, kernel.shape[-1]), output_moments=output_moments)


def channel_factors(kernel: Array, decomposed: Spectrum, rank: int) -> tuple[Array, Array]:
    """Returns the kernels (height, width, inputs, rank) and (1, 1, rank, outputs).

    Raises:
        UsageError: The rank is below 1 or above the full rank.
    """
    first, second = decomposed.factors(rank)
    return first.reshape(*kernel.shape[:3], rank), second[None, None]


def spatial_spectrum(kernel: Array, input_moments: Array | None = None) -> Spectrum:
    """Decomposes a kernel as a matrix (height * inputs, width * outputs) (Jaderberg et al. 2014, arXiv:1405.3866).

    Args:
        kernel: Shape (height, width, inputs, outputs).
        input_moments: E[x^T x] of the input channels x of a pixel, shape (inputs, inputs). The rows of a window are
            taken to be independent, so that this is a guess at what the outputs need, not the optimum.

    Raises:
        ModelError: The kernel holds NaN or infinite values.
        UsageError: The moments do, or have another shape.
    """
    height, width, inputs, outputs = kernel.shape
    matrix = kernel.transpose(0, 2, 1, 3).reshape(height * inputs, width * outputs)
    rows = None if input_moments is None else np.kron(np.eye(height), input_moments)
    return spectrum(matrix, input_moments=rows)


def spatial_factors(kernel: Array, decomposed: Spectrum, rank: int) -> tuple[Array, Array]:
    """Returns the kernels (height, 1, inputs, rank) and (1, width, rank, outputs).

    Raises:
        UsageError: The rank is below 1 or above the full rank.
    """
    height, width, inputs, outputs = kernel.shape
    vertical, horizontal = decomposed.factors(rank)
    return vertical.reshape(height, 1, inputs, rank), horizontal.reshape(rank, width, outputs).transpose(1, 0, 2)[None]


def tucker_spectra(
    kernel: Array, input_moments: Array | None = None, output_moments: Array | None = None
) -> tuple[Spectrum, Spectrum]:
    """Decomposes a kernel along its input and along its output channels, to choose the ranks of Tucker-2 by.

    Args:
        kernel: Shape (height, width, inputs, outputs).
        input_moments: As in `spatial_spectrum`.
        output_moments: As in `channel_spectrum`.

    Returns:
        Of the matrix (inputs, height * width * outputs), and of (height * width * inputs, outputs).

    Raises:
        ModelError: The kernel holds NaN or infinite values.
        UsageError: The moments do, or have another shape.
    """
    by_input = kernel.transpose(2, 0, 1, 3).reshape(kernel.shape[2], -1)
    return spectrum(by_input, input_moments=input_moments), channel_spectrum(kernel, output_moments)


def tucker_factors(
    kernel: Array, ranks: tuple[int, int], input_moments: Array | None = None, output_moments: Array | None = None
) -> tuple[Array, Array, Array]:
    """Writes a kernel as three (Tucker-2, Kim et al. 2016, arXiv:1511.06530).

    Without moments the product is the nearest to the kernel that alternating least squares finds. Input moments
    weight the kernel's error by what the input channels carry. With output moments the last kernel holds their
    leading eigenvectors, the best that there are for the outputs, and the others are made for these.

    Args:
        kernel: Shape (height, width, inputs, outputs).
        ranks: Those of the input and of the output channels.
        input_moments: As in `spatial_spectrum`.
        output_moments: As in `channel_spectrum`.

    Returns:
        Kernels (1, 1, inputs, r_in), (height, width, r_in, r_out) and (1, 1, r_out, outputs).

    Raises:
        ModelError: The kernel holds NaN or infinite values.
        UsageError: A rank is below 1 or above what the kernel has; moments do not fit.
    """
    check_weights(kernel)
    height, width, inputs, outputs = kernel.shape
    taps = height * width
    for rank, full, side in zip(ranks, (min(inputs, taps * outputs), min(outputs, taps * inputs)), ("input", "output"),
                                strict=True):  # fmt: skip
        check_rank(rank, full, f"the {side} side of a kernel of shape {kernel.shape}")
    # Each side can use as many channels only as the other has values; any more are zeros.
    usable = min(ranks[0], taps * ranks[1]), min(ranks[1], taps * ranks[0])
    reduce, core, expand = _tucker(kernel.astype(np.float64), usable, input_moments, output_moments)
    spare = ranks[0] - usable[0], ranks[1] - usable[1]
    return (
        np.pad(reduce, ((0, 0), (0, spare[0])))[None, None].astype(np.float32),
        np.pad(core, ((0, 0), (0, 0), (0, spare[0]), (0, spare[1]))).astype(np.float32),
        np.pad(expand, ((0, spare[1]), (0, 0)))[None, None].astype(np.float32),
    )


def _tucker(
    kernel: Array, ranks: tuple[int, int], input_moments: Array | None, output_moments: Array | None
) -> tuple[Array, Array, Array]:
    from tensorly.decomposition import partial_tucker

    if not kernel.any():
        height, width, inputs, outputs = kernel.shape
        return np.zeros((inputs, ranks[0])), np.zeros((height, width, *ranks)), np.zeros((ranks[1], outputs))
    root, inverse = _roots(input_moments, kernel.shape[2])
    weighted = np.einsum("ij,hwjo->hwio", root, kernel)
    sides: tuple[int, ...] = ranks
    if output_moments is not None:
        check_moments(output_moments, kernel.shape[3], "outputs")
        expand = channel_spectrum(kernel, output_moments).factors(ranks[1])[1].astype(np.float64)
        expand /= np.linalg.norm(expand, axis=1, keepdims=True)
        weighted, sides = weighted @ expand.T, ranks[:1]
    (core, factors), _ = partial_tucker(weighted, sides, modes=[2, 3][: len(sides)], n_iter_max=_TUCKER_ITERATIONS)
    if output_moments is None:
        expand = factors[1].T
    reduce, by_rank = balance(inverse @ factors[0], core.transpose(2, 0, 1, 3))
    core, expand = balance(by_rank.transpose(1, 2, 0, 3), expand)
    return reduce, core, expand


def _roots(moments: Array | None, size: int) -> tuple[Array, Array]:
    """Returns the square root of second moments with the ridge of `matrices.spectrum`, and its inverse."""
    if moments is None or not moments.any():
        return np.eye(size), np.eye(size)
    check_moments(moments, size, "inputs")
    values, vectors = np.linalg.eigh(moments.astype(np.float64))
    values = np.sqrt(np.maximum(values, 0) + RIDGE * values.mean())
    return (vectors * values) @ vectors.T, (vectors / values) @ vectors.T


def cp_factors(
    kernel: Array, rank: int, seed: int, input_moments: Array | None = None
) -> tuple[Array, Array, Array, Array]:  # fmt: skip
    """Writes a kernel as a sum of products of four vectors (CP, Lebedev et al. 2015, arXiv:1412.6553).

    Args:
        kernel: Shape (height, width, inputs, outputs).
        rank: The number of products.
        seed: Of the random vectors that the search starts with where the kernel's own are too few.
        input_moments: As in `spatial_spectrum`.

    Returns:
        Kernels (1, 1, inputs, rank), (height, 1, rank, 1) and (1, width, rank, 1), both depthwise, and
        (1, 1, rank, outputs).

    Raises:
        ModelError: The kernel holds NaN or infinite values.
        UsageError: The rank is below 1 or above that of any kernel of this shape; moments do not fit.
        ConversionError: No start leads to factors of sensible size.
    """
    check_weights(kernel)
    check_rank(rank, kernel.size // max(kernel.shape), f"a kernel of shape {kernel.shape}")
    root, inverse = _roots(input_moments, kernel.shape[2])
    weighted = np.einsum("ij,hwjo->hwio", root, kernel.astype(np.float64))
    norm = float(np.linalg.norm(weighted))
    found = _parafac(weighted / norm, rank, seed) if norm else [np.zeros((size, rank)) for size in kernel.shape]
    found[2] = norm * inverse @ found[2]
    vertical, horizontal, reduce, expand = (each.astype(np.float32) for each in _evened(found))
    return reduce[None, None], vertical[:, None, :, None], horizontal[None, :, :, None], expand.T[None, None]


def _parafac(kernel: Array, rank: int, seed: int) -> list[Array]:
    """Returns the factors (size, rank) of each axis of a kernel of norm 1."""
    from tensorly.decomposition import parafac

    for start, damping in ((_leading_vectors, 0.0), (_random_vectors, 0.0), (_random_vectors, _CP_DAMPING)):
        vectors = start(kernel, rank, np.random.default_rng(seed))
        try:
            _, factors = parafac(
                kernel, rank, init=(np.ones(rank), vectors), n_iter_max=_CP_ITERATIONS, tol=_CP_TOLERANCE,
                l2_reg=damping,
            )  # fmt: skip
        except np.linalg.LinAlgError:  # the vectors have become the same
            continue
        lengths = np.prod([np.linalg.norm(each, axis=0) for each in factors], axis=0)
        if np.isfinite(lengths).all() and lengths.max() < _CP_LARGEST:
            return list(factors)
    raise ConversionError(
        f"the CP decomposition of a kernel of shape {kernel.shape} does not converge", expected=f"rank {rank}",
        received="products that grow without end and cancel each other out",
        fix="give another rank, or another way to factorize convolutions",
    )  # fmt: skip


def _random_vectors(kernel: Array, rank: int, random: np.random.Generator) -> list[Array]:
    return [random.normal(size=(size, rank)) / np.sqrt(size) for size in kernel.shape]


def _leading_vectors(kernel: Array, rank: int, random: np.random.Generator) -> list[Array]:
    """The leading singular vectors along each axis, and random ones where there are fewer than the rank."""
    vectors = _random_vectors(kernel, rank, random)
    for axis, size in enumerate(kernel.shape):
        unfolded = np.moveaxis(kernel, axis, 0).reshape(size, -1)
        few = min(size, rank)
        vectors[axis][:, :few] = np.linalg.eigh(unfolded @ unfolded.T)[1][:, ::-1][:, :few]
    return vectors


def _evened(factors: Sequence[Array]) -> list[Array]:
    """Scales the vectors of each product to the same length."""
    lengths = np.stack([np.linalg.norm(each, axis=0) for each in factors])
    mean = np.prod(lengths, axis=0) ** (1 / len(factors))
    scales = np.divide(mean, lengths, out=np.ones_like(lengths), where=lengths > 0)
    return [each * scale for each, scale in zip(factors, scales, strict=True)]


def compose(factors: Sequence[Array]) -> Array:
    """Returns the kernel (height, width, inputs, outputs) that a chain of convolutions stands for, float32.

    Args:
        factors: What one of the functions above returned; of `cp_factors`'s four the two in the middle are depthwise.
    """
    whole = factors[0].astype(np.float64)
    for number, factor in enumerate(factors[1:], start=1):
        deep = len(factors) == _CP_PARTS and number < _CP_PARTS - 1
        # A depthwise kernel mixes no channels: as a matrix of channels, each of its taps is diagonal.
        taps = np.einsum("hwcx,cd->hwcd", factor, np.eye(factor.shape[2])) if deep else factor
        whole = _after(whole, taps.astype(np.float64))
    return whole.astype(np.float32)


def _after(first: Array, second: Array) -> Array:
    """Returns the kernel of two convolutions, one after the other."""
    (rows, columns), (more_rows, more_columns) = first.shape[:2], second.shape[:2]
    shape = rows + more_rows - 1, columns + more_columns - 1, first.shape[2], second.shape[3]
    result = np.zeros(shape)
    for row in range(more_rows):
        for column in range(more_columns):
            result[row : row + rows, column : column + columns] += first @ second[row, column]
    return result
