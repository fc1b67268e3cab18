"""Penalties on weights that training adds to the loss.

The stable rank of a weight matrix is R = ‖W‖_F²/‖W‖₂², between 1 and the rank. Martin and Mahoney
(2019, below eq. 6) suggest it, or its form in logarithms, as a regulariser. It doesn't know the
scale of W, as weight decay does: its gradient is orthogonal to W.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from hessrmt.errors import ProblemError

if TYPE_CHECKING:
    from collections.abc import Iterator

_TINY = 1e-30


def stable_ranks(model: nn.Module) -> Tensor:
    """Stable ranks of the layers, differentiable in their weights.

    A convolution is the matrix (outputs, inputs · positions); one with groups is the direct sum of
    their matrices.

    Args:
        model: The network.

    Returns:
        (layers,) ‖W‖_F²/‖W‖₂² of each linear and convolution layer whose weights are trained, 0 for
        one whose weights are all zero.

    Raises:
        ProblemError: If there is no such layer.

    Source: Martin and Mahoney 2019, eq. (6).
    """
    found = [_stable_rank(matrices) for matrices in _matrices(model)]
    if not found:
        raise ProblemError(
            f"the model ({type(model).__name__}) has no linear or convolution layer whose stable "
            "rank could be penalised; leave stable_rank out"
        )
    return torch.stack(found)


def _matrices(model: nn.Module) -> Iterator[Tensor]:
    """(groups, outputs, inputs) of each layer."""
    for module in model.modules():
        if not isinstance(module, nn.Linear | _ConvNd) or not module.weight.requires_grad:
            continue
        weight = module.weight
        if isinstance(module, nn.Linear):
            yield weight[None]
        elif isinstance(module, _ConvTransposeNd):  # (inputs, outputs of a group, ...)
            parts = weight.unflatten(0, (module.groups, -1))
            yield parts.transpose(1, 2).flatten(2)
        else:
            yield weight.unflatten(0, (module.groups, -1)).flatten(2)


def _stable_rank(matrices: Tensor) -> Tensor:
    squares = matrices.square().sum()
    with torch.no_grad():
        wide = matrices.shape[1] <= matrices.shape[2]
        gram = matrices @ matrices.mT if wide else matrices.mT @ matrices
        values, vectors = torch.linalg.eigh(gram.double())
        place = int(values[:, -1].argmax())
        first = vectors[place, :, -1].to(matrices.dtype)
    # ‖W‖₂² = ‖Wᵀu‖² at its singular vector u, where it is stationary in u
    chosen = matrices[place]
    largest = (first @ chosen if wide else chosen @ first).square().sum()
    return squares / largest.clamp_min(_TINY)
