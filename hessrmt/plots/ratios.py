"""Histogram of the ratios of neighbouring spacings, beside the laws."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hessrmt import theory
from hessrmt.errors import LevelsError
from hessrmt.levels import resampling
from hessrmt.levels.selection import ratio_samples
from hessrmt.plots import style

if TYPE_CHECKING:
    from hessrmt.levels.selection import Selection
    from hessrmt.plots.picture import Picture

_FEWEST, _MOST = {True: 8, False: 20}, {True: 40, False: 100}


def ratio_histogram(
    selection: Selection, folded: bool = True, cut: float = 10.0, title: str = ""
) -> Picture:
    """P(r̃), or P(r) up to a cut, with the laws of GOE, two GOE blocks and Poisson.

    The GOE law is that of large matrices (the surmise with the correction of Atas et al.). Beyond
    the cut lie 1.5 % of GOE ratios and 9 % of Poisson's at r = 10; neither histogram nor laws
    contain them: all have the area 1 up to the cut.

    Args:
        selection: The levels; ratios need no unfolding.
        folded: r̃ = min(r, 1/r), in [0, 1], or r.
        cut: Largest r drawn.
        title: Above the picture.

    Returns:
        The picture.

    Raises:
        LevelsError: If the cut is not positive, or no ratio is defined or lies below it.
    """
    if not (np.isfinite(cut) and cut > 0):
        raise LevelsError(f"cut must be a positive ratio, got {cut!r}; try 10")
    end = 1.0 if folded else float(cut)
    every = ratio_samples(selection, folded)
    samples = [values[values <= end] for values in every]
    samples = [values for values in samples if len(values)]
    count, total = sum(map(len, samples)), sum(map(len, every))
    if not count:
        raise LevelsError(
            "every spacing is zero: no ratio is defined; are the levels degenerate?"
            if not total
            else f"none of the {total:,} ratios lies below the cut {end:g}; raise it"
        )
    wanted = (1.5 if folded else 0.4 * end) * count ** (1 / 3)
    edges = np.linspace(0, end, int(np.clip(wanted, _FEWEST[folded], _MOST[folded])) + 1)
    density, error = style.histogram(samples, edges)
    picture = style.new_picture(title)
    axes = picture.subplots()
    label = style.counted(count, "ratios", len(samples))
    if folded:
        mean, spread = resampling.mean_and_error(every)
        label += f"\n⟨r̃⟩ = {mean:.4f}" + (f" ± {spread:.4f}" if np.isfinite(spread) else "")
    style.draw_histogram(axes, edges, density, error, label)
    r = np.linspace(0, end, 401 if folded else 2001)
    limit = None if folded else end
    laws = {
        "goe": theory.ratio_law(r, folded=folded, corrected=True, cut=limit),
        "goe2": theory.block_ratio_law(r, folded=folded, cut=limit),
        "poisson": theory.poisson_ratio_law(r, folded=folded, cut=limit),
    }
    for name, values in laws.items():
        note = f", ⟨r̃⟩ = {theory.mean_ratio(name):.4f}" if folded else ""
        style.draw_law(axes, name, r, values, note)
    top = max(float((density + np.nan_to_num(error)).max()), float(laws["poisson"].max()))
    axes.set(xlim=(0, end), ylim=(0, 1.04 * top))
    if folded:
        axes.set(xlabel="r̃ = min(r, 1/r)", ylabel="P(r̃)")
    else:
        axes.set(xlabel="r", ylabel=f"P(r), r < {end:g}")
    style.bare(axes)
    style.legend(axes)
    return picture
