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

from hessrmt.backend.base import Backend, all_finite, require_finite
from hessrmt.errors import ConvergenceError, let_pass
from hessrmt.memory import free_host_memory
from hessrmt.tables import counted

if TYPE_CHECKING:
    from hessrmt.arrays import Levels, Matrix
    from hessrmt.backend.base import Stack

TOGETHER = 3000
"""Largest n of which several matrices are diagonalised at once, a core for each: more need too much
memory, and fill the cores by themselves."""


class CpuBackend(Backend):
    """Main memory and torch's CPU kernels; the oracle for every other backend.

    A batch is solved with a core for each small matrix. torch's number of threads belongs to the
    whole process: it is 1 for that time, and other Python threads that use torch meanwhile notice.
    Eigenvalues of small matrices don't depend on the number of threads, not in the last bit.
    """

    solver = "torch.linalg.eigvalsh (LAPACK syevd, cpu)"

    def __init__(self) -> None:
        os.environ.setdefault("MKL_CBWR", "AUTO")
        self.device = torch.device("cpu")
        self.name = f"cpu ({counted(torch.get_num_threads(), 'thread', 'threads')})"

    def free_memory(self) -> int:
        """See :class:`.Backend`; :func:`.memory.free_host_memory`."""
        return free_host_memory()

    def eigen_bytes(self, n: int, itemsize: int) -> int:
        """See :class:`.Backend`; the matrix and LAPACK's copy of it."""
        return 2 * itemsize * n**2

    def solver_table(self) -> dict[str, str]:
        """See :class:`.Backend`."""
        batches = f"batches, n <= {TOGETHER:,}"
        return {"any n": self.solver, batches: f"{self.solver}, a core for each matrix"}

    def _eigvalsh(self, matrix: Matrix, what: str = "the matrix") -> Levels:
        # the whole matrix first: no temporary; the upper triangle may hold anything
        require_finite(all_finite(matrix) or all_finite(matrix.tril()), what)
        try:
            levels = torch.linalg.eigvalsh(matrix)
        except RuntimeError as error:
            let_pass(error)
            raise ConvergenceError(f"the eigenvalue solver failed: {error}") from error
        return levels.numpy().astype(np.float64)

    def _eigvalsh_batch(self, matrices: Stack) -> list[Levels]:
        names = [f"matrix {number} of the batch" for number in range(len(matrices))]
        small = [i for i, matrix in enumerate(matrices) if len(matrix) <= TOGETHER]
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        one = {"initializer": torch.set_num_threads, "initargs": (1,)}
        try:
            with ThreadPoolExecutor(max(1, min(before, len(small))), **one) as pool:
                solved = pool.map(
                    self._eigvalsh, (matrices[i] for i in small), (names[i] for i in small)
                )
                found = dict(zip(small, solved, strict=True))
        finally:
            torch.set_num_threads(before)
        return [
            found[i] if i in found else self._eigvalsh(matrices[i], name)
            for i, name in enumerate(names)
        ]
