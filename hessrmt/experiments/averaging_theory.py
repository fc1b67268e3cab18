"""``reproduce averaging-theory``: Theorem 8.1 against what SGD does, and H⁻¹ against averaging.

Baskerville, Granziol and Keating (2022), section 8. Runs with independent gradient noise on a
quadratic, where every moment is known, and on two losses where the theorem is an approximation: a
loss whose curvature falls off away from the minimum, and surfaces of the Gaussian-process model,
whose gradient noise is correlated. Each is descended plainly and with steps A·∇L, A ∝ H⁻¹.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

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
from hessrmt.lossmodel.iterates import (
    IterateMoments,
    iterate_moments,
    sampled_iterates,
    theorem_8_1,
)
from hessrmt.lossmodel.kernels import rbf
from hessrmt.lossmodel.surfaces import descend, iterate_average, quadratic, random_surface
from hessrmt.plots import lossmodel
from hessrmt.results import Result

if TYPE_CHECKING:
    from jaxtyping import Float64

    Values = Float64[np.ndarray, " samples"]

LAST, AVERAGE, TAIL = "last", "average", "tail"
POINTS = (LAST, AVERAGE, TAIL)
METHODS = {"sgd": "A = α", "newton": "A = η/(|H| + δ)"}
"""What a gradient is multiplied with."""

LANDSCAPES = {
    "quadratic": "quadratic",
    "huber": "curvature falls off",
    "surface": "sampled surfaces",
}

_CHANCE = 0.05
"""Of ‖w‖ beyond the radius and its excess, at most, if Theorem 8.1 holds."""


class Landscape(Settings):
    """A loss and how it is descended.

    Attributes:
        kind: ``quadratic`` ½Σλw²; ``huber`` Σλs²(√(1 + w²/s²) - 1), with the same curvature λ at
            the minimum; ``surface``, the quadratic and a squared-exponential process of length s,
            whose gradients have the variance σ²/B and which is descended without other noise.
        scale: s of the other two.
        damping: δ of A = η/(|H| + δ), with H the Hessian at the iterate.
        steps: Of a run.
        samples: Runs; on surfaces, each on one of its own.
    """

    kind: Literal["quadratic", "huber", "surface"]
    scale: float = Field(1.0, gt=0, allow_inf_nan=False)
    damping: float = Field(0.0, ge=0, allow_inf_nan=False)
    steps: int = Field(ge=2)
    samples: int = Field(ge=2)

    @model_validator(mode="after")
    def _damped(self) -> Self:
        if self.kind != "quadratic" and not self.damping:
            raise ValueError(f"a {self.kind} has curvatures near zero: give a positive damping")
        return self


class AveragingTheoryPreset(Settings):
    """One size of the experiment.

    Attributes:
        dimension: P.
        least: Smallest eigenvalue λ at the minimum; they are in geometric progression.
        largest: The largest.
        start: Each coordinate of w_0, along the eigenvectors.
        noise: σ, of a component of one sample's gradient.
        batch: B.
        rates: Learning rates α of plain SGD.
        newton_rates: η of steps along H⁻¹.
        landscapes: What is descended.
    """

    dimension: int = Field(ge=2)
    least: float = Field(gt=0, allow_inf_nan=False)
    largest: float = Field(gt=0, allow_inf_nan=False)
    start: float = Field(0.0, allow_inf_nan=False)
    noise: float = Field(1.0, gt=0, allow_inf_nan=False)
    batch: int = Field(1, ge=1)
    rates: tuple[float, ...] = Field(min_length=1)
    newton_rates: tuple[float, ...] = ()
    landscapes: tuple[Landscape, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _settles(self) -> Self:
        if self.least > self.largest:
            raise ValueError(f"least {self.least:g} is above largest {self.largest:g}")
        rates = (*(rate * self.largest for rate in self.rates), *self.newton_rates)
        if not all(0 < rate < 2 for rate in rates):
            raise ValueError("αλ and η must be positive and below 2, or runs diverge")
        kinds = [landscape.kind for landscape in self.landscapes]
        if len(set(kinds)) < len(kinds):
            raise ValueError("two landscapes are of the same kind")
        return self

    @property
    def eigenvalues(self) -> Values:
        """(P,) λ."""
        return np.geomspace(self.least, self.largest, self.dimension)


class AveragingTheoryConfig(Presets[AveragingTheoryPreset]):
    """Settings of ``hessrmt reproduce averaging-theory``."""


@dataclass(frozen=True)
class IterateRuns(Result, axes={"sample": "last average tail last_loss average_loss tail_loss"}):
    """Runs of one landscape, method and rate: ‖w‖² and the loss without noise, at three points.

    Attributes:
        last: (samples,) ‖w‖² of the last iterate.
        average: Of the average of all.
        tail: Of the average of the second half.
        last_loss: (samples,) loss above the minimum.
        average_loss: Of the average of all.
        tail_loss: Of the average of the second half.
    """

    last: Values
    average: Values
    tail: Values
    last_loss: Values
    average_loss: Values
    tail_loss: Values


@dataclass(frozen=True)
class TheoryPoint:
    """One point of the runs of one landscape, method and rate.

    Attributes:
        name: Of all four.
        landscape: What was descended.
        method: ``sgd`` or ``newton``.
        rate: α or η.
        point: ``last``, ``average`` or ``tail``.
        eigenvalues: (P,) λ at the minimum.
        moments: Of the AR(1) process with these λ.
        printed: Radius of Theorem 8.1 as printed; NaN where it has none.
        runs: What was sampled.
    """

    name: str
    landscape: Landscape
    method: str
    rate: float
    point: str
    eigenvalues: Values = field(repr=False)
    moments: IterateMoments = field(repr=False)
    printed: float
    runs: IterateRuns = field(repr=False)

    @property
    def exact(self) -> float:
        """E‖w‖²/P of the AR(1) process."""
        return self.moments.squared_norm / len(self.eigenvalues)

    @property
    def as_printed(self) -> float:
        """The same as printed."""
        return self.printed**2 / len(self.eigenvalues)

    @property
    def sampled(self) -> Estimate:
        """The same of the runs."""
        return Estimate.of(getattr(self.runs, self.point) / len(self.eigenvalues))

    @property
    def ratio(self) -> Estimate:
        """Sampled over exact."""
        mean, error, _ = self.sampled
        return Estimate(mean / self.exact, error / self.exact)

    @property
    def sigmas(self) -> float:
        """(Sampled - exact)/standard error."""
        return (self.sampled.mean - self.exact) / self.sampled.error

    @property
    def exact_loss(self) -> float:
        """Expected loss above the minimum, on the quadratic."""
        return self.moments.loss(self.eigenvalues)

    @property
    def loss(self) -> Estimate:
        """The same of the runs, on their own landscape."""
        return Estimate.of(getattr(self.runs, f"{self.point}_loss"))

    @property
    def beyond(self) -> float:
        """Share of runs beyond the exact radius by more than 5 % of them may be."""
        return self._beyond(self.moments.squared_norm**0.5)

    @property
    def beyond_printed(self) -> float:
        """The same of the printed radius; NaN where there is none."""
        return self._beyond(self.printed) if np.isfinite(self.printed) else np.nan

    def _beyond(self, radius: float) -> float:
        norms = np.sqrt(getattr(self.runs, self.point))
        return float(np.mean(norms > radius + self.moments.excess(_CHANCE)))


class AveragingTheory(Experiment[AveragingTheoryConfig, AveragingTheoryPreset, TheoryPoint]):
    """Theorem 8.1 against what SGD does, and H⁻¹ against averaging."""

    settings = AveragingTheoryConfig
    columns = (
        *keyed(run="name", landscape="landscape.kind", method="method", rate="rate", point="point"),
        Column("landscape", lambda e: LANDSCAPES[e.landscape.kind]),
        Column("steps", lambda e: METHODS[e.method]),
        Column("α or η", lambda e: f"{e.rate:g}"),
        Column("point", lambda e: e.point),
        *keyed(n="landscape.steps", samples="landscape.samples"),
        Column("⟨w²⟩ exact", lambda e: e.exact, ".4g", "exact", "exact"),
        Column("as printed", lambda e: e.as_printed, ".4g", "printed", "printed"),
        Column("sampled", lambda e: e.sampled, ".4g", "sampled", "sampled"),
        Column("sampled / exact", lambda e: e.ratio, ".3f"),
        Column("σ off", lambda e: e.sigmas, "+.1f", "sigmas", "σ off"),
        Column("beyond the 5 % radius", lambda e: e.beyond, ".1%", "beyond"),
        Column("of the printed", lambda e: e.beyond_printed, ".1%", "beyond_printed"),
        Column("loss exact", lambda e: e.exact_loss, ".4g", "exact_loss"),
        Column("loss sampled", lambda e: e.loss, ".4g", "loss", terminal="loss"),
    )

    def compute(
        self, work: Work[AveragingTheoryConfig, AveragingTheoryPreset]
    ) -> list[TheoryPoint]:
        """See :class:`~hessrmt.experiments.experiment.Experiment`."""
        size, entries = work.size, []
        planned = [
            (landscape, method, rate)
            for landscape in size.landscapes
            for method, rates in (("sgd", size.rates), ("newton", size.newton_rates))
            for rate in rates
        ]
        for landscape, method, rate in work.each("{0[0].kind}, {0[1]}, {0[2]:g}", planned):
            name = f"{landscape.kind}-{method}-{rate:g}"
            seed = drawn_seed(work.settings.seed, work.settings.experiment, name)
            wanted = size.model_dump(exclude={"rates", "newton_rates", "landscapes"})
            wanted |= {"landscape": landscape.model_dump(), "method": method, "rate": rate}
            wanted["seed"] = seed
            make = partial(_sampled, size, landscape, method, rate, seed)
            runs = work.kept(name, wanted, make)
            found = _multipliers(size, landscape, method, rate)
            given = size.eigenvalues, np.full(size.dimension, size.start)
            spread = {"noise": size.noise, "batch": size.batch}
            printed = dict.fromkeys(POINTS, np.nan)
            if method == "sgd":
                radii = theorem_8_1(*given, rate, landscape.steps, **spread, convention="paper")
                printed |= {LAST: radii.last, AVERAGE: radii.average}
            begins = {LAST: None, AVERAGE: 0, TAIL: landscape.steps // 2}
            for point in POINTS:
                moments = iterate_moments(
                    *given, found, landscape.steps, **spread, begin=begins[point]
                )
                about = landscape, method, rate, point, size.eigenvalues, moments
                entries.append(TheoryPoint(f"{name}-{point}", *about, printed[point], runs))
        return entries

    def fits(self, entries: Sequence[TheoryPoint]) -> list[dict[str, Any]]:
        """See :class:`~hessrmt.experiments.experiment.Experiment`."""
        return [
            {"landscape": kind, "method": method, "point": point, "rate": e.rate,
             "loss": e.loss.mean, "loss_error_of_mean": e.loss.error}
            for (kind, method, point), e in best(entries).items()
        ]  # fmt: skip

    def conclusions(self, entries: Sequence[TheoryPoint]) -> dict[str, str]:
        """See :class:`~hessrmt.experiments.experiment.Experiment`."""
        said = {}
        for kind in dict.fromkeys(entry.landscape.kind for entry in entries):
            part = [entry for entry in entries if entry.landscape.kind == kind]
            far = max(part, key=lambda entry: abs(entry.sigmas))
            low, high = (get(entry.ratio.mean for entry in part) for get in (min, max))
            text = (
                f"sampled ⟨w²⟩ is {low:.3f} to {high:.3f} of the AR(1) process's, at most "
                f"{abs(far.sigmas):.1f} standard errors off in {len(part)} points; beyond the 5 % "
                f"radius {max(entry.beyond for entry in part):.1%} at most"
            )
            averages = [e for e in part if e.point == AVERAGE and np.isfinite(e.printed)]
            if averages:
                wrong = max(averages, key=lambda e: e.sampled.mean / e.as_printed)
                text += (
                    f"; the printed average is too small by a factor of up to "
                    f"{wrong.sampled.mean / wrong.as_printed:.3g} (α = {wrong.rate:g}), with "
                    f"{wrong.beyond_printed:.1%} of the runs beyond its radius"
                )
            said[LANDSCAPES[kind]] = f"{text}."
            said[f"{LANDSCAPES[kind]}, least loss"] = _least(entries, kind)
        return said

    def figures(self, entries: Sequence[TheoryPoint]) -> Pictures:
        """See :class:`~hessrmt.experiments.experiment.Experiment`."""
        return {"norms": partial(_drawn, entries)}


def best(entries: Sequence[TheoryPoint]) -> dict[tuple[str, str, str], TheoryPoint]:
    """The rate with the least sampled loss.

    Args:
        entries: All points.

    Returns:
        Landscape, method and point to the entry of that rate.
    """
    found: dict[tuple[str, str, str], TheoryPoint] = {}
    for entry in entries:
        key = entry.landscape.kind, entry.method, entry.point
        if key not in found or entry.loss.mean < found[key].loss.mean:
            found[key] = entry
    return found


def _least(entries: Sequence[TheoryPoint], kind: str) -> str:
    parts = [
        f"{METHODS[method]}, {point} {entry.loss.text('.4g')} (at {entry.rate:g})"
        for (landscape, method, point), entry in best(entries).items()
        if landscape == kind
    ]
    return "; ".join(parts) + "."


def _multipliers(
    size: AveragingTheoryPreset, landscape: Landscape, method: str, rate: float
) -> float | Values:
    """What a gradient is multiplied with at the minimum, along each eigenvector."""
    return rate if method == "sgd" else rate / (size.eigenvalues + landscape.damping)


def _sampled(
    size: AveragingTheoryPreset, landscape: Landscape, method: str, rate: float, seed: int
) -> IterateRuns:
    points, losses = _SAMPLERS[landscape.kind](size, landscape, method, rate, seed)
    columns = {name: (point**2).sum(axis=1) for name, point in zip(POINTS, points, strict=True)}
    columns |= {f"{name}_loss": loss for name, loss in zip(POINTS, losses, strict=True)}
    return IterateRuns(**columns)


Sampled = tuple[list[np.ndarray], list[np.ndarray]]
"""(samples, P) points and (samples,) losses, of each of ``POINTS``."""


def _independent(
    size: AveragingTheoryPreset, landscape: Landscape, method: str, rate: float, seed: int
) -> Sampled:
    """Runs with independent noise; ``scale`` is infinite on the quadratic."""
    values = size.eigenvalues
    scale = np.inf if landscape.kind == "quadratic" else landscape.scale

    def gradient(w: np.ndarray) -> np.ndarray:
        return values * w / np.sqrt(1 + (w / scale) ** 2)

    def multiplier(w: np.ndarray) -> np.ndarray:
        return rate / (values * (1 + (w / scale) ** 2) ** -1.5 + landscape.damping)

    def loss(w: np.ndarray) -> np.ndarray:
        # s²(√(1 + x) - 1) = w²/(1 + √(1 + x)), x = w²/s²
        return (values * w**2 / (1 + np.sqrt(1 + (w / scale) ** 2))).sum(axis=1)

    rates: float | Callable[[np.ndarray], np.ndarray] = rate if method == "sgd" else multiplier
    found = sampled_iterates(
        *(gradient, np.full(size.dimension, size.start), rates, landscape.steps, size.noise),
        batch=size.batch,
        begin=landscape.steps // 2,
        samples=landscape.samples,
        seed=seed,
    )
    points = [found.last, found.average_of_all, found.average]
    return points, [loss(point) for point in points]


def _on_surfaces(
    size: AveragingTheoryPreset, landscape: Landscape, method: str, rate: float, seed: int
) -> Sampled:
    """Runs on surfaces of their own, without other noise than the surface."""
    values, length = size.eigenvalues, landscape.scale
    cov = rbf(size.noise**2 / size.batch * length**2, length)
    damping = None if method == "sgd" else landscape.damping
    points: list[list[np.ndarray]] = [[], [], []]
    true = quadratic(values, size.dimension, seed)
    directions = true.directions.numpy()
    start = directions.T @ np.full(size.dimension, size.start)
    for index in range(landscape.samples):
        surface = random_surface(cov, size.dimension, seed=seed, index=index, true_loss=true)
        path = descend(surface, start, rate, landscape.steps, damping=damping)
        found = path[-1], path.mean(axis=0), iterate_average(path, 0.5)
        for kept, point in zip(points, found, strict=True):
            kept.append(directions @ point)
    arrays = [np.array(kept) for kept in points]
    return arrays, [(values * w**2).sum(axis=1) / 2 for w in arrays]


_SAMPLERS = {"quadratic": _independent, "huber": _independent, "surface": _on_surfaces}


def _drawn(entries: Sequence[TheoryPoint]) -> Any:
    panels: dict[str, dict[str, Any]] = {}
    for entry in entries:
        title = f"{LANDSCAPES[entry.landscape.kind]}, {METHODS[entry.method]}"
        curves = panels.setdefault(title, {}).setdefault(entry.point, [])
        curves.append((entry.rate, *entry.sampled[:2], entry.exact, entry.as_printed))
    found = {
        title: {point: np.array(rows).T for point, rows in part.items()}
        for title, part in panels.items()
    }
    return lossmodel.iterate_norms(found, "Distance from the minimum: ⟨w²⟩ = E‖w‖²/P")
