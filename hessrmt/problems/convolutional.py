"""Convolutional ReLU networks without pooling, as [G] trains them (Figs. 1 to 20, appendix L).

=============  ==============================================  =====================================
name           convolutions                                    biases
=============  ==============================================  =====================================
``conv3-N``    two of N filters 5x5, no padding                first layer only
``conv3s2-N``  two of N filters 5x5, stride 2, padding 2       none
``conv5``      32, 64, 64, 128 filters 3x3 with BatchNorm      BatchNorm's and the last layer's
``conv5-N``    four of N filters 3x3                           all
=============  ==============================================  =====================================

A linear layer follows. Every ReLU is a module of its own and not in place.
"""

from __future__ import annotations

import math
from itertools import pairwise

from torch import nn

from hessrmt.errors import ProblemError

WIDEST = 4096
"""Most filters per layer: two layers of 5x5 then hold 1.7 GB of weights in single precision."""

_STRIDES = (2, 2, 2, 1)


def conv3(input_shape: tuple[int, ...], outputs: int, filters: int) -> nn.Sequential:
    """Three layers of [G] L.1: 5x5, 5x5, linear; no padding, a bias in the first layer only.

    [G]'s parameter counts: 154,464 for 24 filters on 3x32x32 and 165,784 for 34 on 1x28x28.

    Args:
        input_shape: (channels, height, width) of one image, at least 9 x 9 pixels.
        outputs: Number of outputs K.
        filters: Filters of each convolution, N.

    Returns:
        The network, mapping (B, channels, height, width) to (B, K).
    """
    channels, height, width = require_images("conv3", input_shape, 9)
    require_filters("conv3", filters)
    return nn.Sequential(
        nn.Conv2d(channels, filters, 5),
        nn.ReLU(),
        nn.Conv2d(filters, filters, 5, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(filters * (height - 8) * (width - 8), outputs, bias=False),
    )


def conv3s2(input_shape: tuple[int, ...], outputs: int, filters: int) -> nn.Sequential:
    """Three layers of [G]'s appendix B (Fig. 2): 5x5, 5x5, linear; stride 2, padding 2, no bias.

    Args:
        input_shape: (channels, height, width) of one image.
        outputs: Number of outputs K.
        filters: Filters of each convolution, N; 64 in [G].

    Returns:
        The network, mapping (B, channels, height, width) to (B, K).
    """
    channels, *size = require_images("conv3s2", input_shape)
    require_filters("conv3s2", filters)
    features = filters * math.prod(_halved(_halved(n)) for n in size)
    return nn.Sequential(
        nn.Conv2d(channels, filters, 5, stride=2, padding=2, bias=False),
        nn.ReLU(),
        nn.Conv2d(filters, filters, 5, stride=2, padding=2, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(features, outputs, bias=False),
    )


def conv5(input_shape: tuple[int, ...], outputs: int) -> nn.Sequential:
    """Five layers of [G] L.2: 3x3 convolutions of 32, 64, 64, 128 filters, BatchNorm, linear.

    [G] states neither strides nor padding, and its "about 188,810" parameters follow from no
    choice of them: padding 1 and strides 2, 2, 2, 1 are ours, 150,954 parameters on 3x32x32 with
    10 outputs.

    Args:
        input_shape: (channels, height, width) of one image.
        outputs: Number of outputs K.

    Returns:
        The network, mapping (B, channels, height, width) to (B, K).
    """
    require_images("conv5", input_shape)
    return _five(input_shape, outputs, (32, 64, 64, 128), norm=True)


def conv5_narrow(input_shape: tuple[int, ...], outputs: int, filters: int) -> nn.Sequential:
    """Five layers of [G]'s Figs. 1 and 3: four 3x3 convolutions of N filters, linear; biases.

    [G] gives 16 filters and "approximately 10000 parameters": padding 1 and strides 2, 2, 2, 1
    make it 9,978 on 3x32x32 with 10 outputs.

    Args:
        input_shape: (channels, height, width) of one image.
        outputs: Number of outputs K.
        filters: Filters of each convolution, N.

    Returns:
        The network, mapping (B, channels, height, width) to (B, K).
    """
    require_images("conv5", input_shape)
    require_filters("conv5", filters)
    return _five(input_shape, outputs, (filters,) * len(_STRIDES), norm=False)


def require_images(
    name: str, input_shape: tuple[int, ...], smallest: int = 1
) -> tuple[int, int, int]:
    """The shape of an image that a network can take.

    Args:
        name: Of the network.
        input_shape: Shape of one sample.
        smallest: Least height and width.

    Returns:
        (channels, height, width).

    Raises:
        ProblemError: If samples are not images, or too small.
    """
    if len(input_shape) != 3 or min(input_shape[1:]) < smallest:
        least = f" of at least {smallest} x {smallest} pixels" if smallest > 1 else ""
        raise ProblemError(
            f"{name} needs images (channels, height, width){least}, but samples have shape "
            f"{input_shape}; use an mlp for plain features"
        )
    channels, height, width = input_shape
    return channels, height, width


def require_filters(name: str, filters: int) -> None:
    """Refuse a width that no network can have.

    Args:
        name: Of the network.
        filters: Filters per layer.

    Raises:
        ProblemError: If that is not from 1 to ``WIDEST``.
    """
    if not 1 <= filters <= WIDEST:
        raise ProblemError(
            f"{name}-{filters} has {filters} filters per layer; expected from 1 to {WIDEST}, "
            f"e.g. {name}-16"
        )


def _five(
    input_shape: tuple[int, ...], outputs: int, widths: tuple[int, ...], norm: bool
) -> nn.Sequential:
    channels, height, width = input_shape
    layers: list[nn.Module] = []
    for (fan_in, fan_out), stride in zip(pairwise((channels, *widths)), _STRIDES, strict=True):
        layers.append(nn.Conv2d(fan_in, fan_out, 3, stride=stride, padding=1, bias=not norm))
        layers += [nn.BatchNorm2d(fan_out)] if norm else []
        layers.append(nn.ReLU())
        height, width = (_halved(n) if stride == 2 else n for n in (height, width))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(widths[-1] * height * width, outputs))


def _halved(size: int) -> int:
    """Height or width behind a convolution of stride 2 with padding (kernel - 1) / 2."""
    return (size + 1) // 2
