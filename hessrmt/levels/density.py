"""What the density of levels does to ⟨r̃⟩, which ratios are meant not to depend on."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from scipy.interpolate import PchipInterpolator

from hessrmt import rng
from hessrmt.levels.ratios import of_spacings
from hessrmt.levels.surrogates import bulk
from hessrmt.theory.ratios import mean_ratio

if TYPE_CHECKING:
    from hessrmt.arrays import Levels

SMOOTH = 20
"""Levels over which a density is smoothed."""

_STRETCHES, _STRETCH = 40, 400


def mean_ratio_of_density(spectra: Sequence[Levels], seed: int = 0) -> float:
    """⟨r̃⟩ of GOE levels moved to the smoothed density of some spectra.

    Args:
        spectra: Ascending levels of each spectrum.
        seed: Of the GOE levels.

    Returns:
        The large-matrix mean plus what moving the same levels changes, so that their own
        fluctuations cancel; NaN if no spectrum has 41 distinct levels.
    """
    stretches = _stretches(seed)
    generator = rng.stream(seed, "levels of the same density", "order")
    change = count = 0.0
    for levels in spectra:
        distinct, first = np.unique(levels, return_index=True)
        knots = np.arange(0, len(distinct), SMOOTH)
        if len(knots) < 3:
            continue
        pieces = -(-len(levels) // _STRETCH)
        order = generator.integers(_STRETCHES, size=pieces)
        places = np.sort((stretches[order] + _STRETCH * np.arange(pieces)[:, None]).ravel())
        places = places[(places >= 0) & (places <= first[knots[-1]])]
        moved = PchipInterpolator(first[knots], distinct[knots])(places)
        for sign, values in ((1, np.diff(moved)), (-1, np.diff(places))):
            change += sign * float(of_spacings(values[:-1], values[1:]).sum())
        count += len(places) - 2
    return mean_ratio("goe") + change / count if count else float("nan")


@lru_cache(maxsize=4)
def _stretches(seed: int) -> np.ndarray:
    generator = rng.stream(seed, "levels of the same density")
    return np.array([bulk(_STRETCH, 1, generator) for _ in range(_STRETCHES)])
