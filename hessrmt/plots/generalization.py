"""Gradient flows of homogeneous networks; approximation errors of deep and shallow ones.

Source: Poggio, Banburski and Liao (PNAS 117, 30039, 2020), §2 and §3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from hessrmt.errors import DataError
from hessrmt.plots import style
from hessrmt.results import Result

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jaxtyping import Float64
    from matplotlib.figure import Figure

    from hessrmt.records import Spectrum

    Values = Float64[np.ndarray, " n"]

_DASHES = ("-", "--", "-.", ":")
_COLOURS = (style.RED, style.BLUE, style.GREEN, style.PINK)
_LINES = [{"color": colour, "ls": ls} for colour, ls in zip(_COLOURS, _DASHES, strict=True)]
"""Colour and dashes of one curve after the other."""

_KINDS = {"deep": {**_LINES[0], "marker": "o"}, "shallow": {**_LINES[1], "marker": "s"}}
_TIME = "log(1 + t)"

_MOST_SPREAD = 20.0
"""How far a bar may reach down, so that it ends on a logarithmic axis."""


def margin_growth(flow: Any, title: str = "", *, ax: Any = None) -> Figure:
    """Smallest normalised margin in time.

    Circles, with the sample's number, are where another sample becomes the nearest one.

    Args:
        flow: A :class:`hessrmt.generalization.flow.Flow` with separation.
        title: Above the picture.
        ax: Axes to draw into; None for a new picture.

    Returns:
        The picture.

    Raises:
        DataError: If the flow never separates the samples.

    Source: Poggio, Banburski and Liao (2020), Fig. 3.
    """
    first = flow.separated_from
    if first is None:
        raise DataError(
            "the flow never classifies all samples correctly: there is no margin to draw; let it "
            "run longer or give the network more units"
        )
    axes = style.single(title, ax)
    u, margin, support = flow.log_times[first:], flow.margin[first:], flow.support[first:]
    axes.plot(u, margin, color=style.INK, lw=1.4, label="smallest normalised margin")
    smooth = flow.smoothed_margin[first:]
    shown = smooth > 0
    label = "-log(B L)/ρ, which never falls"
    axes.plot(u[shown], smooth[shown], lw=1.2, label=label, **_LINES[1])
    changes = np.flatnonzero(np.diff(support)) + 1
    circles = {"facecolors": "none", "edgecolors": style.RED, "s": 36, "zorder": 4}
    axes.scatter(u[changes], margin[changes], label="another support vector", **circles)
    offset = {"xytext": (4, -11), "textcoords": "offset points", "fontsize": 8}
    for i in changes:
        axes.annotate(str(support[i]), (u[i], margin[i]), **offset)
    return style.finish(axes, xlabel=_TIME, ylabel="min y f(V; x)", ylim=(0, None))


def norms(flows: Mapping[str, Any], title: str = "", *, ax: Any = None) -> Figure:
    """ρ and the layers' ρ_k against log t, one panel each.

    Args:
        flows: Label to flow, up to four.
        title: Above the picture.
        ax: Two axes to draw into; None for a new picture.

    Returns:
        The picture.
    """
    picture, ((left, right),) = style.panels(title, (1, 2), ax=ax, size=(9.0, 4.0))
    for (label, flow), look in zip(flows.items(), _LINES, strict=False):
        left.plot(flow.log_times, flow.rho * flow.margin, label=label, lw=1.4, **look)
        right.plot(flow.log_times, flow.scales, lw=1.4, **look)
    end = max(float(flow.log_times[-1]) for flow in flows.values())
    left.plot([0, end], [0, end], color=style.MUTED, lw=0.9, label="log t")
    style.finish(left, xlabel=_TIME, ylabel="ρ · smallest margin")
    style.bare(right, xlabel=_TIME, ylabel="norm ρ_k of each layer")
    return picture


def distances(
    found: Mapping[str, tuple[Values, Values]], title: str = "", *, ax: Any = None
) -> Figure:
    """Distance of linear networks' directions from the maximum-margin direction.

    Args:
        found: Label to (T,) log(1 + t) and (T,) distances, up to four.
        title: Above the picture.
        ax: Axes to draw into; None for a new picture.

    Returns:
        The picture.
    """
    axes = style.single(title, ax)
    for (label, (times, distance)), look in zip(found.items(), _LINES, strict=False):
        later = times > 0
        axes.loglog(times[later], distance[later], lw=1.4, label=label, **look)
    guide = np.array([10.0, max(float(times[-1]) for times, _ in found.values())])
    axes.loglog(guide, 0.5 / guide, color=style.MUTED, lw=0.9, label="slope of 1/log t")
    axes.axhline(1e-3, color=style.MUTED, lw=0.9, ls=":")
    return style.finish(axes, xlabel=_TIME, ylabel="distance from the maximum-margin direction")


def curvature(
    flow: Any,
    indices: Sequence[int],
    weights: Sequence[Spectrum],
    directions: Sequence[Spectrum],
    title: str = "",
    *,
    ax: Any = None,
) -> Figure:
    """Certified eigenvalues of the Hessian in W and in V along a flow, and over the loss.

    Args:
        flow: The flow.
        indices: Saved times of the spectra.
        weights: Spectra of ``flow.problem(i)``.
        directions: Spectra of ``flow.normalized_problem(i)``.
        title: Above the picture.
        ax: Two axes to draw into; None for a new picture.

    Returns:
        The picture.
    """
    picture, (panels,) = style.panels(title, (1, 2), ax=ax, size=(9.0, 4.2))
    sides = zip(panels, (weights, directions), ("of W", "of V, ρ fixed"), strict=True)
    for axes, spectra, what in sides:
        for index, spectrum in zip(indices, spectra, strict=True):
            scaled = spectrum.resolved / flow.losses[index]
            for sign, colour, marker in ((1, style.POSITIVE, "."), (-1, style.NEGATIVE, "x")):
                part = np.abs(scaled[np.sign(scaled) == sign])
                place = np.full(len(part), flow.log_times[index])
                axes.semilogy(place, part, marker, color=colour, ms=3.5, lw=0)
        times, sizes = flow.log_times[list(indices)], [np.abs(s.eigenvalues).max() for s in spectra]
        axes.semilogy(times, sizes, color=style.INK, lw=1.2, label="largest |λ|, not divided by L")
        axes.plot([], [], ".", color=style.POSITIVE, label="λ/L > 0")
        axes.plot([], [], "x", color=style.NEGATIVE, ms=4, label="|λ|/L, λ < 0")
        style.bare(axes, xlabel=_TIME, ylabel=f"eigenvalues of the Hessian {what}")
    panels[0].legend(frameon=False, fontsize=8, loc="lower left")
    return picture


def approximation_errors(
    studies: Any, norm: str = "l2", title: str = "", *, ax: Any = None
) -> Figure:
    """Errors against units, a panel for each study.

    A point is the geometric mean over initialisations, a bar its standard error; the grey lines
    have the slopes of Poggio, Banburski and Liao (2020), Theorem 1.

    Args:
        studies: A :class:`hessrmt.generalization.approximation.ApproximationStudy`, or several.
        norm: ``"l2"`` or ``"sup"``.
        title: Above the picture.
        ax: Axes to draw into, one for each study; None for a new picture.

    Returns:
        The picture.
    """
    studies = [studies] if isinstance(studies, Result) else studies
    picture, row = style.panels_for(len(studies), title, (3.3, 3.8), 4, ax=ax)
    for axes, study in zip(row, studies, strict=True):
        for kind, look in _KINDS.items():
            exact = not study.has_power(kind)
            middle, error = study.mean(kind, norm)
            found = study.exponent(kind, norm)
            note = f" ± {found.error:.2f}" if np.isfinite(found.error) else ""
            label = kind if exact else f"{kind}: {found.exponent:.2f}{note}"
            low = np.minimum(error, middle * (1 - 1 / _MOST_SPREAD))
            axes.errorbar(study.units, middle, yerr=(low, error), label=label, ms=4, lw=1.3, **look)
            if exact:
                continue
            bound = 0.5 if kind == "deep" else 1 / study.inputs
            guide = middle[0] * (study.units / study.units[0]) ** -bound
            axes.plot(study.units, guide, color=style.MUTED, lw=0.8, ls=look["ls"])
        style.bare(axes, xscale="log", yscale="log", xlabel="units")
        axes.set_xticks(study.units, [f"{units:g}" for units in study.units])
        axes.minorticks_off()
        words = f"{study.constituent}, n = {study.inputs}, {study.activation}"
        axes.set_title(words, fontsize=9, loc="left")
        heading = "exponents" if any(map(study.has_power, _KINDS)) else ""
        axes.legend(fontsize=8, title=heading, title_fontsize=8, edgecolor="none", framealpha=0.85)
    what = "root mean square error" if norm == "l2" else "largest error"
    for axes in row[:: 4 if ax is None else len(row)]:
        axes.set_ylabel(f"{what} over standard deviation")
    return picture


def polynomial_errors(studies: Any, title: str = "", *, ax: Any = None) -> Figure:
    """Errors of random polynomials against the scale h of the units' weights.

    Args:
        studies: A :class:`hessrmt.generalization.polynomials.PolynomialStudy`, or several.
        title: Above the picture.
        ax: Two axes to draw into, for shallow and deep networks; None for a new picture.

    Returns:
        The picture: solid with the theorem's units, dotted with one less.
    """
    studies = [studies] if isinstance(studies, Result) else studies
    picture, (row,) = style.panels(title, (1, 2), ax=ax, size=(2 * 3.3, 4.2), sharey=True)
    for axes, kind in zip(row, ("shallow", "deep"), strict=True):
        part = [study for study in studies if study.kind == kind]
        for study, colour, marker in zip(part, style.COLOURS * 3, "os^vDPX" * 3, strict=False):
            words = f"n = {study.inputs}, k = {study.degree}, {study.units:,} {study.activation}"
            look = {"color": colour, "marker": marker, "ms": 3.5}
            for errors, ls, label in ((study.errors, "-", words), (study.fewer, ":", None)):
                middle = np.exp(np.log(errors).mean(axis=1))
                axes.loglog(study.scales, middle, lw=1.2, ls=ls, label=label, **look)
        if part:
            guide = np.array([part[0].scales.min(), part[0].scales.max()])
            start = np.exp(np.log(part[0].errors).mean(axis=1)).min() / 3
            axes.loglog(guide, start * guide / guide[0], color=style.MUTED, lw=0.9)
            style.legend_above(axes, fontsize=8)
        style.bare(axes, xlabel=f"h ({kind})")
    row[0].set_ylabel("root mean square error over\nstandard deviation")
    return picture


def square_errors(study: Any, title: str = "", *, ax: Any = None) -> Figure:
    """The square of the ReLU by deep and shallow networks of ReLUs.

    Args:
        study: A :class:`hessrmt.generalization.polynomials.SquareStudy`.
        title: Above the picture.
        ax: Axes to draw into; None for a new picture.

    Returns:
        The picture.
    """
    axes = style.single(title, ax, (3.3, 3.0))
    axes.semilogy(study.units, study.deep, label="deep", ms=4, lw=1.3, **_KINDS["deep"])
    axes.semilogy(study.units, study.shallow, label="shallow", ms=4, lw=1.3, **_KINDS["shallow"])
    note = "bound of all shallow ones"
    axes.semilogy(study.units, study.bound, color=style.MUTED, lw=0.9, ls="-.", label=note)
    style.bare(axes, xlabel="ReLUs", ylabel="largest error of (z₊)²")
    axes.legend(frameon=False, fontsize=8)
    return axes.figure


def residuals(
    found: Mapping[str, tuple[Any, Values, Values]], title: str = "", *, ax: Any = None
) -> Figure:
    """Residuals of eqs. 15 and 5 of Poggio, Banburski and Liao (2020) along flows.

    Args:
        found: Label to a flow and its (T,) residuals with the nearest sample alone and with all
            samples, up to four.
        title: Above the picture.
        ax: Axes to draw into; None for a new picture.

    Returns:
        The picture.
    """
    axes = style.single(title, ax)
    for (label, (flow, one, every)), colour in zip(found.items(), _COLOURS, strict=False):
        later = slice(flow.separated_from, None)
        times = flow.log_times[later]
        axes.semilogy(times, one[later], lw=1.4, color=colour, label=f"{label}: eq. 15")
        axes.semilogy(times, every[later], lw=1.4, color=colour, ls="--", label=f"{label}: eq. 5")
    return style.finish(axes, xlabel=_TIME, ylabel="largest sine of V_k and its gradient")


def batch_norm_margins(flow: Any, title: str = "", *, ax: Any = None) -> Figure:
    """Margins of a network with batch normalisation in time.

    Args:
        flow: A :class:`hessrmt.generalization.batch_norm.BatchNormFlow`.
        title: Above the picture.
        ax: Axes to draw into; None for a new picture.

    Returns:
        The picture.
    """
    axes = style.single(title, ax, (3.3, 3.3))
    curves = {
        "over ‖γ‖ ‖W_K‖": flow.margin,
        "smoothed": np.where(flow.smoothed_margin > 0, flow.smoothed_margin, np.nan),
        "folded into the weights": flow.folded_margins.min(axis=1),
    }
    for (label, values), look in zip(curves.items(), _LINES, strict=False):
        axes.plot(flow.log_times, values, lw=1.3, label=label, **look)
    axes.axhline(0, color=style.MUTED, lw=0.8)
    style.legend_above(axes, fontsize=8)
    style.bare(axes, xlabel=_TIME, ylabel="smallest normalised margin")
    return axes.figure


def stationary_counts(sets: Any, title: str = "", *, ax: Any = None) -> Figure:
    """How often each flow ended in each minimum.

    Args:
        sets: A :class:`hessrmt.generalization.stationary.StationarySets`.
        title: Above the picture.
        ax: Axes to draw into; None for a new picture.

    Returns:
        The picture: minima in the order of their margins, which are written below.
    """
    axes = style.single(title, ax, (max(3.3, 0.45 * len(sets.outputs) + 1.5), 3.3))
    flows = len(sets.flows)
    for f, (name, row) in enumerate(zip(sets.flows, sets.counts, strict=True)):
        place = np.arange(len(row)) + (f - (flows - 1) / 2) / (flows + 1)
        axes.bar(place, row, 1 / (flows + 1), color=style.COLOURS[f], label=name)
    labels = [f"{margin:.3f}" for margin in sets.margins]
    axes.set_xticks(range(len(labels)), labels, rotation=90)
    style.legend_above(axes, fontsize=8, ncols=2)
    style.bare(axes, size=8, xlabel="smallest margin at the minimum", ylabel="starts")
    return axes.figure


def stability(found: Any, title: str = "", *, ax: Any = None) -> Figure:
    """Cross-validation along gradient flows.

    Args:
        found: A :class:`hessrmt.generalization.stability.LeaveOneOut`, or several.
        title: Above the picture.
        ax: Two axes to draw into; None for a new picture.

    Returns:
        The picture: losses and instability, and errors.
    """
    found = [found] if isinstance(found, Result) else found
    picture, ((left, right),) = style.panels(title, (1, 2), ax=ax, size=(6.6, 3.4))
    sides = (
        (left, {"instability": "instability", "left_out_loss": "left out", "test_loss": "fresh"}),
        (right, {"left_out_error": "left out", "test_error": "fresh"}),
    )
    for axes, names in sides:
        for (name, label), look in zip(names.items(), _LINES, strict=False):
            for number, one in enumerate(found):
                words = None if number else label
                axes.plot(one.log_times, getattr(one, name), lw=1.0, label=words, **look)
        style.legend_above(axes, fontsize=8, ncols=3, columnspacing=1.0)
    style.bare(left, xlabel=_TIME, ylabel="normalised loss")
    style.bare(right, xlabel=_TIME, ylabel="classification error")
    return picture


def square_loss(study: Any, title: str = "", *, ax: Any = None) -> Figure:
    """Expected error and instability of least squares against the dimension.

    Args:
        study: A :class:`hessrmt.generalization.stability.SquareLossStudy`.
        title: Above the picture.
        ax: Two axes to draw into; None for a new picture.

    Returns:
        The picture: medians over random problems.
    """
    picture, ((left, right),) = style.panels(title, (1, 2), ax=ax, size=(6.6, 3.4))
    ratio = study.dimensions / study.samples
    sides = (
        (left, study.error, "expected square error"),
        (right, study.instability, "instability"),
    )
    for axes, values, words in sides:
        for name, rows, look in zip(study.starts, values, _LINES, strict=False):
            axes.loglog(ratio, np.median(rows, axis=1), lw=1.3, label=f"start: {name}", **look)
        axes.axvline(1, color=style.MUTED, lw=0.8)
        style.log_ticks(axes.xaxis, 5)
        style.log_ticks(axes.yaxis, 5)
        style.bare(axes, xlabel="dimension over samples", ylabel=words)
    style.legend_above(left, fontsize=8, ncols=3, columnspacing=1.0)
    return picture


def table_line(found: Any, title: str = "", *, ax: Any = None) -> Figure:
    """Test against training losses of a table's networks, with their line and its bands.

    Networks without a test loss are bars, from the lower to the upper end of their interval.

    Args:
        found: A :class:`hessrmt.runs.normalize.TableFit`.
        title: Above the picture.
        ax: Axes to draw into; None for a new picture.

    Returns:
        The picture.

    Source: Generalization puzzles (2020), Fig. 10.
    """
    axes, line = style.single(title, ax), found.line
    known = [point for point in found.points if point.test is not None]
    others = [point for point in found.points if point.test is None]
    places = np.array([point.train for point in found.points])
    room = 0.06 * np.ptp(places)
    x = np.linspace(places.min() - room, places.max() + room, 201)
    words = f"slope {line.slope:.4g} ± {line.slope_error:.2g}, R² {line.r2:.6g}, {line.n} networks"
    axes.plot(x, line(x), color=style.BLUE, lw=1.3, label=words)
    percent = f"{found.level:.0%}"
    for band, what, opacity in (
        (line.confidence_band, "confidence band of the line", 0.25),
        (line.prediction_band, "prediction band of a further network", 0.1),
    ):
        area = {"color": style.BLUE, "alpha": opacity, "lw": 0, "label": f"{percent} {what}"}
        axes.fill_between(x, *band(x, found.level), **area)
    for inside, look, label in (
        (True, {"marker": "o", "color": style.INK}, None),
        (False, {"marker": "X", "color": style.RED}, f"outside of the others' {percent} interval"),
    ):
        some = [point for point in known if point.inside is inside]
        if some:
            where = [point.train for point in some], [point.test for point in some]
            axes.scatter(*where, s=30, label=label, zorder=4, **look)
    if others:
        low, middle, high = (
            np.array([getattr(point, name) for point in others])
            for name in ("lower", "predicted", "upper")
        )
        bars = {"fmt": "D", "ms": 4, "capsize": 3, "color": style.GREEN, "zorder": 5}
        where = [point.train for point in others]
        axes.errorbar(where, middle, [middle - low, high - middle], label="predicted", **bars)
    style.few_ticks(axes)
    return style.finish(axes, xlabel=found.columns[0], ylabel=found.columns[1])
