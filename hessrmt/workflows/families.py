"""Families of networks: each trained into one HDF5 file, here or by the workers of a pool.

This process alone writes the files. A worker trains one network at a time and saves it on its way
where this process would, so that any process can go on with it.
"""

from __future__ import annotations

import socket
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hessrmt.backend.select import select
from hessrmt.errors import ClusterError, GeneralizationError, HessrmtError, NonFiniteError
from hessrmt.records import Provenance
from hessrmt.store.family import load_family
from hessrmt.store.familywriter import FamilyWriter
from hessrmt.workflows.cluster import SERIAL, only
from hessrmt.workflows.memberplan import Samples, checkpoint_of, plan_of, samples_of
from hessrmt.workflows.members import make
from hessrmt.workflows.paths import absolute
from hessrmt.workflows.reproduce import Observer, make_folders, silent

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from hessrmt.backend.base import Backend
    from hessrmt.config import Family
    from hessrmt.store.family import FamilyResult, Member
    from hessrmt.workflows.cluster import Pool
    from hessrmt.workflows.memberplan import Plan

_FAILS = (NonFiniteError, GeneralizationError)
"""What may happen to a network whose settings are right."""


@dataclass(frozen=True)
class Job:
    """A family as it is sent to workers: settings and a digest, no samples.

    Attributes:
        family: Its settings with absolute paths.
        given: Its settings as they were given; a network in training is continued with no others.
        seed: Of the experiment.
        device: As it was asked for.
        out: Absolute folder of ``checkpoints/``.
        folder: Absolute folder searched first for data sets.
        sha256: Of the data set where the command runs.
    """

    family: Family
    given: Family
    seed: int
    device: str
    out: Path
    folder: Path | None
    sha256: str


def run(
    family: Family,
    out: Path,
    *,
    seed: int = 0,
    device: str = "auto",
    folder: Path | None = None,
    observer: Observer | None = None,
    pool: Pool = SERIAL,
) -> FamilyResult:
    """Train what is not trained yet of a family, and read all of it; see :func:`run_all`.

    Args:
        family: Its settings.
        out: Folder for ``families/`` and ``checkpoints/``; an earlier run in it is continued.
        seed: Of everything random.
        device: ``auto``, ``cpu`` or ``cuda[:i]``.
        folder: Folder searched first for data sets.
        observer: Told of progress.
        pool: Where networks are trained.

    Returns:
        The family, complete.
    """
    (found,) = run_all(
        [family], out, seed=seed, device=device, folder=folder, observer=observer, pool=pool
    )
    return found


def run_all(
    families: Sequence[Family],
    out: Path,
    *,
    seed: int = 0,
    device: str = "auto",
    folder: Path | None = None,
    observer: Observer | None = None,
    pool: Pool = SERIAL,
) -> list[FamilyResult]:
    """Train what is not trained yet of some families, and read all of them.

    Args:
        families: Their settings; their names differ.
        out: Folder for ``families/`` and ``checkpoints/``; an earlier run in it is continued.
        seed: Of everything random.
        device: ``auto``, ``cpu`` or ``cuda[:i]``.
        folder: Folder searched first for data sets.
        observer: Told of progress; by a pool that is not local only of networks that are stored.
        pool: Where networks are trained, those of all families together. Its workers need ``out``
            under the same path. This process alone writes the families.

    Returns:
        The families, complete.

    Raises:
        NonFiniteError: If the training of a network diverges; those that are done are kept.
        GeneralizationError: If a network cannot be normalised; those that are done are kept.
        ClusterError: If the pool fails, or a worker finds other data than this process.
    """
    observer = observer or silent
    if not pool.local:
        _run_there(families, out, seed, device, folder, observer, pool)
        return [load_family(_file(out, family)) for family in families]
    found = []
    for family in families:
        _run_here(family, out, seed, device, folder, observer)
        found.append(load_family(_file(out, family)))
    return found


def _run_here(
    family: Family, out: Path, seed: int, device: str, folder: Path | None, observer: Observer
) -> None:
    backend = select(device)
    samples = samples_of(family, seed, folder)
    make_folders(out, "families", "checkpoints")
    identity = _identity(family, seed, samples.sha256)
    with _writer(
        family, out, identity, samples.train.origin, _notes(samples), backend.name
    ) as file:
        for index, value in enumerate(family.values):
            if index not in file.members:
                plan = plan_of(
                    family,
                    index,
                    samples,
                    seed=seed,
                    out=out,
                    device=backend.device,
                    identity=identity,
                )
                phase = f"{family.name} {index + 1}/{len(family.values)} ({value:g}), epochs"
                try:
                    member = _named(
                        plan, index, lambda *steps, phase=phase: observer(phase, *steps)
                    )
                except _FAILS as error:
                    raise type(error)(
                        f"{error}. {len(file.members)} of {len(family.values)} networks are in "
                        f"{file.path}"
                    ) from error
                file.write(index, member)
            checkpoint_of(family, index, out).unlink(missing_ok=True)


def _run_there(
    families: Sequence[Family],
    out: Path,
    seed: int,
    device: str,
    folder: Path | None,
    observer: Observer,
    pool: Pool,
) -> None:
    jobs: list[Job] = []
    about: list[tuple[str, tuple[str, ...]]] = []
    computed = f"computed by {pool.words}"
    for family in families:
        samples = samples_of(family, seed, folder)
        jobs.append(_job(family, out, seed, device, folder, samples.sha256))
        about.append((samples.train.origin, (*_notes(samples), computed)))
    make_folders(out, "families", "checkpoints")
    name = only(pool, _examine_there, jobs[0])
    with ExitStack() as stack:
        files = [
            stack.enter_context(
                _writer(family, out, _identity(family, seed, job.sha256), origin, notes, name)
            )
            for family, job, (origin, notes) in zip(families, jobs, about, strict=True)
        ]
        planned = [(k, i) for k, family in enumerate(families) for i in range(len(family.values))]
        missing = []
        for number, index in planned:
            if index in files[number].members:
                checkpoint_of(families[number], index, out).unlink(missing_ok=True)
            else:
                missing.append((number, index))
        done = len(planned) - len(missing)
        observer("networks", done, len(planned))
        results = pool.map_unordered(_make_there, [(jobs[k], index) for k, index in missing])
        try:
            for task, member in results:
                number, index = missing[task]
                files[number].write(index, member)
                checkpoint_of(families[number], index, out).unlink(missing_ok=True)
                done += 1
                observer("networks", done, len(planned))
        except _FAILS as error:
            raise type(error)(
                f"{error}. {done} of {len(planned)} networks are in {out / 'families'}"
            ) from error


def _job(
    family: Family, out: Path, seed: int, device: str, folder: Path | None, sha256: str
) -> Job:
    there, place = absolute(family, folder)
    return Job(there, family, seed, device, out.absolute(), place, sha256)


def _examine_there(job: Job) -> str:
    return _opened(job)[1].name


def _make_there(task: tuple[Job, int]) -> Member:
    """Train one network; its checkpoint is left to the process that stores its numbers."""
    job, index = task
    samples, backend = _opened(job)
    plan = plan_of(
        job.family,
        index,
        samples,
        seed=job.seed,
        out=job.out,
        device=backend.device,
        identity=_identity(job.given, job.seed, samples.sha256),
    )
    return _named(plan, index, lambda *_: None)


@lru_cache(maxsize=1)
def _opened(job: Job) -> tuple[Samples, Backend]:
    """Samples and device, found once in each worker for each family."""
    host = socket.gethostname()
    shared = "workers read the data and save networks in training on a file system that they share"
    if not (job.out / "checkpoints").is_dir():
        raise ClusterError(
            f"the worker on {host} has no folder {job.out / 'checkpoints'}: {shared}; give a "
            "folder (--out) that it has"
        )
    try:
        samples = samples_of(job.family, job.seed, job.folder)
    except HessrmtError as error:
        raise type(error)(f"worker on {host}: {error} ({shared})") from error
    if samples.sha256 != job.sha256:
        raise ClusterError(
            f"the worker on {host} has other data than the machine where the command runs: {shared}"
        )
    return samples, select(job.device)


def _named(plan: Plan, index: int, tick: Callable[[int, int], None]) -> Member:
    """Train a network, and say in an error which."""
    try:
        return make(plan, tick)
    except _FAILS as error:
        family = plan.family
        raise type(error)(
            f"network {index + 1} of {family.name} ({family.vary} {plan.value:g}): {error}"
        ) from error


def _writer(
    family: Family,
    out: Path,
    identity: dict[str, Any],
    origin: str,
    notes: tuple[str, ...],
    device: str,
) -> FamilyWriter:
    about = Provenance({"data": origin}, device, notes=notes)
    return FamilyWriter(_file(out, family), family.values, identity, about)


def _file(out: Path, family: Family) -> Path:
    return out / "families" / f"{family.name}.h5"


def _identity(family: Family, seed: int, sha256: str) -> dict[str, Any]:
    return {"family": family.model_dump(), "seed": seed, "data_sha256": sha256}


def _notes(samples: Samples) -> tuple[str, ...]:
    return (samples.train.origin,) if samples.train.embedded else ()
