"""Independent levels, whose unfolded spacings are exponential: the Poisson ensemble.

Source: Berry, Tabor, Proc. R. Soc. A 356, 375 (1977); [B] §5.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hessrmt.ensembles.control import control, count, sample_stream
from hessrmt.errors import EnsembleError

if TYPE_CHECKING:
    from hessrmt.arrays import Levels
    from hessrmt.records import Spectrum

DENSITIES = ("uniform", "semicircle", "normal", "exponential")
"""Level densities that :func:`poisson` knows."""


def poisson_levels(n: int, generator: np.random.Generator, density: str = "uniform") -> Levels:
    """Independent levels with a given density.

    Args:
        n: How many.
        generator: Source of randomness.
        density: ``"uniform"`` on [0, n], so that the mean spacing is 1; ``"semicircle"`` of radius
            2√n, the density of :func:`hessrmt.ensembles.goe`; ``"normal"`` with variance 1;
            ``"exponential"`` with mean 1.

    Returns:
        (n,) levels, ascending.

    Raises:
        EnsembleError: If the density is unknown.
    """
    n = count("n", n)
    if density == "uniform":
        levels = generator.uniform(0, n, size=n)
    elif density == "semicircle":
        # (1 + λ/R)/2 of a semicircle is Beta(3/2, 3/2)
        levels = 2 * n**0.5 * (2 * generator.beta(1.5, 1.5, size=n) - 1)
    elif density == "normal":
        levels = generator.normal(size=n)
    elif density == "exponential":
        levels = generator.exponential(size=n)
    else:
        raise EnsembleError(f"unknown density {density!r}; known: {', '.join(DENSITIES)}")
    return np.sort(levels)


def poisson(n: int, seed: int = 0, density: str = "uniform", index: int = 0) -> Spectrum:
    """Spectrum of independent levels (the diagonal matrix of them).

    Args:
        n: How many.
        seed: Of the run.
        density: As in :func:`poisson_levels`.
        index: Which sample of the run.

    Returns:
        The spectrum.
    """
    levels = poisson_levels(n, sample_stream("poisson", seed, index), density)
    return control(levels, "poisson", seed, index, "none (independent levels)", density=density)
