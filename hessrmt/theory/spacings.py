"""Laws of the spacing s of neighbouring levels, in units of the mean spacing.

Every density has mean 1 and is 0 for negative s. The exact laws are those of infinitely large
matrices, P(s) = 1 + E'(s) and p(s) = E''(s) with the gap probabilities of
:mod:`hessrmt.theory.gap`; the Wigner surmises are those of 2 x 2 matrices.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from hessrmt.theory.gap import exact_gap, superposed_gap
from hessrmt.theory.values import BETAS, Values, clipped, one_of


class _Wigner(NamedTuple):
    factor: float
    rate: float


_WIGNER = {
    1: _Wigner(math.pi / 2, math.pi / 4),
    2: _Wigner(32 / math.pi**2, 4 / math.pi),
    4: _Wigner(2**18 / (3**6 * math.pi**3), 64 / (9 * math.pi)),
}


def poisson_spacing(s: ArrayLike) -> Values:
    """p(s) = e^-s, independent levels.

    Args:
        s: Spacings, any shape.

    Returns:
        The density, in the shape of s.
    """
    t, inside = clipped(s)
    return np.where(inside, np.exp(-t), 0.0)[()]


def poisson_spacing_cdf(s: ArrayLike) -> Values:
    """P(s) = 1 - e^-s (argument as in :func:`poisson_spacing`)."""
    t, _ = clipped(s)
    return -np.expm1(-t)[()]


def wigner_surmise(s: ArrayLike, beta: int = 1) -> Values:
    """p(s) = a s^β e^(-b s²): (a, b) = (π/2, π/4), (32/π², 4/π), (2¹⁸/3⁶π³, 64/9π) for β = 1, 2, 4.

    Args:
        s: Spacings, any shape.
        beta: Dyson's index, 1, 2 or 4.

    Returns:
        The density, in the shape of s.

    Source: Mehta, Random Matrices (2004), ch. 1 for β = 1; Guhr, Müller-Groeling, Weidenmüller,
    Phys. Rep. 299, 189 (1998), for the others.
    """
    one_of(beta, BETAS, "beta")
    t, inside = clipped(s)
    factor, rate = _WIGNER[beta]
    return np.where(inside, factor * t**beta * np.exp(-rate * t**2), 0.0)[()]


def wigner_surmise_cdf(s: ArrayLike, beta: int = 1) -> Values:
    """P(s) = γ((β+1)/2, b s²)/Γ((β+1)/2), b and arguments as in :func:`wigner_surmise`."""
    one_of(beta, BETAS, "beta")
    t, _ = clipped(s)
    return special.gammainc((beta + 1) / 2, _WIGNER[beta].rate * t**2)[()]


def wigner_surmise_quantile(u: Values, beta: int = 1) -> Values:
    """The s with wigner_surmise_cdf(s, beta) = u."""
    return np.sqrt(special.gammaincinv((beta + 1) / 2, u) / _WIGNER[beta].rate)


def brody(s: ArrayLike, q: float) -> Values:
    """p(s) = (q+1) b s^q e^(-b s^(q+1)), b = Γ((q+2)/(q+1))^(q+1).

    q = 0 is Poisson, q = 1 the Wigner surmise of β = 1.

    Args:
        s: Spacings, any shape.
        q: Repulsion, in [-0.95, 10]; below 0 levels attract.

    Returns:
        The density, in the shape of s; infinite at s = 0 for q < 0.

    Source: Brody, Lett. Nuovo Cimento 7, 482 (1973).
    """
    b = _brody_rate(q)
    t, inside = clipped(s, _brody_far(q))
    power = np.power(t, q, out=np.full(t.shape, np.inf), where=(t > 0) | (q >= 0))
    return np.where(inside, (q + 1) * b * power * np.exp(-b * t ** (q + 1)), 0.0)[()]


def brody_cdf(s: ArrayLike, q: float) -> Values:
    """P(s) = 1 - e^(-b s^(q+1)), b and arguments as in :func:`brody`."""
    b = _brody_rate(q)
    t, _ = clipped(s, _brody_far(q))
    return -np.expm1(-b * t ** (q + 1))[()]


def brody_quantile(u: Values, q: float) -> Values:
    """The s with brody_cdf(s, q) = u."""
    log = np.log1p(-u, out=np.full(u.shape, -np.inf), where=u < 1)
    return (-log / _brody_rate(q)) ** (1 / (q + 1))


def _brody_rate(q: float) -> float:
    if not -0.95 <= q <= 10:
        raise ValueError(f"q is {q!r}, a repulsion in [-0.95, 10] is expected; try 0 <= q <= 1.")
    return math.gamma((q + 2) / (q + 1)) ** (q + 1)


def _brody_far(q: float) -> float:
    """Where the density has underflowed to 0, and no power overflows."""
    return 1e3 if q >= 0 else 1e300


def exact_spacing(s: ArrayLike, beta: int = 1) -> Values:
    """p(s) = E''(s), E the gap probability.

    Args:
        s: Spacings, any shape.
        beta: Dyson's index, 1, 2 or 4.

    Returns:
        The density, in the shape of s, with an absolute error below 1e-12.

    Source: Mehta, Random Matrices (2004), ch. 6.
    """
    t, inside = clipped(s)
    gap = exact_gap(t, beta)
    return np.where(inside, np.maximum(np.exp(gap.log) * gap.bend, 0.0), 0.0)[()]


def exact_spacing_cdf(s: ArrayLike, beta: int = 1) -> Values:
    """P(s) = 1 + E'(s) (arguments as in :func:`exact_spacing`)."""
    t, _ = clipped(s)
    gap = exact_gap(t, beta)
    return np.where(t > 0, np.clip(1 + np.exp(gap.log) * gap.slope, 0.0, 1.0), 0.0)[()]


def goe_spacing(s: ArrayLike) -> Values:
    """Exact law of the Gaussian orthogonal ensemble, ``exact_spacing(s, beta=1)``."""
    return exact_spacing(s, 1)


def goe_spacing_cdf(s: ArrayLike) -> Values:
    """Distribution of :func:`goe_spacing`."""
    return exact_spacing_cdf(s, 1)


def gue_spacing(s: ArrayLike) -> Values:
    """Exact law of the Gaussian unitary ensemble, ``exact_spacing(s, beta=2)``."""
    return exact_spacing(s, 2)


def gue_spacing_cdf(s: ArrayLike) -> Values:
    """Distribution of :func:`gue_spacing`."""
    return exact_spacing_cdf(s, 2)


def gse_spacing(s: ArrayLike) -> Values:
    """Exact law of the Gaussian symplectic ensemble, ``exact_spacing(s, beta=4)``."""
    return exact_spacing(s, 4)


def gse_spacing_cdf(s: ArrayLike) -> Values:
    """Distribution of :func:`gse_spacing`."""
    return exact_spacing_cdf(s, 4)


def superposed_spacing(s: ArrayLike, fractions: int | ArrayLike) -> Values:
    """p(s) = E''(s), E(s) = ∏ E₁(f_i s): a spectrum that superposes independent GOE blocks.

    Args:
        s: Spacings of the superposition, in its mean spacing, any shape.
        fractions: Each block's part of the levels (sum 1), or the number of equal blocks.

    Returns:
        The density, in the shape of s, with an absolute error below 1e-12.

    Source: Rosenzweig, Porter, Phys. Rev. 120, 1698 (1960), here with the exact E₁.
    """
    t, inside = clipped(s)
    gap = superposed_gap(t, fractions)
    return np.where(inside, np.exp(gap.log) * gap.bend, 0.0)[()]


def superposed_spacing_cdf(s: ArrayLike, fractions: int | ArrayLike) -> Values:
    """P(s) = 1 + E'(s) (arguments as in :func:`superposed_spacing`)."""
    t, _ = clipped(s)
    gap = superposed_gap(t, fractions)
    return np.where(t > 0, np.clip(1 + np.exp(gap.log) * gap.slope, 0.0, 1.0), 0.0)[()]
