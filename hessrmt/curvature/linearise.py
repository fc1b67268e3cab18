"""Products with the curvature of one micro-batch: linearised once, or differentiated every time.

The derivative of θ ↦ ∇L(θ) is traced once at the parameters; a product then runs only the tangent
part of Pearlmutter's (1994) forward-over-reverse rule. Where torch cannot trace a model, the
product is differentiated anew.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.func import grad, jvp, linearize, vjp

from hessrmt import rng
from hessrmt.curvature.products import (
    Product,
    close,
    eager_ggn_product,
    eager_hessian_product,
    ggn_product,
    hessian_product,
)
from hessrmt.problems.outputs import in_one_tensor

if TYPE_CHECKING:
    from hessrmt.arrays import Vector, Vectors
    from hessrmt.problems.problem import Problem

Way = Callable[["Problem"], Product]
"""From a problem to its product; all its rows are computed one by one."""


_REPEATS = 1000
"""Multiple of ε by which the same product may differ when it is computed again: sums in another
order on some devices. A graph that works in place is off in the first digits."""


class Ways(NamedTuple):
    """How products are computed.

    Attributes:
        linear: The linearised way.
        first: Its product for the problem that it was tried on; None if it does not work.
        plain: The way that differentiates anew for every block.
        check: What to check products with; shares as little with them as possible.
    """

    linear: Way
    first: Product | None
    plain: Way
    check: Way


def linearised_hessian(problem: Problem) -> Product:
    """Products with a Hessian whose gradient has been linearised.

    Args:
        problem: In its final precision and place.

    Returns:
        The product; it keeps the linearisation.
    """
    return _by_row(_linear(grad(problem.loss), problem.theta)[1])


def linearised_ggn(problem: Problem) -> Product:
    """Products with Jᵀ S J, each factor linearised.

    Args:
        problem: In its final precision and place.

    Returns:
        The product; it keeps the linearisations.
    """
    problem = in_one_tensor(problem)
    outputs, push = _linear(problem.outputs, problem.theta)
    pull = vjp(problem.outputs, problem.theta)[1]
    curve = vjp(grad(problem.loss_of_outputs), outputs)[1]  # S is symmetric
    return _by_row(lambda v: pull(curve(push(v))[0])[0])


def plain_ggn(problem: Problem) -> Product:
    """Products with Jᵀ S J, J v by forward mode each time.

    Args:
        problem: In its final precision and place.

    Returns:
        The product; it keeps the graph of one evaluation.
    """
    problem = in_one_tensor(problem)
    outputs, pull = vjp(problem.outputs, problem.theta)[:2]
    curve = vjp(grad(problem.loss_of_outputs), outputs)[1]

    def one(v: Vector) -> Vector:
        tangent = jvp(problem.outputs, (problem.theta,), (v,))[1]
        return pull(curve(tangent)[0])[0]

    return _by_row(one)


def forward_hessian(problem: Problem) -> Product:
    """Products with the Hessian by forward-over-reverse, a vector at a time.

    Args:
        problem: In its final precision and place.

    Returns:
        The product.
    """
    slope, theta = grad(problem.loss), problem.theta
    return _by_row(lambda v: jvp(slope, (theta,), (v,))[1])


def choose(problem: Problem, operator: str, *, linearise: bool) -> Ways:
    """The ways that multiply a random vector as :mod:`hessrmt.curvature.products` does.

    Args:
        problem: To try them on.
        operator: ``"hessian"`` or ``"ggn"``.
        linearise: Whether to try linearisation at all.

    Returns:
        The ways.
    """
    careful = hessian_product if operator == "hessian" else ggn_product
    theta = problem.theta
    generator = rng.torch_generator(0, "product-probe")
    probe = torch.randn(1, theta.numel(), generator=generator, dtype=torch.float64)
    probe = probe.to(dtype=theta.dtype, device=theta.device)
    expected = careful(problem)(probe)

    epsilon = torch.finfo(theta.dtype).eps

    def works(way: Way) -> Product | None:
        try:
            product = way(problem)
            found = product(probe)
            product(-2 * probe)
            again = product(probe)  # some traced graphs work in place, each call on the last one's
        except (torch.OutOfMemoryError, MemoryError):
            raise
        except Exception:  # torch's tracer raises many kinds of error
            return None
        repeats = float((again - found).norm()) <= _REPEATS * epsilon * float(found.norm())
        return product if repeats and close(found, expected) else None

    if operator == "ggn":
        first = works(linearised_ggn) if linearise else None
        plain = plain_ggn if works(plain_ggn) else ggn_product
        return Ways(linearised_ggn, first, plain, eager_ggn_product)
    first = works(linearised_hessian) if linearise else None
    other = forward_hessian if works(forward_hessian) else hessian_product
    # reverse-over-reverse runs what forward mode cannot, and is as quick for a vector
    plain = eager_hessian_product
    return Ways(linearised_hessian, first, plain, other if first is None else plain)


def _linear(function: Callable, point: torch.Tensor) -> tuple[torch.Tensor, Callable]:
    with warnings.catch_warnings():
        # about the tracer's own constants
        warnings.filterwarnings("ignore", message="Attempted to insert a get_attr Node")
        return linearize(function, point)


def _by_row(one: Callable[[Vector], Vector]) -> Product:
    def product(block: Vectors) -> Vectors:
        return torch.stack([one(v).detach() for v in block])

    return product
