"""From free memory to a block size, or to a refusal before any work starts."""

from __future__ import annotations

import bisect
import math
from typing import TYPE_CHECKING

import torch

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
    """
    size = problem.dimension
    require(backend.eigen_bytes(size, problem.dtype.itemsize), size, problem, backend)


def dense_block(problem: Problem, backend: Backend) -> int:
    """Rows of a dense P x P matrix to compute together.

    Args:
        problem: In its final precision and place; its loss is evaluated once.
        backend: Where the work is done.

    Returns:
        At least 1, at most P; raises DeviceError if not even one row fits.
    """
    size = problem.dimension
    fixed = backend.eigen_bytes(size, problem.dtype.itemsize)
    return rows_beside(fixed, row_bytes(problem), size, backend)


def require(fixed: int, size: int, problem: Problem, backend: Backend) -> None:
    """Refuse an eigenvalue problem whose matrices cannot fit.

    Args:
        fixed: Bytes of all matrices at the fullest moment.
        size: Dimension n of the matrix to be diagonalised.
        problem: In its final precision and place.
        backend: Where the work is to be done.

    Raises:
        DeviceError: If they do not fit in the free memory.
    """
    usable, itemsize = usable_memory(backend), problem.dtype.itemsize
    if fixed > usable:
        # at least the matrix itself must fit
        sizes = range(math.isqrt(max(0, usable) // itemsize) + 1)
        fits = max(
            0,
            bisect.bisect_right(sizes, usable, key=lambda n: backend.eigen_bytes(n, itemsize)) - 1,
        )
        raise DeviceError(
            f"the dense {size:,} x {size:,} matrix and the eigenvalue solver's workspace need "
            f"{gib(fixed)} and {backend.name} has {gib(usable)} free; the largest that fits here "
            f"has {fits:,} rows. Otherwise:{_SINGLE if itemsize == 8 else ''} --operator ggn "
            "diagonalises at most (samples x outputs) squared; or take a smaller batch, or a "
            "device with more memory"
        )


def rows_beside(fixed: int, per_row: int, rows: int, backend: Backend) -> int:
    """Rows to compute together beside matrices of a given size.

    Args:
        fixed: Bytes of the matrices.
        per_row: Working bytes of one row in flight.
        rows: Rows in all.
        backend: Where the work is done.

    Returns:
        At least 1, at most ``rows``.

    Raises:
        DeviceError: If not even one row fits.
    """
    left = usable_memory(backend) - fixed
    if per_row > left:
        raise DeviceError(
            f"one row of the Hessian takes {gib(per_row)} of working memory beside {gib(fixed)} "
            f"of matrices, and {backend.name} has {gib(usable_memory(backend))} free; take a "
            "smaller batch, or a device with more memory"
        )
    return block_size(rows, per_row, left)


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


def row_bytes(problem: Problem, saved: int | None = None) -> int:
    """Working bytes of one curvature-vector product under ``vmap``.

    Args:
        problem: In its final precision and place; its loss is evaluated once.
        saved: :func:`saved_bytes`, if known.

    Returns:
        An estimate from what reverse mode saves in one evaluation of the loss.
    """
    saved = saved_bytes(problem) if saved is None else saved
    return _TANGENT_COPIES * (saved + problem.dtype.itemsize * problem.dimension)


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
