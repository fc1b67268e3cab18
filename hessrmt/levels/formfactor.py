"""Spectral form factor K(τ): power spectrum of the levels at conjugate time τ.

Source: Haake, Quantum Signatures of Chaos, 3rd ed. (2010), ch. 4. With a smooth filter: Šuntajs,
Bonča, Prosen, Vidmar, PRE 102, 062144 (2020). Averaged over overlapping blocks of one spectrum:
Welch, IEEE Trans. Audio Electroacoust. 15, 70 (1967).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, overload

import numpy as np
from numpy.typing import ArrayLike

from hessrmt.errors import LevelsError
from hessrmt.levels.arguments import positive_grid, sorted_spectra

if TYPE_CHECKING:
    from jaxtyping import Float64

BLOCK = 500.0
"""Longest window in mean level spacings: it blurs τ by about 2/500, far less than K's features."""

_CHUNK = 1 << 18
"""Phases held at once (2 MiB), or one for each level of a longer spectrum."""


@overload
def form_factor(
    unfolded: ArrayLike | Sequence[ArrayLike], tau: float, *, block: float = BLOCK
) -> float: ...
@overload
def form_factor(
    unfolded: ArrayLike | Sequence[ArrayLike], tau: ArrayLike, *, block: float = BLOCK
) -> float | Float64[np.ndarray, " m"]: ...
def form_factor(
    unfolded: ArrayLike | Sequence[ArrayLike], tau: ArrayLike, *, block: float = BLOCK
) -> float | Float64[np.ndarray, " m"]:
    r"""K(τ) = ⟨|Σ_j w_j exp(2πi ξ_j τ)|²⟩ / ⟨Σ_j w_j²⟩, w_j = sin²(π(ξ_j - a)/T) in [a, a + T].

    The averages run over windows [a, a + T]. A spectrum longer than ``block`` is cut into windows
    of that length, spread evenly from its first level to its last and overlapping by half or a
    little more; a shorter one is a single window. Several spectra are pooled, numerator and
    denominator each summed over all their windows.

    The window ends smoothly (Hann's window), because the mean density of a spectrum that is cut off
    sharply leaks to every τ. What is left of that disconnected part is a peak of height 2T/3 at
    τ = 0 that ends at τ = 2/T, and less than T (τT)⁻⁶/12 beyond τ = 3/T: trust K(τ) at τ > 10/T. It
    is not subtracted. Features of K narrower than about 2/T are blurred.

    K(τ) → 1 at large τ; independent levels have K = 1 at every τ > 0.

    Args:
        unfolded: (n,) unfolded levels of one spectrum, or a sequence of such arrays, in any order,
            in mean level spacings (mean spacing 1); degenerate levels are allowed.
        tau: Time τ ≥ 0, scalar or (m,), in units of the Heisenberg time (2π over the mean level
            spacing).
        block: Longest window T, in mean level spacings.

    Returns:
        K(τ), dimensionless: a float for a scalar τ, else (m,) float64.

    Raises:
        LevelsError: If the levels, τ or block cannot be used.
    """
    spectra = sorted_spectra(unfolded)
    times, scalar = positive_grid("tau", tau, zero=True)
    longest, single = positive_grid("block", block)
    if not single:
        raise LevelsError(f"block must be one number, got shape {longest.shape}")
    power = np.zeros(len(times))
    norm = 0.0
    for levels in spectra:
        windows = _windows(levels - levels[0], float(longest[0]))
        norm += sum(float((weights * weights).sum()) for _, weights in windows)
        power += _power(levels - levels[0], windows, times)
    if norm == 0:
        raise LevelsError(
            "no level lies inside a window: each spectrum's levels coincide with its first or last "
            "one; a form factor needs distinct levels"
        )
    power /= norm
    return float(power[0]) if scalar else power


def _windows(
    positions: Float64[np.ndarray, " levels"], longest: float
) -> list[tuple[slice, Float64[np.ndarray, " inside"]]]:
    """Which levels each window holds, and their weights."""
    span = float(positions[-1])
    length = min(span, longest)
    if length == 0:
        return []
    count = 1 + int(np.ceil(2 * (span - length) / length))
    starts = np.linspace(0.0, span - length, count)
    low = np.searchsorted(positions, starts, side="left").tolist()
    high = np.searchsorted(positions, starts + length, side="right").tolist()
    held = [slice(*ends) for ends in zip(low, high, strict=True) if ends[1] > ends[0]]
    starts = [a for a, i, j in zip(starts.tolist(), low, high, strict=True) if j > i]
    return [
        (inside, np.sin(np.pi / length * (positions[inside] - start)) ** 2)
        for inside, start in zip(held, starts, strict=True)
    ]


def _power(
    positions: Float64[np.ndarray, " levels"],
    windows: list[tuple[slice, Float64[np.ndarray, " inside"]]],
    times: Float64[np.ndarray, " m"],
) -> Float64[np.ndarray, " m"]:
    """Σ over windows of |Σ_j w_j exp(2πi ξ_j τ)|²."""
    power = np.zeros(len(times))
    step = max(1, _CHUNK // len(positions))
    for first in range(0, len(times), step):
        chunk = slice(first, first + step)
        turns = np.multiply.outer(positions, times[chunk])
        turns -= np.rint(turns)  # exact, and the functions below are quicker on small arguments
        turns *= 2 * np.pi
        for wave in (np.cos(turns), np.sin(turns)):
            for inside, weights in windows:
                power[chunk] += (weights @ wave[inside]) ** 2
    return power
