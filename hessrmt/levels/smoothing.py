"""The smoothed density of a run of levels, and levels of even density moved to it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64

from hessrmt.theory import number_variance

Grid = Float64[np.ndarray, " g"]
Rows = Float64[np.ndarray, "spectra n"]

_BLOCKS, _BLOCK = 5, (5, 30)
"""A density is smoothed over blocks of a fifth of a run, between 5 and 30 levels."""

_ENDS = (5, 15)
"""Levels from either end at which blocks end, where they are longer."""

_LEAST = -690.0
"""Logarithm of the smallest spacing that is told from zero, of the largest one."""

_CHANCE = 2.0
"""Part of a change of density that is ascribed to chance, times what chance explains on average."""

_PASSES = 3
"""After the first, in each of which spacings are divided by the density found so far."""


@dataclass(frozen=True)
class Smooth:
    """The smoothed density of a run, or of a piece of one; or of several of one size.

    Attributes:
        size: Levels.
        places: (k,) of the knots, counted in levels from the first one.
        logs: (..., k) ln of the mean spacing there, linear in between.
        cut: Whether it is a piece of a longer run.
    """

    size: int
    places: Grid
    logs: Rows
    cut: bool = False

    @classmethod
    def of(cls, steps: Rows, cut: bool = False) -> Smooth:
        """Smooth the density of some levels.

        Spacings are averaged over blocks; their logarithm is linear from the middle of one to that
        of the next, which is exact for exponential densities, over however many decades. They are
        divided by the density so found and averaged again, so that the largest one of a block does
        not decide alone. What changes within a block, as the tail of a few outliers or a gap, is
        not followed.

        Args:
            steps: (..., n - 1) spacings of neighbours, not all zero.
            cut: Whether they are a piece of a longer run.

        Returns:
            The density, or that of each row.
        """
        n = steps.shape[-1] + 1
        block = int(np.clip(n // _BLOCKS, *_BLOCK))
        count = max(1, (n - 1) // block)
        width = (n - 1) // count  # the same for all, as is then what averaging makes of a slope
        edges = (n - 1 - width * count) // 2 + width * np.arange(count + 1)
        middle, mean = (edges[1:] + edges[:-1]) / 2, _means(steps, edges)
        used = (mean > 0).reshape(-1, count).all(axis=0)
        if not used.any():
            middle, mean = np.array([(n - 1) / 2]), steps.mean(axis=-1, keepdims=True)
            return cls(n, middle, np.zeros_like(mean), cut)
        middle, logs = middle[used], np.log(mean[..., used])
        found = cls._through(n, middle, logs, cut)
        for _ in range(_PASSES):
            logs = logs + np.log(_means(steps / found._even, edges)[..., used])
            found = cls._through(n, middle, logs, cut)
        if len(middle) > 2:
            x = middle - middle.mean()
            line = logs.mean(axis=-1, keepdims=True) + (logs @ x)[..., None] / (x @ x) * x
            widths = np.full(len(middle), 1.0 * width)
            logs = line + _beyond_chance(logs - line, widths, len(middle) - 2)
            found = cls._through(n, middle, logs, cut)
        return found._with_ends(steps, width)

    @classmethod
    def _through(cls, n: int, middle: Grid, logs: Rows, cut: bool) -> Smooth:
        """The density with these values in the middle of the blocks, continued to the ends."""
        if len(middle) > 1:
            slopes = np.diff(logs) / np.diff(middle)
            first = logs[..., :1] - slopes[..., :1] * middle[0]
            last = logs[..., -1:] + slopes[..., -1:] * (n - 1 - middle[-1])
            logs = np.concatenate([first, logs, last], axis=-1)
            middle = np.concatenate([[0.0], middle, [n - 1.0]])
        return cls(n, middle, logs - logs.max(axis=-1, keepdims=True), cut)

    @property
    def change(self) -> float:
        """Sum of the changes of ln(mean spacing), up and down, of one density."""
        return float(np.abs(np.diff(self.logs)).sum())

    @property
    def _even(self) -> Rows:
        """Spacings of evenly spaced levels that are moved to this density."""
        return self.spacings(np.arange(float(self.size)))

    def _with_ends(self, steps: Rows, width: int) -> Smooth:
        """The density followed more closely in the first block and the last, as at a soft edge."""
        if self.cut or width < 2 * _ENDS[0] or self.size < 2 * width:
            return self
        straight = steps / self._even
        cuts = np.array([0, *(place for place in _ENDS if place < width - 2), width])
        last = self.size - 1
        ends = cuts, last - cuts[::-1]
        means = [_means(straight, edges) for edges in ends]
        if not all((mean > 0).all() for mean in means):
            return self
        change = np.log(np.concatenate(means, axis=-1) / straight.mean(axis=-1, keepdims=True))
        widths = np.concatenate([np.diff(edges) for edges in ends])
        low, high = np.split(_beyond_chance(change, widths, len(widths)), 2, axis=-1)
        places = [(edges[1:] + edges[:-1]) / 2 for edges in ends]
        x = np.concatenate([places[0], [1.0 * width, 1.0 * last - width], places[1]])
        shift = np.concatenate([low, np.zeros((*steps.shape[:-1], 2)), high], axis=-1)
        knots = np.union1d(self.places, x)
        logs = _linear(knots, self.places, self.logs) + _linear(knots, x, shift)
        return replace(self, places=knots, logs=logs)

    def spacings(self, positions: Rows) -> Rows:
        """Spacings of levels of mean spacing 1 that are moved to this density.

        Args:
            positions: (..., n) ascending; each is stretched to the whole run first. Several
                densities move a row each.

        Returns:
            (..., n - 1) spacings.
        """
        first, last = positions[..., :1], positions[..., -1:]
        x = (positions - first) * ((self.size - 1) / (last - first))
        logs = _linear(x, self.places, self.logs)
        change = np.diff(logs)
        # the integral of an exponential from one level to the next
        mean = np.divide(np.expm1(change), change, out=np.ones_like(change), where=change != 0)
        return np.diff(x) * np.exp(np.maximum(logs[..., :-1], _LEAST)) * mean


def _beyond_chance(change: Rows, widths: np.ndarray, free: int) -> Rows:
    """Changes of a density, less what they owe to chance: that makes tests of levels too lenient.

    Args:
        change: (..., k) ln of the mean spacings of blocks, less what is expected.
        widths: (k,) spacings of each.
        free: How many of the k changes are independent.

    Returns:
        (..., k) the part by which their square is larger than that of GOE levels.

    Source: James and Stein 1961.
    """
    variance = number_variance(widths, "goe") - 1 / 6  # of the distance of w-th neighbours
    chance = _CHANCE * free * float(np.mean(variance / widths**2))
    square = np.square(change).sum(axis=-1, keepdims=True)
    return (1 - chance / np.maximum(square, chance)) * change


def _means(steps: Rows, edges: np.ndarray) -> Rows:
    """Mean spacing of each block of neighbouring ones."""
    sums = np.add.reduceat(steps[..., : edges[-1]], edges[:-1], axis=-1)
    return sums / np.diff(edges)


def _linear(x: Rows, places: Grid, values: Rows) -> Rows:
    """Values between knots, and beyond them those of the ends; rows of x and values go together."""
    if len(places) == 1:
        return np.zeros_like(x) + values
    values = np.broadcast_to(
        values, (*np.broadcast_shapes(x.shape[:-1], values.shape[:-1]), len(places))
    )
    x = np.broadcast_to(np.clip(x, places[0], places[-1]), (*values.shape[:-1], x.shape[-1]))
    left = np.clip(np.searchsorted(places, x, side="right") - 1, 0, len(places) - 2)
    share = (x - places[left]) / np.diff(places)[left]
    low, high = (np.take_along_axis(values, i, axis=-1) for i in (left, left + 1))
    return low + share * (high - low)
