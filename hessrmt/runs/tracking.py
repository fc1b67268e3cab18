"""Curvature along any training loop: measured every so many steps, kept in a file as it goes.

>>> tracker = hr.Tracker(hr.Problem(model.eval(), "cross-entropy", (x, y)), every=50, out="run.h5")
>>> for step, batch in enumerate(batches):
...     tracker(step, lr=0.1)  # before the update: step 0 is the untrained network
...     update(model, batch)
>>> tracker.track.plot()
"""

from __future__ import annotations

import math
import os
import uuid
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from hessrmt.backend.select import select
from hessrmt.checks import one_of, real, require_whole
from hessrmt.curvature.lanczos import extremal_eigenvalues
from hessrmt.curvature.operators import CurvatureOperator
from hessrmt.curvature.spectrum import spectrum
from hessrmt.curvature.stochastic import quadrature, traces
from hessrmt.errors import ConfigError, HessrmtWarning, StoreError
from hessrmt.files import require_new
from hessrmt.problems.batches import tensors_of
from hessrmt.problems.problem import Problem
from hessrmt.records import Provenance, from_python
from hessrmt.results import Result
from hessrmt.runs.run import digest
from hessrmt.store import results
from hessrmt.store.files import ResumableFile, require_one, require_same

if TYPE_CHECKING:
    from jaxtyping import Float64, Int64

    from hessrmt.curvature.dense import Device, Dtype

WHAT = ("edge", "trace", "rank", "density")
"""What can be tracked: ends of the spectrum, tr H, all eigenvalues above the floor, the density."""

_COLUMNS = {
    "edge": ("largest", "largest_bound", "smallest", "smallest_bound"),
    "trace": ("trace", "trace_error"),
    "rank": ("rank", "noise_floor"),
}
_MORE = {"momentum": 0.0, "dampening": 0.0, "nesterov": 0.0, "sgd": 1.0}
"""What of an optimiser is told beside its rate, in torch's words, to what holds where it isn't."""

_NAN = float("nan")


@dataclass(frozen=True)
class Track(
    Result,
    axes={
        "record": "steps loss gradient_norm largest largest_bound smallest smallest_bound trace "
        "trace_error rank noise_floor",
        "record probe node": "nodes weights",
    },
    picture="training.track",
):
    """Curvature of one loss at several steps of a training.

    What was not asked for is NaN, or empty.

    Attributes:
        steps: (n,) as the loop counts them: updates made before the measurement where it calls the
            tracker before it updates, as the callbacks do; 0 is then the untrained network.
        loss: (n,) mean loss on the tracker's samples.
        gradient_norm: (n,) Euclidean norm of its gradient.
        largest: (n,) λ_max.
        largest_bound: (n,) an eigenvalue lies within this distance of it.
        smallest: (n,) λ_min; NaN where the lower end can't be told from zero.
        smallest_bound: (n,) as of the largest.
        trace: (n,) estimate of tr H.
        trace_error: (n,) its standard error.
        rank: (n,) eigenvalues above the noise floor, exactly counted from all of them.
        noise_floor: (n,) that floor.
        nodes: (n, probes, m) Gauss quadratures of the density; NaN where there are fewer.
        weights: (n, probes, m) their weights; a row sums to 1.
        numbers: What the loop told, e.g. ``"lr"``, to its (n,) values; NaN where it did not.
        dimension: P, the number of trainable parameters.
        provenance: Settings of the tracker.
    """

    steps: Int64[np.ndarray, " n"]
    loss: Float64[np.ndarray, " n"]
    gradient_norm: Float64[np.ndarray, " n"]
    largest: Float64[np.ndarray, " n"]
    largest_bound: Float64[np.ndarray, " n"]
    smallest: Float64[np.ndarray, " n"]
    smallest_bound: Float64[np.ndarray, " n"]
    trace: Float64[np.ndarray, " n"]
    trace_error: Float64[np.ndarray, " n"]
    rank: Float64[np.ndarray, " n"]
    noise_floor: Float64[np.ndarray, " n"]
    nodes: Float64[np.ndarray, "n probes m"]
    weights: Float64[np.ndarray, "n probes m"]
    numbers: Mapping[str, Float64[np.ndarray, " n"]]
    dimension: int
    provenance: Provenance = field(default_factory=Provenance)

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def threshold(self) -> Float64[np.ndarray, " n"]:
        """(n,) the λ_max beyond which gradient descent is unstable on a quadratic.

        2/η with the learning rate η, 2 (1 + β)/η with a momentum β, 2 (1 + β)/((1 + 2 β) η) with
        Nesterov's. NaN where the loop told no rate ``lr``, and where it told ``sgd=0``: for
        Adam and others that scale the gradient the Hessian alone doesn't decide.

        Source: Cohen, Kaur, Li, Kolter and Talwalkar 2021.
        """
        nothing = np.full(len(self), _NAN)
        rate = self.numbers.get("lr", nothing)
        beta, damped, nesterov, sgd = (
            np.where(np.isnan(told), usual, told)
            for told, usual in ((self.numbers.get(k, nothing), v) for k, v in _MORE.items())
        )
        known = np.where((rate > 0) & (sgd != 0), rate * (1 - damped), _NAN)
        return 2 * (1 + beta) / np.where(nesterov != 0, 1 + 2 * beta, 1) / known

    def rows(self) -> list[dict[str, Any]]:
        """Its table.

        Returns:
            A row for each record, with what the loop told.
        """
        told = {name: values.tolist() for name, values in self.numbers.items()}
        return [
            row | {name: values[place] for name, values in told.items()}
            for place, row in enumerate(super().rows())
        ]


class Tracker:
    """Measures the curvature of a network while any loop trains it.

    The problem's samples stay the same; its parameters and buffers are those that the user's model
    has when the tracker is called. The training is not changed by being tracked.

    Args:
        problem: Model, loss and samples, made from the very model that is trained (in evaluation
            mode: the tracker keeps the modes that it had then).
        every: Measure at steps that this divides.
        what: Of :data:`WHAT`. ``"rank"`` takes all eigenvalues, and so P² numbers of memory.
        out: HDF5 file, written anew after each measurement; None to keep all in memory only.
        operator: ``"hessian"`` or ``"ggn"``.
        tolerance: Of the ends, as of :func:`hessrmt.extremal_eigenvalues`.
        products: Products with H for the trace.
        probes: Random vectors of the density.
        lanczos_steps: Steps from each.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        dtype: ``"float64"`` or ``"float32"``.
        batch: Samples differentiated at a time; all if None.
        seed: Of everything random.
        resume: Continue the file if it is there.
        overwrite: Replace the file if it is there.

    Raises:
        ConfigError: If a number is not positive or a name unknown.
        StoreError: If the file is there, is of other settings, or another process writes it.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        every: int = 1,
        what: Sequence[str] = ("edge",),
        out: str | Path | None = None,
        operator: str = "hessian",
        tolerance: float = 1e-6,
        products: int = 60,
        probes: int = 4,
        lanczos_steps: int = 40,
        device: Device = "auto",
        dtype: Dtype = "float64",
        batch: int | None = None,
        seed: int = 0,
        resume: bool = False,
        overwrite: bool = False,
    ) -> None:
        require_whole(every=every, products=products, probes=probes, lanczos_steps=lanczos_steps)
        names = (what,) if isinstance(what, str) else tuple(what)
        for name in names:
            one_of("what", name, WHAT, error=ConfigError)
        self._problem, self.every, self.what = problem, every, names
        self._how = {"operator": operator, "device": device, "dtype": str(dtype), "batch": batch}
        self._options = {
            "tolerance": tolerance,
            "products": products,
            "probes": probes,
            "lanczos_steps": lanczos_steps,
            "seed": seed,
        }
        self._identity = {
            "what": list(names),
            "loss": problem.loss_name,
            "samples": problem.samples,
            "data_sha256": digest(x.numpy(force=True) for x in tensors_of(problem.batch.pair)),
            "dimension": problem.dimension,
            **{name: self._how[name] for name in ("operator", "dtype")},
            **self._options,
        }
        self._records: list[dict[str, Any]] = []
        self._calls = 0
        self._file: ResumableFile | None = None
        self._written: tuple[int, ...] | None = None
        made = from_python("hessrmt.Tracker", problem)
        self._provenance = Provenance(self._identity | made, select(device).name)
        if out is not None:
            require_one(resume=resume, overwrite=overwrite)
            path = Path(out)
            require_new(path, may_exist=resume or overwrite)
            self._file = ResumableFile(path)
            try:
                if resume and os.path.exists(path):
                    self._continue(path)
            except BaseException:
                self.close()
                raise

    def _continue(self, path: Path) -> None:
        found = results.load(path)
        if not isinstance(found, Track):
            raise ConfigError(f"{path} holds no track of a training; name another file")
        stored = {k: v for k, v in found.provenance.config.items() if k in self._identity}
        require_same(path, stored, self._identity)
        columns = found.to_dict()
        for place, row in enumerate(columns["steps"]):
            told = {name: values[place] for name, values in found.numbers.items()}
            record = {name: columns[name][place] for name in _names(self.what)}
            record |= {"step": row, "told": told}
            record |= {name: getattr(found, name)[place] for name in ("nodes", "weights")}
            self._records.append(record)
        self._written = _version_of(path)

    def __call__(self, step: int | None = None, **numbers: float) -> bool:
        """Measure, if it is time.

        Args:
            step: Of the training; how often this was called, from 0, if None. A step that was
                measured before (in a training that was resumed) is not measured again.
            **numbers: Kept beside, e.g. ``lr=0.1``, with which the picture has
                :attr:`Track.threshold`; ``momentum``, ``dampening``, ``nesterov=1`` and ``sgd=0``
                (of any other optimiser) change it, and ``minibatches``, how many an epoch has,
                says whether it is a threshold at all: 1 is all samples in every step.

        Returns:
            Whether it was.

        Raises:
            ConfigError: If the step is no whole number from 0 on.
            DataError: If another number is none.
            ProblemError: If the model's parameters are NaN or infinite by now.
        """
        if step is None:
            step, self._calls = self._calls, self._calls + 1
        require_whole(0, step=step)
        if step % self.every or any(record["step"] == step for record in self._records):
            return False
        self.measure(step, **numbers)
        return True

    def measure(self, step: int, **numbers: float) -> None:
        """Measure now.

        Args:
            step: Of the training; what was measured there before is replaced.
            **numbers: Kept beside.

        Raises:
            StoreError: If the tracker is closed.
        """
        if self._file is not None and self._file.closed:
            raise StoreError(
                f"the tracker of {self._file.path} is closed; make another: resume=True"
            )
        told = {name: real(name, value) for name, value in numbers.items()}
        problem, options = self._problem.current(), self._options
        matrix = CurvatureOperator.of(problem, **self._how)
        found: dict[str, Any] = {"loss": matrix.loss, "gradient_norm": matrix.gradient_norm}
        if "edge" in self.what:
            how = {name: options[name] for name in ("tolerance", "seed")}
            ends = extremal_eigenvalues(matrix, 1, 1, check_multiplicity=False, **how)
            low = ends.n_lower
            found |= dict.fromkeys(_COLUMNS["edge"], _NAN)
            if len(ends) > low:
                found |= {"largest": ends.values[-1], "largest_bound": ends.bounds[-1]}
            if low:
                found |= {"smallest": ends.values[0], "smallest_bound": ends.bounds[0]}
        if "trace" in self.what:
            known = traces(matrix, options["products"], seed=options["seed"])
            found |= {"trace": known.trace, "trace_error": known.trace_error}
        if "rank" in self.what:
            how = {name: self._how[name] for name in ("operator", "device", "dtype")}
            every = spectrum(problem, **how)
            found |= {"rank": every.rank, "noise_floor": every.noise_floor}
        if "density" in self.what:
            sizes = options["probes"], options["lanczos_steps"]
            curve = quadrature(matrix, *sizes, seed=options["seed"])
            found |= {"nodes": curve.nodes, "weights": curve.weights}
        self._records = [record for record in self._records if record["step"] != step]
        self._records.append(found | {"step": step, "told": told})
        if self._file is not None:
            self._write(self._file)

    def _write(self, file: ResumableFile) -> None:
        """Write the track; beside its file if another program has put another in its place."""
        if self._written is not None and _version_of(file.path) not in {self._written, None}:
            place, file = file, ResumableFile(file.path.with_name(_beside(file.path)))
            words = f"{place.path} was replaced by another program; the track is in {file.path} now"
            warnings.warn(words, HessrmtWarning, stacklevel=4)
            place.close()
            self._file = file
        results.write(self.track, file.path, overwrite=True)
        self._written = _version_of(file.path)

    @property
    def track(self) -> Track:
        """All that has been measured, by step."""
        records = sorted(self._records, key=lambda record: record["step"])
        told = list(dict.fromkeys(name for record in records for name in record["told"]))
        empty = np.empty((0, 0))
        columns = {
            name: np.array([record.get(name, _NAN) for record in records], dtype=np.float64)
            for name in ("loss", "gradient_norm", *sum(_COLUMNS.values(), ()))
        }
        return Track(
            steps=np.array([record["step"] for record in records], dtype=np.int64),
            **columns,
            nodes=np.array([record.get("nodes", empty) for record in records]),
            weights=np.array([record.get("weights", empty) for record in records]),
            numbers={
                name: np.array([record["told"].get(name, _NAN) for record in records])
                for name in told
            },
            dimension=self._problem.dimension,
            provenance=self._provenance,
        )

    def _trained_by(self, optimiser: Any) -> None:
        """Keep what the optimiser is called."""
        if optimiser is not None:
            inner = getattr(optimiser, "optimizer", optimiser)  # what accelerate wraps
            known = {**self._provenance.config, "optimiser": type(inner).__name__}
            self._provenance = replace(self._provenance, config=known)

    def close(self) -> None:
        """Let others write the file."""
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def lightning(self) -> Any:
        """A callback for a trainer of Lightning: at the start and after every optimiser step.

        Returns:
            A ``lightning.pytorch.Callback``. Raises ConfigError if Lightning is not installed.
        """
        tracker, base = self, _callback_of("lightning.pytorch", "Callback")

        class Tracking(base):
            def on_train_start(self, trainer: Any, *_: Any, **__: Any) -> None:
                optimiser = trainer.optimizers[0] if trainer.optimizers else None
                if trainer.is_global_zero:
                    every = trainer.accumulate_grad_batches
                    limit = trainer.limit_train_batches  # 1.0 is all, 1 is one
                    whole = isinstance(limit, float) and limit == 1
                    batches = trainer.num_training_batches if whole else 0
                    told = _minibatches(batches, every)
                    tracker._trained_by(optimiser)
                    tracker(trainer.global_step, **_rate(optimiser), **told)

            on_train_batch_end = on_train_start

        return Tracking()

    def huggingface(self) -> Any:
        """A callback for a ``transformers.Trainer``: at the start and after every optimiser step.

        Returns:
            A ``transformers.TrainerCallback``. Raises ConfigError if transformers is not installed.
        """
        tracker, base = self, _callback_of("transformers", "TrainerCallback")

        class Tracking(base):
            def on_train_begin(self, *given: Any, **more: Any) -> None:
                how, state, _ = given
                optimiser = more.get("optimizer")
                if state.is_world_process_zero:
                    every = how.gradient_accumulation_steps
                    told = _minibatches(_length(more.get("train_dataloader")), every)
                    tracker._trained_by(optimiser)
                    tracker(state.global_step, **_rate(optimiser), **told)

            on_step_end = on_train_begin

        return Tracking()


def _version_of(path: Path) -> tuple[int, ...] | None:
    """What changes when a file is replaced; None if there is none."""
    try:
        about = path.stat()
    except OSError:
        return None
    return about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns


def _beside(path: Path) -> str:
    """A new name beside a file."""
    return f"{path.stem}-{uuid.uuid4().hex[:8]}{path.suffix}"


def _callback_of(module: str, name: str) -> Any:
    """The class that a library's callbacks have in common."""
    try:
        return getattr(import_module(module), name)
    except ImportError as error:
        library = module.partition(".")[0]
        raise ConfigError(f"pip install {library}: it is not installed") from error


def _names(what: Sequence[str]) -> list[str]:
    """The columns of what is tracked."""
    return ["loss", "gradient_norm", *(c for name in what for c in _COLUMNS.get(name, ()))]


def _rate(optimiser: Any) -> dict[str, float]:
    """What an optimiser's first group of parameters says: its rate and :data:`_MORE`."""
    groups = getattr(optimiser, "param_groups", ())
    if not groups:
        return {}
    first = groups[0]
    told = {name: first.get(name) for name in ("lr", "momentum")}
    told |= {name: first.get(name) or None for name in ("dampening", "nesterov")}
    told["sgd"] = None if {"dampening", "nesterov"} <= first.keys() else 0
    return {name: float(value) for name, value in told.items() if value is not None}


def _minibatches(batches: float, every: int) -> dict[str, float]:
    """How many updates an epoch takes; nothing where that isn't known."""
    if not 0 < batches < float("inf"):
        return {}
    return {"minibatches": float(math.ceil(batches / every))}


def _length(loader: Any) -> int:
    """How many batches a loader gives; 0 where it doesn't say."""
    try:
        return len(loader)
    except TypeError:
        return 0
