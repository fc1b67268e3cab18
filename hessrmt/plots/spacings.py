"""Histogram of unfolded spacings, P(s), beside the laws."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from hessrmt import theory
from hessrmt.errors import LevelsError
from hessrmt.levels.goodness import nulls, plan, quantiles, statistic_law
from hessrmt.plots import style

if TYPE_CHECKING:
    from jaxtyping import Float64

    from hessrmt.levels.unfolding import Unfolded
    from hessrmt.plots.picture import Picture

LARGEST = 4.0
"""Spacings beyond are counted, but not drawn."""

_NARROWEST, _WIDEST = 0.05, 0.4
_PARTS = 8


def spacing_histogram(
    unfolded: Unfolded,
    title: str = "",
    *,
    blocks: bool = False,
    surrogates: int = 0,
    seed: int = 0,
) -> Picture:
    """P(s) with its standard error, the exact GOE law, Wigner's surmise and Poisson.

    Pooled spacings are multiples of one over the number of pooled spectra. Each is drawn evenly
    over the step of the staircase that it is the middle of, and a bin is a whole number of steps
    wide, so that the histogram is no comb and has no offset against the laws; the first bin then
    begins half a step below zero.

    An unfolding adds noise of its own, most of all a pool of few spectra. With surrogates the
    picture shows too what becomes of GOE spectra in the same unfolding.

    Args:
        unfolded: The unfolded levels.
        title: Above the picture.
        blocks: Whether to draw the law of two superposed GOE blocks.
        surrogates: GOE data sets to put through the same unfolding. Those of
            :func:`hessrmt.levels.analyze` with the same number and seed are reused.
        seed: Of the surrogates.

    Returns:
        The picture.

    Raises:
        LevelsError: If there is no spacing.
    """
    samples = [values for values in unfolded.spacings if len(values)]
    count = sum(map(len, samples))
    if not count:
        raise LevelsError("there is no spacing to draw; unfold at least one spectrum")
    edges = _edges(count, unfolded.resolution)
    density, error = style.histogram(_spread(samples, unfolded.resolution), edges)
    picture = style.new_picture(title)
    axes = picture.subplots()
    label = style.counted(count, "spacings", len(samples))
    style.draw_histogram(axes, edges, density, error, label)
    s = np.linspace(0, LARGEST, 401)
    style.draw_law(axes, "goe", s, theory.goe_spacing(s), ", exact")
    if surrogates:
        try:
            middle, alike = _unfolded_alike(unfolded, edges, surrogates, seed)
            style.draw_law(axes, "goe, unfolded alike", middle, alike)
        except LevelsError:  # an unfolding that fits the data, e.g. by their own law, but not these
            axes.plot([], [], alpha=0, label="the unfolding cannot follow GOE spectra")
    style.draw_law(axes, "wigner", s, theory.wigner_surmise(s))
    style.draw_law(axes, "poisson", s, theory.poisson_spacing(s))
    if blocks:
        style.draw_law(axes, "goe2", s, theory.superposed_spacing(s, 2))
    top = max(1.0, float((density + np.nan_to_num(error)).max()))
    axes.set(xlim=(edges[0], LARGEST), ylim=(0, 1.04 * top), xlabel="s", ylabel="P(s)")
    style.bare(axes)
    style.legend(axes)
    return picture


def _edges(count: float, resolution: float) -> Float64[np.ndarray, " k+1"]:
    width = float(np.clip(2.5 * count ** (-1 / 3), _NARROWEST, _WIDEST))
    if resolution > 0:
        width = math.ceil(width / resolution - 1e-9) * resolution
        return width * np.arange(math.ceil(LARGEST / width - 1e-9) + 1) - resolution / 2
    return np.linspace(0, LARGEST, round(LARGEST / width) + 1)


def _spread(
    samples: list[Float64[np.ndarray, " n"]], resolution: float
) -> list[Float64[np.ndarray, " m"]]:
    if resolution == 0:
        return samples
    return [np.add.outer(values, _step(resolution)).ravel() for values in samples]


def _step(resolution: float) -> Float64[np.ndarray, " parts"]:
    """Where the parts of one spacing go, seen from it: evenly over a step of the staircase."""
    return ((np.arange(_PARTS) + 0.5) / _PARTS - 0.5) * resolution


def _unfolded_alike(
    unfolded: Unfolded, edges: Float64[np.ndarray, " k+1"], surrogates: int, seed: int
) -> tuple[Float64[np.ndarray, " m"], Float64[np.ndarray, " m"]]:
    """Density of GOE spacings after the data's unfolding, drawn as the data are."""
    sizes = [len(levels) for levels in unfolded.selection.levels]
    method, options, rotate = unfolded.method, unfolded.options, unfolded.rotate
    null = nulls("goe", plan(sizes, method, options, rotate, surrogates, seed))["spacing"]
    law = statistic_law("goe", "spacing")
    points = quantiles(law)
    below = np.asarray(law.cdf(points)) + null.bias
    if unfolded.resolution == 0:
        edges = _edges(null.bank, 0.0)
    edges = edges[edges <= points[-1]]  # the last quantile
    s = np.subtract.outer(edges, _step(unfolded.resolution))
    share = np.where(s <= 0, 0.0, np.interp(s, points, below))
    if unfolded.resolution == 0:  # a continuous law: nothing at zero itself
        share = np.where(s < points[0], below[0] * (s / points[0]) ** 2, share)
    return (edges[1:] + edges[:-1]) / 2, np.diff(share.mean(axis=1)) / np.diff(edges)
