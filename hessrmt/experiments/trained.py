"""What experiments share that train networks with several seeds: settings, and the runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from pydantic import Field

from hessrmt.config import Settings, TrainConfig
from hessrmt.experiments.experiment import Presets, Work, drawn_seed
from hessrmt.runs import trajectory
from hessrmt.runs.run import make_folders
from hessrmt.runs.trajectory import Trajectory, TrajectoryPlan

Item = TypeVar("Item")
T = TypeVar("T", bound="TrainedPreset")


class TrainedPreset(Settings):
    """What sizes of experiments have in which networks are trained with several seeds.

    Attributes:
        batch: Samples in a minibatch.
        momentum: Of SGD.
        weight_decay: Of SGD.
        seeds: Runs of each kind.
    """

    batch: int = Field(128, ge=1)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(5e-4, ge=0, allow_inf_nan=False)
    seeds: int = Field(1, ge=1)


class TrainedSettings(Presets[T], Generic[T]):
    """Settings of such an experiment.

    Attributes:
        data: Registry name, file or folder.
        device: ``auto``, ``cpu`` or ``cuda[:i]``.
    """

    data: str = "mnist"
    device: str = "auto"

    def training(self, size: T, *names: str | int, **options: Any) -> TrainConfig:
        """Settings of one training run.

        Args:
            size: Of the experiment.
            names: Of the run's seed.
            options: What differs from run to run.

        Returns:
            The settings.
        """
        return TrainConfig(
            data=self.data,
            batch=size.batch,
            momentum=size.momentum,
            weight_decay=size.weight_decay,
            device=self.device,
            seed=drawn_seed(self.seed, self.experiment, *names),
            **options,
        )


def train_each(
    work: Work[Any, Any], items: Sequence[Item], plan: Callable[[Item, int], TrajectoryPlan]
) -> list[list[Trajectory]]:
    """Training runs of several kinds, each with all seeds.

    Args:
        work: Of an experiment with :class:`TrainedSettings`.
        items: The kinds.
        plan: Of a kind and the number of a seed.

    Returns:
        The finished runs of each kind.
    """
    make_folders(work.out, "checkpoints")
    seeds, out = range(work.size.seeds), work.out / "checkpoints"
    plans = [plan(item, number) for item in items for number in seeds]
    done = trajectory.run_all(plans, out, folder=work.folder, tick=work.tick, pool=work.pool)
    found = iter(done)
    return [[next(found) for _ in seeds] for _ in items]
