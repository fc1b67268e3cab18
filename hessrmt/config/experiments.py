"""Settings of the experiments of ``hessrmt reproduce``, each with its sizes (presets)."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from hessrmt.config import Dtype, Settings


class AnyExperiment(Settings):
    """The one thing that the settings files of all experiments share.

    Attributes:
        experiment: Its name.
    """

    model_config = ConfigDict(extra="ignore")

    experiment: str


class Unreduced(Settings):
    """Spectra by the published protocol: the whole matrix, nothing removed.

    Attributes:
        model: Registry name or ``file.py:factory``.
        dtype: Precision.
        batches: How many batches of the first split.
    """

    model: str
    dtype: Dtype = "float32"
    batches: int | Literal["all"] = "all"


class SpacingsPreset(Settings):
    """One size of the experiment ``hessian-spacings``.

    Attributes:
        models: Networks; each untrained and trained.
        epochs: Of training.
        splits: Splits of the data, the one for the figures first.
        batch: Samples in a batch.
        batches: Batches of each split, or ``"all"``.
        whole: Also one Hessian of each whole split.
        unreduced: Runs of the published protocol.
    """

    models: tuple[str, ...] = Field(min_length=1)
    epochs: int = Field(300, ge=1)
    splits: tuple[Literal["train", "test"], ...] = Field(("test",), min_length=1)
    batch: int = Field(64, ge=1)
    batches: int | Literal["all"] = "all"
    whole: bool = True
    unreduced: tuple[Unreduced, ...] = ()


class SpacingsConfig(Settings):
    """Settings of ``hessrmt reproduce hessian-spacings``.

    Attributes:
        experiment: Its name.
        title: One line about it.
        data: Registry name, ``.npz`` file or directory of IDX files or CIFAR batches.
        seed: Of everything random.
        presets: Name to size.
    """

    experiment: Literal["hessian-spacings"]
    title: str = ""
    data: str = "mnist"
    seed: int = Field(0, ge=0)
    presets: dict[str, SpacingsPreset] = Field(min_length=1)


class LossModelPanel(Settings):
    """One panel of the figures of the experiment ``gp-loss-model``.

    Attributes:
        k2: k''(0), the variance of an off-diagonal element of the Hessian.
        outliers: How many are drawn anew for each sample.
        degenerate: Directions in which the loss is constant.
    """

    k2: float = Field(gt=0, allow_inf_nan=False)
    outliers: int = Field(0, ge=0)
    degenerate: int = Field(0, ge=0)


class LossModelPreset(Settings):
    """One size of the experiment ``gp-loss-model``.

    Attributes:
        dimension: Directions in which the loss is random.
        samples: Hessians of each panel.
    """

    dimension: int = Field(300, ge=3)
    samples: int = Field(100, ge=1)


class LossModelConfig(Settings):
    """Settings of ``hessrmt reproduce gp-loss-model``.

    Attributes:
        experiment: Its name.
        title: One line about it.
        seed: Of everything random.
        outlier_scale: s of the drawn outliers s (1 + g²), g standard normal.
        density_k1: k'(0) of the density panels; nothing but the convention ``paper`` uses it.
        ratio_k1: k'(0) of the ratio panels.
        panels: In the order of the figure, row by row.
        presets: Name to size.
    """

    experiment: Literal["gp-loss-model"]
    title: str = ""
    seed: int = Field(0, ge=0)
    outlier_scale: float = Field(10.0, gt=0, allow_inf_nan=False)
    density_k1: float = Field(0.0, ge=0, allow_inf_nan=False)
    ratio_k1: float = Field(1.0, gt=0, allow_inf_nan=False)
    panels: tuple[LossModelPanel, ...] = Field(min_length=1, max_length=9)
    presets: dict[str, LossModelPreset] = Field(min_length=1)
