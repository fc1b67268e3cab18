"""Settings of the experiments ``puzzles-*``: families of trained networks, after [G]."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from hessrmt.config import Settings

WIDTH = "{width}"
"""What stands for the width in the name of a model."""

_RANGES = {
    "initial-scale": "standard deviations, above 0",
    "corruption": "shares of the labels, 0 to 1",
    "width": "whole numbers from 1 on",
    "samples": "whole numbers from 1 on",
}


class Family(Settings):
    """Networks that differ in one thing, which is varied; one HDF5 file.

    A value may be there several times: these networks differ in their random numbers only.

    Attributes:
        name: Of the family, also of its file.
        vary: What differs: the standard deviation of the initial weights, the share of labels that
            were permuted in pre-training, the width of the network, the number of samples.
        values: Of what differs, one for each network.
        model: Registry name or ``file.py:factory``; for widths with the placeholder ``{width}``.
        data: Registry name, ``.npz`` file or directory of IDX files or CIFAR batches.
        labels: ``random``: training and test labels are drawn at random.
        samples: Training samples, the first of a fixed permutation; the test split is used whole.
        initial_scale: Standard deviation s of the initial weights, N(0, s²) with biases 0; None
            for torch's default law.
        pretraining: Epochs on the corrupted labels.
        epochs: Epochs on the family's own labels, at most.
        batch: Samples in a batch.
        rates: Learning rates of equal pieces of ``epochs``; pre-training uses the first.
        momentum: Of SGD; starts from rest after pre-training.
        weight_decay: Of SGD.
        augment: Random crops (padding 4) and horizontal flips of the training images.
        stop_loss: Training ends once the training error is 0 and the mean training loss, in
            evaluation mode, is at most this; None for all epochs.
        reference_loss: Keep the epoch whose training loss is closest to it, the first of equals;
            None keeps the last.
        measure_every: Losses are measured after every so manieth epoch, and after the last.
        norm: p of the norms of the weights, at least 1; infinity for the largest element.
        by: ``layers`` divides by the norms of all layers; ``output`` by the norm of the output on
            the first training sample of the data set.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    vary: Literal["initial-scale", "corruption", "width", "samples"]
    values: tuple[float, ...] = Field(min_length=1)
    model: str
    data: str = "mnist"
    labels: Literal["natural", "random"] = "natural"
    samples: int | Literal["all"] = "all"
    initial_scale: float | None = Field(None, gt=0, allow_inf_nan=False)
    pretraining: int = Field(0, ge=0)
    epochs: int = Field(ge=1)
    batch: int = Field(100, ge=1)
    rates: tuple[float, ...] = Field(min_length=1)
    momentum: float = Field(0.0, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0, allow_inf_nan=False)
    augment: bool = False
    stop_loss: float | None = Field(None, gt=0, allow_inf_nan=False)
    reference_loss: float | None = Field(None, gt=0, allow_inf_nan=False)
    measure_every: int = Field(1, ge=1)
    norm: float = Field(2.0, ge=1)
    by: Literal["layers", "output"] = "layers"

    @field_validator("samples")
    @classmethod
    def _some(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError("should be at least 1, or all")
        return value

    @field_validator("rates")
    @classmethod
    def _positive(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 < rate < float("inf") for rate in value):
            raise ValueError("learning rates should be positive and finite")
        return value

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        whole = self.vary in {"width", "samples"}
        for value in self.values:
            good = {
                "initial-scale": 0 < value < float("inf"),
                "corruption": 0 <= value <= 1,
            }.get(self.vary, value >= 1)
            if not good or (whole and not float(value).is_integer()):
                raise ValueError(
                    f"{self.name}: {value:g} cannot be a value of {self.vary}; expected "
                    f"{_RANGES[self.vary]}"
                )
        if (self.vary == "width") != (WIDTH in self.model):
            raise ValueError(
                f"{self.name}: the model is {self.model!r}, but {WIDTH} belongs there where, and "
                "only where, widths are varied"
            )
        if len(self.rates) > self.epochs:
            raise ValueError(
                f"{self.name}: {len(self.rates)} learning rates for {self.epochs} epochs; "
                "expected at least one epoch for each"
            )
        if (self.vary == "corruption") != (self.pretraining > 0):
            raise ValueError(
                f"{self.name}: pretraining is {self.pretraining} epochs; it should be at least 1 "
                "where the corruption is varied, and 0 elsewhere"
            )
        if self.vary == "initial-scale" and self.initial_scale is not None:
            raise ValueError(f"{self.name}: the initial scale is varied; leave initial_scale out")
        if self.vary == "samples" and self.samples != "all":
            raise ValueError(f"{self.name}: the samples are varied; leave samples out")
        return self

    def model_of(self, value: float) -> str:
        """The model of one network.

        Args:
            value: Of what is varied.

        Returns:
            Registry name or ``file.py:factory``.
        """
        return self.model.replace(WIDTH, f"{value:.0f}") if self.vary == "width" else self.model

    def rate(self, epoch: int) -> float:
        """Learning rate of an epoch.

        Args:
            epoch: Counted from 0.

        Returns:
            That of its piece.
        """
        return self.rates[min(epoch * len(self.rates) // self.epochs, len(self.rates) - 1)]


class PuzzlesPreset(Settings):
    """One size of an experiment.

    Attributes:
        families: In the order of the table.
    """

    families: tuple[Family, ...] = Field(min_length=1)

    @field_validator("families")
    @classmethod
    def _names_differ(cls, value: tuple[Family, ...]) -> tuple[Family, ...]:
        names = [family.name for family in value]
        if len(set(names)) < len(names):
            raise ValueError(f"families need different names, got {', '.join(names)}")
        return value


class ReferenceLine(Settings):
    """A published line test loss = slope · training loss + intercept, of normalised networks.

    Attributes:
        label: Where it was printed.
        slope: Of the line.
        intercept: Of the line.
        r2: R², as printed; None where it was not.
        rmse: Root mean square error, as printed; None where it was not.
    """

    label: str
    slope: float = Field(allow_inf_nan=False)
    intercept: float = Field(allow_inf_nan=False)
    r2: float | None = None
    rmse: float | None = None

    def __call__(self, x: float) -> float:
        """The line.

        Args:
            x: Normalised training loss.

        Returns:
            Normalised test loss.
        """
        return self.slope * x + self.intercept


class PuzzlesConfig(Settings):
    """Settings of ``hessrmt reproduce puzzles-...``.

    Attributes:
        experiment: Its kind.
        title: One line about it.
        seed: Of everything random.
        device: ``auto``, ``cpu`` or ``cuda[:i]``.
        presets: Name to size.
        reference: Published lines, to be shown beside the measured ones.
    """

    experiment: Literal["puzzles"]
    title: str = ""
    seed: int = Field(0, ge=0)
    device: str = "auto"
    presets: dict[str, PuzzlesPreset] = Field(min_length=1)
    reference: tuple[ReferenceLine, ...] = ()
