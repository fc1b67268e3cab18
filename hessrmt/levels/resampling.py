"""Standard errors by resampling whole batches.

Spacings of one spectrum are correlated, so they are not the unit of resampling. Spectra are; where
there are fewer than ten, contiguous stretches of each spectrum stand in for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float64

ENOUGH = 10
"""Spectra from which whole spectra are resampled."""

FEWEST_UNITS = 5
"""Spectra, or stretches of them, below which a standard error is not worth showing."""

_STRETCHES = 20
_SHORTEST = 20


def units(
    samples: Sequence[Float64[np.ndarray, " n"]],
) -> list[Float64[np.ndarray, " n"]]:
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


def mean_and_error(
    samples: Sequence[Float64[np.ndarray, " n"]],
) -> tuple[float, float]:
    """Mean of all values, and its standard error by the jackknife over units.

    For a ratio of sums x̄ = ΣS_b/ΣN_b the jackknife gives var = B/(B-1) Σ(S_b - x̄ N_b)²/N²
    (Miller, Biometrika 61, 1, 1974), in the linear approximation, which is exact for equal N_b.

    Args:
        samples: Values of each spectrum.

    Returns:
        Mean and standard error; NaN without a value, an error of NaN from a single unit.
    """
    parts = units(samples)
    sums = np.array([part.sum() for part in parts])
    counts = np.array([len(part) for part in parts], dtype=np.float64)
    if not len(parts):
        return float("nan"), float("nan")
    mean = sums.sum() / counts.sum()
    if len(parts) < 2:
        return float(mean), float("nan")
    residuals = sums - mean * counts
    variance = len(parts) / (len(parts) - 1) * (residuals @ residuals) / counts.sum() ** 2
    return float(mean), float(np.sqrt(variance))


def histogram(
    samples: Sequence[Float64[np.ndarray, " n"]], edges: Float64[np.ndarray, " k+1"]
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
    width = np.diff(edges)
    return share / width, error / width
