"""Which eigenvalues count as levels: cutoff, window, and what is left out.

Two levels are neighbours only if nothing was discarded between them; a spacing across a discarded
band (exact zeros, round-off) is not a nearest-neighbour spacing and is never used.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hessrmt.errors import LevelsError
from hessrmt.levels.spacings import ascending
from hessrmt.records import PAPER_CUTOFF_SPACINGS, Spectrum

if TYPE_CHECKING:
    from jaxtyping import Bool, Float64

CUTOFFS = ("certified", "paper")
SMALLEST = 3
"""Levels that a spectrum needs: two spacings, one ratio."""


@dataclass(frozen=True)
class Selection:
    """The levels of several spectra that a statistic is computed from.

    Attributes:
        levels: One ascending (n_i,) float64 array for each usable spectrum.
        neighbours: For each an (n_i - 1,) bool array: whether nothing lies between two levels.
        floors: (m,) noise floor of each, in the units of the eigenvalues; 0 where none is known.
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
    cutoff: str | float | None
    window: tuple[float, float] | None
    unusable: tuple[int, ...]

    @property
    def n_levels(self) -> int:
        """Levels of all usable spectra together."""
        return sum(map(len, self.levels))

    @property
    def n_spacings(self) -> int:
        """Spacings between neighbouring levels, of all usable spectra together."""
        return sum(int(np.count_nonzero(adjacent)) for adjacent in self.neighbours)

    @property
    def n_ties(self) -> int:
        """Spacings that are exactly zero."""
        return sum(
            int(np.count_nonzero(np.diff(x)[k] == 0))
            for x, k in zip(self.levels, self.neighbours, strict=True)
        )

    @property
    def n_unresolved(self) -> int:
        """Spacings no larger than the noise floor, whose size is therefore not known."""
        return sum(
            int(np.count_nonzero(np.diff(x)[k] <= floor))
            for x, k, floor in zip(self.levels, self.neighbours, self.floors, strict=True)
        )


def select(
    spectra: Any,
    cutoff: str | float | None = "auto",
    window: tuple[float, float] | None = None,
) -> Selection:
    """Levels of one or several spectra above a cutoff and inside a window.

    Args:
        spectra: :class:`~hessrmt.records.Spectrum` objects, a loaded file, or plain eigenvalues:
            a 1-D array for one spectrum, a 2-D array with a row for each, or a sequence of 1-D
            arrays.
        cutoff: ``"certified"`` keeps |λ| above each spectrum's noise floor, ``"paper"`` the
            |λ| > 1e-20 of [B] §6, a number |λ| above it, None everything. ``"auto"`` means
            certified, and None for plain eigenvalues.
        window: Lowest and highest level taken, in the units of the eigenvalues.

    Returns:
        The levels, and what was left out.

    Raises:
        LevelsError: If an eigenvalue is not finite, the cutoff or window cannot be used, or no
            spectrum is left with three levels.
    """
    items = _items(spectra)
    window = _checked_window(window)
    kind, thresholds = _thresholds(items, cutoff)
    levels, neighbours, floors, unusable = [], [], [], []
    total = zeros = kept = 0
    for number, (item, threshold) in enumerate(zip(items, thresholds, strict=True)):
        values, floor = item
        keep = np.ones(len(values), bool) if threshold is None else np.abs(values) > threshold
        if window is not None:
            keep &= (values >= window[0]) & (values <= window[1])
        total += len(values)
        zeros += int(np.count_nonzero(values[~keep] == 0))
        chosen = np.flatnonzero(keep)
        kept += len(chosen)
        adjacent = np.diff(chosen) == 1
        # two neighbouring spacings are the least that a ratio needs
        if len(chosen) < SMALLEST or not (adjacent[1:] & adjacent[:-1]).any():
            unusable.append(number)
            continue
        levels.append(values[chosen])
        neighbours.append(adjacent)
        floors.append(floor)
    if not levels:
        raise LevelsError(_nothing_left(items, kind, window, kept))
    if all(np.ptp(values) == 0 for values in levels):
        raise LevelsError(
            f"all levels of each spectrum are equal (the first is {levels[0][0]:.3g}); level "
            "statistics need distinct levels"
        )
    return Selection(
        levels=tuple(levels),
        neighbours=tuple(neighbours),
        floors=np.array(floors),
        n_eigenvalues=total,
        n_discarded=total - kept,
        n_zeros=zeros,
        cutoff=kind,
        window=window,
        unusable=tuple(unusable),
    )


def _items(spectra: Any) -> list[tuple[Float64[np.ndarray, " n"], float]]:
    """Ascending eigenvalues and noise floor (NaN if unknown) of every spectrum."""
    if isinstance(spectra, Spectrum):
        spectra = [spectra]
    elif isinstance(spectra, np.ndarray):
        spectra = list(spectra) if spectra.ndim == 2 else [spectra]
    elif not isinstance(spectra, Iterable) or isinstance(spectra, str | bytes):
        raise LevelsError(
            f"got {type(spectra).__name__}; expected spectra, a loaded file (hessrmt.load), or "
            "arrays of eigenvalues"
        )
    spectra = list(spectra)
    if spectra and all(np.ndim(item) == 0 and not isinstance(item, Spectrum) for item in spectra):
        spectra = [spectra]
    if not spectra:
        raise LevelsError("there is no spectrum; a run that has just begun holds none yet")
    found = []
    for number, item in enumerate(spectra):
        floor = item.noise_floor if isinstance(item, Spectrum) else float("nan")
        raw = item.eigenvalues if isinstance(item, Spectrum) else item
        found.append((ascending(raw, f"eigenvalues of spectrum {number}"), floor))
    return found


def _thresholds(
    items: Sequence[tuple[np.ndarray, float]], cutoff: str | float | None
) -> tuple[str | float | None, list[float | None]]:
    floors = [floor for _, floor in items]
    unknown = bool(np.isnan(floors).any())
    if cutoff == "auto":
        cutoff = None if unknown else "certified"
    if cutoff is None:
        return None, [None] * len(items)
    if cutoff == "certified":
        if unknown:
            raise LevelsError(
                "plain eigenvalues carry no noise floor, so none of them is certified; give "
                "Spectrum objects, or cutoff=None or a value"
            )
        return cutoff, list(floors)
    if cutoff == "paper":
        return cutoff, [PAPER_CUTOFF_SPACINGS] * len(items)
    try:
        value = float(cutoff)
    except (TypeError, ValueError):
        value = float("nan")
    if not (np.isfinite(value) and value >= 0):
        raise LevelsError(
            f"cutoff {cutoff!r} cannot be used; give certified, paper or a number >= 0"
        )
    return value, [value] * len(items)


def _checked_window(window: tuple[float, float] | None) -> tuple[float, float] | None:
    if window is None:
        return None
    try:
        low, high = map(float, window)
    except (TypeError, ValueError) as error:
        raise LevelsError(f"window {window!r} cannot be used; give (LOW, HIGH)") from error
    if not low < high:  # also refuses NaN
        raise LevelsError(f"window {low:g}:{high:g} is empty; give LOW < HIGH")
    return low, high


def _nothing_left(
    items: Sequence[tuple[np.ndarray, float]],
    cutoff: str | float | None,
    window: tuple[float, float] | None,
    kept: int,
) -> str:
    largest = max((float(np.abs(values).max(initial=0.0)) for values, _ in items), default=0.0)
    inside = "" if window is None else f" and the window {window[0]:g}:{window[1]:g}"
    return (
        f"no spectrum has {SMALLEST} neighbouring levels after the cutoff {cutoff}{inside}: {kept} "
        f"of {sum(len(values) for values, _ in items):,} eigenvalues are left; the largest |λ| is "
        f"{largest:.3g}. Lower the cutoff, widen the window or give larger spectra"
    )
