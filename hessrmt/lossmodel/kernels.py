"""Stationary covariance functions k(q) of q = -½|w - w'|² ≤ 0: named, mixed, or any function.

Each is a mixture k(q) = k(0)·E exp(s q) over rates s ≥ 0, and each such function is a covariance in
every dimension (Schoenberg 1938), so that k(0), k'(0), k''(0) > 0 and, by Cauchy and Schwarz,
k(0)·k''(0) ≥ k'(0)². The squared exponential has one rate, the rational quadratic gamma distributed
ones, and Matérn's kernel inverse-gamma distributed ones. Rasmussen and Williams 2006, section 4.2,
has the functions in terms of the distance r = √(-2q).

The Hessian at one point has a = c = k''(0): Var H_12 = Cov(H_11, H_22) = k''(0), Var H_11 =
3k''(0). The process is four times differentiable at distance zero, k'' finite and continuous at
q = 0, or it has no Hessian.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import gammaln, kve, poch

from hessrmt.checks import real, real_array
from hessrmt.errors import DataError
from hessrmt.lossmodel.covariance import Kernel, Stationary, jet_of, require_stationary
from hessrmt.lossmodel.functions import MARKS, ROUNDING, Differentiated, Function, jet_at_end

if TYPE_CHECKING:
    from jaxtyping import Float64

    from hessrmt.lossmodel.functions import Jet, Points


LARGEST_NU = 100.0
"""Of a Matérn kernel: above, the Bessel functions overflow and the kernel is all but ``rbf``."""

_APPROACH = tuple(-(10.0**-decades) for decades in range(4, 44, 4))
"""Points q at which the derivatives are compared with those at 0, for length scales above 1e-20."""

_TRIALS = (0.1, 1.0, 10.0)
"""Points -q in units of k(0)/k'(0) at which the signs and given derivatives are tried."""

_STEP = 1e-4
"""Step of the difference quotients in the same units: truncation error step² ≈ 1e-8."""

_NO_MIXTURE = "k(q) is no ∫ exp(s q) dμ(s), the form that covariances in every dimension have"

_SLACK = 1e-4
"""Relative error of a given derivative that is called wrong, far above the quotients' error."""


@dataclass(frozen=True)
class RBF:
    """k(q) = variance·exp(q/length²), the squared exponential."""

    variance: float
    length: float

    def jet(self, q: Points, order: int) -> Jet:
        """See :class:`Kernel`; each derivative brings a factor 1/length²."""
        rate, m = np.float64(self.length) ** -2, _orders(q, order)
        return self.variance * rate**m * np.exp(rate * q)

    def rates(self, size: int, generator: np.random.Generator) -> Points:  # noqa: ARG002
        """See :class:`Kernel`."""
        return np.full(size, self.length**-2)


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
        m = _orders(q, order)
        return self.variance * rate**m * poch(alpha, m) * np.exp(-(alpha + m) * logarithm)

    def rates(self, size: int, generator: np.random.Generator) -> Points:
        """See :class:`Kernel`; gamma distributed."""
        return generator.gamma(self.alpha, 1 / (self.alpha * self.length**2), size=size)


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

    def rates(self, size: int, generator: np.random.Generator) -> Points:
        """See :class:`Kernel`; a frequency √s·N(0, I) has Student's law of 2ν degrees."""
        return self.nu / (self.length**2 * generator.gamma(self.nu, size=size))

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

    def rates(self, size: int, generator: np.random.Generator) -> Points:
        """See :class:`Kernel`; one independent choice of a component for each."""
        terms = zip(self.weights, self.kernels, strict=True)
        variances = np.array([weight * part.jet(np.zeros(()), 0)[0] for weight, part in terms])
        chosen = generator.choice(len(variances), size=size, p=variances / variances.sum())
        rates = np.empty(size)
        for which, part in enumerate(self.kernels):
            mine = chosen == which
            rates[mine] = part.rates(int(mine.sum()), generator)
        return rates


def rbf(variance: float = 1.0, length: float = 1.0) -> Stationary:
    """Squared-exponential kernel, k(q) = variance·exp(q/length²).

    Args:
        variance: Of the loss.
        length: In units of the weights.

    Returns:
        The process; k'(0)² = k(0)·k''(0), so that c = 0 once the loss is known.
    """
    return _named("rbf", RBF(variance, length))


def rational_quadratic(
    variance: float = 1.0, length: float = 1.0, alpha: float = 1.0
) -> Stationary:
    """Rational quadratic kernel, k(q) = variance·(1 - q/(alpha·length²))^(-alpha).

    Args:
        variance: Of the loss.
        length: In units of the weights.
        alpha: Shape: a mixture of squared exponentials with 1/length² of a Gamma law.

    Returns:
        The process.
    """
    return _named("rational_quadratic", RationalQuadratic(variance, length, alpha))


def matern(nu: float, variance: float = 1.0, length: float = 1.0) -> Stationary:
    """Matérn kernel, of any smoothness that has a Hessian.

    Args:
        nu: Smoothness, above 2 and at most 100.
        variance: Of the loss.
        length: In units of the weights.

    Returns:
        The process, with k''(0) = variance·ν²/(length⁴·(ν-1)(ν-2)).
    """
    hint = "up to 2 k''(0) is infinite and there is no Hessian; the limit of large nu is rbf"
    nu = real("nu", nu, above=2, most=LARGEST_NU, hint=hint)
    return _named("matern", Matern(nu, variance, length))


def mixture(covariances: Sequence[Stationary], weights: ArrayLike) -> Stationary:
    """Sum of independent stationary processes, k = Σ weight_i·k_i.

    Args:
        covariances: At least one process.
        weights: A positive factor of each kernel; they need not add up to one.

    Returns:
        The process.

    Raises:
        DataError: If there is none, one is not stationary, or the weights do not fit.
    """
    parts = tuple(covariances)
    for part in parts:
        require_stationary(part, "a mixture is made of them")
    factors = tuple(real_array("weights", weights, dimensions=1, above=0).tolist())
    if len(factors) != len(parts):
        raise DataError(f"{len(parts)} covariances need as many weights, got {len(factors)}")
    kernel = Mixture(tuple(part.kernel for part in parts), factors)
    parameters = {"weights": list(factors), "parts": [part.settings for part in parts]}
    return _process("mixture", kernel, parameters)


def stationary(
    k: Function, *, derivatives: Sequence[Function] | None = None, name: str | None = None
) -> Stationary:
    """The process of any kernel.

    Args:
        k: The covariance as a function of q = -½|w - w'|² ≤ 0, written with torch functions: a
            float64 scalar in, a float64 scalar out.
        derivatives: k', k'', ... in the same form, at most four; what is missing is differentiated
            by torch. Needed where k's formula cannot be differentiated at q = 0.
        name: Of the function, for the provenance; by default its Python name.

    Returns:
        The process, with a = c = k''(0).

    Raises:
        DataError: With the reason, if k is no covariance in every dimension, or not four times
            differentiable at distance zero, or cannot be differentiated there.
    """
    function = Differentiated((k, *(derivatives or ())), ("k", "q"))
    moments = jet_at_end(
        function,
        0.0,
        _APPROACH,
        "a process with Hessians has a covariance that is four times differentiable at distance "
        "zero, k'' finite and continuous at q = 0 (a Matérn kernel needs nu above 2)",
        "; k is a function of q = -½|w - w'|² which increases towards q = 0. If k'(0) = 0 the loss "
        "is constant; hessrmt.lossmodel.paper(0, k2) has the covariance printed for that case",
    )
    k0, k1, k2 = moments.tolist()
    if k0 * k2 < k1**2 * (1 - ROUNDING):
        less = f"k(0)·k''(0) = {k0 * k2:g} is less than k'(0)² = {k1**2:g}"
        raise DataError(f"{less}, against Cauchy and Schwarz's inequality: {_NO_MIXTURE}")
    _check_inside(function, moments)
    label = name or getattr(k, "__qualname__", type(k).__name__)
    return _process("stationary", function, {"function": str(label)})


def _orders(q: Points, order: int) -> Any:
    return np.arange(order + 1).reshape(-1, *(1,) * np.ndim(q))


def _named(name: str, kernel: RBF | RationalQuadratic | Matern) -> Stationary:
    """The process of a kernel whose parameters are positive."""
    parameters = {key: real(key, value, above=0) for key, value in vars(kernel).items()}
    return _process(name, type(kernel)(**parameters), parameters)


def _process(name: str, kernel: Kernel, parameters: dict[str, Any]) -> Stationary:
    k0, k1, k2 = jet_of(kernel, np.array(0.0), 2).tolist()
    known = {"loss_variance": k0, "gradient_variance": k1}
    return Stationary(k2, k2, name=name, **known, parameters=parameters, kernel=kernel)


def _check_inside(k: Differentiated, moments: Float64[np.ndarray, " 3"]) -> None:
    """Signs of k, k', k'' away from zero, and given derivatives against difference quotients."""
    scale = moments[0] / moments[1]
    q = -scale * np.array(_TRIALS)
    given = len(k.functions) - 1
    jet = k.jet(q, max(given, 2))
    share = jet[:3] / moments[:, None]
    bad = ~((share >= -ROUNDING) & (share <= 1 + ROUNDING))
    for m, point in np.argwhere(bad):
        name = f"k{MARKS[m]}"
        limits = f"expected from 0 to {name}(0) = {moments[m]:g}"
        raise DataError(f"{name}({q[point]:g}) = {jet[m, point]:g}, {limits}: {_NO_MIXTURE}")
    step = _STEP * scale
    exact, below = jet[1 : given + 1], jet[:given]
    with np.errstate(invalid="ignore"):
        slopes = (k.jet(q + step, given) - k.jet(q - step, given))[:given] / (2 * step)
        error = np.abs(exact - slopes)
    # the quotient's own rounding, ε·k^(m-1)/step, where the derivative is nothing
    rounding = np.finfo(float).eps * np.abs(below) / _STEP / scale
    allowed = _SLACK * np.maximum(np.abs(exact), np.abs(slopes)) + 10 * rounding
    for m, point in np.argwhere(~(error <= allowed)):
        claim = f"the given k{MARKS[m + 1]}({q[point]:g}) = {exact[m, point]:g}"
        quotient = f"difference quotient of k{MARKS[m]} there is {slopes[m, point]:g}"
        raise DataError(f"{claim}, but the {quotient}")
