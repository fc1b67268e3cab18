"""One training run that is measured on its way, with averages of its iterates; resumable.

The checkpoint is replaced after every epoch and holds everything that continues the run: model,
optimiser, averages and what was measured. A run that was killed and continued ends in the same
numbers as one that was not.
"""

from __future__ import annotations

import copy
import dataclasses
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from hessrmt.backend.select import select
from hessrmt.errors import ClusterError, ConfigError, HessrmtError, StoreError
from hessrmt.problems import checkpoints, data, losses, models
from hessrmt.training.averaging import IterateAverage, recompute_batchnorm
from hessrmt.training.protocol import TrainState, evaluate, train
from hessrmt.workflows.cluster import SERIAL
from hessrmt.workflows.digest import digest
from hessrmt.workflows.paths import absolute
from hessrmt.workflows.reproduce import Observer, silent

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from hessrmt.config import TrainConfig
    from hessrmt.problems.data import Dataset
    from hessrmt.workflows.cluster import Pool

FORMAT, VERSION = "hessrmt/trajectory", 1
LAST = "last"
"""The last iterate, as the averages are named by the caller."""

Rate = Callable[[int], float]
Measured = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What a run is to do.

    Attributes:
        name: Of its files.
        settings: Of the training.
        averages: Name of an average to the epoch after which it begins.
        splits: On which losses and errors are measured.
        measure_every: Epochs between measurements; the last epoch is always measured.
        rate: Epoch to its learning rate, where it is not that of the settings.
        rate_name: What tells this rate from others.
    """

    name: str
    settings: TrainConfig
    averages: Mapping[str, int]
    splits: tuple[str, ...] = ("train", "test")
    measure_every: int = 1
    rate: Rate | None = None
    rate_name: str = ""

    @property
    def points(self) -> tuple[str, ...]:
        """The last iterate and the averages."""
        return (LAST, *self.averages)


@dataclass(frozen=True)
class Trajectory:
    """A finished run.

    Attributes:
        plan: What it did.
        measured: One for each measured epoch, in order: ``epoch``, ``lr``, and for each point that
            exists by then ``point: {train_loss, train_error, ..., distance, count}``; ``distance``
            is that of an average to the last iterate, ``count`` its iterates.
        files: Point to the checkpoint with its state dict.
        origin: Where the data came from, in words.
    """

    plan: Plan
    measured: tuple[Measured, ...]
    files: Mapping[str, Path]
    origin: str

    def curve(self, point: str, what: str) -> tuple[list[int], list[float]]:
        """A quantity over the run.

        Args:
            point: One of the plan's points.
            what: E.g. ``"test_loss"``.

        Returns:
            Epochs and values, from where the point exists.
        """
        rows = [row for row in self.measured if point in row]
        return [row["epoch"] for row in rows], [row[point][what] for row in rows]


def run(
    plan: Plan,
    out: Path,
    *,
    folder: Path | None = None,
    on_epoch: Callable[[int], None] | None = None,
) -> Trajectory:
    """Train, or continue, or only read what is complete.

    Args:
        plan: What to do.
        out: Existing folder of the checkpoints.
        folder: Where to look for data first.
        on_epoch: Told of completed epochs.

    Returns:
        The finished run.

    Raises:
        HessrmtError: If it cannot be done; the message names the run.
    """
    try:
        return _Run(plan, out, folder).finish(on_epoch)
    except HessrmtError as error:
        raise type(error)(f"{plan.name}: {error}") from error


@dataclass(frozen=True)
class Job:
    """A run as it is sent to a worker.

    Attributes:
        plan: What to do; a run in training is continued with no other settings.
        found: The plan's settings with absolute paths.
        out: Absolute folder of the checkpoints.
        folder: Absolute folder where to look for data first.
        sha256: Of the data where the command runs.
    """

    plan: Plan
    found: TrainConfig
    out: Path
    folder: Path | None
    sha256: str


def run_all(
    plans: Sequence[Plan],
    out: Path,
    *,
    folder: Path | None = None,
    observer: Observer | None = None,
    pool: Pool = SERIAL,
) -> list[Trajectory]:
    """Several runs, each as :func:`run` does it.

    Args:
        plans: What to do; their names differ.
        out: Existing folder of the checkpoints; the workers of a pool need it under the same path.
        folder: Where to look for data first.
        observer: Told of the completed epochs of all runs; by a pool that is not local only of
            finished runs.
        pool: Where networks are trained.

    Returns:
        The finished runs, in the order of the plans.
    """
    observer = observer or silent
    total, done = sum(plan.settings.epochs for plan in plans), 0
    if pool.local:
        found = []
        for plan in plans:
            tick = partial(_tick, observer, f"training {plan.name}", done, total)
            tick(0)
            found.append(run(plan, out, folder=folder, on_epoch=tick))
            done += plan.settings.epochs
        return found
    known: dict[tuple[str, tuple[str, ...]], tuple[str, str]] = {}
    for plan in plans:
        key = plan.settings.data, plan.splits
        if key not in known:
            read = _Data(*key, folder)
            known[key] = read.sha256, read.train.origin
    facts = [known[plan.settings.data, plan.splits] for plan in plans]
    jobs = [
        Job(plan, found, out.absolute(), place, sha256)
        for plan, (sha256, _) in zip(plans, facts, strict=True)
        for found, place in [absolute(plan.settings, folder)]
    ]
    results: dict[int, Trajectory] = {}
    observer("training", 0, total)
    for index, result in pool.map_unordered(_run_there, jobs):
        files = {point: out / file.name for point, file in result.files.items()}
        results[index] = dataclasses.replace(result, files=files, origin=facts[index][1])
        done += plans[index].settings.epochs
        observer("training", done, total)
    return [results[index] for index in range(len(plans))]


def _tick(observer: Observer, phase: str, before: int, total: int, epoch: int) -> None:
    observer(phase, before + epoch, total)


def _run_there(job: Job) -> Trajectory:
    host = socket.gethostname()
    shared = "workers read the data and keep checkpoints on a file system that they share"
    if not job.out.is_dir():
        raise ClusterError(
            f"the worker on {host} has no folder {job.out}: {shared}; give a folder (--out) that "
            "it has"
        )
    try:
        there = _Run(job.plan, job.out, job.folder, job.found)
        if there.identity["data_sha256"] != job.sha256:
            raise ClusterError(
                f"the worker on {host} has other data than the machine where the command runs: "
                f"{shared}"
            )
        return there.finish(None)
    except HessrmtError as error:
        raise type(error)(f"{job.plan.name}: {error}") from error


class _Data:
    """What a run reads."""

    def __init__(self, name: str, splits: tuple[str, ...], folder: Path | None) -> None:
        self.sets = {split: data.load(name, split, folder) for split in splits}
        self.train: Dataset = self.sets.get("train") or data.load(name, "train", folder)
        self.sha256 = digest(a for s in (self.train, *self.sets.values()) for a in (s.x, s.y))


class _Run:
    def __init__(
        self, plan: Plan, out: Path, folder: Path | None, found: TrainConfig | None = None
    ) -> None:
        self.plan, self.settings = plan, plan.settings
        found = found or self.settings  # the same with paths that hold in this process
        self.path, self.out = out / f"{plan.name}.pt", out
        self.device = select(self.settings.device).device
        read = _Data(found.data, plan.splits, folder)
        self.sets, self.train_set = read.sets, read.train
        self.loss = losses.resolve(self.settings.loss)
        self.model = models.build(
            found.model,
            self.train_set.input_shape,
            self.train_set.outputs,
            self.settings.seed,
        ).to(device=self.device, dtype=getattr(torch, self.settings.dtype))
        steps = -(-len(self.train_set) // self.settings.batch)
        self.averages = {
            name: IterateAverage(self.model, start * steps) for name, start in plan.averages.items()
        }
        self.identity = {
            **self.settings.model_dump(mode="json"),
            "averages": dict(plan.averages),
            "splits": list(plan.splits),
            "measure_every": plan.measure_every,
            "rate": plan.rate_name,
            "data_sha256": read.sha256,
        }
        self.measured: list[Measured] = []

    def finish(self, on_epoch: Callable[[int], None] | None) -> Trajectory:
        start = self._earlier()
        complete = start is not None and start.epoch == self.settings.epochs
        if start is None or start.epoch < self.settings.epochs:
            train(
                self.model,
                self.loss,
                self.train_set,
                self.settings,
                device=self.device,
                start=start,
                rate=self.plan.rate,
                on_step=self._step,
                on_epoch=lambda state: self._epoch(state, on_epoch),
            )
        else:
            checkpoints.apply_state(self.model, start.model)
        files = {point: self.out / f"{self.plan.name}-{point}.pt" for point in self.plan.points}
        for point, file in files.items():
            if not complete or not file.exists():
                state = {k: v.detach().cpu() for k, v in self._at(point).state_dict().items()}
                checkpoints.save_atomic({"state_dict": state}, file)
        return Trajectory(self.plan, tuple(self.measured), files, self.train_set.origin)

    def _earlier(self) -> TrainState | None:
        if not self.path.exists():
            return None
        content = checkpoints.read(self.path)
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise StoreError(f"{self.path} is no checkpoint of this experiment; remove it")
        if content["version"] > VERSION:
            raise StoreError(f"{self.path} was written by a newer hessrmt; upgrade")
        then, now = content["identity"], self.identity
        differing = [
            f"{key} was {then.get(key)!r}, now {now.get(key)!r}"
            for key in sorted(then.keys() | now.keys())
            if then.get(key) != now.get(key)
        ]
        if differing:
            raise ConfigError(
                f"{self.path} was made with another configuration: {'; '.join(differing)}. "
                "Give another --out"
            )
        for name, average in self.averages.items():
            average.load_state_dict(content["averages"][name])
        self.measured = content["measured"]
        return TrainState(
            content["epoch"], content["state_dict"], content["optimizer"], tuple(content["history"])
        )

    def _step(self, model: torch.nn.Module) -> None:
        for average in self.averages.values():
            average.update(model)

    def _epoch(self, state: TrainState, on_epoch: Callable[[int], None] | None) -> None:
        last = state.epoch == self.settings.epochs
        if last or state.epoch % self.plan.measure_every == 0:
            self.measured.append(self._measure(state))
        checkpoints.save_atomic(
            {
                "format": FORMAT,
                "version": VERSION,
                "identity": self.identity,
                "epoch": state.epoch,
                "state_dict": state.model,
                "optimizer": state.optimizer,
                "history": list(state.history),
                "averages": {name: item.state_dict() for name, item in self.averages.items()},
                "measured": self.measured,
            },
            self.path,
        )
        if on_epoch is not None:
            on_epoch(state.epoch)

    def _measure(self, state: TrainState) -> Measured:
        found: Measured = {"epoch": state.epoch, "lr": state.history[-1]["lr"]}
        for point in self.plan.points:
            average = self.averages.get(point)
            if average is not None and not average.count:
                continue
            model = self._at(point)
            row: dict[str, Any] = {}
            for split, samples in self.sets.items():
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
        recompute_batchnorm(model, self.train_set, device=self.device, dtype=self.settings.dtype)
        return model
