"""The generalised Gauss-Newton matrix G = Jᵀ S J, and smaller matrices with its spectrum.

J is the Jacobian of the outputs in the parameters and S the Hessian of the loss in the outputs
(Schraudolph 2002). With S = L Lᵀ (a loss convex in the outputs), G = (LᵀJ)ᵀ(LᵀJ) has the nonzero
eigenvalues of K = (LᵀJ)(LᵀJ)ᵀ, which has at most one row for each output of each sample: 576 for
a batch of 64 under cross-entropy with ten classes, whatever P is. All other eigenvalues of G are
exactly zero. Where S has negative eigenvalues, S = L diag(±1) Lᵀ, they are those of R diag(±1) Rᵀ
with R from the QR factorisation of (LᵀJ)ᵀ.

The Hessian of cross-entropy in the outputs, w (diag p - p pᵀ) for each row of scores, is taken in
closed form as w A Aᵀ with columns √p_c (e_c - p), so that samples of which the network is certain
keep all their digits. That of any other loss is differentiated twice in reverse, which every
operation knows that can be differentiated twice at all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hessrmt.curvature.certify import (
    Comparison,
    Reference,
    random_direction,
    require_changes_of,
    require_jacobian,
)
from hessrmt.curvature.dense import (
    Device,
    Dtype,
    Tick,
    assemble,
    dense_block,
    gib,
    halved,
    make_symmetric,
    require_dense,
    silent,
    usable_memory,
    whole_matrix,
)
from hessrmt.curvature.gram import (
    WORK_BYTES,
    gram,
    other_samples,
    samples_are_apart,
    saved_for_backward,
)
from hessrmt.curvature.products import curvature_of_loss, eager_ggn_product, ggn_product, pull, push
from hessrmt.curvature.rounding import (
    DIRECTIONS,
    FEW_DIRECTIONS,
    Perturbed,
    directions,
    gaussian,
    norm_bound,
    rounding_of,
)
from hessrmt.errors import DeviceError
from hessrmt.problems.differentiation import ordinary_mode
from hessrmt.problems.outputs import SoftmaxRows, in_one_tensor, softmax_rows

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from jaxtyping import Float

    from hessrmt.arrays import Matrix
    from hessrmt.backend.base import Backend
    from hessrmt.problems.outputs import InOneTensor
    from hessrmt.problems.problem import Problem


_LOST_ULPS = 64
"""How far, in ulps of the weights, differentiation may lie from the closed form of softmax."""


@dataclass(frozen=True)
class Root:
    """Rows l_k with S = Σ_k s_k l_k l_kᵀ, one for each eigenvalue of S that is not zero.

    Attributes:
        rows: (r, B, c) r rows for each sample, nonzero in that sample's c outputs alone; or all
            (n, 1, numbers of output) if the loss couples samples.
        signs: s_k, +1 or -1, (r, B) or (n, 1); 0 for a row that is not there.
        norm: ‖S‖₂.
        error: What rounding has moved S by, where that is more than its eigenvalues' own.
    """

    rows: Float[Tensor, "r parts c"]
    signs: Float[Tensor, "r parts"]
    norm: float
    error: float = 0.0

    @property
    def indefinite(self) -> bool:
        """Whether S has a negative eigenvalue."""
        return bool((self.signs < 0).any())

    def dense(self) -> tuple[Float[Tensor, "n outputs"], Float[Tensor, " n"]]:
        """All rows that are there, over all outputs of the batch, and their signs.

        Returns:
            (n, outputs) and (n,).
        """
        count, parts, outputs = self.rows.shape
        if parts == 1:
            return self.rows[:, 0], self.signs[:, 0]
        full = self.rows.new_zeros(count, parts, parts, outputs)
        index = torch.arange(parts, device=full.device)
        full[:, index, index] = self.rows
        signs = self.signs.reshape(-1)
        return full.view(count * parts, parts * outputs)[signs != 0], signs[signs != 0]


def root_of_loss_curvature(problem: InOneTensor, outputs: Tensor) -> Root:
    """The rows of S = Σ_k s_k l_k l_kᵀ, computed in float64.

    Args:
        problem: In its final precision and place.
        outputs: Of the batch, at the problem's parameters.

    Returns:
        The rows, in the problem's precision. Raises ProblemError if torch's second derivative of
        the loss in the outputs is not how its first one changes.
    """
    dtype = outputs.dtype
    if dtype != torch.float64:
        problem = in_one_tensor(problem.at(torch.float64, outputs.device))
    outputs = outputs.detach().double()
    softmax, product = _curvature(problem, outputs)
    if softmax is not None:
        root = _of_softmax(softmax, outputs, problem.samples)
    else:
        _require_slope_to_change(problem, outputs, product)
        apart = len(outputs) % problem.samples == 0 and _apart(product, outputs, problem.samples)
        parts = problem.samples if apart else 1
        each = outputs.numel() // parts
        unit = torch.eye(each, dtype=outputs.dtype, device=outputs.device)
        tiled = product(unit[:, None].expand(each, parts, each).reshape(each, -1))
        root = _of_blocks(tiled.view(each, parts, each).transpose(0, 1), problem, outputs)
    return replace(root, rows=root.rows.to(dtype), signs=root.signs.to(dtype))


def _curvature(
    problem: InOneTensor, outputs: Tensor
) -> tuple[SoftmaxRows | None, Callable[[Tensor], Tensor]]:
    """Rows of a cross-entropy, if differentiation says the same of them; and products with S."""
    product, rows = curvature_of_loss(problem, outputs), softmax_rows(problem, outputs)
    if rows is None:
        return None, product
    t = gaussian(outputs.shape, outputs, "softmax")
    gap = (rows.curved(outputs, t).reshape(1, -1) - product(t.reshape(1, -1))).abs().max()
    scale = (4 + float(outputs.abs().max())) * float(t.abs().max()) * rows.weights.abs().max()
    allowed = _LOST_ULPS * torch.finfo(outputs.dtype).eps * float(scale)
    return (rows if float(gap) <= allowed else None), product


def _of_softmax(softmax: SoftmaxRows, outputs: Tensor, samples: int) -> Root:
    """√|w| A for each row of scores, by its singular value decomposition."""
    p, weights, index = softmax.probabilities(outputs), softmax.weights, softmax.index
    number, count = p.shape
    others = p @ (1 - torch.eye(count, dtype=p.dtype, device=p.device))  # 1 - p, never cancelling
    columns = -p[:, :, None].expand(number, count, count).clone()
    columns.diagonal(dim1=1, dim2=2).copy_(others)
    columns *= (p * weights.abs()[:, None]).sqrt()[:, None, :]
    vectors, values, _ = torch.linalg.svd(columns)
    keep = values > count * torch.finfo(p.dtype).eps * values[:, :1]
    keep[:, -1] = False  # softmax ignores a number added to all outputs
    rows = (vectors * values[:, None, :]).mT * keep[..., None]
    signs = keep * weights.sign()[:, None]
    norm = float(values.square().max())
    owner = index // (outputs.numel() // samples) if len(outputs) % samples == 0 else index
    if bool((owner != owner[:, :1]).any()):  # rows across samples
        samples, owner = 1, torch.zeros_like(index)
    each = outputs.numel() // samples
    owner, order = owner[:, 0].sort(stable=True)
    place = torch.arange(number, device=owner.device) - torch.searchsorted(owner, owner)
    where = (index[order] - each * owner[:, None])[:, None].expand(rows.shape)
    most = int(place.max()) + 1
    dealt = rows.new_zeros(samples, most, count, each)
    dealt[owner, place] = rows.new_zeros(number, count, each).scatter(2, where, rows[order])
    signed = signs.new_zeros(samples, most, count)
    signed[owner, place] = signs[order]
    return _root(dealt.flatten(1, 2), signed.flatten(1), norm)


def _of_blocks(blocks: Tensor, problem: InOneTensor, outputs: Tensor) -> Root:
    """From S itself, whole as one block or one block for each sample."""
    values, vectors = torch.linalg.eigh((blocks + blocks.mT) / 2)
    sizes = values.abs().amax(dim=1)
    # what differentiation has lost: in lower precision, or in derivatives that it gets unequal
    error = max(_error(problem, outputs), float(torch.linalg.matrix_norm(blocks - blocks.mT).max()))
    relative = blocks.shape[-1] * torch.finfo(blocks.dtype).eps * sizes
    if not bool((sizes > 0).any()) or error <= float(relative[sizes > 0].min()):
        error = 0.0
    keep = values.abs() > relative.clamp(min=error)[:, None]
    rows = (vectors * values.abs().sqrt()[:, None, :]).mT  # √|w| uᵀ
    return _root(rows, keep * values.sign(), float(sizes.max()), error)


def _error(problem: InOneTensor, outputs: Tensor) -> float:
    """Bound on the rounding error of S in the 2-norm, of the worst sample."""
    rows = gaussian((DIRECTIONS, outputs.numel()), outputs, "loss-rounding")
    products = curvature_of_loss(problem, outputs)(rows)
    apart = problem.samples if outputs.numel() % problem.samples == 0 else 1
    found = []
    for number, (row, exact) in enumerate(zip(rows, products, strict=True)):
        with Perturbed(number):
            moved = curvature_of_loss(problem, outputs)(row[None])[0]
        found.append(float((moved - exact).view(apart, -1).norm(dim=1).max()))
    return norm_bound(found)


def _root(rows: Tensor, signs: Tensor, norm: float, error: float = 0.0) -> Root:
    """From (parts, r, c) and (parts, r), without the rows that no part of the batch has."""
    used = (signs != 0).any(dim=0)
    rows, signs = rows[:, used].transpose(0, 1), signs[:, used].T
    return Root((rows * signs.abs()[..., None]).contiguous(), signs, norm, error)


def _apart(product: Callable[[Tensor], Tensor], like: Tensor, samples: int) -> bool:
    """Whether the loss of each sample depends on that sample's outputs alone."""
    others = other_samples(samples, like, "loss-independence")
    direction = gaussian((samples, like.numel() // samples), like, "loss-direction")
    response = product((direction * ~others[:, None]).view(1, -1)).view(samples, -1)
    # a change of some samples must leave the gradients of the others exactly alone
    return not bool(response[others].count_nonzero())


def _require_slope_to_change(
    problem: InOneTensor, outputs: Tensor, product: Callable[[Tensor], Tensor]
) -> None:
    """Refuse an S by which the first derivative of the loss in the outputs does not change."""

    def slope(flat: Tensor) -> Tensor:
        return problem.slope(flat.view(outputs.shape))[1].reshape(-1)

    flat = outputs.reshape(-1)
    v = gaussian(flat.shape, flat, "loss-differences")
    v /= v.norm().clamp(min=torch.finfo(v.dtype).tiny)
    require_changes_of(slope, flat, v, product(v[None])[0], len(flat) / problem.samples)


_SHARES = 8
"""Working memories held at once: rows, what is saved for backward, products, and room."""

_TRIANGLES = 8
"""Arrays of the size of R held when it is updated, for a loss that is not convex in the outputs:
itself, what waits, all of it as one array, as LAPACK wants it, and room."""


@ordinary_mode()
def ggn(
    problem: Problem, device: Device = "auto", dtype: Dtype = "float64"
) -> Float[np.ndarray, "P P"]:
    """The exact dense Gauss-Newton matrix Jᵀ S J.

    Args:
        problem: Model, loss and batch.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        dtype: ``"float64"`` or ``"float32"``.

    Returns:
        (P, P) symmetric array of that dtype, parameters in ``model.parameters()`` order. Raises
        ProblemError if the loss is random, not a scalar or not differentiable by torch,
        NonFiniteError if the loss or an entry is NaN or infinite, DeviceError if the device is not
        there or the matrix does not fit in its memory.
    """

    def build(local: Problem, backend: Backend) -> tuple[Matrix, Comparison]:
        local.require_loss_of_outputs_alone()
        packed = in_one_tensor(local)
        require_jacobian(packed, random_direction(local))
        return _dense(packed, backend, silent)

    return whole_matrix(problem, device, dtype, "ggn", build)


def smallest_ggn(
    problem: Problem, backend: Backend, tick: Tick = silent
) -> tuple[Matrix, Comparison]:
    """A matrix with the nonzero eigenvalues of G: one of the size of the outputs if smaller, or G.

    Args:
        problem: In its final precision and place, already evaluated once.
        backend: Where the work is done.
        tick: Called with phase, steps done and steps in all.

    Returns:
        (n, n) symmetric, n <= P, the spectrum of G being its spectrum and P - n zeros; and how far
        it is from G: along a random unit vector in the range of G, NaN if torch cannot
        differentiate the network in both directions, and in any eigenvalue. Raises DeviceError if
        even the smaller matrix does not fit, NonFiniteError if it is not finite.
    """
    problem = in_one_tensor(problem)
    require_jacobian(problem, random_direction(problem))
    outputs = problem.here()
    rows = _rows(problem, outputs)
    if rows >= problem.dimension:
        return _dense(problem, backend, tick)
    nothing = outputs.new_zeros(0, 0)
    if not rows:
        return nothing, Comparison(0.0, 0.0, 0.0)
    plan = _require_dual(problem, outputs, backend)
    root = root_of_loss_curvature(problem, outputs)
    if not len(root.rows):  # linear in the outputs, but for rounding
        rounding = _rounding(problem) if root.error else 0.0
        return nothing, Comparison(0.0, rounding, rounding)
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
    √P ε ‖m_i‖ ‖m_j‖ (Higham and Mary 2019); a matrix of
    independent errors of that profile has a 2-norm of at most twice the largest norm of a row
    (Latala 2005), 2 √P ε max_i ‖m_i‖ ‖M‖_F; Weyl's inequality does the rest.

    Args:
        gram: (n, n).
        parameters: P.

    Returns:
        2 √P ε (max_i K_ii · tr K)^½, in the units of the eigenvalues.
    """
    diagonal = gram.diagonal().double()
    scale = float((diagonal.max() * diagonal.sum()).clamp(min=0).sqrt())
    return 2 * parameters**0.5 * torch.finfo(gram.dtype).eps * scale


def rounding_of_triangle(triangle: Matrix, parameters: int) -> float:
    """What the rounding of R in Mᵀ = QR may move an eigenvalue of a form R C Rᵀ with ‖C‖ = 1 by.

    R belongs to M + δM with ‖δM‖_F of at most about √(Pn) ε ‖M‖_F for independent roundings
    (Connolly and Higham 2023), and ‖R‖₂² ≤ ‖R‖₁ ‖R‖_∞.

    Args:
        triangle: (m, n) with RᵀR = M Mᵀ.
        parameters: P.

    Returns:
        2 √(Pn) ε ‖R‖_F ‖R‖₂, in the units of the eigenvalues.
    """
    norms = [float(torch.linalg.matrix_norm(triangle, ord=kind)) for kind in ("fro", 1, torch.inf)]
    size = (parameters * triangle.shape[1]) ** 0.5 * torch.finfo(triangle.dtype).eps
    return 2 * size * norms[0] * min(norms[0], (norms[1] * norms[2]) ** 0.5)


def _dense(problem: InOneTensor, backend: Backend, tick: Tick) -> tuple[Matrix, Comparison]:
    """G itself, compared with another way of differentiating along a random unit vector."""
    block = dense_block(problem, backend)
    matrix = assemble(ggn_product(problem), problem.theta, block, backend, tick)
    known = Reference.of(eager_ggn_product(problem), directions(problem))
    return matrix, known.beside(matrix.matmul)


def _rounding(problem: InOneTensor) -> float:
    """Bound on the rounding of products with G by plain differentiation."""
    return Reference.of(eager_ggn_product(problem), directions(problem, FEW_DIRECTIONS)).rounding


def _rows(problem: InOneTensor, outputs: Tensor) -> int:
    """Rows of LᵀJ at most."""
    softmax = softmax_rows(problem, outputs)
    if softmax is None:
        return outputs.numel()
    return int(softmax.weights.count_nonzero()) * (softmax.index.shape[1] - 1)


def _dual(
    problem: InOneTensor, outputs: Tensor, root: Root, plan: _Plan, backend: Backend, tick: Tick
) -> tuple[Matrix, Comparison]:
    """A matrix of at most the number of outputs: K = M Mᵀ, or T diag(±1) Tᵀ with Mᵀ = Q T.

    M has the rows l_kᵀJ. Where S has negative eigenvalues K does not do: the eigenvalues of
    K^½ diag(±1) K^½ would lose half the digits.

    Returns:
        The matrix and what is known of its errors.
    """
    samples, signed = problem.samples, root.indefinite
    lower, signs = root.dense()
    bound = rounding_of_triangle if signed else rounding_of_gram
    coupled = plan.apart and root.rows.shape[1] < samples
    each = outputs.numel() // samples
    cotangents = root.rows if plan.apart else lower
    if coupled:  # the loss couples samples but the network does not: Lᵀ(J Jᵀ)L, or T = R L
        unit = torch.eye(each, dtype=outputs.dtype, device=outputs.device)
        cotangents = unit[:, None].expand(each, samples, each)
    found = gram(problem, cotangents, plan.saved, plan.work, partial(tick, "matrix"), signed)
    if plan.apart and not coupled:
        kept = root.signs.reshape(-1) != 0
        if not bool(kept.all()):
            found = found[:, kept] if signed else found[kept][:, kept]
    rounding = bound(found, problem.dimension)
    if coupled:
        rounding *= root.norm
        order = torch.arange(len(found.T), device=found.device).view(each, samples).T.reshape(-1)
        found = (found[:, order] if signed else lower @ found[order][:, order]) @ lower.T
    matrix = found
    if signed:
        if len(found) > found.shape[1]:
            found = torch.linalg.qr(found, mode="r").R
        matrix = (found * signs) @ found.T
    make_symmetric(matrix, backend)
    chunk = max(1, plan.work // plan.saved) if plan.apart else samples
    product = found.T @ found if signed else matrix
    residual = _residual(problem, outputs, (lower, signs), product, chunk)
    if root.error and not math.isnan(residual):
        rounding += _rounding(problem)
    else:
        norm = float(torch.linalg.matrix_norm(product)) ** 0.5  # Frobenius, no less than ‖M‖₂
        rounding += 2 * norm * _rounding_of_rows(problem, outputs, lower, chunk)
    return matrix, Comparison(residual, rounding, rounding)


def _rounding_of_rows(problem: InOneTensor, outputs: Tensor, lower: Tensor, chunk: int) -> float:
    """Bound on the error of M = LᵀJ in the 2-norm; that of M Mᵀ is 2 ‖M‖₂ times it."""
    rows = gaussian((FEW_DIRECTIONS, len(lower)), lower, "rounding of rows") @ lower

    def pulled(row: Tensor) -> Tensor:
        return pull(problem, row.view(outputs.shape), chunk)

    return rounding_of(pulled, rows, torch.stack([pulled(row) for row in rows]))


def _residual(
    problem: InOneTensor, outputs: Tensor, root: tuple[Tensor, Tensor], gram: Matrix, chunk: int
) -> float:
    """‖G v - Mᵀ diag(±1) K u‖ for v = Mᵀu of norm 1, G v by two automatic differentiations.

    G v = Mᵀ diag(±1) M Mᵀu. No code is shared with the way K = M Mᵀ was built.

    Returns:
        The norm; NaN if torch cannot differentiate the network in both directions.
    """
    lower, signs = root
    u = gaussian(len(signs), lower, "agreement")
    v = pull(problem, (u @ lower).view(outputs.shape), chunk)
    norm = float(v.norm())
    if norm == 0:
        return 0.0
    u, v = u / norm, v / norm
    tangent = push(problem, v, chunk)
    if tangent is None:
        return float("nan")
    expected = ((signs * (gram @ u)) @ lower).view(outputs.shape)
    softmax, product = _curvature(problem, outputs)
    if softmax is not None:
        curved = softmax.curved(outputs, tangent)
    else:
        curved = product(tangent.reshape(1, -1))[0].view_as(outputs)
    return float(pull(problem, curved - expected, chunk).norm())


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
    return _Plan(apart, saved, halved(WORK_BYTES, max(1, (usable - fixed) // _SHARES)))
