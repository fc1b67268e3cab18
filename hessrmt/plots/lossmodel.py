"""Densities and ratios of sampled Hessians, panel by panel, in the manner of [B] Figs. 5 and 6."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from math import ceil
from typing import TYPE_CHECKING, Protocol

import numpy as np
from matplotlib.ticker import MaxNLocator

from hessrmt import theory
from hessrmt.levels.analysis import ratio_samples
from hessrmt.levels.selection import select
from hessrmt.lossmodel.sampler import mean_density
from hessrmt.plots import style
from hessrmt.plots.files import Drawn, checked_ending, draw_each

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

    from hessrmt.lossmodel import HessianCovariance
    from hessrmt.plots.picture import Picture
    from hessrmt.records import Spectrum

_COLUMNS, _WIDTH, _HEIGHT = 3, 9.0, 2.35
"""Panels side by side, width of the picture, and height of a row of panels, in inches."""

_BINS, _CUT, _RATIO_BINS = 70, 5.0, 40
_SEEN = 0.98
"""Share of the outliers that the axis reaches; their law has a long tail."""


class Panel(Protocol):
    """What one panel shows."""

    @property
    def label(self) -> str:
        """Its heading."""
        ...

    @property
    def spectra(self) -> Sequence[Spectrum]:
        """Sampled spectra."""
        ...

    @property
    def covariance(self) -> HessianCovariance:
        """Law of the random part of their Hessians."""
        ...

    @property
    def n(self) -> int:
        """Directions in which the loss is random."""
        ...

    @property
    def outliers(self) -> int | Sequence[float]:
        """How many are drawn for each sample, or their values."""
        ...

    @property
    def outlier_scale(self) -> float:
        """Of drawn outliers."""
        ...

    @property
    def degenerate(self) -> int:
        """Directions in which the loss is constant."""
        ...

    @property
    def means(self) -> Mapping[str, tuple[float, float]]:
        """⟨r̃⟩ and its error, of all levels (``"all levels"``) and of others by their name."""
        ...


def loss_model_figures(
    figures: Mapping[str, Sequence[Panel]], folder: Path, ending: str = "png"
) -> list[Drawn]:
    """Draw every figure.

    Args:
        figures: Name of a figure to its panels; densities where it begins with ``fig5``, else
            ratios.
        folder: An existing folder.
        ending: Of the files.

    Returns:
        For each picture its file, or the reason why there is none.
    """
    kind = checked_ending(ending)
    pictures = {}
    for name, panels in figures.items():
        convention = name.partition("-")[2]
        draw = densities if name.startswith("fig5") else ratios
        pictures[name] = partial(draw, panels, f"{_TITLES.get(convention, convention)}\n{_MARKS}")
    return draw_each(pictures, folder, kind)


_MARKS = "* with degenerate directions, † with outliers"

_TITLES = {
    "paper": "Covariance as printed: a = k''(0), c = k'(0)²",
    "stationary": "Stationary process: a = c = k''(0)",
}


def densities(panels: Sequence[Panel], title: str = "") -> Picture:
    """Density of the levels of each panel, beside its large-matrix law.

    Panels with outliers have a logarithmic axis of densities. Exact zeros are not drawn: the panel
    says how many there are.

    Args:
        panels: At least one.
        title: Above the picture.

    Returns:
        The picture.

    Source: [B] Fig. 5.
    """
    picture, axes = _grid(len(panels), title)
    for panel, each in zip(panels, axes, strict=True):
        each.set_title(panel.label, loc="left", fontsize=9)
        _density(each, panel)
    _finish(picture, axes, "λ", "density of λ")
    return picture


def ratios(panels: Sequence[Panel], title: str = "") -> Picture:
    """Ratios r of neighbouring spacings of each panel, beside the laws of the GOE.

    Args:
        panels: At least one.
        title: Above the picture.

    Returns:
        The picture: r up to 5, where histograms and laws have the area 1.

    Source: [B] Fig. 6.
    """
    picture, axes = _grid(len(panels), title)
    for panel, each in zip(panels, axes, strict=True):
        each.set_title(panel.label, loc="left", fontsize=9)
        _ratios(each, panel)
    _finish(picture, axes, "r", f"P(r), r < {_CUT:g}")
    return picture


def _density(axes: Axes, panel: Panel) -> None:
    rows = [item.eigenvalues[item.eigenvalues != 0] for item in panel.spectra]
    every = np.sort(np.concatenate(rows))
    count = panel.outliers if isinstance(panel.outliers, int) else len(panel.outliers)
    beyond = round((1 - _SEEN) * count * len(rows)) if isinstance(panel.outliers, int) else 0
    low, high = every[0], every[-1 - beyond]
    margin = 0.04 * (high - low)
    edges = np.linspace(low - margin, high + margin, _BINS + 1)
    total = sum(len(item.eigenvalues) for item in panel.spectra)
    density = np.histogram(every, edges)[0] / np.diff(edges) / total
    axes.stairs(density, edges, fill=True, color=style.FILL, label="sampled", zorder=1)
    x = np.linspace(edges[0], edges[-1], 1201)
    law = mean_density(
        x, panel.covariance, panel.n, panel.outliers, panel.outlier_scale, panel.degenerate
    )
    _, colour, dashes, width = style.LAWS["semicircle"]
    name = "large matrices: semicircle and outliers, smeared by √c·ξ"
    axes.plot(x, law, color=colour, ls=dashes, lw=width, label=name, zorder=3)
    axes.set_xlim(edges[0], edges[-1])
    top = float(max(density.max(), law.max()))
    if count:
        axes.set(yscale="log", ylim=(0.3 / (total * (edges[1] - edges[0])), 4 * top))
    else:
        axes.set_ylim(0, 1.25 * top)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
    if not isinstance(panel.outliers, int):
        places = theory.bbp_position(list(panel.outliers), panel.n, panel.covariance.a)
        for place in np.atleast_1d(places) + panel.covariance.mean:
            axes.axvline(place, color=style.INK, lw=0.8, ls=":", zorder=0)
    if panel.degenerate:
        share = panel.degenerate / (panel.n + panel.degenerate)
        axes.axvline(0, color=style.INK, lw=1.0, ls=(0, (2, 1.5)), zorder=2)
        axes.text(
            0.97,
            0.95,
            f"{share:.0%} of the levels\nare exactly 0",
            transform=axes.transAxes,
            ha="right",
            va="top",
            fontsize=7.5,
        )


def _ratios(axes: Axes, panel: Panel) -> None:
    selection = select(list(panel.spectra))
    values = [row[row <= _CUT] for row in ratio_samples(selection, folded=False)]
    edges = np.linspace(0, _CUT, _RATIO_BINS + 1)
    density, error = style.histogram(values, edges)
    style.draw_histogram(axes, edges, density, error, "sampled, all levels")
    r = np.linspace(0, _CUT, 1001)
    exact = theory.ratio_law(r, corrected=True, cut=_CUT)
    style.draw_law(axes, "goe", r, exact, f", large matrices: ⟨r̃⟩ = {theory.mean_ratio('goe'):.4f}")
    _, colour, dashes, width = style.LAWS["wigner"]
    surmise = theory.ratio_law(r, cut=_CUT)
    axes.plot(r, surmise, color=colour, ls=dashes, lw=width, label="GOE surmise", zorder=4)
    axes.set(xlim=(0, _CUT), ylim=(0, 1.15 * float((density + np.nan_to_num(error)).max())))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
    lines = [
        f"⟨r̃⟩ = {mean:.4f} ± {spread:.4f}, {name}" for name, (mean, spread) in panel.means.items()
    ]
    axes.text(
        0.97, 0.95, "\n".join(lines), transform=axes.transAxes, ha="right", va="top", fontsize=7.5
    )


def _grid(count: int, title: str) -> tuple[Picture, list[Axes]]:
    columns = min(count, _COLUMNS)
    rows = ceil(count / columns)
    picture = style.new_picture(title, width=_WIDTH * columns / _COLUMNS, height=_HEIGHT * rows + 1)
    grid = picture.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid[count:]:
        axes.set_axis_off()
    return picture, list(grid[:count])


def _finish(picture: Picture, axes: Sequence[Axes], x: str, y: str) -> None:
    columns = min(len(axes), _COLUMNS)
    for number, each in enumerate(axes):
        style.bare(each)
        each.tick_params(labelsize=8)
        if number % columns == 0:
            each.set_ylabel(y, fontsize=9)
        if number + columns >= len(axes):
            each.set_xlabel(x, fontsize=9)
    handles, labels = axes[0].get_legend_handles_labels()
    picture.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
