"""Which eigenvalues are real, which are round-off, and whether the matrix is the Hessian at all.

A backward-stable symmetric eigensolver returns the exact eigenvalues of a matrix H + E with
‖E‖₂ ≤ p(n) ε ‖H‖₂, so by Weyl's inequality each is known to within that bound.

Whether a product with the Hessian belongs to the gradient, differences of the gradient say. They
need first derivatives alone, so they share no formula with double differentiation and see an
operation whose second derivative is wrong: an ``autograd.Function`` that keeps an intermediate
result, a backward pass that cannot be differentiated, a rule that torch has wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from hessrmt import rng
from hessrmt.arrays import fetched
from hessrmt.curvature.products import attempt, eager_hessian_product, push
from hessrmt.curvature.rounding import (
    FEW_DIRECTIONS,
    changes,
    directions,
    length,
    lengths,
    norm_bound,
    rounding_of,
)
from hessrmt.errors import NonFiniteError, ProblemError
from hessrmt.problems.batches import map_tensors, tensors_of

if TYPE_CHECKING:
    from hessrmt.arrays import Levels, Vector, Vectors
    from hessrmt.curvature.operators import CurvatureOperator
    from hessrmt.curvature.products import Product
    from hessrmt.problems.outputs import InOneTensor
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

    @classmethod
    def of(cls, product: Product, rows: Vectors) -> Reference:
        """Products with some vectors, and their rounding.

        Args:
            product: Maps rows to rows, differentiating anew each time.
            rows: (r, P) independent Gaussian vectors.

        Returns:
            The products.
        """
        found = product(rows)
        return cls(rows, found, rounding_of(lambda v: product(v[None])[0], rows, found))

    def beside(self, product: Callable[[Tensor], Tensor]) -> Comparison:
        """How far a matrix may be from the Hessian.

        Args:
            product: What it does to a vector (P,), Q(QᵀHQ)Qᵀ if reduced.

        Returns:
            The differences, in the units of the eigenvalues.
        """
        pairs = zip(self.rows, self.products, strict=True)
        gaps = [product(v) - w for v, w in pairs]
        *apart, size = lengths([*gaps, self.rows[0]])
        return Comparison(apart[0] / size, self.rounding + norm_bound(apart), self.rounding)


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
    found = Reference.of(eager_hessian_product(problem), directions(problem))
    scale = found.rows[0].norm()
    v, product = found.rows[0] / scale, found.products[0] / scale
    require_second_derivative(problem, v, product, found.rounding)
    return found


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
    apart: Comparison,
    norm: float,
    problem: Problem | CurvatureOperator,
    dtype: str,
    operator: str = "hessian",
) -> float:
    """Refuse a matrix that does not act as the Hessian or the Gauss-Newton matrix does.

    Args:
        apart: How far it is from products by other differentiation.
        norm: ‖H‖₂.
        problem: Whose matrix it is, or its operator.
        dtype: Precision of the matrix.
        operator: ``"hessian"`` or ``"ggn"``.

    Returns:
        The residual relative to ‖H‖₂.

    Raises:
        NonFiniteError: If it is infinite, or that of a Hessian is NaN.
        ProblemError: If it exceeds what rounding explains, 10 times (√P + B/8) ε ‖H‖₂ and the
            rounding of the product: a sum over B samples in turn loses up to a digit for each
            factor of ten in B.
    """
    relative = (problem.dimension**0.5 + problem.samples / 8) * float(np.finfo(dtype).eps)
    allowed = _AGREEMENT * (relative * norm + apart.of_product)
    residual = apart.residual
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


_STEPS = 7
_SHORTER = 8
"""Steps tried, and how much shorter each is than the one before. A kink of ReLU at distance d along
the direction spoils all steps longer than d, and one huge parameter makes the first step too long
for the others."""

_FEW = 4
"""Samples on which the derivative of the outputs is looked at."""

_ROUNDING = 10
"""Multiple of ε that is taken for the rounding of a gradient and of a curvature."""

_DIGITS = 1e-4
"""Relative difference up to which a product and a difference quotient agree: of a wrong rule both
differ in the first digits, of a right one by the error that is estimated, and this much more."""


def gradient(loss: Callable[[Vector], Tensor], theta: Vector) -> Vector:
    """The gradient of a loss, by plain reverse mode.

    Args:
        loss: (P,) to a scalar.
        theta: (P,).

    Returns:
        (P,).
    """
    point = theta.detach().clone().requires_grad_()
    value = loss(point)
    if not value.requires_grad:
        return torch.zeros_like(point)
    return torch.autograd.grad(value, point, allow_unused=True, materialize_grads=True)[0]


def _outputs_size(problem: Problem) -> float:
    """‖J‖_F² over the number of samples, J the derivative of all outputs, by one random vector.

    A loss whose second derivatives in the outputs are of order 1 has curvature of this order.

    Args:
        problem: In float64.

    Returns:
        The size.
    """

    def combined(theta: Vector) -> Tensor:
        return _combined(problem.outputs(theta), "signs of outputs")

    return float(gradient(combined, problem.theta).norm()) ** 2 / problem.samples


def require_second_derivative(
    problem: Problem, v: Vector, product: Tensor | None = None, rounding: float | None = None
) -> None:
    """Refuse second derivatives by which the gradient does not change.

    A problem in float32 is checked in float64: it is the rule that may be wrong, not the digits.

    Args:
        problem: In its final precision and place.
        v: (P,) unit vector.
        product: (P,) H v; by plain reverse-over-reverse differentiation if None.
        rounding: Bound on its error; measured if None, where it matters.
    """
    if problem.dtype == torch.float64:
        product = eager_hessian_product(problem)(v[None])[0] if product is None else product
    else:  # a part may be of float32 and stay so
        problem, v = problem.at(torch.float64, v.device), v.double()
        product = attempt(eager_hessian_product(problem), v[None], errors=RuntimeError)
    if product is not None:
        require_difference(problem, v, product.reshape(-1), rounding)


def require_difference(
    problem: Problem, v: Vector, product: Tensor, rounding: float | None = None
) -> None:
    """Refuse a product that is not the change of the gradient along a direction.

    The central quotient (g(θ + hv) - g(θ - hv))/2h differs from Hv by truncation, by the rounding
    of the gradients, and by jumps of the gradient at kinks between the two points. The second
    difference g(θ + hv) - 2 g(θ) + g(θ - hv), divided by h, bounds all three: of a smooth loss it
    is h ‖∂³L‖, much more than the truncation h² ‖∂⁴L‖/6; of rounding and of jumps it holds as much
    as the quotient does. At a kink in θ itself the jumps of both sides may cancel in it; there they
    are measured one by one, as how far the gradient is from its limit. Where the bound is large
    nothing is said, nor where the network is so certain that its curvature is less than rounding in
    its outputs can bring.

    Args:
        problem: In float64.
        v: (P,) unit vector.
        product: (P,) H v.
        rounding: Bound on its error; measured if None, where it matters.

    Raises:
        ProblemError: If they differ by more than that bound at every step.
    """
    slope = partial(gradient, problem.loss)
    least = _ROUNDING * torch.finfo(problem.dtype).eps * _outputs_size(problem)
    found = _disagreement(slope, problem.theta, v, product, least + (rounding or 0.0))
    if found is not None:  # of what may be rounding is measured how much is
        if rounding is None:
            rows = directions(problem, FEW_DIRECTIONS)
            rounding = Reference.of(eager_hessian_product(problem), rows).rounding
        here = problem.theta[None].expand(FEW_DIRECTIONS, -1)
        moved = changes(slope, here, torch.stack([slope(point) for point in here]))
        of_slope = _ROUNDING * max(moved)
        found = _disagreement(slope, problem.theta, v, product, least + rounding, of_slope)
    if found is not None:
        raise ProblemError(_words(found, _wrong_part(problem)))


def require_gradient(
    loss: Callable[[Vector], Tensor],
    theta: Vector,
    slope: Vector,
    v: Vector,
    rounded: Callable[[], Tensor],
) -> None:
    """Refuse a gradient that is not how the loss changes.

    Args:
        loss: (P,) to a scalar.
        theta: (P,) where.
        slope: (P,) what torch takes for the gradient there.
        v: (P,) a random unit vector; the other direction is that of the gradient itself.
        rounded: The loss with every operation rounded otherwise.

    Raises:
        ProblemError: If along one of them the loss changes otherwise at every step.
    """
    size, epsilon = length(slope), torch.finfo(theta.dtype).eps

    def value(point: Vector) -> Vector:
        return loss(point).detach().reshape(1)

    for direction in (slope / size, v) if size else (v,):
        product = (slope @ direction)[None]
        found = _disagreement(value, theta, direction, product, epsilon * size)
        if found is not None:  # of what may be rounding is measured how much is
            of_loss = _ROUNDING * abs(float(rounded()) - float(loss(theta)))
            found = _disagreement(value, theta, direction, product, epsilon * size, of_loss)
        if found is not None:
            gap, bound, change = found
            raise ProblemError(
                f"torch's gradient of this loss is wrong: along a unit vector the loss changes by "
                f"{change:.3g}, the gradient's product with it differs from that by {gap:.3g}, and "
                f"differencing explains {bound:.3g}. The backward pass of some operation (an "
                "autograd.Function, a custom kernel, a detach() or a straight-through estimator) "
                "is not that of its forward pass; replace it"
            )


def require_jacobian(problem: InOneTensor, v: Vector) -> None:
    """Refuse a derivative of the outputs that is not how they change along a direction.

    Args:
        problem: In its final precision and place.
        v: (P,) unit vector.

    Raises:
        ProblemError: If J v, by two ways of differentiating, is not the quotient of differences.
    """
    whole = problem if problem.dtype == torch.float64 else problem.at(torch.float64, v.device)
    v, few = v.double(), slice(0, min(whole.samples, _FEW))

    def pushed(exact: Problem) -> tuple[Problem, Tensor | None]:
        return exact, push(exact, v, exact.samples)

    # a wrong rule shows in a few samples, but the network may need its whole batch
    exact, tangent = attempt(lambda: pushed(whole.part(few))) or pushed(whole)
    if tangent is None:
        return

    def outputs(theta: Vector) -> Vector:
        return exact.outputs(theta).detach().reshape(-1)

    here = outputs(exact.theta)
    rounding = _ROUNDING * torch.finfo(torch.float64).eps * float(here.norm())
    found = _disagreement(outputs, exact.theta, v, tangent.reshape(-1), rounding)
    if found is not None:
        gap, bound, size = found
        raise ProblemError(
            f"torch's derivative of the outputs is wrong: along a random unit vector they change "
            f"by {size:.3g}, the Jacobian's product with it differs from that by {gap:.3g}, and "
            f"differencing explains {bound:.3g}. Some operation (an autograd.Function with a wrong "
            "backward pass, a detach(), a straight-through estimator) makes what torch calls the "
            "derivative the derivative of no function; take it out"
        )


def require_changes_of(
    slope: Callable[[Vector], Vector], theta: Vector, v: Vector, product: Vector, size: float
) -> None:
    """:func:`require_difference` of the gradient of the loss in the outputs.

    Args:
        slope: Gives the gradient at a point.
        theta: (n,) where.
        v: (n,) unit vector.
        product: (n,) what the second derivative makes of it.
        size: Of second derivatives where the loss has some of order 1 in the outputs.

    Raises:
        ProblemError: If they differ by more than that bound at every step.
    """
    rounding = _ROUNDING * torch.finfo(theta.dtype).eps * size
    found = _disagreement(slope, theta, v, product, rounding)
    if found is not None:
        raise ProblemError(_words(found, "the loss"))


def _words(found: tuple[float, float, float], where: str) -> str:
    gap, bound, size = found
    return (
        f"torch's second derivative of this loss is wrong{where and f' in {where}'}: along a "
        f"random unit vector the gradient changes by {size:.3g}, the product with the second "
        f"derivative differs from that by {gap:.3g}, and differencing explains {bound:.3g}. Some "
        "operation (an autograd.Function that keeps an intermediate result for its backward pass, "
        "or one marked once_differentiable; a custom kernel) has a backward pass that torch "
        "differentiates wrongly; replace it. Or a detach() or straight-through estimator makes "
        "what torch calls the gradient the gradient of no function"
    )


def _disagreement(
    slope: Callable[[Vector], Vector],
    theta: Vector,
    v: Vector,
    product: Vector,
    rounding: float,
    of_slope: float = 0.0,
) -> tuple[float, float, float] | None:
    """Gap, its bound and the size of the quotient where they agree best; None if they do."""
    epsilon = torch.finfo(theta.dtype).eps
    here = slope(theta)
    step = epsilon ** (1 / 3) * theta.norm().clamp(min=1.0)
    reports = []
    for _ in range(_STEPS):
        up, down = (slope(theta + sign * step * v) for sign in (1, -1))
        quotient = (up - down) / (2 * step)
        differences = (up - 2 * here + down, quotient - product)
        sizes = [part.norm() for part in (*differences, quotient, product, here, up, down)]
        second, gap, change, expected, *slopes, now = map(float, fetched(*sizes, step))
        bound = second / now + rounding
        # where both sides are rounded alike
        bound += max(_ROUNDING * epsilon * max(slopes), of_slope) / now
        enough = _DIGITS * max(expected, change)
        if gap > bound + enough:
            half = (slope(theta + sign * step / 2 * v) for sign in (1, -1))
            limits = (2 * near - far for near, far in zip(half, (up, down), strict=True))
            bound += sum(lengths([limit - here for limit in limits])) / (2 * now)
        if not gap > bound + enough:  # what is not finite is for others to judge
            return None
        reports.append((gap, bound, change))
        step = step / _SHORTER
    return min(reports, key=lambda report: report[0] - report[1])


def _combined(tree: Any, stream: str) -> Tensor:
    """A random combination of all numbers in an object that depend on something."""
    draw, total = rng.torch_generator(0, stream), torch.zeros(())
    for leaf in tensors_of(tree):
        if leaf.is_floating_point() and leaf.requires_grad:
            weights = torch.randn(leaf.shape, generator=draw, dtype=torch.float64)
            total = total + (weights.to(leaf, non_blocking=True) * leaf).sum()
    return total


def _wrong_part(problem: Problem) -> str:
    """The innermost module whose second derivative is wrong, or the loss, in words."""
    calls: list[tuple[str, nn.Module, tuple[tuple, dict]]] = []

    def noted(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: tuple, keywords: dict, _outputs: Any) -> None:
            given = map_tensors((arguments, keywords), lambda t: t.detach().clone())
            calls.append((name, module, given))

        return hook

    with ExitStack() as stack, torch.no_grad():
        for name, module in problem.model.named_modules():
            handle = module.register_forward_hook(noted(name), with_kwargs=True)
            stack.callback(handle.remove)
        outputs = problem.outputs(problem.theta)
    for name, module, (arguments, keywords) in calls:  # those inside a module come before it
        inside = dict(module.named_parameters())
        if _is_wrong(partial(functional_call, module), inside, arguments, keywords):
            return f"{name} ({type(module).__name__})" if name else type(module).__name__
    if _is_wrong(problem.loss_of_outputs, outputs):
        return f"the loss {problem.loss_name!r}"
    return ""


def _is_wrong(function: Callable[..., Any], *given: Any) -> bool:
    """Whether torch's second derivative of a part disagrees with differences of its gradient."""

    def disagrees() -> bool:
        floats = [t for t in tensors_of(given) if t.is_floating_point()]
        sizes = [t.numel() for t in floats]

        def loss(theta: Vector) -> Tensor:
            pieces = iter(theta.split(sizes))
            moved = map_tensors(
                given, lambda t: next(pieces).view(t.shape) if t.is_floating_point() else t
            )
            return _combined(function(*moved), "combination of outputs")

        theta = torch.cat([t.detach().reshape(-1) for t in floats])
        part: Any = SimpleNamespace(theta=theta, loss=loss)
        v = random_direction(part)
        product = eager_hessian_product(part)(v[None])[0]
        return _disagreement(partial(gradient, loss), theta, v, product, 0.0) is not None

    return attempt(disagrees) or False  # a part that cannot be run alone says nothing
