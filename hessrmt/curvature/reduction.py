"""The reduced Hessian QᵀHQ: exact null directions are removed before diagonalising.

θ = θ₀ + Q z with QᵀQ = I. spectrum(H) = spectrum(QᵀHQ) ∪ {0 with multiplicity P - r} whenever the
loss is invariant along the orthogonal complement of range(Q). Q is block-structured: for each
linear layer [W, b] = E Z Uᵀ

- U spans the inputs [a; 1] of a layer fed by the data: other directions never meet the data;
- E drops the direction (1, ..., 1) of a last layer under cross-entropy, which softmax ignores;
- entries of Z whose rows of H are exactly 0.0 (dead pixels, dead units, units never active
  together) are dropped; so are such parameters outside linear layers.

One block may be known only through its range. For one layer k the block is H_kk = A Σ Aᵀ with few
columns A, and all of H's rows of that layer lie in the range of M = [A, C], C = H_k,rest. With
M = QR an orthonormal basis of that range turns

    [[A Σ Aᵀ, C], [Cᵀ, D]]   into   [[R_A Σ R_Aᵀ, R_C], [R_Cᵀ, D]],

which has the same nonzero eigenvalues. Q itself is never needed.

The matrix is assembled by whichever exact route is cheapest: from factors
(:mod:`hessrmt.curvature.factored`) or by Hessian-vector products.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, combinations_with_replacement
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hessrmt.backend.select import select
from hessrmt.curvature.certify import reference, require_agreement
from hessrmt.curvature.dense import (
    Device,
    Dtype,
    Tick,
    dtype_name,
    make_symmetric,
    require,
    row_bytes,
    rows_beside,
    silent,
    torch_dtype,
    unit_vectors,
)
from hessrmt.curvature.factored import (
    block,
    factor_bytes,
    factors,
    own_curvature,
    sample_chunks,
    samples_are_independent,
)
from hessrmt.curvature.products import eager_hessian_product, hessian_product
from hessrmt.curvature.rounding import gaussian
from hessrmt.errors import ConvergenceError, NonFiniteError
from hessrmt.problems.outputs import ignores_softmax_shift
from hessrmt.problems.problem import ordinary_mode

if TYPE_CHECKING:
    from hessrmt.arrays import Matrix
    from hessrmt.backend.base import Backend
    from hessrmt.curvature.factored import Factors, OwnCurvature
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
        matrix = _as_matrix(theta, self.layer.outputs, self.weight, self.bias)
        matrix = matrix if self.right is None else matrix @ self.right
        matrix = matrix if self.left is None else self.left.T @ matrix
        return matrix.flatten(-2)[..., self.keep]

    def scatter(self, z: Tensor, theta: Tensor) -> None:
        """Write this layer's coordinates (..., r) into flat parameter vectors (..., P)."""
        rows, columns = self.shape
        matrix = z.new_zeros(*z.shape[:-1], rows * columns)
        matrix[..., self.keep] = z
        matrix = matrix.unflatten(-1, (rows, columns))
        matrix = matrix if self.left is None else self.left @ matrix
        matrix = matrix if self.right is None else matrix @ self.right.T
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
    problem: Problem, device: Device = "auto", dtype: Dtype = "float64"
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
    require_agreement(seen, norm, local, dtype_name(dtype))
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
    places, everywhere = problem.places(), torch.arange(problem.dimension, device=zero.device)
    layers = tuple(_layer_basis(layer, problem, zero, places) for layer in found.layers)
    others = torch.cat([everywhere[:0], *(everywhere[places[name]] for name in found.others)])
    return Reduction(problem.dimension, layers, others[~zero[others]])


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


def _as_matrix(theta: Tensor, outputs: int, weight: slice | None, bias: slice | None) -> Tensor:
    """[W, b], or what of it is trainable, of vectors in the space of the parameters."""
    parts = [theta[..., weight].unflatten(-1, (outputs, -1))] if weight else []
    parts += [theta[..., bias].unsqueeze(-1)] if bias else []
    return torch.cat(parts, dim=-1)


def _zero_rows(problem: Problem) -> Tensor:
    """(P,) bool: rows of the Hessian that are exactly 0.0, by random Hessian-vector products."""
    # a row that is not zero gives 0.0 for a random vector with probability zero; the second,
    # independent vector verifies the first
    probes = gaussian((_PROBES, problem.dimension), problem.theta, "structural-zeros")
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
    dead = _as_matrix(zero, layer.outputs, weight, bias)
    # a rotated side keeps or drops whole rows or columns of the matrix
    if right is not None:
        dead = dead.all(dim=1, keepdim=True).expand(-1, right.shape[1])
    if left is not None:
        dead = dead.all(dim=0, keepdim=True).expand(left.shape[1], -1)
    keep = (~dead).flatten().nonzero().squeeze(-1)
    return LayerBasis(layer, left, right, keep, weight, bias)


_QR_ADVANTAGE = 2.5
"""How much faster a flop of QR runs than one of a tridiagonalisation (two cores, LAPACK)."""


@dataclass(frozen=True)
class RangeBlock:
    """The part of a reduced Hessian that concerns one layer.

    Attributes:
        where: (m,) positions of the layer's rows among the coordinates.
        stacked: (m, c + n) M = [A, C].
        signs: (c,) diagonal of Σ.
    """

    where: Tensor
    stacked: Tensor
    signs: Tensor

    @property
    def columns(self) -> Tensor:
        """(m, c) A."""
        return self.stacked[:, : len(self.signs)]

    @property
    def coupling(self) -> Tensor:
        """(m, n) C."""
        return self.stacked[:, len(self.signs) :]


@dataclass(frozen=True)
class Blocks:
    """QᵀHQ in the coordinates of a :class:`~hessrmt.curvature.reduction.Reduction`.

    Attributes:
        rest: (n, n) D, symmetric.
        where: (n,) positions of its rows among the coordinates.
        ranged: The layer that is known through its range, if any.
    """

    rest: Matrix
    where: Tensor
    ranged: RangeBlock | None = None

    def apply(self, z: Tensor) -> Tensor:
        """The product with a vector, before any range basis.

        Args:
            z: (r,).

        Returns:
            (r,).
        """
        result = torch.zeros_like(z)
        own = z[self.where]
        result[self.where] = self.rest @ own
        if self.ranged is not None:
            other = z[self.ranged.where]
            inner = self.ranged.signs * (self.ranged.columns.T @ other)
            result[self.where] += self.ranged.coupling.T @ other
            result[self.ranged.where] = self.ranged.columns @ inner + self.ranged.coupling @ own
        return result

    def matrix(self) -> Matrix:
        """The smallest symmetric matrix with the same nonzero eigenvalues.

        Returns:
            The matrix.

        Raises:
            ConvergenceError: If the QR does not keep inner products to rounding.
        """
        if self.ranged is None:
            return self.rest
        stacked, signs = self.ranged.stacked, self.ranged.signs
        triangle = torch.linalg.qr(stacked, mode="r").R
        x = torch.ones(stacked.shape[1], dtype=stacked.dtype, device=stacked.device)
        x[1::2] = -1
        gap = (stacked.T @ (stacked @ x) - triangle.T @ (triangle @ x)).norm() / x.norm()
        tolerance = stacked.shape[0] * torch.finfo(x.dtype).eps * float(stacked.square().sum())
        if not float(gap) <= tolerance:
            raise ConvergenceError(
                f"the QR factorisation lost orthogonality: |MᵀMx - RᵀRx| = {float(gap):.3g} where "
                f"rounding explains {tolerance:.3g}"
            )
        count, inner = triangle.shape[0], len(signs)
        left, right = triangle[:, :inner], triangle[:, inner:]
        small = triangle.new_empty(count + len(self.where), count + len(self.where))
        small[:count, :count] = (left * signs) @ left.T
        small[:count, count:] = right
        small[count:, :count] = right.T
        small[count:, count:] = self.rest
        return small


def range_pays(block: int, columns: int, rest: int) -> bool:
    """Whether a range basis of a layer makes the whole cheaper.

    Args:
        block: m, kept coordinates of the layer.
        columns: c, columns of A.
        rest: n, all other coordinates.

    Returns:
        True if the QR and the smaller eigenvalue problem cost less than the larger one alone.
    """
    width = columns + rest
    if width >= block:
        return False
    before = 4 / 3 * (block + rest) ** 3
    qr = 2 * block * width**2 - 2 / 3 * width**3
    return qr / _QR_ADVANTAGE + 4 / 3 * (width + rest) ** 3 < before


_RANGE_BYTES = 2**30
"""Memory of a layer's factors beyond which its range is not looked for."""


@dataclass(frozen=True)
class _Route:
    """How the matrix is going to be built.

    Attributes:
        layers: Linear layers whose factors are used.
        chunks: Slices of samples whose factors are summed; empty if products are used instead.
        found: Factors of the only chunk, if they have been computed already.
        ranged: Layer to be treated through its range.
        own: That layer's block.
    """

    layers: tuple[LayerBasis, ...] = ()
    chunks: tuple[slice, ...] = ()
    found: Factors | None = None
    ranged: LayerBasis | None = None
    own: OwnCurvature | None = None


def assemble_reduced(
    problem: Problem,
    reduction: Reduction,
    backend: Backend,
    tick: Tick = silent,
    rounding: float = 0.0,
) -> Blocks:
    """QᵀHQ as blocks.

    From factors if every kept parameter sits in a once-per-sample linear layer, otherwise by
    Hessian-vector products; in both cases the largest such layer through its range if that pays.

    Args:
        problem: In its final precision and place, already evaluated once.
        reduction: The coordinates.
        backend: Where the work is done.
        tick: Called with phase, steps done and steps in all.
        rounding: As for :func:`~hessrmt.curvature.dense.make_symmetric`.

    Returns:
        The blocks.

    Raises:
        NonFiniteError: If an entry is NaN or infinite.
        DeviceError: If they do not fit in memory.
    """
    route = _choose(problem, reduction)
    fixed, like, own = _require(route, problem, reduction, backend), problem.theta, route.own
    kinds = [torch.full((len(basis.keep),), basis is route.ranged) for basis in reduction.layers]
    inside = torch.cat([*kinds, torch.zeros(len(reduction.others), dtype=torch.bool)])
    inside = inside.to(like.device)
    where, where_block = (~inside).nonzero().squeeze(1), inside.nonzero().squeeze(1)
    count = 0 if own is None else len(own.signs)
    rest = like.new_zeros(len(where), len(where))
    stacked = like.new_zeros(len(where_block), 0 if route.ranged is None else count + len(where))
    coupling = stacked[:, count:]
    if own is not None and route.ranged is not None:
        stacked[:, :count] = own.columns()[route.ranged.keep_within]
    if route.chunks:
        places = _places(route)
        for number, chunk in enumerate(route.chunks):
            found = route.found or factors(problem, route.layers, chunk)
            _add_factors(found, route, places, rest, coupling)
            tick("matrix", number + 1, len(route.chunks))
        kept = zip(route.layers, places, strict=True)
        _mirror(rest, [place for basis, place in kept if basis is not route.ranged])
    else:
        rows = rows_beside(fixed, row_bytes(problem), len(where), backend)
        _fill_by_products(problem, reduction, (where, where_block), (rest, coupling), rows, tick)
    make_symmetric(rest, backend, rounding)
    if not bool(torch.isfinite(stacked).all()):
        raise NonFiniteError("the Hessian has NaN or infinite entries")
    return Blocks(rest, where, None if own is None else RangeBlock(where_block, stacked, own.signs))


def require_reduced(problem: Problem, reduction: Reduction, backend: Backend) -> None:
    """Refuse, before the main work, a problem whose blocks cannot fit in memory.

    Args:
        problem: In its final precision and place, already evaluated once.
        reduction: The coordinates.
        backend: Where the work is to be done.
    """
    _require(_choose(problem, reduction), problem, reduction, backend)


def _require(route: _Route, problem: Problem, reduction: Reduction, backend: Backend) -> int:
    """Bytes held at the fullest moment; DeviceError if there are not so many."""
    itemsize = problem.dtype.itemsize
    if route.ranged is None or route.own is None:
        size = reduction.reduced_dimension
        fixed = backend.eigen_bytes(size, itemsize)
    else:  # during the QR, or while diagonalising
        block = len(route.ranged.keep)
        rest = reduction.reduced_dimension - block
        width = len(route.own.signs) + rest
        size = width + rest
        solving = backend.eigen_bytes(size, itemsize)
        fixed = itemsize * rest**2 + max(2 * itemsize * block * width, solving)
    longest = max((chunk.stop - chunk.start for chunk in route.chunks), default=0)
    fixed += longest * factor_bytes(problem, route.layers)
    require(fixed, size, problem, backend)
    return fixed


def _choose(problem: Problem, reduction: Reduction) -> _Route:
    kept = tuple(basis for basis in reduction.layers if len(basis.keep))
    single = tuple(basis for basis in kept if basis.layer.once_per_sample)
    if not single or not samples_are_independent(problem, tuple(basis.layer for basis in single)):
        return _Route()
    complete = len(single) == len(kept) and not len(reduction.others)
    largest = max(single, key=lambda basis: len(basis.keep))
    size = len(largest.keep)
    rest = reduction.reduced_dimension - size
    may_pay = range_pays(size, problem.samples, rest)  # at least one column a sample
    layers = single if complete else (largest,)
    chunks = tuple(sample_chunks(problem, single)) if complete else ()
    if len(chunks) > 1:
        return _Route(layers, chunks)
    affordable = factor_bytes(problem, layers) * problem.samples <= _RANGE_BYTES
    if not complete and not (may_pay and affordable):
        return _Route()
    found = factors(problem, layers, slice(0, problem.samples))
    own = own_curvature(found, layers.index(largest)) if may_pay else None
    if own is not None and range_pays(size, len(own.signs), rest):
        return _Route(layers, chunks, found, largest, own)
    return _Route(layers, chunks, found) if complete else _Route()


def _places(route: _Route) -> list[slice]:
    """Where each layer's coordinates lie among those of the rest (or within the ranged layer)."""
    places, start = [], 0
    for basis in route.layers:
        first = 0 if basis is route.ranged else start
        places.append(slice(first, first + len(basis.keep)))
        start += 0 if basis is route.ranged else len(basis.keep)
    return places


def _add_factors(
    found: Factors, route: _Route, places: list[slice], rest: Tensor, coupling: Tensor
) -> None:
    """Add one chunk's contribution to the upper triangle of D, by layers, and to C."""
    layers = enumerate(route.layers)
    for (first, upper), (second, lower) in combinations_with_replacement(layers, 2):
        if upper is route.ranged and lower is route.ranged:
            continue
        if upper is route.ranged:
            target = coupling[:, places[second]]
        elif lower is route.ranged:
            target = coupling[:, places[first]].T
        else:
            target = rest[places[first], places[second]]
        for rows, values in block(found, first, second):
            _add_kept(target, upper, lower, rows, values)


def _add_kept(
    target: Tensor, upper: LayerBasis, lower: LayerBasis, rows: slice, values: Tensor
) -> None:
    """Add the kept entries of some rows ((i, p), (j, q)) of a block to their place."""
    width = len(upper.columns)
    limits = torch.tensor([rows.start * width, rows.stop * width], device=values.device)
    begin, end = torch.searchsorted(upper.keep_within, limits).tolist()
    if end - begin < len(values):
        values = values[upper.keep_within[begin:end] - rows.start * width]
    if len(lower.keep_within) < values.shape[1]:
        values = values[:, lower.keep_within]
    target[begin:end] += values.detach()


def _mirror(matrix: Tensor, places: list[slice]) -> None:
    """Copy the blocks above the diagonal below it."""
    for first, second in combinations(places, 2):
        matrix[second, first] = matrix[first, second].T


def _fill_by_products(
    problem: Problem,
    reduction: Reduction,
    where: tuple[Tensor, Tensor],
    targets: tuple[Tensor, Tensor],
    rows: int,
    tick: Tick,
) -> None:
    """D and C from Hessian-vector products along the coordinates of the rest."""
    (own, other), (rest, coupling) = where, targets
    product = hessian_product(problem)
    for start in range(0, len(own), rows):
        chosen = own[start : start + rows]
        unit = unit_vectors(chosen, reduction.reduced_dimension, rest)
        image = reduction.project(product(reduction.lift(unit)).detach())
        rest[start : start + len(chosen)] = image[:, own]
        if len(other):
            coupling[:, start : start + len(chosen)] = image[:, other].T
        tick("matrix", start + len(chosen), len(own))
