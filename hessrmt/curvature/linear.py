"""Symmetric matrices known by their products, and their sums.

The curvature of a loss is one (:mod:`hessrmt.curvature.operators`), and so is what others give
(:mod:`hessrmt.curvature.foreign`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from hessrmt.backend.select import select
from hessrmt.checks import require_whole
from hessrmt.curvature.dense import Device, Dtype, torch_dtype, unit_vectors
from hessrmt.curvature.differences import DIFFERENTIATION, FINITE_DIFFERENCE
from hessrmt.errors import ConfigError

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator

    from hessrmt.arrays import Vector, Vectors

_TOGETHER = 8
"""Unit vectors multiplied at a time."""


class Operator(ABC):
    """A symmetric matrix known by its products: ``H @ v``, ``H + 0.1 * hr.Identity(n)``.

    Attributes:
        dimension: n.
        dtype: Of its vectors.
        device: Where they live.
        products_by: ``"differentiation"``, or ``"finite-difference"`` where products are quotients
            of differences.
        product_error: Bound on the rounding error of a product with a unit vector, where that is
            far more than :func:`~hessrmt.curvature.lanczos.round_off`; else 0.0.
    """

    dimension: int
    dtype: torch.dtype
    device: torch.device
    products_by: str = DIFFERENTIATION
    product_error: float = 0.0
    neutral = False
    """Whether it takes vectors of any precision, in any place."""

    @abstractmethod
    def __call__(self, block: Vectors) -> Vectors:
        """Products with the rows of a block.

        Args:
            block: (k, n) in the operator's precision and place.

        Returns:
            (k, n).
        """

    def unchecked(self, block: Vectors) -> Vectors:
        """The same for callers that see themselves if a product is NaN or infinite.

        Whether all is finite, a device has to be asked and waited for.

        Args:
            block: (k, n).

        Returns:
            (k, n).
        """
        return self(block)

    def expect(self, products: int) -> None:  # noqa: B027
        """Prepare for a number of products, if that pays.

        Args:
            products: How many there will be at least.
        """

    def truncation(self, block: Vectors) -> Tensor:
        """Estimates of what errors of the products with unit vectors are not rounding.

        Args:
            block: (k, n) unit vectors.

        Returns:
            (k,) in the 2-norm; zeros unless products are finite differences.
        """
        return block.new_zeros(len(block))

    @property
    def shape(self) -> tuple[int, int]:
        """(n, n)."""
        return self.dimension, self.dimension

    def __matmul__(self, other: Any) -> Any:
        """The product with a vector or with columns.

        Args:
            other: (n,) or (n, k), a tensor or an array.

        Returns:
            Of the same shape; an array for an array.

        Raises:
            ConfigError: If the shape is another one.
        """
        given = other if isinstance(other, Tensor) else torch.as_tensor(np.array(other))
        if given.is_complex():
            raise ConfigError("a real matrix multiplies real vectors; give real and imaginary part")
        if given.dim() not in (1, 2) or len(given) != self.dimension:
            raise ConfigError(
                f"a matrix of shape {self.shape} can multiply a vector ({self.dimension},) or "
                f"columns ({self.dimension}, k), not shape {tuple(given.shape)}"
            )
        rows = given.reshape(self.dimension, -1).T.to(device=self.device, dtype=self.dtype)
        found = self(rows.contiguous()).T.reshape(given.shape) if len(rows) else rows.T
        return found.cpu().numpy() if isinstance(other, np.ndarray) else found

    def __add__(self, other: Operator, factor: float = 1.0) -> Operator:
        return _Sum((1.0, self), (factor, other)) if isinstance(other, Operator) else NotImplemented

    def __sub__(self, other: Operator) -> Operator:
        return self.__add__(other, -1.0)

    def __mul__(self, factor: float) -> Operator:
        return _Sum((float(factor), self)) if isinstance(factor, Real) else NotImplemented

    __rmul__ = __mul__

    def __neg__(self) -> Operator:
        return -1.0 * self

    def diagonal(self) -> Vector:
        """The diagonal, from n products.

        Returns:
            (n,).
        """
        found = torch.empty(self.dimension, dtype=self.dtype, device=self.device)
        for start in range(0, self.dimension, _TOGETHER):
            rows = torch.arange(start, min(start + _TOGETHER, self.dimension), device=self.device)
            found[rows] = self(unit_vectors(rows, self.dimension, found))[:, rows].diagonal()
        return found

    def to_scipy(self) -> LinearOperator:
        """The same matrix for ``scipy.sparse.linalg``.

        Returns:
            An operator on NumPy vectors and columns, in the precision of this one.
        """
        from scipy.sparse.linalg import LinearOperator

        def multiply(columns: np.ndarray) -> np.ndarray:
            return self @ np.ascontiguousarray(columns)

        kind = torch.zeros(0, dtype=self.dtype).numpy().dtype
        make: Any = LinearOperator  # its constructor is that of a subclass which it picks
        return make(self.shape, matvec=multiply, rmatvec=multiply, matmat=multiply, dtype=kind)


class Identity(Operator):
    """The identity matrix, to be added to others.

    Its products have the precision and the place of the vectors.

    Args:
        n: Its dimension.
        dtype: Of its vectors.
        device: Where they live.
    """

    def __init__(self, n: int, dtype: Dtype = torch.float64, device: Device = "cpu") -> None:
        require_whole(n=n)
        self.dimension, self.dtype, self.neutral = n, torch_dtype(dtype), True
        self.device = select(device).device

    def __call__(self, block: Vectors) -> Vectors:
        """The block itself, (k, n)."""
        return block.clone()


class _Sum(Operator):
    """A linear combination of operators, in the precision and place of the first proper one."""

    def __init__(self, *terms: tuple[float, Operator]) -> None:
        if len({term.dimension for _, term in terms}) != 1:
            shapes = ", ".join(str(term.shape) for _, term in terms)
            raise ConfigError(f"matrices of shapes {shapes} cannot be added")
        self._terms = terms
        leading = next((t for _, t in terms if not t.neutral), terms[0][1])
        self.neutral, self.dimension = leading.neutral, leading.dimension
        self.dtype, self.device = leading.dtype, leading.device
        self._weigh()
        if any(term.products_by == FINITE_DIFFERENCE for _, term in terms):
            self.products_by = FINITE_DIFFERENCE

    def __call__(self, block: Vectors) -> Vectors:
        """Products with the rows of a block, (k, n)."""
        return self._added(block, (term(block) for _, term in self._terms))

    def unchecked(self, block: Vectors) -> Vectors:
        """The same, perhaps not finite."""
        return self._added(block, (term.unchecked(block) for _, term in self._terms))

    def _added(self, block: Vectors, products: Iterable[Vectors]) -> Vectors:
        total = torch.zeros_like(block)
        for (factor, _), product in zip(self._terms, products, strict=True):
            total.add_(product, alpha=factor)
        self._weigh()
        return total

    def _weigh(self) -> None:
        """Add the terms' errors, which may have grown with their products."""
        errors = (abs(factor) * term.product_error for factor, term in self._terms)
        self.product_error = sum(errors)

    def truncation(self, block: Vectors) -> Tensor:
        """The terms' errors that are not rounding, (k,)."""
        found = [abs(factor) * term.truncation(block) for factor, term in self._terms]
        return torch.stack(found).sum(dim=0)
