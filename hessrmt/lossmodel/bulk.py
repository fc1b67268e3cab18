"""Bulk and outliers of sampled Hessians: which levels are which, and the mean density of both.

Of the n levels of √a·G + √c·ξ·I + H_true those that belong to an eigenvalue |θ| > √(n a) of H_true
lie at θ + n a/θ, outside the bulk: a semicircle of radius 2√(n a) about the shift of the sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import ndtri

from hessrmt.theory.densities import bbp_deviation, bbp_position, bbp_threshold, smeared_semicircle

if TYPE_CHECKING:
    from jaxtyping import Float64

    from hessrmt.lossmodel.covariance import HessianCovariance
    from hessrmt.records import Spectrum

_QUANTILES = 2000
"""Values that stand for the law of a drawn outlier."""


def outlier_values(
    outliers: int | Sequence[float], outlier_scale: float = 1.0
) -> tuple[Float64[np.ndarray, " m"], Float64[np.ndarray, " m"]]:
    """Outliers and how many of each there are in a mean over samples.

    Args:
        outliers: Given values, or how many are drawn as s (1 + g²), g standard normal.
        outlier_scale: s.

    Returns:
        (m,) values, those of a drawn outlier at m quantiles of its law, and (m,) their weights,
        which sum to the number of outliers.
    """
    if not isinstance(outliers, int | np.integer):
        values = np.asarray(outliers, dtype=np.float64).reshape(-1)
        return values, np.ones(len(values))
    if not outliers:
        return np.empty(0), np.empty(0)
    g = ndtri((np.arange(_QUANTILES) + 0.5) / _QUANTILES)
    return outlier_scale * (1 + g**2), np.full(_QUANTILES, outliers / _QUANTILES)


def mean_density(
    x: Float64[np.ndarray, " k"],
    cov: HessianCovariance,
    n: int,
    outliers: int | Sequence[float] = 0,
    outlier_scale: float = 1.0,
    degenerate: int = 0,
) -> Float64[np.ndarray, " k"]:
    """Mean density of the levels of sampled Hessians for large n and few outliers.

    The bulk is a semicircle, every outlier outside it a normal distribution about its position,
    and both are smeared by the shift √c·ξ of a sample. What outliers do to each other and to the
    bulk is left out: it is of the order of their share in n.

    Args:
        x: (k,) levels.
        cov: Law of the random part.
        n: Directions in which the loss is random.
        outliers: As for :func:`hessrmt.lossmodel.sampler.sample_spectra`.
        outlier_scale: Of drawn outliers.
        degenerate: Directions in which the loss is constant; they add a point mass at zero, which
            the density leaves out.

    Returns:
        (k,) density; its integral is n/(n + degenerate).

    Source: :func:`hessrmt.theory.smeared_semicircle`, :func:`hessrmt.theory.bbp_position`.
    """
    values, weights = outlier_values(outliers, outlier_scale)
    outside = np.abs(values) > bbp_threshold(n, cov.a)
    values, weights = values[outside], weights[outside]
    at = np.asarray(x, dtype=np.float64) - cov.mean
    bulk = smeared_semicircle(at, 2 * bbp_threshold(n, cov.a), cov.c**0.5)
    density = (n - weights.sum()) * bulk
    width = np.sqrt(bbp_deviation(values, n, cov.a) ** 2 + cov.c)
    for place, weight, sigma in zip(bbp_position(values, n, cov.a), weights, width, strict=True):
        normal = np.exp(-(((at - place) / sigma) ** 2) / 2)
        density += weight * normal / (sigma * (2 * np.pi) ** 0.5)
    return density / (n + degenerate)


def expected_outside(
    cov: HessianCovariance,
    n: int,
    outliers: int | Sequence[float] = 0,
    outlier_scale: float = 1.0,
) -> tuple[float, float]:
    """Mean numbers of levels below and above the bulk of one sample.

    Args:
        cov: Law of the random part.
        n: Directions in which the loss is random.
        outliers: As for :func:`hessrmt.lossmodel.sampler.sample_spectra`.
        outlier_scale: Of drawn outliers.

    Returns:
        How many θ < -√(n a) there are, and how many θ > √(n a).
    """
    values, weights = outlier_values(outliers, outlier_scale)
    threshold = bbp_threshold(n, cov.a)
    return float(weights[values < -threshold].sum()), float(weights[values > threshold].sum())


def bulk(spectrum: Spectrum, below: int = 0, above: int = 0) -> Spectrum:
    """A spectrum without its outermost levels.

    Args:
        spectrum: Sampled; its exact zeros, the degenerate directions, are no levels.
        below: Levels left out at the lower end.
        above: Levels left out at the upper end.

    Returns:
        The spectrum of the rest, exact zeros between its levels included; no level at all if there
        are not so many.
    """
    levels = np.flatnonzero(spectrum.eigenvalues)
    kept = levels[below : max(below, len(levels) - above)]
    span = slice(kept[0], kept[-1] + 1) if len(kept) else slice(0)
    return replace(spectrum, eigenvalues=spectrum.eigenvalues[span])


def centre(spectrum: Spectrum, below: int = 0, above: int = 0) -> float:
    """Middle of the bulk of a spectrum, which the shift of the sample moves.

    Args:
        spectrum: Sampled.
        below: Outliers at the lower end.
        above: Outliers at the upper end.

    Returns:
        The median of the other levels; NaN if there are none.
    """
    levels = bulk(spectrum, below, above).eigenvalues
    levels = levels[levels != 0]
    return float(np.median(levels)) if len(levels) else float("nan")


_BINS, _POINTS = 70, 1201
_SEEN = 0.98
"""Share of drawn outliers that the bins reach; their law has a long tail."""


@dataclass(frozen=True)
class SampledDensity:
    """Density of the levels of sampled Hessians in bins, and its large-matrix law.

    Attributes:
        edges: (k + 1,) of the bins.
        density: (k,) of all levels; its integral leaves exact zeros out.
        x: (m,) points.
        law: (m,) density there, as :func:`mean_density` has it.
        outliers: Places of given outliers; none if they are drawn.
        n_outliers: Of a sample.
        n_levels: Of all samples, exact zeros included.
        zeros: Share of exact zeros.
    """

    edges: Float64[np.ndarray, " k+1"]
    density: Float64[np.ndarray, " k"]
    x: Float64[np.ndarray, " m"]
    law: Float64[np.ndarray, " m"]
    outliers: Float64[np.ndarray, " o"]
    n_outliers: int
    n_levels: int
    zeros: float


def sampled_density(
    spectra: Sequence[Spectrum],
    cov: HessianCovariance,
    n: int,
    outliers: int | Sequence[float] = 0,
    outlier_scale: float = 1.0,
    degenerate: int = 0,
) -> SampledDensity:
    """Density of the levels of sampled Hessians, with its large-matrix law.

    Args:
        spectra: Sampled.
        cov: As for :func:`mean_density`; so are the others.
        n: Directions in which the loss is random.
        outliers: How many are drawn for each sample, or their values.
        outlier_scale: Of drawn outliers.
        degenerate: Directions in which the loss is constant.

    Returns:
        The histogram, which leaves out the largest 2 % of drawn outliers, and the law.
    """
    rows = [item.eigenvalues[item.eigenvalues != 0] for item in spectra]
    every, total = np.sort(np.concatenate(rows)), sum(len(item.eigenvalues) for item in spectra)
    drawn = isinstance(outliers, int | np.integer)
    count = int(outliers) if isinstance(outliers, int | np.integer) else len(outliers)
    low, high = every[0], every[-1 - (round((1 - _SEEN) * count * len(rows)) if drawn else 0)]
    margin = 0.04 * (high - low)
    edges = np.linspace(low - margin, high + margin, _BINS + 1)
    x = np.linspace(edges[0], edges[-1], _POINTS)
    places = [] if drawn else bbp_position(list(np.atleast_1d(outliers)), n, cov.a) + cov.mean
    return SampledDensity(
        edges=edges,
        density=np.histogram(every, edges)[0] / np.diff(edges) / total,
        x=x,
        law=mean_density(x, cov, n, outliers, outlier_scale, degenerate),
        outliers=np.atleast_1d(places),
        n_outliers=count,
        n_levels=total,
        zeros=degenerate / (n + degenerate),
    )
