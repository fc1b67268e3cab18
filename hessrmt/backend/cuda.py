"""One NVIDIA GPU: this package's kernels where CuPy is installed, torch otherwise."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from hessrmt.backend import reference, solvers
from hessrmt.backend.base import Backend, require_finite, require_square, require_squares
from hessrmt.backend.cuda_kernels import KernelError, Kernels, import_kernels
from hessrmt.backend.twostage import two_stage_eigenvalues
from hessrmt.errors import ConvergenceError, DeviceError

if TYPE_CHECKING:
    from torch import Tensor

    from hessrmt.arrays import Levels, Matrix
    from hessrmt.backend.base import Stack

_Result = TypeVar("_Result")

TWO_STAGE = "two-stage (band, bulge chase, Sturm bisection; csrc, cuda)"
_MIRRORED = 1024
_COPIED = 2**30
"""Bytes of small matrices that are copied into one stack at a time."""

_OUT_OF_MEMORY = (MemoryError, torch.cuda.OutOfMemoryError)


class CudaBackend(Backend):
    """One CUDA device.

    Without CuPy, or where a kernel fails, another route is taken and, in the second case, a warning
    given: torch, or the CPU twin for what torch does not have.

    Attributes:
        kernels: This package's kernels; None where CuPy is not installed.
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
        self._policy: solvers.Policy = solvers.checked_policy(solver)
        self.solver = f"{self._policy}, nothing solved yet (cuda)"
        self._warned: set[str] = set()

    def free_memory(self) -> int:
        """See :class:`.Backend`; torch's own cache counts as free."""
        free, _ = torch.cuda.mem_get_info(self.device)
        reserved = torch.cuda.memory_reserved(self.device)
        return free + reserved - torch.cuda.memory_allocated(self.device)

    def eigen_bytes(self, n: int, itemsize: int) -> int:
        """See :class:`.Backend`; by the route that the size takes."""
        route = solvers.route(self._policy, n, "float64" if itemsize == 8 else "float32")
        return sum(solvers.plan("library" if self.kernels is None else route, n, itemsize))

    def solver_table(self) -> dict[str, str]:
        """See :class:`.Backend`."""
        kernels = self.kernels is not None
        return solvers.table(self._policy, self._library_words(), TWO_STAGE, kernels=kernels)

    def symmetrize_(self, matrix: Matrix) -> float:
        """See :class:`.Backend`; csrc/symmetrize.cu, or torch."""

        def by_torch() -> float:
            worst = float((matrix - matrix.T).abs().amax()) if len(matrix) else 0.0
            matrix.add_(matrix.T.clone()).div_(2)
            return worst

        return self._run("symmetrize", lambda kernels: kernels.symmetrize_(matrix), by_torch)

    def eigvalsh(self, matrix: Matrix) -> Levels:
        """See :class:`.Backend`; by the two-stage solver or by cuSOLVER.

        The two-stage solver works in place. Where memory allows, a copy of the matrix is kept on
        the device so that the library can take over if a kernel fails; where not, that failure is
        an error.

        Args:
            matrix: (n, n) symmetric; overwritten.

        Returns:
            (n,) float64, ascending.
        """
        require_square(matrix)
        n = matrix.shape[0]
        if n == 0:
            return np.empty(0)
        matrix = matrix.detach().contiguous()
        route = solvers.route(self._policy, n, str(matrix.dtype).removeprefix("torch."))
        if route == "two-stage" and (reason := self._obstacle(matrix.dtype)):
            self._warn_once("two-stage", reason)
            route = "library"
        free, itemsize = self.free_memory(), matrix.element_size()
        solvers.require_memory(route, n, itemsize, free, self.name)
        _mirror_(matrix)
        require_finite(bool(np.isfinite([float(matrix.min()), float(matrix.max())]).all()))
        if self.kernels is not None and route == "two-stage":
            levels = self._two_stage(matrix, self.kernels, free)
            if levels is not None:
                return levels
        return self._library(matrix)

    def _obstacle(self, dtype: torch.dtype) -> str:
        """Why the two-stage solver can't be taken; empty if it can. Its kernels are compiled."""
        if self.kernels is None:
            return "CuPy is not installed"
        if dtype == torch.float32 and _coarse_products():
            return (
                "torch is set to compute float32 products in TF32, which stage 1 would inherit; "
                'set torch.set_float32_matmul_precision("highest")'
            )
        try:
            self.kernels.compile_two_stage(dtype)
        except KernelError as error:
            return str(error)
        return ""

    def _two_stage(self, matrix: Matrix, kernels: Kernels, free: int) -> Levels | None:
        """By our kernels; None if they failed and the matrix is as it was."""
        n, itemsize = matrix.shape[0], matrix.element_size()
        size, needed = solvers.plan("two-stage", n, itemsize)
        # the library comes after the copy is given back
        most = max(size + needed, solvers.plan("library", n, itemsize).workspace)
        copy = matrix.clone() if most <= free else None
        b = kernels.half_width(itemsize)
        stages = {"chase": kernels.chase, "tridiagonal": kernels.tridiagonal}
        try:
            levels = two_stage_eigenvalues(matrix, torch, b, outer=solvers.collected(b), **stages)
        except _OUT_OF_MEMORY as error:
            raise self._out_of_memory("two-stage", n, itemsize, free) from error
        except (KernelError, ConvergenceError, RuntimeError) as error:
            if copy is None:
                raise ConvergenceError(
                    f"the two-stage eigenvalue solver failed ({error}), and {self.name} has no "
                    "room for the copy of the matrix that the library would need to take over; "
                    f"compute the matrix again with {solvers.VARIABLE}=library"
                ) from error
            self._warn_once("two-stage", error)
            matrix.copy_(copy)
            return None
        self.solver = TWO_STAGE
        return levels

    def _library(self, matrix: Matrix) -> Levels:
        """By cuSOLVER.

        torch 2.12 and later refuse n · lda · batch > 2³¹ - 1, n > 46,340 for one matrix; CuPy's
        ``Xsyevd`` does not.

        Args:
            matrix: (n, n), finite.

        Returns:
            (n,) float64, ascending.

        Raises:
            ConvergenceError: If cuSOLVER reports a failure.
            DeviceError: If the memory was not enough after all.
        """
        n = matrix.shape[0]
        try:
            if self.kernels is not None:
                levels = self.kernels.library_eigvalsh(matrix)
            else:
                levels = torch.linalg.eigvalsh(matrix).cpu().numpy()
        except _OUT_OF_MEMORY as error:
            itemsize, free = matrix.element_size(), self.free_memory()
            raise self._out_of_memory("library", n, itemsize, free) from error
        except (RuntimeError, np.linalg.LinAlgError) as error:
            hint = ""
            if self.kernels is None and n * n > solvers.LIBRARY_NUMBERS:
                most = math.isqrt(solvers.LIBRARY_NUMBERS)
                hint = f"; torch's solver may refuse n > {most:,} on a GPU: install CuPy"
            raise ConvergenceError(f"the eigenvalue solver failed: {error}{hint}") from error
        self.solver = self._library_words()
        return _finite(levels)

    def _library_words(self) -> str:
        library = "cupy" if self.kernels is not None else "torch"
        return f"{library}.linalg.eigvalsh (cuSOLVER, cuda)"

    def _out_of_memory(self, route: solvers.Route, n: int, itemsize: int, free: int) -> DeviceError:
        matrix, workspace = solvers.plan(route, n, itemsize)
        return DeviceError(
            f"the {route} eigenvalue solver ran out of memory on {self.name}: a {n:,} x {n:,} "
            f"matrix was planned with {workspace:,} bytes beside its own {matrix:,}, and {free:,} "
            "were free; take a smaller problem, or a device with more memory"
        )

    def eigvalsh_batch(self, matrices: Stack) -> list[Levels]:
        """See :class:`.Backend`; small ones together, large ones in turn."""
        require_squares(matrices)
        stack = matrices.detach() if isinstance(matrices, torch.Tensor) else None
        results: list[Any] = [None] * len(matrices)
        groups: dict[tuple[int, torch.dtype], list[int]] = {}
        for i, matrix in enumerate(matrices):
            groups.setdefault((matrix.shape[0], matrix.dtype), []).append(i)
        for (n, dtype), members in groups.items():
            if n == 0 or n > self._together(dtype.itemsize):
                for i in members:
                    results[i] = self.eigvalsh(matrices[i])
                continue
            most = max(1, min(_COPIED, self.free_memory() // 4) // (n * n * dtype.itemsize))
            if stack is not None and stack.stride(2) == 1:
                most = len(members)  # read where it lies
            for begin in range(0, len(members), most):
                part = members[begin : begin + most]
                if stack is not None and len(part) == len(stack):
                    together = stack
                else:
                    together = torch.stack([matrices[i].detach() for i in part])
                together = together if together.stride(2) == 1 else together.contiguous()
                for i, levels in zip(part, self._small(together, part), strict=True):
                    results[i] = levels
        return results

    def _together(self, itemsize: int) -> int:
        """Largest n that is solved in a stack."""
        if self.kernels is None or self._policy == "library":
            return solvers.SMALL_LIMIT  # by torch, whose call costs more than so small a matrix
        return self.kernels.small_limit(itemsize)

    def _small(self, stack: Tensor, numbers: Sequence[int]) -> list[Levels]:
        """Small matrices of one size, which have these numbers in the batch."""
        if self.kernels is None or self._policy == "library":
            return _stack_by_torch(stack, numbers)
        try:
            found, info = self.kernels.small(stack)
        except KernelError as error:
            self._warn_once("batched_small", error)
            return _stack_by_torch(stack, numbers)
        bad = info == -1
        require_finite(not bad.any(), f"matrix {numbers[int(np.argmax(bad))]} of the batch")
        if failed := np.flatnonzero(info).tolist():
            reason = f"an eigenvalue was not found in {len(failed)} matrices"
            self._warn_once("batched_small", reason)
            again = _stack_by_torch(stack[failed], [numbers[i] for i in failed])
            for i, levels in zip(failed, again, strict=True):
                found[i] = levels
        return list(found)

    def _staircase(self, pool: Tensor, queries: Tensor) -> np.ndarray:
        return self._run(
            "staircase",
            lambda kernels: kernels.staircase(pool, queries),
            lambda: torch.searchsorted(pool, queries).cpu().numpy(),
        )

    def _scan(self, values: Tensor, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self._run(
            "powerlaw_scan",
            lambda kernels: kernels.powerlaw_scan(values, offsets),
            lambda: reference.powerlaw_scan(values.cpu().numpy(), offsets),
        )

    def _goe(self, n: int, count: int, key: int, dtype: torch.dtype, first: int) -> Tensor:
        each, free = n * n * dtype.itemsize, self.free_memory()
        if count * each > free:
            raise DeviceError(
                f"{count:,} matrices of {n:,} x {n:,} need {count * each:,} bytes and {self.name} "
                f"has {free:,} free, enough for {free // each:,}; draw them in parts (first=...)"
            )

        def by_twin() -> Tensor:
            kind = np.float64 if dtype == torch.float64 else np.float32
            drawn = reference.sample_goe(n, count, key, first=first, dtype=kind)
            return torch.from_numpy(drawn).to(self.device)

        return self._run("goe_fill", lambda k: k.goe(n, count, key, dtype, first), by_twin)

    def _warn_once(self, what: str, reason: object) -> None:
        """Say once for each cause that a kernel or solver is not used."""
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
                self._warn_once(what, error)
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


def _stack_by_torch(stack: Tensor, numbers: Sequence[int]) -> list[Levels]:
    results: list[Levels] = []
    most = max(1, solvers.LIBRARY_NUMBERS // stack[0].numel())
    for begin in range(0, len(stack), most):
        part = torch.tril(stack[begin : begin + most])
        finite = torch.isfinite(part).flatten(1).all(dim=1).cpu().numpy()
        worst = numbers[begin + int(np.argmin(finite))]
        require_finite(bool(finite.all()), f"matrix {worst} of the batch")
        try:
            levels = torch.linalg.eigvalsh(part).cpu().numpy()
        except RuntimeError as error:
            raise ConvergenceError(f"the eigenvalue solver failed: {error}") from error
        results += list(_finite(levels))
    return results


def _coarse_products() -> bool:
    """Whether torch computes float32 products on GPUs with fewer bits (newer and older setting)."""
    matmul = torch.backends.cuda.matmul
    precision = getattr(matmul, "fp32_precision", None)
    if precision is None:
        return bool(matmul.allow_tf32)
    if precision == "none":  # as the setting for everything
        precision = getattr(torch.backends, "fp32_precision", "none")
    return precision not in {"none", "ieee"}


def _mirror_(matrix: Matrix) -> None:
    """Copy the lower triangle to the upper one, without a second matrix."""
    n = matrix.shape[0]
    for i in range(0, n, _MIRRORED):
        rows = slice(i, min(i + _MIRRORED, n))
        matrix[:i, rows] = matrix[rows, :i].T
        square = torch.tril(matrix[rows, rows])
        matrix[rows, rows] = square + torch.tril(square, -1).T


def _finite(levels: np.ndarray) -> np.ndarray:
    """The library's result in float64, all of it finite."""
    if not np.all(np.isfinite(levels)):
        raise ConvergenceError(
            "the eigenvalue solver gave eigenvalues that are not finite though every entry of the "
            "matrix is; try a smaller scale"
        )
    return levels.astype(np.float64)
