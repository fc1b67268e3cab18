"""One NVIDIA GPU: this package's kernels where CuPy is installed, torch otherwise."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch

from hessrmt.backend import reference, solvers
from hessrmt.backend.checks import require_ascending, require_draw
from hessrmt.backend.cuda_eigen import CudaEigen
from hessrmt.backend.cuda_kernels import KernelError, Kernels, import_kernels
from hessrmt.errors import ConfigError, DeviceError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jaxtyping import Float, Float64, Int64
    from torch import Tensor

    from hessrmt.arrays import Levels, Matrix

_Result = TypeVar("_Result")


class CudaBackend:
    """One CUDA device.

    Without CuPy, or where a kernel fails, another route is taken and, in the second case, a warning
    given: torch, or the CPU twin for what torch does not have.

    Attributes:
        name: The device in words.
        device: Where tensors live.
        kernels: This package's kernels; None where CuPy is not installed.
        solver: The route that the last :meth:`eigvalsh` took; before the first, the policy.
    """

    def __init__(self, device: torch.device, solver: str = "auto") -> None:
        """Take the device; nothing is compiled yet.

        Args:
            device: ``cuda:i``.
            solver: ``"auto"``, ``"two-stage"`` or ``"library"``: the route of :meth:`eigvalsh`.
        """
        self.device = device
        self.name = f"{device} ({torch.cuda.get_device_name(device)})"
        self.kernels = import_kernels(device)
        policy = solvers.checked_policy(solver)
        self.solver = f"{policy}, nothing solved yet (cuda)"
        self._warned: set[str] = set()
        self._eigen = CudaEigen(self, policy)

    def eigen_bytes(self, n: int, itemsize: int) -> int:
        """Bytes held while an (n, n) matrix is diagonalised, by the route that its size takes.

        Args:
            n: Dimension.
            itemsize: Bytes of a number.

        Returns:
            A number of bytes.
        """
        return self._eigen.bytes(n, itemsize)

    def solver_table(self) -> dict[str, str]:
        """Which solver is taken at which size.

        Returns:
            From a range of sizes to the route in words.
        """
        return self._eigen.table()

    def free_memory(self) -> int:
        """Bytes free on the device, torch's own cache counted as free.

        Returns:
            A number of bytes.
        """
        free, _ = torch.cuda.mem_get_info(self.device)
        reserved = torch.cuda.memory_reserved(self.device)
        return free + reserved - torch.cuda.memory_allocated(self.device)

    def symmetrize_(self, matrix: Matrix) -> float:
        """Replace A by (A + Aᵀ)/2 in place (csrc/symmetrize.cu; torch without CuPy).

        Args:
            matrix: (n, n) contiguous, overwritten.

        Returns:
            The largest |A_ij - A_ji| before; NaN if any entry is not finite.
        """

        def by_torch() -> float:
            worst = float((matrix - matrix.T).abs().amax()) if len(matrix) else 0.0
            matrix.add_(matrix.T.clone()).div_(2)
            return worst

        return self._run("symmetrize", lambda kernels: kernels.symmetrize_(matrix), by_torch)

    def eigvalsh(self, matrix: Matrix) -> Levels:
        """All eigenvalues of a symmetric matrix, by the two-stage solver or by cuSOLVER.

        Args:
            matrix: (n, n) symmetric, float64 or float32; the lower triangle is read, all of it may
                be overwritten.

        Returns:
            (n,) float64, ascending.
        """
        return self._eigen.eigvalsh(matrix)

    def eigvalsh_batch(
        self, matrices: Float[Tensor, "batch n n"] | Sequence[Matrix]
    ) -> list[Levels]:
        """All eigenvalues of many symmetric matrices: small ones together, large ones in turn.

        Args:
            matrices: A stack, or matrices of any sizes; lower triangles are read, all of them may
                be overwritten.

        Returns:
            For each matrix, in the order given, (n,) float64, ascending.
        """
        return self._eigen.eigvalsh_batch(matrices)

    def staircase(
        self, pool: Float64[Tensor, " m"], queries: Float64[Tensor, " n"]
    ) -> Int64[np.ndarray, " n"]:
        """Counting function of a pool of levels: how many are less than each query.

        Args:
            pool: (m,) float64, ascending.
            queries: (n,) float64, ascending.

        Returns:
            (n,) numbers of pooled levels, equal ones not counted.

        Raises:
            ConfigError: If an argument is not of float64.
        """
        for what, values in (("pool", pool), ("queries", queries)):
            require_ascending(values, what)
            if values.dtype != torch.float64:
                raise ConfigError(f"{what}: {values.dtype}; give float64")
        pool, queries = pool.contiguous(), queries.contiguous()
        return self._run(
            "staircase",
            lambda kernels: kernels.staircase(pool, queries),
            lambda: torch.searchsorted(pool, queries).cpu().numpy(),
        )

    def powerlaw_scan(
        self, values: Sequence[Float[Tensor, " n"]]
    ) -> list[tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, " n"]]]:
        """Power-law fits of many samples at every x_min (:func:`.reference.powerlaw_scan`).

        Args:
            values: Each (n_i,) ascending, positive and finite.

        Returns:
            For each sample α and the distance of its staircase at every value as x_min, NaN where
            the tail holds one distinct value.
        """
        for number, layer in enumerate(values):
            require_ascending(layer, f"layer {number}", positive=True)
        if not len(values):
            return []
        together = torch.cat([layer.double() for layer in values])
        offsets = np.cumsum([0, *(len(layer) for layer in values)], dtype=np.int64)
        alpha, distance = self._run(
            "powerlaw_scan",
            lambda kernels: kernels.powerlaw_scan(together, offsets),
            lambda: reference.powerlaw_scan(together.cpu().numpy(), offsets),
        )
        cuts = offsets[1:-1]
        return list(zip(np.split(alpha, cuts), np.split(distance, cuts), strict=True))

    def sample_goe(
        self, n: int, count: int, key: int, dtype: torch.dtype = torch.float64, first: int = 0
    ) -> Float[Tensor, "count n n"]:
        """Draw GOE matrices by counter (:func:`.reference.sample_goe`).

        The CPU draws the same matrices up to the last bits of logarithm and cosine.

        Args:
            n: Dimension.
            count: How many.
            key: 64-bit word of a named stream.
            dtype: float64 or float32.
            first: Number of the first matrix in the key's sequence.

        Returns:
            (count, n, n) on the device, symmetric to the bit.

        Raises:
            DeviceError: If the matrices do not fit in the free memory.
        """
        require_draw(n, count, key, first, dtype)
        needed, free = count * n * n * dtype.itemsize, self.free_memory()
        if needed > free:
            raise DeviceError(
                f"{count:,} matrices of {n:,} x {n:,} need {needed:,} bytes and {self.name} has "
                f"{free:,} free, enough for {free // (n * n * dtype.itemsize):,}; draw them "
                "in parts (first=...)"
            )

        def by_twin() -> Tensor:
            kind = np.float64 if dtype == torch.float64 else np.float32
            drawn = reference.sample_goe(n, count, key, first=first, dtype=kind)
            return torch.from_numpy(drawn).to(self.device)

        return self._run("goe_fill", lambda k: k.goe(n, count, key, dtype, first), by_twin)

    def warn_once(self, what: str, reason: object) -> None:
        """Say once for each cause that a kernel is not used.

        Args:
            what: The kernel or solver.
            reason: Why.
        """
        if what not in self._warned:
            self._warned.add(what)
            warnings.warn(f"{self.name}: {what} not used: {reason}", RuntimeWarning, stacklevel=3)

    def _run(
        self, what: str, ours: Callable[[Kernels], _Result], other: Callable[[], _Result]
    ) -> _Result:
        """The kernel where there is one and it works."""
        if self.kernels is not None:
            try:
                return ours(self.kernels)
            except KernelError as error:
                self.warn_once(what, error)
        return other()


def cuda_backend(device: torch.device, solver: str | None = None) -> CudaBackend:
    """Backend for one CUDA device.

    Args:
        device: ``cuda`` or ``cuda:i``.
        solver: ``"auto"``, ``"two-stage"`` or ``"library"``; by default the environment variable
            ``HESSRMT_SOLVER``, and ``"auto"`` without it.

    Returns:
        The backend.

    Raises:
        DeviceError: If torch sees no CUDA, or no device of that number.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        raise DeviceError(
            f"device {str(device)!r}: torch sees no CUDA device; use --device cpu, or install a "
            "CUDA build of torch and check the driver with nvidia-smi"
        )
    index = device.index or 0
    if index >= count:
        raise DeviceError(f"device {str(device)!r}: there are {count}, numbered from 0")
    solver = solver or os.environ.get(solvers.VARIABLE, "auto")
    return CudaBackend(torch.device("cuda", index), solver)
