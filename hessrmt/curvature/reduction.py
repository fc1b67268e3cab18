"""Exact null directions, removed before diagonalising: θ = θ₀ + Q z with QᵀQ = I.

spectrum(H) = spectrum(QᵀHQ) ∪ {0 with multiplicity P - r} whenever the loss is invariant along the
orthogonal complement of range(Q). Q is block-structured: for each linear layer [W, b] = E Z Uᵀ

- U spans the inputs [a; 1] of a layer fed by the data: other directions never meet the data;
- E drops the direction (1, ..., 1) of a last layer under cross-entropy, which softmax ignores;
- entries of Z whose rows of H are exactly 0.0 (dead pixels, dead units, units never active
  together) are dropped; so are such parameters outside linear layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hessrmt import rng
from hessrmt.backend.select import select
from hessrmt.curvature.assembly import assemble_reduced
from hessrmt.curvature.certify import reference, require_agreement
from hessrmt.curvature.dense import dtype_name, torch_dtype
from hessrmt.curvature.products import eager_hessian_product
from hessrmt.problems.outputs import ignores_softmax_shift
from hessrmt.problems.problem import ordinary_mode

if TYPE_CHECKING:
    from hessrmt.problems.problem import Problem
    from hessrmt.problems.structure import Layer

_PROBES = 2


@dataclass(frozen=True)
class LayerBasis:
    """Basis of one linear layer's trainable matrix: [W, b] = E Z Uᵀ, some entries of Z kept.

    Attributes:
        layer: The layer.
        left: (d, e) orthonormal E; None for the identity.
        right: (width, k) orthonormal U; None for the identity.
        keep: (r,) kept entries of Z, positions in row-major (e, k) order.
        weight: Positions of the weight in θ, None if not trainable.
        bias: Positions of the bias in θ, None if not trainable.
    """

    layer: Layer
    left: Tensor | None
    right: Tensor | None
    keep: Tensor
    weight: slice | None
    bias: slice | None

    @cached_property
    def rows(self) -> Tensor:
        """Rows of Z of which anything is kept."""
        return (self.keep // self.shape[1]).unique()

    @cached_property
    def columns(self) -> Tensor:
        """Columns of Z of which anything is kept."""
        return (self.keep % self.shape[1]).unique()

    @cached_property
    def keep_within(self) -> Tensor:
        """Kept entries as positions in the part of Z made of :attr:`rows` and :attr:`columns`."""
        row = torch.searchsorted(self.rows, self.keep // self.shape[1])
        return row * len(self.columns) + torch.searchsorted(self.columns, self.keep % self.shape[1])

    def turn_outputs(self, values: Tensor) -> Tensor:
        """Derivatives in the layer's outputs (..., d) to its kept rows (..., e)."""
        turned = values if self.left is None else values @ self.left
        return turned.index_select(-1, self.rows)

    def turn_inputs(self, features: Tensor) -> Tensor:
        """Features [a; 1] (..., width) to the layer's kept columns (..., k)."""
        turned = features if self.right is None else features @ self.right
        return turned.index_select(-1, self.columns)

    def output_directions(self) -> Tensor:
        """(e, d), the layer's kept rows as directions of its outputs."""
        like = self.layer.like
        eye = torch.eye(self.layer.outputs, dtype=like.dtype, device=like.device)
        return (eye if self.left is None else self.left.T).index_select(0, self.rows)

    @property
    def shape(self) -> tuple[int, int]:
        """(e, k), the shape of Z."""
        rows = self.layer.outputs if self.left is None else self.left.shape[1]
        return rows, self.layer.width if self.right is None else self.right.shape[1]

    def gather(self, theta: Tensor) -> Tensor:
        """Flat parameter vectors (..., P) to this layer's kept coordinates (..., r).

        Returns:
            The part of Qᵀθ that belongs to the layer.
        """
        outputs, parts = self.layer.outputs, []
        if self.weight:
            parts.append(theta[..., self.weight].unflatten(-1, (outputs, -1)))
        if self.bias:
            parts.append(theta[..., self.bias].unsqueeze(-1))
        matrix = torch.cat(parts, dim=-1)
        if self.right is not None:
            matrix = matrix @ self.right
        if self.left is not None:
            matrix = self.left.T @ matrix
        return matrix.flatten(-2)[..., self.keep]

    def scatter(self, z: Tensor, theta: Tensor) -> None:
        """Write this layer's coordinates (..., r) into flat parameter vectors (..., P)."""
        rows, columns = self.shape
        matrix = z.new_zeros(*z.shape[:-1], rows * columns)
        matrix[..., self.keep] = z
        matrix = matrix.unflatten(-1, (rows, columns))
        if self.left is not None:
            matrix = self.left @ matrix
        if self.right is not None:
            matrix = matrix @ self.right.T
        if self.weight:
            kept = matrix[..., :-1] if self.bias else matrix
            theta[..., self.weight] = kept.flatten(-2)
        if self.bias:
            theta[..., self.bias] = matrix[..., -1]


@dataclass(frozen=True)
class Reduction:
    """An orthonormal basis of the directions in which the loss can vary.

    Coordinates are ordered: layers in the order of execution, then other parameters.

    Attributes:
        dimension: P.
        layers: Bases of the linear layers.
        others: Kept positions in θ of parameters outside those layers.
    """

    dimension: int
    layers: tuple[LayerBasis, ...]
    others: Tensor

    @property
    def reduced_dimension(self) -> int:
        """Number of columns of Q."""
        return sum(len(layer.keep) for layer in self.layers) + len(self.others)

    def project(self, v: Tensor) -> Tensor:
        """Qᵀv.

        Args:
            v: (..., P).

        Returns:
            (..., r).
        """
        return torch.cat([layer.gather(v) for layer in self.layers] + [v[..., self.others]], dim=-1)

    def lift(self, z: Tensor) -> Tensor:
        """Q z.

        Args:
            z: (..., r).

        Returns:
            (..., P).
        """
        theta = z.new_zeros(*z.shape[:-1], self.dimension)
        start = 0
        for layer in self.layers:
            end = start + len(layer.keep)
            layer.scatter(z[..., start:end], theta)
            start = end
        theta[..., self.others] = z[..., start:]
        return theta


@dataclass(frozen=True)
class RangedReduction:
    """A reduction whose largest layer has been narrowed to the range of its rows of H.

    Coordinates are ordered: the layer's, then all others in their former order.

    Attributes:
        base: The reduction before.
        where_block: (m,) positions of the layer's coordinates in ``base``.
        where: Positions of all others.
        basis: (m, w) orthonormal columns.
    """

    base: Reduction
    where_block: Tensor
    where: Tensor
    basis: Tensor

    @property
    def dimension(self) -> int:
        """P."""
        return self.base.dimension

    @property
    def reduced_dimension(self) -> int:
        """Number of columns of Q."""
        return self.basis.shape[1] + len(self.where)

    def project(self, v: Tensor) -> Tensor:
        """Qᵀv.

        Args:
            v: (..., P).

        Returns:
            (..., r).
        """
        z = self.base.project(v)
        return torch.cat([z[..., self.where_block] @ self.basis, z[..., self.where]], dim=-1)

    def lift(self, z: Tensor) -> Tensor:
        """Q z.

        Args:
            z: (..., r).

        Returns:
            (..., P).
        """
        width = self.basis.shape[1]
        inner = z.new_empty(*z.shape[:-1], self.base.reduced_dimension)
        inner[..., self.where_block] = z[..., :width] @ self.basis.T
        inner[..., self.where] = z[..., width:]
        return self.base.lift(inner)


@ordinary_mode()
def reduction(
    problem: Problem,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "float64",
) -> Reduction | RangedReduction:
    """The basis Q in which :func:`hessrmt.spectrum` diagonalises a problem's Hessian.

    Where the spectrum uses the range of a layer, that layer's part of the Hessian is built and
    factorised here too, since the basis depends on it.

    Args:
        problem: Model, loss and batch.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        dtype: ``"float64"`` or ``"float32"``.

    Returns:
        The basis, with ``dimension``, ``reduced_dimension``, ``lift`` and ``project``.

    Raises:
        ProblemError: If the loss is random, not a scalar or not twice differentiable by torch, or
            if Q Qᵀ H is not H along a random vector.
        NonFiniteError: If the loss is NaN or infinite.
        DeviceError: If the device is not there or the work does not fit in its memory.
    """
    backend = select(device)
    local = problem.at(torch_dtype(dtype), backend.device)
    local.evaluate()
    base = reduce_problem(local)
    known = reference(local)
    blocks = assemble_reduced(local, base, backend, rounding=known.rounding)
    found: Reduction | RangedReduction = base
    if blocks.ranged is not None:
        basis = torch.linalg.qr(blocks.ranged.stacked).Q
        found = RangedReduction(base, blocks.ranged.where, blocks.where, basis)

    def product(v: Tensor) -> Tensor:  # Q Qᵀ H v
        curved = base.lift(blocks.apply(base.project(v)))
        return found.lift(found.project(curved))

    seen = known.beside(product)
    norm = float(torch.linalg.matrix_norm(blocks.matrix()))  # Frobenius, no less than the 2-norm
    require_agreement(seen.residual, norm, local, dtype_name(dtype), seen.of_product)
    return found


def identity(problem: Problem) -> Reduction:
    """No reduction: Q = I.

    Args:
        problem: In its final place.

    Returns:
        The basis of all parameters.
    """
    device = problem.theta.device
    return Reduction(problem.dimension, (), torch.arange(problem.dimension, device=device))


def reduce_problem(problem: Problem) -> Reduction:
    """Basis of the directions that can matter, from the network's structure.

    Args:
        problem: In its final precision and place, already evaluated once.

    Returns:
        The basis.
    """
    zero, found = _zero_rows(problem), problem.structure.linear()
    places = problem.places()
    layers = tuple(_layer_basis(layer, problem, zero, places) for layer in found.layers)
    device = zero.device
    others = [
        torch.arange(places[name].start, places[name].stop, device=device) for name in found.others
    ]
    free = torch.cat(others) if others else torch.zeros(0, dtype=torch.long, device=device)
    return Reduction(problem.dimension, layers, free[~zero[free]])


def input_basis(features: Tensor) -> Tensor | None:
    """Orthonormal basis of the span of some rows, to rounding.

    Directions whose singular value is below max(m, p)·ε·σ₁ are left out: they change H by no more
    than its own rounding.

    Args:
        features: (m, p) rows.

    Returns:
        (p, k) with k < p, or None if the rows span everything.
    """
    rows, columns = features.shape
    if rows > columns:  # same row space and singular values, smaller
        features = torch.linalg.qr(features, mode="r").R
    mixing, sizes, _ = torch.linalg.svd(features, full_matrices=False)
    tolerance = max(rows, columns) * torch.finfo(sizes.dtype).eps * float(sizes.max())
    rank = int((sizes > tolerance).sum())
    # the right singular vectors themselves are orthonormal to a few digits less than a QR's
    return None if rank == columns else torch.linalg.qr(features.T @ mixing[:, :rank]).Q


def softmax_basis(classes: int, like: Tensor) -> Tensor:
    """Orthonormal basis of the vectors whose entries sum to zero.

    Args:
        classes: K.
        like: Gives type and place.

    Returns:
        (K, K - 1), the columns of a Householder reflection that maps 1/√K to an axis.
    """
    u = torch.full((classes,), classes**-0.5, dtype=like.dtype, device=like.device)
    u[0] += 1
    eye = torch.eye(classes, dtype=like.dtype, device=like.device)
    return (eye - 2 * torch.outer(u, u) / (u @ u))[:, 1:].contiguous()


def _zero_rows(problem: Problem) -> Tensor:
    """(P,) bool: rows of the Hessian that are exactly 0.0, by random Hessian-vector products."""
    # a row that is not zero gives 0.0 for a random vector with probability zero; the second,
    # independent vector verifies the first
    theta = problem.theta
    generator = rng.torch_generator(0, "structural-zeros")
    probes = torch.randn(_PROBES, problem.dimension, generator=generator, dtype=torch.float64)
    probes = probes.to(dtype=theta.dtype, device=theta.device)
    return (eager_hessian_product(problem)(probes) == 0).all(dim=0)


def _layer_basis(
    layer: Layer, problem: Problem, zero: Tensor, places: dict[str, slice]
) -> LayerBasis:
    weight = places[layer.weight] if layer.weight else None
    bias = places[layer.bias] if layer.bias else None
    right = None if layer.inputs is None else input_basis(layer.augmented(layer.inputs))
    left = None
    if layer.is_output and layer.outputs > 1 and ignores_softmax_shift(problem):
        left = softmax_basis(layer.outputs, layer.like)
    parts = [zero[weight].view(layer.outputs, -1)] if weight else []
    if bias:
        parts.append(zero[bias].view(-1, 1))
    dead = torch.cat(parts, dim=1)
    # a rotated side keeps or drops whole rows or columns of the matrix
    if right is not None:
        dead = dead.all(dim=1, keepdim=True).expand(-1, right.shape[1])
    if left is not None:
        dead = dead.all(dim=0, keepdim=True).expand(left.shape[1], -1)
    keep = (~dead).flatten().nonzero().squeeze(-1)
    return LayerBasis(layer, left, right, keep, weight, bias)
