"""Wigner's surmise beside the exact law of large GOE matrices: how good is it?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hessrmt import theory
from hessrmt.plots import style

if TYPE_CHECKING:
    from hessrmt.plots.picture import Picture


def surmise(title: str = "") -> Picture:
    """P(s) of the GOE, exact and by the surmise, of Poisson levels, and the surmise's error.

    Args:
        title: Above the picture.

    Returns:
        The picture.

    Source: [B] Fig. 2 shows the surmise; the exact law is that of
    :func:`hessrmt.theory.goe_spacing`.
    """
    picture = style.new_picture(title, height=5.0)
    upper, lower = picture.subplots(2, sharex=True, gridspec_kw={"height_ratios": [3, 1]})
    s = np.linspace(0, 4, 401)
    exact, approximate = theory.goe_spacing(s), theory.wigner_surmise(s)
    style.draw_law(upper, "goe", s, exact, ", exact")
    style.draw_law(upper, "wigner", s, approximate)
    style.draw_law(upper, "poisson", s, theory.poisson_spacing(s))
    upper.set(xlim=(0, 4), ylim=(0, 1.04), ylabel="P(s)")
    style.legend(upper)
    lower.axhline(0, color=style.LAWS["goe"].colour, lw=0.8)
    style.draw_law(lower, "wigner", s, approximate - exact)
    lower.set(xlabel="s", ylabel="surmise\n- exact")
    for axes in (upper, lower):
        style.bare(axes)
    picture.align_ylabels()
    return picture
