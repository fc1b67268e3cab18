"""Number variance Σ²(L): how much the number of levels in a window of length L fluctuates.

Source: Dyson, Mehta, J. Math. Phys. 4, 701 (1963); Mehta, Random Matrices, 3rd ed. (2004), ch. 16;
Guhr, Müller-Groeling, Weidenmüller, Phys. Rep. 299, 189 (1998), sec. 3.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, overload

import numpy as np
from numpy.typing import ArrayLike

from hessrmt.levels.arguments import longer_than, positive_grid, sorted_spectra

if TYPE_CHECKING:
    from jaxtyping import Float64

_CHUNK = 4096
"""Levels treated together, so that the work stays in the cache."""


@overload
def number_variance(unfolded: ArrayLike | Sequence[ArrayLike], L: float) -> float: ...
@overload
def number_variance(
    unfolded: ArrayLike | Sequence[ArrayLike], L: ArrayLike
) -> float | Float64[np.ndarray, " m"]: ...
def number_variance(
    unfolded: ArrayLike | Sequence[ArrayLike], L: ArrayLike
) -> float | Float64[np.ndarray, " m"]:
    r"""Number variance Σ²(L) = ⟨N²⟩ - ⟨N⟩², N = #{ξ_i in (x, x + L]}, averaged over all windows.

    The averages are exact: N(x) is piecewise constant with steps at ξ_i and ξ_i - L, and is
    integrated over x from ξ_1 to ξ_n - L, in O(n) for each L. Several spectra are pooled: the
    integrals are summed over the spectra and divided by the sum of the ranges of x. A spectrum
    that spans no more than L is left out at that L. Both averages are taken over the given windows,
    so on a spectrum of span T the result is smaller than the ensemble's Σ²(L) by the variance of
    ⟨N⟩; keep L well below T.

    Args:
        unfolded: (n,) unfolded levels of one spectrum, or a sequence of such arrays, in any order,
            in mean level spacings (mean spacing 1); degenerate levels are allowed.
        L: Window length, scalar or (m,), in mean level spacings.

    Returns:
        Σ²(L), dimensionless: a float for a scalar L, else (m,) float64.

    Raises:
        LevelsError: If the levels or L cannot be used, or no spectrum is longer than L.
    """
    spectra = sorted_spectra(unfolded)
    lengths, scalar = positive_grid("L", L)
    values = np.array([_variance(longer_than(spectra, one), one) for one in lengths.tolist()])
    return float(values[0]) if scalar else values


def _variance(spectra: list[Float64[np.ndarray, " levels"]], length: float) -> float:
    # range of x, mean of N and integral of its squared deviation, merged piece by piece as by Chan,
    # Golub, LeVeque, Am. Stat. 37, 242 (1983): a sum of squares, where ⟨N²⟩ - ⟨N⟩² would cancel
    measure = mean = spread = 0.0
    for levels in spectra:
        positions = levels - levels[0]  # N is the same, and windows far from zero are no shorter
        end = float(positions[-1]) - length
        cuts = [*positions[: np.searchsorted(positions, end) : _CHUNK].tolist(), end]
        for start, stop in pairwise(cuts):
            widths, counts = _staircase(positions, length, start, stop)
            part = float(widths.sum())
            if part == 0:
                continue  # between degenerate levels
            own = float((widths * counts).sum()) / part
            counts -= own
            away, total = own - mean, measure + part
            spread += float((widths * counts * counts).sum()) + away * away * measure / total * part
            mean += away * part / total
            measure = total
    return spread / measure


def _staircase(
    levels: Float64[np.ndarray, " levels"], length: float, start: float, stop: float
) -> tuple[Float64[np.ndarray, " pieces"], Float64[np.ndarray, " pieces"]]:
    """Widths and values of the constant pieces of N(x) for x from start to stop."""
    low, high = np.searchsorted(levels, [start, stop], side="right").tolist()
    near, far = np.searchsorted(levels, [start + length, stop + length], side="right").tolist()
    # a level that round-off puts outside enters at the end of the range: no width is negative
    leaving, entering = levels[low:high], np.clip(levels[near:far] - length, start, stop)
    edges = np.concatenate([leaving, entering])  # two ascending runs: a stable sort merges them
    order = edges.argsort(kind="stable")
    counts = np.empty(len(edges) + 1)
    counts[0] = near - low
    np.subtract(1.0, 2.0 * (order < len(leaving)), out=counts[1:])
    np.cumsum(counts, out=counts)
    return np.diff(edges[order], prepend=start, append=stop), counts
