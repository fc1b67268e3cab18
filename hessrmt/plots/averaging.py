"""Pictures of the experiments ``iterate-averaging`` and ``training-budget`` ([B] §8)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from hessrmt.errors import LevelsError
from hessrmt.plots import style
from hessrmt.plots.files import Drawn, checked_ending, draw_each

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from matplotlib.axes import Axes

    from hessrmt.generalization.fits import BudgetFit
    from hessrmt.plots.picture import Picture
    from hessrmt.records import Spectra

POINTS = {
    "last": ("last iterate", "#000000", "-"),
    "polyak": ("Polyak average", "#0072B2", (0, (5, 1.5, 1, 1.5))),
    "tail": ("tail average", "#D55E00", (0, (6, 2))),
}
"""Point to its name, colour and dashes."""

_LAWS = {"exponential": ("#D55E00", "-"), "power": ("#0072B2", (0, (5, 1.5, 1, 1.5)))}
_ROWS = {
    "test_loss": ("test loss", 1.0),
    "test_error": ("test error, %", 100.0),
    "train_loss": ("training loss", 1.0),
}
_WIDTH, _HEIGHT = 3.4, 2.2
"""Of a panel, in inches."""

_RANKS = 40
_PER_DECADE = 3

Curve = tuple[np.ndarray, np.ndarray, "np.ndarray | None"]
"""Budgets, means and standard errors."""


class Point(Protocol):
    """One point of the runs of a network at a learning rate."""

    @property
    def model(self) -> str:
        """The network."""
        ...

    @property
    def rate(self) -> str:
        """Name of the learning rate."""
        ...

    @property
    def lr(self) -> float:
        """Its first value."""
        ...

    @property
    def final_lr(self) -> float | None:
        """Its last value, None for the same."""
        ...

    @property
    def point(self) -> str:
        """One of :data:`POINTS`."""
        ...

    @property
    def spectra(self) -> Sequence[Spectra]:
        """Hessians there, of each seed."""
        ...

    def curve(self, what: str) -> tuple[np.ndarray, np.ndarray]:
        """(m,) epochs and (seeds, m) values of a quantity."""
        ...


def averaging_figures(entries: Sequence[Point], folder: Path, ending: str = "png") -> list[Drawn]:
    """Losses and errors over the epochs, and spectra, of each network.

    Args:
        entries: All points of all networks and rates.
        folder: An existing folder.
        ending: Of the files.

    Returns:
        For each picture its file, or the reason why there is none.
    """
    kind = checked_ending(ending)
    pictures: dict[str, Callable[[], Picture]] = {}
    for model in dict.fromkeys(entry.model for entry in entries):
        part = [entry for entry in entries if entry.model == model]
        stem = model.rpartition(":")[2].replace("/", "_")
        pictures[f"{stem}-losses"] = partial(losses, part, model)
        pictures[f"{stem}-spectra"] = partial(spectra, part, model)
    return draw_each(pictures, folder, kind)


def losses(entries: Sequence[Point], title: str = "") -> Picture:
    """Test loss, test error and training loss over the epochs, a column for each learning rate.

    Args:
        entries: Points of one network.
        title: Above the picture.

    Returns:
        The picture: means over the seeds with a band of one standard error.
    """
    rates = _by_rate(entries)
    rows = {
        what: look
        for what, look in _ROWS.items()
        if all(np.isfinite(entry.curve(what)[1]).all() for entry in entries)
    }
    picture, grid = _grid(rates, len(rows), title, sharey="row")
    for column, part in enumerate(rates.values()):
        for row, (what, (label, factor)) in enumerate(rows.items()):
            axes = grid[row, column]
            for entry in part:
                _, colour, dashes = POINTS[entry.point]
                epochs, values = entry.curve(what)
                _banded(axes, epochs, factor * values, colour, dashes)
            if column == 0:
                axes.set_ylabel(label, fontsize=9)
            if row == len(rows) - 1:
                axes.set_xlabel("epochs", fontsize=9)
    _limit(grid, entries, rows)
    _below(picture)
    return picture


def spectra(entries: Sequence[Point], title: str = "") -> Picture:
    """The largest levels by rank, and levels per decade, a column for each learning rate.

    Args:
        entries: Points of one network, with spectra.
        title: Above the picture.

    Returns:
        The picture: means over the seeds with a band of one standard error; certified levels only.

    Raises:
        LevelsError: If there are no spectra.
    """
    if not all(entry.spectra for entry in entries):
        raise LevelsError("no Hessians were computed for this network")
    rates = _by_rate(entries)
    levels = {id(entry): _levels(entry) for entry in entries}
    every = np.abs(np.concatenate([row for rows in levels.values() for row in rows]))
    low, high = np.floor(np.log10(every.min())), np.ceil(np.log10(every.max()))
    edges = np.arange(low, high + 0.5 / _PER_DECADE, 1 / _PER_DECADE)
    negative = any((row < 0).any() for rows in levels.values() for row in rows)
    picture, grid = _grid(rates, 2 + negative, title, sharey="row")
    for column, part in enumerate(rates.values()):
        for entry in part:
            _, colour, dashes = POINTS[entry.point]
            rows = levels[id(entry)]
            top = min(_RANKS, *(int((row > 0).sum()) for row in rows))
            ranked = np.array([row[::-1][:top] for row in rows])
            _banded(grid[0, column], np.arange(1, top + 1), ranked, colour, dashes)
            for row, sign in enumerate((1, -1)[: 1 + negative], 1):
                logs = [np.log10(sign * item[sign * item > 0]) for item in rows]
                counts = np.array([np.histogram(item, edges)[0] for item in logs]) * _PER_DECADE
                grid[row, column].stairs(
                    counts.mean(axis=0), edges, color=colour, ls=dashes, lw=1.3
                )
        grid[0, column].set_yscale("log")
        grid[0, column].set_xlabel("rank of the level", fontsize=9)
        for row, name in enumerate(("λ > 0", "λ < 0")[: 1 + negative], 1):
            axes = grid[row, column]
            axes.set_xlim(low, high)
            if row == 1 + negative:
                axes.set_xlabel("|λ|", fontsize=9)
            axes.xaxis.set_major_formatter(lambda value, _: f"$10^{{{value:.0f}}}$")
            if column == 0:
                axes.set_ylabel(f"levels per decade, {name}", fontsize=9)
    grid[0, 0].set_ylabel("largest levels", fontsize=9)
    for axes in grid[1:, 0]:
        axes.set_ylim(0, None)
    _below(picture)
    return picture


def budget_figures(
    curves: Mapping[str, Curve], fits: Mapping[str, BudgetFit], folder: Path, ending: str = "png"
) -> list[Drawn]:
    """The best validation loss and error against the budget, with the fitted laws.

    Args:
        curves: ``"loss"`` and ``"error"`` to what was measured.
        fits: The same names to their fits, where there are any.
        folder: An existing folder.
        ending: Of the file.

    Returns:
        The picture's file.
    """
    return draw_each({"budget": partial(budget, curves, fits)}, folder, checked_ending(ending))


def budget(curves: Mapping[str, Curve], fits: Mapping[str, BudgetFit], title: str = "") -> Picture:
    """The best validation loss and error against the budget, in the manner of [B] Fig. 8.

    Args:
        curves: ``"loss"`` and ``"error"`` to budgets, means over seeds and standard errors.
        fits: The same names to their fits, where there are any.
        title: Above the picture.

    Returns:
        The picture.
    """
    picture = style.new_picture(title, width=4.2 * len(curves), height=3.6)
    panels = picture.subplots(1, len(curves), squeeze=False)[0]
    for axes, (what, (T, values, errors)) in zip(panels, curves.items(), strict=True):
        factor = 100.0 if what == "error" else 1.0
        bars = None if errors is None else factor * errors
        axes.errorbar(
            T,
            factor * values,
            yerr=bars,
            fmt="o",
            ms=4,
            color=style.INK,
            elinewidth=1,
            capsize=2,
            label="measured",
            zorder=4,
        )
        x = np.geomspace(T.min(), T.max(), 400)
        for name, law in fits[what].laws.items() if what in fits else ():
            colour, dashes = _LAWS[name]
            size = f"τ = {law.shape:.3g}" if name == "exponential" else f"b = {law.shape:.3g}"
            label = f"{name}: {size}, R² = {law.r2:.3f}"
            axes.plot(x, factor * law(x), color=colour, ls=dashes, lw=1.5, label=label)
        axes.set(xscale="log", xlabel="budget, epochs")
        axes.set_ylabel("best validation error, %" if what == "error" else "best validation loss")
        axes.set_xticks(T, [f"{t:g}" for t in T])
        axes.set_xticks([], minor=True)
        style.bare(axes)
        axes.legend(frameon=False, fontsize=8.5)
    return picture


def _by_rate(entries: Sequence[Point]) -> dict[str, list[Point]]:
    rates: dict[str, list[Point]] = {}
    for entry in entries:
        lr = f"{entry.lr:g}" if entry.final_lr is None else f"{entry.lr:g} to {entry.final_lr:g}"
        rates.setdefault(f"{entry.rate}, {lr}", []).append(entry)
    return rates


def _grid(
    rates: Mapping[str, Any], rows: int, title: str, **sharing: Any
) -> tuple[Picture, np.ndarray]:
    picture = style.new_picture(title, _WIDTH * max(2, len(rates)), _HEIGHT * rows + 0.6)
    grid = picture.subplots(rows, len(rates), squeeze=False, **sharing)
    for column, name in enumerate(rates):
        grid[0, column].set_title(f"learning rate {name}", loc="left", fontsize=9)
    for axes in grid.ravel():
        style.bare(axes)
        axes.tick_params(labelsize=8)
    return picture, grid


def _banded(axes: Axes, x: np.ndarray, values: np.ndarray, colour: str, dashes: Any) -> None:
    mean = values.mean(axis=0)
    axes.plot(x, mean, color=colour, ls=dashes, lw=1.4)
    if len(values) > 1:
        error = values.std(axis=0, ddof=1) / len(values) ** 0.5
        low = np.maximum(mean - error, 0.5 * mean)  # the axis is logarithmic
        axes.fill_between(x, low, mean + error, color=colour, alpha=0.18, lw=0)


def _limit(grid: np.ndarray, entries: Sequence[Point], rows: Mapping[str, Any]) -> None:
    """End the axes where the last iterates begin to settle: averages start from far above."""
    for row, (what, (_, factor)) in enumerate(rows.items()):
        axes = grid[row, 0]
        means = [factor * entry.curve(what)[1].mean(axis=0) for entry in entries]
        settled = [mean[len(mean) // 4] for mean in means]
        top = 1.3 * max(*settled, *(float(mean[-1]) for mean in means))
        bottom = min(float(mean.min()) for mean in means)
        if bottom > 0:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(10, subs=(1.0, 2.0, 3.0, 5.0), numticks=12))
            axes.yaxis.set_major_formatter(ScalarFormatter())
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_ylim(0.93 * bottom, top or None)


def _levels(entry: Point) -> list[np.ndarray]:
    """Certified levels of the first Hessian of each seed, ascending."""
    return [item[0].resolved for item in entry.spectra]


def _below(picture: Picture) -> None:
    first = picture.axes[0]
    for label, colour, dashes in POINTS.values():
        first.plot([], [], color=colour, ls=dashes, lw=1.6, label=label)
    handles, labels = first.get_legend_handles_labels()
    picture.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
