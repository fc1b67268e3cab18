"""Long-range statistics of unfolded levels: number variance, rigidity, spectral form factor.

Source: Dyson and Mehta 1963; Mehta 2004, ch. 16; Guhr, Müller-Groeling and Weidenmüller 1998, sec.
3.2 (number variance, rigidity); Bohigas and Giannoni 1975 (rigidity); Haake 2010, ch. 4 (form
factor), with a smooth filter Šuntajs et al. 2020, over overlapping blocks of a spectrum Welch 1967.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike

from hessrmt.checks import real, real_array
from hessrmt.errors import DataError
from hessrmt.levels.spacings import ascending, rows_of

Rows = ArrayLike | Sequence[ArrayLike]
Levels = Float64[np.ndarray, " levels"]
Curve = Float64[np.ndarray, " m"]
Values = Float64[np.ndarray, "*shape"]
Table = Float64[np.ndarray, "rows columns"]

BLOCK = 500.0
"""Longest window of the form factor in mean level spacings: it blurs τ by about 2/500, far less
than K's features."""

_MEAN_SPACING = (0.1, 10.0)
"""Mean spacings within which levels may be unfolded ones; raw eigenvalues rarely are."""

_APART = 0.381966011250105
"""Least step between windows shorter than half a spacing: (3 - √5)/2, in step with no lattice."""

_SHORTEST = 128
"""Fewest windows that share their sums."""

_CHUNK = 4096
"""Levels or windows treated together, so that the work stays in the cache."""

_PHASES = 1 << 18
"""Phases held at once (2 MiB), or one for each level of a longer spectrum."""


def number_variance(unfolded: Rows, L: ArrayLike) -> Values:
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
        L: Window length, scalar or (m,), in mean level spacings; some spectrum must be longer.

    Returns:
        Σ²(L), dimensionless: a float for a scalar L, else (m,) float64.
    """
    return _at_lengths(_variance, unfolded, L)


def rigidity(unfolded: Rows, L: ArrayLike) -> Values:
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
        L: Window length, scalar or (m,), in mean level spacings; some spectrum must be longer.

    Returns:
        Δ₃(L), dimensionless: a float for a scalar L, else (m,) float64.
    """
    return _at_lengths(_rigidity, unfolded, L)


def form_factor(unfolded: Rows, tau: ArrayLike, *, block: float = BLOCK) -> Values:
    r"""K(τ) = ⟨|Σ_j w_j exp(2πi ξ_j τ)|²⟩ / ⟨Σ_j w_j²⟩, w_j = sin²(π(ξ_j - a)/T) in [a, a + T].

    The averages run over windows [a, a + T]. A spectrum longer than ``block`` is cut into windows
    of that length, spread evenly from its first level to its last and overlapping by half or a
    little more; a shorter one is a single window. Several spectra are pooled, numerator and
    denominator each summed over all their windows.

    The window ends smoothly (Hann's window), because the mean density of a spectrum that is cut off
    sharply leaks to every τ. What is left of that disconnected part is a peak of height 2T/3 at
    τ = 0 that ends at τ = 2/T, and less than T (τT)⁻⁶/12 beyond τ = 3/T: trust K(τ) at τ > 10/T. It
    is not subtracted. Features of K narrower than about 2/T are blurred.

    K(τ) → 1 at large τ; independent levels have K = 1 at every τ > 0.

    Args:
        unfolded: (n,) unfolded levels of one spectrum, or a sequence of such arrays, in any order,
            in mean level spacings (mean spacing 1); degenerate levels are allowed.
        tau: Time τ ≥ 0, scalar or (m,), in units of the Heisenberg time (2π over the mean level
            spacing).
        block: Longest window T, in mean level spacings.

    Returns:
        K(τ), dimensionless: a float for a scalar τ, else (m,) float64.

    Raises:
        DataError: If the levels, τ or block cannot be used.
    """
    spectra = _spectra(unfolded)
    times = _grid("tau", tau, least=0, hint="it is in Heisenberg times")
    longest = real("block", block, above=0, hint="it is in mean level spacings")
    power, norm = np.zeros(times.size), 0.0
    for levels in spectra:
        positions = levels - levels[0]
        windows = _tapered(positions, longest)
        norm += sum(float((weights * weights).sum()) for _, weights in windows)
        power += _power(positions, windows, times.ravel())
    if norm == 0:
        raise DataError(
            "no level lies inside a window: each spectrum's levels coincide with its first or last "
            "one; a form factor needs distinct levels"
        )
    return _shaped(power / norm, times)


def _at_lengths(
    statistic: Callable[[list[Levels], float], float], unfolded: Rows, L: ArrayLike
) -> Values:
    spectra = _spectra(unfolded)
    spans = [float(levels[-1] - levels[0]) for levels in spectra]
    lengths = _grid("L", L, above=0, hint="it is in mean level spacings")
    values = []
    for length in lengths.ravel().tolist():
        held = [levels for levels, span in zip(spectra, spans, strict=True) if span > length]
        if not held:
            raise DataError(
                f"no window of length L = {length:g} fits: the longest spectrum spans "
                f"{max(spans):g} mean spacings; take a smaller L or unfold more levels"
            )
        values.append(statistic(held, length))
    return _shaped(np.array(values), lengths)


def _grid(name: str, values: ArrayLike, **bounds: Any) -> Values:
    grid = real_array(name, values, empty=True, **bounds)
    if grid.ndim > 1:
        raise DataError(f"{name} must be a number or one-dimensional, got shape {grid.shape}")
    return grid


def _shaped(values: Curve, grid: Values) -> Values:
    return values if grid.ndim else float(values[0])  # pyright: ignore[reportReturnType]


def _spectra(unfolded: Rows) -> list[Levels]:
    """The spectra ascending, refused unless they can be unfolded ones."""
    rows = rows_of(unfolded)
    spectra = []
    for number, row in enumerate(rows):
        where = f"spectrum {number}: " if len(rows) > 1 else ""
        spectra.append(ascending(row, f"{where}levels"))
        if len(spectra[-1]) < 3:
            raise DataError(f"{where}got {len(spectra[-1])} levels, expected at least 3")
    spans = sum(float(levels[-1] - levels[0]) for levels in spectra)
    mean = spans / sum(len(levels) - 1 for levels in spectra)
    if mean and not _MEAN_SPACING[0] <= mean <= _MEAN_SPACING[1]:
        raise DataError(
            f"the levels have mean spacing {mean:.3g}, expected about 1; "
            "unfold them first (hessrmt.levels.unfold)"
        )
    return spectra


def _variance(spectra: list[Levels], length: float) -> float:
    # range of x, mean of N and integral of its squared deviation, merged piece by piece as by Chan,
    # Golub and LeVeque 1983: a sum of squares, where ⟨N²⟩ - ⟨N⟩² would cancel
    measure = mean = spread = 0.0
    for levels in spectra:
        positions = levels - levels[0]  # N is the same, and windows far from zero are no shorter
        end = float(positions[-1]) - length
        cuts = [*positions[: np.searchsorted(positions, end) : _CHUNK].tolist(), end]
        for start, stop in pairwise(cuts):
            widths, counts = _pieces(positions, length, start, stop)
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


def _pieces(positions: Levels, length: float, start: float, stop: float) -> tuple[Curve, Curve]:
    """Widths and values of the constant pieces of N(x) for x from start to stop."""
    ends = [start, stop, start + length, stop + length]
    low, high, near, far = np.searchsorted(positions, ends, side="right").tolist()
    # a level that round-off puts outside enters at the end of the range: no width is negative
    leaving, entering = positions[low:high], np.clip(positions[near:far] - length, start, stop)
    edges = np.concatenate([leaving, entering])  # two ascending runs: a stable sort merges them
    order = edges.argsort(kind="stable")
    counts = np.cumsum(np.append(near - low, 1.0 - 2.0 * (order < len(leaving))))
    return np.diff(edges[order], prepend=start, append=stop), counts


# The rigidity's windows consist of whole cells of an even grid. In a cell the few levels are summed
# in closed form, and the windows are sliding sums over cells. All sums are about a point of the
# staircase near the window, never about the spectrum's first level, so that no digits cancel in
# long spectra. Moments are ∫δ, ∫δ e and ∫δ² over cells or windows; e is the distance from a point
# near them.


class _Grid(NamedTuple):
    """Cells of length ``cell`` that start every ``pitch``; a window is ``parts`` cells."""

    length: float
    parts: int
    cell: float
    pitch: float


def _rigidity(spectra: list[Levels], length: float) -> float:
    parts = int(2 * length) + 1
    cell = length / parts
    grid = _Grid(length, parts, cell, cell if parts > 1 else max(cell, _APART))
    total, count = 0.0, 0
    for levels in spectra:
        positions = levels - levels[0]
        # round-off must not decide whether the last window of a lattice fits
        windows = int((float(positions[-1]) - length) / grid.pitch + 1e-9) + 1
        # windows that begin along a stretch of a few window lengths share their sums
        stretch = min(max(4 * parts, _SHORTEST), windows)
        step = stretch * max(1, _CHUNK // stretch)
        own = 0.0
        for first in range(0, windows, step):
            rows = -(-min(step, windows - first) // stretch)
            deviations = _deviations(positions, grid, first, rows, stretch)
            own += float(deviations.ravel()[: windows - first].sum())
        total += own
        count += windows
    return total / count


def _deviations(positions: Levels, grid: _Grid, first: int, rows: int, stretch: int) -> np.ndarray:
    """Mean square deviation from the best line in each window from the first-th on."""
    (area, lever, square), before = _cells(positions, grid, first, rows * stretch + grid.parts - 1)
    if grid.parts > 1:
        area, lever, square = _windows((area, lever, square), before, grid, stretch)
    length = grid.length
    found = square / length
    found -= (area / length) ** 2
    found -= 12 * (lever / length / length) ** 2
    # 1/√L and t √(12/L³) are orthonormal on the window, so that by Bessel's inequality the exact
    # value is not negative, whatever the levels: what lies below zero is round-off of terms that
    # cancel, and zero is nearer to the truth
    return np.maximum(found, 0.0, out=found)


def _windows(
    moments: tuple[Curve, Curve, Curve], before: Curve, grid: _Grid, stretch: int
) -> tuple[Table, Table, Table]:
    """Moments of every window about its own centre, from those of the cells about theirs."""
    width = stretch + grid.parts - 1
    area, lever, square, before = (
        sliding_window_view(flat, width)[::stretch] for flat in (*moments, before)
    )
    # about the beginning of the row: where a cell begins, and how high δ is there
    column = grid.cell * np.arange(width)
    height = before - before[:, :1] - column
    zeroth = area + grid.cell * height
    first = lever + column * zeroth
    square = square + height * (area + zeroth)
    zeroth, first, square = (_sliding_sums(one, grid.parts) for one in (zeroth, first, square))
    center = column[:stretch] + (grid.length - grid.cell) / 2
    return zeroth, first - center * zeroth, square


def _sliding_sums(values: Table, parts: int) -> Table:
    """Sums of ``parts`` neighbours along the rows."""
    sums = np.cumsum(values, axis=1)
    windows = sums[:, parts - 1 :].copy()
    windows[:, 1:] -= sums[:, :-parts]
    return windows


def _cells(
    positions: Levels, grid: _Grid, first: int, size: int
) -> tuple[tuple[Curve, Curve, Curve], Curve]:
    """Moments of δ, zero at each cell's beginning, about its centre; levels before each cell."""
    # With y the distance from a level to the end of its cell of length h, i its rank in the cell
    # and t measured from the centre: ∫N = Σ y, ∫N t = Σ (h y - y²)/2, ∫N² = Σ (2i - 1) y
    low, high = np.searchsorted(positions, [first * grid.pitch, (first + size) * grid.pitch])
    inside = positions[low:high]
    index = (inside / grid.pitch).astype(np.int64)
    to_end = (index * grid.pitch + grid.cell) - inside
    if grid.pitch > grid.cell:  # levels between the cells have no weight
        np.maximum(to_end, 0.0, out=to_end)
    index = np.clip(index - first, 0, size - 1)
    counts = np.bincount(index, minlength=size)
    before = np.cumsum(counts) - counts
    odd = 2 * (np.arange(len(inside)) - before[index]) + 1
    area = np.bincount(index, to_end, size)
    lever = grid.cell * area - np.bincount(index, to_end * to_end, size)
    square = np.bincount(index, odd * to_end, size)
    third = grid.cell**3 / 12
    # of N - t, which is δ but for a constant that the cell's height takes up
    return (area, lever / 2 - third, square - lever + third), before.astype(np.float64)


def _tapered(positions: Levels, longest: float) -> list[tuple[slice, Levels]]:
    """Which levels each window of the form factor holds, and their weights."""
    span = float(positions[-1])
    length = min(span, longest)
    if length == 0:
        return []
    starts = np.linspace(0.0, span - length, 1 + int(np.ceil(2 * (span - length) / length)))
    low = np.searchsorted(positions, starts, side="left").tolist()
    high = np.searchsorted(positions, starts + length, side="right").tolist()
    return [
        (slice(i, j), np.sin(np.pi / length * (positions[i:j] - start)) ** 2)
        for start, i, j in zip(starts.tolist(), low, high, strict=True)
        if j > i
    ]


def _power(positions: Levels, windows: list[tuple[slice, Levels]], times: Curve) -> Curve:
    """Σ over windows of |Σ_j w_j exp(2πi ξ_j τ)|²."""
    power = np.zeros(len(times))
    step = max(1, _PHASES // len(positions))
    for first in range(0, len(times), step):
        chunk = slice(first, first + step)
        turns = np.multiply.outer(positions, times[chunk])
        turns -= np.rint(turns)  # exact, and the functions below are quicker on small arguments
        turns *= 2 * np.pi
        for wave in (np.cos(turns), np.sin(turns)):
            for inside, weights in windows:
                power[chunk] += (weights @ wave[inside]) ** 2
    return power
