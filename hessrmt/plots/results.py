"""A result that has no picture of its own: the columns of its table, each in a panel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from hessrmt.errors import DataError
from hessrmt.plots import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from hessrmt.results import Result

_PANEL = 1.9
"""Height of a panel in inches."""


def columns(result: Result, title: str = "", *, ax: Any = None) -> Figure:
    """Draw the columns of numbers in a result's table, one below the other.

    Args:
        result: With a table of several rows.
        title: Above the picture.
        ax: Axes to draw into, one for each column; None for a new picture.

    Returns:
        The figure.

    Raises:
        DataError: If the table has no columns of numbers, or a single row.
    """
    rows = result.rows()
    names = [name for name in (rows[0] if rows else {}) if _numbers(rows, name)]
    kind = type(result).__name__
    if not names or len(rows) < 2:
        raise DataError(f"a {kind} has no curve to draw; its numbers are in to_dict()")
    count, size = len(names), (style.WIDTH, _PANEL)
    figure, panels = style.panels_for(count, title or kind, size, 1, ax=ax, head=0.8, sharex=True)
    for axes, name in zip(panels, names, strict=True):
        values = [np.nan if row[name] is None else row[name] for row in rows]
        axes.plot(np.arange(len(rows)), values, ".-", color=style.BLUE, lw=1, ms=4)
        style.bare(axes, ylabel=name)
    panels[-1].set_xlabel("row")
    return figure


def _numbers(rows: list[dict[str, Any]], name: str) -> bool:
    kinds = {type(row[name]) for row in rows}
    return bool(kinds & {int, float}) and kinds <= {int, float, type(None)}
