"""Power laws in the tails of spectra: ρ(λ) ~ λ^(-α) on [x_min, x_max).

α by maximum likelihood, x_min where the Kolmogorov-Smirnov distance between the tail and its law is
least (Clauset, Shalizi, Newman, SIAM Rev. 51, 661 (2009), §3.3), for continuous values. Conventions
are those of the Python package ``powerlaw`` 2.0 (Alstott, Bullmore, Plenz, PLoS ONE 9, e85777):

- the distance counts the lower ends of the staircase's steps
  (:func:`hessrmt.backend.reference.powerlaw_scan`);
- a tail holds three distinct values or more (``powerlaw`` 1.5: two. The distance of two values
  from their law is 1/2 - e^-2, whatever they are).

Unlike that version, which refuses α ≥ 3 and reports its bound 3 where nothing else is left, α is
not limited; ``max_alpha=3`` gives its default.

An upper cut-off: by default there is none. ``x_max="max"`` ends the law at the largest value, the
cut-off's maximum-likelihood estimate. That moves α of an unlimited power law down: by 0.6, 0.3 and
0.2 σ on average for tails of 50, 500 and 5,000 values, whatever α. Without a cut-off, α of a law
that does end comes out too large: 2.69 for 2.5 that ends at 10 x_min, 5 σ of 2,000 values. A law
that ends may have any real α. (``powerlaw`` 2.0, given x_max, keeps the exponent of the law that
does not end where that is in (1.5, 3].)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch

from hessrmt.backend.select import select
from hessrmt.capacity import tails
from hessrmt.errors import CapacityError

if TYPE_CHECKING:
    from jaxtyping import Float, Float64

    from hessrmt.backend.base import Backend

    Values = Float[np.ndarray, " n"]
    XMax = float | Literal["max"] | None


@dataclass(frozen=True)
class Rule:
    """How a tail is chosen; every fit carries its own.

    Attributes:
        x_min: Where the tail begins, if that is known; None: where the distance is least.
        x_max: Where the law ends: ``"max"`` at the largest value, or a number, above which values
            are left out; None: nowhere.
        floor: Values at or below it are left out: zero, or the noise of the values' computation.
        max_alpha: Only smaller exponents are considered; None: all.
        min_tail: Distinct values that a tail must hold, 3 or more.

    Raises:
        CapacityError: If a number is not one, or out of its range.
    """

    x_min: float | None = None
    x_max: XMax = None
    floor: float = 0.0
    max_alpha: float | None = None
    min_tail: int = 3

    def __post_init__(self) -> None:
        limits = {"x_min": 0.0, "x_max": 0.0, "max_alpha": 1.0}
        for name, low in limits.items():
            value = getattr(self, name)
            if value is None or (name == "x_max" and value == "max"):
                continue
            if not (_is_number(value) and low < value < math.inf):
                also = ', "max"' if name == "x_max" else ""
                raise CapacityError(
                    f"{name} = {value!r}; give None{also} or a finite number above {low:g}"
                )
        if not (_is_number(self.floor) and 0 <= self.floor < math.inf):
            raise CapacityError(f"floor = {self.floor!r}; give a finite number, 0 or more")
        if not isinstance(self.min_tail, Integral) or self.min_tail < 3:
            raise CapacityError(f"min_tail = {self.min_tail!r}; give a whole number, 3 or more")


@dataclass(frozen=True)
class PowerLawFit:
    """A tail and its law, or the reason why there is none: then every float is NaN.

    ``bool(fit)`` tells whether there is one. Leave others out of averages.

    Attributes:
        alpha: Exponent α.
        x_min: Where the tail begins.
        x_max: Where the law ends; infinite without a cut-off.
        ks_distance: Kolmogorov-Smirnov distance D between the tail and its law.
        sigma: Standard error of α: (α - 1)/√n_tail; with a cut-off from its law's Fisher
            information. That of x_min's choice is not in it.
        n_tail: Values of the tail; 0 without one.
        n: Values that the fit could use.
        n_excluded: Values at or below the floor.
        n_above: Values above x_max.
        rule: How the tail was chosen.
        failed: None, or why there is no fit.
    """

    alpha: float
    x_min: float
    x_max: float
    ks_distance: float
    sigma: float
    n_tail: int
    n: int
    n_excluded: int
    n_above: int
    rule: Rule
    failed: str | None = None

    def __bool__(self) -> bool:
        return self.failed is None


class Scan(NamedTuple):
    """Fits of all tails of a sample, two distinct values or more.

    Attributes:
        x_min: (c,) ascending, where each begins.
        alpha: (c,) exponents.
        ks_distance: (c,) Kolmogorov-Smirnov distances.
    """

    x_min: Float64[np.ndarray, " c"]
    alpha: Float64[np.ndarray, " c"]
    ks_distance: Float64[np.ndarray, " c"]


class Sample(NamedTuple):
    """What a rule leaves of some values: ascending, and how many it leaves out on either side."""

    values: Float64[np.ndarray, " m"]
    n_excluded: int
    n_above: int


def usable(values: Values, rule: Rule) -> Sample:
    """The values that a fit may use.

    Args:
        values: (n,) finite numbers in any order.
        rule: With the floor and the cut-off.

    Returns:
        Those above the floor, up to the cut-off, and counts of the others.

    Raises:
        CapacityError: If they are not a vector of real, finite numbers.
    """
    given = np.asarray(values)
    if given.ndim != 1 or given.dtype.kind not in "fiu":
        raise CapacityError(
            f"values of shape {given.shape} and type {given.dtype}; a power law is fitted to a "
            "vector of real numbers"
        )
    ordered = np.sort(given.astype(np.float64))
    # NaN sorts to the end
    if len(ordered) and not (np.isfinite(ordered[0]) and np.isfinite(ordered[-1])):
        bad = int((~np.isfinite(ordered)).sum())
        raise CapacityError(
            f"{bad} of {len(ordered)} values are NaN or infinite; find out where they come from, "
            "a fit without them would be one of another spectrum"
        )
    low = int(np.searchsorted(ordered, rule.floor, side="right"))
    high = len(ordered)
    if rule.x_max is not None and rule.x_max != "max":
        high = max(int(np.searchsorted(ordered, rule.x_max, side="right")), low)
    return Sample(ordered[low:high], low, len(ordered) - high)


def fit(
    values: Values,
    *,
    x_min: float | None = None,
    x_max: XMax = None,
    floor: float = 0.0,
    max_alpha: float | None = None,
    min_tail: int = 3,
    backend: Backend | None = None,
) -> PowerLawFit:
    """Fit a power law to the tail of a sample.

    Args:
        values: (n,) finite numbers in any order, e.g. eigenvalues.
        x_min: See :class:`Rule`, as for the next four.
        x_max: Where the law ends.
        floor: Below the values of interest.
        max_alpha: Limit of the exponent.
        min_tail: Distinct values of a tail.
        backend: As in :func:`fit_all`.

    Returns:
        The fit; without any tail that fits the rule, its reason.
    """
    rule = Rule(x_min, x_max, floor, max_alpha, min_tail)
    return fit_rule([values], rule, backend)[0]


def fit_all(
    spectra: Sequence[Values],
    *,
    x_min: float | None = None,
    x_max: XMax = None,
    floor: float | Sequence[float] = 0.0,
    max_alpha: float | None = None,
    min_tail: int = 3,
    backend: Backend | None = None,
) -> list[PowerLawFit]:
    """Fit power laws to the tails of many samples.

    Args:
        spectra: Samples, as for :func:`fit`.
        x_min: See :class:`Rule`, as for the next four.
        x_max: Where the laws end.
        floor: One for all, or one for each.
        max_alpha: Limit of the exponents.
        min_tail: Distinct values of a tail.
        backend: Where all distances of all tails of all samples are computed, in one launch. None:
            on the CPU those that the least one needs (:mod:`hessrmt.capacity.tails`). The fits are
            the same. Where x_min or x_max is given, a backend is not used.

    Returns:
        A fit for each.

    Raises:
        CapacityError: If there are as many floors as samples neither for one nor for all.
    """
    floors = [floor] * len(spectra) if isinstance(floor, int | float) else list(floor)
    if len(floors) != len(spectra):
        raise CapacityError(f"{len(floors)} floors for {len(spectra)} spectra; give one for each")
    rules = [Rule(x_min, x_max, each, max_alpha, min_tail) for each in floors]
    return fit_rule(spectra, rules, backend)


def fit_rule(
    spectra: Sequence[Values], rule: Rule | Sequence[Rule], backend: Backend | None = None
) -> list[PowerLawFit]:
    """Fit power laws by given rules (:func:`fit_all`).

    Args:
        spectra: Samples.
        rule: One for all, or one for each.
        backend: As in :func:`fit_all`.

    Returns:
        A fit for each.
    """
    rules = [rule] * len(spectra) if isinstance(rule, Rule) else rule
    samples = [usable(values, each) for values, each in zip(spectra, rules, strict=True)]
    scanned: list[np.ndarray | None] = [None] * len(samples)
    if backend is not None and all(each.x_min is each.x_max is None for each in rules):
        found = backend.powerlaw_scan(
            [torch.from_numpy(one.values).to(backend.device) for one in samples]
        )
        scanned = [distance for _, distance in found]
    return [_fit(*one) for one in zip(samples, rules, scanned, strict=True)]


def _fit(sample: Sample, rule: Rule, scanned: np.ndarray | None) -> PowerLawFit:
    """Fit one sample; ``scanned``: the distance of each value's tail, where that is known."""
    values, n = sample.values, len(sample.values)
    if rule.x_min is not None:
        values = values[np.searchsorted(values, rule.x_min, side="left") :]
    distinct = 0 if not len(values) else 1 + int((values[1:] > values[:-1]).sum())
    if distinct < rule.min_tail:
        where = f"above {rule.floor:g}" if rule.x_min is None else f"from {rule.x_min:g} on"
        return _failure(
            sample, rule, f"{distinct} distinct values {where}; {rule.min_tail} are needed"
        )
    x_max = float(values[-1]) if rule.x_max == "max" else rule.x_max
    of = tails.tails(values, x_max, rule.x_min)
    if rule.x_min is None:
        allowed = np.arange(len(of.slope)) <= distinct - rule.min_tail
    else:
        allowed = np.arange(len(of.slope)) == 0
    if rule.max_alpha is not None:
        allowed &= of.slope < rule.max_alpha - 1
        if not allowed.any():
            return _failure(sample, rule, f"no tail has an exponent below {rule.max_alpha:g}")
    if scanned is None:
        i, distance = tails.closest(of, allowed)
    else:
        first = len(values) - of.size[:-1]
        each = np.where(allowed, scanned[first], np.inf)
        i = int(each.argmin())
        distance = float(each[i])
    return PowerLawFit(
        alpha=1 + float(of.slope[i]),
        x_min=float(of.x[i]),
        x_max=math.inf if x_max is None else float(x_max),
        ks_distance=distance,
        sigma=of.sigma(i),
        n_tail=int(of.size[i]),
        n=n,
        n_excluded=sample.n_excluded,
        n_above=sample.n_above,
        rule=rule,
    )


def _failure(sample: Sample, rule: Rule, why: str) -> PowerLawFit:
    nan = math.nan
    counts = len(sample.values), sample.n_excluded, sample.n_above
    return PowerLawFit(nan, nan, nan, nan, nan, 0, *counts, rule, why)


def scan(
    values: Values, *, x_max: XMax = None, floor: float = 0.0, backend: Backend | None = None
) -> Scan:
    """Fits of all tails of a sample, e.g. to plot α and D against x_min; work O(n²).

    Args:
        values: (n,) as for :func:`fit`.
        x_max: See :class:`Rule`, as for the floor.
        floor: Below the values of interest.
        backend: Where it is computed, the CPU by default; with x_max on the CPU.

    Returns:
        x_min, α and D of each; none for fewer than two distinct values.
    """
    rule = Rule(x_max=x_max, floor=floor)
    ordered = usable(values, rule).values
    if len(ordered) < 2 or ordered[0] == ordered[-1]:
        return Scan(*np.empty((3, 0)))
    if rule.x_max is not None:
        of = tails.tails(ordered, float(ordered[-1] if x_max == "max" else rule.x_max))
        return Scan(of.x[:-1], 1 + of.slope, tails.distances(of))
    where = select("cpu") if backend is None else backend
    ((alpha, distance),) = where.powerlaw_scan([torch.from_numpy(ordered).to(where.device)])
    first = np.flatnonzero(np.append(True, ordered[1:] > ordered[:-1]))[:-1]
    return Scan(ordered[first], alpha[first], distance[first])


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool | np.bool_)
