"""What rounding in the derivatives of the loss by the outputs does to the Hessian's eigenvalues.

A network that is certain of every sample has a tiny Hessian made of numbers like 1 - p with p near
one: their errors are those of p, ε, not ε(1 - p). Then n·ε·‖H‖₂ says too little.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.func import grad, jvp

from hessrmt import rng
from hessrmt.curvature.gradients import pull, push

if TYPE_CHECKING:
    from hessrmt.problems.problem import Problem

_ITERATIONS = 8
"""Steps of the power method for ‖J‖₂²; they find it to a few per cent from below."""

_HALVINGS = 6
"""How often outputs are halved at most; single precision ends at half the exponent of double."""

_LOST = 0.1
"""Relative error from which a product has no digit left."""

_FAILURES = (RuntimeError, NotImplementedError, TypeError, ValueError)


def loss_rounding(problem: Problem) -> float:
    """Bound on what the rounding of S, the Hessian of the loss in the outputs, moves a level by.

    With δS its error, Jᵀ δS J has a norm of at most ‖J‖₂² max_i ‖δS_i‖, the maximum over samples.
    δS is measured, not assumed: S times a random vector of signs in double and in single precision,
    whose difference is scaled by the ratio of their ε. ‖J‖₂² comes from the power method.

    Args:
        problem: In its final precision and place.

    Returns:
        The bound, in the units of the eigenvalues; 0.0 where the loss's derivatives cannot be had
        in both precisions, or torch cannot multiply by J.
    """
    with torch.no_grad():
        outputs = problem.outputs(problem.theta)
    if not isinstance(outputs, Tensor) or outputs.dim() == 0:
        return 0.0
    error = _error_of_curvature(problem, outputs)
    return error * _squared_norm(problem) if error else 0.0


def _error_of_curvature(problem: Problem, outputs: Tensor) -> float:
    """max_i ‖δS_i t_i‖ for random signs t, in the precision of the problem.

    Where single precision has lost all digits its error says nothing about that of double
    precision; such samples are looked at again with smaller outputs, until it has some.

    Returns:
        The error, in the units of S.
    """
    generator = rng.torch_generator(0, "loss-rounding")
    signs = torch.randint(0, 2, outputs.shape, generator=generator, dtype=torch.float64) * 2 - 1
    signs = signs.to(outputs.device)
    ways = [problem.at(dtype, outputs.device) for dtype in (torch.float64, torch.float32)]
    worst = 0.0
    left = torch.ones(len(outputs), dtype=torch.bool, device=outputs.device)
    for halvings in range(_HALVINGS):
        products = [_curved(way, outputs.double() / 2**halvings, signs) for way in ways]
        if products[0] is None or products[1] is None:
            break
        size, error = (
            x.reshape(len(outputs), -1).norm(dim=1)
            for x in (products[0], products[0] - products[1])
        )
        if not bool(torch.isfinite(error).all()):
            break
        worst = max(worst, float(error[left].max()))
        left &= error > _LOST * size
        if not bool(left.any()):
            break
    return worst * torch.finfo(outputs.dtype).eps / torch.finfo(torch.float32).eps


def _curved(problem: Problem, outputs: Tensor, tangent: Tensor) -> Tensor | None:
    """S t in the problem's precision, as float64."""
    try:
        gradient = grad(problem.loss_of_outputs)
        point, along = (x.to(problem.dtype) for x in (outputs, tangent))
        return jvp(gradient, (point,), (along,))[1].double()
    except torch.OutOfMemoryError:
        raise
    except _FAILURES:
        return None


def _squared_norm(problem: Problem) -> float:
    """‖J‖₂², by the power method."""
    generator = rng.torch_generator(0, "jacobian-norm")
    v = torch.randn(problem.dimension, generator=generator, dtype=torch.float64).to(problem.theta)
    norm = 0.0
    for _ in range(_ITERATIONS):
        length = float(v.norm())
        if length == 0:
            return 0.0
        tangent = push(problem, v / length, problem.samples)
        if tangent is None:
            return 0.0
        norm = float(tangent.double().norm()) ** 2
        v = pull(problem, tangent, problem.samples)
    return norm
