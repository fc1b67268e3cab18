"""What all ensembles share: checked arguments, the named random stream, and the record."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.linalg import eigvalsh_tridiagonal

from hessrmt import rng
from hessrmt.errors import EnsembleError
from hessrmt.records import Provenance, Spectrum

if TYPE_CHECKING:
    from hessrmt.arrays import Levels

TRIDIAGONAL = "tridiagonal beta-ensemble (LAPACK dsterf)"
"""Solver named by the ensembles that are sampled as a tridiagonal matrix."""

BETAS = (1, 2, 4)


def tridiagonal_eigenvalues(diagonal: Levels, beside: Levels) -> Levels:
    """Eigenvalues of a symmetric tridiagonal matrix.

    Args:
        diagonal: (n,) diagonal.
        beside: (n - 1,) elements next to it.

    Returns:
        (n,) eigenvalues, ascending.
    """
    return np.asarray(eigvalsh_tridiagonal(diagonal, beside, lapack_driver="sterf"))


def count(name: str, value: object, least: int = 1) -> int:
    """Check an argument that counts something.

    Args:
        name: Of the argument.
        value: Given.
        least: The smallest allowed.

    Returns:
        The value.

    Raises:
        EnsembleError: If it is no integer or is smaller.
    """
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
        raise EnsembleError(f"{name} must be an integer of at least {least}, got {value!r}")
    return int(value)


def dyson_index(beta: object) -> int:
    """Check Dyson's index β: 1 for real, 2 for complex, 4 for quaternion matrices.

    Args:
        beta: Given.

    Returns:
        β.

    Raises:
        EnsembleError: If it is none of the three.
    """
    if isinstance(beta, bool) or not isinstance(beta, int | np.integer) or beta not in BETAS:
        raise EnsembleError(
            f"beta must be 1 (orthogonal), 2 (unitary) or 4 (symplectic), got {beta!r}"
        )
    return int(beta)


def sample_stream(name: str, seed: object, index: object) -> np.random.Generator:
    """The random stream of one sample.

    Args:
        name: Of the ensemble.
        seed: Of the run, a non-negative integer.
        index: Which sample of the run, a non-negative integer.

    Returns:
        A generator that depends on all three.
    """
    return rng.stream(count("seed", seed, 0), name, count("index", index, 0))


def control(
    levels: Levels, name: str, seed: int, index: int, solver: str, **settings: Any
) -> Spectrum:
    """Record of one sample, with the noise floor n·ε·max|λ| of a Hessian's spectrum.

    Args:
        levels: (n,) in any order.
        name: Of the ensemble.
        seed: Of the run.
        index: Which sample of the run.
        solver: How the levels were found.
        **settings: What else determines them.

    Returns:
        A spectrum of dimension n with operator ``"ensemble"``.
    """
    n = len(levels)
    largest = float(np.abs(levels).max(initial=0.0))
    return Spectrum(
        eigenvalues=np.sort(levels),
        noise_floor=n * float(np.finfo(np.float64).eps) * largest,
        dimension=n,
        reduced_dimension=n,
        operator="ensemble",
        solver=solver,
        provenance=Provenance(
            config={"ensemble": name, "n": n, "seed": int(seed), "index": int(index), **settings}
        ),
    )
