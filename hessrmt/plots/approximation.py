"""Approximation errors of deep tree networks and shallow ones against their units.

Source: [P] (Poggio, Banburski, Liao, PNAS 117, 30039, 2020), §2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from hessrmt.generalization.approximation import KINDS
from hessrmt.plots import style

if TYPE_CHECKING:
    from hessrmt.generalization.approximation import ApproximationStudy
    from hessrmt.plots.picture import Picture

_MARKS = {"deep": ("#D55E00", "-", "o"), "shallow": ("#0072B2", "--", "s")}
_WIDTH, _HEIGHT = 3.2, 3.8
"""Of one panel, in inches."""


def approximation_errors(
    studies: Sequence[ApproximationStudy], norm: str = "l2", title: str = ""
) -> Picture:
    """Errors against units, a panel for each study.

    A point is the geometric mean over initialisations, a bar its standard error; the grey lines
    have the slopes of [P] Theorem 1.

    Args:
        studies: At least one.
        norm: ``"l2"`` or ``"sup"``.
        title: Above the picture.

    Returns:
        The picture.
    """
    picture = style.new_picture(title, width=_WIDTH * len(studies), height=_HEIGHT)
    row = picture.subplots(1, len(studies), squeeze=False)[0]
    for axes, study in zip(row, studies, strict=True):
        errors = study.l2 if norm == "l2" else study.sup
        for kind in KINDS:
            colour, dashes, marker = _MARKS[kind]
            logs = np.log(errors[kind])
            middle = np.exp(logs.mean(1))
            spread = logs.std(1, ddof=1) / np.sqrt(logs.shape[1]) if logs.shape[1] > 1 else 0.0
            found = study.exponent(kind, norm)
            note = f" ± {found.error:.2f}" if np.isfinite(found.error) else ""
            axes.errorbar(
                study.units, middle, yerr=middle * spread, color=colour, ls=dashes,
                marker=marker, ms=4, lw=1.3, label=f"{kind}: {found.exponent:.2f}{note}",
            )  # fmt: skip
            bound = 0.5 if kind == "deep" else 1 / study.inputs
            guide = middle[0] * (study.units / study.units[0]) ** -bound
            axes.plot(study.units, guide, color=style.MUTED, lw=0.8, ls=dashes)
        axes.set(xscale="log", yscale="log", xlabel="units")
        axes.set_xticks(study.units, [f"{units:g}" for units in study.units])
        axes.minorticks_off()
        axes.set_title(f"{study.constituent}, n = {study.inputs}", fontsize=9, loc="left")
        axes.legend(frameon=False, fontsize=8, title="exponents", title_fontsize=8)
        style.bare(axes)
    what = "root mean square error" if norm == "l2" else "largest error"
    row[0].set_ylabel(f"{what} over standard deviation")
    return picture
