"""Losses: functions (outputs, targets) ↦ scalar mean over the batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

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
    # zero where the label is the likeliest class, and no 1 - 1 in the derivatives there
    behind = torch.where(label == likeliest, 0, shifted.gather(1, label))[:, 0]
    rest = torch.log1p((others * torch.exp(shifted)).sum(dim=1))
    share = used.to(scores.dtype)
    if weight is not None:
        share = share * weight.to(scores.dtype)[label[:, 0]]
    whole = share.sum() if reduction == "mean" else 1
    loss = share / whole * (rest - behind)
    if label_smoothing:
        surprise = rest[:, None] - shifted
        surprise = surprise if weight is None else surprise * weight
        smooth = used / whole * surprise.mean(dim=1)
        loss = (1 - label_smoothing) * loss + label_smoothing * smooth
    return loss.reshape(labels.shape) if reduction == "none" else loss.sum()


def is_plain_cross_entropy(loss: Loss, outputs: Tensor, labels: Tensor) -> bool:
    """Whether a loss is the mean of cross-entropy over samples, for labels from 0 on.

    Args:
        loss: The callable.
        outputs: What the network gives.
        labels: Targets; their values are not looked at.

    Returns:
        Whether :func:`cross_entropy_in_full_digits` is the same function if no label is negative.
    """
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.dtype == torch.bool:
        return False
    if not isinstance(outputs, Tensor) or outputs.dim() != 2 or labels.shape != outputs.shape[:1]:
        return False
    return loss is F.cross_entropy or (
        isinstance(loss, nn.CrossEntropyLoss)
        and type(loss) is nn.CrossEntropyLoss
        and loss.weight is None
        and loss.reduction == "mean"
        and loss.label_smoothing == 0
        and loss.ignore_index < 0
    )


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
