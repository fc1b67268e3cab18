"""The CPU: torch's LAPACK (MKL where torch ships it), in all the threads torch is given.

MKL's threaded eigensolver gives other last bits from call to call unless ``MKL_CBWR`` is set before
its first use in the process; with ``AUTO`` it repeats itself at no cost (measured).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import torch

from hessrmt.backend.memory import free_host_memory
from hessrmt.errors import ConvergenceError

if TYPE_CHECKING:
    from hessrmt.arrays import Levels, Matrix

_TILE = 512


class CpuBackend:
    """Main memory and torch's CPU kernels; the oracle for every other backend."""

    solver = "torch.linalg.eigvalsh (LAPACK syevd, cpu)"

    def __init__(self) -> None:
        os.environ.setdefault("MKL_CBWR", "AUTO")
        self.device = torch.device("cpu")
        self.name = f"cpu ({torch.get_num_threads()} threads)"

    def free_memory(self) -> int:
        """Bytes that can be allocated now (see :mod:`hessrmt.backend.memory`).

        Returns:
            A number of bytes.
        """
        return free_host_memory()

    def symmetrize_(self, matrix: Matrix) -> float:
        """Replace A by (A + Aᵀ)/2 in place, tile by tile.

        Args:
            matrix: (n, n), overwritten.

        Returns:
            The largest |A_ij - A_ji| before; NaN if any entry is not finite.
        """
        worst = torch.zeros((), dtype=matrix.dtype)
        starts = range(0, matrix.shape[0], _TILE)
        for i in starts:
            for j in starts[: i // _TILE + 1]:
                lower = matrix[i : i + _TILE, j : j + _TILE]
                upper = matrix[j : j + _TILE, i : i + _TILE].T
                # inf - inf and NaN both give NaN, and torch.maximum keeps it
                worst = torch.maximum(worst, (lower - upper).abs().max())
                mean = (lower + upper) / 2
                lower.copy_(mean)
                upper.copy_(mean)
        return float(worst)

    def eigvalsh(self, matrix: Matrix) -> Levels:
        """All eigenvalues of a symmetric matrix by LAPACK's ``syevd``.

        Args:
            matrix: (n, n) symmetric.

        Returns:
            (n,) float64, ascending.

        Raises:
            ConvergenceError: If LAPACK reports a failure.
        """
        try:
            levels = torch.linalg.eigvalsh(matrix)
        except RuntimeError as error:
            raise ConvergenceError(f"the eigenvalue solver failed: {error}") from error
        return levels.numpy().astype(np.float64)
