"""The networks of the papers, built for any input shape and number of outputs.

=============  ===================================  ================================================
name           layers                               biases
=============  ===================================  ================================================
``logistic``   none hidden                          all
``mlp2``       10, 100 hidden units                 all
``mlp3``       10, 100, 100 hidden units            all
``lenet5``     convolutions 6, 16; 120, 84 units    all
``conv3-N``    two of N filters 5x5, no padding     first layer only
``conv3s2-N``  likewise, stride 2, padding 2        none
``conv5``      32, 64, 64, 128 filters 3x3          BatchNorm's and the last layer's
``conv5-N``    four of N filters 3x3                all
``resnetN``    convolutions in residual blocks      BatchNorm's and the last layer's
``resnet34``   likewise, for ImageNet; ``resnet18`` BatchNorm's and the last layer's
=============  ===================================  ================================================

The first four are those of Baskerville, Granziol and Keating 2022, §4: on MNIST the parameter
counts are 7,850, 9,960 (the paper prints 9,860), 20,060 and 61,706. The convolutional networks
without pooling are those of Generalization puzzles (2020), Figs. 1 to 20 and appendix L. Features
of ``resnet34`` are what the first paper trains a linear layer on (Fig. 3). Every ReLU is a module
of its own and not in place. A linear layer ends each network.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

from torch import nn

from hessrmt import rng
from hessrmt.errors import ProblemError
from hessrmt.problems.plugins import (
    RAISED,
    among_neighbours,
    contained,
    explained,
    is_plugin,
    load_object,
)

if TYPE_CHECKING:
    from torch import Tensor

Shape = tuple[int, ...]

WIDEST = 4096
"""Most filters per layer: two layers of 5x5 then hold 1.7 GB of weights in single precision."""

DEEPEST = 1202
"""Depth of the deepest network of He et al. 2016."""


def mlp(input_shape: Shape, outputs: int, hidden: tuple[int, ...]) -> nn.Sequential:
    """Fully connected ReLU network with biases; no hidden layer gives softmax regression.

    Args:
        input_shape: Shape of one sample.
        outputs: Number of outputs K.
        hidden: Hidden layer widths.

    Returns:
        The network, mapping (B, *input_shape) to (B, K).
    """
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in pairwise([math.prod(input_shape), *hidden, outputs]):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def lenet5(input_shape: Shape, outputs: int) -> nn.Sequential:
    """LeNet-5 with ReLU and max-pooling.

    28 x 28 images are padded to the 32 x 32 of the original.

    Args:
        input_shape: (channels, height, width) of one image.
        outputs: Number of outputs K.

    Returns:
        The network, mapping (B, channels, height, width) to (B, K).
    """
    channels, *size = _require_images("lenet5", input_shape, 12)
    features = 16 * math.prod((n // 2 - 4) // 2 for n in size)
    layers = [nn.Conv2d(channels, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, *mlp((features,), outputs, (120, 84)))


def conv3(input_shape: Shape, outputs: int, filters: int, stride: int = 1) -> nn.Sequential:
    """Three layers of Generalization puzzles (2020): 5x5, 5x5, linear.

    With stride 1 those of L.1, no padding, a bias in the first layer only; the paper's parameter
    counts are 154,464 for 24 filters on 3x32x32 and 165,784 for 34 on 1x28x28. With stride 2 those
    of appendix B (Fig. 2), padding 2, no bias.

    Args:
        input_shape: (channels, height, width) of one image, at least 9 x 9 pixels for stride 1.
        outputs: Number of outputs K.
        filters: Filters of each convolution, N; 64 in appendix B.
        stride: 1 or 2.

    Returns:
        The network, mapping (B, channels, height, width) to (B, K).
    """
    name, padding, smallest = ("conv3", 0, 9) if stride == 1 else ("conv3s2", 2, 1)
    channels, *size = _require_images(name, input_shape, smallest)
    _require_filters(name, filters)
    features = filters * math.prod(n - 8 if stride == 1 else (n + 3) // 4 for n in size)
    convolution = partial(nn.Conv2d, kernel_size=5, stride=stride, padding=padding)
    return nn.Sequential(
        convolution(channels, filters, bias=stride == 1),
        nn.ReLU(),
        convolution(filters, filters, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(features, outputs, bias=False),
    )


def conv5(input_shape: Shape, outputs: int, filters: int | None = None) -> nn.Sequential:
    """Five layers of Generalization puzzles (2020): four 3x3 convolutions and a linear one.

    Of 32, 64, 64, 128 filters with BatchNorm (L.2), or of a number of filters with biases (Figs. 1
    and 3). The paper states neither strides nor padding: padding 1 and strides 2, 2, 2, 1 are ours.
    On 3x32x32 with 10 outputs they make 150,954 parameters of the first, whose "about 188,810"
    follow from no choice of them, and 9,978 of the second with 16 filters, where the paper has
    "approximately 10000".

    Args:
        input_shape: (channels, height, width) of one image.
        outputs: Number of outputs K.
        filters: Filters of each convolution, N; None for those of L.2.

    Returns:
        The network, mapping (B, channels, height, width) to (B, K).
    """
    channels, *size = _require_images("conv5", input_shape)
    widths = (32, 64, 64, 128)
    if filters is not None:
        _require_filters("conv5", filters)
        widths = (filters,) * 4
    layers: list[nn.Module] = []
    for (fan_in, fan_out), stride in zip(pairwise((channels, *widths)), (2, 2, 2, 1), strict=True):
        bias = filters is not None
        layers.append(nn.Conv2d(fan_in, fan_out, 3, stride=stride, padding=1, bias=bias))
        layers += [nn.ReLU()] if bias else [nn.BatchNorm2d(fan_out), nn.ReLU()]
    features = widths[-1] * math.prod((n + 7) // 8 for n in size)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, outputs))


class Block(nn.Module):
    """x ↦ ReLU(shortcut(x) + BN(conv(ReLU(BN(conv(x)))))), convolutions 3x3.

    Args:
        channels: Of the input.
        filters: Of the output.
        stride: Of the first convolution.
    """

    def __init__(self, channels: int, filters: int, stride: int) -> None:
        super().__init__()
        first = _normalised(channels, filters, 3, stride)
        self.branch = nn.Sequential(*first, nn.ReLU(), *_normalised(filters, filters, 3, 1))
        changed = stride != 1 or channels != filters
        shortcut = _normalised(channels, filters, 1, stride) if changed else []
        self.shortcut = nn.Sequential(*shortcut) if changed else nn.Identity()
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """One block.

        Args:
            x: (B, channels, height, width).

        Returns:
            (B, filters, height, width), height and width over the stride, rounded up.
        """
        return self.relu(self.shortcut(x) + self.branch(x))


def resnet(input_shape: Shape, outputs: int, depth: int, first: int = 16) -> nn.Sequential:
    """The residual network for CIFAR of He et al. 2016, §4.2, of depth 6n + 2.

    A 3x3 convolution of 16 filters; three stages of n blocks with 16, 32 and 64 filters, the second
    and third beginning with stride 2; the mean over all positions; a linear layer. BatchNorm stands
    behind every convolution, which therefore has no bias. Where a block changes the shape, its
    shortcut is a 1x1 convolution of stride 2 with a BatchNorm (option B of §3.3), elsewhere the
    identity. resnet20 then has 272,474 parameters on 3x32x32 with 10 outputs; with the
    parameter-free shortcuts (option A) of the paper's CIFAR runs it would be 269,722.

    Args:
        input_shape: (channels, height, width) of one image.
        outputs: Number of outputs K.
        depth: Layers with weights on the longest path: 8, 14, 20, ..., 6n + 2.
        first: Filters of the first stage; the others have twice and four times as many.

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
    layers = _normalised(_require_images(f"resnet{depth}", input_shape)[0], first, 3, 1)
    layers.append(nn.ReLU())
    for before, filters in pairwise((first, first, 2 * first, 4 * first)):
        layers.append(Block(before, filters, 1 if before == filters else 2))
        layers += [Block(filters, filters, 1) for _ in range(blocks - 1)]
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * first, outputs)
    )


class BasicBlock(nn.Module):
    """The block of :class:`ImageNetResNet`, with the names of torchvision and timm.

    Args:
        channels: Of the input.
        filters: Of the output.
        stride: Of the first convolution.
    """

    def __init__(self, channels: int, filters: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _normalised(channels, filters, 3, stride)
        self.relu = nn.ReLU()
        self.conv2, self.bn2 = _normalised(filters, filters, 3, 1)
        changed = stride != 1 or channels != filters
        shortcut = _normalised(channels, filters, 1, stride) if changed else []
        self.downsample = nn.Sequential(*shortcut) if changed else None
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """One block.

        Args:
            x: (B, channels, height, width).

        Returns:
            (B, filters, height, width), height and width over the stride, rounded up.
        """
        branch = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu2((x if self.downsample is None else self.downsample(x)) + branch)


class ImageNetResNet(nn.Module):
    """The residual network for ImageNet of He et al. 2016, table 1, with basic blocks.

    A 7x7 convolution of 64 filters and a maximum over 3x3, both of stride 2; four stages of blocks
    with 64, 128, 256 and 512 filters; the mean over all positions; a linear layer. Its state dict
    is that of ``resnet18`` and ``resnet34`` of torchvision and timm, whose weights load into it.
    Convolutions start as N(0, 2/(k²·filters)) (He et al. 2015), the rest as torch has it.

    Args:
        channels: Of the images.
        outputs: Number of outputs K.
        blocks: In each stage: 2, 2, 2, 2 for 18 layers, 3, 4, 6, 3 for 34.
    """

    def __init__(self, channels: int, outputs: int, blocks: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
        self.bn1, self.relu = nn.BatchNorm2d(64), nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            nn.Sequential(
                BasicBlock(before, filters, 1 if before == filters else 2),
                *(BasicBlock(filters, filters, 1) for _ in range(count - 1)),
            )
            for (before, filters), count in zip(
                pairwise((64, 64, 128, 256, 512)), blocks, strict=True
            )
        )
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(512, outputs)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Outputs of a batch of images.

        Args:
            x: (B, channels, height, width).

        Returns:
            (B, K).
        """
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))


def imagenet_resnet(
    input_shape: Shape, outputs: int, blocks: tuple[int, int, int, int]
) -> ImageNetResNet:
    """See :class:`ImageNetResNet`.

    Args:
        input_shape: (channels, height, width) of one image; 3 x 224 x 224 in the paper.
        outputs: Number of outputs K.
        blocks: In each stage.

    Returns:
        The network, mapping (B, channels, height, width) to (B, K).
    """
    name = f"resnet{2 + 2 * sum(blocks)}"
    return ImageNetResNet(_require_images(name, input_shape)[0], outputs, blocks)


def _normalised(channels: int, filters: int, size: int, stride: int) -> list[nn.Module]:
    """A convolution that keeps height and width up to its stride, and its BatchNorm."""
    return [
        nn.Conv2d(channels, filters, size, stride=stride, padding=size // 2, bias=False),
        nn.BatchNorm2d(filters),
    ]


def _require_images(name: str, input_shape: Shape, smallest: int = 1) -> Shape:
    if len(input_shape) != 3 or min(input_shape[1:]) < smallest:
        least = f" of at least {smallest} x {smallest} pixels" if smallest > 1 else ""
        raise ProblemError(
            f"{name} needs images (channels, height, width){least}, but samples have shape "
            f"{input_shape}; use an mlp for plain features"
        )
    return input_shape


def _require_filters(name: str, filters: int) -> None:
    if not 1 <= filters <= WIDEST:
        raise ProblemError(
            f"{name}-{filters} has {filters} filters per layer; expected from 1 to {WIDEST}, "
            f"e.g. {name}-16"
        )


MODELS: dict[str, Callable[[Shape, int], nn.Module]] = {
    "logistic": partial(mlp, hidden=()),
    "mlp2": partial(mlp, hidden=(10, 100)),
    "mlp3": partial(mlp, hidden=(10, 100, 100)),
    "lenet5": lenet5,
    "conv5": conv5,
    "resnet18": partial(imagenet_resnet, blocks=(2, 2, 2, 2)),
    "resnet34": partial(imagenet_resnet, blocks=(3, 4, 6, 3)),
}
"""Name to a function of the input shape and the number of outputs."""

NUMBERED: dict[str, Callable[[Shape, int, int], nn.Module]] = {
    "conv3-": conv3,
    "conv3s2-": partial(conv3, stride=2),
    "conv5-": conv5,
    "resnet": resnet,
}
"""What stands before a number in a name, to a function that also takes the number."""

NAMES = (*MODELS, *(f"{name}N" for name in NUMBERED))
"""All names, N for a number."""


def build(spec: str, input_shape: Shape, outputs: int, seed: int) -> nn.Module:
    """Build a network and initialise it (torch's default law) from a seed.

    Args:
        spec: One of ``NAMES`` with a number for N, e.g. ``mlp3``, ``conv3-24`` (24 filters) or
            ``resnet20`` (depth 6n + 2); or ``file.py:factory``. A factory is called without
            arguments, or with those of ``input_shape`` and ``outputs`` that it names.
        input_shape: Shape of one sample.
        outputs: Number of outputs (classes, or targets per sample).
        seed: The run's seed.

    Returns:
        The initialised network.

    Raises:
        ProblemError: If the name is unknown, the network does not fit the samples, or the factory
            fails or returns no module.
    """
    numbered = re.fullmatch(f"({'|'.join(NUMBERED)})([0-9]{{1,9}})", spec)
    with rng.torch_seeded(seed, "init"):
        if spec in MODELS:
            return MODELS[spec](input_shape, outputs)
        if numbered:
            return NUMBERED[numbered[1]](input_shape, outputs, int(numbered[2]))
        if not is_plugin(spec):
            raise ProblemError(
                f"unknown model {spec!r}; known are {', '.join(NAMES)} (N: filters per layer, for "
                "resnetN the depth 8, 14, 20, ...), or give file.py:factory"
            )
        return from_factory(spec, input_shape=input_shape, outputs=outputs)


@contained()
def from_factory(spec: str, **offered: object) -> nn.Module:
    """The network that a user's own function makes.

    Args:
        spec: ``file.py:factory``.
        offered: Arguments, of which it gets those that it names.

    Returns:
        The network.

    Raises:
        ProblemError: If it fails or returns no module, or one without values.
    """
    factory = load_object(spec)
    if not callable(factory):
        raise ProblemError(f"{spec!r} is not callable; a factory returns a torch.nn.Module")
    wanted = inspect.signature(factory).parameters
    given = {name: value for name, value in offered.items() if name in wanted}
    how = f"with {' and '.join(given)}" if given else "without arguments"
    failed = f"the factory {spec!r}, called {how}, failed"
    with explained(RAISED, failed, ()), among_neighbours(spec):
        model = factory(**given)
    if not isinstance(model, nn.Module):
        raise ProblemError(
            f"the factory {spec!r} returned {type(model).__name__}, not a torch.nn.Module"
        )
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if value.is_meta:
            raise ProblemError(
                f"the factory {spec!r} returned a model whose {name} is on the meta device, where "
                "tensors have no values; make it on a real device"
            )
    return model
