"""Families of networks that differ in one thing: trained, measured, and kept in one file each.

After "Generalization puzzles in deep networks" (2020): the numbers of a network are taken before
and after the norms of its layers are divided out. One process writes the files. A network is
trained by this process or by a worker of a pool, which saves it on its way where this process
would, so that any process can go on with it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator

from hessrmt import rng
from hessrmt.backend.select import select
from hessrmt.config import CountOrAll, Settings, TrainConfig
from hessrmt.errors import ConfigError, DataError, NonFiniteError
from hessrmt.experiments.experiment import drawn_seed
from hessrmt.generalization import (
    NormalizedLoss,
    evaluate,
    normalize,
    output_normalize,
    rademacher_bound,
)
from hessrmt.generalization.networks import evaluating, outputs
from hessrmt.generalization.normalization import QUANTILES, margins_of_outputs
from hessrmt.problems import checkpoints, data, losses, models
from hessrmt.progress import silent
from hessrmt.records import Provenance
from hessrmt.runs.run import SERIAL, Run, computed_by, digest, make_folders
from hessrmt.runs.training import TrainingPlan, train_all
from hessrmt.store.family import HISTORY, FamilyWriter, Member, load_family
from hessrmt.training.protocol import TrainState, crop_and_flip, drawn, initialize, permuted, train

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor, nn

    from hessrmt.backend.base import Backend
    from hessrmt.generalization import Evaluation, Measurement
    from hessrmt.generalization.normalization import Margins
    from hessrmt.problems.data import Dataset
    from hessrmt.progress import Tick
    from hessrmt.runs.run import Pool
    from hessrmt.runs.training import TrainingFile
    from hessrmt.store.family import FamilyResult

WIDTH = "{width}"
"""What stands for the width in the name of a model."""

_RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "initial-scale": (lambda value: 0 < value < float("inf"), "standard deviations, above 0"),
    "corruption": (lambda value: 0 <= value <= 1, "shares of the labels, 0 to 1"),
    **dict.fromkeys(
        ("width", "samples"),
        (lambda value: value >= 1 and value.is_integer(), "whole numbers from 1 on"),
    ),
}
"""What may be varied to which values are allowed, and those in words."""


Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]


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
    rates: tuple[Rate, ...] = Field(min_length=1)
    momentum: float = Field(0.0, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0, allow_inf_nan=False)
    augment: bool = False
    stop_loss: float | None = Field(None, gt=0, allow_inf_nan=False)
    reference_loss: float | None = Field(None, gt=0, allow_inf_nan=False)
    measure_every: int = Field(1, ge=1)
    norm: float = Field(2.0, ge=1)
    by: Literal["layers", "output"] = "layers"

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        allowed, expected = _RANGES[self.vary]
        faults = {
            f"{value:g} cannot be a value of {self.vary}; expected {expected}": True
            for value in self.values
            if not allowed(value)
        }
        faults |= {
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


class FamilySamples:
    """The samples of a family, the training samples in a random order of their own.

    Args:
        wanted: The family.
        folder: Where to look for data first.

    Attributes:
        wanted: The family.
        train: Training samples, with random labels if the family has those.
        test: Test samples, likewise.
        fixed: (1, ...) the first training sample of the data set.
        digests: SHA-256 of the ``data``, before labels are drawn and samples permuted.

    Raises:
        ConfigError: If more samples are asked for than there are.
        DataError: If the data have no classes.
    """

    def __init__(self, wanted: SeededFamily, folder: Path | None = None) -> None:
        self.wanted = wanted
        parts = [data.load(wanted.data, split, folder) for split in ("train", "test")]
        classes, there = parts[0].classes, len(parts[0])
        if classes is None:
            raise DataError(f"{wanted.data} has no classes; families need class labels")
        if (most := max(_sizes(wanted, there))) > there:
            raise ConfigError(
                f"{wanted.name} asks for {most:,} training samples, but there are {there:,} "
                f"({parts[0].origin})"
            )
        self.digests = {"data": digest(array for part in parts for array in (part.x, part.y))}
        self.fixed = parts[0].tensors(slice(1))[0]
        if wanted.labels == "random":
            draws = [rng.stream(wanted.seed, "random-labels", part.split) for part in parts]
            parts = [
                replace(part, y=drawn(len(part), classes, draw))
                for part, draw in zip(parts, draws, strict=True)
            ]
        order = rng.stream(wanted.seed, "samples").permutation(there)
        train_set, self.test = parts
        self.train = replace(train_set, x=train_set.x[order], y=train_set.y[order])

    @cached_property
    def backend(self) -> Backend:
        """Where networks are trained, chosen when first asked for."""
        return select(self.wanted.device)


def _sizes(family: Family, there: int) -> list[int]:
    """Training samples of each network."""
    if family.vary == "samples":
        return [int(value) for value in family.values]
    return [there if family.samples == "all" else family.samples] * len(family.values)


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
        tick: Told of progress: epochs of all networks that are trained.
        pool: Where networks are trained.

    Returns:
        The families.
    """
    runs = [Run(FamilySamples, family, folder, pool=pool, out=out) for family in families]
    make_folders(out, "families", "checkpoints")
    device, training = runs[0].on_one(_device, None), out / "checkpoints"
    paths = [out / "families" / f"{family.name}.h5" for family in families]
    with ExitStack() as stack:
        files, tasks = [], []
        for family, path, work in zip(families, paths, runs, strict=True):
            samples = work.prepared.train
            identity = {
                "family": family.model_dump(exclude={"seed", "device"}),
                "seed": family.seed,
                "data_sha256": work.prepared.digests["data"],
            }
            notes = (*[samples.origin] * samples.embedded, *computed_by(pool))
            about = Provenance({"data": samples.origin}, device, notes=notes)
            file = stack.enter_context(FamilyWriter(path, family.values, identity, about))
            for index, value in enumerate(family.values):
                name = f"{family.name}-{index}"
                if index in file.members:
                    (training / f"{name}.pt").unlink(missing_ok=True)
                    continue
                plan = TrainingPlan(
                    name,
                    family.pretraining + family.epochs,
                    {"member": index, **identity},
                    task=index,
                    words=f"network {index + 1} of {family.name} ({family.vary} {value:g})",
                )
                files.append(file)
                tasks.append((work, plan))
        left = len(tasks)
        try:
            for number, member in train_all(_trained, tasks, training, pool=pool, tick=tick):
                plan = tasks[number][1]
                files[number].write(plan.task, member)
                (training / f"{plan.name}.pt").unlink(missing_ok=True)
                left -= 1
        except (NonFiniteError, DataError) as error:
            every = sum(len(family.values) for family in families)
            done = f"{every - left} of {every} networks are in {out / 'families'}"
            raise type(error)(f"{error}. {done}") from error
    return [load_family(path) for path in paths]


def _device(samples: FamilySamples, _: None) -> str:
    return samples.backend.name


SAVE_SECONDS = 20.0
"""Time between saves of a network in training."""

LOSS = "cross-entropy"

BINS = 60
"""Of the histogram of the largest output."""

_CHECKED = 64
"""Training samples on which a network must be homogeneous."""

_BATCH = 250
"""Samples measured at a time."""


def _trained(
    samples: FamilySamples, plan: TrainingPlan, file: TrainingFile, told: Callable[[int], None]
) -> Member:
    """Train one network, or go on with it, and measure it; its last file holds its weights."""
    network = _Network(samples, plan.task, file, told)
    epoch, weights = network.finish()
    member = network.measure(epoch)
    identity = {name: value for name, value in plan.identity.items() if name != "member"}
    content = {"model": network.name, "value": network.value, "identity": identity}
    content |= {"format": "hessrmt/member", "version": 1, "epoch": epoch, "state_dict": weights}
    checkpoints.save_atomic(content, file.path.with_suffix(".final.pt"))
    return member


@dataclass
class _Progress:
    """What is saved of a network in training beside its state."""

    phase: int = 0
    measured: dict[str, list[float]] = field(default_factory=lambda: {k: [] for k in HISTORY})
    kept: tuple[int, dict[str, Any]] | None = None
    seconds: float = 0.0


class _Network:
    """One network: what it is to be, and how far it is."""

    def __init__(
        self, samples: FamilySamples, index: int, file: TrainingFile, told: Callable[[int], None]
    ) -> None:
        family = self.family = samples.wanted
        self.samples, self.device, self.file = samples, samples.backend.device, file
        self.told, self.value = told, family.values[index]
        # equal values have random numbers of their own
        again = family.values[:index].count(self.value)
        self.seed = drawn_seed(family.seed, "puzzles", family.name, repr(self.value), again)
        every, count = samples.train, _sizes(family, len(samples.train))[index]
        self.train = replace(every, x=every.x[:count], y=every.y[:count])
        self.name = family.model_of(self.value)
        self.model = models.build(self.name, every.input_shape, every.outputs, self.seed)
        scale = self.value if family.vary == "initial-scale" else family.initial_scale
        if scale is not None:
            initialize(self.model, scale, rng.torch_generator(self.seed, "initial-scale"))
        reference = samples.fixed.float() if family.by == "output" else None
        self.monitor = NormalizedLoss(self.model, LOSS, family.norm, reference=reference)
        # refuses a network that is not homogeneous
        self.monitor(*self.train.tensors(slice(_CHECKED), torch.float32))
        self.sets = [
            [(x.to(self.device), y.to(self.device)) for x, y in _pieces(part, torch.float32)]
            for part in (self.train, samples.test)
        ]
        self.progress, self.saved = _Progress(**file.extra), time.perf_counter()

    def finish(self) -> tuple[int, dict[str, Any]]:
        """Train what is left; the epoch that is kept, and its weights, which are then loaded."""
        family, latest = self.family, self.file.start
        if family.pretraining and not self.progress.phase:
            labels = permuted(self.train.y, self.value, rng.stream(self.seed, "corruption"))
            corrupted = replace(self.train, y=labels)
            latest = self._train("pretraining", corrupted, latest, on_epoch=self._after)
            # the weights after pre-training, the optimiser as new: epoch 0 of the next phase
            groups = [dict(group) for group in latest.optimizer["param_groups"]]
            latest = TrainState(0, latest.model, {"state": {}, "param_groups": groups})
        self.progress.phase = 1
        # it may have been killed after its last epoch
        if latest is None or not self._finished(latest):
            options = {"rate": family.rate, "on_epoch": self._measured, "stop": self._finished}
            latest = self._train("training", self.train, latest, **options)
        epoch, weights = self.progress.kept or (latest.epoch, latest.model)
        checkpoints.apply_state(self.model, weights)
        return epoch, weights

    def _train(
        self, phase: str, samples: Dataset, start: TrainState | None, **options: Any
    ) -> TrainState:
        family = self.family
        settings = TrainConfig(
            model=self.name,
            epochs=family.pretraining if phase == "pretraining" else family.epochs,
            lr=family.rates[0],
            final_lr=family.rates[0],
            seed=drawn_seed(self.seed, phase),
            **family.model_dump(include={"batch", "momentum", "weight_decay"}),
        )
        black = -1.0 if samples.x.dtype == np.uint8 else 0.0
        options["augment"] = partial(crop_and_flip, fill=black) if family.augment else None
        loss = losses.resolve(LOSS)
        return train(
            self.model, loss, samples, settings, device=self.device, start=start, **options
        )

    def _after(self, state: TrainState) -> None:
        self.told(state.epoch + self.progress.phase * self.family.pretraining)
        now = time.perf_counter()
        if now - self.saved >= SAVE_SECONDS:
            self.progress.seconds += now - self.saved
            self.saved = now
            self.file.save(state, **vars(self.progress))

    def _measured(self, state: TrainState) -> None:
        family, progress = self.family, self.progress
        if state.epoch % family.measure_every == 0 or state.epoch == family.epochs:
            for part in self.sets:
                self.monitor(part)
            found, test = self.monitor.history[-2:]
            numbers = {"epoch": float(state.epoch), "rate": state.history[-1]["lr"]}
            numbers |= _losses(found, test) | {"margin": found.margin, "product": found.product}
            for name in HISTORY:
                progress.measured[name].append(numbers[name])
            if family.reference_loss is not None:
                away = [abs(x - family.reference_loss) for x in progress.measured["train_loss"]]
                # the first of equals: only what is closer takes the place of what is kept
                if progress.kept is None or away[-1] < min(away[:-1]):
                    progress.kept = state.epoch, state.model
        self._after(state)

    def _finished(self, state: TrainState) -> bool:
        found, enough = self.progress.measured, self.family.stop_loss
        if enough is None or not found["epoch"] or found["epoch"][-1] != state.epoch:
            return False
        return found["train_error"][-1] == 0 and found["train_loss"][-1] <= enough

    def measure(self, epoch: int) -> Member:
        """The numbers of the trained network, all from float64 outputs."""
        family, loss = self.family, losses.resolve(LOSS)
        model = self.model.to(device=self.device, dtype=torch.float64).eval()
        if family.by == "layers":
            found = normalize(model, self.train.tensors(slice(_CHECKED))[0], family.norm)
        else:
            found = output_normalize(model, self.samples.fixed, family.norm)
        product = found.product
        with evaluating(model):
            pieces = _pieces(self.train, torch.float64)
            every = torch.cat([outputs(model, x.to(self.device)).cpu() for x, _ in pieces])
        top = every.amax(dim=1).numpy()
        margins = margins_of_outputs(every, torch.from_numpy(self.train.y))
        counts, edges = np.histogram(top / product, BINS)
        bounds = self._bounds(model, margins, product) if family.by == "layers" else {}
        losses_found = (
            evaluate(model, _pieces(part, torch.float64), loss, product)
            for part in (self.train, self.samples.test)
        )
        return Member(
            value=self.value,
            parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
            epoch=epoch,
            **_losses(*losses_found),
            product=product,
            factors=tuple(found.factors.values()),
            margin=float(margins.min()),
            normalized_margin=float(margins.min()) / product,
            margin_quantiles=np.quantile(margins / product, QUANTILES),
            top_output_mean=float(top.mean() / product),
            top_output_std=float(top.std() / product),
            top_output_edges=edges,
            top_output_counts=counts.astype(np.float64),
            raw_top_output_mean=float(top.mean()),
            raw_top_output_std=float(top.std()),
            history={name: np.array(values) for name, values in self.progress.measured.items()},
            seconds=self.progress.seconds + time.perf_counter() - self.saved,
            **bounds,
        )

    def _bounds(self, model: nn.Module, margins: Margins, product: float) -> dict[str, float]:
        """What the network's size and margins prove, where something is proven of its kind."""
        inputs = self.train.tensors(slice(None))[0]
        try:
            found = rademacher_bound(model, inputs)
        except DataError:
            return {}
        bound = found.error_bound(margins, self.samples.train.outputs)
        # γ is in units of the network whose matrices on all positions have norm 1
        return {
            "rademacher": found.complexity,
            "error_bound": bound.value,
            "error_bound_margin": bound.margin * found.product / product,
        }


def _losses(*found: Measurement | Evaluation) -> dict[str, Any]:
    """Losses and errors on training and test samples by the names of a member."""
    numbers: dict[str, Any] = {}
    for split, one in zip(("train", "test"), found, strict=True):
        losses_of = {f"{split}_loss": one.loss, f"normalized_{split}_loss": one.normalized_loss}
        numbers |= losses_of | {f"{split}_error": one.error}
    return numbers


def _pieces(samples: Dataset, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
    for first in range(0, len(samples), _BATCH):
        yield samples.tensors(slice(first, first + _BATCH), dtype)
