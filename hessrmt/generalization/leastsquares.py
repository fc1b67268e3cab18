"""Least squares of small ReLU networks by Levenberg and Marquardt: deterministic, never uphill.

Source: Moré, in Numerical Analysis (Springer LNM 630, 1978), with Marquardt's scaling.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np
from scipy import linalg

from hessrmt.errors import ConvergenceError

if TYPE_CHECKING:
    from jaxtyping import Float64

    from hessrmt.generalization.trees import Tree

_SMALLEST_DAMPING, _LARGEST_DAMPING = 1e-10, 1e10


def fit(
    network: Tree,
    theta: Float64[np.ndarray, " P"],
    x: Float64[np.ndarray, "B n"],
    y: Float64[np.ndarray, " B"],
    iterations: int,
) -> Float64[np.ndarray, " P"]:
    """Fit a network; the sum of squared errors never increases.

    Args:
        network: What is fitted.
        theta: (P,) first parameters.
        x: (B, n) points.
        y: (B,) values there.
        iterations: How many steps are tried.

    Returns:
        (P,) parameters.

    Raises:
        ConvergenceError: If the error is NaN or infinite at the first parameters.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        output, table = network.jacobian(theta, x)
        residual = output - y
        cost = float(residual @ residual)
    if not np.isfinite(cost):
        raise ConvergenceError(f"the network's error is {cost} at the first parameters")
    normal, gradient = table.T @ table, table.T @ residual
    damping = 1e-2
    largest = np.maximum(np.diag(normal), 1e-12 * np.diag(normal).max())
    for _ in range(iterations):
        largest = np.maximum(largest, np.diag(normal))
        new, step = np.inf, theta
        damped = normal.copy()
        damped[np.diag_indices_from(damped)] += damping * largest
        with suppress(linalg.LinAlgError):  # no longer positive: damp it more
            step = linalg.cho_solve(linalg.cho_factor(damped, check_finite=False), -gradient)
            with np.errstate(over="ignore", invalid="ignore"):
                tried = network.values(theta + step, x) - y
                new = float(tried @ tried)
        if not new < cost:
            damping = min(damping * 4, _LARGEST_DAMPING)
            continue
        theta, cost = theta + step, new
        damping = max(damping / 3, _SMALLEST_DAMPING)
        output, table = network.jacobian(theta, x)
        normal, gradient = table.T @ table, table.T @ (output - y)
    return theta
