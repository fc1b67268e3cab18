"""Standard errors by resampling: spectra, or stretches of them, are the independent units.

Spacings of one spectrum are correlated, so they are not the unit of resampling. Spectra are; where
there are fewer than ten, contiguous stretches of each spectrum stand in for them.

Source: Miller 1974 (the jackknife).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from jaxtyping import Float64

from hessrmt.errors import DataError

Values = Float64[np.ndarray, " n"]
Rows = list[Values]
Samples = Sequence[Values]
"""Values or levels of several spectra, one array for each."""

Curve = Float64[np.ndarray, " m"]

ENOUGH = 10
"""Spectra from which whole spectra are resampled."""

_STRETCHES, _GROUPS = 20, 10
_SHORTEST = 20


def units(samples: Samples) -> Rows:
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

    For a ratio of sums x̄ = ΣS_b/ΣN_b the jackknife gives var = B/(B-1) Σ(S_b - x̄ N_b)²/N²
    (Miller 1974), in the linear approximation, which is exact for equal N_b.

    Args:
        samples: Values of each spectrum.

    Returns:
        Mean and standard error; NaN without a value, an error of NaN from a single unit.
    """
    parts = units(samples)
    if not parts:
        return float("nan"), float("nan")
    sums = np.array([part.sum() for part in parts])
    counts = np.array([len(part) for part in parts], dtype=np.float64)
    mean = sums.sum() / counts.sum()
    if len(parts) < 2:
        return float(mean), float("nan")
    residuals = sums - mean * counts
    variance = len(parts) / (len(parts) - 1) * (residuals @ residuals) / counts.sum() ** 2
    return float(mean), float(np.sqrt(variance))


def histogram(
    samples: Samples, edges: Float64[np.ndarray, " k+1"]
) -> tuple[Float64[np.ndarray, " k"], Float64[np.ndarray, " k"]]:
    """Density of all values in bins, and its standard error over units.

    Args:
        samples: Values of each spectrum.
        edges: Of the bins, ascending; values outside count in the norm.

    Returns:
        Density and standard error in each bin, per unit of the values.
    """
    parts = units(samples)
    counts = np.array([np.histogram(part, edges)[0] for part in parts], dtype=np.float64)
    sizes = np.array([len(part) for part in parts], dtype=np.float64)
    share = counts.sum(axis=0) / sizes.sum()
    residuals = counts - share * sizes[:, None]
    correction = len(parts) / max(1, len(parts) - 1)
    error = np.sqrt(correction * (residuals**2).sum(axis=0)) / sizes.sum()
    return share / np.diff(edges), error / np.diff(edges)


def with_error(statistic: Callable[[Rows], Curve], rows: Rows) -> tuple[Curve, Curve]:
    """A statistic of all spectra, and its standard error by the jackknife over ten groups.

    From ten spectra on a group is every tenth spectrum; fewer spectra are cut into stretches, and
    a group is one stretch.

    Args:
        statistic: Levels of several spectra to (m,) values.
        rows: Ascending levels of each spectrum.

    Returns:
        The (m,) values and standard errors; NaN where what is left cannot be evaluated.
    """
    value = statistic(rows)
    kept = _leaving_out(rows)
    unknown = value, np.full(len(value), np.nan)
    if len(kept) < 2:
        return unknown
    try:
        others = np.array([statistic(rest) for rest in kept])
    except DataError:  # what is left of one spectrum is shorter than the longest window
        return unknown
    groups = len(kept)
    squares = ((others - others.mean(axis=0)) ** 2).sum(axis=0)
    return value, np.sqrt((groups - 1) / groups * squares)


def _leaving_out(rows: Rows) -> list[Rows]:
    """The data without each group in turn."""
    if len(rows) >= ENOUGH:
        return [
            [row for i, row in enumerate(rows) if i % _GROUPS != group] for group in range(_GROUPS)
        ]
    wanted = -(-_GROUPS // len(rows))
    kept = []
    for i, row in enumerate(rows):
        parts = max(1, min(wanted, len(row) // _SHORTEST))
        for start, stop in pairwise(np.linspace(0, len(row), parts + 1).astype(int)):
            pieces = [*rows[:i], row[:start], row[stop:], *rows[i + 1 :]]
            kept.append([piece for piece in pieces if len(piece) >= _SHORTEST])
    return [rest for rest in kept if rest]
