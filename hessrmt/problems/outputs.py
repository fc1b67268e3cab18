"""What a loss sees of a network: its outputs in one tensor, and which kind of loss they enter."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hessrmt import rng
from hessrmt.arrays import fetched
from hessrmt.errors import ProblemError, let_pass
from hessrmt.problems.batches import map_tensors, tensors_of
from hessrmt.problems.differentiation import derivatives
from hessrmt.problems.losses import SoftmaxCall, cut_softmax
from hessrmt.problems.problem import Problem

if TYPE_CHECKING:
    from jaxtyping import Float, Int

_SUM_ULPS = 64
"""How far, in ulps of what is added up, a sum of derivatives that is zero may come out."""


class InOneTensor(Problem):
    """A problem whose network gives all that its loss depends on in one floating-point tensor.

    A tensor stays as it is. Those of a structure are laid side by side, sample by sample, if each
    has the batch first, and end to end otherwise; complex numbers become pairs. Caches, integers,
    ``None`` and tensors that the loss does not depend on are left to the loss as they are.

    Args:
        problem: The same problem with outputs of any type.
    """

    def __init__(self, problem: Problem) -> None:
        self.__dict__.update(problem.__dict__)
        self._places: tuple[int, ...] | None = None
        self._kept: tuple[Any, Any, Any] = (None, None, None)
        outputs = self._example()
        if not (isinstance(outputs, Tensor) and outputs.is_floating_point() and outputs.dim()):
            self._places = self._seen(outputs)

    def call(self, parameters: dict[str, Tensor]) -> Tensor:
        """The network's outputs on the batch at named trainable parameters.

        Returns:
            One tensor.
        """
        return self._packed(super().call(parameters))

    def loss_of_outputs(self, outputs: Tensor, *, check: bool = False) -> Tensor:
        """The scalar loss of given outputs on the batch's targets.

        Args:
            outputs: From :meth:`call`.
            check: Whether to look at the values of class labels.

        Returns:
            A scalar tensor.
        """
        if self._places is None:
            return super().loss_of_outputs(outputs, check=check)
        example = self._example()
        leaves = [(leaf, _real(leaf).shape) for leaf in self._leaves(example)]
        each = self.samples if outputs.dim() == 2 else 1
        pieces = iter(outputs.split([shape.numel() // each for _, shape in leaves], dim=-1))
        given = {}
        for leaf, shape in leaves:
            part = next(pieces).reshape(shape)
            given[id(leaf)] = torch.view_as_complex(part) if leaf.is_complex() else part
        tree = map_tensors(example, lambda tensor: given.get(id(tensor), tensor))
        return super().loss_of_outputs(tree, check=check)

    def evaluate(self, *, compare: bool = True) -> tuple[float, float]:
        """Loss and gradient norm, after the checks of the problem as it was given.

        Args:
            compare: Whether it is compared with the user's own model.

        Returns:
            The mean loss and the Euclidean norm of its gradient.
        """
        given = Problem.__new__(Problem)
        given.__dict__.update(self.__dict__)
        return given.evaluate(compare=compare)

    def slope(self, outputs: Tensor, *, graph: bool = False) -> tuple[Tensor, Tensor]:
        """The derivative of the loss in the outputs.

        Args:
            outputs: Where.
            graph: Whether to keep the graph of the derivative.

        Returns:
            The outputs as the leaf of that graph, and the derivative.
        """
        point = outputs.detach().requires_grad_()
        loss = self.loss_of_outputs(point.clone())  # it may work in place
        return point, derivatives(loss, [point], graph=graph)[0]

    def here(self) -> Tensor:
        """The outputs at the problem's parameters; the network is run on a batch once.

        Returns:
            One tensor, without its graph.
        """
        return self._packed(self._example())

    def _example(self) -> Any:
        """What the network returns at the problem's parameters, without graphs."""
        model, inputs, _ = self._kept  # copies of the problem have others
        if model is not self.model or inputs is not self.inputs:
            found = super().call(self.unflatten(self.theta))
            try:
                self._kept = self.model, self.inputs, map_tensors(found, Tensor.detach)
            except TypeError as error:
                raise ProblemError(
                    f"the network returns a {type(found).__name__} that cannot be copied "
                    f"({error}); let it return tensors, or a tuple, dict or dataclass of them"
                ) from error
        return self._kept[2]

    def _seen(self, outputs: Any) -> tuple[int, ...]:
        """Places of the tensors that the loss depends on."""
        free = {
            place: (leaf, leaf.detach().requires_grad_())
            for place, leaf in enumerate(tensors_of(outputs))
            if leaf.is_floating_point() or leaf.is_complex()
        }
        given = {id(leaf): point.clone() for leaf, point in free.values()}
        loss = super().loss_of_outputs(map_tensors(outputs, lambda t: given.get(id(t), t)))
        if not free or not loss.requires_grad:
            return ()
        points = [point for _, point in free.values()]
        slopes = torch.autograd.grad(loss, points, allow_unused=True)
        return tuple(place for place, slope in zip(free, slopes, strict=True) if slope is not None)

    def _leaves(self, tree: Any) -> list[Tensor]:
        found, places = tensors_of(tree), self._places or ()
        if places and places[-1] >= len(found):
            raise ProblemError(
                "the network returns another number of tensors for some batches than for others; "
                "let it return the same structure for each"
            )
        return [found[place] for place in places]

    def _packed(self, tree: Any) -> Tensor:
        if self._places is None:
            return tree
        leaves = [_real(leaf) for leaf in self._leaves(tree)]
        if not leaves:
            return self.theta.new_zeros(0)
        apart = all(leaf.dim() and len(leaf) % self.samples == 0 for leaf in leaves)
        shape = (self.samples, -1) if apart else (-1,)
        return torch.cat([leaf.reshape(shape) for leaf in leaves], dim=-1)


def in_one_tensor(problem: Problem) -> InOneTensor:
    """A problem with all outputs that the loss depends on in one tensor.

    Args:
        problem: With outputs of any type.

    Returns:
        The same problem if it is one already; else one that has run the network once.
    """
    return problem if isinstance(problem, InOneTensor) else InOneTensor(problem)


@dataclass(frozen=True)
class SoftmaxRows:
    """A loss Σ_r w_r log Σ_c exp f_rc, up to terms linear in the outputs: softmax cross-entropy.

    Attributes:
        index: (R, c) where in the flattened outputs the scores of each row are.
        weights: (R,) w_r, zero for a row that is ignored.
    """

    index: Int[Tensor, "R c"]
    weights: Float[Tensor, " R"]

    def probabilities(self, outputs: Tensor) -> Float[Tensor, "R c"]:
        """Softmax of each row.

        Args:
            outputs: Of the batch.

        Returns:
            (R, c).
        """
        return torch.softmax(outputs.detach().reshape(-1)[self.index], dim=1)

    def curved(self, outputs: Tensor, tangent: Tensor) -> Tensor:
        """S t with the Hessian S of the loss in the outputs, w (diag p - p pᵀ) for each row.

        Args:
            outputs: Of the batch.
            tangent: t, of their shape.

        Returns:
            Of their shape.
        """
        p = self.probabilities(outputs)
        t = tangent.reshape(-1)[self.index]
        # p (t - p·t) with t measured from the likeliest class, which cancels no digits
        t = t - t.gather(1, p.argmax(dim=1, keepdim=True))
        t = self.weights[:, None] * p * (t - (p * t).sum(dim=1, keepdim=True))
        found = torch.zeros_like(tangent.reshape(-1))
        found[self.index.reshape(-1)] = t.reshape(-1)
        return found.view_as(outputs)


def softmax_rows(problem: InOneTensor, outputs: Tensor) -> SoftmaxRows | None:
    """The rows of scores of which a loss is the cross-entropy.

    It is one if it depends on the outputs through cross-entropies and log-softmaxes alone and is
    linear in what these give, and if their scores are outputs, selected and reshaped. All spellings
    are found: with ``ignore_index``, class weights, label smoothing, probabilities for labels,
    flattened tokens.

    Args:
        problem: In its final precision and place.
        outputs: Of the batch.

    Returns:
        The rows; None for any other loss.
    """
    point, calls = _cross_entropies(problem, outputs)
    found = [_selected(call.scores, point, outputs) for call, _ in calls]
    indices = [index for index in found if index is not None and index.numel()]
    if not calls or len(indices) < len(calls) or len({index.shape[1] for index in indices}) > 1:
        return None
    index, weights = torch.cat(indices), torch.cat([weights for _, weights in calls])
    if len(calls) > 1:  # the same scores may enter twice
        index, where = index.unique(dim=0, return_inverse=True)
        weights = weights.new_zeros(len(index)).index_add(0, where, weights)
        if len(index.unique()) != index.numel():
            return None
    return SoftmaxRows(index, weights)


def loss_mass(problem: Problem) -> float:
    """How much a batch counts in the mean over several: L = Σ_j m_j L_j / Σ_j m_j.

    Args:
        problem: Of one batch, in its final precision and place.

    Returns:
        1 for a sum over samples; for a cross-entropy the number of rows that it takes the mean of,
        or the sum of their class weights; otherwise the number of samples.
    """
    if problem.is_sum:
        return 1.0
    mass = _recorded_mass(problem)
    return float(problem.samples) if mass is None else mass


def is_recorded_mean(problem: Problem) -> bool:
    """Whether a loss is a mean that torch's cross-entropy takes, whose divisor is known.

    Args:
        problem: Of one batch, in its final precision and place.

    Returns:
        Whether :func:`loss_mass` is more than an assumption.
    """
    return _recorded_mass(problem) is not None


def _recorded_mass(problem: Problem) -> float | None:
    """What the cross-entropies of a loss divide by; None if there is no such number."""
    problem = in_one_tensor(problem)
    masses = {call.mass for call, _ in _cross_entropies(problem, problem.here())[1]}
    return masses.pop() if len(masses) == 1 else None


def _cross_entropies(
    problem: InOneTensor, outputs: Tensor
) -> tuple[Tensor, list[tuple[SoftmaxCall, Tensor]]]:
    """The cross-entropies that a loss is made of, found by running it once.

    Returns:
        The outputs as a leaf of the graph; and each cross-entropy with the weights of its rows, or
        nothing if the loss depends on the outputs in another way or is not linear in them.
    """
    watched = copy.copy(problem)
    watched.loss_function, calls = cut_softmax(problem.loss_function)
    point = outputs.detach().requires_grad_()
    loss = watched.loss_of_outputs(point.clone())
    if not calls or not loss.requires_grad:
        return point, []
    results = [call.result for call in calls]
    *slopes, rest = torch.autograd.grad(
        loss, [*results, point], create_graph=True, allow_unused=True
    )
    if rest is not None or any(slope is None for slope in slopes):
        return point, []
    moving = [slope.square().sum() for slope in slopes if slope.requires_grad]
    if moving:
        second = torch.autograd.grad(torch.stack(moving).sum(), results, allow_unused=True)
        if any(part is not None and bool(part.count_nonzero()) for part in second):
            return point, []
    return point, [(c, c.weigh(slope.detach())) for c, slope in zip(calls, slopes, strict=True)]


def ignores_softmax_shift(problem: Problem) -> bool:
    """Whether a number added to all scores of a sample leaves the loss alone, as softmax does.

    Args:
        problem: In its final precision and place, with outputs (B, c).

    Returns:
        Whether the derivatives of the loss add up to zero over each sample's scores, at these
        outputs, near them, and at random ones of size 1.
    """
    problem = in_one_tensor(problem)
    outputs = problem.here()
    generator = rng.torch_generator(0, "shift")
    drawn = torch.randn(2, *outputs.shape, generator=generator, dtype=torch.float64)
    drawn = drawn.to(outputs, non_blocking=True)
    try:
        # where the network is certain a loss is linear but for exponentially little, and any may
        # seem to be invariant: so elsewhere, too
        places = (outputs, outputs + drawn[0], drawn[1])
        found = torch.stack([problem.slope(place)[1] for place in places])
    except (RuntimeError, ValueError, IndexError) as error:  # defined for some outputs only
        let_pass(error)
        return False
    ends = [part.abs().max() for part in (found.sum(dim=-1), found, outputs)]
    total, largest, size = map(float, fetched(*ends))
    # of a network that is certain, derivatives are differences of numbers as large as the random
    # ones; exp makes a relative error of the rounding of its argument
    allowed = outputs.shape[-1] * torch.finfo(outputs.dtype).eps * largest * (4 + size)
    return total <= allowed


def _real(leaf: Tensor) -> Tensor:
    return torch.view_as_real(leaf) if leaf.is_complex() else leaf


def _selected(scores: Tensor, point: Tensor, outputs: Tensor) -> Tensor | None:
    """Which of the outputs the scores are; None if they are made of them in another way."""
    if not scores.requires_grad:
        return None
    numbers = torch.arange(1, scores.numel() + 1, device=scores.device).to(scores.dtype)
    slope = torch.autograd.grad(
        scores, point, numbers.view_as(scores), retain_graph=True, materialize_grads=True
    )[0].reshape(-1)
    where = slope.nonzero()[:, 0]
    order = slope[where].argsort()
    if len(where) != len(numbers) or bool((slope[where[order]] != numbers).any()):
        return None
    index = where[order].view(scores.shape)
    same = bool((scores == outputs.reshape(-1)[index]).all())
    return index.reshape(-1, scores.shape[-1]) if same else None
