"""Spectral rigidity Δ₃(L): how far the staircase of levels strays from a straight line.

Source: Dyson, Mehta, J. Math. Phys. 4, 701 (1963); Bohigas, Giannoni, Ann. Phys. 89, 393 (1975);
Guhr, Müller-Groeling, Weidenmüller, Phys. Rep. 299, 189 (1998), sec. 3.2.

Every window consists of whole cells of an even grid. In a cell the few levels are summed in closed
form, and the windows are sliding sums over cells. All sums are about a point of the staircase near
the window, never about the spectrum's first level, so that no digits cancel in long spectra.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, overload

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike

from hessrmt.levels.arguments import longer_than, positive_grid, sorted_spectra

if TYPE_CHECKING:
    from jaxtyping import Float64

_APART = 0.381966011250105
"""Least step between windows shorter than half a spacing: (3 - √5)/2, in step with no lattice."""

_SHORTEST = 128
"""Fewest windows that share their sums."""

_CHUNK = 4096
"""Windows treated together, so that the work stays in the cache."""


@overload
def rigidity(unfolded: ArrayLike | Sequence[ArrayLike], L: float) -> float: ...
@overload
def rigidity(
    unfolded: ArrayLike | Sequence[ArrayLike], L: ArrayLike
) -> float | Float64[np.ndarray, " m"]: ...
def rigidity(
    unfolded: ArrayLike | Sequence[ArrayLike], L: ArrayLike
) -> float | Float64[np.ndarray, " m"]:
    r"""Dyson-Mehta Δ₃(L) = ⟨min_{A,B} (1/L) ∫_x^{x+L} [N(ξ) - Aξ - B]² dξ⟩ over windows x.

    N(ξ) is the number of levels up to ξ. The minimum is exact in every window: with δ = N - ξ and t
    measured from the window's centre it is ∫δ²/L - (∫δ/L)² - 12 (∫δ t)²/L⁴.

    The windows start at ξ_1 + j g, j = 0, 1, ..., as long as they end before ξ_n, with the step
    g = L/(floor(2L) + 1), and g = max(L, 0.382) for L < 1/2: two windows or more for each mean
    spacing, for an integer L at 2L + 1 different phases of it. Several spectra are pooled, every
    window with the same weight; a spectrum that spans no more than L is left out at that L. The
    time is O(n) for each L.

    Args:
        unfolded: (n,) unfolded levels of one spectrum, or a sequence of such arrays, in any order,
            in mean level spacings (mean spacing 1); degenerate levels are allowed.
        L: Window length, scalar or (m,), in mean level spacings.

    Returns:
        Δ₃(L), dimensionless: a float for a scalar L, else (m,) float64.

    Raises:
        LevelsError: If the levels or L cannot be used, or no spectrum is longer than L.
    """
    spectra = sorted_spectra(unfolded)
    lengths, scalar = positive_grid("L", L)
    values = np.empty(len(lengths))
    for i, length in enumerate(lengths.tolist()):
        total, windows = 0.0, 0
        for levels in longer_than(spectra, length):
            part, count = _total(levels, length)
            total += part
            windows += count
        values[i] = total / windows
    return float(values[0]) if scalar else values


class _Moments(NamedTuple):
    """∫δ, ∫δ e and ∫δ² over cells or windows; e is the distance from a point near them."""

    zeroth: Float64[np.ndarray, "*shape"]
    first: Float64[np.ndarray, "*shape"]
    square: Float64[np.ndarray, "*shape"]


class _Grid(NamedTuple):
    """Cells of length ``cell`` that start every ``pitch``; a window is ``parts`` cells."""

    length: float
    parts: int
    cell: float
    pitch: float

    @classmethod
    def of(cls, length: float) -> _Grid:
        parts = int(2 * length) + 1
        cell = length / parts
        return cls(length, parts, cell, cell if parts > 1 else max(cell, _APART))


def _total(levels: Float64[np.ndarray, " levels"], length: float) -> tuple[float, int]:
    """Sum of the windows' deviations, and the number of windows."""
    grid = _Grid.of(length)
    positions = levels - levels[0]
    # round-off must not decide whether the last window of a lattice fits
    windows = int((float(positions[-1]) - length) / grid.pitch + 1e-9) + 1
    # windows that begin along a stretch of a few window lengths share their sums
    stretch = min(max(4 * grid.parts, _SHORTEST), windows)
    step = stretch * max(1, _CHUNK // stretch)
    total = 0.0
    for first in range(0, windows, step):
        rows = -(-min(step, windows - first) // stretch)
        deviations = _deviations(positions, grid, first, rows, stretch)
        total += float(deviations.ravel()[: windows - first].sum())
    return total, windows


def _deviations(
    positions: Float64[np.ndarray, " levels"], grid: _Grid, first: int, rows: int, stretch: int
) -> Float64[np.ndarray, "rows stretch"]:
    """Mean square deviation from the best line in each window from the first-th on."""
    moments, before = _cells(positions, grid, first, rows * stretch + grid.parts - 1)
    if grid.parts > 1:
        moments = _windows(moments, before, grid, stretch)
    length = grid.length
    found = moments.square / length
    found -= (moments.zeroth / length) ** 2
    found -= 12 * (moments.first / length / length) ** 2
    # 1/√L and t √(12/L³) are orthonormal on the window, so that by Bessel's inequality the exact
    # value is not negative, whatever the levels: what lies below zero is round-off of terms that
    # cancel, and zero is nearer to the truth
    return np.maximum(found, 0.0, out=found)


def _windows(
    cells: _Moments, before: Float64[np.ndarray, " cells"], grid: _Grid, stretch: int
) -> _Moments:
    """Moments of every window about its own centre, from those of the cells about theirs."""
    width = stretch + grid.parts - 1

    def laid_out(flat: Float64[np.ndarray, " cells"]) -> Float64[np.ndarray, "rows width"]:
        return sliding_window_view(flat, width)[::stretch]

    # about the beginning of the row: where a cell begins, and how high δ is there
    column = grid.cell * np.arange(width)
    before = laid_out(before)
    height = before - before[:, :1] - column
    area = laid_out(cells.zeroth)
    zeroth = area + grid.cell * height
    first = laid_out(cells.first) + column * zeroth
    square = laid_out(cells.square) + height * (area + zeroth)
    zeroth, first, square = (_sliding_sums(one, grid.parts) for one in (zeroth, first, square))
    center = column[:stretch] + (grid.length - grid.cell) / 2
    return _Moments(zeroth, first - center * zeroth, square)


def _sliding_sums(
    values: Float64[np.ndarray, "rows width"], parts: int
) -> Float64[np.ndarray, "rows stretch"]:
    """Sums of ``parts`` neighbours along the rows."""
    sums = np.cumsum(values, axis=1)
    windows = sums[:, parts - 1 :].copy()
    windows[:, 1:] -= sums[:, :-parts]
    return windows


def _cells(
    positions: Float64[np.ndarray, " levels"], grid: _Grid, first: int, size: int
) -> tuple[_Moments, Float64[np.ndarray, " cells"]]:
    """Moments of δ, zero at each cell's beginning, about its centre; levels before each cell."""
    # With y the distance from a level to the end of its cell of length h, i its rank in the cell
    # and t measured from the centre: ∫N = Σ y, ∫N t = Σ (h y - y²)/2, ∫N² = Σ (2i - 1) y
    low, high = np.searchsorted(positions, [first * grid.pitch, (first + size) * grid.pitch])
    inside = positions[low:high]
    index = (inside / grid.pitch).astype(np.int64)
    to_end = (index * grid.pitch + grid.cell) - inside
    if grid.pitch > grid.cell:  # levels between the cells have no weight
        np.maximum(to_end, 0.0, out=to_end)
    index -= first
    np.clip(index, 0, size - 1, out=index)
    counts = np.bincount(index, minlength=size)
    before = np.cumsum(counts) - counts
    odd = 2 * (np.arange(len(inside)) - before[index]) + 1
    area = np.bincount(index, to_end, size)
    lever = grid.cell * area - np.bincount(index, to_end * to_end, size)
    square = np.bincount(index, odd * to_end, size)
    third = grid.cell**3 / 12
    # of N - t, which is δ but for a constant that the cell's height takes up
    return _Moments(area, lever / 2 - third, square - lever + third), before.astype(np.float64)
