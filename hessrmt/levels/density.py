"""Densities of levels, and what they do to ⟨r̃⟩, which ratios are meant not to depend on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from scipy.interpolate import PchipInterpolator

from hessrmt import rng
from hessrmt.errors import DataError
from hessrmt.levels.ratios import of_spacings
from hessrmt.levels.resampling import FEWEST_UNITS
from hessrmt.levels.surrogates import bulk
from hessrmt.theory.ratios import mean_ratio

if TYPE_CHECKING:
    from jaxtyping import Float64

    from hessrmt.arrays import Levels

SMOOTH = 20
"""Levels over which a density is smoothed."""

_STRETCHES, _STRETCH = 40, 400

_BINS_OF_A_DECADE = 5


def mean_ratio_of_density(spectra: Sequence[Levels], seed: int = 0) -> float:
    """⟨r̃⟩ of GOE levels moved to the smoothed density of some spectra.

    Args:
        spectra: Ascending levels of each spectrum.
        seed: Of the GOE levels.

    Returns:
        The large-matrix mean plus what moving the same levels changes, so that their own
        fluctuations cancel; NaN if no spectrum has 41 distinct levels.
    """
    stretches = _stretches(seed)
    generator = rng.stream(seed, "levels of the same density", "order")
    change = count = 0.0
    for levels in spectra:
        distinct, first = np.unique(levels, return_index=True)
        knots = np.arange(0, len(distinct), SMOOTH)
        if len(knots) < 3:
            continue
        pieces = -(-len(levels) // _STRETCH)
        order = generator.integers(_STRETCHES, size=pieces)
        places = np.sort((stretches[order] + _STRETCH * np.arange(pieces)[:, None]).ravel())
        places = places[(places >= 0) & (places <= first[knots[-1]])]
        moved = PchipInterpolator(first[knots], distinct[knots])(places)
        for sign, values in ((1, np.diff(moved)), (-1, np.diff(places))):
            change += sign * float(of_spacings(values[:-1], values[1:]).sum())
        count += len(places) - 2
    return mean_ratio("goe") + change / count if count else float("nan")


@lru_cache(maxsize=4)
def _stretches(seed: int) -> np.ndarray:
    generator = rng.stream(seed, "levels of the same density")
    return np.array([bulk(_STRETCH, 1, generator) for _ in range(_STRETCHES)])


@dataclass(frozen=True)
class DensityHistogram:
    """Density of the levels of some spectra, in bins.

    Attributes:
        edges: (k + 1,) of the bins, in the units of the levels.
        density: (k,) of all levels together; its integral is the share of levels in the bins.
        error: (k,) its standard error over the spectra; NaN from fewer than five.
        n_levels: Levels, of all spectra.
        n_outside: Those left out at the ends.
        mean: Of all levels.
        deviation: Their standard deviation.
    """

    edges: Levels
    density: Levels
    error: Levels
    n_levels: int
    n_outside: int
    mean: float
    deviation: float


@dataclass(frozen=True)
class DecadeHistogram:
    """Levels of one spectrum in each decade of |λ|, in bins.

    Attributes:
        edges: (k + 1,) log₁₀ |λ| at the ends of the bins.
        sides: ``"λ > 0"`` and ``"λ < 0"``, where there are such levels, to their number in all
            spectra, (k,) levels of one spectrum per decade, and (k,) standard errors.
        n_zeros: Levels that are exactly zero, of all spectra.
    """

    edges: Levels
    sides: Mapping[str, tuple[int, Levels, Levels]]
    n_zeros: int


def density_histograms(
    groups: Mapping[str, Sequence[Levels]], bins: int | None = None, clip: float = 0.0
) -> dict[str, DensityHistogram]:
    """Density of the levels of several models.

    Args:
        groups: What to call them to the levels, one (n_i,) array for each spectrum, in any order.
        bins: Of each histogram; more the more levels there are if None.
        clip: Share of levels left out at either end, so that few outliers don't make all bins wide.

    Returns:
        Name to histogram.

    Raises:
        DataError: If a model has no two distinct finite levels, or clip is not in [0, 0.5).
    """
    if not 0 <= clip < 0.5:
        raise DataError(f"clip must be a share in [0, 0.5), got {clip!r}")
    found = {}
    for name, rows in _ascending(groups).items():
        every = np.concatenate(rows)
        low, high = np.quantile(every, [clip, 1 - clip])
        if low == high:
            low, high = every.min(), every.max()
        wanted = int(np.clip(2 * len(every) ** 0.5, 10, 100)) if bins is None else bins
        edges = np.linspace(low, high, wanted + 1)
        density, error = mean_counts(rows, edges) * (len(rows) / len(every))
        outside = int(np.count_nonzero((every < low) | (every > high)))
        moments = float(every.mean()), float(every.std())
        found[name] = DensityHistogram(edges, density, error, len(every), outside, *moments)
    return found


def decade_histograms(groups: Mapping[str, Sequence[Levels]]) -> dict[str, DecadeHistogram]:
    """Levels in each decade of |λ|, those below and above zero apart, all with the same bins.

    Args:
        groups: As for :func:`density_histograms`.

    Returns:
        Name to histogram.
    """
    models = _ascending(groups)
    sizes = np.abs(np.concatenate([row for rows in models.values() for row in rows]))
    exponents = np.log10(sizes[sizes > 0])
    low, high = np.floor(exponents.min()), np.ceil(exponents.max())
    low, high = (low, high) if low < high else (low - 1, high + 1)
    parts = int(np.clip(len(sizes) / (20 * (high - low)), 1, _BINS_OF_A_DECADE))
    edges = np.linspace(low, high, int(high - low) * parts + 1)
    found = {}
    for name, rows in models.items():
        sides = {}
        for side, sign in (("λ > 0", 1), ("λ < 0", -1)):
            logs = [np.log10(sign * row[sign * row > 0]) for row in rows]
            if any(map(len, logs)):
                sides[side] = (sum(map(len, logs)), *mean_counts(logs, edges))
        zeros = sum(int(np.count_nonzero(row == 0)) for row in rows)
        found[name] = DecadeHistogram(edges, sides, zeros)
    return found


def mean_counts(rows: Sequence[Levels], edges: Levels) -> Float64[np.ndarray, "2 k"]:
    """Values of one spectrum in bins.

    Args:
        rows: (n_i,) values of each spectrum.
        edges: (k + 1,) of the bins.

    Returns:
        (k,) mean numbers per unit of the axis, and (k,) their standard errors over the spectra, NaN
        from fewer than five.
    """
    counts = np.array([np.histogram(row, edges)[0] for row in rows]) / np.diff(edges)
    mean, error = counts.mean(axis=0), np.full(len(edges) - 1, np.nan)
    if len(rows) >= FEWEST_UNITS:
        error = counts.std(axis=0, ddof=1) / len(rows) ** 0.5
    return np.array([mean, error])


def _ascending(groups: Mapping[str, Sequence[Levels]]) -> dict[str, list[Levels]]:
    found = {}
    for name, rows in groups.items():
        found[name] = [np.sort(np.asarray(row, dtype=np.float64)) for row in rows if len(row)]
        every = np.concatenate(found[name] or [np.empty(0)])
        if not np.isfinite(every).all() or len(np.unique(every)) < 2:
            raise DataError(f"{name}: a density needs at least two distinct finite levels")
    return found
