"""Surrogate data sets: spectra of a known law, put through the same unfolding as the data.

A bank of spectra is drawn once, and each surrogate data set is a random choice from it, so that
hundreds of data sets cost little more than a few. Spectra of up to 1,000 levels are imitated whole,
at their own size; of longer ones a stretch from the bulk stands for the whole, since local
statistics do not know the size, and :func:`hessrmt.levels.goodness.p_value` scales fluctuations.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import ndtr, pdtr

from hessrmt import rng
from hessrmt.ensembles import block_levels, gaussian_levels, poisson_levels
from hessrmt.levels import cache
from hessrmt.levels.goodness import Null, quantiles, statistic_law
from hessrmt.levels.ratios import of_spacings
from hessrmt.levels.unfolding import pooled, unfold
from hessrmt.theory.densities import semicircle_cdf
from hessrmt.theory.laws import BETA_OF
from hessrmt.theory.longrange import number_variance

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from jaxtyping import Float64

    Rows = Float64[np.ndarray, "spectra n"]
    MapUnordered = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[tuple[int, Any]]]

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


@dataclass(frozen=True)
class Plan:
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
    sizes: Sequence[int],
    method: str,
    options: dict[str, Any],
    rotate: bool,
    surrogates: int,
    seed: int,
) -> Plan:
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
    return Plan(
        count, levels, whole, method, tuple(sorted(options.items())), rotate, surrogates, seed
    )


def nulls(law: str, plan: Plan) -> dict[str, Null]:
    """Surrogate distribution functions of ratios and spacings; from the cache where they are there.

    Args:
        law: One of :data:`hessrmt.levels.goodness.LAWS`.
        plan: From :func:`plan`.

    Returns:
        ``"ratio"`` and ``"spacing"`` to the surrogates.
    """
    text = json.dumps([_VERSION, law, asdict(plan)], sort_keys=True, default=repr)
    if "<" in text:  # a law that is a Python function has no name that outlives the process
        return _simulate(law, plan)
    path = cache.path_of(text)
    found = cache.read(path, plan.surrogates)
    if found is None:
        found = _simulate(law, plan)
        cache.write(path, found)
    return found


def in_turn(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[tuple[int, Any]]:
    """Apply a function to every item here and now; a pool of workers has a method like this.

    Args:
        function: Of one item.
        items: Its arguments.

    Yields:
        Index of an item, and the result.
    """
    yield from enumerate(map(function, items))


def _simulate(law: str, plan: Plan) -> dict[str, Null]:
    bank, straight = _draw(law, plan)
    choose = rng.stream(plan.seed, "surrogates", law, "choice")
    chosen = [choose.choice(len(bank), plan.spectra, replace=False) for _ in range(plan.surrogates)]
    points = quantiles(statistic_law(law, "ratio"))
    ratios = np.array([_counts(_ratios(row), points) for row in bank])
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
    law: str, bank: Rows, chosen: list[np.ndarray], plan: Plan, points: np.ndarray
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


def pooled_cdf(s: Float64[np.ndarray, " g"], law: str, pool: int) -> Float64[np.ndarray, " g"]:
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


def _share(counts: Float64[np.ndarray, "rows g+1"]) -> Float64[np.ndarray, " g"]:
    """Share of the values of some rows at or below each point."""
    total = counts.sum(axis=0)
    return total[:-1] / total[-1]


def _null(
    counts: Float64[np.ndarray, "rows g+1"],
    chosen: list[np.ndarray],
    exact: Float64[np.ndarray, "rows g+1"] | None = None,
) -> Null:
    mean = _share(counts)
    return Null(
        bias=np.zeros(len(mean)) if exact is None else mean - _share(exact),
        deviations=np.array([_share(counts[which]) for which in chosen]) - mean,
        size=float(np.mean([counts[which, -1].sum() for which in chosen])),
        bank=float(counts[:, -1].sum()),
    )


def _counts(values: np.ndarray, points: np.ndarray) -> np.ndarray:
    """How many values lie at or below each point, and how many there are."""
    below = np.searchsorted(np.sort(values), points, side="right")
    return np.append(below, len(values)).astype(np.float64)


def _inner(spacings: np.ndarray, plan: Plan) -> np.ndarray:
    margin = 0 if plan.whole else min(_MARGIN, (plan.levels - 2) // 4)
    return spacings[..., margin : spacings.shape[-1] - margin]


def _ratios(levels: np.ndarray) -> np.ndarray:
    spacings = np.diff(levels)
    return of_spacings(spacings[:-1], spacings[1:])


def _draw(law: str, plan: Plan) -> tuple[Rows, Rows]:
    """The bank, and the same spectra unfolded with the density they were drawn with."""
    generator = rng.stream(plan.seed, "surrogates", law, "bank")
    enough = min(-(-_BANK_LEVELS // plan.levels), _BANK_MOST)
    count = max(_BANK * plan.spectra, enough)
    rows = [_spectrum(law, plan, generator) for _ in range(count)]
    return np.array([row for row, _ in rows]), np.array([straight for _, straight in rows])


def _spectrum(
    law: str, plan: Plan, generator: np.random.Generator
) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, " n"]]:
    n = plan.levels
    if law == "poisson":
        levels = poisson_levels(n, generator)
        return levels, levels
    if not plan.whole:
        sizes = [n // 2, n - n // 2] if law == "goe2" else [n]
        blocks = [bulk(size, BETA_OF.get(law, 1), generator) * n / size for size in sizes]
        levels = np.sort(np.concatenate(blocks))
        return levels, levels
    if law == "goe2":
        levels, beta = block_levels([n // 2, n - n // 2], generator), 1
    else:
        beta = BETA_OF[law]
        levels = gaussian_levels(beta, n, generator)
    return levels, n * np.asarray(semicircle_cdf(levels, radius=2 * (beta * n) ** 0.5))


def bulk(n: int, beta: int, generator: np.random.Generator) -> Float64[np.ndarray, " n"]:
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
    radius = 2 * (beta * size) ** 0.5
    unfolded = size * np.asarray(semicircle_cdf(levels, radius=radius))
    start = (size - n) // 2
    return unfolded[start : start + n] - start
