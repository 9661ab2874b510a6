"""Matrices as products of two smaller ones: truncated SVD, of the weights or of the outputs on samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgecompress.data import Array
from edgecompress.errors import ModelError, UsageError

# How much of the outputs' energy counts as if the inputs were white. Far above the rounding of moments, so that
# directions which no sample uses are told apart by their weights; far below what rank is chosen by.
RIDGE = 1e-4
_ROUNDING = 1e-12  # shares of energy that differ by less are the same


@dataclass(frozen=True)
class Spectrum:
    """A matrix (inputs, outputs) as a sum of products, in the order in which its outputs need them.

    Attributes:
        singular: Shape (k,), k = min(inputs, outputs): singular values, of the weights, or of the outputs on samples
            (root mean square); the largest first.
        kept: Shape (k,): the share of their squares that the first 1, 2, ... products keep, up to 1.
        left: Shape (inputs, k), float32; column i is as long as row i of `right`.
        right: Shape (k, outputs), float32.
    """

    singular: Array
    kept: Array
    left: Array
    right: Array

    @property
    def full_rank(self) -> int:
        """The largest rank: at this one the product is the matrix."""
        return len(self.singular)

    def energy(self, rank: int) -> float:
        """Returns the share of the squared singular values that a rank keeps, in [0, 1].

        With moments it is that of the outputs: 1 - energy is their squared relative error on the samples.

        Raises:
            UsageError: The rank is below 1 or above the full rank.
        """
        return float(self.kept[self._checked(rank) - 1])

    def rank_for_energy(self, energy: float) -> int:
        """Returns the smallest rank that keeps at least this share.

        Raises:
            UsageError: The share is outside (0, 1].
        """
        if not 0 < energy <= 1:
            raise UsageError("the share of energy to keep is out of range", expected="above 0, at most 1",
                             received=energy, fix="0.95 is a usual start")  # fmt: skip
        return min(int(np.searchsorted(self.kept, energy - _ROUNDING)) + 1, self.full_rank)

    def factors(self, rank: int) -> tuple[Array, Array]:
        """Returns U (inputs, rank) and V (rank, outputs), float32, whose product is nearest to the matrix.

        Raises:
            UsageError: The rank is below 1 or above the full rank.
        """
        self._checked(rank)
        return self.left[:, :rank].copy(), self.right[:rank].copy()

    def _checked(self, rank: int) -> int:
        check_rank(rank, self.full_rank, f"a matrix of shape ({self.left.shape[0]}, {self.right.shape[1]})")
        return rank


def spectrum(
    matrix: Array, *, input_moments: Array | None = None, output_moments: Array | None = None
) -> Spectrum:  # fmt: skip
    """Decomposes a matrix W (inputs, outputs) so that cutting the sum off after any rank does least harm.

    Without moments, to the weights: truncated SVD, |W - UV| is the least of any product of this rank (Eckart and
    Young 1936). With moments, to the outputs on samples: E|xW - xUV|^2 is the least, which is reduced-rank regression
    (Izenman 1975), and what SVD-LLM (Wang et al. 2024, arXiv:2403.07378) reaches by whitening; ASVD (Yuan et al.
    2023, arXiv:2312.05821) approximates it by a scale for each input. The optimum is W Q Q^T, where Q are the leading
    eigenvectors of G = E[(xW)^T (xW)] = W^T E[x^T x] W, so that nothing is inverted, whether or not the samples are
    fewer than the inputs.

    To G is added `RIDGE` times what white inputs that give as much output would give. For any ridge the error on the
    samples stays at most that of plain SVD: their sum is least here, and the ridge's share of it is least there.

    Args:
        matrix: Shape (inputs, outputs).
        input_moments: E[x^T x] of row vectors x, shape (inputs, inputs).
        output_moments: G, shape (outputs, outputs): the same for fewer outputs than inputs, at less cost.

    Raises:
        ModelError: The matrix holds NaN or infinite values.
        UsageError: The moments do, or have another shape, or both kinds are given.
    """
    _check(matrix, input_moments, output_moments)
    square, basis = _in_square(matrix.astype(np.float64))
    white = square.T @ square
    gram = _seen(square, basis, input_moments, output_moments)
    if gram is None or min(np.trace(gram), np.trace(white)) <= 0:  # also where the samples use nothing of it
        gram, ridge = white, 0.0
    else:
        ridge = RIDGE * np.trace(gram) / np.trace(white)
    values, vectors = np.linalg.eigh((gram + gram.T) / 2 + ridge * white)
    values, vectors = values[::-1], vectors[:, ::-1]
    total = np.cumsum(np.maximum(np.einsum("ij,ij->j", vectors, gram @ vectors), 0))
    left, right = balance(square @ vectors, vectors.T if basis is None else vectors.T @ basis.T)
    return Spectrum(
        singular=np.sqrt(np.maximum(values, 0)),
        kept=total / total[-1] if total[-1] > 0 else np.ones_like(total),
        left=left.astype(np.float32),
        right=right.astype(np.float32),
    )


def balance(left: Array, right: Array) -> tuple[Array, Array]:
    """Scales columns of `left` (…, k) and rows of `right` (k, …) to the same length; their product stays.

    Factors that are alike in size lose less when they are quantized, and train at one learning rate.
    """
    columns = np.linalg.norm(left.reshape(-1, left.shape[-1]), axis=0)
    rows = np.linalg.norm(right.reshape(right.shape[0], -1), axis=1)
    # A product of nothing keeps its other half: it could not be trained if both were zero.
    scale = np.sqrt(np.divide(columns, rows, out=np.ones_like(columns), where=(columns > 0) & (rows > 0)))
    return left / scale, right * scale.reshape(-1, *[1] * (right.ndim - 1))


def _in_square(weights: Array) -> tuple[Array, Array | None]:
    """Returns S and B with W = S B^T and orthonormal columns in B, so that S has no more columns than rows.

    Without B, W is S: it has no more columns than rows itself.
    """
    if weights.shape[0] >= weights.shape[1]:
        return weights, None
    basis, upper = np.linalg.qr(weights.T)
    return upper.T, basis


def _seen(
    square: Array, basis: Array | None, input_moments: Array | None, output_moments: Array | None
) -> Array | None:  # fmt: skip
    """Returns the moments of the outputs on samples, along the basis; None without samples."""
    if input_moments is not None:
        return np.asarray(square.T @ (input_moments.astype(np.float64) @ square))
    if output_moments is None:
        return None
    moments = output_moments.astype(np.float64)
    return moments if basis is None else np.asarray(basis.T @ moments @ basis)


def check_rank(rank: int, full_rank: int, what: str) -> None:
    """Raises UsageError where `what`, in words, has no such rank."""
    if not 1 <= rank <= full_rank:
        raise UsageError(
            f"{what} has no such rank", expected=f"1 to {full_rank}", received=rank,
            fix="give a smaller rank" if rank > 0 else "give a rank of at least 1",
        )  # fmt: skip


def check_weights(weights: Array) -> None:
    """Raises ModelError where weights are NaN or infinite."""
    if not np.isfinite(weights).all():
        count = int(np.size(weights) - np.isfinite(weights).sum())
        raise ModelError(f"{count} of {np.size(weights)} weights are NaN or infinite", expected="finite weights",
                         fix="train the model again from an epoch before they appeared")  # fmt: skip


def _check(matrix: Array, input_moments: Array | None, output_moments: Array | None) -> None:
    check_weights(matrix)
    if input_moments is not None and output_moments is not None:
        raise UsageError("moments of inputs and of outputs are given", expected="one of them")
    for name, moments, size in zip(("inputs", "outputs"), (input_moments, output_moments), matrix.shape, strict=True):
        if moments is not None:
            check_moments(moments, size, name)


def check_moments(moments: Array, size: int, name: str) -> None:
    """Raises UsageError where moments of `name`, "inputs" or "outputs", have another size or are not finite."""
    if moments.shape != (size, size):
        raise UsageError(
            f"the moments of the {name} do not fit the weights", expected=(size, size), received=moments.shape
        )
    if not np.isfinite(moments).all():
        raise UsageError(
            f"the {name} are NaN or infinite on some samples", fix="look for such values in the calibration samples"
        )


def round_rank(rank: int, full_rank: int, multiple: int, *, up: bool) -> int:
    """Returns the next multiple above or below a rank, at least 1 and at most the full rank.

    A matrix with fewer than `multiple` ranks has no multiple to round to: its rank stays.
    """
    if full_rank < multiple:
        return max(1, min(rank, full_rank))
    rounded = (rank + multiple - 1) // multiple * multiple if up else rank // multiple * multiple
    return min(max(rounded, multiple), full_rank)


def relative_error(exact: Array, approximate: Array) -> float:
    """Returns |exact - approximate| / |exact| (Frobenius norms); 0 where both are zero, infinity where one is."""
    exact, approximate = exact.astype(np.float64), approximate.astype(np.float64)
    lost, whole = float(np.linalg.norm(exact - approximate)), float(np.linalg.norm(exact))
    if not whole:
        return float("inf") if lost else 0.0
    return lost / whole
