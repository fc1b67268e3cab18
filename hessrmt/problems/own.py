"""The user's own model and loss, beside the copy that is differentiated."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from hessrmt.arrays import fetched
from hessrmt.errors import let_pass
from hessrmt.problems.batches import map_tensors
from hessrmt.problems.differentiation import gradient_vector
from hessrmt.problems.lifting import as_written, called, running

if TYPE_CHECKING:
    from hessrmt.arrays import Vector
    from hessrmt.problems.losses import Loss
    from hessrmt.problems.problem import Problem


class Beside(NamedTuple):
    """The user's own model beside its copy.

    Attributes:
        loss: Of the user's model.
        again: Of the copy.
        theirs: (P,) gradient of the user's model.
        mine: (P,) that of the copy.
        gap: Norm of the difference of both.
        size: Norm of the longer one.
    """

    loss: float
    again: float
    theirs: Vector
    mine: Vector
    gap: float
    size: float


class Own:
    """The user's own model and loss: called, its buffers put back, never changed.

    Args:
        model: As it was given.
        loss: The callable.

    Attributes:
        model: The same.
        loss: The same.
    """

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        self.model, self.loss = model, loss

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the model."""
        kinds = (p.dtype for p in self.model.parameters() if p.is_floating_point())
        return next(kinds, torch.get_default_dtype())

    def beside(self, problem: Problem) -> Beside | None:
        """What the user's model and a problem's copy of it say of the problem's data.

        Both in the precision and the place of the user's, by the user's form of the loss. The
        user's model has the parameters and buffers of the copy meanwhile, and no hooks on its
        gradients; afterwards all of it is as before.

        Args:
            problem: Whose parameters are asked for.

        Returns:
            The losses and the gradients (P,) of the user's model and of the copy. None if the model
            can't be run as it is, has other parameters than when it was copied, or its numbers
            overflow.

        """
        parameters, copies = (dict(m.named_parameters()) for m in (self.model, problem.model))
        if {n: p.shape for n, p in parameters.items()} != {n: p.shape for n, p in copies.items()}:
            return None
        wanted = [parameters[name] for name in problem.names]
        if not all(p.requires_grad and not p.is_inference() for p in wanted):
            return None
        # from where it was copied: what lies on a device need not come back from it
        source = problem.origin or problem
        moved = source.at(self.dtype, wanted[0].device)
        moved.inside, moved.held_elsewhere = problem.inside, problem.held_elsewhere
        theta = moved.theta.requires_grad_()
        pieces = moved.unflatten(theta)
        plain = partial(running, moved.inside, moved.dtype, lift=False)
        for way in (as_written, plain):  # nothing replaced, or what torch cannot do as it is
            try:
                with self._as_copied(moved.model), way():
                    inputs, targets = (
                        partial(map_tensors, x, Tensor.clone) for x in moved.batch.pair
                    )
                    loss = self.loss(called(self.model, inputs()), targets())
                    with moved.reached_everywhere(pieces):
                        outputs = called(partial(moved.run, pieces), inputs())
                        again = moved.loss_function(outputs, targets())
                    slopes = [gradient_vector(loss, wanted), gradient_vector(again, [theta])]
            except Exception as error:  # it can't be run as it is: there is nothing to compare with
                let_pass(error)
                continue
            theirs, mine = slopes
            finite = [torch.isfinite(part).all() for part in (loss, theirs, mine)]
            norms = [part.norm() for part in (theirs - mine, theirs, mine)]
            values = (loss.reshape(()), again.reshape(()))
            *known, one, other, gap, own, copied = map(float, fetched(*finite, *values, *norms))
            if all(known):
                return Beside(one, other, theirs, mine, gap, max(own, copied))
        return None

    @contextmanager
    def _as_copied(self, twin: nn.Module) -> Iterator[None]:
        """The user's model in the state of its copy, without hooks on gradients; then as before."""
        parts = [part for part in (self.model, self.loss) if isinstance(part, nn.Module)]
        modules = [module for part in parts for module in part.modules()]
        held = [x for m in modules for x in (vars(m), *vars(m).values())]
        contents = [(x, copy.copy(x)) for x in held if type(x) in (dict, list, set)]
        own, copied = named_tensors(self.model), named_tensors(twin)
        written = {id(t): t for part in parts for t in named_tensors(part).values()}
        tensors = [(t, t.data) for t in written.values() if not t.is_inference()]
        hooks = [(p, p._backward_hooks) for p in self.model.parameters()]
        try:
            for tensor, data in tensors:
                tensor.data = data.clone()
            for name, tensor in own.items():
                value = copied.get(name)
                if value is not None and value.shape == tensor.shape and not tensor.is_inference():
                    tensor.data = value.detach().to(tensor.data)
            for parameter, _ in hooks:
                parameter._backward_hooks = None
            modes = {name: module.training for name, module in twin.named_modules()}
            for name, module in self.model.named_modules():
                module.training = modes.get(name, module.training)
            yield
        finally:
            for container, before in contents:  # in place, since others may hold it too
                container.clear()
                (container.extend if isinstance(container, list) else container.update)(before)
            for tensor, data in tensors:
                tensor.data = data
            for parameter, before in hooks:
                parameter._backward_hooks = before


def near(one: float, other: float, digits: float) -> bool:
    """Whether two losses are the same number.

    Args:
        one: A loss.
        other: Another.
        digits: Relative to the larger of 1 and the first.

    Returns:
        Whether they are; False for NaN.
    """
    return abs(one - other) <= digits * (1 + abs(one))


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name.

    Args:
        model: Any.

    Returns:
        The tensors themselves.
    """
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}
