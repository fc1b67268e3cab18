"""Settings of the experiments ``iterate-averaging`` and ``training-budget`` ([B] §8)."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from hessrmt.config import Settings


class AveragedNetwork(Settings):
    """One network of ``iterate-averaging`` and how its Hessians are computed.

    Attributes:
        model: Registry name or ``file.py:factory``.
        spectra: Seeds whose Hessians are computed; 0 for none.
        batch: Training samples of a Hessian, or ``"all"``.
        batches: Hessians of each point.
        only: Pattern of the parameter names that the Hessian is taken of; None for all.
    """

    model: str
    spectra: int = Field(0, ge=0)
    batch: int | Literal["all"] = 128
    batches: int = Field(1, ge=1)
    only: str | None = None

    @field_validator("batch")
    @classmethod
    def _positive(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError("should be a positive integer, or 'all'")
        return value


class AveragedRate(Settings):
    """One learning rate of ``iterate-averaging``.

    Attributes:
        name: Of the runs; also part of file names.
        lr: Learning rate; of the whole run if ``final_lr`` is None.
        final_lr: Reached at nine tenths of the run, falling linearly from half of it on.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.]*$")
    lr: float = Field(gt=0, allow_inf_nan=False)
    final_lr: float | None = Field(None, ge=0, allow_inf_nan=False)


class IterateAveragingPreset(Settings):
    """One size of the experiment ``iterate-averaging``.

    Attributes:
        networks: What is trained.
        rates: At which learning rates; each network at each.
        epochs: Budget of every run.
        tail_start: Epoch after which the tail average begins.
        batch: Samples in a step.
        momentum: Of SGD.
        weight_decay: Of SGD.
        seeds: Runs of each network at each rate.
        measure_every: Epochs between measurements of losses and errors.
    """

    networks: tuple[AveragedNetwork, ...] = Field(min_length=1)
    rates: tuple[AveragedRate, ...] = Field(min_length=1)
    epochs: int = Field(ge=1)
    tail_start: int = Field(ge=0)
    batch: int = Field(128, ge=1)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(5e-4, ge=0, allow_inf_nan=False)
    seeds: int = Field(1, ge=1)
    measure_every: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.tail_start >= self.epochs:
            raise ValueError(
                f"tail_start {self.tail_start} leaves no iterate to average in {self.epochs} "
                "epochs; begin earlier"
            )
        for what, names in (
            ("rates", [rate.name for rate in self.rates]),
            ("networks", [network.model for network in self.networks]),
        ):
            if len(set(names)) < len(names):
                raise ValueError(f"two {what} have the same name")
        return self


class IterateAveragingConfig(Settings):
    """Settings of ``hessrmt reproduce iterate-averaging``.

    Attributes:
        experiment: Its name.
        title: One line about it.
        data: Registry name, ``.npz`` file or directory of IDX files or CIFAR batches; with a test
            split.
        device: ``auto``, ``cpu`` or ``cuda[:i]``.
        seed: Of everything random.
        presets: Name to size.
    """

    experiment: Literal["iterate-averaging"]
    title: str = ""
    data: str = "mnist"
    device: str = "auto"
    seed: int = Field(0, ge=0)
    presets: dict[str, IterateAveragingPreset] = Field(min_length=1)


class BudgetPreset(Settings):
    """One size of the experiment ``training-budget``.

    Attributes:
        model: Registry name or ``file.py:factory``.
        budgets: Epochs of each run, ascending.
        lr: First learning rate; a tenth of it from a third of the budget on, a hundredth from two
            thirds on.
        batch: Samples in a step.
        momentum: Of SGD.
        weight_decay: Of SGD.
        seeds: Runs of each budget.
    """

    model: str
    budgets: tuple[int, ...] = Field(min_length=1)
    lr: float = Field(0.1, gt=0, allow_inf_nan=False)
    batch: int = Field(128, ge=1)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(1e-4, ge=0, allow_inf_nan=False)
    seeds: int = Field(1, ge=1)

    @field_validator("budgets")
    @classmethod
    def _ascending(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if value[0] < 1 or any(b <= a for a, b in pairwise(value)):
            raise ValueError("should be positive numbers of epochs, ascending")
        return value


class BudgetConfig(Settings):
    """Settings of ``hessrmt reproduce training-budget``.

    Attributes:
        experiment: Its name.
        title: One line about it.
        data: Registry name, ``.npz`` file or directory of IDX files or CIFAR batches; its test
            split validates.
        device: ``auto``, ``cpu`` or ``cuda[:i]``.
        seed: Of everything random.
        presets: Name to size.
    """

    experiment: Literal["training-budget"]
    title: str = ""
    data: str = "mnist"
    device: str = "auto"
    seed: int = Field(0, ge=0)
    presets: dict[str, BudgetPreset] = Field(min_length=1)
