"""The smallest matrix with the nonzero eigenvalues of a Hessian, by the cheapest exact road.

- ``"dense"``: QᵀHQ in the coordinates that the network's structure leaves
  (:mod:`hessrmt.curvature.reduction`), from factors or row by row. Its size is that of the
  structure's bound on the rank.
- ``"range"``: in a basis of the range of H. Networks of once-per-sample linear layers have one in
  closed form (:mod:`hessrmt.curvature.spanned`); that of any other is found by Hessian-vector
  products (:mod:`hessrmt.curvature.range`). Its size is the rank, at 2 n rank² operations more.
- ``"auto"`` counts the operations of each and takes the cheapest that fits in memory.

Operations are counted and not timed, so that the same problem always goes the same road.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from hessrmt.curvature.certify import noise_floor
from hessrmt.curvature.dense import (
    dtype_name,
    gib,
    row_bytes,
    rows_beside,
    usable_memory,
)
from hessrmt.curvature.products import attempt, hessian_product
from hessrmt.curvature.range import WIDTH, range_of, rank_at_least
from hessrmt.curvature.reduction import (
    QR_ADVANTAGE,
    Route,
    assemble_reduced,
    choose_route,
    require_route,
)
from hessrmt.curvature.rounding import gaussian
from hessrmt.curvature.spanned import in_span, span_columns
from hessrmt.errors import DeviceError
from hessrmt.progress import Tick, silent

if TYPE_CHECKING:
    from torch import Tensor

    from hessrmt.arrays import Matrix, Vectors
    from hessrmt.backend.base import Backend
    from hessrmt.curvature.certify import Comparison, Reference
    from hessrmt.curvature.products import Product
    from hessrmt.curvature.range import Basis, Range
    from hessrmt.curvature.reduction import Reduction
    from hessrmt.problems.problem import Problem
    from hessrmt.store.search import SearchFile


_SMALL = 1000
"""Rows up to which the dense matrix is diagonalised without a search for a smaller one."""

_TRAFFIC = 10
"""Operations of a matrix product in the time in which a byte of a Hessian-vector product's working
memory is written and read: 0.05 to 0.5 ms for a MiB, measured on the networks of
benchmarks/range.py with two cores."""

_SEVERAL = 2
"""Samples from which the rank is estimated, by that of one of them."""

_GROWTH = 0.6
"""Power of the number of samples with which the rank grows (LeNet-5: 905 for one sample, 10,261 for
64; docs/large-networks.md)."""

_LOOK = 0.03
"""Share of the dense road's cost that may be spent on that estimate."""

_PROBES = 32
"""Products that are spent on a lower bound of the rank before a search that memory limits."""

_SURPLUS = 1.1
"""Products of a search over the dimensions that it finds."""

_LOST = 10
"""Multiple of the rounding that is there anyway, up to which the span of inputs and slopes may be
off; nearly dependent samples lose more, and another road is taken."""


@dataclass(frozen=True)
class Compressed:
    """H = Q VᵀT V Qᵀ.

    Attributes:
        reduction: The basis Q.
        basis: Orthonormal rows V in its coordinates.
        small: T, (k, k) symmetric.
    """

    reduction: Reduction
    basis: Basis
    small: Matrix

    def product(self, v: Tensor) -> Tensor:
        """Q VᵀT V Qᵀ v, (P,)."""
        coordinates = self.basis.project(self.reduction.project(v)) @ self.small
        return self.reduction.lift(self.basis.lift(coordinates))

    def matrix(self) -> Matrix:
        """T."""
        return self.small

    def shift(self) -> float:
        """A bound on how far eigenvalues are from those of T because V isn't orthonormal."""
        return self.basis.shift(self.small)


def smallest_hessian(
    problem: Problem,
    reduction: Reduction,
    backend: Backend,
    known: Reference,
    road: str = "auto",
    *,
    route: Route | None = None,
    tick: Tick = silent,
    kept: SearchFile | None = None,
) -> tuple[Matrix, Comparison]:
    """A matrix with the nonzero eigenvalues of the Hessian, and how far it is from it.

    Args:
        problem: In its final precision and place, already evaluated once.
        reduction: The coordinates that the structure leaves.
        backend: Where the work is done.
        known: Products to compare with.
        road: ``"auto"``, ``"dense"`` or ``"range"``.
        route: Of the dense matrix, if :func:`require_road` has found it.
        tick: Called with phase, steps done and steps in all.
        kept: Where a search for the range is written to now and then, and continued from.

    Returns:
        (n, n) symmetric, n <= P, the spectrum of H being its spectrum and P - n zeros; and its
        distance from products by other differentiation. Raises NonFiniteError if an entry is NaN
        or infinite, DeviceError if what it takes does not fit in memory.
    """
    plan = _plan(problem, reduction, backend, road, route)
    if plan.road == "span":
        spanned = _spanned(problem, reduction, plan.route, known)
        if spanned is not None:
            return spanned
        plan = _plan(problem, reduction, backend, road, plan.route, span=False)
    if plan.road == "search":
        searched = _searched(problem, reduction, backend, plan, tick, kept)
        if searched is not None:
            return searched.small, _apart(searched, known)
    blocks = assemble_reduced(
        problem, reduction, backend, tick, rounding=known.rounding, route=plan.route
    )
    apart = known.beside(blocks.product)
    blocks = blocks.turned()
    return blocks.matrix(), apart


def require_road(problem: Problem, reduction: Reduction, backend: Backend, road: str) -> Route:
    """Refuse, before the main work, a problem for which no road fits in memory.

    Args:
        problem: In its final precision and place, already evaluated once.
        reduction: The coordinates that the structure leaves.
        backend: Where the work is to be done.
        road: ``"auto"``, ``"dense"`` or ``"range"``.

    Returns:
        The route of the dense matrix, for :func:`smallest_hessian`.
    """
    return _plan(problem, reduction, backend, road, estimate=False).route


@dataclass(frozen=True)
class _Plan:
    """The road to take.

    Attributes:
        road: ``"dense"``, ``"span"`` or ``"search"``.
        route: Of the dense matrix.
        limit: Dimensions up to which a search is allowed to go on.
        expected: How many it probably finds; None if nothing is known.
        fits: Whether the dense matrix can be taken if there are more.
    """

    road: str
    route: Route
    limit: int = 0
    expected: int | None = None
    fits: bool = True


def _plan(
    problem: Problem,
    reduction: Reduction,
    backend: Backend,
    road: str,
    route: Route | None = None,
    *,
    span: bool = True,
    estimate: bool = True,
) -> _Plan:
    """The cheapest road that fits; the rank is estimated only if that is asked for."""
    size = reduction.reduced_dimension
    route = choose_route(problem, reduction) if route is None else route
    if road == "dense" or not size or (road == "auto" and size <= _SMALL):
        require_route(route, problem, reduction, backend)
        return _Plan("dense", route)
    refusal = _refusal(partial(require_route, route, problem, reduction, backend))
    each = _product_cost(problem)
    dense = math.inf if refusal or road == "range" else _dense_cost(reduction, route, each)
    if span and route.chunks and route.found is not None:  # the factors hold everything
        columns = span_columns(route.found)
        small = sum(min(c, b.size) for c, b in zip(columns, route.layers, strict=True))
        roots = sum(9 * count**3 for count in columns) + 4 * sum(columns) ** 3
        fits = backend.eigen_bytes(sum(columns), problem.dtype.itemsize) <= usable_memory(backend)
        if fits and roots + _eigen_cost(small) < dense:
            return _Plan("span", route)
    limit = _room(problem, reduction, backend)
    if dense < math.inf:
        limit = min(limit, _largest(lambda rank: _search_cost(rank, size, each) <= dense, size))
    if limit <= WIDTH and refusal is not None:
        raise refusal
    if dense == math.inf and limit < size:
        _require_rank(problem, reduction, backend, limit)
    expected = None
    if estimate and problem.samples >= _SEVERAL and limit > WIDTH and dense < math.inf:
        expected = _expected_rank(problem, reduction, limit, dense * _LOOK)
    if road == "auto" and (limit <= WIDTH or (expected or 0) > limit) and refusal is None:
        return _Plan("dense", route)
    return _Plan("search", route, limit, expected, fits=refusal is None and road == "auto")


def _refusal(check: Callable[[], object]) -> DeviceError | None:
    try:
        check()
    except DeviceError as error:
        return error
    return None


def _room(problem: Problem, reduction: Reduction, backend: Backend) -> int:
    """Dimensions of a basis that fit in memory beside the matrix in it."""
    itemsize, size = problem.dtype.itemsize, reduction.reduced_dimension
    left = usable_memory(backend) - WIDTH * itemsize * size * 4 - row_bytes(problem)

    def fits(rank: int) -> bool:
        return itemsize * rank * (size + rank) + backend.eigen_bytes(rank, itemsize) <= left

    return _largest(fits, size)


def _largest(holds: Callable[[int], bool], limit: int) -> int:
    """The largest number up to a limit for which something holds that ceases to hold once."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low


def _eigen_cost(size: int) -> float:
    return QR_ADVANTAGE * 4 / 3 * size**3


def _search_cost(rank: int, size: int, each: float) -> float:
    return _SURPLUS * rank * each + 2 * size * rank**2 + _eigen_cost(rank)


def _dense_cost(reduction: Reduction, route: Route, each: float) -> float:
    size, rows, cost = reduction.reduced_dimension, reduction.reduced_dimension, 0.0
    if route.own is not None:
        block, columns = route.own.shape
        rows = size - block
        size = columns + 2 * rows
        cost = 2 * block * (columns + rows) ** 2
    products = 0.0 if route.chunks else rows * each
    return cost + products + _eigen_cost(size)


def _product_cost(problem: Problem) -> float:
    """Operations of matrix products in the time of one Hessian-vector product."""
    with FlopCounterMode(display=False) as counter:
        hessian_product(problem)(gaussian((1, problem.dimension), problem.theta, "flops"))
    return counter.get_total_flops() + _TRAFFIC * row_bytes(problem)


def _expected_rank(problem: Problem, reduction: Reduction, limit: int, cost: float) -> int | None:
    """The rank, from that of one sample, or more than the limit; None if nothing can be said."""
    size = reduction.reduced_dimension

    def of_one() -> Range:
        part = problem.part(slice(0, 1))
        each = _product_cost(part)
        most = _largest(lambda rank: _search_cost(rank, size, each) <= cost, limit)
        return range_of(_within(part, reduction, WIDTH), _like(reduction, part), limit=most)

    one = attempt(of_one)  # alone it may have no loss, or no network
    if one is None:
        return None
    expected = int(len(one) * problem.samples**_GROWTH)
    return min(size, expected) if one.complete else max(limit + 1, expected)


def _like(reduction: Reduction, problem: Problem) -> Tensor:
    return problem.theta.new_empty(reduction.reduced_dimension)


def _within(problem: Problem, reduction: Reduction, rows: int) -> Product:
    """Products in the coordinates of a reduction, some rows at a time."""
    product = hessian_product(problem)

    def within(block: Vectors) -> Vectors:
        parts = block.split(rows)
        return torch.cat([reduction.project(product(reduction.lift(x)).detach()) for x in parts])

    return within


def _searched(
    problem: Problem,
    reduction: Reduction,
    backend: Backend,
    plan: _Plan,
    tick: Tick,
    kept: SearchFile | None,
) -> Compressed | None:
    """H in its range; None if that has too many dimensions and the dense matrix is there."""
    like, memory = _like(reduction, problem), usable_memory(backend)
    fixed = problem.dtype.itemsize * (plan.expected or plan.limit) * len(like)
    rows = rows_beside(min(fixed, memory // 2), row_bytes(problem), WIDTH, backend)
    state = range_of(
        _within(problem, reduction, rows),
        like,
        limit=plan.limit,
        expected=plan.expected,
        tick=tick,
        kept=kept,
    )
    if state.complete:
        return Compressed(reduction, state.basis, state.matrix)
    if plan.fits:
        return None
    raise _too_large(state.at_least, plan.limit, like, backend, memory)


def _require_rank(problem: Problem, reduction: Reduction, backend: Backend, limit: int) -> None:
    """Refuse a Hessian of which a few products show that its range does not fit."""
    like, memory = _like(reduction, problem), usable_memory(backend)
    least = rank_at_least(_within(problem, reduction, 1), like, _PROBES)
    if least > limit:
        raise _too_large(least, limit, like, backend, memory)


def _too_large(rank: int, limit: int, like: Tensor, backend: Backend, memory: int) -> DeviceError:
    return DeviceError(
        f"the Hessian's rank is {rank:,} or more, and {limit:,} dimensions is the largest that "
        f"fits here: {backend.name} has {gib(memory)} free for a basis of its range, of vectors of "
        f"{len(like):,} numbers, and for the matrix in it; take a smaller batch, a device with "
        "more memory, or --operator ggn"
    )


def _apart(found: Compressed, known: Reference) -> Comparison:
    apart = known.beside(found.product)
    return apart._replace(rounding=apart.rounding + found.shift())


def _spanned(
    problem: Problem, reduction: Reduction, route: Route, known: Reference
) -> tuple[Matrix, Comparison] | None:
    """H in the span of inputs and slopes; None if that loses digits."""
    assert route.found is not None
    spanned = attempt(in_span, route.found, errors=RuntimeError)  # of LAPACK
    if spanned is None:
        return None
    basis, small = spanned
    rows = small.norm(dim=1).cpu().numpy()  # the longest of them is no longer than ‖H‖₂
    if not np.isfinite(rows).all():
        return None
    whole = tuple(
        replace(layer, keep=torch.arange(layer.shape[0] * layer.shape[1])) for layer in route.layers
    )
    found = Compressed(replace(reduction, layers=whole), basis, small)
    apart = _apart(found, known)
    there = known.rounding + noise_floor(rows, len(small), dtype_name(problem.dtype))
    return (small, apart) if apart.rounding <= _LOST * there else None
