"""Spin-glass losses on the unit sphere, Cov(ε(w), ε(w')) = ν(w·w'), at one point.

The Hessian is the Riemannian one in an orthonormal basis of the tangent space, P∇²εP - (w·∇ε)P, so
that a sphere in Rⁿ gives (n-1) × (n-1) matrices. Var H_12 = a = ν''(1), Cov(H_11, H_22) = c =
ν''(1) + ν'(1), and a component of the Riemannian gradient has the variance ν'(1). A covariance on
spheres of every dimension is ν(t) = Σ_p α_p t^p with α_p ≥ 0 (Schoenberg, Duke Math. J. 9, 96
(1942)).

Source: Auffinger, Ben Arous, Černý, Comm. Pure Appl. Math. 66, 165 (2013), Lemma 3.2; Auffinger,
Ben Arous, Ann. Probab. 41, 4214 (2013), for mixed models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hessrmt.errors import LossModelError
from hessrmt.lossmodel.arguments import real_array, whole
from hessrmt.lossmodel.callables import Function, function_of, jet_at_end
from hessrmt.lossmodel.covariance import ROUNDING, HessianCovariance

_APPROACH = tuple(1 - 10.0**-decades for decades in (4, 6, 8, 10))


def p_spin(p: int) -> HessianCovariance:
    """The pure spherical p-spin model, Cov(ε(w), ε(w')) = (w·w')^p on the unit sphere.

    Args:
        p: How many spins interact, at least 2; p = 1 has no random Hessian but its trace.

    Returns:
        The law with a = p(p-1), c = p², gradient variance p and loss variance 1. It obeys equation
        (17) of [B], c = (gradient variance)². Given the loss, the trace is known: c = 0.
    """
    p = whole("p", p, 2)
    return _spherical("p_spin", 1.0, p, p * (p - 1), {"p": p})


def mixed_spherical(nu: Function | Sequence[float]) -> HessianCovariance:
    """A mixed spherical model, Cov(ε(w), ε(w')) = ν(w·w') on the unit sphere.

    Args:
        nu: ν(t), written with torch functions (a float64 scalar in, a float64 scalar out), or the
            non-negative coefficients of t², t³, ...

    Returns:
        The law with a = ν''(1), c = ν''(1) + ν'(1), gradient variance ν'(1), loss variance ν(1).

    Raises:
        LossModelError: With the reason, if ν is no covariance on every sphere, has no finite second
            derivative at 1 (then there is no Hessian), or a coefficient is negative.
    """
    if callable(nu):
        wanted = "a process with Hessians has a finite and continuous ν'' at t = 1"
        jet = jet_at_end(function_of(nu, ("ν", "t")), 1.0, _APPROACH, wanted)
        label = str(getattr(nu, "__qualname__", type(nu).__name__))
        value, slope, curvature = jet.tolist()
        return _spherical("mixed_spherical", value, slope, curvature, {"function": label})
    factors = real_array("the coefficients of t², t³, ...", nu, 1)
    if (factors < 0).any() or not factors.any():
        raise LossModelError(
            "the coefficients of t², t³, ... must not be negative, and not all zero, "
            f"got {factors.tolist()}"
        )
    p = np.arange(2, 2 + len(factors))
    return _spherical(
        "mixed_spherical",
        float(factors.sum()),
        float(p @ factors),
        float((p * (p - 1)) @ factors),
        {"coefficients": factors.tolist()},
    )


def _spherical(
    name: str, value: float, slope: float, curvature: float, parameters: dict[str, Any]
) -> HessianCovariance:
    """The law from ν(1), ν'(1) and ν''(1)."""
    roles = ("the loss", "the gradient", "the Hessian's elements")
    for mark, role, moment in zip(("", "'", "''"), roles, (value, slope, curvature), strict=True):
        if moment <= 0:
            raise LossModelError(
                f"ν{mark}(1) is the variance of {role}, expected positive, got {moment:g}"
            )
    c = curvature + slope
    if c * value < slope**2 * (1 - ROUNDING):
        raise LossModelError(
            f"ν(1)·(ν''(1) + ν'(1)) = {c * value:g} is less than ν'(1)² = {slope**2:g}: no process "
            "on spheres of every dimension has this covariance, since ν(t) = Σ α_p t^p with "
            "α_p ≥ 0, and the mean of p² is not below the squared mean of p"
        )
    return HessianCovariance(
        curvature,
        c,
        name=name,
        loss_variance=value,
        gradient_variance=slope,
        parameters=parameters,
    )
