"""``hessrmt density``: the spectrum of a network whose Hessian cannot be formed, piece by piece."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from hessrmt.curvature.density import DensityPlan, DensityResult, complete
from hessrmt.curvature.density_file import content, load_density, stored_identity
from hessrmt.curvature.operators import CurvatureOperator
from hessrmt.errors import ConfigError, StoreError
from hessrmt.problems import checkpoints, data, losses, models
from hessrmt.records import Provenance
from hessrmt.store.density import DensityWriter
from hessrmt.workflows.digest import digest

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from hessrmt.config.density import DensityConfig

Observer = Callable[[str, int, int], None]
"""Progress: phase, steps done and steps in all of that phase."""


@dataclass(frozen=True)
class Batches:
    """Micro-batches of a split, converted anew each time they are read.

    Attributes:
        dataset: The split.
        samples: How many from its start.
        size: Of a micro-batch.
        model: Whose inputs they are to be.
    """

    dataset: data.Dataset
    samples: int
    size: int
    model: nn.Module | None = None

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for first in range(0, self.samples, self.size):
            part = slice(first, min(first + self.size, self.samples))
            yield self.dataset.tensors(part, torch.float64, self.model)


@dataclass(frozen=True)
class Prepared:
    """Everything a run needs before anything is computed.

    Attributes:
        config: The settings.
        batches: The data.
        model: The network, initialised and loaded.
        notes: What the user must be told.
        identity: What a resumed run must share.
    """

    config: DensityConfig
    batches: Batches
    model: torch.nn.Module
    notes: tuple[str, ...]
    identity: dict[str, Any]


def prepare(config: DensityConfig, folder: Path | None = None) -> Prepared:
    """Load data, model and checkpoint.

    Args:
        config: The settings.
        folder: Where to look for data first.

    Returns:
        What :func:`run` needs.

    Raises:
        ConfigError: If there are fewer samples than asked for.
    """
    dataset = data.load(config.data, config.split, folder)
    samples = len(dataset) if config.samples == "all" else config.samples
    if samples > len(dataset):
        raise ConfigError(
            f"{samples:,} samples are asked for; the {dataset.split} split of {dataset.name} has "
            f"{len(dataset):,} (--samples all)"
        )
    notes = [f"data: {dataset.origin}"]
    model = models.build(config.model, dataset.input_shape, dataset.outputs, config.seed).eval()
    sha256 = ""
    if config.checkpoint is None:
        notes.append(f"parameters: random initialisation, seed {config.seed}")
    else:
        sha256 = checkpoints.load_into(model, config.checkpoint)
        notes.append(f"parameters: {config.checkpoint} (sha256 {sha256[:12]}…)")
    settings = config.model_dump(mode="json", exclude={"checkpoint"})
    return Prepared(
        config=config,
        batches=Batches(dataset, samples, config.batch, model),
        model=model,
        notes=tuple(notes),
        identity={
            **settings,
            "split": dataset.split,
            "samples": samples,
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
) -> DensityResult:
    """Compute what the file lacks; store every probe, the trace and the edge levels when done.

    Args:
        prepared: From :func:`prepare`.
        out: The density file.
        resume: Continue the file if it is there.
        overwrite: Replace the file if it is there.
        observer: Told of progress.

    Returns:
        The whole result.

    Raises:
        ConfigError: If both resume and overwrite are asked for.
    """
    if resume and overwrite:
        raise ConfigError("--resume and --overwrite exclude each other")
    config = prepared.config
    identity = json.loads(json.dumps(prepared.identity))
    with DensityWriter(out, overwrite=resume or overwrite) as writer:
        found = None
        if resume and os.path.exists(out):
            _check_identity(out, stored_identity(out), identity)
            found = load_density(out)
        operator = CurvatureOperator(
            prepared.model,
            losses.resolve(config.loss),
            prepared.batches,
            config.operator,
            device=config.device,
            dtype=config.dtype,
            only=config.only,
        )
        plan = DensityPlan(
            **{
                name: getattr(config, name)
                for name in DensityPlan.__dataclass_fields__  # the same names in the settings
            }
        )
        provenance = Provenance(
            config={
                **config.model_dump(mode="json", exclude={"batch"}),
                "micro_batch": config.batch,
                "split": prepared.identity["split"],
                "samples": prepared.identity["samples"],
                "checkpoint_sha256": prepared.identity["checkpoint_sha256"],
                "embedded_data": prepared.batches.dataset.embedded,
            },
            device=operator.backend.name,
            notes=prepared.notes,
        )
        return complete(
            operator,
            plan,
            found,
            save=lambda result: writer.write(content(result, identity)),
            tick=observer,
            provenance=provenance,
        )


def _check_identity(path: Path, stored: dict[str, Any], asked: dict[str, Any]) -> None:
    stored = {"check_multiplicity": True} | stored  # older files don't say so: there was no choice
    differing = [
        f"{key} ({stored.get(key)!r} in the file, {asked.get(key)!r} now)"
        for key in sorted({*stored, *asked})
        if stored.get(key) != asked.get(key)
    ]
    if differing:
        raise StoreError(
            f"{path} was made with another configuration: {'; '.join(differing)}. Use the same "
            "settings to resume, or a new file (--out)"
        )
