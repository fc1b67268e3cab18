"""From spectra to a statement: which law of random matrix theory do the levels follow?"""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from hessrmt.errors import DataError, LevelsError, OptionError
from hessrmt.levels import fits
from hessrmt.levels.conclusion import conclude
from hessrmt.levels.density import SMOOTH, mean_ratio_of_density
from hessrmt.levels.formfactor import BLOCK, form_factor
from hessrmt.levels.goodness import (
    LAWS,
    distance,
    likelihood_ratio,
    p_value,
    quantiles,
    statistic_law,
)
from hessrmt.levels.jackknife import with_error
from hessrmt.levels.numbervariance import number_variance
from hessrmt.levels.ratios import of_spacings
from hessrmt.levels.resampling import ENOUGH, FEWEST_UNITS, histogram, mean_and_error, units
from hessrmt.levels.rigidity import rigidity
from hessrmt.levels.selection import Selection, select
from hessrmt.levels.smoothing import window as smoothed_by_window
from hessrmt.levels.staircase import at_least
from hessrmt.levels.surrogates import Plan, in_turn, nulls, plan
from hessrmt.levels.unfolding import check_options, pooled, unfold
from hessrmt.records import LawFit, LevelStatistics
from hessrmt.theory.ratios import mean_ratio

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jaxtyping import Float64
    from numpy.typing import ArrayLike

    from hessrmt.levels.goodness import Null
    from hessrmt.levels.surrogates import MapUnordered
    from hessrmt.records import Spectrum

    Grid = Float64[np.ndarray, " k"]
    Samples = list[Float64[np.ndarray, " n"]]

POOL_FROM = 30
"""Spectra from which ``unfold="auto"`` pools; a smaller pool's staircase is too coarse."""

_PARTS = 5

_OF_SPACINGS = (
    "spacings",
    "mean_spacing",
    "brody",
    "brody_error",
    "superposition",
    "superposition_error",
    "spacing_distance",
    "spacing_anderson_darling",
    "spacing_p_value",
)
"""What cannot be computed without unfolded spacings."""


@dataclass(frozen=True)
class Unfolded:
    """The levels of several spectra, unfolded.

    Attributes:
        selection: The levels before unfolding.
        levels: For each spectrum its unfolded levels, ascending, mean spacing 1; None where it
            only served as pool.
        resolution: Smallest spacing that can be told from zero, in mean spacings; 0 if any can.
        method: Of unfolding.
        options: Of the method.
        rotate: For ``pooled``: whether every spectrum was unfolded.
    """

    selection: Selection
    levels: tuple[Float64[np.ndarray, " n"] | None, ...]
    resolution: float
    method: str
    options: dict[str, Any]
    rotate: bool

    @property
    def spacings(self) -> Samples:
        """Spacings of unfolded neighbours, (m_i,) for each spectrum that was unfolded."""
        return [
            np.diff(levels)[adjacent]
            for levels, adjacent in zip(self.levels, self.selection.neighbours, strict=True)
            if levels is not None
        ]

    @property
    def ratios(self) -> Samples:
        """Ratios r̃ of neighbouring spacings of the raw levels, (k_i,) for each spectrum."""
        return ratio_samples(self.selection)

    @property
    def words(self) -> str:
        """Method and options for people."""
        shown = [f"{name}={value}" for name, value in self.options.items()]
        if self.method == "pooled":
            shown.append("every spectrum by rotation" if self.rotate else "⅔ pool, ⅓ unfolded")
        return f"{self.method} ({', '.join(shown)})" if shown else self.method


def ratio_samples(selection: Selection, folded: bool = True) -> Samples:
    """Ratios of neighbouring spacings, for each spectrum.

    Args:
        selection: The levels; no ratio bridges a discarded band.
        folded: r̃ in [0, 1], or r.

    Returns:
        One array for each spectrum.
    """
    found = []
    for levels, adjacent in zip(selection.levels, selection.neighbours, strict=True):
        spacings = np.diff(levels)
        whole = adjacent[1:] & adjacent[:-1]
        found.append(of_spacings(spacings[:-1][whole], spacings[1:][whole], folded))
    return found


def unfold_selection(
    selection: Selection,
    method: str = "auto",
    *,
    rotate: bool = True,
    seed: int = 0,
    **options: Any,
) -> Unfolded:
    """Unfold every spectrum of a selection.

    Args:
        selection: From :func:`hessrmt.levels.selection.select`.
        method: One of :data:`hessrmt.levels.unfolding.METHODS`, or ``"auto"``: pooled from thirty
            spectra on, else window.
        rotate: For ``pooled``: deal the spectra into three groups and unfold each with the other
            two, so that all are used; False is the single split of [B], ⅔ pool and ⅓ unfolded.
        seed: Of the groups.
        **options: Of the method.

    Returns:
        The unfolded levels.

    Raises:
        OptionError: If an option has a value that it cannot have.
        LevelsError: If the method is unknown or cannot follow the density of some spectrum.
    """
    if method == "auto":
        method = "pooled" if len(selection.levels) >= POOL_FROM else "window"
    check_options(method, options)
    if method == "pooled":
        found = pooled(selection.levels, rotate=rotate, seed=seed)
        return Unfolded(selection, found.levels, found.resolution, method, {}, rotate)
    unfolded = []
    for number, levels in enumerate(selection.levels):
        try:
            unfolded.append(unfold(levels, method, **options))
        except OptionError:
            raise
        except LevelsError as error:
            raise LevelsError(f"spectrum {number}: {error}") from error
    return Unfolded(selection, tuple(unfolded), 0.0, method, options, rotate)


def analyze(
    spectra: Any,
    cutoff: str | float | None = "auto",
    unfold: str = "auto",
    *,
    window: tuple[float, float] | None = None,
    rotate: bool = True,
    surrogates: int = 200,
    seed: int = 0,
    tick: Callable[[str, int, int], None] | None = None,
    map_unordered: MapUnordered = in_turn,
    **options: Any,
) -> LevelStatistics:
    """Compare the levels of spectra with the laws of random matrix theory.

    Ratios r̃ come from the raw levels, spacings from the unfolded ones ([B] §5). Laws: the exact
    large-matrix spacing laws and the corrected ratio laws of Atas et al. (2013) for GOE, GUE and
    GSE, Poisson, and two superposed GOE blocks.

    Args:
        spectra: :class:`~hessrmt.records.Spectrum` objects, a loaded file, or plain eigenvalues
            (1-D, 2-D with one row for each spectrum, or a sequence of 1-D arrays).
        cutoff: ``"certified"`` (what ``"auto"`` takes for spectra), ``"paper"``, a value, or None
            (what it takes for plain eigenvalues); see :func:`hessrmt.levels.selection.select`.
        unfold: Method, or ``"auto"``; see :func:`unfold_selection`. One that cannot be used leaves
            the spacings not computable, with its reason, and the ratios untouched; but a method
            or option that does not exist, or ``"pooled"`` for one spectrum, is an error.
        window: Lowest and highest level taken, in the units of the eigenvalues.
        rotate: For pooled unfolding.
        surrogates: Surrogate data sets for each p-value; 0 for none.
        seed: Of folds and surrogates.
        tick: Called with phase, steps done and steps in all.
        map_unordered: Draws the surrogates of the laws, which are independent of each other; here
            and in turn, or another function like :func:`hessrmt.levels.surrogates.in_turn`.
        **options: Of the unfolding method.

    Returns:
        The statistics.

    Raises:
        LevelsError: If an eigenvalue is not finite, an option cannot be used, or fewer than three
            levels are left.
    """
    surrogates, seed = at_least("surrogates", surrogates, 0), at_least("seed", seed, 0)
    selection = select(spectra, cutoff, window)
    why: dict[str, str] = {}
    unfolded = _unfolded(selection, unfold, rotate, seed, options, why)
    ratios = ratio_samples(selection)
    spacings = unfolded.spacings if unfolded else []
    all_ratios = np.sort(np.concatenate(ratios))  # once for all laws
    if not len(all_ratios):
        raise LevelsError("every spacing is zero: no ratio is defined; are the levels degenerate?")
    all_spacings = np.sort(np.concatenate(spacings)) if spacings else np.empty(0)
    mean, error = mean_and_error(ratios)
    if not np.isfinite(error):
        of_error = ("mean_ratio_error", "sigmas", "log_likelihood_ratio_error")
        why |= dict.fromkeys(of_error, "too few levels to resample")
    elif error == 0:
        why["sigmas"] = "the ratios do not scatter, so ⟨r̃⟩ has no standard error"
    fifths = [
        mean_and_error([np.array_split(values, _PARTS)[part] for values in ratios])
        for part in range(_PARTS)
    ]
    scheme = None
    if surrogates:
        method = unfolded.method if unfolded else "window"
        used = unfolded.options if unfolded else {}
        sizes = [len(levels) for levels in selection.levels]
        scheme = plan(sizes, method, used, rotate, surrogates, seed)
    else:
        of_surrogates = ("p_values", "ratio_p_value", "spacing_p_value")
        why |= dict.fromkeys(of_surrogates, "no surrogates were asked for")
    found = _nulls(scheme, bool(len(all_spacings)), why, map_unordered, tick) if scheme else {}
    laws = {
        name: _compare(name, ratios, all_ratios, all_spacings, mean, error, found.get(name, {}))
        for name in LAWS
    }
    if tick:
        tick("surrogates", len(LAWS), len(LAWS))
    q, f = _fitted(spacings, unfolded, why)
    expected = mean_ratio_of_density(selection.levels, seed)
    if np.isnan(expected):
        why["mean_ratio_density"] = f"no spectrum has {2 * SMOOTH + 1} distinct levels"
    return LevelStatistics(
        n_spectra=len(selection.levels),
        n_levels=selection.n_levels,
        n_discarded=selection.n_discarded,
        n_zeros=selection.n_zeros,
        n_ties=selection.n_ties,
        n_unresolved=selection.n_unresolved,
        n_ratios=len(all_ratios),
        n_spacings=len(all_spacings),
        mean_ratio=mean,
        mean_ratio_error=error,
        mean_ratio_density=expected,
        mean_ratio_fifths=tuple(value for value, _ in fifths),
        mean_ratio_fifths_error=tuple(part_error for _, part_error in fifths),
        mean_spacing=float(all_spacings.mean()) if len(all_spacings) else float("nan"),
        brody=q.value,
        brody_error=q.error,
        superposition=f.value,
        superposition_error=f.error,
        laws=laws,
        conclusion=conclude(
            mean, error, laws, len(all_ratios), selection.n_unresolved / selection.n_spacings
        ),
        not_computable=why,
        cutoff=selection.cutoff,
        window=selection.window,
        unfolding=unfolded.words if unfolded else "none",
        surrogates=surrogates,
        seed=seed,
        notes=_notes(selection, unfolded),
    )


def _unfolded(
    selection: Selection,
    method: str,
    rotate: bool,
    seed: int,
    options: dict[str, Any],
    why: dict[str, str],
) -> Unfolded | None:
    try:
        return unfold_selection(selection, method, rotate=rotate, seed=seed, **options)
    except LevelsError as error:
        if isinstance(error, OptionError) or (method == "pooled" and len(selection.levels) < 2):
            raise
        why |= dict.fromkeys(_OF_SPACINGS, str(error))
        return None


def _nulls(
    scheme: Plan,
    spaced: bool,
    why: dict[str, str],
    map_unordered: MapUnordered,
    tick: Callable[[str, int, int], None] | None,
) -> dict[str, dict[str, Null]]:
    """Surrogates of every law, those of spacings left out where nothing compares with them."""
    if tick:
        tick("surrogates", 0, len(LAWS))
    names = list(LAWS)
    drawn: dict[str, tuple[dict[str, Null], str]] = {}
    for index, result in map_unordered(partial(_nulls_of, scheme), names):
        drawn[names[index]] = result
        if tick:
            tick("surrogates", len(drawn), len(LAWS))
    found = {}
    for name in names:
        null, reason = drawn[name]
        if reason:
            why[f"{name}.spacing_p_value"] = f"the unfolding cannot follow surrogates: {reason}"
        found[name] = null if spaced and not reason else {"ratio": null["ratio"]}
    return found


def _nulls_of(scheme: Plan, name: str) -> tuple[dict[str, Null], str]:
    """Surrogates of one law, and why those of its spacings cannot be used, if so."""
    try:
        return nulls(name, scheme), ""
    except LevelsError as error:  # an unfolding that follows the data but not this law's spectra
        return nulls(name, replace(scheme, method="window", options=())), str(error)


def _compare(
    name: str,
    ratios: Samples,
    all_ratios: np.ndarray,
    all_spacings: np.ndarray,
    mean: float,
    error: float,
    null: dict[str, Null],
) -> LawFit:
    nan = float("nan")
    law = statistic_law(name, "ratio")
    far = distance(all_ratios, law)
    gain, gain_error = likelihood_ratio(ratios, law, statistic_law("goe", "ratio"))
    spacing_law = statistic_law(name, "spacing")
    spaced = distance(all_spacings, spacing_law) if len(all_spacings) else None
    expected = mean_ratio(name)
    return LawFit(
        mean_ratio=expected,
        sigmas=(mean - expected) / error if error > 0 else nan,
        ratio_distance=far.kolmogorov_smirnov,
        ratio_anderson_darling=far.anderson_darling,
        ratio_p_value=p_value(all_ratios, law, null["ratio"]) if "ratio" in null else None,
        spacing_distance=spaced.kolmogorov_smirnov if spaced else nan,
        spacing_anderson_darling=spaced.anderson_darling if spaced else nan,
        spacing_p_value=(
            p_value(all_spacings, spacing_law, null["spacing"]) if "spacing" in null else None
        ),
        log_likelihood_ratio=gain,
        log_likelihood_ratio_error=gain_error,
    )


def _fitted(
    spacings: Samples, unfolded: Unfolded | None, why: dict[str, str]
) -> tuple[fits.Fit, fits.Fit]:
    nothing = fits.Fit(float("nan"), float("nan"), float("nan"))
    if unfolded is None:
        return nothing, nothing
    resolution = unfolded.resolution
    found = {}
    for name, fit in (
        ("brody", lambda: fits.brody(spacings, resolution)),
        ("superposition", lambda: fits.superposition(spacings)),
    ):
        try:
            found[name] = fit()
        except LevelsError as error:
            why[name] = why[f"{name}_error"] = str(error)
            found[name] = nothing
            continue
        if not np.isfinite(found[name].error):
            why[f"{name}_error"] = (
                "the estimate lies on an end of its range, or there are too few spacings to "
                "resample"
            )
    return found["brody"], found["superposition"]


def _notes(selection: Selection, unfolded: Unfolded | None) -> tuple[str, ...]:
    notes = []
    if selection.unusable:
        notes.append(
            f"{len(selection.unusable)} spectra have fewer than three neighbouring levels left and "
            "are not used"
        )
    if selection.n_ties:
        notes.append(
            f"{selection.n_ties:,} spacings are exactly zero; a ratio of two such is undefined and "
            "left out"
        )
    if unfolded and unfolded.method == "pooled":
        notes.append(
            f"pooled staircase: spacings below {unfolded.resolution:.3g} cannot be told from zero"
        )
    return tuple(notes)


# Histograms and curves with their standard errors, as pictures show them

LARGEST_SPACING = 4.0
"""Larger ones count in a histogram, but are not shown."""

_NARROWEST, _WIDEST, _STEP_PARTS = 0.05, 0.4, 8
_FEWEST_BINS, _MOST_BINS = {True: 8, False: 20}, {True: 40, False: 100}
"""Of folded ratios and of others."""

_SHORTEST, _LONGEST, _LENGTHS = 0.2, 50.0, 25
_LATEST = 2.0
_TIME_BINS = {True: (0.05, 5), False: (0.1, 10)}
"""Width of a bin of τ, and how many τ to average over; with and without ten spectra."""

_INDEPENDENT, _FEWEST_PARTS = 1.5, 5
"""K is independent at times 1.5/T apart, T the length of a spectrum; values for an error."""


@dataclass(frozen=True)
class SpacingHistogram:
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

    def plot(self, title: str = "", *, ax: Any = None, blocks: bool = False) -> Any:
        """Draw it beside the laws; see :func:`hessrmt.plots.levels.spacings`."""
        from hessrmt.plots.levels import spacings

        return spacings(self, title, ax=ax, blocks=blocks)


@dataclass(frozen=True)
class RatioHistogram:
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

    def plot(self, title: str = "", *, ax: Any = None) -> Any:
        """Draw it beside the laws; see :func:`hessrmt.plots.levels.ratios`."""
        from hessrmt.plots.levels import ratios

        return ratios(self, title, ax=ax)


@dataclass(frozen=True)
class LongRange:
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

    def plot(self, title: str = "", *, ax: Any = None, blocks: bool = True) -> Any:
        """Draw it beside the laws; see :func:`hessrmt.plots.levels.long_range`."""
        from hessrmt.plots.levels import long_range

        return long_range(self, title, ax=ax, blocks=blocks)


def spacing_histogram(
    unfolded: Unfolded, *, surrogates: int = 0, seed: int = 0
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
        try:
            alike = _unfolded_alike(unfolded, edges, surrogates, seed)
        except DataError:  # an unfolding that fits the data, e.g. by their own law, but not these
            alike = None
    return SpacingHistogram(
        edges, *_with_bars(spread, edges), count, len(samples), surrogates, alike
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
    return RatioHistogram(edges, *_with_bars(samples, edges), count, len(samples), folded, *mean)


def long_range(unfolded: Unfolded, statistic: str, at: ArrayLike | None = None) -> LongRange:
    """Number variance Σ²(L), rigidity Δ₃(L) or form factor K(τ), with its standard error.

    Args:
        unfolded: The unfolded levels.
        statistic: ``"number_variance"``, ``"rigidity"`` or ``"form_factor"``.
        at: (m,) L in mean spacings, or τ in Heisenberg times. If None, L up to 50 or a quarter of
            the shortest spectrum; or averages over 0.05 up to τ = 2 (over 0.1 from fewer than ten
            spectra), from where the mean density of the shortest spectrum no longer shows.

    Returns:
        The curve.

    Raises:
        DataError: If the statistic is unknown, no spectrum was unfolded, or they are too short.
    """
    rows = [levels for levels in unfolded.levels if levels is not None]
    if not rows:
        raise DataError("no spectrum was unfolded; there is nothing to draw")
    span = min(float(row[-1] - row[0]) for row in rows)
    asked = None if at is None else np.atleast_1d(np.asarray(at, dtype=np.float64))
    number = sum(map(len, rows)), len(rows)
    if statistic == "form_factor":
        return LongRange(statistic, *_form_factor(rows, span, asked), *number)
    if statistic not in {"number_variance", "rigidity"}:
        raise DataError(
            f"unknown statistic {statistic!r}; known are number_variance, rigidity and form_factor"
        )
    if asked is None:
        end = min(_LONGEST, span / 4)
        if not end > _SHORTEST:
            raise DataError(
                f"the shortest spectrum spans {span:.3g} mean spacings, too few for windows of a "
                "quarter of that"
            )
        asked = np.geomspace(_SHORTEST, end, _LENGTHS)
    measure = number_variance if statistic == "number_variance" else rigidity
    value, error = with_error(lambda levels: np.asarray(measure(levels, asked)), rows)
    reach = None
    if unfolded.method == "window":
        default = inspect.signature(smoothed_by_window).parameters["neighbours"].default
        shortest = min(map(len, unfolded.selection.levels))
        used = min(int(unfolded.options.get("neighbours", default)), max(2, shortest // 4))
        reach = 2 * used - 1
    return LongRange(statistic, asked, value, error, *number, reach)


def mean_ratios(spectra: Sequence[Spectrum]) -> Float64[np.ndarray, "n 2"]:
    """⟨r̃⟩ of the certified levels of each spectrum.

    Args:
        spectra: (n,) spectra.

    Returns:
        (n, 2) means, and their standard errors from stretches of each spectrum; NaN where there are
        too few levels.
    """
    spacings = [np.diff(item.resolved) for item in spectra]
    return np.array([mean_and_error([of_spacings(s[:-1], s[1:])]) for s in spacings])


def _form_factor(rows: Samples, span: float, asked: Grid | None) -> tuple[Grid, Grid, Grid]:
    enough = len(rows) >= ENOUGH
    if asked is None:
        width, parts = _TIME_BINS[enough]
        span = min(span, BLOCK)
        first = math.ceil(10 / span / width) * width if span > 0 else math.inf
        if not first <= _LATEST / 2:
            raise DataError(
                f"the shortest spectrum spans {span:.3g} mean spacings; a form factor needs at "
                "least 10"
            )
        bins = round((_LATEST - first) / width)
        parts = int(np.clip(width * span / _INDEPENDENT, 1, parts))
        tau = first + width * (np.arange(bins) + 0.5)
        fine = first + width / parts * (np.arange(bins * parts) + 0.5)
    else:
        tau, parts, fine = asked, 1, asked

    def table(levels: Samples) -> Float64[np.ndarray, "m parts"]:
        return np.asarray(form_factor(levels, fine)).reshape(len(tau), parts)

    if enough:
        return tau, *with_error(lambda levels: table(levels).mean(axis=1), rows)
    values = table(rows)  # K of one spectrum scatters about its mean from one τ to the next
    error = np.full(len(tau), np.nan)
    if parts >= _FEWEST_PARTS:
        error = values.std(axis=1, ddof=1) / parts**0.5
    return tau, values.mean(axis=1), error


def _with_bars(samples: Samples, edges: Grid) -> tuple[Grid, Grid]:
    """Density and standard error, NaN where too few units make it not worth showing."""
    density, error = histogram(samples, edges)
    return density, error if len(units(samples)) >= FEWEST_UNITS else np.full_like(error, np.nan)


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
    unfolded: Unfolded, edges: Grid, surrogates: int, seed: int
) -> tuple[Grid, Grid]:
    """Density of GOE spacings after the data's unfolding, in bins like theirs."""
    sizes = [len(levels) for levels in unfolded.selection.levels]
    method, options, rotate = unfolded.method, unfolded.options, unfolded.rotate
    null = nulls("goe", plan(sizes, method, options, rotate, surrogates, seed))["spacing"]
    law = statistic_law("goe", "spacing")
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
