"""Level densities of large random matrices: Wigner's semicircle and the Marchenko-Pastur law."""

import math
from collections.abc import Callable

import numpy as np
from numpy.polynomial.legendre import leggauss
from numpy.typing import ArrayLike
from scipy.special import ndtr

from hessrmt.theory.values import Values, real_values

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

    Raises:
        ValueError: n or sigma is not positive.

    Source: Wigner, Ann. Math. 67, 325 (1958).
    """
    if n < 1:
        raise ValueError(f"n is {n}, a dimension of at least 1 is expected; try n=1000.")
    return 2 * _positive(sigma, "sigma") * math.sqrt(n)


def semicircle(x: ArrayLike, radius: float = 2.0) -> Values:
    """ρ(x) = (2/πR²) √(R² - x²) on [-R, R], 0 elsewhere.

    Args:
        x: Levels, any shape.
        radius: R; the default 2 is that of a matrix with elements of variance 1/n, see
            :func:`semicircle_radius` for any other.

    Returns:
        The density, in the shape of x, with integral 1.

    Source: Wigner, Ann. Math. 67, 325 (1958).
    """
    t = np.clip(real_values(x, "x") / _positive(radius, "radius"), -1.0, 1.0)
    return (2 / (np.pi * radius) * np.sqrt((1 - t) * (1 + t)))[()]


def semicircle_cdf(x: ArrayLike, radius: float = 2.0) -> Values:
    """N(x) = 1/2 + [t √(1 - t²) + arcsin t]/π, t = x/R (arguments as in :func:`semicircle`)."""
    t = np.clip(real_values(x, "x") / _positive(radius, "radius"), -1.0, 1.0)
    return (0.5 + (t * np.sqrt((1 - t) * (1 + t)) + np.arcsin(t)) / np.pi)[()]


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

    Raises:
        ValueError: A width is negative or not finite, or both are 0, which has no density.

    Source: the convolution, by Gauss-Legendre quadrature in an angle that lifts the square roots.
    """
    values, radius, sigma = _widths(x, radius, sigma)
    if sigma == 0:
        return semicircle(values, radius)
    if radius == 0:
        with np.errstate(over="ignore"):
            return (_normal(np.clip(values / sigma, -40, 40)) / sigma)[()]

    def product(left: Values, right: Values) -> Values:
        return 2 / (np.pi * radius) * np.sqrt(left / radius) * np.sqrt(right / radius)

    return _smeared(values, radius, sigma, product)[()]


def smeared_semicircle_cdf(x: ArrayLike, radius: float, sigma: float) -> Values:
    """Distribution function of :func:`smeared_semicircle` (arguments and source as there)."""
    values, radius, sigma = _widths(x, radius, sigma)
    if sigma == 0:
        return semicircle_cdf(values, radius)
    if radius == 0:
        with np.errstate(over="ignore"):
            return ndtr(values / sigma)[()]

    def below(left: Values, right: Values) -> Values:
        # t = y/R from the nearer end, since arcsin is steep there
        near = np.minimum(left, right) / radius
        part = (2 * np.arcsin(np.sqrt(near / 2)) - (1 - near) * np.sqrt(near * (2 - near))) / np.pi
        return np.where(left <= right, part, 1 - part)

    inside = _smeared(values, radius, sigma, below)
    with np.errstate(over="ignore"):
        above = ndtr((values - radius) / sigma)
    return np.clip(inside + above, 0.0, 1.0)[()]


def _smeared(
    x: Values, radius: float, sigma: float, function: Callable[[Values, Values], Values]
) -> Values:
    """∫ φ(u) f(y + R, R - y) du, y = x - σu, over the u with |y| < R and |u| < 10."""
    # with u = middle + half·sin τ a square root of the distance from either end is smooth in τ
    reach = _REACH * sigma
    inside = (x - radius < reach) & (x + radius > -reach)
    point = np.where(inside, x, 0.0)
    with np.errstate(over="ignore"):
        low = np.maximum((point - radius) / sigma, -_REACH)
        high = np.minimum((point + radius) / sigma, _REACH)
    # the whole semicircle within reach: its half-width, which low and high may not resolve
    whole = np.abs(point) + radius < reach
    half = np.where(whole, radius / sigma, (high - low) / 2)
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
    return np.where(inside, total, 0.0)


def _normal(u: Values) -> Values:
    return np.exp(-(u**2) / 2) / math.sqrt(2 * math.pi)


def _widths(x: ArrayLike, radius: float, sigma: float) -> tuple[Values, float, float]:
    for value, what in ((radius, "radius"), (sigma, "sigma")):
        if not 0 <= value < math.inf:
            raise ValueError(
                f"{what} is {value!r}, a finite number of at least 0 is expected; try {what}=1."
            )
    if radius == 0 and sigma == 0:
        raise ValueError("radius and sigma are both 0, which is one point; give one of them.")
    return real_values(x, "x"), float(radius), float(sigma)


def marchenko_pastur_support(ratio: float, scale: float = 1.0) -> tuple[float, float]:
    """Ends σ² (1 ∓ √c)² of the continuous part (arguments as in :func:`marchenko_pastur`)."""
    root = math.sqrt(_positive(ratio, "ratio"))
    return _positive(scale, "scale") * (1 - root) ** 2, scale * (1 + root) ** 2


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

    Source: Marchenko, Pastur, Math. USSR Sb. 1, 457 (1967).
    """
    low, high = marchenko_pastur_support(ratio, scale)
    values = real_values(x, "x")
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
    values = real_values(x, "x")
    y = np.clip(values, low, high) / scale
    q = np.sqrt(np.maximum((high / scale - y) * (y - low / scale), 0.0))
    phi = np.arctan2(y - 1 - ratio, q)
    psi = np.arctan2((1 + ratio) * y - (1 - ratio) ** 2, abs(1 - ratio) * q)
    part = q + (1 + ratio) * (phi + np.pi / 2) - abs(1 - ratio) * (psi + np.pi / 2)
    mass = max(0.0, 1 - 1 / ratio)
    below = np.clip(part / (2 * np.pi * ratio), 0.0, 1.0) + mass
    return np.where(values < 0, 0.0, np.where(values >= high, 1.0, below))[()]


def _positive(value: float, what: str) -> float:
    if not 0 < value < math.inf:
        raise ValueError(f"{what} is {value!r}, a finite number above 0 is expected; try {what}=1.")
    return float(value)


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
    points, slope = real_values(x, "x"), alpha - 1
    held = -np.expm1(-slope * np.log(x_max / x_min))
    inside = (points >= x_min) & (points <= x_max)
    t = np.where(inside, points, x_min) / x_min
    return np.where(inside, slope / x_min * t**-alpha / held, 0.0)[()]
