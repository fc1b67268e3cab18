"""What rounding in the derivatives of the loss by the outputs does to the Hessian's eigenvalues.

A network that is certain of every sample has a tiny Hessian made of numbers like 1 - p with p near
one: their errors are those of p, ε, not ε(1 - p). Then n·ε·‖H‖₂ says too little.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from hessrmt import rng
from hessrmt.curvature.gradients import curvature_of_loss, pull, push
from hessrmt.errors import ProblemError
from hessrmt.problems.outputs import in_one_tensor

if TYPE_CHECKING:
    from torch import Tensor

    from hessrmt.problems.outputs import InOneTensor
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
    try:
        problem = in_one_tensor(problem)
    except ProblemError:  # outputs that cannot be copied
        return 0.0
    error = error_of_curvature(problem, problem.here())
    return error * squared_norm(problem) if error else 0.0


def error_of_curvature(problem: InOneTensor, outputs: Tensor) -> float:
    """max_i ‖δS_i t_i‖ for random signs t, what rounding makes of S in the problem's precision.

    Where single precision has lost all digits its error says nothing about that of double
    precision; such samples are looked at again with smaller outputs, until it has some.

    Args:
        problem: In its final precision and place.
        outputs: Of the batch.

    Returns:
        The error, in the units of S; 0.0 where S cannot be had in both precisions.

    Raises:
        OutOfMemoryError: If a device has no room.
    """
    generator = rng.torch_generator(0, "loss-rounding")
    signs = torch.randint(0, 2, outputs.shape, generator=generator, dtype=torch.float64) * 2 - 1
    signs = signs.to(outputs.device)
    precisions = (torch.float64, torch.float32)
    ways = [in_one_tensor(problem.at(dtype, outputs.device)) for dtype in precisions]
    worst = 0.0
    left = torch.ones(len(outputs), dtype=torch.bool, device=outputs.device)
    for halvings in range(_HALVINGS):
        try:
            exact, rounded = (
                curvature_of_loss(way, (outputs.double() / 2**halvings).to(way.dtype))(
                    signs.to(way.dtype).reshape(1, -1)
                ).double()
                for way in ways
            )
        except torch.OutOfMemoryError:
            raise
        except _FAILURES:
            break
        size, error = (x.reshape(len(outputs), -1).norm(dim=1) for x in (exact, exact - rounded))
        if not bool(torch.isfinite(error).all()):
            break
        worst = max(worst, float(error[left].max()))
        left &= error > _LOST * size
        if not bool(left.any()):
            break
    return worst * torch.finfo(outputs.dtype).eps / torch.finfo(torch.float32).eps


def squared_norm(problem: InOneTensor) -> float:
    """‖J‖₂², by the power method.

    Args:
        problem: In its final precision and place.

    Returns:
        It, to a few per cent from below; 0.0 if torch cannot multiply by J.
    """
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
