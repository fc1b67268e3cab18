"""Stationary covariance functions k(q) of q = -½|w - w'|² ≤ 0, with closed-form derivatives.

Each is a mixture k(q) = ∫ exp(s q) dμ(s) over s ≥ 0, and each such function is a covariance in
every dimension (Schoenberg, Ann. Math. 39, 811 (1938)). Rasmussen, Williams, Gaussian Processes for
Machine Learning (2006), §4.2, has the functions in terms of the distance r = √(-2q).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from scipy.special import gammaln, kve, poch

if TYPE_CHECKING:
    from jaxtyping import Float64

    Points = Float64[np.ndarray, "*shape"]
    Jet = Float64[np.ndarray, "orders *shape"]


class Kernel(Protocol):
    """A covariance function that knows its derivatives."""

    def jet(self, q: Points, order: int) -> Jet:
        """The function and its derivatives with respect to q, called with NumPy's warnings off.

        Args:
            q: Points, -½|w - w'|² ≤ 0.
            order: The highest derivative, at most 4.

        Returns:
            (order + 1, ...) values of k, k', k'', ... at each point.
        """
        ...


@dataclass(frozen=True)
class RBF:
    """k(q) = variance·exp(q/length²), the squared exponential."""

    variance: float
    length: float

    def jet(self, q: Points, order: int) -> Jet:
        """See :class:`Kernel`; each derivative brings a factor 1/length²."""
        rate = np.float64(self.length) ** -2
        return np.stack([self.variance * rate**m * np.exp(rate * q) for m in range(order + 1)])


@dataclass(frozen=True)
class RationalQuadratic:
    """k(q) = variance·(1 - q/(alpha·length²))^(-alpha)."""

    variance: float
    length: float
    alpha: float

    def jet(self, q: Points, order: int) -> Jet:
        """See :class:`Kernel`; each derivative lowers the power by one."""
        alpha, rate = self.alpha, np.float64(self.length) ** -2 / self.alpha
        logarithm = np.log1p(-rate * q)
        return np.stack(
            [
                self.variance * rate**m * poch(alpha, m) * np.exp(-(alpha + m) * logarithm)
                for m in range(order + 1)
            ]
        )


@dataclass(frozen=True)
class Matern:
    """k(q) = variance·2^(1-ν)/Γ(ν)·x^ν·K_ν(x) with x = √(2ν)·r/length and r = √(-2q).

    From d/dx [x^ν K_ν(x)] = -x^ν K_{ν-1}(x) the m-th derivative is
    variance·(2ν/length²)^m·2^(1-ν)/Γ(ν)·x^(ν-m)·K_{ν-m}(x). It is finite at q = 0 for m < ν only.
    """

    nu: float
    variance: float
    length: float

    def jet(self, q: Points, order: int) -> Jet:
        """See :class:`Kernel`; infinite at q = 0 for derivatives of order ν and more."""
        x = np.sqrt(-4 * self.nu * q) / self.length
        return np.stack([self._derivative(m, x) for m in range(order + 1)])

    def _derivative(self, m: int, x: Points) -> Points:
        mu = self.nu - m
        rate = np.log(2 * self.nu) - 2 * np.log(self.length)
        scale = np.log(self.variance) + m * rate + (1 - self.nu) * np.log(2) - gammaln(self.nu)
        # kve = K·exp(x); in logarithms, since the power over- or underflows long before k does
        bessel = kve(abs(mu), x)
        value = np.exp(scale + mu * np.log(x) - x + np.log(bessel))
        if mu <= 0:
            return np.where(x == 0, np.inf, value)
        # Γ(μ) 2^(μ-1) (1 - y/(μ-1) + y²/(2(μ-1)(μ-2)) - ...), y = x²/4, where K overflows
        limit = np.exp(scale + gammaln(mu) + (mu - 1) * np.log(2))
        term, series = np.ones_like(x), np.ones_like(x)
        for power in range(1, min(6, int(np.ceil(mu)))):
            term = -term * (x**2 / 4) / (power * (mu - power))
            series = series + term
        return np.where((x == 0) | np.isinf(bessel), limit * series, value)


@dataclass(frozen=True)
class Mixture:
    """k(q) = Σ weight_i·k_i(q)."""

    kernels: tuple[Kernel, ...]
    weights: tuple[float, ...]

    def jet(self, q: Points, order: int) -> Jet:
        """See :class:`Kernel`."""
        terms = zip(self.weights, self.kernels, strict=True)
        return np.sum([weight * kernel.jet(q, order) for weight, kernel in terms], axis=0)


def jet_of(kernel: Kernel, q: Points, order: int) -> Jet:
    """The kernel and its derivatives, infinite or NaN without a warning where they are.

    Args:
        kernel: The covariance function.
        q: Points, -½|w - w'|² ≤ 0.
        order: The highest derivative, at most 4.

    Returns:
        (order + 1, ...) values of k, k', k'', ... at each point.
    """
    with np.errstate(all="ignore"):
        return kernel.jet(q, order)
