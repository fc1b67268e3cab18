"""The exact dense Hessian ∇²_θ L of a problem, in blocks of rows.

Source: [B] §2 (Baskerville, Granziol, Keating), H = ∇²_θ (1/|B|) Σ_b ℓ(f(x_b; θ), y_b).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch

from hessrmt.backend.select import select
from hessrmt.curvature.certify import reference, require_agreement
from hessrmt.curvature.memory import dense_block, require_dense
from hessrmt.curvature.products import Product, hessian_product
from hessrmt.errors import NonFiniteError, ProblemError
from hessrmt.problems.problem import ordinary_mode

if TYPE_CHECKING:
    from jaxtyping import Float

    from hessrmt.arrays import Matrix
    from hessrmt.backend.base import Backend
    from hessrmt.problems.problem import Problem

Tick = Callable[[str, int, int], None]
"""Progress: phase, steps done, steps in all."""


@ordinary_mode()
def hessian(
    problem: Problem,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "float64",
) -> Float[np.ndarray, "P P"]:
    """The exact Hessian of the mean loss with respect to the trainable parameters.

    Args:
        problem: Model, loss and batch.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        dtype: ``"float64"`` or ``"float32"``, the precision of the whole computation.

    Returns:
        (P, P) symmetric array of that dtype, parameters in ``model.parameters()`` order.

    Raises:
        ProblemError: If the loss is random, not a scalar or not twice differentiable by torch.
        NonFiniteError: If the loss or an entry is NaN or infinite.
        DeviceError: If the device is not there or the matrix does not fit in its memory.
    """
    backend = select(device)
    local = problem.at(torch_dtype(dtype), backend.device)
    require_dense(local, backend)
    local.evaluate()
    block = dense_block(local, backend)
    known = reference(local)
    matrix = assemble(hessian_product(local), local.theta, block, backend, rounding=known.rounding)
    norm = float(torch.linalg.matrix_norm(matrix))  # Frobenius, no less than the 2-norm
    found = known.beside(matrix.matmul)
    require_agreement(found.residual, norm, local, dtype_name(dtype), found.of_product)
    return matrix.cpu().numpy()


def torch_dtype(name: str | torch.dtype) -> torch.dtype:
    """The torch type of ``"float64"`` or ``"float32"``.

    Args:
        name: One of the two, or the type itself.

    Returns:
        The type.

    Raises:
        ProblemError: For any other name.
    """
    types = {"float64": torch.float64, "float32": torch.float32}
    given = str(name).removeprefix("torch.")
    if given not in types:
        raise ProblemError(f"unknown dtype {name!r}; known are float64 and float32")
    return types[given]


def dtype_name(dtype: str | torch.dtype) -> str:
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
    tick: Tick | None = None,
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
    matrix = torch.empty(size, size, dtype=theta.dtype, device=theta.device)
    for start in range(0, size, block):
        rows = min(block, size - start)
        unit = torch.zeros(rows, size, dtype=theta.dtype, device=theta.device)
        unit[:, start : start + rows].fill_diagonal_(1)
        matrix[start : start + rows] = product(unit).detach()
        if tick:
            tick("matrix", start + rows, size)
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
