"""How far level statistics lie from a law, and how likely levels of that law lie as far.

Spacings of one spectrum are not independent, so the tables of Kolmogorov and of Anderson and
Darling do not apply; p-values come from surrogate data sets (:mod:`hessrmt.levels.surrogates`):
levels of a known law with the runs and the density of the data, put through the same unfolding.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float64
from scipy.special import erfc, erfcinv, kolmogi

from hessrmt.levels.resampling import Samples, mean_and_error
from hessrmt.levels.spacings import log_of
from hessrmt.theory import ratio_law_folded, spacing_law
from hessrmt.theory.law import NAMES

if TYPE_CHECKING:
    from hessrmt.arrays import Levels
    from hessrmt.theory import Law

Grid = Float64[np.ndarray, " g"]

LAWS = NAMES
"""Laws that level statistics are compared with; ``goe2`` is two superposed GOE blocks."""

POINTS = 512
"""Quantiles of a law at which distribution functions are compared."""

_LEVELS = (np.arange(POINTS) + 0.5) / POINTS

STATISTICS = {"ratio": ratio_law_folded, "spacing": spacing_law}
"""Ratios r̃ and nearest-neighbour spacings, to the function that gives the law of an ensemble."""

_MEDIAN = 2 * float(kolmogi(0.5))
"""Median of 2 √n D, D Kolmogorov's distance."""

_TAIL = 10
"""Surrogates beyond which a p-value is continued by the tail of a normal variable."""

SMALLEST = 1e-6
"""A tail is not trusted further."""


class Null(NamedTuple):
    """The empirical distribution function of surrogate data sets, on a law's quantiles.

    Attributes:
        bias: (512,) what density and unfolding do to the law.
        deviations: (surrogates, 512) of each surrogate data set from the mean over the bank.
        size: Values in one surrogate data set.
        bank: Values in the whole bank that the sets are chosen from.
        unknown: (surrogates, 512) random errors of the bias, or 0 where it is known: these do not
            fall with the number of values.
        most: Values beyond which data sets are taken to scatter as with so many.
    """

    bias: Grid
    deviations: Float64[np.ndarray, "surrogates g"]
    size: float
    bank: float
    unknown: Float64[np.ndarray, "surrogates g"] | float = 0.0
    most: float = float("inf")

    def of_size(self, n: int) -> Float64[np.ndarray, "surrogates g"]:
        """Deviations of data sets of another size.

        Sets of n' values chosen from a bank of N' have the variance σ²(1/n' - 1/N') around the
        bank's mean, the data have σ²/n around the law's.

        Args:
            n: Values in the data.

        Returns:
            (surrogates, 512) deviations.
        """
        chance = (
            (1 / min(n, self.most)) / (1 / self.size - 1 / self.bank)
        ) ** 0.5 * self.deviations
        return chance + self.unknown


class Verdict(NamedTuple):
    """What surrogates say of the ratios of some levels.

    Attributes:
        expected: Mean of the surrogates' ratios.
        sigmas: (mean of the ratios - expected)/(standard deviation of that of the surrogates).
        simulated: p-value, the share of surrogates that lie at least as far; the last ten of them
            are smoothed by the tail of a normal variable. At least 1/(1 + surrogates).
        p_value: The same, continued beyond the surrogates by that tail, down to 1e-6.
    """

    expected: float
    sigmas: float
    simulated: float
    p_value: float


def distances(
    ordered: Levels, law: Law, null: Null | None = None
) -> tuple[float, float, float | None]:
    """Distances of a sample from a law, and how likely levels of the law lie as far.

    Args:
        ordered: (n,) ascending.
        law: With ``cdf`` and ``ppf``.
        null: Surrogates of that law.

    Returns:
        Kolmogorov and Smirnov's sup |F_n - F| at every value of the sample; Anderson and Darling's
        ∫(F_n - F)²/(F(1 - F)) dF, n times which is the usual statistic; and the p-value of the
        distance from what density and unfolding make of the law in the surrogates, (1 + surrogates
        at least as far)/(1 + surrogates); None without surrogates. NaN, NaN and None without
        values.
    """
    n = len(ordered)
    if not n:
        return float("nan"), float("nan"), None
    below = np.asarray(law.cdf(ordered))
    # at each value F_n rises from i/n to (i + 1)/n; of tied values the first and last decide
    steps = np.arange(n + 1) / n
    largest = float(np.maximum(steps[1:] - below, below - steps[:-1]).max())
    difference = _difference(ordered, law)
    weighted = float((difference**2 / (_LEVELS * (1 - _LEVELS))).mean())
    if null is None:
        return largest, weighted, None
    surrogates = np.abs(null.of_size(n)).max(axis=1)
    return largest, weighted, _rank(np.abs(difference - null.bias).max(), surrogates)


def judge(ordered: Levels, law: Law, mean: float, null: Null) -> Verdict:
    """Compare ratios with those of surrogates, by their mean and by the shape of their law at once.

    Both deviations, that of the mean and the distance D, are taken in units of their spread over
    the surrogates, and D as the deviation of a normal variable that is as improbable; the larger
    decides.

    Args:
        ordered: (n,) ratios r̃, ascending; at least one.
        law: Of the ratios.
        mean: Of the law.
        null: Surrogates of that law.

    Returns:
        The verdict.
    """
    points, surrogates = quantiles(law), null.of_size(len(ordered))
    # ⟨r⟩ = ∫(1 - F) dr
    weights = -np.gradient(np.concatenate([[0.0], points, [1.0]]))[1:-1]
    shifts = surrogates @ weights
    spread = float(np.sqrt(np.mean(shifts**2)))
    expected = mean + float(null.bias @ weights)
    sigmas = (float(ordered.mean()) - expected) / spread
    far = np.abs(surrogates).max(axis=1)
    unit = float(np.median(far)) / _MEDIAN
    furthest = float(np.abs(_difference(ordered, law) - null.bias).max())
    value = max(abs(sigmas), float(_as_normal(np.array(furthest / unit))))
    each = np.sort(np.maximum(np.abs(shifts) / spread, _as_normal(far / unit)))[::-1]
    edge = min(_TAIL, -(-len(each) // 5))
    p = _rank(value, each)
    if value > each[edge - 1]:
        p = edge / len(each) * float(erfc(value / 2**0.5) / erfc(each[edge - 1] / 2**0.5))
    return Verdict(expected, sigmas, max(p, 1 / (1 + len(each))), max(p, SMALLEST))


def _as_normal(x: Levels) -> Levels:
    """The normal deviation that is as improbable as 2 √n D = x, of probability 2 exp(-x²/2)."""
    return 2**0.5 * erfcinv(np.minimum(1.0, 2 * np.exp(-(x**2) / 2)))


def _difference(ordered: Levels, law: Law) -> Grid:
    """F_n - F at the law's quantiles."""
    return np.searchsorted(ordered, quantiles(law), side="right") / len(ordered) - _LEVELS


def _rank(value: float, surrogates: Levels) -> float:
    return (1 + int(np.count_nonzero(surrogates >= value))) / (1 + len(surrogates))


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
