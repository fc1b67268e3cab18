"""How much of a spectrum is a Marchenko-Pastur bulk, and which eigenvalues stick out of it.

Independent elements of variance σ² give X = WᵀW/N the density of Marchenko and Pastur with ratio
c = M/N, which ends at λ₊ = σ²(1 + √c)². What training adds shows as eigenvalues beyond.

Sources: Marchenko, Pastur, Math. USSR Sb. 1, 457 (1967); the scale from the median: Gavish, Donoho,
IEEE Trans. Inf. Theory 60, 5040 (2014), eq. (6); fluctuations at the edge: Johnstone, Ann. Stat.
29, 295 (2001), theorem 1 and table 1; soft rank: Martin, Mahoney, J. Mach. Learn. Res. 22, 165
(2021).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import sqrt
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import brentq

from hessrmt.theory import (
    marchenko_pastur_cdf,
    marchenko_pastur_support,
)

if TYPE_CHECKING:
    from hessrmt.arrays import Levels
    from hessrmt.capacity.spectra import MatrixSpectrum

FEWEST = 10
"""Eigenvalues above the noise floor below which no bulk is fitted."""

TRACY_WIDOM_99 = 2.0234
"""99 % quantile of the Tracy-Widom distribution for real matrices, Johnstone 2001."""

_NAN = float("nan")


@dataclass(frozen=True)
class BulkFit:
    """A Marchenko-Pastur law fitted to the bulk of a spectrum.

    Attributes:
        variance: σ² of the elements that make the bulk.
        lower: λ₋, where the bulk begins.
        upper: λ₊, where it ends for large matrices.
        threshold: λ₊ with the fluctuations of matrices of this size: the largest eigenvalue of pure
            noise exceeds it in one of a hundred matrices.
        spikes: Eigenvalues above the threshold.
        soft_rank: λ₊/λ_max; about 1 without spikes.
        ks_distance: Of the eigenvalues below the threshold to the law.
        failed: Why there is no fit, else None; then numbers are NaN and ``spikes`` is None.
    """

    variance: float
    lower: float
    upper: float
    threshold: float
    spikes: int | None
    soft_rank: float
    ks_distance: float
    failed: str | None = None


def fit_bulk(spectrum: MatrixSpectrum) -> BulkFit:
    """Fit σ² to the median of the bulk, leave out what lies above the edge, and fit again.

    Half of the eigenvalues must belong to the bulk. Eigenvalues that are zero make the matrix
    narrower: c is the number of the others, for each matrix, over N.

    Args:
        spectrum: Of one matrix, or of several of one shape together.

    Returns:
        The fit.
    """
    values = spectrum.positive
    if len(values) < FEWEST:
        return _failed(f"{len(values)} eigenvalues above zero; a bulk needs {FEWEST}")
    matrices = len(spectrum.eigenvalues) / spectrum.smaller
    width = len(values) / matrices
    ratio = width / spectrum.larger
    edge = noise_edge(spectrum.larger, width)
    bulk = len(values)
    while True:
        variance = float(np.median(values[:bulk])) / _median(ratio)
        below = int(np.searchsorted(values, variance * edge, side="right"))
        if below >= bulk:
            break
        bulk = below
        if 2 * bulk < len(values):
            return _failed("no bulk: more than half of the eigenvalues lie above its edge")
    lower, upper = marchenko_pastur_support(ratio, variance)
    return BulkFit(
        variance=variance,
        lower=lower,
        upper=upper,
        threshold=variance * edge,
        spikes=len(values) - bulk,
        soft_rank=upper / float(values[-1]),
        ks_distance=_distance(values[:bulk], ratio, variance),
    )


def noise_edge(larger: int, smaller: float) -> float:
    """Where the largest eigenvalue of WᵀW/N of unit-variance noise lies in 99 of 100 matrices.

    With a = √(N - 1), b = √M it is [(a + b)² + q (a + b)(1/a + 1/b)^(1/3)]/N, q = 2.0234.

    Args:
        larger: N, at least 2.
        smaller: M.

    Returns:
        The edge, a little above (1 + √(M/N))².

    Source: Johnstone 2001, theorem 1.
    """
    a, b = sqrt(max(larger - 1, 1)), sqrt(smaller)
    width = (a + b) * (1 / a + 1 / b) ** (1 / 3)
    return ((a + b) ** 2 + TRACY_WIDOM_99 * width) / larger


@lru_cache(maxsize=4096)
def _median(ratio: float) -> float:
    """Median of the law with unit variance."""
    low, high = marchenko_pastur_support(ratio)
    return float(brentq(lambda x: float(marchenko_pastur_cdf(x, ratio)) - 0.5, low, high))  # pyright: ignore[reportArgumentType]


def _distance(bulk: Levels, ratio: float, variance: float) -> float:
    law = np.asarray(marchenko_pastur_cdf(bulk, ratio, variance))
    steps = np.arange(len(bulk) + 1) / len(bulk)
    return float(max((steps[1:] - law).max(), (law - steps[:-1]).max()))


def _failed(reason: str) -> BulkFit:
    return BulkFit(_NAN, _NAN, _NAN, _NAN, None, _NAN, _NAN, reason)
