"""How a metric of networks goes with their accuracy: a line, and correlations with intervals.

The networks of a series are taken as independent draws from a population of such networks, and an
interval is for the coefficient of that population. It is symmetric in arctanh of the coefficient,
t·s to both sides, t being Student's with n - 2 degrees of freedom and s the larger of

- the standard error for normal columns: 1/√(n - 3) of Pearson's r (Fisher 1921), √((1 + ρ²/2)/
  (n - 3)) of Spearman's ρ (Bonett and Wright 2000), √(0.437/(n - 4)) of Kendall's τ (Fieller,
  Hartley and Pearson 1957);
- that of the jackknife over networks, which also knows columns with heavy tails.

Either alone is too short somewhere: the first for heavy tails (Pearson's covers 70 % of 50
Student-t pairs), the second for few networks in almost perfect order. ``docs/capacity.md`` has the
coverage of both together. Where all pairs are in order, a rank coefficient is ±1 and the interval
is open at that end: it counts as if one pair of neighbours were not.

Of p-values the null is that one column is in random order with respect to the other: all
permutations for at most 7 networks, 10,000 drawn ones for at most 25, the laws of scipy beyond.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64
from scipy import stats

from hessrmt import rng
from hessrmt.checks import real
from hessrmt.errors import DataError
from hessrmt.results import Result
from hessrmt.tables import at_most

NAN = math.nan

Values = Float64[np.ndarray, " n"]
Rows = Float64[np.ndarray, "rows n"]

FEWEST = 3
"""Networks of a line."""

FEWEST_FOR_INTERVAL = 6
"""With fewer nearly every coefficient is possible."""

LEVEL = 0.95

PERMUTATIONS = 10_000
"""Drawn for a p-value; the smallest one is the inverse of their number plus one."""

_ALL, _DRAWN = 7, 25
"""Most networks for which all permutations are gone through, and for which they are drawn."""


@dataclass(frozen=True)
class Correlation(Result):
    """How one metric goes with one accuracy along a series of networks.

    Attributes:
        metric: Name of the metric, e.g. one of :data:`hessrmt.capacity.report.METRICS`.
        accuracy: Name of the accuracy.
        n: Networks with both.
        slope: Of the least-squares line, accuracy for each unit of the metric.
        slope_error: Its standard error.
        intercept: Of the line.
        r_squared: R² of the line.
        kendall: Kendall's τ_b.
        kendall_p: Probability of such a τ, or one farther from 0, without a connection.
        spearman: Spearman's ρ.
        spearman_p: The same of ρ.
        failed: Why there are no numbers, else None.
        pearson: Pearson's r.
        pearson_p: The same of r.
        kendall_interval: Lower and upper end for τ; NaN with fewer than
            :data:`FEWEST_FOR_INTERVAL` networks.
        spearman_interval: The same for ρ.
        pearson_interval: The same for r.
        level: Probability of each interval.
    """

    metric: str
    accuracy: str
    n: int
    slope: float = NAN
    slope_error: float = NAN
    intercept: float = NAN
    r_squared: float = NAN
    kendall: float = NAN
    kendall_p: float = NAN
    spearman: float = NAN
    spearman_p: float = NAN
    failed: str | None = None
    pearson: float = NAN
    pearson_p: float = NAN
    kendall_interval: tuple[float, float] = (NAN, NAN)
    spearman_interval: tuple[float, float] = (NAN, NAN)
    pearson_interval: tuple[float, float] = (NAN, NAN)
    level: float = LEVEL

    def p(self, name: str) -> float | None:
        """The p-value of a coefficient as tables and sentences show it.

        Args:
            name: ``"kendall"``, ``"spearman"`` or ``"pearson"``.

        Returns:
            The value, an :class:`hessrmt.tables.AtMost` where it is the smallest that drawn orders
            can show.
        """
        drawn = _ALL < self.n <= _DRAWN
        return at_most(getattr(self, f"{name}_p"), 1 / (1 + PERMUTATIONS) if drawn else 0.0)


def correlate(
    metric: Sequence[float],
    accuracy: Sequence[float],
    names: tuple[str, str] = ("", ""),
    level: float = LEVEL,
) -> Correlation:
    """Least-squares line and correlations of two columns, with intervals and p-values.

    Args:
        metric: (n,) of the networks.
        accuracy: (n,) of the same networks.
        names: Of metric and accuracy.
        level: Probability of the intervals, between 0 and 1.

    Returns:
        The correlation; networks that lack one of the two are left out. With fewer than three, or
        where one of the two never changes, numbers are NaN and ``failed`` says why.

    Raises:
        DataError: If the columns differ in length, or the level is no probability.

    Source: Fisher 1921; Fieller, Hartley and Pearson 1957; Bonett and Wright 2000; Efron and
    Tibshirani 1993, ch. 11.
    """
    if not 0 < real("level", level) < 1:
        raise DataError(f"level is {level!r}; expected a probability between 0 and 1, as 0.95")
    x, y = np.asarray(metric, dtype=np.float64), np.asarray(accuracy, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 1:
        raise DataError(f"{x.shape} metrics and {y.shape} accuracies; give one of each")
    both = np.isfinite(x) & np.isfinite(y)
    x, y = x[both], y[both]
    n = len(x)
    if n < FEWEST:
        return Correlation(
            *names, n, failed=f"{n} network{'s' * (n != 1)} with both; {FEWEST} are needed"
        )
    for values, name in zip((x, y), names, strict=True):
        if np.ptp(values) == 0:
            return Correlation(*names, n, failed=f"{name or 'a column'} is the same for all")
    line: Any = stats.linregress(x, y)
    numbers: dict[str, Any] = {}
    for name, coefficient in _COEFFICIENTS.items():
        numbers[name] = float(coefficient(x[None], y[None])[0])
        numbers[f"{name}_p"] = _p_value(name, x, y)
        numbers[f"{name}_interval"] = _interval(name, x, y, level)
    return Correlation(
        *names,
        n,
        slope=float(line.slope),
        slope_error=float(line.stderr),
        intercept=float(line.intercept),
        r_squared=float(line.rvalue) ** 2,
        level=level,
        **numbers,
    )


# Coefficients of many pairs of columns at once


def _pearson(x: Rows, y: Rows) -> Values:
    x, y = (_centred(part) for part in (x, y))
    with np.errstate(invalid="ignore"):
        return np.clip((x * y).sum(-1), -1, 1)


def _centred(values: Rows) -> Rows:
    """Differences to the mean as vectors of length 1; NaN for equal values."""
    away = values - values.mean(-1, keepdims=True)
    away[np.ptp(values, axis=-1) == 0] = np.nan
    away /= np.abs(away).max(-1, keepdims=True)
    return away / np.linalg.norm(away, axis=-1, keepdims=True)


def _spearman(x: Rows, y: Rows) -> Values:
    return _pearson(stats.rankdata(x, axis=-1), stats.rankdata(y, axis=-1))


def _kendall(x: Rows, y: Rows) -> Values:
    first, second = np.triu_indices(x.shape[-1], 1)
    signs = [np.sign(part[..., first] - part[..., second]) for part in (x, y)]
    total = (signs[0] * signs[1]).sum(-1)
    there = [np.count_nonzero(sign, axis=-1) for sign in signs]
    with np.errstate(invalid="ignore"):
        return total / np.sqrt(there[0] * there[1])


_COEFFICIENTS: dict[str, Callable[[Rows, Rows], Values]] = {
    "pearson": _pearson,
    "spearman": _spearman,
    "kendall": _kendall,
}


# Intervals


_NORMAL_ERRORS: dict[str, Callable[[float, int], float]] = {
    "pearson": lambda _, n: 1 / math.sqrt(n - 3),
    "spearman": lambda value, n: math.sqrt((1 + value**2 / 2) / (n - 3)),
    "kendall": lambda _, n: math.sqrt(0.437 / (n - 4)),
}
"""Standard errors of arctanh of the coefficients of n normal pairs."""


def _interval(name: str, x: Values, y: Values, level: float) -> tuple[float, float]:
    n = len(x)
    if n < FEWEST_FOR_INTERVAL:
        return NAN, NAN
    coefficient = _COEFFICIENTS[name]
    value = float(coefficient(x[None], y[None])[0])
    kept = ~np.eye(n, dtype=bool)
    without = [np.broadcast_to(part, (n, n))[kept].reshape(n, n - 1) for part in (x, y)]
    others = coefficient(*without)
    if not np.isfinite(others).all():  # all but one network agree: nothing is known without it
        return -1.0, 1.0
    middle, around = _stretched(name, np.array([value]), n)[0], _stretched(name, others, n - 1)
    spread = float(((around - around.mean()) ** 2).sum())
    error = max(_NORMAL_ERRORS[name](value, n), math.sqrt((n - 1) / n * spread))
    half = float(stats.t.ppf((1 + level) / 2, n - 2)) * error
    low, high = math.tanh(middle - half), math.tanh(middle + half)
    return min(low, value), max(high, value)  # of ±1 the stretched value is nearer to 0


def _stretched(name: str, values: Values, n: int) -> Values:
    """Of coefficients arctanh, where ±1 is replaced by the value nearest to it."""
    # two neighbours exchanged: one of n(n - 1)/2 pairs of τ, Σd² = 2 in ρ
    nearest = {"kendall": 4 / (n * (n - 1)), "spearman": 12 / (n * (n * n - 1))}
    most = 1 - nearest.get(name, float(np.finfo(float).eps))
    return np.arctanh(np.clip(values, -most, most))


# P-values


def _p_value(name: str, x: Values, y: Values) -> float:
    """Share of the orders of y whose coefficient is at least as far from 0."""
    n = len(x)
    if n > _DRAWN:
        return float(_TESTS[name](x, y).pvalue)
    if name != "pearson":  # ranks and their differences are all that counts
        x, y = stats.rankdata(x), stats.rankdata(y)
    pairs = name == "kendall"
    first, second = np.triu_indices(n, 1)
    ours, theirs = (np.sign(part[:, None] - part) for part in (x, y))
    ours, x = ours[first, second], x - x.mean()
    orders = _orders(n)
    found = theirs[orders[:, first], orders[:, second]] @ ours if pairs else y[orders] @ x
    # what a coefficient is divided by is the same in every order
    least = abs(float(ours @ theirs[first, second] if pairs else x @ y)) * (1 - 1e-12)
    seen = int(np.count_nonzero(np.abs(found) >= least))
    return seen / len(orders) if n <= _ALL else (seen + 1) / (len(orders) + 1)


_TESTS: dict[str, Any] = {
    "pearson": stats.pearsonr,
    "spearman": stats.spearmanr,
    "kendall": stats.kendalltau,
}


@cache
def _orders(n: int) -> Int64[np.ndarray, "orders n"]:
    """Permutations of n places: all, or some drawn ones."""
    if n <= _ALL:
        return np.array(list(itertools.permutations(range(n))))
    places = np.tile(np.arange(n), (PERMUTATIONS, 1))
    return rng.stream(0, "permutations", n).permuted(places, axis=1)
