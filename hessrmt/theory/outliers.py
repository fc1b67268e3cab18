"""Where a large GOE matrix with a fixed matrix of low rank added has eigenvalues of its own.

An eigenvalue θ of the fixed matrix shows outside the bulk if |θ| > √(n a), and leaves no trace of
its own at the edge otherwise: the transition of Baik, Ben Arous and Péché. The random matrix √a·G
has elements of variance a off the diagonal and 2a on it; a shift of the whole spectrum is left out.
"""

import math

import numpy as np
from numpy.typing import ArrayLike

from hessrmt.theory.values import Values, real_values


def bbp_threshold(n: int, a: float = 1.0) -> float:
    """√(n a), the size above which an eigenvalue of the fixed matrix shows outside the bulk.

    Args:
        n: Dimension.
        a: Variance of an off-diagonal element.

    Returns:
        The threshold, half of the semicircle's radius.

    Raises:
        ValueError: n is no integer of at least 1, or a is not positive and finite.

    Source: Baik, Ben Arous, Péché, Ann. Probab. 33, 1643 (2005), for Wishart matrices; Capitaine,
        Donati-Martin, Féral, Ann. Probab. 37, 1 (2009), theorem 2.1.
    """
    if isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 1:
        raise ValueError(f"n is {n!r}, a dimension of at least 1 is expected; try n=1000.")
    if not 0 < a < math.inf:
        raise ValueError(f"a is {a!r}, a finite number above 0 is expected; try a=1.")
    return math.sqrt(n * a)


def bbp_position(theta: ArrayLike, n: int, a: float = 1.0) -> Values:
    """θ + n a/θ for |θ| > √(n a), else the edge ±2√(n a) of the bulk on the side of θ.

    Args:
        theta: Eigenvalues θ of the fixed matrix, any shape; 0 counts as positive.
        n: Dimension.
        a: Variance of an off-diagonal element.

    Returns:
        The limit of the eigenvalue that belongs to each, in the shape of theta; at finite n it is
        reached up to :func:`bbp_deviation` outside the bulk, and up to √a n^(-1/6) at its edge.

    Source: Capitaine, Donati-Martin, Féral, Ann. Probab. 37, 1 (2009), theorem 2.1.
    """
    threshold = bbp_threshold(n, a)
    values = real_values(theta, "theta")
    ratio = np.maximum(np.abs(values) / threshold, 1.0)
    return np.copysign(threshold * (ratio + 1 / ratio), values + 0.0)[()]


def bbp_deviation(theta: ArrayLike, n: int, a: float = 1.0) -> Values:
    """Standard deviation √(2a (1 - n a/θ²)) of an outlier about its position, NaN at the edge.

    The fluctuations of an outlier that belongs to a simple θ are normal in the limit n → ∞ with
    θ/√(n a) fixed; those of the largest eigenvalue inside the bulk are not.

    Args:
        theta: Simple eigenvalues θ of the fixed matrix, any shape.
        n: Dimension.
        a: Variance of an off-diagonal element.

    Returns:
        The standard deviation, in the shape of theta; NaN for |θ| ≤ √(n a).

    Source: Capitaine, Donati-Martin, Féral, Ann. Probab. 37, 1 (2009), theorem 2.2 for
        Gaussian elements.
    """
    threshold = bbp_threshold(n, a)
    ratio = np.abs(real_values(theta, "theta")) / threshold
    outside = ratio > 1
    safe = np.where(outside, ratio, 2.0)
    width = math.sqrt(2 * a) * np.sqrt((1 - 1 / safe) * (1 + 1 / safe))
    return np.where(outside, width, np.nan)[()]
