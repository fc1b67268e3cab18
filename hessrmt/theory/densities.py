"""Level densities of large random matrices: Wigner's semicircle and the Marchenko-Pastur law."""

import math

import numpy as np
from numpy.typing import ArrayLike

from hessrmt.theory.values import Values, real_values


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
