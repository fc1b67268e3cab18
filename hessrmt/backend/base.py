"""The backend: a device and the few verbs whose implementation depends on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

    from hessrmt.arrays import Levels, Matrix

SYMMETRIC_COPIES = 2
"""Matrices alive at once while one is diagonalised: the matrix and the solver's own copy."""


class Backend(Protocol):
    """A device plus verbs; the only place where hardware makes a difference.

    Attributes:
        name: The device in words, for files and terminals.
        device: Where tensors live.
        solver: Name of the routine behind :meth:`eigvalsh`.
    """

    name: str
    device: torch.device
    solver: str

    def free_memory(self) -> int:
        """Bytes that can be allocated now."""
        ...

    def symmetrize_(self, matrix: Matrix) -> float:
        """Replace A by (A + Aᵀ)/2 in place.

        Returns:
            The largest |A_ij - A_ji| before; NaN if any entry is not finite.
        """
        ...

    def eigvalsh(self, matrix: Matrix) -> Levels:
        """All eigenvalues of a symmetric matrix, ascending, as float64.

        The lower triangle is read; the matrix may be overwritten.

        Raises:
            ConvergenceError: If the solver fails.
        """
        ...
