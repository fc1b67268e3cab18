"""Which eigenvalues are real: |λ| against index with the noise floor; a density with its ends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.ticker import FuncFormatter, MaxNLocator

from hessrmt.errors import DataError
from hessrmt.plots import style
from hessrmt.records import PAPER_CUTOFF_SPACINGS, Spectrum

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NOISE, _FLOOR, _CUTOFF = style.MUTED, style.RED, "#444444"
_OF_NETWORKS = tuple(colour for colour in style.COLOURS if colour != _FLOOR)
_ALTERNATING: tuple[style.Dashes, ...] = ("-", style.DASHED, style.DOT_DASHED, ":")

_LOWEST = 0.03
"""Eigenvalues per decade where the picture of a density ends below."""

_SHARE = 1e-6
"""Of the highest share of the eigenvalues, where the picture of shares ends below."""

_WIDE = 100
"""Largest over smallest magnitude from which eigenvalues are drawn on a logarithmic axis."""

_EDGES_AT = 0.25
"""Height of the eigenvalues at the ends of a spectrum, in eigenvalues per decade."""


def certification(
    spectra: Spectrum | Sequence[Spectrum] | Mapping[str, Any],
    title: str = "",
    *,
    ax: Any = None,
    compare: bool = False,
) -> Figure:
    """Magnitudes of all nonzero eigenvalues in descending order, one line for each spectrum.

    Args:
        spectra: One spectrum; several of one network, which share a colour; or what to call
            several networks to theirs.
        title: Drawn above the axes.
        ax: Axes to draw into; None for a new figure.
        compare: Whether to show the cutoff of 1e-20 that such spectra were published with.

    Returns:
        The figure; save it with ``figure.savefig``.

    Raises:
        DataError: If there is no spectrum.

    Source of the cutoff: Baskerville, Granziol and Keating (2022).
    """
    groups = spectra if isinstance(spectra, Mapping) else {"": spectra}
    groups = {k: [v] if isinstance(v, Spectrum) else list(v) for k, v in groups.items()}
    if not any(map(len, groups.values())):
        raise DataError("there is no spectrum to draw; continue the run with --resume")
    axes = style.single(title, ax, (style.WIDTH, 4.4))
    sizes, several = [], len(groups) > 1
    for place, (name, group) in enumerate(groups.items()):
        dashes = _ALTERNATING[place % len(_ALTERNATING)]
        colour = _OF_NETWORKS[place % len(_OF_NETWORKS)]
        for item in group:
            size = np.sort(np.abs(item.eigenvalues[item.eigenvalues != 0]))[::-1]
            index, real = np.arange(1, len(size) + 1), size > item.noise_floor
            axes.plot(index[~real], size[~real], color=_NOISE, lw=1, ls=dashes)
            axes.plot(index[real], size[real], color=colour, lw=1.6, ls=dashes)
            sizes.append(size)
        label = f"{name}, " * bool(name) + f"certified: {_range([item.rank for item in group])}"
        if several and group:  # each has a floor of its own
            own = float(np.median([item.noise_floor for item in group]))
            axes.axhline(own, color=colour, ls="--", lw=0.8)
            label += f", floor {own:.1e}"
        axes.plot([], [], color=colour, lw=1.6, ls=dashes, label=label)
    spectra = [item for group in groups.values() for item in group]
    floor = float(np.median([item.noise_floor for item in spectra]))
    if not several:
        axes.axhline(floor, color=_FLOOR, ls="--", lw=1)
    noisy = any(item.count_above(0) > item.rank for item in spectra)
    if compare:
        axes.axhline(PAPER_CUTOFF_SPACINGS, color=_CUTOFF, ls=":", lw=1)
        axes.plot([], [], color=_CUTOFF, ls=":", label="published cutoff 1e-20")
    if several:
        axes.plot([], [], color=style.INK, ls="--", lw=0.8, label="noise floor of each")
    else:
        axes.plot([], [], color=_FLOOR, ls="--", label=f"noise floor {floor:.1e}")
    if noisy:
        axes.plot([], [], color=_NOISE, label="indistinguishable from round-off")
    null = [int((item.eigenvalues == 0).sum()) for item in spectra]
    if any(null):
        axes.plot([], [], alpha=0, label=f"exact zeros, not drawn: {_range(null)}")
    of = _range([item.dimension for item in spectra])
    axes.set(yscale="log", xlabel=f"index by magnitude (of {of})", ylabel="|λ|")
    smallest = min((size[-1] for size in sizes if len(size)), default=floor)
    if floor > 0 and smallest < PAPER_CUTOFF_SPACINGS:
        axes.set_ylim(bottom=PAPER_CUTOFF_SPACINGS / 10)
    return style.finish(axes)


def _range(counts: list[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def lanczos_density(
    result: Any, title: str = "", *, ax: Any = None, scale: float | None = None
) -> Figure:
    """Eigenvalues per decade of |λ|, and per as long a piece of the axis where it is linear.

    A peak that is narrower than a decade can so be higher than the number of eigenvalues. Those
    at the ends are drawn above the density, each with its bound where that is wide enough to see.

    Args:
        result: A :class:`hessrmt.curvature.density.DensityResult`.
        title: Above the picture.
        ax: Axes to draw into; None for a new picture.
        scale: Where the axis turns from linear to logarithmic; if None, what the quadrature
            resolves.

    Returns:
        The picture.
    """
    quadrature = result.quadrature
    _require_probe(quadrature)
    name = f"{len(quadrature)} probes of {quadrature.nodes.shape[1]} steps"
    return _decades(
        quadrature.density(scale=scale), result.dimension, name, result.edges, title=title, ax=ax
    )


def quadrature(found: Any, title: str = "", *, ax: Any = None) -> Figure:
    """As :func:`lanczos_density`, of the quadratures alone.

    Args:
        found: A :class:`hessrmt.curvature.stochastic.Quadrature`.
        title: Above the picture.
        ax: Axes to draw into; None for a new picture.

    Returns:
        The picture.
    """
    _require_probe(found)
    name = f"{len(found)} probes of {found.nodes.shape[1]} steps"
    return _decades(found.density(), found.dimension, name, title=title, ax=ax)


def curve(found: Any, title: str = "", *, ax: Any = None) -> Figure:
    """A smooth density, as a share of the eigenvalues.

    Args:
        found: A :class:`hessrmt.curvature.stochastic.Curve`.
        title: Above the picture.
        ax: Axes to draw into; None for a new picture.

    Returns:
        The picture.
    """
    if np.isfinite(found.scale):
        return _decades(found, 1, "density", title=title, ax=ax)
    axes = style.single(title, ax, (style.WIDTH, 4.8))
    axes.plot(found.x, found.density, color=style.INK, lw=1.2, label="density", zorder=3)
    style.draw_band(axes, found.x, found.density - found.error, found.density + found.error)
    return style.finish(axes, xlabel="λ", ylabel="share of the eigenvalues per unit of λ")


def eigenvalues(found: Any, title: str = "", *, ax: Any = None) -> Figure:
    """Some eigenvalues in descending order, each with its bound where that is wide enough to see.

    Args:
        found: A result of ``hessrmt.eigsh`` or of ``hessrmt.extremal_eigenvalues``.
        title: Above the picture.
        ax: Axes to draw into; None for a new picture.

    Returns:
        The picture.

    Raises:
        DataError: If there is no eigenvalue.
    """
    if not len(found):
        raise DataError("there is no eigenvalue to draw")
    axes = style.single(title, ax)
    values, bounds = found.values[::-1], found.bounds[::-1]
    place, clear = np.arange(1, len(values) + 1), np.abs(values) > bounds
    groups = (
        (clear, style.BLUE, "o", "certainly not zero"),
        (~clear, style.MUTED, "s", "perhaps 0"),
    )
    for chosen, colour, marker, words in groups:
        if chosen.any():
            look = {"fmt": marker, "ms": 4.5, "color": colour, "capsize": 3, "elinewidth": 0.8}
            label = (
                f"{chosen.sum():,} eigenvalues, {words}, bounds up to {bounds[chosen].max():.1g}"
            )
            axes.errorbar(place[chosen], values[chosen], bounds[chosen], label=label, **look)
    low, high = float(np.abs(values).min()), float(np.abs(values).max())
    if low > 0 and high > _WIDE * low:
        axes.set_yscale("log" if (values > 0).all() else "asinh", **_asinh(values, low))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return style.finish(axes, xlabel=f"number, of {found.dimension:,}", ylabel="eigenvalue λ")


def _asinh(values: Any, low: float) -> dict[str, float]:
    return {} if (values > 0).all() else {"linear_width": low}


def _require_probe(quadrature: Any) -> None:
    if not len(quadrature):
        raise DataError("no probe of the density is done yet; continue it with --resume")


def _decades(
    curve: Any, dimension: int, name: str, edges: Any = None, *, title: str, ax: Any
) -> Figure:
    """Numbers, or for one eigenvalue shares, in each decade of |λ|."""
    axes = style.single(title, ax, (style.WIDTH, 4.8))
    count = dimension * np.log(10)
    y, error, u = curve.density * count, curve.error * count, np.arcsinh(curve.x / curve.scale)
    lowest = min(_LOWEST, float(y.max()) * _SHARE) if dimension == 1 else _LOWEST
    if y.max() > dimension > 1:
        name += f"\na peak above all {dimension:,} is narrower than a decade"
    axes.plot(u, y, color=style.INK, lw=1.2, label=name, zorder=3)
    style.draw_band(axes, u, np.maximum(y - error, lowest / 10), y + error)
    if edges is not None and len(edges):
        _edges(axes, edges, curve.scale)
    axes.set(yscale="log", ylim=(lowest, 6 * float(y.max())), xlim=(u[0], u[-1]))
    _both_sides(axes, curve)
    what = "share of the eigenvalues" if dimension == 1 else "eigenvalues"
    label = f"λ, linear up to ±{curve.scale:.1g}"
    return style.finish(axes, xlabel=label, ylabel=f"{what} per decade")


def _edges(axes: Axes, edges: Any, scale: float) -> None:
    """Ticks at one height, those of eigenvalues that are not resolved in another colour."""
    clear = edges.is_resolved
    groups = (clear, style.RED, "certified, resolved"), (~clear, style.MUTED, "not resolved")
    for chosen, colour, name in groups:
        if not chosen.any():
            continue
        values, bounds = edges.values[chosen], edges.bounds[chosen]
        ends = np.arcsinh(np.array([values - bounds, values, values + bounds]) / scale)
        label = f"{len(values):,} eigenvalues, {name}, bounds up to {bounds.max():.1g}"
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
