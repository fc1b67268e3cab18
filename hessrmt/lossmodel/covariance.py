"""The law of a Gaussian-process Hessian at one point: two numbers and a mean.

Whatever the covariance function of the loss, as long as no direction is special, the Hessian at
one point is H = mean·I + √a·G + √c·ξ·I with G of the Gaussian orthogonal ensemble (off-diagonal
variance 1, diagonal variance 2) and an independent standard normal ξ:

    Cov(H_ij, H_kl) = a (δ_ik δ_jl + δ_il δ_jk) + c δ_ij δ_kl.

The loss value is correlated with the trace alone, Cov(ε, H_ij) = -Var(∂_1 ε) δ_ij, so that it
shifts the spectrum and narrows ξ; the gradient at the same point is independent of both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from hessrmt.errors import LossModelError
from hessrmt.lossmodel.arguments import positive, real, whole

if TYPE_CHECKING:
    from jaxtyping import Float64

ROUNDING = 1e-12
"""Relative error within which two second moments count as equal: thousands of roundings."""


@dataclass(frozen=True)
class HessianCovariance:
    """Law of a sampled Hessian at one point, H = mean·I + √a·G + √c·ξ·I.

    Attributes:
        a: Variance of an off-diagonal element, positive.
        c: Covariance of two diagonal elements, non-negative; their variance is 2a + c.
        mean: Mean of a diagonal element.
        name: Of the covariance function.
        loss_variance: Var ε at the point; zero where the loss is known, None where it has no law.
        gradient_variance: Var ∂_1 ε at the point, which is also -Cov(ε, H_11); None if unknown.
        parameters: Of the covariance function, as plain values.

    Raises:
        LossModelError: If such a law does not exist.
    """

    a: float
    c: float
    mean: float = 0.0
    name: str = ""
    loss_variance: float | None = field(default=None, kw_only=True)
    gradient_variance: float | None = field(default=None, kw_only=True)
    parameters: Mapping[str, Any] = field(default_factory=dict, kw_only=True, hash=False)

    def __post_init__(self) -> None:
        a, c = positive("a = Var H_12", self.a), real("c = Cov(H_11, H_22)", self.c)
        if c < 0:
            raise LossModelError(
                f"c = Cov(H_11, H_22) must not be negative, got {c:g}: "
                "H = √a·G + √c·ξ·I has no such covariance"
            )
        checked: dict[str, float | None] = {"a": a, "c": c, "mean": real("mean", self.mean)}
        for key in ("loss_variance", "gradient_variance"):
            value = getattr(self, key)
            checked[key] = None if value is None else real(key, value)
            if value is not None and value < 0:
                raise LossModelError(f"{key} must not be negative, got {value!r}")
        for key, value in checked.items():
            object.__setattr__(self, key, value)

    @property
    def settings(self) -> dict[str, Any]:
        """Name, parameters and moments as plain values, for a file's provenance."""
        known = {
            "loss_variance": self.loss_variance,
            "gradient_variance": self.gradient_variance,
        }
        return {
            "kernel": self.name or "covariance",
            **self.parameters,
            "a": self.a,
            "c": self.c,
            "mean": self.mean,
            **{key: value for key, value in known.items() if value is not None},
        }

    def entry(self, i: int, j: int, k: int, l: int) -> float:  # noqa: E741
        """Covariance of two elements, Cov(H_ij, H_kl).

        Args:
            i: Row of the first, counted from zero.
            j: Its column.
            k: Row of the second.
            l: Its column.

        Returns:
            The covariance.
        """
        i, j, k, l = (whole("an index", index) for index in (i, j, k, l))  # noqa: E741
        return self.a * ((i == k) * (j == l) + (i == l) * (j == k)) + self.c * (i == j) * (k == l)

    def tensor(self, n: int) -> Float64[np.ndarray, "n n n n"]:
        """All covariances of the elements of an n × n Hessian.

        Args:
            n: Dimension.

        Returns:
            (n, n, n, n) with element [i, j, k, l] = Cov(H_ij, H_kl).
        """
        unit = np.eye(whole("n", n, 1))
        pairs = np.einsum("ik,jl->ijkl", unit, unit) + np.einsum("il,jk->ijkl", unit, unit)
        return self.a * pairs + self.c * np.einsum("ij,kl->ijkl", unit, unit)

    def given_loss(self, u: float) -> HessianCovariance:
        """The law of the Hessian where the random part of the loss is known to be ε(w) = u.

        With v = Var ε and g = Var ∂_1 ε: the mean moves by -g·u/v and c falls by g²/v; a and the
        law of the gradient stay as they are. A squared-exponential kernel and a pure p-spin model
        are left with c = 0.

        Args:
            u: The value, in units of the loss.

        Returns:
            The conditional law.

        Raises:
            LossModelError: If the law of the value is unknown, if the value is known already (a
                second one would contradict the first, or say nothing new), or if c would become
                negative.
        """
        u = real("the loss value u", u)
        v, g = self.loss_variance, self.gradient_variance
        if v is None or g is None:
            raise LossModelError(
                f"{self.name or 'this covariance'} has no law of the loss value to condition on: "
                "give loss_variance = Var ε and gradient_variance = Var ∂_1 ε"
            )
        if v == 0:
            raise LossModelError(
                f"the loss value is known already (given_loss = {self.parameters.get('given_loss')}"
                f"), got a second one, {u:g}; condition the unconditional covariance"
            )
        c = self.c - g**2 / v
        if abs(c) <= ROUNDING * self.c:
            c = 0.0
        if c < 0:
            raise LossModelError(
                f"no loss has Var ε = {v:g}, Var ∂_1 ε = {g:g} and Cov(H_11, H_22) = {self.c:g}: "
                f"given its value, the covariance would be {c:g}; the variance of the loss must be "
                f"at least {g**2 / self.c if self.c else np.inf:g}"
            )
        return HessianCovariance(
            self.a,
            c,
            self.mean - g * u / v,
            self.name,
            loss_variance=0.0,
            gradient_variance=g,
            parameters={**self.parameters, "given_loss": u},
        )


def paper(k1: float, k2: float, k0: float = 1.0) -> HessianCovariance:
    """The covariance as printed: a = k''(0) and c = k'(0)².

    No stationary process in every dimension has it unless k'(0)² = k''(0): that law has c = k''(0),
    see :func:`hessrmt.lossmodel.stationary`. The pure p-spin model has it, with k'(0) = p. Here it
    reproduces the published figures, whose k'(0) = 0 no process has either: its gradient would
    vanish everywhere.

    Args:
        k1: k'(0), the variance of a gradient's component; zero is allowed.
        k2: k''(0), the variance of an off-diagonal element.
        k0: k(0), the variance of the loss, which only ``given_loss`` uses; below 1 it refuses,
            since its c = k'(0)² (1 - 1/k(0)) would be negative.

    Returns:
        The covariance.

    Raises:
        LossModelError: If k1 is negative or one of the others is not positive.

    Source: [B] (Baskerville, Granziol, Keating), equation (17) and Figures 5 and 6.
    """
    k1, k2, k0 = real("k1 = k'(0)", k1), positive("k2 = k''(0)", k2), positive("k0 = k(0)", k0)
    if k1 < 0:
        raise LossModelError(f"k1 = k'(0) is the variance of a gradient, got {k1:g}")
    return HessianCovariance(
        k2,
        k1**2,
        name="paper",
        loss_variance=k0,
        gradient_variance=k1,
        parameters={"k0": k0, "k1": k1, "k2": k2},
    )
