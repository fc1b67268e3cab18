"""Eigenvalues on one GPU: which route, how much memory, and what if a route fails."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from hessrmt.backend import solvers
from hessrmt.backend.cuda_kernels import KernelError
from hessrmt.backend.twostage import two_stage_eigenvalues
from hessrmt.errors import ConfigError, ConvergenceError, DeviceError, NonFiniteError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from hessrmt.arrays import Levels, Matrix
    from hessrmt.backend.cuda_kernels import Kernels

TWO_STAGE = "two-stage (band, bulge chase, Sturm bisection; csrc, cuda)"
_MIRRORED = 1024
_COPIED = 2**30
"""Bytes of small matrices that are copied into one stack at a time."""


class _Owner(Protocol):
    """What the backend lends; ``solver`` is the route of its last matrix in words."""

    name: str
    solver: str
    kernels: Kernels | None

    def free_memory(self) -> int: ...
    def warn_once(self, what: str, reason: object) -> None: ...


class CudaEigen:
    """The eigenvalue verbs of :class:`~hessrmt.backend.cuda.CudaBackend`."""

    def __init__(self, owner: _Owner, policy: solvers.Policy) -> None:
        self._owner = owner
        self._policy: solvers.Policy = policy

    def table(self) -> dict[str, str]:
        """See :meth:`.cuda.CudaBackend.solver_table`."""
        kernels = self._owner.kernels is not None
        return solvers.table(self._policy, self._library_words(), TWO_STAGE, kernels=kernels)

    def bytes(self, n: int, itemsize: int) -> int:
        """See :meth:`.cuda.CudaBackend.eigen_bytes`."""
        route = solvers.route(self._policy, n, "float64" if itemsize == 8 else "float32")
        if self._owner.kernels is None:
            route = "library"
        return sum(solvers.plan(route, n, itemsize))

    def eigvalsh(self, matrix: Matrix) -> Levels:
        """See :meth:`.cuda.CudaBackend.eigvalsh`.

        The two-stage solver works in place. Where memory allows, a copy of the matrix is kept on
        the device so that the library can take over if a kernel fails; where not, that failure is
        an error.

        Args:
            matrix: (n, n); overwritten.

        Returns:
            (n,) float64, ascending.

        Raises:
            ConfigError: If it is not a square matrix of float64 or float32.
            NonFiniteError: If an entry of the lower triangle is NaN or infinite.
        """
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise ConfigError(f"the matrix has shape {tuple(matrix.shape)}; give (n, n)")
        dtype, n = _dtype(matrix), matrix.shape[0]
        if n == 0:
            return np.empty(0)
        matrix = matrix.detach().contiguous()
        kernels, route = self._owner.kernels, solvers.route(self._policy, n, dtype)
        if route == "two-stage" and (reason := self._obstacle(matrix.dtype)):
            self._owner.warn_once("two-stage", reason)
            route = "library"
        free, itemsize = self._owner.free_memory(), matrix.element_size()
        solvers.require_memory(route, n, itemsize, free, self._owner.name)
        _mirror_(matrix)
        if not np.isfinite([float(matrix.min()), float(matrix.max())]).all():
            raise NonFiniteError(
                "the matrix has entries that are NaN or infinite, so it has no eigenvalues; look "
                "for an overflow in what it was computed from, e.g. with float64, not float32"
            )
        if kernels is not None and route == "two-stage":
            levels = self._two_stage(matrix, kernels, free)
            if levels is not None:
                return levels
        return self._library(matrix)

    def _obstacle(self, dtype: torch.dtype) -> str:
        """Why the two-stage solver can't be taken; empty if it can. Its kernels are compiled."""
        if self._owner.kernels is None:
            return "CuPy is not installed"
        if dtype == torch.float32 and _coarse_products():
            return (
                "torch is set to compute float32 products in TF32, which stage 1 would inherit; "
                'set torch.set_float32_matmul_precision("highest")'
            )
        try:
            self._owner.kernels.compile_two_stage(dtype)
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
        try:
            levels = two_stage_eigenvalues(
                matrix,
                torch,
                b,
                outer=solvers.collected(b),
                chase=kernels.chase,
                tridiagonal=kernels.tridiagonal,
            )
        except (MemoryError, torch.cuda.OutOfMemoryError) as error:
            message = _out_of_memory("two-stage", n, itemsize, free, self._owner.name)
            raise DeviceError(message) from error
        except (KernelError, ConvergenceError, RuntimeError) as error:
            if copy is None:
                raise ConvergenceError(
                    f"the two-stage eigenvalue solver failed ({error}), and {self._owner.name} has "
                    "no room for the copy of the matrix that the library would need to take over; "
                    f"compute the matrix again with {solvers.VARIABLE}=library"
                ) from error
            self._owner.warn_once("two-stage", error)
            matrix.copy_(copy)
            return None
        self._owner.solver = TWO_STAGE
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
        kernels, n = self._owner.kernels, matrix.shape[0]
        try:
            if kernels is not None:
                levels = kernels.library_eigvalsh(matrix)
            else:
                levels = torch.linalg.eigvalsh(matrix).cpu().numpy()
        except (MemoryError, torch.cuda.OutOfMemoryError) as error:
            free, itemsize = self._owner.free_memory(), matrix.element_size()
            message = _out_of_memory("library", n, itemsize, free, self._owner.name)
            raise DeviceError(message) from error
        except (RuntimeError, np.linalg.LinAlgError) as error:
            hint = ""
            if kernels is None and n * n > solvers.LIBRARY_NUMBERS:
                most = math.isqrt(solvers.LIBRARY_NUMBERS)
                hint = f"; torch's solver may refuse n > {most:,} on a GPU: install CuPy"
            raise ConvergenceError(f"the eigenvalue solver failed: {error}{hint}") from error
        self._owner.solver = self._library_words()
        return _finite(levels)

    def _library_words(self) -> str:
        library = "cupy" if self._owner.kernels is not None else "torch"
        return f"{library}.linalg.eigvalsh (cuSOLVER, cuda)"

    # Batches

    def eigvalsh_batch(self, matrices: Tensor | Sequence[Matrix]) -> list[Levels]:
        """See :meth:`.cuda.CudaBackend.eigvalsh_batch`.

        Args:
            matrices: (batch, n, n) or matrices of any sizes.

        Returns:
            Eigenvalues of each, in the order given.

        Raises:
            ConfigError: If one is not a square matrix.
        """
        if isinstance(matrices, torch.Tensor) and matrices.ndim != 3:
            raise ConfigError(f"a stack of shape {tuple(matrices.shape)}; give (batch, n, n)")
        results: list[Any] = [None] * len(matrices)
        groups: dict[tuple[int, torch.dtype], list[int]] = {}
        for i, matrix in enumerate(matrices):
            if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
                raise ConfigError(
                    f"matrix {i} of the batch has shape {tuple(matrix.shape)}; give (n, n) matrices"
                )
            _dtype(matrix, f"matrix {i}")
            groups.setdefault((matrix.shape[0], matrix.dtype), []).append(i)
        for (n, dtype), members in groups.items():
            if n == 0 or n > self._together(dtype.itemsize):
                for i in members:
                    results[i] = self.eigvalsh(matrices[i])
                continue
            most = max(1, min(_COPIED, self._owner.free_memory() // 4) // (n * n * dtype.itemsize))
            if isinstance(matrices, torch.Tensor) and matrices.stride(2) == 1:
                most = len(members)  # read where it lies
            for begin in range(0, len(members), most):
                part = members[begin : begin + most]
                if len(part) == len(matrices) and isinstance(matrices, torch.Tensor):
                    stack = matrices.detach()
                else:
                    stack = torch.stack([matrices[i].detach() for i in part])
                stack = stack if stack.stride(2) == 1 else stack.contiguous()
                for i, levels in zip(part, self._small(stack, part), strict=True):
                    results[i] = levels
        return results

    def _together(self, itemsize: int) -> int:
        """Largest n that is solved in a stack."""
        kernels = self._owner.kernels
        if kernels is None or self._policy == "library":
            return solvers.SMALL_LIMIT  # by torch, whose call costs more than so small a matrix
        return kernels.small_limit(itemsize)

    def _small(self, stack: Tensor, numbers: Sequence[int]) -> list[Levels]:
        """Small matrices of one size, which have these numbers in the batch."""
        kernels = self._owner.kernels
        if kernels is None or self._policy == "library":
            return self._stack_by_torch(stack, numbers)
        try:
            found, info = kernels.small(stack)
        except KernelError as error:
            self._owner.warn_once("batched_small", error)
            return self._stack_by_torch(stack, numbers)
        if np.any(info == -1):
            raise _not_finite(numbers[int(np.argmax(info == -1))])
        if failed := np.flatnonzero(info).tolist():
            self._owner.warn_once(
                "batched_small", f"an eigenvalue was not found in {len(failed)} matrices"
            )
            again = self._stack_by_torch(stack[failed], [numbers[i] for i in failed])
            for i, levels in zip(failed, again, strict=True):
                found[i] = levels
        return list(found)

    def _stack_by_torch(self, stack: Tensor, numbers: Sequence[int]) -> list[Levels]:
        results: list[Levels] = []
        most = max(1, solvers.LIBRARY_NUMBERS // stack[0].numel())
        for begin in range(0, len(stack), most):
            part = torch.tril(stack[begin : begin + most])
            finite = torch.isfinite(part).flatten(1).all(dim=1).cpu().numpy()
            if not finite.all():
                raise _not_finite(numbers[begin + int(np.argmin(finite))])
            try:
                levels = torch.linalg.eigvalsh(part).cpu().numpy()
            except RuntimeError as error:
                raise ConvergenceError(f"the eigenvalue solver failed: {error}") from error
            results += list(_finite(levels))
        return results


def _dtype(matrix: Tensor, what: str = "the matrix") -> str:
    """The type's name.

    Args:
        matrix: Any tensor.
        what: Its name in the error.

    Returns:
        ``"float64"`` or ``"float32"``.

    Raises:
        ConfigError: If it is another.
    """
    kind = str(matrix.dtype).removeprefix("torch.")
    if kind not in solvers.TWO_STAGE_FROM:
        raise ConfigError(f"{what} is of {matrix.dtype}; give float64 or float32")
    return kind


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
    """The library's result in float64.

    Args:
        levels: As it came.

    Returns:
        The same numbers.

    Raises:
        ConvergenceError: If one is not finite.
    """
    if not np.all(np.isfinite(levels)):
        raise ConvergenceError(
            "the eigenvalue solver gave eigenvalues that are not finite though every entry of the "
            "matrix is; try a smaller scale"
        )
    return levels.astype(np.float64)


def _not_finite(number: int) -> NonFiniteError:
    return NonFiniteError(
        f"matrix {number} of the batch has entries that are NaN or infinite, so it has no "
        "eigenvalues; look for an overflow in what it was computed from"
    )


def _out_of_memory(route: solvers.Route, n: int, itemsize: int, free: int, name: str) -> str:
    matrix, workspace = solvers.plan(route, n, itemsize)
    return (
        f"the {route} eigenvalue solver ran out of memory on {name}: a {n:,} x {n:,} matrix was "
        f"planned with {workspace:,} bytes beside its own {matrix:,}, and {free:,} were free; take "
        "a smaller problem, or a device with more memory"
    )
