"""Dense symmetric matrices that are hard on eigenvalue solvers."""

import numpy as np
from scipy import linalg


def similar(levels, seed):
    """Dense matrix with these eigenvalues (to rounding) and random eigenvectors."""
    n = len(levels)
    Q = linalg.qr(np.random.default_rng([n, seed]).normal(size=(n, n)))[0]
    return (Q * levels) @ Q.T


def families(n, b, dtype=np.float64, seed=0):
    """Every kind at order n; "banded" of half-width below b."""
    rng = np.random.default_rng([n, b, seed])
    noise = rng.normal(size=(n, n))
    noise = noise + noise.T
    distance = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    factor = rng.normal(size=(n, max(1, n // 4)))
    grades = np.logspace(0, -16, n)
    kinds = {
        "random": noise,
        "toeplitz": 1.0 / (1 + distance),
        "second difference": np.where(distance == 0, 2.0, np.where(distance == 1, -1.0, 0.0)),
        "clustered": similar(np.where(np.arange(n) < n // 2, 1.0, 1 + 1e-12), seed),
        "two levels": similar(np.where(np.arange(n) < n // 3, -1.0, 1.0), seed),
        "graded": noise * np.sqrt(np.outer(grades, grades)),
        "graded up": noise * np.sqrt(np.outer(grades, grades))[::-1, ::-1],
        "graded spectrum": similar(grades, seed),
        "diagonal": np.diag(rng.normal(size=n)),
        "identity": np.eye(n),
        "banded": np.where(distance < b, noise, 0.0),
        "zero": np.zeros((n, n)),
        "ones": np.ones((n, n)),
        "rank-deficient": factor @ factor.T,
        "rank 1": np.outer(factor[:, 0], factor[:, 0]),
        "null blocks": np.where(
            np.add.outer(np.arange(n) % 7 == 0, np.arange(n) % 7 == 0), 0, noise
        ),
    }
    return {kind: ((a + a.T) / 2).astype(dtype) for kind, a in kinds.items()}


def error(levels, expected, dtype=np.float64):
    """Largest error of eigenvalues in units of n ε ‖A‖₂; of a zero matrix, the error itself."""
    unit = len(expected) * float(np.finfo(dtype).eps) * np.abs(expected).max()
    gap = np.abs(np.asarray(levels, dtype=np.float64) - expected).max()
    return gap / unit if unit else gap


def levels_of_band(band, b):
    """LAPACK's eigenvalues of a band (n, 2b+1) without bulges."""
    band = np.asarray(band, dtype=np.float64)
    assert not band[:, b + 1 :].any()
    return linalg.eigvals_banded(band[:, : b + 1].T, lower=True)


def sizes(b):
    """Orders at which something changes for half-width b."""
    return sorted({1, 2, 3, b - 1, b, b + 1, b + 2, 2 * b, 2 * b + 1, 5 * b + 3} - {0})


# Panels of the first stage


PANEL_BOUND = 10.0
"""Of panel_errors: a reflector costs a small multiple of ε (Higham 2002, section 19.3)."""


def panels(m, b, dtype=np.float64):
    """Every kind of (m, b) panel; no square of an entry overflows, as after prescaling."""
    rng = np.random.default_rng([m, b])
    of = np.finfo(dtype)
    noise, k = rng.normal(size=(m, b)), min(m, b)
    top, least = np.sqrt(float(of.eps) / float(of.tiny)), float(of.tiny)
    falling, to_zero = np.logspace(0, -16, b), np.logspace(0, np.log10(least), b)
    factor = rng.normal(size=(m, max(1, k // 2)))
    kinds = {
        "random": noise,
        "graded columns": noise * falling,
        "graded up": noise * falling[::-1],
        "graded rows": noise * np.logspace(0, -16, m)[:, None],
        "down to the smallest number": noise * to_zero,
        "up from the smallest number": noise * to_zero[::-1],
        "nearly dependent": np.vander(np.linspace(0, 1, m), b, increasing=True),
        "differ in the last digit": 1 + of.eps * rng.integers(0, 4, size=(m, b)),
        "rank-deficient": factor @ rng.normal(size=(factor.shape[1], b)),
        "rank 1": np.outer(factor[:, 0], noise[0]),
        "ones": np.ones((m, b)),
        "zero": np.zeros((m, b)),
        "zero columns": np.where(np.arange(b) % 3 == 0, 0, noise),
        "zero above": np.where(np.arange(m)[:, None] < k, 0, noise),
        "triangular": np.triu(noise),
        "huge": noise * top / 100,
        "tiny": noise * 100 / top,
    }
    return {kind: a.astype(dtype) for kind, a in kinds.items()}


def panel_errors(a, V, W, R):
    """‖A - QR‖ / ‖A‖ and ‖QᵀQ - 1‖ in units of b ε, of the first columns of Q = 1 - W Vᵀ."""
    unit = a.shape[1] * float(np.finfo(a.dtype).eps)
    k = V.shape[1]
    # divided twice: the reciprocal of a subnormal number overflows
    big = float(np.abs(a).max()) or 1.0
    A, V, W, R = a.astype(np.float64) / big, *(x.astype(np.float64) for x in (V, W, R))
    Q = np.eye(len(A), k) - W @ V[:k].T
    residual = linalg.norm(A - Q @ (R / big)) / (linalg.norm(A) or 1.0)
    return residual / unit, linalg.norm(Q.T @ Q - np.eye(k)) / unit
