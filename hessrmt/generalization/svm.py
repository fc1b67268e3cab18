"""Maximum-margin hyperplanes through the origin: hard-margin support vector machines.

Source: least-distance programming, Lawson, Hanson, Solving Least Squares Problems, §23.4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import nnls

from hessrmt.errors import GeneralizationError
from hessrmt.generalization.exponential_type import checked_data

if TYPE_CHECKING:
    from jaxtyping import Float64, Int64
    from numpy.typing import ArrayLike


@dataclass(frozen=True)
class MaximumMargin:
    """The hyperplane through the origin that is farthest from the nearest sample.

    Attributes:
        direction: (d,) unit normal v.
        margin: γ = min_n y_n vᵀx_n > 0.
        support: Indices of the samples with a positive multiplier.
        multipliers: (B,) α_n >= 0 of v/γ = Σ α_n y_n x_n.
    """

    direction: Float64[np.ndarray, " d"]
    margin: float
    support: Int64[np.ndarray, " k"]
    multipliers: Float64[np.ndarray, " B"]


def maximum_margin(x: ArrayLike, y: ArrayLike) -> MaximumMargin:
    """Minimise ‖w‖ subject to y_n wᵀx_n >= 1 ([P] Lemma 4 for one layer), by a finite algorithm.

    Let A have the columns y_n x_n, and u >= 0 minimise ‖A u‖² + (Σ u - 1)²: w = A u/(1 - Σ u).

    Args:
        x: (B, d) inputs.
        y: (B,) labels, -1 or 1.

    Returns:
        Direction, margin and support.

    Raises:
        GeneralizationError: If no hyperplane through the origin separates the samples.
    """
    inputs, labels = checked_data("exponential", x, y, 1)
    pulled = labels[:, None] * inputs
    size = np.linalg.norm(pulled, axis=1).max()
    refusal = "no hyperplane through the origin separates these samples; append a constant feature"
    if not size:
        raise GeneralizationError(refusal)
    scaled = pulled / size
    system = np.vstack([scaled.T, np.ones(len(scaled))])
    target = np.zeros(len(system))
    target[-1] = 1.0
    u, _ = nnls(system, target, maxiter=30 * len(scaled) + 100)
    slack = 1.0 - u.sum()
    weights = scaled.T @ u
    norm = float(np.linalg.norm(weights))
    # without a hyperplane slack and weights are zero but for round-off
    if slack <= 0 or norm == 0 or (scaled @ weights).min() <= 0:
        raise GeneralizationError(refusal)
    direction = weights / norm
    margin = float((pulled @ direction).min())
    multipliers = u / (slack * size**2)
    return MaximumMargin(direction, margin, np.flatnonzero(u), multipliers)
