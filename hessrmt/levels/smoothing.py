"""Staircases N̄(λ) smoothed around each level: a Gaussian kernel and a local window.

Both trust their input, sorted finite levels of which at least two differ, and count N̄ as
:mod:`hessrmt.levels.staircase` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.special import ndtr

from hessrmt.errors import OptionError
from hessrmt.levels.staircase import at_least, number

if TYPE_CHECKING:
    from hessrmt.arrays import Levels

_REACH = 8.0
"""Standard deviations at which a Gaussian step counts as complete: Φ(-8) = 6e-16."""

_CHUNK = 1 << 20
"""Pairs of level and kernel evaluated at once."""


def kernel(levels: Levels, *, width: float = 5.0, neighbours: int = 15) -> Levels:
    """N̄(λ) = Σ_i Φ((λ - λ_i)/h_i), with h_i = width × the mean spacing around level i.

    The levels are continued evenly beyond both ends (each end level once), so what a Gaussian puts
    outside comes back inside: N̄ grows by exactly n - 1 from the first level to the last. Each
    level raises N̄ around itself, so narrow Gaussians even the spacings out: a width of 2 lowers
    the GOE's variance of spacings by a seventh, a width of 5 by a fortieth.

    Args:
        levels: (n,) ascending.
        width: Standard deviation in local mean spacings; at most (n - 1)/8 is used.
        neighbours: On each side, of the local mean spacing; at most n/4 are used. Where they all
            coincide, the next twice as far are asked.

    Returns:
        (n,) unfolded levels.

    Raises:
        OptionError: If the width is not positive or there are fewer than two neighbours.
    """
    if not number("width", width) > 0:
        raise OptionError(f"width must be positive, in mean spacings, got {width}")
    n = len(levels)
    h = min(width, (n - 1) / 8) * _mean_spacings(levels, _enough(neighbours, n))
    low, high, reach = levels[0], levels[-1], _REACH * h
    left = 1 + np.flatnonzero(levels[1:] - low < reach[1:])
    right = np.flatnonzero(high - levels[:-1] < reach[:-1])
    centres = np.concatenate([levels, low - (levels[left] - low), high + (high - levels[right])])
    h = np.concatenate([h, h[left], h[right]])
    total = _sum_of_steps(levels, centres, h)
    # a sum of rising steps: it falls by round-off only
    return np.maximum.accumulate(0.5 + (total - total[0]))


def window(levels: Levels, *, neighbours: int = 15, passes: int = 2) -> Levels:
    """ξ_{i+1} - ξ_i = (λ_{i+1} - λ_i)·D_i, D_i the density of the levels around this gap.

    D_i = (2w - 1)/(λ_{i+w} - λ_{i-w+1}): w levels on each side of the gap, fewer beyond the ends.
    One pass takes a density that curves within the window for its average there (400 levels over
    ten decades come out with mean spacing 0.9). Pass k unfolds what the others left with windows k
    times as wide: two remove that to leading order, as Tukey's twicing does for a kernel, and add
    next to no noise of their own.

    Each pass leaves spacings of at most 2kw - 1, and counts over more levels than that are as
    regular as a ruler: number variance and rigidity mean nothing there. A gap wider than the rest
    of its window makes its neighbours small.

    Args:
        levels: (n,) ascending.
        neighbours: w; at most n/4 are used.
        passes: How many; 1 is the bare formula.

    Returns:
        (n,) unfolded levels.
    """
    n = len(levels)
    at_least("neighbours", neighbours, 2)
    spacings = np.diff(levels)
    for k in range(1, at_least("passes", passes, 1) + 1):
        w = _enough(k * neighbours, n)
        span, held = _around(spacings, w), _around(np.ones(n - 1), w)
        spacings = held * np.divide(spacings, span, out=np.zeros(n - 1), where=span > 0)
    return 0.5 + np.concatenate([[0.0], np.cumsum(spacings)])


def _around(spacings: Levels, w: int) -> Levels:
    """Sum of each spacing and the w - 1 on each side of it, as far as there are so many."""
    return np.convolve(spacings, np.ones(2 * w - 1))[w - 1 : w - 1 + len(spacings)]


def _enough(neighbours: int, n: int) -> int:
    return min(at_least("neighbours", neighbours, 2), max(2, n // 4))


def _mean_spacings(levels: Levels, neighbours: int) -> Levels:
    n, index = len(levels), np.arange(len(levels))
    spacings = np.zeros(n)
    while (index := np.flatnonzero(spacings == 0)).size:
        low, high = np.maximum(index - neighbours, 0), np.minimum(index + neighbours, n - 1)
        spacings[index] = (levels[high] - levels[low]) / (high - low)
        neighbours *= 2
    return spacings


def _sum_of_steps(points: Levels, centres: Levels, h: Levels) -> Levels:
    """Σ_k Φ((x - c_k)/h_k) at ascending points x; steps further than 8 h away are 0 or 1."""
    n = len(points)
    start = np.searchsorted(points, centres - _REACH * h, side="left")
    stop = np.searchsorted(points, centres + _REACH * h, side="right")
    total = np.cumsum(np.bincount(stop, minlength=n + 1)[:n]).astype(np.float64)
    pairs = np.cumsum(stop - start)
    done = 0
    while done < len(centres):
        before = pairs[done - 1] if done else 0
        upto = max(done + 1, int(np.searchsorted(pairs, before + _CHUNK, side="right")))
        counts = (stop - start)[done:upto]
        which = np.repeat(np.arange(done, upto), counts)
        point = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts) + start[which]
        share = ndtr((points[point] - centres[which]) / h[which])
        total += np.bincount(point, weights=share, minlength=n)
        done = upto
    return total
