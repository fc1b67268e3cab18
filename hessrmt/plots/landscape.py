"""The loss along one or two eigenvectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from hessrmt.plots import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BEYOND = 4.0
"""Times the highest of the parabola: what lies above is not drawn."""

_CONTOURS = 14


def landscape(found: Any, title: str = "", *, ax: Any = None) -> Figure:
    """The loss and the parabola of its eigenvalues: curves, or contours of two directions.

    Args:
        found: A :class:`hessrmt.curvature.landscape.Landscape`.
        title: Above the picture.
        ax: Axes to draw into; None for a new picture.

    Returns:
        The picture.
    """
    axes = style.single(title, ax, (4.8, 4.4 if found.losses.ndim > 1 else 3.6))
    draw = _contours if found.losses.ndim > 1 else _curve
    draw(axes, found)
    return axes.figure


def _curve(axes: Axes, found: Any) -> None:
    (a,), highest = found.distances, _highest(found)
    shown = np.where(np.abs(found.losses) <= highest, found.losses, np.nan)
    axes.plot(a, shown, color=style.INK, lw=1.6, label="loss")
    axes.plot(a, found.parabola, color=style.RED, ls=style.DASHED, lw=1.3, label="parabola at θ")
    axes.plot(0, found.loss, color=style.INK, marker="o", ms=4)
    name = f"distance along v$_1$, λ$_1$ = {found.eigenvalues[0]:.4g}"
    style.finish(axes, xlabel=name, ylabel="loss")


def _contours(axes: Axes, found: Any) -> None:
    shown = np.where(np.abs(found.losses) <= _highest(found), found.losses, np.nan)
    x, y = found.distances
    known = shown[np.isfinite(shown)]
    levels = np.unique(np.quantile(known, np.linspace(0, 1, _CONTOURS)))
    if len(levels) > 1:
        drawn = axes.contourf(x, y, shown.T, levels=levels, cmap="cividis")
        axes.figure.colorbar(drawn, ax=axes, label="loss", format="%.3g")
        inner = np.unique(np.clip(levels[1:-1], found.parabola.min(), found.parabola.max()))
        look: dict[str, Any] = {"colors": "white", "linewidths": 0.8, "linestyles": "dashed"}
        axes.contour(x, y, found.parabola.T, levels=inner, **look)
        axes.plot([], [], color="#888888", ls="--", lw=0.8, label="parabola at θ, same contours")
    axes.plot(0, 0, color="#d62728", marker="+", ms=9, mew=1.8, ls="", label="θ")
    names = [
        f"distance along v$_{i + 1}$, λ$_{i + 1}$ = {value:.4g}"
        for i, value in enumerate(found.eigenvalues)
    ]
    style.finish(axes, xlabel=names[0], ylabel=names[1])


def _highest(found: Any) -> float:
    return _BEYOND * float(np.abs(found.parabola).max())
