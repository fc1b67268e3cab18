"""Settings of the commands that work on networks and on spectrum files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from hessrmt.config.settings import Dtype, Settings, number_or_text


class SpectrumConfig(Settings):
    """Settings of ``hessrmt spectrum``.

    Attributes:
        model: Registry name or ``file.py:factory``.
        data: Registry name, an ``.npz`` file or a directory of IDX files or CIFAR batches.
        batch: Samples in a batch, or ``"all"`` for one batch of the whole split.
        split: ``train`` or ``test``; None means test, or everything where data have no splits.
        batches: How many batches from the start of the split, or ``"all"``.
        loss: Registry name or ``file.py:function``.
        checkpoint: State dict to start from; None for the random initialisation of ``seed``.
        operator: ``hessian`` or ``ggn``.
        reduce: ``auto`` removes exact null directions first, ``none`` does not.
        only: Pattern of the parameter names to take, e.g. ``7.*``; None for all trainable ones.
        blocks: ``layer`` for the own block of every layer; None for the whole matrix.
        device: ``auto``, ``cpu`` or ``cuda[:i]``.
        dtype: Precision of the whole computation.
        seed: The run's seed.
    """

    model: str = "mlp3"
    data: str = "mnist"
    batch: int | Literal["all"] = 64
    split: Literal["train", "test"] | None = None
    batches: int | Literal["all"] = 4
    loss: str = "cross-entropy"
    checkpoint: Path | None = None
    operator: Literal["hessian", "ggn"] = "hessian"
    reduce: Literal["auto", "none"] = "auto"
    only: str | None = None
    blocks: Literal["layer"] | None = None
    device: str = "auto"
    dtype: Dtype = "float64"
    seed: int = Field(0, ge=0)

    @field_validator("batch", "batches")
    @classmethod
    def _positive(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError("should be a positive integer, or 'all'")
        return value


class TrainConfig(Settings):
    """Settings of ``hessrmt train``; the defaults are the protocol of [B] §4 (PHYSICS §1).

    The learning rate is ``lr`` up to epoch ``decay_start``, falls linearly to ``final_lr`` at
    ``decay_end`` and stays there.
    """

    model: str = "mlp3"
    data: str = "mnist"
    loss: str = "cross-entropy"
    epochs: int = Field(300, ge=1)
    batch: int = Field(128, ge=1)
    lr: float = Field(0.003, gt=0, allow_inf_nan=False)
    final_lr: float = Field(0.00003, ge=0, allow_inf_nan=False)
    decay_start: int = Field(150, ge=0)
    decay_end: int = Field(270, ge=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(5e-4, ge=0, allow_inf_nan=False)
    device: str = "auto"
    dtype: Dtype = "float32"
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _decay_in_order(self) -> Self:
        if self.decay_end < self.decay_start:
            raise ValueError("decay_end comes before decay_start")
        return self


class LevelsConfig(Settings):
    """Settings of ``hessrmt levels``.

    Attributes:
        cutoff: ``certified``, ``paper`` (|λ| > 1e-20) or a number: |λ| must exceed it.
        compare: Do it with the cutoffs ``paper`` and ``certified`` and put them side by side.
        unfold: ``auto`` or a method of unfolding, options after a colon: ``polynomial:degree=7``.
        rotate: Pooled unfolding: use every spectrum; false is the published ⅔/⅓ split.
        window: ``LOW:HIGH``, the lowest and highest level taken; None for all.
        surrogates: Surrogate data sets for each p-value; 0 for none.
        seed: Of folds and surrogates.
    """

    cutoff: float | Literal["certified", "paper"] = "certified"
    compare: bool = False
    unfold: str = "auto"
    rotate: bool = True
    window: str | None = None
    surrogates: int = Field(200, ge=0, le=100_000)
    seed: int = Field(0, ge=0)

    @property
    def range(self) -> tuple[float, float] | None:
        """The window as two numbers."""
        if self.window is None:
            return None
        low, _, high = self.window.partition(":")
        return float(low or "-inf"), float(high or "inf")

    @property
    def method(self) -> tuple[str, dict[str, int | float | str]]:
        """Unfolding method and its options."""
        name, _, rest = self.unfold.partition(":")
        options: dict[str, int | float | str] = {}
        for part in filter(None, rest.split(",")):
            key, _, value = part.partition("=")
            options[key.strip()] = number_or_text(value.strip())
        return name.strip(), options

    @field_validator("cutoff", mode="before")
    @classmethod
    def _name_or_number(cls, value: Any) -> Any:
        known = ("certified", "paper")
        if isinstance(value, str) and isinstance(number_or_text(value), str) and value not in known:
            raise ValueError("should be certified, paper or a number")
        return value

    @field_validator("window")
    @classmethod
    def _two_numbers(cls, value: str | None) -> str | None:
        if value is None:
            return None
        low, colon, high = value.partition(":")
        try:
            numbers = float(low or "-inf"), float(high or "inf")
        except ValueError:
            numbers = (0.0, 0.0)
        if not (colon and numbers[0] < numbers[1]):
            raise ValueError("should be LOW:HIGH with LOW < HIGH, e.g. 1e-6:0.1 or 1e-6:")
        return value

    @field_validator("unfold")
    @classmethod
    def _pairs(cls, value: str) -> str:
        parts = filter(None, value.partition(":")[2].split(","))
        if not all(part.partition("=")[0] and part.partition("=")[2] for part in parts):
            raise ValueError("should be METHOD or METHOD:OPTION=VALUE,..., e.g. spline:knots=20")
        return value
