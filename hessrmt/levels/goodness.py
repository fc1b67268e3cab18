"""How far level statistics lie from a law, and how likely a spectrum of that law lies as far.

Spacings of one spectrum are not independent, so the tables of Kolmogorov and of Anderson and
Darling do not apply; p-values come from surrogate data sets: spectra of a known law, put through
the same unfolding as the data. A bank of spectra is drawn once, and each surrogate data set is a
random choice from it, so that hundreds of data sets cost little more than a few. Spectra of up to
1,000 levels are imitated whole, at their own size; of longer ones a stretch from the bulk stands
for the whole, since local statistics do not know the size, and :func:`distances` scales their
fluctuations.
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
from zipfile import ZipFile

import numpy as np
from jaxtyping import Float64
from scipy.special import ndtr, pdtr

from hessrmt import rng
from hessrmt.backend.select import select
from hessrmt.ensembles import gaussian_band, poisson_levels, superposed
from hessrmt.errors import StoreError
from hessrmt.files import write_whole
from hessrmt.levels.resampling import Samples, mean_and_error
from hessrmt.levels.spacings import log_of, of_spacings
from hessrmt.levels.unfolding import Unfolded, pooled, unfold
from hessrmt.theory import number_variance, ratio_law_folded, semicircle_cdf, spacing_law
from hessrmt.theory.law import BETA_OF, NAMES

if TYPE_CHECKING:
    from hessrmt.arrays import Levels
    from hessrmt.backend.base import Backend
    from hessrmt.theory import Law

Grid = Float64[np.ndarray, " g"]
Rows = Float64[np.ndarray, "spectra n"]
Counts = Float64[np.ndarray, "rows g+1"]
MapUnordered = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[tuple[int, Any]]]

LAWS = NAMES
"""Laws that level statistics are compared with; ``goe2`` is two superposed GOE blocks."""

POINTS = 512
"""Quantiles of a law at which distribution functions are compared."""

_LEVELS = (np.arange(POINTS) + 0.5) / POINTS

STATISTICS = {"ratio": ratio_law_folded, "spacing": spacing_law}
"""Ratios r̃ and nearest-neighbour spacings, to the function that gives the law of an ensemble."""


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


def distances(
    ordered: Levels, law: Law, null: Null | None = None
) -> tuple[float, float, float | None]:
    """Distances of a sample from a law, and how likely a spectrum of the law lies as far.

    The surrogates' deviations are brought to the size of the data: sets of n' values chosen
    without replacement from a bank of N' have the variance σ²(1/n' - 1/N') around the bank's mean,
    the data have σ²/n around the law's.

    Args:
        ordered: (n,) ascending.
        law: With ``cdf`` and ``ppf``.
        null: Surrogates of that law.

    Returns:
        Kolmogorov and Smirnov's sup |F_n - F| at every value of the sample; Anderson and Darling's
        ∫(F_n - F)²/(F(1 - F)) dF, n times which is the usual statistic; and the p-value of the
        former, (1 + surrogates at least as far)/(1 + surrogates), None without surrogates. NaN,
        NaN and None without a value.
    """
    n = len(ordered)
    if not n:
        return float("nan"), float("nan"), None
    below = np.asarray(law.cdf(ordered))
    # at each value F_n rises from i/n to (i + 1)/n; of tied values the first and last decide
    steps = np.arange(n + 1) / n
    largest = float(np.maximum(steps[1:] - below, below - steps[:-1]).max())
    difference = np.searchsorted(ordered, quantiles(law), side="right") / n - _LEVELS
    weighted = float((difference**2 / (_LEVELS * (1 - _LEVELS))).mean())
    if null is None:
        return largest, weighted, None
    scale = ((1 / n) / (1 / null.size - 1 / null.bank)) ** 0.5
    surrogates = np.abs(null.bias + scale * null.deviations).max(axis=1)
    as_far = int(np.count_nonzero(surrogates >= np.abs(difference).max()))
    return largest, weighted, (1 + as_far) / (1 + len(surrogates))


@cache
def quantiles(law: Law) -> Grid:
    """The points at which a law's distribution function takes evenly spaced values.

    Args:
        law: A law with ``ppf``.

    Returns:
        (512,) ascending points.
    """
    return np.asarray(law.ppf(_LEVELS))


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


def plan(unfolded: Unfolded, surrogates: int, seed: int) -> SurrogatePlan:
    """Surrogates for spectra as given, with the same unfolding.

    Args:
        unfolded: The data; the median of their numbers of levels is imitated.
        surrogates: Data sets.
        seed: Of everything random.

    Returns:
        Whole spectra where the data are small, stretches where they are large.
    """
    sizes, method = [len(row) for row in unfolded.selection.levels], unfolded.method
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
    options = tuple(sorted(unfolded.options.items()))
    how = method, options, unfolded.rotate
    return SurrogatePlan(count, levels, whole, *how, surrogates, seed)


def nulls(law: str, plan: SurrogatePlan, backend: Backend | None = None) -> dict[str, Null]:
    """Surrogate distribution functions of ratios and spacings; from the cache where they are there.

    Args:
        law: One of :data:`LAWS`.
        plan: From :func:`plan`.
        backend: Where levels are computed and counted; the CPU if None.

    Returns:
        ``"ratio"`` and ``"spacing"`` to the surrogates.
    """
    where = select("cpu") if backend is None else backend
    # solvers differ in the last bits
    known = [_VERSION, law, asdict(plan), where.banded_route(1)[1]]
    text = json.dumps(known, sort_keys=True, default=repr)
    if "<" in text:  # a law that is a Python function has no name that outlives the process
        return simulate_nulls(law, plan, where)
    from pooch import os_cache

    name = hashlib.sha256(text.encode()).hexdigest()[:24]
    path = Path(os_cache("hessrmt")) / "surrogates" / f"{name}.npz"
    found = read_nulls(path)
    if found is None:
        found = simulate_nulls(law, plan, where)
        write_nulls(path, found)
    return found


def read_nulls(path: Path) -> dict[str, Null] | None:
    """Surrogates from a file of the cache.

    Args:
        path: The file.

    Returns:
        ``"ratio"`` and ``"spacing"`` to the surrogates; None if the file is not there or damaged.
    """
    try:
        with ZipFile(path) as archive, np.load(path, allow_pickle=False) as file:
            found = {
                name: Null(*(file[f"{name}_{field}"][()] for field in Null._fields))
                for name in STATISTICS
            }
            return None if archive.testzip() else found  # the checksums of everything
    except Exception:  # damage raises what zip, numpy's header or the tokenizer raise
        return None


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


def simulate_nulls(law: str, plan: SurrogatePlan, backend: Backend) -> dict[str, Null]:
    """Draw surrogates anew (arguments and result as of :func:`nulls`)."""
    bank, straight = _draw(law, plan, backend)
    choose = rng.stream(plan.seed, "surrogates", law, "choice")
    chosen = [choose.choice(len(bank), plan.spectra, replace=False) for _ in range(plan.surrogates)]
    points = quantiles(STATISTICS["ratio"](law))
    steps = [np.diff(row) for row in bank]
    ratios = np.array([_counts(of_spacings(step[:-1], step[1:]), points) for step in steps])
    points = quantiles(STATISTICS["spacing"](law))
    if plan.method == "pooled":
        spacing = _pooled_null(law, bank, chosen, plan, points, backend)
    else:
        options = dict(plan.options)
        rows = (np.diff(unfold(row, plan.method, **options)) for row in bank)
        counts = np.array([_counts(_inner(row, plan), points) for row in rows])
        # the same spectra unfolded with their known density (the semicircle holds not quite to
        # its ends): the difference is what the method does to the law
        edge = max(_MARGIN, plan.levels // 10) if plan.levels > 4 * _MARGIN else 0
        exact = np.array([_counts(np.diff(r[edge : len(r) - edge]), points) for r in straight])
        spacing = _null(_sets(counts, chosen), counts, _share(counts) - _share(exact))
    return {"ratio": _null(_sets(ratios, chosen), ratios, np.zeros(POINTS)), "spacing": spacing}


def _pooled_null(
    law: str,
    bank: Rows,
    chosen: list[np.ndarray],
    plan: SurrogatePlan,
    points: Grid,
    backend: Backend,
) -> Null:
    counts, members = [], []
    for number, which in enumerate(chosen):
        rows, seed = list(bank[which]), plan.seed + number
        found = pooled(rows, rotate=plan.rotate, seed=seed, backend=backend)
        unfolded = np.array([row for row in found.levels if row is not None])
        counts.append(_counts(_inner(np.diff(unfolded), plan).ravel(), points))
        members = np.bincount(found.groups).tolist()[: None if plan.rotate else 1]
    law_below = np.asarray(STATISTICS["spacing"](law).cdf(points))
    bias = sum(
        own / sum(members) * (pooled_cdf(points, law, plan.spectra - own) - law_below)
        for own in members
    )
    sets = np.array(counts)
    return _null(sets, sets * (len(bank) / plan.spectra / len(sets)), np.asarray(bias))


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


def _sets(counts: Counts, chosen: list[np.ndarray]) -> Counts:
    return np.array([counts[which].sum(axis=0) for which in chosen])


def _share(counts: Counts) -> Grid:
    """Share of the values of some rows at or below each point."""
    total = counts.sum(axis=0)
    return total[:-1] / total[-1]


def _null(sets: Counts, bank: Counts, bias: Grid) -> Null:
    deviations = sets[:, :-1] / sets[:, -1:] - _share(bank)
    return Null(bias, deviations, float(sets[:, -1].mean()), float(bank[:, -1].sum()))


def _counts(values: Levels, points: Grid) -> Float64[np.ndarray, " g+1"]:
    """How many values lie at or below each point, and how many there are."""
    below = np.searchsorted(np.sort(values), points, side="right")
    return np.append(below, len(values)).astype(np.float64)


def _inner(spacings: np.ndarray, plan: SurrogatePlan) -> np.ndarray:
    margin = 0 if plan.whole else min(_MARGIN, (plan.levels - 2) // 4)
    return spacings[..., margin : spacings.shape[-1] - margin]


def _draw(law: str, plan: SurrogatePlan, backend: Backend) -> tuple[Rows, Rows]:
    """The bank, and the same spectra unfolded with the density they were drawn with."""
    generator = rng.stream(plan.seed, "surrogates", law, "bank")
    n, beta = plan.levels, BETA_OF.get(law, 1)
    count = max(_BANK * plan.spectra, min(-(-_BANK_LEVELS // n), _BANK_MOST))
    if law == "poisson":
        bank = np.array([poisson_levels(n, generator) for _ in range(count)])
        return bank, bank
    sizes = [n // 2, n - n // 2] if law == "goe2" else [n]
    if plan.whole:
        drawn = gaussian_spectra(sizes * count, beta, generator, backend)
    else:
        drawn = bulks(sizes * count, beta, generator, backend)
    # the blocks of each spectrum
    parts = [drawn[i : i + len(sizes)] for i in range(0, len(drawn), len(sizes))]
    if plan.whole:
        bank = np.array([superposed(blocks) for blocks in parts])
        return bank, n * np.asarray(semicircle_cdf(bank, radius=2 * (beta * n) ** 0.5))
    bank = np.array([np.sort(np.concatenate([x * n / len(x) for x in row])) for row in parts])
    return bank, bank


def gaussian_spectra(
    sizes: Sequence[int], beta: int, generator: np.random.Generator, backend: Backend
) -> list[Levels]:
    """Levels of Gaussian matrices, as :func:`hessrmt.ensembles.gaussian_levels` draws one.

    Args:
        sizes: How many levels each has.
        beta: 1, 2 or 4.
        generator: Source of randomness; the matrices are drawn one after the other.
        backend: Where their eigenvalues are computed, those of one size together.

    Returns:
        (n,) for each, ascending.
    """
    bands = [gaussian_band(beta, n, generator) for n in sizes]
    found: dict[int, Levels] = {}
    for n in sorted(set(sizes)):
        which = [number for number, size in enumerate(sizes) if size == n]
        levels = backend.eigvalsh_banded(np.array([bands[i][:n] for i in which]))  # n may be 1
        found.update(zip(which, levels, strict=True))
    return [found[number] for number in range(len(sizes))]


def bulks(
    sizes: Sequence[int], beta: int, generator: np.random.Generator, backend: Backend | None = None
) -> list[Levels]:
    """Levels of mean spacing 1, each time from the middle of a spectrum twice as large.

    Args:
        sizes: How many levels, each time.
        beta: 1, 2 or 4.
        generator: Source of randomness.
        backend: Where eigenvalues are computed; the CPU if None.

    Returns:
        (n,) for each, ascending, unfolded with the semicircle law, between about 0 and n.
    """
    where = select("cpu") if backend is None else backend
    larger = [max(2 * n, 200) for n in sizes]
    found = []
    for n, levels in zip(sizes, gaussian_spectra(larger, beta, generator, where), strict=True):
        size = len(levels)
        unfolded = size * np.asarray(semicircle_cdf(levels, radius=2 * (beta * size) ** 0.5))
        start = (size - n) // 2
        found.append(unfolded[start : start + n] - start)
    return found
