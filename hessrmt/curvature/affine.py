"""Layers whose rows of the Jacobian are one product of what enters and what comes back.

A convolution, a linear layer and the affine part of a normalisation are all z = W u: u_b holds
what each of T positions of sample b sees, W mixes the p entries of u into d outputs, separately in
each of g groups. A cotangent of sample b's outputs that arrives at z as δ_b (d, T) gives the row
δ_b u_b (d, p) of the Jacobian (per-sample gradients: Goodfellow, arXiv:1510.01799).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jaxtyping import Float

CONVOLUTIONS = {nn.Conv1d: 1, nn.Conv2d: 2}
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
TYPES = (nn.Linear, *CONVOLUTIONS, *BATCH_NORMS, nn.LayerNorm, nn.GroupNorm)
"""Modules that are such layers, if their normalisation is of fixed statistics."""


@dataclass(frozen=True)
class Layer:
    """One layer z = W u with at least one trainable parameter.

    Attributes:
        name: The module's name.
        module: The module.
        parameters: Names of its trainable parameters.
        weight: Whether the weight is trainable.
        bias: Whether there is a trainable bias.
        groups: g.
        outputs: d, outputs of one group.
        width: p, columns of the trainable matrix [W, bias] of one group.
        positions: T.
    """

    name: str
    module: nn.Module
    parameters: tuple[str, ...]
    weight: bool
    bias: bool
    groups: int
    outputs: int
    width: int
    positions: int

    @property
    def row(self) -> int:
        """Numbers in one row of the Jacobian, the trainable parameters of the layer."""
        return self.groups * self.outputs * self.width

    @property
    def signal(self) -> int:
        """Numbers in what comes back for one row."""
        return self.groups * self.outputs * self.positions

    @property
    def keeps_rows(self) -> bool:
        """Whether rows take less memory than what they are products of."""
        return self.row <= self.signal

    def features(self, entering: Tensor) -> Float[Tensor, "B g T p"]:
        """What the trainable matrix acts on, u, with a 1 for the bias.

        Args:
            entering: (B, ...) the layer's input.

        Returns:
            (B, g, T, p).
        """
        parts = []
        if self.weight:
            parts.append(_seen(self.module, entering, self.groups))
        if self.bias:
            shape = (len(entering), self.groups, 1, self.positions)
            parts.append(entering.new_ones(()).expand(shape))
        return (parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)).mT

    def signals(self, leaving: Tensor) -> Float[Tensor, "B g d T"]:
        """What comes back to z, by groups, outputs and positions.

        Args:
            leaving: (B, ...) derivative in the layer's output.

        Returns:
            (B, g, d, T).
        """
        if isinstance(self.module, nn.Linear | nn.LayerNorm):  # channels last
            leaving = leaving.reshape(len(leaving), self.positions, -1).mT
        return leaving.reshape(len(leaving), self.groups, self.outputs, self.positions)


def describe(
    name: str, module: nn.Module, owned: Mapping[str, str], entering: Tensor, leaving: Tensor
) -> Layer | None:
    """A layer's dimensions, from one call of it.

    Args:
        name: The module's name.
        module: Of one of :data:`TYPES`.
        owned: ``"weight"``, ``"bias"`` to the names of its trainable parameters.
        entering: (B, ...) its input.
        leaving: (B, ...) its output.

    Returns:
        The layer; None for an input that its type does not usually have.
    """
    groups, outputs, width = 1, 1, 1
    size = leaving[0].numel()
    if isinstance(module, nn.Linear):
        outputs, width = module.out_features, module.in_features
    elif isinstance(module, nn.Conv1d | nn.Conv2d):
        if entering.dim() != 2 + CONVOLUTIONS[type(module)]:
            return None
        groups = module.groups
        outputs = module.out_channels // groups
        width = module.weight[0].numel()
    elif isinstance(module, nn.LayerNorm):
        groups = math.prod(module.normalized_shape)
    else:
        groups = entering.shape[1]
    positions = size // (groups * outputs)
    if isinstance(module, nn.LayerNorm) and entering.dim() <= len(module.normalized_shape):
        return None
    weight, bias = "weight" in owned, "bias" in owned
    return Layer(
        name=name,
        module=module,
        parameters=tuple(owned.values()),
        weight=weight,
        bias=bias,
        groups=groups,
        outputs=outputs,
        width=(width if weight else 0) + (1 if bias else 0),
        positions=positions,
    )


def _seen(module: nn.Module, entering: Tensor, groups: int) -> Float[Tensor, "B g p T"]:
    """What the weight of a layer acts on."""
    samples = len(entering)
    if isinstance(module, nn.Linear):
        return entering.reshape(samples, 1, -1, module.in_features).mT
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        padded = F.pad(entering, module._reversed_padding_repeated_twice, mode=mode)
        kernel, stride, dilation = module.kernel_size, module.stride, module.dilation
        if isinstance(module, nn.Conv1d):
            padded = padded.unsqueeze(2)
            kernel, stride, dilation = (1, *kernel), (1, *stride), (1, *dilation)
        columns = F.unfold(padded, kernel, dilation=dilation, stride=stride)
        return columns.view(samples, groups, -1, columns.shape[-1])
    if isinstance(module, nn.LayerNorm):
        normal = F.layer_norm(entering, module.normalized_shape, eps=module.eps)
        return normal.reshape(samples, -1, groups).mT.unsqueeze(2)
    if isinstance(module, nn.GroupNorm):
        normal = F.group_norm(entering, module.num_groups, eps=module.eps)
    else:
        assert isinstance(module, BATCH_NORMS)
        normal = F.batch_norm(entering, module.running_mean, module.running_var, eps=module.eps)
    return normal.reshape(samples, groups, 1, -1)
