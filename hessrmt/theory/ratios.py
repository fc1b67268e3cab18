"""Ratio r of consecutive spacings, and r̃ = min(r, 1/r): laws and means.

All laws here satisfy P(r) = P(1/r)/r², so that r̃ has the density 2 P(r̃) on [0, 1], and each is
given by P(t) for t in [0, 1] and by the distribution of r̃.

Source: Atas et al. 2013, Table I and eqs. (7)-(8); Tekur, Bhosale and Santhanam 2018 for every k-th
level.
"""

import functools
from collections.abc import Callable
from math import log, pi, sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from hessrmt.checks import one_of, real, real_array, whole
from hessrmt.theory.law import (
    BETA_OF,
    BETAS,
    NAMES,
    Law,
    Points,
    Values,
    bound,
    panels_rule,
    piecewise,
)

MEAN_RATIO_GOE = 0.5307
"""Large-matrix GOE mean of r̃, numerical, ± 0.0001 (Atas et al. 2013, Table I)."""

MEAN_RATIO_GUE = 0.5996
"""Large-matrix GUE mean of r̃, numerical, ± 0.0001 (Atas et al. 2013, Table I)."""

MEAN_RATIO_GSE = 0.6744
"""Large-matrix GSE mean of r̃, numerical, ± 0.0001 (Atas et al. 2013, Table I)."""

MEAN_RATIO_GOE_SURMISE = 4 - 2 * sqrt(3)
"""GOE mean of r̃ by the 3 x 3 surmise, 0.5359 (Atas et al. 2013, Table I)."""

MEAN_RATIO_GUE_SURMISE = 2 * sqrt(3) / pi - 1 / 2
"""GUE mean of r̃ by the 3 x 3 surmise, 0.6027 (Atas et al. 2013, Table I)."""

MEAN_RATIO_GSE_SURMISE = 32 * sqrt(3) / (15 * pi) - 1 / 2
"""GSE mean of r̃ by the 3 x 3 surmise, 0.6762 (Atas et al. 2013, Table I)."""

MEAN_RATIO_POISSON = 2 * log(2) - 1
"""Mean of r̃ for independent levels, 0.3863 (Atas et al. 2013, Table I)."""

MEAN_RATIO_GOE2 = 0.4234
"""Mean of r̃ for two equal independent GOE blocks (Giraud et al. 2022)."""

_FINE = 12 * np.linspace(0.0, 1.0, 25)
"""Panels of a narrow law, in its widths."""

_MEANS = (MEAN_RATIO_GOE, MEAN_RATIO_GUE, MEAN_RATIO_GSE, MEAN_RATIO_POISSON, MEAN_RATIO_GOE2)

# Z_β, and C and c_β of their δP_fit. c_β follows from ∫ δP = 0; C is their fit to large matrices,
# and gives the means 0.53074, 0.59969, 0.67445.
_ATAS = {
    1: (8 / 27, 0.233378, 2 * (pi - 2) / (4 - pi)),
    2: (4 * pi / (81 * sqrt(3)), 0.578846, 4 * (4 - pi) / (3 * pi - 8)),
    4: (4 * pi / (729 * sqrt(3)), 3.60123, 8 * (32 - 9 * pi) / (45 * pi - 128)),
}

# The joint density of two consecutive spacings of a block of the superposition
_RATE = 9 / (4 * pi)  # makes the mean spacing 1
_FACTOR = 9 * _RATE**2.5 / sqrt(pi)  # makes the total probability 1
_FAR = 9.0  # a block's spacing exceeds this with probability 1e-19
_MOST_BLOCKS = 50


Cut = float | None


class _Shape(NamedTuple):
    """P(t) for t in [0, 1], and the distribution of r̃."""

    density: Callable[[Values], Values]
    folded_cdf: Callable[[Values], Values]


_POISSON = _Shape(lambda t: (1 / (1 + t)) ** 2, lambda t: 2 * t / (1 + t))


def ratio_law(
    r: ArrayLike, beta: int = 1, folded: bool = False, corrected: bool = False, cut: Cut = None
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
    one_of("beta", beta, BETAS)
    return _pdf(r, _atas(beta, corrected), folded, cut)


def ratio_law_cdf(
    r: ArrayLike, beta: int = 1, folded: bool = False, corrected: bool = False, cut: Cut = None
) -> Values:
    """∫₀^r of :func:`ratio_law` (same arguments), from a table with an error below 1e-12."""
    one_of("beta", beta, BETAS)
    return _cdf(r, _atas(beta, corrected), folded, cut)


def poisson_ratio_law(r: ArrayLike, folded: bool = False, cut: Cut = None) -> Values:
    """P(r) = 1/(1+r)², independent levels.

    Args:
        r: Ratios, any shape; the density is 0 for negative ones.
        folded: Law of min(r, 1/r), 2 P on [0, 1].
        cut: Law of the ratios up to the cut only.

    Returns:
        The density, in the shape of r.

    Source: Atas et al. 2013, Table I.
    """
    return _pdf(r, _POISSON, folded, cut)


def poisson_ratio_law_cdf(r: ArrayLike, folded: bool = False, cut: Cut = None) -> Values:
    """r/(1+r), folded 2r/(1+r) (arguments as in :func:`poisson_ratio_law`)."""
    return _cdf(r, _POISSON, folded, cut)


def block_ratio_law(r: ArrayLike, blocks: int = 2, folded: bool = False, cut: Cut = None) -> Values:
    """P(r) = ∫ x p(x, r x) dx of equal independent GOE blocks, superposed.

    p(x, y) is the joint density of consecutive spacings of the superposition.

    Args:
        r: Ratios, any shape; the density is 0 for negative ones.
        blocks: Number of blocks, 1 to 50; one block gives the 3 x 3 surmise back.
        folded: Law of min(r, 1/r), 2 P on [0, 1].
        cut: Law of the ratios up to the cut only.

    Returns:
        The density, in the shape of r, with an error below 1e-9 against the integral.

    Source: Giraud et al. 2022, sec. II.
    """
    return _pdf(r, _superposed(blocks), folded, cut)


def block_ratio_law_cdf(
    r: ArrayLike, blocks: int = 2, folded: bool = False, cut: Cut = None
) -> Values:
    """∫₀^r of :func:`block_ratio_law` (same arguments)."""
    return _cdf(r, _superposed(blocks), folded, cut)


def higher_ratio_law(r: ArrayLike, order: int, beta: int = 1, folded: bool = False) -> Values:
    """P(r) of every k-th level, (λ_{i+2k} - λ_{i+k})/(λ_{i+k} - λ_i), approximately.

    It is the surmise of :func:`ratio_law` with β' = β k (k + 1)/2 + k - 1 in place of β. Beyond
    k = 1 it is an approximation: no p-value should rest on it.

    Args:
        r: Ratios, any shape; the density is 0 for negative ones.
        order: k, at least 1.
        beta: Dyson's index, 1, 2 or 4.
        folded: Law of r̃ = min(r, 1/r), 2 P(r̃) on [0, 1].

    Returns:
        The density, in the shape of r.

    Source: Tekur, Bhosale and Santhanam 2018.
    """
    return _pdf(r, _higher(order, beta), folded)


def higher_mean_ratio(order: int, beta: int = 1) -> float:
    """Mean of r̃ by :func:`higher_ratio_law` (same arguments): 0.5359, 0.6762, 0.7464 for GOE.

    Args:
        order: k, at least 1.
        beta: Dyson's index, 1, 2 or 4.

    Returns:
        The mean.
    """
    nodes, weights = panels_rule(_panels(_repulsion(order, beta)))
    law = higher_ratio_law(nodes, order, beta, folded=True)
    return float((weights * nodes * law).sum())


def mean_ratio(name: str) -> float:
    """Large-matrix mean of r̃ by the name of an ensemble.

    Args:
        name: "goe", "gue", "gse", "poisson" or "goe2" (two equal GOE blocks).

    Returns:
        The mean, to 1e-4.
    """
    one_of("name", name, NAMES)
    return _MEANS[NAMES.index(name)]


@functools.cache
def ratio_law_folded(name: str) -> Law:
    """Law of r̃ = min(r, 1/r) on [0, 1] by the name of an ensemble.

    Args:
        name: "goe", "gue", "gse", "poisson" or "goe2".

    Returns:
        Atas et al.'s surmise with its large-matrix correction for the Gaussian ensembles, Giraud et
        al.'s surmise for "goe2", exact for "poisson".
    """
    return Law(name, *bound(_pdf, _cdf, shape=_named(name), folded=True), support=(0.0, 1.0))


@functools.cache
def ratio_law_unfolded(name: str, cut: Cut = None) -> Law:
    """Law of the ratio r itself, on the positive axis or up to a cut.

    Args:
        name: As for :func:`ratio_law_folded`.
        cut: Law of the ratios up to the cut only.

    Returns:
        The law; uncut, its density falls off as r^-(2+β), for "poisson" and "goe2" as r^-2.
    """
    shape, folded = _named(name), ratio_law_folded(name)
    mass = 1.0 if cut is None else float(_cdf(cut, shape))

    def quantile(u: Values) -> Values:
        p = u * mass
        small = np.asarray(folded.ppf(2 * np.minimum(p, 1 - p)))
        large = np.divide(1, small, out=np.full(small.shape, np.inf), where=small > 0)
        return np.where(p < 0.5, small, large)

    functions = bound(_pdf, _cdf, shape=shape, cut=cut)
    end, tail = (np.inf, 2.0 + BETA_OF.get(name, 0)) if cut is None else (float(cut), np.inf)
    return Law(name, *functions, quantile=quantile, support=(0.0, end), tail=tail)


def _named(name: str) -> _Shape:
    one_of("name", name, NAMES)
    if name in BETA_OF:
        return _atas(BETA_OF[name], True)
    return _POISSON if name == "poisson" else _superposed(2)


def _repulsion(order: int, beta: int) -> float:
    """β' of every k-th level."""
    whole("order", order, 1)
    one_of("beta", beta, BETAS)
    return beta * order * (order + 1) / 2 + order - 1


def _panels(b: float) -> Values:
    """Ends of panels on [0, 1] for a law of r̃ whose width below 1 is about b^-1/2."""
    return np.union1d([0.0], np.maximum(1 - b**-0.5 * _FINE, 0.0))


@functools.cache
def _higher(order: int, beta: int) -> _Shape:
    b = _repulsion(order, beta)
    # Z_β = 2π Γ(1 + β)/(3^(3(1 + β)/2) Γ(1 + β/2)²), in logarithms since it falls like 7^-β
    log_z = log(2 * pi) - 1.5 * (1 + b) * log(3)
    log_z += special.gammaln(1 + b) - 2 * special.gammaln(1 + b / 2)

    def density(t: Values) -> Values:
        exponent = special.xlogy(b, t + t**2) - (1 + 1.5 * b) * np.log1p(t + t**2)
        return np.exp(exponent - log_z)

    table = piecewise(lambda t: 2 * density(t), _panels(b))
    return _Shape(density, table.antiderivative())


@functools.cache
def _atas(beta: int, corrected: bool) -> _Shape:
    z, factor, c = _ATAS[beta]

    def density(t: Values) -> Values:
        value = (t + t**2) ** beta / (1 + t + t**2) ** (1 + 1.5 * beta) / z
        if corrected:
            q = t / (1 + t**2)
            value += factor / (1 + t) ** 2 * (q**beta - c * q ** (beta + 1))
        return value

    table = piecewise(lambda t: 2 * density(t), np.linspace(0.0, 1.0, 17))
    return _Shape(density, table.antiderivative())


@functools.cache
def _superposed(blocks: int) -> _Shape:
    real("blocks", whole("blocks", blocks, 1), most=_MOST_BLOCKS)
    table = piecewise(lambda t: 2 * _block_ratio(t, blocks), np.linspace(0.0, 1.0, 5))
    below = table.antiderivative()
    density = below.derivative()
    return _Shape(lambda t: density(t) / 2, below)


def _pdf(r: ArrayLike, shape: _Shape, folded: bool = False, cut: Cut = None) -> Values:
    values = real_array("r", r, infinite=True, empty=True)
    inside = (values >= 0) & (values <= (1.0 if folded else np.inf))
    # in t = min(r, 1/r): no overflow at large r
    t = np.minimum(np.maximum(values, 0.0), 1 / np.maximum(values, 1.0))
    density = shape.density(t) * np.where(values > 1, t**2, 1.0) * (2 if folded else 1)
    if cut is not None:
        inside &= values <= cut
        density = density / _cdf(real("cut", cut, above=0), shape, folded)
    return np.where(inside, density, 0.0)[()]


def _cdf(r: ArrayLike, shape: _Shape, folded: bool = False, cut: Cut = None) -> Values:
    """The distribution of r from that of r̃: half of it up to 1, its mirror image beyond."""
    values = real_array("r", r, infinite=True, empty=True)
    if cut is not None:
        mass = _cdf(real("cut", cut, above=0), shape, folded)
        return _cdf(np.minimum(values, cut), shape, folded) / mass
    t = np.maximum(values, 0.0)
    if folded:
        return shape.folded_cdf(np.minimum(t, 1.0))[()]
    half = shape.folded_cdf(np.minimum(t, 1 / np.maximum(t, 1.0))) / 2
    return np.where(t > 1, 1 - half, half)[()]


def _block_ratio(r: Points, m: int) -> Points:
    """P(r) = ∫ x p(x, r x) dx, p the joint density of consecutive spacings of m blocks."""
    # Within one block two spacings x, y that follow each other have the 3 x 3 surmise's joint
    # density p(x, y), proportional to x y (x + y) e^(-c (x² + x y + y²)), as in Atas et al. 2013.
    # From it come, in the block's spacings,
    #     a(x, y) = ∫_y^∞ p(x, v) dv          one spacing is x, the next exceeds y
    #     b(x, y) = ∫_x^∞ a(u, y) du          the two exceed x and y
    #     f(s) = ∫_s^∞ a(u, 0) du             a spacing exceeds s
    #     e(s) = ∫_s^∞ f(u) du                no level in an interval of length s
    # and the superposition sums over which block each of three consecutive levels belongs to.
    nodes, weights = panels_rule(_FAR * np.linspace(0.0, 1.0, 13) ** 2)
    x = nodes.ravel()
    y = r[:, None] * x
    s, zero = x + y, np.zeros(1)
    joint = _FACTOR * x * y * (x + y) * np.exp(-_RATE * (x**2 + x * y + y**2))
    empty = _beyond(s, zero, moment=1)
    total = joint * empty ** (m - 1)
    both, exceed = _beyond(x, y), _beyond(s, zero)
    if m > 1:
        pairs = (_next_exceeds(x, y) + _next_exceeds(y, x)) * exceed + _next_exceeds(s, zero) * both
        total += (m - 1) * pairs * empty ** (m - 2)
    if m > 2:
        total += (m - 1) * (m - 2) * exceed**2 * both * empty ** (m - 3)
    return total @ (x * weights.ravel())


def _next_exceeds(x: Values, y: Values) -> Values:
    """The function a, with v (x + v) = w² - x²/4 and w = v + x/2."""
    w = y + x / 2
    tail = sqrt(pi / _RATE) / 2 * special.erfc(sqrt(_RATE) * w)
    integral = w * np.exp(-_RATE * w**2) / (2 * _RATE) + (1 / (2 * _RATE) - x**2 / 4) * tail
    return _FACTOR * x * np.exp(-0.75 * _RATE * x**2) * integral


def _beyond(x: Values, y: Values, moment: int = 0) -> Values:
    """∫ u^moment a(x + u, y) du: b, with y = 0 f, and with y = 0 and the first moment e."""
    nodes, weights = panels_rule(np.linspace(0.0, _FAR, 4))
    steps = zip(nodes.ravel(), weights.ravel(), strict=True)
    return np.sum([w * u**moment * _next_exceeds(x + u, y) for u, w in steps], axis=0)
