"""What the laws share: the class of a law, names, fractions of blocks, tables of functions."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float64
from numpy.polynomial import Chebyshev, Polynomial, chebyshev
from numpy.polynomial.legendre import leggauss
from numpy.typing import ArrayLike
from scipy.integrate import quad
from scipy.interpolate import PPoly

from hessrmt.checks import real_array, whole
from hessrmt.errors import DataError

Values = Float64[np.ndarray, "*shape"]
"""Float64 values in the shape of the argument: a NumPy scalar (which is a float) for a scalar."""

Points = Float64[np.ndarray, "n"]
"""Points on the line, one-dimensional."""

Function = Callable[[ArrayLike], Values]
Fractions = int | ArrayLike

BETAS = (1, 2, 4)
"""Dyson's index: 1 for real symmetric, 2 for Hermitian, 4 for self-dual quaternion matrices."""

BETA_OF: dict[str, int] = dict(zip(("goe", "gue", "gse"), BETAS, strict=True))
"""Names of the Gaussian ensembles to Dyson's index."""

NAMES = (*BETA_OF, "poisson", "goe2")
"""Reference laws: Gaussian ensembles, independent levels, and two equal independent GOE blocks
superposed, as an unnoticed symmetry of parity type makes them."""

_QUANTILE_POINTS = 20_001


@dataclass(frozen=True, eq=False)
class Law:
    """A probability law on the positive axis.

    It may be given by its density and distribution alone; quantiles then come from a table of the
    distribution, refined by a Newton step.

    Attributes:
        name: What the law is, for tables and legends.
        pdf: Probability density of points of any shape; 0 outside of the support.
        cdf: Probability of a value of at most x, for x of any shape.
        quantile: Inverse of the distribution where there is a closed form.
        support: Lower and upper end; the upper one may be infinite.
        tail: The density falls off as x^-tail; infinite where it falls faster than any power.
    """

    name: str
    pdf: Function = field(repr=False)
    cdf: Function = field(repr=False)
    quantile: Callable[[Values], Values] | None = field(default=None, repr=False)
    support: tuple[float, float] = (0.0, np.inf)
    tail: float = np.inf

    def ppf(self, u: ArrayLike) -> Values:
        """Quantile: the x with cdf(x) = u.

        Args:
            u: Probabilities in [0, 1], any shape.

        Returns:
            Points of the support, in the shape of u.
        """
        p = real_array("u", u, least=0, most=1, empty=True, hint="give probabilities")
        if self.quantile is not None:
            return self.quantile(p)[()]
        grid, below = self._table
        x = np.interp(p, below, grid)
        slope = self.pdf(x)
        step = np.divide(p - self.cdf(x), slope, out=np.zeros_like(p), where=slope > 1e-6)
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
        """
        return np.atleast_1d(self.ppf(generator.uniform(size=whole("n", n, hint="draws"))))

    def moment(self, k: float) -> float:
        """Moment ∫ x^k p(x) dx, by adaptive quadrature.

        Args:
            k: Order, at least 0.

        Returns:
            The moment; where the law has a table its relative accuracy is about 1e-10.

        Raises:
            DataError: If k is negative, or the moment is infinite.
        """
        if not 0 <= k < self.tail - 1:
            raise DataError(
                f"the order of a moment must be from 0 to below {self.tail - 1:g}, got {k:g}: the "
                f"density of {self.name} falls off as x^-{self.tail:g}; or cut the law"
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

    @functools.cached_property
    def _table(self) -> tuple[Points, Points]:
        low, high = self.support
        if high == np.inf:
            points = np.geomspace(1.0, 1e6, 1000)
            reached = self.cdf(points) >= 1 - 1e-13
            high = float(points[np.argmax(reached)]) if reached.any() else 1e6
        grid = np.linspace(low, high, _QUANTILE_POINTS)
        return grid, np.maximum.accumulate(self.cdf(grid))


def bound(*functions: Callable[..., Values], **fixed: Any) -> tuple[Any, ...]:
    """Functions with some arguments fixed, as a :class:`Law` takes them.

    Args:
        *functions: A density, a distribution, and perhaps a quantile.
        **fixed: Their arguments but for the first.

    Returns:
        The functions of that first argument.
    """
    return tuple(functools.partial(function, **fixed) for function in functions)


def block_fractions(fractions: Fractions) -> tuple[tuple[float, int], ...]:
    """Relative level densities of independent blocks, equal ones gathered.

    Args:
        fractions: One fraction per block, at least 0 and of sum 1; or a number m of equal blocks.

    Returns:
        Pairs (fraction, how many blocks have it), empty blocks left out.

    Raises:
        DataError: If the sum of the fractions is not 1.
    """
    if isinstance(fractions, int | np.integer):
        blocks = whole("fractions", fractions, 1, hint="give 2 for two equal blocks")
        return ((1 / blocks, blocks),)
    advice = "give one number for each block, of sum 1: its levels over the total"
    values = real_array("fractions", fractions, dimensions=1, least=0, hint=advice)
    if abs(values.sum() - 1) > 1e-9:
        raise DataError(f"fractions have sum {values.sum():g}; {advice}")
    found, counts = np.unique(values[values > 0], return_counts=True)
    return tuple(zip(found.tolist(), counts.tolist(), strict=True))


def piecewise(function: Callable[[Points], np.ndarray], edges: Points, degree: int = 15) -> PPoly:
    """Piecewise polynomial through a smooth function's values at Chebyshev points of each panel.

    Its ``antiderivative()`` is the integral to the same accuracy.

    Args:
        function: Takes (points,) and returns (points,) or (points, k) values.
        edges: The panels' ends, ascending.
        degree: Degree on every panel.

    Returns:
        The table; outside of the edges it extrapolates.
    """
    nodes = chebyshev.chebpts1(degree + 1)
    half = np.diff(edges)[:, None] / 2
    values = function((edges[:-1, None] + half * (1 + nodes)).ravel())
    values = values.reshape(len(half), degree + 1, *values.shape[1:])
    fit = np.linalg.inv(chebyshev.chebvander(nodes, degree))
    coefficients = np.einsum("cn,pn...->cp...", fit, values)
    # Chebyshev series in t = (x - left)/half - 1, to powers of x - left
    powers = np.zeros((degree + 1, degree + 1))
    for k in range(degree + 1):
        powers[: k + 1, k] = Chebyshev.basis(k).convert(kind=Polynomial)(Polynomial([-1.0, 1])).coef
    local = np.einsum("kc,cp...->kp...", powers, coefficients)
    scale = half.T ** np.arange(degree + 1)[:, None]
    local /= scale.reshape(*scale.shape, *[1] * (local.ndim - 2))
    return PPoly(local[::-1], edges)


def panels_rule(
    edges: Points, order: int = 16
) -> tuple[Float64[np.ndarray, "panels order"], Float64[np.ndarray, "panels order"]]:
    """Gauss-Legendre nodes and weights on every panel.

    Args:
        edges: The panels' ends, ascending.
        order: Nodes on each panel.

    Returns:
        Nodes and weights, one row per panel.
    """
    nodes, weights = leggauss(order)
    half = np.diff(edges)[:, None] / 2
    return edges[:-1, None] + half * (1 + nodes), half * weights
