"""``hessrmt spectrum``: batches of a split in file order, one certified spectrum each."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hessrmt.backend.select import select
from hessrmt.curvature.spectrum import compute, require_feasible
from hessrmt.errors import ConfigError, HessrmtError
from hessrmt.problems import checkpoints, data, losses, models
from hessrmt.problems.problem import Problem
from hessrmt.records import Provenance, Spectra
from hessrmt.store.hdf5 import load
from hessrmt.store.writer import SpectrumWriter
from hessrmt.workflows.digest import digest

if TYPE_CHECKING:
    from hessrmt.config import SpectrumConfig

Observer = Callable[[int, str, int, int], None]
"""Progress: batch number, phase, steps done and steps in all of that phase."""


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
    """

    config: SpectrumConfig
    dataset: data.Dataset
    model: torch.nn.Module
    loss: Any
    batch_indices: np.ndarray
    notes: tuple[str, ...]
    identity: dict[str, Any]

    def problem(self, batch: int) -> Problem:
        """The problem of one batch.

        Returns:
            Model, loss and that batch's samples in double precision.
        """
        pair = self.dataset.tensors(self.batch_indices[batch], torch.float64)
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
    )


def run(
    prepared: Prepared,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    observer: Observer | None = None,
) -> Spectra:
    """Compute every batch that the file lacks and store each as it is done.

    Args:
        prepared: From :func:`prepare`.
        out: The spectrum file.
        resume: Continue the file if it is there.
        overwrite: Replace the file if it is there.
        observer: Told of progress.

    Returns:
        The spectra of the whole file.

    Raises:
        ConfigError: If both resume and overwrite are asked for.
        DataError: If the batch cannot be used; the message names it.
        NonFiniteError: If a loss or Hessian is not finite; the message names the batch.
    """
    if resume and overwrite:
        raise ConfigError("--resume and --overwrite exclude each other")
    config = prepared.config
    backend = select(config.device)
    with _naming_batch(0):  # what cannot be computed must not cost an existing file
        first = prepared.problem(0)
        require_feasible(first, backend, config.dtype, config.operator, config.reduce)
    if resume and os.path.exists(out):
        writer = SpectrumWriter.resume(out, prepared.identity)
    else:
        writer = SpectrumWriter.create(
            out,
            identity=prepared.identity,
            solver=backend.solver,
            dimension=first.dimension,
            batch_indices=prepared.batch_indices,
            provenance=Provenance(
                config={
                    **config.model_dump(mode="json"),
                    "split": prepared.dataset.split,
                    "batches": len(prepared.batch_indices),
                    "checkpoint_sha256": prepared.identity["checkpoint_sha256"],
                    "embedded_data": prepared.dataset.embedded,
                },
                device=backend.name,
                notes=prepared.notes,
            ),
            overwrite=overwrite,
        )
    with writer:
        for batch in np.flatnonzero(~writer.done):
            number = int(batch)
            with _naming_batch(number):
                found = compute(
                    prepared.problem(number),
                    backend,
                    config.dtype,
                    config.operator,
                    config.reduce,
                    tick=partial(observer, number) if observer else None,
                )
            writer.write(number, found)
            if observer:
                observer(number, "stored", 1, 1)
    return load(out)


@contextmanager
def _naming_batch(batch: int) -> Iterator[None]:
    """Say in every error which batch it happened in."""
    try:
        yield
    except HessrmtError as error:
        raise type(error)(f"batch {batch}: {error}") from error
