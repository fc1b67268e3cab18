"""Spectra of weight matrices with their fits, exponents of a network, accuracies of a series."""

from __future__ import annotations

import itertools
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
    from collections.abc import Iterable, Sequence
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
_MOST_PANELS, _MOST_BOXES = 16, 40
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_LONGEST = 200
"""Bytes of a file's name, of which systems allow 255 with its ending and what a draft adds."""

_LABEL = 31
"""Characters of a network's name."""


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
        pictures[_file_name(f"layer-{layer.name}", pictures)] = partial(layer_density, layer)
    return draw_each(pictures, folder, ending)


def draw_series(
    reports: Mapping[str, Any],
    accuracies: Mapping[str, Sequence[float]],
    correlations: Sequence[Any],
    beside: Any,
    folder: Path,
    ending: str = "png",
) -> list[Drawn]:
    """Exponents of several networks, ``alpha``, ``alpha-networks``; accuracies, ``against-NAME``.

    Args:
        reports: What to call the networks to their reports.
        accuracies: Name to one value for each network.
        correlations: Of every metric with every accuracy, as for :func:`against`.
        beside: The networks layer by layer, for ``side-by-side``, or None.
        folder: Where; made if it doesn't exist.
        ending: Of the files.

    Returns:
        For each picture its file, or the reason why there is none.
    """
    pictures: dict[str, Any] = {"alpha": partial(alpha_histogram, reports)}
    pictures["alpha-networks"] = partial(alpha_quantiles, reports)
    if beside is not None:
        pictures["side-by-side"] = partial(side_by_side, beside)
    for name, values in accuracies.items():
        of = [item for item in correlations if item.accuracy == name]
        pictures[_file_name(f"against-{name}", pictures)] = partial(against, reports, values, of)
    return draw_each(pictures, folder, ending)


def _file_name(name: str, taken: Iterable[str]) -> str:
    """A name for a file, without its ending, that no other has on any file system."""
    plain = re.sub(r"[^\w.-]+", "_", name)
    plain = plain.encode()[:_LONGEST].decode(errors="ignore")
    known = {other.casefold() for other in taken}
    others = (f"{plain}-{number}" for number in itertools.count(2))
    return next(one for one in itertools.chain([plain], others) if one.casefold() not in known)


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
    limits = {"xlim": (edges[0], edges[-1]), "ylim": (low, 3 * density.max())}
    axes.set(xscale="log", yscale="log", **limits)
    for axis in (axes.xaxis, axes.yaxis):
        style.log_ticks(axis)
    return style.finish(axes, xlabel="λ, eigenvalues of WᵀW/N", ylabel="density")


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


def _exponents(reports: Any) -> tuple[Mapping[str, Any], dict[str, Values]]:
    """Networks by what they are called, and the exponents of all their spectra."""
    if hasattr(reports, "networks"):
        reports = dict(zip(reports.labels, reports.networks, strict=True))
    reports = style.by_label(reports, getattr(reports, "source", ""))
    exponents = {}
    for label, report in reports.items():
        found = np.array([part.alpha for layer in report.layers for part in layer.matrices])
        exponents[label] = found[np.isfinite(found)]
    if not any(map(len, exponents.values())):
        raise DataError("no layer has a power law")
    return reports, exponents


def alpha_histogram(reports: Any, title: str = "", *, ax: Any = None) -> Figure:
    """Histogram of the exponents α of all spectra.

    Each network has a panel of its own; more than 16 share one.

    Args:
        reports: A :class:`hessrmt.capacity.report.CapacityReport`, what to call several networks to
            theirs, or a :class:`hessrmt.runs.capacity.Series`.
        title: Above the picture.
        ax: Axes to draw into, one for each network, or a single pair for all of them in one panel;
            None for a new picture.

    Returns:
        The picture. Dashes mark 2 and 5, between which Martin and Mahoney find trained networks.

    Raises:
        DataError: If no network has an exponent.

    Source: Martin and Mahoney (2019), Fig. 1a.
    """
    reports, exponents = _exponents(reports)
    means = {label: report.mean_alpha for label, report in reports.items()}
    if len(exponents) > _MOST_PANELS or (len(exponents) > 1 and np.size(ax) == 1 and ax):
        label = f"{len(exponents)} networks"
        means = {label: float(np.nanmean([*means.values()]))}
        exponents = {label: np.concatenate([*exponents.values()])}
    every = np.concatenate([*exponents.values()])
    top = float(max(np.quantile(every, 0.98, method="higher"), 6.0))  # all, of fewer than 50
    edges = np.linspace(1, top, int(np.clip(3 * (len(every) / len(exponents)) ** 0.5, 15, 80)) + 1)
    size = style.SIZE if len(exponents) == 1 else (style.WIDTH, _PANEL)
    picture, panels = style.panels_for(len(exponents), title, size, 1, ax=ax, sharex=True)
    for axes, (label, found) in zip(panels, exponents.items(), strict=True):
        above = int(np.count_nonzero(found > top))
        name = f"{_shortened(label)}: {len(found):,} fits" + (
            f", {above:,} above {top:.3g}" if above else ""
        )
        style.draw_area(axes, edges, np.histogram(found, edges)[0], name)
        if np.isfinite(mean := means[label]):
            whose = "networks" if label not in reports else "layers"
            axes.axvline(mean, color=style.INK, lw=1.3, label=f"mean of the {whose} {mean:.2f}")
        axes.axvline(2, label="2 and 5, the usual range", **_MARK)
        axes.axvline(5, **_MARK)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        style.finish(axes, xlim=(1, top), ylabel="number of fits")
    panels[-1].set_xlabel("α")
    return picture


def alpha_quantiles(reports: Any, title: str = "", *, ax: Any = None) -> Figure:
    """Exponents of each network: a box for each of up to 40, bands along the series of more.

    Args:
        reports: As for :func:`alpha_histogram`, in the order of the series.
        title: Above the picture.
        ax: Axes to draw into; None for a new picture.

    Returns:
        The picture: median, quartiles, and 5 and 95 % of the exponents of a network's spectra.

    Raises:
        DataError: If no network has an exponent.

    Source: Martin and Mahoney (2019), Figs. 1b, 2 and 3, for the means of networks.
    """
    reports, exponents = _exponents(reports)
    found = {label: np.quantile(each, _QUANTILES) for label, each in exponents.items() if len(each)}
    means = np.array([reports[label].mean_alpha for label in found])
    places, quantiles = np.arange(1, len(found) + 1), np.array([*found.values()]).T
    if len(found) > _MOST_BOXES:
        axes = style.single(title, ax)
        for low, high, label, alpha in (
            (0, 4, "spectra: 5 to 95 %", 0.3),
            (1, 3, "spectra: quartiles", 0.6),
        ):
            look = {"color": _BULK, "alpha": alpha, "lw": 0, "label": label}
            axes.fill_between(places, quantiles[low], quantiles[high], **look)
        axes.plot(places, quantiles[2], color=style.INK, lw=1.4, label="spectra: median")
        axes.plot(places, means, ".", color=_TAIL, ms=4, label="mean of the layers")
        for mark in (2, 5):
            axes.axhline(mark, label="2 and 5" if mark == 2 else None, **_MARK)
        limits = {"xlim": (1, len(found)), "ylim": (1, None)}
        return style.finish(axes, xlabel="network, in the order given", ylabel="α", **limits)
    axes = style.single(title, ax, (style.WIDTH, 1.4 + 0.26 * len(found)))
    names = ("whislo", "q1", "med", "q3", "whishi")
    boxes = [dict(zip(names, column, strict=True)) | {"fliers": []} for column in quantiles.T]
    looks = {
        "boxprops": {"facecolor": style.FILL, "edgecolor": style.INK, "lw": 0.8},
        "medianprops": {"color": style.INK, "lw": 1.6},
        "whiskerprops": {"color": style.INK, "lw": 0.8},
        "capprops": {"color": style.INK, "lw": 0.8},
    }
    about = {"widths": 0.6, "patch_artist": True, "showfliers": False, "orientation": "horizontal"}
    axes.bxp(boxes, positions=places, **about, **looks)
    axes.plot(
        [], [], "s", color=style.FILL, mec=style.INK, ms=8, label="spectra: quartiles, 5 to 95 %"
    )
    axes.plot(means, places, "o", color=_TAIL, ms=4, zorder=4, label="mean of the layers")
    for mark in (2, 5):
        axes.axvline(mark, label="2 and 5" if mark == 2 else None, zorder=0, **_MARK)
    axes.set_yticks(places, [_shortened(label) for label in found])
    axes.invert_yaxis()
    style.finish(axes, xlabel="α", xlim=(1, None))
    axes.tick_params(axis="y", labelsize=8)
    return axes.figure


def _shortened(label: str) -> str:
    half = (_LABEL - 1) // 2
    return label if len(label) <= _LABEL else f"{label[:half]}…{label[-half:]}"


_LAYER_NUMBERS = {
    "alpha": ("α", "linear"),
    "lambda_max": ("λ_max", "log"),
    "log_frobenius": ("ln ‖W‖_F", "linear"),
    "log_alpha_norm": ("ln Σ λ^α", "linear"),
    "stable_rank": ("stable rank", "log"),
}
_SYMBOLS = "osD^vPX"


def side_by_side(found: Any, title: str = "", *, ax: Any = None) -> Figure:
    """Numbers of the layers of several networks over depth, a panel for each number.

    Args:
        found: A :class:`hessrmt.capacity.report.SideBySide`.
        title: Above the picture.
        ax: Axes to draw into, one for each number; None for a new picture.

    Returns:
        The picture.

    Source: Martin and Mahoney (2019), Fig. 4.
    """
    count = len(found.values)
    picture, panels = style.panels_for(count, title, (3.5, 2.3), 2, ax=ax, head=0.3)
    depth = np.arange(1, len(found.layers) + 1)
    for axes, (name, values) in zip(panels, found.values.items(), strict=True):
        words, scale = _LAYER_NUMBERS.get(name, (name, "linear"))
        for place, (network, each) in enumerate(zip(found.networks, values, strict=True)):
            colour = style.COLOURS[place % len(style.COLOURS)]
            mark = _SYMBOLS[place % len(_SYMBOLS)]
            seen = np.isfinite(each)
            look = {"color": colour, "marker": mark, "ms": 3.5, "lw": 0.9}
            axes.plot(depth[seen], each[seen], label=_shortened(network), **look)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        style.bare(axes, 8, yscale=scale, xlim=(0.5, len(depth) + 0.5))
        axes.set_xlabel("layer", fontsize=8)
        axes.set_title(words, fontsize=9, loc="left")
        if scale == "log" and np.any(values > 0):
            style.log_ticks(axes.yaxis, 5)
    style.legend_below(panels[0], min(3, len(found.networks)))
    return picture


_MEANS = {
    "test_error": "test error",
    "alpha": "⟨α⟩",
    "log_frobenius": "⟨ln ‖W‖_F⟩",
    "log_spectral": "⟨ln ‖W‖₂⟩",
    "stable_rank": "⟨stable rank⟩",
    "log_alpha_norm": "⟨ln Σ λ^α⟩",
    "entropy": "⟨entropy⟩",
}
_STRENGTHS = {"bits": "bits", "share": "share removed"}


def compression(
    panels: Mapping[str, tuple[float, Mapping[str, tuple[str, Values, Values]]]],
    title: str = "",
    *,
    ax: Any = None,
) -> Figure:
    """Metrics of one network against the strength of its compression, two panels a metric.

    Args:
        panels: Name of a metric to its value without compression, and by method the kind of its
            strength, ``bits`` or ``share``, (k,) strengths and (k,) values of the metric.
        title: Above the picture.
        ax: Axes to draw into, for each metric as many as there are kinds; None for a new picture.

    Returns:
        The picture; dashes mark the network without compression.
    """
    every = [method for _, methods in panels.values() for method in methods]
    methods = [*dict.fromkeys(every)]
    looks = {
        method: {"color": style.COLOURS[k % 7], "marker": _SYMBOLS[k % 7], "ms": 3.5, "lw": 0.9}
        for k, method in enumerate(methods)
    }
    kinds = [*dict.fromkeys(kind for _, of in panels.values() for kind, *_ in of.values())]
    shape = (len(panels), len(kinds))
    size = (3.5 * len(kinds), 1.55 * len(panels) + 0.4)
    picture, grid = style.panels(title, shape, ax=ax, size=size, sharex="col", sharey="row")
    for row, (name, (start, found)) in zip(grid, panels.items(), strict=True):
        for axes, kind in zip(row, kinds, strict=True):
            axes.axhline(start, color=style.MUTED, lw=1, ls=(0, (3, 2)))
            for method, (of, strengths, values) in found.items():
                if of == kind:
                    axes.plot(strengths, values, label=method, **looks[method])
            style.bare(axes, 8)
            axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
            if kind == "bits" and not axes.xaxis_inverted():
                axes.invert_xaxis()
        row[0].set_ylabel(_MEANS.get(name, name), fontsize=8)
    for axes, kind in zip(grid[-1], kinds, strict=True):
        axes.set_xlabel(_STRENGTHS[kind], fontsize=8)
    handles = {}
    for axes in grid[0]:
        handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    place = {"loc": "outside lower center", "ncols": 3, "fontsize": 9, "frameon": False}
    picture.legend(handles.values(), handles.keys(), **place)
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
