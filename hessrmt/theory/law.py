"""A one-dimensional law on the positive axis: density, distribution, quantiles, moments, sampling.

A law may be given by its density and distribution alone; quantiles then come from a table of the
distribution, refined by a Newton step.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike
from scipy.integrate import quad

from hessrmt.theory.values import Values, real_values

Function = Callable[[ArrayLike], Values]

_QUANTILE_POINTS = 20_001


@dataclass(frozen=True, eq=False)
class Law:
    """A probability law on ``support``.

    Attributes:
        name: What the law is, for tables and legends.
        density: Probability density, vectorised; 0 outside of the support.
        distribution: Cumulative distribution, vectorised.
        support: Lower and upper end; the upper one may be infinite.
        quantile: Inverse of the distribution where there is a closed form.
        tail: The density falls off as x^-tail; infinite where it falls faster than any power.
    """

    name: str
    density: Function = field(repr=False)
    distribution: Function = field(repr=False)
    support: tuple[float, float] = (0.0, np.inf)
    quantile: Callable[[Values], Values] | None = field(default=None, repr=False)
    tail: float = np.inf

    def pdf(self, x: ArrayLike) -> Values:
        """Probability density.

        Args:
            x: Points, any shape.

        Returns:
            The density, in the shape of x.
        """
        return self.density(x)

    def cdf(self, x: ArrayLike) -> Values:
        """Probability of a value of at most x.

        Args:
            x: Points, any shape.

        Returns:
            Probabilities, in the shape of x.
        """
        return self.distribution(x)

    def ppf(self, u: ArrayLike) -> Values:
        """Quantile: the x with cdf(x) = u.

        Args:
            u: Probabilities in [0, 1], any shape.

        Returns:
            Points of the support, in the shape of u.

        Raises:
            ValueError: A probability is outside of [0, 1] or NaN.
        """
        p = real_values(u, "u")
        if p.size and not (p.min() >= 0 and p.max() <= 1):
            raise ValueError(
                f"u runs from {p.min():g} to {p.max():g}, probabilities in [0, 1] are expected; "
                "pass cdf values."
            )
        if self.quantile is not None:
            return self.quantile(p)[()]
        grid, below = _quantile_table(self)
        x = np.interp(p, below, grid)
        slope = self.pdf(x)
        sure = slope > 1e-6
        step = np.where(sure, p - self.cdf(x), 0.0) / np.where(sure, slope, 1.0)
        width = grid[1] - grid[0]
        x = np.clip(x + np.clip(step, -width, width), *self.support)
        return np.where(p == 0, self.support[0], np.where(p == 1, self.support[1], x))[()]

    def sample(self, n: int, generator: np.random.Generator) -> Values:
        """Independent draws, by inversion of the distribution.

        Args:
            n: How many.
            generator: Source of randomness, e.g. ``hessrmt.rng.stream(seed, "spacings")``.

        Returns:
            n values.

        Raises:
            ValueError: n is negative.
        """
        if n < 0:
            raise ValueError(f"n is {n}, a number of draws >= 0 is expected; try n=1000.")
        return np.atleast_1d(self.ppf(generator.uniform(size=n)))

    def moment(self, k: float) -> float:
        """Moment ∫ x^k p(x) dx, by adaptive quadrature.

        Args:
            k: Order, at least 0.

        Returns:
            The moment; where the law has a table its relative accuracy is about 1e-10.

        Raises:
            ValueError: k is negative, or the moment is infinite.
        """
        if not 0 <= k < self.tail - 1:
            raise ValueError(
                f"moment of order {k} given, 0 <= k < {self.tail - 1:g} is expected: the density "
                f"of {self.name} falls off as x^-{self.tail:g}; try a lower order or cut the law."
            )
        low, high = self.support
        middle = high / 2 if high < np.inf else 2.0
        parts = [
            quad(lambda x: x**k * self.pdf(x), a, b, epsabs=1e-12, epsrel=1e-12, limit=200)[0]
            for a, b in ((low, middle), (middle, high))
        ]
        return float(sum(parts))

    @property
    def mean(self) -> float:
        """Mean value, moment(1)."""
        return self.moment(1)

    @property
    def variance(self) -> float:
        """Variance, moment(2) - moment(1)²."""
        return self.moment(2) - self.moment(1) ** 2


@functools.lru_cache(maxsize=64)
def _quantile_table(law: Law) -> tuple[np.ndarray, np.ndarray]:
    low, high = law.support
    if high == np.inf:
        points = np.geomspace(1.0, 1e6, 1000)
        reached = law.cdf(points) >= 1 - 1e-13
        high = float(points[np.argmax(reached)]) if reached.any() else 1e6
    grid = np.linspace(low, high, _QUANTILE_POINTS)
    return grid, np.maximum.accumulate(law.cdf(grid))
