"""A density from stochastic Lanczos quadrature, with the certified levels at its ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.ticker import FuncFormatter

from hessrmt.plots import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from hessrmt.curvature.density import DensityResult
    from hessrmt.curvature.lanczos import EdgeLevels
    from hessrmt.curvature.stochastic import Curve
    from hessrmt.plots.picture import Picture

_FLOOR = 0.03
"""Of the share of one eigenvalue for each decade, where the picture ends below."""

_PER_DECADE = np.log(10)


def spectral_density(
    result: DensityResult, title: str = "", *, scale: float | None = None
) -> Picture:
    """Eigenvalues for each decade of |λ| on an axis that is linear around zero.

    Edge levels are drawn above the density, each with its bound where that is wide enough to see.

    Args:
        result: Of ``hessrmt density``.
        title: Above the picture.
        scale: Where the axis turns from linear to logarithmic; if None, what the quadrature
            resolves.

    Returns:
        The picture.
    """
    curve = result.quadrature.density(scale=scale)
    picture = style.new_picture(title, height=style.HEIGHT + 0.3)
    axes: Axes = picture.subplots()
    count = result.dimension * _PER_DECADE
    y, error = curve.density * count, curve.error * count
    u = np.arcsinh(curve.x / curve.scale)
    name = f"{len(result.quadrature)} probes of {result.quadrature.nodes.shape[1]} steps"
    axes.plot(u, y, color=style.INK, lw=1.2, label=name, zorder=3)
    bottom = _FLOOR
    if np.isfinite(error).any():
        axes.fill_between(
            u,
            np.maximum(y - error, bottom / 10),
            y + error,
            color=style.INK,
            alpha=style.BAND,
            lw=0,
            label=style.ONE_SIGMA,
            zorder=2,
        )
    top = 6 * float(y.max())
    axes.set(yscale="log", ylim=(bottom, top), xlim=(u[0], u[-1]))
    if result.edges is not None and len(result.edges):
        _levels(axes, result.edges, curve)
    _ticks(axes, curve)
    axes.set(xlabel="λ", ylabel="eigenvalues per decade")
    style.bare(axes)
    style.legend(axes)
    return picture


def _levels(axes: Axes, edges: EdgeLevels, curve: Curve) -> None:
    """Edge levels as ticks at the height of one eigenvalue, those that are not resolved apart."""
    height, clear = 0.25, edges.is_resolved
    groups = (
        (clear, style.LAWS["goe"].colour, "certified, resolved"),
        (~clear, style.MUTED, "not resolved"),
    )
    for chosen, colour, name in groups:
        if not chosen.any():
            continue
        values, bounds = edges.values[chosen], edges.bounds[chosen]
        left, middle, right = (
            np.arcsinh(part / curve.scale) for part in (values - bounds, values, values + bounds)
        )
        label = f"{len(values):,} levels, {name}, bounds up to {bounds.max():.1g}"
        axes.errorbar(
            middle,
            np.full(len(middle), height),
            xerr=[middle - left, right - middle],
            fmt="|",
            ms=11,
            mew=1.0,
            elinewidth=0.8,
            color=colour,
            label=label,
            zorder=4,
        )


def _ticks(axes: Axes, curve: Curve) -> None:
    """Decades on both sides of zero, as far as there is room for them."""
    low, high = curve.x[0], curve.x[-1]
    first = int(np.ceil(np.log10(curve.scale)))
    values = [0.0]
    for sign, end in ((-1, -low), (1, high)):
        if end > 10.0**first:
            decades = np.arange(first, int(np.floor(np.log10(end))) + 1)
            values += [sign * 10.0**decade for decade in decades]
    axes.set_xticks(np.arcsinh(np.sort(values) / curve.scale), [_power(v) for v in np.sort(values)])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))


def _power(value: float) -> str:
    if value == 0:
        return "0"
    sign = "-" if value < 0 else ""
    return f"${sign}10^{{{round(np.log10(abs(value)))}}}$"
