"""Lᵀ of S = L Lᵀ, the Hessian of the loss in the outputs, where the loss is convex in them.

The Hessian of cross-entropy, (diag p - p pᵀ)/B, is taken in closed form as A Aᵀ with columns
√p_c (e_c - p), so that samples of which the network is certain keep all their digits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.func import grad, jvp, vmap

from hessrmt import rng
from hessrmt.problems.losses import LOSSES

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Bool, Float

    from hessrmt.problems.problem import Problem


@dataclass(frozen=True)
class Root:
    """The rows of Lᵀ.

    Attributes:
        rows: (r, B, c) r rows for each sample, nonzero in that sample's c outputs alone; None if
            the loss couples samples.
        keep: (r, B) which of them are not zero.
        full: (n, B·c) all rows; only if the loss couples samples.
        norm: ‖S‖₂.
    """

    rows: Float[Tensor, "r B c"] | None
    keep: Bool[Tensor, "r B"] | None
    full: Float[Tensor, "n outputs"] | None
    norm: float

    def dense(self) -> Float[Tensor, "n outputs"]:
        """All rows that are not zero, over all outputs of the batch.

        Returns:
            (n, B·c).
        """
        if self.rows is None or self.keep is None:
            assert self.full is not None
            return self.full
        count, samples, outputs = self.rows.shape
        full = self.rows.new_zeros(count, samples, samples, outputs)
        index = torch.arange(samples, device=full.device)
        full[:, index, index] = self.rows
        return full.view(count * samples, -1)[self.keep.reshape(-1)]


def root_of_loss_curvature(problem: Problem, outputs: Tensor) -> Root | None:
    """Lᵀ of S = L Lᵀ, one row for each nonzero eigenvalue of S.

    Args:
        problem: In its final precision and place.
        outputs: Of the batch, at the problem's parameters.

    Returns:
        The rows, in the problem's precision but computed in float64; None if S has a negative
        eigenvalue.
    """
    dtype = outputs.dtype
    if dtype != torch.float64:
        problem = problem.at(torch.float64, outputs.device)
    outputs = outputs.detach().double()
    if _is_softmax(problem, outputs):
        return _softmax(outputs, dtype)
    gradient = grad(lambda f: problem.loss_of_outputs(f.view(outputs.shape)))

    def product(v: Tensor) -> Tensor:
        return jvp(gradient, (outputs.reshape(-1),), (v.reshape(-1),))[1]

    samples, count = problem.samples, outputs.numel()
    each = count // samples
    if outputs.shape[0] % samples or not _apart(product, outputs, samples):
        unit = torch.eye(count, dtype=outputs.dtype, device=outputs.device)
        blocks = vmap(product)(unit)[None]
    else:
        unit = torch.eye(each, dtype=outputs.dtype, device=outputs.device)
        tiled = vmap(product)(unit[:, None].expand(each, samples, each))
        blocks = tiled.view(each, samples, each).transpose(0, 1)
    values, vectors = torch.linalg.eigh((blocks + blocks.mT) / 2)
    largest = float(values.abs().max())
    tolerance = blocks.shape[-1] * torch.finfo(values.dtype).eps * largest
    if float(values.min()) < -tolerance:
        return None
    rows = (vectors * values.clamp(min=0).sqrt()[:, None, :]).mT  # √w uᵀ
    keep = values > tolerance
    if len(blocks) == samples and blocks.shape[-1] == each:
        return _sample_by_sample(rows, keep, largest, dtype)
    return Root(None, None, rows[0][keep[0]].to(dtype), largest)


def curved(problem: Problem, outputs: Tensor, tangent: Tensor) -> Tensor:
    """S w with the Hessian S of the loss in the outputs, without its root.

    Args:
        problem: In its final precision and place.
        outputs: Of the batch, at the problem's parameters.
        tangent: w, of their shape.

    Returns:
        Of the shape of the outputs.
    """
    if _is_softmax(problem, outputs):
        # p (w - p·w) with w measured from the likeliest class, which cancels no digits
        p = torch.softmax(outputs.detach(), dim=1)
        tangent = tangent - tangent.gather(1, p.argmax(dim=1, keepdim=True))
        return p * (tangent - (p * tangent).sum(dim=1, keepdim=True)) / problem.samples
    point = outputs.detach().requires_grad_()
    first = torch.autograd.grad(problem.loss_of_outputs(point), point, create_graph=True)[0]
    if not first.requires_grad:  # a loss linear in the outputs
        return torch.zeros_like(outputs)
    return torch.autograd.grad(first, point, tangent, materialize_grads=True)[0]


def _is_softmax(problem: Problem, outputs: Tensor) -> bool:
    """Whether the loss is the plain mean of cross-entropy over samples."""
    loss, targets = problem.loss_function, problem.targets
    if not isinstance(targets, Tensor) or targets.is_floating_point():
        return False
    if outputs.dim() != 2 or targets.shape != outputs.shape[:1]:
        return False
    if loss is LOSSES["cross-entropy"]:
        return bool((targets >= 0).all())
    return (
        isinstance(loss, nn.CrossEntropyLoss)
        and type(loss) is nn.CrossEntropyLoss
        and loss.weight is None
        and loss.reduction == "mean"
        and not bool((targets == loss.ignore_index).any())
    )


def _softmax(outputs: Float[Tensor, "B c"], dtype: torch.dtype) -> Root:
    samples, count = outputs.shape
    p = torch.softmax(outputs, dim=1)
    others = p @ (1 - torch.eye(count, dtype=p.dtype, device=p.device))  # 1 - p, never cancelling
    columns = -p[:, :, None].expand(samples, count, count).clone()
    columns.diagonal(dim1=1, dim2=2).copy_(others)
    columns *= (p / samples).sqrt()[:, None, :]
    vectors, values, _ = torch.linalg.svd(columns)
    keep = values > count * torch.finfo(p.dtype).eps * values[:, :1]
    keep[:, -1] = False  # softmax ignores a number added to all outputs
    rows = (vectors * values[:, None, :]).mT
    return _sample_by_sample(rows, keep, float(values.square().max()), dtype)


def _sample_by_sample(rows: Tensor, keep: Tensor, norm: float, dtype: torch.dtype) -> Root:
    """From (B, r, c) and (B, r) to a root without the rows that no sample has."""
    used = keep.any(dim=0)
    rows, keep = rows[:, used].transpose(0, 1), keep[:, used].T
    return Root((rows * keep[..., None]).to(dtype).contiguous(), keep, None, norm)


def _apart(product: Callable[[Tensor], Tensor], like: Tensor, samples: int) -> bool:
    """Whether the loss of each sample depends on that sample's outputs alone."""
    some = rng.stream(0, "loss-independence").random(samples) < 0.5
    some[0], some[-1] = True, samples == 1
    moved = torch.from_numpy(some).to(like.device)
    generator = rng.torch_generator(0, "loss-direction")
    draw = torch.randn(like.numel(), generator=generator, dtype=torch.float64).to(like)
    direction = draw.view(samples, -1) * moved[:, None]
    response = product(direction).view(samples, -1)
    # a change of some samples must leave the gradients of the others exactly alone
    return not bool(response[~moved].count_nonzero())
