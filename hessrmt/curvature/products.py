"""Curvature-vector products, many vectors at a time, by double automatic differentiation.

Forward-over-reverse (Pearlmutter 1994) under ``vmap`` is the fast way. Operations for which torch
has no forward-mode rule, or a wrong one, go reverse-over-reverse; those it cannot batch go vector
by vector. The choice is made on two random vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.func import grad, jvp, vjp, vmap

from hessrmt import rng
from hessrmt.curvature.gradients import curvature_of_loss, pull, push
from hessrmt.errors import ProblemError
from hessrmt.problems.outputs import InOneTensor, in_one_tensor, loss_mass

if TYPE_CHECKING:
    from hessrmt.arrays import Vector, Vectors
    from hessrmt.problems.problem import Problem

_ONCE = once_differentiable(lambda _: None).__code__
"""Code of every backward pass that is marked so."""

Product = Callable[["Vectors"], "Vectors"]
"""Maps k vectors (k, P) to k products (k, P)."""


def hessian_product(problem: Problem) -> Product:
    """Products V ↦ V·H with the Hessian at the problem's parameters.

    Args:
        problem: In its final precision and place.

    Returns:
        The batched product; its way of differentiating has been tried on one vector.
    """
    theta = problem.theta
    gradient = grad(problem.loss)

    def forward(v: Vector) -> Vector:
        return jvp(gradient, (theta,), (v,))[1]

    def reverse(v: Vector) -> Vector:
        return vjp(gradient, theta)[1](v)[0]

    return _first_that_works(
        theta,
        (
            vmap(forward, randomness="error"),
            vmap(reverse, randomness="error"),
            eager_hessian_product(problem),
        ),
    )


def eager_hessian_product(problem: Problem, *, keep: bool = False) -> Product:
    """The Hessian's product by plain reverse-over-reverse, one vector at a time.

    Shares nothing with ``torch.func``, so it also serves as an independent check.

    Args:
        problem: In its final precision and place.
        keep: Build the graph of the gradient once, at the first product, and keep it.

    Returns:
        The product.
    """
    theta = problem.theta
    kept: tuple[Tensor, Tensor | None] | None = None

    def slope() -> tuple[Tensor, Tensor | None]:
        point = theta.clone().requires_grad_()
        loss = problem.loss(point)
        if not loss.requires_grad:
            return point, None
        _require_twice_differentiable(loss)
        first = torch.autograd.grad(loss, point, create_graph=True)[0]
        return point, first if first.requires_grad else None

    def product(block: Vectors) -> Vectors:
        nonlocal kept
        point, first = kept or slope()
        if keep:
            kept = point, first
        if first is None:  # a loss linear in the parameters: no curvature at all
            return torch.zeros_like(block)
        rows = [
            torch.autograd.grad(first, point, v, retain_graph=True, materialize_grads=True)[0]
            for v in block
        ]
        return torch.stack(rows)

    return product


def _require_twice_differentiable(loss: Tensor) -> None:
    """Refuse a loss of which torch would take a part of the gradient for a constant.

    An operation marked ``once_differentiable`` leaves no way from its gradient to the parameters:
    its curvature is lost, without a word where the gradient that enters it is a constant.

    Args:
        loss: With its graph.

    Raises:
        ProblemError: If there is such an operation.
    """
    seen, waiting = set(), [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        backward = getattr(getattr(node, "_forward_cls", None), "backward", None)
        if getattr(backward, "__code__", None) is _ONCE:
            raise ProblemError(
                f"the loss cannot be differentiated twice by torch: {node.name()} is marked "
                "once_differentiable (a custom kernel); replace that operation"
            )
        seen.add(node)
        waiting += [following for following, _ in node.next_functions]


def ggn_product(problem: Problem) -> Product:
    """Products V ↦ V·G with the generalised Gauss-Newton matrix G = Jᵀ S J.

    J is the Jacobian of the outputs, S the Hessian of the loss in the outputs (Schraudolph 2002).

    Args:
        problem: In its final precision and place.

    Returns:
        The batched product.

    Raises:
        OutOfMemoryError: If a device has no room.
    """
    problem = in_one_tensor(problem)
    theta = problem.theta
    plain = eager_ggn_product(problem)
    try:
        outputs, pullback = vjp(problem.outputs, theta)[:2]
        curve = vjp(grad(problem.loss_of_outputs), outputs)[1]  # S is symmetric
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # a network that differentiates itself
        return plain

    def forward(v: Vector) -> Vector:
        tangent = jvp(problem.outputs, (theta,), (v,))[1]
        return pullback(curve(tangent)[0])[0]

    return _first_that_works(theta, (vmap(forward, randomness="error"), plain))


def eager_ggn_product(problem: Problem) -> Product:
    """Products with Jᵀ S J by plain differentiation, one vector at a time.

    Shares nothing with ``torch.func``, so it also serves as an independent check.

    Args:
        problem: In its final precision and place.

    Returns:
        The product. Raises ProblemError at a vector if torch can multiply by J neither in forward
        mode nor by differentiating twice in reverse.
    """
    problem = in_one_tensor(problem)

    def product(block: Vectors) -> Vectors:
        curve = curvature_of_loss(problem, problem.here())
        rows = []
        for v in block:
            tangent = push(problem, v, problem.samples, reverse=True)
            if tangent is None:
                raise ProblemError(
                    "the outputs of this network can be differentiated by torch neither in forward "
                    "mode nor twice in reverse, so that the Gauss-Newton matrix cannot multiply a "
                    "vector; replace the operation that is marked once_differentiable"
                )
            curved = curve(tangent.reshape(1, -1)).view_as(tangent)
            rows.append(pull(problem, curved, problem.samples))
        return torch.stack(rows)

    return product


class PerSample(InOneTensor):
    """A problem whose outputs are the losses of its samples, so that S is diagonal.

    Its Gauss-Newton matrix is the weighted mean of g_b g_bᵀ, the empirical Fisher matrix.

    Args:
        problem: In its final precision and place.

    Raises:
        ProblemError: If the losses of the samples do not add up to the loss.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self._problem = problem
        masses = [loss_mass(problem.part(slice(b, b + 1))) for b in range(problem.samples)]
        self.used = [number for number, mass in enumerate(masses) if mass]
        masses = [masses[number] for number in self.used]
        self.weights = self.theta.new_tensor(masses) / problem.total(masses)
        with torch.no_grad():
            whole, sum_ = problem.loss(self.theta), self.weights @ self.here()
        if not close(sum_, whole):
            raise ProblemError(
                f"the loss {problem.loss_name!r} is no mean over samples: it is {float(whole)!r} "
                f"and the samples' own losses add up to {float(sum_)!r}; so a sample has no "
                "gradient of its own"
            )

    def call(self, parameters: dict[str, Tensor]) -> Tensor:
        """The losses of the samples that count, (B,)."""
        return self._problem.losses(parameters, self.used)

    def here(self) -> Tensor:
        """The losses of the samples at the problem's parameters, (B,)."""
        return self.outputs(self.theta).detach()

    def loss_of_outputs(self, outputs: Tensor, *, check: bool = False) -> Tensor:  # noqa: ARG002
        """½ Σ w_b ℓ_b², whose second derivatives are the weights."""
        return 0.5 * (self.weights * outputs.square()).sum()


def fisher_product(problem: Problem) -> Product:
    """Products V ↦ V·E with the empirical Fisher matrix E = Σ_b w_b g_b g_bᵀ.

    Args:
        problem: In its final precision and place.

    Returns:
        The batched product.
    """
    return ggn_product(PerSample(problem))


def fisher_by_samples(problem: Problem) -> Product:
    """The same, by the gradient of one sample after the other.

    Args:
        problem: In its final precision and place.

    Returns:
        The product.
    """
    per_sample = PerSample(problem)

    def product(block: Vectors) -> Vectors:
        total = torch.zeros_like(block)
        for number, weight in zip(per_sample.used, per_sample.weights, strict=True):
            point = problem.theta.requires_grad_()
            loss = problem.part(slice(number, number + 1)).loss(point)
            slope = torch.autograd.grad(loss, point, materialize_grads=True)[0]
            total += weight * torch.outer(block @ slope, slope)
        return total

    return product


def _first_that_works(theta: Vector, ways: tuple[Product, ...]) -> Product:
    """The first way that multiplies two random vectors as the last, plainest way does."""
    generator = rng.torch_generator(0, "product-probe")
    probe = torch.randn(2, theta.numel(), generator=generator, dtype=torch.float64)
    probe = probe.to(dtype=theta.dtype, device=theta.device)
    reasons: list[str] = []
    expected = _attempt(ways[-1], probe, reasons)
    for way in ways[:-1]:
        result = _attempt(way, probe, reasons)
        if result is None:
            continue
        if expected is None or close(result, expected):
            return way
    if expected is not None:
        return ways[-1]
    raise ProblemError(
        "the loss cannot be differentiated twice by torch: " + "; ".join(dict.fromkeys(reasons))
    )


def _attempt(way: Product, probe: Vectors, reasons: list[str]) -> Tensor | None:
    try:
        return way(probe)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, NotImplementedError, TypeError) as error:
        reasons.append(str(error).strip().split("\n")[0])
        return None


def close(a: Tensor, b: Tensor) -> bool:
    """Whether two products agree to half the digits; if neither is finite, others judge.

    Args:
        a: A product.
        b: The same one by a plainer way.

    Returns:
        Whether ``a``'s way can be taken.
    """
    finite = [bool(torch.isfinite(x).all()) for x in (a, b)]
    if not all(finite):
        return not any(finite)
    return float((a - b).norm()) <= torch.finfo(a.dtype).eps ** 0.5 * float(b.norm())
