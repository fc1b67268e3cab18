"""Spacings of neighbouring levels, their ratios, and maximum-likelihood fits of spacing laws.

Ratios need no unfolding. The errors of fits allow for correlated spacings: with the score U_b of
each unit of resampling (see :mod:`hessrmt.levels.resampling`) and the curvature I of the
log-likelihood, the variance of the estimate is ΣU_b²/I² (the cluster-robust "sandwich").

Source: Mehta 2004, §1.5 (spacings); Oganesyan and Huse 2007, Atas et al. 2013, eq. (1) (ratios);
White 1982 (errors).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize_scalar

from hessrmt.arrays import Levels
from hessrmt.checks import real, real_array, whole
from hessrmt.errors import DataError
from hessrmt.levels.resampling import Samples, units
from hessrmt.results import Result
from hessrmt.theory.spacings import brody as brody_density
from hessrmt.theory.spacings import superposed_spacing

_STEP = 1e-3
"""Step of the numerical derivatives of the log-likelihood in its parameter."""

_BINS, _LONGEST = 4000, 12.0
"""Bins of the superposition fit: 0.003 mean spacings wide, over which the law changes by 1e-5."""


def ascending(levels: ArrayLike, name: str = "levels") -> Levels:
    """Levels of one spectrum, checked and sorted.

    Args:
        levels: (n,) in any order.
        name: What an error calls them.

    Returns:
        (n,) float64, ascending.

    Raises:
        DataError: If they are no finite real numbers in one dimension, or so far apart that their
            distance is not finite.
    """
    advice = "give a one-dimensional array for each spectrum, of what is finite"
    values = real_array(name, levels, dimensions=1, empty=True, hint=advice)
    ordered = np.sort(values, kind="stable")  # quick where they are sorted already
    if len(ordered) and not ordered[-1] / 2 - ordered[0] / 2 <= np.finfo(np.float64).max / 2:
        raise DataError(f"{name} span more than float64 holds; rescale them")
    return ordered


def rows_of(given: Any) -> list[Any]:
    """One spectrum, or several, as a list of spectra.

    Args:
        given: A one-dimensional sequence of numbers, or a sequence of such.

    Returns:
        The spectra, unchecked.
    """
    try:
        several = np.ndim(given[0]) > 0
    except (TypeError, KeyError, IndexError):
        several = False
    return list(given) if several else [given]


def spacings(unfolded: ArrayLike, order: int = 1) -> Levels:
    """Spacings s_i = ξ_{i+k} - ξ_i of unfolded levels.

    Args:
        unfolded: (n,) levels of one spectrum of mean spacing 1, in any order; raw levels give raw
            spacings.
        order: k: 1 for nearest neighbours, 2 for next-nearest, and so on.

    Returns:
        (n - k,) spacings in units of the mean level spacing (so their mean is k), ascending levels
        first to last; zero for ties. Empty if there are not more than k levels.

    Source: Baskerville, Granziol and Keating 2022, eq. (7) for k = 1.
    """
    ordered = ascending(unfolded)
    return ordered[whole("order", order, 1) :] - ordered[:-order]


def ratios(
    levels: ArrayLike, folded: bool = True, order: int = 1, overlapping: bool = False
) -> Levels:
    """Ratios r̃_i = min(s_{i+1}, s_i) / max(s_{i+1}, s_i) of consecutive spacings.

    With ``folded=False`` r_i = s_{i+1}/s_i. Of order k the spacings are those of every k-th level,
    s_i = λ_{i+k} - λ_i beside λ_{i+2k} - λ_{i+k}; or, overlapping, beside λ_{i+k+1} - λ_{i+1}.

    Args:
        levels: (n,) levels of one spectrum, in any order; give only certified ones, since round-off
            has GOE statistics of its own, and those between two discarded bands
            (``hessrmt.levels.select(spectrum).runs``), since nothing is known across one.
        folded: Whether to take min(r, 1/r), in [0, 1].
        order: k.
        overlapping: Whether the two spacings share k - 1 of theirs (for k = 1: none).

    Returns:
        (n - 2k,) ratios, or (n - k - 1,) overlapping ones, dimensionless; pairs whose ratio is
        undefined are left out: two zero spacings, and for ``folded=False`` a zero denominator.
        Empty for fewer levels.

    Source: Baskerville, Granziol and Keating 2022, eq. (11); Tekur, Bhosale and Santhanam 2018 for
    higher orders.
    """
    step = spacings(levels, order)
    apart = 1 if overlapping else order
    return of_spacings(step[:-apart], step[apart:], folded)


def of_spacings(first: Levels, second: Levels, folded: bool = True) -> Levels:
    """Ratios second/first of two arrays of spacings, undefined pairs left out.

    Args:
        first: (m,) spacings.
        second: (m,) the spacing after each.
        folded: Whether to take the smaller over the larger.

    Returns:
        (k,) ratios, k <= m.
    """
    if folded:
        first, second = np.maximum(first, second), np.minimum(first, second)
    defined = first > 0
    return second[defined] / first[defined]


def mean_ratio(levels: ArrayLike) -> float:
    """Mean ⟨r̃⟩ over one spectrum; compare with :func:`hessrmt.theory.mean_ratio`.

    Args:
        levels: As in :func:`ratios`.

    Returns:
        The mean, or NaN for fewer than three distinct levels.
    """
    values = ratios(levels)
    return float(values.mean()) if len(values) else float("nan")


class _Fit(NamedTuple):
    value: float
    error: float
    log_likelihood: float


def brody(spacings: Samples | ArrayLike, resolution: float = 0.0) -> Fit:
    """Brody parameter q of p(s) = (q+1) b s^q exp(-b s^{q+1}): 0 for Poisson, 0.95 for GOE.

    Args:
        spacings: Nearest-neighbour spacings of mean 1: one array, or one (a row of a 2-D array)
            for each spectrum; at least three are positive.
        resolution: Smallest spacing that the unfolding can tell from zero (``1/pool``), in mean
            spacings; shorter ones are taken as half of it. Zero spacings are left out if it is 0.

    Returns:
        q, its error and the log-likelihood.
    """
    least = real("resolution", resolution) / 2
    samples = [
        np.maximum(values, least) if least > 0 else values[values > 0]
        for values in _samples(spacings)
    ]
    parts = _units(samples)
    starts = np.cumsum([0, *map(len, parts[:-1])])
    together = np.concatenate(parts)
    return _maximise(
        lambda q: np.add.reduceat(log_of(brody_density(together, q)), starts), (-0.9, 5.0)
    )


def superposition(spacings: Samples | ArrayLike) -> Fit:
    """Share f of levels in the smaller of two independent GOE blocks, 0 ≤ f ≤ ½.

    The law is the exact one of a superposition, p = ∂²/∂s² E(fs) E((1-f)s) with the GOE gap
    probability E. A pure GOE has f = 0; any other reason for excess small spacings also shows as
    f > 0.

    Args:
        spacings: As in :func:`brody`; zero spacings are allowed.

    Returns:
        f, its error and the log-likelihood.

    Source: Rosenzweig and Porter 1960; Mehta 2004, App. A.2.
    """
    edges = np.linspace(0, _LONGEST, _BINS + 1)
    parts = _units(_samples(spacings))
    counts = np.array([np.histogram(np.minimum(part, _LONGEST), edges)[0] for part in parts])
    used = np.flatnonzero(counts.any(axis=0))
    counts, middle = counts[:, used], ((edges[1:] + edges[:-1]) / 2)[used]
    return _maximise(lambda f: counts @ log_of(superposed_spacing(middle, (1 - f, f))), (0.0, 0.5))


def log_of(density: Levels) -> Levels:
    """Logarithm of a density, finite where a law excludes a value."""
    return np.log(np.maximum(density, np.finfo(np.float64).tiny))


def _maximise(by_unit: Callable[[float], Levels], bounds: tuple[float, float]) -> Fit:
    """Maximise a log-likelihood given as one sum for each unit."""

    def loss(value: float) -> float:
        return -float(by_unit(value).sum())

    found = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-5})
    inside = float(found.x)  # pyright: ignore[reportAttributeAccessIssue]
    best = min((*bounds, inside), key=loss)
    centre = float(np.clip(best, bounds[0] + _STEP, bounds[1] - _STEP))
    below, here, above = (by_unit(centre + step) for step in (-_STEP, 0.0, _STEP))
    score = (above - below) / (2 * _STEP)
    curvature = -float((above - 2 * here + below).sum()) / _STEP**2
    error = float("nan")
    if curvature > 0 and len(score) > 1 and best not in bounds:
        score = score - score.mean()
        error = float(np.sqrt(len(score) / (len(score) - 1) * (score @ score)) / curvature)
    return Fit(best, error, -loss(best))


def _samples(spacings: Samples | ArrayLike) -> list[Levels]:
    rows = rows_of(spacings)
    return [real_array("spacings", row, dimensions=1, empty=True, least=0) for row in rows]


def _units(samples: Samples) -> Samples:
    count = sum(map(len, samples))
    if count < 3:
        raise DataError(f"a fit needs at least 3 spacings, got {count}")
    return units(samples)


class Fit(_Fit, Result):
    """A fitted parameter.

    Attributes:
        value: Maximum-likelihood estimate.
        error: Standard error; NaN where the estimate lies on the edge of what is possible.
        log_likelihood: At the estimate, natural logarithm, summed over spacings.
    """
