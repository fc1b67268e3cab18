"""``hessrmt landscape``: the loss of a network on a batch along leading eigenvectors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from hessrmt.curvature.landscape import landscape
from hessrmt.problems import data
from hessrmt.problems.problem import Problem
from hessrmt.runs.run import Inputs, batch_size

if TYPE_CHECKING:
    from pathlib import Path

    from hessrmt.config import LandscapeConfig
    from hessrmt.curvature.landscape import Landscape
    from hessrmt.progress import Tick


def run(
    config: LandscapeConfig, folder: Path | None = None, tick: Tick | None = None
) -> tuple[Landscape, tuple[str, ...]]:
    """Read network and data, and walk.

    Args:
        config: The settings.
        folder: Where to look for data first.
        tick: Told of progress.

    Returns:
        The landscape, and what the user must be told.
    """
    dataset = data.load(config.data, config.split, folder)
    size = batch_size(config.batch, dataset)
    inputs = Inputs.read(config, dataset)
    batch = dataset.tensors(slice(size), torch.float64, inputs.model)
    found = landscape(
        Problem(inputs.model, inputs.loss, batch, only=config.only),
        config.directions,
        points=config.points,
        span=config.span,
        operator=config.operator,
        device=config.device,
        dtype=config.dtype,
        seed=config.seed,
        tick=tick,
        provenance=inputs.provenance(inputs.backend.name, batch=size),
    )
    return found, inputs.notes
