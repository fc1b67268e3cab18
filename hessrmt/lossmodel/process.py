"""A stationary Gaussian process: covariances of loss, gradient and Hessian at any points."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from hessrmt.errors import LossModelError
from hessrmt.lossmodel import pairs
from hessrmt.lossmodel.arguments import real_array, whole
from hessrmt.lossmodel.covariance import HessianCovariance
from hessrmt.lossmodel.kernels import Kernel, jet_of

if TYPE_CHECKING:
    from jaxtyping import Float64

    Point = Float64[np.ndarray, " n"]

_COINCIDENT = 1e-100
"""Points this close, -q in units of k(0)/k'(0), count as one where k''' or k'''' is infinite."""


@dataclass(frozen=True)
class Stationary(HessianCovariance):
    """A stationary process, known at any number of points.

    ``w`` and ``v`` are points of shape (n,); the first derivative belongs to ``w``, the second to
    ``v``. Conditional on its loss it is no longer stationary: ``given_loss`` keeps the law at the
    one point.

    Attributes:
        kernel: k with its derivatives.
    """

    kernel: Kernel = field(kw_only=True)

    def derivative(self, order: int, q: ArrayLike) -> Any:
        """A derivative of the kernel.

        Args:
            order: Which, from 0 to 4.
            q: -½|w - w'|², not positive, of any shape.

        Returns:
            A float for a scalar, else an array of the shape of q.

        Raises:
            LossModelError: If the order is above four, q positive, or the derivative infinite (at
                q = 0 those above the second may be).
        """
        if whole("order", order) > 4:
            raise LossModelError(f"order must be from 0 to 4, got {order}")
        points = real_array("q = -½|w - w'|²", q)
        if (points > 0).any():
            raise LossModelError(f"q = -½|w - w'|² must not be positive, got {points.max():g}")
        values = jet_of(self.kernel, points, order)[order]
        if not np.isfinite(values).all():
            raise LossModelError(
                f"derivative {order} of the kernel {self.name} is not finite at "
                f"q = {points[~np.isfinite(values)].max():g}"
            )
        return values if points.ndim else float(values)

    def value_covariance(self, w: ArrayLike, v: ArrayLike) -> float:
        """Cov(ε(w), ε(v)) = k(q)."""
        return float(self._between(w, v, 0, 0))

    def value_gradient_covariance(self, w: ArrayLike, v: ArrayLike) -> Point:
        """Cov(ε(w), ∂_i ε(v)) = k' d_i, (n,), with d = w - v."""
        return self._between(w, v, 0, 1)

    def gradient_covariance(self, w: ArrayLike, v: ArrayLike) -> Float64[np.ndarray, "n n"]:
        """Cov(∂_i ε(w), ∂_j ε(v)) = k' δ_ij - k'' d_i d_j, (n, n), equation (16) of [B]."""
        return self._between(w, v, 1, 1)

    def value_hessian_covariance(self, w: ArrayLike, v: ArrayLike) -> Float64[np.ndarray, "n n"]:
        """Cov(ε(w), ∂_ij ε(v)) = -k' δ_ij + k'' d_i d_j, (n, n)."""
        return self._between(w, v, 0, 2)

    def gradient_hessian_covariance(
        self, w: ArrayLike, v: ArrayLike
    ) -> Float64[np.ndarray, "n n n"]:
        """Cov(∂_i ε(w), ∂_jk ε(v)) = k'' (δ_ij d_k + δ_ik d_j + δ_jk d_i) - k''' d_i d_j d_k."""
        return self._between(w, v, 1, 2)

    def hessian_covariance(self, w: ArrayLike, v: ArrayLike) -> Float64[np.ndarray, "n n n n"]:
        """Covariance of two elements of the Hessians at two points.

        Args:
            w: (n,) the first point.
            v: (n,) the second.

        Returns:
            (n, n, n, n) with element [i, j, k, l] = Cov(∂_ij ε(w), ∂_kl ε(v)), which is
            k'' (δ_ij δ_kl + 2 more) - k''' (δ_ij d_k d_l + 5 more) + k'''' d_i d_j d_k d_l.
        """
        return self._between(w, v, 2, 2)

    def joint(self, points: ArrayLike) -> Float64[np.ndarray, "size size"]:
        """Covariance matrix of everything up to the second derivatives at several points.

        Args:
            points: (m, n) points, m of them in n dimensions.

        Returns:
            (m·s, m·s) symmetric positive semi-definite matrix with s = 1 + n + n(n+1)/2. Point by
            point it has the value ε, the n components of the gradient, and the upper triangle of
            the Hessian row by row: ∂_11, ∂_12, ..., ∂_1n, ∂_22, ..., as ``numpy.triu_indices(n)``.
            Coincident points, and close ones to rounding, make it singular.
        """
        at = real_array("points", points, 2)
        d = at[:, None, :] - at[None, :, :]
        return pairs.joint(self._five(d), d)

    def _between(self, w: ArrayLike, v: ArrayLike, at_w: int, at_v: int) -> Any:
        one, two = real_array("w", w, 1), real_array("v", v, 1)
        if one.shape != two.shape:
            raise LossModelError(
                f"the two points must have the same dimension, got {one.shape} and {two.shape}"
            )
        return (-1) ** at_v * pairs.full(self._five(one - two), one - two, at_w + at_v)

    def _five(self, d: Float64[np.ndarray, "... n"]) -> Float64[np.ndarray, "orders ..."]:
        # k to k'''' at separations d. In every derivative of K the last two have factors d_i d_j,
        # and q k'''(q), q² k''''(q) → 0 at q → 0 for a mixture of exponentials of finite k''(0):
        # at distance zero, where they may be infinite, they count for nothing.
        q = -0.5 * np.einsum("...i,...i->...", d, d)
        jet = jet_of(self.kernel, q, 4)
        value, slope = jet_of(self.kernel, np.array(0.0), 1)
        touching = -q * slope <= _COINCIDENT * value
        jet[3:] = np.where(touching & ~np.isfinite(jet[3:]), 0.0, jet[3:])
        if not np.isfinite(jet).all():
            far = q[~np.isfinite(jet).all(axis=0)]
            raise LossModelError(
                f"the kernel {self.name} or one of its first four derivatives is not finite at "
                f"q = -½|w - w'|² = {far.max():g}"
            )
        return jet
