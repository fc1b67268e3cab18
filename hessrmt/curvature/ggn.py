"""The generalised Gauss-Newton matrix G = Jᵀ S J, and its dual Gram matrix.

J is the Jacobian of the outputs in the parameters and S the Hessian of the loss in the outputs
(Schraudolph 2002). With S = L Lᵀ (a loss convex in the outputs), G = (LᵀJ)ᵀ(LᵀJ) has the nonzero
eigenvalues of K = (LᵀJ)(LᵀJ)ᵀ, which has at most one row for each output of each sample: 576 for
a batch of 64 under cross-entropy with ten classes, whatever P is. All other eigenvalues of G are
exactly zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from hessrmt import rng
from hessrmt.backend.select import select
from hessrmt.curvature.gradients import pull, push
from hessrmt.curvature.gram import WORK_BYTES, gram_by_samples, gram_of_whole, saved_for_backward
from hessrmt.curvature.hessian import Tick, assemble, make_symmetric, torch_dtype
from hessrmt.curvature.plan import dense_block, gib, require_dense, usable_memory
from hessrmt.curvature.products import ggn_product
from hessrmt.curvature.roots import curved, root_of_loss_curvature
from hessrmt.curvature.taps import samples_are_apart
from hessrmt.errors import DeviceError, ProblemError
from hessrmt.problems.problem import ordinary_mode

if TYPE_CHECKING:
    from jaxtyping import Float

    from hessrmt.arrays import Matrix
    from hessrmt.backend.base import Backend
    from hessrmt.curvature.roots import Root
    from hessrmt.problems.problem import Problem

_AGREEMENT = 10
"""Multiple of √P·ε·‖G‖₂ up to which two differentiations may differ along a unit vector."""

_SHARES = 8
"""Working memories held at once: rows, what is saved for backward, products, and room."""


@dataclass(frozen=True)
class SmallestGgn:
    """A matrix with the nonzero eigenvalues of G.

    Attributes:
        matrix: (n, n) symmetric, n <= P; the spectrum of G is its spectrum and P - n zeros.
        rounding: What forming the matrix may have moved an eigenvalue by, in their units.
        residual: ‖G v - what the matrix says of G v‖ for a random unit vector v in the range of G;
            NaN if torch cannot differentiate the network in both directions.
    """

    matrix: Matrix
    rounding: float
    residual: float


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
    return _dense(local, backend, None).cpu().numpy()


def smallest_ggn(problem: Problem, backend: Backend, tick: Tick | None = None) -> SmallestGgn:
    """A matrix with the nonzero eigenvalues of G: the dual Gram matrix if it is smaller, else G.

    Args:
        problem: In its final precision and place, already evaluated once.
        backend: Where the work is done.
        tick: Called with phase, steps done and steps in all.

    Returns:
        The matrix and what is known of its errors. Raises DeviceError if even the smaller matrix
        does not fit, NonFiniteError if it is not finite.
    """
    with torch.no_grad():
        outputs = problem.outputs(problem.theta)
    if isinstance(outputs, Tensor) and outputs.numel() < problem.dimension:
        plan = _require_dual(problem, outputs, backend)
        root = root_of_loss_curvature(problem, outputs)
        if root is not None:
            return _dual(problem, outputs, root, plan, backend, tick)
        _require_dense_saddle(problem, backend)
    return SmallestGgn(_dense(problem, backend, tick), 0.0, float("nan"))


def require_ggn(problem: Problem, backend: Backend) -> None:
    """Refuse, before the main work, a Gauss-Newton spectrum that cannot fit in memory.

    Args:
        problem: In its final precision and place.
        backend: Where the work is to be done.
    """
    with torch.no_grad():
        outputs = problem.outputs(problem.theta)
    if isinstance(outputs, Tensor) and outputs.numel() < problem.dimension:
        _require_dual(problem, outputs, backend)
    else:
        require_dense(problem, backend)


def require_ggn_agreement(residual: float, norm: float, size: int, dtype: str) -> float:
    """Refuse a matrix that does not act as two automatic differentiations do.

    Args:
        residual: From :func:`smallest_ggn`.
        norm: ‖G‖₂.
        size: P.
        dtype: Precision of the matrix.

    Returns:
        The residual relative to ‖G‖₂; NaN if there is none.

    Raises:
        ProblemError: If it exceeds what rounding explains, 10 √P ε.
    """
    allowed = _AGREEMENT * size**0.5 * float(np.finfo(dtype).eps)
    if residual > allowed * norm:
        raise ProblemError(
            f"the Gram matrix does not act as the Gauss-Newton matrix: along a random unit vector "
            f"they differ by {residual:.3g}, rounding explains {allowed * norm:.3g}. No level is "
            "reported. Either the network mixes the samples of a batch where a trial did not show "
            "it, or torch differentiates one of its operations wrongly"
        )
    return residual / norm if norm else residual


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


def _dense(problem: Problem, backend: Backend, tick: Tick | None) -> Matrix:
    block = dense_block(problem, backend)
    return assemble(ggn_product(problem), problem.theta, block, backend, tick)


def _dual(
    problem: Problem,
    outputs: Tensor,
    root: Root,
    plan: _Plan,
    backend: Backend,
    tick: Tick | None,
) -> SmallestGgn:
    report = partial(tick, "matrix") if tick else None
    samples = problem.samples
    if not plan.apart:
        gram = gram_of_whole(problem, root.dense(), plan.work, report)
        rounding = rounding_of_gram(gram, problem.dimension)
    elif root.rows is not None and root.keep is not None:
        gram = gram_by_samples(problem, root.rows, plan.saved, plan.work, report)
        kept = root.keep.reshape(-1)
        gram = gram if bool(kept.all()) else gram[kept][:, kept]
        rounding = rounding_of_gram(gram, problem.dimension)
    else:  # the loss couples samples but the network does not: Lᵀ(J Jᵀ)L
        each = outputs.numel() // samples
        unit = torch.eye(each, dtype=outputs.dtype, device=outputs.device)
        units = unit[:, None].expand(each, samples, each)
        inner = gram_by_samples(problem, units, plan.saved, plan.work, report)
        rounding = root.norm * rounding_of_gram(inner, problem.dimension)
        order = torch.arange(len(inner), device=inner.device).view(each, samples).T.reshape(-1)
        lower = root.dense()
        gram = lower @ inner[order][:, order] @ lower.T
    make_symmetric(gram, backend)
    chunk = max(1, plan.work // plan.saved) if plan.apart else samples
    return SmallestGgn(gram, rounding, _residual(problem, outputs, root, gram, chunk))


def _residual(problem: Problem, outputs: Tensor, root: Root, gram: Matrix, chunk: int) -> float:
    """‖G v - Mᵀ K u‖ for v = Mᵀu of norm 1, G v by two automatic differentiations.

    M = LᵀJ gives G v = MᵀM Mᵀu = Mᵀ K u. No code is shared with the way K was built.

    Returns:
        The norm; NaN if torch cannot differentiate the network in both directions.
    """
    generator = rng.torch_generator(0, "agreement")
    u = torch.randn(len(gram), generator=generator, dtype=torch.float64).to(gram)
    lower = root.dense()
    v = pull(problem, (u @ lower).view(outputs.shape), chunk)
    norm = float(v.norm())
    if norm == 0:
        return 0.0
    u, v = u / norm, v / norm
    tangent = push(problem, v, chunk)
    if tangent is None:
        return float("nan")
    missing = curved(problem, outputs, tangent) - ((gram @ u) @ lower).view(outputs.shape)
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


def _require_dual(problem: Problem, outputs: Tensor, backend: Backend) -> _Plan:
    """How K is to be formed; refuses if there is not enough memory."""
    itemsize, count = problem.dtype.itemsize, outputs.numel()
    apart = samples_are_apart(problem, outputs)
    saved = saved_for_backward(problem.part(slice(0, 1)) if apart else problem)
    fixed = 2 * itemsize * (count**2 + problem.dimension) + backend.eigen_bytes(count, itemsize)
    usable = usable_memory(backend)
    if fixed + _SHARES * saved > usable:
        raise DeviceError(
            f"the Gauss-Newton Gram matrix ({count:,} x {count:,}), the eigenvalue solver and the "
            f"derivatives of {'one sample' if apart else 'the batch'} need "
            f"{gib(fixed + _SHARES * saved)} and {backend.name} has {gib(usable)} free; take a "
            "smaller batch, or a device with more memory"
        )
    work = WORK_BYTES
    while _SHARES * work > usable - fixed and work > 1:
        work //= 2
    return _Plan(apart, saved, work)


def _require_dense_saddle(problem: Problem, backend: Backend) -> None:
    try:
        require_dense(problem, backend)
    except DeviceError as error:
        raise DeviceError(
            f"the loss {problem.loss_name!r} is not convex in the outputs, so that only the dense "
            f"Gauss-Newton matrix has its spectrum: {error}"
        ) from error
