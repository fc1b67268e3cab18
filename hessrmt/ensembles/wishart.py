"""Wishart matrices X Xᵀ/m, sampled as bidiagonal matrices.

Source: Dumitriu, Edelman, J. Math. Phys. 43, 5830 (2002), Table I and Theorem 3.1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hessrmt.ensembles.control import (
    TRIDIAGONAL,
    control,
    count,
    dyson_index,
    sample_stream,
    tridiagonal_eigenvalues,
)

if TYPE_CHECKING:
    from hessrmt.arrays import Levels
    from hessrmt.records import Spectrum


def wishart_levels(n: int, m: int, generator: np.random.Generator, beta: int = 1) -> Levels:
    """Eigenvalues of X X†/m, X n × m with independent elements, all real components N(0, 1).

    For k = min(n, m), l = max(n, m) the nonzero ones are exactly in law those of B Bᵀ/m, B lower
    bidiagonal with χ_{βl}, χ_{β(l-1)}, ..., χ_{β(l-k+1)} on the diagonal and χ_{β(k-1)}, ..., χ_β
    below it.

    Args:
        n: Dimension.
        m: Columns of X.
        generator: Source of randomness.
        beta: Dyson's index: real, complex or quaternion elements.

    Returns:
        (n,) eigenvalues, ascending, with mean β; for n > m the first n - m are exactly 0.0. Their
        density tends to Marchenko-Pastur's of ratio n/m and scale β.
    """
    n, m, beta = count("n", n), count("m", m), dyson_index(beta)
    k, longer = min(n, m), max(n, m)
    a = np.sqrt(generator.chisquare(beta * np.arange(longer, longer - k, -1)))
    b = np.sqrt(generator.chisquare(beta * np.arange(k - 1, 0, -1)))
    diagonal = a**2
    diagonal[1:] += b**2
    levels = np.zeros(n)
    levels[n - k :] = tridiagonal_eigenvalues(diagonal, a[:-1] * b) / m
    return levels


def wishart(n: int, m: int, seed: int = 0, index: int = 0) -> Spectrum:
    """Spectrum of one real Wishart matrix X Xᵀ/m, X n × m with standard normal elements.

    Args:
        n: Dimension.
        m: Columns of X; n/m is the ratio of Marchenko and Pastur.
        seed: Of the run.
        index: Which sample of the run.

    Returns:
        The spectrum, with mean 1; for n > m, n - m eigenvalues are exactly 0.0.
    """
    levels = wishart_levels(n, m, sample_stream("wishart", seed, index))
    return control(levels, "wishart", seed, index, TRIDIAGONAL, m=int(m), beta=1)
