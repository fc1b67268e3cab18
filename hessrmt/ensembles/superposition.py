"""Independent blocks superposed: what the levels of a matrix with unresolved symmetries look like.

Source: Rosenzweig, Porter, Phys. Rev. 120, 1698 (1960); Mehta, Random Matrices (2004), app. A.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from hessrmt.ensembles.control import TRIDIAGONAL, control, count, dyson_index, sample_stream
from hessrmt.ensembles.gaussian import gaussian_levels
from hessrmt.errors import EnsembleError

if TYPE_CHECKING:
    from hessrmt.arrays import Levels
    from hessrmt.records import Spectrum


def block_levels(sizes: Sequence[int], generator: np.random.Generator, beta: int = 1) -> Levels:
    """Levels of independent Gaussian blocks, each stretched to the semicircle of the whole.

    With N levels in all, block k of n_k levels is scaled by √(N/n_k). All blocks then share the
    radius 2√(βN), and each holds the fraction n_k/N of the levels everywhere.

    Args:
        sizes: n_k of each block.
        generator: Source of randomness.
        beta: Dyson's index.

    Returns:
        (N,) levels, ascending, in the units of :mod:`hessrmt.ensembles.gaussian`.
    """
    counts, beta = _sizes(sizes), dyson_index(beta)
    total = sum(counts)
    parts = [(total / n) ** 0.5 * gaussian_levels(beta, n, generator) for n in counts]
    return np.sort(np.concatenate(parts))


def blocks(sizes: Sequence[int], seed: int = 0, beta: int = 1, index: int = 0) -> Spectrum:
    """Spectrum of a matrix of independent Gaussian blocks with constant fractions of the levels.

    Args:
        sizes: Dimension of each block.
        seed: Of the run.
        beta: Dyson's index: 1 orthogonal, 2 unitary, 4 symplectic.
        index: Which sample of the run.

    Returns:
        The spectrum, N = Σ sizes levels.
    """
    levels = block_levels(sizes, sample_stream("blocks", seed, index), beta)
    return control(levels, "blocks", seed, index, TRIDIAGONAL, sizes=_sizes(sizes), beta=int(beta))


def goe2(n: int, seed: int = 0, index: int = 0) -> Spectrum:
    """Spectrum of two independent GOE blocks of (nearly) equal size: ⟨r̃⟩ is about 0.423.

    Args:
        n: Dimension of both together, at least 2.
        seed: Of the run.
        index: Which sample of the run.

    Returns:
        The spectrum, as ``blocks([n - n // 2, n // 2], seed, index=index)``.
    """
    n = count("n", n, 2)
    return blocks([n - n // 2, n // 2], seed, index=index)


def _sizes(sizes: Sequence[int]) -> list[int]:
    try:
        counts = [count("each of sizes", size) for size in sizes]
    except TypeError as error:
        raise EnsembleError(f"sizes must be a sequence of integers, got {sizes!r}") from error
    if not counts:
        raise EnsembleError("sizes is empty; give the dimension of at least one block")
    return counts
