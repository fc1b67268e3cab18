"""Which eigenvalues count as levels: cutoff, window, and what is left out.

Two levels are neighbours only if nothing was discarded between them; a spacing across a discarded
band (exact zeros, round-off) is not a nearest-neighbour spacing and is never used.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64

from hessrmt.checks import real, real_array
from hessrmt.errors import DataError
from hessrmt.levels.resampling import Samples
from hessrmt.levels.spacings import ascending, of_spacings
from hessrmt.levels.tables import from_table
from hessrmt.records import PAPER_CUTOFF_SPACINGS, Spectrum
from hessrmt.results import Result

Cutoff = str | float | None
Window = tuple[float, float] | None


@dataclass(frozen=True)
class Selection(Result, derived="n_levels n_spacings n_ties n_unresolved"):
    """The levels of several spectra that a statistic is computed from.

    Attributes:
        levels: One ascending (n_i,) float64 array for each usable spectrum.
        neighbours: For each an (n_i - 1,) bool array: whether nothing lies between two levels.
        floors: (m,) noise floor of each, in the units of the eigenvalues; NaN where none is known.
        n_eigenvalues: Eigenvalues given, the spectra that were not usable included.
        n_discarded: How many of them the cutoff and the window left out, exact zeros included.
        n_zeros: How many of those discarded are exactly 0.0.
        cutoff: ``"certified"``, ``"paper"``, a value, or None for no cutoff.
        window: Lowest and highest level taken, or None.
        unusable: Positions of spectra with fewer than three levels, which are left out.
    """

    levels: tuple[Float64[np.ndarray, " n"], ...]
    neighbours: tuple[Bool[np.ndarray, " n-1"], ...]
    floors: Float64[np.ndarray, " m"]
    n_eigenvalues: int
    n_discarded: int
    n_zeros: int
    cutoff: Cutoff
    window: Window
    unusable: tuple[int, ...]

    @property
    def spacings(self) -> Samples:
        """Spacings between neighbouring levels, in the units of the eigenvalues."""
        return [np.diff(x)[k] for x, k in zip(self.levels, self.neighbours, strict=True)]

    @property
    def n_levels(self) -> int:
        """Levels of all usable spectra together."""
        return sum(map(len, self.levels))

    @property
    def n_spacings(self) -> int:
        """Spacings between neighbouring levels, of all usable spectra together."""
        return sum(map(len, self.spacings))

    @property
    def n_ties(self) -> int:
        """Spacings that are exactly zero."""
        return sum(int(np.count_nonzero(s == 0)) for s in self.spacings)

    @property
    def n_unresolved(self) -> int:
        """Spacings no larger than the noise floor, whose size is therefore not known."""
        pairs = zip(self.spacings, self.floors, strict=True)
        return sum(int(np.count_nonzero(s <= floor)) for s, floor in pairs)


def ratio_samples(selection: Selection, folded: bool = True) -> Samples:
    """Ratios of neighbouring spacings, for each spectrum.

    Args:
        selection: The levels; no ratio bridges a discarded band.
        folded: r̃ in [0, 1], or r.

    Returns:
        One array for each spectrum.
    """
    found = []
    for levels, adjacent in zip(selection.levels, selection.neighbours, strict=True):
        spacings, whole = np.diff(levels), adjacent[1:] & adjacent[:-1]
        found.append(of_spacings(spacings[:-1][whole], spacings[1:][whole], folded))
    return found


def select(spectra: Any, cutoff: Cutoff = "auto", window: Window = None) -> Selection:
    """Levels of one or several spectra above a cutoff and inside a window.

    Args:
        spectra: :class:`~hessrmt.records.Spectrum` objects, a loaded file, or plain eigenvalues:
            a 1-D array for one spectrum, a 2-D array with a row for each, or a sequence of 1-D
            arrays; or a table of these, see :func:`hessrmt.levels.tables.from_table`.
        cutoff: ``"certified"`` keeps |λ| above each spectrum's noise floor, ``"paper"`` the
            |λ| > 1e-20 of Baskerville, Granziol and Keating 2022, §6, a number |λ| above it, None
            everything. ``"auto"`` means certified, and None for plain eigenvalues.
        window: Lowest and highest level taken, in the units of the eigenvalues.

    Returns:
        The levels, and what was left out.

    Raises:
        DataError: If an eigenvalue is not finite, the cutoff or window cannot be used, or no
            spectrum is left with three levels.
    """
    rows, floors = _rows_and_floors(spectra)
    low, high = _ends(window)
    cutoff, thresholds = _thresholds(floors, cutoff)
    kept = [
        (np.abs(row) > threshold) & (row >= low) & (row <= high)
        for row, threshold in zip(rows, thresholds, strict=True)
    ]
    # two neighbouring spacings are the least that a ratio needs
    usable = [i for i, keep in enumerate(kept) if (keep[2:] & keep[1:-1] & keep[:-2]).any()]
    levels = tuple(rows[i][kept[i]] for i in usable)
    total, left = sum(map(len, kept)), sum(int(keep.sum()) for keep in kept)
    if not levels:
        largest = max(np.abs(row).max(initial=0.0) for row in rows)
        inside = "" if window is None else f" and the window {low:g}:{high:g}"
        raise DataError(
            f"no spectrum has 3 neighbouring levels after the cutoff {cutoff}{inside}: {left} of "
            f"{total:,} eigenvalues are left; the largest |λ| is {largest:.3g}. Lower the cutoff, "
            "widen the window or give larger spectra"
        )
    if all(np.ptp(values) == 0 for values in levels):
        first = f"(the first is {levels[0][0]:.3g})"
        raise DataError(f"all levels of each spectrum are equal {first}; give distinct levels")
    return Selection(
        levels=levels,
        neighbours=tuple(np.diff(np.flatnonzero(kept[i])) == 1 for i in usable),
        floors=floors[usable],
        n_eigenvalues=total,
        n_discarded=total - left,
        n_zeros=sum(int((row[~keep] == 0).sum()) for row, keep in zip(rows, kept, strict=True)),
        cutoff=cutoff,
        window=None if window is None else (low, high),
        unusable=tuple(i for i in range(len(rows)) if i not in usable),
    )


def _rows_and_floors(spectra: Any) -> tuple[Samples, Float64[np.ndarray, " m"]]:
    """Ascending eigenvalues and noise floor (NaN if unknown) of every spectrum."""
    spectra = from_table(spectra)
    if isinstance(spectra, Spectrum) or (isinstance(spectra, np.ndarray) and spectra.ndim != 2):
        spectra = [spectra]
    elif not isinstance(spectra, Iterable) or isinstance(spectra, str | bytes):
        wanted = "spectra, a loaded file (hessrmt.load), or arrays of eigenvalues"
        raise DataError(f"got {type(spectra).__name__}; expected {wanted}")
    spectra = list(spectra)
    if not spectra:
        raise DataError("there is no spectrum; a run that has just begun holds none yet")
    if all(np.ndim(item) == 0 and not isinstance(item, Spectrum) for item in spectra):
        spectra = [spectra]
    raw = [getattr(item, "eigenvalues", item) for item in spectra]
    floors = np.array([getattr(item, "noise_floor", np.nan) for item in spectra])
    return [ascending(row, f"eigenvalues of spectrum {i}") for i, row in enumerate(raw)], floors


def _thresholds(
    floors: Float64[np.ndarray, " m"], cutoff: Cutoff
) -> tuple[Cutoff, Float64[np.ndarray, " m"]]:
    unknown = np.isnan(floors).any()
    if cutoff == "auto":
        cutoff = None if unknown else "certified"
    if cutoff == "certified":
        if unknown:
            reason = "plain eigenvalues carry no noise floor, so none of them is certified"
            raise DataError(f"{reason}; give Spectrum objects, or cutoff=None or a value")
        return cutoff, floors
    if cutoff is None:
        least = -1.0
    elif cutoff == "paper":
        least = PAPER_CUTOFF_SPACINGS
    else:
        least = cutoff = real("cutoff", cutoff, least=0, hint="or give certified or paper")
    return cutoff, np.full(len(floors), least)


def _ends(window: Window) -> tuple[float, float]:
    if window is None:
        return -np.inf, np.inf
    advice = "give (LOW, HIGH) with LOW < HIGH"
    ends = real_array("window", window, dimensions=1, infinite=True, hint=advice).tolist()
    if len(ends) != 2 or not ends[0] < ends[1]:
        raise DataError(f"window {window!r} cannot be used; {advice}")
    return ends[0], ends[1]
