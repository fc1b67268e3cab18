"""Families of networks that differ in one thing: trained, measured, and kept in one file each.

After "Generalization puzzles in deep networks" (2020): the numbers of a network are taken before
and after the norms of its layers are divided out. One process writes the files. A network is
trained by this process or by a worker of a pool, which saves it on its way where this process
would, so that any process can go on with it.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import torch
from pydantic import Field, field_validator, model_validator

from hessrmt import rng
from hessrmt.backend.select import select
from hessrmt.config import CountOrAll, Settings, TrainConfig
from hessrmt.errors import ConfigError, DataError, NonFiniteError, ProblemError
from hessrmt.experiments.experiment import drawn_seed
from hessrmt.generalization import evaluate, normalize, output_normalize
from hessrmt.generalization.networks import evaluating, outputs
from hessrmt.generalization.normalization import (
    QUANTILES,
    effective_weights,
    layer_factors,
    output_factor,
)
from hessrmt.problems import checkpoints, data, losses, models
from hessrmt.progress import silent
from hessrmt.records import Provenance
from hessrmt.runs.run import (
    SERIAL,
    Run,
    compute_all,
    computed_by,
    digest,
    make_folders,
)
from hessrmt.runs.training import TrainingFile
from hessrmt.store.family import HISTORY, FamilyWriter, Member, load_family
from hessrmt.training.protocol import TrainState, crop_and_flip, drawn, initialize, permuted, train

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor, nn

    from hessrmt.backend.base import Backend
    from hessrmt.generalization.networks import FoldedLayer
    from hessrmt.generalization.normalization import MarginSummary
    from hessrmt.problems.data import Dataset
    from hessrmt.progress import Tick
    from hessrmt.runs.run import Pool
    from hessrmt.store.family import FamilyResult

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
    samples: CountOrAll = "all"
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
        faults = {
            f"the model is {self.model!r}, but {WIDTH} belongs there where, and only where, widths "
            "are varied": (self.vary == "width") != (WIDTH in self.model),
            f"{len(self.rates)} learning rates for {self.epochs} epochs; expected at least one "
            "epoch for each": len(self.rates) > self.epochs,
            f"pretraining is {self.pretraining} epochs; it should be at least 1 where the "
            "corruption is varied, and 0 elsewhere": (self.vary == "corruption")
            != (self.pretraining > 0),
            "the initial scale is varied; leave initial_scale out": self.vary == "initial-scale"
            and self.initial_scale is not None,
            "the samples are varied; leave samples out": self.vary == "samples"
            and self.samples != "all",
        }
        for fault, there in faults.items():
            if there:
                raise ValueError(f"{self.name}: {fault}")
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


class SeededFamily(Family):
    """A family as it is trained.

    Attributes:
        seed: Of everything.
        device: ``auto``, ``cpu`` or ``cuda[:i]``.
    """

    seed: int = Field(0, ge=0)
    device: str = "auto"


@dataclass(frozen=True, eq=False)
class FamilySamples:
    """The samples of a family, the training samples in a random order of their own.

    Attributes:
        wanted: The family.
        train: Training samples, with random labels if the family has those.
        test: Test samples, likewise.
        fixed: (1, ...) the first training sample of the data set.
        digests: SHA-256 of the ``data``, before labels are drawn and samples permuted.
    """

    wanted: SeededFamily
    train: Dataset
    test: Dataset
    fixed: Tensor
    digests: Mapping[str, str]

    @cached_property
    def backend(self) -> Backend:
        """Where networks are trained, chosen when first asked for."""
        return select(self.wanted.device)


def samples_of(family: SeededFamily, folder: Path | None = None) -> FamilySamples:
    """The samples of a family.

    Args:
        family: What it is.
        folder: Where to look for data first.

    Returns:
        The samples.

    Raises:
        ConfigError: If more samples are asked for than there are.
        DataError: If the data have no classes.
    """
    test = data.load(family.data, "test", folder)
    train_set = data.load(family.data, "train", folder)
    if train_set.classes is None:
        raise DataError(f"{family.data} has no classes; families need class labels")
    most = max(_sizes(family, len(train_set)))
    if most > len(train_set):
        raise ConfigError(
            f"{family.name} asks for {most:,} training samples, but there are {len(train_set):,} "
            f"({train_set.origin})"
        )
    sha256 = digest([train_set.x, train_set.y, test.x, test.y])
    fixed = train_set.tensors(slice(1))[0]
    if family.labels == "random":
        classes = train_set.classes
        train_set, test = (
            dataclasses.replace(
                part,
                y=drawn(len(part), classes, rng.stream(family.seed, "random-labels", part.split)),
            )
            for part in (train_set, test)
        )
    order = rng.stream(family.seed, "samples").permutation(len(train_set))
    permuted_set = dataclasses.replace(train_set, x=train_set.x[order], y=train_set.y[order])
    return FamilySamples(family, permuted_set, test, fixed, {"data": sha256})


def _sizes(family: Family, there: int) -> list[int]:
    if family.vary == "samples":
        return [int(value) for value in family.values]
    return [there if family.samples == "all" else family.samples]


_FAILS = (NonFiniteError, DataError)
"""What may happen to a network whose settings are right."""


def run_all(
    families: Sequence[SeededFamily],
    out: Path,
    *,
    folder: Path | None = None,
    tick: Tick = silent,
    pool: Pool = SERIAL,
) -> list[FamilyResult]:
    """Train what is not trained yet of some families, and read all of them.

    Args:
        families: What they are.
        out: Folder for everything; workers must have it too.
        folder: Where to look for data first.
        tick: Told of progress: epochs of the network that is trained, or networks.
        pool: Where networks are trained.

    Returns:
        The families.
    """
    for one in families if len(families) > 1 else ():
        samples_of(one, folder)  # what is missing is said at once
    for part in [[one] for one in families] if pool.local else [families]:
        _run(part, out, folder, tick, pool)
    return [load_family(_file(out, family)) for family in families]


def _run(
    families: Sequence[SeededFamily], out: Path, folder: Path | None, tick: Tick, pool: Pool
) -> None:
    """Train what is missing of one family here, or of all families by workers."""
    runs = [Run(samples_of, family, folder, pool=pool, out=out) for family in families]
    make_folders(out, "families", "checkpoints")
    name = runs[0].on_one(_device, None)
    tasks = []
    with ExitStack() as stack:
        for family, work in zip(families, runs, strict=True):
            identity = {
                "family": family.model_dump(exclude={"seed", "device"}),
                "seed": family.seed,
                "data_sha256": work.prepared.digests["data"],
            }
            samples = work.prepared.train
            notes = (*[samples.origin] * samples.embedded, *computed_by(pool))
            about = Provenance({"data": samples.origin}, name, notes=notes)
            writer = FamilyWriter(_file(out, family), family.values, identity, about)
            file = stack.enter_context(writer)
            for index in range(len(family.values)):
                if index in file.members:
                    _checkpoint(family, index, out).unlink(missing_ok=True)
                else:
                    tasks.append((work, (family.name, identity, index), family, file))
        every = sum(len(family.values) for family in families)
        done = every - len(tasks)
        if not pool.local:
            tick("networks", done, every)
        step = partial(_make, tick=tick if pool.local else silent, out=out.absolute())
        try:
            for task, member in compute_all(pool, step, [parts[:2] for parts in tasks]):
                _, (_, _, index), family, file = tasks[task]
                file.write(index, member)
                _checkpoint(family, index, out).unlink(missing_ok=True)
                done += 1
                if not pool.local:
                    tick("networks", done, every)
        except _FAILS as error:
            raise type(error)(
                f"{error}. {done} of {every} networks are in {out / 'families'}"
            ) from error


def _device(samples: FamilySamples, _: None) -> str:
    return samples.backend.name


def _file(out: Path, family: Family) -> Path:
    return out / "families" / f"{family.name}.h5"


def _checkpoint(family: Family, index: int, out: Path) -> Path:
    """File of a network in training."""
    return out / "checkpoints" / f"{family.name}-{index}.pt"


@dataclass(frozen=True, eq=False)
class MemberPlan:
    """What one network is to be.

    Attributes:
        samples: Of the family that it belongs to.
        index: Its number there.
    """

    samples: FamilySamples
    index: int

    @property
    def family(self) -> SeededFamily:
        """That it belongs to."""
        return self.samples.wanted

    @property
    def value(self) -> float:
        """Of what is varied."""
        return self.family.values[self.index]

    @property
    def model(self) -> str:
        """Registry name or ``file.py:factory``."""
        return self.family.model_of(self.value)

    @cached_property
    def train(self) -> Dataset:
        """Its training samples."""
        every = self.samples.train
        sizes = _sizes(self.family, len(every))
        count = sizes[self.index if self.family.vary == "samples" else 0]
        return dataclasses.replace(every, x=every.x[:count], y=every.y[:count])

    @property
    def device(self) -> torch.device:
        """Where to compute."""
        return self.samples.backend.device

    @cached_property
    def seed(self) -> int:
        """Of its random numbers; equal values have those of their own."""
        again = self.family.values[: self.index].count(self.value)
        return drawn_seed(self.family.seed, "puzzles", self.family.name, repr(self.value), again)


SAVE_SECONDS = 20.0
"""Time between saves of a network in training."""


@dataclass
class _Progress:
    """What is saved of a network in training beside its state."""

    phase: int = 0
    measured: dict[str, list[float]] = field(default_factory=lambda: {k: [] for k in HISTORY})
    kept: tuple[int, dict[str, Any]] | None = None
    seconds: float = 0.0


def _make(
    samples: FamilySamples,
    item: tuple[str, Mapping[str, Any], int],
    out: Path,
    tick: Tick = silent,
) -> Member:
    """Train one network, or go on with it, and measure it; an error says which."""
    name, identity, index = item
    plan = MemberPlan(samples, index)
    family = plan.family
    count = len(family.values)
    phase = f"{name} {index + 1}/{count} ({plan.value:g}), epochs"
    path = _checkpoint(family, index, out)
    try:
        with TrainingFile(path, {"member": index, **identity}, resume=True) as file:
            made, final = _trained(plan, file, partial(tick, phase))
    except _FAILS as error:
        raise type(error)(
            f"network {index + 1} of {name} ({family.vary} {plan.value:g}): {error}"
        ) from error
    about = {"model": plan.model, "value": plan.value, "identity": dict(identity)}
    checkpoints.save_atomic(
        {"format": "hessrmt/member", "version": 1, **about, **final}, path.with_suffix(".final.pt")
    )
    return made


def _trained(
    plan: MemberPlan, file: TrainingFile, tick: Callable[[int, int], None]
) -> tuple[Member, dict[str, Any]]:
    """Numbers of a network and what its last file holds."""
    clock = time.perf_counter()
    family = plan.family
    model = models.build(plan.model, plan.train.input_shape, plan.train.outputs, plan.seed)
    scale = plan.value if family.vary == "initial-scale" else family.initial_scale
    if scale is not None:
        initialize(model, scale, rng.torch_generator(plan.seed, "initial-scale"))
    progress, latest = _Progress(**file.extra), file.start
    before, saved, every = progress.seconds, clock, family.pretraining + family.epochs

    def after(state: TrainState) -> None:
        nonlocal saved
        tick(state.epoch + progress.phase * family.pretraining, every)
        now = time.perf_counter()
        if now - saved >= SAVE_SECONDS:
            saved, progress.seconds = now, before + now - clock
            file.save(state, **vars(progress))

    tick(0, every)
    if family.pretraining and not progress.phase:
        labels = permuted(plan.train.y, plan.value, rng.stream(plan.seed, "corruption"))
        corrupted = dataclasses.replace(plan.train, y=labels)
        latest = _rested(_train(plan, model, corrupted, latest, pretraining=True, on_epoch=after))
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

    if latest is None or not finished(latest):  # it may have been killed after its last epoch
        latest = _train(
            plan, model, plan.train, latest, pretraining=False, on_epoch=measured, stop=finished
        )
    epoch, weights = progress.kept or (latest.epoch, latest.model)
    checkpoints.apply_state(model, weights)
    history_of = {name: np.array(values) for name, values in progress.measured.items()}
    found = measure(plan, model, epoch, history_of)
    seconds = before + time.perf_counter() - clock
    return dataclasses.replace(found, seconds=seconds), {"epoch": epoch, "state_dict": weights}


def _train(
    plan: MemberPlan,
    model: nn.Module,
    samples: Dataset,
    start: TrainState | None,
    *,
    pretraining: bool,
    on_epoch: Callable[[TrainState], None],
    stop: Callable[[TrainState], bool] | None = None,
) -> TrainState:
    family = plan.family
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
        seed=drawn_seed(plan.seed, "pretraining" if pretraining else "training"),
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


LOSS = "cross-entropy"

BINS = 60
"""Of the histogram of the largest output."""

_CHECKED = 64
"""Training samples on which a network must be homogeneous."""

_BATCH = 250
"""Samples measured at a time."""


def measure(
    plan: MemberPlan, model: nn.Module, epoch: int, history: Mapping[str, np.ndarray]
) -> Member:
    """The numbers of a trained network, all from float64 outputs.

    Args:
        plan: What it was to be.
        model: The network; becomes float64.
        epoch: Of the weights.
        history: What was measured in training.

    Returns:
        The numbers.

    Raises:
        ProblemError: If the network has no output per class.
    """
    family = plan.family
    model = model.to(device=plan.device, dtype=torch.float64).eval()
    if family.by == "layers":
        found = normalize(model, plan.train.tensors(slice(_CHECKED))[0], family.norm)
    else:
        found = output_normalize(model, plan.samples.fixed, family.norm)
    sets = [_pieces(part, torch.float64) for part in (plan.train, plan.samples.test)]
    numbers, margins = _evaluated(plan, model, sets, found.product)
    top = _largest(model, plan)
    counts, edges = np.histogram(top / found.product, BINS)
    return Member(
        value=plan.value,
        parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        epoch=epoch,
        **numbers,
        factors=tuple(found.factors.values()),
        normalized_margin=margins.normalized_minimum,
        margin_quantiles=np.quantile(margins.margins / found.product, QUANTILES),
        top_output_mean=float(top.mean() / found.product),
        top_output_std=float(top.std() / found.product),
        top_output_edges=edges,
        top_output_counts=counts.astype(np.float64),
        raw_top_output_mean=float(top.mean()),
        raw_top_output_std=float(top.std()),
        history=history,
    )


def _evaluated(
    plan: MemberPlan,
    model: nn.Module,
    sets: Sequence[Iterable[tuple[Tensor, Tensor]]],
    product: float,
) -> tuple[dict[str, Any], MarginSummary]:
    """Losses, errors and the smallest margin of a network, and all margins."""
    loss = losses.resolve(LOSS)
    train_found, test_found = (evaluate(model, pieces, loss, product) for pieces in sets)
    margins, wrong = train_found.margins, test_found.error
    if margins is None or wrong is None:
        raise ProblemError(f"{plan.model} gives no output per class; families need class labels")
    numbers = {
        "train_loss": train_found.loss,
        "test_loss": test_found.loss,
        "train_error": margins.error,
        "test_error": wrong,
        "normalized_train_loss": train_found.normalized_loss,
        "normalized_test_loss": test_found.normalized_loss,
        "margin": margins.minimum,
        "product": product,
    }
    return numbers, margins


class History:
    """Measures a network in training: one pass over training and test samples each time.

    Args:
        plan: What it is to be.
        model: The network; it is measured as it is when the object is called.
    """

    def __init__(self, plan: MemberPlan, model: nn.Module) -> None:
        self._plan, self._model = plan, model
        self._sets = [
            [(x.to(plan.device), y.to(plan.device)) for x, y in _pieces(part, torch.float32)]
            for part in (plan.train, plan.samples.test)
        ]
        self._fixed = plan.samples.fixed.to(device=plan.device, dtype=torch.float32)
        self._layers: tuple[FoldedLayer, ...] = ()
        if plan.family.by == "layers":
            some = plan.train.tensors(slice(_CHECKED))[0]
            network = copy.deepcopy(model).to(device="cpu", dtype=torch.float64)
            self._layers = normalize(network, some, plan.family.norm).layers

    def __call__(self, state: TrainState) -> dict[str, float]:
        """The numbers after an epoch.

        Args:
            state: After it.

        Returns:
            Name, as in :data:`~hessrmt.store.family.HISTORY`, to number.
        """
        numbers, _ = _evaluated(self._plan, self._model, self._sets, self._product())
        return {"epoch": float(state.epoch), "rate": state.history[-1]["lr"], **numbers}

    def _product(self) -> float:
        norm = self._plan.family.norm
        if self._layers:
            weights = effective_weights(self._model, self._layers)
            return math.prod(layer_factors(weights, norm).values())
        with evaluating(self._model):
            return output_factor(outputs(self._model, self._fixed), norm)


def _largest(model: nn.Module, plan: MemberPlan) -> np.ndarray:
    with evaluating(model):
        found = [
            outputs(model, x.to(plan.device)).amax(dim=1).cpu()
            for x, _ in _pieces(plan.train, torch.float64)
        ]
    return torch.cat(found).numpy()


def _pieces(samples: Dataset, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
    for first in range(0, len(samples), _BATCH):
        yield samples.tensors(slice(first, first + _BATCH), dtype)
