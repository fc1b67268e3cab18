"""``reproduce iterate-averaging``: the last iterate against averages of iterates.

Baskerville, Granziol and Keating (2022), section 8 and Fig. 7. Every network is trained at every
learning rate with the same budget, and three points of each run are compared: the last iterate,
Polyak's average of all iterates, and the average of the tail. Of the first seeds the Hessians are
computed at all three, on the same training samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from pydantic import Field, model_validator

from hessrmt.arrays import sample_mean
from hessrmt.config import CountOrAll, Settings, SpectrumConfig
from hessrmt.errors import DataError
from hessrmt.experiments.experiment import (
    Column,
    Estimate,
    Experiment,
    Pictures,
    TrainedPreset,
    TrainedSettings,
    Work,
    keyed,
    stem,
)
from hessrmt.levels.histograms import mean_counts
from hessrmt.plots import training as plots
from hessrmt.runs.trajectory import LAST, Trajectory, TrajectoryPlan, curves

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from hessrmt.records import Spectra, Spectrum

POLYAK, TAIL = "polyak", "tail"
POINTS = (LAST, POLYAK, TAIL)

_RANKS, _PER_DECADE = 40, 3
_TITLES = "Losses and errors of averaged iterates", "Hessians at averaged iterates"
_DRAWN = ("test_loss", "test_error", "train_loss")


class AveragedNetwork(Settings):
    """One network and how its Hessians are computed.

    Attributes:
        model: Registry name or ``file.py:factory``.
        spectra: Seeds whose Hessians are computed.
        batch: Training samples in a batch.
        batches: How many, each a spectrum.
        only: Pattern of the parameters to take.
    """

    model: str
    spectra: int = Field(0, ge=0)
    batch: CountOrAll = 128
    batches: int = Field(1, ge=1)
    only: str | None = None


class AveragedRate(Settings):
    """One learning rate.

    Attributes:
        name: In file names.
        lr: At the beginning.
        final_lr: At the end of a linear decay; None for a constant rate.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.]*$")
    lr: float = Field(gt=0, allow_inf_nan=False)
    final_lr: float | None = Field(None, ge=0, allow_inf_nan=False)


class IterateAveragingPreset(TrainedPreset):
    """One size of the experiment.

    Attributes:
        networks: What is trained.
        rates: At which learning rates.
        epochs: Of each run.
        tail_start: Epoch after which the average of the tail begins.
        measure_every: Epochs between measurements.
    """

    networks: tuple[AveragedNetwork, ...] = Field(min_length=1)
    rates: tuple[AveragedRate, ...] = Field(min_length=1)
    epochs: int = Field(ge=1)
    tail_start: int = Field(ge=0)
    measure_every: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.tail_start >= self.epochs:
            raise ValueError(
                f"tail_start {self.tail_start} leaves no iterate to average in {self.epochs} "
                "epochs; begin earlier"
            )
        for what, names in (
            ("rates", [rate.name for rate in self.rates]),
            ("networks", [network.model for network in self.networks]),
        ):
            if len(set(names)) < len(names):
                raise ValueError(f"two {what} have the same name")
        return self


class IterateAveragingConfig(TrainedSettings[IterateAveragingPreset]):
    """Settings of ``hessrmt reproduce iterate-averaging``."""


_CURVATURES: dict[str, Callable[[Spectrum], float]] = {
    "largest": lambda item: float(item.eigenvalues[-1]),
    "trace": lambda item: float(item.eigenvalues.sum()),
    "smallest": lambda item: float(item.eigenvalues[0]),
    "certified": lambda item: float(item.rank),
    "negative": lambda item: float(np.count_nonzero(item.resolved < 0)),
}


@dataclass(frozen=True)
class AveragedPoint:
    """One point of the runs of a network at a learning rate.

    Attributes:
        name: Of network, rate and point.
        model: The network.
        rate: Its learning rate.
        point: The last iterate or an average.
        runs: One for each seed.
        spectra: Of the first seeds.
    """

    name: str
    model: str
    rate: AveragedRate
    point: str
    runs: Sequence[Trajectory] = field(repr=False)
    spectra: Sequence[Spectra] = field(repr=False)

    def values(self, what: str) -> np.ndarray:
        """A quantity at the end of each run.

        Args:
            what: As measured on the way, or ``distance`` from the last iterate; of the Hessians,
                averaged over a seed's batches, ``largest``, ``trace``, ``smallest``, ``certified``
                or ``negative``.

        Returns:
            (seeds,), NaN where it is not known; of Hessians (seeds with spectra,).
        """
        if what in _CURVATURES:
            get = _CURVATURES[what]
            return np.array([np.mean([get(item) for item in rows]) for rows in self.spectra])
        found = [run.measured[-1][self.point].get(what, 0.0) for run in self.runs]
        return np.array(found, dtype=np.float64)

    @property
    def words(self) -> str:
        """The learning rate in words."""
        final = self.rate.final_lr
        return f"{self.rate.name}, {self.rate.lr:g}" + ("" if final is None else f" to {final:g}")


def _over_seeds(name: str, what: str, form: str = "", **options: Any) -> Column[AveragedPoint]:
    return Column(name, lambda e: Estimate.of(e.values(what)), form, what, **options)


def _smallest(entry: AveragedPoint) -> Estimate:
    # a convex loss has no negative level, but round-off has a sign
    return Estimate.of(entry.values("smallest").round(6) + 0.0)


def _distance(entry: AveragedPoint) -> Estimate | str:
    return "0" if entry.point == LAST else Estimate.of(entry.values("distance"))


class IterateAveraging(Experiment[IterateAveragingConfig, IterateAveragingPreset, AveragedPoint]):
    """Averages of SGD's iterates at high and low learning rates."""

    settings = IterateAveragingConfig
    columns = (
        *keyed(run="name"),
        Column("network", lambda e: e.model, key="model"),
        *keyed(rate="rate.name", lr="rate.lr", final_lr="rate.final_lr"),
        Column("learning rate", lambda e: e.words),
        Column("point", lambda e: e.point, key="point"),
        Column("", lambda e: e.runs[0].measured[-1]["epoch"], key="epochs"),
        Column("", lambda e: e.runs[0].measured[-1][e.point].get("count", 1), key="averaged"),
        Column("", lambda e: e.runs[0].origin, key="data"),
        _over_seeds("train loss", "train_loss", ",.4f"),
        _over_seeds("test loss", "test_loss", ",.4f", terminal="test loss"),
        _over_seeds("", "train_error"),
        _over_seeds("test error %", "test_error", ",.2f", percent=True, terminal="test\nerror %"),
        _over_seeds("", "distance"),
        Column("‖w - last‖", _distance, ",.2f"),
        _over_seeds("λ max", "largest", ",.1f", terminal="λ max"),
        _over_seeds("trace", "trace", ",.0f"),
        _over_seeds("", "smallest"),
        Column("λ min", _smallest, ",.2f"),
        _over_seeds("certified", "certified", ",.0f"),
        _over_seeds("negative", "negative", ",.0f"),
    )

    def compute(
        self, work: Work[IterateAveragingConfig, IterateAveragingPreset]
    ) -> list[AveragedPoint]:
        """See :class:`~hessrmt.experiments.experiment.Experiment`."""
        pairs = [(network, rate) for network in work.size.networks for rate in work.size.rates]
        done = work.trajectories(pairs, partial(_plan, work.settings, work.size))
        entries = []
        for (network, rate), runs in zip(pairs, done, strict=True):
            for point in POINTS:
                name, spectra = f"{stem(network.model)}-{rate.name}-{point}", []
                for run in work.each(f"spectra of {name}", runs[: network.spectra]):
                    wanted = _wanted(work.settings, network, run, point)
                    spectra.append(work.spectra(f"{run.plan.name}-{point}", wanted))
                entries.append(AveragedPoint(name, network.model, rate, point, runs, spectra))
        return entries

    def fits(self, entries: Sequence[AveragedPoint]) -> list[dict[str, Any]]:
        """See :class:`~hessrmt.experiments.experiment.Experiment`."""
        return [
            {
                **dict(zip(("model", "rate", "point"), names, strict=True)),
                **{what: found.mean for what, found in values.items()},
                **{f"{what}_error_of_mean": found.error for what, found in values.items()},
            }
            for names, values in gains(entries).items()
        ]

    def conclusions(self, entries: Sequence[AveragedPoint]) -> dict[str, str]:
        """See :class:`~hessrmt.experiments.experiment.Experiment`."""
        said: dict[str, list[str]] = {}
        for (model, rate, point), values in gains(entries).items():
            error, sharp = values["test_error"], values["largest"]
            text = f"{point}: test loss lower by {values['test_loss'].text(',.4f')}"
            if np.isfinite(error.mean):
                text += f", error by {error.text(',.2f', 100)} %"
            if np.isfinite(sharp.mean):
                text += f", λ max times {sharp.text(',.2f')}"
            said.setdefault(f"{model}, {rate}", []).append(text)
        return {about: "; ".join(parts) + "." for about, parts in said.items()}

    def figures(self, entries: Sequence[AveragedPoint]) -> Pictures:
        """See :class:`~hessrmt.experiments.experiment.Experiment`."""
        pictures = {}
        for model in dict.fromkeys(entry.model for entry in entries):
            part = [entry for entry in entries if entry.model == model]
            losses, spectra = (f"{what}: {model}" for what in _TITLES)
            pictures[f"{stem(model)}-losses"] = partial(_losses, part, losses)
            pictures[f"{stem(model)}-spectra"] = partial(_spectra, part, spectra)
        return pictures


def gains(entries: Sequence[AveragedPoint]) -> dict[tuple[str, str, str], dict[str, Estimate]]:
    """What averages gain over the last iterate of the same run.

    Args:
        entries: All points of all networks and rates.

    Returns:
        Network, rate and average to quantity to its mean over seeds: differences of
        ``train_loss``, ``test_loss`` and ``test_error``, and geometric means of the ratios of
        ``largest`` and ``trace``.
    """
    by = {(entry.model, entry.rate.name, entry.point): entry for entry in entries}
    found = {}
    for (model, rate, point), entry in by.items():
        if point != LAST:
            last = by[model, rate, LAST]
            found[model, rate, point] = {
                **{
                    what: Estimate.of(last.values(what) - entry.values(what))
                    for what in ("train_loss", "test_loss", "test_error")
                },
                **{w: _ratio(entry.values(w), last.values(w)) for w in ("largest", "trace")},
            }
    return found


def _ratio(values: np.ndarray, others: np.ndarray) -> Estimate:
    # geometric mean: a ratio and its inverse count alike; none where a trace is negative
    if not ((values > 0) & (others > 0)).all():
        return Estimate(np.nan, np.nan)
    mean, error, _ = Estimate.of(np.log(values / others))
    return Estimate(float(np.exp(mean)), float(np.exp(mean)) * error)


def _plan(
    settings: IterateAveragingConfig,
    size: IterateAveragingPreset,
    pair: tuple[AveragedNetwork, AveragedRate],
    number: int,
) -> TrajectoryPlan:
    network, rate = pair
    final, start, end = rate.final_lr, size.epochs // 2, 9 * size.epochs // 10
    if final is None:
        final, start, end = rate.lr, 0, 0
    schedule = {"lr": rate.lr, "final_lr": final, "decay_start": start, "decay_end": end}
    # the same seeds for all networks and rates: what differs is what is compared
    given = {"model": network.model, "epochs": size.epochs, **schedule}
    training = settings.training(size, number, **given)
    name = f"{stem(network.model)}-{rate.name}-{number}"
    averages = {POLYAK: 0, TAIL: size.tail_start}
    return TrajectoryPlan(name, training, averages, measure_every=size.measure_every)


def _wanted(
    settings: IterateAveragingConfig, network: AveragedNetwork, run: Trajectory, point: str
) -> SpectrumConfig:
    given = network.model_dump(exclude={"spectra"})
    if network.batch == "all":
        given["batches"] = 1
    return SpectrumConfig(
        **given,
        data=settings.data,
        split="train",
        checkpoint=run.files[point],
        device=settings.device,
        seed=run.plan.settings.seed,
    )


def _losses(entries: Sequence[AveragedPoint], title: str) -> Figure:
    drawn = [{w: curves(entry.runs, entry.point, w) for w in _DRAWN} for entry in entries]
    known = [what for what in _DRAWN if all(np.isfinite(found[what][1]).all() for found in drawn)]
    means = [{what: _mean_curve(*found[what]) for what in known} for found in drawn]
    return plots.averaged_losses(_by_rate(entries, means), title)


def _spectra(entries: Sequence[AveragedPoint], title: str) -> Figure:
    if not all(entry.spectra for entry in entries):
        raise DataError("no Hessians were computed for this network")
    certified = [[seed[0].resolved for seed in entry.spectra] for entry in entries]
    every = np.concatenate([row for rows in certified for row in rows])
    low, high = np.floor(np.log10(np.abs(every).min())), np.ceil(np.log10(np.abs(every).max()))
    edges = np.arange(low, high + 0.5 / _PER_DECADE, 1 / _PER_DECADE)
    sides = {"λ > 0": 1} | ({"λ < 0": -1} if (every < 0).any() else {})
    found = []
    for rows in certified:
        top = min(_RANKS, *(int((row > 0).sum()) for row in rows))
        ranked = _mean_curve(np.arange(1, top + 1), np.array([row[::-1][:top] for row in rows]))
        logs = {s: [np.log10(x * row[x * row > 0]) for row in rows] for s, x in sides.items()}
        found.append((ranked, {side: mean_counts(part, edges)[0] for side, part in logs.items()}))
    return plots.averaged_spectra(_by_rate(entries, found), edges, title)


def _mean_curve(x: np.ndarray, values: np.ndarray) -> tuple[Any, Any, Any]:
    """Means over the rows of values, and their standard errors, None of one row."""
    mean, error = sample_mean(values)
    return x, mean, error if len(values) > 1 else None


def _by_rate(entries: Sequence[AveragedPoint], found: Sequence[Any]) -> dict[str, dict[str, Any]]:
    """Learning rate in words to point to what was found there."""
    rates: dict[str, dict[str, Any]] = {}
    for entry, item in zip(entries, found, strict=True):
        rates.setdefault(entry.words, {})[entry.point] = item
    return rates
