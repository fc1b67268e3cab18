"""One network of a family: trained epoch by epoch, killed and continued, measured in the end."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from hessrmt import rng
from hessrmt.config import TrainConfig
from hessrmt.errors import StoreError
from hessrmt.problems import checkpoints, losses, models
from hessrmt.store.family import HISTORY, Member
from hessrmt.training.protocol import TrainState, crop_and_flip, initialize, permuted, train
from hessrmt.workflows.membernumbers import LOSS, History, measure

if TYPE_CHECKING:
    from torch import nn

    from hessrmt.problems.data import Dataset
    from hessrmt.workflows.memberplan import Plan

FORMAT = "hessrmt/member"
VERSION = 1

SAVE_SECONDS = 20.0
"""Time between saves of a network in training."""


@dataclass
class _Progress:
    """What is saved while a network is trained.

    Attributes:
        phase: 0 in pre-training, 1 on the family's own labels.
        state: Of the phase; None at its beginning.
        measured: Each of ``HISTORY`` after the measured epochs.
        kept: Epoch and weights that are kept so far; None: the last.
        seconds: Spent.
    """

    phase: int = 0
    state: TrainState | None = None
    measured: dict[str, list[float]] = field(default_factory=lambda: {k: [] for k in HISTORY})
    kept: tuple[int, dict[str, Any]] | None = None
    seconds: float = 0.0


def make(plan: Plan, tick: Callable[[int, int], None]) -> Member:
    """Train a network, or go on with it, and measure it.

    Args:
        plan: What it is to be.
        tick: Told the epochs done and in all, of pre-training and training together.

    Returns:
        The trained network's numbers; its weights are in ``plan.final``.
    """
    clock = time.perf_counter()
    family = plan.family
    model = models.build(plan.model, plan.train.input_shape, plan.train.outputs, plan.seed)
    scale = plan.value if family.vary == "initial-scale" else family.initial_scale
    if scale is not None:
        initialize(model, scale, rng.torch_generator(plan.seed, "initial-scale"))
    progress = _read(plan) if plan.checkpoint.exists() else _Progress()
    before, saved = progress.seconds, clock

    def save() -> None:
        nonlocal saved
        saved = time.perf_counter()
        progress.seconds = before + saved - clock
        _write(plan, progress)

    def after(state: TrainState) -> None:
        progress.state = state
        done = state.epoch + (family.pretraining if progress.phase else 0)
        tick(done, family.pretraining + family.epochs)
        if time.perf_counter() - saved >= SAVE_SECONDS:
            save()

    tick(0, family.pretraining + family.epochs)
    if family.pretraining and not progress.phase:
        share = plan.value if family.vary == "corruption" else 0.0
        labels = permuted(plan.train.y, share, rng.stream(plan.seed, "corruption"))
        corrupted = dataclasses.replace(plan.train, y=labels)
        state = _train(plan, model, corrupted, progress.state, pretraining=True, on_epoch=after)
        progress.state = _rested(state)
    progress.phase = 1
    history = History(plan, model)

    def measured(state: TrainState) -> None:
        if state.epoch % family.measure_every == 0 or state.epoch == family.epochs:
            entry = history(state)
            for name in HISTORY:
                progress.measured[name].append(entry[name])
            if family.reference_loss is not None:
                _keep(progress, state, family.reference_loss)
        after(state)

    def finished(state: TrainState) -> bool:
        found = progress.measured
        if family.stop_loss is None or not found["epoch"] or found["epoch"][-1] != state.epoch:
            return False
        return found["train_error"][-1] == 0 and found["train_loss"][-1] <= family.stop_loss

    start = progress.state
    if start is None or not finished(start):  # it may have been killed after its last epoch
        start = _train(
            plan, model, plan.train, start, pretraining=False, on_epoch=measured, stop=finished
        )
    epoch, weights = progress.kept or (start.epoch, start.model)
    checkpoints.apply_state(model, weights)
    checkpoints.save_atomic(_final(plan, epoch, weights), plan.final)
    history_of = {name: np.array(values) for name, values in progress.measured.items()}
    found = measure(plan, model, epoch, history_of)
    return dataclasses.replace(found, seconds=before + time.perf_counter() - clock)


def _train(
    plan: Plan,
    model: nn.Module,
    samples: Dataset,
    start: TrainState | None,
    *,
    pretraining: bool,
    on_epoch: Callable[[TrainState], None],
    stop: Callable[[TrainState], bool] | None = None,
) -> TrainState:
    family = plan.family
    seed = rng.seed_sequence(plan.seed, "pretraining" if pretraining else "training")
    settings = TrainConfig(
        model=plan.model,
        epochs=family.pretraining if pretraining else family.epochs,
        batch=family.batch,
        lr=family.rates[0],
        final_lr=family.rates[-1],
        decay_start=0,
        decay_end=0,
        momentum=family.momentum,
        weight_decay=family.weight_decay,
        seed=int(seed.generate_state(1)[0]),
    )
    augment = None
    if family.augment:
        black = -1.0 if samples.x.dtype == np.uint8 else 0.0
        augment = partial(crop_and_flip, fill=black)
    return train(
        model,
        losses.resolve(LOSS),
        samples,
        settings,
        device=plan.device,
        start=start,
        rate=(lambda _: family.rates[0]) if pretraining else family.rate,
        augment=augment,
        stop=stop,
        on_epoch=on_epoch,
    )


def _rested(state: TrainState) -> TrainState:
    # the weights after pre-training, the optimiser as new: epoch 0 of the next phase
    groups = [dict(group) for group in state.optimizer["param_groups"]]
    return TrainState(0, state.model, {"state": {}, "param_groups": groups})


def _keep(progress: _Progress, state: TrainState, reference: float) -> None:
    # the first of equals: only what is closer takes the place of what is kept
    away = [abs(loss - reference) for loss in progress.measured["train_loss"]]
    if progress.kept is None or away[-1] < min(away[:-1]):
        progress.kept = state.epoch, state.model


def _final(plan: Plan, epoch: int, weights: dict[str, Any]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "model": plan.model,
        "value": plan.value,
        "epoch": epoch,
        "identity": plan.identity,
        "state_dict": weights,
    }


def _write(plan: Plan, progress: _Progress) -> None:
    state = progress.state
    assert state is not None
    content = {
        "format": FORMAT,
        "version": VERSION,
        "identity": plan.identity,
        "phase": progress.phase,
        "state": {
            "epoch": state.epoch,
            "model": state.model,
            "optimizer": state.optimizer,
            "history": list(state.history),
        },
        "measured": progress.measured,
        "kept": progress.kept,
        "seconds": progress.seconds,
    }
    checkpoints.save_atomic(content, plan.checkpoint)


def _read(plan: Plan) -> _Progress:
    path = plan.checkpoint
    content = checkpoints.read(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise StoreError(f"{path} is no network in training of a family; move it away")
    if content["version"] > VERSION or content["identity"] != plan.identity:
        raise StoreError(
            f"{path} was made with other settings, data or version of hessrmt; continue with the "
            "same, or give another folder (--out)"
        )
    state = content["state"]
    return _Progress(
        content["phase"],
        TrainState(state["epoch"], state["model"], state["optimizer"], tuple(state["history"])),
        content["measured"],
        content["kept"],
        content["seconds"],
    )
