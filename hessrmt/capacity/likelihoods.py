"""Does another law describe a tail better? Likelihood ratios with Vuong's test.

In t = ln(x/x_min) a power law is exponential, e^(-at) with a = α - 1. The lognormal is e^(-at-bt²)
and the truncated power law e^(-at-b(e^t-1)), b ≥ 0: both hold the power law at b = 0, and both are
exponential families, so that the likelihood is concave in (a, b) and Newton's method finds its only
maximum. Where it lies at b = 0, the alternative is the power law itself and the ratio is 0; solvers
in the usual parameters, of which some are infinite there, stop somewhere on the way.

Source: Clauset, Shalizi, Newman, SIAM Rev. 51, 661 (2009), §5.1 and appendix C; Vuong, Econometrica
57, 307 (1989).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import erfc

from hessrmt.backend.reference import log_ratio
from hessrmt.capacity.powerlaw import usable
from hessrmt.errors import CapacityError

if TYPE_CHECKING:
    from jaxtyping import Float, Float64

    from hessrmt.capacity.powerlaw import PowerLawFit

    Array = Float64[np.ndarray, " n"]

ALTERNATIVES = ("lognormal", "exponential", "truncated")
"""Laws that a power law is compared with."""

_WIDEST = 600.0
"""ln(x_top/x_min) that float64 can compare."""

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)
_PANELS = 128
_DROP = 45.0
"""Integrands are left out where they lie below their maximum by more than e to this power."""


@dataclass(frozen=True)
class Comparison:
    """A power law against another law of the same tail, each at its maximum likelihood.

    Attributes:
        against: The other law, of :data:`ALTERNATIVES`.
        log_likelihood_ratio: R = Σ ln(p_power/p_other), natural; positive: the power law fits
            better. Never positive for ``"truncated"``, which holds the power law, nor for
            ``"lognormal"``, which has it as a limit.
        normalized_ratio: R/(√n s), s the standard deviation of ln(p_power/p_other); 0 where the
            laws coincide.
        p_value: Of R = 0; large: the sign of R means nothing. Two-sided normal (Vuong); of
            ``"truncated"``, which is nested, from χ² with one degree of freedom.
        parameters: Of the other law: ``mu``, ``sigma`` (infinite in the power law's limit);
            ``Lambda``; ``alpha``, ``Lambda``.
    """

    against: str
    log_likelihood_ratio: float
    normalized_ratio: float
    p_value: float
    parameters: dict[str, float]


def compare(
    values: Float[np.ndarray, " n"], fitted: PowerLawFit, against: str = "lognormal"
) -> Comparison:
    """Compare a fitted power law with another law of its tail.

    - ``"lognormal"``: p ~ e^(-(ln x - μ)²/2σ²)/x;
    - ``"exponential"``: p ~ e^(-Λx);
    - ``"truncated"``: p ~ x^(-α) e^(-Λx), any real α, where ``powerlaw`` 2.0 allows 0 < α < 3.

    Args:
        values: (n,) those that were fitted.
        fitted: Their fit.
        against: The other law.

    Returns:
        The comparison; NaN and no parameters for a failed fit.

    Raises:
        CapacityError: If the law is unknown, the fit has a cut-off, which the other laws lack, or
            is one of other values.
    """
    if against not in ALTERNATIVES:
        raise CapacityError(f"unknown law {against!r}; known: {', '.join(ALTERNATIVES)}")
    ordered = usable(values, fitted.rule).values
    if not fitted:
        return Comparison(against, math.nan, math.nan, math.nan, {})
    if math.isfinite(fitted.x_max):
        raise CapacityError(
            f"a law that ends at {fitted.x_max:g} is not compared; fit without x_max before"
        )
    tail = ordered[np.searchsorted(ordered, fitted.x_min, side="left") :]
    if len(tail) != fitted.n_tail:
        raise CapacityError(
            f"a tail of {fitted.n_tail} values, of {len(tail)} here; give the fitted values"
        )
    t = log_ratio(tail, np.array(fitted.x_min))
    if t[-1] > _WIDEST:
        raise CapacityError(
            f"the tail from {fitted.x_min:g} to {tail[-1]:g} is too wide; raise the fit's floor"
        )
    slope = fitted.alpha - 1
    power = math.log(slope) - slope * t  # densities in t: the factor x of both drops out
    other, parameters = _LAWS[against](t, slope, fitted.x_min)
    return _vuong(power - other, against, parameters)


def _vuong(difference: Array, against: str, parameters: dict[str, float]) -> Comparison:
    ratio, n = float(difference.sum()), len(difference)
    spread = float(difference.std()) * math.sqrt(n)
    if against == "truncated":
        # survival function of χ² with one degree of freedom at 2|R|
        p = float(erfc(math.sqrt(abs(ratio))))
    else:
        p = float(erfc(abs(ratio) / (math.sqrt(2) * spread))) if spread > 0 else 1.0
    return Comparison(against, ratio, ratio / spread if spread > 0 else 0.0, p, parameters)


def _exponential(t: Array, slope: float, x_min: float) -> tuple[Array, dict[str, float]]:
    """e^(-Λ(x - x_min)): Λ is the inverse of the mean excess."""
    del slope
    excess = np.expm1(t)
    rate = 1 / float(excess.mean())
    return math.log(rate) - rate * excess + t, {"Lambda": rate / x_min}


def _lognormal(t: Array, slope: float, x_min: float) -> tuple[Array, dict[str, float]]:
    scale = float(np.mean(t**2))
    family = _Family(lambda s: s**2 / scale, lambda q: q * scale / 2, 2 / (slope**2 * scale))
    a, b, density = family.maximum(t, slope)
    if b == 0:
        return density, {"mu": -math.inf, "sigma": math.inf}
    variance = scale / (2 * b)
    return density, {"mu": math.log(x_min) - a * variance, "sigma": math.sqrt(variance)}


def _truncated(t: Array, slope: float, x_min: float) -> tuple[Array, dict[str, float]]:
    scale = float(np.expm1(t).mean())
    mean = 1 / ((slope - 1) * scale) if slope > 1 else math.inf
    family = _Family(lambda s: np.expm1(s) / scale, lambda q: math.log(q * scale), mean)
    a, b, density = family.maximum(t, slope)
    return density, {"alpha": 1 + a, "Lambda": b / (scale * x_min)}


_LAWS = {"lognormal": _lognormal, "exponential": _exponential, "truncated": _truncated}


@dataclass(frozen=True)
class _Family:
    """Laws e^(-at-bg(t))/Z, t ≥ 0, b ≥ 0.

    Attributes:
        g: Convex, g(0) = 0, of mean 1 over the sample.
        where: The t at which g' has a given value.
        power_mean: Mean of g under the sample's power law, infinite where it diverges.
    """

    g: Callable[[Array], Array]
    where: Callable[[float], float]
    power_mean: float

    def maximum(self, t: Array, slope: float) -> tuple[float, float, Array]:
        """Maximum of the likelihood by damped Newton steps.

        Args:
            t: (n,) the sample.
            slope: a of its power law, b = 0.

        Returns:
            a, b and (n,) logarithms of densities.
        """
        of_t = self.g(t)
        means = np.array([t.mean(), of_t.mean()])
        # ∂/∂b of the mean log-likelihood at the power law; concave, so b = 0 unless it rises
        if self.power_mean <= means[1]:
            return slope, 0.0, math.log(slope) - slope * t
        theta = np.array([slope, 0.5])
        log_z, moments, covariance = self.integrals(theta)
        for _ in range(200):
            gradient = moments - means
            step = np.linalg.solve(covariance, gradient)
            inside = step[1] > -0.9 * theta[1]
            if not inside:  # b stays positive; the best a for that
                fall = -0.9 * theta[1]
                step = np.array([(gradient[0] - covariance[0, 1] * fall) / covariance[0, 0], fall])
            done = inside and gradient @ step < 1e-12
            found = self.integrals(theta + step)
            # a step may be too long, but not where the gain drowns in round-off
            while not done and found[0] - log_z + step @ means > 1e-14 * abs(log_z):
                step /= 2
                found = self.integrals(theta + step)
            theta, (log_z, moments, covariance) = theta + step, found
            if done:
                break
        a, b = map(float, theta)
        return a, b, -a * t - b * of_t - log_z

    def integrals(self, theta: Array) -> tuple[float, Array, Float64[np.ndarray, "2 2"]]:
        """Logarithm of Z, the means of (t, g) and their covariance by Gauss-Legendre panels.

        Args:
            theta: a and b > 0.

        Returns:
            The three.
        """
        a, b = map(float, theta)

        def exponent(s: Array) -> Array:
            with np.errstate(over="ignore"):
                return -a * s - b * self.g(s)

        # the exponent is concave: one peak, at 0 or where a + b g' = 0
        peak = max(self.where(-a / b), 0.0) if a < 0 else 0.0
        level = float(exponent(np.array([peak]))[0]) - _DROP
        reach = 2.0 ** np.arange(-40.0, 41.0)
        right = peak + reach[np.argmax(exponent(peak + reach) < level)]
        inside = exponent(np.maximum(peak - reach, 0)) < level
        left = max(peak - reach[np.argmax(inside)], 0.0) if inside.any() else 0.0
        edges = np.linspace(left, right, _PANELS + 1)
        half = (right - left) / (2 * _PANELS)
        s = (edges[:-1, None] + half * (1 + _NODES)).ravel()
        h = exponent(s)
        weight = np.exp(h - h.max()) * np.tile(half * _WEIGHTS, _PANELS)
        z = weight.sum()
        weight /= z
        functions = np.stack([s, self.g(s)])
        moments = functions @ weight
        centred = functions - moments[:, None]
        return float(np.log(z) + h.max()), moments, (centred * weight) @ centred.T
