"""``hessrmt spectrum``: batches of a split in file order, one certified spectrum each."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from hessrmt.backend.select import select
from hessrmt.curvature.spectrum import compute, layers_of, require_feasible
from hessrmt.errors import ClusterError, ConfigError, HessrmtError
from hessrmt.problems import checkpoints, data, losses, models
from hessrmt.problems.plugins import is_plugin
from hessrmt.problems.problem import Problem
from hessrmt.records import Provenance, Spectra
from hessrmt.store.hdf5 import load_all
from hessrmt.store.writer import Row, SpectrumWriter
from hessrmt.workflows.cluster import SERIAL, only
from hessrmt.workflows.digest import digest

if TYPE_CHECKING:
    from hessrmt.backend.base import Backend
    from hessrmt.config import SpectrumConfig
    from hessrmt.workflows.cluster import Pool

Observer = Callable[[int, str, int, int], None]
"""Progress: batch number, phase, steps done and steps in all of that phase."""

Finished = Callable[[int, Row], None]
"""Results as they come: batch number and spectrum."""


@dataclass(frozen=True)
class Prepared:
    """Everything a run needs before its first batch is computed.

    Attributes:
        config: The settings.
        dataset: The split.
        model: The network, initialised and loaded.
        loss: The loss function or its registry name.
        batch_indices: (batches, B) positions in the split.
        notes: What the user must be told.
        identity: What a resumed run must share.
        folder: Where data were looked for first.
        sources: Of the user's own model and loss, SHA-256 of the file.
    """

    config: SpectrumConfig
    dataset: data.Dataset
    model: torch.nn.Module
    loss: Any
    batch_indices: np.ndarray
    notes: tuple[str, ...]
    identity: dict[str, Any]
    folder: Path | None = None
    sources: Mapping[str, str] = field(default_factory=dict)

    def problem(self, batch: int) -> Problem:
        """The problem of one batch.

        Returns:
            Model, loss and that batch's samples in double precision.
        """
        pair = self.dataset.tensors(self.batch_indices[batch], torch.float64, self.model)
        return Problem(self.model, self.loss, pair, only=self.config.only)


def prepare(config: SpectrumConfig, folder: Path | None = None) -> Prepared:
    """Load data, model and checkpoint, and lay out the batches; every bad input is found here.

    Args:
        config: The settings.
        folder: Where to look for data first.

    Returns:
        What :func:`run` needs.

    Raises:
        ConfigError: If the batch does not fit the split.
    """
    dataset = data.load(config.data, config.split, folder)
    size = len(dataset) if config.batch == "all" else config.batch
    available = len(dataset) // size
    if available == 0:
        raise ConfigError(
            f"batch {size} is larger than the {dataset.split} split of {dataset.name} "
            f"({len(dataset):,} samples)"
        )
    count = config.batches if isinstance(config.batches, int) else available
    if config.batch == "all":
        count = 1
    if count > available:
        raise ConfigError(
            f"{count} batches of {size} need {count * size:,} samples; the "
            f"{dataset.split} split of {dataset.name} has {len(dataset):,}, enough for "
            f"{available} (--batches all)"
        )
    notes = [f"data: {dataset.origin}"]
    left = len(dataset) - available * size
    if config.batches == "all" and left:
        notes.append(
            f"the last {left} samples do not fill a batch and are left out: a smaller batch has "
            "another scale"
        )
    model = models.build(config.model, dataset.input_shape, dataset.outputs, config.seed)
    model.eval()
    sha256 = ""
    if config.checkpoint is None:
        notes.append(f"parameters: random initialisation, seed {config.seed}")
    else:
        sha256 = checkpoints.load_into(model, config.checkpoint)
        notes.append(f"parameters: {config.checkpoint} (sha256 {sha256[:12]}…)")
    settings = config.model_dump(mode="json", exclude={"checkpoint"})
    return Prepared(
        config=config,
        dataset=dataset,
        model=model,
        loss=config.loss if config.loss in losses.LOSSES else losses.resolve(config.loss),
        batch_indices=np.arange(count * size).reshape(count, size),
        notes=tuple(notes),
        identity={
            **settings,
            "split": dataset.split,
            "batches": count,
            "checkpoint_sha256": sha256,
            "data_sha256": digest([dataset.x, dataset.y]),
            "parameters_sha256": digest(
                [value.detach().numpy() for value in model.state_dict().values()]
            ),
        },
        folder=folder,
        sources=_sources(config),
    )


class _Facts(NamedTuple):
    """What the file says of a run, known where it is done."""

    solver: str
    dimension: int | dict[str, int]
    device: str


class Job(NamedTuple):
    """What a worker prepares a run from, and what must come out the same there.

    Attributes:
        config: The settings, paths absolute.
        folder: Where to look for data first.
        digests: Of data, parameters and checkpoint, and of the files of the user's own objects.
    """

    config: SpectrumConfig
    folder: Path | None
    digests: tuple[tuple[str, str], ...]


def job(prepared: Prepared) -> Job:
    """A run as it is sent to workers: settings and digests, no tensors.

    Args:
        prepared: From :func:`prepare`.

    Returns:
        Something small that can be hashed and pickled.
    """
    config, folder = prepared.config, prepared.folder
    paths: dict[str, Any] = {
        name: os.path.abspath(os.path.expanduser(value))
        for name, value in (("model", config.model), ("loss", config.loss))
        if is_plugin(value)
    }
    if config.data in data.NAMES:
        folder = data.locate(config.data, folder)
    else:
        paths["data"] = os.path.abspath(os.path.expanduser(config.data))
    if config.checkpoint is not None:
        paths["checkpoint"] = config.checkpoint.absolute()
    return Job(
        config.model_copy(update=paths),
        folder.absolute() if folder else None,
        tuple(_digests(prepared).items()),
    )


def run(
    prepared: Prepared,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    observer: Observer | None = None,
    finished: Finished | None = None,
    pool: Pool = SERIAL,
) -> Spectra:
    """Compute every batch that the file lacks and store each as it is done.

    Args:
        prepared: From :func:`prepare`.
        out: The spectrum file.
        resume: Continue the file if it is there.
        overwrite: Replace the file if it is there.
        observer: Told of progress; by a pool that is not local only of batches that are stored.
        finished: Given every spectrum of the file: of a file that is continued first those that it
            holds, then each as soon as it is stored. A pool of several workers stores batches in
            the order in which they are done.
        pool: Where batches are computed. This process alone writes the file.

    Returns:
        The spectra of the whole file; for a file of blocks those of the first.

    Raises:
        ConfigError: If both resume and overwrite are asked for.
        ClusterError: If the pool fails, or a worker prepares another problem than this process.
        DataError: If the batch cannot be used; the message names it.
        NonFiniteError: If a loss or Hessian is not finite; the message names the batch.
    """
    if resume and overwrite:
        raise ConfigError("--resume and --overwrite exclude each other")
    config = prepared.config
    if pool.local:
        backend = select(config.device)
        compute_batch = partial(_compute, prepared, backend, observer=observer)
        facts = _examine(prepared, backend)
    else:
        sent = job(prepared)
        compute_batch = partial(_compute_there, sent)
        facts = only(pool, _examine_there, sent)
    if resume and os.path.exists(out):
        writer = SpectrumWriter.resume(out, prepared.identity)
    else:
        writer = SpectrumWriter.create(
            out,
            identity=prepared.identity,
            solver=facts.solver,
            dimension=facts.dimension,
            batch_indices=prepared.batch_indices,
            provenance=Provenance(
                config={
                    **config.model_dump(mode="json"),
                    "split": prepared.dataset.split,
                    "batches": len(prepared.batch_indices),
                    "checkpoint_sha256": prepared.identity["checkpoint_sha256"],
                    "embedded_data": prepared.dataset.embedded,
                },
                device=facts.device,
                notes=(*prepared.notes, *([f"computed by {pool.words}"] if pool.words else [])),
            ),
            overwrite=overwrite,
        )
    with writer:
        tell_stored(writer, finished)
        missing = np.flatnonzero(~writer.done).tolist()
        for index, found in pool.map_unordered(compute_batch, missing):
            number = missing[index]
            writer.write(number, found)
            if observer:
                observer(number, "stored", 1, 1)
            if finished:
                finished(number, found)
    found = load_all(out)
    return next(iter(found.values())) if isinstance(found, dict) else found


def tell_stored(writer: SpectrumWriter, finished: Finished | None) -> None:
    """Pass on the spectra that a file holds before the run adds to it.

    Args:
        writer: Of the file.
        finished: Given each of them, in the order of batches.
    """
    stored = np.flatnonzero(writer.done).tolist()
    if not finished or not stored:
        return
    found = load_all(writer.path)
    for place, number in enumerate(stored):
        if isinstance(found, dict):
            finished(number, {name: spectra[place] for name, spectra in found.items()})
        else:
            finished(number, found[place])


def _examine(prepared: Prepared, backend: Backend) -> _Facts:
    """Raise what computing would raise at once: what cannot be computed must not cost a file."""
    config = prepared.config
    with _naming_batch(0):
        parts = _blocks(prepared, 0)
        for part in parts.values():
            require_feasible(part, backend, config.dtype, config.operator, config.reduce)
    sizes = {name: part.dimension for name, part in parts.items()}
    dimension = sizes[""] if config.blocks is None else sizes
    return _Facts(backend.solver, dimension, backend.name)


def _blocks(prepared: Prepared, batch: int) -> dict[str, Problem]:
    """The problems of a batch: one for each block, or one without a name."""
    problem = prepared.problem(batch)
    if prepared.config.blocks is None:
        return {"": problem}
    return {name: problem.restricted(only) for name, only in layers_of(problem).items()}


def _compute(
    prepared: Prepared, backend: Backend, batch: int, observer: Observer | None = None
) -> Row:
    config = prepared.config
    with _naming_batch(batch):
        found = {
            name: compute(
                problem,
                backend,
                config.dtype,
                config.operator,
                config.reduce,
                tick=partial(observer, batch) if observer else None,
            )
            for name, problem in _blocks(prepared, batch).items()
        }
    return found[""] if config.blocks is None else found


def _examine_there(sent: Job) -> _Facts:
    return _examine(*_prepared(sent))


def _compute_there(sent: Job, batch: int) -> Row:
    return _compute(*_prepared(sent), batch)


@lru_cache(maxsize=1)
def _prepared(sent: Job) -> tuple[Prepared, Backend]:
    """The run and its device, prepared once in each worker."""
    host = socket.gethostname()
    shared = "workers read model, data and checkpoint themselves, from a file system they share"
    try:
        found = prepare(sent.config, sent.folder)
    except HessrmtError as error:
        raise type(error)(f"worker on {host}: {error} ({shared})") from error
    wanted, here = dict(sent.digests), _digests(found)
    other = [name for name in wanted if here.get(name) != wanted[name]]
    if other:
        raise ClusterError(
            f"the worker on {host} has other {', '.join(other)} than the machine where the command "
            f"runs: {shared}"
        )
    return found, select(sent.config.device)


def _digests(prepared: Prepared) -> dict[str, str]:
    """What tells two preparations of the same settings apart."""
    found = {
        name: str(prepared.identity[f"{name}_sha256"])
        for name in ("data", "parameters", "checkpoint")
    }
    return found | {f"source of the {name}": sha256 for name, sha256 in prepared.sources.items()}


def _sources(config: SpectrumConfig) -> dict[str, str]:
    specs = {"model": config.model, "loss": config.loss}
    return {
        name: hashlib.sha256(Path(spec.rpartition(":")[0]).expanduser().read_bytes()).hexdigest()
        for name, spec in specs.items()
        if is_plugin(spec)
    }


@contextmanager
def _naming_batch(batch: int) -> Iterator[None]:
    """Say in every error which batch it happened in."""
    try:
        yield
    except HessrmtError as error:
        raise type(error)(f"batch {batch}: {error}") from error
