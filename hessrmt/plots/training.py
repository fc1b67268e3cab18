"""Networks against the epochs of their training: histories, averaged iterates, budgets."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from hessrmt import theory
from hessrmt.errors import StoreError
from hessrmt.plots import style

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jaxtyping import Float64
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike

    Values = Float64[np.ndarray, " n"]
    Curve = tuple[Values, Values, Values | None]
    """x, means and standard errors, where there are any."""

    Ranked = tuple[Curve, Mapping[str, Values]]
    """Eigenvalues by rank, and numbers in bins of those above and below zero."""

POINTS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "last": ("last iterate", {"color": "#000000", "ls": "-"}),
    "polyak": ("Polyak average", {"color": style.BLUE, "ls": style.DOT_DASHED}),
    "tail": ("tail average", {"color": style.RED, "ls": style.DASHED}),
}
"""Point of an averaged run to its name and looks."""

_QUANTITIES = {
    "test_loss": ("test loss", 1.0),
    "test_error": ("test error, %", 100.0),
    "train_loss": ("training loss", 1.0),
}
_LAWS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "exponential": ("τ", {"color": style.RED, "ls": "-"}),
    "power": ("b", {"color": style.BLUE, "ls": style.DOT_DASHED}),
}
_LOOKS = [{"color": c, "marker": m} for c, m in zip(style.COLOURS, "osD^vPX", strict=True)]
"""Of one curve after the other, as many as there are layers at most."""

_WIDTH, _HEIGHT = 5.0, 2.7
"""Of a panel of a history, in inches."""

_TALL, _LOW = 2.9, 1.5
"""Heights of the panels of a track: of the largest eigenvalue, and of the others."""

FEW = 10
"""Eigenvalues in the tail of a layer up to which its α says little."""

_EPOCHS = "epochs of training (logarithmic from 1 on)"
_LINEAR = 0.4
"""Width of the axis from 0 to the first epoch, in decades."""


def history(
    found: Any, mean_ratios: ArrayLike | None = None, title: str = "", *, ax: Any = None
) -> Figure:
    """Six panels against the epoch, the untrained network at 0.

    Exponent α of every layer with its standard error, hollow where it rests on ten eigenvalues
    or fewer; ln‖W‖_F less its value at the first epoch;
    losses and errors; the Hessian's largest eigenvalue and the magnitude of its smallest; its
    certified eigenvalues; and their mean ratio ⟨r̃⟩ with its standard error.

    Args:
        found: A :class:`hessrmt.store.history.History` with at least one epoch. Of more than seven
            layers those with most eigenvalues in their tails are drawn.
        mean_ratios: (n, 2) ⟨r̃⟩ and its standard error at each epoch, as
            :func:`hessrmt.levels.histograms.mean_ratios` has them; None to leave them out.
        title: Above the picture.
        ax: Six axes to draw into; None for a new picture.

    Returns:
        The picture.

    Raises:
        StoreError: If no epoch is complete yet.
    """
    if not len(found):
        raise StoreError("the history has no finished epoch yet; continue it with --resume")
    draws = [_exponents, _norms, _losses, _extremes, _ranks]
    if mean_ratios is not None:
        draws.append(partial(_ratios, mean_ratios))
    size = 2 * _WIDTH, 3 * _HEIGHT
    picture, grid = style.panels(title, (3, 2), ax=ax, size=size, sharex=True)
    panels = grid.ravel()
    _draw_panels(panels[: len(draws)], draws, found)
    for axes in panels[len(draws) :]:
        axes.set_axis_off()
    for axes in panels[len(draws) - 2 : len(draws)]:
        axes.set_xlabel(_EPOCHS)
        axes.tick_params(labelbottom=True)
    return picture


def side_by_side(histories: Mapping[str, Any], title: str = "", *, ax: Any = None) -> Figure:
    """Several networks, a column each: exponents, norms, ends of the Hessian's spectrum, losses.

    Args:
        histories: What to call the networks to at least one epoch of each, as for :func:`history`.
        title: Above the picture.
        ax: Four axes for each network; None for a new picture.

    Returns:
        The picture.

    Raises:
        StoreError: If there is no network, or one without a finished epoch.
    """
    empty = [name for name, found in histories.items() if not len(found)]
    if empty or not histories:
        raise StoreError(f"no finished epoch of {empty[0] if empty else 'any network'} to draw")
    draws = (_exponents, _norms, _extremes, _losses)
    size = _WIDTH * len(histories), _HEIGHT * 4
    picture, panels = style.panels(title, (4, len(histories)), ax=ax, size=size, sharex="col")
    for column, (name, found) in zip(panels.T, histories.items(), strict=True):
        _draw_panels(column, draws, found)
        column[-1].set_xlabel(f"{_EPOCHS}, {name}")
    return picture


def _draw_panels(panels: Any, draws: Sequence[Any], found: Any) -> None:
    ticks = _ticks(found.epochs.tolist())
    for axes, draw in zip(panels, draws, strict=True):
        draw(axes, found)
        axes.set_xscale("symlog", linthresh=1, linscale=_LINEAR)
        axes.set_xticks(ticks, map(str, ticks))
        axes.set_xticks([], minor=True)
        style.finish(axes, xlim=(-0.15, max(1, ticks[-1]) * 1.15))


def _ticks(epochs: Sequence[int]) -> list[int]:
    """Recorded epochs that have room for their number, the last one first of all."""
    place = [_LINEAR + np.log10(n) if n else 0.0 for n in epochs]
    kept = [len(epochs) - 1]
    for i in reversed(range(len(epochs) - 1)):
        if place[kept[-1]] - place[i] > 0.055 * (place[-1] or 1.0):
            kept.append(i)
    return [epochs[i] for i in kept[::-1]]


def _layers(found: Any) -> list[tuple[int, int, str]]:
    """Place in the picture, column and name of the layers that are drawn."""
    sizes = np.nan_to_num(found.capacity["n_tail"]).max(axis=0)
    largest = sorted(np.argsort(-sizes, kind="stable")[: len(_LOOKS)].tolist())
    return [(p, i, found.layers[i].removesuffix(".weight")) for p, i in enumerate(largest)]


def _exponents(axes: Axes, found: Any) -> None:
    alpha, sigma = found.capacity["alpha"], found.capacity["sigma"]
    few = found.capacity["n_tail"] <= FEW
    drawn = _layers(found)
    for place, layer, name in drawn:
        shift = 1 + 0.02 * (place - (len(drawn) - 1) / 2)  # so that bars don't cover each other
        x = np.where(found.epochs > 0, found.epochs * shift, 2 * (shift - 1))
        look: dict[str, Any] = {**_LOOKS[place], "ms": 4}
        axes.errorbar(x, alpha[:, layer], sigma[:, layer], lw=1.1, elinewidth=0.8, **look)
        axes.plot([], [], lw=1.1, label=name, **look)
        hollow = np.where(few[:, layer], alpha[:, layer], np.nan)
        axes.plot(x, hollow, ls="", mfc="white", zorder=4, **look)
    if few.any():
        axes.plot([], [], alpha=0, label=f"hollow: tail of {FEW} or fewer")
    axes.set_ylabel("α ± σ of the layers")


def _norms(axes: Axes, found: Any) -> None:
    norms = found.capacity["log_frobenius"]
    for place, layer, name in _layers(found):
        first = norms[0, layer]
        _line(axes, found, norms[:, layer] - first, place, f"{name}, from {first:.2f}")
    axes.set_ylabel("growth of ln ‖W‖$_F$")


def _losses(axes: Axes, found: Any) -> None:
    for place, split in enumerate(("train", "test")):
        error = 1 - found.training[f"{split}_accuracy"]
        curves = ("loss", found.training[f"{split}_loss"], "-"), ("error", error, (0, (3, 2)))
        for what, values, dashes in curves:
            if np.isfinite(values).any():
                _line(axes, found, values, place, f"{what}, {split}", dashes)
    _logarithmic(axes, "loss, share of errors")


def _extremes(axes: Axes, found: Any) -> None:
    lowest, largest = found.spectra.eigenvalues[:, [0, -1]].T
    _line(axes, found, largest, 0, "λ$_{max}$")
    if (lowest < 0).any():
        _line(axes, found, np.where(lowest < 0, -lowest, np.nan), 1, "-λ$_{min}$")
    _logarithmic(axes, "λ$_{max}$, -λ$_{min}$ of the Hessian")


def _logarithmic(axes: Axes, label: str) -> None:
    """A logarithmic axis with a few round numbers that don't meet."""
    axes.set(yscale="log", ylabel=label)
    axes.margins(y=0.08)
    style.log_ticks(axes.yaxis, 5)


def _ranks(axes: Axes, found: Any) -> None:
    _line(axes, found, [item.rank for item in found.spectra], 0, "certified")
    positive = [np.count_nonzero(item.resolved > 0) for item in found.spectra]
    _line(axes, found, positive, 1, "positive")
    axes.set(ylim=(0, None), ylabel=f"eigenvalues, of {found.spectra[0].dimension:,}")


def _ratios(mean_ratios: ArrayLike, axes: Axes, found: Any) -> None:
    mean, error = np.transpose(mean_ratios)
    look = {"color": style.INK, "marker": "o", "ms": 3.5, "lw": 1.1, "label": "measured"}
    axes.errorbar(found.epochs, mean, yerr=error, **look)
    for law in ("goe", "goe2", "poisson"):
        axes.axhline(theory.mean_ratio(law), **style.LAWS[law])
    axes.set_ylabel("⟨r̃⟩ of certified levels")


def _line(
    axes: Axes, found: Any, values: ArrayLike, place: int, label: str, dashes: Any = "-"
) -> None:
    look: Any = _LOOKS[place]
    axes.plot(found.epochs, values, ls=dashes, ms=3.5, lw=1.1, label=label, **look)


def track(found: Any, title: str = "", *, ax: Any = None) -> Figure:
    """The largest eigenvalue against the steps of a training, and what else was tracked below it.

    λ_max with the threshold 2/η of gradient descent with the learning rate η, or that with
    momentum (``found.threshold``); the smallest eigenvalue; the trace with its standard error; the
    rank; the loss. One panel below the other, so that a step is at one place in all.

    Args:
        found: A :class:`hessrmt.runs.tracking.Track` with at least one record.
        title: Above the picture.
        ax: As many axes as panels; None for a new picture.

    Returns:
        The picture.

    Raises:
        StoreError: If nothing is measured yet.

    Source: Cohen, Kaur, Li, Kolter and Talwalkar 2021, for 2/η and 2 (1 + β)/η.
    """
    if not len(found):
        raise StoreError("nothing has been measured yet")
    draws = {
        "largest": (_largest, "largest eigenvalue λ$_{max}$"),
        "smallest": (_tracked("smallest", "smallest_bound"), "smallest λ$_{min}$"),
        "trace": (_tracked("trace", "trace_error"), "trace"),
        "rank": (_tracked("rank"), f"rank, of {found.dimension:,}"),
        "loss": (_tracked("loss"), "loss"),
    }
    known = [name for name in draws if np.isfinite(getattr(found, name)).any()]
    heights = [_TALL if name == "largest" else _LOW for name in known]
    size, how = (style.WIDTH, sum(heights) + 0.4), {"sharex": True, "height_ratios": heights}
    picture, grid = style.panels(title, (len(known), 1), ax=ax, size=size, **how)
    for axes, name in zip(grid.ravel(), known, strict=True):
        draw, label = draws[name]
        draw(axes, found)
        labelled = axes.get_legend_handles_labels()[1]
        (style.finish if labelled else style.bare)(axes, ylabel=label)
    grid[-1, 0].set_xlabel("step")
    return picture


def _tracked(name: str, error: str = "") -> Any:
    """Draws one number of a track with its error."""

    def draw(axes: Axes, found: Any) -> None:
        bars = getattr(found, error) if error else None
        look: dict[str, Any] = {"color": style.INK, "marker": "o", "ms": 3.5, "lw": 1.1}
        axes.errorbar(found.steps, getattr(found, name), yerr=bars, elinewidth=0.8, **look)

    return draw


def _largest(axes: Axes, found: Any) -> None:
    _tracked("largest", "largest_bound")(axes, found)
    edge = found.threshold
    if np.isfinite(edge).any():
        beta, nesterov = (
            np.nan_to_num(found.numbers.get(name, 0.0)).any() for name in ("momentum", "nesterov")
        )
        label = "2 (1 + β)/((1 + 2β) η)" if nesterov else "2 (1 + β)/η"
        label = label if beta else "2/η"
        look: dict[str, Any] = {"color": style.RED, "ls": style.DASHED, "lw": 1.3}
        axes.plot(found.steps, edge, label=label, **look)


def averaged_losses(
    rates: Mapping[str, Mapping[str, Mapping[str, Curve]]], title: str = "", *, ax: Any = None
) -> Figure:
    """Test loss, test error and training loss over the epochs, a column for each learning rate.

    Args:
        rates: Learning rate to point (one of :data:`POINTS`) to ``test_loss``, ``test_error`` (a
            share) and ``train_loss``, as far as they are known, to epochs, means over seeds and
            standard errors.
        title: Above the picture.
        ax: Axes to draw into, a row for each quantity; None for a new picture.

    Returns:
        The picture: means with a band of one standard error.
    """
    entries = [curves for points in rates.values() for curves in points.values()]
    rows = {what: look for what, look in _QUANTITIES.items() if what in entries[0]}
    grid = _rate_panels(rates, len(rows), title, ax)
    for row, (what, (label, factor)) in zip(grid, rows.items(), strict=True):
        for axes, points in zip(row, rates.values(), strict=True):
            for point, curves in points.items():
                _banded(axes, point, *curves[what], factor)
        row[0].set_ylabel(label, fontsize=9)
        _end_where_settled(row[0], [factor * curves[what][1] for curves in entries])
    for axes in grid[-1]:
        axes.set_xlabel("epochs", fontsize=9)
    return _legend_of_points(grid[0, 0])


def averaged_spectra(
    rates: Mapping[str, Mapping[str, Ranked]], edges: Values, title: str = "", *, ax: Any = None
) -> Figure:
    """The largest eigenvalues by rank, and those per decade, a column for each learning rate.

    Args:
        rates: Learning rate to point (one of :data:`POINTS`) to ranks, mean eigenvalues and
            standard errors, and (k,) mean numbers per decade of ``"λ > 0"`` and, where there are
            any, of ``"λ < 0"``.
        edges: (k + 1,) log₁₀ |λ| of the bins of these numbers.
        title: Above the picture.
        ax: Axes to draw into, two or three rows; None for a new picture.

    Returns:
        The picture: means over the seeds with a band of one standard error.
    """
    sides = list(next(iter(next(iter(rates.values())).values()))[1])
    grid = _rate_panels(rates, 1 + len(sides), title, ax)
    for (first, *others), points in zip(grid.T, rates.values(), strict=True):
        for point, (ranked, counts) in points.items():
            _banded(first, point, *ranked)
            for axes, side in zip(others, sides, strict=True):
                axes.stairs(counts[side], edges, lw=1.3, **POINTS[point][1])
        first.set_yscale("log")
        first.set_xlabel("rank of the eigenvalue", fontsize=9)
        for axes in others:
            style.log_decades(axes, edges)
        others[-1].set_xlabel("|λ|", fontsize=9)
    for row in grid[1:]:  # when all columns, which share it, have their histograms
        row[0].set_ylim(bottom=0)
    labels = ["largest eigenvalues", *(f"eigenvalues\nper decade, {side}" for side in sides)]
    for axes, label in zip(grid[:, 0], labels, strict=True):
        axes.set_ylabel(label, fontsize=9)
    return _legend_of_points(grid[0, 0])


def _rate_panels(rates: Mapping[str, Any], rows: int, title: str, ax: Any) -> Any:
    size = 3.4 * max(2, len(rates)), 2.2 * rows + 0.6
    _, grid = style.panels(title, (rows, len(rates)), ax=ax, size=size, sharey="row")
    for axes, name in zip(grid[0], rates, strict=True):
        axes.set_title(f"learning rate {name}", loc="left", fontsize=9)
    for axes in grid.ravel():
        style.bare(axes, 8)
    return grid


def _banded(
    axes: Axes, point: str, x: Values, mean: Values, error: Values | None, factor: float = 1.0
) -> None:
    look, mean = POINTS[point][1], factor * mean
    axes.plot(x, mean, lw=1.4, **look)
    if error is not None:
        error = factor * error
        low = np.maximum(mean - error, 0.5 * mean)  # the axis is logarithmic
        axes.fill_between(x, low, mean + error, color=look["color"], alpha=0.18, lw=0)


def _end_where_settled(axes: Axes, means: Sequence[Values]) -> None:
    """End the axes where the last iterates begin to settle: averages start from far above."""
    settled = [float(max(mean[len(mean) // 4], mean[-1])) for mean in means]
    bottom = min(float(mean.min()) for mean in means)
    if bottom > 0:
        axes.set_yscale("log")
    axes.set_ylim(0.93 * bottom, 1.3 * max(settled) or None)
    if bottom > 0:
        style.log_ticks(axes.yaxis, 5)


def _legend_of_points(axes: Axes) -> Figure:
    for label, look in POINTS.values():
        axes.plot([], [], lw=1.6, label=label, **look)
    return style.legend_below(axes, 3)


def budget(
    curves: Mapping[str, Curve], fits: Mapping[str, Any], title: str = "", *, ax: Any = None
) -> Figure:
    """The best validation loss and error against the budget.

    Args:
        curves: ``"loss"`` and ``"error"`` (a share) to budgets, means over seeds and standard
            errors.
        fits: The same names to a :class:`hessrmt.generalization.fits.BudgetFit`, where there is
            one.
        title: Above the picture.
        ax: Axes to draw into, one for each name; None for a new picture.

    Returns:
        The picture.

    Source: Baskerville, Granziol and Keating (2022), Fig. 8.
    """
    picture, panels = style.panels_for(len(curves), title, (4.2, 3.6), ax=ax)
    for axes, (what, (T, values, errors)) in zip(panels, curves.items(), strict=True):
        factor, unit = (100.0, ", %") if what == "error" else (1.0, "")
        bars = {"fmt": "o", "ms": 4, "elinewidth": 1, "capsize": 2, "zorder": 4}
        spread = None if errors is None else factor * errors
        axes.errorbar(T, factor * values, spread, color=style.INK, label="measured", **bars)
        x = np.geomspace(T.min(), T.max(), 400)
        for name, law in fits[what].laws.items() if what in fits else ():
            symbol, look = _LAWS[name]
            label = f"{name}: {symbol} = {law.shape:.3g}, R² = {law.r2:.3f}"
            axes.plot(x, factor * law(x), lw=1.5, label=label, **look)
        label = f"best validation {what}{unit}"
        style.bare(axes, xscale="log", xlabel="budget, epochs", ylabel=label)
        axes.set_xticks(T, [f"{t:g}" for t in T])
        axes.set_xticks([], minor=True)
        style.legend_above(axes, fontsize=8.5)
    return picture
