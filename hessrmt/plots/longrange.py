"""Number variance, rigidity and form factor, with error bands, beside the laws."""

from __future__ import annotations

import inspect
import math
from typing import TYPE_CHECKING

import numpy as np

from hessrmt import theory
from hessrmt.errors import LevelsError
from hessrmt.levels.longrange import BLOCK
from hessrmt.levels.longrange import form_factor as measured_form_factor
from hessrmt.levels.longrange import number_variance as measured_variance
from hessrmt.levels.longrange import rigidity as measured_rigidity
from hessrmt.levels.resampling import ENOUGH, with_error
from hessrmt.levels.unfolding import window
from hessrmt.plots import style

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Float64
    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike

    from hessrmt.levels.unfolding import Unfolded
    from hessrmt.plots.picture import Picture

    Grid = Float64[np.ndarray, " m"]
    Rows = list[Float64[np.ndarray, " n"]]

_SHORTEST, _LONGEST, _LENGTHS = 0.2, 50.0, 25
_LATEST = 2.0
_BINS = {True: (0.05, 5), False: (0.1, 10)}
"""Width of a bin of τ, and how many τ to average over; with and without ten spectra."""

_INDEPENDENT, _FEWEST_PARTS = 1.5, 5
"""K is independent at times 1.5/T apart, T the length of a spectrum; values for an error."""

_FAR = 5.0
"""Times what the GOE reaches: data beyond need a logarithmic axis."""


def number_variance(
    unfolded: Unfolded, lengths: ArrayLike | None = None, title: str = "", *, blocks: bool = True
) -> Picture:
    """Σ²(L) with the laws of GOE, two GOE blocks and Poisson.

    Where the unfolding takes the density from the levels themselves, windows longer than it
    averages over are shaded: fluctuations there are hidden by the unfolding.

    Args:
        unfolded: The unfolded levels.
        lengths: (m,) L in mean spacings; up to 50, or a quarter of the shortest spectrum, if None.
        title: Above the picture.
        blocks: Whether to draw the law of two superposed GOE blocks.

    Returns:
        The picture.

    Raises:
        LevelsError: If no spectrum was unfolded, or none is longer than a length asked for.
    """
    measure, law = measured_variance, theory.number_variance
    return _of_length(unfolded, lengths, title, blocks, measure, law, "Σ²(L)")


def rigidity(
    unfolded: Unfolded, lengths: ArrayLike | None = None, title: str = "", *, blocks: bool = True
) -> Picture:
    """Δ₃(L) with the laws of GOE, two GOE blocks and Poisson.

    Args:
        unfolded: The unfolded levels.
        lengths: As for :func:`number_variance`.
        title: Above the picture.
        blocks: Whether to draw the law of two superposed GOE blocks.

    Returns:
        The picture.

    Raises:
        LevelsError: As for :func:`number_variance`.
    """
    measure, law = measured_rigidity, theory.rigidity
    return _of_length(unfolded, lengths, title, blocks, measure, law, "Δ₃(L)")


def form_factor(
    unfolded: Unfolded, times: ArrayLike | None = None, title: str = "", *, blocks: bool = True
) -> Picture:
    """K(τ) with the laws of GOE, two GOE blocks and Poisson.

    Args:
        unfolded: The unfolded levels.
        times: (m,) τ in Heisenberg times. If None, averages over 0.05 up to 2 (over 0.1 from
            fewer than ten spectra), from where the mean density of the shortest spectrum no longer
            shows.
        title: Above the picture.
        blocks: Whether to draw the law of two superposed GOE blocks.

    Returns:
        The picture.

    Raises:
        LevelsError: If no spectrum was unfolded, or they are too short for a form factor.
    """
    rows = _rows(unfolded)
    enough = len(rows) >= ENOUGH
    if times is None:
        width, parts = _BINS[enough]
        span = min(_shortest(rows), BLOCK)
        first = math.ceil(10 / span / width) * width if span > 0 else math.inf
        if not first <= _LATEST / 2:
            raise LevelsError(
                f"the shortest spectrum spans {span:.3g} mean spacings; a form factor needs at "
                "least 10"
            )
        bins = round((_LATEST - first) / width)
        parts = int(np.clip(width * span / _INDEPENDENT, 1, parts))
        tau = first + width * (np.arange(bins) + 0.5)
        fine = first + width / parts * (np.arange(bins * parts) + 0.5)
    else:
        tau = np.atleast_1d(np.asarray(times, dtype=np.float64))
        parts, fine = 1, tau

    def measure(levels: Rows) -> Grid:
        values = np.asarray(measured_form_factor(levels, fine))
        return values.reshape(len(tau), parts).mean(axis=1)

    if enough:
        value, error = with_error(measure, rows)
    else:  # K of one spectrum scatters about its mean from one τ to the next
        values = np.asarray(measured_form_factor(rows, fine)).reshape(len(tau), parts)
        value, error = values.mean(axis=1), np.full(len(tau), np.nan)
        if parts >= _FEWEST_PARTS:
            error = values.std(axis=1, ddof=1) / parts**0.5
    picture = style.new_picture(title)
    axes = picture.subplots()
    style.draw_measured(axes, tau, value, error, _data(rows))
    end = float(tau.max())
    grid = np.linspace(0, max(end, _LATEST), 401)
    _laws(axes, grid, theory.form_factor, blocks)
    top = max(1.4, 1.05 * float((value + np.nan_to_num(error)).max()))
    axes.set(xlim=(0, grid[-1]), ylim=(0, top), xlabel="τ", ylabel="K(τ)")
    style.bare(axes)
    style.legend(axes)
    return picture


def _of_length(
    unfolded: Unfolded,
    lengths: ArrayLike | None,
    title: str,
    blocks: bool,
    statistic: Callable[[Rows, Grid], float | Grid],
    law: Callable[..., np.ndarray],
    label: str,
) -> Picture:
    rows = _rows(unfolded)
    if lengths is None:
        shortest = _shortest(rows)
        end = min(_LONGEST, shortest / 4)
        if not end > _SHORTEST:
            raise LevelsError(
                f"the shortest spectrum spans {shortest:.3g} mean spacings, too few for windows "
                "of a quarter of that"
            )
        L = np.geomspace(_SHORTEST, end, _LENGTHS)
    else:
        L = np.atleast_1d(np.asarray(lengths, dtype=np.float64))
    value, error = with_error(lambda levels: np.asarray(statistic(levels, L)), rows)
    picture = style.new_picture(title)
    axes = picture.subplots()
    style.draw_measured(axes, L, value, error, _data(rows))
    grid = np.geomspace(L.min(), L.max(), 201)
    _laws(axes, grid, law, blocks)
    highest = float(np.max(law(grid, "goe2" if blocks else "goe")))
    top = max(highest, float((value + np.nan_to_num(error)).max()))
    axes.set(xscale="log", xlim=(L.min(), L.max()), xlabel="L", ylabel=label)
    if top > _FAR * highest:
        axes.set_yscale("log")
        axes.set_ylim(0.8 * float(min(value.min(), np.min(law(grid, "goe")))), 1.5 * top)
    else:
        axes.set_ylim(0, 1.15 * top)
    _mark_reach(axes, unfolded, float(L.max()))
    style.bare(axes)
    style.legend(axes)
    return picture


def _rows(unfolded: Unfolded) -> Rows:
    rows = [levels for levels in unfolded.levels if levels is not None]
    if not rows:
        raise LevelsError("no spectrum was unfolded; there is nothing to draw")
    return rows


def _shortest(rows: Rows) -> float:
    return min(float(row[-1] - row[0]) for row in rows)


def _data(rows: Rows) -> str:
    return style.counted(sum(map(len, rows)), "levels", len(rows))


def _laws(axes: Axes, x: Grid, law: Callable[..., np.ndarray], blocks: bool) -> None:
    for name in ("goe", "goe2", "poisson") if blocks else ("goe", "poisson"):
        style.draw_law(axes, name, x, law(x, name))


def _mark_reach(axes: Axes, unfolded: Unfolded, end: float) -> None:
    """Shade windows that are longer than what the unfolding averages over."""
    if unfolded.method != "window":
        return
    default = inspect.signature(window).parameters["neighbours"].default
    asked = int(unfolded.options.get("neighbours", default))
    shortest = min(len(levels) for levels in unfolded.selection.levels)
    reach = 2 * min(asked, max(2, shortest // 4)) - 1
    if reach < end:
        label = f"beyond the unfolding's {reach} spacings"
        axes.axvspan(reach, end, color=style.MUTED, alpha=0.25, lw=0, zorder=0, label=label)
