"""Which eigenvalues are real and which are round-off.

A backward-stable symmetric eigensolver returns the exact eigenvalues of a matrix H + E with
‖E‖₂ ≤ p(n) ε ‖H‖₂, so by Weyl's inequality each is known to within that bound (PHYSICS §4).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from hessrmt import rng
from hessrmt.curvature.fidelity import require_second_derivative
from hessrmt.errors import ProblemError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from hessrmt.arrays import Levels
    from hessrmt.problems.problem import Problem

_AGREEMENT = 10
"""Multiple of √P·ε·‖H‖₂ up to which two differentiations may differ along a unit vector."""


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


def probe_product(problem: Problem, product: Callable[[Tensor], Tensor]) -> float:
    """‖Hv - product(v)‖ for a random unit vector v.

    Hv comes from plain reverse-over-reverse differentiation, which shares no code with the way the
    matrix was built, and which is itself compared with differences of the gradient; a direction
    wrongly removed, a wrong block or a wrong derivative shows here.

    Args:
        problem: In its final precision and place.
        product: What the assembled matrix does to a vector (P,), Q(QᵀHQ)Qᵀ if reduced.

    Returns:
        The residual, in the units of the eigenvalues.
    """
    v = random_direction(problem)
    return float((product(v) - require_second_derivative(problem, v)).norm())


def random_direction(problem: Problem) -> Tensor:
    """The unit vector along which products are checked.

    Args:
        problem: In its final precision and place.

    Returns:
        (P,).
    """
    theta = problem.theta
    generator = rng.torch_generator(0, "agreement")
    v = torch.randn(problem.dimension, generator=generator, dtype=torch.float64)
    return (v / v.norm()).to(dtype=theta.dtype, device=theta.device)


def require_agreement(
    residual: float,
    norm: float,
    size: int,
    dtype: str,
    rounding: float = 0.0,
    operator: str = "hessian",
) -> float:
    """Refuse a matrix that does not act as the Hessian or the Gauss-Newton matrix does.

    Args:
        residual: From :func:`probe_product`; NaN if torch can do it in one way alone.
        norm: ‖H‖₂.
        size: P.
        dtype: Precision of the matrix.
        rounding: What rounding in the loss's derivatives may add, in the units of the eigenvalues.
        operator: ``"hessian"`` or ``"ggn"``.

    Returns:
        The residual relative to ‖H‖₂.

    Raises:
        ProblemError: If it exceeds what rounding explains, 10 (√P ε ‖H‖₂ + ``rounding``).
    """
    allowed = _AGREEMENT * (size**0.5 * float(np.finfo(dtype).eps) * norm + rounding)
    if residual > allowed or (operator == "hessian" and math.isnan(residual)):
        name = "Hessian" if operator == "hessian" else "Gauss-Newton matrix"
        raise ProblemError(
            f"the matrix does not act as the {name}: along a random unit vector they differ by "
            f"{residual:.3g}, rounding explains {allowed:.3g}. No level is reported. Either the "
            "loss changes along directions that this model's structure seems to leave free (try "
            "--reduce none), or samples mix where a trial did not show it, or torch differentiates "
            "one of the operations wrongly"
        )
    return residual / norm if norm else 0.0
