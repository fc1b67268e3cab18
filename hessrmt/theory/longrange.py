"""Long-range statistics of infinitely large matrices: Σ²(L), Δ₃(L) and K(τ).

Lengths L are in mean spacings, times τ in units of the Heisenberg time. The ensembles are "goe",
"gue", "gse" and "poisson"; a spectrum that superposes independent blocks has Σ²(L) = Σ_i Σ²(f_i L),
and the same for Δ₃; "goe2" is two equal GOE blocks.

Source: Mehta 2004, chs. 6 to 8 and 16; Guhr, Müller-Groeling and Weidenmüller 1998, sec. 3.2.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from hessrmt.checks import one_of, real_array
from hessrmt.theory.law import NAMES, Fractions, Values, block_fractions, panels_rule

_FAR = {"goe": (2, -(np.pi**2) / 8), "gue": (1, 0.0), "gse": (0.5, np.log(2) + np.pi**2 / 8)}
"""Factor of the logarithm in Σ² at large L, in 1/π², and what is added to the logarithm."""

_LENGTHS = "lengths are in mean spacings"


def cluster_function(r: ArrayLike, law: str = "goe") -> Values:
    """Two-level cluster function Y(r), 1 minus the density of pairs at distance r.

    With S(r) = sin(πr)/(πr): GUE Y = S(r)²; GOE Y = S(r)² + S'(r) ∫_r^∞ S; GSE Y = S(2r)² -
    (dS(2r)/dr) ∫_0^r S(2t) dt; Poisson 0.

    Args:
        r: Distances, any shape.
        law: "goe", "gue", "gse" or "poisson".

    Returns:
        Y, in the shape of r.

    Source: Mehta 2004, chs. 6 (GUE), 7 (GOE), 8 (GSE).
    """
    one_of("law", law, NAMES[:4])
    x = real_array("r", r, least=0, empty=True, hint=_LENGTHS)
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
    return (square + slope * ((0.5 if law == "goe" else 0.0) - integral))[()]


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

    Source: Mehta 2004, ch. 16.
    """
    lengths = real_array("L", L, least=0, empty=True, hint=_LENGTHS)
    return _superpose(lambda f, kernel: _variance(f * lengths, kernel), law, fractions)


def number_variance_asymptotic(L: ArrayLike, law: str = "goe", fractions: Fractions = 1) -> Values:
    """Σ²(L) for large L: (2/π²) [ln 2πL + γ + 1 - π²/8] for GOE.

    GUE (1/π²) [ln 2πL + γ + 1], GSE (1/2π²) [ln 4πL + γ + 1 + π²/8], Poisson L.

    Args:
        L: Lengths in mean spacings, above 0, any shape.
        law: As in :func:`number_variance`.
        fractions: As in :func:`number_variance`.

    Returns:
        The leading terms, in the shape of L; the remainder is of order 1/L.

    Source: Guhr, Müller-Groeling and Weidenmüller 1998, sec. 3.2.
    """
    lengths = real_array("L", L, above=0, empty=True, hint=_LENGTHS)
    return _superpose(lambda f, kernel: _far(f * lengths, kernel, 1.0, 1), law, fractions)


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

    Source: Pandey 1979; Guhr, Müller-Groeling and Weidenmüller 1998, sec. 3.2.
    """
    advice = f"{_LENGTHS}; beyond 1e5 use rigidity_asymptotic"
    lengths = real_array("L", L, least=0, most=1e5, empty=True, hint=advice)
    return _superpose(lambda f, kernel: _rigidity(f * lengths, kernel), law, fractions)


def rigidity_asymptotic(L: ArrayLike, law: str = "goe", fractions: Fractions = 1) -> Values:
    """Δ₃(L) for large L: (1/π²) [ln 2πL + γ - 5/4 - π²/8] for GOE.

    GUE (1/2π²) [ln 2πL + γ - 5/4], GSE (1/4π²) [ln 4πL + γ - 5/4 + π²/8], Poisson L/15.

    Args:
        L: Lengths in mean spacings, above 0, any shape.
        law: As in :func:`number_variance`.
        fractions: As in :func:`number_variance`.

    Returns:
        The leading terms, in the shape of L.

    Source: Guhr, Müller-Groeling and Weidenmüller 1998, sec. 3.2.
    """
    lengths = real_array("L", L, above=0, empty=True, hint=_LENGTHS)
    return _superpose(lambda f, kernel: _far(f * lengths, kernel, -5 / 4, 7.5) / 2, law, fractions)


def form_factor(tau: ArrayLike, law: str = "goe", fractions: Fractions = 1) -> Values:
    """K(τ) = 1 - ∫ Y(r) e^(2πirτ) dr, the connected spectral form factor.

    GOE 2τ - τ ln(1 + 2τ) up to τ = 1, then 2 - τ ln((2τ + 1)/(2τ - 1)); GUE min(τ, 1); GSE τ/2 -
    (τ/4) ln|1 - τ| up to τ = 2 (infinite at τ = 1), then 1; Poisson 1.

    A superposition of independent blocks has K(τ) = Σ_i f_i K_i(τ/f_i).

    Args:
        tau: Times in units of the Heisenberg time, any shape; K is even.
        law: "goe", "gue", "gse", "poisson" or "goe2".
        fractions: Each block's part of the levels (sum 1), or the number of equal blocks.

    Returns:
        The form factor, in the shape of tau.

    Source: Mehta 2004, chs. 6 (GUE), 7 (GOE), 8 (GSE).
    """
    times = np.minimum(np.abs(real_array("tau", tau, infinite=True, empty=True)), 1e100)
    return _superpose(lambda f, kernel: f * _form(times / f, kernel), law, fractions)


def _superpose(statistic: Callable[[float, str], Values], law: str, fractions: Fractions) -> Values:
    """Sum over independent blocks of a function of a block's fraction and law."""
    one_of("law", law, NAMES)
    parts, kernel = (2, "goe") if law == "goe2" else (1, law)
    blocks = block_fractions(fractions)
    terms = (parts * count * statistic(f / parts, kernel) for f, count in blocks)
    return sum(terms, np.zeros(()))[()]


def _variance(L: Values, law: str) -> Values:
    if law == "poisson":
        return L
    if law == "gse":
        return _variance(2 * L, "gue") / 2 + (special.sici(2 * np.pi * L)[0] / (2 * np.pi)) ** 2
    x = 2 * np.pi * L
    safe = np.where(x > 0, x, 1.0)
    # the entire function ln x + γ - Ci x
    entire = np.where(x > 0, np.log(safe) + np.euler_gamma - special.sici(safe)[1], 0.0)
    gue = (entire + 1 - np.cos(x)) / np.pi**2 + L * (1 - 2 / np.pi * special.sici(x)[0])
    if law == "gue":
        return gue
    half = special.sici(np.pi * L)[0] / np.pi
    return 2 * gue + half**2 - half


def _far(L: Values, law: str, constant: float, divisor: float) -> Values:
    """Leading terms of Σ² with the constant 1, of 2 Δ₃ with -5/4; L/divisor if independent."""
    if law == "poisson":
        return L / divisor
    factor, shift = _FAR[law]
    return factor / np.pi**2 * (np.log(2 * np.pi * L) + np.euler_gamma + constant + shift)


def _rigidity(L: Values, law: str) -> Values:
    """Moments ∫ r^k Σ²(r) dr, k = 0, 1, 3, accumulated over panels that end at the lengths."""
    if law == "poisson":
        return L / 15
    ends = np.unique(np.append(L, 0.0))
    edges = np.union1d(ends, np.arange(0.0, ends[-1], 0.5))
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


def _form(t: Values, law: str) -> Values:
    if law == "poisson":
        return np.ones(t.shape)
    if law == "gue":
        return np.minimum(t, 1.0)
    if law == "goe":
        early, late = np.minimum(t, 1.0), np.maximum(t, 1.0)
        below, above = early * np.log1p(2 * early), late * np.log1p(2 / (2 * late - 1))
        return np.where(t <= 1, 2 * early - below, 2 - above)
    early = np.minimum(t, 2.0)
    gap = np.abs(1 - early)
    log = np.log(gap, out=np.full(t.shape, -np.inf), where=gap > 0)
    return np.where(t <= 2, early / 2 - early / 4 * log, 1.0)
