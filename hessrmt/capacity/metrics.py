"""Norms, ranks and entropies of a layer from its spectrum. Logarithms are natural.

W is the layer's matrix, λ the eigenvalues of X = WᵀW/N. For a layer of several matrices W is their
direct sum, see :func:`hessrmt.capacity.spectra.direct_sum`.

Sources: [M] is Martin, Mahoney, Universality and capacity metrics in deep neural networks, ICML
workshop 2019; [MM] is Martin, Mahoney, J. Mach. Learn. Res. 22, 165 (2021).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import xlogy

if TYPE_CHECKING:
    from hessrmt.arrays import Levels
    from hessrmt.capacity.spectra import MatrixSpectrum

NAN = float("nan")


def log_frobenius(spectrum: MatrixSpectrum) -> float:
    """The norm ln ‖W‖_F of all the layer's weights; [M] below eq. (5)."""
    return _log(spectrum.frobenius_squared) / 2


def log_spectral(spectrum: MatrixSpectrum) -> float:
    """The spectral norm ln ‖W‖₂ = ln(N λ_max)/2."""
    return _log(spectrum.spectral_squared) / 2


def stable_rank(spectrum: MatrixSpectrum) -> float:
    """‖W‖_F²/‖W‖₂², between 1 and the rank."""
    if spectrum.lambda_max <= 0:
        return NAN
    # the sum of squares holds the largest one: less than 1 is round-off of the two
    return max(1.0, spectrum.frobenius_squared / spectrum.spectral_squared)


def log_stable_rank(spectrum: MatrixSpectrum) -> float:
    """Ratio ln ‖W‖_F²/ln λ_max, [M] eq. (6), which is near α where the tail is heavy.

    Args:
        spectrum: Of the layer.

    Returns:
        The ratio, with the 1/N in λ_max alone as in the paper; any sign. NaN for λ_max = 1.
    """
    below = _log(spectrum.lambda_max)
    return 2 * log_frobenius(spectrum) / below if below else NAN


def entropy(spectrum: MatrixSpectrum) -> float:
    """-Σ p ln p/ln R with p = λ/Σλ and R the rank, [MM]; 0 for rank 1, 1 for equal eigenvalues.

    Args:
        spectrum: Of the layer.

    Returns:
        A number in [0, 1]; NaN for rank 0.
    """
    values = spectrum.positive
    if not len(values):
        return NAN
    if len(values) == 1:
        return 0.0
    share = values / values.sum()
    # by Jensen's inequality at most ln R: what lies outside of [0, 1] is round-off
    return min(1.0, max(0.0, -float(xlogy(share, share).sum())) / math.log(len(values)))


def log_alpha_norm(eigenvalues: Levels, alpha: float) -> float:
    """Logarithm of the α-norm, ln Σ λ^α, [MM]: the Schatten norm of W to the power 2α, over N^α.

    Args:
        eigenvalues: (n,) of X; zeros don't count.
        alpha: Fitted exponent.

    Returns:
        The logarithm, at least α ln λ_max; NaN without exponent or positive eigenvalues.
    """
    values = eigenvalues[eigenvalues > 0]
    if not len(values) or not math.isfinite(alpha):
        return NAN
    powers = alpha * np.log(values)
    top = powers.max()
    return float(top + np.log(np.exp(powers - top).sum()))


def alpha_log_lambda(alpha: float, lambda_max: float) -> float:
    """α ln λ_max, the term of one matrix in α̂; [M] eq. (3)."""
    return alpha * _log(lambda_max)


def _log(value: float) -> float:
    return math.log(value) if value > 0 else NAN
