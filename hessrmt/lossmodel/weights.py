"""Symmetric matrices A_i of an average of gradients: scalars, diagonals or dense, one interface."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hessrmt.errors import LossModelError
from hessrmt.lossmodel.arguments import real, real_array, whole

if TYPE_CHECKING:
    from jaxtyping import Float64
    from numpy.typing import ArrayLike

    Vectors = Float64[np.ndarray, "some P"]
    Numbers = Float64[np.ndarray, " some"]

_SYMMETRY_ULPS = 64
"""How far, in ulps of the largest element, a matrix may be from its transpose."""


@dataclass(frozen=True)
class Weights:
    """T symmetric matrices of P rows.

    Attributes:
        values: (T,) multiples of the identity, (T, P) diagonals or (T, P, P) matrices.
        rows: P.
    """

    values: Float64[np.ndarray, "*shape"]
    rows: int

    @classmethod
    def of(cls, matrices: ArrayLike | None, T: int, P: int) -> Weights:
        """Check what a user gave.

        Args:
            matrices: (T,), (T, P) or (T, P, P), or None for the identity.
            T: How many points there are.
            P: Their dimension.

        Returns:
            The matrices.

        Raises:
            LossModelError: If the shape is another or a matrix is not symmetric.
        """
        if matrices is None:
            return cls(np.ones(T), P)
        dimensions = np.ndim(matrices)
        expected = (T, P, P)[:dimensions]
        values = real_array("matrices", matrices, min(max(dimensions, 1), 3))
        if values.shape != expected:
            raise LossModelError(
                f"{T} points in {P} dimensions need matrices of shape ({T},) for multiples of the "
                f"identity, ({T}, {P}) for diagonals or ({T}, {P}, {P}), got {values.shape}"
            )
        if dimensions == 3:
            error = np.abs(values - values.transpose(0, 2, 1)).max()
            if error > _SYMMETRY_ULPS * np.finfo(float).eps * np.abs(values).max():
                raise LossModelError(
                    f"the matrices must be symmetric, one differs from its transpose by {error:.3g}"
                )
            values = (values + values.transpose(0, 2, 1)) / 2
        return cls(values, P)

    @property
    def scalar(self) -> bool:
        """Whether all are given as multiples of the identity."""
        return self.values.ndim == 1

    @property
    def equal(self) -> bool:
        """Whether all are the same matrix."""
        return bool((self.values == self.values[:1]).all())

    def norm(self, which: str) -> float:
        """Largest norm among the matrices.

        Args:
            which: ``"operator"``, the largest |eigenvalue|, or ``"trace"``, the sum of them.

        Returns:
            max_i ‖A_i‖.
        """
        sizes = np.abs(self.values if self.values.ndim < 3 else np.linalg.eigvalsh(self.values))
        if which == "operator":
            return float(sizes.max())
        return float(sizes.max()) * self.rows if self.scalar else float(sizes.sum(axis=1).max())

    def squares(self) -> Numbers:
        """(T,) Tr A_i²."""
        squares = self.values**2
        if self.scalar:
            return self.rows * squares
        return squares.reshape(len(squares), -1).sum(axis=1)

    def traces(self, i: int, d: Vectors) -> tuple[Numbers, Numbers]:
        """Tr(A_i A_j) and dᵀ A_i A_j d of one matrix with all later ones.

        Args:
            i: Which matrix.
            d: (T - i - 1, P), a vector for each later j.

        Returns:
            (T - i - 1,) of each.
        """
        one, later = self.values[i], self.values[i + 1 :]
        if self.scalar:
            return self.rows * one * later, one * later * np.einsum("jp,jp->j", d, d)
        bent = np.einsum("jp,jp->j", self.apply(i, d), self.apply(slice(i + 1, None), d))
        return np.tensordot(later, one, one.ndim), bent

    def apply(self, which: int | slice, d: Vectors) -> Vectors:
        """A_i d_j of one matrix and many vectors, or A_j d_j of as many matrices as vectors.

        Args:
            which: One i, or the slice of j.
            d: (some, P) vectors.

        Returns:
            (some, P).
        """
        values = self.values[which]
        if self.values.ndim == 3:
            return d @ values if values.ndim == 2 else np.einsum("jpq,jq->jp", values, d)
        return d * (values[:, None] if isinstance(which, slice) and self.scalar else values)

    def product(self, i: int, which: slice, factors: Numbers) -> Float64[np.ndarray, "P P"]:
        """A_i Σ_j factor_j A_j.

        Args:
            i: The matrix on the left.
            which: The slice of j.
            factors: One for each j.

        Returns:
            (P, P).
        """
        one, mean = self.values[i], np.tensordot(factors, self.values[which], 1)
        if self.values.ndim == 3:
            return one @ mean
        return np.diag(np.broadcast_to(one * mean, (self.rows,)))


def weight_decay_matrices(alpha: float, lam: float, T: int) -> Float64[np.ndarray, " T"]:
    """A_i = α(1 - λα)^i for i = 1 ... T, as multiples of the identity.

    Args:
        alpha: Learning rate α, positive.
        lam: Weight decay λ with 0 <= λα <= 1.
        T: How many steps.

    Returns:
        (T,) multiples, to be given as ``matrices``. In w_T itself the latest gradient has decayed
        least, which is the reverse order.

    Raises:
        LossModelError: If α is not positive or λα is not in [0, 1].

    Source: [B] (Baskerville, Granziol, Keating), below equation (21).
    """
    alpha, lam, T = real("alpha", alpha), real("lam", lam), whole("T", T, 1)
    if alpha <= 0 or not 0 <= lam * alpha <= 1:
        raise LossModelError(
            f"need alpha > 0 and 0 <= lam·alpha <= 1, got alpha = {alpha:g}, lam = {lam:g}"
        )
    return alpha * (1 - lam * alpha) ** np.arange(1, T + 1)
