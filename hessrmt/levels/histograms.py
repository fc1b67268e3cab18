"""Histograms and curves of levels with their standard errors, as pictures show them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hessrmt.checks import one_of
from hessrmt.errors import DataError
from hessrmt.levels.goodness import STATISTICS, quantiles
from hessrmt.levels.longrange import BLOCK, form_factor, number_variance, rigidity
from hessrmt.levels.resampling import ENOUGH, histogram, in_bins, mean_and_error, with_error
from hessrmt.levels.selection import Selection, ratio_samples, select
from hessrmt.levels.surrogates import Surrogates, plan
from hessrmt.levels.unfolding import NEIGHBOURS, Unfolded, enough
from hessrmt.results import Result

if TYPE_CHECKING:
    from jaxtyping import Float64
    from numpy.typing import ArrayLike

    from hessrmt.arrays import Levels
    from hessrmt.backend.base import Backend
    from hessrmt.levels.resampling import Samples
    from hessrmt.records import Spectrum

    Grid = Float64[np.ndarray, " k"]

_BINS_OF_A_DECADE = 5

LARGEST_SPACING = 4.0
"""Larger ones count in a histogram, but are not shown."""

_NARROWEST, _WIDEST, _STEP_PARTS = 0.05, 0.4, 8
_FEWEST_BINS, _MOST_BINS = {True: 8, False: 20}, {True: 40, False: 100}
"""Of folded ratios and of others."""

_OF_LENGTHS = {"number_variance": number_variance, "rigidity": rigidity}
_SHORTEST, _LONGEST, _LENGTHS = 0.2, 50.0, 25
_LATEST = 2.0
_TIME_BINS = {True: (0.05, 5), False: (0.1, 10)}
"""Width of a bin of τ, and how many τ to average over; with and without ten spectra."""

_INDEPENDENT, _FEWEST_PARTS = 1.5, 5
"""K is independent at times 1.5/T apart, T the length of a spectrum; values for an error."""


@dataclass(frozen=True)
class SpacingHistogram(Result, axes={"bin": "density error"}, picture="levels.spacings"):
    """P(s) of unfolded spacings, in bins.

    Attributes:
        edges: (k + 1,) of the bins, in mean spacings; where spacings are multiples of a step, the
            bins are too, and the first one begins half a step below zero.
        density: (k,) of all spacings.
        error: (k,) its standard error; NaN from too few spectra.
        n_spacings: How many.
        n_spectra: Of how many spectra.
        surrogates: GOE data sets that went through the same unfolding.
        unfolded_alike: (m,) spacings and the (m,) density of these data sets; None if there are
            none, or the unfolding cannot follow them.
    """

    edges: Grid
    density: Grid
    error: Grid
    n_spacings: int
    n_spectra: int
    surrogates: int = 0
    unfolded_alike: tuple[Grid, Grid] | None = None


@dataclass(frozen=True)
class RatioHistogram(Result, axes={"bin": "density error"}, picture="levels.ratios"):
    """P(r̃), or P(r) up to a cut, in bins.

    Attributes:
        edges: (k + 1,) of the bins, from 0 to 1 or the cut.
        density: (k,) of the ratios up to there, with the integral 1.
        error: (k,) its standard error; NaN from too few spectra.
        n_ratios: How many.
        n_spectra: Of how many spectra.
        folded: Whether r̃ = min(r, 1/r) is meant, or r.
        mean: ⟨r̃⟩; NaN of r.
        mean_error: Its standard error.
    """

    edges: Grid
    density: Grid
    error: Grid
    n_ratios: int
    n_spectra: int
    folded: bool
    mean: float
    mean_error: float


@dataclass(frozen=True)
class LongRange(Result, axes={"at": "at values errors"}, picture="levels.long_range"):
    """Number variance, rigidity or form factor of some spectra, with its standard error.

    Attributes:
        statistic: ``"number_variance"``, ``"rigidity"`` or ``"form_factor"``.
        at: (m,) lengths L in mean spacings, or times τ in Heisenberg times.
        values: (m,) Σ²(L), Δ₃(L) or K(τ).
        errors: (m,) standard errors; NaN where there is none.
        n_levels: How many.
        n_spectra: Of how many spectra.
        reach: Windows longer than this many mean spacings hide fluctuations, since the unfolding
            takes the density from the levels themselves; None where it doesn't.
    """

    statistic: str
    at: Grid
    values: Grid
    errors: Grid
    n_levels: int
    n_spectra: int
    reach: int | None = None


def spacing_histogram(
    unfolded: Unfolded, *, surrogates: int = 0, seed: int = 0, backend: Backend | None = None
) -> SpacingHistogram:
    """Density of unfolded spacings, with its standard error.

    Pooled spacings are multiples of one over the number of pooled spectra. Each is spread evenly
    over the step of the staircase that it is the middle of, and a bin is a whole number of steps
    wide, so that the histogram is no comb and has no offset against the laws.

    An unfolding adds noise of its own, most of all a pool of few spectra. Surrogates say what
    becomes of GOE spectra in the same unfolding.

    Args:
        unfolded: The unfolded levels.
        surrogates: GOE data sets to put through the same unfolding. Those of :func:`analyze` with
            the same number and seed are reused.
        seed: Of the surrogates.
        backend: Where their levels are computed and counted; the CPU if None.

    Returns:
        The histogram.

    Raises:
        DataError: If there is no spacing.
    """
    samples = [values for values in unfolded.spacings if len(values)]
    count, step = sum(map(len, samples)), unfolded.resolution
    if not count:
        raise DataError("there is no spacing to draw; unfold at least one spectrum")
    edges = _spacing_edges(count, step)
    spread = [np.add.outer(x, _over_step(step)).ravel() for x in samples] if step else samples
    alike = None
    if surrogates:
        with suppress(DataError):  # an unfolding by the data's own law does not fit these
            alike = _unfolded_alike(unfolded, edges, surrogates, seed, backend)
    return SpacingHistogram(
        edges, *histogram(spread, edges), count, len(samples), surrogates, alike
    )


def ratio_histogram(
    selection: Selection, folded: bool = True, cut: float = 10.0, bins: int | None = None
) -> RatioHistogram:
    """Density of the ratios of neighbouring spacings, with its standard error.

    Beyond a cut of 10 lie 1.5 % of GOE ratios and 9 % of Poisson's; the histogram does not contain
    them.

    Args:
        selection: The levels; ratios need no unfolding.
        folded: r̃ = min(r, 1/r), in [0, 1], or r.
        cut: Largest r shown.
        bins: More the more ratios there are if None.

    Returns:
        The histogram.

    Raises:
        DataError: If the cut is not positive, or no ratio is defined or lies below it.
    """
    if not (np.isfinite(cut) and cut > 0):
        raise DataError(f"cut must be a positive ratio, got {cut!r}; try 10")
    end = 1.0 if folded else float(cut)
    every = ratio_samples(selection, folded)
    samples = [below for values in every if len(below := values[values <= end])]
    count, total = sum(map(len, samples)), sum(map(len, every))
    if not count:
        raise DataError(
            "every spacing is zero: no ratio is defined; are the levels degenerate?"
            if not total
            else f"none of the {total:,} ratios lies below the cut {end:g}; raise it"
        )
    if bins is None:
        wanted = (1.5 if folded else 0.4 * end) * count ** (1 / 3)
        bins = int(np.clip(wanted, _FEWEST_BINS[folded], _MOST_BINS[folded]))
    edges = np.linspace(0, end, bins + 1)
    mean = mean_and_error(every) if folded else (math.nan, math.nan)  # r has no mean in theory
    return RatioHistogram(edges, *histogram(samples, edges), count, len(samples), folded, *mean)


def long_range(unfolded: Unfolded, statistic: str, at: ArrayLike | None = None) -> LongRange:
    """Number variance Σ²(L), rigidity Δ₃(L) or form factor K(τ), with its standard error.

    Windows lie within runs of neighbouring levels. Runs that are too short for an L are left out
    there.

    Args:
        unfolded: The unfolded levels.
        statistic: ``"number_variance"``, ``"rigidity"`` or ``"form_factor"``.
        at: (m,) L in mean spacings, or τ in Heisenberg times. If None, L up to 50 or a quarter of
            a typical run (half of the levels lie in runs no shorter than that); or averages over
            0.05 up to τ = 2 (over 0.1 from fewer than ten runs), from where the mean density of a
            typical run no longer shows.

    Returns:
        The curve.

    Raises:
        DataError: If the statistic is unknown, no spectrum was unfolded, or they are too short.
    """
    rows = [run for runs in unfolded.runs for run in runs]
    if not rows:
        raise DataError("no spectrum was unfolded; there is nothing to draw")
    span = _typical([float(row[-1] - row[0]) for row in rows])
    asked = None if at is None else np.atleast_1d(np.asarray(at, dtype=np.float64))
    number = sum(map(len, rows)), len(unfolded.runs)
    if statistic == "form_factor":
        return LongRange(statistic, *_form_factor(rows, span, asked), *number)
    one_of("statistic", statistic, [*_OF_LENGTHS, "form_factor"])
    if asked is None:
        end = min(_LONGEST, span / 4)
        if not end > _SHORTEST:
            raise DataError(
                f"a typical run spans {span:.3g} mean spacings, too few for windows of a quarter "
                "of that"
            )
        asked = np.geomspace(_SHORTEST, end, _LENGTHS)
    measure = _OF_LENGTHS[statistic]
    value, error = with_error(lambda levels: np.asarray(measure(levels, asked)), rows)
    reach = None
    if unfolded.method == "window":
        shortest = min(map(len, rows))
        reach = 2 * enough(unfolded.options.get("neighbours", NEIGHBOURS), shortest) - 1
    return LongRange(statistic, asked, value, error, *number, reach)


def mean_ratios(spectra: Sequence[Spectrum]) -> Float64[np.ndarray, "n 2"]:
    """⟨r̃⟩ of the certified levels of each spectrum.

    Args:
        spectra: (n,) spectra.

    Returns:
        (n, 2) means, and their standard errors from stretches of each spectrum; NaN where there are
        too few levels.
    """
    found = []
    for item in spectra:
        try:
            found.append(mean_and_error(ratio_samples(select(item))))
        except DataError:  # fewer than three neighbouring levels
            found.append((math.nan, math.nan))
    return np.array(found)


def _typical(spans: Sequence[float]) -> float:
    """Half of the levels lie in runs that span no less than this."""
    ordered = np.sort(spans)
    return float(ordered[np.searchsorted(np.cumsum(ordered), ordered.sum() / 2)])


def _form_factor(rows: Samples, span: float, asked: Grid | None) -> tuple[Grid, Grid, Grid]:
    many = len(rows) >= ENOUGH
    if asked is None:
        width, parts = _TIME_BINS[many]
        span = min(span, BLOCK)
        first = math.ceil(10 / span / width) * width if span > 0 else math.inf
        if not first <= _LATEST / 2:
            raise DataError(
                f"a typical run spans {span:.3g} mean spacings; a form factor needs at least 10"
            )
        bins = round((_LATEST - first) / width)
        parts = int(np.clip(width * span / _INDEPENDENT, 1, parts))
        tau = first + width * (np.arange(bins) + 0.5)
        fine = first + width / parts * (np.arange(bins * parts) + 0.5)
    else:
        tau, parts, fine = asked, 1, asked

    def table(levels: Samples) -> Float64[np.ndarray, "m parts"]:
        return np.asarray(form_factor(levels, fine)).reshape(len(tau), parts)

    if many:
        return tau, *with_error(lambda levels: table(levels).mean(axis=1), rows)
    values = table(rows)  # K of one spectrum scatters about its mean from one τ to the next
    error = np.full(len(tau), np.nan)
    if parts >= _FEWEST_PARTS:
        error = values.std(axis=1, ddof=1) / parts**0.5
    return tau, values.mean(axis=1), error


def _spacing_edges(count: float, step: float) -> Grid:
    width = float(np.clip(2.5 * count ** (-1 / 3), _NARROWEST, _WIDEST))
    if step > 0:
        width = math.ceil(width / step - 1e-9) * step
        return width * np.arange(math.ceil(LARGEST_SPACING / width - 1e-9) + 1) - step / 2
    return np.linspace(0, LARGEST_SPACING, round(LARGEST_SPACING / width) + 1)


def _over_step(step: float) -> Float64[np.ndarray, " parts"]:
    """Where the parts of one spacing go, seen from it: evenly over a step of the staircase."""
    return ((np.arange(_STEP_PARTS) + 0.5) / _STEP_PARTS - 0.5) * step


def _unfolded_alike(
    unfolded: Unfolded, edges: Grid, surrogates: int, seed: int, backend: Backend | None
) -> tuple[Grid, Grid]:
    """Density of GOE spacings after the data's unfolding, in bins like theirs."""
    how: dict[str, Any] = {"options": unfolded.options, "rotate": unfolded.rotate}
    scheme = plan(unfolded.selection, unfolded.method, surrogates, seed, **how)
    null = Surrogates("goe", scheme, backend).spacings()
    law = STATISTICS["spacing"]("goe")
    points = quantiles(law)
    below = np.asarray(law.cdf(points)) + null.bias
    if unfolded.resolution == 0:
        edges = _spacing_edges(null.bank, 0.0)
    edges = edges[edges <= points[-1]]  # the last quantile
    s = np.subtract.outer(edges, _over_step(unfolded.resolution))
    share = np.where(s <= 0, 0.0, np.interp(s, points, below))
    if unfolded.resolution == 0:  # a continuous law: nothing at zero itself
        share = np.where(s < points[0], below[0] * (s / points[0]) ** 2, share)
    return (edges[1:] + edges[:-1]) / 2, np.diff(share.mean(axis=1)) / np.diff(edges)


@dataclass(frozen=True)
class DensityHistogram(Result, axes={"bin": "density error"}, picture="levels.spectral_density"):
    """Density of the levels of some spectra, in bins.

    Attributes:
        edges: (k + 1,) of the bins, in the units of the levels.
        density: (k,) of all levels together; its integral is the share of levels in the bins.
        error: (k,) its standard error over the spectra; NaN from fewer than five.
        n_levels: Levels, of all spectra.
        n_outside: Those left out at the ends.
        mean: Of all levels.
        deviation: Their standard deviation.
    """

    edges: Levels
    density: Levels
    error: Levels
    n_levels: int
    n_outside: int
    mean: float
    deviation: float


@dataclass(frozen=True)
class DecadeHistogram(Result, picture="levels.density_per_decade"):
    """Levels of one spectrum in each decade of |λ|, in bins.

    Attributes:
        edges: (k + 1,) log₁₀ |λ| at the ends of the bins.
        sides: ``"λ > 0"`` and ``"λ < 0"``, where there are such levels, to their number in all
            spectra, (k,) levels of one spectrum per decade, and (k,) standard errors.
        n_zeros: Levels that are exactly zero, of all spectra.
    """

    edges: Levels
    sides: Mapping[str, tuple[int, Levels, Levels]]
    n_zeros: int


def density_histograms(
    groups: Mapping[str, Sequence[Levels]], bins: int | None = None, clip: float = 0.0
) -> dict[str, DensityHistogram]:
    """Density of the levels of several models.

    Args:
        groups: What to call them to the levels, one (n_i,) array for each spectrum, in any order.
        bins: Of each histogram; more the more levels there are if None. They are equally wide; if
            None, and one of them would hold most levels, equally wide in arsinh(λ/s), s the median
            of |λ|: narrow around zero, each a factor further out.
        clip: Share of levels left out at either end, so that few outliers don't make all bins wide.

    Returns:
        Name to histogram.

    Raises:
        DataError: If a model has no two distinct finite levels, or clip is not in [0, 0.5).
    """
    if not 0 <= clip < 0.5:
        raise DataError(f"clip must be a share in [0, 0.5), got {clip!r}")
    found = {}
    for name, rows in _ascending(groups).items():
        every = np.concatenate(rows)
        low, high = np.quantile(every, [clip, 1 - clip])
        if low == high:
            low, high = every.min(), every.max()
        wanted = int(np.clip(2 * len(every) ** 0.5, 10, 100)) if bins is None else bins
        edges = np.linspace(low, high, wanted + 1)
        narrow = float(np.median(np.abs(every)))
        if bins is None and 0 < narrow < (high - low) / wanted:
            ends = np.arcsinh(low / narrow), np.arcsinh(high / narrow)
            edges = narrow * np.sinh(np.linspace(*ends, wanted + 1))
            edges[[0, -1]] = low, high
        density, error = mean_counts(rows, edges) * (len(rows) / len(every))
        outside = int(np.count_nonzero((every < low) | (every > high)))
        moments = float(every.mean()), float(every.std())
        found[name] = DensityHistogram(edges, density, error, len(every), outside, *moments)
    return found


def decade_histograms(groups: Mapping[str, Sequence[Levels]]) -> dict[str, DecadeHistogram]:
    """Levels in each decade of |λ|, those below and above zero apart, all with the same bins.

    Args:
        groups: As for :func:`density_histograms`.

    Returns:
        Name to histogram.
    """
    models = _ascending(groups)
    sizes = np.abs(np.concatenate([row for rows in models.values() for row in rows]))
    exponents = np.log10(sizes[sizes > 0])
    low, high = np.floor(exponents.min()), np.ceil(exponents.max())
    low, high = (low, high) if low < high else (low - 1, high + 1)
    parts = int(np.clip(len(sizes) / (20 * (high - low)), 1, _BINS_OF_A_DECADE))
    edges = np.linspace(low, high, int(high - low) * parts + 1)
    found = {}
    for name, rows in models.items():
        sides = {}
        for side, sign in (("λ > 0", 1), ("λ < 0", -1)):
            logs = [np.log10(sign * row[sign * row > 0]) for row in rows]
            if any(map(len, logs)):
                sides[side] = (sum(map(len, logs)), *mean_counts(logs, edges))
        zeros = sum(int(np.count_nonzero(row == 0)) for row in rows)
        found[name] = DecadeHistogram(edges, sides, zeros)
    return found


def mean_counts(rows: Sequence[Levels], edges: Levels) -> Float64[np.ndarray, "2 k"]:
    """Values of one spectrum in bins.

    Args:
        rows: (n_i,) values of each spectrum.
        edges: (k + 1,) of the bins.

    Returns:
        (k,) mean numbers per unit of the axis, and (k,) their standard errors over the spectra, NaN
        from fewer than five.
    """
    return np.array(in_bins(rows, edges, [1] * len(rows)))


def _ascending(groups: Mapping[str, Sequence[Levels]]) -> dict[str, list[Levels]]:
    found = {}
    for name, rows in groups.items():
        found[name] = [np.sort(np.asarray(row, dtype=np.float64)) for row in rows if len(row)]
        every = np.concatenate(found[name] or [np.empty(0)])
        if not np.isfinite(every).all() or len(np.unique(every)) < 2:
            raise DataError(f"{name}: a density needs at least two distinct finite levels")
    return found
