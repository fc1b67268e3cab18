"""|λ| against index on a logarithmic axis, with the noise floor: which levels are real."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hessrmt.records import Spectrum

_CERTIFIED, _NOISE = "#1f5fa8", "#c8c8c8"
_DECADES_BELOW = 6


def certification(spectra: Sequence[Spectrum], title: str = "") -> Figure:
    """Magnitudes of all nonzero eigenvalues in descending order, one line for each spectrum.

    Args:
        spectra: At least one spectrum.
        title: Drawn above the axes.

    Returns:
        The figure; save it with ``figure.savefig``.
    """
    figure = Figure(figsize=(7.5, 4.4), layout="constrained")
    axes = figure.subplots()
    floors = [item.noise_floor for item in spectra]
    for item in spectra:
        size = np.sort(np.abs(item.eigenvalues))[::-1]
        size = size[size > 0]
        index = np.arange(1, len(size) + 1)
        real = size > item.noise_floor
        axes.plot(index[~real], size[~real], color=_NOISE, lw=1)
        axes.plot(index[real], size[real], color=_CERTIFIED, lw=1.2)
    floor = float(np.median(floors))
    axes.axhline(floor, color="#b3341d", ls="--", lw=1)
    first = spectra[0]
    axes.plot([], [], color=_CERTIFIED, label=f"certified: {_range([s.rank for s in spectra])}")
    axes.plot([], [], color=_NOISE, label="indistinguishable from round-off")
    axes.plot([], [], color="#b3341d", ls="--", label=f"noise floor {floor:.1e}")
    axes.set(yscale="log", xlabel=f"index by magnitude (of {first.dimension:,})", ylabel="|λ|")
    if floor > 0:
        axes.set_ylim(bottom=floor * 10.0**-_DECADES_BELOW)
    axes.set_title(title, loc="left", fontsize=10)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _range(counts: list[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,} levels"
