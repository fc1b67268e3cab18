"""Which eigenvalues are real and which are round-off.

A backward-stable symmetric eigensolver returns the exact eigenvalues of a matrix H + E with
‖E‖₂ ≤ p(n) ε ‖H‖₂, so by Weyl's inequality each is known to within that bound (PHYSICS §4).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from hessrmt.curvature.fidelity import require_second_derivative
from hessrmt.curvature.products import eager_hessian_product
from hessrmt.curvature.rounding import directions, length, norm_bound, rounding_of
from hessrmt.errors import NonFiniteError, ProblemError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from hessrmt.arrays import Levels, Vectors
    from hessrmt.curvature.operators import CurvatureOperator
    from hessrmt.problems.problem import Problem

_AGREEMENT = 10
"""Multiple of √P·ε·‖H‖₂ up to which two differentiations may differ along a unit vector: what is
not there shows in the first digits, and what is below is in the noise floor."""


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


class Comparison(NamedTuple):
    """A matrix beside products with the Hessian.

    Attributes:
        residual: How far they are apart along one random unit vector; NaN if torch can do it in one
            way alone.
        rounding: Bound on the error of the matrix, in the 2-norm, with probability 0.999.
        of_product: Bound on the error of the products alone, likewise.
    """

    residual: float
    rounding: float
    of_product: float


@dataclass(frozen=True)
class Reference:
    """Products with the Hessian that a matrix is compared with.

    Attributes:
        rows: (r, P) independent Gaussian vectors.
        products: (r, P) the Hessian's with them.
        rounding: Bound on the error of these products, in the 2-norm, with probability 0.999.
    """

    rows: Vectors
    products: Vectors
    rounding: float

    def beside(self, product: Callable[[Tensor], Tensor]) -> Comparison:
        """How far a matrix may be from the Hessian.

        Args:
            product: What it does to a vector (P,), Q(QᵀHQ)Qᵀ if reduced.

        Returns:
            The differences, in the units of the eigenvalues.
        """
        pairs = zip(self.rows, self.products, strict=True)
        apart = [length(product(v) - w) for v, w in pairs]
        residual = apart[0] / length(self.rows[0])
        return Comparison(residual, self.rounding + norm_bound(apart), self.rounding)


def reference(problem: Problem) -> Reference:
    """Products with the Hessian by plain reverse-over-reverse differentiation.

    It shares no code with the way a matrix is built; its own rounding is measured, and it is
    compared with differences of the gradient. A direction wrongly removed, a wrong block or a wrong
    derivative shows beside it.

    Args:
        problem: In its final precision and place.

    Returns:
        The products.
    """
    rows = directions(problem)
    plain = eager_hessian_product(problem)
    products = plain(rows)
    rounding = rounding_of(lambda v: plain(v[None])[0], rows, products)
    scale = length(rows[0])
    require_second_derivative(problem, rows[0] / scale, products[0] / scale, rounding)
    return Reference(rows, products, rounding)


def random_direction(problem: Problem) -> Tensor:
    """The unit vector along which products are checked.

    Args:
        problem: In its final precision and place.

    Returns:
        (P,).
    """
    v = directions(problem, 1)[0]
    return v / v.norm()


def require_agreement(
    residual: float,
    norm: float,
    problem: Problem | CurvatureOperator,
    dtype: str,
    rounding: float = 0.0,
    operator: str = "hessian",
) -> float:
    """Refuse a matrix that does not act as the Hessian or the Gauss-Newton matrix does.

    Args:
        residual: From :meth:`Reference.beside`; NaN if torch can do it in one way alone.
        norm: ‖H‖₂.
        problem: Whose matrix it is, or its operator.
        dtype: Precision of the matrix.
        rounding: Bound on the error of the product that it was compared with.
        operator: ``"hessian"`` or ``"ggn"``.

    Returns:
        The residual relative to ‖H‖₂.

    Raises:
        NonFiniteError: If it is infinite, or that of a Hessian is NaN.
        ProblemError: If it exceeds what rounding explains, 10 ((√P + B/8) ε ‖H‖₂ + ``rounding``):
            a sum over B samples in turn loses up to a digit for each factor of ten in B.
    """
    relative = (problem.dimension**0.5 + problem.samples / 8) * float(np.finfo(dtype).eps)
    allowed = _AGREEMENT * (relative * norm + rounding)
    if math.isinf(residual) or (math.isnan(residual) and operator == "hessian"):
        raise NonFiniteError("a product with the matrix is NaN or infinite")
    if residual > allowed:
        name = "Hessian" if operator == "hessian" else "Gauss-Newton matrix"
        raise ProblemError(
            f"the matrix does not act as the {name}: along a random unit vector they differ by "
            f"{residual:.3g}, rounding explains {allowed:.3g}. No level is reported. Either the "
            "loss changes along directions that this model's structure seems to leave free (try "
            "--reduce none), or samples mix where a trial did not show it, or torch differentiates "
            "one of the operations wrongly"
        )
    return residual / norm if norm else 0.0
