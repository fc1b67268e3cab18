"""Ratio r of consecutive spacings, and r̃ = min(r, 1/r): laws and means.

All laws here satisfy P(r) = P(1/r)/r², so that r̃ has the density 2 P(r̃) on [0, 1].

Source: Atas, Bogomolny, Giraud, Roux, PRL 110, 084101 (2013), Table I and eqs. (7)-(8).
"""

import functools
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike
from scipy.interpolate import PPoly

from hessrmt.theory.blocks import block_ratio
from hessrmt.theory.tables import piecewise
from hessrmt.theory.values import BETAS, Values, one_of, real_values

MEAN_RATIO_GOE = 0.5307
"""Large-matrix GOE mean of r̃, numerical, ± 0.0001 (Atas et al. 2013, Table I)."""

MEAN_RATIO_GUE = 0.5996
"""Large-matrix GUE mean of r̃, numerical, ± 0.0001 (Atas et al. 2013, Table I)."""

MEAN_RATIO_GSE = 0.6744
"""Large-matrix GSE mean of r̃, numerical, ± 0.0001 (Atas et al. 2013, Table I)."""

MEAN_RATIO_GOE_SURMISE = 4 - 2 * math.sqrt(3)
"""GOE mean of r̃ by the 3 x 3 surmise, 0.5359 (Atas et al. 2013, Table I)."""

MEAN_RATIO_GUE_SURMISE = 2 * math.sqrt(3) / math.pi - 1 / 2
"""GUE mean of r̃ by the 3 x 3 surmise, 0.6027 (Atas et al. 2013, Table I)."""

MEAN_RATIO_GSE_SURMISE = 32 * math.sqrt(3) / (15 * math.pi) - 1 / 2
"""GSE mean of r̃ by the 3 x 3 surmise, 0.6762 (Atas et al. 2013, Table I)."""

MEAN_RATIO_POISSON = 2 * math.log(2) - 1
"""Mean of r̃ for independent levels, 0.3863 (Atas et al. 2013, Table I)."""

MEAN_RATIO_GOE2 = 0.4234
"""Mean of r̃ for two equal independent GOE blocks (Giraud et al., PRX 12, 011006 (2022))."""

_Z = {
    1: 8 / 27,
    2: 4 * math.pi / (81 * math.sqrt(3)),
    4: 4 * math.pi / (729 * math.sqrt(3)),
}
# C and c_β of their δP_fit. c_β follows from ∫ δP = 0; C is their fit to large matrices, and gives
# the means 0.53074, 0.59969, 0.67445.
_C = {1: 0.233378, 2: 0.578846, 4: 3.60123}
_c = {
    1: 2 * (math.pi - 2) / (4 - math.pi),
    2: 4 * (4 - math.pi) / (3 * math.pi - 8),
    4: 8 * (32 - 9 * math.pi) / (45 * math.pi - 128),
}


def ratio_law(
    r: ArrayLike,
    beta: int = 1,
    folded: bool = False,
    corrected: bool = False,
    cut: float | None = None,
) -> Values:
    """P(r) = (r + r²)^β / (Z_β (1 + r + r²)^(1 + 3β/2)), exact for 3 x 3 matrices.

    For large matrices δP(r) = C (1+r)^-2 [(r + 1/r)^-β - c_β (r + 1/r)^-(β+1)] is added.

    Args:
        r: Ratios, any shape; the density is 0 for negative ones.
        beta: Dyson's index, 1, 2 or 4.
        folded: Law of r̃ = min(r, 1/r), 2 P(r̃) on [0, 1].
        corrected: Add δP, fitted by Atas et al. to the law of large matrices.
        cut: Law of the ratios up to the cut only, as a histogram that ends there shows it:
            P(r)/∫₀^cut P.

    Returns:
        The density, in the shape of r.

    Source: Atas et al. 2013, eqs. (7)-(8); the correction is their δP_fit.
    """
    one_of(beta, BETAS, "beta")
    values = _finish(_atas(beta, corrected), r, folded)
    return _cut_density(values, r, cut, _folded_table(beta, corrected), folded)


def ratio_law_cdf(
    r: ArrayLike,
    beta: int = 1,
    folded: bool = False,
    corrected: bool = False,
    cut: float | None = None,
) -> Values:
    """∫₀^r of :func:`ratio_law` (same arguments), from a table with an error below 1e-12."""
    one_of(beta, BETAS, "beta")
    return _cut_probability(r, cut, _folded_table(beta, corrected), folded)


def poisson_ratio_law(r: ArrayLike, folded: bool = False, cut: float | None = None) -> Values:
    """P(r) = 1/(1+r)², independent levels.

    Args:
        r: Ratios, any shape; the density is 0 for negative ones.
        folded: Law of min(r, 1/r), 2 P on [0, 1].
        cut: Law of the ratios up to the cut only.

    Returns:
        The density, in the shape of r.

    Source: Atas et al. 2013, Table I.
    """
    return _cut_density(_finish(_poisson, r, folded), r, cut, _poisson_folded, folded)


def poisson_ratio_law_cdf(r: ArrayLike, folded: bool = False, cut: float | None = None) -> Values:
    """r/(1+r), folded 2r/(1+r) (arguments as in :func:`poisson_ratio_law`)."""
    return _cut_probability(r, cut, _poisson_folded, folded)


def block_ratio_law(
    r: ArrayLike, blocks: int = 2, folded: bool = False, cut: float | None = None
) -> Values:
    """P(r) = ∫ x p(x, r x) dx of equal independent GOE blocks, superposed.

    Args:
        r: Ratios, any shape; the density is 0 for negative ones.
        blocks: Number of blocks.
        folded: Law of min(r, 1/r), 2 P on [0, 1].
        cut: Law of the ratios up to the cut only.

    Returns:
        The density, in the shape of r, with an error below 1e-9 against the integral.

    Source: Giraud, Macé, Vernier, Alet, PRX 12, 011006 (2022), sec. II.
    """
    table = _block_table(blocks)
    density = table.derivative()

    def full(t: np.ndarray) -> np.ndarray:
        small = np.minimum(t, 1 / np.maximum(t, 1.0))
        return density(small) / 2 * np.where(t > 1, small**2, 1.0)

    return _cut_density(_finish(full, r, folded), r, cut, table, folded)


def block_ratio_law_cdf(
    r: ArrayLike, blocks: int = 2, folded: bool = False, cut: float | None = None
) -> Values:
    """∫₀^r of :func:`block_ratio_law` (same arguments)."""
    return _cut_probability(r, cut, _block_table(blocks), folded)


def mean_ratio(name: str) -> float:
    """Large-matrix mean of r̃ by the name of an ensemble.

    Args:
        name: "goe", "gue", "gse", "poisson" or "goe2" (two equal GOE blocks).

    Returns:
        The mean, to 1e-4.
    """
    means = {
        "goe": MEAN_RATIO_GOE,
        "gue": MEAN_RATIO_GUE,
        "gse": MEAN_RATIO_GSE,
        "poisson": MEAN_RATIO_POISSON,
        "goe2": MEAN_RATIO_GOE2,
    }
    one_of(name, tuple(means), "name")
    return means[name]


def _atas(beta: int, corrected: bool) -> Callable[[np.ndarray], np.ndarray]:
    def density(r: np.ndarray) -> np.ndarray:
        # in t = min(r, 1/r), with P(r) = P(1/r)/r²: no overflow at large r
        t = np.minimum(r, 1 / np.maximum(r, 1.0))
        value = (t + t**2) ** beta / (1 + t + t**2) ** (1 + 1.5 * beta) / _Z[beta]
        if corrected:
            q = t / (1 + t**2)
            value += _C[beta] / (1 + t) ** 2 * (q**beta - _c[beta] * q ** (beta + 1))
        return value * np.where(r > 1, t**2, 1.0)

    return density


def _poisson(r: np.ndarray) -> np.ndarray:
    return (1 / (1 + r)) ** 2


def _poisson_folded(t: np.ndarray) -> np.ndarray:
    return 2 * t / (1 + t)


@functools.cache
def _folded_table(beta: int, corrected: bool) -> PPoly:
    density = _atas(beta, corrected)
    return piecewise(lambda r: 2 * density(r), np.linspace(0.0, 1.0, 17)).antiderivative()


@functools.cache
def _block_table(blocks: int) -> PPoly:
    return piecewise(
        lambda r: 2 * block_ratio(r, blocks), np.linspace(0.0, 1.0, 5)
    ).antiderivative()


def _finish(density: Callable[[np.ndarray], np.ndarray], r: ArrayLike, folded: bool) -> np.ndarray:
    values = real_values(r, "r")
    inside = (values >= 0) & ((values <= 1) | (not folded))
    return np.where(inside, density(np.maximum(values, 0.0)) * (2 if folded else 1), 0.0)


def _probability(r: np.ndarray, below: Callable[[np.ndarray], np.ndarray], folded: bool) -> Values:
    """The distribution of r from that of r̃: half of it up to 1, its mirror image beyond."""
    t = np.maximum(r, 0.0)
    if folded:
        return below(np.minimum(t, 1.0))
    half = below(np.minimum(t, 1 / np.maximum(t, 1.0))) / 2
    return np.where(t > 1, 1 - half, half)


def _mass(cut: float, below: Callable[[np.ndarray], np.ndarray], folded: bool) -> float:
    if not cut > 0:
        raise ValueError(f"cut is {cut!r}, a ratio above 0 is expected; try cut=10.")
    return float(_probability(np.asarray(float(cut)), below, folded))


def _cut_density(
    values: np.ndarray,
    r: ArrayLike,
    cut: float | None,
    below: Callable[[np.ndarray], np.ndarray],
    folded: bool,
) -> Values:
    if cut is None:
        return values[()]
    return np.where(np.asarray(r) <= cut, values / _mass(cut, below, folded), 0.0)[()]


def _cut_probability(
    r: ArrayLike, cut: float | None, below: Callable[[np.ndarray], np.ndarray], folded: bool
) -> Values:
    values = real_values(r, "r")
    if cut is None:
        return np.asarray(_probability(values, below, folded))[()]
    mass = _mass(cut, below, folded)
    return (_probability(np.minimum(values, cut), below, folded) / mass)[()]
