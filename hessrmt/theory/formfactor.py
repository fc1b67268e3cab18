"""Spectral form factor K(τ) of infinitely large matrices, τ in units of the Heisenberg time."""

import numpy as np
from numpy.typing import ArrayLike

from hessrmt.theory.longrange import Fractions, kernel_and_blocks
from hessrmt.theory.values import Values, real_values


def form_factor(tau: ArrayLike, law: str = "goe", fractions: Fractions = 1) -> Values:
    """K(τ) = 1 - ∫ Y(r) e^(2πirτ) dr, the connected spectral form factor.

    GOE 2τ - τ ln(1 + 2τ) up to τ = 1, then 2 - τ ln((2τ + 1)/(2τ - 1)); GUE min(τ, 1); GSE τ/2 -
    (τ/4) ln|1 - τ| up to τ = 2 (infinite at τ = 1), then 1; Poisson 1.

    A superposition of independent blocks has K(τ) = Σ_i f_i K_i(τ/f_i).

    Args:
        tau: Times in units of the Heisenberg time, any shape; K is even.
        law: "goe", "gue", "gse", "poisson" or "goe2".
        fractions: Each block's part of the levels (sum 1), or the number of equal blocks.

    Returns:
        The form factor, in the shape of tau.

    Source: Mehta (2004), chs. 6 (GUE), 7 (GOE), 8 (GSE).
    """
    times = np.minimum(np.abs(real_values(tau, "tau")), 1e100)
    kernel, blocks = kernel_and_blocks(law, fractions)
    total = np.zeros(times.shape)
    for f, count in blocks:
        total = total + count * f * _form(times / f, kernel)
    return total[()]


def _form(t: np.ndarray, law: str) -> np.ndarray:
    if law == "poisson":
        return np.ones(t.shape)
    if law == "gue":
        return np.minimum(t, 1.0)
    if law == "goe":
        early, late = np.minimum(t, 1.0), np.maximum(t, 1.0)
        return np.where(
            t <= 1,
            2 * early - early * np.log1p(2 * early),
            2 - late * np.log1p(2 / (2 * late - 1)),
        )
    early = np.minimum(t, 2.0)
    gap = np.abs(1 - early)
    log = np.log(gap, out=np.full(t.shape, -np.inf), where=gap > 0)
    return np.where(t <= 2, early / 2 - early / 4 * log, 1.0)
