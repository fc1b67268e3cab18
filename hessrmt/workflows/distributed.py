"""``hessrmt spectrum --mpi``: one Hessian after another, each spread over all processes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from hessrmt.backend.select import select_distributed
from hessrmt.backend.world import World, connect
from hessrmt.curvature.distributed import distributed_spectrum, require_feasible
from hessrmt.errors import ConfigError, HessrmtError
from hessrmt.records import Provenance
from hessrmt.store.hdf5 import load
from hessrmt.store.writer import SpectrumWriter
from hessrmt.workflows.spectrum import Prepared, prepare, tell_stored

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from hessrmt.config import SpectrumConfig
    from hessrmt.records import Spectra
    from hessrmt.workflows.spectrum import Finished


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
        HessrmtError: What :func:`hessrmt.workflows.spectrum.run` raises, and DistributedError if
            a process failed for another reason.
        SystemExit: On all processes but 0, where process 0 raises that.
    """
    world = world or connect()
    first = world.rank == 0
    try:
        with world.guard():
            return _run(
                config,
                out,
                folder,
                solver,
                world,
                resume=resume,
                overwrite=overwrite,
                tell=tell if first else None,
                finished=finished,
            )
    except HessrmtError as error:
        if first:
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


def _run(
    config: SpectrumConfig,
    out: Path,
    folder: Path | None,
    solver: str,
    world: World,
    *,
    resume: bool,
    overwrite: bool,
    tell: Callable[[str], None] | None,
    finished: Finished | None,
) -> Spectra | None:
    with world.together():
        if resume and overwrite:
            raise ConfigError("--resume and --overwrite exclude each other")
        _require_whole_hessian(config)
        prepared = prepare(config, folder)
    backend = select_distributed(solver, config.device, world, config.dtype)
    if tell:
        for line in (*prepared.notes, f"{backend.solver}, {backend.name}"):
            tell(line)
    with world.together():
        first = prepared.problem(0)
    # what cannot be computed must not cost an existing file
    require_feasible(first, backend, config.dtype, config.reduce)
    del first
    with world.together():
        writer = None
        if world.rank == 0:
            writer = _writer(prepared, out, backend.name, backend.solver, resume, overwrite)
    try:
        with world.together():
            if writer is not None:
                tell_stored(writer, finished)
        done = world.share(None if writer is None else writer.done.copy())
        for batch in np.flatnonzero(~done):
            number = int(batch)
            with world.together():
                problem = prepared.problem(number)
            try:
                found = distributed_spectrum(
                    problem,
                    backend,
                    config.dtype,
                    config.reduce,
                    tick=_Lines(tell, number) if tell else None,
                )
            except HessrmtError as error:
                raise type(error)(f"batch {number}: {error}") from error
            with world.together():
                if writer is not None:
                    writer.write(number, found)
                    if finished:
                        finished(number, found)
    finally:
        if writer is not None:
            writer.close()
    with world.together():
        return load(out) if writer is not None else None


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


def _writer(
    prepared: Prepared, out: Path, device: str, solver: str, resume: bool, overwrite: bool
) -> SpectrumWriter:
    """The file, new or continued."""
    identity = {**prepared.identity, "distributed": True}
    if resume and out.exists():
        return SpectrumWriter.resume(out, identity)
    return SpectrumWriter.create(
        out,
        identity=identity,
        solver=solver,
        dimension=prepared.problem(0).dimension,
        batch_indices=prepared.batch_indices,
        provenance=Provenance(
            config={
                **prepared.config.model_dump(mode="json"),
                "split": prepared.dataset.split,
                "batches": len(prepared.batch_indices),
                "checkpoint_sha256": prepared.identity["checkpoint_sha256"],
                "embedded_data": prepared.dataset.embedded,
            },
            device=device,
            notes=prepared.notes,
        ),
        overwrite=overwrite,
    )
