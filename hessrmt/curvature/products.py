"""Products of vectors with curvature matrices, by several ways of differentiating.

- J v, Jᵀu and S t by torch's plain forward and reverse mode: they use neither ``torch.func`` nor a
  layer's structure, so that they can check what does.
- Products with a Hessian or a Gauss-Newton matrix, many vectors at a time. Forward-over-reverse
  (Pearlmutter 1994) under ``vmap`` is the fast way. Operations for which torch has no forward-mode
  rule, or a wrong one, go reverse-over-reverse; those it cannot batch go vector by vector. The
  choice is made on two random vectors.
- Products that keep what can be used again. A few products use the graph of the gradient, which is
  built once. From about a hundred products on it pays to trace the derivative of θ ↦ ∇L(θ) at the
  parameters: a product then runs only the tangent part of the forward-over-reverse rule. What torch
  cannot keep or trace is differentiated anew.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable
from torch.func import grad, jvp, linearize, vjp, vmap

from hessrmt.arrays import fetched
from hessrmt.curvature.rounding import gaussian
from hessrmt.errors import ProblemError, let_pass
from hessrmt.problems.differentiation import of_parts
from hessrmt.problems.outputs import InOneTensor, in_one_tensor, loss_mass

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hessrmt.arrays import Vector, Vectors
    from hessrmt.problems.problem import Problem


_ONCE = once_differentiable(lambda _: None).__code__
"""Code of every backward pass that is marked so."""

Product = Callable[["Vectors"], "Vectors"]
"""Maps k vectors (k, P) to k products (k, P)."""

Way = Callable[["Problem"], Product]
"""From a problem to its product; all its rows are computed one by one."""

TRACED_FROM = 100
"""Products from which tracing pays (docs/density.md)."""

_REPEATS = 1000
"""Multiple of ε by which the same product may differ when it is computed again: sums in another
order on some devices. A graph that works in place is off in the first digits."""


def attempt(
    function: Callable[..., Any],
    *arguments: Any,
    errors: type[Exception] | tuple[type[Exception], ...] = Exception,
    reasons: list[str] | None = None,
) -> Any:
    """What a function gives, or None where torch cannot do it, for whichever of many reasons.

    Args:
        function: To be called.
        arguments: Of the function.
        errors: Those that say so.
        reasons: Where to note them.

    Returns:
        Its value.

    Nothing is caught that says that there is no room.
    """
    try:
        return function(*arguments)
    except errors as error:
        let_pass(error)
        if reasons is not None:
            reasons.append(str(error).strip().split("\n")[0])
        return None


def pull(problem: Problem, cotangent: Tensor, chunk: int) -> Vector:
    """Jᵀu.

    Args:
        problem: In its final precision and place.
        cotangent: u, of the shape of the outputs.
        chunk: Samples treated together; all of them if samples mix.

    Returns:
        (P,).
    """
    total = torch.zeros_like(problem.theta)
    for part, place in _parts(problem, len(cotangent), chunk):
        point = part.theta.requires_grad_()
        outputs = part.outputs(point)
        if outputs.requires_grad:
            total += torch.autograd.grad(
                outputs, point, cotangent[place], materialize_grads=True, allow_unused=True
            )[0]
    return total


def push(problem: Problem, v: Vector, chunk: int, *, reverse: bool = False) -> Tensor | None:
    """J v by forward mode, or as the derivative of u ↦ ⟨Jᵀu, v⟩ where torch has no forward rule.

    Args:
        problem: In its final precision and place.
        v: (P,).
        chunk: Samples treated together; all of them if samples mix.
        reverse: Whether to try the second way first.

    Returns:
        Of the shape of the outputs; None if torch can do neither.
    """
    first, second = (_transposed, _forward) if reverse else (_forward, _transposed)
    found = []
    for part, _ in _parts(problem, problem.samples, chunk):
        tangent = first(part, v)
        tangent = second(part, v) if tangent is None else tangent
        if tangent is None:
            return None
        found.append(tangent)
    return torch.cat(found)


def curvature_of_loss(problem: InOneTensor, outputs: Tensor) -> Callable[[Tensor], Tensor]:
    """Products with S by differentiating twice in reverse.

    Args:
        problem: In its final precision and place.
        outputs: Of the batch, at the problem's parameters.

    Returns:
        Maps (k, numbers of output) to the same; it keeps the graph of one evaluation of the loss.
    """
    point, slope = problem.slope(outputs, graph=True)
    slope = slope.reshape(-1)

    def product(block: Tensor) -> Tensor:
        if not slope.requires_grad:  # a loss linear in the outputs
            return torch.zeros_like(block)

        def backward(v: Tensor, batched: bool = False) -> Tensor:
            options = {"materialize_grads": True, "is_grads_batched": batched}
            found = torch.autograd.grad(slope, point, v, retain_graph=True, **options)[0]
            return found.reshape(v.shape)

        # some operations cannot be batched
        found = attempt(backward, block, True, errors=RuntimeError) if len(block) > 1 else None
        return torch.stack([backward(v) for v in block]) if found is None else found

    return product


def _parts(problem: Problem, length: int, chunk: int) -> Iterator[tuple[Problem, slice]]:
    """Parts of the batch and their places in the outputs' first dimension."""
    each = length // problem.samples
    if chunk >= problem.samples:
        yield problem, slice(0, length)
        return
    for start in range(0, problem.samples, chunk):
        stop = min(start + chunk, problem.samples)
        yield problem.part(slice(start, stop)), slice(start * each, stop * each)


def _forward(part: Problem, v: Vector) -> Tensor | None:
    with torch.no_grad(), forward_ad.dual_level():
        point = forward_ad.make_dual(part.theta, v)
        dual = attempt(part.outputs, point, errors=RuntimeError)
        if dual is None:
            return None
        outputs, tangent = forward_ad.unpack_dual(dual)
        return torch.zeros_like(outputs) if tangent is None else tangent


def _transposed(part: Problem, v: Vector) -> Tensor | None:
    point = part.theta.requires_grad_()
    outputs = part.outputs(point)
    if not outputs.requires_grad:
        return torch.zeros_like(outputs)
    dual = torch.ones_like(outputs, requires_grad=True)
    try:
        gradient = torch.autograd.grad(outputs, point, dual, create_graph=True)[0]
        tangent = torch.autograd.grad(gradient, dual, v)[0]
    except RuntimeError as error:
        let_pass(error)
        return None
    # torch drops, without a word, what an operation that cannot be differentiated twice adds
    slope = gradient.detach()
    whole, seen, size = map(float, fetched(slope @ v, tangent.sum(), slope.norm() * v.norm()))
    return tangent if abs(whole - seen) <= torch.finfo(v.dtype).eps ** 0.5 * size else None


def hessian_product(problem: Problem) -> Product:
    """Products V ↦ V·H with the Hessian at the problem's parameters.

    Args:
        problem: In its final precision and place.

    Returns:
        The batched product; its way of differentiating has been tried on one vector.
    """
    theta, gradient = problem.theta, grad(problem.loss)
    forward = vmap(_hessian_of_vector(problem), randomness="error")
    reverse = vmap(lambda v: vjp(gradient, theta)[1](v)[0], randomness="error")
    return _first_that_works(theta, (forward, reverse, eager_hessian_product(problem)))


def _hessian_of_vector(problem: Problem, linear: bool = False) -> Callable[[Vector], Vector]:
    """H v by forward-over-reverse; linearised, it keeps the graph of the gradient."""
    slope, theta = grad(problem.loss), problem.theta
    return _linear(slope, theta) if linear else lambda v: jvp(slope, (theta,), (v,))[1]


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

    def slope() -> tuple[Tensor, Tensor | None]:
        point = theta.clone().requires_grad_()
        loss = problem.loss(point)
        if not loss.requires_grad:
            return point, None
        _require_twice_differentiable(loss)
        first = torch.autograd.grad(loss, point, create_graph=True)[0]
        return point, first if first.requires_grad else None

    slope = cache(slope) if keep else slope

    def product(block: Vectors) -> Vectors:
        point, first = slope()
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
                "once_differentiable (a custom kernel); replace that operation, or take eigsh and "
                "density of hr.Hessian(problem, products='finite-difference')"
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
    """
    problem = in_one_tensor(problem)
    plain = eager_ggn_product(problem)
    forward = attempt(_ggn_of_vector, problem, errors=RuntimeError)
    if forward is None:  # a network that differentiates itself
        return plain
    return _first_that_works(problem.theta, (vmap(forward, randomness="error"), plain))


def _ggn_of_vector(problem: Problem, linear: bool = False) -> Callable[[Vector], Vector]:
    """Jᵀ S J v, J v by forward mode or linearised; it keeps the graph of one evaluation."""
    problem, theta = in_one_tensor(problem), problem.theta
    outputs, pullback = vjp(problem.outputs, theta)[:2]
    curve = vjp(grad(problem.loss_of_outputs), outputs)[1]  # S is symmetric
    linearised = _linear(problem.outputs, theta) if linear else None

    def product(v: Vector) -> Vector:
        tangent = linearised(v) if linearised else jvp(problem.outputs, (theta,), (v,))[1]
        return pullback(curve(tangent)[0])[0]

    return product


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
    probe = gaussian((2, theta.numel()), theta, "product-probe")
    refusals = (RuntimeError, TypeError)
    reasons: list[str] = []
    expected = attempt(ways[-1], probe, errors=refusals, reasons=reasons)
    for way in ways[:-1]:
        result = attempt(way, probe, errors=refusals, reasons=reasons)
        if result is not None and (expected is None or close(result, expected)):
            return way
    if expected is not None:
        return ways[-1]
    raise ProblemError(
        "the loss cannot be differentiated twice by torch: " + "; ".join(dict.fromkeys(reasons))
    )


def close(a: Tensor, b: Tensor) -> bool:
    """Whether two products agree to half the digits; if neither is finite, others judge.

    Args:
        a: A product.
        b: The same one by a plainer way.

    Returns:
        Whether ``a``'s way can be taken.
    """
    flags, norms = [torch.isfinite(x).all() for x in (a, b)], [(a - b).norm(), b.norm()]
    *finite, gap, size = map(float, fetched(*flags, *norms))
    if not all(finite):
        return not any(finite)
    return gap <= torch.finfo(a.dtype).eps ** 0.5 * size


class Ways(NamedTuple):
    """How products are computed.

    Attributes:
        traced: Linearises.
        kept: Keeps a graph.
        plain: Differentiates anew for every block; also what the first two are compared with.
        check: What to check products of the others with; shares as little with them as possible.
    """

    traced: Way
    kept: Way
    plain: Way
    check: Way


class KeptProduct:
    """A product that goes the quickest way that works: traced, with a kept graph, or anew.

    Args:
        problem: In its final precision and place.
        ways: How its products can be computed.

    Attributes:
        traced: Whether products are linearised now.
    """

    def __init__(self, problem: Problem, ways: Ways) -> None:
        self._problem, self._ways = problem, ways
        self._quick: Product | None = None
        self._fails = self._tried = self.traced = False

    def __call__(self, block: Vectors) -> Vectors:
        """Products with the rows of a block.

        Args:
            block: (k, P).

        Returns:
            (k, P).
        """
        if not self._fails:  # some fail at a later call, or after another evaluation
            self._quick = self._quick or attempt(self._ways.kept, self._problem)
            found = self._quick and attempt(self._quick, block)
            if found is not None:
                return found
            self._quick, self._fails, self.traced = None, True, False
        return self._ways.plain(self._problem)(block)

    def trace(self) -> None:
        """Linearise, once, if torch can and the traced product acts as the present one."""
        if self._tried:
            return
        self._tried = True
        product = _works(self._ways.traced, self._problem, self)
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
    if operator == "hessian":
        # reverse-over-reverse runs what forward mode cannot, and is as quick for a vector
        kept = partial(eager_hessian_product, keep=True)
        traced = partial(_by_row, _hessian_of_vector, linear=True)
        return Ways(traced, kept, eager_hessian_product, checking_hessian)
    if operator == "ggn":
        traced, plain = (partial(_by_row, _ggn_of_vector, linear=x) for x in (True, False))
        plain = plain if _works(plain, problem, ggn_product(problem)) else ggn_product
        return Ways(traced, plain, plain, eager_ggn_product)
    with of_parts():
        PerSample(problem)  # refuses what is no mean over samples
    return Ways(fisher_product, fisher_product, fisher_product, fisher_by_samples)


def checking_hessian(problem: Problem) -> Product:
    """Products with the Hessian by forward-over-reverse, where torch has the rules for it.

    Args:
        problem: In its final precision and place.

    Returns:
        The product.
    """
    forward = _by_row(_hessian_of_vector, problem)

    def product(block: Vectors) -> Vectors:
        found = attempt(forward, block)
        return eager_hessian_product(problem)(block) if found is None else found

    return product


def _works(way: Way, problem: Problem, known: Product) -> Product | None:
    """The product of a way that multiplies a vector as a known product does, and again so."""
    probe = gaussian((1, problem.dimension), problem.theta, "product-probe")
    expected, product = known(probe), attempt(way, problem)
    # some traced graphs work in place, each call on the last one's
    found, turned, again = (product and attempt(product, v) for v in (probe, -2 * probe, probe))
    if found is None or turned is None or again is None:
        return None
    gap, size = map(float, fetched((again - found).norm(), found.norm()))
    repeats = gap <= _REPEATS * torch.finfo(probe.dtype).eps * size
    return product if repeats and close(found, expected) else None


def _linear(function: Callable[[Vector], Tensor], point: Vector) -> Callable[[Vector], Tensor]:
    """The derivative of a function at a point, traced."""
    with warnings.catch_warnings():
        # about the tracer's own constants
        warnings.filterwarnings("ignore", message="Attempted to insert a get_attr Node")
        return linearize(function, point)[1]


def _by_row(way: Callable[..., Any], problem: Problem, *, linear: bool = False) -> Product:
    one = way(problem, linear)
    return lambda block: torch.stack([one(v).detach() for v in block])
