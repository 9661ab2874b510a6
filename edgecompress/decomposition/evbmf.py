"""The rank of a matrix by variational Bayes: how many of its directions stand out from noise."""

from __future__ import annotations

import numpy as np

from edgecompress.data import Array
from edgecompress.decomposition.matrices import check_weights

_TRIALS = 200  # values of the noise that are tried before the best is made exact: the objective has several minima


def evbmf_rank(matrix: Array) -> int:
    """Returns the rank of the empirical variational Bayesian solution of V = U W + noise, of unknown variance.

    This is the global analytic solution of Nakajima, Sugiyama, Babacan and Tomioka (2013, "Global Analytic Solution of
    Fully-observed Variational Bayesian Matrix Factorization", JMLR 14), with the threshold and the bounds of the noise
    variance in the simpler form of Nakajima, Tomioka, Sugiyama and Babacan (2015, "Condition for Perfect
    Dimensionality Recovery by Variational Bayesian PCA", JMLR 16). It needs the singular values and the shape only.

    Args:
        matrix: Shape (inputs, outputs), of either order.

    Returns:
        A rank from 0, which says that nothing stands out, to min(inputs, outputs).

    Raises:
        ModelError: The matrix holds NaN or infinite values.
    """
    check_weights(matrix)
    rows, columns = sorted(matrix.shape)
    weights = matrix.astype(np.float64)
    wide = weights if len(weights) == rows else weights.T
    squares = np.maximum(np.linalg.eigvalsh(wide @ wide.T)[::-1], 0)
    if not squares[0] > 0:
        return 0
    # Directions below rounding are as good as any noise, and have no logarithm.
    spread = np.maximum(squares / squares[0], np.finfo(np.float64).eps) / columns
    alpha = rows / columns
    threshold = _threshold(alpha)
    return int(np.count_nonzero(spread > _noise_variance(spread, alpha, threshold) * threshold))


def _threshold(alpha: float) -> float:
    """How far above the noise a squared singular value, divided by the columns, is kept."""
    from scipy.optimize import brentq

    def falling(tau: float) -> float:
        return float(sum(np.log1p(each) / each - 0.5 for each in (tau, tau / alpha)))

    tau = float(brentq(falling, 1e-3 * alpha, 3))
    return (1 + tau) * (1 + alpha / tau)


def _noise_variance(spread: Array, alpha: float, threshold: float) -> float:
    """Minimizes the free energy, a function of the variance alone, between the paper's bounds."""
    from scipy.optimize import minimize_scalar

    rows = len(spread)
    most = int(np.ceil(rows / (1 + alpha))) - 1  # components that can be kept at most
    lowest = np.log(max(spread[most] / threshold, spread[most:].mean()))
    highest = np.log(spread.mean())
    trials = np.linspace(lowest, highest, _TRIALS)
    best = int(np.argmin([_free_energy(trial, spread, alpha, threshold) for trial in trials]))
    around = trials[max(best - 1, 0)], trials[min(best + 1, _TRIALS - 1)]
    if not around[0] < around[1]:
        return float(np.exp(around[0]))
    found = minimize_scalar(_free_energy, bounds=around, args=(spread, alpha, threshold), method="bounded")
    return float(np.exp(found.x))


def _free_energy(log_variance: float, spread: Array, alpha: float, threshold: float) -> float:
    ratio = spread / np.exp(log_variance)
    kept = ratio[ratio > threshold] - (1 + alpha)
    tau = (kept + np.sqrt(kept**2 - 4 * alpha)) / 2
    gain = np.log(tau + 1) + alpha * np.log(tau / alpha + 1) - tau
    return float(np.sum(ratio - np.log(ratio)) + np.sum(gain))
