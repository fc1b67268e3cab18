"""Is a network positively homogeneous? Weights are scaled by powers of two and it is run.

f(α₁W₁, …, α_K W_K) = Πα_k f(W₁, …, W_K) for all α_k > 0, where the bias b_k is multiplied by
Π_{j≤k} α_j ([G] §2, [P] §3). Powers of two commute with rounding, so that a homogeneous
network satisfies this to the last bit, whatever its condition.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hessrmt import rng
from hessrmt.errors import GeneralizationError
from hessrmt.generalization.layers import ALTERNATIVE, Layer, listed
from hessrmt.generalization.networks import outputs

if TYPE_CHECKING:
    from collections.abc import Sequence

TOLERANCE = math.sqrt(torch.finfo(torch.float64).eps)
"""Half of the digits must agree: far above round-off, far below what a nonlinearity does."""

_FAR = 30
"""Exponent of the first layer's factor: what has a scale of its own shows it within 2^±30."""


def require_homogeneous(
    network: nn.Module, layers: Sequence[Layer], inputs: Any, reference: Tensor
) -> None:
    """Refuse a network whose outputs do not scale with its layers.

    Args:
        network: Float64, evaluation mode, BatchNorm folded.
        layers: In the order of their depth.
        inputs: A batch of real data.
        reference: (B, ...) its outputs there.

    Raises:
        GeneralizationError: If it is not homogeneous on these inputs, its outputs are all zero, or
            they are random.
    """
    if not torch.isfinite(reference).all():
        raise GeneralizationError("the model's outputs on these inputs are NaN or infinite")
    if not reference.any():
        raise GeneralizationError(
            "the model's outputs on these inputs are all zero, so that its homogeneity cannot be "
            "checked; give other inputs, or a trained model"
        )
    if deviation(network, layers, inputs, reference, [0] * len(layers)) > TOLERANCE:
        raise GeneralizationError(
            "the model is random: two runs on the same inputs differ. Remove noise and random "
            "augmentation from its forward method"
        )
    worst = max(
        deviation(network, layers, inputs, reference, exponents)
        for exponents in _patterns(len(layers))
    )
    if worst <= TOLERANCE:
        return
    failing = [
        layer.label
        for position, layer in enumerate(layers)
        if deviation(
            network, layers, inputs, reference, [int(k == position) for k in range(len(layers))]
        )
        > TOLERANCE
    ]
    which = f"the weights of {listed(failing)}" if failing else "all weights together"
    causes = _culprits(network, inputs)
    cause = (
        f"the cause is {listed(causes)}"
        if causes
        else "residual or parallel branches, a softmax or another function in forward may be why"
    )
    raise GeneralizationError(
        f"the network is not positively homogeneous: scaling {which} does not scale the outputs "
        f"alike (they are off by {worst:.1g} of the largest); {cause}. {ALTERNATIVE}"
    )


def deviation(
    network: nn.Module,
    layers: Sequence[Layer],
    inputs: Any,
    reference: Tensor,
    exponents: Sequence[int],
) -> float:
    """How far the outputs are from 2^Σe times those of the unscaled network.

    Args:
        network: The network.
        layers: In the order of their depth.
        inputs: A batch.
        reference: (B, ...) outputs of the unscaled network.
        exponents: e_k of each layer.

    Returns:
        Largest difference over the largest output; infinite if an output is not finite.
    """
    depths = list(itertools.accumulate(exponents))
    own = dict(network.named_parameters())
    scaled: dict[str, Tensor] = {}
    for layer, exponent, depth in zip(layers, exponents, depths, strict=True):
        prefix = f"{layer.name}." if layer.name else ""
        scaled[f"{prefix}weight"] = own[f"{prefix}weight"].detach() * 2.0**exponent
        if f"{prefix}bias" in own:
            scaled[f"{prefix}bias"] = own[f"{prefix}bias"].detach() * 2.0**depth
    with torch.no_grad():
        found = outputs(network, inputs, scaled) * 2.0 ** -depths[-1]
    return relative_difference(found, reference)


def relative_difference(found: Tensor, reference: Tensor) -> float:
    """Largest difference over the largest magnitude of the reference.

    Returns:
        A ratio; infinite if shapes differ or a value is not finite.
    """
    if found.shape != reference.shape:
        return math.inf
    value = float((found - reference).abs().max() / reference.abs().max())
    return value if math.isfinite(value) else math.inf


def _patterns(layers: int) -> list[list[int]]:
    # all alike: no branch with a layer in it can keep step with one that has fewer
    draw = rng.stream(0, "homogeneity")
    far = [[first, *draw.integers(-3, 4, layers - 1).tolist()] for first in (_FAR, -_FAR)]
    return [[1] * layers, *far]


def _culprits(network: nn.Module, inputs: Any) -> list[str]:
    """Modules without weights that are not homogeneous on what they are given."""
    found: dict[str, None] = {}

    def hook(name: str) -> Any:
        def probe(module: nn.Module, args: tuple[Any, ...], _: Any) -> None:
            if len(args) != 1 or not isinstance(args[0], Tensor) or not args[0].is_floating_point():
                return
            plain = module.forward(args[0].clone())
            for factor in (2.0**_FAR, 2.0**-_FAR):
                other = module.forward(args[0] * factor) / factor
                if plain.any() and relative_difference(other, plain) > TOLERANCE:
                    found[f"{name or 'model'} ({type(module).__name__})"] = None

        return probe

    handles = [
        module.register_forward_hook(hook(name))
        for name, module in network.named_modules()
        if not list(module.children()) and not list(module.parameters())
    ]
    try:
        with torch.no_grad():
            outputs(network, inputs)
    except GeneralizationError:
        return []
    finally:
        for handle in handles:
            handle.remove()
    return list(found)
