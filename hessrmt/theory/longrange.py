"""Number variance Σ²(L) and rigidity Δ₃(L) of infinitely large matrices, L in mean spacings.

The ensembles are "goe", "gue", "gse" and "poisson"; a spectrum that superposes independent blocks
has Σ²(L) = Σ_i Σ²(f_i L), and the same for Δ₃; "goe2" is two equal GOE blocks.

Source: Mehta, Random Matrices (2004), chs. 6 to 8 and 16; Guhr, Müller-Groeling, Weidenmüller,
Phys. Rep. 299, 189 (1998), sec. 3.2.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from hessrmt.theory.tables import panels_rule
from hessrmt.theory.values import (
    Values,
    block_fractions,
    nonnegative_values,
    one_of,
)

ENSEMBLES = ("goe", "gue", "gse", "poisson", "goe2")

Fractions = int | ArrayLike


def cluster_function(r: ArrayLike, law: str = "goe") -> Values:
    """Two-level cluster function Y(r), 1 minus the density of pairs at distance r.

    With S(r) = sin(πr)/(πr): GUE Y = S(r)²; GOE Y = S(r)² + S'(r) ∫_r^∞ S; GSE Y = S(2r)² -
    (dS(2r)/dr) ∫_0^r S(2t) dt; Poisson 0.

    Args:
        r: Distances, any shape.
        law: "goe", "gue", "gse" or "poisson".

    Returns:
        Y, in the shape of r.

    Source: Mehta (2004), chs. 6 (GUE), 7 (GOE), 8 (GSE).
    """
    one_of(law, ENSEMBLES[:4], "law")
    x = nonnegative_values(r, "r")
    if law == "poisson":
        return np.zeros_like(x)[()]
    if law == "gse":
        x = 2 * x
    square = np.sinc(x) ** 2
    if law == "gue":
        return square[()]
    angle = np.pi * x
    slope = np.divide(np.cos(angle) - np.sinc(x), x, out=np.zeros_like(x), where=x > 0)
    integral = special.sici(angle)[0] / np.pi
    if law == "goe":
        return (square + slope * (0.5 - integral))[()]
    return (square - slope * integral)[()]


def number_variance(L: ArrayLike, law: str = "goe", fractions: Fractions = 1) -> Values:
    """Σ²(L) = L - 2 ∫_0^L (L - r) Y(r) dr, the variance of the number of levels in length L.

    In closed form, with x = 2πL, Σ²_gue = [ln x + γ + 1 - cos x - Ci x]/π² + L [1 - (2/π) Si x],
    Σ²_goe = 2 Σ²_gue + (Si(πL)/π)² - Si(πL)/π, Σ²_gse(L) = Σ²_gue(2L)/2 + (Si(2πL)/2π)².

    Args:
        L: Lengths in mean spacings, at least 0, any shape.
        law: "goe", "gue", "gse", "poisson" or "goe2".
        fractions: For a superposition of independent blocks: each block's part of the levels (sum
            1), or the number of equal blocks.

    Returns:
        The variance, in the shape of L.

    Source: Mehta (2004), ch. 16.
    """
    return _superpose(_variance, L, law, fractions)


def number_variance_asymptotic(L: ArrayLike, law: str = "goe", fractions: Fractions = 1) -> Values:
    """Σ²(L) for large L: (2/π²) [ln 2πL + γ + 1 - π²/8] for GOE.

    GUE (1/π²) [ln 2πL + γ + 1], GSE (1/2π²) [ln 4πL + γ + 1 + π²/8], Poisson L.

    Args:
        L: Lengths in mean spacings, above 0, any shape.
        law: As in :func:`number_variance`.
        fractions: As in :func:`number_variance`.

    Returns:
        The leading terms, in the shape of L; the remainder is of order 1/L.

    Source: Guhr et al. (1998), sec. 3.2.
    """
    _positive(L)
    return _superpose(_variance_far, L, law, fractions)


def rigidity(L: ArrayLike, law: str = "goe", fractions: Fractions = 1) -> Values:
    """Δ₃(L) = (2/L⁴) ∫_0^L (L³ - 2L² r + r³) Σ²(r) dr.

    Δ₃ is the mean over the ensemble of the least squared deviation of the staircase N(ξ) from a
    straight line on an interval of length L, divided by L. Poisson L/15.

    Args:
        L: Lengths in mean spacings, from 0 to 1e5, any shape.
        law: As in :func:`number_variance`.
        fractions: As in :func:`number_variance`.

    Returns:
        The rigidity, in the shape of L.

    Raises:
        ValueError: A length is out of range.

    Source: Pandey, Ann. Phys. 119, 170 (1979); Guhr et al. (1998), sec. 3.2.
    """
    values = nonnegative_values(L, "L")
    if values.size and values.max() > 1e5:
        raise ValueError(
            f"L goes up to {values.max():g}, at most 1e5 is expected; use rigidity_asymptotic."
        )
    return _superpose(_rigidity, values, law, fractions)


def rigidity_asymptotic(L: ArrayLike, law: str = "goe", fractions: Fractions = 1) -> Values:
    """Δ₃(L) for large L: (1/π²) [ln 2πL + γ - 5/4 - π²/8] for GOE.

    GUE (1/2π²) [ln 2πL + γ - 5/4], GSE (1/4π²) [ln 4πL + γ - 5/4 + π²/8], Poisson L/15.

    Args:
        L: Lengths in mean spacings, above 0, any shape.
        law: As in :func:`number_variance`.
        fractions: As in :func:`number_variance`.

    Returns:
        The leading terms, in the shape of L.

    Source: Guhr et al. (1998), sec. 3.2.
    """
    _positive(L)
    return _superpose(_rigidity_far, L, law, fractions)


def kernel_and_blocks(law: str, fractions: Fractions) -> tuple[str, tuple[tuple[float, int], ...]]:
    """What a superposition is made of.

    Args:
        law: "goe", "gue", "gse", "poisson" or "goe2".
        fractions: Each block's part of the levels, or the number of equal blocks.

    Returns:
        The law of a block, and pairs (fraction, how many blocks have it).
    """
    one_of(law, ENSEMBLES, "law")
    blocks = block_fractions(fractions)
    if law == "goe2":
        return "goe", tuple((f / 2, 2 * count) for f, count in blocks)
    return law, blocks


def _superpose(
    statistic: Callable[[np.ndarray, str], np.ndarray],
    L: ArrayLike,
    law: str,
    fractions: Fractions,
) -> Values:
    lengths = nonnegative_values(L, "L")
    kernel, blocks = kernel_and_blocks(law, fractions)
    total = np.zeros(lengths.shape)
    for f, count in blocks:
        total = total + count * statistic(f * lengths, kernel)
    return total[()]


def _positive(L: ArrayLike) -> None:
    values = nonnegative_values(L, "L")
    if values.size and values.min() == 0:
        raise ValueError(
            "L contains 0, lengths above 0 are expected: the asymptotic formula diverges there; "
            "use the exact one."
        )


def _log_minus_ci(x: np.ndarray) -> np.ndarray:
    """The entire function ln x + γ - Ci x."""
    safe = np.where(x > 0, x, 1.0)
    return np.where(x > 0, np.log(safe) + np.euler_gamma - special.sici(safe)[1], 0.0)


def _variance(L: np.ndarray, law: str) -> np.ndarray:
    if law == "poisson":
        return L
    if law == "gse":
        return _variance(2 * L, "gue") / 2 + (special.sici(2 * np.pi * L)[0] / (2 * np.pi)) ** 2
    x = 2 * np.pi * L
    gue = (_log_minus_ci(x) + 1 - np.cos(x)) / np.pi**2
    gue = gue + L * (1 - 2 / np.pi * special.sici(x)[0])
    if law == "gue":
        return gue
    half = special.sici(np.pi * L)[0] / np.pi
    return 2 * gue + half**2 - half


def _variance_far(L: np.ndarray, law: str) -> np.ndarray:
    base = np.log(2 * np.pi * L) + np.euler_gamma + 1
    if law == "goe":
        return 2 / np.pi**2 * (base - np.pi**2 / 8)
    if law == "gue":
        return base / np.pi**2
    return (base + np.log(2) + np.pi**2 / 8) / (2 * np.pi**2) if law == "gse" else L


def _rigidity(L: np.ndarray, law: str) -> np.ndarray:
    """Moments ∫ r^k Σ²(r) dr, k = 0, 1, 3, accumulated over panels that end at the lengths."""
    if law == "poisson":
        return L / 15
    ends = np.unique(np.append(L, 0.0))
    edges = np.union1d(ends, np.arange(0.0, ends[-1] if len(ends) else 0.0, 0.5))
    if len(edges) < 2:
        return np.zeros(L.shape)
    r, w = panels_rule(edges)
    weighted = w * _variance(r, law)
    moments = [np.append(0.0, np.cumsum((weighted * r**k).sum(axis=1))) for k in (0, 1, 3)]
    m0, m1, m3 = (m[np.searchsorted(edges, L)] for m in moments)
    # independent levels to a relative order of L² at small L
    small = L < 1e-6
    safe = np.where(small, 1.0, L)
    return np.where(small, L / 15, 2 * (m0 / safe - 2 * m1 / safe**2 + m3 / safe**4))


def _rigidity_far(L: np.ndarray, law: str) -> np.ndarray:
    base = np.log(2 * np.pi * L) + np.euler_gamma - 5 / 4
    if law == "goe":
        return (base - np.pi**2 / 8) / np.pi**2
    if law == "gue":
        return base / (2 * np.pi**2)
    return (base + np.log(2) + np.pi**2 / 8) / (4 * np.pi**2) if law == "gse" else L / 15
