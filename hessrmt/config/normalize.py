"""Settings of ``hessrmt normalize``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from hessrmt.config.settings import Settings


class NormalizeConfig(Settings):
    """Settings of ``hessrmt normalize``.

    Attributes:
        model: Registry name or ``file.py:factory``.
        data: Registry name, an ``.npz`` file or a directory of IDX files or CIFAR batches.
        loss: Registry name or ``file.py:function``.
        checkpoint: State dict of the trained network; None for the random initialisation of
            ``seed``.
        norm: p of the norms, at least 1; infinity for the largest element.
        by: ``layers`` divides every layer by its norm; ``output`` the network by the norm of its
            output on the first training samples, for networks that are not homogeneous.
        reference: How many of them.
        batch: Samples computed at a time.
        device: ``auto``, ``cpu`` or ``cuda[:i]``.
        seed: Of the initialisation.
    """

    model: str = "mlp3"
    data: str = "mnist"
    loss: str = "cross-entropy"
    checkpoint: Path | None = None
    norm: float = Field(2, ge=1)
    by: Literal["layers", "output"] = "layers"
    reference: int = Field(1, ge=1)
    batch: int = Field(1024, ge=1)
    device: str = "auto"
    seed: int = Field(0, ge=0)
