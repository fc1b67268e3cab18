"""Gradient descent on a sampled loss surface, and what averaging iterates does to the true loss.

Source: [B] (Baskerville, Granziol, Keating), §8.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from hessrmt import rng
from hessrmt.errors import LossModelError
from hessrmt.lossmodel.arguments import positive, real, real_array, whole

if TYPE_CHECKING:
    from jaxtyping import Float64
    from numpy.typing import ArrayLike

    from hessrmt.lossmodel.surfaces import RandomFeatureSurface


class TrueLosses(NamedTuple):
    """L_true at three points of one trajectory.

    Attributes:
        last: At the last iterate.
        average: At the mean of all iterates.
        tail_average: At the mean of the last ones.
    """

    last: float
    average: float
    tail_average: float


def descend(
    surface: RandomFeatureSurface,
    start: ArrayLike,
    lr: float,
    steps: int,
    *,
    weight_decay: float = 0.0,
    noise: float = 0.0,
    seed: int = 0,
) -> Float64[np.ndarray, "T P"]:
    """Gradient descent on L_emp, w ← w - α(∇L_emp + λw + σ·normal).

    Args:
        surface: The loss surface.
        start: (P,) first point.
        lr: Learning rate α.
        steps: How many steps.
        weight_decay: λ.
        noise: σ, standard deviation of each component of an independent gradient noise.
        seed: Of the noise.

    Returns:
        (steps, P) iterates, the start not among them.

    Raises:
        LossModelError: If an argument is out of range or the iterates diverge.
    """
    w = torch.from_numpy(real_array("start", start, 1))
    lr, steps = positive("lr", lr), whole("steps", steps, 1)
    decay, sigma = real("weight_decay", weight_decay), real("noise", noise)
    if decay < 0 or sigma < 0:
        raise LossModelError(
            f"weight_decay and noise must not be negative, got {decay:g} and {sigma:g}"
        )
    draw = rng.stream(whole("seed", seed), "descent")
    found = np.empty((steps, len(w)))
    for step in range(steps):
        gradient = surface.gradient(w) + decay * w
        if sigma:
            gradient = gradient + sigma * torch.from_numpy(draw.normal(size=len(w)))
        w = w - lr * gradient
        if not bool(torch.isfinite(w).all()):
            raise LossModelError(
                f"the iterates diverge at step {step + 1}; a quadratic of largest eigenvalue h "
                f"needs lr < 2/h, got lr = {lr:g}"
            )
        found[step] = w.numpy()
    return found


def iterate_average(points: ArrayLike, tail: float = 1.0) -> Float64[np.ndarray, " P"]:
    """Mean of the last part of a trajectory: iterate averaging, or tail averaging for tail < 1.

    Args:
        points: (T, P) trajectory.
        tail: Which part of it, above 0 and at most 1; at least one point is taken.

    Returns:
        (P,) mean of the last max(1, round(tail·T)) points.

    Raises:
        LossModelError: If the part is out of range.
    """
    at = real_array("points", points, 2)
    part = positive("tail", tail)
    if part > 1:
        raise LossModelError(f"tail is a part of the trajectory, at most 1, got {tail!r}")
    return at[-max(1, round(part * len(at))) :].mean(axis=0)


def true_losses(surface: RandomFeatureSurface, points: ArrayLike, tail: float = 0.5) -> TrueLosses:
    """L_true at the last iterate, at the iterate average and at the tail average.

    Args:
        surface: With a true loss.
        points: (T, P) trajectory.
        tail: The part that tail averaging takes.

    Returns:
        The three.

    Raises:
        LossModelError: If the surface has no true loss.
    """
    if surface.true_loss is None:
        raise LossModelError("this surface has no true_loss; give one to random_surface")
    at = real_array("points", points, 2)
    where = at[-1], iterate_average(at), iterate_average(at, tail)
    return TrueLosses(*(float(surface.true_loss(torch.from_numpy(w.copy()))) for w in where))
