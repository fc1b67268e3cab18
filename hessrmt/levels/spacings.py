"""Spacings of unfolded levels.

Source: Mehta, Random Matrices (2004), §1.5; [B] eq. (7).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from hessrmt.errors import LevelsError
from hessrmt.levels.arguments import real_array

if TYPE_CHECKING:
    from jaxtyping import Float64


def spacings(unfolded: ArrayLike, order: int = 1) -> Float64[np.ndarray, " m"]:
    """Spacings s_i = ξ_{i+k} - ξ_i of unfolded levels, [B] eq. (7) for k = 1.

    Args:
        unfolded: (n,) levels of one spectrum of mean spacing 1, in any order; raw levels give raw
            spacings.
        order: k: 1 for nearest neighbours, 2 for next-nearest, and so on.

    Returns:
        (n - k,) spacings in units of the mean level spacing (so their mean is k), ascending levels
        first to last; zero for ties. Empty if there are not more than k levels.

    Raises:
        LevelsError: If the levels are not one-dimensional or not all finite, or k < 1.
    """
    ordered = ascending(unfolded)
    require_order(order)
    return ordered[order:] - ordered[:-order]


def ascending(levels: ArrayLike, name: str = "levels") -> Float64[np.ndarray, " n"]:
    """Levels of one spectrum, checked and sorted.

    Args:
        levels: (n,) in any order.
        name: What an error calls them.

    Returns:
        (n,) float64, ascending.

    Raises:
        LevelsError: If they are not real, not one-dimensional, not all finite, or so far apart that
            their distance is not.
    """
    values = real_array(levels, name)
    if values.ndim != 1:
        raise LevelsError(
            f"{name} must be one-dimensional, got shape {values.shape}; give one array for each "
            "spectrum"
        )
    if not np.isfinite(values).all():
        raise LevelsError(f"{name} must be finite, got NaN or infinity")
    ordered = np.sort(values)
    if len(ordered) and not ordered[-1] / 2 - ordered[0] / 2 <= np.finfo(np.float64).max / 2:
        raise LevelsError(f"{name} span more than float64 holds; rescale them")
    return ordered


def require_order(order: int) -> None:
    """Refuse an order that is not a positive integer.

    Raises:
        LevelsError: If it is not.
    """
    if isinstance(order, bool) or not isinstance(order, int | np.integer) or order < 1:
        raise LevelsError(f"order must be a positive integer, got {order!r}")
