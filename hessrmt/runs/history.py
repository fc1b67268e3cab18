"""Recording a training run: Hessian spectrum, capacity and losses of the same weights in one file.

A row is written before the checkpoint of its epoch. So the file is never behind the checkpoint, and
a run that was killed and resumed finds the rows it would repeat already there.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
import torch

from hessrmt.capacity.analysis import analyze
from hessrmt.capacity.sources import open_source
from hessrmt.curvature.spectrum import compute, require_feasible
from hessrmt.errors import ConfigError, DataError
from hessrmt.problems import checkpoints, losses, models
from hessrmt.problems.problem import Problem
from hessrmt.progress import silent, under
from hessrmt.records import Provenance
from hessrmt.runs.run import batch_size, digest, naming
from hessrmt.store.history import CAPACITY, NETWORK, columns
from hessrmt.store.writing import SpectrumWriter
from hessrmt.training.protocol import evaluate_splits

if TYPE_CHECKING:
    from hessrmt.backend.base import Backend
    from hessrmt.capacity.report import Layer
    from hessrmt.config import HistoryConfig, TrainConfig
    from hessrmt.problems.data import Dataset
    from hessrmt.progress import Tick
    from hessrmt.records import Spectrum

Record = Callable[[int, Mapping[str, Any]], None]
"""Told of an epoch and the state dict after it; records it if it is to be and is not yet."""

Sets: TypeAlias = "Mapping[str, Dataset | None]"
"""``train`` and ``test`` to their samples; None where the data have no test split."""

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


class _Measurement:
    """Measures a network that is being trained, on a copy of its own."""

    def __init__(
        self, training: TrainConfig, settings: HistoryConfig, sets: Sets, backend: Backend
    ) -> None:
        self._training, self._settings, self.backend, self._sets = training, settings, backend, sets
        self._loss = losses.resolve(training.loss)
        self.dataset = dataset = cast("Dataset", sets["test"] or sets["train"])
        batch_size(settings.batch, dataset)
        self.epochs = settings.schedule(training.epochs)
        self.indices = np.arange(settings.batch)
        model = models.build(training.model, dataset.input_shape, dataset.outputs, training.seed)
        self._initial = model.to(dtype=getattr(torch, training.dtype)).eval()
        self._batch = dataset.tensors(self.indices, torch.float64, model)
        self._model = copy.deepcopy(model).to(backend.device)
        with open_source(model, conv=settings.conv) as source:
            skipped = {layer.name: layer.skipped for layer in source}
        self.layers = tuple(name for name, reason in skipped.items() if reason is None)
        if not self.layers:
            listed = "; ".join(f"{name}: {reason}" for name, reason in skipped.items())
            raise DataError(f"the network has no weight matrix to analyse. {listed}")
        problem = self._problem()
        require_feasible(problem, backend, DTYPE, OPERATOR)
        self.dimension = problem.dimension
        asked = settings.model_dump(mode="json") | {"epochs": list(self.epochs)}
        arrays = (a for data in sets.values() if data is not None for a in (data.x, data.y))
        trained = {name: value for name, value in training.identity.items() if name != "epochs"}
        self.identity: dict[str, Any] = {
            **trained,
            **{f"history_{name}": value for name, value in asked.items()},
            "data_sha256": digest(arrays),
            "parameters_sha256": digest(v.numpy(force=True) for v in model.state_dict().values()),
        }

    @property
    def config(self) -> dict[str, Any]:
        """Settings of file and training as a spectrum file stores them."""
        training = self._training.model_dump(mode="json")
        return {
            **{name: training[name] for name in ("model", "data", "loss", "device", "seed")},
            "split": self.dataset.split,
            "batch": len(self.indices),
            "operator": OPERATOR,
            "dtype": DTYPE,
            "reduce": "auto",
            **self._settings.model_dump(include={"only", "conv"}),
            "embedded_data": self.dataset.embedded,
            "training": training,
        }

    def measure(
        self, state: Mapping[str, Any], tick: Tick | None
    ) -> tuple[Spectrum, dict[str, Any]]:
        """Spectrum of the Hessian at a state dict of the network, and extra column to value."""
        checkpoints.apply_state(self._model, state)
        spectrum = compute(self._problem(), self.backend, DTYPE, OPERATOR, tick=tick)
        report = analyze(
            self._model,
            self._settings.conv,
            self._training.seed,
            initial=self._initial,
            device=self._training.device,
        )
        layers = {layer.name: layer for layer in report.layers}
        rows = [layers[name] for name in self.layers]
        device, dtype = self.backend.device, self._training.dtype
        found = evaluate_splits(self._model, self._loss, self._sets, device=device, dtype=dtype)
        return spectrum, {
            **{f"capacity/{key}": [_number(layer, key) for layer in rows] for key in CAPACITY},
            **{f"network/{key}": getattr(report, key) for key in NETWORK},
            **{f"training/{key}": np.nan if v is None else v for key, v in found.items()},
        }

    def _problem(self) -> Problem:
        return Problem(self._model, self._loss, self._batch, only=self._settings.only)


@contextmanager
def recording(
    wanted: Recording | None,
    training: TrainConfig,
    sets: Sets,
    backend: Backend,
    start: int,
    *,
    resume: bool = False,
    overwrite: bool = False,
    tick: Tick = silent,
) -> Iterator[Record]:
    """Open the file of a history and hold it until the training is done.

    Args:
        wanted: Which file, which epochs; None for no history.
        training: Settings of the training.
        sets: The training and the test samples.
        backend: Where to compute.
        start: Epochs that the checkpoint to continue from has completed; 0 without one.
        resume: Continue the file if it is there.
        overwrite: Replace the file if it is there.
        tick: Told of progress.

    Yields:
        What is to be told of every epoch, the one at ``start`` included.

    Raises:
        ConfigError: If the batch does not fit the split, or epochs have passed unrecorded.
        DataError: If the network has no weight matrix to analyse.
    """
    if wanted is None:
        yield lambda *_: None
        return
    measurement = _Measurement(training, wanted.settings, sets, backend)
    epochs, origin = measurement.epochs, cast("Dataset", sets["train"]).origin
    if not (resume and wanted.path.exists()):
        _require_ahead(wanted.path, epochs, start)
    with SpectrumWriter(
        wanted.path,
        identity=measurement.identity,
        solver=backend.solver,
        dimension=measurement.dimension,
        batch_indices=np.tile(measurement.indices, (len(epochs), 1)),
        provenance=Provenance(measurement.config, backend.name, notes=(f"data: {origin}",)),
        extra=columns(epochs, measurement.layers),
        resume=resume,
        overwrite=overwrite,
    ) as file:
        missing = [epoch for epoch, done in zip(epochs, file.done, strict=True) if not done]
        _require_ahead(wanted.path, missing, start)

        def record(epoch: int, state: Mapping[str, Any]) -> None:
            if epoch in missing:
                with naming(f"history of epoch {epoch}"):
                    told = under(tick, f"measuring: epoch {epoch}, ")
                    found, extra = measurement.measure(state, told)
                file.write(epochs.index(epoch), found, extra)
                missing.remove(epoch)

        yield record


def _require_ahead(path: Path, missing: Sequence[int], start: int) -> None:
    lost = [epoch for epoch in missing if epoch < start]
    if lost:
        raise ConfigError(
            f"the checkpoint has completed {start} epochs, and {path} lacks epochs "
            f"{', '.join(map(str, lost))}: train again from the start with --overwrite, or record "
            f"later epochs in a new file with --history-epochs {start},..."
        )


def _number(layer: Layer, name: str) -> float:
    value = getattr(layer, name)
    return np.nan if value is None or layer.skipped is not None else float(value)
