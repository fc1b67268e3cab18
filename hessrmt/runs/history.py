"""Recording a training run: Hessian spectrum, capacity and losses of the same weights in one file.

A row is written before the checkpoint of its epoch. So the file is never behind the checkpoint, and
a run that was killed and resumed finds the rows it would repeat already there.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hessrmt.capacity.analysis import analyze
from hessrmt.capacity.sources import open_source
from hessrmt.curvature.spectrum import compute, require_feasible
from hessrmt.errors import ConfigError, DataError
from hessrmt.problems import checkpoints, losses, models
from hessrmt.problems.problem import Problem
from hessrmt.progress import under
from hessrmt.records import Provenance
from hessrmt.runs.run import digest, naming
from hessrmt.store.history import CAPACITY, NETWORK, columns
from hessrmt.store.spectra import SpectrumWriter
from hessrmt.training.protocol import evaluate

if TYPE_CHECKING:
    from hessrmt.backend.base import Backend
    from hessrmt.capacity.report import CapacityReport, Layer
    from hessrmt.config import HistoryConfig, TrainConfig
    from hessrmt.problems.data import Dataset
    from hessrmt.progress import Tick
    from hessrmt.records import Spectrum

Record = Callable[[int, Mapping[str, Any]], None]
"""Told of an epoch and the state dict after it; records it if it is to be and is not yet."""

OPERATOR, DTYPE = "hessian", "float64"


@dataclass(frozen=True)
class Recording:
    """What is to be recorded, and where.

    Attributes:
        path: The file.
        settings: Which epochs, which batch.
    """

    path: Path
    settings: HistoryConfig


class Measurement:
    """Measures a network that is being trained, on a copy of its own.

    Args:
        training: Settings of the training.
        settings: Settings of the history.
        train_set: The training samples.
        test_set: The test samples; None where data have no splits.
        backend: Where to compute.

    Attributes:
        backend: Where it computes.
        epochs: When to measure, ascending.
        dimension: Rows of the Hessian.
        indices: (B,) positions of the Hessian's batch in its split.
        split: That split.
        layers: Names of the layers whose weights are analysed.
        identity: What a resumed run must share.

    Raises:
        ConfigError: If the batch does not fit the split.
        CapacityError: If the network has no weight matrix to analyse.
    """

    def __init__(
        self,
        training: TrainConfig,
        settings: HistoryConfig,
        train_set: Dataset,
        test_set: Dataset | None,
        backend: Backend,
    ) -> None:
        self._training, self._settings, self.backend = training, settings, backend
        self._train_set, self._test_set = train_set, test_set
        self._loss = losses.resolve(training.loss)
        dataset = train_set if test_set is None else test_set
        if settings.batch > len(dataset):
            raise ConfigError(
                f"a history's batch of {settings.batch} is larger than the {dataset.split} split "
                f"of {dataset.name} ({len(dataset):,} samples)"
            )
        self.epochs = settings.schedule(training.epochs)
        self.split, self.indices = dataset.split, np.arange(settings.batch)
        model = models.build(
            training.model, train_set.input_shape, train_set.outputs, training.seed
        ).to(dtype=getattr(torch, training.dtype))
        self._initial = model.eval()
        self._batch = dataset.tensors(self.indices, torch.float64, model)
        self._model = copy.deepcopy(model).to(backend.device)
        with open_source(model, conv=settings.conv) as source:
            self.layers = tuple(layer.name for layer in source if layer.skipped is None)
            skipped = {layer.name: layer.skipped for layer in source if layer.skipped is not None}
        if not self.layers:
            listed = "; ".join(f"{name}: {reason}" for name, reason in skipped.items())
            raise DataError(f"the network has no weight matrix to analyse. {listed}")
        problem = self._problem()
        require_feasible(problem, backend, DTYPE, OPERATOR)
        self.dimension = problem.dimension
        arrays = [a for data in (train_set, test_set) if data is not None for a in (data.x, data.y)]
        self.identity: dict[str, Any] = {
            **training.model_dump(mode="json", exclude={"epochs"}),
            "history_epochs": list(self.epochs),
            **{
                f"history_{name}": value
                for name, value in settings.model_dump(mode="json", exclude={"epochs"}).items()
            },
            "data_sha256": digest(arrays),
            "parameters_sha256": digest(v.numpy(force=True) for v in model.state_dict().values()),
        }

    @property
    def config(self) -> dict[str, Any]:
        """Settings of file and training as a spectrum file stores them."""
        training = self._training.model_dump(mode="json")
        return {
            **{name: training[name] for name in ("model", "data", "loss", "device", "seed")},
            "split": self.split,
            "batch": len(self.indices),
            "operator": OPERATOR,
            "dtype": DTYPE,
            "reduce": "auto",
            "only": self._settings.only,
            "conv": self._settings.conv,
            "embedded_data": self._train_set.embedded,
            "training": training,
        }

    def measure(
        self, state: Mapping[str, Any], tick: Tick | None = None
    ) -> tuple[Spectrum, dict[str, Any]]:
        """Everything about one state of the network.

        Args:
            state: Its state dict.
            tick: Told of progress.

        Returns:
            The Hessian's spectrum, and extra column to its value.
        """
        checkpoints.apply_state(self._model, state)
        spectrum = compute(self._problem(), self.backend, DTYPE, OPERATOR, tick=tick)
        report = analyze(
            self._model,
            self._settings.conv,
            self._training.seed,
            initial=self._initial,
            device=self._training.device,
        )
        return spectrum, _capacity(report, self.layers) | self._losses()

    def _problem(self) -> Problem:
        return Problem(self._model, self._loss, self._batch, only=self._settings.only)

    def _losses(self) -> dict[str, float]:
        found = {}
        for name, samples in (("train", self._train_set), ("test", self._test_set)):
            loss, accuracy = None, None
            if samples is not None:
                device, dtype = self.backend.device, self._training.dtype
                loss, accuracy = evaluate(
                    self._model, self._loss, samples, device=device, dtype=dtype
                )
            found[f"training/{name}_loss"] = np.nan if loss is None else loss
            found[f"training/{name}_accuracy"] = np.nan if accuracy is None else accuracy
        return found


@contextmanager
def recording(
    wanted: Recording,
    measurement: Measurement,
    start: int,
    *,
    resume: bool = False,
    overwrite: bool = False,
    notes: tuple[str, ...] = (),
    tick: Tick | None = None,
) -> Iterator[Record]:
    """Open the file of a history and hold it until the training is done.

    Args:
        wanted: Which file, which epochs.
        measurement: How to measure.
        start: Epochs that the checkpoint to continue from has completed; 0 without one.
        resume: Continue the file if it is there.
        overwrite: Replace the file if it is there.
        notes: Stored with a new file.
        tick: Told of progress.

    Yields:
        What is to be told of every epoch, the one at ``start`` included.

    Raises:
        HessrmtError: If a measurement fails; the message names the epoch.
    """
    epochs = measurement.epochs
    if not (resume and os.path.exists(wanted.path)):
        _require_ahead(wanted.path, epochs, start)
    with SpectrumWriter(
        wanted.path,
        identity=measurement.identity,
        solver=measurement.backend.solver,
        dimension=measurement.dimension,
        batch_indices=np.tile(measurement.indices, (len(epochs), 1)),
        provenance=Provenance(measurement.config, measurement.backend.name, notes=notes),
        extra=columns(epochs, measurement.layers),
        resume=resume,
        overwrite=overwrite,
    ) as file:
        missing = [epoch for epoch, done in zip(epochs, file.done, strict=True) if not done]
        _require_ahead(wanted.path, missing, start)

        def record(epoch: int, state: Mapping[str, Any]) -> None:
            if epoch not in epochs or file.done[epochs.index(epoch)]:
                return

            with naming(f"history of epoch {epoch}"):
                found, extra = measurement.measure(
                    state, under(tick, f"measuring: epoch {epoch}, ")
                )
            file.write(epochs.index(epoch), found, extra)

        yield record


def _require_ahead(path: Path, missing: Sequence[int], start: int) -> None:
    lost = [epoch for epoch in missing if epoch < start]
    if lost:
        raise ConfigError(
            f"the checkpoint has completed {start} epochs, and {path} lacks epochs "
            f"{', '.join(map(str, lost))}: train again from the start with --overwrite, or record "
            f"later epochs in a new file with --history-epochs {start},..."
        )


def _capacity(report: CapacityReport, names: tuple[str, ...]) -> dict[str, Any]:
    layers = {layer.name: layer for layer in report.layers}
    return {
        **{f"capacity/{key}": [_number(layers[name], key) for name in names] for key in CAPACITY},
        **{f"network/{key}": getattr(report, key) for key in NETWORK},
    }


def _number(layer: Layer, name: str) -> float:
    value = getattr(layer, name)
    return np.nan if value is None or layer.skipped is not None else float(value)
