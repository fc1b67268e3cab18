"""Spectra of weight matrices with their fits, exponents of a network, accuracies of a series."""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.ticker import MaxNLocator

from hessrmt import theory
from hessrmt.errors import LevelsError
from hessrmt.plots import style
from hessrmt.plots.files import Drawn, draw_each

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from jaxtyping import Float64
    from matplotlib.axes import Axes

    from hessrmt.capacity.report import CapacityReport, Correlation, Layer, MatrixFit
    from hessrmt.plots.picture import Picture

    Grid = Float64[np.ndarray, " k"]

_TAIL, _BULK = style.LAWS["goe"].colour, style.LAWS["poisson"].colour

_METRICS = {
    "alpha_hat": "α̂ = Σ α ln λ_max",
    "alpha_weighted": "⟨α log₁₀ λ_max⟩, weightwatcher's",
    "mean_alpha": "⟨α⟩",
    "mean_log_norm": "⟨ln ‖W‖_F⟩",
}

_TRAINED = (2, 5)
"""Between these [M] finds the exponents of trained networks."""

_PANEL = 2.4
_MOST_PANELS = 16


def draw_layers(report: CapacityReport, folder: Path, kind: str) -> list[Drawn]:
    """A picture of every layer's spectrum, ``layer-NAME``, and one of all exponents, ``alpha``.

    Args:
        report: Of a network.
        folder: Where; it must exist.
        kind: Ending of the files.

    Returns:
        For each picture its file, or the reason why there is none.
    """
    pictures: dict[str, Callable[[], Picture]] = {
        "alpha": partial(alpha_histogram, {report.source: report})
    }
    for layer in report.analyzed:
        name = re.sub(r"[^\w.-]+", "_", f"layer-{layer.name}")
        pictures[name] = partial(layer_density, layer)
    return draw_each(pictures, folder, kind)


def draw_series(
    reports: Mapping[str, CapacityReport],
    accuracies: Mapping[str, Sequence[float]],
    correlations: Sequence[Correlation],
    folder: Path,
    kind: str,
) -> list[Drawn]:
    """Exponents of several networks, ``alpha``, and each accuracy, ``against-NAME``.

    Args:
        reports: What to call the networks to their reports.
        accuracies: Name to one value for each network.
        correlations: Of every metric with every accuracy.
        folder: Where; it must exist.
        kind: Ending of the files.

    Returns:
        For each picture its file, or the reason why there is none.
    """
    pictures: dict[str, Callable[[], Picture]] = {"alpha": partial(alpha_histogram, reports)}
    for name, values in accuracies.items():
        of = [item for item in correlations if item.accuracy == name]
        pictures[re.sub(r"[^\w.-]+", "_", f"against-{name}")] = partial(
            against, reports, values, of
        )
    return draw_each(pictures, folder, kind)


def layer_density(layer: Layer, title: str = "") -> Picture:
    """Density of the eigenvalues of a layer, on logarithmic axes, with tail and bulk.

    Of a layer of several matrices all eigenvalues are shown together; each tail is drawn with the
    density that it has in its own matrix.

    Args:
        layer: An analysed layer.
        title: Above the picture; by default the layer's name, kind and shape.

    Returns:
        The picture.

    Raises:
        LevelsError: If there are no two different eigenvalues above zero.

    Source: [M] eq. (1); Clauset, Shalizi, Newman, SIAM Rev. 51, 661 (2009), Fig. 3.1.
    """
    shape = " × ".join(map(str, layer.shape))
    several = f", {layer.n_matrices} matrices" if layer.n_matrices > 1 else ""
    picture = style.new_picture(title or f"{layer.name}: {layer.kind}, {shape}{several}")
    values = np.concatenate([part.eigenvalues for part in layer.matrices] or [np.empty(0)])
    values = values[values > 0]
    if len(values) < 2 or values.min() == values.max():
        raise LevelsError(f"{layer.name}: fewer than two different eigenvalues above zero")
    axes = picture.subplots()
    bins = int(np.clip(3 * len(values) ** 0.5, 8, 120))
    edges = np.geomspace(values.min() * (1 - 1e-12), values.max() * (1 + 1e-12), bins + 1)
    density = np.histogram(values, edges)[0] / (len(values) * np.diff(edges))
    low = density[density > 0].min() / 3
    axes.stairs(
        np.maximum(density, low),
        edges,
        baseline=low,
        fill=True,
        color=style.FILL,
        label=f"{len(values):,} eigenvalues",
    )
    x = np.geomspace(edges[0], edges[-1], 600)
    _draw_bulk(axes, layer, x, len(values))
    _draw_tail(axes, layer, x)
    axes.set(
        xscale="log",
        yscale="log",
        ylim=(low, 3 * density.max()),
        xlabel="λ, eigenvalues of WᵀW/N",
        ylabel="density",
    )
    style.bare(axes)
    style.legend(axes)
    return picture


def _draw_tail(axes: Axes, layer: Layer, x: Grid) -> None:
    fitted = [part for part in layer.matrices if part.fit_failed is None]
    if not fitted:
        axes.plot([], [], alpha=0, label=f"no power law: {layer.fit_failed}")
        return
    alone = len(fitted) == 1
    what = "power law, α" if alone else f"{len(fitted)} power laws, ⟨α⟩"
    label: str | None = f"{what} = {layer.alpha:.2f} ± {layer.sigma:.2f}"
    for part in fitted:
        law = _tail(part, x) * part.n_tail / np.count_nonzero(part.eigenvalues > 0)
        seen = np.where(law > 0, law, np.nan)
        axes.plot(x, seen, color=_TAIL, lw=1.8 if alone else 0.9, label=label, zorder=4)
        label = None
    for number, part in enumerate(fitted):
        axes.axvline(
            part.x_min,
            color=_TAIL,
            lw=0.9,
            ls=(0, (3, 2)),
            alpha=max(0.25, 1 / len(fitted)),
            label="$x_{min}$" if not number else None,
            zorder=3,
        )


def _tail(part: MatrixFit, x: Grid) -> Grid:
    """Normalised density of the fitted law, 0 outside of it."""
    slope = part.alpha - 1
    held = -np.expm1(-slope * np.log(part.x_max / part.x_min))
    inside = (x >= part.x_min) & (x <= part.x_max)
    return np.where(inside, slope / part.x_min * (x / part.x_min) ** -part.alpha / held, 0.0)


def _draw_bulk(axes: Axes, layer: Layer, x: Grid, n: int) -> None:
    fitted = [part for part in layer.matrices if part.mp_failed is None]
    if not fitted:
        return
    total = np.zeros_like(x)
    for part in fitted:
        ratio = (np.sqrt(part.mp_edge / part.mp_variance) - 1) ** 2
        bulk = np.count_nonzero(part.eigenvalues > 0) - (part.spikes or 0)
        law = theory.marchenko_pastur(x, ratio, part.mp_variance)
        total += np.where(np.isfinite(law), law, 0.0) * bulk / n
    colour, dashes = _BULK, style.LAWS["poisson"].dashes
    label = f"Marchenko-Pastur, {layer.spikes} spikes"
    seen = np.where(total > 0, total, np.nan)
    axes.plot(x, seen, color=colour, ls=dashes, lw=1.4, label=label, zorder=3)


def alpha_histogram(reports: Mapping[str, CapacityReport], title: str = "") -> Picture:
    """Exponents of all spectra, a panel for each network; [M] Fig. 1a.

    Args:
        reports: What to call the networks to their reports.
        title: Above the picture.

    Returns:
        The picture. The dashes mark 2 and 5, between which [M] finds trained networks.

    Raises:
        LevelsError: If no network has an exponent, or there are too many for one picture.
    """
    if len(reports) > _MOST_PANELS:
        raise LevelsError(f"{len(reports)} networks; one picture holds {_MOST_PANELS}")
    exponents = {
        label: np.array([p.alpha for layer in report.layers for p in layer.matrices])
        for label, report in reports.items()
    }
    exponents = {label: found[np.isfinite(found)] for label, found in exponents.items()}
    every = np.concatenate(list(exponents.values()) or [np.empty(0)])
    if not len(every):
        raise LevelsError("no layer has a power law")
    top = float(max(np.quantile(every, 0.98), 6.0))
    edges = np.linspace(1, top, int(np.clip(8 * (len(every) / len(exponents)) ** 0.5, 16, 80)) + 1)
    height = max(style.HEIGHT, _PANEL * len(exponents))
    picture = style.new_picture(title, height=height)
    panels = picture.subplots(len(exponents), squeeze=False, sharex=True)[:, 0]
    for axes, (label, found) in zip(panels, exponents.items(), strict=True):
        counts = np.histogram(found, edges)[0]
        above = int(np.count_nonzero(found > top))
        beyond = f", {above} above {top:.3g}" if above else ""
        axes.stairs(
            counts, edges, fill=True, color=style.FILL, label=f"{label}: {len(found)}{beyond}"
        )
        mean = reports[label].mean_alpha
        if np.isfinite(mean):
            axes.axvline(mean, color=style.INK, lw=1.3, label=f"mean of the layers {mean:.2f}")
        for mark in _TRAINED:
            what = "2 and 5" if mark == _TRAINED[0] else None
            axes.axvline(mark, color=_TAIL, lw=0.9, ls=(0, (3, 2)), label=what)
        axes.set_ylabel("spectra")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        style.bare(axes)
        style.legend(axes)
    panels[-1].set_xlabel("α")
    return picture


def against(
    reports: Mapping[str, CapacityReport],
    accuracy: Sequence[float],
    correlations: Sequence[Correlation],
    title: str = "",
) -> Picture:
    """An accuracy against each metric, a point for each network; [M] Fig. 2.

    Args:
        reports: What to call the networks to their reports.
        accuracy: One value for each; networks without one are left out.
        correlations: Of this accuracy with each metric: a panel each.
        title: Above the picture.

    Returns:
        The picture.

    Raises:
        LevelsError: If no metric has a correlation.
    """
    if not correlations:
        raise LevelsError("nothing to compare: no correlations")
    columns = min(2, len(correlations))
    rows = -(-len(correlations) // columns)
    picture = style.new_picture(title, width=5.2 * columns, height=3.7 * rows)
    panels = picture.subplots(rows, columns, squeeze=False).ravel()
    y = np.asarray(accuracy, dtype=np.float64)
    for axes, item in zip(panels, correlations, strict=False):
        x = np.array([getattr(report, item.metric) for report in reports.values()])
        seen = np.isfinite(x) & np.isfinite(y)
        axes.plot(x[seen], y[seen], "o", color=_BULK, ms=5, zorder=3)
        _name_points(axes, x[seen], y[seen], [n for n, s in zip(reports, seen, strict=True) if s])
        if item.failed is None:
            ends = np.array([x[seen].min(), x[seen].max()])
            text = (
                f"slope {item.slope:.3g}, R² {item.r_squared:.2f}, τ {item.kendall:+.2f} "
                f"(p {item.kendall_p:.2g}), ρ {item.spearman:+.2f}"
            )
            axes.plot(ends, item.intercept + item.slope * ends, color=_TAIL, lw=1.2)
        else:
            text = item.failed
        axes.set_title(text, fontsize=8.5, loc="left")
        axes.set(xlabel=_METRICS.get(item.metric, item.metric), ylabel=item.accuracy)
        axes.margins(x=0.16, y=0.12)
        style.bare(axes)
    for axes in panels[len(correlations) :]:
        axes.set_axis_off()
    return picture


def _name_points(axes: Axes, x: Grid, y: Grid, names: Sequence[str]) -> None:
    """Names above the points; below them where the next point to the right is close above."""
    for i, name in enumerate(names):
        near = (np.abs(x - x[i]) < 0.15 * np.ptp(x)) & (y > y[i]) & (y - y[i] < 0.12 * np.ptp(y))
        axes.annotate(
            name,
            (x[i], y[i]),
            xytext=(0, -11 if near.any() else 5),
            textcoords="offset points",
            ha="center",
            fontsize=7.5,
            color=style.INK,
        )
