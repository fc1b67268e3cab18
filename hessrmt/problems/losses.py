"""Losses: functions (outputs, targets) ↦ scalar mean over the batch, and what they are made of."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from hessrmt.errors import ProblemError
from hessrmt.problems.batches import Intercepting
from hessrmt.problems.equivalents import logits_of
from hessrmt.problems.plugins import contained, is_plugin, load_object

Loss = Callable[[Tensor, Tensor], Tensor]


def mean_squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean over the batch of the squared error summed over outputs.

    Integer targets are class labels and become one-hot vectors; a one-dimensional real target
    stands for one output per sample.

    Args:
        outputs: (B, K) network outputs.
        targets: (B, K) or (B,) real targets, or (B,) integer labels.

    Returns:
        Scalar Σ_b ‖f_b − y_b‖² / B.

    Raises:
        ProblemError: If outputs and targets have different shapes.
    """
    if not targets.is_floating_point():
        targets = F.one_hot(targets.long(), outputs.shape[-1]).to(outputs.dtype)
    if targets.dim() == outputs.dim() - 1 and outputs.shape[-1] == 1:
        targets = targets.unsqueeze(-1)
    if targets.shape != outputs.shape:
        raise ProblemError(
            f"mean squared error: outputs of shape {tuple(outputs.shape)} against targets of "
            f"shape {tuple(targets.shape)}; they must agree"
        )
    return (outputs - targets).square().sum() / outputs.shape[0]


def next_token(outputs: Any, targets: Tensor) -> Tensor:
    """Cross-entropy of each token given those before it, as language models are trained.

    Args:
        outputs: (B, T, V) logits, or an object or a dict with these as ``logits``, as models of
            transformers return it.
        targets: (B, T) the tokens themselves; positions with -100 don't count.

    Returns:
        The mean over all tokens that count, of each sequence from the second on.

    Raises:
        ProblemError: If there are no logits of that shape.
    """
    logits = logits_of(outputs)
    shape = tuple(getattr(logits, "shape", ()))
    if len(shape) != 3 or shape[:2] != tuple(targets.shape):
        raise ProblemError(
            f"next-token: outputs {type(outputs).__name__} of shape {shape} against tokens of "
            f"shape {tuple(targets.shape)}; expected logits (B, T, V) and tokens (B, T)"
        )
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten())


def penalised(loss: Loss, model: nn.Module, l2: float) -> Loss:
    """A loss with a penalty on the trainable parameters of a model.

    Args:
        loss: Without it.
        model: The user's own.
        l2: The penalty is l2 ‖θ‖² / 2.

    Returns:
        The loss of outputs on targets, and the penalty.

    Raises:
        ProblemError: If `l2` is not a positive number.
    """
    if not isinstance(l2, Real) or not 0 < l2 < math.inf:
        raise ProblemError(f"the l2 penalty is {l2!r}; it must be a positive number, or 0")
    parameters = [p for p in model.parameters() if p.requires_grad]

    def total(outputs: Any, targets: Any) -> Tensor:
        squares = torch.stack([p.square().sum() for p in parameters]).sum()
        return loss(outputs, targets) + l2 / 2 * squares

    return total


LOSSES: dict[str, Loss] = {
    "cross-entropy": F.cross_entropy,
    "mse": mean_squared_error,
    "next-token": next_token,
}


def resolve(loss: str | Loss) -> Loss:
    """The loss function a name, ``file.py:function`` or callable stands for.

    Args:
        loss: A name in :data:`LOSSES`, ``"file.py:function"`` or a callable (outputs, targets) ->
            scalar mean.

    Returns:
        The callable.

    Raises:
        ProblemError: If the name is unknown or the object is not callable.
    """
    if isinstance(loss, str):
        if loss not in LOSSES and not is_plugin(loss):
            near = difflib.get_close_matches(loss.lower().replace("_", "-"), LOSSES, 1)
            meant = f" (did you mean {near[0]}?)" if near else ""
            raise ProblemError(
                f"unknown loss {loss!r}{meant}; known are {', '.join(LOSSES)}, or give a function "
                "(outputs, targets) -> mean, from the command line as file.py:function"
            )
        if loss in LOSSES:
            return LOSSES[loss]
        with contained():
            found = load_object(loss)
        return resolve(found)
    if isinstance(loss, type):
        raise ProblemError(
            f"the loss is the class {loss.__name__}; make one of it: {loss.__name__}()"
        )
    if not callable(loss):
        raise ProblemError(f"the loss {loss!r} is not callable")
    return loss


class SoftmaxCall(NamedTuple):
    """One cross-entropy or log-softmax in a loss.

    Attributes:
        scores: What it was given, with the classes last.
        result: What the loss went on with, cut off from the scores.
        weigh: From the derivative of the loss in the result to the weights (R,) of log Σ exp of
            each row of scores.
        mass: What a mean over rows divides by: their number, or the sum of their class weights.
    """

    scores: Tensor
    result: Tensor
    weigh: Callable[[Tensor], Tensor]
    mass: float | None


def cut_softmax(loss: Loss) -> tuple[Loss, list[SoftmaxCall]]:
    """Cut off what the cross-entropies of a loss give from what they are given, when it runs.

    So it shows what they are given, and how the loss depends on them and on everything else.

    Args:
        loss: The loss.

    Returns:
        The loss to run in its place, and a list of what has then been cut, in order.
    """
    calls: list[SoftmaxCall] = []

    def cut(function: Any, arguments: Any, keywords: dict[str, Any]) -> Any:
        found = function(*arguments, **keywords)
        # without gradients it is a number for a log
        read = _SOFTMAX.get(function) if torch.is_grad_enabled() else None
        call = read and read(found.detach().requires_grad_(), *arguments, **keywords)
        if call is None:
            return found
        calls.append(call)
        return call.result.clone()

    def watched(outputs: Any, targets: Any) -> Tensor:
        with Intercepting(cut):
            return loss(outputs, targets)

    return watched, calls


def _log_softmax(
    found: Tensor, input: Tensor, dim: int | None = None, *_: Any, **__: Any
) -> SoftmaxCall | None:
    if dim is None or not input.dim():
        return None
    weigh = lambda slope: -slope.sum(dim).reshape(-1)  # noqa: E731
    return SoftmaxCall(input.movedim(dim, -1), found, weigh, None)


def _cross_entropy(found: Tensor, input: Tensor, target: Tensor, **options: Any) -> SoftmaxCall:
    classes = min(1, input.dim() - 1)
    count = input.shape[classes]
    slopes = []
    for most in (0.0, 1e3):  # softmax gives 1/c to all classes, then all of it to the first
        scores = torch.zeros_like(input).detach()
        scores.select(classes, 0).fill_(most)
        total = F.cross_entropy(scores.requires_grad_(), target, **options).sum()
        slopes.append(torch.autograd.grad(total, scores)[0].select(classes, 0).reshape(-1))
    unit = (slopes[1] - slopes[0]) / (1 - 1 / count) if count > 1 else slopes[0]
    mass = None
    if options.get("reduction", "mean") == "mean":
        mass = float(len(unit))
        if not target.is_floating_point():
            counted, weight = target[target != options["ignore_index"]], options.get("weight")
            mass = float(len(counted) if weight is None else weight[counted].sum())
    return SoftmaxCall(
        input.movedim(classes, -1), found, lambda slope: slope.reshape(-1) * unit, mass
    )


_SOFTMAX: dict[Any, Callable[..., SoftmaxCall | None]] = {
    F.cross_entropy: _cross_entropy,
    **dict.fromkeys((F.log_softmax, torch.log_softmax, Tensor.log_softmax), _log_softmax),
}
