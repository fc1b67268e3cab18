"""Training runs that are measured on their way, with averages of their iterates; resumable.

The checkpoint is replaced after every epoch and holds everything that continues the run: model,
optimiser, averages and what was measured. A run that was killed and continued ends in the same
numbers as one that was not.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from hessrmt.backend.select import select
from hessrmt.config import Settings
from hessrmt.problems import checkpoints, data, losses, models
from hessrmt.progress import silent
from hessrmt.runs.run import SERIAL, Run, absolute, digest, naming
from hessrmt.runs.training import TrainingFile
from hessrmt.training.averaging import IterateAverage, recompute_batchnorm
from hessrmt.training.protocol import TrainState, evaluate, train

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from hessrmt.config import TrainConfig
    from hessrmt.problems.data import Dataset
    from hessrmt.progress import Tick
    from hessrmt.runs.run import Pool

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

    @property
    def points(self) -> tuple[str, ...]:
        """The last iterate and the averages."""
        return (LAST, *self.averages)


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

    def curve(self, point: str, what: str) -> tuple[list[int], list[float]]:
        """A quantity over the run.

        Args:
            point: The last iterate or an average.
            what: As in ``measured``.

        Returns:
            Epochs at which the point was measured, and the values.
        """
        rows = [row for row in self.measured if point in row]
        return [row["epoch"] for row in rows], [row[point][what] for row in rows]


class _Wanted(Settings):
    """Data of a run."""

    data: str
    splits: tuple[str, ...]


class Samples:
    """The samples of a run.

    Args:
        wanted: Data set and splits.
        folder: Where to look for data first.

    Attributes:
        sets: Split to samples, of those that are measured.
        train: The training samples.
        digests: SHA-256 of the ``data``.
    """

    def __init__(self, wanted: _Wanted, folder: Path | None) -> None:
        self.sets = {split: data.load(wanted.data, split, folder) for split in wanted.splits}
        self.train: Dataset = self.sets.get("train") or data.load(wanted.data, "train", folder)
        arrays = (a for s in (self.train, *self.sets.values()) for a in (s.x, s.y))
        self.digests = {"data": digest(arrays)}


def run(
    plan: TrajectoryPlan,
    out: Path,
    *,
    folder: Path | None = None,
    on_epoch: Callable[[int], None] | None = None,
) -> Trajectory:
    """Train, or continue, or only read what is complete.

    Args:
        plan: What to do.
        out: Folder of the checkpoints.
        folder: Where to look for data first.
        on_epoch: Told of every epoch that is done.

    Returns:
        The finished run.
    """
    wanted = _Wanted(data=plan.settings.data, splits=plan.splits)
    return _finish(Samples(wanted, folder), (plan, plan.settings.model), out, on_epoch)


def run_all(
    plans: Sequence[TrajectoryPlan],
    out: Path,
    *,
    folder: Path | None = None,
    tick: Tick | None = None,
    pool: Pool = SERIAL,
) -> list[Trajectory]:
    """Several runs on the same data, each as :func:`run` does it.

    Args:
        plans: What to do.
        out: Folder of the checkpoints, which workers must have too.
        folder: Where to look for data first.
        tick: Told of progress: epochs done of all.
        pool: Where runs are done.

    Returns:
        The finished runs, in the order of the plans.
    """
    tick = tick or silent
    total, done = sum(plan.settings.epochs for plan in plans), 0
    wanted = _Wanted(data=plans[0].settings.data, splits=plans[0].splits)
    work = Run(Samples, wanted, folder, pool=pool, out=out)
    found: dict[str, Trajectory] = {}
    if pool.local:
        for plan in plans:
            told = partial(_told, tick, f"training {plan.name}", done, total)
            told(0)
            item = plan, plan.settings.model
            found[plan.name] = _finish(work.prepared, item, out, told)
            done += plan.settings.epochs
    else:
        tick("training", 0, total)
        # the same with paths that hold in another process
        items = [(plan, absolute(plan.settings, folder)[0].model) for plan in plans]
        for (plan, _), result in work.on_all(partial(_finish, out=out.absolute()), items):
            files = {point: out / file.name for point, file in result.files.items()}
            origin = work.prepared.train.origin
            found[plan.name] = dataclasses.replace(result, files=files, origin=origin)
            done += plan.settings.epochs
            tick("training", done, total)
    return [found[plan.name] for plan in plans]


def _told(tick: Tick, phase: str, before: int, total: int, epoch: int) -> None:
    tick(phase, before + epoch, total)


def _finish(
    samples: Samples,
    item: tuple[TrajectoryPlan, str],
    out: Path,
    on_epoch: Callable[[int], None] | None = None,
) -> Trajectory:
    """Do what is not done yet of a run; its model may lie elsewhere here."""
    plan, model = item
    with naming(plan.name):
        return _Training(plan, samples, model, out).finish(on_epoch)


class _Training:
    """One run in this process."""

    def __init__(self, plan: TrajectoryPlan, samples: Samples, model: str, out: Path) -> None:
        self.plan, self.settings, self.samples, self.out = plan, plan.settings, samples, out
        self.device = select(self.settings.device).device
        self.loss = losses.resolve(self.settings.loss)
        shape, outputs = samples.train.input_shape, samples.train.outputs
        self.model = models.build(model, shape, outputs, self.settings.seed).to(
            device=self.device, dtype=getattr(torch, self.settings.dtype)
        )
        steps = -(-len(samples.train) // self.settings.batch)
        self.averages = {
            name: IterateAverage(self.model, start * steps) for name, start in plan.averages.items()
        }
        self.measured: list[Measured] = []

    def finish(self, on_epoch: Callable[[int], None] | None) -> Trajectory:
        """Train what is left, and write the parameters of every point."""
        plan = self.plan
        identity = {
            **self.settings.model_dump(mode="json"),
            "averages": dict(plan.averages),
            "splits": list(plan.splits),
            "measure_every": plan.measure_every,
            "rate": plan.rate_name,
            "data_sha256": self.samples.digests["data"],
        }
        with TrainingFile(self.out / f"{plan.name}.pt", identity, resume=True) as file:
            start = file.start
            if start is not None:
                for name, average in self.averages.items():
                    average.load_state_dict(file.extra["averages"][name])
                self.measured = file.extra["measured"]
            complete = start is not None and start.epoch == self.settings.epochs

            def after(state: TrainState) -> None:
                if state.epoch == self.settings.epochs or state.epoch % plan.measure_every == 0:
                    self.measured.append(self._measure(state))
                averages = {name: item.state_dict() for name, item in self.averages.items()}
                file.save(state, averages=averages, measured=self.measured)
                if on_epoch is not None:
                    on_epoch(state.epoch)

            if start is not None and complete:
                checkpoints.apply_state(self.model, start.model)
            else:
                train(
                    self.model,
                    self.loss,
                    self.samples.train,
                    self.settings,
                    device=self.device,
                    start=start,
                    rate=plan.rate,
                    on_step=self._step,
                    on_epoch=after,
                )
            files = {point: self.out / f"{plan.name}-{point}.pt" for point in plan.points}
            for point, target in files.items():
                if not complete or not target.exists():
                    state = {k: v.detach().cpu() for k, v in self._at(point).state_dict().items()}
                    checkpoints.save_atomic({"state_dict": state}, target)
        return Trajectory(plan, tuple(self.measured), files, self.samples.train.origin)

    def _step(self, model: torch.nn.Module) -> None:
        for average in self.averages.values():
            average.update(model)

    def _measure(self, state: TrainState) -> Measured:
        found: Measured = {"epoch": state.epoch, "lr": state.history[-1]["lr"]}
        for point in self.plan.points:
            average = self.averages.get(point)
            if average is not None and not average.count:
                continue
            model = self._at(point)
            row: dict[str, Any] = {}
            for split, samples in self.samples.sets.items():
                loss, accuracy = evaluate(
                    model, self.loss, samples, device=self.device, dtype=self.settings.dtype
                )
                row[f"{split}_loss"] = loss
                row[f"{split}_error"] = None if accuracy is None else 1 - accuracy
            if average is not None:
                row |= {"distance": average.distance(self.model), "count": average.count}
            found[point] = row
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
