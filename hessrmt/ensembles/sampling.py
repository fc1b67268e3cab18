"""Random-matrix ensembles, sampled exactly as tridiagonal or bidiagonal matrices.

One scale for the Gaussian ensembles: every real component of an off-diagonal element has variance
1, every diagonal element variance 2, so that E|H_ij|² = β, the joint density of the levels is
proportional to Π_{i<j} |λ_i - λ_j|^β exp(-Σ λ²/4), E tr H² = 2n + βn(n - 1), and the semicircle of
large n has the radius 2√(βn). For β = 1 that is the G of Baskerville, Granziol and Keating 2022.

Source: Dumitriu and Edelman 2002, Table I and Theorem 2.12, times √2 (Gaussian), Theorem 3.1
(Wishart); Rosenzweig and Porter 1960, Mehta 2004, app. A.2 (superposed blocks); Berry and Tabor
1977 (independent levels).
"""

from __future__ import annotations

from collections.abc import Sequence, Sized
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.linalg import eigvalsh_tridiagonal

from hessrmt import rng
from hessrmt.checks import one_of, whole
from hessrmt.errors import DataError
from hessrmt.records import Provenance, Spectrum
from hessrmt.theory.law import BETAS

if TYPE_CHECKING:
    from jaxtyping import Float64

    from hessrmt.arrays import Levels

BETA_ENSEMBLE = "tridiagonal beta-ensemble"
TRIDIAGONAL = f"{BETA_ENSEMBLE} (LAPACK dsterf)"
"""Solver named by the ensembles that are sampled as a tridiagonal matrix."""

DENSITIES = ("uniform", "semicircle", "normal", "exponential")
"""Level densities that :func:`poisson` knows."""


def tridiagonal_eigenvalues(diagonal: Levels, beside: Levels) -> Levels:
    """Eigenvalues of a symmetric tridiagonal matrix.

    Args:
        diagonal: (n,) diagonal.
        beside: (n - 1,) elements next to it.

    Returns:
        (n,) eigenvalues, ascending.
    """
    return np.asarray(eigvalsh_tridiagonal(diagonal, beside, lapack_driver="sterf"))


def noise_floor(levels: Levels) -> float:
    """n·ε·max|λ|, below which an eigenvalue is round-off.

    Args:
        levels: (n,) eigenvalues.

    Returns:
        The bound, as for the spectrum of a Hessian.
    """
    return len(levels) * float(np.finfo(np.float64).eps) * float(np.abs(levels).max(initial=0.0))


def ensemble_spectrum(levels: Levels, dimension: int, **known: Any) -> Spectrum:
    """Record of the levels of one random matrix.

    Args:
        levels: (n,) levels of what was diagonalised.
        dimension: Of the whole matrix, whose other eigenvalues are zero.
        known: Other fields of the record.

    Returns:
        The spectrum, its levels ascending, with the :func:`noise_floor` of a Hessian's.
    """
    n, floor = len(levels), noise_floor(levels)
    eigenvalues = np.sort(np.concatenate([levels, np.zeros(dimension - n)]))
    return Spectrum(eigenvalues, floor, dimension, n, operator="ensemble", **known)


def gaussian_band(beta: int, n: int, generator: np.random.Generator) -> Float64[np.ndarray, "2 n"]:
    """Tridiagonal matrix whose eigenvalues have the law of those of a dense Gaussian matrix.

    Args:
        beta: Dyson's index: 1 orthogonal, 2 unitary, 4 symplectic (each doubly degenerate
            eigenvalue once).
        n: Dimension.
        generator: Source of randomness, e.g. ``hessrmt.rng.stream(seed, "goe", index)``.

    Returns:
        (2, n): the diagonal, N(0, 2); and beside it χ_{β(n-1)}, ..., χ_{2β}, χ_β and a zero.
    """
    one_of("beta", beta, BETAS)
    band = np.zeros((2, whole("n", n, 1)))
    band[0] = generator.normal(scale=2**0.5, size=n)
    band[1, :-1] = np.sqrt(generator.chisquare(beta * np.arange(n - 1, 0, -1)))
    return band


def gaussian_levels(beta: int, n: int, generator: np.random.Generator) -> Levels:
    """Levels of one Gaussian matrix, in O(n) random numbers and O(n²) work.

    Args:
        beta: As for :func:`gaussian_band`, whose eigenvalues they are.
        n: How many levels.
        generator: Source of randomness.

    Returns:
        (n,) levels, ascending, in units of the standard deviation of one real component of an
        off-diagonal element.
    """
    diagonal, beside = gaussian_band(beta, n, generator)
    return tridiagonal_eigenvalues(diagonal, beside[:-1])


def goe(n: int, seed: int = 0, index: int = 0) -> Spectrum:
    """Spectrum of one matrix of the Gaussian orthogonal ensemble, semicircle radius 2√n.

    Args:
        n: Dimension.
        seed: Of the run.
        index: Which sample of the run.

    Returns:
        The spectrum; off-diagonal elements have variance 1, diagonal ones variance 2.
    """
    return _gaussian("goe", 1, n, seed, index)


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
    return _gaussian("gue", 2, n, seed, index)


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
    return _gaussian("gse", 4, n, seed, index)


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
    one_of("beta", beta, BETAS)
    k, longer = sorted((whole("n", n, 1), whole("m", m, 1)))
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
    levels = wishart_levels(n, m, _stream("wishart", seed, index))
    return _control(levels, "wishart", seed, index, m=int(m), beta=1)


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
    """
    n = whole("n", n, 1)
    one_of("density", density, DENSITIES)
    if density == "uniform":
        return np.sort(generator.uniform(0, n, size=n))
    if density == "semicircle":
        # (1 + λ/R)/2 of a semicircle is Beta(3/2, 3/2)
        return np.sort(2 * n**0.5 * (2 * generator.beta(1.5, 1.5, size=n) - 1))
    return np.sort(getattr(generator, density)(size=n))


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
    levels = poisson_levels(n, _stream("poisson", seed, index), density)
    solver = "none (independent levels)"
    return _control(levels, "poisson", seed, index, solver, density=density)


def block_levels(sizes: Sequence[int], generator: np.random.Generator, beta: int = 1) -> Levels:
    """Levels of independent Gaussian blocks, each stretched to the semicircle of the whole.

    They are what the levels of a matrix with unresolved symmetries look like. With N levels in all,
    block k of n_k levels is scaled by √(N/n_k). All blocks then share the radius 2√(βN), and each
    holds the fraction n_k/N of the levels everywhere.

    Args:
        sizes: n_k of each block.
        generator: Source of randomness.
        beta: Dyson's index.

    Returns:
        (N,) levels, ascending, in the units of :func:`gaussian_levels`.

    Raises:
        DataError: If the sizes are no sequence, or there is none.
    """
    if not isinstance(sizes, Sized) or not len(sizes):
        raise DataError(f"sizes must be the dimensions of at least one block, got {sizes!r}")
    every = [whole("each of sizes", size, 1) for size in sizes]
    return superposed([gaussian_levels(beta, n, generator) for n in every])


def superposed(blocks: Sequence[Levels]) -> Levels:
    """Levels of independent Gaussian blocks together, as :func:`block_levels` has them.

    Args:
        blocks: The levels of each, at least one block.

    Returns:
        (N,) levels, ascending: those of a block of n levels times √(N/n).
    """
    total = sum(map(len, blocks))
    return np.sort(np.concatenate([(total / len(own)) ** 0.5 * own for own in blocks]))


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
    levels = block_levels(sizes, _stream("blocks", seed, index), beta)
    return _control(levels, "blocks", seed, index, sizes=[int(n) for n in sizes], beta=int(beta))


def goe2(n: int, seed: int = 0, index: int = 0) -> Spectrum:
    """Spectrum of two independent GOE blocks of (nearly) equal size: ⟨r̃⟩ is about 0.423.

    Args:
        n: Dimension of both together, at least 2.
        seed: Of the run.
        index: Which sample of the run.

    Returns:
        The spectrum, as ``blocks([n - n // 2, n // 2], seed, index=index)``.
    """
    half = whole("n", n, 2) // 2
    return blocks([n - half, half], seed, index=index)


def _gaussian(name: str, beta: int, n: int, seed: int, index: int) -> Spectrum:
    levels = gaussian_levels(beta, n, _stream(name, seed, index))
    return _control(levels, name, seed, index, beta=beta)


def _stream(name: str, seed: int, index: int) -> np.random.Generator:
    return rng.stream(whole("seed", seed), name, whole("index", index))


def _control(
    levels: Levels, name: str, seed: int, index: int, solver: str = TRIDIAGONAL, **settings: Any
) -> Spectrum:
    """Record of one sample with its settings."""
    n = len(levels)
    config = {"ensemble": name, "n": n, "seed": int(seed), "index": int(index), **settings}
    return ensemble_spectrum(levels, n, solver=solver, provenance=Provenance(config=config))
