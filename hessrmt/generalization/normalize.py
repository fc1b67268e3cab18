"""f(x) = Πρ_k f̃(x), ρ_k = ‖W_k‖: a trained network with its scale taken out ([G] §2, [P] §3).

A network of linear layers, convolutions, ReLUs and poolings is positively homogeneous in every
weight. With biases the exact rescaling is W_k ↦ W_k/ρ_k, b_k ↦ b_k/Π_{j≤k} ρ_j. BatchNorm is folded
into the layers first. What the network predicts does not change, its loss does.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hessrmt.errors import GeneralizationError
from hessrmt.generalization import networks
from hessrmt.generalization.batchnorm import folded
from hessrmt.generalization.homogeneity import (
    TOLERANCE,
    relative_difference,
    require_homogeneous,
)
from hessrmt.generalization.layers import ALTERNATIVE, Layer, listed, trace

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

OUTPUT = "output"
"""Name of the only factor where the output was normalised."""


@dataclass(frozen=True, eq=False)
class Normalized:
    """A normalised network and what it was divided by.

    Attributes:
        model: f̃, in evaluation mode, in the precision and on the device of the original.
        factors: Name of the layer to ρ_k, in the order of depth; after :func:`output_normalize`
            only ``output``.
        norm: p of the norms, at least 1, possibly infinite.
        layers: Layers and the BatchNorm modules folded into them.
        deviation: Largest |f̃ Πρ_k - f| on the inputs over the largest |f|, in float64.
    """

    model: nn.Module
    factors: Mapping[str, float]
    norm: float
    layers: tuple[Layer, ...]
    deviation: float

    @property
    def product(self) -> float:
        """Πρ_k, so that f = Πρ_k f̃."""
        return math.prod(self.factors.values())


class Scaled(nn.Module):
    """A network whose outputs are divided by a constant.

    Args:
        model: The network.
        factor: The constant.
    """

    def __init__(self, model: nn.Module, factor: float) -> None:
        super().__init__()
        self.model = model
        self.factor = factor

    def forward(self, *arguments: Any, **keywords: Any) -> Tensor:
        """The model's outputs over the constant.

        Returns:
            (B, ...).
        """
        return self.model(*arguments, **keywords) / self.factor


@torch.inference_mode(False)
def normalize(model: nn.Module, inputs: Any, norm: float = 2) -> Normalized:
    """Divide every layer's weight by its norm, exactly; refuse a network where that is not exact.

    Linear and convolution layers are found by running the model, so that it may be any module.
    That it is homogeneous is checked on the inputs with weights scaled by powers of two, and the
    result is compared with the original there. All of it is computed in float64.

    Args:
        model: The trained network; not changed. It is taken in evaluation mode.
        inputs: A batch of real samples, (B, ...), or a tuple or dict of tensors.
        norm: p of the norm ‖W_k‖_p = (Σ|w|^p)^(1/p) over all elements of the weight, at least 1;
            2 is the Frobenius norm of [G], ``math.inf`` the largest element.

    Returns:
        The normalised network, ρ_k by layer and their product.

    Raises:
        GeneralizationError: If the network is not homogeneous, holds a weight that is zero, NaN
            or shared, or a BatchNorm that cannot be folded exactly.
    """
    norm = checked_norm(norm)
    network = networks.working_copy(model)
    data = networks.as_inputs(inputs, networks.device_of(network))
    found = trace(network, data)
    original = found.outputs
    _fold(network, found.layers)
    plain = _run(network, data)
    if any(layer.before or layer.after for layer in found.layers):
        _require_same_fold(plain, original, found.layers)
    require_homogeneous(network, found.layers, data, plain)
    modules: dict[str, Any] = dict(network.named_modules())
    weights = {layer.label: modules[layer.name].weight for layer in found.layers}
    factors = layer_factors(weights, norm)
    _rescale([modules[layer.name] for layer in found.layers], list(factors.values()))
    deviation = relative_difference(_run(network, data) * math.prod(factors.values()), original)
    if deviation > TOLERANCE:
        raise GeneralizationError(
            f"the normalised network is off by {deviation:.1g} of the largest output although it "
            f"is homogeneous: its weights are too badly scaled. {ALTERNATIVE}"
        )
    largest = float(original.abs().max()) / math.prod(factors.values())
    _restore(network, networks.unwrapped(model), largest)
    return Normalized(network, factors, norm, found.layers, deviation)


def output_normalize(model: nn.Module, inputs: Any, norm: float = 2) -> Normalized:
    """Divide a network by the norm of its output on a fixed image or batch.

    [G]'s way for ResNets (Fig. 2, appendix H), whose residual branches have no product of norms.
    Use the same inputs for all networks that are to be compared.

    Args:
        model: Any network; not changed. It is taken in evaluation mode.
        inputs: One image as a batch of one, or a batch: then the norms of its samples are averaged.
        norm: p of the norm of a sample's outputs, at least 1, possibly infinite.

    Returns:
        The network over ρ; ``factors`` is ``{"output": ρ}``.
    """
    norm = checked_norm(norm)
    network = networks.working_copy(model)
    data = networks.as_inputs(inputs, networks.device_of(network))
    original = _run(network, data)
    factor = output_factor(original, norm)
    largest = float(original.abs().max())
    deviation = float(((original / factor) * factor - original).abs().max()) / largest
    _restore(network, networks.unwrapped(model), largest / factor)
    return Normalized(Scaled(network, factor).eval(), {OUTPUT: factor}, norm, (), deviation)


def checked_norm(norm: float) -> float:
    """The p of a norm.

    Args:
        norm: A number.

    Returns:
        The number.

    Raises:
        GeneralizationError: If it is not at least 1.
    """
    if isinstance(norm, bool) or not isinstance(norm, int | float) or not norm >= 1:
        raise GeneralizationError(
            f"norm is {norm!r}; expected the p of an L_p norm: a number from 1 on, 2 for "
            "Frobenius, or math.inf"
        )
    return float(norm)


def layer_factors(weights: Mapping[str, Tensor], norm: float) -> dict[str, float]:
    """ρ_k of weights.

    Args:
        weights: Name of the layer to its weight, of any shape, BatchNorm folded.
        norm: p.

    Returns:
        Name of the layer to ‖W_k‖_p.

    Raises:
        GeneralizationError: If a weight is all zero or not finite, or the product of the norms
            lies outside of float64.
    """
    factors = {name: _norm(weight, norm) for name, weight in weights.items()}
    for name, factor in factors.items():
        if factor == 0 or not math.isfinite(factor):
            what = "all zero" if factor == 0 else "not finite"
            raise GeneralizationError(
                f"the weights of {name} are {what}: a layer without a direction cannot be "
                "normalised. Was the model trained, did it collapse?"
            )
    product = math.prod(factors.values())
    if not 0 < product < math.inf:
        raise GeneralizationError(
            f"the product of the norms of {len(factors)} layers is {product}, outside of double "
            "precision; take another norm"
        )
    return factors


def output_factor(found: Tensor, norm: float) -> float:
    """Mean over the samples of the norm of their outputs.

    Args:
        found: (B, ...) outputs.
        norm: p.

    Returns:
        ρ.

    Raises:
        GeneralizationError: If the outputs are all zero or not finite.
    """
    factor = sum(_norm(row, norm) for row in found) / len(found)
    if not 0 < factor < math.inf:
        raise GeneralizationError(
            f"the norm of the outputs on the fixed inputs is {factor}; take other inputs, on which "
            "the model gives finite outputs that are not all zero"
        )
    return factor


def effective_weights(model: nn.Module, layers: Sequence[Layer]) -> dict[str, Tensor]:
    """Weights of a network's layers with their BatchNorm folded; nothing is changed.

    Args:
        model: The network that the layers were found in, at any parameters.
        layers: In the order of their depth.

    Returns:
        Name of the layer to its float64 weight.
    """
    modules = dict(model.named_modules())
    return {layer.label: folded(layer, modules)[0] for layer in layers}


def _norm(values: Tensor, norm: float) -> float:
    size = values.detach().double().abs().flatten()
    largest = float(size.max()) if size.numel() else 0.0
    if not 0 < largest < math.inf:
        return largest
    return largest * float(torch.linalg.vector_norm(size / largest, ord=norm))


def _run(network: nn.Module, data: Any) -> Tensor:
    with torch.no_grad():
        return networks.outputs(network, data)


def _fold(network: nn.Module, layers: Sequence[Layer]) -> None:
    modules: dict[str, Any] = dict(network.named_modules())
    for layer in layers:
        weight, bias = folded(layer, modules)
        modules[layer.name].weight = nn.Parameter(weight)
        modules[layer.name].bias = None if bias is None else nn.Parameter(bias)
    for name in {n for layer in layers for n in (*layer.before, *layer.after)}:
        network.set_submodule(name, nn.Identity().eval())


def _require_same_fold(found: Tensor, original: Tensor, layers: Sequence[Layer]) -> None:
    if not original.any():
        return
    difference = relative_difference(found, original)
    if not difference <= TOLERANCE:
        names = [n for layer in layers for n in (*layer.before, *layer.after)]
        raise GeneralizationError(
            f"BatchNorm ({listed(names)}) cannot be folded: the model then differs by "
            f"{difference:.1g} of the largest output, probably because a layer's output is also "
            f"used without it. {ALTERNATIVE}"
        )


def _rescale(layers: Sequence[Any], factors: Sequence[float]) -> None:
    with torch.no_grad():
        for layer, factor, depth in zip(
            layers, factors, itertools.accumulate(factors, lambda a, b: a * b), strict=True
        ):
            layer.weight /= factor
            if layer.bias is not None:
                layer.bias /= depth


def _restore(network: nn.Module, model: nn.Module, largest: float) -> None:
    """Put the copy back into the precision of the original, if that can hold it."""
    own = dict(model.named_parameters())
    kinds = {name: v.dtype for name, v in [*own.items(), *model.named_buffers()]}
    main = next((p.dtype for p in own.values() if p.is_floating_point()), torch.float64)
    for name, value in [*network.named_parameters(), *network.named_buffers()]:
        if not value.is_floating_point():
            continue
        kind = kinds.get(name, main)
        cast = value.detach().to(kind)
        limits = torch.finfo(kind)
        lost = float((cast.double() - value.detach()).abs().max()) if value.numel() else 0.0
        size = float(value.detach().abs().max()) if value.numel() else 0.0
        if lost > 2 * limits.eps * size or 0 < largest < limits.tiny / limits.eps:
            raise GeneralizationError(
                f"{name} of the normalised network is too small or too large for {kind}; "
                "convert the model first: model.double()"
            )
        if isinstance(value, nn.Parameter):
            value.requires_grad_(own[name].requires_grad if name in own else True)
        value.data = cast
