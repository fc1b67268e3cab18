"""The CPU: torch's LAPACK (MKL where torch ships it), in all the threads torch is given.

MKL's threaded eigensolver gives other last bits from call to call unless ``MKL_CBWR`` is set before
its first use in the process; with ``AUTO`` it repeats itself at no cost (measured).
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import torch

from hessrmt.backend import reference
from hessrmt.backend.base import (
    Backend,
    all_finite,
    require_finite,
    require_square,
    require_squares,
)
from hessrmt.backend.host import free_host_memory
from hessrmt.errors import ConvergenceError

if TYPE_CHECKING:
    from torch import Tensor

    from hessrmt.arrays import Levels, Matrix
    from hessrmt.backend.base import Stack

_TILE = 512

TOGETHER = 3000
"""Largest n of which several matrices are diagonalised at once, a core for each: more need too much
memory, and fill the cores by themselves."""


class CpuBackend(Backend):
    """Main memory and torch's CPU kernels; the oracle for every other backend."""

    solver = "torch.linalg.eigvalsh (LAPACK syevd, cpu)"

    def __init__(self) -> None:
        os.environ.setdefault("MKL_CBWR", "AUTO")
        self.device = torch.device("cpu")
        self.name = f"cpu ({torch.get_num_threads()} threads)"

    def free_memory(self) -> int:
        """See :class:`.Backend`; :func:`.host.free_host_memory`."""
        return free_host_memory()

    def symmetrize_(self, matrix: Matrix) -> float:
        """See :class:`.Backend`; tile by tile."""
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

    def eigen_bytes(self, n: int, itemsize: int) -> int:
        """See :class:`.Backend`; the matrix and LAPACK's copy of it."""
        return 2 * itemsize * n**2

    def solver_table(self) -> dict[str, str]:
        """See :class:`.Backend`."""
        batches = f"batches, n <= {TOGETHER:,}"
        return {"any n": self.solver, batches: f"{self.solver}, a core for each matrix"}

    def eigvalsh(self, matrix: Matrix) -> Levels:
        """See :class:`.Backend`; LAPACK's ``syevd``."""
        require_square(matrix)
        _require_finite(matrix)
        return _eigvalsh(matrix)

    def eigvalsh_batch(self, matrices: Stack) -> list[Levels]:
        """See :class:`.Backend`; small matrices a core for each.

        torch's number of threads belongs to the whole process: it is 1 for the duration, and other
        Python threads that use torch meanwhile notice. Eigenvalues of small matrices don't depend
        on the number of threads, and so not on the last bit of it.

        Args:
            matrices: A stack, or matrices of any sizes.

        Returns:
            Eigenvalues of each.
        """
        require_squares(matrices)
        given = list(matrices)
        for number, matrix in enumerate(given):
            _require_finite(matrix, f"matrix {number}")
        small = [i for i, matrix in enumerate(given) if matrix.shape[0] <= TOGETHER]
        found: dict[int, Levels] = {}
        if small:
            before = torch.get_num_threads()
            torch.set_num_threads(1)
            one = {"initializer": torch.set_num_threads, "initargs": (1,)}
            try:
                with ThreadPoolExecutor(min(before, len(small)), **one) as pool:
                    levels = pool.map(_eigvalsh, (given[i] for i in small))
                    found.update(zip(small, levels, strict=True))
            finally:
                torch.set_num_threads(before)
        return [found[i] if i in found else _eigvalsh(given[i]) for i in range(len(given))]

    def _staircase(self, pool: Tensor, queries: Tensor) -> np.ndarray:
        return reference.staircase(pool.numpy(), queries.numpy())

    def _scan(self, values: Tensor, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return reference.powerlaw_scan(values.numpy(), offsets)

    def _goe(self, n: int, count: int, key: int, dtype: torch.dtype, first: int) -> Tensor:
        kind = np.float64 if dtype == torch.float64 else np.float32
        return torch.from_numpy(reference.sample_goe(n, count, key, first=first, dtype=kind))


def _require_finite(matrix: Tensor, what: str = "the matrix") -> None:
    # the whole matrix first: no temporary; the upper triangle may hold anything
    require_finite(all_finite(matrix) or all_finite(matrix.tril()), what)


def _eigvalsh(matrix: Matrix) -> Levels:
    try:
        levels = torch.linalg.eigvalsh(matrix)
    except RuntimeError as error:
        raise ConvergenceError(f"the eigenvalue solver failed: {error}") from error
    return levels.numpy().astype(np.float64)
