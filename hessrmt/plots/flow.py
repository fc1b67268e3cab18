"""Gradient flows: margins, norms, distance from the maximum margin, Hessians.

Source: [P] (Poggio, Banburski, Liao, PNAS 117, 30039, 2020), §3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from hessrmt.errors import GeneralizationError
from hessrmt.plots import style

if TYPE_CHECKING:
    from jaxtyping import Float64

    from hessrmt.generalization.flow import Flow
    from hessrmt.plots.picture import Picture
    from hessrmt.records import Spectrum

LINES: tuple[tuple[str, str], ...] = (
    ("#D55E00", "-"),
    ("#0072B2", "--"),
    ("#009E73", "-."),
    ("#CC79A7", ":"),
)
"""Colour and dashes of one curve after the other (Okabe, Ito)."""

_TIME = "log(1 + t)"


def margin_growth(flow: Flow, title: str = "") -> Picture:
    """Smallest normalised margin in time, in the manner of [P] Fig. 3.

    Circles, with the sample's number, are where another sample becomes the nearest one.

    Args:
        flow: With separation.
        title: Above the picture.

    Returns:
        The picture.

    Raises:
        GeneralizationError: If the flow never separates the samples.
    """
    first = flow.separated_from
    if first is None:
        raise GeneralizationError(
            "the flow never classifies all samples correctly: there is no margin to draw; let it "
            "run longer or give the network more units"
        )
    picture = style.new_picture(title)
    axes = picture.subplots()
    u, margin, support = flow.log_times[first:], flow.margin[first:], flow.support[first:]
    axes.plot(u, margin, color=style.INK, lw=1.4, label="smallest normalised margin")
    smooth = flow.smoothed_margin[first:]
    shown = smooth > 0
    colour, dashes = LINES[1]
    label = "-log(B L)/ρ, which never falls"
    axes.plot(u[shown], smooth[shown], color=colour, ls=dashes, lw=1.2, label=label)
    changes = np.flatnonzero(np.diff(support)) + 1
    circles = {"facecolors": "none", "edgecolors": LINES[0][0], "s": 36, "zorder": 4}
    axes.scatter(u[changes], margin[changes], label="another support vector", **circles)
    for i in changes:
        offset = {"xytext": (4, -11), "textcoords": "offset points", "fontsize": 8}
        axes.annotate(str(support[i]), (u[i], margin[i]), **offset)
    axes.set(xlabel=_TIME, ylabel="min y f(V; x)", ylim=(0, None))
    style.bare(axes)
    style.legend(axes)
    return picture


def norms(flows: Mapping[str, Flow], title: str = "") -> Picture:
    """ρ and the layers' ρ_k against log t, one panel each.

    Args:
        flows: Label to flow, up to four.
        title: Above the picture.

    Returns:
        The picture.
    """
    picture = style.new_picture(title, width=9.0, height=4.0)
    left, right = picture.subplots(1, 2)
    for (label, flow), (colour, dashes) in zip(flows.items(), LINES, strict=False):
        line = {"color": colour, "ls": dashes, "lw": 1.4}
        left.plot(flow.log_times, flow.rho * flow.margin, label=label, **line)
        for k, rho in enumerate(flow.scales.T):
            right.plot(flow.log_times, rho, label=label if not k else "", **line)
    end = max(float(flow.log_times[-1]) for flow in flows.values())
    left.plot([0, end], [0, end], color=style.MUTED, lw=0.9, label="log t")
    left.set(xlabel=_TIME, ylabel="ρ · smallest margin")
    right.set(xlabel=_TIME, ylabel="norm ρ_k of each layer")
    for axes in (left, right):
        style.bare(axes)
    style.legend(left)
    return picture


def distances(
    flows: Mapping[str, Flow], direction: Float64[np.ndarray, " d"], title: str = ""
) -> Picture:
    """Distance of linear networks' directions from the maximum-margin direction.

    Args:
        flows: Label to flow of a linear network with one output, up to four.
        direction: (d,) unit vector of the largest margin.
        title: Above the picture.

    Returns:
        The picture.
    """
    picture = style.new_picture(title)
    axes = picture.subplots()
    for (label, flow), (colour, dashes) in zip(flows.items(), LINES, strict=False):
        found = [flow.linear_direction(i) for i in range(len(flow.log_times))]
        distance = np.linalg.norm(np.array(found) - direction, axis=1)
        later = flow.log_times > 0
        axes.loglog(
            flow.log_times[later], distance[later], color=colour, ls=dashes, lw=1.4, label=label
        )
    end = max(float(flow.log_times[-1]) for flow in flows.values())
    guide = np.array([10.0, end])
    axes.loglog(guide, 0.5 / guide, color=style.MUTED, lw=0.9, label="slope of 1/log t")
    axes.axhline(1e-3, color=style.MUTED, lw=0.9, ls=":")
    axes.set(xlabel=_TIME, ylabel="distance from the maximum-margin direction")
    style.bare(axes)
    style.legend(axes)
    return picture


def curvature(
    flow: Flow,
    indices: Sequence[int],
    weights: Sequence[Spectrum],
    directions: Sequence[Spectrum],
    title: str = "",
) -> Picture:
    """Certified levels of the Hessian in W and in V along a flow, and over the loss.

    Args:
        flow: The flow.
        indices: Saved times of the spectra.
        weights: Spectra of ``flow.problem(i)``.
        directions: Spectra of ``flow.normalized_problem(i)``.
        title: Above the picture.

    Returns:
        The picture.
    """
    picture = style.new_picture(title, width=9.0, height=4.2)
    panels = picture.subplots(1, 2)
    sides = zip(panels, (weights, directions), ("of W", "of V, ρ fixed"), strict=True)
    for axes, spectra, what in sides:
        for index, spectrum in zip(indices, spectra, strict=True):
            levels = spectrum.resolved / flow.losses[index]
            for sign, colour, marker in ((1, style.POSITIVE, "."), (-1, style.NEGATIVE, "x")):
                part = np.abs(levels[np.sign(levels) == sign])
                place = np.full(len(part), flow.log_times[index])
                axes.semilogy(place, part, marker, color=colour, ms=3.5, lw=0)
        times = [flow.log_times[i] for i in indices]
        sizes = [float(np.abs(s.eigenvalues).max()) for s in spectra]
        axes.semilogy(times, sizes, color=style.INK, lw=1.2, label="largest |λ|, not divided by L")
        axes.plot([], [], ".", color=style.POSITIVE, label="λ/L > 0")
        axes.plot([], [], "x", color=style.NEGATIVE, ms=4, label="|λ|/L, λ < 0")
        axes.set(xlabel=_TIME, ylabel=f"levels of the Hessian {what}")
        style.bare(axes)
    panels[0].legend(frameon=False, fontsize=8, loc="lower left")
    return picture
