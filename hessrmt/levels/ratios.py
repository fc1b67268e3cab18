"""Consecutive spacing ratios, which need no unfolding.

Source: Oganesyan, Huse, PRB 75, 155111 (2007); Atas et al., PRL 110, 084101 (2013), eq. (1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from hessrmt.levels.spacings import ascending, require_order

if TYPE_CHECKING:
    from jaxtyping import Float64


def ratios(levels: ArrayLike, folded: bool = True, order: int = 1) -> Float64[np.ndarray, " m"]:
    """Ratios r̃_i = min(s_{i+1}, s_i) / max(s_{i+1}, s_i) of consecutive spacings.

    With ``folded=False`` r_i = s_{i+1}/s_i ([B] eq. 11). Of order k the spacings are those of
    every k-th level, s_i = λ_{i+k} - λ_i beside λ_{i+2k} - λ_{i+k} (Tekur, Bhosale, Santhanam,
    PRB 98, 104305, 2018).

    Args:
        levels: (n,) levels of one spectrum, in any order; give only certified ones
            (``spectrum.resolved``), since round-off has GOE statistics of its own.
        folded: Whether to take min(r, 1/r), in [0, 1].
        order: k.

    Returns:
        (n - 2k,) ratios, dimensionless; pairs whose ratio is undefined are left out: two zero
        spacings, and for ``folded=False`` a zero denominator. Empty for fewer than 2k + 1 levels.

    Raises:
        LevelsError: A ``ValueError``: the levels are not one-dimensional or not all finite, or k
            is not a positive integer.
    """
    ordered = ascending(levels)
    require_order(order)
    step = ordered[order:] - ordered[:-order]
    return of_spacings(step[:-order], step[order:], folded)


def of_spacings(
    first: Float64[np.ndarray, " m"], second: Float64[np.ndarray, " m"], folded: bool = True
) -> Float64[np.ndarray, " k"]:
    """Ratios second/first of two arrays of spacings, undefined pairs left out.

    Args:
        first: (m,) spacings.
        second: (m,) the spacing after each.
        folded: Whether to take the smaller over the larger.

    Returns:
        (k,) ratios, k <= m.
    """
    if folded:
        first, second = np.maximum(first, second), np.minimum(first, second)
    defined = first > 0
    return second[defined] / first[defined]


def mean_ratio(levels: ArrayLike) -> float:
    """Mean ⟨r̃⟩ over one spectrum; compare with :mod:`hessrmt.theory.ratios`.

    Args:
        levels: As in :func:`ratios`.

    Returns:
        The mean, or NaN for fewer than three distinct levels.
    """
    values = ratios(levels)
    return float(values.mean()) if len(values) else float("nan")
