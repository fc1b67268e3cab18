"""One Hessian spread over many processes: each computes the columns of QᵀHQ that it keeps.

H is symmetric, so that a Hessian-vector product along coordinate i is both its row and its column
i. The processes of one column of the grid keep the same columns, in different rows: they share the
products among them and exchange the pieces, a block at a time. No process ever sees the whole.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree

from hessrmt.backend.distributed import asymmetry, multiply
from hessrmt.checks import one_of
from hessrmt.curvature.certify import Comparison, reference
from hessrmt.curvature.dense import (
    block_size,
    gib,
    row_bytes,
    torch_dtype,
    unit_vectors,
    usable_memory,
)
from hessrmt.curvature.products import hessian_product
from hessrmt.curvature.reduction import Reduction, identity, reduce_problem
from hessrmt.curvature.spectrum import REDUCTIONS, Clock, certified
from hessrmt.errors import ConfigError, DeviceError, NonFiniteError, ProblemError
from hessrmt.problems.differentiation import ordinary_mode
from hessrmt.progress import Tick, silent
from hessrmt.records import Provenance, Spectrum

if TYPE_CHECKING:
    from jaxtyping import Float

    from hessrmt.backend.distributed import DistributedBackend, Layout
    from hessrmt.backend.world import World
    from hessrmt.problems.problem import Problem


@ordinary_mode()
def distributed_spectrum(
    problem: Problem,
    backend: DistributedBackend,
    dtype: str = "float64",
    reduce: str = "auto",
    *,
    tick: Tick | None = None,
    provenance: Provenance | None = None,
) -> Spectrum:
    """All eigenvalues of a problem's Hessian, certified, from all processes of a run.

    Every process calls this with the same problem. Null directions are removed as on one machine,
    except that no layer is narrowed to the range of its rows, which would need all of them in one
    place.

    Args:
        problem: Model, loss and batch.
        backend: The processes.
        dtype: ``"float64"`` or ``"float32"``, the precision of the whole computation.
        reduce: ``"auto"`` removes exact null directions before diagonalising, ``"none"`` does not.
        tick: Called with phase, steps done and steps in all.
        provenance: Stored in the result.

    Returns:
        The spectrum, the same on every process.

    Raises:
        ProblemError: If the loss is random, not a scalar or not twice differentiable by torch, an
            option is unknown, or the processes were given different problems.
        NonFiniteError: If the loss or an entry of the matrix is NaN or infinite.
        DeviceError: If a process's part does not fit in its memory.
        ConvergenceError: If the eigenvalue solver fails.
    """
    world, clock, tick = backend.world, Clock(), tick or silent
    local, evaluated, basis, layout, rows = _plan(problem, backend, dtype, reduce)
    clock.mark("reduction")
    with world.together():
        part = assemble_columns(local, basis, layout, world, rows, tick)
    skew = asymmetry(part, layout, world)
    with world.together():
        if not skew.within(part.dtype):
            raise ProblemError(
                f"the computed Hessian is not symmetric: |(H - Hᵀ)u| = {skew.distance:.3g} for a "
                f"random u, where |H| = {skew.norm:.3g}. Some operation of the model has a wrong "
                "second derivative in torch, or none at this point; replace it"
            )
    product = partial(multiply, part, layout, world)
    compared = reference(local).beside(lambda v: basis.lift(product(basis.project(v))))
    apart = Comparison(*world.share(compared))
    clock.mark("matrix")
    tick("eigenvalues", 0, 1)
    levels = backend.eigvalsh(part, layout)
    clock.mark("eigenvalues")
    tick("eigenvalues", 1, 1)
    with world.together():
        return certified(
            local, evaluated, levels, layout.n, apart, backend, clock, "hessian", provenance
        )


@ordinary_mode()
def require_feasible(
    problem: Problem, backend: DistributedBackend, dtype: str, reduce: str = "auto"
) -> None:
    """Raise what :func:`distributed_spectrum` would raise before its main work.

    Args:
        problem: Model, loss and batch.
        backend: The processes.
        dtype: ``"float64"`` or ``"float32"``.
        reduce: ``"auto"``, ``"dense"`` or ``"none"``; the first two are the same here.
    """
    _plan(problem, backend, dtype, reduce)


def assemble_columns(
    problem: Problem, basis: Reduction, layout: Layout, world: World, rows: int, tick: Tick = silent
) -> Float[Tensor, "columns rows"]:
    """This process's part of QᵀHQ.

    Args:
        problem: In its final precision and place, already evaluated once.
        basis: Q, the same on every process.
        layout: Of the reduced matrix.
        world: All processes.
        rows: Products that a process computes together, the same number on all.
        tick: Called with phase, columns done and columns in all.

    Returns:
        Entries [c, r] of column ``layout.columns[c]`` and row ``layout.rows[r]``.

    Raises:
        NonFiniteError: If an entry is NaN or infinite.
    """
    below = world.split(layout.column, layout.row)  # those that keep the same columns
    theta = problem.theta
    with below.together():
        product = hessian_product(problem)
        part = theta.new_empty(len(layout.columns), len(layout.rows))
    destinations = [layout.rows_of(row) for row in range(below.size)]
    columns = torch.from_numpy(layout.columns).to(theta.device)
    for start in range(0, len(columns), rows * below.size):
        stop = min(start + rows * below.size, len(columns))
        cuts = np.linspace(start, stop, below.size + 1).astype(int).tolist()
        shares = list(itertools.starmap(slice, itertools.pairwise(cuts)))
        with below.together():
            chosen = columns[shares[below.rank]]
            unit = unit_vectors(chosen, layout.n, theta)
            image = basis.project(product(basis.lift(unit)).detach()) if len(chosen) else unit
            if not bool(torch.isfinite(image).all()):
                raise NonFiniteError("the Hessian has NaN or infinite entries")
        if below.size == 1:
            part[shares[0]] = image
        else:
            host = image.cpu().numpy()
            shapes = [(share.stop - share.start, len(layout.rows)) for share in shares]
            pieces = below.exchange([host[:, kept] for kept in destinations], shapes)
            for share, piece in zip(shares, pieces, strict=True):
                part[share] = torch.from_numpy(piece).to(part.device)
        tick("matrix", shares[-1].stop, len(columns))
    return part


def _plan(
    problem: Problem, backend: DistributedBackend, dtype: str, reduce: str
) -> tuple[Problem, tuple[float, float], Reduction, Layout, int]:
    """The problem in place, its loss and gradient norm, Q, the layout, and rows at once."""
    world = backend.world
    with world.together():
        one_of("reduction", reduce, REDUCTIONS, error=ProblemError)
        if reduce == "range":
            raise ConfigError(
                "a basis of the range is built by one process; give --reduce dense, or none"
            )
        local = problem.at(torch_dtype(dtype), backend.device)
        evaluated = local.evaluate()
        found = identity(local) if reduce == "none" else reduce_problem(local)
    _require_one_problem(local, world)
    basis = _share_basis(found, world)
    with world.together():
        layout = backend.layout(basis.reduced_dimension)
        rows = _rows_together(local, layout, backend)
    return local, evaluated, basis, layout, min(world.gather(rows))


def _rows_together(problem: Problem, layout: Layout, backend: DistributedBackend) -> int:
    """Products to compute together; DeviceError if this process's part does not fit."""
    itemsize = problem.dtype.itemsize
    fixed, usable = backend.eigen_bytes(layout, itemsize), usable_memory(backend)
    each = row_bytes(problem) + 4 * layout.n * itemsize  # two sides of an exchange, and copies
    processes = backend.world.size
    if fixed + each > usable:
        enough = -(-processes * (fixed + each) // max(usable, 1))
        raise DeviceError(
            f"the part of the {layout.n:,} x {layout.n:,} matrix that one of {processes} processes "
            f"keeps needs {gib(fixed)} with the solver's workspace, a row in flight {gib(each)}, "
            f"and there are {gib(usable)} for it. {backend.hint}With as much for each, about "
            f"{enough:,} processes would do, on more machines"
        )
    return block_size(len(layout.columns), each, usable - fixed)


def _require_one_problem(problem: Problem, world: World) -> None:
    """Refuse to go on with processes that look at different losses."""
    digest = hashlib.sha256(problem.theta.cpu().numpy().tobytes())
    for leaf in _pytree.tree_leaves((problem.inputs, problem.targets)):
        if isinstance(leaf, torch.Tensor):
            digest.update(leaf.cpu().numpy().tobytes())
    seen = world.gather(digest.hexdigest())
    with world.together():
        if len(set(seen)) > 1:
            raise ProblemError(
                "the processes have different parameters or data; give all of them the same files, "
                "seed and versions, e.g. a checkpoint instead of a random initialisation"
            )


def _share_basis(basis: Reduction, world: World) -> Reduction:
    """Process 0's basis: others may have rounded another one on other hardware."""
    mine = [(layer.left, layer.right) for layer in basis.layers], basis.others
    kept = [layer.keep for layer in basis.layers]
    shared, kept = world.share((_pytree.tree_map_only(Tensor, Tensor.cpu, mine), kept))
    device = basis.others.device
    turned, others = _pytree.tree_map_only(Tensor, lambda t: t.to(device), shared)
    layers = tuple(
        dataclasses.replace(layer, left=left, right=right, keep=keep)
        for layer, (left, right), keep in zip(basis.layers, turned, kept, strict=True)
    )
    return Reduction(basis.dimension, layers, others)
