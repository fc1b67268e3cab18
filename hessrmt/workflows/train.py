"""``hessrmt train``: settings to a checkpoint that is complete after every epoch."""

from __future__ import annotations

import dataclasses
import math
import tempfile
import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from hessrmt.backend.select import select
from hessrmt.errors import ConfigError, DataError, StoreError
from hessrmt.problems import checkpoints, data, losses, models
from hessrmt.records import Provenance
from hessrmt.training.protocol import TrainState, evaluate, train
from hessrmt.workflows.digest import digest
from hessrmt.workflows.history import Measurement, Record, Recording, recording

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

    from hessrmt.config import TrainConfig
    from hessrmt.problems.data import Dataset

FORMAT = "hessrmt/checkpoint"
VERSION = 1
_ENTRIES = {
    "format",
    "version",
    "state_dict",
    "optimizer",
    "epoch",
    "config",
    "history",
    "provenance",
}


class Observer(Protocol):
    """Who wants to follow a run, e.g. a progress bar."""

    def begin(self, origin: str, device: str, done: int, epochs: int) -> None:
        """Data and device are ready; ``done`` of ``epochs`` are already in the checkpoint."""
        ...

    def epoch(self, entry: dict[str, float]) -> None:
        """An epoch is complete: ``{"epoch", "lr", "train_loss"}``."""
        ...

    def measuring(self, epoch: int, phase: str, done: int, total: int) -> None:
        """An epoch is measured for the history: steps done and steps in all of a phase."""
        ...


@dataclass(frozen=True)
class TrainResult:
    """A finished training run.

    Attributes:
        epochs: Completed epochs, those of earlier runs included.
        train_loss: Mean loss over the training samples, in evaluation mode.
        train_accuracy: Fraction of them classified correctly; None where there are no classes.
        test_loss: Mean loss over the test samples; None where there are none.
        test_accuracy: Fraction of them classified correctly, or None.
        seconds: Wall-clock time spent on training in this run, its history included.
        checkpoint: The file written.
        sha256: Its sha256, hexadecimal.
        data: Where the samples came from, in words.
        notes: Anything a reader must know.
        history: The file of spectra and capacity metrics epoch by epoch; None without one.
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


def run(
    settings: TrainConfig,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    save_every: int = 1,
    folder: Path | None = None,
    history: Recording | None = None,
    observer: Observer | None = None,
) -> TrainResult:
    """Train a model and write its checkpoint.

    Args:
        settings: What to train and how.
        out: Checkpoint to write, ``.pt`` or ``.pth``; replaced atomically at every save.
        resume: Continue ``out`` where it stopped; starts afresh where there is none yet.
        overwrite: Replace an existing ``out``.
        save_every: Epochs between saves; the last epoch is always saved.
        folder: Folder searched first for data sets.
        history: Spectra and capacity metrics to record at some epochs; the file is continued or
            replaced as ``out`` is.
        observer: Told when the run begins and when an epoch is complete.

    Returns:
        Metrics over the training and test samples, and the checkpoint's sha256.

    Raises:
        ConfigError: If ``out`` exists and neither option is given, holds another run, or an
            argument cannot be used.
    """
    if resume and overwrite:
        raise ConfigError("resume and overwrite exclude each other; give one of them")
    if save_every < 1:
        raise ConfigError(f"save_every must be at least 1, got {save_every}")
    _require_writable(out, may_exist=resume or overwrite)
    if history is not None and history.path.resolve() == out.resolve():
        raise ConfigError(f"history and checkpoint cannot both be {out}; give two names")
    earlier = _read(out, settings) if resume and out.exists() else None

    backend = select(settings.device)
    train_set, test_set = _splits(settings.data, folder)
    fingerprint = digest([train_set.x, train_set.y])
    notes = [train_set.origin] if train_set.embedded else []
    loss = losses.resolve(settings.loss)
    model = models.build(settings.model, train_set.input_shape, train_set.outputs, settings.seed)
    start = None
    if earlier is not None:
        start, carried = _resumed(earlier, out, fingerprint, backend.name)
        notes += [note for note in carried if note not in notes]
        checkpoints.apply_state(model, start.model)
    done = start.epoch if start else 0

    recorder: AbstractContextManager[Record] = nullcontext(lambda *_: None)
    if history is not None:
        measurement = Measurement(settings, history.settings, train_set, test_set, backend)
        recorder = recording(
            history,
            measurement,
            done,
            resume=resume,
            overwrite=overwrite,
            notes=(f"data: {train_set.origin}",),
            tick=observer.measuring if observer is not None else None,
        )

    def save(state: TrainState) -> None:
        record(state.epoch, state.model)  # before the checkpoint, so that it is never behind
        if state.epoch % save_every == 0 or state.epoch == settings.epochs:
            provenance = dataclasses.asdict(
                Provenance(settings.model_dump(mode="json"), backend.name, notes=tuple(notes))
            )
            about = {"data": train_set.origin, "data_sha256": fingerprint}
            checkpoints.save_atomic(_content(state, provenance | about), out)
        if observer is not None:
            observer.epoch(state.history[-1])

    clock = time.perf_counter()
    with recorder as record:
        if observer is not None:
            observer.begin(train_set.origin, backend.name, done, settings.epochs)
        record(done, start.model if start else model.state_dict())
        state = train(
            model, loss, train_set, settings, device=backend.device, start=start, on_epoch=save
        )
    seconds = time.perf_counter() - clock

    def measure(samples: Dataset | None) -> tuple[float, float | None] | tuple[None, None]:
        if samples is None:
            return None, None
        return evaluate(model, loss, samples, device=backend.device, dtype=settings.dtype)

    train_loss, train_accuracy = measure(train_set)
    test_loss, test_accuracy = measure(test_set)
    return TrainResult(
        epochs=state.epoch,
        train_loss=math.nan if train_loss is None else train_loss,
        train_accuracy=train_accuracy,
        test_loss=test_loss,
        test_accuracy=test_accuracy,
        seconds=seconds,
        checkpoint=out,
        sha256=checkpoints.sha256(out),
        data=train_set.origin,
        notes=tuple(notes),
        history=history.path if history is not None else None,
    )


def _require_writable(out: Path, *, may_exist: bool) -> None:
    if out.suffix.lower() not in checkpoints.TORCH_SUFFIXES:
        raise ConfigError(
            f"a training checkpoint is a .pt or .pth file (it also holds the optimiser's state), "
            f"but out is {out}"
        )
    if out.is_dir():
        raise StoreError(f"cannot write {out}: it is a folder; give a file name in it")
    if out.exists() and not may_exist:
        raise ConfigError(
            f"{out} exists; continue it with --resume, replace it with --overwrite, "
            "or give another --out"
        )
    try:
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise StoreError(
            f"cannot write into the folder {out.parent}: {error.strerror or error}; "
            "give a path in a folder that exists and that you can write to"
        ) from error


def _splits(spec: str, folder: Path | None) -> tuple[Dataset, Dataset | None]:
    # training samples, and test samples where the data have such a split
    found = data.load(spec, None, folder=folder)
    if found.split == "all":
        return found, None
    return data.load(spec, "train", folder=folder), found


def _content(state: TrainState, provenance: dict[str, Any]) -> dict[str, Any]:
    config = dict(provenance.pop("config"))
    provenance["notes"] = list(provenance["notes"])
    return {
        "format": FORMAT,
        "version": VERSION,
        "state_dict": state.model,
        "optimizer": state.optimizer,
        "epoch": state.epoch,
        "config": config,
        "history": list(state.history),
        "provenance": provenance,
    }


def _read(out: Path, settings: TrainConfig) -> dict[str, Any]:
    content = checkpoints.read(out)
    known = isinstance(content, dict) and content.keys() >= _ENTRIES
    if not known or content["format"] != FORMAT:
        raise ConfigError(
            f"{out} is not a checkpoint written by hessrmt train, so it cannot be resumed; "
            "give another --out"
        )
    if content["version"] > VERSION:
        raise ConfigError(
            f"{out} was written by a newer hessrmt (checkpoint version {content['version']}, "
            f"this one knows {VERSION}); upgrade, or give another --out"
        )
    then, now = content["config"], settings.model_dump(mode="json")
    differing = [
        f"{name} was {then.get(name)!r}, now {now.get(name)!r}"
        for name in sorted(then.keys() | now.keys())
        if then.get(name) != now.get(name) and not (name == "epochs" and now[name] > then[name])
    ]
    if differing:
        raise ConfigError(
            f"{out} was trained with other settings: {'; '.join(differing)}. Resume it with its "
            "own (more epochs are allowed), or give another --out"
        )
    return content


def _resumed(
    content: dict[str, Any], out: Path, fingerprint: str, device: str
) -> tuple[TrainState, list[str]]:
    before = content["provenance"]
    if before["data_sha256"] != fingerprint:
        raise DataError(
            f"{out} was trained on other samples ({before['data']}) than those found now; "
            "resume it with the same data, or give another --out"
        )
    notes = list(before["notes"])
    if before["device"] != device:
        notes.append(f"resumed after epoch {content['epoch']} of a run on {before['device']}")
    state = TrainState(
        content["epoch"], content["state_dict"], content["optimizer"], tuple(content["history"])
    )
    return state, notes
