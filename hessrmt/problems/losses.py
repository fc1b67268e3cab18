"""Losses: functions (outputs, targets) ↦ scalar mean over the batch."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F  # noqa: N812
from torch import Tensor

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
