"""Unfolding ξ = N̄(λ): levels whose mean spacing is 1 wherever they lie.

Every method for one spectrum trusts its input, sorted finite levels of which at least two differ;
:func:`unfold` checks it. N̄ at the i-th of n levels, counted from 0, is about i + 1/2, halfway up
its step of the counting function.

Source: Haake 2010, §4.8; Guhr, Müller-Groeling and Weidenmüller 1998, §3.2.1; Gómez et al. 2002
compares such choices; Baskerville, Granziol and Keating 2022, eq. (10) for the pooled staircase.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.polynomial import Chebyshev
from numpy.typing import ArrayLike
from scipy.interpolate import BSpline, make_lsq_spline
from scipy.optimize import nnls
from scipy.special import ndtr

from hessrmt import rng
from hessrmt.backend.select import select
from hessrmt.checks import one_of, real, whole
from hessrmt.errors import DataError, OptionError
from hessrmt.levels.selection import FEWEST, split
from hessrmt.levels.spacings import ascending
from hessrmt.results import Result
from hessrmt.theory import marchenko_pastur_cdf, semicircle_cdf

if TYPE_CHECKING:
    from hessrmt.arrays import Levels
    from hessrmt.backend.base import Backend
    from hessrmt.levels.resampling import Samples
    from hessrmt.levels.selection import Selection

Rows = Sequence[ArrayLike]

POOL_FROM = 30
"""Spectra from which ``unfold="auto"`` pools; a smaller pool's staircase is too coarse."""

_SPAN = (1e-290, 1e290)
"""Ranges of levels within which neither spacings nor densities leave float64."""

_MISFIT = 3.0
"""Multiple of √n by which a fitted staircase may miss the counted one. Even n independent levels,
the most irregular of the usual ensembles, do so with probability 2 exp(-2·3²) = 3e-8 (Kolmogorov).
"""

_CDF_ROUNDING = float(np.finfo(np.float64).eps ** 0.5)
"""By how much the values of a distribution function may be out of order."""

_ADVICE = "try 'window', which follows any density, or 'pooled' with more batches"

_REACH = 8.0
"""Standard deviations at which a Gaussian step counts as complete: Φ(-8) = 6e-16."""

NEIGHBOURS = 15
"""Levels on each side, of local mean spacings, unless others are asked for."""

SHORTEST = 12
"""Levels of the shortest run that is unfolded where there are longer ones: a shorter one has too
few to take a density from, and would only come out even. Its ratios count all the same."""

_CHUNK = 1 << 20
"""Pairs of level and kernel evaluated at once."""


class _Pooled(NamedTuple):
    levels: tuple[Levels | None, ...]
    resolution: float
    groups: tuple[int, ...]


@dataclass(frozen=True)
class Unfolded(Result, derived="words", picture="levels.staircase"):
    """The levels of several spectra, unfolded.

    Attributes:
        selection: The levels before unfolding.
        levels: For each spectrum its unfolded levels, ascending, mean spacing 1; None where it
            only served as pool. Each run was unfolded by itself, and begins where the one before
            it ends; NaN in runs that are too short for it (:data:`SHORTEST`).
        resolution: Smallest spacing that can be told from zero, in mean spacings; 0 if any can.
        method: Of unfolding.
        options: Of the method.
        rotate: For ``pooled``: whether every spectrum was unfolded.
    """

    selection: Selection
    levels: tuple[Levels | None, ...]
    resolution: float
    method: str
    options: dict[str, Any]
    rotate: bool

    @property
    def runs(self) -> list[list[Levels]]:
        """The unfolded runs of each spectrum that was unfolded."""
        pairs = zip(self.levels, self.selection.neighbours, strict=True)
        found = [split(levels, adjacent) for levels, adjacent in pairs if levels is not None]
        return [
            [run for run in runs if len(run) >= FEWEST and not np.isnan(run[0])] for runs in found
        ]

    @property
    def spacings(self) -> Samples:
        """Spacings of unfolded neighbours, (m_i,) for each spectrum that was unfolded."""
        return [np.concatenate([np.empty(0), *map(np.diff, runs)]) for runs in self.runs]

    @property
    def n_short(self) -> int:
        """Levels in runs that were too short to be unfolded."""
        unfolded = (levels for levels in self.levels if levels is not None)
        return sum(int(np.isnan(levels).sum()) for levels in unfolded)

    @property
    def words(self) -> str:
        """Method and options for people; ``"none"`` if no spectrum was unfolded."""
        if all(levels is None for levels in self.levels):
            return "none"
        shown = [f"{name}={value}" for name, value in self.options.items()]
        if self.method == "pooled":
            shown.append("every spectrum by rotation" if self.rotate else "⅔ pool, ⅓ unfolded")
        return f"{self.method} ({', '.join(shown)})" if shown else self.method


def unfold_selection(
    selection: Selection,
    method: str = "auto",
    *,
    rotate: bool = True,
    seed: int = 0,
    backend: Backend | None = None,
    **options: Any,
) -> Unfolded:
    """Unfold every spectrum of a selection.

    Each run of neighbouring levels is unfolded by itself, so that no window, kernel or polynomial
    reaches over a discarded band; a pool counts levels and needs no density on either side.

    Args:
        selection: From :func:`hessrmt.levels.select`.
        method: One of :data:`METHODS`, or ``"auto"``: pooled from thirty spectra on, else window.
        rotate: For ``pooled``: deal the spectra into three groups and unfold each with the other
            two, so that all are used; False is the published single split, ⅔ pool and ⅓ unfolded.
        seed: Of the groups.
        backend: For ``pooled``: where levels are counted; the CPU if None.
        **options: Of the method.

    Returns:
        The unfolded levels.

    Raises:
        OptionError: If an option has a value that it cannot have.
        DataError: If the method is unknown or cannot follow the density of some spectrum.
    """
    check_options(method, options, auto=True)
    if method == "auto":
        method = "pooled" if len(selection.levels) >= POOL_FROM else "window"
        check_options(method, options)
    if method == "pooled":
        found = pooled(selection.levels, rotate=rotate, seed=seed, backend=backend)
        return Unfolded(selection, found.levels, found.resolution, method, {}, rotate)
    longest = max(len(run) for runs in selection.runs for run in runs)
    shortest = SHORTEST if longest >= SHORTEST else FEWEST
    unfolded = []
    for number, pair in enumerate(zip(selection.levels, selection.neighbours, strict=True)):
        try:
            unfolded.append(_run_by_run(split(*pair), method, options, shortest))
        except OptionError:
            raise
        except DataError as error:
            raise DataError(f"spectrum {number}: {error}") from error
    return Unfolded(selection, tuple(unfolded), 0.0, method, options, rotate)


def _run_by_run(runs: Samples, method: str, options: dict[str, Any], shortest: int) -> Levels:
    """Runs of one spectrum, each unfolded by itself and put behind the one before."""
    found, below = [], 0
    for run in runs:
        long_enough = len(run) >= shortest
        found.append(below + unfold(run, method, **options) if long_enough else run * np.nan)
        below += len(run)
    return np.concatenate(found)


def unfold(
    levels: ArrayLike, method: str = "window", *, pool: Rows | None = None, **options: Any
) -> Levels:
    """Unfold the levels of one spectrum, ξ = N̄(λ).

    =============  ===========================================================================
    method         N̄, and its options
    =============  ===========================================================================
    ``window``     density of the nearest levels: ``neighbours=15`` on each side, ``passes=2``
    ``kernel``     Gaussian smoothing: ``width=5.0`` mean spacings, ``neighbours=15``
    ``spline``     least-squares cubic spline: ``knots=None``
    ``polynomial`` least-squares polynomial: ``degree=9``
    ``analytic``   a law: ``law="semicircle"`` (``centre``, ``radius``), ``"marchenko-pastur"``
                   (``ratio``, ``scale``) or any distribution function
    ``pooled``     #{λ' < λ in the pool}/(number of pooled spectra)
    =============  ===========================================================================

    The first three also follow spectra that span many decades. All but ``analytic`` and ``pooled``
    take the density from the levels themselves, and so hide fluctuations over more levels than
    they average over.

    Args:
        levels: (n,) levels of one spectrum, in any order; give only certified ones
            (``spectrum.resolved``).
        method: One of the table.
        pool: For ``pooled``: the levels of the other spectra, one array for each.
        **options: Of the method.

    Returns:
        (n,) unfolded levels, ascending, dimensionless, with mean spacing 1; ties stay ties.

    Raises:
        DataError: If the levels are not at least three finite numbers in one dimension, all
            coincide, or the method cannot follow their density; an ``OptionError``, which is one
            too, if the method does not exist or lacks an option.
    """
    check_options(method, options)
    if (pool is not None) != (method == "pooled"):
        raise DataError(
            f"method {method!r} needs the other spectra: pool=[levels, ...]; for one spectrum try "
            "'window'"
            if pool is None
            else f"method {method!r} takes no pool: pool=[levels, ...] goes with 'pooled' alone"
        )
    ordered = _ordered(levels)
    if pool is None:
        return _SINGLE[method](ordered, **options)
    others = [ascending(other, f"pool[{i}]") for i, other in enumerate(pool)]
    if not others:
        raise DataError("the pool is empty; give at least one other spectrum")
    return np.searchsorted(np.sort(np.concatenate(others)), ordered) / len(others)


def check_options(method: str, options: Iterable[str], *, auto: bool = False) -> None:
    """Refuse a method or the name of an option that does not exist.

    Args:
        method: One of :data:`METHODS`.
        options: Names given.
        auto: Whether ``"auto"`` is a method too, with the options of ``window``.

    Raises:
        OptionError: If one does not exist.
    """
    if isinstance(method, str) and ":" in method:
        name, _, given = method.partition(":")
        raise OptionError(
            f"unknown unfolding method {method!r}; in Python options are arguments of their own: "
            f"{name!r}, {given}"
        )
    one_of("unfolding method", method, ("auto",) * auto + METHODS, error=OptionError)
    function = window if method == "auto" else _SINGLE.get(method)
    _refuse_foreign(f"method {method!r}", options, function)


def _refuse_foreign(name: str, options: Iterable[str], function: Callable | None) -> None:
    known = list(inspect.signature(function).parameters)[1:] if function else []
    for foreign in sorted(set(options) - set(known)):
        shown = ", ".join(known) or "none"
        raise OptionError(f"{name} has no option {foreign!r}; known: {shown}")


def pooled(
    spectra: Rows,
    *,
    folds: int = 3,
    rotate: bool = True,
    seed: int = 0,
    backend: Backend | None = None,
) -> Pooled:
    """Unfold many spectra against each other: ξ = #{λ' < λ in the pool}/pooled.

    A seeded permutation deals the spectra into ``folds`` equal groups. With ``rotate`` each
    spectrum is unfolded with all spectra of the other groups as its pool, so every batch is used.
    Without, the first group alone is unfolded and all others are the pool: the published protocol,
    where two thirds of the batches are the pool of the last third.

    Args:
        spectra: One array (n_b,) of levels for each batch, in any order; the n_b may differ.
        folds: Groups, at most as many as spectra are used.
        rotate: Whether each group is unfolded in turn.
        seed: Of the permutation.
        backend: Where levels are counted, with the same result; the CPU if None.

    Returns:
        The unfolded levels in the order of the spectra, the resolution and the groups.

    Raises:
        DataError: If there are fewer than two spectra, or one of them cannot be unfolded.

    Source: Baskerville, Granziol and Keating 2022, eq. (10).
    """
    count = len(spectra)
    if count < 2:
        raise DataError(f"pooled needs several batches, got {count}; for one: 'window'")
    groups = min(whole("folds", folds, 2, error=OptionError), count)
    rows = [_ordered(levels, f"spectra[{i}]") for i, levels in enumerate(spectra)]
    group = np.empty(count, dtype=np.intp)
    group[rng.stream(seed, "unfold", "folds").permutation(count)] = np.arange(count) % groups
    where = select("cpu") if backend is None else backend
    unfolded: list[Levels | None] = [None] * count
    for own in range(groups if rotate else 1):
        outside = [row for row, g in zip(rows, group, strict=True) if g != own]
        members = np.flatnonzero(group == own)
        below = where.staircase(outside, [rows[i] for i in members])
        for i, counts in zip(members, below, strict=True):
            unfolded[i] = counts / len(outside)
    # the first group is never smaller than the others, so its pool is the coarsest
    resolution = 1 / (count - np.count_nonzero(group == 0))
    return Pooled(tuple(unfolded), float(resolution), tuple(group.tolist()))


def _ordered(levels: ArrayLike, name: str = "levels") -> Levels:
    """Ascending levels that have a density."""
    ordered = ascending(levels, name)
    if len(ordered) < 3:
        raise DataError(f"{name}: unfolding needs at least 3 levels, got {len(ordered)}")
    if ordered[0] == ordered[-1]:
        raise DataError(f"{name}: all {len(ordered)} levels coincide, there is no density")
    span = float(ordered[-1] - ordered[0])
    if not _SPAN[0] < span < _SPAN[1]:
        raise DataError(f"{name} span {span:.3g}, beyond what float64 divides; rescale them")
    return ordered


def kernel(levels: Levels, *, width: float = 5.0, neighbours: int = NEIGHBOURS) -> Levels:
    """N̄(λ) = Σ_i Φ((λ - λ_i)/h_i), with h_i = width × the mean spacing around level i.

    The levels are continued evenly beyond both ends (each end level once), so what a Gaussian puts
    outside comes back inside: N̄ grows by exactly n - 1 from the first level to the last. Each
    level raises N̄ around itself, so narrow Gaussians even the spacings out: a width of 2 lowers
    the GOE's variance of spacings by a seventh, a width of 5 by a fortieth.

    Args:
        levels: (n,) ascending.
        width: Standard deviation in local mean spacings; at most (n - 1)/8 is used.
        neighbours: On each side, of the local mean spacing; at least 2, and at most n/4 are used.
            Where they all coincide, the next twice as far are asked.

    Returns:
        (n,) unfolded levels.
    """
    width = real("width", width, above=0, error=OptionError, hint="it is in mean spacings")
    n = len(levels)
    h = min(width, (n - 1) / 8) * _mean_spacings(levels, enough(neighbours, n))
    low, high, reach = levels[0], levels[-1], _REACH * h
    left = 1 + np.flatnonzero(levels[1:] - low < reach[1:])
    right = np.flatnonzero(high - levels[:-1] < reach[:-1])
    centres = np.concatenate([levels, low - (levels[left] - low), high + (high - levels[right])])
    total = _sum_of_steps(levels, centres, np.concatenate([h, h[left], h[right]]))
    # a sum of rising steps: it falls by round-off only
    return np.maximum.accumulate(0.5 + (total - total[0]))


def window(levels: Levels, *, neighbours: int = NEIGHBOURS, passes: int = 2) -> Levels:
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
        neighbours: w, at least 2; at most n/4 are used.
        passes: How many; 1 is the bare formula.

    Returns:
        (n,) unfolded levels.
    """
    n, spacings = len(levels), np.diff(levels)
    for k in range(1, whole("passes", passes, 1, error=OptionError) + 1):
        w = enough(neighbours, n, k)
        span, held = _around(spacings, w), _around(np.ones(n - 1), w)
        spacings = held * np.divide(spacings, span, out=np.zeros(n - 1), where=span > 0)
    return 0.5 + np.concatenate([[0.0], np.cumsum(spacings)])


def _around(spacings: Levels, w: int) -> Levels:
    """Sum of each spacing and the w - 1 on each side of it, as far as there are so many."""
    return np.convolve(spacings, np.ones(2 * w - 1))[w - 1 : w - 1 + len(spacings)]


def enough(neighbours: int, n: int, times: int = 1) -> int:
    """How many neighbours on each side are used, of n levels and some times as many as asked.

    Args:
        neighbours: Asked for, at least 2.
        n: Levels of the spectrum.
        times: Windows are wider in later passes.

    Returns:
        At most n/4, but at least 2.
    """
    return min(times * whole("neighbours", neighbours, 2, error=OptionError), max(2, n // 4))


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


def polynomial(levels: Levels, *, degree: int = 9) -> Levels:
    """N̄ as a least-squares polynomial, in the Chebyshev basis of the levels' range.

    Where the best polynomial falls between two levels, the best one whose Bernstein coefficients
    rise, and which rises with them, takes its place.

    Args:
        levels: (n,) ascending.
        degree: Of the polynomial.

    Returns:
        (n,) unfolded levels.

    Raises:
        DataError: If there are too few levels for the degree, or the fit is no staircase of them.
    """
    whole("degree", degree, 1, error=OptionError)
    x, y, weights = _distinct(levels, degree + 2, f"a polynomial of degree {degree}")
    fit, (_, rank, _, _) = Chebyshev.fit(levels, _steps(levels), degree, full=True)
    if rank <= degree:
        raise DataError(
            f"the levels determine only {rank} of a polynomial's {degree + 1} coefficients, they "
            "crowd in a small part of their range; try 'window' or 'spline'"
        )
    if not _rises(levels, fit(levels)):
        ends = np.repeat([x[0], x[-1]], degree + 1)  # a spline without knots between them
        fit = _rising_spline(x, y, ends, weights, degree)
    return _staircase(levels, fit(levels), f"the polynomial of degree {degree}")


def spline(levels: Levels, *, knots: int | None = None) -> Levels:
    """N̄ as a least-squares cubic spline with knots at quantiles of the levels.

    Where the best spline falls between two levels, the best one whose B-spline coefficients rise,
    and which rises with them, takes its place.

    Args:
        levels: (n,) ascending.
        knots: Number of interior knots; n/40, between 3 and 200, if None.

    Returns:
        (n,) unfolded levels.

    Raises:
        DataError: If there are too few levels for the knots, or the fit is no staircase of them.

    Source: de Boor 1978, ch. XI.
    """
    if knots is None:
        knots = max(min(max(len(levels) // 40, 3), 200, len(np.unique(levels)) // 4 - 1), 0)
    least = 2 * (whole("knots", knots, error=OptionError) + 1) + 3
    x, y, weights = _distinct(levels, least, f"a cubic spline with {knots} interior knots")
    inner = np.quantile(x, np.arange(1, knots + 1) / (knots + 1))
    t = np.concatenate([[x[0]] * 4, inner, [x[-1]] * 4])
    try:
        fit = make_lsq_spline(x, y, t, k=3, w=weights)
        if not _rises(x, fit(x)):
            fit = _rising_spline(x, y, t, weights, 3)
    except (np.linalg.LinAlgError, RuntimeError) as error:
        raise DataError(
            f"the spline with {knots} interior knots has no unique fit ({error}), its knots lie "
            "too close for round-off; use fewer knots or try 'window'"
        ) from error
    return _staircase(levels, fit(levels), f"the spline with {knots} knots")


def analytic(
    levels: Levels,
    *,
    law: Any = "semicircle",
    centre: float | None = None,
    radius: float | None = None,
    ratio: float | None = None,
    scale: float | None = None,
) -> Levels:
    """ξ = n·F(λ) with the distribution function F of a law; levels outside its support coincide.

    Args:
        levels: (n,) ascending.
        law: ``"semicircle"``; ``"marchenko-pastur"``, for the nonzero levels of X Xᵀ/m, X n × m;
            or any distribution function of an array, or a law with such a ``cdf``.
        centre: Of the semicircle, in the units of the levels; their mean if None.
        radius: Of the semicircle, in the units of the levels; twice their standard deviation if
            None.
        ratio: n/m of Marchenko-Pastur, at most 1; variance/mean² of the levels if None.
        scale: Variance of an entry of X, in the units of the levels; their mean if None.

    Returns:
        (n,) unfolded levels.

    Raises:
        DataError: If the law is not that of the levels.
    """
    name, cdf = f"law {getattr(law, 'name', law)!r}", getattr(law, "cdf", law)
    asked = {"centre": centre, "radius": radius, "ratio": ratio, "scale": scale}
    given = {key: real(key, x, error=OptionError) for key, x in asked.items() if x is not None}
    function = None
    if not callable(cdf):
        one_of("law", law, _ANALYTIC, error=OptionError)
        cdf = function = _ANALYTIC[law]
    _refuse_foreign(name, given, function)
    share = np.asarray(cdf(levels, **given), dtype=np.float64)
    alike = share.shape == levels.shape
    if not alike or not (np.diff(share, prepend=0.0, append=1.0) >= -_CDF_ROUNDING).all():
        wanted = f"expected {len(levels)} values that rise within [0, 1]"
        raise DataError(f"{name} is no distribution function: {wanted}")
    return _near(levels, len(levels) * np.clip(share, 0, 1), name)


def _semicircle(x: Levels, centre: float | None = None, radius: float | None = None) -> Levels:
    centre = float(x.mean()) if centre is None else centre
    radius = 2 * float(x.std()) if radius is None else radius
    return semicircle_cdf(x - centre, radius)


def _marchenko_pastur(x: Levels, ratio: float | None = None, scale: float | None = None) -> Levels:
    if not x[0] > 0:
        raise DataError(
            f"the lowest level is {x[0]:.3g}, Marchenko-Pastur is the law of the nonzero levels of "
            "a positive matrix; leave the others out or try 'window'"
        )
    # at 1 the estimate falls on both sides; the fit is checked against the levels in any case
    ratio = min(1.0, float(x.var() / x.mean() ** 2)) if ratio is None else ratio
    real("ratio", ratio, above=0, most=1, hint="where n > m the nonzero levels are those of Xᵀ X")
    return marchenko_pastur_cdf(x, ratio, float(x.mean()) if scale is None else scale)


_ANALYTIC = {"semicircle": _semicircle, "marchenko-pastur": _marchenko_pastur}
_SINGLE: dict[str, Callable[..., Levels]] = {
    function.__name__: function for function in (window, kernel, spline, polynomial, analytic)
}

METHODS = (*_SINGLE, "pooled")
"""What :func:`unfold` knows."""


def _distinct(levels: Levels, least: int, name: str) -> tuple[Levels, Levels, Levels]:
    """Distinct levels, N̄ there and the weights of a fit; refused if they are too few for it."""
    x, first, counts = np.unique(levels, return_index=True, return_counts=True)
    if len(x) < least:
        advice = "ask for fewer coefficients or try 'window'"
        raise DataError(f"{name} needs at least {least} distinct levels, got {len(x)}; {advice}")
    return x, first + counts / 2, np.sqrt(counts)


def _steps(levels: Levels) -> Levels:
    return np.arange(len(levels)) + 0.5


def _near(levels: Levels, unfolded: Levels, name: str) -> Levels:
    """A staircase that is not too far from the counted one."""
    misfit = float(np.abs(unfolded - _steps(levels)).max())
    allowed = _MISFIT * len(levels) ** 0.5
    if not misfit <= allowed:
        raise DataError(
            f"{name} misses the staircase of {len(levels)} levels by {misfit:.3g} levels, more "
            f"than the {allowed:.3g} that even independent levels would; {_ADVICE}"
        )
    return np.maximum.accumulate(unfolded)


def _staircase(levels: Levels, unfolded: Levels, name: str) -> Levels:
    """A fit as a staircase: it runs through the ends only about, so it is stretched to n - 1."""
    if not _rises(levels, unfolded):
        raise DataError(f"{name} fitted to the staircase does not rise everywhere; {_ADVICE}")
    found = _near(levels, unfolded, name)
    return 0.5 + (found - found[0]) * ((len(found) - 1) / (found[-1] - found[0]))


def _rises(levels: Levels, unfolded: Levels) -> bool:
    """Whether a fit rises between all levels that are further apart than its round-off."""
    rounding = 8 * len(levels) * np.finfo(np.float64).eps
    apart = np.diff(levels) * (len(levels) / (levels[-1] - levels[0])) > rounding
    step = np.diff(unfolded)
    return not ((step < -rounding).any() or (step[apart] <= 0).any())


def _rising_spline(x: Levels, y: Levels, t: Levels, weights: Levels, degree: int) -> BSpline:
    design = BSpline.design_matrix(x, t, degree).toarray() * weights[:, None]
    # column k: the spline whose coefficients are 0 before the k-th and 1 from there on
    increments = np.cumsum(design[:, ::-1], axis=1)[:, ::-1]
    q, r = np.linalg.qr(increments)
    steps, _ = nnls(r, q.T @ (weights * y))
    return BSpline(t, np.cumsum(steps), degree)


class Pooled(_Pooled, Result):
    """Many spectra, unfolded against each other.

    Attributes:
        levels: For each spectrum its unfolded levels, ascending; None where it served as pool only.
        resolution: Step of the coarsest pool's staircase, 1/(number of pooled spectra), in mean
            spacings; spacings below it are not to be trusted.
        groups: Which group each spectrum was dealt into; the pool of a spectrum that is unfolded
            is every spectrum of the other groups.
    """
