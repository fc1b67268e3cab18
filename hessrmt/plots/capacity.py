"""Spectra of weight matrices with their fits, exponents of a network, accuracies of a series."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from hessrmt import theory
from hessrmt.errors import DataError
from hessrmt.plots import style
from hessrmt.plots.files import Drawn, draw_each

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from jaxtyping import Float64
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    Values = Float64[np.ndarray, " k"]

_TAIL, _BULK = style.RED, style.BLUE
_MARK = {"color": _TAIL, "lw": 0.9, "ls": (0, (3, 2))}

_METRICS = {
    "alpha_hat": "α̂ = Σ α ln λ_max",
    "alpha_weighted": "⟨α log₁₀ λ_max⟩, weightwatcher's",
    "mean_alpha": "⟨α⟩",
    "mean_log_norm": "⟨ln ‖W‖_F⟩",
}

_PANEL = 2.4
_MOST_PANELS = 16


def draw_layers(report: Any, folder: Path, ending: str = "png") -> list[Drawn]:
    """A picture of every layer's spectrum, ``layer-NAME``, and one of all exponents, ``alpha``.

    Args:
        report: A :class:`hessrmt.capacity.report.CapacityReport`.
        folder: Where; made if it doesn't exist.
        ending: Of the files.

    Returns:
        For each picture its file, or the reason why there is none.
    """
    pictures = {"alpha": partial(alpha_histogram, report)}
    for layer in report.analyzed:
        pictures[_file_name(f"layer-{layer.name}")] = partial(layer_density, layer)
    return draw_each(pictures, folder, ending)


def draw_series(
    reports: Mapping[str, Any],
    accuracies: Mapping[str, Sequence[float]],
    correlations: Sequence[Any],
    folder: Path,
    ending: str = "png",
) -> list[Drawn]:
    """Exponents of several networks, ``alpha``, and each accuracy, ``against-NAME``.

    Args:
        reports: What to call the networks to their reports.
        accuracies: Name to one value for each network.
        correlations: Of every metric with every accuracy, as for :func:`against`.
        folder: Where; made if it doesn't exist.
        ending: Of the files.

    Returns:
        For each picture its file, or the reason why there is none.
    """
    pictures = {"alpha": partial(alpha_histogram, reports)}
    for name, values in accuracies.items():
        of = [item for item in correlations if item.accuracy == name]
        pictures[_file_name(f"against-{name}")] = partial(against, reports, values, of)
    return draw_each(pictures, folder, ending)


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name)


def layer_density(layer: Any, title: str = "", *, ax: Any = None) -> Figure:
    """Density of the eigenvalues of a layer, on logarithmic axes, with tail and bulk.

    Of a layer of several matrices all eigenvalues are shown together; each tail is drawn with the
    density that it has in its own matrix.

    Args:
        layer: A :class:`hessrmt.capacity.report.Layer` that was analysed.
        title: Above the picture; by default the layer's name, kind and shape.
        ax: Axes to draw into; None for a new picture.

    Returns:
        The picture.

    Raises:
        DataError: If there are no two different eigenvalues above zero.

    Source: Martin and Mahoney (2019), eq. (1); Clauset, Shalizi and Newman, SIAM Rev. 51, 661
    (2009), Fig. 3.1.
    """
    shape = " × ".join(map(str, layer.shape))
    several = f", {layer.n_matrices} matrices" if layer.n_matrices > 1 else ""
    values = np.concatenate([*(part.eigenvalues for part in layer.matrices), []])
    values = values[values > 0]
    if len(values) < 2 or values.min() == values.max():
        raise DataError(f"{layer.name}: fewer than two different eigenvalues above zero")
    title = title or f"{layer.name}: {layer.kind}, {shape}{several}"
    axes = style.single(title, ax)
    bins = int(np.clip(3 * len(values) ** 0.5, 8, 120))
    edges = np.geomspace(values.min() * (1 - 1e-12), values.max() * (1 + 1e-12), bins + 1)
    density = np.histogram(values, edges)[0] / (len(values) * np.diff(edges))
    low = density[density > 0].min() / 3
    count = f"{len(values):,} eigenvalues"
    style.draw_area(axes, edges, np.maximum(density, low), count, baseline=low)
    x = np.geomspace(edges[0], edges[-1], 600)
    _draw_bulk(axes, layer, x, len(values))
    _draw_tails(axes, layer, x)
    scales = {"xscale": "log", "yscale": "log", "ylim": (low, 3 * density.max())}
    return style.finish(axes, **scales, xlabel="λ, eigenvalues of WᵀW/N", ylabel="density")


def _draw_tails(axes: Axes, layer: Any, x: Values) -> None:
    fitted = [part for part in layer.matrices if part.fit_failed is None]
    if not fitted:
        axes.plot([], [], alpha=0, label=f"no power law: {layer.fit_failed}")
    alone = len(fitted) == 1
    what = "power law, α" if alone else f"{len(fitted)} power laws, ⟨α⟩"
    label: str | None = f"{what} = {layer.alpha:.2f} ± {layer.sigma:.2f}"
    for part in fitted:
        law = theory.power_law(x, part.alpha, part.x_min, part.x_max)
        law = law * part.n_tail / np.count_nonzero(part.eigenvalues > 0)
        seen = np.where(law > 0, law, np.nan)
        axes.plot(x, seen, color=_TAIL, lw=1.8 if alone else 0.9, label=label, zorder=4)
        look = {"alpha": max(0.25, 1 / len(fitted)), "label": label and "$x_{min}$", "zorder": 3}
        axes.axvline(part.x_min, **_MARK, **look)
        label = None


def _draw_bulk(axes: Axes, layer: Any, x: Values, n: int) -> None:
    fitted = [part for part in layer.matrices if part.mp_failed is None]
    total = np.zeros_like(x)
    for part in fitted:
        ratio = (np.sqrt(part.mp_edge / part.mp_variance) - 1) ** 2
        bulk = np.count_nonzero(part.eigenvalues > 0) - (part.spikes or 0)
        law = theory.marchenko_pastur(x, ratio, part.mp_variance)
        total += np.where(np.isfinite(law), law, 0.0) * bulk / n
    if fitted:
        look = {"color": _BULK, "ls": style.DOT_DASHED, "lw": 1.4, "zorder": 3}
        label = f"Marchenko-Pastur, {layer.spikes} spikes"
        axes.plot(x, np.where(total > 0, total, np.nan), label=label, **look)


def alpha_histogram(reports: Any, title: str = "", *, ax: Any = None) -> Figure:
    """Exponents of all spectra, a panel for each network.

    Args:
        reports: A :class:`hessrmt.capacity.report.CapacityReport`, what to call several networks to
            theirs, or a :class:`hessrmt.runs.capacity.Series`.
        title: Above the picture.
        ax: Axes to draw into, one for each network; None for a new picture.

    Returns:
        The picture. Dashes mark 2 and 5, between which Martin and Mahoney find trained networks.

    Raises:
        DataError: If no network has an exponent, or there are too many for one picture.

    Source: Martin and Mahoney (2019), Fig. 1a.
    """
    if hasattr(reports, "networks"):
        reports = dict(zip(reports.labels, reports.networks, strict=True))
    reports = style.by_label(reports, getattr(reports, "source", ""))
    if len(reports) > _MOST_PANELS:
        raise DataError(f"{len(reports)} networks; one picture holds {_MOST_PANELS}")
    exponents = {}
    for label, report in reports.items():
        found = np.array([part.alpha for layer in report.layers for part in layer.matrices])
        exponents[label] = found[np.isfinite(found)]
    every = np.concatenate([*exponents.values(), []])
    if not len(every):
        raise DataError("no layer has a power law")
    top = float(max(np.quantile(every, 0.98), 6.0))
    edges = np.linspace(1, top, int(np.clip(8 * (len(every) / len(exponents)) ** 0.5, 16, 80)) + 1)
    size = style.SIZE if len(exponents) == 1 else (style.WIDTH, _PANEL)
    picture, panels = style.panels_for(len(exponents), title, size, 1, ax=ax, sharex=True)
    for axes, (label, found) in zip(panels, exponents.items(), strict=True):
        above = int(np.count_nonzero(found > top))
        name = f"{label}: {len(found)}" + (f", {above} above {top:.3g}" if above else "")
        style.draw_area(axes, edges, np.histogram(found, edges)[0], name)
        if np.isfinite(mean := reports[label].mean_alpha):
            axes.axvline(mean, color=style.INK, lw=1.3, label=f"mean of the layers {mean:.2f}")
        axes.axvline(2, label="2 and 5", **_MARK)
        axes.axvline(5, **_MARK)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        style.finish(axes, ylabel="spectra")
    panels[-1].set_xlabel("α")
    return picture


def against(
    reports: Mapping[str, Any],
    accuracy: Sequence[float],
    correlations: Sequence[Any],
    title: str = "",
    *,
    ax: Any = None,
) -> Figure:
    """An accuracy against each metric, a point for each network.

    Args:
        reports: What to call the networks to their reports.
        accuracy: One value for each; networks without one are left out.
        correlations: A :class:`hessrmt.capacity.report.Correlation` of this accuracy with each
            metric: a panel each.
        title: Above the picture.
        ax: Axes to draw into, one for each correlation; None for a new picture.

    Returns:
        The picture.

    Raises:
        DataError: If no metric has a correlation.

    Source: Martin and Mahoney (2019), Fig. 2.
    """
    if not correlations:
        raise DataError("nothing to compare: no correlations")
    picture, panels = style.panels_for(len(correlations), title, (5.2, 3.7), 2, ax=ax)
    every = np.asarray(accuracy, dtype=np.float64)
    for axes, item in zip(panels, correlations, strict=True):
        metric = np.array([getattr(report, item.metric) for report in reports.values()])
        seen = np.isfinite(metric) & np.isfinite(every)
        x, y = metric[seen], every[seen]
        axes.plot(x, y, "o", color=_BULK, ms=5, zorder=3)
        names = [name for name, s in zip(reports, seen, strict=True) if s]
        # below where the next point to the right is close above
        near = (np.abs(x - x[:, None]) < 0.15 * np.ptp(x)) & (y > y[:, None])
        near &= y - y[:, None] < 0.12 * np.ptp(y)
        style.name_points(axes, x, y, names, [(0, -11 if n else 5) for n in near.any(axis=1)])
        if item.failed is None:
            ends = np.array([x.min(), x.max()])
            axes.plot(ends, item.intercept + item.slope * ends, color=_TAIL, lw=1.2)
        words = item.failed or (
            f"slope {item.slope:.3g}, R² {item.r_squared:.2f}, p of ρ {item.spearman_p:.2g}\n"
            f"ρ {_with_interval(item, 'spearman')}, τ {_with_interval(item, 'kendall')}"
        )
        axes.set_title(words, fontsize=8.5, loc="left")
        axes.margins(x=0.16, y=0.12)
        style.bare(axes, xlabel=_METRICS.get(item.metric, item.metric), ylabel=item.accuracy)
    return picture


def _with_interval(item: Any, name: str) -> str:
    low, high = getattr(item, f"{name}_interval")
    known = f" [{low:+.2f}, {high:+.2f}]" if np.isfinite(low) else ""
    return f"{getattr(item, name):+.2f}{known}"
