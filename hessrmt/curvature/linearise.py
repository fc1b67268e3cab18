"""Products with the curvature of one micro-batch that keep what can be used again.

A few products use the graph of the gradient, which is built once. From about a hundred products on
it pays to trace the derivative of θ ↦ ∇L(θ) at the parameters: a product then runs only the tangent
part of Pearlmutter's (1994) forward-over-reverse rule. What torch cannot keep or trace is
differentiated anew.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.func import grad, jvp, linearize, vjp

from hessrmt import rng
from hessrmt.curvature.products import (
    PerSample,
    Product,
    close,
    eager_ggn_product,
    eager_hessian_product,
    fisher_by_samples,
    fisher_product,
    ggn_product,
)
from hessrmt.problems.outputs import in_one_tensor
from hessrmt.problems.problem import of_parts

if TYPE_CHECKING:
    from hessrmt.arrays import Vector, Vectors
    from hessrmt.problems.problem import Problem

Way = Callable[["Problem"], Product]
"""From a problem to its product; all its rows are computed one by one."""

TRACED_FROM = 100
"""Products from which tracing pays (docs/density.md)."""

_REPEATS = 1000
"""Multiple of ε by which the same product may differ when it is computed again: sums in another
order on some devices. A graph that works in place is off in the first digits."""


class Ways(NamedTuple):
    """How products are computed.

    Attributes:
        kept: Keeps what can be used again; its product is a :class:`KeptProduct`.
        plain: Differentiates anew for every block.
        check: What to check products of the other two with; shares as little with them as possible.
    """

    kept: Callable[[Problem], KeptProduct]
    plain: Way
    check: Way


class KeptProduct:
    """A product that goes the quickest way that works: traced, with a kept graph, or anew.

    Args:
        problem: In its final precision and place.
        traced: Linearises.
        kept: Keeps a graph.
        plain: Keeps nothing; also what the others are compared with.

    Attributes:
        traced: Whether products are linearised now.
    """

    def __init__(self, problem: Problem, traced: Way, kept: Way, plain: Way) -> None:
        self._problem, self._trace, self._keep, self._plain = problem, traced, kept, plain
        self._quick: Product | None = None
        self._fails = self._tried = self.traced = False

    def __call__(self, block: Vectors) -> Vectors:
        """Products with the rows of a block.

        Args:
            block: (k, P).

        Returns:
            (k, P).

        Raises:
            OutOfMemoryError: If there is no room.
            MemoryError: Likewise.
        """
        if not self._fails:
            try:
                self._quick = self._quick or self._keep(self._problem)
                return self._quick(block)
            except (torch.OutOfMemoryError, MemoryError):
                raise
            except Exception:  # of many kinds; some at a later call, or after another evaluation
                self._quick, self._fails, self.traced = None, True, False
        return self._plain(self._problem)(block)

    def trace(self) -> None:
        """Linearise, once, if torch can and the traced product acts as the present one."""
        if self._tried:
            return
        self._tried = True
        probe = _probe(self._problem)
        product = _works(self._trace, self._problem, probe, self(probe))
        if product is not None:
            self._quick, self._fails, self.traced = product, False, True


def choose(problem: Problem, operator: str) -> Ways:
    """The ways of differentiating that a problem allows.

    Args:
        problem: To try them on.
        operator: ``"hessian"``, ``"ggn"`` or ``"fisher"``.

    Returns:
        The ways.
    """
    if operator == "fisher":
        with of_parts():
            PerSample(problem)  # refuses what is no mean over samples
        traced = keep = plain = fisher_product
        check = fisher_by_samples
    elif operator == "hessian":
        traced, check = linearised_hessian, checking_hessian
        # reverse-over-reverse runs what forward mode cannot, and is as quick for a vector
        keep, plain = partial(eager_hessian_product, keep=True), eager_hessian_product
    else:
        traced, check, probe = linearised_ggn, eager_ggn_product, _probe(problem)
        works = _works(plain_ggn, problem, probe, ggn_product(problem)(probe))
        keep = plain = plain_ggn if works else ggn_product
    return Ways(lambda part: KeptProduct(part, traced, keep, plain), plain, check)


def linearised_hessian(problem: Problem) -> Product:
    """Products with a Hessian whose gradient has been linearised.

    Args:
        problem: In its final precision and place.

    Returns:
        The product; it keeps the linearisation.
    """
    return _by_row(_linear(grad(problem.loss), problem.theta)[1])


def checking_hessian(problem: Problem) -> Product:
    """Products with the Hessian by forward-over-reverse, where torch has the rules for it.

    Args:
        problem: In its final precision and place.

    Returns:
        The product.
    """
    slope, theta = grad(problem.loss), problem.theta
    forward = _by_row(lambda v: jvp(slope, (theta,), (v,))[1])

    def product(block: Vectors) -> Vectors:
        try:
            return forward(block)
        except (torch.OutOfMemoryError, MemoryError):
            raise
        except Exception:  # of many kinds
            return eager_hessian_product(problem)(block)

    return product


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


def _probe(problem: Problem) -> Vectors:
    theta, generator = problem.theta, rng.torch_generator(0, "product-probe")
    probe = torch.randn(1, theta.numel(), generator=generator, dtype=torch.float64)
    return probe.to(dtype=theta.dtype, device=theta.device)


def _works(way: Way, problem: Problem, probe: Vectors, expected: Vectors) -> Product | None:
    """The product of a way that multiplies a vector as expected, and again so."""
    try:
        product = way(problem)
        found = product(probe)
        product(-2 * probe)
        again = product(probe)  # some traced graphs work in place, each call on the last one's
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception:  # torch's tracer raises many kinds of error
        return None
    rounding = _REPEATS * torch.finfo(probe.dtype).eps * float(found.norm())
    repeats = float((again - found).norm()) <= rounding
    return product if repeats and close(found, expected) else None


def _linear(function: Callable, point: torch.Tensor) -> tuple[torch.Tensor, Callable]:
    with warnings.catch_warnings():
        # about the tracer's own constants
        warnings.filterwarnings("ignore", message="Attempted to insert a get_attr Node")
        return linearize(function, point)


def _by_row(one: Callable[[Vector], Vector]) -> Product:
    def product(block: Vectors) -> Vectors:
        return torch.stack([one(v).detach() for v in block])

    return product
