"""From free memory to a block size, or to a refusal before any work starts."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from hessrmt.backend.base import SYMMETRIC_COPIES
from hessrmt.errors import DeviceError

if TYPE_CHECKING:
    from torch import Tensor

    from hessrmt.backend.base import Backend
    from hessrmt.problems.problem import Problem

_TANGENT_COPIES = 6
"""Arrays of the size of everything saved for backward that one Hessian-vector product holds."""

_BLOCK_BYTES = 256 * 2**20
"""Working memory beyond which larger blocks no longer run faster (benchmarks/block_size.py)."""

_MARGIN = 0.95
"""Part of the free memory that is planned with."""

_SINGLE = " --dtype float32 needs half (and certifies fewer levels);"


def require_dense(problem: Problem, backend: Backend) -> None:
    """Refuse, before any work, a dense P x P matrix that cannot fit.

    Args:
        problem: In its final precision and place.
        backend: Where the work is to be done.

    Raises:
        DeviceError: If the matrix and the solver's copy do not fit in the free memory.
    """
    rows_that_fit(problem, backend, per_row=0)


def dense_block(problem: Problem, backend: Backend) -> int:
    """Rows of the dense P x P matrix to compute together.

    Args:
        problem: In its final precision and place; its loss is evaluated once.
        backend: Where the work is done.

    Returns:
        At least 1, at most P; raises DeviceError as :func:`require_dense` does.
    """
    return rows_that_fit(problem, backend, per_row=row_bytes(problem))


def rows_that_fit(problem: Problem, backend: Backend, per_row: int) -> int:
    """Rows in flight beside a dense P x P matrix and the solver's copy of it.

    Args:
        problem: In its final precision and place.
        backend: Where the work is done.
        per_row: Working bytes of one row in flight; 0 if not known yet.

    Returns:
        At least 1, at most P.

    Raises:
        DeviceError: If matrix, copy and one row do not fit.
    """
    size, itemsize = problem.dimension, problem.dtype.itemsize
    usable = usable_memory(backend)
    fixed = SYMMETRIC_COPIES * itemsize * size**2
    if fixed + per_row > usable:
        fits = math.isqrt(max(0, usable - per_row) // (SYMMETRIC_COPIES * itemsize))
        raise DeviceError(
            f"the dense {size:,} x {size:,} matrix and the eigenvalue solver's copy of it need "
            f"{gib(fixed + per_row)} and {backend.name} has {gib(usable)} free; the largest that "
            f"fits here has P = {fits:,}. Otherwise:{_SINGLE if itemsize == 8 else ''} --operator "
            "ggn diagonalises at most (samples x outputs) squared; or take a device with more "
            "memory"
        )
    return block_size(size, per_row, usable - fixed)


def block_size(rows: int, per_row: int, left: int) -> int:
    """Rows to compute together, given the memory left for them.

    Args:
        rows: Rows in all.
        per_row: Working bytes of one row in flight.
        left: Bytes left.

    Returns:
        At least 1, at most ``rows``.
    """
    budget = _BLOCK_BYTES
    while budget > left:  # whole halvings, so that the rounding of a run rarely depends on `left`
        budget //= 2
    return max(1, min(rows, budget // max(1, per_row)))


def usable_memory(backend: Backend) -> int:
    """Bytes of free memory that a plan may use.

    Returns:
        The free memory less a margin.
    """
    return int(_MARGIN * backend.free_memory())


def row_bytes(problem: Problem) -> int:
    """Working bytes of one curvature-vector product under ``vmap``.

    Args:
        problem: In its final precision and place; its loss is evaluated once.

    Returns:
        An estimate from what reverse mode saves in one evaluation of the loss.
    """
    return _TANGENT_COPIES * (saved_bytes(problem) + problem.dtype.itemsize * problem.dimension)


def saved_bytes(problem: Problem) -> int:
    """Memory that reverse mode keeps for one evaluation of the loss.

    Args:
        problem: In its final precision and place.

    Returns:
        Bytes of all distinct tensors saved for backward, parameters and inputs included.
    """
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        seen[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    theta = problem.theta.requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        problem.loss(theta)
    return sum(seen.values())


def gib(size: float) -> str:
    """A number of bytes in words.

    Returns:
        For example ``"3.0 GiB"``.
    """
    return f"{size / 2**30:.1f} GiB"
