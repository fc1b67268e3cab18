"""Density of the levels of several models: on a linear axis of λ, and for each decade of |λ|."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.ticker import MaxNLocator

from hessrmt import theory
from hessrmt.errors import LevelsError
from hessrmt.plots import style

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jaxtyping import Float64
    from matplotlib.axes import Axes

    from hessrmt.plots.picture import Picture

    Levels = Sequence[Float64[np.ndarray, " n"]]

_PANEL = 2.9
_MOST_PANELS = 8
_PER_DECADE = 5


def spectral_density(
    levels: Mapping[str, Levels],
    title: str = "",
    *,
    bins: int | None = None,
    semicircle: bool = True,
    clip: float = 0.0,
) -> Picture:
    """Density of λ on a logarithmic axis, a panel for each label.

    Args:
        levels: What to call them to the levels, one (n_i,) array for each spectrum, in any order.
        title: Above the picture.
        bins: In every panel; more the more levels there are if None.
        semicircle: Whether to draw the semicircle of the same mean and variance.
        clip: Share of levels left out of the picture at either end, so that few outliers don't
            make it empty; the panel says so.

    Returns:
        The picture.

    Raises:
        LevelsError: If a label has no two distinct finite levels, or clip is not in [0, 0.5).

    Source: [B] Fig. 1.
    """
    if not 0 <= clip < 0.5:
        raise LevelsError(f"clip must be a share in [0, 0.5), got {clip!r}")
    groups = _checked(levels)
    picture = style.new_picture(title, height=max(style.HEIGHT, _PANEL * len(groups)))
    for axes, (label, rows) in zip(_panels(picture, len(groups)), groups.items(), strict=True):
        every = np.concatenate(rows)
        low, high = np.quantile(every, [clip, 1 - clip])
        if low == high:
            low, high = every.min(), every.max()
        outside = int(np.count_nonzero((every < low) | (every > high)))
        wanted = int(np.clip(2 * len(every) ** 0.5, 10, 100)) if bins is None else bins
        edges = np.linspace(low, high, wanted + 1)
        density, error = _mean_counts(rows, edges) * (len(rows) / len(every))
        name = f"{label}, {len(every):,} levels" + (f"\n{outside:,} not drawn" if outside else "")
        _steps(axes, edges, density, error, style.INK, style.FILL, name)
        if semicircle:
            centre, radius = every.mean(), 2 * every.std()
            x = centre + radius * np.sin(np.linspace(-np.pi / 2, np.pi / 2, 401))
            x = x[(x >= low) & (x <= high)]
            law = theory.semicircle(x - centre, radius)
            style.draw_law(axes, "semicircle", x, law, ", same mean and variance")
        smallest = 1 / (len(every) * (edges[1] - edges[0]))  # one level in a bin
        top = max(density.max(), 2 / (np.pi * 2 * every.std()) if semicircle else 0)
        axes.set(yscale="log", ylim=(smallest / 2, 3 * top), ylabel="density of λ", xlabel="λ")
        style.bare(axes)
        style.legend(axes)
    return picture


def density_per_decade(levels: Mapping[str, Levels], title: str = "") -> Picture:
    """Levels of one spectrum in each decade of |λ|, negative and positive ones apart.

    Args:
        levels: As for :func:`spectral_density`; levels that are exactly zero have no place on the
            axis, their number stands in the panel.
        title: Above the picture.

    Returns:
        The picture: a panel for each label, all with one axis.

    Raises:
        LevelsError: If there is no level other than zero, or one is not finite.
    """
    groups = _checked(levels)
    sizes = np.abs(np.concatenate([np.concatenate(rows) for rows in groups.values()]))
    exponents = np.log10(sizes[sizes > 0])
    low, high = np.floor(exponents.min()), np.ceil(exponents.max())
    low, high = (low, high) if low < high else (low - 1, high + 1)
    edges = np.linspace(low, high, int(high - low) * _per_decade(len(sizes), high - low) + 1)
    picture = style.new_picture(title, height=max(style.HEIGHT, _PANEL * len(groups)))
    panels = _panels(picture, len(groups), sharex=True)
    for axes, (label, rows) in zip(panels, groups.items(), strict=True):
        # the axis is one of log|λ|, with ticks that say |λ|
        signs = (("λ > 0", 1, style.POSITIVE), ("λ < 0", -1, style.NEGATIVE))
        for name, sign, colour in signs:
            logs = [np.log10(sign * row[sign * row > 0]) for row in rows]
            number = sum(map(len, logs))
            if number:
                density, error = _mean_counts(logs, edges)
                _steps(
                    axes, edges, density, error, colour, None, f"{label}, {number:,} with {name}"
                )
        zeros = sum(int(np.count_nonzero(row == 0)) for row in rows)
        if zeros:
            axes.plot([], [], alpha=0, label=f"exact zeros, not drawn: {zeros:,}")
        axes.set(ylim=(0, None), xlim=(low, high), ylabel="levels per decade")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=9, integer=True))
        axes.xaxis.set_major_formatter(lambda value, _: f"$10^{{{value:.0f}}}$")
        style.bare(axes)
        style.legend(axes)
    panels[-1].set_xlabel("|λ|")
    return picture


def _checked(levels: Mapping[str, Levels]) -> dict[str, list[Float64[np.ndarray, " n"]]]:
    if not 1 <= len(levels) <= _MOST_PANELS:
        raise LevelsError(f"got {len(levels)} sets of levels; expected 1 to {_MOST_PANELS}")
    groups = {}
    for label, rows in levels.items():
        given = [np.sort(np.asarray(row, dtype=np.float64)) for row in rows]
        given = [row for row in given if len(row)]
        every = np.concatenate(given) if given else np.empty(0)
        if not np.isfinite(every).all() or len(np.unique(every)) < 2:
            raise LevelsError(f"{label}: a density needs at least two distinct finite levels")
        groups[label] = given
    return groups


def _panels(picture: Picture, count: int, sharex: bool = False) -> list[Axes]:
    return list(picture.subplots(count, squeeze=False, sharex=sharex)[:, 0])


def _mean_counts(rows: Levels, edges: Float64[np.ndarray, " k+1"]) -> Float64[np.ndarray, "2 k"]:
    """Values of one spectrum per unit of the axis, and their standard error over the spectra."""
    counts = np.array([np.histogram(row, edges)[0] for row in rows]) / np.diff(edges)
    if len(rows) < style.FEWEST_UNITS:
        return np.array([counts.mean(axis=0), np.full(len(edges) - 1, np.nan)])
    return np.array([counts.mean(axis=0), counts.std(axis=0, ddof=1) / len(rows) ** 0.5])


def _per_decade(count: int, decades: float) -> int:
    """Bins of a decade, so that there are some levels in each."""
    return int(np.clip(count / (20 * decades), 1, _PER_DECADE))


def _steps(
    axes: Axes,
    edges: Float64[np.ndarray, " k+1"],
    density: Float64[np.ndarray, " k"],
    error: Float64[np.ndarray, " k"],
    line: str,
    fill: str | None,
    label: str,
) -> None:
    """An outline with a band of one standard error."""
    if fill:
        axes.stairs(density, edges, fill=True, color=fill, zorder=1)
    axes.stairs(density, edges, color=line, lw=1.3, label=label, zorder=2)
    if np.isfinite(error).any():
        low, high = np.maximum(density - error, 0), density + error
        axes.stairs(high, edges, baseline=low, fill=True, color=line, alpha=style.BAND, lw=0)
