"""Where the levels of large random matrices lie: Wigner's semicircle, Marchenko-Pastur, outliers.

A large GOE matrix with a fixed matrix of low rank added has eigenvalues of its own: an eigenvalue θ
of the fixed matrix shows outside the bulk if |θ| > √(n a), and leaves no trace of its own at the
edge otherwise, the transition of Baik, Ben Arous and Péché (2005). The random matrix √a·G has
elements of variance a off the diagonal and 2a on it; a shift of the whole spectrum is left out.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.polynomial.legendre import leggauss
from numpy.typing import ArrayLike
from scipy.special import ndtr

from hessrmt.checks import real, real_array, whole
from hessrmt.errors import DataError
from hessrmt.theory.law import Values

_Law = Callable[..., Values]
"""Density or distribution function, or what of it lies inside the semicircle."""

_REACH = 10.0
"""Standard deviations beyond which a normal distribution holds less than 1e-22."""

_NODES = 96
"""In the centre they lie half a standard deviation apart at most: an error of exp(-2π²/0.5²)."""


def semicircle_radius(n: int, sigma: float = 1.0) -> float:
    """R = 2 σ √n, where the spectrum of a large symmetric matrix ends.

    Args:
        n: Dimension.
        sigma: Standard deviation of an off-diagonal element.

    Returns:
        The semicircle's radius.

    Source: Wigner 1958.
    """
    return 2 * real("sigma", sigma, above=0) * math.sqrt(real("n", n, least=1))


def semicircle(x: ArrayLike, radius: float = 2.0) -> Values:
    """ρ(x) = (2/πR²) √(R² - x²) on [-R, R], 0 elsewhere.

    Args:
        x: Levels, any shape.
        radius: R; the default 2 is that of a matrix with elements of variance 1/n, see
            :func:`semicircle_radius` for any other.

    Returns:
        The density, in the shape of x, with integral 1.

    Source: Wigner 1958.
    """
    t = _share(x, radius)
    return (2 / (np.pi * radius) * np.sqrt((1 - t) * (1 + t)))[()]


def semicircle_cdf(x: ArrayLike, radius: float = 2.0) -> Values:
    """N(x) = 1/2 + [t √(1 - t²) + arcsin t]/π, t = x/R (arguments as in :func:`semicircle`)."""
    t = _share(x, radius)
    return (0.5 + (t * np.sqrt((1 - t) * (1 + t)) + np.arcsin(t)) / np.pi)[()]


def _share(x: ArrayLike, radius: float) -> Values:
    return np.clip(_levels(x) / real("radius", radius, above=0), -1.0, 1.0)


def _levels(x: ArrayLike) -> Values:
    return real_array("x", x, infinite=True, empty=True)


def smeared_semicircle(x: ArrayLike, radius: float, sigma: float) -> Values:
    """Density of a semicircle convolved with a normal distribution.

    The mean density of the eigenvalues of √a·G + √c·ξ·I for large n, where ξ moves the spectrum as
    a whole: R = 2√(n a), σ = √c. That of one matrix is a semicircle about its own √c·ξ.

    Args:
        x: Levels, any shape.
        radius: R, at least 0; at 0 the density is normal.
        sigma: σ, at least 0; at 0 the density is a semicircle.

    Returns:
        The density, in the shape of x, with an error of about 1e-15 of its maximum.

    Source: the convolution, by Gauss-Legendre quadrature in an angle that lifts the square roots.
    """

    def product(left: Values, right: Values) -> Values:
        return 2 / (np.pi * radius) * np.sqrt(left / radius) * np.sqrt(right / radius)

    def normal(u: Values) -> Values:
        return _normal(np.clip(u, -40, 40)) / sigma

    return _smeared(x, radius, sigma, product, semicircle, normal)


def smeared_semicircle_cdf(x: ArrayLike, radius: float, sigma: float) -> Values:
    """Distribution function of :func:`smeared_semicircle` (arguments and source as there)."""

    def below(left: Values, right: Values) -> Values:
        # t = y/R from the nearer end, since arcsin is steep there
        near = np.minimum(left, right) / radius
        part = (2 * np.arcsin(np.sqrt(near / 2)) - (1 - near) * np.sqrt(near * (2 - near))) / np.pi
        return np.where(left <= right, part, 1 - part)

    inside = _smeared(x, radius, sigma, below, semicircle_cdf, ndtr)
    if radius == 0 or sigma == 0:
        return inside
    with np.errstate(over="ignore"):
        above = ndtr((_levels(x) - radius) / sigma)
    return np.clip(inside + above, 0.0, 1.0)[()]


def _smeared(
    x: ArrayLike, radius: float, sigma: float, function: _Law, semicircle_alone: _Law, normal: _Law
) -> Values:
    """∫ φ(u) f(y + R, R - y) du, y = x - σu, over the u with |y| < R and |u| < 10."""
    values = _levels(x)
    if real("radius", radius, least=0) == real("sigma", sigma, least=0) == 0:
        raise DataError("radius and sigma are both 0, which is one point; give one of them")
    if sigma == 0:
        return semicircle_alone(values, radius)
    if radius == 0:
        with np.errstate(over="ignore"):
            return normal(values / sigma)[()]
    # with u = middle + half·sin τ a square root of the distance from either end is smooth in τ
    reach = _REACH * sigma
    inside = (values - radius < reach) & (values + radius > -reach)
    point = np.where(inside, values, 0.0)
    with np.errstate(over="ignore"):
        low = np.maximum((point - radius) / sigma, -_REACH)
        high = np.minimum((point + radius) / sigma, _REACH)
    # the whole semicircle within reach: its half-width, which low and high may not resolve
    half = np.where(np.abs(point) + radius < reach, radius / sigma, (high - low) / 2)
    # what the window cuts off from the distances to R and -R
    rest_right = np.maximum(radius - point - reach, 0.0)
    rest_left = np.maximum(radius + point - reach, 0.0)
    total = np.zeros_like(point)
    for node, weight in zip(*leggauss(_NODES), strict=True):
        angle = np.pi / 2 * node
        up, down = 2 * np.sin((np.pi / 2 + np.array([angle, -angle])) / 2) ** 2
        u = low + half * up
        left = np.minimum(rest_left + sigma * half * down, 2 * radius)
        right = np.minimum(rest_right + sigma * half * up, 2 * radius)
        total += weight * np.pi / 2 * np.cos(angle) * half * _normal(u) * function(left, right)
    return np.where(inside, total, 0.0)[()]


def _normal(u: Values) -> Values:
    return np.exp(-(u**2) / 2) / math.sqrt(2 * math.pi)


def marchenko_pastur_support(ratio: float, scale: float = 1.0) -> tuple[float, float]:
    """Ends σ² (1 ∓ √c)² of the continuous part (arguments as in :func:`marchenko_pastur`)."""
    root, scale = math.sqrt(real("ratio", ratio, above=0)), real("scale", scale, above=0)
    return scale * (1 - root) ** 2, scale * (1 + root) ** 2


def marchenko_pastur(x: ArrayLike, ratio: float, scale: float = 1.0) -> Values:
    """ρ(x) = √((x₊ - x)(x - x₋)) / (2π σ² c x) between x± = σ² (1 ± √c)².

    Density of the eigenvalues of X Xᵀ/n, where X is p x n with independent elements of mean 0 and
    variance σ², and c = p/n. For c > 1 there is besides a point mass of 1 - 1/c at x = 0, which
    this density leaves out (its integral is then 1/c) and :func:`marchenko_pastur_cdf` contains.

    Args:
        x: Levels, any shape.
        ratio: c, above 0.
        scale: σ², above 0.

    Returns:
        The density, in the shape of x; infinite at x = 0 for c = 1.

    Source: Marchenko and Pastur 1967.
    """
    low, high = marchenko_pastur_support(ratio, scale)
    values = _levels(x)
    inside = (values > low) & (values < high)
    t = np.where(inside, values, (low + high) / 2)
    density = np.sqrt((high - t) * (t - low)) / (2 * np.pi * scale * ratio * t)
    edge = np.inf if low == 0 else 0.0
    return np.where(inside, density, np.where(values == low, edge, 0.0))[()]


def marchenko_pastur_cdf(x: ArrayLike, ratio: float, scale: float = 1.0) -> Values:
    """Part of the eigenvalues up to x, the zeros included (arguments as in marchenko_pastur).

    With y = x/σ², its ends y±, q = √((y₊ - y)(y - y₋)) and angles in [-π/2, π/2] from
    sin φ = (y - 1 - c)/2√c and sin ψ = ((1 + c) y - (1 - c)²)/(2√c y), the continuous part is
    [q + (1 + c) (φ + π/2) - |1 - c| (ψ + π/2)]/(2πc).

    Returns:
        Probabilities, in the shape of x.

    Source: the integral of the density of :func:`marchenko_pastur`.
    """
    low, high = marchenko_pastur_support(ratio, scale)
    values = _levels(x)
    y = np.clip(values, low, high) / scale
    q = np.sqrt(np.maximum((high / scale - y) * (y - low / scale), 0.0))
    phi = np.arctan2(y - 1 - ratio, q)
    psi = np.arctan2((1 + ratio) * y - (1 - ratio) ** 2, abs(1 - ratio) * q)
    part = q + (1 + ratio) * (phi + np.pi / 2) - abs(1 - ratio) * (psi + np.pi / 2)
    mass = max(0.0, 1 - 1 / ratio)
    below = np.clip(part / (2 * np.pi * ratio), 0.0, 1.0) + mass
    return np.where(values < 0, 0.0, np.where(values >= high, 1.0, below))[()]


def bbp_threshold(n: int, a: float = 1.0) -> float:
    """√(n a), the size above which an eigenvalue of the fixed matrix shows outside the bulk.

    Args:
        n: Dimension.
        a: Variance of an off-diagonal element.

    Returns:
        The threshold, half of the semicircle's radius.

    Source: Baik, Ben Arous and Péché 2005 for Wishart matrices; Capitaine, Donati-Martin and Féral
    2009, theorem 2.1.
    """
    return math.sqrt(whole("n", n, 1) * real("a", a, above=0))


def bbp_position(theta: ArrayLike, n: int, a: float = 1.0) -> Values:
    """θ + n a/θ for |θ| > √(n a), else the edge ±2√(n a) of the bulk on the side of θ.

    Args:
        theta: Eigenvalues θ of the fixed matrix, any shape; 0 counts as positive.
        n: Dimension.
        a: Variance of an off-diagonal element.

    Returns:
        The limit of the eigenvalue that belongs to each, in the shape of theta; at finite n it is
        reached up to :func:`bbp_deviation` outside the bulk, and up to √a n^(-1/6) at its edge.

    Source: Capitaine, Donati-Martin and Féral 2009, theorem 2.1.
    """
    threshold = bbp_threshold(n, a)
    values = real_array("theta", theta, infinite=True, empty=True)
    ratio = np.maximum(np.abs(values) / threshold, 1.0)
    return np.copysign(threshold * (ratio + 1 / ratio), values + 0.0)[()]


def bbp_deviation(theta: ArrayLike, n: int, a: float = 1.0) -> Values:
    """Standard deviation √(2a (1 - n a/θ²)) of an outlier about its position, NaN at the edge.

    The fluctuations of an outlier that belongs to a simple θ are normal in the limit n → ∞ with
    θ/√(n a) fixed; those of the largest eigenvalue inside the bulk are not.

    Args:
        theta: Simple eigenvalues θ of the fixed matrix, any shape.
        n: Dimension.
        a: Variance of an off-diagonal element.

    Returns:
        The standard deviation, in the shape of theta; NaN for |θ| ≤ √(n a).

    Source: Capitaine, Donati-Martin and Féral 2009, theorem 2.2 for Gaussian elements.
    """
    threshold = bbp_threshold(n, a)
    ratio = np.abs(real_array("theta", theta, infinite=True, empty=True)) / threshold
    outside = ratio > 1
    safe = np.where(outside, ratio, 2.0)
    width = math.sqrt(2 * a) * np.sqrt((1 - 1 / safe) * (1 + 1 / safe))
    return np.where(outside, width, np.nan)[()]


def power_law(x: ArrayLike, alpha: float, x_min: float, x_max: float = math.inf) -> Values:
    """p(x) ∝ x^-α on [x_min, x_max], 0 elsewhere.

    Args:
        x: Points, any shape.
        alpha: Exponent, larger than 1.
        x_min: Where the law begins, positive.
        x_max: Where it ends.

    Returns:
        The density, in the shape of x, with integral 1.

    Source: Clauset, Shalizi and Newman, SIAM Rev. 51, 661 (2009), who have no upper end.
    """
    points, slope = real_array("x", x, empty=True, infinite=True), alpha - 1
    held = -np.expm1(-slope * np.log(x_max / x_min))
    inside = (points >= x_min) & (points <= x_max)
    t = np.where(inside, points, x_min) / x_min
    return np.where(inside, slope / x_min * t**-alpha / held, 0.0)[()]
