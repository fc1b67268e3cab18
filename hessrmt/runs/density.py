"""``hessrmt density``: the spectrum of a network whose Hessian cannot be formed, piece by piece."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from hessrmt.config import window_bounds
from hessrmt.curvature.density import (
    DensityPlan,
    DensityResult,
    complete,
    content,
    load_density,
    stored_identity,
)
from hessrmt.curvature.operators import CurvatureOperator
from hessrmt.errors import ConfigError
from hessrmt.problems import data, losses
from hessrmt.runs.run import Inputs
from hessrmt.store.density import DensityWriter
from hessrmt.store.files import require_same

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from hessrmt.config import DensityConfig
    from hessrmt.progress import Tick


@dataclass(frozen=True)
class MicroBatches:
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


def prepare(config: DensityConfig, folder: Path | None = None) -> Inputs:
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
    if config.samples != "all" and config.samples > len(dataset):
        raise ConfigError(
            f"{config.samples:,} samples are asked for; the {dataset.split} split of "
            f"{dataset.name} has {len(dataset):,} (--samples all)"
        )
    return Inputs.read(config, dataset)


def run(
    prepared: Inputs,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    tick: Tick | None = None,
) -> DensityResult:
    """Compute what the file lacks; store each probe, the trace and extreme eigenvalues when done.

    Args:
        prepared: From :func:`prepare`.
        out: The density file.
        resume: Continue the file if it is there.
        overwrite: Replace the file if it is there.
        tick: Told of progress.

    Returns:
        The whole result.
    """
    config, dataset = prepared.settings, prepared.dataset
    samples = len(dataset) if config.samples == "all" else config.samples
    identity = prepared.identity(samples=samples)
    with DensityWriter(out, resume=resume, overwrite=overwrite) as file:
        found = None
        if resume and os.path.exists(out):
            # older files don't say what there was no choice of
            older = {
                "check_multiplicity": True,
                "products": "differentiation",
                "window": None,
                "failure_probability": 1e-6,
            }
            require_same(out, older | stored_identity(out), identity)
            found = load_density(out)
        operator = CurvatureOperator(
            prepared.model,
            losses.resolve(config.loss),
            MicroBatches(dataset, samples, config.batch, prepared.model),
            config.operator,
            device=config.device,
            dtype=config.dtype,
            only=config.only,
            products=config.products,
        )
        names = DensityPlan.__dataclass_fields__  # the same in the settings
        planned: dict[str, Any] = {name: getattr(config, name) for name in names}
        if config.window is not None:
            planned["window"] = window_bounds(config.window)
        provenance = prepared.provenance(
            operator.backend.name, leave_out="batch", micro_batch=config.batch, samples=samples
        )
        return complete(
            operator,
            DensityPlan(**planned),
            found,
            save=lambda result: file.write(content(result, identity)),
            tick=tick,
            provenance=provenance,
        )
