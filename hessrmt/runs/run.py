"""A run: settings, independent items, and a file or folder that is filled as they are computed.

What every command shares stands here: what is read from the settings (:class:`Inputs`), where items
are computed (:class:`Run`: here, or by the workers of a pool, which read model and data themselves
and must find the same), and what a run that continues a file must share with it (``identity``).
What is written, and how a file is locked, continued and replaced, is in :mod:`hessrmt.store`.
"""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np

from hessrmt.backend.select import select
from hessrmt.errors import ClusterError, ConfigError, HessrmtError
from hessrmt.files import fail_writing
from hessrmt.problems import checkpoints, data, losses, models
from hessrmt.problems.plugins import is_plugin
from hessrmt.records import SOURCE, Provenance

if TYPE_CHECKING:
    from torch import nn

    from hessrmt.backend.base import Backend
    from hessrmt.config import Settings
    from hessrmt.problems.data import Dataset

T = TypeVar("T")
R = TypeVar("R")
PreparedT = TypeVar("PreparedT", bound="Prepared")

_SHARED = "workers read and write on a file system that they share with this machine"


class Pool:
    """Somewhere to do independent tasks: this process, in order, unless a subclass says otherwise.

    Attributes:
        local: Whether tasks run in this process, so that functions and items may hold anything.
    """

    local = True

    @property
    def width(self) -> int:
        """How many tasks are done at the same time now, at least 1."""
        return 1

    @property
    def words(self) -> str:
        """What it is, for people and for the provenance of a file; empty for this process."""
        return ""

    def map_unordered(
        self, function: Callable[[T], R], items: Iterable[T]
    ) -> Iterator[tuple[int, R]]:
        """Apply a function to every item; the first error ends it and is raised as it was.

        Args:
            function: Can be pickled, unless the pool is local; so can items and results.
            items: What to apply it to.

        Yields:
            Number of the item and result, as they are done.
        """
        yield from enumerate(map(function, items))


SERIAL = Pool()
"""What every run uses unless it is given another."""


class Prepared(Protocol):
    """What a process needs before it computes items."""

    @property
    def digests(self) -> Mapping[str, str]:
        """What was read to its SHA-256: a worker must read the same."""
        ...


class Job(NamedTuple):
    """A run as it is sent to workers: settings and digests, no tensors; hashable.

    Attributes:
        prepare: A function of a module: settings and folder of data to what is prepared.
        settings: With absolute paths.
        folder: Where to look for data first.
        out: Folder that the worker must have too, if it writes there.
        digests: Of what must come out the same there.
    """

    prepare: Callable[[Any, Path | None], Any]
    settings: Any
    folder: Path | None
    out: Path | None
    digests: tuple[tuple[str, str], ...]


class Run(Generic[PreparedT]):
    """Items computed here or by workers, all from the same preparation.

    Args:
        prepare: A function of a module: settings and folder of data to what is prepared.
        settings: Of the run; hashable.
        folder: Where to look for data first.
        pool: Where items are computed.
        out: Folder that workers write to, if they do.
        prepared: What is prepared, if it already is.

    Attributes:
        prepared: What this process has read.
        pool: Where items are computed.
    """

    def __init__(
        self,
        prepare: Callable[[Any, Path | None], PreparedT],
        settings: Settings,
        folder: Path | None = None,
        *,
        pool: Pool = SERIAL,
        out: Path | None = None,
        prepared: PreparedT | None = None,
    ) -> None:
        self.pool = pool
        self.prepared = prepare(settings, folder) if prepared is None else prepared
        self.job = Job(
            prepare,
            *absolute(settings, folder),
            None if out is None else out.absolute(),
            tuple(self.prepared.digests.items()),
        )

    def on_all(
        self, compute: Callable[[PreparedT, T], R], items: Sequence[T]
    ) -> Iterator[tuple[T, R]]:
        """Compute items in any order.

        Args:
            compute: A function of what is prepared and an item; where the pool isn't local, of a
                module.
            items: What to compute.

        Yields:
            Items and results, as they are done.
        """
        for number, found in compute_all(self.pool, compute, [(self, item) for item in items]):
            yield items[number], found

    def on_one(self, compute: Callable[[PreparedT, T], R], item: T) -> R:
        """Compute one item (arguments as of :meth:`on_all`).

        Returns:
            Its result.
        """
        ((_, found),) = self.on_all(compute, [item])
        return found


def compute_all(
    pool: Pool, compute: Callable[[Any, T], R], tasks: Sequence[tuple[Run[Any], T]]
) -> Iterator[tuple[int, R]]:
    """Compute items of one or several runs in any order.

    Args:
        pool: Where.
        compute: As of :meth:`Run.on_all`.
        tasks: The run of each item, and the item.

    Yields:
        Number of the task and result, as they are done.
    """
    if pool.local:
        yield from pool.map_unordered(lambda task: compute(task[0].prepared, task[1]), tasks)
    else:
        sent = [(run.job, item) for run, item in tasks]
        yield from pool.map_unordered(partial(_compute_there, compute), sent)


def _compute_there(compute: Callable[[Any, T], R], task: tuple[Job, T]) -> R:
    job, item = task
    return compute(_prepared_there(job), item)


@lru_cache(maxsize=1)
def _prepared_there(job: Job) -> Any:
    """What a worker prepares, once for each run."""
    host = socket.gethostname()
    if job.out is not None and not job.out.is_dir():
        raise ClusterError(
            f"the worker on {host} has no folder {job.out}: {_SHARED}; give a folder (--out) that "
            "it has"
        )
    try:
        found = job.prepare(job.settings, job.folder)
    except HessrmtError as error:
        raise type(error)(f"worker on {host}: {error} ({_SHARED})") from error
    other = [name for name, sha256 in job.digests if found.digests.get(name) != sha256]
    if other:
        words = [
            f"source of the {name.removesuffix(SOURCE)}" if name.endswith(SOURCE) else name
            for name in other
        ]
        raise ClusterError(
            f"the worker on {host} has other {', '.join(words)} than the machine where the command "
            f"runs: {_SHARED}"
        )
    return found


def absolute(settings: Any, folder: Path | None = None) -> tuple[Any, Path | None]:
    """The same model, loss, data and checkpoint, wherever a process is started.

    Args:
        settings: Of a run.
        folder: Where to look for data first.

    Returns:
        The settings with absolute paths, and the folder where the data are.
    """
    given = {name: getattr(settings, name, None) for name in ("model", "loss")}
    paths: dict[str, Any] = {
        name: os.path.abspath(os.path.expanduser(spec))
        for name, spec in given.items()
        if spec is not None and is_plugin(spec)
    }
    if settings.data in data.NAMES:
        folder = data.locate(settings.data, folder)
    else:
        paths["data"] = os.path.abspath(os.path.expanduser(settings.data))
    if getattr(settings, "checkpoint", None) is not None:
        paths["checkpoint"] = settings.checkpoint.absolute()
    return settings.model_copy(update=paths), folder.absolute() if folder else None


@dataclass(frozen=True)
class Inputs:
    """A network on a data set, as settings name them.

    Attributes:
        settings: With ``model``, ``data``, ``loss``, ``seed`` and mostly ``checkpoint``.
        dataset: The split.
        model: The network, initialised and loaded, in evaluation mode.
        loss: The loss function or its registry name.
        notes: What the user must be told.
        digests: SHA-256 of the ``data``, the ``parameters``, the ``checkpoint`` and of the files of
            the user's own model and loss; empty where there is none.
    """

    settings: Any
    dataset: Dataset
    model: nn.Module
    loss: Any
    notes: tuple[str, ...]
    digests: Mapping[str, str] = field(repr=False)

    @classmethod
    def read(cls, settings: Any, dataset: Dataset) -> Inputs:
        """Build the network that settings name for a data set, and load its checkpoint.

        Args:
            settings: Of the run.
            dataset: The split.

        Returns:
            The inputs.
        """
        notes = [f"data: {dataset.origin}"]
        model = models.build(settings.model, dataset.input_shape, dataset.outputs, settings.seed)
        model.eval()
        sha256 = ""
        if settings.checkpoint is None:
            notes.append(f"parameters: random initialisation, seed {settings.seed}")
        else:
            sha256 = checkpoints.load_into(model, settings.checkpoint)
            notes.append(f"parameters: {settings.checkpoint} (sha256 {sha256[:12]}…)")
        known = settings.loss in losses.LOSSES
        loss = settings.loss if known else losses.resolve(settings.loss)
        digests = {
            "data": digest([dataset.x, dataset.y]),
            "parameters": digest(value.numpy(force=True) for value in model.state_dict().values()),
            "checkpoint": sha256,
            **checkpoints.source_digests(model=settings.model, loss=settings.loss),
        }
        return cls(settings, dataset, model, loss, tuple(notes), digests)

    @cached_property
    def backend(self) -> Backend:
        """Where it is computed, chosen when first asked for: not by a process that hands on."""
        return select(self.settings.device)

    def identity(self, **counts: Any) -> dict[str, Any]:
        """What a run that continues a file must share.

        Args:
            counts: Settings as they turned out, e.g. how many batches there are.

        Returns:
            Plain values.
        """
        return {
            **self.settings.model_dump(mode="json", exclude={"checkpoint"}),
            "split": self.dataset.split,
            **counts,
            **{f"{name}_sha256": self.digests[name] for name in ("checkpoint", "data")},
            "parameters_sha256": self.digests["parameters"],
            **{name: value for name, value in self.digests.items() if name.endswith(SOURCE)},
        }

    def provenance(
        self, device: str, pool: Pool = SERIAL, leave_out: str = "", **changes: Any
    ) -> Provenance:
        """Where what is computed from these inputs comes from.

        Args:
            device: Where it is computed, in words.
            pool: Who computes it.
            leave_out: A setting that the file doesn't name.
            changes: Settings as they turned out.

        Returns:
            The provenance of a file.
        """
        config = {
            **self.settings.model_dump(mode="json", exclude={leave_out}),
            "split": self.dataset.split,
            **changes,
            "checkpoint_sha256": self.digests["checkpoint"],
            "embedded_data": self.dataset.embedded,
        }
        return Provenance(config, device, notes=(*self.notes, *computed_by(pool)))


def batch_size(asked: int | str, dataset: Dataset) -> int:
    """Samples in a batch.

    Args:
        asked: A number, or ``"all"``.
        dataset: The split.

    Returns:
        The number.

    Raises:
        ConfigError: If the split has fewer.
    """
    size = asked if isinstance(asked, int) else len(dataset)
    if size > len(dataset):
        raise ConfigError(
            f"batch {size} is larger than the {dataset.split} split of {dataset.name} "
            f"({len(dataset):,} samples)"
        )
    return size


def computed_by(pool: Pool) -> tuple[str, ...]:
    """The note that a file made by a pool carries.

    Returns:
        None for this process.
    """
    return (f"computed by {pool.words}",) if pool.words else ()


def digest(arrays: Iterable[np.ndarray]) -> str:
    """SHA-256 of the bytes, shapes and types of some arrays.

    Args:
        arrays: Of any kind.

    Returns:
        Hexadecimal.
    """
    found = hashlib.sha256()
    for array in arrays:
        found.update(f"{array.dtype.str}{array.shape}".encode())
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Say in every error which part of a run it happened in.

    Args:
        what: E.g. ``"batch 3"``.

    Yields:
        Nothing.
    """
    try:
        yield
    except HessrmtError as error:
        raise type(error)(f"{what}: {error}") from error


def make_folders(out: Path, *names: str) -> None:
    """Make the folders of a run where they are not there yet.

    Args:
        out: The folder of the run.
        names: Of folders in it.

    Raises:
        StoreError: If one cannot be made.
    """
    for name in names:
        try:
            (out / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            fail_writing(out / name, error)
