"""``hessrmt normalize``: a trained network's losses and margins before and after normalisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from hessrmt.errors import ConfigError
from hessrmt.generalization import evaluate, normalize, output_normalize
from hessrmt.problems import losses
from hessrmt.results import Result, plain
from hessrmt.runs.run import Inputs
from hessrmt.runs.training import Splits

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from torch import Tensor

    from hessrmt.config import NormalizeConfig
    from hessrmt.generalization import Evaluation
    from hessrmt.problems.data import Dataset
    from hessrmt.progress import Tick

_PLAIN = ("factors", "deviation", "folded", "checkpoint_sha256", "device", "notes")
"""Attributes of the result that its plain values have under the same names."""

_CHECKED = 64
"""Training samples on which the network must be homogeneous and the result is compared."""


@dataclass(frozen=True, eq=False)
class NormalizeResult(Result):
    """A network measured before and after normalisation.

    Attributes:
        train: Over the training samples, or over everything where data have no splits.
        test: Over the test samples; None where there are none.
        factors: Name of the layer, or ``output``, to ρ_k.
        product: Πρ_k.
        deviation: Largest |f̃ Πρ_k - f| over the largest |f| on the first training samples.
        folded: BatchNorm modules folded into layers.
        checkpoint_sha256: Of the checkpoint, hexadecimal; empty where there is none.
        device: In words.
        notes: Anything a reader must know.
    """

    train: Evaluation
    test: Evaluation | None
    factors: Mapping[str, float]
    product: float
    deviation: float
    folded: tuple[str, ...]
    checkpoint_sha256: str
    device: str
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values, e.g. for JSON.

        Returns:
            Name to value; None for what the data do not have.
        """
        numbers: dict[str, Any] = {}
        margins: dict[str, Any] = {}
        for split, found in (("train", self.train), ("test", self.test)):
            numbers |= {
                f"{split}_loss": None if found is None else found.loss,
                f"normalized_{split}_loss": None if found is None else found.normalized_loss,
                f"{split}_error": None if found is None else found.error,
            }
            summary = None if found is None else found.margins
            margins[split] = None if summary is None else summary.to_dict()
        return {
            **numbers,
            "product_norm": self.product,
            "margins": margins,
            **{name: plain(getattr(self, name)) for name in _PLAIN},
        }


def run(
    settings: NormalizeConfig, *, folder: Path | None = None, tick: Tick | None = None
) -> NormalizeResult:
    """Normalise a trained network and measure it on both splits, in float64.

    Args:
        settings: What and how.
        folder: Folder searched first for data sets.
        tick: Told of progress.

    Returns:
        Losses, errors, norms and margins.

    Raises:
        ConfigError: If ``reference`` asks for more training samples than there are.
    """
    splits = Splits.load(settings.data, folder)
    samples = splits.train
    if settings.reference > len(samples):
        raise ConfigError(
            f"reference is {settings.reference:,}, but there are {len(samples):,} training samples"
        )
    inputs = Inputs.read(settings, samples)
    loss = losses.resolve(settings.loss)
    model = inputs.model.to(device=inputs.backend.device, dtype=torch.float64)
    if settings.by == "layers":
        found = normalize(model, samples.tensors(slice(_CHECKED))[0], settings.norm)
    else:
        fixed = samples.tensors(slice(settings.reference))[0]
        found = output_normalize(model, fixed, settings.norm)

    def measured(part: Dataset) -> Evaluation:
        return evaluate(model, _batches(part, settings.batch, tick), loss, found.product)

    return NormalizeResult(
        train=measured(samples),
        test=None if splits.test is None else measured(splits.test),
        factors=found.factors,
        product=found.product,
        deviation=found.deviation,
        folded=tuple(name for layer in found.layers for name in (*layer.before, *layer.after)),
        checkpoint_sha256=inputs.digests["checkpoint"],
        device=inputs.backend.name,
        notes=inputs.notes,
    )


def _batches(samples: Dataset, batch: int, tick: Tick | None) -> Iterator[tuple[Tensor, Tensor]]:
    for first in range(0, len(samples), batch):
        yield samples.tensors(slice(first, first + batch))
        if tick is not None:
            tick(f"measuring {samples.split}", min(first + batch, len(samples)), len(samples))
