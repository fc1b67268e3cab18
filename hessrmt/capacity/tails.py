"""Exponents of every tail of a sample, and the tail whose distance from its law is least.

The exponents of all tails come from one pass. Their distances would cost a product of numbers of
values and of tails; the least one needs far fewer terms. A maximum over some of a tail's values
bounds its distance from below, so a tail whose bound exceeds the least distance known is out, and
the bounds are refined for the rest only. The minimum found is that of the full scan.

Everything is in t = ln(x/x_min) of a tail, a difference of depths ln(x_top/x), so that no digit is
lost in narrow tails and the unit of x does not matter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hessrmt.backend.reference import log_ratio

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jaxtyping import Bool, Float64, Int64

    Candidates = Int64[np.ndarray, " c"]

_CHUNK = 2**16
"""Elements of a temporary array: half a megabyte, what a core's own cache holds."""

_COARSE, _FINER = 16, 8
"""Values of each tail that bound its distance at first, and by how much more they become."""

_SLACK = 1e-12
"""A bound must exceed the best distance by more: exponentials may differ in their last bits."""


@dataclass(frozen=True)
class Tails:
    """Every tail of a sample: its exponent by maximum likelihood and what its law needs.

    Attributes:
        x: (d,) distinct values, ascending; tail i holds all values not below x_i.
        size: (d,) values in each tail.
        depth: (d,) ln(x_top/x).
        extent: (d,) ln(x_max/x), where the law ends; None without an upper cut-off.
        slope: (d - 1,) α - 1, tails of two distinct values or more.
    """

    x: Float64[np.ndarray, " d"]
    size: Int64[np.ndarray, " d"]
    depth: Float64[np.ndarray, " d"]
    extent: Float64[np.ndarray, " d"] | None
    slope: Float64[np.ndarray, " d-1"]

    def sigma(self, i: int) -> float:
        """Standard error of tail i's exponent.

        (α - 1)/√n (Clauset et al. 2009, eq. 3.2); with a cut-off the same quantity of its law, the
        inverse root of the Fisher information n Var ln x.

        Args:
            i: Which tail.

        Returns:
            σ.
        """
        slope, n = float(self.slope[i]), int(self.size[i])
        if self.extent is None:
            return slope / n**0.5
        extent = float(self.extent[i])
        _, derivative = _relative_mean(np.array([abs(slope) * extent]))
        return float(1 / (extent * np.sqrt(-n * derivative[0])))

    def gaps(
        self, some: Candidates, at: Int64[np.ndarray, "c k"] | slice
    ) -> Float64[np.ndarray, "c k"]:
        """|F - #{tail < x}/n| of some tails at some values: the lower ends of the steps.

        Args:
            some: (c,) which tails.
            at: (c, k) indices of values, or k values for all; those below a tail give 0.

        Returns:
            (c, k).
        """
        i = some[:, None]
        share = 1 / self.size[i]
        gap = np.minimum(self.size[at] * share, 1.0)
        gap -= self._survival(i, np.maximum(self.depth[i] - self.depth[at], 0.0))
        return np.abs(gap, out=gap)

    def _survival(
        self, i: Int64[np.ndarray, "c 1"], t: Float64[np.ndarray, "c k"]
    ) -> Float64[np.ndarray, "c k"]:
        if self.extent is None:
            t *= -self.slope[i]
            return np.exp(t, out=t)
        # (e^(-βt) - e^(-βL))/(1 - e^(-βL)); for β < 0 its mirror image, where nothing overflows
        extent, mirrored = self.extent[i], self.slope[i] < 0
        beta = np.maximum(np.abs(self.slope[i]), np.finfo(float).tiny ** 0.5)
        t = np.where(mirrored, extent - t, t)
        law = np.exp(-beta * t) * np.expm1(beta * (t - extent)) / np.expm1(-beta * extent)
        return np.where(mirrored, 1 - law, law)


def tails(
    ordered: Float64[np.ndarray, " n"], x_max: float | None = None, x_min: float | None = None
) -> Tails:
    """Exponents of all tails of a sample, in one pass.

    Without a cut-off α = 1 + n/Σ ln(x/x_min) (Clauset, Shalizi, Newman, SIAM Rev. 51, 661 (2009),
    eq. 3.1). With one, ln x has an exponential law cut off at L = ln(x_max/x_min), and α - 1 = β
    solves ⟨ln(x/x_min)⟩ = 1/β - L/(e^(βL) - 1); it may be negative.

    Args:
        ordered: (n,) ascending, positive, finite; two distinct values or more.
        x_max: Where the laws end, not below the largest value.
        x_min: Where the longest tail begins, not above the smallest value; None for there.

    Returns:
        The tails, the longest first.
    """
    first = np.flatnonzero(np.append(True, ordered[1:] > ordered[:-1]))
    x, size = ordered[first], len(ordered) - first
    if x_min is not None and x_min < x[0]:
        x, size = np.append(x_min, x), np.append(size[0], size)
    # Σ over a tail = Σ over the next one + its size · the ratio between them, all positive
    sums = np.cumsum((size[1:] * log_ratio(x[1:], x[:-1]))[::-1])[::-1]
    depth = log_ratio(x[-1], x)
    if x_max is None:
        return Tails(x, size, depth, None, size[:-1] / sums)
    extent = log_ratio(x_max, x)
    slope = _truncated_rate(sums / (size[:-1] * extent[:-1])) / extent[:-1]
    return Tails(x, size, depth, extent, slope)


def _truncated_rate(mean: Float64[np.ndarray, " c"]) -> Float64[np.ndarray, " c"]:
    """βL of an exponential law on [0, L] with given mean/L: Newton's method, all at once."""
    m = np.minimum(mean, 1 - mean)  # β -> -β mirrors the law
    # the function is convex and falls: from the left Newton's steps never pass the root
    z = np.where(m > 0.1, 6 - 12 * m, 0.9 / m)
    for _ in range(64):
        value, derivative = _relative_mean(z)
        step = (value - m) / derivative
        z = np.maximum(z - step, 0.0)
        if np.all(np.abs(step) <= 1e-15 * (1 + z)):
            break
    return np.where(mean > 0.5, -z, z)


def _relative_mean(
    z: Float64[np.ndarray, " c"],
) -> tuple[Float64[np.ndarray, " c"], Float64[np.ndarray, " c"]]:
    """Mean of an exponential law on [0, L] over L, 1/z - 1/(e^z - 1) at z = βL ≥ 0.

    By series, with Bernoulli numbers, where the terms cancel.

    Args:
        z: (c,).

    Returns:
        It and its derivative in z, which is minus the law's variance over L².
    """
    small = z < 0.3
    q = np.where(small, z * z, 0.0)
    big = np.where(small, 1.0, z)
    decay = np.exp(-big)
    direct = 1 / big - decay / -np.expm1(-big)
    slope = -1 / big**2 + decay / np.expm1(-big) ** 2
    series = 0.5 - z * (1 / 12 - q * (1 / 720 - q * (1 / 30240 - q / 1209600)))
    series_slope = -1 / 12 + q * (1 / 240 - q * (1 / 6048 - q / 172800))
    return np.where(small, series, direct), np.where(small, series_slope, slope)


def closest(of: Tails, allowed: Bool[np.ndarray, " d-1"]) -> tuple[int, float]:
    """The tail with the least Kolmogorov-Smirnov distance from its own law.

    Args:
        of: The tails.
        allowed: (d - 1,) which of them may be chosen; one at least.

    Returns:
        Its index, the first of equal ones, and its distance.
    """
    left = np.flatnonzero(allowed)
    bounds = _bounds(of, left, _COARSE)
    points, best, found = _COARSE, np.inf, -1
    while True:
        # a promising tail first: most others are then out
        promising = left[[np.argmin(bounds)]]
        distance = float(_distances(of, promising, best)[0])
        if (distance, promising[0]) < (best, found):
            best, found = distance, int(promising[0])
        keep = (bounds <= best + _SLACK) & (left != promising[0])
        left, bounds = left[keep], bounds[keep]
        points *= _FINER
        if points * _FINER > len(of.x) or len(left) * len(of.x) <= _CHUNK:
            break
        bounds = np.maximum(bounds, _bounds(of, left, points))
    order = np.argsort(bounds, kind="stable")
    left, bounds = left[order], bounds[order]
    begin = 0
    while begin < len(left) and bounds[begin] <= best + _SLACK:
        some = left[begin : begin + _rows(of, int(left[begin]))]
        distances = _distances(of, some, best)
        best, found = min((best, found), *zip(distances.tolist(), some.tolist(), strict=True))
        begin += len(some)
    return found, best


def distances(of: Tails) -> Float64[np.ndarray, " d-1"]:
    """Kolmogorov-Smirnov distances of all tails from their laws; work O(d²).

    Args:
        of: The tails.

    Returns:
        (d - 1,).
    """
    found = np.empty(len(of.slope))
    begin = 0
    while begin < len(found):
        some = np.arange(begin, min(begin + _rows(of, begin), len(found)))
        found[some] = _distances(of, some, np.inf)
        begin += len(some)
    return found


def _rows(of: Tails, first: int) -> int:
    """How many tails to evaluate at once: few, since shorter ones are padded."""
    return min(max(_CHUNK // (len(of.x) - first), 1), 64)


def _bounds(of: Tails, candidates: Candidates, points: int) -> Float64[np.ndarray, " c"]:
    """The largest of some gaps of each tail, seldom far below the largest of all.

    Args:
        of: The tails.
        candidates: (c,) which of them.
        points: Gaps spread over a tail, and again as many about the largest of those.

    Returns:
        (c,) lower bounds of distances.
    """
    found = np.empty(len(candidates))
    steps = (np.arange(points) + 0.5) / points
    for rows in _chunks(len(candidates), points):
        some = candidates[rows]
        values = len(of.x) - some
        gaps = of.gaps(some, some[:, None] + (values[:, None] * steps).astype(np.int64))
        largest = gaps.argmax(axis=1)
        near = np.clip(steps[largest][:, None] + (2 * steps - 1) / points, 0, 1)
        at = np.minimum((values[:, None] * near).astype(np.int64), values[:, None] - 1)
        nearby = of.gaps(some, some[:, None] + at).max(axis=1)
        found[rows] = np.maximum(gaps[np.arange(len(some)), largest], nearby)
    return found


def _distances(of: Tails, some: Candidates, enough: float) -> Float64[np.ndarray, " c"]:
    """Distances of some tails; where they exceed ``enough`` possibly less, still above it."""
    worst = np.zeros(len(some))
    begin = int(some.min())
    for columns in _chunks(len(of.x) - begin, len(some)):
        at = slice(begin + columns.start, begin + columns.stop)
        np.maximum(worst, of.gaps(some, at).max(axis=1), out=worst)
        if worst.min() > enough:
            break
    return worst


def _chunks(n: int, width: int) -> Iterator[slice]:
    step = max(_CHUNK // width, 1)
    return (slice(i, min(i + step, n)) for i in range(0, n, step))
