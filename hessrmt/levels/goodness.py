"""How far level statistics lie from a law, and how likely a spectrum of that law lies as far.

Spacings of one spectrum are not independent, so the tables of Kolmogorov and of Anderson and
Darling do not apply; p-values come from surrogate ensembles (:mod:`hessrmt.levels.surrogates`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from hessrmt.errors import LevelsError
from hessrmt.levels.resampling import mean_and_error
from hessrmt.theory.laws import NAMES, ratio_law_folded, spacing_law

if TYPE_CHECKING:
    from jaxtyping import Float64

    from hessrmt.theory.law import Law

    Grid = Float64[np.ndarray, " g"]

LAWS = NAMES
"""Laws that level statistics are compared with; ``goe2`` is two superposed GOE blocks."""

POINTS = 512
"""Quantiles of a law at which distribution functions are compared."""

_LEVELS = (np.arange(POINTS) + 0.5) / POINTS


class Distance(NamedTuple):
    """Two distances between a sample and a law.

    Attributes:
        kolmogorov_smirnov: sup |F_n - F|, at every value of the sample.
        anderson_darling: ∫(F_n - F)²/(F(1 - F)) dF; n times it is the usual statistic.
    """

    kolmogorov_smirnov: float
    anderson_darling: float


def distance(values: Float64[np.ndarray, " n"], law: Law) -> Distance:
    """Distance of a sample from a law.

    Args:
        values: (n,) in any order.
        law: A law with ``cdf``.

    Returns:
        The distances, dimensionless.

    Raises:
        LevelsError: If there is no value.
    """
    n = len(values)
    if n == 0:
        raise LevelsError("a distance needs at least one value, got none")
    ordered = _ascending(values)
    below = np.asarray(law.cdf(ordered))
    # at each value F_n rises from i/n to (i + 1)/n; of tied values the first and last decide
    steps = np.arange(n + 1) / n
    largest = float(np.maximum(steps[1:] - below, below - steps[:-1]).max())
    difference = empirical(ordered, quantiles(law)) - _LEVELS
    weighted = difference**2 / (_LEVELS * (1 - _LEVELS))
    return Distance(largest, float(weighted.mean()))


def _ascending(values: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    return values if (values[1:] >= values[:-1]).all() else np.sort(values)


@cache
def quantiles(law: Law) -> Grid:
    """The points at which a law's distribution function takes evenly spaced values.

    Args:
        law: A law with ``ppf``.

    Returns:
        (512,) ascending points.
    """
    return np.asarray(law.ppf(_LEVELS))


def empirical(ordered: Float64[np.ndarray, " n"], points: Grid) -> Grid:
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

    Raises:
        LevelsError: If the statistic is unknown.
    """
    if statistic == "ratio":
        return ratio_law_folded(name)
    if statistic == "spacing":
        return spacing_law(name)
    raise LevelsError(f"unknown statistic {statistic!r}; known are ratio and spacing")


def likelihood_ratio(
    samples: Sequence[Float64[np.ndarray, " n"]], law: Law, reference: Law
) -> tuple[float, float]:
    """Mean of ln(p/p_reference) over all values, with its error from resampling spectra.

    Vuong's test of two laws that need not be nested (Econometrica 57, 307, 1989), with whole
    spectra as the independent observations: their ratio is asymptotically standard normal if both
    laws are equally far from the truth.

    Args:
        samples: Values of each spectrum.
        law: With ``pdf``.
        reference: With ``pdf``.

    Returns:
        The mean, positive if ``law`` fits better, and its standard error, in natural units.
    """
    tiny = np.finfo(np.float64).tiny
    return mean_and_error(
        [
            np.log(np.maximum(law.pdf(values), tiny))
            - np.log(np.maximum(reference.pdf(values), tiny))
            for values in samples
        ]
    )


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


def p_value(values: Float64[np.ndarray, " n"], law: Law, null: Null) -> float:
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
    found = np.abs(empirical(_ascending(values), quantiles(law)) - _LEVELS).max()
    return float((1 + np.count_nonzero(surrogate >= found)) / (1 + len(surrogate)))
