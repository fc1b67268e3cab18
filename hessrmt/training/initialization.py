"""Initial weights of one standard deviation in all layers ([G] appendices B and C)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from hessrmt.errors import ProblemError

if TYPE_CHECKING:
    from torch import Generator


@torch.no_grad()
def initialize(model: nn.Module, scale: float, generator: Generator) -> None:
    """Draw the weights of linear and convolution layers from N(0, s²), set their biases to 0.

    Everything else, such as BatchNorm's scale and shift, stays as it is.

    Args:
        model: Changed in place; on the CPU.
        scale: s.
        generator: Where the random numbers come from.

    Raises:
        ProblemError: If there is no such layer, or s is not positive.
    """
    if not scale > 0:
        raise ProblemError(f"the initial scale is {scale!r}; expected a positive number")
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | _ConvNd)]
    if not layers:
        raise ProblemError(
            f"the model ({type(model).__name__}) has no linear or convolution layer whose weights "
            "could be drawn anew"
        )
    for layer in layers:
        layer.weight.normal_(0, scale, generator=generator)
        if layer.bias is not None:
            layer.bias.zero_()
