"""Which eigenvalues are real: |λ| against index with the noise floor; a density with its ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.ticker import FuncFormatter

from hessrmt.plots import style
from hessrmt.records import PAPER_CUTOFF_SPACINGS, Spectrum

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_CERTIFIED, _NOISE, _FLOOR, _CUTOFF = "#1f5fa8", style.MUTED, "#b3341d", "#444444"

_LOWEST = 0.03
"""Eigenvalues per decade where the picture of a density ends below."""

_EDGES_AT = 0.25
"""Height of the eigenvalues at the ends of a spectrum, in eigenvalues per decade."""


def certification(
    spectra: Spectrum | Sequence[Spectrum], title: str = "", *, ax: Any = None
) -> Figure:
    """Magnitudes of all nonzero eigenvalues in descending order, one line for each spectrum.

    Args:
        spectra: One spectrum or several.
        title: Drawn above the axes.
        ax: Axes to draw into; None for a new figure.

    Returns:
        The figure; save it with ``figure.savefig``.
    """
    spectra = [spectra] if isinstance(spectra, Spectrum) else spectra
    axes = style.single("", ax, (7.5, 4.4))
    sizes = [np.sort(np.abs(item.eigenvalues[item.eigenvalues != 0]))[::-1] for item in spectra]
    for item, size in zip(spectra, sizes, strict=True):
        index, real = np.arange(1, len(size) + 1), size > item.noise_floor
        axes.plot(index[~real], size[~real], color=_NOISE, lw=1)
        axes.plot(index[real], size[real], color=_CERTIFIED, lw=1.2)
    floor = float(np.median([item.noise_floor for item in spectra]))
    axes.axhline(floor, color=_FLOOR, ls="--", lw=1)
    noisy = any(item.count_above(0) > item.rank for item in spectra)
    if noisy:
        axes.axhline(PAPER_CUTOFF_SPACINGS, color=_CUTOFF, ls=":", lw=1)
        axes.plot([], [], color=_CUTOFF, ls=":", label="published cutoff 1e-20")
    axes.plot([], [], color=_CERTIFIED, label=f"certified: {_range([s.rank for s in spectra])}")
    axes.plot([], [], color=_FLOOR, ls="--", label=f"noise floor {floor:.1e}")
    if noisy:
        axes.plot([], [], color=_NOISE, label="indistinguishable from round-off")
    null = [int((item.eigenvalues == 0).sum()) for item in spectra]
    if any(null):
        axes.plot([], [], alpha=0, label=f"exact zeros, not drawn: {_range(null)}")
    dimension = spectra[0].dimension
    axes.set(yscale="log", xlabel=f"index by magnitude (of {dimension:,})", ylabel="|λ|")
    smallest = min((size[-1] for size in sizes if len(size)), default=floor)
    if floor > 0 and smallest < PAPER_CUTOFF_SPACINGS:
        axes.set_ylim(bottom=PAPER_CUTOFF_SPACINGS / 10)
    axes.set_title(title, loc="left", fontsize=10)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return axes.figure


def _range(counts: list[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def lanczos_density(
    result: Any, title: str = "", *, ax: Any = None, scale: float | None = None
) -> Figure:
    """Eigenvalues for each decade of |λ| on an axis that is linear around zero.

    Eigenvalues at the ends are drawn above the density, each with its bound where that is wide
    enough to see.

    Args:
        result: A :class:`hessrmt.curvature.density.DensityResult`.
        title: Above the picture.
        ax: Axes to draw into; None for a new picture.
        scale: Where the axis turns from linear to logarithmic; if None, what the quadrature
            resolves.

    Returns:
        The picture.
    """
    curve = result.quadrature.density(scale=scale)
    axes = style.single(title, ax, (style.WIDTH, 4.8))
    count = result.dimension * np.log(10)
    y, error, u = curve.density * count, curve.error * count, np.arcsinh(curve.x / curve.scale)
    name = f"{len(result.quadrature)} probes of {result.quadrature.nodes.shape[1]} steps"
    axes.plot(u, y, color=style.INK, lw=1.2, label=name, zorder=3)
    style.draw_band(axes, u, np.maximum(y - error, _LOWEST / 10), y + error)
    if result.edges is not None and len(result.edges):
        _edges(axes, result.edges, curve.scale)
    axes.set(yscale="log", ylim=(_LOWEST, 6 * float(y.max())), xlim=(u[0], u[-1]))
    _both_sides(axes, curve)
    return style.finish(axes, xlabel="λ", ylabel="eigenvalues per decade")


def _edges(axes: Axes, edges: Any, scale: float) -> None:
    """Ticks at one height, those of eigenvalues that are not resolved in another colour."""
    clear = edges.is_resolved
    groups = (clear, style.RED, "certified, resolved"), (~clear, style.MUTED, "not resolved")
    for chosen, colour, name in groups:
        if not chosen.any():
            continue
        values, bounds = edges.values[chosen], edges.bounds[chosen]
        ends = np.arcsinh(np.array([values - bounds, values, values + bounds]) / scale)
        label = f"{len(values):,} levels, {name}, bounds up to {bounds.max():.1g}"
        bars = {"xerr": np.abs(ends[::2] - ends[1]), "elinewidth": 0.8}
        look = {"fmt": "|", "ms": 11, "mew": 1.0, "color": colour, "label": label, "zorder": 4}
        axes.errorbar(ends[1], np.full(len(values), _EDGES_AT), **bars, **look)


def _both_sides(axes: Axes, curve: Any) -> None:
    """Decades on both sides of zero, as far as there is room for them."""
    ticks, first = {0.0: "0"}, int(np.ceil(np.log10(curve.scale)))
    for sign, mark, end in ((-1, "-", -curve.x[0]), (1, "", curve.x[-1])):
        for power in range(first, int(np.floor(np.log10(max(end, 1e-300)))) + 1):
            ticks[sign * 10.0**power] = f"${mark}10^{{{power}}}$"
    axes.set_xticks(np.arcsinh(np.divide(list(ticks), curve.scale)), list(ticks.values()))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
