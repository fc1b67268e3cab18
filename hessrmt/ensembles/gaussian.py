"""Gaussian orthogonal, unitary and symplectic ensembles, sampled as tridiagonal matrices.

One scale for all three: every real component of an off-diagonal element has variance 1, every
diagonal element variance 2, so that E|H_ij|² = β, the joint density of the levels is proportional
to Π_{i<j} |λ_i - λ_j|^β exp(-Σ λ²/4), E tr H² = 2n + βn(n - 1), and the semicircle of large n has
the radius 2√(βn). For β = 1 that is G of [B], §7.

Source: Dumitriu, Edelman, J. Math. Phys. 43, 5830 (2002), Table I and Theorem 2.12, times √2.
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


def gaussian_levels(beta: int, n: int, generator: np.random.Generator) -> Levels:
    """Levels of one Gaussian matrix, in O(n) random numbers and O(n²) work.

    The eigenvalues have exactly the law of those of a dense matrix: those of the symmetric
    tridiagonal matrix with N(0, 2) on the diagonal and χ_{β(n-1)}, ..., χ_{2β}, χ_β beside it.

    Args:
        beta: Dyson's index: 1 orthogonal, 2 unitary, 4 symplectic (each doubly degenerate
            eigenvalue once).
        n: How many levels.
        generator: Source of randomness, e.g. ``hessrmt.rng.stream(seed, "goe", index)``.

    Returns:
        (n,) levels, ascending, in units of the standard deviation of one real component of an
        off-diagonal element.
    """
    beta, n = dyson_index(beta), count("n", n)
    diagonal = generator.normal(scale=2**0.5, size=n)
    beside = np.sqrt(generator.chisquare(beta * np.arange(n - 1, 0, -1)))
    return tridiagonal_eigenvalues(diagonal, beside)


def goe(n: int, seed: int = 0, index: int = 0) -> Spectrum:
    """Spectrum of one matrix of the Gaussian orthogonal ensemble, semicircle radius 2√n.

    Args:
        n: Dimension.
        seed: Of the run.
        index: Which sample of the run.

    Returns:
        The spectrum; off-diagonal elements have variance 1, diagonal ones variance 2.
    """
    return _sample("goe", 1, n, seed, index)


def gue(n: int, seed: int = 0, index: int = 0) -> Spectrum:
    """Spectrum of one matrix of the Gaussian unitary ensemble, semicircle radius 2√(2n).

    Args:
        n: Dimension.
        seed: Of the run.
        index: Which sample of the run.

    Returns:
        The spectrum; real and imaginary parts of off-diagonal elements have variance 1 each,
        diagonal elements variance 2.
    """
    return _sample("gue", 2, n, seed, index)


def gse(n: int, seed: int = 0, index: int = 0) -> Spectrum:
    """Spectrum of one matrix of the Gaussian symplectic ensemble, semicircle radius 4√n.

    Args:
        n: Quaternion dimension: each eigenvalue of the 2n × 2n complex matrix counts once.
        seed: Of the run.
        index: Which sample of the run.

    Returns:
        The spectrum; the four components of off-diagonal elements have variance 1 each, diagonal
        elements variance 2.
    """
    return _sample("gse", 4, n, seed, index)


def _sample(name: str, beta: int, n: int, seed: int, index: int) -> Spectrum:
    levels = gaussian_levels(beta, n, sample_stream(name, seed, index))
    return control(levels, name, seed, index, TRIDIAGONAL, beta=beta)
