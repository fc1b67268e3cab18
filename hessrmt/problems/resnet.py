"""Residual networks for CIFAR (He, Zhang, Ren, Sun, arXiv:1512.03385, §4.2), of depth 6n + 2.

A 3x3 convolution of 16 filters; three stages of n blocks with 16, 32 and 64 filters, the second and
third beginning with stride 2; the mean over all positions; a linear layer. BatchNorm stands behind
every convolution, which therefore has no bias.

Where a block changes the shape, its shortcut is a 1x1 convolution of stride 2 with a BatchNorm
(option B of §3.3), elsewhere the identity. resnet20 then has 272,474 parameters on 3x32x32 with 10
outputs; with the parameter-free shortcuts (option A) of the paper's CIFAR runs it would be 269,722.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from hessrmt.errors import ProblemError
from hessrmt.problems.convolutional import require_images

if TYPE_CHECKING:
    from torch import Tensor

DEEPEST = 1202
"""Depth of the deepest network in the paper."""

_FILTERS = (16, 32, 64)


class Block(nn.Module):
    """x ↦ ReLU(shortcut(x) + BN(conv(ReLU(BN(conv(x)))))), convolutions 3x3.

    Args:
        channels: Of the input.
        filters: Of the output.
        stride: Of the first convolution.
    """

    def __init__(self, channels: int, filters: int, stride: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            *_convolution(channels, filters, 3, stride),
            nn.ReLU(),
            *_convolution(filters, filters, 3, 1),
        )
        changed = stride != 1 or channels != filters
        self.shortcut = (
            nn.Sequential(*_convolution(channels, filters, 1, stride)) if changed else nn.Identity()
        )
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """One block.

        Args:
            x: (B, channels, height, width).

        Returns:
            (B, filters, height, width), height and width over the stride, rounded up.
        """
        return self.relu(self.shortcut(x) + self.branch(x))


def resnet(input_shape: tuple[int, ...], outputs: int, depth: int) -> nn.Sequential:
    """The residual network of a depth, initialised by torch's default law.

    Args:
        input_shape: (channels, height, width) of one image.
        outputs: Number of outputs K.
        depth: Layers with weights on the longest path: 8, 14, 20, ..., 6n + 2.

    Returns:
        The network, mapping (B, channels, height, width) to (B, K).

    Raises:
        ProblemError: If there is no network of that depth, or samples are not images.
    """
    blocks, rest = divmod(depth - 2, 6)
    if rest or not 8 <= depth <= DEEPEST:
        raise ProblemError(
            f"resnet{depth} has no depth 6n + 2 from 8 to {DEEPEST}, as ResNets for CIFAR have: "
            "e.g. resnet8, resnet20, resnet32, resnet44, resnet56, resnet110; for another network "
            "give file.py:factory"
        )
    channels, _, _ = require_images(f"resnet{depth}", input_shape)
    layers = [*_convolution(channels, _FILTERS[0], 3, 1), nn.ReLU()]
    channels = _FILTERS[0]
    for filters in _FILTERS:
        for position in range(blocks):
            stride = 2 if position == 0 and filters != channels else 1
            layers.append(Block(channels, filters, stride))
            channels = filters
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, outputs)
    )


def _convolution(channels: int, filters: int, size: int, stride: int) -> list[nn.Module]:
    """A convolution that keeps height and width up to its stride, and its BatchNorm."""
    return [
        nn.Conv2d(channels, filters, size, stride=stride, padding=size // 2, bias=False),
        nn.BatchNorm2d(filters),
    ]
