"""From a problem to its certified spectrum."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from hessrmt.backend.select import select
from hessrmt.curvature.certify import noise_floor
from hessrmt.curvature.ggn import smallest_ggn
from hessrmt.curvature.hessian import Tick, assemble, torch_dtype
from hessrmt.curvature.plan import dense_block, require_dense
from hessrmt.curvature.products import hessian_product
from hessrmt.errors import ProblemError
from hessrmt.records import Provenance, Spectrum

if TYPE_CHECKING:
    from hessrmt.backend.base import Backend
    from hessrmt.problems.problem import Problem

OPERATORS = ("hessian", "ggn")


def spectrum(
    problem: Problem,
    device: str = "auto",
    dtype: str = "float64",
    operator: str = "hessian",
) -> Spectrum:
    """All eigenvalues of a problem's Hessian (or Gauss-Newton matrix), certified.

    Args:
        problem: Model, loss and batch.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        dtype: ``"float64"`` or ``"float32"``, the precision of the whole computation.
        operator: ``"hessian"``, or ``"ggn"`` for Jᵀ S J.

    Returns:
        The spectrum: P eigenvalues, those known exactly to be zero as 0.0, and the noise floor.

    Raises:
        ProblemError: If the loss is random, not a scalar or not twice differentiable by torch, or
            an option is unknown.
        NonFiniteError: If the loss or an entry of the matrix is NaN or infinite.
        DeviceError: If the device is not there or the matrix does not fit in its memory.
        ConvergenceError: If the eigenvalue solver fails.
    """
    backend = select(device)
    provenance = Provenance(
        config={"loss": problem.loss_name, "operator": operator, "dtype": dtype},
        device=backend.name,
    )
    return compute(problem, backend, dtype, operator, provenance=provenance)


def compute(
    problem: Problem,
    backend: Backend,
    dtype: str,
    operator: str,
    *,
    tick: Tick | None = None,
    provenance: Provenance | None = None,
) -> Spectrum:
    """:func:`spectrum` on a backend that has been chosen, with progress.

    Args:
        problem: Model, loss and batch.
        backend: Where the work is done.
        dtype: ``"float64"`` or ``"float32"``.
        operator: ``"hessian"`` or ``"ggn"``.
        tick: Called with phase, steps done and steps in all.
        provenance: Stored in the result.

    Returns:
        The spectrum.

    Raises:
        ProblemError: See :func:`spectrum`; so for the other errors.
    """
    if operator not in OPERATORS:
        raise ProblemError(f"unknown operator {operator!r}; known are {', '.join(OPERATORS)}")
    tick = tick or _silent
    clock = _Clock()
    local = problem.at(torch_dtype(dtype), backend.device)
    size = local.dimension
    if operator == "hessian":
        require_dense(local, backend)
        loss, gradient_norm = local.evaluate()
        matrix = assemble(
            hessian_product(local), local.theta, dense_block(local, backend), backend, tick
        )
    else:
        loss, gradient_norm = local.evaluate()
        matrix = smallest_ggn(local, backend, tick)
    clock.mark("matrix")
    reduced = matrix.shape[0]
    tick("eigenvalues", 0, 1)
    found = backend.eigvalsh(matrix)
    del matrix
    clock.mark("eigenvalues")
    tick("eigenvalues", 1, 1)
    floor = noise_floor(found, reduced, dtype)
    return Spectrum(
        eigenvalues=np.sort(np.concatenate([found, np.zeros(size - reduced)])),
        noise_floor=floor,
        dimension=size,
        reduced_dimension=reduced,
        loss=loss,
        gradient_norm=gradient_norm,
        operator=operator,
        dtype=dtype,
        solver=backend.solver,
        seconds=clock.seconds,
        provenance=provenance or Provenance(device=backend.name),
    )


def _silent(phase: str, done: int, total: int) -> None:
    """Report nothing."""


class _Clock:
    """Wall-clock seconds of consecutive phases."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def mark(self, phase: str) -> None:
        now = time.perf_counter()
        self.seconds[phase] = now - self._last
        self._last = now
