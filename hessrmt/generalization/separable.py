"""Small classification tasks whose answer is known, for following flows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hessrmt import rng
from hessrmt.errors import GeneralizationError

if TYPE_CHECKING:
    from jaxtyping import Float64

Task = tuple["Float64[np.ndarray, 'B d']", "Float64[np.ndarray, ' B']"]
"""Inputs and labels -1 or 1."""


def linear_task(samples: int, features: int, gap: float = 0.5, seed: int = 0) -> Task:
    """Normal inputs, moved apart until a random hyperplane through the origin separates them.

    Args:
        samples: How many.
        features: d.
        gap: Distance of the nearest possible sample from that hyperplane; the largest margin is at
            least as large.
        seed: Of the run.

    Returns:
        (samples, d) inputs; labels -1 and 1.

    Raises:
        GeneralizationError: If a size is not positive or the gap is not a positive number.
    """
    _check(samples, features, gap)
    draw = rng.stream(seed, "linear task", samples, features)
    normal = draw.normal(size=features)
    normal /= np.linalg.norm(normal)
    x = draw.normal(size=(samples, features))
    y = np.where(x @ normal > 0, 1.0, -1.0)
    return x + gap * y[:, None] * normal, y


def quadrant_task(samples: int, features: int = 2, gap: float = 0.3, seed: int = 0) -> Task:
    """Normal inputs with the label sign(x_1 x_2), which no linear network separates.

    Args:
        samples: How many.
        features: d, at least 2.
        gap: How far the first two coordinates are moved from zero.
        seed: Of the run.

    Returns:
        (samples, d) inputs; labels -1 and 1.

    Raises:
        GeneralizationError: If a size is too small or the gap is not a positive number.
    """
    _check(samples, features, gap)
    if features < 2:
        raise GeneralizationError(f"features must be at least 2, got {features}")
    draw = rng.stream(seed, "quadrant task", samples, features)
    x = draw.normal(size=(samples, features))
    x[:, :2] += gap * np.sign(x[:, :2])
    return x, np.sign(x[:, 0] * x[:, 1])


def _check(samples: int, features: int, gap: float) -> None:
    for name, value in (("samples", samples), ("features", features)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            raise GeneralizationError(f"{name} must be a positive integer, got {value!r}")
    if not (np.isfinite(gap) and gap > 0):
        raise GeneralizationError(f"gap must be a positive number, got {gap!r}")
