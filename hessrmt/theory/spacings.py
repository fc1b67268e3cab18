"""Laws of the spacing s of neighbouring levels, in units of the mean spacing.

Every density has mean 1 and is 0 for negative s. The exact laws are those of infinitely large
matrices, P(s) = 1 + E'(s) and p(s) = E''(s), with the probability E(s) of no level in an interval
of s mean spacings; the Wigner surmises are those of 2 x 2 matrices.

E is made of Fredholm determinants of the even and the odd part of the sine kernel, evaluated as
determinants of I - K at Gauss-Legendre nodes, which converges exponentially for entire kernels.

Source: Bornemann 2010a (the method), Bornemann 2010b (the gap probabilities).
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.polynomial.legendre import leggauss
from numpy.typing import ArrayLike
from scipy import special
from scipy.interpolate import PPoly

from hessrmt.checks import one_of, real, real_array
from hessrmt.theory.law import (
    BETA_OF,
    BETAS,
    NAMES,
    Fractions,
    Law,
    Points,
    Values,
    block_fractions,
    bound,
    piecewise,
)

_NODES = 40
_END = 8.0
"""Tables reach to here. D+ is then 1e-20, and round-off in I - K leaves it five digits."""
_PANELS = 32

_WIGNER = {
    1: (math.pi / 2, math.pi / 4),
    2: (32 / math.pi**2, 4 / math.pi),
    4: (2**18 / (3**6 * math.pi**3), 64 / (9 * math.pi)),
}
"""Factor and rate of Wigner's surmises, by Dyson's index."""


def poisson_spacing(s: ArrayLike) -> Values:
    """p(s) = e^-s, independent levels.

    Args:
        s: Spacings, any shape.

    Returns:
        The density, in the shape of s.
    """
    return brody(s, 0)


def poisson_spacing_cdf(s: ArrayLike) -> Values:
    """P(s) = 1 - e^-s (argument as in :func:`poisson_spacing`)."""
    return brody_cdf(s, 0)


def wigner_surmise(s: ArrayLike, beta: int = 1) -> Values:
    """p(s) = a s^β e^(-b s²): (a, b) = (π/2, π/4), (32/π², 4/π), (2¹⁸/3⁶π³, 64/9π) for β = 1, 2, 4.

    Args:
        s: Spacings, any shape.
        beta: Dyson's index, 1, 2 or 4.

    Returns:
        The density, in the shape of s.

    Source: Mehta 2004, ch. 1 for β = 1; Guhr, Müller-Groeling and Weidenmüller 1998 for the others.
    """
    one_of("beta", beta, BETAS)
    t, inside = _clipped(s)
    factor, rate = _WIGNER[beta]
    return np.where(inside, factor * t**beta * np.exp(-rate * t**2), 0.0)[()]


def wigner_surmise_cdf(s: ArrayLike, beta: int = 1) -> Values:
    """P(s) = γ((β+1)/2, b s²)/Γ((β+1)/2), b and arguments as in :func:`wigner_surmise`."""
    one_of("beta", beta, BETAS)
    return special.gammainc((beta + 1) / 2, _WIGNER[beta][1] * _clipped(s)[0] ** 2)[()]


def _wigner_quantile(u: Values, beta: int) -> Values:
    return np.sqrt(special.gammaincinv((beta + 1) / 2, u) / _WIGNER[beta][1])


def brody(s: ArrayLike, q: float) -> Values:
    """p(s) = (q+1) b s^q e^(-b s^(q+1)), b = Γ((q+2)/(q+1))^(q+1).

    q = 0 is Poisson, q = 1 the Wigner surmise of β = 1.

    Args:
        s: Spacings, any shape.
        q: Repulsion, in [-0.95, 10]; below 0 levels attract.

    Returns:
        The density, in the shape of s; infinite at s = 0 for q < 0.

    Source: Brody 1973.
    """
    b, far = _brody_scale(q)
    t, inside = _clipped(s, far)
    power = np.power(t, q, out=np.full(t.shape, np.inf), where=(t > 0) | (q >= 0))
    return np.where(inside, (q + 1) * b * power * np.exp(-b * t ** (q + 1)), 0.0)[()]


def brody_cdf(s: ArrayLike, q: float) -> Values:
    """P(s) = 1 - e^(-b s^(q+1)), b and arguments as in :func:`brody`."""
    b, far = _brody_scale(q)
    return -np.expm1(-b * _clipped(s, far)[0] ** (q + 1))[()]


def _brody_quantile(u: Values, q: float) -> Values:
    log = np.log1p(-u, out=np.full(u.shape, -np.inf), where=u < 1)
    return (-log / _brody_scale(q)[0]) ** (1 / (q + 1))


def _brody_scale(q: float) -> tuple[float, float]:
    """The rate b, and where the density has underflowed to 0 and no power overflows."""
    real("the repulsion q", q, least=-0.95, most=10)
    return math.gamma((q + 2) / (q + 1)) ** (q + 1), 1e3 if q >= 0 else 1e300


def exact_spacing(s: ArrayLike, beta: int = 1) -> Values:
    """p(s) = E''(s), E the gap probability.

    Args:
        s: Spacings, any shape.
        beta: Dyson's index, 1, 2 or 4.

    Returns:
        The density, in the shape of s, with an absolute error below 1e-12.

    Source: Mehta 2004, ch. 6.
    """
    return _from_gap(s, exact_gap, beta)[0]


def exact_spacing_cdf(s: ArrayLike, beta: int = 1) -> Values:
    """P(s) = 1 + E'(s) (arguments as in :func:`exact_spacing`)."""
    return _from_gap(s, exact_gap, beta)[1]


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


def superposed_spacing(s: ArrayLike, fractions: Fractions) -> Values:
    """p(s) = E''(s), E(s) = ∏ E₁(f_i s): a spectrum that superposes independent GOE blocks.

    Args:
        s: Spacings of the superposition, in its mean spacing, any shape.
        fractions: Each block's part of the levels (sum 1), or the number of equal blocks.

    Returns:
        The density, in the shape of s, with an absolute error below 1e-12.

    Source: Rosenzweig and Porter 1960, here with the exact E₁.
    """
    return _from_gap(s, _superposed_gap, fractions)[0]


def superposed_spacing_cdf(s: ArrayLike, fractions: Fractions) -> Values:
    """P(s) = 1 + E'(s) (arguments as in :func:`superposed_spacing`)."""
    return _from_gap(s, _superposed_gap, fractions)[1]


def gap_probability(s: ArrayLike, beta: int = 1) -> Values:
    """E(s), the probability of no level in an interval of length s, infinitely large matrices.

    E₁(s) = D+(s), E₂(s) = D+(s) D-(s), E₄(s) = (D+(2s) + D-(2s))/2, with the Fredholm determinants
    D± of :func:`determinant`.

    Args:
        s: Lengths in mean spacings, any shape; a negative length counts as 0.
        beta: Dyson's index, 1, 2 or 4.

    Returns:
        Probabilities, in the shape of s.

    Source: Mehta 2004, chs. 6 (β = 2), 7 (β = 1) and 11 (β = 4); Bornemann 2010b.
    """
    return np.exp(exact_gap(_clipped(s)[0], beta).log)[()]


class Gap(NamedTuple):
    """A gap probability E(s) by quantities without under- and overflow.

    ``log`` is ln E, ``slope`` is E'/E, ``bend`` is E''/E.
    """

    log: Values
    slope: Values
    bend: Values


def exact_gap(s: Values, beta: int) -> Gap:
    """The gap probability of :func:`gap_probability` and its derivatives.

    Args:
        s: Lengths at least 0, any shape.
        beta: Dyson's index, 1, 2 or 4.

    Returns:
        ln E, E'/E and E''/E.
    """
    one_of("beta", beta, BETAS)
    even, odd = even_odd(s if beta < 4 else 2 * s)
    if beta == 1:
        return even
    if beta == 2:
        bend = even.bend + 2 * even.slope * odd.slope + odd.bend
        return Gap(even.log + odd.log, even.slope + odd.slope, bend)
    total = np.logaddexp(even.log, odd.log)
    a, b = np.exp(even.log - total), np.exp(odd.log - total)
    slope = 2 * (a * even.slope + b * odd.slope)
    return Gap(total - np.log(2), slope, 4 * (a * even.bend + b * odd.bend))


def _superposed_gap(s: Values, fractions: Fractions) -> Gap:
    """E(s) = ∏ E₁(f_i s), the gap probability of independent GOE blocks."""
    log = slope = bend = own = np.zeros(np.shape(s))
    for f, count in block_fractions(fractions):
        block, _ = even_odd(f * s)
        log = log + count * block.log
        slope = slope + count * f * block.slope
        bend = bend + count * f**2 * block.bend
        own = own + count * (f * block.slope) ** 2
    return Gap(log, slope, bend + slope**2 - own)


def _from_gap(
    s: ArrayLike, gap_of: Callable[[Values, Any], Gap], what: Any
) -> tuple[Values, Values]:
    """Density and distribution of the spacing."""
    t, inside = _clipped(s)
    gap = gap_of(t, what)
    empty = np.exp(gap.log)
    density = np.where(inside, np.maximum(empty * gap.bend, 0.0), 0.0)
    return density[()], np.where(t > 0, np.clip(1 + empty * gap.slope, 0.0, 1.0), 0.0)[()]


def _clipped(s: ArrayLike, far: float = 1e3) -> tuple[Values, np.ndarray]:
    """Spacings moved into [0, far], where the law has underflowed to 0; which were not negative."""
    values = real_array("s", s, infinite=True, empty=True)
    return np.clip(values, 0.0, far), values >= 0


def determinant(s: Points, parity: int) -> Gap:
    """D±(s) = det(I - K±) on (0, s/2), K±(x,y) = S(x-y) ± S(x+y), S(d) = sin(πd)/(πd).

    On fixed nodes in (0, 1) the derivative of the matrix A(s) is of rank one, A' = v vᵀ with
    v = √w cos(πsx/2) for the even part and √w sin(πsx/2) for the odd, so that with R = (I - A)⁻¹
    D'/D = -vᵀRv and D''/D = -2 v'ᵀRv: analytic, and free of cancellation in the even part.

    Args:
        s: Lengths in mean spacings, up to about 8.
        parity: +1 for the even part, -1 for the odd.

    Returns:
        ln D, D'/D and D''/D.
    """
    nodes, weights = leggauss(_NODES)
    x, w = (nodes + 1) / 2, weights / 2
    half = s[:, None, None] / 2
    kernel = np.sinc(half * (x[:, None] - x)) + parity * np.sinc(half * (x[:, None] + x))
    B = np.eye(_NODES) - np.sqrt(np.outer(w, w)) * half * kernel
    angle, rate = np.pi * s[:, None] * x / 2, np.pi * x / 2
    if parity > 0:
        v, dv = np.sqrt(w) * np.cos(angle), -np.sqrt(w) * rate * np.sin(angle)
    else:
        v, dv = np.sqrt(w) * np.sin(angle), np.sqrt(w) * rate * np.cos(angle)
    Rv = np.linalg.solve(B, v[..., None])[..., 0]
    return Gap(np.linalg.slogdet(B)[1], -(v * Rv).sum(axis=1), -2 * (dv * Rv).sum(axis=1))


def even_odd(s: Values) -> tuple[Gap, Gap]:
    """D+ and D- of :func:`determinant`, from a table.

    Beyond the table ln D is continued by its second-order expansion, which has the right Gaussian
    fall-off; D- is below 1e-14 there, D+ below 1e-19.

    Args:
        s: Lengths at least 0, any shape.

    Returns:
        ln D, D'/D and D''/D of the even part and of the odd part.
    """
    inside = np.minimum(s, _END)
    log, slope, bend = np.moveaxis(_table()(inside).reshape(*np.shape(s), 2, 3), -1, 0)
    beyond = (np.minimum(s, 1e3) - inside)[..., None]
    if np.any(beyond > 0):
        curvature = bend - slope**2
        log = log + slope * beyond + curvature * beyond**2 / 2
        slope = slope + curvature * beyond
        bend = curvature + slope**2
    even, odd = (Gap(log[..., i], slope[..., i], bend[..., i]) for i in (0, 1))
    return even, odd


@functools.cache
def _table() -> PPoly:
    def both(s: Points) -> np.ndarray:
        return np.stack([*determinant(s, 1), *determinant(s, -1)], axis=-1)

    return piecewise(both, np.linspace(0.0, _END, _PANELS + 1))


@functools.cache
def spacing_law(name: str) -> Law:
    """Law of the spacing s, in the large-matrix limit, by the name of an ensemble.

    Args:
        name: "goe", "gue", "gse", "poisson" or "goe2".

    Returns:
        The exact law.
    """
    one_of("name", name, NAMES)
    if name == "poisson":
        return Law(name, *bound(brody, brody_cdf, _brody_quantile, q=0))
    if name == "goe2":
        return superposed_law(2, name)
    return Law(name, *bound(exact_spacing, exact_spacing_cdf, beta=BETA_OF[name]))


def superposed_law(fractions: Fractions, name: str | None = None) -> Law:
    """Law of the spacing in a superposition of independent GOE blocks.

    Args:
        fractions: Each block's part of the levels (sum 1), or the number of equal blocks.
        name: What to call it.

    Returns:
        The law of :func:`superposed_spacing`.
    """
    block_fractions(fractions)
    if not isinstance(fractions, int | np.integer):
        fractions = tuple(np.asarray(fractions).tolist())
    functions = bound(superposed_spacing, superposed_spacing_cdf, fractions=fractions)
    return Law(name or f"goe blocks {fractions}", *functions)


def wigner_law(beta: int = 1) -> Law:
    """Wigner's surmise of the spacing as a law.

    Args:
        beta: Dyson's index, 1, 2 or 4.

    Returns:
        The law of :func:`wigner_surmise`.
    """
    one_of("beta", beta, BETAS)
    functions = bound(wigner_surmise, wigner_surmise_cdf, _wigner_quantile, beta=beta)
    return Law(f"wigner surmise, beta {beta}", *functions)


def brody_law(q: float) -> Law:
    """Brody's interpolation as a law.

    Args:
        q: Repulsion, 0 for Poisson, 1 for the Wigner surmise.

    Returns:
        The law of :func:`brody`.
    """
    _brody_scale(q)
    return Law(f"brody, q {q:g}", *bound(brody, brody_cdf, _brody_quantile, q=q))
