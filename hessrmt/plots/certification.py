"""|λ| against index on a logarithmic axis, with the noise floor: which levels are real."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hessrmt.plots.picture import Picture
from hessrmt.records import PAPER_CUTOFF_SPACINGS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hessrmt.records import Spectrum

_CERTIFIED, _NOISE, _FLOOR = "#1f5fa8", "#9a9a9a", "#b3341d"


def certification(spectra: Sequence[Spectrum], title: str = "") -> Picture:
    """Magnitudes of all nonzero eigenvalues in descending order, one line for each spectrum.

    Args:
        spectra: At least one spectrum.
        title: Drawn above the axes.

    Returns:
        The figure; save it with ``figure.savefig``.
    """
    figure = Picture(figsize=(7.5, 4.4), layout="constrained")
    axes = figure.subplots()
    sizes = [np.sort(np.abs(item.eigenvalues))[::-1] for item in spectra]
    for item, size in zip(spectra, (all_[all_ > 0] for all_ in sizes), strict=True):
        index = np.arange(1, len(size) + 1)
        real = size > item.noise_floor
        axes.plot(index[~real], size[~real], color=_NOISE, lw=1)
        axes.plot(index[real], size[real], color=_CERTIFIED, lw=1.2)
    floor = float(np.median([item.noise_floor for item in spectra]))
    axes.axhline(floor, color=_FLOOR, ls="--", lw=1)
    if any(item.count_above(0) > item.rank for item in spectra):
        axes.axhline(PAPER_CUTOFF_SPACINGS, color="#444444", ls=":", lw=1)
        axes.plot([], [], color="#444444", ls=":", label="published cutoff 1e-20")
    first = spectra[0]
    axes.plot([], [], color=_CERTIFIED, label=f"certified: {_range([s.rank for s in spectra])}")
    axes.plot([], [], color=_FLOOR, ls="--", label=f"noise floor {floor:.1e}")
    if any(item.rank < item.count_above(0) for item in spectra):
        axes.plot([], [], color=_NOISE, label="indistinguishable from round-off")
    null = [int(np.count_nonzero(item.eigenvalues == 0)) for item in spectra]
    if any(null):
        axes.plot([], [], alpha=0, label=f"exact zeros, not drawn: {_range(null)}")
    axes.set(yscale="log", xlabel=f"index by magnitude (of {first.dimension:,})", ylabel="|λ|")
    smallest = min((size[size > 0].min() for size in sizes if size.any()), default=floor)
    if floor > 0 and smallest < PAPER_CUTOFF_SPACINGS:
        axes.set_ylim(bottom=PAPER_CUTOFF_SPACINGS / 10)
    axes.set_title(title, loc="left", fontsize=10)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _range(counts: list[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
