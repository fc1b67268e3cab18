"""A result that has no picture of its own: the columns of its table, each in a panel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from hessrmt.errors import DataError
from hessrmt.plots import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from hessrmt.results import Result

_PANEL = 1.9
"""Height of a panel in inches."""

_MOST = 8
"""Columns in one picture."""


def columns(result: Result, title: str = "", *, ax: Any = None) -> Figure:
    """Draw the columns of numbers in a result's table, one below the other.

    If the first one ascends, the others are drawn against it; those that never change are left out.

    Args:
        result: With a table of several rows.
        title: Above the picture.
        ax: Axes to draw into, one for each column that is drawn, or one in whose place they are
            put; None for a new picture.

    Returns:
        The figure.

    Raises:
        DataError: If the table has no columns of numbers, too many, or a single row.
    """
    rows = result.rows()
    found = {name: _numbers([row[name] for row in rows]) for name in (rows[0] if rows else {})}
    curves = {name: values for name, values in found.items() if values is not None}
    kind = type(result).__name__
    if not 1 <= len(curves) <= _MOST or len(rows) < 2:
        raise DataError(f"a {kind} has no curve to draw; its numbers are in to_dict()")
    along, x = "row", np.arange(len(rows))
    names = getattr(result, "column_names", {})
    first = next(iter(curves))
    if len(curves) > 1 and (np.diff(curves[first]) > 0).all():
        along, x = first, curves.pop(first)
    moving = {name: values for name, values in curves.items() if np.ptp(values) != 0}  # NaN, too
    curves = moving or curves
    count, size = len(curves), (style.WIDTH, _PANEL)
    figure, panels = style.panels_for(count, title or kind, size, 1, ax=ax, head=0.8, sharex=True)
    for axes, (name, values) in zip(panels, curves.items(), strict=True):
        axes.plot(x, values, ".-", color=style.BLUE, lw=1, ms=4)
        style.bare(axes, ylabel=names.get(name, name).replace("_", " "))
    panels[-1].set_xlabel(along.replace("_", " "))
    if x.dtype.kind == "i" or (x == np.round(x)).all():
        panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _numbers(values: list[Any]) -> Any:
    """A column as an array, NaN where it is empty; None of what is no numbers."""
    kinds = {type(value) for value in values}
    if not kinds & {int, float} or not kinds <= {int, float, type(None)}:
        return None
    return np.array(values, dtype=np.float64)
