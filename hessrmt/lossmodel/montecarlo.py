"""Gradients of a Gaussian-process loss sampled along a trajectory: variance of their average.

Gradients are drawn exactly. T points differ in at most T - 1 directions: there the components are
drawn jointly, and in the P - T + 1 directions across them they are independent of one another with
covariance k'(q_ij). So the cost grows with min(P, T - 1)·T, and only linearly with P.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from hessrmt import rng
from hessrmt.backend.memory import free_host_memory
from hessrmt.errors import LossModelError
from hessrmt.lossmodel.arguments import real_array, whole
from hessrmt.lossmodel.jets import covariance_root, require_stationary
from hessrmt.lossmodel.weights import Weights

if TYPE_CHECKING:
    from jaxtyping import Float64
    from numpy.typing import ArrayLike

    from hessrmt.lossmodel.process import Stationary

_MATRICES = 5
"""Matrices of the joint dimension held at the fullest moment."""


class Estimate(NamedTuple):
    """A mean over samples.

    Attributes:
        value: The mean.
        standard_error: Its standard error.
    """

    value: float
    standard_error: float


def monte_carlo(
    cov: Stationary,
    points: ArrayLike,
    matrices: ArrayLike | None = None,
    samples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """P⁻¹ Tr Cov(g_avg) from sampled gradients; the exact value is `averaged_gradient_covariance`.

    Args:
        cov: A stationary covariance.
        points: (T, P) trajectory.
        matrices: (T,), (T, P) or (T, P, P), see
            :func:`hessrmt.lossmodel.averaging.averaged_gradient_covariance`.
        samples: How many surfaces.
        seed: Of the run.

    Returns:
        The estimate P⁻¹ ⟨|g_avg|²⟩ (the mean of g_avg is zero) and its standard error.

    Raises:
        LossModelError: If the covariance is not stationary, the matrices do not fit the points, or
            the joint covariance matrix does not fit in memory.
    """
    require_stationary(cov)
    at = real_array("points", points, 2)
    weights = Weights.of(matrices, *at.shape)
    samples = whole("samples", samples, 2)
    T, P = at.shape
    found = []
    for g in sampled_gradients(cov, at, samples, seed):
        average = weights.apply(slice(0, T), g).mean(axis=0)
        found.append(float(average @ average) / P)
    return Estimate(float(np.mean(found)), float(np.std(found, ddof=1) / math.sqrt(samples)))


def sampled_gradients(
    cov: Stationary, points: ArrayLike, samples: int, seed: int = 0
) -> Iterator[Float64[np.ndarray, "T P"]]:
    """Gradients of independent surfaces at the points of a trajectory, exactly.

    Args:
        cov: A stationary covariance.
        points: (T, P) trajectory.
        samples: How many surfaces.
        seed: Of the run.

    Yields:
        (T, P) gradients of one surface after the other.

    Raises:
        LossModelError: If the covariance is not stationary or that of the gradients does not fit in
            memory.
    """
    require_stationary(cov)
    at = real_array("points", points, 2)
    samples, (T, P) = whole("samples", samples, 1), at.shape
    # coordinates (T, r) in the span of the differences, its basis (r, P); the rest of R^P is flat
    _, sizes, basis = np.linalg.svd(at - at.mean(axis=0), full_matrices=False)
    basis = basis[sizes > max(T, P) * np.finfo(float).eps * sizes.max()]
    r = len(basis)
    _require_memory(T * max(r, 1), T, P)
    inside = at @ basis.T
    d = inside[:, None, :] - inside[None, :, :]
    q = -np.einsum("ijp,ijp->ij", d, d) / 2
    first, second = cov.derivative(1, q), cov.derivative(2, q)
    across = covariance_root(first)
    along = np.zeros((0, 0))
    if r:
        block = np.einsum("ij,pq->ipjq", first, np.eye(r))
        block -= np.einsum("ij,ijp,ijq->ipjq", second, d, d)
        along = covariance_root(block.reshape(T * r, T * r))
    draw = rng.stream(whole("seed", seed), "gradients")
    for _ in range(samples):
        g = np.zeros((T, P))
        if r < P:
            g = across @ draw.normal(size=(across.shape[1], P))
            g -= (g @ basis.T) @ basis
        if r:
            g += (along @ draw.normal(size=along.shape[1])).reshape(T, r) @ basis
        yield g


def _require_memory(size: int, T: int, P: int) -> None:
    needed, free = _MATRICES * 8 * size**2, free_host_memory()
    if needed > free:
        raise LossModelError(
            f"gradients at {T} points in {P} dimensions have {size:,} components in the span of "
            f"the trajectory; their covariance needs {needed / 2**30:.1f} GiB and "
            f"{free / 2**30:.1f} GiB are free, enough for {math.isqrt(free // (8 * _MATRICES)):,}. "
            "Take fewer points, or average gradients of random_surface"
        )
