"""Tridiagonal matrices that are hard on eigenvalue solvers, as (diagonal, off-diagonal)."""

import numpy as np


def wilkinson(m):
    """Wilkinson's W+ of order 2 m + 1: pairs that agree to many digits."""
    return np.abs(np.arange(-m, m + 1.0)), np.ones(2 * m)


def glued(copies, glue, m=10):
    """Copies of W+ joined by a tiny coupling: clusters of nearly equal levels."""
    d, e = wilkinson(m)
    return np.tile(d, copies), np.tile(np.append(e, glue), copies)[:-1]


def families(n, seed=0):
    """Every kind at order n."""
    rng = np.random.default_rng([n, seed])
    normal = rng.normal(size=(2, n))
    grades = np.logspace(0, -12, n)
    ones = np.ones(n)
    split = normal[1].copy()
    split[::3] = 0
    weak = normal[1] * 10.0 ** rng.uniform(-20, 0, n)
    few = np.where(np.arange(n) < n // 3, normal[0], 0)
    return {
        "random": (normal[0], normal[1][1:]),
        "positive": (np.abs(normal[0]) + 3, normal[1][1:]),
        "toeplitz": (2 * ones, -ones[1:]),
        "clustered": (1 + 1e-14 * normal[0], 1e-14 * normal[1][1:]),
        "graded": (grades * normal[0], np.sqrt(grades[1:] * grades[:-1]) * normal[1][1:]),
        "graded up": (grades[::-1] * normal[0], (grades * normal[1])[::-1][1:]),
        "diagonal": (normal[0], 0 * ones[1:]),
        "equal": (0.3 * ones, 0 * ones[1:]),
        "zero": (0 * ones, 0 * ones[1:]),
        "zero diagonal": (0 * ones, normal[1][1:]),
        "splitting": (normal[0], split[1:]),
        "weak couplings": (normal[0], weak[1:]),
        "rank-deficient": (few, np.where(np.arange(n) < n // 3, normal[1], 0)[1:]),
        "huge": (1e150 * normal[0], 1e150 * normal[1][1:]),
        "tiny": (1e-150 * normal[0], 1e-150 * normal[1][1:]),
        "near overflow": (2e307 * np.sign(normal[0]), 2e307 * ones[1:]),
        "subnormal": (1e-310 * normal[0], 1e-310 * normal[1][1:]),
    }
