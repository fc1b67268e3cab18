"""Sampled Hessians and sampled iterates, panel by panel.

Source: Baskerville, Granziol and Keating (2022), Figs. 5 and 6, section 8.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from hessrmt import theory
from hessrmt.plots import style

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.figure import Figure

_COLUMNS, _PANEL = 3, (3.0, 2.35)
"""Panels side by side, width and height of each in inches."""

_ALONE = style.WIDTH, 3.2
"""Size of a single panel, below which the legend finds room."""

_ITERATES = {
    "last": ("last iterate", "#000000", "o"),
    "average": ("average of all", style.BLUE, "s"),
    "tail": ("of the second half", style.RED, "D"),
}
"""Point to its name, colour and marker."""

_LAW = "large matrices: semicircle and outliers, smeared by √c·ξ"


def densities(found: Any, title: str = "", *, ax: Any = None) -> Figure:
    """Density of the eigenvalues of each panel, beside its large-matrix law.

    Panels with outliers have a logarithmic axis of densities. Exact zeros are not drawn: the panel
    says how many there are.

    Args:
        found: A :class:`hessrmt.lossmodel.sampler.SampledDensity`, or a dictionary of headings of
            panels to them.
        title: Above the picture.
        ax: Axes to draw into, one for each panel; None for a new picture.

    Returns:
        The picture.
    """
    found = style.by_label(found, "")
    panels = _panels(found, title, ax, "λ", "density of λ")
    for axes, item in zip(panels, found.values(), strict=True):
        style.draw_area(axes, item.edges, item.density, "sampled")
        style.draw_law(axes, "semicircle", item.x, item.law, label=_LAW)
        axes.set_xlim(item.edges[0], item.edges[-1])
        top = float(max(item.density.max(), item.law.max()))
        if item.n_outliers:
            smallest = 0.3 / (item.n_levels * (item.edges[1] - item.edges[0]))
            axes.set(yscale="log", ylim=(smallest, 4 * top))
        else:
            axes.set_ylim(0, 1.25 * top)
            axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
        for place in item.outliers:
            axes.axvline(place, color=style.INK, lw=0.8, ls=":", zorder=0)
        if item.zeros:
            axes.axvline(0, color=style.INK, lw=1.0, ls=(0, (2, 1.5)), zorder=2)
            style.note(axes, f"{item.zeros:.0%} of the eigenvalues\nare exactly 0")
    return style.legend_below(panels[0], 2)


def ratios(found: Mapping[str, tuple[Any, Any]], title: str = "", *, ax: Any = None) -> Figure:
    """Ratios r of neighbouring spacings of each panel, beside the laws of the GOE.

    Args:
        found: Heading of a panel to a :class:`hessrmt.levels.analysis.RatioHistogram` of r, and to
            ⟨r̃⟩ and its error, of all levels (``"all levels"``) and of others by their name.
        title: Above the picture.
        ax: Axes to draw into, one for each panel; None for a new picture.

    Returns:
        The picture; histograms and laws have the area 1.
    """
    cut = float(next(iter(found.values()))[0].edges[-1])
    panels = _panels(found, title, ax, "r", f"P(r), r < {cut:g}")
    r = np.linspace(0, cut, 1001)
    exact, surmise = theory.ratio_law(r, corrected=True, cut=cut), theory.ratio_law(r, cut=cut)
    note = f", large matrices: ⟨r̃⟩ = {theory.mean_ratio('goe'):.4f}"
    for axes, (item, means) in zip(panels, found.values(), strict=True):
        style.draw_histogram(axes, item.edges, item.density, item.error, "sampled, all levels")
        style.draw_law(axes, "goe", r, exact, note)
        style.draw_law(axes, "wigner", r, surmise, label="GOE surmise", zorder=4)
        axes.set(xlim=(0, cut), ylim=(0, 1.15 * style.top_of(item.density, item.error)))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
        words = [f"⟨r̃⟩ = {m:.4f} ± {error:.4f}, {name}" for name, (m, error) in means.items()]
        style.note(axes, "\n".join(words))
    return style.legend_below(panels[0], 2)


def iterate_norms(
    found: Mapping[str, Mapping[str, Any]], title: str = "", *, ax: Any = None
) -> Figure:
    """⟨w²⟩ of SGD's iterates against the rate: sampled, exact of a quadratic, as printed.

    Args:
        found: Heading of a panel to point (``last``, ``average``, ``tail``) to (5, rates) rates,
            means, standard errors, exact values and those as printed, NaN where there are none.
        title: Above the picture.
        ax: Axes to draw into, one for each panel; None for a new picture.

    Returns:
        The picture, with logarithmic axes.
    """
    columns = 2 if ax is None else len(found)
    size = _PANEL if len(found) > 1 else _ALONE
    _, panels = style.panels_for(len(found), title, size, columns, ax=ax, head=0.9)
    for axes, (heading, points) in zip(panels, found.items(), strict=True):
        for point, (rate, mean, error, exact, printed) in points.items():
            name, colour, marker = _ITERATES[point]
            bars = {"color": colour, "marker": marker, "ms": 4.5, "ls": "none", "capsize": 2}
            axes.errorbar(rate, mean, error, label=f"{name}, sampled", **bars)
            axes.plot(rate, exact, color=colour, lw=1.3, label=f"{name}, AR(1) process")
            if np.isfinite(printed).any():
                dotted = {"color": colour, "lw": 1.5, "ls": (0, (1, 1.5))}
                axes.plot(rate, printed, label=f"{name}, as printed", **dotted)
        axes.set(xscale="log", yscale="log")
        style.bare(axes, 8)
        axes.set_title(heading, loc="left", fontsize=9)
        for axis in (axes.xaxis, axes.yaxis):
            style.log_ticks(axis, 5)
    for axes in panels[::columns]:
        axes.set_ylabel("⟨w²⟩", fontsize=9)
    for axes in panels[-columns:]:
        axes.set_xlabel("α or η", fontsize=9)
    return style.legend_below(panels[0], 2)


def _panels(found: Mapping[str, Any], title: str, ax: Any, xlabel: str, ylabel: str) -> Any:
    columns = min(len(found), _COLUMNS) if ax is None else len(found)
    size = _PANEL if len(found) > 1 else _ALONE
    _, panels = style.panels_for(len(found), title, size, columns, ax=ax, head=1)
    for axes, heading in zip(panels, found, strict=True):
        style.bare(axes, 8)
        axes.set_title(heading, loc="left", fontsize=9)
    for axes in panels[::columns]:
        axes.set_ylabel(ylabel, fontsize=9)
    for axes in panels[-columns:]:
        axes.set_xlabel(xlabel, fontsize=9)
    return panels
