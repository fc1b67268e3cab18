"""Dense curvature matrices, built in blocks of rows that fit in the free memory.

``hessian`` is ∇²_θ L of L = (1/|B|) Σ_b ℓ(f(x_b; θ), y_b) (Baskerville, Granziol and Keating 2022,
§2). A matrix that cannot fit is refused before any work starts.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from hessrmt.backend.select import select
from hessrmt.curvature.certify import Comparison, reference, require_agreement
from hessrmt.curvature.products import Product, hessian_product
from hessrmt.errors import DeviceError, NonFiniteError, ProblemError
from hessrmt.problems.differentiation import ordinary_mode
from hessrmt.progress import Tick, silent

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from hessrmt.arrays import Matrix, Vectors
    from hessrmt.backend.base import Backend
    from hessrmt.backend.distributed import DistributedBackend
    from hessrmt.problems.problem import Problem


Device = str | torch.device
Dtype = str | torch.dtype

_TANGENT_COPIES = 6
"""Arrays of the size of everything saved for backward that one Hessian-vector product holds."""

_BLOCK_BYTES = 256 * 2**20
"""Working memory beyond which larger blocks no longer run faster (benchmarks/block_size.py)."""

_MARGIN = 0.95
"""Part of the free memory that is planned with."""

_SINGLE = " dtype float32 needs half (and certifies fewer eigenvalues);"


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
        bytes_of = partial(backend.eigen_bytes, itemsize=itemsize)
        fits = max(0, bisect.bisect_right(sizes, usable, key=bytes_of) - 1)
        # where the fullest moment is that of the solver
        hint = backend.less_memory(size, itemsize, usable) if fixed == bytes_of(size) else ""
        raise DeviceError(
            f"the dense {size:,} x {size:,} matrix and the eigenvalue solver's workspace need "
            f"{gib(fixed)} and {backend.name} has {gib(usable)} free beside a margin of "
            f"{1 - _MARGIN:.0%}; the largest that fits here has {fits:,} rows. "
            f"Otherwise:{hint}{_SINGLE if itemsize == 8 else ''} the Gauss-Newton matrix (operator "
            "ggn) is at most of (samples x outputs) rows; a part of the parameters (only) has a "
            "smaller matrix; the ends of the spectrum (eigsh) and its density need none"
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
    return max(1, min(rows, halved(_BLOCK_BYTES, left) // max(1, per_row)))


def halved(budget: int, left: int) -> int:
    """What fits, by whole halvings, so that the rounding of a run rarely depends on what is left.

    Args:
        budget: Bytes wanted.
        left: Bytes left.

    Returns:
        The budget over a power of two.
    """
    while budget > left:
        budget //= 2
    return budget


def usable_memory(backend: Backend | DistributedBackend) -> int:
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
        For example ``"3.0 GiB"``, or ``"3.0 MiB"`` where that would round to none.
    """
    if size < 0.05 * 2**30:
        return f"{size / 2**20:.1f} MiB"
    return f"{size / 2**30:.1f} GiB"


def unit_vectors(places: Tensor, size: int, like: Tensor) -> Vectors:
    """Vectors along some coordinates.

    Args:
        places: (k,) the coordinates.
        size: n.
        like: Gives precision and place.

    Returns:
        (k, n).
    """
    return torch.nn.functional.one_hot(places, size).to(like)


@ordinary_mode()
def hessian(
    problem: Problem, device: Device = "auto", dtype: Dtype = "float64"
) -> Float[np.ndarray, "P P"]:
    """The exact Hessian of the mean loss with respect to the trainable parameters.

    Args:
        problem: Model, loss and batch.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        dtype: ``"float64"`` or ``"float32"``, the precision of the whole computation.

    Returns:
        (P, P) symmetric array of that dtype, parameters in ``model.parameters()`` order. Raises
        ProblemError if the loss is random, not a scalar or not twice differentiable by torch,
        NonFiniteError if the loss or an entry is NaN or infinite, DeviceError if the device is not
        there or the matrix does not fit in its memory.
    """

    def build(local: Problem, backend: Backend) -> tuple[Matrix, Comparison]:
        block, known = dense_block(local, backend), reference(local)
        product = hessian_product(local)
        matrix = assemble(product, local.theta, block, backend, rounding=known.rounding)
        return matrix, known.beside(matrix.matmul)

    return whole_matrix(problem, device, dtype, "hessian", build)


def whole_matrix(
    problem: Problem,
    device: Device,
    dtype: Dtype,
    operator: str,
    build: Callable[[Problem, Backend], tuple[Matrix, Comparison]],
) -> Float[np.ndarray, "P P"]:
    """A dense matrix, after the checks that it fits and acts as it should.

    Args:
        problem: Model, loss and batch.
        device: Where.
        dtype: ``"float64"`` or ``"float32"``.
        operator: ``"hessian"`` or ``"ggn"``.
        build: Gives the matrix and how far it is from products by other differentiation.

    Returns:
        (P, P).
    """
    backend = select(device)
    local = problem.at(torch_dtype(dtype), backend.device)
    require_dense(local, backend)
    local.evaluate()
    matrix, apart = build(local, backend)
    norm = float(torch.linalg.matrix_norm(matrix))  # Frobenius, no less than the 2-norm
    require_agreement(apart, norm, local, dtype_name(dtype), operator)
    return matrix.cpu().numpy()


def torch_dtype(name: Dtype) -> torch.dtype:
    """The torch type of ``"float64"`` or ``"float32"``.

    Args:
        name: One of the two, or the type itself.

    Returns:
        The type.

    Raises:
        ProblemError: For any other name.
    """
    given = str(name).removeprefix("torch.")
    if given not in {"float64", "float32"}:
        raise ProblemError(f"unknown dtype {name!r}; known are float64 and float32")
    return getattr(torch, given)


def dtype_name(dtype: Dtype) -> str:
    """The name under which a precision is stored.

    Returns:
        ``"float64"`` or ``"float32"``.
    """
    return str(torch_dtype(dtype)).removeprefix("torch.")


def assemble(
    product: Product,
    theta: torch.Tensor,
    block: int,
    backend: Backend,
    tick: Tick = silent,
    rounding: float = 0.0,
) -> Matrix:
    """Dense symmetric matrix from products with unit vectors.

    Args:
        product: Maps (k, P) to (k, P).
        theta: (P,) parameters; fixes dimension, type and place.
        block: Rows computed together.
        backend: Does the symmetrisation.
        tick: Called with phase, rows done and rows in all.
        rounding: As for :func:`make_symmetric`.

    Returns:
        (P, P) symmetric tensor.

    Raises:
        NonFiniteError: If any entry is NaN or infinite.
        ProblemError: If the matrix is not symmetric to half the digits of its type.
    """
    size = theta.numel()
    matrix = theta.new_empty(size, size)
    for start in range(0, size, block):
        stop = min(start + block, size)
        rows = unit_vectors(torch.arange(start, stop, device=theta.device), size, theta)
        matrix[start:stop] = product(rows).detach()
        tick("matrix", stop, size)
    make_symmetric(matrix, backend, rounding)
    return matrix


def make_symmetric(matrix: Matrix, backend: Backend, rounding: float = 0.0) -> None:
    """Average a computed curvature matrix with its transpose, after checking that it may be.

    Args:
        matrix: (n, n), symmetric up to rounding; overwritten.
        backend: Where it lives.
        rounding: What rounding may have moved an entry by, if that is known.

    Raises:
        NonFiniteError: If any entry is NaN or infinite.
        ProblemError: If it is not symmetric to half the digits of its type, nor up to rounding:
            second derivatives do not exist here, or an operation differentiates wrongly.
    """
    asymmetry = backend.symmetrize_(matrix)
    if not math.isfinite(asymmetry):
        raise NonFiniteError("the curvature matrix has NaN or infinite entries")
    scale = float(torch.linalg.matrix_norm(matrix, ord=torch.inf)) if asymmetry else 0.0
    if asymmetry > torch.finfo(matrix.dtype).eps ** 0.5 * scale + 2 * rounding:
        raise ProblemError(
            f"the computed curvature matrix is not symmetric: |H_ij - H_ji| reaches "
            f"{asymmetry:.3g} where the norm is {scale:.3g}. Some operation of the model has a "
            "wrong second derivative in torch, or none at this point; replace it"
        )
