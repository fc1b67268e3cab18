"""Losses and errors of a family against what is varied in it.

Source: [G] (Generalization Puzzles in Deep Networks, under review for ICLR 2020).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hessrmt.plots import puzzle_points as points
from hessrmt.plots import style

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float64
    from matplotlib.axes import Axes

    from hessrmt.plots.picture import Picture
    from hessrmt.plots.puzzle_points import Entry

    Values = Float64[np.ndarray, " n"]

_SPLITS = (("training", "train", points.TRAIN), ("test", "test", points.TEST))


def against_value(entry: Entry) -> Picture:
    """Losses and errors, as trained, against the share of corrupted labels or the initial scale.

    Args:
        entry: A family.

    Returns:
        The picture.

    Source: [G] Figs. 5 and 6.
    """
    reference = entry.settings.reference_loss
    at = (
        ""
        if reference is None
        else f"\nat the epoch whose training loss is closest to {reference:g}"
    )
    picture = style.new_picture(
        points.title(entry, "Losses and errors") + at, width=9.0, height=4.0
    )
    panels = picture.subplots(1, 2)
    value = entry.result.column("value")
    for axes, what in zip(panels, ("loss", "error"), strict=True):
        points.log_if_wide(axes, "x", value)
        for label, split, look in _SPLITS:
            _curve(axes, value, entry.result.column(f"{split}_{what}"), label, look)
        axes.set(xlabel=points.WORDS[entry.settings.vary], ylabel=what)
        _finish(axes)
    return picture


def width(entry: Entry) -> Picture:
    """Errors against the number of parameters; N is marked.

    Args:
        entry: A family of widths.

    Returns:
        The picture.

    Source: [G] Fig. 3.
    """
    picture = style.new_picture(points.title(entry, "Errors against the number of parameters"))
    axes = picture.subplots()
    parameters, n = entry.result.column("parameters"), points.training_samples(entry)
    points.log_if_wide(axes, "x", np.append(parameters, n))
    for label, split, look in _SPLITS:
        _curve(axes, parameters, entry.result.column(f"{split}_error"), label, look)
    axes.axvline(n, color=style.MUTED, lw=1.0, ls=(0, (4, 2)), label=f"N = {n:,}", zorder=1)
    axes.set(xlabel="parameters", ylabel="error")
    _finish(axes)
    return picture


def sample_errors(entries: Sequence[Entry]) -> Picture:
    """Errors and their difference against the number of training samples.

    Args:
        entries: Families of samples, e.g. with natural and random labels: a panel each.

    Returns:
        The picture.

    Source: [G] Fig. 1.
    """
    picture, grid = _side_by_side(entries, 1, "Errors against training samples")
    for axes, entry in zip(grid[0], entries, strict=True):
        _both(axes, entry, "error")
        gap = entry.result.column("test_error") - entry.result.column("train_error")
        _curve(axes, entry.result.column("value"), gap, "test - training", points.GAP)
        axes.set_xlabel(_samples_words(entry))
        _finish(axes)
    low = min(0.0, *(axes.get_ylim()[0] for axes in grid[0]))
    high = max(axes.get_ylim()[1] for axes in grid[0])
    for axes in grid[0]:
        axes.set_ylim(low, high)
    grid[0, 0].set_ylabel("error")
    return picture


def sample_losses(entries: Sequence[Entry]) -> Picture:
    """Losses, losses of the normalised networks, and their difference, against samples.

    Args:
        entries: Families of samples, e.g. with natural and random labels: a column each.

    Returns:
        The picture.

    Source: [G] Fig. 19.
    """
    picture, grid = _side_by_side(entries, 3, "Losses against training samples")
    for column, entry in zip(grid.T, entries, strict=True):
        _both(column[0], entry, "loss")
        _both(column[1], entry, "loss", "normalized_")
        test, train = (
            entry.result.column(f"normalized_{split}_loss") for split in ("test", "train")
        )
        n = entry.result.column("value")
        points.log_if_wide(column[2], "x", n)
        _curve(column[2], n, test - train, "test - training, normalised", points.GAP)
        column[2].axhline(0, color=style.MUTED, lw=0.9, zorder=1)
        column[2].set_xlabel(_samples_words(entry))
        for axes in column:
            _finish(axes)
    for axes, what in zip(
        grid[:, 0], ("loss, as trained", "loss, normalised", "difference"), strict=True
    ):
        axes.set_ylabel(what)
    picture.align_ylabels(grid[:, 0])
    return picture


def _side_by_side(entries: Sequence[Entry], rows: int, what: str) -> tuple[Picture, np.ndarray]:
    picture = style.new_picture(
        points.title(entries[0], what).removesuffix(", random labels"),
        width=max(style.WIDTH, 4.5 * len(entries)),
        height=1.2 + 2.7 * rows,
    )
    return picture, picture.subplots(rows, len(entries), squeeze=False)


def _both(axes: Axes, entry: Entry, what: str, prefix: str = "") -> None:
    n = entry.result.column("value")
    points.log_if_wide(axes, "x", n)
    for label, split, look in _SPLITS:
        _curve(axes, n, entry.result.column(f"{prefix}{split}_{what}"), label, look)


def _curve(axes: Axes, x: Values, y: Values, label: str, look: tuple[str, str, str]) -> None:
    """Every point, and a line through the means of those with the same x."""
    colour, dashes, marker = look
    places = np.unique(x)
    means = [y[x == place].mean() for place in places]
    axes.plot(places, means, color=colour, ls=dashes, lw=1.3, marker=marker, ms=4, label=label)
    if len(places) < len(x):
        axes.scatter(x, y, s=9, marker=marker, color=colour, alpha=0.5, linewidths=0)


def _samples_words(entry: Entry) -> str:
    return f"{points.WORDS['samples']}, {entry.settings.labels} labels"


def _finish(axes: Axes) -> None:
    axes.margins(0.06)
    points.ticks(axes)
    style.legend(axes)
