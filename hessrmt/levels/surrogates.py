"""Surrogate levels: spectra of a known law with the runs and the density of some data.

A null hypothesis is that the levels are those of a law moved to the density of the data: ξ of the
law, λ = Q(ξ) with Q the data's smoothed staircase turned round. Surrogates have the data's runs,
and go through the same unfolding, so that whatever these do to a law is in the comparison. Runs of
up to 400 levels are imitated whole, longer ones in pieces.

A bank of levels of mean spacing 1 is drawn once for each law and kept in the user's cache folder;
losing it costs only time. Every run is imitated several times, and a surrogate data set takes one
of these versions for each, so that hundreds of data sets cost little more than a few.

Pooled unfolding does not change if all spectra are moved alike, and needs no density: there whole
spectra of a law are unfolded with each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32, Float64
from scipy.special import ndtr, pdtr

from hessrmt import rng
from hessrmt.backend.select import select
from hessrmt.errors import DataError
from hessrmt.levels.banks import BANK, STRETCH, bank, remembered, whole_spectra
from hessrmt.levels.goodness import POINTS, STATISTICS, Null, quantiles
from hessrmt.levels.resampling import Samples
from hessrmt.levels.smoothing import Smooth
from hessrmt.levels.unfolding import SHORTEST, pooled, unfold
from hessrmt.theory import number_variance

if TYPE_CHECKING:
    from hessrmt.arrays import Levels
    from hessrmt.backend.base import Backend
    from hessrmt.levels.selection import Selection

Grid = Float64[np.ndarray, " g"]
Rows = Float64[np.ndarray, "spectra n"]
Counts = Float64[np.ndarray, "rows g+1"]
MapUnordered = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[tuple[int, Any]]]


_VERSIONS, _MOST_VERSIONS, _LEVELS = 3, 400, 30_000
"""Versions of each run at least, and at most; and levels of all of them, if these allow."""

_STEEP, _TOO_STEEP, _LEVELS_STEEP = 0.1, 0.5, 40_000
"""Change of ln(mean spacing) from one level to the next from which surrogates are corrected for
what their density owes to chance, and from which no unfolding is followed; levels there."""

_UNKNOWN, _UNKNOWN_PART, _RUNS = 0.02, 0.011, 60
"""What unfolding does to a distribution function is known to 0.02 divided by the square root of the
levels of a run, and to 1.1 % of it, fitted to controls (docs/controls.md): the density is known
from the levels alone. More than 60 runs, unless they are long, are not taken to know better than so
many."""

_SCATTERING = 15_000
"""Levels of those from which it is known how ratios scatter."""

RATIO_SETS, _TOGETHER = 1000, 20
"""Data sets of ratios at least, which the verdicts rest on; how many neighbours stay together."""

_TARGET = 12_000
"""Levels of a surrogate data set for more data than that: fluctuations are scaled."""

_MARGIN = 30
"""Spacings at each end of a piece of a longer run that are dropped after unfolding."""


_WHOLE, _WHOLE_IN_ALL = 1_000, 100_000
"""Pooled: levels of a spectrum, and of a data set, up to which spectra have the data's own size."""

_SHORTEST_POOLED, _TARGET_POOLED, _MOST_POOLED = 100, 30_000, 200
"""Of larger ones: the shortest stretch that stands for a spectrum, levels of a data set, spectra: a
pool of 133 already unfolds to a hundredth of a spacing."""

_GROUPS = 3
"""Pooled: groups that the spectra are dealt into, as :func:`hessrmt.levels.pooled` does."""


@dataclass(frozen=True)
class SurrogatePlan:
    """What surrogate data sets look like.

    Attributes:
        runs: Densities of the runs, or pieces of runs, that are imitated.
        spectra: For ``pooled``: spectra in one data set; else 0.
        levels: Levels of each of them.
        whole: Whether these are whole spectra; else stretches from the bulk of larger ones.
        cuts: For ``pooled``: shares of the levels of a spectrum that lie below each hole.
        method: Unfolding method; ``"none"`` for ratios alone.
        options: Its options, as pairs.
        rotate: For ``pooled``: whether every spectrum is unfolded.
        surrogates: Data sets of spacings; of ratios there are at least 1,000.
        seed: Of everything random.
    """

    runs: tuple[Smooth, ...]
    spectra: int
    levels: int
    whole: bool
    cuts: tuple[float, ...]
    method: str
    options: tuple[tuple[str, Any], ...]
    rotate: bool
    surrogates: int
    seed: int

    @property
    def steepness(self) -> float:
        """Mean change of ln(mean spacing) from one level to the next."""
        steps = sum(run.size - 1 for run in self.runs)
        return sum(run.change for run in self.runs) / max(steps, 1)


def plan(
    selection: Selection,
    method: str,
    surrogates: int,
    seed: int,
    *,
    options: Mapping[str, Any] | None = None,
    rotate: bool = True,
) -> SurrogatePlan:
    """Surrogates for spectra as given, with the same unfolding.

    Args:
        selection: The data.
        method: How they are unfolded; ``"none"`` for ratios alone.
        surrogates: Data sets.
        seed: Of everything random.
        options: Of the method.
        rotate: For ``pooled``.

    Returns:
        The runs as they are where the data are small, some of them or pieces where they are large.
    """
    runs = _imitated([run for runs in selection.runs for run in runs if np.ptp(run) > 0])
    count = levels = 0
    whole = False
    if method == "pooled":
        sizes = [len(row) for row in selection.levels]
        count, levels = len(sizes), max(3, int(np.median(sizes)))
        whole = levels <= _WHOLE and count * levels <= _WHOLE_IN_ALL
        if not whole:
            count = min(count, _MOST_POOLED)
            levels = min(levels, max(_SHORTEST_POOLED, _TARGET_POOLED // count))
    cuts = _cuts(selection.runs) if method == "pooled" else ()
    how = method, tuple(sorted((options or {}).items())), rotate
    return SurrogatePlan(runs, count, levels, whole, cuts, *how, surrogates, seed)


def _cuts(spectra: Sequence[Samples]) -> tuple[float, ...]:
    """Shares of the levels below each hole, of the spectra with the usual number of holes."""
    usual = int(np.median([len(runs) for runs in spectra]))
    sizes = np.array([[len(run) for run in runs] for runs in spectra if len(runs) == usual])
    if usual < 2 or not len(sizes):
        return ()
    below = np.cumsum(sizes.mean(axis=0))
    # in hundredths: the surrogates of similar data are then the same ones
    return tuple(np.round(below[:-1] / below[-1], 2).tolist())


def _imitated(runs: Samples) -> tuple[Smooth, ...]:
    """Densities of the runs, cut into pieces, as many as surrogates need."""
    found = []
    for run in runs:
        pieces = -(-len(run) // STRETCH)
        parts = [np.diff(part) for part in np.array_split(run, pieces)]
        found += [Smooth.of(steps, pieces > 1) for steps in parts if steps.any()]
    total = sum(item.size for item in found)
    if total > _TARGET:
        ordered = sorted(found, key=lambda item: item.size)
        wanted = max(1, round(len(found) * _TARGET / total))
        found = [ordered[i] for i in np.linspace(0, len(found) - 1, wanted).round().astype(int)]
    return tuple(found)


class Surrogates:
    """Levels of one law in the runs of a plan.

    Args:
        law: One of :data:`hessrmt.levels.goodness.LAWS`.
        scheme: The plan.
        backend: Where eigenvalues are computed and levels counted; the CPU if None.
    """

    def __init__(self, law: str, scheme: SurrogatePlan, backend: Backend | None = None) -> None:
        self._law, self._plan = law, scheme
        self._backend = select("cpu") if backend is None else backend
        self._choose = rng.stream(scheme.seed, "surrogates", law, "choice")
        total = sum(run.size for run in scheme.runs)
        self._steep = scheme.steepness > _STEEP
        wanted = -(-(_LEVELS_STEEP if self._steep else _LEVELS) // max(total, 1))
        self._versions = int(np.clip(wanted, _VERSIONS, _MOST_VERSIONS))

    def ratios(self) -> Null:
        """Distribution functions of the ratios r̃.

        Returns:
            The surrogates.
        """
        points = quantiles(STATISTICS["ratio"](self._law))
        moved, sets, sizes = [], [], []
        total = sum(run.size for run in self._plan.runs)
        for i, (steps, places) in enumerate(zip(self._steps, self._places, strict=True)):
            if not (wide := steps.shape[1] - 1):
                continue
            values = _folded(steps)
            change = _row_counts(values.reshape(1, -1), points)[0]
            change -= _row_counts(_folded(np.diff(places)).reshape(1, -1), points)[0]
            moved.append(change)
            sizes.append(values.size)
            if i % self._every:
                continue
            values = values[: max(_VERSIONS, _SCATTERING // total)]
            # how ratios scatter changes little from one part of a run to the next, and short
            # stretches know it better than the few versions of a long run
            for part in np.array_split(np.arange(wide), -(-wide // _TOGETHER)):
                own = _row_counts(values[:, part], points)
                own[:, :-1] -= len(part) * change[:-1] / sizes[-1]
                sets.append(own)
        counts = np.concatenate(sets)
        count = max(self._plan.surrogates, RATIO_SETS)
        chosen = _quarters(self._law, self._plan.seed, count, len(counts))
        bias = np.sum(moved, axis=0)[:-1] / sum(sizes)
        return _null(chosen @ counts.astype(np.float32), counts.sum(axis=0), bias)

    @property
    def _every(self) -> int:
        """Of many runs, which ones show how much data sets scatter."""
        return max(1, sum(run.size for run in self._plan.runs) * _VERSIONS // _SCATTERING)

    def spacings(self) -> Null:
        """Distribution functions of the unfolded spacings.

        Returns:
            The surrogates.

        Raises:
            DataError: If the unfolding cannot follow them.
        """
        points = quantiles(STATISTICS["spacing"](self._law))
        if self._plan.method == "pooled":
            return self._pooled(points)
        follows = self._plan.method != "analytic"
        if follows and self._plan.steepness > _TOO_STEEP:
            factor = np.exp(self._plan.steepness)
            raise DataError(f"the density changes by a factor of {factor:.1f} from level to level")
        rows = [i for i, run in enumerate(self._plan.runs) if run.size >= self._shortest]
        sets = np.zeros((self._plan.surrogates, POINTS + 1))
        every, moved, size = np.zeros(POINTS + 1), np.zeros(POINTS + 1), 0
        for i in rows:
            values = self._unfolded(i)
            moved += _row_counts(values.reshape(1, -1), points)[0]
            moved -= _row_counts(self._inner(i, np.diff(self._places[i])).reshape(1, -1), points)[0]
            size += values.size
            if follows and self._steep:
                # the smoothed density of the data has their fluctuations: what those of the
                # surrogates' own would change
                shown = Smooth.of(self._steps[i], self._plan.runs[i].cut)
                again = self._unfold(i, shown.spacings(np.roll(self._places[i], 1, axis=0)))
                twice = _row_counts(values.reshape(1, -1), points)[0]
                moved += twice - _row_counts(again.reshape(1, -1), points)[0]
            own = _row_counts(values, points)
            sets += own[self._choose.integers(len(own), size=len(sets))]
            every += own.sum(axis=0)
        null = _null(sets, every, moved[:-1] / size)
        if not follows:
            return null
        whole = not any(self._plan.runs[i].cut for i in rows)
        most = _RUNS * null.size / len(rows) if whole else np.inf
        return null._replace(unknown=self._unknown(null.bias, rows), most=most)

    def _unknown(self, bias: Grid, rows: Sequence[int]) -> Rows:
        """Errors of what an unfolding is taken to do, (surrogates, 512)."""
        length = np.mean([self._plan.runs[i].size for i in rows])
        scale = np.hypot(_UNKNOWN / length**0.5, _UNKNOWN_PART * np.abs(bias).max())
        below = (np.arange(POINTS) + 0.5) / POINTS
        shapes = np.sin(np.pi * np.outer([1, 2], below))
        draw = rng.stream(self._plan.seed, "surrogates", self._law, "unknown")
        return scale * draw.standard_normal((self._plan.surrogates, 2)) @ shapes

    def sample(self, levels: float) -> tuple[list[Levels], list[Levels]]:
        """Runs of surrogate levels, unfolded as the data are and with their exact density.

        Args:
            levels: How many at least, if there are so many versions.

        Returns:
            Unfolded runs, and those that are known to have mean spacing 1.
        """
        found: tuple[list[Levels], list[Levels]] = [], []
        if self._plan.method == "pooled":
            bank, straight = self._whole
            count = max(1, min(round(levels / self._plan.spectra / self._plan.levels), BANK))
            for number, which in enumerate(self._chosen[:count]):
                unfolded = self._pool(bank, which, number).levels
                for row, own in zip(unfolded, which, strict=True):
                    if row is not None:
                        found[0].append(row)
                        found[1].append(straight[own])
            return found
        total = sum(run.size for run in self._plan.runs)
        for k in range(min(self._versions, max(1, round(levels / total)))):
            for i, run in enumerate(self._plan.runs):
                if run.size >= self._shortest:
                    steps = self._unfolded(i, slice(k, k + 1))[0]
                    found[0].append(np.concatenate([[0.0], np.cumsum(steps)]))
                    found[1].append(self._places[i][k])
        return found

    def mean_ratios(self, order: int, overlapping: bool) -> tuple[float, np.ndarray, float]:
        """Means of the ratios of spacings of every k-th level.

        Args:
            order: k.
            overlapping: As of :func:`hessrmt.levels.ratios`.

        Returns:
            Mean over the bank, (surrogates,) means of data sets and how many ratios one has.
        """
        apart, found = (1 if overlapping else order), []
        for steps in self._steps:
            wide = steps.shape[1] - order + 1
            if wide > apart:
                far = np.sum([steps[:, i : i + wide] for i in range(order)], axis=0)
                found.append(_folded(far, apart))
        if not found:
            return float("nan"), np.empty(0), 0.0
        sets = np.zeros(max(self._plan.surrogates, RATIO_SETS))
        for values in found:
            sums = values.sum(axis=1)
            sets += sums[self._choose.integers(len(sums), size=len(sets))]
        size = sum(values.shape[1] for values in found)
        mean = sum(float(values.mean(axis=1).mean()) * values.shape[1] for values in found) / size
        # a choice among a few versions scatters less than fresh levels do
        scale = (1 - 1 / self._versions) ** -0.5
        return mean, mean + scale * (sets / size - mean), float(size)

    @property
    def resolution(self) -> float:
        """Smallest spacing that can be told from zero, as of :class:`.Unfolded`."""
        if self._plan.method != "pooled":
            return 0.0
        spectra = self._plan.spectra
        return 1 / (spectra - -(-spectra // min(spectra, _GROUPS)))

    @property
    def _shortest(self) -> int:
        return SHORTEST if max(run.size for run in self._plan.runs) >= SHORTEST else 0

    @cached_property
    def _places(self) -> list[Rows]:
        """(versions, n) levels of mean spacing 1 for each run."""
        draw = rng.stream(self._plan.seed, "surrogates", self._law, "places")
        return [self._drawn(run.size, self._versions, draw) for run in self._plan.runs]

    def _drawn(self, n: int, count: int, draw: np.random.Generator) -> Rows:
        """Some rows of n levels of mean spacing 1."""
        if self._law == "poisson":
            return np.cumsum(draw.exponential(size=(count, n)), axis=1)
        if self._law != "goe2":
            return _pieces(bank(self._law, self._plan.seed, self._backend), n, count, draw)
        half, pad = n // 2 + 6, 4
        one = bank("goe", self._plan.seed, self._backend)
        parts = [2 * _pieces(one, half, count, draw) for _ in range(2)]
        shift = [2 * draw.uniform(size=(count, 1)) - part[:, :1] for part in parts]
        both = [part + own for part, own in zip(parts, shift, strict=True)]
        return np.sort(np.concatenate(both, axis=1), axis=1)[:, pad : pad + n]

    @cached_property
    def _steps(self) -> list[Rows]:
        """(versions, n - 1) spacings of the moved levels of each run."""
        pairs = zip(self._plan.runs, self._places, strict=True)
        return [run.spacings(places) for run, places in pairs]

    def _unfolded(self, i: int, which: slice = slice(None)) -> Rows:
        """Unfolded spacings of some versions of a run."""
        if self._plan.method == "analytic":  # the law's own density, which needs no following
            return self._inner(i, np.diff(self._places[i][which]))
        return self._unfold(i, self._steps[i][which])

    def _unfold(self, i: int, steps: Rows) -> Rows:
        """Spacings of levels that follow the density of a run, unfolded as the data are."""
        run, options = self._plan.runs[i], dict(self._plan.options)
        # summed from the end with the smaller spacings, so that none is lost
        turned = np.mean(run.logs[..., 0]) > np.mean(run.logs[..., -1])
        zero = np.zeros((len(steps), 1))
        levels = np.concatenate([zero, np.cumsum(steps[:, ::-1] if turned else steps, 1)], axis=1)
        levels = -levels[:, ::-1] if turned else levels
        unfolded = [unfold(row, self._plan.method, **options) for row in levels]
        return self._inner(i, np.diff(unfolded))

    def _inner(self, i: int, spacings: Rows) -> Rows:
        width = spacings.shape[1]
        margin = min(_MARGIN, (width - 1) // 4) if self._plan.runs[i].cut else 0
        return spacings[:, margin : width - margin]

    # pooled: whole spectra of one density, unfolded with each other

    @cached_property
    def _whole(self) -> tuple[Rows, Rows]:
        scheme = self._plan
        return whole_spectra(
            self._law, scheme.spectra, scheme.levels, scheme.whole, scheme.seed, self._backend
        )

    @cached_property
    def _chosen(self) -> list[np.ndarray]:
        bank, count = self._whole[0], max(self._plan.surrogates, BANK)
        return [
            self._choose.choice(len(bank), self._plan.spectra, replace=False) for _ in range(count)
        ]

    def _pool(self, bank: Rows, which: np.ndarray, number: int) -> Any:
        seed = self._plan.seed + number
        rows = list(bank[which])
        return pooled(rows, rotate=self._plan.rotate, seed=seed, backend=self._backend)

    def _pooled(self, points: Grid) -> Null:
        key = self._law, replace(self._plan, runs=()), self._backend.banded_route(1)[1]
        return remembered(key, lambda: self._pooled_anew(points))

    def _pooled_anew(self, points: Grid) -> Null:
        scheme, law, (bank, straight) = self._plan, self._law, self._whole
        counts, left_out, members = [], np.zeros(POINTS + 1), []
        margin = 0 if scheme.whole else min(_MARGIN, (scheme.levels - 2) // 4)
        cuts = np.array(scheme.cuts) * scheme.levels
        for number, which in enumerate(self._chosen[: scheme.surrogates]):
            found = self._pool(bank, which, number)
            used = [i for i, row in enumerate(found.levels) if row is not None]
            steps = np.diff(np.array([found.levels[i] for i in used]))
            inner = steps[:, margin : steps.shape[1] - margin]
            whole = _row_counts(inner.reshape(1, -1), points)[0]
            over = _over(steps, straight[which[used]], cuts)
            bridging = _row_counts(over[None], points)[0]
            counts.append(whole - bridging)
            left_out += bridging
            members = np.bincount(found.groups).tolist()[: None if scheme.rotate else 1]
        law_below = np.asarray(STATISTICS["spacing"](law).cdf(points))
        bias = sum(
            own / sum(members) * (pooled_cdf(points, law, scheme.spectra - own) - law_below)
            for own in members
        )
        sets = np.array(counts)
        total = sets.sum(axis=0)
        # a spacing that lies over some place is longer than most: without those of the holes
        kept, every = total, total + left_out
        bias = np.asarray(bias) + kept[:-1] / kept[-1] - every[:-1] / every[-1]
        return _null(sets, total * (len(bank) / scheme.spectra / len(sets)), bias)


def in_turn(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[tuple[int, Any]]:
    """Apply a function to every item here and now; a pool of workers has a method like this.

    Args:
        function: Of one item.
        items: Its arguments.

    Yields:
        Index of an item, and the result.
    """
    yield from enumerate(map(function, items))


@lru_cache(maxsize=8)
def _quarters(law: str, seed: int, sets: int, count: int) -> Float32[np.ndarray, "sets count"]:
    """For each of some sets 1 for a quarter of the things to choose from and 0 for the others."""
    draw = rng.stream(seed, "surrogates", law, "ratios")
    chosen = np.zeros((sets, count), dtype=np.float32)
    for row in chosen:
        row[draw.permutation(count)[: -(-count // 4)]] = 1.0
    return chosen


def _over(steps: Rows, places: Rows, cuts: Grid) -> Levels:
    """The spacings that lie over some places.

    Args:
        steps: (k, n - 1) spacings of k spectra.
        places: (k, n) of their levels, with mean spacing 1.
        cuts: (c,) places in the same units.

    Returns:
        (k c,) spacings, fewer where a place lies outside.
    """
    found = []
    for cut in cuts:
        left = (places < cut).sum(axis=1) - 1
        inside = (left >= 0) & (left < steps.shape[1])
        found.append(steps[inside, left[inside]])
    return np.concatenate([np.empty(0), *found])


def _pieces(stretches: Rows, n: int, count: int, draw: np.random.Generator) -> Rows:
    """Neighbouring levels from anywhere in some stretches, (count, n)."""
    which = draw.integers(len(stretches), size=(count, 1))
    start = draw.integers(stretches.shape[1] - n + 1, size=(count, 1))
    return stretches[which, start + np.arange(n)]


def _folded(steps: Rows, apart: int = 1) -> Rows:
    """Ratios r̃ of spacings that lie so far apart in each row."""
    first, second = steps[:, :-apart], steps[:, apart:]
    low, high = np.minimum(first, second), np.maximum(first, second)
    return np.divide(low, high, out=low, where=high > 0)


def _row_counts(values: Rows, points: Grid) -> Counts:
    """How many values of each row lie at or below each point, and how many there are."""
    size = len(points) + 1
    place = np.searchsorted(points, values) + size * np.arange(len(values))[:, None]
    counts = np.bincount(place.ravel(), minlength=size * len(values)).astype(np.float64)
    return np.cumsum(counts.reshape(len(values), size), axis=1)


def pooled_cdf(s: Grid, law: str, pool: int) -> Grid:
    """Distribution of the spacings that a pooled staircase gives: ∫ p(t) P(K ≤ m s | t) dt.

    An interval of true length t holds K levels of the m pooled spectra, of mean m t and variance
    m Σ²(t); K is a sum of many independent counts and taken as normal, rounded to whole numbers.
    For independent levels K is Poisson's exactly.

    Args:
        s: Unfolded spacings.
        law: Of the levels.
        pool: m.

    Returns:
        Probability of a spacing of at most s.
    """
    nodes, weights = np.polynomial.legendre.leggauss(400)
    end = 12.0 if law != "poisson" else 40.0
    t = (nodes + 1) * end / 2
    density = weights * end / 2 * np.asarray(STATISTICS["spacing"](law).pdf(t))
    whole = np.floor(pool * s * (1 + 1e-12))
    if law == "poisson":
        return pdtr(whole[:, None], pool * t) @ density
    spread = np.sqrt(pool * np.asarray(number_variance(t, law)))
    return ndtr((whole[:, None] + 0.5 - pool * t) / spread) @ density


def _null(sets: Counts, bank: Float64[np.ndarray, " g+1"], bias: Grid) -> Null:
    deviations = sets[:, :-1] / sets[:, -1:] - bank[:-1] / bank[-1]
    return Null(bias, deviations, float(sets[:, -1].mean()), float(bank[-1]))
