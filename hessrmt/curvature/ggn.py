"""The generalised Gauss-Newton matrix G = Jᵀ S J, and its dual Gram matrix.

J is the Jacobian of the outputs in the parameters and S the Hessian of the loss in the outputs
(Schraudolph 2002). With S = L Lᵀ (a loss convex in the outputs), G = (LᵀJ)ᵀ(LᵀJ) has the nonzero
eigenvalues of K = (LᵀJ)(LᵀJ)ᵀ, which has at most one row for each output of each sample: 640 for
a batch of 64 with ten classes, whatever P is. All other eigenvalues of G are exactly zero.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.func import grad, jvp, vjp, vmap

from hessrmt.backend.select import select
from hessrmt.curvature.hessian import Tick, assemble, make_symmetric, torch_dtype
from hessrmt.curvature.plan import (
    block_size,
    dense_block,
    gib,
    require_dense,
    row_bytes,
    usable_memory,
)
from hessrmt.curvature.products import ggn_product
from hessrmt.errors import DeviceError

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float
    from torch import Tensor

    from hessrmt.arrays import Matrix
    from hessrmt.backend.base import Backend
    from hessrmt.problems.problem import Problem


def ggn(problem: Problem, device: str = "auto", dtype: str = "float64") -> Float[np.ndarray, "P P"]:
    """The exact dense Gauss-Newton matrix Jᵀ S J.

    Args:
        problem: Model, loss and batch.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        dtype: ``"float64"`` or ``"float32"``.

    Returns:
        (P, P) symmetric array of that dtype, parameters in ``model.parameters()`` order.

    Raises:
        ProblemError: If the loss is random, not a scalar or not differentiable by torch.
        NonFiniteError: If the loss or an entry is NaN or infinite.
        DeviceError: If the device is not there or the matrix does not fit in its memory.
    """
    backend = select(device)
    local = problem.at(torch_dtype(dtype), backend.device)
    require_dense(local, backend)
    local.evaluate()
    return _dense(local, backend, None).cpu().numpy()


def smallest_ggn(problem: Problem, backend: Backend, tick: Tick | None = None) -> Matrix:
    """A matrix with the nonzero eigenvalues of G: the dual Gram matrix if it is smaller, else G.

    Args:
        problem: In its final precision and place, already evaluated once.
        backend: Where the work is done.
        tick: Called with phase, rows done and rows in all.

    Returns:
        (n, n) symmetric with n <= P; the spectrum of G is its spectrum and P - n zeros. Raises
        DeviceError if even the smaller matrix does not fit, NonFiniteError if it is not finite.
    """
    with torch.no_grad():
        outputs = problem.outputs(problem.theta)
    if outputs.numel() < problem.dimension:
        root = _root_of_loss_curvature(problem, outputs, backend)
        if root is not None:
            return _gram(problem, root, backend, tick)
    return _dense(problem, backend, tick)


def require_ggn(problem: Problem, backend: Backend) -> None:
    """Refuse, before the main work, a Gauss-Newton spectrum that cannot fit in memory.

    Args:
        problem: In its final precision and place.
        backend: Where the work is to be done.
    """
    with torch.no_grad():
        count = problem.outputs(problem.theta).numel()
    if count < problem.dimension:
        _require_gram(problem, count, 0, backend)
    else:
        require_dense(problem, backend)


def _dense(problem: Problem, backend: Backend, tick: Tick | None) -> Matrix:
    block = dense_block(problem, backend)
    return assemble(ggn_product(problem), problem.theta, block, backend, tick)


def _root_of_loss_curvature(problem: Problem, outputs: Tensor, backend: Backend) -> Tensor | None:
    """Lᵀ of S = L Lᵀ, one row per nonzero eigenvalue of S; None if S has a negative one."""
    flat, count = outputs.reshape(-1), outputs.numel()
    _require_gram(problem, count, 0, backend)
    gradient = grad(lambda f: problem.loss_of_outputs(f.view(outputs.shape)))
    unit = torch.eye(count, dtype=flat.dtype, device=flat.device)
    curvature = vmap(lambda v: jvp(gradient, (flat,), (v,))[1])(unit)
    curvature = (curvature + curvature.T) / 2
    samples = problem.samples
    # diagonalised sample by sample where the loss does not couple samples
    blocks = curvature[None]
    if outputs.shape[0] == samples:
        each = count // samples
        tiled = curvature.view(samples, each, samples, each)
        diagonal = torch.stack([tiled[b, :, b] for b in range(samples)])
        if torch.count_nonzero(curvature) == torch.count_nonzero(diagonal):
            blocks = diagonal
    values, vectors = torch.linalg.eigh(blocks)
    size = blocks.shape[-1]
    tolerance = size * torch.finfo(values.dtype).eps * float(values.abs().max())
    if float(values.min()) < -tolerance:
        return None
    roots = (vectors * values.clamp(min=0).sqrt()[:, None, :]).mT  # rows √w uᵀ of each block
    keep = (values > tolerance).reshape(-1)
    full = torch.zeros(len(blocks), size, len(blocks), size, dtype=flat.dtype, device=flat.device)
    for b, rows in enumerate(roots):
        full[b, :, b] = rows
    return full.view(count, count)[keep]


def _gram(problem: Problem, root: Tensor, backend: Backend, tick: Tick | None) -> Matrix:
    """K = (LᵀJ)(LᵀJ)ᵀ, the rows of LᵀJ by reverse mode in blocks."""
    count = root.shape[0]
    per_row = row_bytes(problem)
    left = _require_gram(problem, count, per_row, backend)
    block = block_size(count, per_row, left)
    outputs, pullback = vjp(problem.outputs, problem.theta)[:2]

    def row(v: Tensor) -> Tensor:
        return pullback(v.view(outputs.shape))[0]

    rows = torch.empty(count, problem.dimension, dtype=root.dtype, device=root.device)
    for start in range(0, count, block):
        chunk = root[start : start + block]
        rows[start : start + block] = vmap(row, randomness="error")(chunk).detach()
        if tick:
            tick("matrix", start + len(chunk), count)
    gram = rows @ rows.T
    make_symmetric(gram, backend)
    return gram


def _require_gram(problem: Problem, count: int, per_row: int, backend: Backend) -> int:
    """Memory left beside LᵀJ, S and K; refuses if there is not enough."""
    itemsize = problem.dtype.itemsize
    fixed = itemsize * (count * problem.dimension + count**2)
    fixed += backend.eigen_bytes(count, itemsize)
    usable = usable_memory(backend)
    if fixed + per_row > usable:
        raise DeviceError(
            f"the Gauss-Newton Gram matrix ({count:,} x {count:,}) and the {count:,} x "
            f"{problem.dimension:,} Jacobian need {gib(fixed + per_row)} and {backend.name} has "
            f"{gib(usable)} free; take a smaller batch, or a device with more memory"
        )
    return usable - fixed
