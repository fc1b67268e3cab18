"""Which eigenvalues are real and which are round-off.

A backward-stable symmetric eigensolver returns the exact eigenvalues of a matrix H + E with
‖E‖₂ ≤ p(n) ε ‖H‖₂, so by Weyl's inequality each is known to within that bound (PHYSICS §4).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from hessrmt.arrays import Levels


def noise_floor(eigenvalues: Levels, dimension: int, dtype: str = "float64") -> float:
    """Bound n·ε·‖H‖₂ below which a computed eigenvalue cannot be told from zero.

    The convention of ``numpy.linalg.matrix_rank``, with n the dimension of the matrix that was
    diagonalised and ε of the precision it was *built* in.

    Args:
        eigenvalues: (n,) computed eigenvalues, in any order.
        dimension: n.
        dtype: Precision of the matrix.

    Returns:
        The floor, in the units of the eigenvalues; 0.0 for an empty or zero spectrum.
    """
    largest = float(np.abs(eigenvalues).max(initial=0.0))
    return dimension * float(np.finfo(dtype).eps) * largest
