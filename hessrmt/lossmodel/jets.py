"""Loss, gradient and Hessian at several points of one Gaussian-process surface, drawn jointly.

Exact: a normal vector with the covariance matrix of :meth:`hessrmt.lossmodel.Stationary.joint`. Its
dimension m(1 + n + n(n+1)/2) makes this the tool for few points in few dimensions;
:func:`hessrmt.lossmodel.random_surface` is that for many.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.linalg import eigh

from hessrmt import rng
from hessrmt.backend.memory import free_host_memory
from hessrmt.errors import LossModelError
from hessrmt.lossmodel.arguments import real_array, whole
from hessrmt.lossmodel.process import Stationary

if TYPE_CHECKING:
    from jaxtyping import Float64
    from numpy.typing import ArrayLike

_MATRICES = 6
"""Matrices of the joint dimension held at the fullest moment, the blocks' tensors among them."""


class Jets(NamedTuple):
    """Joint samples at m points.

    Attributes:
        values: (samples, m), ε.
        gradients: (samples, m, n), ∇ε.
        hessians: (samples, m, n, n), ∇²ε.
    """

    values: Float64[np.ndarray, "samples m"]
    gradients: Float64[np.ndarray, "samples m n"]
    hessians: Float64[np.ndarray, "samples m n n"]


def sample_jets(cov: Stationary, points: ArrayLike, samples: int = 1, seed: int = 0) -> Jets:
    """Values, gradients and Hessians of one process at several points, jointly.

    Args:
        cov: A stationary covariance.
        points: (m, n) points; coincident ones get the same numbers, to half the digits.
        samples: How many independent surfaces.
        seed: Of the run.

    Returns:
        The samples.

    Raises:
        LossModelError: If the covariance is not stationary, or the joint covariance matrix does not
            fit in memory.
    """
    require_stationary(cov)
    at = real_array("points", points, 2)
    samples = whole("samples", samples, 1)
    (m, n) = at.shape
    block = 1 + n + n * (n + 1) // 2
    _require_memory(m, n, m * block)
    root = covariance_root(cov.joint(at))
    draw = rng.stream(whole("seed", seed), "jets")
    flat = (draw.normal(size=(samples, root.shape[1])) @ root.T).reshape(samples, m, block)
    hessians = np.empty((samples, m, n, n))
    rows, columns = np.triu_indices(n)
    hessians[..., rows, columns] = flat[..., 1 + n :]
    hessians[..., columns, rows] = flat[..., 1 + n :]
    return Jets(flat[..., 0].copy(), flat[..., 1 : 1 + n].copy(), hessians)


def covariance_root(covariance: Float64[np.ndarray, "n n"]) -> Float64[np.ndarray, "n r"]:
    """R with R Rᵀ the covariance, which may be singular.

    Components are scaled to variance one first, so that small ones keep their digits.

    Args:
        covariance: (n, n) symmetric, positive semi-definite to rounding.

    Returns:
        (n, r) with r the rank to rounding.

    Raises:
        LossModelError: If an eigenvalue is negative beyond rounding.
    """
    size = np.sqrt(np.diag(covariance))
    scale = np.where(size > 0, size, 1.0)
    values, vectors = eigh(covariance / np.outer(scale, scale))
    # a dense symmetric eigensolver's error, and that of the entries, n ε ‖C‖ each
    floor = 4 * len(values) * np.finfo(float).eps * max(values[-1], 0.0)
    if values[0] < -floor:
        raise LossModelError(
            f"the covariance is not positive semi-definite: its correlation matrix has the "
            f"eigenvalue {values[0]:.3g}; k is no covariance in so many dimensions"
        )
    kept = values > floor
    return scale[:, None] * vectors[:, kept] * np.sqrt(values[kept])


def require_stationary(cov: object) -> None:
    """Refuse a covariance that is known at one point only.

    Args:
        cov: Given.

    Raises:
        LossModelError: If it is not stationary.
    """
    if not isinstance(cov, Stationary):
        raise LossModelError(
            "several points need a stationary covariance (rbf, rational_quadratic, matern, mixture "
            f"or stationary), got {type(cov).__name__}; at one point use sample_hessian"
        )


def _require_memory(m: int, n: int, size: int) -> None:
    needed, free = _MATRICES * 8 * size**2, free_host_memory()
    if needed > free:
        raise LossModelError(
            f"{m} points in {n} dimensions have {size:,} values, gradients and second derivatives; "
            f"their covariance needs {needed / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are free, "
            f"enough for {math.isqrt(free // (8 * _MATRICES)):,}. Take fewer points or dimensions, "
            "or random_surface"
        )
