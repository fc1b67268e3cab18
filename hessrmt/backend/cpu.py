"""The CPU: torch's LAPACK (MKL where torch ships it), in all the threads torch is given.

MKL's threaded eigensolver gives other last bits from call to call unless ``MKL_CBWR`` is set before
its first use in the process; with ``AUTO`` it repeats itself at no cost (measured).
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch

from hessrmt.backend import reference
from hessrmt.backend.checks import require_ascending, require_draw, require_symmetric
from hessrmt.backend.memory import free_host_memory
from hessrmt.errors import ConfigError, ConvergenceError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from jaxtyping import Float, Float64, Int64
    from torch import Tensor

    from hessrmt.arrays import Levels, Matrix

_TILE = 512

TOGETHER = 3000
"""Largest n of which several matrices are diagonalised at once, a core for each: more need too much
memory, and fill the cores by themselves."""


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

    def eigen_bytes(self, n: int, itemsize: int) -> int:
        """Bytes held while an (n, n) matrix is diagonalised: itself and LAPACK's copy of it.

        Args:
            n: Dimension.
            itemsize: Bytes of a number.

        Returns:
            A number of bytes.
        """
        return 2 * itemsize * n**2

    def solver_table(self) -> dict[str, str]:
        """Which solver is taken at which size.

        Returns:
            From a range of sizes to the route in words.
        """
        return {
            "any n": self.solver,
            f"batches, n <= {TOGETHER:,}": f"{self.solver}, a core for each matrix",
        }

    def eigvalsh(self, matrix: Matrix) -> Levels:
        """All eigenvalues of a symmetric matrix by LAPACK's ``syevd``.

        Args:
            matrix: (n, n) symmetric; the lower triangle is read.

        Returns:
            (n,) float64, ascending.
        """
        require_symmetric(matrix)
        return _eigvalsh(matrix)

    def eigvalsh_batch(
        self, matrices: Float[Tensor, "batch n n"] | Sequence[Matrix]
    ) -> list[Levels]:
        """All eigenvalues of each of several symmetric matrices, small ones a core for each.

        torch's number of threads belongs to the whole process: it is 1 for the duration, and other
        Python threads that use torch meanwhile notice. Eigenvalues of small matrices don't depend
        on the number of threads, and so not on the last bit of it.

        Args:
            matrices: (batch, n, n), or matrices (n_i, n_i) of any sizes; lower triangles are read.

        Returns:
            For each matrix, in the order given, (n_i,) float64, ascending.

        Raises:
            ConfigError: If a tensor is not a stack of matrices.
        """
        if isinstance(matrices, torch.Tensor) and matrices.ndim != 3:
            raise ConfigError(f"a stack of shape {tuple(matrices.shape)}; give (batch, n, n)")
        given = list(matrices)
        for number, matrix in enumerate(given):
            require_symmetric(matrix, f"matrix {number}")
        small = [i for i, matrix in enumerate(given) if matrix.shape[0] <= TOGETHER]
        found: dict[int, Levels] = {}
        if small:
            workers = min(torch.get_num_threads(), len(small))
            with (
                _one_thread(),
                ThreadPoolExecutor(
                    workers, initializer=torch.set_num_threads, initargs=(1,)
                ) as pool,
            ):
                levels = pool.map(_eigvalsh, (given[i] for i in small))
                found.update(zip(small, levels, strict=True))
        return [found[i] if i in found else _eigvalsh(given[i]) for i in range(len(given))]

    def staircase(
        self, pool: Float64[Tensor, " m"], queries: Float64[Tensor, " n"]
    ) -> Int64[np.ndarray, " n"]:
        """Counting function of a pool of levels: how many are less than each query.

        Args:
            pool: (m,) float64, ascending.
            queries: (n,) float64, ascending.

        Returns:
            (n,) int64; equal levels are not counted.

        Raises:
            ConfigError: If an argument is not of float64.
        """
        for what, values in (("pool", pool), ("queries", queries)):
            require_ascending(values, what)
            if values.dtype != torch.float64:
                raise ConfigError(f"{what}: {values.dtype}; give float64")
        return reference.staircase(pool.numpy(), queries.numpy())

    def powerlaw_scan(
        self, values: Sequence[Float[Tensor, " n"]]
    ) -> list[tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, " n"]]]:
        """Power-law fits of many layers at every x_min (:func:`.reference.powerlaw_scan`).

        Args:
            values: For each layer (n_i,) ascending, positive.

        Returns:
            For each layer α and distance of each candidate, NaN where its tail holds fewer than
            two distinct values.
        """
        for number, layer in enumerate(values):
            require_ascending(layer, f"layer {number}", positive=True)
        if not len(values):
            return []
        offsets = np.cumsum([0, *map(len, values)], dtype=np.int64)
        together = np.concatenate([layer.numpy().astype(np.float64) for layer in values])
        alpha, distance = reference.powerlaw_scan(together, offsets)
        cuts = offsets[1:-1]
        return list(zip(np.split(alpha, cuts), np.split(distance, cuts), strict=True))

    def sample_goe(
        self, n: int, count: int, key: int, dtype: torch.dtype = torch.float64, first: int = 0
    ) -> Float[Tensor, "count n n"]:
        """Draw GOE matrices by counter (:func:`.reference.sample_goe`).

        Args:
            n: Dimension.
            count: How many.
            key: 64-bit word of a named stream.
            dtype: float64 or float32.
            first: Number of the first matrix in the key's sequence.

        Returns:
            (count, n, n), symmetric to the bit.
        """
        require_draw(n, count, key, first, dtype)
        kind = np.float64 if dtype == torch.float64 else np.float32
        return torch.from_numpy(reference.sample_goe(n, count, key, first=first, dtype=kind))


def _eigvalsh(matrix: Matrix) -> Levels:
    try:
        levels = torch.linalg.eigvalsh(matrix)
    except RuntimeError as error:
        raise ConvergenceError(f"the eigenvalue solver failed: {error}") from error
    return levels.numpy().astype(np.float64)


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread inside every call of torch and its LAPACK."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
