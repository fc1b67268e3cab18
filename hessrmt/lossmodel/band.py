"""A GOE matrix with a spike of low rank as a band matrix: O(n r) random numbers, exact in law.

The GOE is orthogonally invariant, so a spike of rank r may be taken diagonal in the first r
coordinates. Reflections of the other coordinates leave it alone, and they suffice to bring G to a
band of half-width r: column by column, the elements below row j + r are rotated into that row. What
they leave is, with all elements independent,

- on the diagonal N(0, 2), as in G;
- beside it, in the first r - 1 subdiagonals, N(0, 1), as in G;
- in the r-th subdiagonal the lengths of the vectors that were rotated, χ_{n-r}, ..., χ_2, χ_1.

For r = 1 that is the tridiagonal matrix of Dumitriu and Edelman, J. Math. Phys. 43, 5830 (2002); in
general the band of Bloemendal and Virág, Ann. Probab. 44, 2726 (2016), section 1 (for r = 1 also
Probab. Theory Relat. Fields 156, 795 (2013)).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.linalg import LinAlgError, eig_banded

from hessrmt.ensembles.sampling import TRIDIAGONAL, tridiagonal_eigenvalues
from hessrmt.errors import ConvergenceError

if TYPE_CHECKING:
    from jaxtyping import Float64

    from hessrmt.arrays import Levels


def goe_band(
    n: int, width: int, generator: np.random.Generator
) -> Float64[np.ndarray, "width+1 n"]:
    """Band form of a GOE matrix in which the first ``width`` coordinates are as they were.

    Args:
        n: Dimension.
        width: Half-width r of the band: subdiagonals that are not zero. Above n - 1 it is n - 1,
            where nothing but the sign of one coordinate is left to choose.
        generator: Source of randomness.

    Returns:
        (r + 1, n), row k the k-th subdiagonal in its first n - k elements. With any diagonal matrix
        added that is zero beyond the first r coordinates, its eigenvalues have the law of those of
        a dense GOE matrix (off-diagonal variance 1) with the same addition.
    """
    width = min(width, n - 1)
    band = np.zeros((width + 1, n))
    band[0] = generator.normal(scale=2**0.5, size=n)
    for k in range(1, width):
        band[k, : n - k] = generator.normal(size=n - k)
    if width:
        band[width, : n - width] = np.sqrt(generator.chisquare(np.arange(n - width, 0, -1)))
    return band


def band_eigenvalues(band: Float64[np.ndarray, "width+1 n"]) -> Levels:
    """All eigenvalues of a symmetric band matrix, O(n² r).

    Args:
        band: (r + 1, n) lower form; overwritten.

    Returns:
        (n,) eigenvalues, ascending.

    Raises:
        ConvergenceError: If LAPACK's iteration fails.
    """
    try:
        if len(band) == 1:
            return np.sort(band[0])
        if len(band) == 2:
            return tridiagonal_eigenvalues(band[0], band[1, :-1])
        levels = eig_banded(
            band, lower=True, eigvals_only=True, overwrite_a_band=True, check_finite=False
        )
    except LinAlgError as error:
        raise ConvergenceError(f"the eigenvalue solver of band matrices failed: {error}") from error
    return np.asarray(levels)


def solver_words(n: int, width: int) -> str:
    """How the eigenvalues of :func:`goe_band` are found, in words for a record.

    Args:
        n: Dimension.
        width: Half-width r.

    Returns:
        The form of the matrix and LAPACK's routines.
    """
    width = min(width, n - 1)
    if width < 2:
        return TRIDIAGONAL
    return f"GOE as a band of half-width {width} (LAPACK dsbtrd, dsterf)"
