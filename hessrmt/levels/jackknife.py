"""Standard errors of curves that are no plain means, by leaving out groups of spectra.

Source: Miller, Biometrika 61, 1 (1974).
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from hessrmt.errors import LevelsError
from hessrmt.levels.resampling import ENOUGH

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Float64

    Rows = list[Float64[np.ndarray, " n"]]
    Curve = Float64[np.ndarray, " m"]

_GROUPS = 10
_SHORTEST = 20


def with_error(statistic: Callable[[Rows], Curve], rows: Rows) -> tuple[Curve, Curve]:
    """A statistic of all spectra, and its standard error by the jackknife over ten groups.

    From ten spectra on a group is every tenth spectrum; fewer spectra are cut into stretches, and
    a group is one stretch.

    Args:
        statistic: Levels of several spectra to (m,) values.
        rows: Ascending levels of each spectrum.

    Returns:
        The (m,) values and standard errors; NaN where what is left cannot be evaluated.
    """
    value = statistic(rows)
    kept = _leaving_out(rows)
    if len(kept) < 2:
        return value, np.full(len(value), np.nan)
    try:
        others = np.array([statistic(rest) for rest in kept])
    except LevelsError:  # what is left of one spectrum is shorter than the longest window
        return value, np.full(len(value), np.nan)
    groups = len(kept)
    error = np.sqrt((groups - 1) / groups * ((others - others.mean(axis=0)) ** 2).sum(axis=0))
    return value, error


def _leaving_out(rows: Rows) -> list[Rows]:
    """The data without each group in turn."""
    if len(rows) >= ENOUGH:
        return [
            [row for i, row in enumerate(rows) if i % _GROUPS != group] for group in range(_GROUPS)
        ]
    wanted = -(-_GROUPS // len(rows))
    kept = []
    for i, row in enumerate(rows):
        parts = max(1, min(wanted, len(row) // _SHORTEST))
        cuts = np.linspace(0, len(row), parts + 1).astype(int)
        for start, stop in pairwise(cuts):
            pieces = [*rows[:i], row[:start], row[stop:], *rows[i + 1 :]]
            kept.append([piece for piece in pieces if len(piece) >= _SHORTEST])
    return [rest for rest in kept if rest]
