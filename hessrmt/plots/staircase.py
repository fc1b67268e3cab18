"""The counting function of one spectrum, the curve that unfolds it, and what is left between."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hessrmt.errors import LevelsError
from hessrmt.plots import style

if TYPE_CHECKING:
    from jaxtyping import Float64
    from matplotlib.axes import Axes

    from hessrmt.levels.unfolding import Unfolded
    from hessrmt.plots.picture import Picture

_TICKS = 4
"""On either side of zero on a logarithmic axis."""


def staircase(unfolded: Unfolded, spectrum: int = 0, title: str = "") -> Picture:
    """N(λ) with the unfolding curve through (λ_i, ξ_i), and below N - N̄ at the levels.

    At a level N counts half of its step. The λ axis is logarithmic, on both sides of zero where
    there are levels on both, if the levels span many decades.

    Args:
        unfolded: The unfolded levels.
        spectrum: Position of the spectrum in ``unfolded.levels``.
        title: Above the picture.

    Returns:
        The picture.

    Raises:
        LevelsError: If there is no such spectrum, or it only served as pool for the others.
    """
    count = len(unfolded.levels)
    if not -count <= spectrum < count:
        raise LevelsError(f"there is no spectrum {spectrum}; there are {count}, from 0")
    heights = unfolded.levels[spectrum]
    if heights is None:
        usable = [i for i, levels in enumerate(unfolded.levels) if levels is not None]
        raise LevelsError(
            f"spectrum {spectrum} was not unfolded, it served as pool only; try {usable[0]}"
        )
    levels = unfolded.selection.levels[spectrum]
    steps = np.arange(len(levels))
    picture = style.new_picture(title, height=5.4)
    upper, lower = picture.subplots(2, sharex=True, gridspec_kw={"height_ratios": [2.2, 1]})
    name = f"N(λ), {len(levels):,} levels of spectrum {spectrum % count} of {count}"
    upper.step(levels, steps + 1, where="post", color=style.INK, lw=1.4, label=name)
    colour = style.LAWS["goe"].colour
    upper.plot(levels, heights, color=colour, lw=1.0, label=f"N̄(λ): {unfolded.words}")
    upper.set(ylabel="levels up to λ", ylim=(0, 1.05 * max(len(levels), float(heights[-1]))))
    style.legend(upper)
    lower.axhline(0, color=colour, lw=0.8)
    lower.plot(levels, steps + 0.5 - heights, color=style.INK, lw=0.8)
    lower.set(xlabel="λ", ylabel="N - N̄")
    _scale(lower, levels)
    for axes in (upper, lower):
        style.bare(axes)
    picture.align_ylabels()
    return picture


def _scale(axes: Axes, levels: Float64[np.ndarray, " n"]) -> None:
    if not style.many_decades([levels]):
        return
    if levels[0] > 0:
        axes.set_xscale("log")
        return
    sizes = np.abs(levels[levels != 0])
    low, high = np.log10(np.quantile(sizes, 0.01)), np.log10(sizes.max())
    axes.set_xscale("symlog", linthresh=10.0 ** np.floor(low))
    step = int(np.ceil((high - low) / _TICKS))
    # none so close to the linear part that its label meets that of zero
    powers = 10.0 ** np.arange(np.floor(high), np.floor(low) + step / 2 - 1, -step)
    axes.set_xticks([*-powers, 0, *powers[::-1]])
    axes.set_xticks([], minor=True)
    axes.set_xlim(1.5 * min(levels[0], 0), 1.5 * max(levels[-1], 0))
