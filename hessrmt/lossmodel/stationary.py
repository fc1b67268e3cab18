"""Stationary Gaussian-process losses, k(-½|w - w'|²): named kernels, mixtures, any function.

The Hessian at one point has a = c = k''(0): Var H_12 = Cov(H_11, H_22) = k''(0), Var H_11 =
3k''(0). The process is four times differentiable at distance zero, k'' finite and continuous at
q = 0, or it has no Hessian. To be one in every dimension k is a mixture ∫ exp(s q) dμ(s)
(Schoenberg, Ann. Math. 39, 811 (1938)), so that k(0), k'(0), k''(0) > 0 and, by Cauchy and Schwarz,
k(0)·k''(0) ≥ k'(0)².
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from hessrmt.errors import LossModelError
from hessrmt.lossmodel.arguments import positive, real_array
from hessrmt.lossmodel.callables import Function, function_of
from hessrmt.lossmodel.kernels import RBF, Kernel, Matern, Mixture, RationalQuadratic, jet_of
from hessrmt.lossmodel.process import Stationary
from hessrmt.lossmodel.validity import checked_moments

if TYPE_CHECKING:
    from jaxtyping import Float64

LARGEST_NU = 100.0
"""Of a Matérn kernel: above, the Bessel functions overflow and the kernel is all but ``rbf``."""


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
        LossModelError: With the reason, if k is no covariance in every dimension, or not four times
            differentiable at distance zero, or cannot be differentiated there.
    """
    function = function_of(k, ("k", "q"), derivatives)
    moments = checked_moments(function)
    label = name or getattr(k, "__qualname__", type(k).__name__)
    return _process("stationary", function, moments, {"function": str(label)})


def rbf(variance: float = 1.0, length: float = 1.0) -> Stationary:
    """Squared-exponential kernel, k(q) = variance·exp(q/length²).

    Args:
        variance: Of the loss.
        length: In units of the weights.

    Returns:
        The process; k'(0)² = k(0)·k''(0), so that c = 0 once the loss is known.
    """
    v, length = positive("variance", variance), positive("length", length)
    return _named("rbf", RBF(v, length), {"variance": v, "length": length})


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
    v, length = positive("variance", variance), positive("length", length)
    alpha = positive("alpha", alpha)
    parameters = {"variance": v, "length": length, "alpha": alpha}
    return _named("rational_quadratic", RationalQuadratic(v, length, alpha), parameters)


def matern(nu: float, variance: float = 1.0, length: float = 1.0) -> Stationary:
    """Matérn kernel, of any smoothness that has a Hessian.

    Args:
        nu: Smoothness, above 2 and at most 100.
        variance: Of the loss.
        length: In units of the weights.

    Returns:
        The process, with k''(0) = variance·ν²/(length⁴·(ν-1)(ν-2)).

    Raises:
        LossModelError: If nu is out of range, or an argument is not positive and finite.
    """
    nu, v, length = positive("nu", nu), positive("variance", variance), positive("length", length)
    if nu <= 2:
        raise LossModelError(
            f"nu must be above 2, got {nu:g}: k''(0) is infinite, the process is not twice "
            "differentiable and has no Hessian"
        )
    if nu > LARGEST_NU:
        raise LossModelError(
            f"nu must be at most {LARGEST_NU:g}, got {nu:g}; the limit of large nu is rbf"
        )
    return _named("matern", Matern(nu, v, length), {"nu": nu, "variance": v, "length": length})


def mixture(covariances: Sequence[Stationary], weights: ArrayLike) -> Stationary:
    """Sum of independent stationary processes, k = Σ weight_i·k_i.

    Args:
        covariances: At least one process.
        weights: A positive factor of each kernel; they need not add up to one.

    Returns:
        The process.

    Raises:
        LossModelError: If there is none, one is not stationary, or the weights do not fit.
    """
    parts = tuple(covariances)
    for part in parts:
        if not isinstance(part, Stationary):
            raise LossModelError(
                f"a mixture is made of stationary covariances, got {type(part).__name__} "
                f"{getattr(part, 'name', '')}"
            )
    factors = real_array("weights", weights, 1)
    if len(factors) != len(parts) or (factors <= 0).any():
        raise LossModelError(
            f"a mixture of {len(parts)} covariances needs as many positive weights, "
            f"got {factors.tolist()}"
        )
    plain = tuple(factors.tolist())
    parameters = {"weights": list(plain), "parts": [part.settings for part in parts]}
    return _named("mixture", Mixture(tuple(part.kernel for part in parts), plain), parameters)


def _named(name: str, kernel: Kernel, parameters: dict[str, Any]) -> Stationary:
    return _process(name, kernel, jet_of(kernel, np.array(0.0), 2), parameters)


def _process(
    name: str, kernel: Kernel, moments: Float64[np.ndarray, " 3"], parameters: dict[str, Any]
) -> Stationary:
    k0, k1, k2 = moments.tolist()
    return Stationary(
        k2,
        k2,
        name=name,
        loss_variance=k0,
        gradient_variance=k1,
        parameters=parameters,
        kernel=kernel,
    )
