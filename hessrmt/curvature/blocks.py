"""A reduced Hessian as blocks, one of which may be known only through its range.

For one layer k the block is H_kk = A Σ Aᵀ with few columns A, and all of H's rows of that layer lie
in the range of M = [A, C], C = H_k,rest. With M = QR an orthonormal basis of that range turns

    [[A Σ Aᵀ, C], [Cᵀ, D]]   into   [[R_A Σ R_Aᵀ, R_C], [R_Cᵀ, D]],

which has the same nonzero eigenvalues (PHYSICS §2, block range). Q itself is never needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from hessrmt.errors import ConvergenceError

if TYPE_CHECKING:
    from torch import Tensor

    from hessrmt.arrays import Matrix

_QR_ADVANTAGE = 2.5
"""How much faster a flop of QR runs than one of a tridiagonalisation (two cores, LAPACK)."""


@dataclass(frozen=True)
class RangeBlock:
    """The part of a reduced Hessian that concerns one layer.

    Attributes:
        where: (m,) positions of the layer's rows among the coordinates.
        stacked: (m, c + n) M = [A, C].
        signs: (c,) diagonal of Σ.
    """

    where: Tensor
    stacked: Tensor
    signs: Tensor

    @property
    def columns(self) -> Tensor:
        """(m, c) A."""
        return self.stacked[:, : len(self.signs)]

    @property
    def coupling(self) -> Tensor:
        """(m, n) C."""
        return self.stacked[:, len(self.signs) :]


@dataclass(frozen=True)
class Blocks:
    """QᵀHQ in the coordinates of a :class:`~hessrmt.curvature.reduction.Reduction`.

    Attributes:
        rest: (n, n) D, symmetric.
        where: (n,) positions of its rows among the coordinates.
        ranged: The layer that is known through its range, if any.
    """

    rest: Matrix
    where: Tensor
    ranged: RangeBlock | None = None

    def apply(self, z: Tensor) -> Tensor:
        """The product with a vector, before any range basis.

        Args:
            z: (r,).

        Returns:
            (r,).
        """
        result = torch.zeros_like(z)
        own = z[self.where]
        result[self.where] = self.rest @ own
        if self.ranged is not None:
            other = z[self.ranged.where]
            inner = self.ranged.signs * (self.ranged.columns.T @ other)
            result[self.where] += self.ranged.coupling.T @ other
            result[self.ranged.where] = self.ranged.columns @ inner + self.ranged.coupling @ own
        return result

    def matrix(self) -> Matrix:
        """The smallest symmetric matrix with the same nonzero eigenvalues.

        Returns:
            The matrix.

        Raises:
            ConvergenceError: If the QR does not keep inner products to rounding.
        """
        if self.ranged is None:
            return self.rest
        stacked, signs = self.ranged.stacked, self.ranged.signs
        triangle = torch.linalg.qr(stacked, mode="r").R
        x = torch.ones(stacked.shape[1], dtype=stacked.dtype, device=stacked.device)
        x[1::2] = -1
        gap = (stacked.T @ (stacked @ x) - triangle.T @ (triangle @ x)).norm() / x.norm()
        tolerance = stacked.shape[0] * torch.finfo(x.dtype).eps * float(stacked.square().sum())
        if not float(gap) <= tolerance:
            raise ConvergenceError(
                f"the QR factorisation lost orthogonality: |MᵀMx - RᵀRx| = {float(gap):.3g} where "
                f"rounding explains {tolerance:.3g}"
            )
        count, inner = triangle.shape[0], len(signs)
        left, right = triangle[:, :inner], triangle[:, inner:]
        small = triangle.new_empty(count + len(self.where), count + len(self.where))
        small[:count, :count] = (left * signs) @ left.T
        small[:count, count:] = right
        small[count:, :count] = right.T
        small[count:, count:] = self.rest
        return small


def range_pays(block: int, columns: int, rest: int) -> bool:
    """Whether a range basis of a layer makes the whole cheaper.

    Args:
        block: m, kept coordinates of the layer.
        columns: c, columns of A.
        rest: n, all other coordinates.

    Returns:
        True if the QR and the smaller eigenvalue problem cost less than the larger one alone.
    """
    width = columns + rest
    if width >= block:
        return False
    before = 4 / 3 * (block + rest) ** 3
    qr = 2 * block * width**2 - 2 / 3 * width**3
    return qr / _QR_ADVANTAGE + 4 / 3 * (width + rest) ** 3 < before
