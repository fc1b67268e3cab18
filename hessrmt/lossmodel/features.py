"""The spectral measure of a stationary kernel: rates s with k(q) = k(0)·E exp(s q).

A frequency is ω = √s·N(0, I_n), since E cos(ω·d) = E exp(-s|d|²/2) = k(q)/k(0) at q = -|d|²/2. The
squared exponential has one rate, the rational quadratic gamma distributed ones, and Matérn's kernel
inverse-gamma distributed ones, so that ω has Student's law with 2ν degrees of freedom.

Source: Rahimi, Recht, NIPS 20 (2007); Rasmussen, Williams, Gaussian Processes for Machine Learning
(2006), §4.2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from hessrmt.errors import LossModelError
from hessrmt.lossmodel.kernels import RBF, Matern, Mixture, RationalQuadratic

if TYPE_CHECKING:
    from jaxtyping import Float64

    from hessrmt.lossmodel.kernels import Kernel
    from hessrmt.lossmodel.process import Stationary

Mixing = Callable[[np.random.Generator, int], "Float64[np.ndarray, ' size']"]
"""Draws so many rates s ≥ 0 with k(q) = k(0)·E exp(s q)."""

_REFUSAL_PROBABILITY = 1e-9
"""How rarely rates that do have the kernel's law are refused."""


def draw_rates(
    cov: Stationary, size: int, generator: np.random.Generator, mixing: Mixing | None = None
) -> Float64[np.ndarray, " size"]:
    """Rates of the kernel's spectral measure.

    Args:
        cov: A stationary covariance.
        size: How many.
        generator: Source of randomness.
        mixing: Draws them instead; for kernels given as a function, whose measure is not known.
            What it draws is compared with the kernel.

    Returns:
        (size,) rates in units of inverse squared distance.

    Raises:
        LossModelError: If the measure is not known and no ``mixing`` is given, or its rates are
            negative, not finite, or belong to another kernel.
    """
    if mixing is None:
        return _rates(cov.kernel, size, generator)
    rates = np.asarray(mixing(generator, size), dtype=np.float64)
    if rates.shape != (size,) or not np.isfinite(rates).all() or (rates < 0).any():
        raise LossModelError(
            f"mixing(generator, {size}) must return {size} finite rates s >= 0 with "
            f"k(q) = k(0) E exp(s q), got shape {rates.shape}"
        )
    _require_law(cov, rates)
    return rates


def _rates(
    kernel: Kernel, size: int, generator: np.random.Generator
) -> Float64[np.ndarray, " size"]:
    if isinstance(kernel, RBF):
        return np.full(size, kernel.length**-2)
    if isinstance(kernel, RationalQuadratic):
        return generator.gamma(kernel.alpha, 1 / (kernel.alpha * kernel.length**2), size=size)
    if isinstance(kernel, Matern):
        return kernel.nu / (kernel.length**2 * generator.gamma(kernel.nu, size=size))
    if isinstance(kernel, Mixture):
        variances = np.array(
            [
                weight * kernel.jet(np.zeros(()), 0)[0]
                for weight, kernel in zip(kernel.weights, kernel.kernels, strict=True)
            ]
        )
        # one independent choice of a component for each feature
        chosen = generator.choice(len(variances), size=size, p=variances / variances.sum())
        rates = np.empty(size)
        for which, part in enumerate(kernel.kernels):
            mine = chosen == which
            rates[mine] = _rates(part, int(mine.sum()), generator)
        return rates
    raise LossModelError(
        "the spectral measure of a kernel given as a function is not known; use rbf, "
        "rational_quadratic, matern or a mixture of them, or give mixing = a function "
        "(generator, size) -> rates s with k(q) = k(0) E exp(s q)"
    )


def _require_law(cov: Stationary, rates: Float64[np.ndarray, " size"]) -> None:
    """Compare the mean of exp(s q) with k(q)/k(0), within Hoeffding's inequality."""
    variance = float(cov.derivative(0, 0.0))
    points = -variance / float(cov.derivative(1, 0.0)) * np.array([0.25, 1.0, 4.0])
    # exp(s q) lies in [0, 1]: P(error > t) < 2 exp(-2 size t²)
    allowed = np.sqrt(np.log(2 * len(points) / _REFUSAL_PROBABILITY) / (2 * len(rates)))
    for q in points:
        found, wanted = np.exp(rates * q).mean(), float(cov.derivative(0, q)) / variance
        if abs(found - wanted) > allowed:
            raise LossModelError(
                f"mixing draws rates of another kernel: E exp(s q) = {found:.4f} at q = {q:.4g}, "
                f"but k(q)/k(0) = {wanted:.4f}; frequencies are √s·N(0, I), so give s, not √s"
            )
