"""The generalised Gauss-Newton matrix G = Jᵀ S J, and smaller matrices with its spectrum.

J is the Jacobian of the outputs in the parameters and S the Hessian of the loss in the outputs
(Schraudolph 2002). With S = L Lᵀ (a loss convex in the outputs), G = (LᵀJ)ᵀ(LᵀJ) has the nonzero
eigenvalues of K = (LᵀJ)(LᵀJ)ᵀ, which has at most one row for each output of each sample: 576 for
a batch of 64 under cross-entropy with ten classes, whatever P is. All other eigenvalues of G are
exactly zero. Where S has negative eigenvalues, S = L diag(±1) Lᵀ, they are those of R diag(±1) Rᵀ
with R from the QR factorisation of (LᵀJ)ᵀ.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hessrmt import rng
from hessrmt.backend.select import select
from hessrmt.curvature.certify import Reference, random_direction, require_agreement
from hessrmt.curvature.dense import Tick, assemble, dtype_name, make_symmetric, torch_dtype
from hessrmt.curvature.fidelity import require_jacobian
from hessrmt.curvature.gradients import pull, push
from hessrmt.curvature.gram import WORK_BYTES, gram_by_samples, gram_of_whole, saved_for_backward
from hessrmt.curvature.memory import dense_block, gib, require_dense, usable_memory
from hessrmt.curvature.products import eager_ggn_product, ggn_product
from hessrmt.curvature.roots import curved, root_of_loss_curvature
from hessrmt.curvature.rounding import DIRECTIONS, FEW_DIRECTIONS, directions, rounding_of
from hessrmt.curvature.taps import samples_are_apart
from hessrmt.errors import DeviceError
from hessrmt.problems.outputs import in_one_tensor, softmax_rows
from hessrmt.problems.problem import ordinary_mode

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float

    from hessrmt.arrays import Matrix
    from hessrmt.backend.base import Backend
    from hessrmt.curvature.roots import Root
    from hessrmt.problems.outputs import InOneTensor
    from hessrmt.problems.problem import Problem

_SHARES = 8
"""Working memories held at once: rows, what is saved for backward, products, and room."""

_TRIANGLES = 8
"""Arrays of the size of R held when it is updated, for a loss that is not convex in the outputs:
itself, what waits, all of it as one array, as LAPACK wants it, and room."""


@dataclass(frozen=True)
class SmallestGgn:
    """A matrix with the nonzero eigenvalues of G.

    Attributes:
        matrix: (n, n) symmetric, n <= P; the spectrum of G is its spectrum and P - n zeros.
        rounding: What forming the matrix may have moved an eigenvalue by, in their units.
        residual: ‖G v - what the matrix says of G v‖ for a random unit vector v in the range of G;
            NaN if torch cannot differentiate the network in both directions.
        of_product: How much of the residual may be rounding.
    """

    matrix: Matrix
    rounding: float
    residual: float
    of_product: float


@ordinary_mode()
def ggn(
    problem: Problem,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "float64",
) -> Float[np.ndarray, "P P"]:
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
    local.require_loss_of_outputs_alone()
    packed = in_one_tensor(local)
    require_jacobian(packed, random_direction(local))
    found = _dense(packed, backend, None)
    norm = float(torch.linalg.matrix_norm(found.matrix))  # Frobenius, no less than the 2-norm
    require_agreement(found.residual, norm, local, dtype_name(dtype), found.of_product, "ggn")
    return found.matrix.cpu().numpy()


def smallest_ggn(problem: Problem, backend: Backend, tick: Tick | None = None) -> SmallestGgn:
    """A matrix with the nonzero eigenvalues of G: one of the size of the outputs if smaller, or G.

    Args:
        problem: In its final precision and place, already evaluated once.
        backend: Where the work is done.
        tick: Called with phase, steps done and steps in all.

    Returns:
        The matrix and what is known of its errors. Raises DeviceError if even the smaller matrix
        does not fit, NonFiniteError if it is not finite.
    """
    problem = in_one_tensor(problem)
    require_jacobian(problem, random_direction(problem))
    outputs = problem.here()
    rows, nothing = _rows(problem, outputs), SmallestGgn(outputs.new_zeros(0, 0), 0.0, 0.0, 0.0)
    if rows >= problem.dimension:
        return _dense(problem, backend, tick)
    if not rows:
        return nothing
    plan = _require_dual(problem, outputs, backend)
    root = root_of_loss_curvature(problem, outputs)
    if not root.norm:  # linear in the outputs
        return nothing
    if root.indefinite:
        plan = _require_dual(problem, outputs, backend, _TRIANGLES)
    return _dual(problem, outputs, root, plan, backend, tick)


def require_ggn(problem: Problem, backend: Backend) -> None:
    """Refuse, before the main work, a Gauss-Newton spectrum that cannot fit in memory.

    Args:
        problem: In its final precision and place.
        backend: Where the work is to be done.
    """
    problem = in_one_tensor(problem)
    outputs = problem.here()
    rows = _rows(problem, outputs)
    if rows >= problem.dimension:
        require_dense(problem, backend)
    elif rows:
        _require_dual(problem, outputs, backend)


def rounding_of_gram(gram: Matrix, parameters: int) -> float:
    """What the rounding of K = M Mᵀ may move an eigenvalue by.

    An entry of K is a sum of P products. With independent roundings its error is at most about
    √P ε ‖m_i‖ ‖m_j‖ (Higham and Mary, SIAM J. Sci. Comput. 41, A2815 (2019)); a matrix of
    independent errors of that profile has a 2-norm of at most twice the largest norm of a row
    (Latala, Proc. AMS 133, 1273 (2005)), 2 √P ε max_i ‖m_i‖ ‖M‖_F; Weyl's inequality does the rest.

    Args:
        gram: (n, n).
        parameters: P.

    Returns:
        2 √P ε (max_i K_ii · tr K)^½, in the units of the eigenvalues.
    """
    diagonal = gram.diagonal().double()
    if not len(diagonal):
        return 0.0
    scale = float((diagonal.max() * diagonal.sum()).clamp(min=0).sqrt())
    return 2 * parameters**0.5 * torch.finfo(gram.dtype).eps * scale


def rounding_of_triangle(triangle: Matrix, parameters: int) -> float:
    """What the rounding of R in Mᵀ = QR may move an eigenvalue of a form R C Rᵀ with ‖C‖ = 1 by.

    R belongs to M + δM with ‖δM‖_F of at most about √(Pn) ε ‖M‖_F for independent roundings
    (Connolly and Higham, SIAM J. Matrix Anal. Appl. 44, 1146 (2023)), and ‖R‖₂² ≤ ‖R‖₁ ‖R‖_∞.

    Args:
        triangle: (m, n) with RᵀR = M Mᵀ.
        parameters: P.

    Returns:
        2 √(Pn) ε ‖R‖_F ‖R‖₂, in the units of the eigenvalues.
    """
    if not triangle.numel():
        return 0.0
    norms = [float(torch.linalg.matrix_norm(triangle, ord=kind)) for kind in ("fro", 1, torch.inf)]
    size = (parameters * triangle.shape[1]) ** 0.5 * torch.finfo(triangle.dtype).eps
    return 2 * size * norms[0] * min(norms[0], (norms[1] * norms[2]) ** 0.5)


def _dense(problem: InOneTensor, backend: Backend, tick: Tick | None) -> SmallestGgn:
    """G itself, compared with another way of differentiating along a random unit vector."""
    block = dense_block(problem, backend)
    matrix = assemble(ggn_product(problem), problem.theta, block, backend, tick)
    found = _reference(problem).beside(matrix.matmul)
    return SmallestGgn(matrix, found.rounding, found.residual, found.of_product)


def _reference(problem: InOneTensor, count: int = DIRECTIONS) -> Reference:
    """Products with G by plain differentiation, and their rounding."""
    rows, plain = directions(problem, count), eager_ggn_product(problem)
    products = plain(rows)
    return Reference(rows, products, rounding_of(lambda v: plain(v[None])[0], rows, products))


def _rows(problem: InOneTensor, outputs: Tensor) -> int:
    """Rows of LᵀJ at most."""
    softmax = softmax_rows(problem, outputs)
    if softmax is None:
        return outputs.numel()
    return int(softmax.weights.count_nonzero()) * (softmax.index.shape[1] - 1)


def _dual(
    problem: InOneTensor,
    outputs: Tensor,
    root: Root,
    plan: _Plan,
    backend: Backend,
    tick: Tick | None,
) -> SmallestGgn:
    """A matrix of at most the number of outputs: K = M Mᵀ, or T diag(±1) Tᵀ with Mᵀ = Q T.

    M has the rows l_kᵀJ. Where S has negative eigenvalues K does not do: the eigenvalues of
    K^½ diag(±1) K^½ would lose half the digits.

    Returns:
        The matrix and what is known of its errors.
    """
    report = partial(tick, "matrix") if tick else None
    samples, size, signed = problem.samples, problem.dimension, root.indefinite
    lower, signs = root.dense()
    bound = rounding_of_triangle if signed else rounding_of_gram
    if not plan.apart:
        found = gram_of_whole(problem, lower, plan.work, report, signed)
        rounding = bound(found, size)
    elif root.rows is not None:
        found = gram_by_samples(problem, root.rows, plan.saved, plan.work, report, signed)
        kept = root.signs.reshape(-1) != 0
        if not bool(kept.all()):
            found = found[:, kept] if signed else found[kept][:, kept]
        rounding = bound(found, size)
    else:  # the loss couples samples but the network does not: Lᵀ(J Jᵀ)L, or T = R L
        each = outputs.numel() // samples
        unit = torch.eye(each, dtype=outputs.dtype, device=outputs.device)
        units = unit[:, None].expand(each, samples, each)
        inner = gram_by_samples(problem, units, plan.saved, plan.work, report, signed)
        rounding = root.norm * bound(inner, size)
        order = torch.arange(len(inner), device=inner.device).view(each, samples).T.reshape(-1)
        inner = inner[:, order] if signed else lower @ inner[order][:, order]
        found = inner @ lower.T
    matrix = found
    if signed:
        if len(found) > found.shape[1]:
            found = torch.linalg.qr(found, mode="r").R
        matrix = (found * signs) @ found.T
    make_symmetric(matrix, backend)
    chunk = max(1, plan.work // plan.saved) if plan.apart else samples
    gram = found.T @ found if signed else matrix
    residual = _residual(problem, outputs, (lower, signs), gram, chunk)
    if root.error and not math.isnan(residual):
        rounding += _reference(problem, FEW_DIRECTIONS).rounding
    else:
        norm = float(torch.linalg.matrix_norm(gram)) ** 0.5  # Frobenius, no less than ‖M‖₂
        rounding += 2 * norm * _rounding_of_rows(problem, outputs, lower, chunk)
    return SmallestGgn(matrix, rounding, residual, rounding)


def _rounding_of_rows(problem: InOneTensor, outputs: Tensor, lower: Tensor, chunk: int) -> float:
    """Bound on the error of M = LᵀJ in the 2-norm; that of M Mᵀ is 2 ‖M‖₂ times it."""
    generator = rng.torch_generator(0, "rounding of rows")
    size = FEW_DIRECTIONS, len(lower)
    draws = torch.randn(size, generator=generator, dtype=torch.float64).to(lower)
    rows = draws @ lower

    def pulled(row: Tensor) -> Tensor:
        return pull(problem, row.view(outputs.shape), chunk)

    return rounding_of(pulled, rows, torch.stack([pulled(row) for row in rows]))


def _residual(
    problem: InOneTensor,
    outputs: Tensor,
    root: tuple[Tensor, Tensor],
    gram: Matrix,
    chunk: int,
) -> float:
    """‖G v - Mᵀ diag(±1) K u‖ for v = Mᵀu of norm 1, G v by two automatic differentiations.

    G v = Mᵀ diag(±1) M Mᵀu. No code is shared with the way K = M Mᵀ was built.

    Returns:
        The norm; NaN if torch cannot differentiate the network in both directions.
    """
    lower, signs = root
    generator = rng.torch_generator(0, "agreement")
    u = torch.randn(len(signs), generator=generator, dtype=torch.float64).to(lower)
    v = pull(problem, (u @ lower).view(outputs.shape), chunk)
    norm = float(v.norm())
    if norm == 0:
        return 0.0
    u, v = u / norm, v / norm
    tangent = push(problem, v, chunk)
    if tangent is None:
        return float("nan")
    expected = ((signs * (gram @ u)) @ lower).view(outputs.shape)
    missing = curved(problem, outputs, tangent) - expected
    return float(pull(problem, missing, chunk).norm())


@dataclass(frozen=True)
class _Plan:
    """How K is to be formed.

    Attributes:
        apart: Whether parts of the batch can be run alone.
        saved: Bytes that reverse mode keeps for one part: a sample, or the whole batch.
        work: Bytes of working memory beside K.
    """

    apart: bool
    saved: int
    work: int


def _require_dual(
    problem: InOneTensor, outputs: Tensor, backend: Backend, arrays: int = 2
) -> _Plan:
    """How K or R is to be formed; refuses if there is not enough memory."""
    itemsize, count = problem.dtype.itemsize, outputs.numel()
    apart = samples_are_apart(problem, outputs)
    saved = saved_for_backward(problem.part(slice(0, 1)) if apart else problem)
    fixed = itemsize * (arrays * count**2 + 2 * problem.dimension) + backend.eigen_bytes(
        count, itemsize
    )
    usable = usable_memory(backend)
    if fixed + _SHARES * saved > usable:
        raise DeviceError(
            f"{'' if arrays == 2 else f'{problem.loss_name!r} is not convex in the outputs: '}"
            f"the Gauss-Newton Gram matrix ({count:,} x {count:,}), the eigenvalue solver and the "
            f"derivatives of {'one sample' if apart else 'the batch'} need "
            f"{gib(fixed + _SHARES * saved)} and {backend.name} has {gib(usable)} free; take a "
            "smaller batch, or a device with more memory"
        )
    work = WORK_BYTES
    while _SHARES * work > usable - fixed and work > 1:
        work //= 2
    return _Plan(apart, saved, work)
