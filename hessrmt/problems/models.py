"""The networks of the papers, built for any input shape and number of outputs.

Widths follow [B] §4 (Baskerville, Granziol, Keating): on MNIST the parameter counts are 7,850
(logistic), 9,960 (mlp2; the paper prints 9,860), 20,060 (mlp3) and 61,706 (lenet5). The networks of
[G] (Liao et al.) are in :mod:`~hessrmt.problems.convolutional` and :mod:`~hessrmt.problems.resnet`.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable
from itertools import pairwise

from torch import nn

from hessrmt import rng
from hessrmt.errors import ProblemError
from hessrmt.problems import convolutional
from hessrmt.problems.convolutional import require_images
from hessrmt.problems.plugins import is_plugin, load_object
from hessrmt.problems.resnet import resnet


def mlp(input_shape: tuple[int, ...], outputs: int, hidden: tuple[int, ...]) -> nn.Sequential:
    """Fully connected ReLU network with biases; no hidden layer gives softmax regression.

    Args:
        input_shape: Shape of one sample.
        outputs: Number of outputs K.
        hidden: Hidden layer widths.

    Returns:
        The network, mapping (B, *input_shape) to (B, K).
    """
    widths = [math.prod(input_shape), *hidden, outputs]
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def lenet5(input_shape: tuple[int, ...], outputs: int) -> nn.Sequential:
    """LeNet-5 with ReLU and max-pooling.

    28 x 28 images are padded to the 32 x 32 of the original.

    Args:
        input_shape: (channels, height, width) of one image.
        outputs: Number of outputs K.

    Returns:
        The network, mapping (B, channels, height, width) to (B, K).
    """
    channels, height, width = require_images("lenet5", input_shape, 12)
    rows, columns = ((size // 2 - 4) // 2 for size in (height, width))
    return nn.Sequential(
        nn.Conv2d(channels, 6, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * rows * columns, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, outputs),
    )


MODELS: dict[str, Callable[[tuple[int, ...], int], nn.Module]] = {
    "logistic": lambda shape, outputs: mlp(shape, outputs, ()),
    "mlp2": lambda shape, outputs: mlp(shape, outputs, (10, 100)),
    "mlp3": lambda shape, outputs: mlp(shape, outputs, (10, 100, 100)),
    "lenet5": lenet5,
    "conv5": convolutional.conv5,
}
"""Name to a function of the input shape and the number of outputs."""

NUMBERED: dict[str, Callable[[tuple[int, ...], int, int], nn.Module]] = {
    "conv3-": convolutional.conv3,
    "conv3s2-": convolutional.conv3s2,
    "conv5-": convolutional.conv5_narrow,
    "resnet": resnet,
}
"""What stands before a number in a name, to a function that also takes the number."""

NAMES = (*MODELS, *(f"{name}N" for name in NUMBERED))
"""All names, N for a number."""

_NUMBERED = re.compile(f"({'|'.join(NUMBERED)})([0-9]{{1,9}})")


def build(spec: str, input_shape: tuple[int, ...], outputs: int, seed: int) -> nn.Module:
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
    with rng.torch_seeded(seed, "init"):
        if spec in MODELS:
            return MODELS[spec](input_shape, outputs)
        if numbered := _NUMBERED.fullmatch(spec):
            return NUMBERED[numbered[1]](input_shape, outputs, int(numbered[2]))
        if not is_plugin(spec):
            raise ProblemError(
                f"unknown model {spec!r}; known are {', '.join(NAMES)} (N: filters per layer, for "
                "resnetN the depth 8, 14, 20, ...), or give file.py:factory"
            )
        return _from_factory(spec, {"input_shape": input_shape, "outputs": outputs})


def _from_factory(spec: str, offered: dict[str, object]) -> nn.Module:
    factory = load_object(spec)
    if not callable(factory):
        raise ProblemError(f"{spec!r} is not callable; a factory returns a torch.nn.Module")
    wanted = inspect.signature(factory).parameters
    try:
        model = factory(**{name: value for name, value in offered.items() if name in wanted})
    except Exception as error:
        raise ProblemError(
            f"the factory {spec!r} failed with {type(error).__name__}: {error}"
        ) from error
    if not isinstance(model, nn.Module):
        raise ProblemError(
            f"the factory {spec!r} returned {type(model).__name__}, not a torch.nn.Module"
        )
    return model
