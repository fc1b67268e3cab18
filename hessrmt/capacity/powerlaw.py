"""Power laws in the tails of spectra: ρ(λ) ~ λ^(-α) on [x_min, x_max).

α by maximum likelihood, x_min where the Kolmogorov-Smirnov distance between the tail and its law is
least (Clauset, Shalizi and Newman 2009, §3.3), for continuous values. Conventions are those of the
Python package ``powerlaw`` 2.0 (Alstott, Bullmore and Plenz 2014):

- the distance counts the lower ends of the staircase's steps, #{tail < x}/n, alone
  (:func:`hessrmt.backend.reference.powerlaw_scan`). ``two_sided`` counts the upper ends as well:
  the Kolmogorov-Smirnov distance as it is defined, the supremum over all x, which for short tails
  is least at another x_min;
- a tail holds three distinct values or more (``powerlaw`` 1.5: two. The distance of two values
  from their law is 1/2 - e^-2, whatever they are).

Unlike that version, which refuses α ≥ 3 and reports its bound 3 where nothing else is left, α is
not limited; ``max_alpha=3`` gives its default.

An upper cut-off: by default there is none. ``x_max="max"`` ends the law at the largest value, the
cut-off's maximum-likelihood estimate. That moves α of an unlimited power law down: by 0.6, 0.3 and
0.2 σ on average for tails of 50, 500 and 5,000 values, whatever α. Without a cut-off, α of a law
that does end comes out too large: 2.69 for 2.5 that ends at 10 x_min, 5 σ of 2,000 values. A law
that ends may have any real α. (``powerlaw`` 2.0, given x_max, keeps the exponent of the law that
does not end where that is in (1.5, 3].)

The exponents of all tails come from one pass. Their distances would cost a product of numbers of
values and of tails; the least one needs far fewer terms. A maximum over some of a tail's values
bounds its distance from below, so a tail whose bound exceeds the least distance known is out, and
the bounds are refined for the rest only. The minimum found is that of the full scan.

Everything is in t = ln(x/x_min) of a tail, a difference of depths ln(x_top/x), so that no digit is
lost in narrow tails and the unit of x does not matter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from hessrmt import rng
from hessrmt.backend.reference import log_ratio
from hessrmt.backend.select import select
from hessrmt.checks import one_of, real, real_array, whole
from hessrmt.errors import DataError
from hessrmt.results import Result

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jaxtyping import Bool, Float, Float64, Int64

    from hessrmt.backend.base import Backend

    Values = Float[np.ndarray, " n"]
    Array = Float64[np.ndarray, " n"]
    Table = Float64[np.ndarray, "c k"]
    Candidates = Int64[np.ndarray, "..."]
    XMax = float | Literal["max"] | None

ALTERNATIVES = ("lognormal", "exponential", "truncated")
"""Laws that a power law is compared with."""

_CHUNK = 2**16
"""Elements of a temporary array: half a megabyte, what a core's own cache holds."""

_COARSE, _FINER = 16, 8
"""Values of each tail that bound its distance at first, and by how much more they become."""

_SLACK = 1e-12
"""A bound must exceed the best distance by more: exponentials may differ in their last bits."""

_TOGETHER = 2**20
"""Values of the bootstrap's synthetic samples that are fitted in one launch."""

_WIDEST = 600.0
"""ln(x_top/x_min) that float64 can compare."""

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)
_PANELS = 128
_DROP = 45.0
"""Integrands are left out where they lie below their maximum by more than e to this power."""


@dataclass(frozen=True)
class Rule:
    """How a tail is chosen; every fit carries its own.

    Attributes:
        x_min: Where the tail begins, if that is known; None: where the distance is least.
        x_max: Where the law ends: ``"max"`` at the largest value, or a number, above which values
            are left out; None: nowhere.
        floor: Values at or below it are left out: zero, or the noise of the values' computation.
        max_alpha: Only smaller exponents are considered; None: all.
        min_tail: Distinct values that a tail must hold, 3 or more.
        two_sided: Whether distances count the upper ends of the staircase's steps too.
    """

    x_min: float | None = None
    x_max: XMax = None
    floor: float = 0.0
    max_alpha: float | None = None
    min_tail: int = 3
    two_sided: bool = False

    def __post_init__(self) -> None:
        if self.x_min is not None:
            real("x_min", self.x_min, above=0, hint="or None")
        if self.x_max is not None and self.x_max != "max":
            real("x_max", self.x_max, above=0, hint='or None, or "max"')
        if self.max_alpha is not None:
            real("max_alpha", self.max_alpha, above=1, hint="or None")
        real("floor", self.floor, least=0)
        whole("min_tail", self.min_tail, 3)


@dataclass(frozen=True)
class TailFit:
    """A tail and its law; without one every float is NaN.

    Attributes:
        alpha: Exponent α.
        x_min: Where the tail begins.
        x_max: Where the law ends; infinite without a cut-off.
        ks_distance: Kolmogorov-Smirnov distance D between the tail and its law, of the lower ends
            of steps or two-sided.
        sigma: Standard error of α: (α - 1)/√n_tail; with a cut-off from its law's Fisher
            information. That of x_min's choice is not in it.
        n_tail: Values of the tail; 0 without one.
    """

    alpha: float
    x_min: float
    x_max: float
    ks_distance: float
    sigma: float
    n_tail: int


@dataclass(frozen=True)
class PowerLawFit(TailFit, Result):
    """The tail of a sample and its law, or the reason why there is none.

    ``bool(fit)`` tells whether there is one. Leave others out of averages. Beside the attributes of
    :class:`TailFit`:

    Attributes:
        n: Values that the fit could use.
        n_excluded: Values at or below the floor.
        n_above: Values above x_max.
        rule: How the tail was chosen.
        failed: None, or why there is no fit.
    """

    n: int
    n_excluded: int
    n_above: int
    rule: Rule
    failed: str | None = None

    def __bool__(self) -> bool:
        return self.failed is None


class _Scan(NamedTuple):
    x_min: Float64[np.ndarray, " c"]
    alpha: Float64[np.ndarray, " c"]
    ks_distance: Float64[np.ndarray, " c"]


def fit(
    values: Values,
    *,
    x_min: float | None = None,
    x_max: XMax = None,
    floor: float = 0.0,
    max_alpha: float | None = None,
    min_tail: int = 3,
    two_sided: bool = False,
    backend: Backend | None = None,
) -> PowerLawFit:
    """Fit a power law to the tail of a sample.

    Args:
        values: (n,) finite numbers in any order, e.g. eigenvalues. Equal ones are one place where a
            tail may begin: see :func:`hessrmt.capacity.tied` for those that rounding has split.
        x_min: See :class:`Rule`, as for the next five.
        x_max: Where the law ends.
        floor: Below the values of interest.
        max_alpha: Limit of the exponent.
        min_tail: Distinct values of a tail.
        two_sided: Which distance.
        backend: As in :func:`fit_all`.

    Returns:
        The fit; without any tail that fits the rule, its reason.
    """
    return _fits([values], [Rule(x_min, x_max, floor, max_alpha, min_tail, two_sided)], backend)[0]


def fit_all(
    spectra: Sequence[Values],
    *,
    x_min: float | None = None,
    x_max: XMax = None,
    floor: float | Sequence[float] = 0.0,
    max_alpha: float | None = None,
    min_tail: int = 3,
    two_sided: bool = False,
    backend: Backend | None = None,
) -> list[PowerLawFit]:
    """Fit power laws to the tails of many samples.

    Args:
        spectra: Samples, as for :func:`fit`.
        x_min: See :class:`Rule`, as for the next five.
        x_max: Where the laws end.
        floor: One for all, or one for each.
        max_alpha: Limit of the exponents.
        min_tail: Distinct values of a tail.
        two_sided: Which distance.
        backend: Where all distances of all tails of all samples are computed, in one launch. None:
            on the CPU those that the least one needs. The fits are the same. Where x_min or x_max
            is given, a backend is not used.

    Returns:
        A fit for each.

    Raises:
        DataError: If there are as many floors as samples neither for one nor for all.
    """
    floors = [floor] * len(spectra) if isinstance(floor, int | float) else list(floor)
    if len(floors) != len(spectra):
        raise DataError(f"{len(floors)} floors for {len(spectra)} spectra; give one for each")
    rules = [Rule(x_min, x_max, each, max_alpha, min_tail, two_sided) for each in floors]
    return _fits(spectra, rules, backend)


def scan(
    values: Values,
    *,
    x_max: XMax = None,
    floor: float = 0.0,
    two_sided: bool = False,
    backend: Backend | None = None,
) -> Scan:
    """Fits of all tails of a sample, e.g. to plot α and D against x_min; work O(n²).

    Args:
        values: (n,) as for :func:`fit`.
        x_max: See :class:`Rule`, as for the next two.
        floor: Below the values of interest.
        two_sided: Which distance.
        backend: Where it is computed, the CPU by default; with x_max on the CPU.

    Returns:
        x_min, α and D of each; none for fewer than two distinct values.
    """
    rule = Rule(x_max=x_max, floor=floor, two_sided=two_sided)
    ordered, *_ = _usable(values, rule)
    if len(ordered) < 2 or ordered[0] == ordered[-1]:
        return Scan(*np.empty((3, 0)))
    if rule.x_max is not None:
        x_max = float(ordered[-1] if x_max == "max" else rule.x_max)
        of = _tails(ordered, x_max, two_sided=two_sided)
        return Scan(of.x[:-1], 1 + of.slope, of.distances())
    where = select("cpu") if backend is None else backend
    ((alpha, distance),) = where.powerlaw_scan([ordered], two_sided=two_sided)
    first = np.flatnonzero(np.append(True, ordered[1:] > ordered[:-1]))[:-1]
    return Scan(ordered[first], alpha[first], distance[first])


def _usable(values: Values, rule: Rule) -> tuple[Array, int, int]:
    """The values that a rule leaves, ascending, and how many it leaves out on either side."""
    ordered = np.sort(real_array("values", values, dimensions=1, empty=True))
    low = int(np.searchsorted(ordered, rule.floor, side="right"))
    high = len(ordered)
    if rule.x_max is not None and rule.x_max != "max":
        high = max(int(np.searchsorted(ordered, rule.x_max, side="right")), low)
    return ordered[low:high], low, len(ordered) - high


def _fits(
    spectra: Sequence[Values], rules: Sequence[Rule], backend: Backend | None
) -> list[PowerLawFit]:
    samples = [_usable(values, each) for values, each in zip(spectra, rules, strict=True)]
    scanned: list[np.ndarray | None] = [None] * len(samples)
    if backend is not None and all(each.x_min is each.x_max is None for each in rules):
        rows = [ordered for ordered, *_ in samples]
        scans = backend.powerlaw_scan(rows, two_sided=any(each.two_sided for each in rules))
        scanned = [distance for _, distance in scans]
    return [_fit(*one) for one in zip(samples, rules, scanned, strict=True)]


def _fit(sample: tuple[Array, int, int], rule: Rule, scanned: np.ndarray | None) -> PowerLawFit:
    """Fit one sample; ``scanned``: the distance of each value's tail, where that is known."""
    values, excluded, above = sample
    counts = len(values), excluded, above
    if rule.x_min is not None:
        values = values[np.searchsorted(values, rule.x_min, side="left") :]
    distinct = len(np.unique(values))
    nothing = math.nan, math.nan, math.nan, math.nan, math.nan, 0, *counts, rule
    if distinct < rule.min_tail:
        where = f"above {rule.floor:g}" if rule.x_min is None else f"from {rule.x_min:g} on"
        why = f"{distinct} distinct values {where}; {rule.min_tail} are needed"
        return PowerLawFit(*nothing, why)
    x_max = float(values[-1]) if rule.x_max == "max" else rule.x_max
    of = _tails(values, x_max, rule.x_min, two_sided=rule.two_sided)
    longest = distinct - rule.min_tail if rule.x_min is None else 0
    allowed = np.arange(len(of.slope)) <= longest
    if rule.max_alpha is not None:
        allowed &= of.slope < rule.max_alpha - 1
        if not allowed.any():
            return PowerLawFit(*nothing, f"no tail has an exponent below {rule.max_alpha:g}")
    if scanned is None:
        i, distance = of.closest(allowed)
    else:
        each = np.where(allowed, scanned[len(values) - of.size[:-1]], np.inf)
        i = int(each.argmin())
        distance = float(each[i])
    end = math.inf if x_max is None else float(x_max)
    tail = float(of.x[i]), end, distance, of.sigma(i), int(of.size[i])
    return PowerLawFit(1 + float(of.slope[i]), *tail, *counts, rule)


# All tails of a sample


@dataclass(frozen=True)
class _Tails:
    """Every tail of a sample: its exponent by maximum likelihood and what its law needs.

    Attributes:
        x: (d,) distinct values, ascending; tail i holds all values not below x_i.
        size: (d,) values in each tail.
        depth: (d,) ln(x_top/x).
        extent: (d,) ln(x_max/x), where the law ends; None without an upper cut-off.
        slope: (d - 1,) α - 1, tails of two distinct values or more.
        above: (d,) values above each, where distances are two-sided; else None.
    """

    x: Float64[np.ndarray, " d"]
    size: Int64[np.ndarray, " d"]
    depth: Float64[np.ndarray, " d"]
    extent: Float64[np.ndarray, " d"] | None
    slope: Float64[np.ndarray, " d-1"]
    above: Int64[np.ndarray, " d"] | None = None

    def sigma(self, i: int) -> float:
        """Standard error of tail i's exponent, (α - 1)/√n (Clauset et al. 2009, eq. 3.2)."""
        slope, n = float(self.slope[i]), int(self.size[i])
        if self.extent is None:
            return slope / n**0.5
        # with a cut-off the same of its law: the inverse root of the Fisher information n Var ln x
        extent = float(self.extent[i])
        _, derivative = _relative_mean(np.array([abs(slope) * extent]))
        return float(1 / (extent * np.sqrt(-n * derivative[0])))

    def closest(self, allowed: Bool[np.ndarray, " d-1"]) -> tuple[int, float]:
        """The allowed tail with the least distance from its law, the first of equals; and that."""
        left = np.flatnonzero(allowed)
        bounds = self._bounds(left, _COARSE)
        points, best, found = _COARSE, np.inf, -1
        while True:
            # a promising tail first: most others are then out
            promising = left[[np.argmin(bounds)]]
            distance = float(self._worst_gaps(promising, best)[0])
            if (distance, promising[0]) < (best, found):
                best, found = distance, int(promising[0])
            keep = (bounds <= best + _SLACK) & (left != promising[0])
            left, bounds = left[keep], bounds[keep]
            points *= _FINER
            if points * _FINER > len(self.x) or len(left) * len(self.x) <= _CHUNK:
                break
            bounds = np.maximum(bounds, self._bounds(left, points))
        order = np.argsort(bounds, kind="stable")
        left, bounds = left[order], bounds[order]
        begin = 0
        while begin < len(left) and bounds[begin] <= best + _SLACK:
            # few tails at once, since shorter ones are padded
            count = min(max(_CHUNK // (len(self.x) - int(left[begin])), 1), 64)
            some = left[begin : begin + count]
            distances = self._worst_gaps(some, best)
            best, found = min((best, found), *zip(distances.tolist(), some.tolist(), strict=True))
            begin += len(some)
        return found, best

    def distances(self) -> Float64[np.ndarray, " d-1"]:
        """Kolmogorov-Smirnov distances of all tails from their laws; work O(d²)."""
        rows = _chunks(len(self.slope), len(self.x))
        return np.concatenate([self._worst_gaps(np.r_[each], np.inf) for each in rows])

    def _bounds(self, candidates: Candidates, points: int) -> Float64[np.ndarray, " c"]:
        """Lower bounds of distances: the largest of some gaps, seldom far below that of all."""
        # so many gaps are spread over a tail, and again as many about the largest of those
        found = np.empty(len(candidates))
        steps = (np.arange(points) + 0.5) / points
        for rows in _chunks(len(candidates), points):
            some = candidates[rows]
            values = len(self.x) - some
            gaps = self._gaps(some, some[:, None] + (values[:, None] * steps).astype(np.int64))
            largest = gaps.argmax(axis=1)
            near = np.clip(steps[largest][:, None] + (2 * steps - 1) / points, 0, 1)
            at = np.minimum((values[:, None] * near).astype(np.int64), values[:, None] - 1)
            nearby = self._gaps(some, some[:, None] + at).max(axis=1)
            found[rows] = np.maximum(gaps[np.arange(len(some)), largest], nearby)
        return found

    def _worst_gaps(self, some: Candidates, enough: float) -> Float64[np.ndarray, " c"]:
        """Distances of some tails; where they exceed ``enough`` possibly less, still above it."""
        worst = np.zeros(len(some))
        begin = int(some.min())
        for columns in _chunks(len(self.x) - begin, len(some)):
            at = slice(begin + columns.start, begin + columns.stop)
            np.maximum(worst, self._gaps(some, at).max(axis=1), out=worst)
            if worst.min() > enough:
                break
        return worst

    def _gaps(self, some: Candidates, at: Candidates | slice) -> Table:
        """|F - #{tail < x}/n| of tails at values, or the larger of both ends; 0 below a tail."""
        i = some[:, None]
        share = 1 / self.size[i]
        law = self._survival(i, np.maximum(self.depth[i] - self.depth[at], 0.0))
        gap = np.minimum(self.size[at] * share, 1.0)
        gap -= law
        np.abs(gap, out=gap)
        if self.above is not None:  # the upper end, #{tail ≤ x}/n
            law -= np.minimum(self.above[at] * share, 1.0)
            np.maximum(gap, law, out=gap)
        return gap

    def _survival(self, i: Candidates, t: Table) -> Table:
        if self.extent is None:
            t *= -self.slope[i]
            return np.exp(t, out=t)
        # (e^(-βt) - e^(-βL))/(1 - e^(-βL)); for β < 0 its mirror image, where nothing overflows
        extent, mirrored = self.extent[i], self.slope[i] < 0
        beta = np.maximum(np.abs(self.slope[i]), np.finfo(float).tiny ** 0.5)
        t = np.where(mirrored, extent - t, t)
        law = np.exp(-beta * t) * np.expm1(beta * (t - extent)) / np.expm1(-beta * extent)
        return np.where(mirrored, 1 - law, law)


def _tails(
    ordered: Array,
    x_max: float | None = None,
    x_min: float | None = None,
    *,
    two_sided: bool = False,
) -> _Tails:
    """Exponents of all tails of two distinct values or more, the longest first, in one pass."""
    # without a cut-off α = 1 + n/Σ ln(x/x_min) (Clauset et al. 2009, eq. 3.1); with one, ln x has
    # an exponential law cut off at L = ln(x_max/x_min), and β = α - 1, which may be negative,
    # solves ⟨ln(x/x_min)⟩ = 1/β - L/(e^(βL) - 1)
    first = np.flatnonzero(np.append(True, ordered[1:] > ordered[:-1]))
    x, size = ordered[first], len(ordered) - first
    if x_min is not None and x_min < x[0]:
        x, size = np.append(x_min, x), np.append(size[0], size)
    # Σ over a tail = Σ over the next one + its size · the ratio between them, all positive
    sums = np.cumsum((size[1:] * log_ratio(x[1:], x[:-1]))[::-1])[::-1]
    depth = log_ratio(x[-1], x)
    above = np.append(size[1:], 0) if two_sided else None
    if x_max is None:
        return _Tails(x, size, depth, None, size[:-1] / sums, above)
    extent = log_ratio(x_max, x)
    slope = _truncated_rate(sums / (size[:-1] * extent[:-1])) / extent[:-1]
    return _Tails(x, size, depth, extent, slope, above)


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


def _relative_mean(z: Array) -> tuple[Array, Array]:
    """Mean over L of an exponential law on [0, L], 1/z - 1/(e^z - 1) at z = βL ≥ 0; derivative."""
    # by series, with Bernoulli numbers, where the terms cancel; the derivative in z is minus the
    # law's variance over L²
    small = z < 0.3
    q = np.where(small, z * z, 0.0)
    big = np.where(small, 1.0, z)
    decay = np.exp(-big)
    direct = 1 / big - decay / -np.expm1(-big)
    slope = -1 / big**2 + decay / np.expm1(-big) ** 2
    series = 0.5 - z * (1 / 12 - q * (1 / 720 - q * (1 / 30240 - q / 1209600)))
    series_slope = -1 / 12 + q * (1 / 240 - q * (1 / 6048 - q / 172800))
    return np.where(small, series, direct), np.where(small, series_slope, slope)


def _chunks(n: int, width: int) -> Iterator[slice]:
    step = max(_CHUNK // width, 1)
    return (slice(i, min(i + step, n)) for i in range(0, n, step))


# Is it a power law's at all? The semi-parametric bootstrap


def goodness_of_fit(
    values: Values,
    fitted: PowerLawFit,
    *,
    samples: int = 1000,
    seed: int = 0,
    backend: Backend | None = None,
) -> float:
    """Probability that a power law's own sample lies as far from its fit as this one does.

    Synthetic samples of the same size: each value is, with probability n_tail/n, drawn from the
    fitted law, and otherwise one of the values below x_min. Each is fitted by the same rule, x_min
    included. Its standard error is √(p(1 - p)/samples). Below 0.1 the paper rejects the power law;
    a large p of a short tail says little.

    Args:
        values: (n,) those that were fitted.
        fitted: Their fit.
        samples: How many synthetic samples; each costs a fit (4,096 values: 3 to 7 ms on one core).
        seed: Of the run.
        backend: Where the fits are computed, as in :func:`fit_all`.

    Returns:
        (1 + samples whose distance is not below the fit's)/(1 + samples), so that it is never 0;
        NaN for a failed fit.

    Raises:
        DataError: If ``samples`` is not positive, or the fit is one of other values.

    Source: Clauset, Shalizi and Newman 2009, §4.1; the 1 + of Davison and Hinkley 1997, §4.2.
    """
    whole("samples", samples, 1, hint="1,000 for p to 0.016")
    body, _ = _parts(values, fitted)
    if not fitted:
        return math.nan
    generator = rng.stream(seed, "powerlaw", "bootstrap")

    def synthetic() -> Array:
        above = generator.binomial(fitted.n, fitted.n_tail / fitted.n) if len(body) else fitted.n
        below = generator.choice(body, fitted.n - above) if len(body) else body
        return np.concatenate([below, sample_law(fitted, above, generator)])

    step = max(_TOGETHER // fitted.n, 1)
    distances = []
    for begin in range(0, samples, step):
        drawn = [synthetic() for _ in range(min(step, samples - begin))]
        fits = _fits(drawn, [fitted.rule] * len(drawn), backend)
        distances += [one.ks_distance for one in fits if one]
    if not distances:
        return math.nan
    far = np.count_nonzero(np.array(distances) >= fitted.ks_distance)
    return (1 + int(far)) / (1 + len(distances))


def _parts(values: Values, fitted: PowerLawFit) -> tuple[Array, Array]:
    """The values below the tail of a fit, and the tail."""
    ordered, *_ = _usable(values, fitted.rule)
    below = np.searchsorted(ordered, fitted.x_min, side="left")
    found = len(ordered), len(ordered) - below
    if found != (fitted.n, fitted.n_tail):
        given = f"given with {found[0]} and {found[1]}; give the fitted values"
        raise DataError(f"a fit of {fitted.n} values, {fitted.n_tail} in the tail, {given}")
    return ordered[:below], ordered[below:]


def sample_law(fitted: PowerLawFit, n: int, generator: np.random.Generator) -> Array:
    """Independent values of a fitted law, by inversion.

    Args:
        fitted: With α, x_min and x_max.
        n: How many.
        generator: Source of randomness.

    Returns:
        (n,) in any order; what float64 cannot hold is its largest number.
    """
    slope, uniform = fitted.alpha - 1, generator.random(n)
    extent, top = math.log(fitted.x_max / fitted.x_min), fitted.x_max
    if math.isinf(extent):
        exponent, top = -np.log1p(-uniform) / slope, np.finfo(np.float64).max
    elif abs(slope) * extent < 1e-12:
        exponent = uniform * extent
    else:
        rate, share = abs(slope), uniform if slope > 0 else 1 - uniform
        exponent = -np.log1p(share * math.expm1(-rate * extent)) / rate
        exponent = exponent if slope > 0 else extent - exponent
    with np.errstate(over="ignore"):
        return np.minimum(fitted.x_min * np.exp(exponent), top)


# Does another law describe the tail better?


@dataclass(frozen=True)
class Comparison(Result):
    """A power law against another law of the same tail, each at its maximum likelihood.

    Attributes:
        against: The other law, of :data:`ALTERNATIVES`.
        log_likelihood_ratio: R = Σ ln(p_power/p_other), natural; positive: the power law fits
            better. Never positive for ``"truncated"``, which holds the power law, nor for
            ``"lognormal"``, which has it as a limit.
        normalized_ratio: R/(√n s), s the standard deviation of ln(p_power/p_other); 0 where the
            laws coincide.
        p_value: Of ``"lognormal"`` and ``"truncated"``, which hold the power law, it is
            ``p_power``. Of ``"exponential"`` that of R = 0, two-sided, from simulated tails of a
            law as far from one as from the other: large, the sign of R means nothing.
        p_power: Probability that a tail of the power law speaks as much against it as this one,
            for this alternative, from simulated tails; at least 1/(samples + 1).
        parameters: Of the other law: ``mu``, ``sigma`` (infinite in the power law's limit);
            ``Lambda``; ``alpha``, ``Lambda``.
    """

    against: str
    log_likelihood_ratio: float
    normalized_ratio: float
    p_value: float
    parameters: dict[str, float]
    p_power: float = math.nan


def compare(
    values: Values,
    fitted: PowerLawFit,
    against: str = "lognormal",
    *,
    samples: int = 1999,
    seed: int = 0,
) -> Comparison:
    """Compare a fitted power law with another law of its tail.

    - ``"lognormal"``: p ~ e^(-(ln x - μ)²/2σ²)/x;
    - ``"exponential"``: p ~ e^(-Λx);
    - ``"truncated"``: p ~ x^(-α) e^(-Λx), any real α, where ``powerlaw`` 2.0 allows 0 < α < 3.

    In t = ln(x/x_min) a power law is exponential, e^(-at) with a = α - 1. The lognormal is
    e^(-at-bt²) and the truncated power law e^(-at-b(e^t-1)), b ≥ 0: both hold the power law at
    b = 0, and both are exponential families, so that the likelihood is concave in (a, b) and
    Newton's method finds its only maximum. Where it lies at b = 0, the alternative is the power law
    itself and the ratio is 0; solvers in the usual parameters, of which some are infinite there,
    stop somewhere on the way.

    A law that holds the power law at the end of its range makes 2|R| neither normal nor χ²
    distributed, and the mean of e^t may have no variance. But Σt is sufficient for a power law:
    given it, the tail's t are uniform on a simplex, whatever α. And given it, R rises with the mean
    of t² (lognormal) or of e^t (the others). So simulated simplices tell how
    improbable this mean is, exactly, for tails of any length that begin at a given x_min. Where
    x_min was chosen by the fit, the tail is one that a power law fits well: small values of
    ``p_power`` then are rarer than they say.

    Args:
        values: (n,) those that were fitted.
        fitted: Their fit.
        against: The other law.
        samples: Simulated tails.
        seed: Of the run.

    Returns:
        The comparison; NaN and no parameters for a failed fit.

    Raises:
        DataError: If the law is unknown, the fit has a cut-off, which the other laws lack, or
            is one of other values.

    Source: Clauset, Shalizi and Newman 2009, §5.1 and appendix C; the ratio of laws of which none
    holds the other: Vuong 1989, whose normal law (here simulated) needs hundreds of values.
    """
    one_of("law", against, ALTERNATIVES)
    whole("samples", samples, 1)
    _, tail = _parts(values, fitted)
    if not fitted:
        return Comparison(against, math.nan, math.nan, math.nan, {})
    if math.isfinite(fitted.x_max):
        raise DataError(f"a law that ends at {fitted.x_max:g} is not compared; fit without x_max")
    t = log_ratio(tail, np.array(fitted.x_min))
    if t[-1] > _WIDEST:
        ends = f"from {fitted.x_min:g} to {tail[-1]:g}"
        raise DataError(f"the tail {ends} is too wide; raise the fit's floor")
    slope = fitted.alpha - 1
    power = math.log(slope) - slope * t  # densities in t: the factor x of both drops out
    other, parameters = _LAWS[against](t, slope, fitted.x_min)
    ratio, spread = float((power - other).sum()), float((power - other).std()) * len(t) ** 0.5
    function = np.square if against == "lognormal" else np.expm1
    generator = rng.stream(seed, "powerlaw", "comparison")
    normalized = ratio / spread if spread > 0 else 0.0
    p_power = p = _as_small(t, function, samples, generator)
    if against == "exponential":
        p = _as_far(t, normalized, samples, generator)
    return Comparison(against, ratio, normalized, p, parameters, p_power)


def _as_small(
    t: Array, function: Callable[[Array], Array], samples: int, generator: np.random.Generator
) -> float:
    """Probability that Σ f(t) is as small, given Σt, for independent exponential t."""
    found, sum_of_t = float(function(t).sum()), float(t.sum())
    free = int(np.count_nonzero(t))  # x_min itself is no draw where it is one of the values
    below = 1
    for chunk in _chunks(samples, free):
        drawn = generator.standard_exponential((chunk.stop - chunk.start, free))
        drawn *= sum_of_t / drawn.sum(axis=1, keepdims=True)
        with np.errstate(over="ignore"):
            below += int(np.count_nonzero(function(drawn).sum(axis=1) <= found))
    return below / (samples + 1)


def _as_far(t: Array, normalized: float, samples: int, generator: np.random.Generator) -> float:
    """Two-sided probability of R/(√n s) under a law as far from the power law as from e^(-Λx)."""
    # of the truncated power laws, which hold both: the one with ⟨t⟩ of the sample and R = 0, where
    # ln⟨e^t - 1⟩ = ln⟨t⟩ + ⟨t⟩
    mean = float(t.mean())
    scale = mean * math.exp(mean)
    family = _truncated_family(1 / mean, scale)
    s, weight, _ = family.quadrature(*family.of_means(np.array([mean, 1.0]), 1 / mean)[:2])
    law, free = weight.cumsum(), int(np.count_nonzero(t))
    low, high = 1, 1
    for chunk in _chunks(samples, len(t)):
        drawn = np.zeros((chunk.stop - chunk.start, len(t)))
        drawn[:, :free] = np.interp(generator.random((len(drawn), free)), law, s)
        excess = np.expm1(drawn)
        means = drawn.mean(axis=1, keepdims=True), excess.mean(axis=1, keepdims=True)
        # ln(p_power/p_exponential) but for its mean
        each = excess / means[1] - drawn * (1 + 1 / means[0])
        ratio = np.log(means[1] / means[0])[:, 0] - means[0][:, 0]
        found = math.sqrt(len(t)) * ratio / each.std(axis=1)
        low += int(np.count_nonzero(found <= normalized))
        high += int(np.count_nonzero(found >= normalized))
    return min(1.0, 2 * min(low, high) / (samples + 1))


def _exponential(t: Array, _: float, x_min: float) -> tuple[Array, dict[str, float]]:
    """e^(-Λ(x - x_min)): Λ is the inverse of the mean excess."""
    excess = np.expm1(t)
    rate = 1 / float(excess.mean())
    return math.log(rate) - rate * excess + t, {"Lambda": rate / x_min}


def _lognormal(t: Array, slope: float, x_min: float) -> tuple[Array, dict[str, float]]:
    scale = float(np.mean(t**2))
    family = _Family(lambda s: s**2 / scale, lambda q: q * scale / 2, 2 / (slope**2 * scale))
    a, b, density = family.maximum(t, slope)
    if b == 0:
        return density, {"mu": -math.inf, "sigma": math.inf}
    variance = scale / (2 * b)
    return density, {"mu": math.log(x_min) - a * variance, "sigma": math.sqrt(variance)}


def _truncated(t: Array, slope: float, x_min: float) -> tuple[Array, dict[str, float]]:
    scale = float(np.expm1(t).mean())
    family = _truncated_family(slope, scale)
    a, b, density = family.maximum(t, slope)
    return density, {"alpha": 1 + a, "Lambda": b / (scale * x_min)}


def _truncated_family(slope: float, scale: float) -> _Family:
    """Truncated power laws, whose ``scale`` is the mean of e^t - 1 in a sample."""
    mean = 1 / ((slope - 1) * scale) if slope > 1 else math.inf
    return _Family(lambda s: np.expm1(s) / scale, lambda q: math.log(q * scale), mean)


_LAWS = {"lognormal": _lognormal, "exponential": _exponential, "truncated": _truncated}


@dataclass(frozen=True)
class _Family:
    """Laws e^(-at-bg(t))/Z, t ≥ 0, b ≥ 0.

    Attributes:
        g: Convex, g(0) = 0, of mean 1 over the sample.
        where: The t at which g' has a given value.
        power_mean: Mean of g under the sample's power law, infinite where it diverges.
    """

    g: Callable[[Array], Array]
    where: Callable[[float], float]
    power_mean: float

    def maximum(self, t: Array, slope: float) -> tuple[float, float, Array]:
        """Maximum of the likelihood.

        Args:
            t: (n,) the sample.
            slope: a of its power law, b = 0.

        Returns:
            a, b and (n,) logarithms of densities.
        """
        of_t = self.g(t)
        means = np.array([t.mean(), of_t.mean()])
        # ∂/∂b of the mean log-likelihood at the power law; concave, so b = 0 unless it rises
        if self.power_mean <= means[1]:
            return slope, 0.0, math.log(slope) - slope * t
        a, b, log_z = self.of_means(means, slope)
        return a, b, -a * t - b * of_t - log_z

    def of_means(self, means: Array, slope: float) -> tuple[float, float, float]:
        """The law whose t and g have given means, b > 0, by damped Newton steps.

        Args:
            means: Of t and g.
            slope: Where a begins.

        Returns:
            a, b and ln Z.
        """
        theta = np.array([slope, 0.5])
        log_z, moments, covariance = self.integrals(theta)
        for _ in range(200):
            gradient = moments - means
            step = np.linalg.solve(covariance, gradient)
            inside = step[1] > -0.9 * theta[1]
            if not inside:  # b stays positive; the best a for that
                fall = -0.9 * theta[1]
                step = np.array([(gradient[0] - covariance[0, 1] * fall) / covariance[0, 0], fall])
            done = inside and gradient @ step < 1e-12
            found = self.integrals(theta + step)
            # a step may be too long, but not where the gain drowns in round-off
            while not done and found[0] - log_z + step @ means > 1e-14 * abs(log_z):
                step /= 2
                found = self.integrals(theta + step)
            theta, (log_z, moments, covariance) = theta + step, found
            if done:
                break
        return float(theta[0]), float(theta[1]), float(log_z)

    def quadrature(self, a: float, b: float) -> tuple[Array, Array, float]:
        """Points t, ascending, the law's probability at each, and ln Z, by Gauss-Legendre panels.

        Args:
            a: Of the law.
            b: Of the law, above 0.

        Returns:
            The three.
        """

        def exponent(s: Array) -> Array:
            with np.errstate(over="ignore"):
                return -a * s - b * self.g(s)

        # the exponent is concave: one peak, at 0 or where a + b g' = 0
        peak = max(self.where(-a / b), 0.0) if a < 0 else 0.0
        level = float(exponent(np.array([peak]))[0]) - _DROP
        reach = 2.0 ** np.arange(-40.0, 41.0)
        right = peak + reach[np.argmax(exponent(peak + reach) < level)]
        inside = exponent(np.maximum(peak - reach, 0)) < level
        left = max(peak - reach[np.argmax(inside)], 0.0) if inside.any() else 0.0
        edges = np.linspace(left, right, _PANELS + 1)
        half = (right - left) / (2 * _PANELS)
        s = (edges[:-1, None] + half * (1 + _NODES)).ravel()
        h = exponent(s)
        weight = np.exp(h - h.max()) * np.tile(half * _WEIGHTS, _PANELS)
        z = weight.sum()
        return s, weight / z, float(np.log(z) + h.max())

    def integrals(self, theta: Array) -> tuple[float, Array, Float64[np.ndarray, "2 2"]]:
        """Logarithm of Z, the means of (t, g) and their covariance.

        Args:
            theta: a and b > 0.

        Returns:
            The three.
        """
        s, weight, log_z = self.quadrature(*map(float, theta))
        functions = np.stack([s, self.g(s)])
        moments = functions @ weight
        centred = functions - moments[:, None]
        return log_z, moments, (centred * weight) @ centred.T


class Scan(_Scan, Result, axes={"tail": "x_min alpha ks_distance"}):
    """Fits of all tails of a sample, two distinct values or more.

    Attributes:
        x_min: (c,) ascending, where each begins.
        alpha: (c,) exponents.
        ks_distance: (c,) Kolmogorov-Smirnov distances.
    """
