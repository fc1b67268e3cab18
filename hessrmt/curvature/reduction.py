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

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations, combinations_with_replacement
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hessrmt.arrays import fetched
from hessrmt.backend.base import all_finite
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
from hessrmt.problems.differentiation import ordinary_mode
from hessrmt.problems.outputs import ignores_softmax_shift

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
        where: (d, width) positions of the entries of [W, b] in θ.
        left: (d, e) orthonormal E; or (e,), which columns of the identity it consists of.
        right: (width, k) orthonormal U; or (k,) likewise.
        keep: (r,) kept entries of Z, positions in row-major (e, k) order; in main memory, where
            shapes are decided, and as ``kept`` beside the others.
        narrowed: (r, w) orthonormal combinations of the kept entries which alone matter; None for
            all.
    """

    layer: Layer
    where: Tensor
    left: Tensor
    right: Tensor
    keep: Tensor
    narrowed: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(e, k), the shape of Z."""
        return self.left.shape[-1], self.right.shape[-1]

    @property
    def size(self) -> int:
        """Number of the layer's coordinates."""
        return len(self.keep) if self.narrowed is None else self.narrowed.shape[1]

    @cached_property
    def kept(self) -> Tensor:
        """The kept entries in the place of the others."""
        return self.keep.to(self.where.device, non_blocking=True)

    @cached_property
    def places(self) -> Tensor:
        """Positions in θ of what E and U are bases of."""
        rows = self.where if self.left.dim() == 2 else self.where[self.left]
        return rows if self.right.dim() == 2 else rows[:, self.right]

    def turn_outputs(self, values: Tensor) -> Tensor:
        """Derivatives in the layer's outputs (..., d) to the rows of Z (..., e)."""
        return _turn(values, self.left)

    def turn_inputs(self, inputs: Tensor, constant: float = 1.0) -> Tensor:
        """Inputs a, or tangents of them with 0 for the constant, to the columns of Z (..., k)."""
        return _turn(self.layer.augmented(inputs, constant), self.right)

    def gather(self, theta: Tensor) -> Tensor:
        """Flat parameter vectors (..., P) to this layer's coordinates (..., size).

        Returns:
            The part of Qᵀθ that belongs to the layer.
        """
        matrix = theta[..., self.places]
        matrix = matrix @ self.right if self.right.dim() == 2 else matrix
        matrix = self.left.T @ matrix if self.left.dim() == 2 else matrix
        kept = matrix.flatten(-2)[..., self.kept]
        return kept if self.narrowed is None else kept @ self.narrowed

    def scatter(self, z: Tensor, theta: Tensor) -> None:
        """Write this layer's coordinates (..., size) into flat parameter vectors (..., P)."""
        rows, columns = self.shape
        matrix = z.new_zeros(*z.shape[:-1], rows * columns)
        matrix[..., self.kept] = z if self.narrowed is None else z @ self.narrowed.T
        matrix = matrix.unflatten(-1, (rows, columns))
        matrix = self.left @ matrix if self.left.dim() == 2 else matrix
        theta[..., self.places] = matrix @ self.right.T if self.right.dim() == 2 else matrix


@dataclass(frozen=True)
class Reduction:
    """An orthonormal basis of the directions in which the loss can vary.

    Coordinates are ordered: those of the layers, then other parameters.

    Attributes:
        dimension: P.
        layers: Bases of the linear layers, in the order of execution; the narrowed one first.
        others: Kept positions in θ of parameters outside those layers.
    """

    dimension: int
    layers: tuple[LayerBasis, ...]
    others: Tensor

    @property
    def reduced_dimension(self) -> int:
        """Number of columns of Q."""
        return sum(layer.size for layer in self.layers) + len(self.others)

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
        sizes = [layer.size for layer in self.layers]
        *parts, others = z.split([*sizes, len(self.others)], dim=-1)
        theta[..., self.others] = others
        for layer, part in zip(self.layers, parts, strict=True):
            layer.scatter(part, theta)
        return theta


@ordinary_mode()
def reduction(problem: Problem, device: Device = "auto", dtype: Dtype = "float64") -> Reduction:
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
    known = reference(local)
    blocks = assemble_reduced(local, reduce_problem(local), backend, rounding=known.rounding)
    found = blocks.reduction
    if len(blocks.stacked):
        first, *others = found.layers
        first = replace(first, narrowed=torch.linalg.qr(blocks.stacked).Q)
        found = replace(found, layers=(first, *others))
    seen = known.beside(lambda v: found.lift(found.project(blocks.product(v))))  # Q Qᵀ H v
    norm = float(
        torch.linalg.matrix_norm(blocks.turned().matrix())
    )  # Frobenius, no less than the 2-norm
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
    zero = _zero_rows(problem)
    # in main memory, since shapes depend on it: asked for one by one, each would be waited for
    device, zero = zero.device, zero.cpu()
    where = problem.unflatten(torch.arange(problem.dimension))
    layers = tuple(
        _layer_basis(layer, [where.pop(name) for name in layer.parameters.values()], zero, problem)
        for layer in problem.structure
        if isinstance(layer.module, nn.Linear)
    )
    others = torch.cat([torch.arange(0), *(rest.flatten() for rest in where.values())])
    others = others[~zero[others]].to(device, non_blocking=True)
    return Reduction(problem.dimension, layers, others)


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
    tolerance = max(rows, columns) * torch.finfo(sizes.dtype).eps * sizes.max()
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


def _turn(values: Tensor, basis: Tensor) -> Tensor:
    """Rows times a basis, given as a matrix or as a choice of columns of the identity."""
    return values @ basis if basis.dim() == 2 else values.index_select(-1, basis)


def _zero_rows(problem: Problem) -> Tensor:
    """(P,) bool: rows of the Hessian that are exactly 0.0, by random Hessian-vector products."""
    # a row that is not zero gives 0.0 for a random vector with probability zero; the second,
    # independent vector verifies the first
    probes = gaussian((_PROBES, problem.dimension), problem.theta, "structural-zeros")
    return (eager_hessian_product(problem)(probes) == 0).all(dim=0)


def _layer_basis(layer: Layer, parts: list[Tensor], zero: Tensor, problem: Problem) -> LayerBasis:
    left = right = None
    like = problem.theta
    where = torch.cat([part.view(layer.outputs, -1) for part in parts], dim=1)
    kept = ~zero[where]
    # a rotated side keeps or drops whole rows or columns of the matrix
    if layer.inputs is not None:
        right = input_basis(layer.augmented(layer.inputs))
        if right is not None:
            kept = kept.any(dim=1, keepdim=True).expand(-1, right.shape[1])
    if layer.is_output and layer.outputs > 1 and ignores_softmax_shift(problem):
        left = softmax_basis(layer.outputs, like)
        kept = kept.any(dim=0, keepdim=True).expand(left.shape[1], -1)
    if left is None:
        left = kept.any(dim=1).nonzero().squeeze(1)
        kept = kept[left]
    if right is None:
        right = kept.any(dim=0).nonzero().squeeze(1)
        kept = kept[:, right]
    where, left, right = (x.to(like.device, non_blocking=True) for x in (where, left, right))
    return LayerBasis(layer, where, left, right, kept.flatten().nonzero().squeeze(1))


QR_ADVANTAGE = 2.5
"""How much faster a flop of QR runs than one of a tridiagonalisation (two cores, LAPACK)."""


@dataclass(frozen=True)
class Blocks:
    """QᵀHQ, of whose first layer only A, Σ and C may be known.

    Attributes:
        reduction: The basis Q.
        rest: (n, n) D, symmetric.
        stacked: (m, c + n) M = [A, C]; m and c are 0 if no layer is treated through its range.
        signs: (c,) diagonal of Σ.
    """

    reduction: Reduction
    rest: Matrix
    stacked: Tensor
    signs: Tensor

    def product(self, v: Tensor) -> Tensor:
        """Q (QᵀHQ) Qᵀ v, before any range basis.

        Args:
            v: (P,).

        Returns:
            (P,).
        """
        columns, coupling = self.stacked.tensor_split([len(self.signs)], dim=1)
        layer, others = self.reduction.project(v).tensor_split([len(self.stacked)])
        own = columns @ (self.signs * (columns.T @ layer))
        curved = own + coupling @ others, self.rest @ others + coupling.T @ layer
        return self.reduction.lift(torch.cat(curved))

    def matrix(self) -> Matrix:
        """The symmetric matrix, of :meth:`turned` blocks the smallest with these eigenvalues."""
        stacked = self.stacked
        if not len(stacked):
            return self.rest
        left, right = stacked.tensor_split([len(self.signs)], dim=1)
        count, size = len(stacked), len(stacked) + len(self.rest)
        whole = stacked.new_empty(size, size)
        whole[:count, :count] = (left * self.signs) @ left.T
        whole[:count, count:] = right
        whole[count:, :count] = right.T
        whole[count:, count:] = self.rest
        return whole

    def turned(self) -> Blocks:
        """The same nonzero eigenvalues in a basis of the first layer's range.

        Returns:
            Blocks whose M is the triangle of its QR; only their matrix is of use. Let go of these
            before it is made: the largest of all matrices is M.

        Raises:
            ConvergenceError: If the QR does not keep inner products to rounding.
        """
        stacked = self.stacked
        if not len(stacked):
            return self
        triangle = torch.linalg.qr(stacked, mode="r").R
        x = torch.ones(stacked.shape[1], dtype=stacked.dtype, device=stacked.device)
        x[1::2] = -1
        apart = (stacked.T @ (stacked @ x) - triangle.T @ (triangle @ x)).norm() / x.norm()
        gap, total = map(float, fetched(apart, stacked.square().sum()))
        tolerance = stacked.shape[0] * torch.finfo(x.dtype).eps * total
        if not gap <= tolerance:
            raise ConvergenceError(
                f"the QR factorisation lost orthogonality: |MᵀMx - RᵀRx| = {gap:.3g} where "
                f"rounding explains {tolerance:.3g}"
            )
        return replace(self, stacked=triangle)


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
    return qr / QR_ADVANTAGE + 4 / 3 * (width + rest) ** 3 < before


_RANGE_BYTES = 2**30
"""Memory of a layer's factors beyond which its range is not looked for."""


@dataclass(frozen=True)
class Route:
    """How the matrix is going to be built.

    Attributes:
        layers: Linear layers whose factors are used.
        chunks: Slices of samples whose factors are summed; empty if products are used instead.
        found: Factors of the only chunk, if they have been computed already.
        own: Block of the layer that is treated through its range, if any.
    """

    layers: tuple[LayerBasis, ...] = ()
    chunks: tuple[slice, ...] = ()
    found: Factors | None = None
    own: OwnCurvature | None = None


def assemble_reduced(
    problem: Problem,
    reduction: Reduction,
    backend: Backend,
    tick: Tick = silent,
    rounding: float = 0.0,
    route: Route | None = None,
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
        route: How, if that has been chosen.

    Returns:
        The blocks, in coordinates that begin with that layer's.

    Raises:
        NonFiniteError: If an entry is NaN or infinite.
        DeviceError: If they do not fit in memory.
    """
    route = choose_route(problem, reduction) if route is None else route
    require_route(route, problem, reduction, backend)
    like, own = problem.theta, route.own
    size, columns = (0, 0) if own is None else own.shape
    count = reduction.reduced_dimension - size
    rows = 0
    if not route.chunks:  # planned while nothing is held yet
        held = problem.dtype.itemsize * (count**2 + size * (columns + count))
        rows = rows_beside(held, row_bytes(problem), count, backend)
    rest, stacked = like.new_zeros(count, count), like.new_zeros(size, columns + count)
    if own is not None:
        stacked[:, :columns] = own.columns()
        layers = sorted(reduction.layers, key=lambda basis: basis is not own.basis)
        reduction = replace(reduction, layers=tuple(layers))
    if route.chunks:
        _fill_by_factors(problem, route, rest, stacked[:, columns:], tick)
    else:
        _fill_by_products(problem, reduction, rest, stacked[:, columns:], rows, tick)
    make_symmetric(rest, backend, rounding)
    if not all_finite(stacked):
        raise NonFiniteError("the Hessian has NaN or infinite entries")
    return Blocks(reduction, rest, stacked, like.new_zeros(0) if own is None else own.signs)


def require_route(route: Route, problem: Problem, reduction: Reduction, backend: Backend) -> int:
    """Refuse, before any matrix is made, blocks that cannot fit in memory.

    Args:
        route: How they are to be built.
        problem: In its final precision and place, already evaluated once.
        reduction: The coordinates.
        backend: Where the work is to be done.

    Returns:
        Bytes held at the fullest moment.
    """
    itemsize, size = problem.dtype.itemsize, reduction.reduced_dimension
    steps = [0]
    if route.own is not None:
        block, columns = route.own.shape
        rest = size - block
        size = columns + 2 * rest
        triangle, small = (columns + rest) ** 2, size**2
        steps = [  # the QR, whose M is there twice; the matrix with what it is made of
            rest**2 + 2 * block * (columns + rest) + triangle,
            rest**2 + triangle + small + columns * (columns + rest) + (columns + rest) ** 2,
        ]
    fixed = max(itemsize * max(steps), backend.eigen_bytes(size, itemsize))
    longest = max((chunk.stop - chunk.start for chunk in route.chunks), default=0)
    fixed += longest * factor_bytes(problem, route.layers)
    require(fixed, size, problem, backend)
    return fixed


def choose_route(problem: Problem, reduction: Reduction) -> Route:
    """How the matrix is built: from factors if they hold everything, a layer through its range.

    Args:
        problem: In its final precision and place, already evaluated once.
        reduction: The coordinates.

    Returns:
        The route.
    """
    kept = tuple(basis for basis in reduction.layers if basis.size)
    single = tuple(basis for basis in kept if basis.layer.once_per_sample)
    if not single or not samples_are_independent(problem, tuple(basis.layer for basis in single)):
        return Route()
    complete = len(single) == len(kept) and not len(reduction.others)
    largest = max(single, key=lambda basis: basis.size)
    rest = reduction.reduced_dimension - largest.size
    may_pay = range_pays(largest.size, problem.samples, rest)  # at least one column a sample
    layers = single if complete else (largest,)
    chunks = tuple(sample_chunks(problem, single)) if complete else ()
    if len(chunks) > 1:
        return Route(layers, chunks)
    affordable = factor_bytes(problem, layers) * problem.samples <= _RANGE_BYTES
    if not complete and not (may_pay and affordable):
        return Route()
    found = factors(problem, layers, slice(0, problem.samples))
    own = own_curvature(found, layers.index(largest)) if may_pay else None
    if own is not None and range_pays(*own.shape, rest):
        return Route(layers, chunks, found, own)
    return Route(layers, chunks, found) if complete else Route()


def _fill_by_factors(
    problem: Problem, route: Route, rest: Tensor, coupling: Tensor, tick: Tick
) -> None:
    """D and C layer by layer, from the factors of one chunk of samples after the other."""
    rows, columns, start = [], {}, 0  # of each layer in them
    for number, basis in enumerate(route.layers):
        if route.own is not None and basis is route.own.basis:
            rows.append(coupling)
        else:
            columns[number] = slice(start, start + basis.size)
            rows.append(rest[columns[number]])
            start += basis.size
    for done, chunk in enumerate(route.chunks, 1):
        found = route.found or factors(problem, route.layers, chunk)
        for first, second in combinations_with_replacement(range(len(rows)), 2):
            if second in columns:
                target = rows[first][:, columns[second]]
            elif first in columns:
                target = rows[second][:, columns[first]].T
            else:
                continue
            for some, values in block(found, first, second):
                target[some] += values
        tick("matrix", done, len(route.chunks))
    for first, second in combinations(columns.values(), 2):
        rest[second, first] = rest[first, second].T


def _fill_by_products(
    problem: Problem, reduction: Reduction, rest: Tensor, coupling: Tensor, rows: int, tick: Tick
) -> None:
    """D and C from Hessian-vector products along the coordinates of the rest."""
    product, (first, size) = hessian_product(problem), coupling.shape
    for start in range(0, size, rows):
        some = slice(start, min(start + rows, size))
        places = torch.arange(first + some.start, first + some.stop, device=rest.device)
        unit = unit_vectors(places, first + size, rest)
        image = reduction.project(product(reduction.lift(unit)).detach())
        rest[some] = image[:, first:]
        coupling[:, some] = image[:, :first].T
        tick("matrix", some.stop, size)
