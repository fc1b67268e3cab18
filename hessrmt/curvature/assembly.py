"""The reduced Hessian of a problem, by whichever exact route is cheapest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from hessrmt.curvature.blocks import Blocks, RangeBlock, range_pays
from hessrmt.curvature.dense import Tick, make_symmetric
from hessrmt.curvature.factored import (
    block,
    factor_bytes,
    factors,
    own_curvature,
    sample_chunks,
    samples_are_independent,
)
from hessrmt.curvature.memory import require, row_bytes, rows_beside
from hessrmt.curvature.products import hessian_product
from hessrmt.errors import NonFiniteError

if TYPE_CHECKING:
    from torch import Tensor

    from hessrmt.backend.base import Backend
    from hessrmt.curvature.factored import Factors, OwnCurvature
    from hessrmt.curvature.reduction import LayerBasis, Reduction
    from hessrmt.problems.problem import Problem


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

    @property
    def ranged_name(self) -> str | None:
        """Name of the layer treated through its range."""
        return self.ranged.layer.name if self.ranged else None


def assemble_reduced(
    problem: Problem,
    reduction: Reduction,
    backend: Backend,
    tick: Tick | None = None,
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
    fixed = _require(route, problem, reduction, backend)
    places = _places(reduction)
    inside = torch.zeros(reduction.reduced_dimension, dtype=torch.bool)
    if route.ranged is not None:
        inside[places[route.ranged.layer.name]] = True
    inside = inside.to(problem.theta.device)
    where, where_block = (~inside).nonzero().squeeze(1), inside.nonzero().squeeze(1)
    count = 0 if route.own is None else len(route.own.signs)
    rest = problem.theta.new_zeros(len(where), len(where))
    width = 0 if route.ranged is None else count + len(where)
    stacked = problem.theta.new_zeros(len(where_block), width)
    coupling = stacked[:, count:]
    if route.own is not None and route.ranged is not None:
        stacked[:, :count] = route.own.columns()[route.ranged.keep_within]
    if route.chunks:
        inner = _inner_places(route, places)
        for number, chunk in enumerate(route.chunks):
            found = route.found or factors(problem, route.layers, chunk)
            _add_factors(found, route, inner, rest, coupling)
            if tick:
                tick("matrix", number + 1, len(route.chunks))
        names = [layer.layer.name for layer in route.layers]
        _mirror(rest, [inner[name] for name in names if name != route.ranged_name])
    else:
        rows = rows_beside(fixed, row_bytes(problem), len(where), backend)
        _fill_by_products(problem, reduction, (where, where_block), (rest, coupling), rows, tick)
    make_symmetric(rest, backend, rounding)
    if not bool(torch.isfinite(stacked).all()):
        raise NonFiniteError("the Hessian has NaN or infinite entries")
    if route.own is None:
        return Blocks(rest, where)
    return Blocks(rest, where, RangeBlock(where_block, stacked, route.own.signs))


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
    block_rows = len(route.ranged.keep) if route.ranged else 0
    count = len(route.own.signs) if route.own else 0
    rest = reduction.reduced_dimension - block_rows
    longest = max((chunk.stop - chunk.start for chunk in route.chunks), default=0)
    fixed = _bytes_held(rest, block_rows, count, problem.dtype.itemsize, backend)
    fixed += longest * factor_bytes(problem, route.layers)
    size = rest + (count + rest if route.ranged else 0)
    require(fixed, size, problem, backend)
    return fixed


def _choose(problem: Problem, reduction: Reduction) -> _Route:
    kept = tuple(layer for layer in reduction.layers if len(layer.keep))
    single = tuple(layer for layer in kept if layer.layer.once_per_sample)
    if not single or not samples_are_independent(problem, tuple(basis.layer for basis in single)):
        return _Route()
    complete = len(single) == len(kept) and not len(reduction.others)
    largest = max(single, key=lambda layer: len(layer.keep))
    size = len(largest.keep)
    rest = reduction.reduced_dimension - size
    may_pay = range_pays(size, problem.samples, rest)  # at least one column a sample
    whole = slice(0, problem.samples)
    if not complete:
        if not may_pay or factor_bytes(problem, (largest,)) * problem.samples > _RANGE_BYTES:
            return _Route()
        found, index = factors(problem, (largest,), whole), 0
        layers, chunks = (largest,), ()
    else:
        layers, chunks = single, tuple(sample_chunks(problem, single))
        if len(chunks) > 1:
            return _Route(layers, chunks)
        found, index = factors(problem, single, whole), single.index(largest)
    if may_pay:
        own = own_curvature(found, index)
        if range_pays(size, len(own.signs), rest):
            return _Route(layers, chunks, found, largest, own)
    return _Route(layers, chunks, found) if complete else _Route()


def _places(reduction: Reduction) -> dict[str, slice]:
    """Where each layer's coordinates lie among all."""
    places, start = {}, 0
    for layer in reduction.layers:
        places[layer.layer.name] = slice(start, start + len(layer.keep))
        start += len(layer.keep)
    return places


def _inner_places(route: _Route, places: dict[str, slice]) -> dict[str, slice]:
    """Where each layer's coordinates lie among those of the rest (or within the ranged layer)."""
    if route.ranged is None:
        return places
    hole = places[route.ranged.layer.name]
    width = hole.stop - hole.start
    shift = {name: width if place.start >= hole.stop else 0 for name, place in places.items()}
    inner = {n: slice(p.start - shift[n], p.stop - shift[n]) for n, p in places.items()}
    inner[route.ranged.layer.name] = slice(0, width)
    return inner


def _bytes_held(rest: int, block_rows: int, columns: int, itemsize: int, backend: Backend) -> int:
    """Bytes in memory at the fullest moment: during the QR, or while diagonalising."""
    if not block_rows:
        return backend.eigen_bytes(rest, itemsize)
    width = columns + rest
    solving = backend.eigen_bytes(width + rest, itemsize)
    return itemsize * rest**2 + max(2 * itemsize * block_rows * width, solving)


def _add_factors(
    found: Factors, route: _Route, places: dict[str, slice], rest: Tensor, coupling: Tensor
) -> None:
    """Add one chunk's contribution to the upper triangle of D, by layers, and to C."""
    layers = route.layers
    for first, upper in enumerate(layers):
        for second in range(first, len(layers)):
            lower = layers[second]
            names = (upper.layer.name, lower.layer.name)
            if names == (route.ranged_name, route.ranged_name):
                continue
            if names[0] == route.ranged_name:
                target = coupling[:, places[names[1]]]
            elif names[1] == route.ranged_name:
                target = coupling[:, places[names[0]]].T
            else:
                target = rest[places[names[0]], places[names[1]]]
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
    for index, first in enumerate(places):
        for second in places[index + 1 :]:
            matrix[second, first] = matrix[first, second].T


def _fill_by_products(
    problem: Problem,
    reduction: Reduction,
    where: tuple[Tensor, Tensor],
    targets: tuple[Tensor, Tensor],
    rows: int,
    tick: Tick | None,
) -> None:
    """D and C from Hessian-vector products along the coordinates of the rest."""
    (own, other), (rest, coupling) = where, targets
    product = hessian_product(problem)
    size = reduction.reduced_dimension
    for start in range(0, len(own), rows):
        chosen = own[start : start + rows]
        unit = rest.new_zeros(len(chosen), size)
        unit[torch.arange(len(chosen), device=unit.device), chosen] = 1
        image = reduction.project(product(reduction.lift(unit)).detach())
        rest[start : start + len(chosen)] = image[:, own]
        if len(other):
            coupling[:, start : start + len(chosen)] = image[:, other].T
        if tick:
            tick("matrix", start + len(chosen), len(own))
