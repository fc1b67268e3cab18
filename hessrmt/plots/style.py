"""What every picture shares: how the laws look and are called, the data, the axes.

The colours are told apart by people who don't see all of them, and no law by its colour alone: each
has dashes of its own. Source: Okabe, Ito, Color Universal Design (2008).
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from hessrmt.levels import resampling
from hessrmt.plots.picture import Picture

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float64
    from matplotlib.axes import Axes


class LawStyle(NamedTuple):
    """How a law is drawn.

    Attributes:
        label: Its name in legends.
        colour: Of the line.
        dashes: A matplotlib line style.
        width: In points.
    """

    label: str
    colour: str
    dashes: str | tuple[int, tuple[float, ...]]
    width: float


LAWS = {
    "goe": LawStyle("GOE", "#D55E00", "-", 1.8),
    "goe, unfolded alike": LawStyle("GOE, unfolded as the data", "#D55E00", (0, (1, 1.2)), 1.5),
    "goe2": LawStyle("two GOE blocks", "#009E73", (0, (6, 2)), 1.5),
    "poisson": LawStyle("Poisson", "#0072B2", (0, (5, 1.5, 1, 1.5)), 1.5),
    "wigner": LawStyle("Wigner surmise", "#000000", (0, (3, 2)), 0.9),
    "semicircle": LawStyle("semicircle", "#D55E00", "-", 1.5),
}

FILL, INK, MUTED = "#c5ccd6", "#3a4354", "#9a9a9a"
"""Area of a histogram, its error bars and measured curves, and what is beside the point."""

NEGATIVE, POSITIVE = "#CC79A7", "#0072B2"
"""Levels below and above zero."""

BAND = 0.3
"""Opacity of a band of one standard error."""

ONE_SIGMA = "± one standard error"

WIDTH, HEIGHT = 7.0, 4.5
"""Of a picture with one panel, in inches."""

_TITLE_CHARACTERS, _LEGEND_CHARACTERS, _HANDLE = 84, 84, 7
"""How much text fits: in a line of the title, and side by side in the columns
of a legend, where a line's sample and margin take the place of seven."""

FEWEST_UNITS = 5
"""Spectra, or stretches of them, below which a standard error is not worth drawing."""


def new_picture(title: str = "", width: float = WIDTH, height: float = HEIGHT) -> Picture:
    """An empty picture.

    Args:
        title: Above everything, from the left.
        width: In inches.
        height: In inches.

    Returns:
        The picture.
    """
    picture = Picture(figsize=(width, height), layout="constrained")
    if title:
        lines = "\n".join(
            part for line in title.splitlines() for part in textwrap.wrap(line, _TITLE_CHARACTERS)
        )
        picture.suptitle(lines, x=0.01, ha="left", fontsize=10)
    return picture


def bare(axes: Axes) -> None:
    """Take the frame's upper and right side away."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)


def legend(axes: Axes) -> None:
    """A legend of everything that has a label, above the axes: nothing lies beneath it."""
    labels = axes.get_legend_handles_labels()[1]
    lengths = [max(map(len, label.splitlines()), default=0) for label in labels]
    columns = 3
    while columns > 1 and _width(lengths, columns) > _LEGEND_CHARACTERS:
        columns -= 1
    axes.legend(
        frameon=False,
        fontsize=9,
        loc="lower left",
        bbox_to_anchor=(-0.01, 1.0),
        ncols=columns,
        handlelength=2.6,
        columnspacing=1.6,
        borderaxespad=0.2,
    )


def _width(lengths: Sequence[int], columns: int) -> int:
    """Characters side by side, those of a line's handle and margin included."""
    parts = [part for part in np.array_split(lengths, columns) if len(part)]
    return sum(int(part.max()) + _HANDLE for part in parts)


def histogram(
    samples: Sequence[Float64[np.ndarray, " n"]], edges: Float64[np.ndarray, " k+1"]
) -> tuple[Float64[np.ndarray, " k"], Float64[np.ndarray, " k"]]:
    """Density and standard error as :func:`hessrmt.levels.resampling.histogram` has them.

    Args:
        samples: Values of each spectrum.
        edges: (k + 1,) of the bins.

    Returns:
        Density and standard error in each bin; errors of NaN from fewer than five units.
    """
    density, error = resampling.histogram(samples, edges)
    few = len(resampling.units(samples)) < FEWEST_UNITS
    return density, np.full_like(error, np.nan) if few else error


def draw_law(
    axes: Axes,
    name: str,
    x: Float64[np.ndarray, " n"],
    y: Float64[np.ndarray, " n"],
    note: str = "",
) -> None:
    """A law as a curve.

    Args:
        axes: Where.
        name: One of :data:`LAWS`.
        x: (n,) points.
        y: (n,) values of the law.
        note: Put behind the law's name in the legend.
    """
    label, colour, dashes, width = LAWS[name]
    axes.plot(x, y, color=colour, ls=dashes, lw=width, label=label + note, zorder=3)


def draw_histogram(
    axes: Axes,
    edges: Float64[np.ndarray, " k+1"],
    density: Float64[np.ndarray, " k"],
    error: Float64[np.ndarray, " k"],
    label: str,
) -> None:
    """A histogram with a bar of one standard error on every bin.

    Args:
        axes: Where.
        edges: (k + 1,) of the bins.
        density: (k,) of the values.
        error: (k,) its standard error.
        label: Of the data in the legend.
    """
    axes.stairs(density, edges, fill=True, color=FILL, label=label, zorder=1)
    middle = (edges[1:] + edges[:-1]) / 2
    bars = {"fmt": "none", "ecolor": INK, "elinewidth": 0.9}
    if np.isfinite(error).any():
        axes.errorbar(middle, density, yerr=error, zorder=2, label=ONE_SIGMA, **bars)


def draw_measured(
    axes: Axes,
    x: Float64[np.ndarray, " n"],
    y: Float64[np.ndarray, " n"],
    error: Float64[np.ndarray, " n"],
    label: str,
) -> None:
    """A measured curve with a band of one standard error.

    Args:
        axes: Where.
        x: (n,) points.
        y: (n,) measured values.
        error: (n,) standard errors; NaN where there is none.
        label: Of the data in the legend.
    """
    axes.plot(x, y, color=INK, lw=1.1, marker="o", ms=2.6, label=label, zorder=4)
    if np.isfinite(error).any():
        band = {"color": INK, "alpha": BAND, "lw": 0}
        axes.fill_between(x, y - error, y + error, zorder=2, label=ONE_SIGMA, **band)


def counted(number: int, what: str, spectra: int) -> str:
    """The data in words, for a legend.

    Args:
        number: How many values.
        what: What they are, in the plural.
        spectra: How many spectra they come from.

    Returns:
        E.g. ``"17,825 spacings of 31 spectra"``.
    """
    return f"{number:,} {what} of {of_spectra(spectra)}"


def of_spectra(number: int) -> str:
    """``"1 spectrum"``, ``"31 spectra"``."""
    return "1 spectrum" if number == 1 else f"{number:,} spectra"


def many_decades(levels: Sequence[Float64[np.ndarray, " n"]]) -> bool:
    """Whether a linear axis would show these levels as a spike.

    Args:
        levels: One array for each spectrum.

    Returns:
        Whether the largest |λ| exceeds a hundred times the median.
    """
    sizes = np.abs(np.concatenate(levels))
    return bool(sizes.max() > 100 * np.median(sizes))
