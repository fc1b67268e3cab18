"""Standard errors by resampling: spectra, or stretches of them, are the independent units.

Spacings of one spectrum are correlated, so they are not the unit of resampling. Spectra are; where
there are fewer than ten, contiguous stretches of each spectrum stand in for them.

Source: Miller 1974 (the jackknife).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np
from jaxtyping import Float64

from hessrmt.errors import DataError

Samples = Sequence[Float64[np.ndarray, " n"]]
"""Values or levels of several spectra, one array for each."""

Curve = Float64[np.ndarray, " m"]

ENOUGH = 10
"""Spectra from which whole spectra are resampled."""

FEWEST_UNITS = 5
"""Spectra, or stretches of them, below which no error is given: one of two units misses by three
of its own in a fifth of all cases."""

_STRETCHES, _GROUPS = 20, 10
_SHORTEST = 20


def units(samples: Samples) -> Samples:
    """What is resampled: the spectra, or contiguous stretches of them if they are fewer than ten.

    Args:
        samples: Values of each spectrum, in the order of its levels.

    Returns:
        The units; a stretch has at least 20 values, unless a whole spectrum has fewer.
    """
    filled = [values for values in samples if len(values)]
    if len(filled) >= ENOUGH or not filled:
        return filled
    wanted = -(-_STRETCHES // len(filled))
    return [
        part
        for values in filled
        for part in np.array_split(values, max(1, min(wanted, len(values) // _SHORTEST)))
    ]


def mean_and_error(samples: Samples) -> tuple[float, float]:
    """Mean of all values, and its standard error by the jackknife over units.

    Args:
        samples: Values of each spectrum.

    Returns:
        Mean and standard error; NaN without a value, an error of NaN from fewer than five units.
    """
    parts = units(samples)
    if not parts:
        return float("nan"), float("nan")
    sums = np.array([part.sum() for part in parts])
    mean, error = _of_units(sums, [len(part) for part in parts])
    return float(mean), float(error) if len(parts) >= FEWEST_UNITS else float("nan")


def histogram(samples: Samples, edges: Float64[np.ndarray, " k+1"]) -> tuple[Curve, Curve]:
    """Density of all values in bins, and its standard error over units.

    Args:
        samples: Values of each spectrum.
        edges: Of the bins, ascending; values outside count in the norm.

    Returns:
        Density and standard error in each bin, per unit of the values; errors of NaN from too few
        units.
    """
    parts = units(samples)
    return in_bins(parts, edges, [len(part) for part in parts])


def in_bins(
    parts: Samples, edges: Float64[np.ndarray, " k+1"], sizes: Sequence[float]
) -> tuple[Curve, Curve]:
    """As :func:`histogram`, for given units and what each adds to the total (1: values a unit)."""
    counts = np.array([np.histogram(part, edges)[0] for part in parts])
    number, error = _of_units(counts, sizes)
    if len(parts) < FEWEST_UNITS:
        error = np.full_like(error, np.nan)
    return number / np.diff(edges), error / np.diff(edges)


def _of_units(sums: np.ndarray, sizes: Sequence[float]) -> tuple[Curve, Curve]:
    """Ratio of sums x̄ = ΣS_b/ΣN_b over B units, and its standard error by the jackknife.

    The variance is B/(B-1) Σ(S_b - x̄ N_b)²/N² (Miller 1974), in the linear approximation, which
    is exact for equal N_b; NaN for a single unit.

    Args:
        sums: (B, ...) S_b.
        sizes: (B,) N_b.

    Returns:
        x̄ and its error, in the shape of S_b.
    """
    total, count = np.sum(sizes), len(sizes)
    mean = sums.sum(axis=0) / total
    squares = ((sums - np.multiply.outer(sizes, mean)) ** 2).sum(axis=0)
    return mean, np.sqrt(count / (count - 1) * squares) / total if count > 1 else np.nan * mean


def with_error(statistic: Callable[[Samples], Curve], rows: Samples) -> tuple[Curve, Curve]:
    """A statistic of all spectra, and its standard error by the jackknife over ten groups.

    From ten spectra on a group is every tenth spectrum; fewer spectra are cut into stretches, and
    a group is one stretch.

    Args:
        statistic: Levels of several spectra to (m,) values.
        rows: Ascending levels of each spectrum.

    Returns:
        The (m,) values and standard errors; NaN where what is left cannot be evaluated, or there
        are fewer than five groups.
    """
    value = statistic(rows)
    try:
        others = np.array([statistic(rest) for rest in _leaving_out(rows)])
    except DataError:  # what is left of one spectrum is shorter than the longest window
        others = np.empty(0)
    if len(others) < FEWEST_UNITS:
        return value, np.full(len(value), np.nan)
    return value, np.sqrt(len(others) - 1) * others.std(axis=0)


def _leaving_out(rows: Samples) -> Iterator[Samples]:
    """The data without each group in turn."""
    if len(rows) >= ENOUGH:
        for group in range(_GROUPS):
            yield [row for i, row in enumerate(rows) if i % _GROUPS != group]
        return
    wanted = -(-_GROUPS // len(rows))
    for i, row in enumerate(rows):
        parts = max(1, min(wanted, len(row) // _SHORTEST))
        for start, stop in pairwise(np.linspace(0, len(row), parts + 1).astype(int)):
            pieces = [*rows[:i], row[:start], row[stop:], *rows[i + 1 :]]
            if rest := [piece for piece in pieces if len(piece) >= _SHORTEST]:
                yield rest
