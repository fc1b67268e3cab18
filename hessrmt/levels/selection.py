"""Which eigenvalues count as levels: cutoff, window, and what is left out.

Two levels are neighbours only if nothing was discarded between them. A discarded band (exact zeros,
round-off, what a user cuts) splits a spectrum into runs of neighbours, and every statistic,
unfolding included, is taken within runs: nothing reaches over a hole.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float64

from hessrmt.checks import one_of, real, real_array
from hessrmt.errors import DataError
from hessrmt.levels.resampling import Samples
from hessrmt.levels.spacings import ascending, ratios
from hessrmt.levels.tables import from_table
from hessrmt.records import PAPER_CUTOFF_SPACINGS, Spectrum
from hessrmt.results import Result
from hessrmt.theory import marchenko_pastur_support

if TYPE_CHECKING:
    from hessrmt.arrays import Levels

Cutoff = str | float | None
Window = tuple[float | None, float | None] | None

Adjacent = Bool[np.ndarray, " n-1"]

FEWEST = 3
"""Levels of the shortest run that is used: a ratio needs two neighbouring spacings."""

_GAP, _AROUND, _ENDS = 5.0, 20, 0.1
"""An outlier lies beyond a gap of more than 5 times the mean of the 20 spacings on its inner side,
within a tenth of a spectrum's levels from an end."""

_TRACY_WIDOM = 3.27
"""Quantile 0.999 of the largest level's law, β = 1 (Tracy and Widom 1996)."""


def split(values: np.ndarray, neighbours: Bool[np.ndarray, " n-1"]) -> list[np.ndarray]:
    """Values of the levels of one spectrum, run by run.

    Args:
        values: (n,) one for each level.
        neighbours: (n - 1,) whether nothing lies between two levels.

    Returns:
        The values of each run.
    """
    return np.split(values, np.flatnonzero(~neighbours) + 1)


@dataclass(frozen=True)
class Selection(Result, derived="n_levels n_runs n_spacings n_ties n_unresolved"):
    """The levels of several spectra that a statistic is computed from.

    Attributes:
        levels: One ascending (n_i,) float64 array for each usable spectrum.
        neighbours: For each an (n_i - 1,) bool array: whether nothing lies between two levels.
            Where something does, a run of neighbours ends.
        floors: (m,) noise floor of each, in the units of the eigenvalues; NaN where none is known.
        n_eigenvalues: Eigenvalues given, the spectra that were not usable included.
        n_discarded: How many of them were left out by cutoff, window and as outliers, exact zeros
            included.
        n_zeros: How many of those discarded are exactly 0.0.
        cutoff: ``"certified"``, ``"paper"``, a value, or None for no cutoff.
        window: Lowest and highest level taken, or None.
        unusable: Positions of spectra with fewer than three levels, which are left out.
        n_outliers: Levels left out as outliers.
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
    n_outliers: int = 0

    @property
    def runs(self) -> list[list[Float64[np.ndarray, " n"]]]:
        """The runs of each spectrum: three or more levels, ascending, nothing discarded between."""
        pairs = zip(self.levels, self.neighbours, strict=True)
        return [[run for run in split(x, k) if len(run) >= FEWEST] for x, k in pairs]

    @property
    def n_runs(self) -> int:
        """Runs of all usable spectra together."""
        return sum(map(len, self.runs))

    @property
    def spacings(self) -> Samples:
        """Spacings between neighbouring levels, in the units of the eigenvalues."""
        return [np.concatenate([*map(np.diff, runs)]) for runs in self.runs]

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


def ratio_samples(
    selection: Selection, folded: bool = True, order: int = 1, overlapping: bool = False
) -> Samples:
    """Ratios of neighbouring spacings, for each spectrum.

    Args:
        selection: The levels; no ratio bridges a discarded band.
        folded: r̃ in [0, 1], or r.
        order: k, of the spacings of every k-th level.
        overlapping: As of :func:`hessrmt.levels.ratios`.

    Returns:
        One array for each spectrum.
    """
    how = folded, order, overlapping
    return [np.concatenate([ratios(run, *how) for run in runs]) for runs in selection.runs]


def select(
    spectra: Any, cutoff: Cutoff = "auto", window: Window = None, drop_outliers: str = "none"
) -> Selection:
    """Levels of one or several spectra above a cutoff and inside a window.

    Args:
        spectra: :class:`~hessrmt.records.Spectrum` objects, a loaded file, or plain eigenvalues:
            a 1-D array for one spectrum, a 2-D array with a row for each, or a sequence of 1-D
            arrays; or a table of these, see :func:`hessrmt.levels.tables.from_table`.
        cutoff: ``"certified"`` keeps |λ| above each spectrum's noise floor, ``"paper"`` the
            |λ| > 1e-20 of Baskerville, Granziol and Keating 2022, §6, a number |λ| above it, None
            everything. ``"auto"`` means certified, and None for plain eigenvalues.
        window: Lowest and highest level taken, in the units of the eigenvalues; None for an open
            end.
        drop_outliers: Leave out the levels of each spectrum that lie beyond its bulk: by
            ``"gap"``, beyond the innermost spacing of over five times the mean of the twenty
            before it, in the outer tenth on either side; by ``"marchenko-pastur"``, above the upper
            edge of the law of Marchenko and Pastur that has the mean and the variance of the levels
            below it (of matrices X Xᵀ only: all levels must be positive); ``"none"`` of them.

    Returns:
        The levels, and what was left out.

    Raises:
        DataError: If an eigenvalue is not finite, the cutoff or window cannot be used, or no
            spectrum is left with three levels.
    """
    rows, floors = _rows_and_floors(spectra)
    low, high = _ends(window)
    one_of("drop_outliers", drop_outliers, _OUTLIERS)
    cutoff, thresholds = _thresholds(floors, cutoff)
    kept = [
        (np.abs(row) > threshold) & (row >= low) & (row <= high)
        for row, threshold in zip(rows, thresholds, strict=True)
    ]
    n_outliers = 0
    for row, keep in zip(rows, kept, strict=True):
        inside = np.flatnonzero(keep)
        far = inside[_OUTLIERS[drop_outliers](row[inside], np.diff(inside) == 1)]
        keep[far] = False
        n_outliers += len(far)
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
        n_outliers=n_outliers,
    )


def _beyond_gaps(levels: Levels, adjacent: Adjacent) -> Bool[np.ndarray, " n"]:
    """Which levels of one spectrum lie beyond a gap near one of its ends."""
    far = np.zeros(len(levels), dtype=bool)
    spacings, outer = np.where(adjacent, np.diff(levels), 0.0), int(_ENDS * len(levels))
    for step, marks in ((spacings, far), (spacings[::-1], far[::-1])):
        inner = len(step) - outer  # the gaps behind the last `outer` levels, the innermost first
        for place in range(max(inner, _AROUND), len(step)):
            if step[place] > _GAP * step[place - _AROUND : place].mean():
                marks[place + 1 :] = True
                break
    return far


def _beyond_edge(levels: Levels, _: Adjacent) -> Bool[np.ndarray, " n"]:
    """Which levels of one spectrum lie above the edge of the law of Marchenko and Pastur."""
    if len(levels) and not levels[0] > 0:
        raise DataError(
            f"drop_outliers='marchenko-pastur' is for positive matrices; the lowest level is "
            f"{levels[0]:.3g}. Take drop_outliers='gap', or a window of the positive levels"
        )
    inside = levels
    while len(inside) >= FEWEST:
        # the edge of those that are left, until none of them lies above it
        ratio = min(1.0, float(inside.var() / inside.mean() ** 2))
        edge = marchenko_pastur_support(ratio, float(inside.mean()))[1]
        # beyond the fluctuations of the largest level (Johnstone 2001)
        n, m = len(inside), len(inside) / max(ratio, 1e-12)
        width = (n**0.5 + m**0.5) * (n**-0.5 + m**-0.5) ** (1 / 3) / m * float(inside.mean())
        rest = inside[inside <= edge + _TRACY_WIDOM * width]
        if len(rest) == len(inside):
            break
        inside = rest
    return levels > inside[-1] if len(inside) else np.zeros(len(levels), dtype=bool)


def _none(levels: Levels, _: Adjacent) -> Bool[np.ndarray, " n"]:
    return np.zeros(len(levels), dtype=bool)


_OUTLIERS = {"none": _none, "gap": _beyond_gaps, "marchenko-pastur": _beyond_edge}


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
    given: Any = window
    if isinstance(window, Sequence) and len(window) == 2:
        given = [x if v is None else v for v, x in zip(window, (-np.inf, np.inf), strict=True)]
    ends = real_array("window", given, dimensions=1, infinite=True, hint=advice).tolist()
    if len(ends) != 2 or not ends[0] < ends[1]:
        raise DataError(f"window {window!r} cannot be used; {advice}")
    return ends[0], ends[1]
