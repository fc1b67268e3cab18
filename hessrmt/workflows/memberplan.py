"""What one network of a family is to be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import Tensor

    from hessrmt.config import Family
    from hessrmt.problems.data import Dataset


@dataclass(frozen=True, eq=False)
class Plan:
    """What one network is to be.

    Attributes:
        family: Its family.
        value: Of what is varied.
        seed: Of everything random in it.
        train: Training samples with the family's labels.
        test: Test samples with the family's labels.
        fixed: (1, ...) float64, the first training sample of the data set.
        device: Where to compute.
        identity: What a continued run must share, in one text.
        checkpoint: File of the network in training.
        final: File of the trained network.
    """

    family: Family
    value: float
    seed: int
    train: Dataset
    test: Dataset
    fixed: Tensor
    device: torch.device
    identity: str
    checkpoint: Path
    final: Path

    @property
    def model(self) -> str:
        """Registry name or ``file.py:factory``."""
        return self.family.model_of(self.value)
