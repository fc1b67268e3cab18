"""Consecutive spacing ratios, which need no unfolding.

Source: Oganesyan, Huse, PRB 75, 155111 (2007); Atas et al., PRL 110, 084101 (2013), eq. (1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

if TYPE_CHECKING:
    from jaxtyping import Float64


def ratios(levels: ArrayLike) -> Float64[np.ndarray, " m"]:
    """Ratios r̃_i = min(s_{i+1}, s_i) / max(s_{i+1}, s_i) of consecutive spacings.

    Args:
        levels: (n,) levels of one spectrum, in any order; give only certified ones
            (``spectrum.resolved``), since round-off has GOE statistics of its own.

    Returns:
        (n - 2,) ratios in [0, 1], dimensionless; pairs of two zero spacings are left out, since
        their ratio is undefined. Empty for fewer than three levels.

    Raises:
        ValueError: If the levels are not one-dimensional or not all finite.
    """
    ordered = np.sort(np.asarray(levels, dtype=np.float64))
    if ordered.ndim != 1:
        raise ValueError(f"levels must be one-dimensional, got shape {ordered.shape}")
    if not np.isfinite(ordered).all():
        raise ValueError("levels must be finite")
    spacings = np.diff(ordered)
    low = np.minimum(spacings[1:], spacings[:-1])
    high = np.maximum(spacings[1:], spacings[:-1])
    return low[high > 0] / high[high > 0]


def mean_ratio(levels: ArrayLike) -> float:
    """Mean ⟨r̃⟩ over one spectrum; compare with :mod:`hessrmt.theory.ratios`.

    Args:
        levels: As in :func:`ratios`.

    Returns:
        The mean, or NaN for fewer than three distinct levels.
    """
    values = ratios(levels)
    return float(values.mean()) if len(values) else float("nan")
