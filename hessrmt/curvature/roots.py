"""The Hessian S of the loss in the outputs: its products, and rows l_k with S = Σ_k ± l_k l_kᵀ.

The Hessian of cross-entropy, w (diag p - p pᵀ) for each row of scores, is taken in closed form as
w A Aᵀ with columns √p_c (e_c - p), so that samples of which the network is certain keep all their
digits. That of any other loss is differentiated twice in reverse, which every operation knows that
can be differentiated twice at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hessrmt import rng
from hessrmt.curvature.fidelity import require_changes_of
from hessrmt.curvature.gradients import curvature_of_loss
from hessrmt.curvature.rounding import DIRECTIONS, Perturbed, norm_bound
from hessrmt.problems.outputs import SoftmaxRows, in_one_tensor, softmax_rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Float

    from hessrmt.problems.outputs import InOneTensor

_LOST_ULPS = 64
"""How far, in ulps of the weights, differentiation may lie from the closed form of softmax."""


@dataclass(frozen=True)
class Root:
    """Rows l_k with S = Σ_k s_k l_k l_kᵀ, one for each eigenvalue of S that is not zero.

    Attributes:
        rows: (r, B, c) r rows for each sample, nonzero in that sample's c outputs alone; None if
            the loss couples samples.
        signs: s_k, +1 or -1: (r, B), with 0 for a row that is not there; (n,) for ``full``.
        full: (n, numbers of output) all rows; only if the loss couples samples.
        norm: ‖S‖₂.
        error: What rounding has moved S by, where that is more than its eigenvalues' own.
    """

    rows: Float[Tensor, "r B c"] | None
    signs: Tensor
    full: Float[Tensor, "n outputs"] | None
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
        if self.rows is None:
            assert self.full is not None
            return self.full, self.signs
        count, samples, outputs = self.rows.shape
        full = self.rows.new_zeros(count, samples, samples, outputs)
        index = torch.arange(samples, device=full.device)
        full[:, index, index] = self.rows
        signs = self.signs.reshape(-1)
        full = full.view(count * samples, samples * outputs)
        return full[signs != 0], signs[signs != 0]


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
    product = curvature_of_loss(problem, outputs)
    rows = _softmax(problem, outputs, product)
    if rows is not None:
        root = _of_softmax(rows, outputs, problem.samples)
    else:
        _require_slope_to_change(problem, outputs, product)
        apart = len(outputs) % problem.samples == 0 and _apart(product, outputs, problem.samples)
        parts = problem.samples if apart else 1
        each = outputs.numel() // parts
        unit = torch.eye(each, dtype=outputs.dtype, device=outputs.device)
        tiled = product(unit[:, None].expand(each, parts, each).reshape(each, -1))
        root = _of_blocks(tiled.view(each, parts, each).transpose(0, 1), problem, outputs)
    rows, full = (None if x is None else x.to(dtype) for x in (root.rows, root.full))
    return Root(rows, root.signs.to(dtype), full, root.norm, root.error)


def curved(problem: InOneTensor, outputs: Tensor, tangent: Tensor) -> Tensor:
    """S t with the Hessian S of the loss in the outputs, without its root.

    Args:
        problem: In its final precision and place.
        outputs: Of the batch, at the problem's parameters.
        tangent: t, of their shape.

    Returns:
        Of the shape of the outputs.
    """
    product = curvature_of_loss(problem, outputs)
    rows = _softmax(problem, outputs, product)
    if rows is not None:
        return rows.curved(outputs, tangent)
    return product(tangent.reshape(1, -1))[0].view_as(outputs)


def _softmax(
    problem: InOneTensor, outputs: Tensor, product: Callable[[Tensor], Tensor]
) -> SoftmaxRows | None:
    """The rows of a cross-entropy, if differentiation says the same of them."""
    rows = softmax_rows(problem, outputs)
    if rows is None:
        return None
    generator = rng.torch_generator(0, "softmax")
    t = torch.randn(outputs.shape, generator=generator, dtype=torch.float64).to(outputs)
    gap = (rows.curved(outputs, t).reshape(1, -1) - product(t.reshape(1, -1))).abs().max()
    scale = (4 + float(outputs.abs().max())) * float(t.abs().max()) * rows.weights.abs().max()
    allowed = _LOST_ULPS * torch.finfo(outputs.dtype).eps * float(scale)
    return rows if float(gap) <= allowed else None


def _of_softmax(softmax: SoftmaxRows, outputs: Tensor, given: int) -> Root:
    """√|w| A for each row of scores, by its singular value decomposition."""
    p, weights, index = softmax.probabilities(outputs), softmax.weights, softmax.index
    (number, count), samples = p.shape, given
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
    return _root(dealt.flatten(1, 2), signed.flatten(1), norm, given)


def _of_blocks(blocks: Tensor, problem: InOneTensor, outputs: Tensor) -> Root:
    """From S itself, whole as one block or one block for each sample."""
    values, vectors = torch.linalg.eigh((blocks + blocks.mT) / 2)
    sizes = values.abs().amax(dim=1)
    # what differentiation has lost: in lower precision, or in derivatives that it gets unequal
    error = max(
        _error(problem, outputs),
        float(torch.linalg.matrix_norm(blocks - blocks.mT).max()),
    )
    relative = blocks.shape[-1] * torch.finfo(blocks.dtype).eps * sizes
    if not bool((sizes > 0).any()) or error <= float(relative[sizes > 0].min()):
        error = 0.0
    keep = values.abs() > relative.clamp(min=error)[:, None]
    rows = (vectors * values.abs().sqrt()[:, None, :]).mT  # √|w| uᵀ
    return _root(rows, keep * values.sign(), float(sizes.max()), problem.samples, error)


def _error(problem: InOneTensor, outputs: Tensor) -> float:
    """Bound on the rounding error of S in the 2-norm, of the worst sample."""
    generator = rng.torch_generator(0, "loss-rounding")
    size = DIRECTIONS, outputs.numel()
    rows = torch.randn(size, generator=generator, dtype=torch.float64).to(outputs)
    found = []
    for number, (row, exact) in enumerate(
        zip(rows, curvature_of_loss(problem, outputs)(rows), strict=True)
    ):
        with Perturbed(number):
            moved = curvature_of_loss(problem, outputs)(row[None])[0]
        apart = problem.samples if outputs.numel() % problem.samples == 0 else 1
        found.append(float((moved - exact).view(apart, -1).norm(dim=1).max()))
    return norm_bound(found)


def _root(rows: Tensor, signs: Tensor, norm: float, samples: int, error: float = 0.0) -> Root:
    """From (B, r, c) and (B, r), or one block for all, without the rows that no sample has."""
    used = (signs != 0).any(dim=0)
    rows, signs = rows[:, used].transpose(0, 1), signs[:, used].T
    rows = (rows * signs.abs()[..., None]).contiguous()
    if rows.shape[1] < samples:
        return Root(None, signs[:, 0], rows[:, 0], norm, error)
    return Root(rows, signs, None, norm, error)


def _apart(product: Callable[[Tensor], Tensor], like: Tensor, samples: int) -> bool:
    """Whether the loss of each sample depends on that sample's outputs alone."""
    some = rng.stream(0, "loss-independence").random(samples) < 0.5
    some[0], some[-1] = True, samples == 1
    moved = torch.from_numpy(some).to(like.device)
    generator = rng.torch_generator(0, "loss-direction")
    draw = torch.randn(like.numel(), generator=generator, dtype=torch.float64).to(like)
    direction = draw.view(samples, -1) * moved[:, None]
    response = product(direction.view(1, -1)).view(samples, -1)
    # a change of some samples must leave the gradients of the others exactly alone
    return not bool(response[~moved].count_nonzero())


def _require_slope_to_change(
    problem: InOneTensor, outputs: Tensor, product: Callable[[Tensor], Tensor]
) -> None:
    """Refuse an S by which the first derivative of the loss in the outputs does not change."""

    def slope(flat: Tensor) -> Tensor:
        return problem.slope(flat.view(outputs.shape))[1].reshape(-1)

    flat = outputs.reshape(-1)
    generator = rng.torch_generator(0, "loss-differences")
    v = torch.randn(flat.shape, generator=generator, dtype=torch.float64).to(flat)
    v /= v.norm().clamp(min=torch.finfo(v.dtype).tiny)
    require_changes_of(slope, flat, v, product(v[None])[0], len(flat) / problem.samples)
