"""Test losses of a family of networks against training losses, with the fitted line.

Source: [G] (Generalization Puzzles in Deep Networks, under review for ICLR 2020).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hessrmt.errors import GeneralizationError
from hessrmt.generalization.fits import LineFit, fit_line
from hessrmt.plots import puzzle_points as points
from hessrmt.plots import style

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float64
    from matplotlib.axes import Axes

    from hessrmt.config.puzzles import ReferenceLine
    from hessrmt.plots.picture import Picture
    from hessrmt.plots.puzzle_points import Entry

    Values = Float64[np.ndarray, " n"]

LINE, WITH_RANDOM = "line of the natural labels", "line of all points"
CONFIDENCE, PREDICTION = "95 % band of the line", "95 % band of a further point"
DIAGONAL = "test = training"

_REFERENCES = ((0, (5, 1.5, 1, 1.5)), (0, (1, 1.2)), (0, (8, 2)))


def losses(
    entry: Entry,
    random: Entry | None = None,
    references: Sequence[ReferenceLine] = (),
) -> Picture:
    """Test against training losses of all members, as trained and normalised; below, residuals.

    The line and its bands are fitted to the members with natural labels.

    Args:
        entry: A family.
        random: A family of the same networks that was trained on random labels.
        references: Published lines of normalised networks.

    Returns:
        The picture. Where there is no line, the legend says why.

    Source: [G] Figs. 2, 10, 12, 15, 16.
    """
    picture = style.new_picture(
        points.title(entry, "Test against training loss"), width=10.5, height=7.4
    )
    grid = picture.subplots(
        2, 2, sharex="col", gridspec_kw={"height_ratios": (3, 1)}, squeeze=False
    )
    colour = points.colours(entry)
    for column, prefix in enumerate(("", "normalized_")):
        upper, lower = grid[:, column]
        _loss_panel(upper, lower, entry, random, references if prefix else (), prefix)
        what = f"normalised by {points.norm_words(entry.settings)}" if prefix else "as trained"
        lower.set_xlabel(f"training loss, {what}")
        points.ticks(upper)
        points.ticks(lower, y=3)
        points.key(upper)
    grid[0, 0].set_ylabel("test loss")
    grid[1, 0].set_ylabel("test loss - line")
    picture.align_ylabels(grid[:, 0])
    colour.draw_bar(picture, grid.ravel().tolist(), entry.settings.vary)
    return picture


def _loss_panel(
    upper: Axes,
    lower: Axes,
    entry: Entry,
    random: Entry | None,
    references: Sequence[ReferenceLine],
    prefix: str,
) -> None:
    colour, values = points.colours(entry), entry.result.column("value")
    x, y = (entry.result.column(f"{prefix}{split}_loss") for split in ("train", "test"))
    others = (np.empty(0), np.empty(0))
    if random is not None:
        others = tuple(random.result.column(f"{prefix}{split}_loss") for split in ("train", "test"))
    every_x, every_y = np.concatenate([x, others[0]]), np.concatenate([y, others[1]])
    upper.set(xlim=_limits(every_x), ylim=_limits(every_y))
    points.scatter(upper, x, y, values, colour)
    if len(others[0]):
        points.scatter_random(upper, *others, label=points.TRAINED_ON_RANDOM)
    ends = np.linspace(*upper.get_xlim(), 101)
    try:
        line = fit_line(x, y)
    except GeneralizationError as error:
        upper.plot([], [], " ", label=f"no line: {error}")
        lower.yaxis.set_visible(False)
        lower.spines["left"].set_visible(False)
    else:
        _draw_line(upper, lower, line, ends)
        points.scatter(lower, x, y - line(x), values, colour)
        if len(others[0]):
            points.scatter_random(lower, others[0], others[1] - line(others[0]))
            both = fit_line(every_x, every_y)
            name = f"{WITH_RANDOM}:\n{line_words(both)}"
            dashes = (0, (4, 2))
            upper.plot(ends, both(ends), color=style.INK, lw=0.9, ls=dashes, label=name, zorder=3)
        heights = np.append(y - line(x), others[1] - line(others[0]))
        low, high = line.confidence_band(x)
        lower.set_ylim(_limits(np.concatenate([heights, low - line(x), high - line(x)])))
    for reference, dashes in zip(references, _REFERENCES, strict=False):
        height = reference.slope * ends + reference.intercept
        _guide(upper, ends, height, _reference_words(reference), "#CC79A7", dashes)
    _guide(upper, ends, ends, DIAGONAL, style.MUTED, "-")
    points.name_points(upper, x, y, values)


def _draw_line(upper: Axes, lower: Axes, line: LineFit, ends: Values) -> None:
    colour = style.LAWS["poisson"].colour
    middle = line(ends)
    for axes, around in ((upper, 0.0), (lower, middle)):
        axes.plot(ends, middle - around, color=colour, lw=1.3, label=f"{LINE}:\n{line_words(line)}")
        for band, name, opacity in (
            (line.confidence_band, CONFIDENCE, 0.25),
            (line.prediction_band, PREDICTION, 0.1),
        ):
            low, high = band(ends)
            area = {"color": colour, "alpha": opacity, "lw": 0, "zorder": 1, "label": name}
            axes.fill_between(ends, low - around, high - around, **area)


def _guide(
    axes: Axes, x: Values, y: Values, name: str, colour: str, dashes: str | tuple[object, ...]
) -> None:
    """A line, which the legend says to be out of view if it is."""
    low, high = axes.get_ylim()
    seen = ((y >= low) & (y <= high)).any()
    label = name if seen else f"{name} (out of view)"
    axes.plot(x, y, color=colour, lw=1.0, ls=dashes, label=label, zorder=2)


def line_words(line: LineFit) -> str:
    """A line in two lines of a legend.

    Args:
        line: The fit.

    Returns:
        Slope, intercept, R² and root mean square error.
    """
    return (
        f"slope {_number(line.slope)} ± {_number(line.slope_error)}, "
        f"intercept {_number(line.intercept)},\n"
        f"R² {line.r2:.6g}, adjusted R² {line.adjusted_r2:.6g}, RMSE {line.rmse:.2g}"
    )


def _number(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.0f}"


def _reference_words(line: ReferenceLine) -> str:
    r2 = "" if line.r2 is None else f", R² {line.r2:.4f}"
    return f"{line.label}:\nslope {line.slope:.5g}, intercept {line.intercept:.5g}{r2}"


def _limits(values: Values) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    margin = 0.06 * (high - low) or 1e-3 * max(abs(low), 1e-3)
    return low - margin, high + margin
