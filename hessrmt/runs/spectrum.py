"""``hessrmt spectrum``: batches of a split in file order, one certified spectrum each."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from hessrmt.curvature.spectrum import compute, layers_of, require_feasible
from hessrmt.errors import ConfigError
from hessrmt.problems import data
from hessrmt.problems.problem import Problem
from hessrmt.progress import under
from hessrmt.runs.run import SERIAL, Inputs, Run, batch_size, naming
from hessrmt.store.search import SearchFile
from hessrmt.store.spectra import load_all
from hessrmt.store.writing import Row, SpectrumWriter

if TYPE_CHECKING:
    from hessrmt.config import SpectrumConfig
    from hessrmt.curvature.spectrum import Begun
    from hessrmt.progress import Tick
    from hessrmt.records import Spectra, Spectrum
    from hessrmt.runs.run import Pool

    Known = dict[tuple[int, str], Begun]

Finished = Callable[[int, Row], None]
"""Results as they come: batch number and spectrum."""


class Facts(NamedTuple):
    """What the file says of a run, known where it is done.

    Attributes:
        solver: Eigenvalue routine.
        dimension: P, or name to P for blocks.
        device: In words.
    """

    solver: str
    dimension: int | dict[str, int]
    device: str


@dataclass(frozen=True)
class Batches(Inputs):
    """A network and the batches of a split.

    Attributes:
        batch_indices: (batches, B) positions in the split.
    """

    batch_indices: np.ndarray

    @property
    def count(self) -> int:
        """How many batches there are."""
        return len(self.batch_indices)

    def problem(self, batch: int) -> Problem:
        """The problem of one batch.

        Args:
            batch: Its number.

        Returns:
            Model, loss and that batch's samples in double precision.
        """
        pair = self.dataset.tensors(self.batch_indices[batch], torch.float64, self.model)
        return Problem(self.model, self.loss, pair, only=self.settings.only)

    def blocks(self, batch: int) -> dict[str, Problem]:
        """The problems of a batch: one for each block, or one without a name.

        Args:
            batch: Its number.

        Returns:
            Name to problem.
        """
        problem = self.problem(batch)
        if self.settings.blocks is None:
            return {"": problem}
        return {name: problem.restricted(only) for name, only in layers_of(problem).items()}

    def writer(
        self,
        out: Path,
        facts: Facts,
        pool: Pool = SERIAL,
        *,
        resume: bool,
        overwrite: bool,
        **identity: Any,
    ) -> SpectrumWriter:
        """The file that the spectra are written to.

        Args:
            out: Its name.
            facts: Of the run.
            pool: Where batches are computed.
            resume: Continue the file if it is there.
            overwrite: Replace the file if it is there.
            identity: What else a run that continues it must share.

        Returns:
            The writer, to be closed.
        """
        return SpectrumWriter(
            out,
            identity={**self.identity(batches=self.count), **identity},
            solver=facts.solver,
            dimension=facts.dimension,
            batch_indices=self.batch_indices,
            provenance=self.provenance(facts.device, pool, batches=self.count),
            resume=resume,
            overwrite=overwrite,
        )


def prepare(config: SpectrumConfig, folder: Path | None = None) -> Batches:
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
    size = batch_size(config.batch, dataset)
    available = len(dataset) // size
    count = config.batches if isinstance(config.batches, int) else available
    if config.batch == "all":
        count = 1
    if count > available:
        raise ConfigError(
            f"{count} batches of {size} need {count * size:,} samples; the "
            f"{dataset.split} split of {dataset.name} has {len(dataset):,}, enough for "
            f"{available} (--batches all)"
        )
    found = Inputs.read(config, dataset)
    notes, left = found.notes, len(dataset) - available * size
    if config.batches == "all" and left:
        note = (
            f"the last {left} samples do not fill a batch and are left out: a smaller batch has "
            "another scale"
        )
        notes = (notes[0], note, *notes[1:])
    indices = np.arange(count * size).reshape(count, size)
    return Batches(**{**vars(found), "notes": notes}, batch_indices=indices)


def run(
    prepared: Batches,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    tick: Tick | None = None,
    finished: Finished | None = None,
    pool: Pool = SERIAL,
    folder: Path | None = None,
) -> Spectra:
    """Compute every batch that the file lacks and store each as it is done.

    Args:
        prepared: From :func:`prepare`.
        out: The spectrum file.
        resume: Continue the file if it is there; with more batches it is extended. A search for
            the range of a large Hessian, kept beside the file every two minutes, is continued too.
        overwrite: Replace the file if it is there.
        tick: Told of progress: the phases of each batch that is computed in this process.
        finished: Given every spectrum of the file: of a file that is continued first those that it
            holds, then each as soon as it is stored. A pool of several workers stores batches in
            the order in which they are done.
        pool: Where batches are computed. This process alone writes the file.
        folder: Where workers look for data first.

    Returns:
        The spectra of the whole file; for a file of blocks those of the first.
    """
    work = Run(prepare, prepared.settings, folder, pool=pool, prepared=prepared)
    begun: Known = {}
    examine = partial(_examine, begun=begun) if pool.local else _examine
    facts = work.on_one(examine, 0)  # what cannot be computed must not cost an existing file
    with prepared.writer(out, facts, pool, resume=resume, overwrite=overwrite) as file:
        tell_stored(file, finished)
        missing = np.flatnonzero(~file.done).tolist()
        if 0 not in missing:
            begun.clear()
        blocks = [""] if isinstance(facts.dimension, int) else list(facts.dimension)
        searches = {n: [_search(out, n, name) for name in blocks] for n in missing}
        if not resume:
            for name in itertools.chain.from_iterable(searches.values()):
                name.unlink(missing_ok=True)
        # workers may see another disk
        step = partial(_compute, tick=tick, out=out, begun=begun) if pool.local else _compute
        for number, found in work.on_all(step, missing):
            file.write(number, found)
            for name in searches[number]:
                name.unlink(missing_ok=True)
            if finished:
                finished(number, found)
    return next(iter(load_all(out).values()))


def tell_stored(file: SpectrumWriter, finished: Finished | None) -> None:
    """Pass on the spectra that a file holds before the run adds to it.

    Args:
        file: Its writer.
        finished: Given each of them, in the order of batches.
    """
    stored = np.flatnonzero(file.done).tolist()
    if not finished or not stored:
        return
    found = load_all(file.path)
    for place, number in enumerate(stored):
        row: dict[Any, Spectrum] = {name: spectra[place] for name, spectra in found.items()}
        finished(number, row.get(None, row))


def _examine(prepared: Batches, batch: int, begun: Known | None = None) -> Facts:
    """Raise what computing would raise at once; of a matrix in one piece note what was found."""
    config, backend = prepared.settings, prepared.backend
    with naming(f"batch {batch}"):
        parts = prepared.blocks(batch)
        for name, part in parts.items():
            found = require_feasible(part, backend, config.dtype, config.operator, config.reduce)
            if begun is not None and len(parts) == 1:  # those of several would be held together
                begun[batch, name] = found
    sizes = {name: part.dimension for name, part in parts.items()}
    return Facts(backend.solver, sizes[""] if config.blocks is None else sizes, backend.name)


def _search(out: Path, batch: int, block: str) -> Path:
    """Where the search for the range of a batch's Hessian, or of a block of it, is kept."""
    return out.with_name(f"{out.name}.batch{batch}{block and f'.{block}'}.search")


def _compute(
    prepared: Batches,
    batch: int,
    tick: Tick | None = None,
    out: Path | None = None,
    begun: Known | None = None,
) -> Row:
    config, backend = prepared.settings, prepared.backend
    name, known = f"batch {batch}", {} if begun is None else begun
    told = under(tick, f"computing: {name}, ")  # one bar, whichever batch it is
    how = config.dtype, config.operator, config.reduce
    with naming(name):
        found: dict[str, Any] = {}
        for part, problem in prepared.blocks(batch).items():
            with nullcontext() if out is None else SearchFile(_search(out, batch, part)) as kept:
                options = {"tick": told, "kept": kept, "begun": known.pop((batch, part), None)}
                found[part] = compute(problem, backend, *how, **options)
    return found[""] if config.blocks is None else found
