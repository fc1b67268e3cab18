"""Training runs that are measured on their way, with averages of their iterates; resumable.

The checkpoint is replaced after every epoch and holds everything that continues the run: model,
optimiser, averages and what was measured. A run that was killed and continued ends in the same
numbers as one that was not.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hessrmt.backend.select import select
from hessrmt.config import Settings
from hessrmt.problems import checkpoints, data, losses, models
from hessrmt.progress import silent
from hessrmt.runs.run import SERIAL, Run, absolute, digest
from hessrmt.runs.training import TrainingPlan, train_all
from hessrmt.training.averaging import IterateAverage, recompute_batchnorm
from hessrmt.training.protocol import TrainState, evaluate, train

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from hessrmt.config import TrainConfig
    from hessrmt.problems.data import Dataset
    from hessrmt.progress import Tick
    from hessrmt.runs.run import Pool
    from hessrmt.runs.training import TrainingFile

LAST = "last"
"""The last iterate, as the averages are named by the caller."""

Measured = dict[str, Any]


@dataclass(frozen=True)
class TrajectoryPlan:
    """What a run is to do.

    Attributes:
        name: Of the run and its files.
        settings: Of the training.
        averages: Name of an average to the epoch after which it begins.
        splits: Which are measured.
        measure_every: Epochs between measurements; the last one is always measured.
        rate: Epoch, counted from 0, to learning rate; None for that of the settings.
        rate_name: What tells this rate from others.
    """

    name: str
    settings: TrainConfig
    averages: Mapping[str, int]
    splits: tuple[str, ...] = ("train", "test")
    measure_every: int = 1
    rate: Callable[[int], float] | None = None
    rate_name: str = ""

    def files(self, out: Path) -> dict[str, Path]:
        """The last iterate and the averages.

        Args:
            out: Folder of the run.

        Returns:
            Point to the checkpoint of its parameters.
        """
        return {point: out / f"{self.name}-{point}.pt" for point in (LAST, *self.averages)}


@dataclass(frozen=True)
class Trajectory:
    """A finished run.

    Attributes:
        plan: What it was to do.
        measured: One entry for each measured epoch: ``epoch``, ``lr``, and for every point a
            dictionary of ``train_loss``, ``train_error``, ``test_loss``, ``test_error`` (the
            splits that were measured), of an average also ``distance`` and ``count``.
        files: Point to the checkpoint of its parameters.
        origin: Where the data came from.
    """

    plan: TrajectoryPlan
    measured: tuple[Measured, ...]
    files: Mapping[str, Path]
    origin: str


def curves(runs: Sequence[Trajectory], point: str, what: str) -> tuple[np.ndarray, np.ndarray]:
    """A quantity over the course of runs of one kind.

    Args:
        runs: Measured at the same epochs.
        point: The last iterate or an average.
        what: As in ``measured``.

    Returns:
        (m,) epochs at which the point was measured, and (runs, m) values, NaN where there are none.
    """
    rows = [[row for row in run.measured if point in row] for run in runs]
    values = [[row[point][what] for row in one] for one in rows]
    return np.array([row["epoch"] for row in rows[0]]), np.array(values, dtype=np.float64)


class _Wanted(Settings):
    """Data of a run."""

    data: str
    splits: tuple[str, ...]


class _Samples:
    """The samples of a run, by split; the training samples are among them or beside them."""

    def __init__(self, wanted: _Wanted, folder: Path | None) -> None:
        self.sets = {split: data.load(wanted.data, split, folder) for split in wanted.splits}
        self.train: Dataset = self.sets.get("train") or data.load(wanted.data, "train", folder)
        arrays = (a for s in (self.train, *self.sets.values()) for a in (s.x, s.y))
        self.digests = {"data": digest(arrays)}


def run_all(
    plans: Sequence[TrajectoryPlan],
    out: Path,
    *,
    folder: Path | None = None,
    tick: Tick = silent,
    pool: Pool = SERIAL,
) -> list[Trajectory]:
    """Train, or continue, or only read what is complete of several runs on the same data.

    Args:
        plans: What to do.
        out: Folder of the checkpoints, which workers must have too.
        folder: Where to look for data first.
        tick: Told of progress: epochs done of all.
        pool: Where runs are done.

    Returns:
        The finished runs, in the order of the plans.
    """
    wanted = _Wanted(data=plans[0].settings.data, splits=plans[0].splits)
    work = Run(_Samples, wanted, folder, pool=pool, out=out)
    samples, tasks = work.prepared, []
    for plan in plans:
        identity = {
            **plan.settings.identity,
            "averages": dict(plan.averages),
            "splits": list(plan.splits),
            "measure_every": plan.measure_every,
            "rate": plan.rate_name,
            "data_sha256": samples.digests["data"],
        }
        # the same with paths that hold in another process
        there = replace(plan, settings=absolute(plan.settings, folder)[0])
        tasks.append((work, TrainingPlan(plan.name, plan.settings.epochs, identity, there)))
    found = dict(train_all(_finish, tasks, out, pool=pool, tick=tick))
    origin = samples.train.origin
    return [
        Trajectory(plan, found[number], plan.files(out), origin)
        for number, plan in enumerate(plans)
    ]


def _finish(
    samples: _Samples, plan: TrainingPlan, file: TrainingFile, told: Callable[[int], None]
) -> tuple[Measured, ...]:
    return _Training(samples, plan.task).finish(file, told)


class _Training:
    """One run in this process."""

    def __init__(self, samples: _Samples, plan: TrajectoryPlan) -> None:
        self.plan, self.settings, self.samples = plan, plan.settings, samples
        self.device = select(self.settings.device).device
        self.loss = losses.resolve(self.settings.loss)
        shape, outputs = samples.train.input_shape, samples.train.outputs
        self.model = models.build(self.settings.model, shape, outputs, self.settings.seed).to(
            device=self.device, dtype=getattr(torch, self.settings.dtype)
        )
        steps = -(-len(samples.train) // self.settings.batch)
        self.averages = {
            name: IterateAverage(self.model, start * steps) for name, start in plan.averages.items()
        }

    def finish(self, file: TrainingFile, told: Callable[[int], None]) -> tuple[Measured, ...]:
        """Train what is left, and write the parameters of every point."""
        start, epochs, measured = file.start, self.settings.epochs, file.extra.get("measured", [])
        for name, average in self.averages.items() if start else ():
            average.load_state_dict(file.extra["averages"][name])
        complete = start is not None and start.epoch == epochs

        def after(state: TrainState) -> None:
            if state.epoch == epochs or state.epoch % self.plan.measure_every == 0:
                measured.append(self._measure(state))
            averages = {name: item.state_dict() for name, item in self.averages.items()}
            file.save(state, averages=averages, measured=measured)
            told(state.epoch)

        def step(model: torch.nn.Module) -> None:
            for average in self.averages.values():
                average.update(model)

        # of a complete run it only loads the last state
        train(
            self.model,
            self.loss,
            self.samples.train,
            self.settings,
            device=self.device,
            start=start,
            rate=self.plan.rate,
            on_step=step,
            on_epoch=after,
        )
        for point, target in self.plan.files(file.path.parent).items():
            if not complete or not target.exists():
                state = {k: v.detach().cpu() for k, v in self._at(point).state_dict().items()}
                checkpoints.save_atomic({"state_dict": state}, target)
        return tuple(measured)

    def _measure(self, state: TrainState) -> Measured:
        found: Measured = {"epoch": state.epoch, "lr": state.history[-1]["lr"]}
        for point in (LAST, *self.averages):
            average = self.averages.get(point)
            if average is not None and not average.count:
                continue
            model = self._at(point)
            row = found[point] = {}
            for split, samples in self.samples.sets.items():
                loss, accuracy = evaluate(
                    model, self.loss, samples, device=self.device, dtype=self.settings.dtype
                )
                row[f"{split}_loss"] = loss
                row[f"{split}_error"] = None if accuracy is None else 1 - accuracy
            if average is not None:
                row |= {"distance": average.distance(self.model), "count": average.count}
        return found

    def _at(self, point: str) -> torch.nn.Module:
        # averages and the iterate that they are compared with have BatchNorm statistics of the
        # training set alike: those that training leaves behind belong to earlier iterates too
        if not self.averages:
            return self.model
        model = copy.deepcopy(self.model)
        if point != LAST:
            self.averages[point].copy_to(model)
        recompute_batchnorm(
            model, self.samples.train, device=self.device, dtype=self.settings.dtype
        )
        return model
