"""Settings of ``hessrmt density``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from hessrmt.config.settings import Dtype, Settings


class DensityConfig(Settings):
    """Settings of ``hessrmt density``.

    Attributes:
        model: Registry name or ``file.py:factory``.
        data: Registry name, an ``.npz`` file or a directory of IDX files or CIFAR batches.
        split: ``train`` or ``test``; None means test, or everything where data have no splits.
        samples: The loss is the mean over so many samples from the start of the split, or ``all``.
        batch: Samples differentiated at a time.
        loss: Registry name or ``file.py:function``: a mean over samples.
        checkpoint: State dict to start from; None for the random initialisation of ``seed``.
        operator: ``hessian`` or ``ggn``.
        only: Pattern of the parameter names to take; None for all trainable ones.
        probes: Random vectors of the quadrature.
        steps: Lanczos steps from each.
        law: Of the probes' entries: ``rademacher`` (±1) or ``gaussian``.
        top: How many of the largest levels.
        bottom: How many of the smallest levels.
        largest: How many levels of largest magnitude instead.
        tolerance: Largest residual of a level over the norm of the matrix.
        check_multiplicity: Search for further copies of multiple levels.
        trace: ``hutch++`` or ``xtrace`` for trace and Frobenius norm; None for neither.
        trace_products: Products that they may take.
        device: ``auto``, ``cpu`` or ``cuda[:i]``.
        dtype: Precision of the whole computation.
        seed: The run's seed.
    """

    model: str = "mlp3"
    data: str = "mnist"
    split: Literal["train", "test"] | None = None
    samples: int | Literal["all"] = "all"
    batch: int = Field(256, ge=1)
    loss: str = "cross-entropy"
    checkpoint: Path | None = None
    operator: Literal["hessian", "ggn"] = "hessian"
    only: str | None = None
    probes: int = Field(10, ge=1)
    steps: int = Field(100, ge=1)
    law: Literal["rademacher", "gaussian"] = "rademacher"
    top: int = Field(0, ge=0)
    bottom: int = Field(0, ge=0)
    largest: int = Field(0, ge=0)
    tolerance: float = Field(1e-10, gt=0, lt=1)
    check_multiplicity: bool = True
    trace: Literal["hutch++", "xtrace"] | None = None
    trace_products: int = Field(60, ge=6)
    device: str = "auto"
    dtype: Dtype = "float64"
    seed: int = Field(0, ge=0)

    @field_validator("samples")
    @classmethod
    def _positive(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError("should be a positive integer, or 'all'")
        return value

    @model_validator(mode="after")
    def _one_kind_of_end(self) -> Self:
        if self.largest and (self.top or self.bottom):
            raise ValueError("largest takes levels of both ends; leave out top and bottom")
        return self
