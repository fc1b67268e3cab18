"""How far level statistics lie from a law, and how likely a spectrum of that law lies as far.

Spacings of one spectrum are not independent, so the tables of Kolmogorov and of Anderson and
Darling do not apply; p-values come from surrogate data sets: spectra of a known law, put through
the same unfolding as the data. A bank of spectra is drawn once, and each surrogate data set is a
random choice from it, so that hundreds of data sets cost little more than a few. Spectra of up to
1,000 levels are imitated whole, at their own size; of longer ones a stretch from the bulk stands
for the whole, since local statistics do not know the size, and :func:`p_value` scales fluctuations.
Surrogates are kept between runs, in the user's cache folder; losing them costs only time.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float64
from scipy.special import ndtr, pdtr

from hessrmt import rng
from hessrmt.checks import one_of
from hessrmt.ensembles import block_levels, gaussian_levels, poisson_levels
from hessrmt.errors import DataError, StoreError
from hessrmt.files import write_whole
from hessrmt.levels.resampling import Samples, mean_and_error
from hessrmt.levels.spacings import log_of, of_spacings
from hessrmt.levels.unfolding import pooled, unfold
from hessrmt.theory import number_variance, ratio_law_folded, semicircle_cdf, spacing_law
from hessrmt.theory.law import BETA_OF, NAMES

if TYPE_CHECKING:
    from hessrmt.theory import Law

Values = Float64[np.ndarray, " n"]
Grid = Float64[np.ndarray, " g"]
Rows = Float64[np.ndarray, "spectra n"]
MapUnordered = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[tuple[int, Any]]]

Options = dict[str, Any]

LAWS = NAMES
"""Laws that level statistics are compared with; ``goe2`` is two superposed GOE blocks."""

POINTS = 512
"""Quantiles of a law at which distribution functions are compared."""

_LEVELS = (np.arange(POINTS) + 0.5) / POINTS

_STATISTICS = {"ratio": ratio_law_folded, "spacing": spacing_law}

_VERSION = 2
"""Part of the cache's key: raise it whenever the numbers would change."""

_WHOLE = 1_000
_WHOLE_IN_ALL = 100_000
"""Levels of a spectrum, and of a data set, up to which surrogates have the data's own size."""

_STRETCH = {"pooled": 100, "polynomial": 1_000}
_STRETCH_OTHER = 400
"""Shortest stretch that stands for a longer spectrum, by unfolding method."""

_TARGET = 30_000
"""Levels of a surrogate data set that is smaller than the data."""

_MOST_POOLED = 200
"""Spectra in such a data set: a pool of 133 spectra already unfolds to a hundredth of a spacing."""

_BANK = 3
"""Spectra in the bank for each one of a data set, if that is enough levels."""

_BANK_LEVELS, _BANK_MOST = 30_000, 600
"""Levels that a bank has at least, unless it takes too many spectra.

A smaller bank knows the spread of small data sets, and what unfolding does to them, too badly: with
3 × 6 spectra of 200 levels, tests at the level of 5 % reject 2 to 17 % of GOE data.
"""

_MARGIN = 8
"""Levels at each end of a stretch that are dropped after unfolding."""


class Distance(NamedTuple):
    """Two distances between a sample and a law.

    Attributes:
        kolmogorov_smirnov: sup |F_n - F|, at every value of the sample.
        anderson_darling: ∫(F_n - F)²/(F(1 - F)) dF; n times it is the usual statistic.
    """

    kolmogorov_smirnov: float
    anderson_darling: float


def distance(values: Values, law: Law) -> Distance:
    """Distance of a sample from a law.

    Args:
        values: (n,) in any order.
        law: A law with ``cdf``.

    Returns:
        The distances, dimensionless.

    Raises:
        DataError: If there is no value.
    """
    n = len(values)
    if n == 0:
        raise DataError("a distance needs at least one value, got none")
    ordered = np.sort(values, kind="stable")
    below = np.asarray(law.cdf(ordered))
    # at each value F_n rises from i/n to (i + 1)/n; of tied values the first and last decide
    steps = np.arange(n + 1) / n
    largest = float(np.maximum(steps[1:] - below, below - steps[:-1]).max())
    difference = empirical(ordered, quantiles(law)) - _LEVELS
    weighted = difference**2 / (_LEVELS * (1 - _LEVELS))
    return Distance(largest, float(weighted.mean()))


@cache
def quantiles(law: Law) -> Grid:
    """The points at which a law's distribution function takes evenly spaced values.

    Args:
        law: A law with ``ppf``.

    Returns:
        (512,) ascending points.
    """
    return np.asarray(law.ppf(_LEVELS))


def empirical(ordered: Values, points: Grid) -> Grid:
    """Empirical distribution function F_n at some points.

    Args:
        ordered: (n,) ascending sample.
        points: (g,).

    Returns:
        (g,) shares of the sample at or below each point.
    """
    return np.searchsorted(ordered, points, side="right") / len(ordered)


def statistic_law(name: str, statistic: str) -> Law:
    """The law of a statistic for one of :data:`LAWS`.

    Args:
        name: Of the ensemble.
        statistic: ``"ratio"`` for r̃, ``"spacing"`` for nearest-neighbour spacings.

    Returns:
        The law.
    """
    one_of("statistic", statistic, _STATISTICS)
    return _STATISTICS[statistic](name)


def likelihood_ratio(samples: Samples, law: Law, reference: Law) -> tuple[float, float]:
    """Mean of ln(p/p_reference) over all values, with its error from resampling spectra.

    A test of two laws that need not be nested, with whole spectra as the independent observations:
    their ratio is asymptotically standard normal if both laws are equally far from the truth.

    Args:
        samples: Values of each spectrum.
        law: With ``pdf``.
        reference: With ``pdf``.

    Returns:
        The mean, positive if ``law`` fits better, and its standard error, in natural units.

    Source: Vuong 1989.
    """
    return mean_and_error([log_of(law.pdf(v)) - log_of(reference.pdf(v)) for v in samples])


class Null(NamedTuple):
    """The empirical distribution function of surrogate data sets, on a law's quantiles.

    Attributes:
        bias: (512,) what the unfolding does to the law; zero for ratios, which need none.
        deviations: (surrogates, 512) of each surrogate data set from the mean over the bank.
        size: Values in one surrogate data set.
        bank: Values in the whole bank that the sets are chosen from.
    """

    bias: Grid
    deviations: Float64[np.ndarray, "surrogates g"]
    size: float
    bank: float


def p_value(values: Values, law: Law, null: Null) -> float:
    """Share of surrogate data sets at least as far from a law as the data.

    The surrogates' deviations are brought to the size of the data: sets of n' values chosen
    without replacement from a bank of N' have the variance σ²(1/n' - 1/N') around the bank's mean,
    the data have σ²/n around the law's.

    Args:
        values: (n,) the data, in any order.
        law: The law that both are measured from.
        null: Surrogates of that law.

    Returns:
        (1 + number of surrogates at least as far)/(1 + number of surrogates), in (0, 1].
    """
    scale = ((1 / len(values)) / (1 / null.size - 1 / null.bank)) ** 0.5
    surrogate = np.abs(null.bias + scale * null.deviations).max(axis=1)
    found = np.abs(empirical(np.sort(values, kind="stable"), quantiles(law)) - _LEVELS).max()
    return float((1 + np.count_nonzero(surrogate >= found)) / (1 + len(surrogate)))


@dataclass(frozen=True)
class SurrogatePlan:
    """What surrogate data sets look like.

    Attributes:
        spectra: Spectra in one data set.
        levels: Levels of each.
        whole: Whether these are whole spectra; else stretches from the bulk of larger ones.
        method: Unfolding method.
        options: Its options, as pairs.
        rotate: For ``pooled``: whether every spectrum is unfolded.
        surrogates: Data sets.
        seed: Of everything random.
    """

    spectra: int
    levels: int
    whole: bool
    method: str
    options: tuple[tuple[str, Any], ...]
    rotate: bool
    surrogates: int
    seed: int


def plan(
    sizes: Sequence[int], method: str, options: Options, rotate: bool, surrogates: int, seed: int
) -> SurrogatePlan:
    """Surrogates for spectra of given sizes.

    Args:
        sizes: Levels of each spectrum of the data; their median is imitated.
        method: Unfolding method.
        options: Of the method.
        rotate: For ``pooled``.
        surrogates: Data sets.
        seed: Of everything random.

    Returns:
        Whole spectra where the data are small, stretches where they are large.
    """
    count, levels = len(sizes), max(3, int(np.median(sizes)))
    whole = levels <= _WHOLE and count * levels <= _WHOLE_IN_ALL
    if not whole:
        shortest = _STRETCH.get(method, _STRETCH_OTHER)
        if method == "pooled":
            count = min(count, _MOST_POOLED)
            levels = min(levels, max(shortest, _TARGET // count))
        else:
            levels = min(levels, shortest)
            count = -(-_TARGET // levels)
    elif method != "pooled":
        # fewer than a handful of spectra make a poor choice from a bank
        count = max(count, 5)
    ordered = tuple(sorted(options.items()))
    return SurrogatePlan(count, levels, whole, method, ordered, rotate, surrogates, seed)


def nulls(law: str, plan: SurrogatePlan) -> dict[str, Null]:
    """Surrogate distribution functions of ratios and spacings; from the cache where they are there.

    Args:
        law: One of :data:`LAWS`.
        plan: From :func:`plan`.

    Returns:
        ``"ratio"`` and ``"spacing"`` to the surrogates.
    """
    text = json.dumps([_VERSION, law, asdict(plan)], sort_keys=True, default=repr)
    if "<" in text:  # a law that is a Python function has no name that outlives the process
        return _simulate(law, plan)
    from pooch import os_cache

    name = hashlib.sha256(text.encode()).hexdigest()[:24]
    path = Path(os_cache("hessrmt")) / "surrogates" / f"{name}.npz"
    found = read_nulls(path, plan.surrogates)
    if found is None:
        found = _simulate(law, plan)
        write_nulls(path, found)
    return found


def read_nulls(path: Path, surrogates: int) -> dict[str, Null] | None:
    """Surrogates from a file of the cache.

    Args:
        path: The file.
        surrogates: Data sets expected.

    Returns:
        ``"ratio"`` and ``"spacing"`` to the surrogates; None if the file is not there, damaged, or
        not what was expected.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {
                name: Null(*(file[f"{name}_{field}"][()] for field in Null._fields))
                for name in _STATISTICS
            }
        whole = all(
            null.bias.shape == (POINTS,)
            and null.deviations.shape == (surrogates, POINTS)
            and np.isfinite(np.vstack([null.bias, null.deviations])).all()
            and 0 < null.size < null.bank
            for null in found.values()
        )
    except Exception:  # damage raises what zip, numpy's header or the tokenizer raise
        return None
    return found if whole else None


def write_nulls(path: Path, found: dict[str, Null]) -> None:
    """Keep surrogates for next time; a cache that cannot be written is no error.

    Args:
        path: Of the file.
        found: ``"ratio"`` and ``"spacing"`` to the surrogates.
    """
    arrays: dict[str, Any] = {
        f"{name}_{field}": value
        for name, null in found.items()
        for field, value in null._asdict().items()
    }
    image = io.BytesIO()
    np.savez(image, **arrays)
    with suppress(OSError, StoreError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, image.getbuffer())


def in_turn(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[tuple[int, Any]]:
    """Apply a function to every item here and now; a pool of workers has a method like this.

    Args:
        function: Of one item.
        items: Its arguments.

    Yields:
        Index of an item, and the result.
    """
    yield from enumerate(map(function, items))


def _simulate(law: str, plan: SurrogatePlan) -> dict[str, Null]:
    bank, straight = _draw(law, plan)
    choose = rng.stream(plan.seed, "surrogates", law, "choice")
    chosen = [choose.choice(len(bank), plan.spectra, replace=False) for _ in range(plan.surrogates)]
    points = quantiles(statistic_law(law, "ratio"))
    steps = [np.diff(row) for row in bank]
    ratios = np.array([_counts(of_spacings(step[:-1], step[1:]), points) for step in steps])
    points = quantiles(statistic_law(law, "spacing"))
    if plan.method == "pooled":
        spacing = _pooled_null(law, bank, chosen, plan, points)
    else:
        options = dict(plan.options)
        rows = (np.diff(unfold(row, plan.method, **options)) for row in bank)
        counts = np.array([_counts(_inner(row, plan), points) for row in rows])
        # the same spectra unfolded with their known density (the semicircle holds not quite to
        # its ends): the difference is what the method does to the law
        edge = max(_MARGIN, plan.levels // 10) if plan.levels > 4 * _MARGIN else 0
        exact = [_counts(np.diff(row[edge : len(row) - edge]), points) for row in straight]
        spacing = _null(counts, chosen, np.array(exact))
    return {"ratio": _null(ratios, chosen), "spacing": spacing}


def _pooled_null(
    law: str, bank: Rows, chosen: list[np.ndarray], plan: SurrogatePlan, points: Grid
) -> Null:
    counts, groups = [], ()
    for number, which in enumerate(chosen):
        found = pooled(list(bank[which]), rotate=plan.rotate, seed=plan.seed + number)
        unfolded = np.array([row for row in found.levels if row is not None])
        counts.append(_counts(_inner(np.diff(unfolded), plan).ravel(), points))
        groups = found.groups
    sets = np.array(counts)
    shares, size = sets[:, :-1] / sets[:, -1:], float(sets[:, -1].mean())
    members = np.bincount(groups)[: None if plan.rotate else 1]
    law_below = np.asarray(statistic_law(law, "spacing").cdf(points))
    bias = sum(
        share * (pooled_cdf(points, law, plan.spectra - own) - law_below)
        for own, share in zip(members, members / members.sum(), strict=True)
    )
    deviations = shares - shares.mean(axis=0)
    return Null(np.asarray(bias), deviations, size, size * len(bank) / plan.spectra)


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
    density = weights * end / 2 * np.asarray(statistic_law(law, "spacing").pdf(t))
    whole = np.floor(pool * s * (1 + 1e-12))
    if law == "poisson":
        return pdtr(whole[:, None], pool * t) @ density
    spread = np.sqrt(pool * np.asarray(number_variance(t, law)))
    return ndtr((whole[:, None] + 0.5 - pool * t) / spread) @ density


def _share(counts: Float64[np.ndarray, "rows g+1"]) -> Grid:
    """Share of the values of some rows at or below each point."""
    total = counts.sum(axis=0)
    return total[:-1] / total[-1]


def _null(counts: np.ndarray, chosen: list[np.ndarray], exact: np.ndarray | None = None) -> Null:
    mean = _share(counts)
    return Null(
        bias=np.zeros(len(mean)) if exact is None else mean - _share(exact),
        deviations=np.array([_share(counts[which]) for which in chosen]) - mean,
        size=float(np.mean([counts[which, -1].sum() for which in chosen])),
        bank=float(counts[:, -1].sum()),
    )


def _counts(values: Values, points: Grid) -> Float64[np.ndarray, " g+1"]:
    """How many values lie at or below each point, and how many there are."""
    below = np.searchsorted(np.sort(values), points, side="right")
    return np.append(below, len(values)).astype(np.float64)


def _inner(spacings: np.ndarray, plan: SurrogatePlan) -> np.ndarray:
    margin = 0 if plan.whole else min(_MARGIN, (plan.levels - 2) // 4)
    return spacings[..., margin : spacings.shape[-1] - margin]


def _draw(law: str, plan: SurrogatePlan) -> tuple[Rows, Rows]:
    """The bank, and the same spectra unfolded with the density they were drawn with."""
    generator = rng.stream(plan.seed, "surrogates", law, "bank")
    enough = min(-(-_BANK_LEVELS // plan.levels), _BANK_MOST)
    count = max(_BANK * plan.spectra, enough)
    bank, straight = np.swapaxes([_spectrum(law, plan, generator) for _ in range(count)], 0, 1)
    return bank, straight


def _spectrum(
    law: str, plan: SurrogatePlan, generator: np.random.Generator
) -> tuple[Values, Values]:
    n, beta = plan.levels, BETA_OF.get(law, 1)
    sizes = [n // 2, n - n // 2] if law == "goe2" else [n]
    if law == "poisson":
        levels = poisson_levels(n, generator)
    elif plan.whole:
        levels = block_levels(sizes, generator, beta)
        return levels, n * np.asarray(semicircle_cdf(levels, radius=2 * (beta * n) ** 0.5))
    else:
        blocks = [bulk(size, beta, generator) * n / size for size in sizes]
        levels = np.sort(np.concatenate(blocks))
    return levels, levels


def bulk(n: int, beta: int, generator: np.random.Generator) -> Values:
    """Levels of mean spacing 1 from the middle of a spectrum twice as large.

    Args:
        n: How many.
        beta: 1, 2 or 4.
        generator: Source of randomness.

    Returns:
        (n,) ascending, unfolded with the semicircle law, between about 0 and n.
    """
    size = max(2 * n, 200)
    levels = gaussian_levels(beta, size, generator)
    unfolded = size * np.asarray(semicircle_cdf(levels, radius=2 * (beta * size) ** 0.5))
    start = (size - n) // 2
    return unfolded[start : start + n] - start
