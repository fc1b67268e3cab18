"""``hessrmt normalize``: a trained network's losses and margins before and after normalisation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from hessrmt.backend.select import select
from hessrmt.errors import ConfigError
from hessrmt.generalization import evaluate, normalize, output_normalize
from hessrmt.problems import checkpoints, data, losses, models

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from hessrmt.config.normalize import NormalizeConfig
    from hessrmt.generalization import Evaluation
    from hessrmt.problems.data import Dataset

Observer = Callable[[str, int, int], None]
"""Progress: split, samples done and samples in all."""

_CHECKED = 64
"""Training samples on which the network must be homogeneous and the result is compared."""


@dataclass(frozen=True, eq=False)
class NormalizeResult:
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
            "factors": dict(self.factors),
            "margins": margins,
            "deviation": self.deviation,
            "folded": list(self.folded),
            "checkpoint_sha256": self.checkpoint_sha256,
            "device": self.device,
            "notes": list(self.notes),
        }


def run(
    settings: NormalizeConfig, *, folder: Path | None = None, observer: Observer | None = None
) -> NormalizeResult:
    """Normalise a trained network and measure it on both splits, in float64.

    Args:
        settings: What and how.
        folder: Folder searched first for data sets.
        observer: Told of progress.

    Returns:
        Losses, errors, norms and margins.

    Raises:
        ConfigError: If ``reference`` asks for more training samples than there are.
    """
    backend = select(settings.device)
    loss = losses.resolve(settings.loss)
    train, test = _splits(settings.data, folder)
    if settings.reference > len(train):
        raise ConfigError(
            f"reference is {settings.reference:,}, but there are {len(train):,} training samples"
        )
    notes = [f"data: {train.origin}"]
    model = models.build(settings.model, train.input_shape, train.outputs, settings.seed)
    sha256 = ""
    if settings.checkpoint is None:
        notes.append(f"parameters: random initialisation, seed {settings.seed}")
    else:
        sha256 = checkpoints.load_into(model, settings.checkpoint)
        notes.append(f"parameters: {settings.checkpoint} (sha256 {sha256[:12]}…)")
    model = model.to(device=backend.device, dtype=torch.float64)
    if settings.by == "layers":
        found = normalize(model, train.tensors(slice(_CHECKED))[0], settings.norm)
    else:
        fixed = train.tensors(slice(settings.reference))[0]
        found = output_normalize(model, fixed, settings.norm)
    measured = [
        None
        if samples is None
        else evaluate(model, _batches(samples, settings.batch, observer), loss, found.product)
        for samples in (train, test)
    ]
    assert measured[0] is not None
    return NormalizeResult(
        train=measured[0],
        test=measured[1],
        factors=found.factors,
        product=found.product,
        deviation=found.deviation,
        folded=tuple(name for layer in found.layers for name in (*layer.before, *layer.after)),
        checkpoint_sha256=sha256,
        device=backend.name,
        notes=tuple(notes),
    )


def _splits(spec: str, folder: Path | None) -> tuple[Dataset, Dataset | None]:
    found = data.load(spec, None, folder)
    if found.split == "all":
        return found, None
    return data.load(spec, "train", folder), found


def _batches(
    samples: Dataset, batch: int, observer: Observer | None
) -> Iterator[tuple[Tensor, Tensor]]:
    for first in range(0, len(samples), batch):
        yield samples.tensors(slice(first, first + batch))
        if observer is not None:
            observer(samples.split, min(first + batch, len(samples)), len(samples))
