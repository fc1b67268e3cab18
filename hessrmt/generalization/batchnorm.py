"""Folding: BatchNorm in evaluation mode is x ↦ s x + t per channel, and a layer takes that in.

With s = γ/√(σ² + ε), as [G] does before it takes norms ("absorbed into the network's weights and
biases", Fig. 5):

- behind a layer: W ↦ s W, b ↦ s (b - μ) + β;
- in front of it: W ↦ W s, b ↦ b + W t, exact unless zeros are padded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hessrmt.errors import GeneralizationError
from hessrmt.generalization.layers import ALTERNATIVE, Layer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch.nn.modules.batchnorm import _BatchNorm


def folded(layer: Layer, modules: Mapping[str, nn.Module]) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a layer that does what it and its BatchNorm modules do together.

    Args:
        layer: Names of the layer and of the BatchNorm modules.
        modules: By name, in evaluation mode.

    Returns:
        Float64 weight, in the shape of the layer's, and bias (outputs,) or None.
    """
    module: Any = modules[layer.name]
    weight = module.weight.detach().double()
    bias = None if module.bias is None else module.bias.detach().double()
    for name in reversed(layer.before):
        weight, bias = _take_preceding(name, modules[name], layer, module, weight, bias)
    for name in layer.after:
        weight, bias = _take_following(name, modules[name], layer, module, weight, bias)
    return weight, bias


def _take_following(
    name: str, norm: Any, layer: Layer, module: nn.Module, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Weight and bias with the BatchNorm that takes the layer's output."""
    scale, _ = _affine(norm)
    grouped = _grouped(weight, module)
    groups, outs = grouped.shape[:2]
    if len(scale) != groups * outs:
        raise _mismatch(name, layer, len(scale), groups * outs)
    mean, shift = _double(norm.running_mean), _shift(norm)
    taken = scale * ((0.0 if bias is None else bias) - mean) + shift
    return _ungrouped(grouped * scale.view(groups, outs, 1, 1), weight, module), taken


def _take_preceding(
    name: str, norm: Any, layer: Layer, module: Any, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Weight and bias with the BatchNorm whose output the layer takes."""
    scale, offset = _affine(norm)
    grouped = _grouped(weight, module)
    groups, _, ins, _ = grouped.shape
    if isinstance(module, nn.Linear) and ins % len(scale) == 0:  # features of flattened channels
        scale, offset = (v.repeat_interleave(ins // len(scale)) for v in (scale, offset))
    if len(scale) != groups * ins:
        raise _mismatch(name, layer, len(scale), groups * ins)
    if torch.any(offset != 0):
        if _sees_the_edge(module):
            raise GeneralizationError(
                f"{name} ({type(norm).__name__}) cannot be folded into {layer.label} exactly: "
                f"{layer.label} ({type(module).__name__}) pads with zeros, which come after the "
                f"BatchNorm's shift. {ALTERNATIVE}"
            )
        shift = (grouped * offset.view(groups, 1, ins, 1)).sum((2, 3)).flatten()
        bias = shift if bias is None else bias + shift
    return _ungrouped(grouped * scale.view(groups, 1, ins, 1), weight, module), bias


def _affine(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Scale s = γ/√(σ² + ε) and offset t = β - s μ, each (channels,)."""
    spread = (_double(norm.running_var) + norm.eps).sqrt()
    scale = 1 / spread if norm.weight is None else _double(norm.weight) / spread
    return scale, _shift(norm) - scale * _double(norm.running_mean)


def _shift(norm: _BatchNorm) -> Tensor:
    return torch.zeros_like(_double(norm.running_mean)) if norm.bias is None else _double(norm.bias)


def _double(value: Any) -> Tensor:
    return value.detach().double()


def _grouped(weight: Tensor, module: Any) -> Tensor:
    """The weight as (groups, outputs of a group, inputs of a group, positions)."""
    groups = getattr(module, "groups", 1)
    blocks = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    return blocks.transpose(1, 2) if _transposed(module) else blocks


def _ungrouped(blocks: Tensor, weight: Tensor, module: Any) -> Tensor:
    blocks = blocks.transpose(1, 2) if _transposed(module) else blocks
    return blocks.reshape(weight.shape)


def _transposed(module: Any) -> bool:
    return getattr(module, "transposed", False)


def _sees_the_edge(module: Any) -> bool:
    """Whether a constant input does not give a constant output."""
    if isinstance(module, nn.Linear):
        return False
    if module.transposed:
        return True
    if module.padding_mode != "zeros":
        return False
    if isinstance(module.padding, str):
        return module.padding == "same" and max(module.kernel_size) > 1
    return max(module.padding) > 0


def _mismatch(name: str, layer: Layer, channels: int, width: int) -> GeneralizationError:
    return GeneralizationError(
        f"{name} normalises {channels} channels, but {layer.label} next to it has {width}, so it "
        f"cannot be folded. {ALTERNATIVE}"
    )
