"""Networks in training: one checkpoint format, one way to train one or several of them.

``hessrmt train`` is :func:`run`: settings to a checkpoint that is complete after every epoch. Those
that an experiment trains go through :func:`train_all`, here or by workers; each has a checkpoint of
its own, with which any process goes on.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias, TypeVar

import numpy as np

from hessrmt.backend.select import select
from hessrmt.errors import ConfigError, StoreError
from hessrmt.files import require_new
from hessrmt.problems import checkpoints, data, losses, models, readers
from hessrmt.progress import silent
from hessrmt.records import Provenance
from hessrmt.results import Result
from hessrmt.runs.history import Recording, recording
from hessrmt.runs.run import SERIAL, compute_all, digest, naming
from hessrmt.store.files import ResumableFile, require_one, require_same
from hessrmt.training.protocol import TrainState, evaluate_splits, require_continuing, train

if TYPE_CHECKING:
    from hessrmt.config import TrainConfig
    from hessrmt.problems.data import Dataset
    from hessrmt.progress import Tick
    from hessrmt.runs.run import Pool, Run

R = TypeVar("R")

FORMAT = "hessrmt/checkpoint"
VERSION = 1

_STATE = ("epoch", "state_dict", "optimizer", "history")


def _of_training(content: dict[str, Any]) -> dict[str, Any]:
    """Files of the first versions name their settings and their data apart."""
    if "identity" not in content:
        data_sha256 = content["provenance"]["data_sha256"]
        content = {**content, "identity": {**content["config"], "data_sha256": data_sha256}}
    return {"extra": {}, **content}


def _of_trajectory(content: dict[str, Any]) -> dict[str, Any]:
    """What experiments of the first versions kept of a run with averages."""
    extra = {name: content[name] for name in ("averages", "measured")}
    return {**content, "provenance": {}, "extra": extra}


def _of_member(content: dict[str, Any]) -> dict[str, Any]:
    """What experiments of the first versions kept of a network of a family in training."""
    state = content["state"]
    return {
        **{name: state[name] for name in ("epoch", "optimizer", "history")},
        "state_dict": state["model"],
        "version": content["version"],
        "identity": json.loads(content["identity"]),
        "provenance": {},
        "extra": {name: content[name] for name in ("phase", "measured", "kept", "seconds")},
    }


_LAYOUTS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    FORMAT: _of_training,
    "hessrmt/trajectory": _of_trajectory,
    "hessrmt/member": _of_member,
}
"""Format of a checkpoint to what makes it one of today."""


_TYPES: dict[str, type] = {
    "version": int,
    **dict.fromkeys(("state_dict", "optimizer", "provenance", "extra", "identity"), dict),
    "history": list,
}
"""Of parts of a checkpoint that are always there."""

_TYPES_OF_PROVENANCE: dict[str, type] = {"device": str, "versions": dict, "notes": list}


def _require_types(content: dict[str, Any]) -> None:
    """Refuse parts of other types than are written; their values are checked where they are used.

    Raises:
        TypeError: If one has another.
    """
    told = content["provenance"]
    given = {name: content[name] for name in _TYPES} | {"config": content.get("config", {})}
    kinds = _TYPES | {"config": dict}
    if isinstance(told, dict):
        given |= {name: told[name] for name in _TYPES_OF_PROVENANCE.keys() & told.keys()}
        kinds |= _TYPES_OF_PROVENANCE
    for name, value in given.items():
        if type(value) is not kinds[name]:
            raise TypeError(f"{name} is of type {type(value).__name__}")
    if not all(isinstance(note, str) for note in given.get("notes", [])):
        raise TypeError("notes are no texts")
    if content["version"] < 1:
        raise TypeError(f"version is {content['version']}")


_COLUMNS = {"epoch": int, "lr": float, "train_loss": float}
"""Of each item of the history, what a result has of it."""

_DEEPEST, _MOST_PARTS = 50, 10_000_000


def _parts(value: Any, known: dict[int, int], depth: int = 0) -> int:
    """How many values a nest of containers has, each counted in every place where it stands."""
    if not isinstance(value, dict | list | tuple):
        return 1
    if depth > _DEEPEST:
        raise ValueError("containers are nested too deeply, or hold themselves")
    if id(value) not in known:
        inner = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_parts(one, known, depth + 1) for one in inner)
    return known[id(value)]


def _stored(path: Path, otherwise: str) -> tuple[TrainState, dict[str, Any]]:
    """The state in a checkpoint, and all else in it as files of today have it."""
    content = checkpoints.read(path)
    try:
        content = _LAYOUTS[content["format"]](content)
        if _parts(content, {}) > _MOST_PARTS:  # few that are shared: all are compared and shown
            raise ValueError("more parts than a training has")
        _require_types(content)
        epoch, weights, optimizer, history = (content[name] for name in _STATE)
        start = TrainState(epoch, weights, optimizer, tuple(history))
        newer = content["version"] > VERSION
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise StoreError(f"{path} is not a checkpoint written by hessrmt, {otherwise}") from error
    if newer:
        raise StoreError(
            f"{path} was written by a newer hessrmt (checkpoint version {content['version']}, this "
            f"one knows {VERSION}); upgrade, or give another --out"
        )
    return start, content


@dataclass(frozen=True)
class Checkpoint(Result, axes={"epoch": "epochs rate train_loss"}):
    """What the checkpoint of a training run says of the run.

    Its weights are read by every command that takes a checkpoint, and by
    ``hessrmt.capacity.analyze``.

    Attributes:
        epochs: (n,) completed epochs.
        rate: (n,) learning rate of each.
        train_loss: (n,) mean loss over the minibatches of each, while the weights changed.
        numbers: In all tensors of its state dict.
        provenance: Where it came from; settings alone in files of the first versions.
    """

    epochs: np.ndarray
    rate: np.ndarray
    train_loss: np.ndarray
    numbers: int
    provenance: Provenance

    column_names: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"train_loss": "loss while training"}
    )
    """What a picture or a page calls a column, where it must not be taken for another."""


def load_checkpoint(path: str | Path) -> Checkpoint:
    """What a checkpoint of a training run says of it.

    Args:
        path: A file of :class:`TrainingFile`.

    Returns:
        The run as far as it got.

    Raises:
        StoreError: If it is any other file.
    """
    otherwise = "so it says nothing of a training run; hessrmt capacity reads weights of any origin"
    state, content = _stored(Path(path), otherwise)
    known = {name: content["provenance"].get(name) for name in ("device", "versions", "created")}
    missing = {"device": "unknown", "versions": {}, "created": "unknown"}
    try:
        columns = [[kind(item[name]) for item in state.history] for name, kind in _COLUMNS.items()]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise StoreError(f"{path} is not a checkpoint written by hessrmt, {otherwise}") from error
    epochs, rate, loss = map(np.array, columns)
    return Checkpoint(
        epochs,
        rate,
        loss,
        sum(value.numel() for value in state.model.values() if hasattr(value, "numel")),
        Provenance(
            content.get("config") or content["identity"],
            notes=tuple(content["provenance"].get("notes", ())),
            **{name: missing[name] if value is None else value for name, value in known.items()},
        ),
    )


class TrainingFile(ResumableFile):
    """The one writer of the checkpoint of a training run: everything that continues it.

    Args:
        path: A ``.pt`` or ``.pth`` file in a folder that exists.
        identity: Plain values that a run which continues it must share.
        resume: Continue the file if it is there.
        overwrite: Replace the file if it is there.
        longer: Whether a run with more ``epochs`` continues it too.

    Attributes:
        path: The file.
        start: The state to continue from; None at the beginning.
        extra: What the run saved beside the state.
        provenance: Where the file came from when it was written last.

    Raises:
        ConfigError: If the name has another ending.
        StoreError: If the file cannot be written, exists, is being written by another process, is
            no such checkpoint, or was made with another configuration.
    """

    def __init__(
        self,
        path: Path,
        identity: Mapping[str, Any],
        *,
        resume: bool = False,
        overwrite: bool = False,
        longer: bool = False,
    ) -> None:
        require_one(resume=resume, overwrite=overwrite)
        if path.suffix.lower() not in readers.WRITTEN:
            raise ConfigError(
                f"a training checkpoint is a .pt or .pth file (it also holds the optimiser's "
                f"state), but out is {path}"
            )
        require_new(path, may_exist=resume or overwrite)
        super().__init__(path)
        self.start: TrainState | None = None
        self.extra: dict[str, Any] = {}
        self.provenance: dict[str, Any] = {}
        self._identity = json.loads(json.dumps(dict(identity)))
        if resume and path.exists():
            try:
                self._read(("epochs",) if longer else ())
            except BaseException:
                self.close()
                raise

    def _read(self, growing: tuple[str, ...]) -> None:
        start, content = _stored(self.path, "so it cannot be resumed; give another --out")
        self.provenance, self.extra = content["provenance"], content["extra"]
        require_same(self.path, content["identity"], self._identity, growing)
        self.start = start

    def save(
        self,
        state: TrainState,
        provenance: Provenance | None = None,
        about: Mapping[str, Any] | None = None,
        **extra: Any,
    ) -> None:
        """Replace the file by that of a later state.

        Args:
            state: After an epoch.
            provenance: Where it came from.
            about: More of that.
            extra: What else continues the run: tensors and plain values.
        """
        made = dataclasses.asdict(provenance or Provenance())
        config = dict(made.pop("config"))
        del made["created"]  # the same run makes the same file, bit for bit
        content = {
            "format": FORMAT,
            "version": VERSION,
            "identity": self._identity,
            "state_dict": state.model,
            "optimizer": state.optimizer,
            "epoch": state.epoch,
            "config": config,
            "history": list(state.history),
            "provenance": {**made, "notes": list(made["notes"]), **(about or {})},
            "extra": extra,
        }
        checkpoints.save_atomic(content, self.path)


@dataclass(frozen=True)
class TrainingPlan:
    """One network of several, as workers are told of it.

    Attributes:
        name: Of its checkpoint.
        epochs: Of its training.
        identity: Plain values that a run which continues the checkpoint must share.
        task: What else the function that trains it needs.
        words: What progress and errors call it; its name if empty.
    """

    name: str
    epochs: int
    identity: Mapping[str, Any]
    task: Any
    words: str = ""


TrainPlanned: TypeAlias = Callable[[Any, TrainingPlan, TrainingFile, Callable[[int], None]], R]
"""Trains a network: what is prepared, its plan, its checkpoint, and what is told of every epoch."""


def train_all(
    train_one: TrainPlanned[R],
    tasks: Sequence[tuple[Run[Any], TrainingPlan]],
    out: Path,
    *,
    pool: Pool = SERIAL,
    tick: Tick = silent,
) -> Iterator[tuple[int, R]]:
    """Train what is left of several networks, here or by workers.

    Args:
        train_one: A function of a module.
        tasks: The run that each belongs to, and its plan.
        out: Folder of the checkpoints, which workers must have too.
        pool: Where networks are trained.
        tick: Told of progress: epochs done of all.

    Yields:
        Number of the network and what ``train_one`` returned, as they are done.
    """
    total, done = sum(plan.epochs for _, plan in tasks), 0
    tick("training", 0, total)

    def here(prepared: Any, plan: TrainingPlan) -> R:
        def told(epoch: int) -> None:
            tick(f"training {plan.words or plan.name}", done + epoch, total)

        return _train_planned(prepared, plan, train_one, out, told)

    there = partial(_train_planned, train_one=train_one, out=out.absolute())
    for number, found in compute_all(pool, here if pool.local else there, tasks):
        done += tasks[number][1].epochs
        tick("training", done, total)
        yield number, found


def _train_planned(
    prepared: Any,
    plan: TrainingPlan,
    train_one: TrainPlanned[R],
    out: Path,
    told: Callable[[int], None] = lambda _: None,
) -> R:
    with (
        naming(plan.words or plan.name),
        TrainingFile(out / f"{plan.name}.pt", plan.identity, resume=True) as file,
    ):
        return train_one(prepared, plan, file, told)


@dataclass(frozen=True)
class TrainResult(Result):
    """A finished training run.

    Attributes:
        epochs: Completed epochs.
        train_loss: Mean loss over the training samples, in evaluation mode.
        train_accuracy: Share of them classified correctly; None without classes.
        test_loss: Mean loss over the test samples; None if the data have no splits.
        test_accuracy: Share of them classified correctly.
        seconds: Wall-clock time of the epochs of this run.
        checkpoint: The file.
        sha256: Of the file.
        data: Where the data came from.
        notes: What the user must be told.
        history: File of the recorded history, if there is one.
    """

    epochs: int
    train_loss: float
    train_accuracy: float | None
    test_loss: float | None
    test_accuracy: float | None
    seconds: float
    checkpoint: Path
    sha256: str
    data: str
    notes: tuple[str, ...] = ()
    history: Path | None = None


@dataclass(frozen=True)
class Splits:
    """Training samples, and test samples where the data have such a split.

    Attributes:
        train: The training samples.
        test: The test samples.
        sha256: Of the training samples.
    """

    train: Dataset
    test: Dataset | None
    sha256: str = field(default="", repr=False)

    @classmethod
    def load(cls, spec: str, folder: Path | None = None) -> Splits:
        """Both splits of a data set.

        Args:
            spec: Registry name, file or folder.
            folder: Where to look for data first.

        Returns:
            The splits.
        """
        found = data.load(spec, None, folder)
        train = found if found.split == "all" else data.load(spec, "train", folder)
        return cls(train, None if found.split == "all" else found, digest([train.x, train.y]))


def run(
    settings: TrainConfig,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    folder: Path | None = None,
    history: Recording | None = None,
    tick: Tick = silent,
    tell: Callable[[str], None] = lambda _: None,
) -> TrainResult:
    """Train a model and write its checkpoint.

    Args:
        settings: What to train, on what and how.
        out: The checkpoint, a ``.pt`` or ``.pth`` file.
        resume: Continue the file if it is there; more epochs than it has are allowed.
        overwrite: Replace the file if it is there.
        folder: Where to look for data first.
        history: What to record meanwhile, and where.
        tick: Told of progress: epochs, and what is measured for the history.
        tell: Given lines for the user before training begins.

    Returns:
        Losses and accuracies of the trained model.

    Raises:
        ConfigError: If settings or files exclude each other.
    """
    require_one(resume=resume, overwrite=overwrite)
    require_new(out, may_exist=resume or overwrite)
    if history is not None and history.path.resolve() == out.resolve():
        raise ConfigError(f"history and checkpoint cannot both be {out}; give two names")
    splits = Splits.load(settings.data, folder)
    samples, loss = splits.train, losses.resolve(settings.loss)
    sets = {"train": samples, "test": splits.test}
    config, origin = settings.model_dump(mode="json"), f"data: {samples.origin}"
    model = models.build(settings.model, samples.input_shape, samples.outputs, settings.seed)
    code = checkpoints.source_digests(model=settings.model, loss=settings.loss)
    identity = {**settings.identity, "data_sha256": splits.sha256, **code}
    with TrainingFile(out, identity, resume=resume, overwrite=overwrite, longer=True) as file:
        backend, start = select(settings.device), file.start
        notes, done = [samples.origin] if samples.embedded else [], 0
        if start is not None:
            require_continuing(start, model, settings)
            done, before = start.epoch, file.provenance.get("device", "unknown")
            kept = file.provenance.get("notes", [])
            notes += [note for note in kept if note not in notes]
            if before != backend.name:
                notes.append(f"resumed after epoch {done} of a run on {before}")
        tell(origin)
        tell(f"device: {backend.name}")
        if done:
            tell(f"resuming after epoch {done} of {settings.epochs}")
        about = {"data": samples.origin, "data_sha256": splits.sha256}

        def save(state: TrainState) -> None:
            record(state.epoch, state.model)  # before the checkpoint, so that it is never behind
            file.save(state, Provenance(config, backend.name, notes=tuple(notes)), about)
            last = state.history[-1]
            words = f"training: loss {last['train_loss']:.4f}, rate {last['lr']:.2g}"
            tick(words, state.epoch, settings.epochs)

        clock = time.perf_counter()
        asked = {"resume": resume, "overwrite": overwrite}
        with recording(history, settings, sets, backend, done, tick=tick, **asked) as record:
            tick("training: first epoch", done, settings.epochs)
            record(done, start.model if start else model.state_dict())
            state = train(
                model, loss, samples, settings, device=backend.device, start=start, on_epoch=save
            )
        seconds = time.perf_counter() - clock
    measured: dict[str, Any] = evaluate_splits(
        model, loss, sets, device=backend.device, dtype=settings.dtype
    )
    return TrainResult(
        epochs=state.epoch,
        **measured,
        seconds=seconds,
        checkpoint=out,
        sha256=checkpoints.sha256(out),
        data=samples.origin,
        notes=tuple(notes),
        history=history.path if history is not None else None,
    )
