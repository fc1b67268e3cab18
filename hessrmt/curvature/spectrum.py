"""From a problem to its certified spectrum."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch

from hessrmt.backend.select import select
from hessrmt.checks import one_of, require_whole
from hessrmt.curvature.certify import noise_floor, reference, require_agreement
from hessrmt.curvature.dense import (
    Device,
    Dtype,
    dtype_name,
    gib,
    require_dense,
    torch_dtype,
    unit_vectors,
    usable_memory,
)
from hessrmt.curvature.foreign import as_operator
from hessrmt.curvature.gauss_newton import require_ggn, smallest_ggn
from hessrmt.curvature.lanczos import eigsh
from hessrmt.curvature.operators import CurvatureOperator
from hessrmt.curvature.reduction import identity, reduce_problem
from hessrmt.curvature.roads import require_road, smallest_hessian
from hessrmt.curvature.rounding import round_off
from hessrmt.errors import ConfigError, ConvergenceError, DeviceError, ProblemError
from hessrmt.problems.differentiation import ordinary_mode
from hessrmt.problems.problem import Problem
from hessrmt.progress import Tick, silent
from hessrmt.records import BlockSpectra, Provenance, Spectrum, from_python
from hessrmt.store.search import SearchFile

if TYPE_CHECKING:
    from hessrmt.arrays import Levels
    from hessrmt.backend.base import Backend
    from hessrmt.backend.distributed import DistributedBackend
    from hessrmt.curvature.certify import Comparison
    from hessrmt.curvature.lanczos import Eigenpairs
    from hessrmt.curvature.linear import Operator
    from hessrmt.curvature.reduction import Reduction, Route


OPERATORS = ("hessian", "ggn")
REDUCTIONS = ("auto", "range", "dense", "none")

_RESIDUAL = 1e-12
"""Residual over the norm of the eigenvectors of an exact spectrum."""

_TOGETHER = 64
"""Unit vectors that a matrix is multiplied with at a time."""


@overload
def spectrum(
    problem: Problem | Any,
    device: Device = "auto",
    dtype: Dtype = "float64",
    operator: str = "hessian",
    reduce: str = "auto",
    *,
    vectors: int = 0,
    blocks: None = None,
    checkpoint: str | Path | None = None,
    tick: Tick | None = None,
) -> Spectrum: ...


@overload
def spectrum(
    problem: Problem | Any,
    device: Device = "auto",
    dtype: Dtype = "float64",
    operator: str = "hessian",
    reduce: str = "auto",
    *,
    vectors: int = 0,
    blocks: str | Mapping[str, Sequence[str]],
    tick: Tick | None = None,
) -> BlockSpectra: ...


def spectrum(
    problem: Problem | Any,
    device: Device = "auto",
    dtype: Dtype = "float64",
    operator: str = "hessian",
    reduce: str = "auto",
    *,
    vectors: int = 0,
    blocks: str | Mapping[str, Sequence[str]] | None = None,
    checkpoint: str | Path | None = None,
    tick: Tick | None = None,
) -> Spectrum | BlockSpectra:
    """All eigenvalues of a problem's Hessian (or Gauss-Newton matrix) or of a matrix, certified.

    Args:
        problem: Model, loss and batch. Or any symmetric matrix that ``hessrmt.eigsh`` takes (an
            array, an operator): its eigenvalues are computed where it lies, in ``dtype``, from its
            products with unit vectors; of the other arguments only ``vectors`` applies.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        dtype: ``"float64"`` or ``"float32"``, the precision of the whole computation.
        operator: ``"hessian"``, or ``"ggn"`` for Jᵀ S J.
        reduce: ``"dense"`` removes null directions that the network's structure shows before
            diagonalising, ``"range"`` diagonalises in a basis of the range of H, whose size is the
            rank, ``"auto"`` takes the cheaper of the two, and ``"none"`` builds the full P x P
            matrix by double automatic differentiation.
        vectors: Eigenvectors of how many of the certified eigenvalues, those of largest magnitude.
        blocks: ``"layer"`` for the own block of every module that has trainable parameters, all
            others held constant; or names of blocks to the parameters of each.
        checkpoint: A file in which a long search for the range is kept every two minutes, and from
            which it is continued; removed at the end. Refused if it holds anything else.
        tick: Called with phase, steps done and steps in all, of several blocks for each.

    Returns:
        P eigenvalues, those of the null directions as 0.0, and the noise floor, in a
        :class:`~hessrmt.records.Spectrum`; eigenvectors as ``pairs``. With ``blocks``, a dict of
        name to spectrum that has the methods of a result,
        :class:`~hessrmt.records.BlockSpectra`.

    Raises:
        ConfigError: If ``problem`` is none and no matrix, ``vectors`` is no number from 0 to P, or
            a checkpoint is given for several blocks.
        ProblemError: If the loss is random, not a scalar or not twice differentiable by torch, or
            an option is unknown.
        NonFiniteError: If the loss or an entry of the matrix is NaN or infinite.
        DeviceError: If the device is not there or the matrix does not fit in its memory.
        ConvergenceError: If the eigenvalue solver fails, or the eigenvectors don't belong to the
            leading eigenvalues.
    """
    require_whole(0, vectors=vectors)
    tick = tick or silent
    if not isinstance(problem, Problem):
        if blocks is not None or checkpoint is not None or operator != "hessian":
            raise ConfigError(
                "blocks, checkpoint and operator are of problems; of a matrix all eigenvalues are "
                "computed as it is"
            )
        return _of_matrix(as_operator(problem), dtype, vectors, tick)
    if vectors > problem.dimension:
        raise ConfigError(
            f"{vectors:,} eigenvectors are asked for, there are {problem.dimension:,}"
        )
    if blocks is not None:
        if checkpoint is not None:
            raise ConfigError("a checkpoint keeps one search; leave it out, or compute one block")
        chosen = layers_of(problem) if blocks == "layer" else blocks
        if not isinstance(chosen, Mapping):
            raise ConfigError(
                f'unknown blocks {blocks!r}; give "layer", or a dict of names to patterns of '
                'parameters, like {"first": "0.*"}'
            )
        parts = {name: problem.restricted(only) for name, only in chosen.items()}
        options = (device, dtype, operator, reduce)
        counts = {name: min(vectors, part.dimension) for name, part in parts.items()}
        made = from_python("hessrmt.spectrum", problem)  # of the whole network
        made["blocks"] = blocks if isinstance(blocks, str) else list(parts)
        found = BlockSpectra()
        for number, (name, part) in enumerate(parts.items()):
            tick(f"block {name}", number, len(parts))
            found[name] = _made_as(spectrum(part, *options, vectors=counts[name], tick=tick), made)
        tick("blocks", len(parts), len(parts))
        return found
    backend, dtype = select(device), dtype_name(dtype)
    config = {
        **{"loss": problem.loss_name, "operator": operator, "dtype": dtype, "reduce": reduce},
        **from_python("hessrmt.spectrum", problem),
    }
    provenance = Provenance(config=config, device=backend.name)
    with nullcontext() if checkpoint is None else SearchFile(Path(checkpoint)) as kept:
        options = {"provenance": provenance, "kept": kept, "tick": tick}
        found = compute(problem, backend, dtype, operator, reduce, **options)
        if kept is not None:
            kept.remove()
    count = min(vectors, found.rank)  # of zero any vector in the null space is one
    return replace(found, pairs=_leading(problem, found, count, device)) if count else found


def _made_as(found: Spectrum, made: Mapping[str, Any]) -> Spectrum:
    """A spectrum with some settings in its provenance."""
    config = {**found.provenance.config, **made}
    return replace(found, provenance=replace(found.provenance, config=config))


@ordinary_mode()
def _of_matrix(matrix: Operator, dtype: Dtype, vectors: int, tick: Tick) -> Spectrum:
    """All eigenvalues of a matrix from its products with unit vectors, where the matrix lies."""
    size, kind = matrix.dimension, torch_dtype(dtype)
    backend: Backend = getattr(matrix, "backend", None) or select(matrix.device)
    if vectors > size:
        raise ConfigError(f"{vectors:,} eigenvectors are asked for, there are {size:,}")
    needed, usable = backend.eigen_bytes(size, kind.itemsize), usable_memory(backend)
    if needed > usable:
        raise DeviceError(
            f"all eigenvalues of a {size:,} x {size:,} matrix take {gib(needed)} and there are "
            f"{gib(usable)}; eigsh and extremal_eigenvalues need products alone"
        )
    clock = Clock()
    like = torch.empty(0, dtype=matrix.dtype, device=matrix.device)
    dense = torch.empty(size, size, dtype=kind, device=matrix.device)
    matrix.expect(size)
    for start in range(0, size, _TOGETHER):
        tick("matrix", start, size)
        places = torch.arange(start, min(start + _TOGETHER, size), device=matrix.device)
        dense[places] = matrix(unit_vectors(places, size, like)).to(kind)
    skew = size * backend.symmetrize_(dense) / 2  # no less than ‖H - Hᵀ‖₂/2
    clock.mark("matrix")
    tick("eigenvalues", 0, 1)
    levels = backend.eigvalsh(dense)
    tick("eigenvalues", 1, 1)
    clock.mark("eigenvalues")
    norm = float(np.abs(levels).max(initial=0.0))
    products, about = 0.0, dict[str, Any]()
    if not getattr(matrix, "held", False):  # each row has the error of a product
        products = size**0.5 * max(matrix.product_error, round_off(norm, size, matrix.dtype))
    if isinstance(matrix, CurvatureOperator):
        measured = matrix.rounding()
        check = matrix.agreement(norm, rounding=measured)
        products = max(products, size**0.5 * measured, size**0.5 * check * norm)
        about = {"loss": matrix.loss, "gradient_norm": matrix.gradient_norm, "check": check}
    kind_of = matrix.kind if isinstance(matrix, CurvatureOperator) else "matrix"
    config = {
        **{"operator": kind_of, "dtype": dtype_name(kind)},
        **from_python("hessrmt.spectrum", matrix),
    }
    found = Spectrum(
        eigenvalues=levels,
        noise_floor=max(noise_floor(levels, size, dtype_name(kind)), skew, products),
        dimension=size,
        reduced_dimension=size,
        operator=kind_of,
        dtype=dtype_name(kind),
        solver=backend.solver,
        seconds=clock.seconds,
        provenance=Provenance(config, backend.name),
        **about,
    )
    count = min(vectors, found.rank)
    return replace(found, pairs=_leading_of(matrix, found, count)) if count else found


def _leading(problem: Problem, found: Spectrum, count: int, device: Device) -> Eigenpairs:
    """Eigenpairs of a problem's matrix that belong to its leading eigenvalues."""
    matrix = CurvatureOperator.of(problem, found.operator, device=device, dtype=found.dtype)
    return _leading_of(matrix, found, count)


def _leading_of(matrix: Operator, found: Spectrum, count: int) -> Eigenpairs:
    """Eigenpairs by Lanczos whose values are the leading ones of the exact spectrum."""
    pairs = eigsh(matrix, count, "LM", tolerance=_RESIDUAL, check_multiplicity=True)
    exact, own = np.sort(np.abs(found.eigenvalues))[-count:], np.sort(np.abs(pairs.values))
    allowed = np.max(pairs.bounds, initial=0.0) + found.noise_floor
    if not pairs.converged or np.abs(own - exact).max() > allowed:
        raise ConvergenceError(
            f"the eigenvectors of the {count:,} leading eigenvalues were not all found, some are "
            "multiple or very close; ask for fewer vectors, or for some more"
        )
    return pairs


def layers_of(problem: Problem) -> dict[str, list[str]]:
    """The blocks of a matrix that belong to layers.

    Args:
        problem: Model, loss and batch.

    Returns:
        Names of modules to those of the trainable parameters that they hold themselves.
    """
    found: dict[str, list[str]] = {}
    for name in problem.names:
        found.setdefault(name.rpartition(".")[0], []).append(name)
    return found


class Clock:
    """Wall-clock seconds of consecutive phases."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.go_on()

    def go_on(self) -> None:
        """Leave out the time since the last phase ended."""
        self._last = time.perf_counter()

    def mark(self, phase: str) -> None:
        """End a phase, or a further part of it.

        Args:
            phase: Its name.
        """
        now = time.perf_counter()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._last
        self._last = now


@dataclass
class Begun:
    """What was found of a problem before the main work, so that it need not be found again.

    Attributes:
        problem: In its final precision and place, evaluated once.
        evaluated: Loss and gradient norm.
        reduction: The coordinates; None for the Gauss-Newton matrix.
        clock: Of what it took.
        route: How the dense Hessian is built, if that has been chosen; it may hold factors.
    """

    problem: Problem
    evaluated: tuple[float, float]
    reduction: Reduction | None
    clock: Clock = field(default_factory=Clock)
    route: Route | None = None

    def take_route(self) -> Route | None:
        """The route, which is not held here any longer."""
        found, self.route = self.route, None
        return found


def _begin(problem: Problem, backend: Backend, dtype: str, operator: str, reduce: str) -> Begun:
    clock, reduction = Clock(), None
    local = problem.at(torch_dtype(dtype), backend.device)
    if operator == "hessian" and reduce == "none":
        require_dense(local, backend)
    evaluated = local.evaluate()
    if operator == "hessian":
        reduction = identity(local) if reduce == "none" else reduce_problem(local)
    clock.mark("reduction" if operator == "hessian" else "matrix")
    return Begun(local, evaluated, reduction, clock)


@ordinary_mode()
def require_feasible(
    problem: Problem, backend: Backend, dtype: str, operator: str, reduce: str = "auto"
) -> Begun:
    """Raise what :func:`compute` would raise before its main work: bad input, too little memory.

    Args:
        problem: Model, loss and batch.
        backend: Where the work is to be done.
        dtype: ``"float64"`` or ``"float32"``.
        operator: ``"hessian"`` or ``"ggn"``.
        reduce: One of :data:`REDUCTIONS`.

    Returns:
        What was found on the way, for :func:`compute`.
    """
    found = _begin(problem, backend, dtype, operator, reduce)
    if found.reduction is None:
        require_ggn(found.problem, backend)
    elif reduce != "none":
        found.route = require_road(found.problem, found.reduction, backend, reduce)
    found.clock.mark("matrix")
    return found


@ordinary_mode()
def compute(
    problem: Problem,
    backend: Backend,
    dtype: str,
    operator: str,
    reduce: str = "auto",
    *,
    tick: Tick | None = None,
    provenance: Provenance | None = None,
    kept: SearchFile | None = None,
    begun: Begun | None = None,
) -> Spectrum:
    """:func:`spectrum` on a backend that has been chosen, with progress.

    Args:
        problem: Model, loss and batch.
        backend: Where the work is done.
        dtype: ``"float64"`` or ``"float32"``.
        operator: ``"hessian"`` or ``"ggn"``.
        reduce: As there; the Gauss-Newton matrix always takes its smaller form.
        tick: Called with phase, steps done and steps in all.
        provenance: Stored in the result.
        kept: Where a search for the range is written to now and then, and continued from.
        begun: What :func:`require_feasible` found of this problem with these arguments.

    Returns:
        The spectrum. Raises what :func:`spectrum` raises.
    """
    one_of("operator", operator, OPERATORS, error=ProblemError)
    one_of("reduction", reduce, REDUCTIONS, error=ProblemError)
    tick = tick or silent
    if begun is None:
        begun = _begin(problem, backend, dtype, operator, reduce)
    local, clock, basis = begun.problem, begun.clock, begun.reduction
    clock.go_on()
    if basis is None:
        local.require_loss_of_outputs_alone()
        matrix, apart = smallest_ggn(local, backend, tick)
    else:
        known = reference(local)
        road = "dense" if reduce == "none" else reduce
        matrix, apart = smallest_hessian(
            local, basis, backend, known, road, route=begun.take_route(), tick=tick, kept=kept
        )
    size = len(matrix)
    clock.mark("matrix")
    tick("eigenvalues", 0, 1)
    found = backend.eigvalsh(matrix)
    del matrix
    clock.mark("eigenvalues")
    tick("eigenvalues", 1, 1)
    evaluated = begun.evaluated
    return certified(local, evaluated, found, size, apart, backend, clock, operator, provenance)


def certified(
    problem: Problem,
    evaluated: tuple[float, float],
    found: Levels,
    size: int,
    apart: Comparison,
    backend: Backend | DistributedBackend,
    clock: Clock,
    operator: str,
    provenance: Provenance | None,
) -> Spectrum:
    """A spectrum with its noise floor, of a matrix that acts as it should.

    Args:
        problem: Whose matrix it is, in its final precision.
        evaluated: Loss and gradient norm.
        found: (n,) the computed eigenvalues.
        size: n.
        apart: How far the matrix is from products by other differentiation.
        backend: Says by which route they were computed.
        clock: Of all phases.
        operator: ``"hessian"`` or ``"ggn"``.
        provenance: Stored in the result.

    Returns:
        All P eigenvalues. Raises what :func:`require_agreement` raises.
    """
    norm, dtype = float(np.abs(found).max(initial=0.0)), dtype_name(problem.dtype)
    check = require_agreement(apart, norm, problem, dtype, operator)
    return Spectrum(
        eigenvalues=np.sort(np.concatenate([found, np.zeros(problem.dimension - size)])),
        noise_floor=max(apart.rounding, noise_floor(found, size, dtype)),
        dimension=problem.dimension,
        reduced_dimension=size,
        loss=evaluated[0],
        gradient_norm=evaluated[1],
        operator=operator,
        dtype=dtype,
        solver=backend.solver,
        check=check,
        seconds=clock.seconds,
        provenance=provenance or Provenance(device=backend.name),
    )
