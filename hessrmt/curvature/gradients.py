"""J v, Jᵀu and S t by torch's plain forward and reverse mode.

Nothing here uses ``torch.func``'s transforms or a layer's structure, so that it can serve as a
check of what does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.autograd import forward_ad

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from hessrmt.arrays import Vector
    from hessrmt.problems.outputs import InOneTensor
    from hessrmt.problems.problem import Problem


def pull(problem: Problem, cotangent: Tensor, chunk: int) -> Vector:
    """Jᵀu.

    Args:
        problem: In its final precision and place.
        cotangent: u, of the shape of the outputs.
        chunk: Samples treated together; all of them if samples mix.

    Returns:
        (P,).
    """
    total = torch.zeros_like(problem.theta)
    for part, place in _parts(problem, len(cotangent), chunk):
        point = part.theta.requires_grad_()
        outputs = part.outputs(point)
        if outputs.requires_grad:
            total += torch.autograd.grad(
                outputs, point, cotangent[place], materialize_grads=True, allow_unused=True
            )[0]
    return total


def push(problem: Problem, v: Vector, chunk: int, *, reverse: bool = False) -> Tensor | None:
    """J v by forward mode, or as the derivative of u ↦ ⟨Jᵀu, v⟩ where torch has no forward rule.

    Args:
        problem: In its final precision and place.
        v: (P,).
        chunk: Samples treated together; all of them if samples mix.
        reverse: Whether to try the second way first.

    Returns:
        Of the shape of the outputs; None if torch can do neither.
    """
    found = []
    for part, _ in _parts(problem, problem.samples, chunk):
        first, second = (_transposed, _forward) if reverse else (_forward, _transposed)
        tangent = first(part, v)
        if tangent is None:
            tangent = second(part, v)
        if tangent is None:
            return None
        found.append(tangent)
    return torch.cat(found)


def curvature_of_loss(problem: InOneTensor, outputs: Tensor) -> Callable[[Tensor], Tensor]:
    """Products with S by differentiating twice in reverse.

    Args:
        problem: In its final precision and place.
        outputs: Of the batch, at the problem's parameters.

    Returns:
        Maps (k, numbers of output) to the same; it keeps the graph of one evaluation of the loss.
    """
    point, slope = problem.slope(outputs, graph=True)
    slope = slope.reshape(-1)

    def product(block: Tensor) -> Tensor:
        if not slope.requires_grad:  # a loss linear in the outputs
            return torch.zeros_like(block)

        def backward(v: Tensor, batched: bool = False) -> Tensor:
            options = {"materialize_grads": True, "is_grads_batched": batched}
            found = torch.autograd.grad(slope, point, v, retain_graph=True, **options)[0]
            return found.reshape(v.shape)

        if len(block) > 1:
            try:
                return backward(block, True)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError:  # an operation that cannot be batched
                pass
        return torch.stack([backward(v) for v in block])

    return product


def _parts(problem: Problem, length: int, chunk: int) -> Iterator[tuple[Problem, slice]]:
    """Parts of the batch and their places in the outputs' first dimension."""
    each = length // problem.samples
    if chunk >= problem.samples:
        yield problem, slice(0, length)
        return
    for start in range(0, problem.samples, chunk):
        stop = min(start + chunk, problem.samples)
        yield problem.part(slice(start, stop)), slice(start * each, stop * each)


def _forward(part: Problem, v: Vector) -> Tensor | None:
    with torch.no_grad(), forward_ad.dual_level():
        try:
            outputs, tangent = forward_ad.unpack_dual(
                part.outputs(forward_ad.make_dual(part.theta, v))
            )
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, NotImplementedError):
            return None
        return torch.zeros_like(outputs) if tangent is None else tangent


def _transposed(part: Problem, v: Vector) -> Tensor | None:
    point = part.theta.requires_grad_()
    outputs = part.outputs(point)
    if not outputs.requires_grad:
        return torch.zeros_like(outputs)
    dual = torch.ones_like(outputs, requires_grad=True)
    try:
        gradient = torch.autograd.grad(outputs, point, dual, create_graph=True)[0]
        tangent = torch.autograd.grad(gradient, dual, v)[0]
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, NotImplementedError):
        return None
    # torch drops, without a word, what an operation that cannot be differentiated twice adds
    whole, seen = float(gradient.detach() @ v), float(tangent.sum())
    size = float(gradient.detach().norm() * v.norm())
    return tangent if abs(whole - seen) <= torch.finfo(v.dtype).eps ** 0.5 * size else None
