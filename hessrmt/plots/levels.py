"""Level statistics beside the laws: spacings, ratios, long-range correlations, densities."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.ticker import FuncFormatter, MaxNLocator

from hessrmt import theory
from hessrmt.errors import DataError
from hessrmt.plots import style

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jaxtyping import Float64
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    Values = Float64[np.ndarray, " n"]

_LARGEST_SPACING = 4.0

_LONG_RANGE = {
    "number_variance": ("L", "Σ²(L)", theory.number_variance),
    "rigidity": ("L", "Δ₃(L)", theory.rigidity),
    "form_factor": ("τ", "K(τ)", theory.form_factor),
}

_FAR = 5.0
"""Times what the GOE reaches: data beyond need a logarithmic axis."""

_PANEL, _MOST_PANELS = 2.9, 8
"""Height of one of several panels in inches, and how many one picture holds."""

_WIDE = 100
"""Times the median |λ|: from there on a linear axis would show the levels as a spike."""

_TICKS = 4
"""On either side of zero on a logarithmic axis."""


def spacings(found: Any, title: str = "", *, ax: Any = None, blocks: bool = False) -> Figure:
    """P(s) with its standard error, the exact GOE law, Wigner's surmise and Poisson.

    Args:
        found: A :class:`hessrmt.levels.analysis.SpacingHistogram`.
        title: Above the picture.
        ax: Axes to draw into; None for a new picture.
        blocks: Whether to draw the law of two superposed GOE blocks.

    Returns:
        The picture.
    """
    axes = style.single(title, ax)
    label = style.counted(found.n_spacings, "spacings", found.n_spectra)
    style.draw_histogram(axes, found.edges, found.density, found.error, label)
    s = np.linspace(0, _LARGEST_SPACING, 401)
    style.draw_law(axes, "goe", s, theory.goe_spacing(s), ", exact")
    if found.unfolded_alike is not None:
        style.draw_law(axes, "goe, unfolded alike", *found.unfolded_alike)
    elif found.surrogates:
        axes.plot([], [], alpha=0, label="the unfolding cannot follow GOE spectra")
    style.draw_law(axes, "wigner", s, theory.wigner_surmise(s))
    style.draw_law(axes, "poisson", s, theory.poisson_spacing(s))
    if blocks:
        style.draw_law(axes, "goe2", s, theory.superposed_spacing(s, 2))
    top = 1.04 * max(1.0, style.top_of(found.density, found.error))
    ends = found.edges[0], _LARGEST_SPACING
    return style.finish(axes, xlim=ends, ylim=(0, top), xlabel="s", ylabel="P(s)")


def surmise(title: str = "", *, ax: Any = None) -> Figure:
    """P(s) of the GOE, exact and by the surmise, of Poisson levels, and the surmise's error.

    Args:
        title: Above the picture.
        ax: Two axes to draw into; None for a new picture.

    Returns:
        The picture.

    Source: Baskerville, Granziol and Keating (2022), Fig. 2, shows the surmise; the exact law is
    that of :func:`hessrmt.theory.goe_spacing`.
    """
    options = {"size": (style.WIDTH, 5.0), "sharex": True, "height_ratios": [3, 1]}
    picture, ((upper,), (lower,)) = style.panels(title, (2, 1), ax=ax, **options)
    s = np.linspace(0, _LARGEST_SPACING, 401)
    exact, approximate = theory.goe_spacing(s), theory.wigner_surmise(s)
    style.draw_law(upper, "goe", s, exact, ", exact")
    style.draw_law(upper, "wigner", s, approximate)
    style.draw_law(upper, "poisson", s, theory.poisson_spacing(s))
    style.finish(upper, xlim=(0, _LARGEST_SPACING), ylim=(0, 1.04), ylabel="P(s)")
    lower.axhline(0, color=style.RED, lw=0.8)
    style.draw_law(lower, "wigner", s, approximate - exact)
    style.bare(lower, xlabel="s", ylabel="surmise\n- exact")
    picture.align_ylabels()
    return picture


def ratios(found: Any, title: str = "", *, ax: Any = None) -> Figure:
    """P(r̃), or P(r) up to a cut, with the laws of GOE, two GOE blocks and Poisson.

    The GOE law is that of large matrices (the surmise with the correction of Atas et al. 2013). All
    laws have the area 1 up to the cut, as the histogram has.

    Args:
        found: A :class:`hessrmt.levels.analysis.RatioHistogram`.
        title: Above the picture.
        ax: Axes to draw into; None for a new picture.

    Returns:
        The picture.
    """
    folded, end = found.folded, float(found.edges[-1])
    axes = style.single(title, ax)
    label = style.counted(found.n_ratios, "ratios", found.n_spectra)
    if folded:
        spread = f" ± {found.mean_error:.4f}" if np.isfinite(found.mean_error) else ""
        label += f"\n⟨r̃⟩ = {found.mean:.4f}{spread}"
    style.draw_histogram(axes, found.edges, found.density, found.error, label)
    r = np.linspace(0, end, 401 if folded else 2001)
    shape = {"folded": folded, "cut": None if folded else end}
    laws = {
        "goe": theory.ratio_law(r, corrected=True, **shape),
        "goe2": theory.block_ratio_law(r, **shape),
        "poisson": theory.poisson_ratio_law(r, **shape),
    }
    for name, values in laws.items():
        note = f", ⟨r̃⟩ = {theory.mean_ratio(name):.4f}" if folded else ""
        style.draw_law(axes, name, r, values, note)
    top = max(style.top_of(found.density, found.error), float(laws["poisson"].max()))
    xlabel, ylabel = ("r̃ = min(r, 1/r)", "P(r̃)") if folded else ("r", f"P(r), r < {end:g}")
    return style.finish(axes, xlim=(0, end), ylim=(0, 1.04 * top), xlabel=xlabel, ylabel=ylabel)


def fifths(found: Any, title: str = "", *, ax: Any = None) -> Figure:
    """⟨r̃⟩ by fifths of the levels with its standard error, and the laws' values.

    Args:
        found: A :class:`hessrmt.levels.LevelStatistics`.
        title: Above the picture.
        ax: Axes to draw into; None for a new picture.

    Returns:
        The picture.
    """
    axes = style.single(title, ax)
    means, errors = found.mean_ratio_fifths, found.mean_ratio_fifths_error
    look = {"fmt": "o", "ms": 4, "color": style.INK, "capsize": 3, "zorder": 5}
    label = style.counted(found.n_levels, "levels", found.n_spectra)
    axes.errorbar(np.arange(1, 6), means, yerr=np.nan_to_num(errors), label=label, **look)
    ends = np.array([0.6, 5.4])
    for name in ("goe", "goe2", "poisson"):
        style.draw_law(axes, name, ends, np.full(2, theory.mean_ratio(name)))
    axes.set_xticks(range(1, 6), ["lowest", "2nd", "3rd", "4th", "highest"])
    return style.finish(axes, xlim=ends, xlabel="fifth of the levels", ylabel="⟨r̃⟩")


def higher_orders(found: Any, title: str = "", *, ax: Any = None) -> Figure:
    """⟨r̃⟩ of every k-th level, of the data and of GOE and Poisson surrogates, and a law.

    The law of Tekur, Bhosale and Santhanam is only approximate: verdicts rest on the surrogates.

    Args:
        found: A :class:`hessrmt.levels.LevelStatistics` with orders beyond the first.
        title: Above the picture.
        ax: Axes to draw into; None for a new picture.

    Returns:
        The picture.

    Raises:
        DataError: If there are none.

    Source: Tekur, Bhosale and Santhanam 2018.
    """
    if not found.higher:
        raise DataError("there are no higher orders to draw; analyze with orders=2 or more")
    axes = style.single(title, ax)
    k = np.arange(1, len(found.higher) + 2)
    means = [found.mean_ratio, *(one.mean_ratio for one in found.higher)]
    errors = [found.mean_ratio_error, *(one.mean_ratio_error for one in found.higher)]
    label = style.counted(found.n_levels, "levels", found.n_spectra)
    look = {"fmt": "o", "ms": 4, "color": style.INK, "capsize": 3, "zorder": 5}
    axes.errorbar(k, means, yerr=np.nan_to_num(errors), label=label, **look)
    for name in ("goe", "poisson"):
        first = found.laws[name].mean_ratio_alike
        alike = [first, *(getattr(one.mean_ratio_alike, name) for one in found.higher)]
        style.draw_law(axes, name, k, np.array(alike), " surrogates", marker="_", ms=12)
    law = [theory.higher_mean_ratio(int(order)) for order in k]
    style.draw_law(axes, "wigner", k, np.array(law), label="GOE, approximate law")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    ends = k[0] - 0.4, k[-1] + 0.4
    return style.finish(axes, xlim=ends, xlabel="k", ylabel="⟨r̃⟩ of every k-th level")


def long_range(found: Any, title: str = "", *, ax: Any = None, blocks: bool = True) -> Figure:
    """Σ²(L), Δ₃(L) or K(τ) with the laws of GOE, two GOE blocks and Poisson.

    Windows longer than what the unfolding averages over are shaded: it hides fluctuations there.

    Args:
        found: A :class:`hessrmt.levels.analysis.LongRange`.
        title: Above the picture.
        ax: Axes to draw into; None for a new picture.
        blocks: Whether to draw the law of two superposed GOE blocks.

    Returns:
        The picture.
    """
    x, y, error = found.at, found.values, found.errors
    axes = style.single(title, ax)
    label = style.counted(found.n_levels, "levels", found.n_spectra)
    axes.plot(x, y, color=style.INK, lw=1.1, marker="o", ms=2.6, label=label, zorder=4)
    style.draw_band(axes, x, y - error, y + error)
    xlabel, ylabel, law = _LONG_RANGE[found.statistic]
    of_time = found.statistic == "form_factor"
    end = max(float(x.max()), 2.0)
    grid = np.linspace(0, end, 401) if of_time else np.geomspace(x.min(), x.max(), 201)
    laws = {name: law(grid, name) for name in ("goe", *["goe2"] * blocks, "poisson")}
    for name, values in laws.items():
        style.draw_law(axes, name, grid, values)
    top = style.top_of(y, error)
    reached = float(np.max(laws["goe2" if blocks else "goe"]))
    if of_time:
        axes.set_ylim(0, max(1.4, 1.05 * top))
    elif top > _FAR * reached:
        lowest = float(min(y.min(), np.min(laws["goe"])))
        axes.set(xscale="log", yscale="log", ylim=(0.8 * lowest, 1.5 * top))
    else:
        axes.set(xscale="log", ylim=(0, 1.15 * max(reached, top)))
    if found.reach is not None and found.reach < x.max():
        label = f"beyond the unfolding's {found.reach} spacings"
        shade = {"color": style.MUTED, "alpha": 0.25, "lw": 0, "zorder": 0, "label": label}
        axes.axvspan(found.reach, float(x.max()), **shade)
    return style.finish(axes, xlim=(grid[0], grid[-1]), xlabel=xlabel, ylabel=ylabel)


def p_values(found: Mapping[str, Sequence[Values]], title: str = "", *, ax: Any = None) -> Figure:
    """Share of the p-values that lie below p, less p, for every cell of some groups.

    Args:
        found: Name of a group to the p-values of each of its cells.
        title: Above the picture.
        ax: Axes to draw into, one for each group; None for a new picture.

    Returns:
        The picture.
    """
    size = style.WIDTH, 1.15 * len(found) + 0.6
    options = {"size": size, "sharex": True, "sharey": True}
    picture, rows = style.panels(title, (len(found), 1), ax=ax, **options)
    for (axes,), (name, cells) in zip(rows, found.items(), strict=True):
        count = min(len(values) for values in cells)
        p = np.linspace(0, 1, 201)
        spread = 1.96 * np.sqrt(p * (1 - p) / count)
        style.draw_band(axes, p, -spread, spread)
        for values in cells:
            share = np.searchsorted(np.sort(values), p, side="right") / len(values)
            axes.plot(p, share - p, color=style.INK, lw=0.6, alpha=0.7)
        axes.axhline(0, color=style.RED, lw=0.8)
        counted = f"{len(cells)} cell" + "s" * (len(cells) != 1)
        axes.set_title(f"{name}: {counted}", fontsize="small", loc="left")
        style.bare(axes, ylabel="F(p) - p")
    rows[-1][0].set(xlim=(0, 1), xlabel="p")
    picture.align_ylabels()
    return picture


def staircase(unfolded: Any, spectrum: int = 0, title: str = "", *, ax: Any = None) -> Figure:
    """N(λ) with the unfolding curve through (λ_i, ξ_i), and below N - N̄ at the levels.

    At a level N counts half of its step. The λ axis is logarithmic, on both sides of zero where
    there are levels on both, if the levels span many decades.

    Args:
        unfolded: A :class:`hessrmt.levels.analysis.Unfolded`.
        spectrum: Position of the spectrum in ``unfolded.levels``.
        title: Above the picture.
        ax: Two axes to draw into; None for a new picture.

    Returns:
        The picture.

    Raises:
        DataError: If there is no such spectrum, or it only served as pool for the others.
    """
    count = len(unfolded.levels)
    if not -count <= spectrum < count:
        raise DataError(f"there is no spectrum {spectrum}; there are {count}, from 0")
    heights, levels = unfolded.levels[spectrum], unfolded.selection.levels[spectrum]
    if heights is None:
        usable = next(i for i, found in enumerate(unfolded.levels) if found is not None)
        raise DataError(
            f"spectrum {spectrum} was not unfolded, it served as pool only; try {usable}"
        )
    steps = np.arange(len(levels))
    options = {"size": (style.WIDTH, 5.4), "sharex": True, "height_ratios": [2.2, 1]}
    picture, ((upper,), (lower,)) = style.panels(title, (2, 1), ax=ax, **options)
    name = f"N(λ), {len(levels):,} levels of spectrum {spectrum % count} of {count}"
    upper.step(levels, steps + 1, where="post", color=style.INK, lw=1.4, label=name)
    upper.plot(levels, heights, color=style.RED, lw=1.0, label=f"N̄(λ): {unfolded.words}")
    top = 1.05 * max(len(levels), float(np.nanmax(heights)))
    lower.axhline(0, color=style.RED, lw=0.8)
    lower.plot(levels, steps + 0.5 - heights, color=style.INK, lw=0.8)
    _levels_axis(lower, levels)
    style.finish(upper, ylabel="levels up to λ", ylim=(0, top))
    style.bare(lower, xlabel="λ", ylabel="N - N̄")
    picture.align_ylabels()
    return picture


def _levels_axis(axes: Axes, levels: Values) -> None:
    sizes = np.abs(levels)
    if sizes.max() <= _WIDE * np.median(sizes):
        return
    if levels[0] > 0:
        axes.set_xscale("log")
        return
    low, high = np.log10(np.quantile(sizes[sizes > 0], 0.01)), np.log10(sizes.max())
    axes.set_xscale("symlog", linthresh=10.0 ** np.floor(low))
    step = int(np.ceil((high - low) / _TICKS))
    # none so close to the linear part that its label meets that of zero
    powers = 10.0 ** np.arange(np.floor(high), np.floor(low) + step / 2 - 1, -step)
    axes.set_xticks([*-powers, 0, *powers[::-1]])
    axes.set_xticks([], minor=True)
    axes.set_xlim(1.5 * min(levels[0], 0), 1.5 * max(levels[-1], 0))


def spectral_density(
    found: Any, title: str = "", *, ax: Any = None, semicircle: bool = True
) -> Figure:
    """Density of λ on a logarithmic axis, a panel for each label.

    Where the bins are not equally wide, the axis is linear around zero and logarithmic further out.

    Args:
        found: A :class:`hessrmt.levels.histograms.DensityHistogram`, or a dictionary of labels to
            them.
        title: Above the picture.
        ax: Axes to draw into, as many as there are labels; None for a new picture.
        semicircle: Whether to draw the semicircle of the same mean and variance.

    Returns:
        The picture; a panel says how many levels are not drawn.

    Source: Baskerville, Granziol and Keating (2022), Fig. 1.
    """
    found = style.by_label(found, "all spectra")
    picture, panels = _label_panels(found, title, ax)
    for axes, (label, item) in zip(panels, found.items(), strict=True):
        left_out = f"\n{item.n_outside:,} not drawn" if item.n_outside else ""
        style.draw_area(axes, item.edges, item.density)
        name = f"{label}, {item.n_levels:,} levels{left_out}"
        _outline(axes, item.edges, item.density, item.error, style.INK, name)
        top, radius = item.density.max(), 2 * item.deviation
        if semicircle:
            x = item.mean + radius * np.sin(np.linspace(-np.pi / 2, np.pi / 2, 401))
            x = x[(x >= item.edges[0]) & (x <= item.edges[-1])]
            law = theory.semicircle(x - item.mean, radius)
            style.draw_law(axes, "semicircle", x, law, ", same mean and variance")
            top = max(top, 2 / (np.pi * radius))
        smallest = 1 / (item.n_levels * np.diff(item.edges).max())  # one level in a bin
        axes.set(yscale="log", ylim=(smallest / 2, 3 * top))
        _even_bins(axes, item.edges)
        style.finish(axes, ylabel="density of λ", xlabel="λ")
    return picture


def _even_bins(axes: Axes, edges: Values) -> None:
    """An axis on which the bins are equally wide, and ticks at decades of both signs."""
    widths = np.diff(edges)
    if widths.max() < 2 * widths.min():
        return
    # of edges s·sinh(u) at equal steps h of u, the neighbours of one add up to 2cosh(h) times it
    inner = edges[1:-1]
    at = int(np.argmax(np.abs(inner)))
    ratio = (edges[at] + edges[at + 2]) / inner[at]
    step = np.arccosh(max(ratio / 2, 1 + 1e-12))
    scale = float(widths.min() / step)
    axes.set_xscale("asinh", linear_width=scale)
    first = int(np.ceil(np.log10(scale)))
    last = int(np.floor(np.log10(np.abs(edges[[0, -1]]).max())))
    sides = 2 if edges[0] < 0 < edges[-1] else 1
    every = -(-(last - first + 1) // (2 * _TICKS // sides))
    powers = 10.0 ** np.arange(last, first - 1, -every)
    places = np.concatenate([-powers, [0.0], powers[::-1]])
    low, high = edges[0] - scale / 5, edges[-1] + scale / 5
    axes.set_xticks(places[(places >= low) & (places <= high)])
    axes.set_xlim(low, high)
    axes.set_xticks([], minor=True)
    axes.xaxis.set_major_formatter(FuncFormatter(_signed_power))


def _signed_power(value: float, _: Any) -> str:
    power = round(np.log10(abs(value))) if value else 0
    return f"${'-' if value < 0 else ''}10^{{{power}}}$" if value else "0"


def density_per_decade(found: Any, title: str = "", *, ax: Any = None) -> Figure:
    """Levels of one spectrum in each decade of |λ|, negative and positive ones apart.

    Args:
        found: A :class:`hessrmt.levels.histograms.DecadeHistogram`, or a dictionary of labels to
            them, all with one set of bins.
        title: Above the picture.
        ax: Axes to draw into, as many as there are labels; None for a new picture.

    Returns:
        The picture: a panel for each label, all with one axis.
    """
    found = style.by_label(found, "all spectra")
    picture, panels = _label_panels(found, title, ax, sharex=True)
    colours = {"λ > 0": style.POSITIVE, "λ < 0": style.NEGATIVE}
    for axes, (label, item) in zip(panels, found.items(), strict=True):
        for side, (number, density, error) in item.sides.items():
            name = f"{label}, {number:,} with {side}"
            _outline(axes, item.edges, density, error, colours[side], name)
        if item.n_zeros:
            axes.plot([], [], alpha=0, label=f"exact zeros, not drawn: {item.n_zeros:,}")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=9, integer=True))
        style.log_decades(axes, item.edges)
        style.finish(axes, ylim=(0, None), ylabel="levels per decade")
    panels[-1].set_xlabel("|λ|")
    return picture


def _label_panels(
    found: Mapping[str, Any], title: str, ax: Any, **sharing: bool
) -> tuple[Figure, Any]:
    if not 1 <= len(found) <= _MOST_PANELS:
        raise DataError(f"got {len(found)} sets of levels; expected 1 to {_MOST_PANELS}")
    size = style.SIZE if len(found) == 1 else (style.WIDTH, _PANEL)
    return style.panels_for(len(found), title, size, 1, ax=ax, **sharing)


def _outline(
    axes: Axes, edges: Values, density: Values, error: Values, colour: str, label: str
) -> None:
    """An outline with a band of one standard error."""
    axes.stairs(density, edges, color=colour, lw=1.3, label=label, zorder=2)
    if np.isfinite(error).any():
        band = {"fill": True, "color": colour, "alpha": style.BAND, "lw": 0}
        axes.stairs(density + error, edges, baseline=np.maximum(density - error, 0), **band)
