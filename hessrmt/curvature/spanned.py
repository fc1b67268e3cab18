"""The Hessian in the span of inputs and slopes, for networks of once-per-sample linear layers.

With the factors of :mod:`hessrmt.curvature.factored`, every column of the Hessian lies in the span
of e_i ⊗ a_l[b] (unit i of layer l, whose input is a_l[b] for sample b) and of g_m[b] ⊗ e_q (input q
of layer m, whose output has the gradient g_m[b]): H = M C Mᵀ with one column of M for each active
unit of each sample. C holds S_b and A_m[b]. Columns of different layers are orthogonal, inner
products within a layer are products of those of inputs and of slopes. With MᵀM = R Rᵀ the nonzero
eigenvalues are those of Rᵀ C R, a matrix of (samples x active units), however many weights there
are. No product with H is needed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from hessrmt.arrays import fetched
from hessrmt.curvature.range import Basis

if TYPE_CHECKING:
    from torch import Tensor

    from hessrmt.arrays import Matrix
    from hessrmt.curvature.factored import Factors, LayerFactors


_DEPENDENT = 4500
"""Multiple of ε times the largest squared singular value of the normalised columns of M up to which
a combination of them is taken for zero: ten times what rounding leaves of it in MᵀM."""


@dataclass(frozen=True)
class _Columns:
    """Columns of M that belong to a layer, each over its norm.

    Attributes:
        layer: The layer's factors.
        unit: (c,) sample and output of the columns e_i ⊗ a[b], as 2 rows.
        fed: (d,) sample and input of the columns g[b] ⊗ e_q, as 2 rows.
        norms: (c + d,) before.
        root: (r, c + d) R with RᵀR = MᵀM.
        inverse: (r, c + d) its pseudo-inverse, transposed.
    """

    layer: LayerFactors
    unit: Tensor
    fed: Tensor
    norms: Tensor
    root: Tensor
    inverse: Tensor


class SpanBasis(Basis):
    """Orthonormal combinations of the columns of M, in the coordinates Z of the layers, all kept.

    Args:
        found: Factors of all samples.
    """

    def __init__(self, found: Factors) -> None:
        self.like = found.curvature
        self.layers = _all_columns(found)

    def __len__(self) -> int:
        """Number of vectors."""
        return sum(len(columns.root) for columns in self.layers)

    def project(self, vectors: Tensor) -> Tensor:
        """Coordinates of vectors (..., n), (..., k)."""
        sizes = [math.prod(columns.layer.basis.shape) for columns in self.layers]
        found = []
        for columns, part in zip(self.layers, vectors.split(sizes, dim=-1), strict=True):
            layer = columns.layer
            matrix = part.unflatten(-1, layer.basis.shape)
            (sample, output), (other, entry) = columns.unit, columns.fed
            inner = torch.cat(
                [
                    (matrix @ layer.features.T)[..., output, sample],
                    (layer.gradient @ matrix)[..., other, entry],
                ],
                dim=-1,
            )
            found.append(inner / columns.norms @ columns.inverse.T)
        return torch.cat(found, dim=-1)

    def lift(self, coordinates: Tensor) -> Tensor:
        """Vectors of given coordinates (..., k), (..., n)."""
        parts = coordinates.split([len(c.root) for c in self.layers], dim=-1)
        found = []
        for columns, part in zip(self.layers, parts, strict=True):
            layer = columns.layer
            scaled = part @ columns.inverse / columns.norms
            outer, inner = scaled.tensor_split([columns.unit.shape[1]], dim=-1)
            samples, (outputs, inputs) = len(layer.features), layer.basis.shape
            (sample, output), (other, entry) = columns.unit, columns.fed
            first = outer.new_zeros(*outer.shape[:-1], outputs, samples)
            first[..., output, sample] = outer
            second = inner.new_zeros(*inner.shape[:-1], samples, inputs)
            second[..., other, entry] = inner
            found.append((first @ layer.features + layer.gradient.T @ second).flatten(-2))
        return torch.cat(found, dim=-1)


def in_span(found: Factors) -> tuple[SpanBasis, Matrix]:
    """The Hessian in the span of inputs and slopes.

    Args:
        found: Factors of all samples, of layers that hold all parameters.

    Returns:
        The basis V of the span, and V H Vᵀ. That may have dimensions that H doesn't need.
    """
    basis = SpanBasis(found)
    ends = torch.tensor([0, *(len(c.root) for c in basis.layers)]).cumsum(0).tolist()
    matrix = found.curvature.new_zeros(ends[-1], ends[-1])
    for number, left in enumerate(basis.layers):
        rows = slice(ends[number], ends[number + 1])
        for place, right in enumerate(basis.layers[: number + 1]):
            some = slice(ends[place], ends[place + 1])
            part = left.root @ _coupling(found, left, right) @ right.root.T
            matrix[rows, some] = part if place < number else (part + part.T) / 2
            matrix[some, rows] = matrix[rows, some].T.clone()
    return basis, matrix


def span_columns(found: Factors) -> list[int]:
    """How many columns of M each layer has: the dimension of the span, if they are independent.

    Args:
        found: Factors of all samples.

    Returns:
        The number for each layer.
    """
    masks = (_active(layer, found) for layer in found.layers)
    counts = [seen.sum() + fed.sum() for seen, fed in masks]
    return fetched(torch.stack(counts))[0].astype(int).tolist()


def _active(layer: LayerFactors, found: Factors) -> tuple[Tensor, Tensor]:
    """Which samples and outputs have a column e_i ⊗ a[b], which samples and inputs g[b] ⊗ e_q."""
    seen = (found.curvature[:, layer.span] != 0).any(dim=2)
    for other in found.layers:
        if other.flow is not None:
            seen = seen | (other.flow[:, :, layer.span] != 0).any(dim=1)
    seen = seen & (layer.features.norm(dim=1, keepdim=True) > 0)  # it may underflow
    fed = seen.new_zeros(len(seen), layer.basis.shape[1])
    if layer.flow is not None:
        fed = (layer.flow != 0).any(dim=2) & (layer.gradient.norm(dim=1, keepdim=True) > 0)
    return seen, fed


def _all_columns(found: Factors) -> list[_Columns]:
    """The columns of each layer; which there are is asked for all layers together."""
    masks = [mask for layer in found.layers for mask in _active(layer, found)]
    flat = torch.cat([mask.flatten() for mask in masks]).cpu()
    parts = zip(masks, flat.split([mask.numel() for mask in masks]), strict=True)
    device = found.curvature.device
    places = (part.view(mask.shape).nonzero().T for mask, part in parts)
    moved = (place.to(device, non_blocking=True) for place in places)
    return [_columns(layer, next(moved), next(moved)) for layer in found.layers]


def _columns(layer: LayerFactors, unit: Tensor, fed: Tensor) -> _Columns:
    (sample, output), (other, entry) = unit, fed
    inputs, slopes = layer.features, layer.gradient
    gram = slopes.new_zeros((unit.shape[1] + fed.shape[1],) * 2)
    first, second = gram.tensor_split([unit.shape[1]])
    norms = torch.cat([inputs.norm(dim=1)[sample], slopes.norm(dim=1)[other]])
    inner = (inputs @ inputs.T)[sample][:, sample]
    first[:, : len(sample)] = inner * (output[:, None] == output)
    second[:, : len(sample)] = inputs[sample][:, entry].T * slopes[other][:, output]
    first[:, len(sample) :] = second[:, : len(sample)].T
    inner = (slopes @ slopes.T)[other][:, other]
    second[:, len(sample) :] = inner * (entry[:, None] == entry)
    squares, turn = torch.linalg.eigh(gram / norms[:, None] / norms)
    least = _DEPENDENT * torch.finfo(squares.dtype).eps
    kept = int((squares > least * squares.abs().max()).sum()) if len(squares) else 0
    start = len(squares) - kept  # they ascend
    size, turn = squares[start:].sqrt()[:, None], turn[:, start:].T
    return _Columns(layer, unit, fed, norms, size * turn, turn / size)


def _coupling(found: Factors, left: _Columns, right: _Columns) -> Tensor:
    """The block of C between the columns of two layers, ``right`` not after ``left``."""
    (sample, output), (other, entry) = left.unit, left.fed
    (its_sample, its_output), (its_other, its_entry) = right.unit, right.fed
    block = left.norms.new_zeros(len(left.norms), len(right.norms))
    upper, lower = block.tensor_split([len(sample)])
    rows, columns = left.layer.span.start + output, right.layer.span.start + its_output
    width, same = len(its_sample), sample[:, None] == its_sample
    curved = found.curvature[sample[:, None], rows[:, None], columns]
    upper[:, :width] = torch.where(same, curved, 0)
    if left.layer.flow is not None:
        moved = left.layer.flow[other[:, None], entry[:, None], columns]
        lower[:, :width] = torch.where(other[:, None] == its_sample, moved, 0)
    if right.layer.flow is not None:
        moved = right.layer.flow[its_other, its_entry, rows[:, None]]
        upper[:, width:] = torch.where(sample[:, None] == its_other, moved, 0)
    return block * left.norms[:, None] * right.norms
