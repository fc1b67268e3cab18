"""``hessrmt spectrum --mpi``: one Hessian after another, each spread over all processes."""

from __future__ import annotations

import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import numpy as np

from hessrmt.backend.select import select_distributed
from hessrmt.backend.world import World, connect
from hessrmt.curvature.distributed import distributed_spectrum, require_feasible
from hessrmt.errors import ConfigError, HessrmtError
from hessrmt.runs.run import naming
from hessrmt.runs.spectrum import Facts, prepare, tell_stored
from hessrmt.store.files import require_one
from hessrmt.store.spectra import load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from hessrmt.config import SpectrumConfig
    from hessrmt.records import Spectra
    from hessrmt.runs.spectrum import Finished


def run_distributed(
    config: SpectrumConfig,
    out: Path,
    *,
    folder: Path | None = None,
    solver: str = "auto",
    resume: bool = False,
    overwrite: bool = False,
    tell: Callable[[str], None] | None = None,
    finished: Finished | None = None,
    world: World | None = None,
) -> Spectra | None:
    """Compute every batch that the file lacks, on all processes; process 0 writes the file.

    If the run fails, process 0 raises the error and the others leave with its exit code.

    Args:
        config: The settings; ``device`` is ``auto``, ``cpu`` or ``cuda``.
        out: The spectrum file.
        folder: Where to look for data first.
        solver: ``"auto"``, ``"elpa"``, ``"scalapack"`` or ``"cusolvermp"``.
        resume: Continue the file if it is there.
        overwrite: Replace the file if it is there.
        tell: Told, on process 0, what the user must know, and progress twice a minute: what
            mpirun passes on is a log, not a terminal.
        finished: Given, on process 0, every spectrum of the file: of a file that is continued first
            those that it holds, then each as soon as it is stored.
        world: The processes; by default those that ``mpirun`` or ``srun`` started.

    Returns:
        The spectra of the whole file on process 0, None on others.

    Raises:
        HessrmtError: What :func:`hessrmt.runs.spectrum.run` raises, and DistributedError if
            a process failed for another reason.
        SystemExit: On all processes but 0, where process 0 raises that.
    """
    world = world or connect()
    with _failing_together(world), ExitStack() as held:
        with world.together():
            require_one(resume=resume, overwrite=overwrite)
            _require_whole_hessian(config)
            prepared = prepare(config, folder)
        backend = select_distributed(solver, config.device, world, config.dtype)
        tell = tell if world.rank == 0 else None
        if tell:
            for line in (*prepared.notes, f"{backend.solver}, {backend.name}"):
                tell(line)
        with world.together():
            problem = prepared.problem(0)
        # what cannot be computed must not cost an existing file
        require_feasible(problem, backend, config.dtype, config.reduce)
        dimension = problem.dimension
        del problem
        file = None
        with world.together():
            if world.rank == 0:
                facts = Facts(backend.solver, dimension, backend.name)
                writer = prepared.writer(
                    out, facts, resume=resume, overwrite=overwrite, distributed=True
                )
                file = held.enter_context(writer)
                tell_stored(file, finished)
        done = world.share(None if file is None else file.done.copy())
        for number in np.flatnonzero(~done).tolist():
            with world.together():
                problem = prepared.problem(number)
            tick = _Lines(tell, number) if tell else None
            with naming(f"batch {number}"):
                found = distributed_spectrum(
                    problem, backend, config.dtype, config.reduce, tick=tick
                )
            with world.together():
                if file is not None:
                    file.write(number, found)
                    if finished:
                        finished(number, found)
        with world.together():
            return load(out) if file is not None else None


@contextmanager
def _failing_together(world: World) -> Iterator[None]:
    """Of an error that all processes have, the first one speaks; the others only leave."""
    try:
        with world.guard():
            yield
    except HessrmtError as error:
        if world.rank == 0:
            raise
        raise SystemExit(error.exit_code) from error


def _require_whole_hessian(config: SpectrumConfig) -> None:
    """Refuse matrices that one process holds with ease."""
    if config.operator != "hessian":
        raise ConfigError(
            f"--operator {config.operator} is not spread over processes: its exact nonzero "
            "levels need a matrix of (samples x outputs) rows only; leave out --mpi"
        )
    if config.blocks is not None:
        raise ConfigError("--blocks is not spread over processes; leave out --mpi")


class _Lines:
    """Progress of one batch, a line now and then."""

    every = 30.0

    def __init__(self, tell: Callable[[str], None], batch: int) -> None:
        self._tell, self._batch = tell, batch
        self._next = time.monotonic() + self.every

    def __call__(self, phase: str, done: int, total: int) -> None:
        starts_long_work = phase == "eigenvalues" and not done
        if starts_long_work or time.monotonic() >= self._next:
            self._tell(f"batch {self._batch}: {phase} {done / max(total, 1):.0%}")
            self._next = time.monotonic() + self.every
