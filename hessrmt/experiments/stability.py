"""``reproduce stability``: minimum norm, cross-validation stability and the expected error.

Poggio, Banburski and Liao (2020), section 4, close with three statements: the pseudoinverse is the
solution of least norm, unique and continuous; of all interpolating solutions those of least norm
are the most stable ones when a sample is left out; and gradient flow under an exponential loss
selects them, so that it minimises the expected error. Measured along flows of ReLU networks, and in
closed form for the square loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self

import numpy as np
from pydantic import Field, model_validator
from scipy import stats

from hessrmt.config import Settings
from hessrmt.experiments.experiment import (
    Column,
    Estimate,
    Experiment,
    Pictures,
    Presets,
    Work,
    drawn_seed,
    keyed,
)
from hessrmt.generalization import bias_free
from hessrmt.generalization.stability import (
    LeaveOneOut,
    SquareLossStudy,
    leave_one_out,
    square_loss_study,
)
from hessrmt.plots import generalization as plots

_SURE = 0.01
"""Probability below which a connection is called one."""

_FALL = 0.1
"""Relative fall that is one: what flows differ by at a time is not of interest."""

_FEWEST = 5
"""Starts below which no connection over them is judged."""

_ROUND_OFF = 1e-8
"""Relative difference of two solutions that are the same, for condition numbers as they occur."""

_SIGMAS = 4.0
"""Standard errors by which a mean may miss its closed form."""

_KNOWN = 0.2
"""Standard error of a mean, over the mean, up to which it is compared."""


class LeftOutFlows(Settings):
    """Flows of one network with each sample left out.

    Attributes:
        name: In file names.
        samples: B, of quadrants: the label is sign(x_1 x_2).
        features: d.
        fresh: Samples for the expected error.
        hidden: Units of the hidden layers.
        starts: Each with its own initial weights; the samples are the same.
        log_time: log(1 + t) at the end.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    samples: int = Field(ge=2)
    features: int = Field(2, ge=2)
    fresh: int = Field(2000, ge=1)
    hidden: tuple[int, ...] = Field(min_length=1)
    starts: int = Field(ge=1)
    log_time: float = Field(20.0, gt=0, allow_inf_nan=False)


class LeastSquares(Settings):
    """Random least-squares problems.

    Attributes:
        samples: n.
        dimensions: d.
        noise: Of the targets.
        draws: Problems of each dimension.
    """

    samples: int = Field(30, ge=3)
    dimensions: tuple[int, ...] = Field((5, 10, 20, 25, 40, 60, 120, 240), min_length=2)
    noise: float = Field(0.3, ge=0, allow_inf_nan=False)
    draws: int = Field(ge=2)

    @model_validator(mode="after")
    def _away_from_square(self) -> Self:
        if {self.samples + k for k in (-1, 0, 1)} & set(self.dimensions):
            raise ValueError(f"dimensions must differ from {self.samples} samples by more than 1")
        if max(self.dimensions) <= self.samples:
            raise ValueError("at least one dimension must be larger than the number of samples")
        return self


class StabilityPreset(Settings):
    """One size of the experiment.

    Attributes:
        flows: Networks under the exponential loss.
        squares: Least squares.
    """

    flows: tuple[LeftOutFlows, ...] = Field(min_length=1)
    squares: LeastSquares


class StabilityConfig(Presets[StabilityPreset]):
    """Settings of ``hessrmt reproduce stability``.

    Attributes:
        device: Not used: everything is small.
    """

    device: str = "cpu"


@dataclass(frozen=True)
class StabilityEntry:
    """One flow with all that were left out, or least squares in one dimension.

    Attributes:
        name: Of the row.
        group: Name in the settings; ``square loss``.
        result: What was found.
        place: Which dimension; None for flows.
    """

    name: str
    group: str
    result: LeaveOneOut | SquareLossStudy = field(repr=False)
    place: int | None = None

    @property
    def flow(self) -> LeaveOneOut | None:
        """The flow."""
        return self.result if isinstance(self.result, LeaveOneOut) else None

    @property
    def squares(self) -> SquareLossStudy | None:
        """The study of least squares."""
        return self.result if isinstance(self.result, SquareLossStudy) else None

    def at_end(self, name: str) -> float | None:
        """A quantity at the end of the flow.

        Args:
            name: A field of :class:`~hessrmt.generalization.stability.LeaveOneOut`.

        Returns:
            The value; None for least squares.
        """
        return None if self.flow is None else float(getattr(self.flow, name)[-1])

    def over_draws(self, name: str, start: str) -> Estimate | None:
        """A quantity of least squares.

        Args:
            name: ``error``, ``instability`` or ``left_out``.
            start: Of gradient flow.

        Returns:
            Mean over problems; None for flows.
        """
        if self.squares is None:
            return None
        rows = getattr(self.squares, name)[self.squares.starts.index(start)]
        return Estimate.of(rows[self.place])


def _either(
    at_end: str, name: str, start: str = "zero"
) -> Callable[[StabilityEntry], Estimate | float | None]:
    def get(entry: StabilityEntry) -> Estimate | float | None:
        return entry.over_draws(name, start) if entry.squares else entry.at_end(at_end)

    return get


_INSTABILITY = _either("instability", "instability")
_LEFT_OUT = _either("left_out_loss", "left_out")
_FRESH = _either("test_loss", "error")


def _column(
    name: str, get: Callable[[StabilityEntry], Estimate | float | None], key: str
) -> Column[StabilityEntry]:
    return Column(name, get, ".3g", key, terminal=name.replace(" ", "\n"), alone=True)


def _random(entry: StabilityEntry) -> Estimate | None:
    return entry.over_draws("error", "random")


def _random_instability(entry: StabilityEntry) -> Estimate | None:
    return entry.over_draws("instability", "random")


class Stability(Experiment[StabilityConfig, StabilityPreset, StabilityEntry]):
    """Minimum norm, cross-validation stability and the expected error."""

    settings = StabilityConfig
    columns = (
        *keyed(run="name", group="group"),
        Column("of", lambda e: e.name),
        _column("margin", lambda e: e.at_end("margin"), "margin"),
        _column("instability", _INSTABILITY, "instability"),
        _column("left out", _LEFT_OUT, "left_out"),
        _column("expected error", _FRESH, "expected"),
        _column("left-out errors", lambda e: e.at_end("left_out_error"), "left_out_error"),
        _column("fresh errors", lambda e: e.at_end("test_error"), "test_error"),
        _column("instability, random start", _random_instability, "instability_random_start"),
        _column("expected error, random start", _random, "expected_random_start"),
    )

    def compute(self, work: Work[StabilityConfig, StabilityPreset]) -> list[StabilityEntry]:
        """See :class:`~hessrmt.experiments.experiment.Experiment`."""
        seed = drawn_seed(work.settings.seed, "stability")
        found = []
        for name, group, wanted, make in work.each("{0[0]}", [*_flows(work.size, seed)]):
            found.append(StabilityEntry(name, group, work.kept(name, wanted, make)))
        wanted = work.size.squares.model_dump() | {"seed": seed}
        study = work.kept("square-loss", wanted, partial(square_loss_study, **wanted))
        for i, d in enumerate(work.size.squares.dimensions):
            found.append(StabilityEntry(f"square loss, d = {d}", "square loss", study, i))
        return found

    def figures(self, entries: Sequence[StabilityEntry]) -> Pictures:
        """See :class:`~hessrmt.experiments.experiment.Experiment`."""
        pictures: dict[str, Callable[[], Any]] = {}
        groups: dict[str, list[LeaveOneOut]] = {}
        for entry in entries:
            if entry.flow is not None:
                groups.setdefault(entry.group, []).append(entry.flow)
            elif entry.squares is not None:
                pictures["square-loss"] = partial(plots.square_loss, entry.squares)
        for name, flows in groups.items():
            pictures[name] = partial(plots.stability, flows)
        return pictures

    def conclusions(self, entries: Sequence[StabilityEntry]) -> dict[str, str]:
        """See :class:`~hessrmt.experiments.experiment.Experiment`."""
        flows = [entry.flow for entry in entries if entry.flow is not None]
        study = next(entry.squares for entry in entries if entry.squares is not None)
        return {
            "stability along training": _along(flows),
            "stability, margin and expected error": _over_starts(entries),
            "pseudoinverse, unique": _unique(study),
            "pseudoinverse, continuous": _continuous(study),
            "pseudoinverse, stable": _stable(study),
            "stability and expected error, square loss": _together(study),
        }


def _flows(size: StabilityPreset, seed: int) -> Iterable[tuple[str, str, dict[str, Any], Any]]:
    for one in size.flows:
        own = drawn_seed(seed, one.name)
        task = {"features": one.features, "seed": own}
        x, y = bias_free.quadrant_task(one.samples, **task)
        fresh = bias_free.quadrant_task(one.fresh + one.samples, **task)
        # a task of another size is another draw: none of these was trained on
        widths = (one.features, *one.hidden, 1)
        for number in range(one.starts):
            start = drawn_seed(own, "start", number)
            layers = bias_free.initial_layers(widths, start)
            wanted = one.model_dump(exclude={"starts"}) | {"seed": start}
            options = {"log_time": one.log_time}
            make = partial(leave_one_out, layers, x, y, fresh, **options)
            yield f"{one.name}-{number}", one.name, wanted, make


def _along(every: Sequence[LeaveOneOut]) -> str:
    flows = [flow for flow in every if flow.margin[-1] > 0]
    if not flows:
        return f"none of {len(every)} flows classifies all samples correctly: nothing to say."
    falls, parts = {}, []
    for name, words in (
        ("instability", "the instability"),
        ("left_out_loss", "the loss at samples left out"),
        ("test_loss", "the loss on fresh samples"),
    ):
        rows = [getattr(flow, name) for flow in flows]
        falls[name] = sum(row[-1] < (1 - _FALL) * row.max() for row in rows)
        peak, end = (np.mean([get(row) for row in rows]) for get in (np.max, lambda row: row[-1]))
        parts.append(f"{words} falls in {falls[name]} of {len(flows)} ({peak:.3g} to {end:.3g})")
    both = falls["instability"] == falls["test_loss"] == len(flows)
    verdict = "agrees" if both else "agrees in part" if falls["test_loss"] else "does not agree"
    errors = [flow.test_error for flow in flows]
    again = sum(row[-1] > (1 + _FALL) * row.min() for row in errors)
    least, end = (np.mean([get(row) for row in errors]) for get in (np.min, lambda row: row[-1]))
    parts.append(
        f"the classification error on fresh samples is above its least value again in {again} of "
        f"{len(flows)} ({least:.3g} to {end:.3g})"
    )
    if again and verdict == "agrees":
        verdict = "agrees for the losses, not for the classification error"
    if falls["instability"] < falls["test_loss"]:
        verdict += ": margins grow, and with them what a single sample is worth"
    return (
        f"from the largest value to the end of the flow, by {_FALL:.0%} at least, in the "
        f"{len(flows)} of {len(every)} flows that classify all samples correctly (means of the "
        f"normalised networks): {', '.join(parts)}: {verdict}."
    )


def _over_starts(entries: Sequence[StabilityEntry]) -> str:
    groups: dict[str, list[LeaveOneOut]] = {}
    for entry in entries:
        if entry.flow is not None:
            groups.setdefault(entry.group, []).append(entry.flow)
    parts = []
    for name, every in groups.items():
        flows = [flow for flow in every if flow.margin[-1] > 0]
        if len(flows) < _FEWEST:
            parts.append(f"{name}: {len(flows)} starts that separate are too few to say")
            continue
        ends = {
            what: np.array([getattr(flow, what)[-1] for flow in flows])
            for what in ("instability", "left_out_loss", "margin", "test_loss")
        }
        words = []
        for what, label, sign in (
            ("instability", "instability", 1),
            ("left_out_loss", "loss left out", 1),
            ("margin", "margin", -1),
        ):
            tau, p = _rank(ends[what], ends["test_loss"])
            if np.isnan(tau):
                words.append(f"{label} is the same for all starts")
                continue
            verdict = "not shown"
            if p < _SURE:
                verdict = "agrees" if tau * sign > 0 else "the other way round"
            words.append(f"{label} τ = {tau:+.2f} (p = {p:.2g}, {verdict})")
        parts.append(f"{name}, {len(flows)} starts: {', '.join(words)}")
    return f"Kendall's τ with the loss of normalised networks on fresh samples: {'; '.join(parts)}."


def _rank(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Kendall's τ and its exact two-sided p; starts that end in one minimum are one point."""
    keep = np.unique(np.round(np.stack([x, y], axis=1), 4), axis=0)
    if len(keep) < _FEWEST:
        return float("nan"), float("nan")
    return _kendall(keep[:, 0], keep[:, 1])


def _kendall(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    found: Any = stats.kendalltau(x, y)
    return float(found.statistic), float(found.pvalue)


def _unique(study: SquareLossStudy) -> str:
    wide = study.dimensions > study.samples
    zero, random = (study.error[study.starts.index(s)][wide].mean() for s in ("zero", "random"))
    worst = float(study.off.max())
    return (
        f"gradient flow from zero ends in LAPACK's least-norm solution (relative distance at most "
        f"{worst:.0e} in {study.off.size:,} problems); from a random start of length 1 it ends "
        f"elsewhere for d > n (mean expected error {random:.3g} instead of {zero:.3g}): "
        f"{'agrees' if worst < _ROUND_OFF else 'does not agree'}, for the start at zero alone."
    )


def _continuous(study: SquareLossStudy) -> str:
    worst = 0.0
    for rows, expected in zip(study.sensitivity, study.expected_sensitivity, strict=True):
        estimate = Estimate.of(rows)
        worst = max(worst, abs(estimate.mean - expected) / estimate.error)
    means = study.sensitivity.mean(axis=1)
    peak, least = int(np.argmax(means)), int(np.argmin(means))
    fits = "agrees" if worst < _SIGMAS else "does not agree"
    return (
        f"noise of variance 1 moves the solution by {means[least]:.3g} (d = "
        f"{study.dimensions[least]:g}) to {means[peak]:.3g} (d = {study.dimensions[peak]:g}, n = "
        f"{study.samples}) in the mean square; from the closed form min(n, d)/(|d - n| - 1) the "
        f"means are {worst:.1f} standard errors away at most: {fits}. Continuous for every X of "
        "full rank, but without a bound near d = n."
    )


def _stable(study: SquareLossStudy) -> str:
    wide = study.dimensions > study.samples
    of = {s: study.instability[study.starts.index(s)][wide] for s in study.starts}
    errors = {s: study.error[study.starts.index(s)][wide] for s in study.starts}
    less = [Estimate.of(row) for row in np.log(of["random"] / of["zero"])]
    better = sum(e.mean > _SIGMAS * e.error for e in less)
    truth = [Estimate.of(row) for row in np.log(of["truth"] / of["zero"])]
    counter = sum(e.mean < -_SIGMAS * e.error for e in truth)
    verdict = "agrees" if better == len(less) else "agrees in part"
    return (
        f"for d > n the least-norm solution is more stable than the one from a random start in "
        f"{better} of {len(less)} dimensions (mean instability {of['zero'].mean():.3g} against "
        f"{of['random'].mean():.3g}, expected error {errors['zero'].mean():.3g} against "
        f"{errors['random'].mean():.3g}): {verdict}, on the average over starts. No law: a start "
        f"at the truth ends in another interpolant, more stable in {counter} of {len(less)} "
        f"({of['truth'].mean():.3g}), with the expected error {errors['truth'].mean():.3g}."
    )


def _together(study: SquareLossStudy) -> str:
    zero = study.starts.index("zero")
    wide = study.dimensions > study.samples
    left_out, error = (getattr(study, n)[zero].mean(axis=1) for n in ("left_out", "error"))
    off = np.abs(left_out / (error + study.noise**2) - 1)
    # near d = n the inverse of a small eigenvalue has no variance, and single problems decide
    spread = [Estimate.of(row) for row in study.left_out[zero]]
    known = np.array([of.error < _KNOWN * of.mean for of in spread])
    where = "in every dimension"
    if not known.all():
        rest = ", ".join(f"{d:g}" for d in study.dimensions[~known])
        where = f"in {known.sum()} of {len(known)} dimensions (at d = {rest} its mean isn't known)"
    parts = []
    for name, words in (("instability", "instability"), ("left_out", "error left out")):
        rows = zip(getattr(study, name)[zero][wide], study.error[zero][wide], strict=True)
        taus = [_kendall(a, b)[0] for a, b in rows]
        parts.append(f"{words} {min(taus):+.2f} to {max(taus):+.2f}")
    order = _kendall(study.instability[zero].mean(axis=1), error)[0]
    return (
        f"the mean square error at samples left out is the expected one, noise included, within "
        f"{off[known].max(initial=0.0):.0%} {where}; it is that of one sample less. Kendall's τ of "
        f"instability and expected error is {order:+.2f} over dimensions; in one dimension d > n, "
        f"from problem to problem, τ with the expected error is: {', '.join(parts)}: agrees on the "
        "average, says little about a single problem."
    )
