"""Losses: functions (outputs, targets) ↦ scalar mean over the batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.overrides import TorchFunctionMode

from hessrmt.errors import ProblemError
from hessrmt.problems.plugins import is_plugin, load_object

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
        targets = F.one_hot(targets, outputs.shape[-1]).to(outputs.dtype)
    if targets.dim() == outputs.dim() - 1 and outputs.shape[-1] == 1:
        targets = targets.unsqueeze(-1)
    if targets.shape != outputs.shape:
        raise ProblemError(
            f"mean squared error: outputs of shape {tuple(outputs.shape)} against targets of "
            f"shape {tuple(targets.shape)}; they must agree"
        )
    return (outputs - targets).square().sum() / outputs.shape[0]


def cross_entropy_in_full_digits(
    outputs: Tensor,
    labels: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy, in a form whose derivatives lose no digits where the network is certain.

    With m the likeliest class, L = log(1 + Σ_{j≠m} exp(f_j - f_m)) + f_m - f_y: every second
    derivative is made of small numbers that are small from the start. In the usual form they are
    differences p_m - p_m² of numbers near one, with an error of ε however small they are.

    Args:
        outputs: (B, K, ...) scores, or (K,).
        labels: (B, ...) integer labels.
        weight: (K,) weights of the classes.
        ignore_index: Label of what is left out.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        label_smoothing: Part of the target that is spread evenly over all classes.

    Returns:
        Equal to ``torch.nn.functional.cross_entropy`` up to rounding.
    """
    scores = outputs
    if outputs.dim() != 2:
        scores = outputs.movedim(min(1, outputs.dim() - 1), -1)
        scores = scores.reshape(-1, scores.shape[-1])
    column = labels.reshape(-1, 1).long()
    used = column[:, 0] != ignore_index
    likeliest = scores.detach().argmax(dim=1, keepdim=True)
    label = torch.where(used[:, None], column, likeliest)
    others = torch.ones_like(scores).scatter(1, likeliest, 0.0)
    shifted = scores - scores.gather(1, likeliest)
    rest = torch.log1p((others * torch.exp(shifted)).sum(dim=1))
    share = used.to(scores.dtype)
    if weight is not None:
        share = share * weight.to(scores.dtype)[label[:, 0]]
    whole = share.sum() if reduction == "mean" else 1
    loss = share / whole * (rest - shifted.gather(1, label)[:, 0])
    if label_smoothing:
        surprise = rest[:, None] - shifted
        surprise = surprise if weight is None else surprise * weight
        smooth = used / whole * surprise.mean(dim=1)
        loss = (1 - label_smoothing) * loss + label_smoothing * smooth
    return loss.reshape(labels.shape) if reduction == "none" else loss.sum()


@dataclass(frozen=True)
class Call:
    """One cross-entropy or log-softmax in a loss.

    Attributes:
        scores: What it was given.
        classes: The dimension of the classes in them.
        result: What the loss went on with, cut off from the scores.
        unit: (R,) for each row of scores w of its part w log Σ exp of the sum of all results; None
            for a log-softmax, where it is -1 for each result.
        mass: What a mean over rows divides by: their number, or the sum of their class weights.
    """

    scores: Tensor
    classes: int
    result: Tensor
    unit: Tensor | None
    mass: float | None

    def row_weights(self, slope: Tensor) -> Tensor:
        """Weights w of the rows' parts w log Σ exp of the loss.

        Args:
            slope: Derivative of the loss in the result.

        Returns:
            (R,).
        """
        if self.unit is None:
            return -slope.sum(dim=self.classes).reshape(-1)
        return slope.reshape(-1) * self.unit


class Watching(TorchFunctionMode):
    """Cuts off what the cross-entropies of a loss give from what they are given, while it runs.

    So it shows how the rest of the loss depends on both.

    Attributes:
        calls: What was cut, in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def around(self, loss: Loss) -> Loss:
        """The same loss, looked at.

        Args:
            loss: The callable.

        Returns:
            A callable.
        """

        def watched(outputs: Any, targets: Any) -> Tensor:
            with self:
                return loss(outputs, targets)

        return watched

    def __torch_function__(
        self, function: Any, types: Any, arguments: Any = (), keywords: Any = None
    ) -> Any:
        keywords = keywords or {}
        value = None
        if function is F.cross_entropy:
            value = self._cross_entropy(*arguments, **keywords)
        elif function in _LOG_SOFTMAX:
            value = self._log_softmax(function, *arguments, **keywords)
        return function(*arguments, **keywords) if value is None else value

    def _keep(
        self, scores: Tensor, classes: int, found: Tensor, unit: Tensor | None, mass: float | None
    ) -> Tensor:
        result = found.detach().requires_grad_()
        self.calls.append(Call(scores, classes % scores.dim(), result, unit, mass))
        return result.clone()

    def _log_softmax(
        self, function: Any, input: Tensor, dim: int | None = None, *more: Any, **options: Any
    ) -> Tensor | None:
        if dim is None or not input.dim():
            return None
        found = function(input, dim, *more, **options)
        return self._keep(input, dim, found, None, None)

    def _cross_entropy(self, input: Tensor, target: Tensor, **options: Any) -> Tensor:
        classes = 1 if input.dim() > 1 else 0
        count = input.shape[classes]
        slopes = []
        for most in (0.0, 1e3):  # softmax gives 1/c to all classes, then all of it to the first
            scores = torch.zeros_like(input)
            scores.select(classes, 0).fill_(most)
            scores.requires_grad_()
            total = F.cross_entropy(scores, target, **options).sum()
            slopes.append(torch.autograd.grad(total, scores)[0].select(classes, 0).reshape(-1))
        unit = (slopes[1] - slopes[0]) / (1 - 1 / count) if count > 1 else slopes[0]
        mass = None
        if options.get("reduction", "mean") == "mean":
            mass = float(input.numel() / count)
            if not target.is_floating_point():
                counted = target[target != options.get("ignore_index", -100)]
                weight = options.get("weight")
                mass = float(len(counted) if weight is None else weight[counted].sum())
        found = F.cross_entropy(input, target, **options)
        return self._keep(input, classes, found, unit.detach(), mass)


_LOG_SOFTMAX = (F.log_softmax, torch.log_softmax, Tensor.log_softmax)


LOSSES: dict[str, Loss] = {"cross-entropy": F.cross_entropy, "mse": mean_squared_error}


def resolve(loss: str | Loss) -> Loss:
    """The loss function a name, ``file.py:function`` or callable stands for.

    Args:
        loss: ``"cross-entropy"``, ``"mse"``, ``"file.py:function"`` or a callable
            (outputs, targets) -> scalar mean.

    Returns:
        The callable.

    Raises:
        ProblemError: If the name is unknown or the object is not callable.
    """
    if isinstance(loss, str):
        if loss in LOSSES:
            return LOSSES[loss]
        if not is_plugin(loss):
            raise ProblemError(
                f"unknown loss {loss!r}; known are {', '.join(LOSSES)}, or give file.py:function"
            )
        found: Loss = load_object(loss)
    else:
        found = loss
    if not callable(found):
        raise ProblemError(f"the loss {loss!r} is not callable")
    return found
