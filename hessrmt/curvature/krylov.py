"""What the iterations on Krylov spaces share: orthogonality, rotations, and what they refuse."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from hessrmt.curvature.rounding import lengths, require_symmetric
from hessrmt.errors import NonFiniteError, ProblemError

if TYPE_CHECKING:
    from hessrmt.arrays import Vectors
    from hessrmt.curvature.linear import Operator


KEEPS = 0.7
"""Share of a vector's norm below which one pass of orthogonalisation is not enough (about 1/√2)."""

PATIENCE = 100
"""Products for each vector of the basis after which a search ends with what has converged."""

_COLUMNS = 4096
"""Parameters whose part of the basis is rotated at a time."""


def rotate(basis: Vectors, some: slice, columns: np.ndarray) -> None:
    """Replace the first of some rows by combinations of all of them, in place.

    Args:
        basis: (k, n).
        some: Which m rows.
        columns: (m, j) coefficients of the combinations.
    """
    turn = torch.from_numpy(columns.T.copy()).to(basis, non_blocking=True)
    target = slice(some.start, some.start + len(turn))
    for first in range(0, basis.shape[1], _COLUMNS):
        part = slice(first, first + _COLUMNS)
        basis[target, part] = turn @ basis[some, part]


def norm_seen(products: Vectors, longest: float, before: float) -> float:
    """What is known of ‖H‖₂ from below: ‖Hv‖ <= ‖H‖₂.

    Args:
        products: (k, n) with unit vectors.
        longest: The largest of their norms; NaN if one is.
        before: What was known.

    Returns:
        The largest.

    Raises:
        NonFiniteError: If a product is NaN or infinite.
        ProblemError: If squares of numbers of this size, or of their rounding errors, are not those
            of the precision.
    """
    kind = torch.finfo(products.dtype)
    most, least = kind.max**0.5 / 1e3, kind.tiny**0.5 / (10 * kind.eps)
    norm = max(longest, before)  # NaN stays NaN
    if least <= norm <= most:
        return norm
    if not bool(torch.isfinite(products).all()):
        raise NonFiniteError("a product with the matrix is NaN or infinite")
    norm = max(before, *lengths(list(products)))
    if norm and not least <= norm <= most:
        raise ProblemError(
            f"the matrix's products with unit vectors are of size {norm:.1g}, and squares of such "
            f"numbers {'overflow' if norm > most else 'underflow'} in "
            f"{str(products.dtype).removeprefix('torch.')}: multiply the matrix (and a window's "
            f"bounds) by {10.0 ** -round(math.log10(norm)):.0e}"
        )
    return norm


def require_symmetric_products(
    operator: Operator, basis: Vectors, where: np.ndarray, gap: float, norm: float, slack: float
) -> None:
    """Refuse products that contradict H = Hᵀ, or differences along vectors with too long a step.

    Args:
        operator: H.
        basis: (k, n) unit vectors.
        where: Places of those whose products contradict each other most.
        gap: Largest |wᵀ(Hv) - vᵀ(Hw)|.
        norm: ‖H‖₂ as far as it was seen.
        slack: Share of it that may be rounding.

    Raises:
        ProblemError: If they do.
    """
    error = operator.product_error
    allowed = slack * norm + 4 * error  # of two products
    if error and gap > allowed:
        rows = basis[torch.from_numpy(np.unique(where)).to(basis.device)]
        stray = float(operator.truncation(rows).max())
        if gap <= allowed + 4 * stray:
            raise ProblemError(
                "the step of the finite differences is too long for a vector that Lanczos met: the "
                f"curvature changes along it so fast that products with it err by {stray:.3g} "
                f"(half the step shows it), where rounding explains {error:.3g} and the norm is "
                f"{norm:.3g}. Take products='differentiation', or dtype='float64', whose step is "
                "shorter"
            )
    require_symmetric(gap, norm, allowed, differences=bool(error))
