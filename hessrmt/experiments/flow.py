"""``reproduce flow``: gradient flow of normalised weights.

Poggio, Banburski and Liao (2020), section 3: their lemmas and Theorem 4 along flows that are solved
with error control, the picture of the smallest margin (Fig. 3), batch normalisation as a flow, and
the stationary directions of all flows, counted from many starts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Literal, Self, TypeVar

import numpy as np
from pydantic import Field, model_validator
from scipy.linalg import sqrtm

from hessrmt.config import Settings
from hessrmt.curvature.spectrum import spectrum
from hessrmt.experiments.experiment import (
    Column,
    Experiment,
    Pictures,
    Presets,
    Work,
    drawn_seed,
    keyed,
)
from hessrmt.generalization import bias_free
from hessrmt.generalization.batch_norm import BatchNormFlow, batch_norm_flow, whitened
from hessrmt.generalization.fits import fit_line, log_slopes
from hessrmt.generalization.flow import Flow, direction_distances, gradient_flow, largest_drop
from hessrmt.generalization.stationary import COUNTED, FIXED, StationarySets, stationary_sets
from hessrmt.plots import generalization as plots
from hessrmt.records import Spectrum
from hessrmt.tables import counted

R = TypeVar("R")

Kind = Literal["descent", "constrained", "weight-normalization", "batch-normalization"]

BATCH: Kind = "batch-normalization"

_ROUND_OFF = 1e-6
"""Relative fall of a margin, or difference of growths, that is called none: some hundred times what
the solver's tolerance of 1e-10 adds up to along a flow."""

_ONE = 1.05
"""Up to this effective number of support vectors one sample is said to hold the directions."""

_SMALL = 0.05
"""Sine of an angle that is small at the end of a flow, which nears its limit like 1/log t."""

_NEAR = 0.3
"""Residual of eq. 5 beyond which a flow is too far from its limit to be judged by eq. 15."""

_ALIKE = 2.0
"""Ratio of two residuals that vanish together."""

_HESSIANS = 11
"""Times at which Hessians are computed."""


class FlowTask(Settings):
    """Made-up samples with labels -1 and 1.

    Attributes:
        kind: ``quadrants``: the label is sign(x_1 x_2); ``hyperplane``.
        samples: B.
        features: d.
        gap: How far classes are moved apart.
        stretch: What the first feature is multiplied by.
        seed: Of the samples.
    """

    kind: Literal["quadrants", "hyperplane"]
    samples: int = Field(ge=1)
    features: int = Field(ge=1)
    gap: float = Field(0.3, gt=0, allow_inf_nan=False)
    stretch: float = Field(1.0, gt=0, allow_inf_nan=False)
    seed: int = Field(0, ge=0)

    def made(self) -> tuple[np.ndarray, np.ndarray]:
        """The samples.

        Returns:
            (B, d) inputs and (B,) labels.
        """
        make = bias_free.quadrant_task if self.kind == "quadrants" else bias_free.linear_task
        x, y = make(self.samples, self.features, self.gap, self.seed)
        x[:, 0] *= self.stretch
        return x, y


class FollowedFlows(Settings):
    """Flows of one network on one task.

    Attributes:
        name: In file names.
        task: The samples.
        hidden: Units of the hidden layers.
        kinds: Of the flows.
        starts: Seeds of the initial weights, 0 to this less 1.
        scale: Of the initial weights.
        activation: Of the hidden layers.
        log_time: log(1 + t) at the end.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    task: FlowTask
    hidden: tuple[int, ...] = ()
    kinds: tuple[Kind, ...] = ("descent",)
    starts: int = Field(1, ge=1)
    scale: float = Field(1.0, gt=0, allow_inf_nan=False)
    activation: Literal["smooth-relu", "linear"] = "smooth-relu"
    log_time: float = Field(40.0, gt=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _hidden_layer(self) -> Self:
        if BATCH in self.kinds and not self.hidden:
            raise ValueError(f"{self.name}: {BATCH} needs a hidden layer")
        return self


class CountedSets(Settings):
    """Stationary directions counted from many starts.

    Attributes:
        name: In file names.
        task: The samples.
        hidden: Units of the hidden layers.
        starts: How many.
        log_time: log(1 + t) where flows are stopped.
        rho: ρ at which they are compared.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    task: FlowTask
    hidden: tuple[int, ...] = Field(min_length=1)
    starts: int = Field(ge=1)
    log_time: float = Field(20.0, gt=0, allow_inf_nan=False)
    rho: float = Field(200.0, gt=0, allow_inf_nan=False)


class FlowPreset(Settings):
    """One size of the experiment.

    Attributes:
        flows: That are followed; the first one is drawn, and its Hessians are computed.
        sets: Stationary directions that are counted.
    """

    flows: tuple[FollowedFlows, ...] = Field(min_length=1)
    sets: tuple[CountedSets, ...] = ()

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [one.name for one in (*self.flows, *self.sets)]
        if len(set(names)) < len(names):
            raise ValueError(f"flows and sets need different names, got {', '.join(names)}")
        if self.flows[0].kinds[0] == BATCH:
            raise ValueError(f"the first flow is drawn; it cannot be {BATCH}")
        return self


class FlowConfig(Presets[FlowPreset]):
    """Settings of ``hessrmt reproduce flow``.

    Attributes:
        device: Of the Hessians; they are small.
    """

    device: str = "cpu"


@dataclass(frozen=True)
class FlowEntry:
    """One flow, or the sets of one network.

    Attributes:
        name: Of its file.
        group: Name in the settings.
        kind: Of the flow; ``all`` for sets.
        widths: Of the network.
        task: The samples.
        result: What was found.
        hessians: Times, and spectra of the Hessian in W and in V there; of the first flow.
    """

    name: str
    group: str
    kind: str
    widths: tuple[int, ...]
    task: FlowTask
    result: Flow | BatchNormFlow | StationarySets = field(repr=False)
    hessians: tuple[Sequence[int], Sequence[Spectrum], Sequence[Spectrum]] | None = field(
        default=None, repr=False
    )

    @property
    def flow(self) -> Flow | None:
        """The flow if it isn't one of batch normalisation."""
        return self.result if isinstance(self.result, Flow) else None

    @property
    def linear(self) -> bool:
        """Whether the network is one hyperplane."""
        return getattr(self.result, "activation", "") == "linear" or len(self.widths) == 2

    @property
    def log_time(self) -> float | None:
        """log(1 + t) at the end."""
        times = getattr(self.result, "log_times", None)
        return None if times is None else float(times[-1])

    @property
    def separated(self) -> float | None:
        """log(1 + t) from which on all samples are classified correctly."""
        first = None if self.flow is None else self.flow.separated_from
        return None if self.flow is None or first is None else float(self.flow.log_times[first])

    @property
    def margin(self) -> float | None:
        """Smallest normalised margin at the end, of sets the largest one."""
        if isinstance(self.result, StationarySets):
            return float(self.result.margins[0]) if len(self.result.margins) else None
        return float(self.result.margin[-1])

    @property
    def drop(self) -> float | None:
        """Largest relative fall of the margin after separation."""
        return getattr(self.result, "largest_drop", None)

    @property
    def smoothed_drop(self) -> float | None:
        """The same of the smoothed margin."""
        if isinstance(self.result, BatchNormFlow):
            return self.result.smoothed_drop
        if self.flow is None:
            return None
        kept = self.flow.smoothed_margin[self.flow.separated_from or 0 :]
        kept = kept[kept > 0]
        return largest_drop(kept) if len(kept) else None

    @cached_property
    def growth(self) -> float | None:
        """Largest difference of the layers' dρ_k²/dt over its size, along the flow (Lemma 1)."""
        if isinstance(self.result, BatchNormFlow):
            return self.result.growth_difference
        if self.flow is None or self.flow.separated_from is None or len(self.widths) < 3:
            return None
        growth = self.flow.norm_growth[self.flow.separated_from :]
        return float((np.ptp(growth, axis=1) / growth.mean(axis=1)).max())

    @cached_property
    def support(self) -> float | None:
        """Effective number of support vectors at the end."""
        return None if self.flow is None else self.flow.support_size()

    @cached_property
    def eq15(self) -> float | None:
        """Largest residual of eq. 15 over the layers at the end."""
        return None if self.flow is None else float(self.flow.support_residual().max())

    @cached_property
    def eq5(self) -> float | None:
        """The same of eq. 5, with all samples."""
        return None if self.flow is None else float(self.flow.misalignment().max())

    @cached_property
    def distance(self) -> float | None:
        """Of a linear network's direction from the maximum margin, at the end.

        With batch normalisation, of the whitened samples.
        """
        return self._distance(whitened) if self.linear else None

    @cached_property
    def distance_unwhitened(self) -> float | None:
        """With batch normalisation, from the maximum margin of the centred samples as they are."""
        if not self.linear or not isinstance(self.result, BatchNormFlow):
            return None
        return self._distance(lambda x: x - x.mean(axis=0))

    def _distance(self, metric: Callable[[np.ndarray], np.ndarray]) -> float:
        x, y = self.task.made()
        if self.flow is not None:
            best = bias_free.maximum_margin(x, y).direction
            return float(np.linalg.norm(self.flow.linear_direction() - best))
        assert isinstance(self.result, BatchNormFlow)
        best = bias_free.maximum_margin(metric(x), y).direction
        found = self.result.weights[0][0]
        if metric is whitened:
            found = np.real(sqrtm(np.cov(x.T, bias=True))) @ found
        found = found / np.linalg.norm(found)
        return float(np.linalg.norm(found * np.sign(found @ best) - best))

    @property
    def counts(self) -> dict[str, list[int]] | None:
        """How often each flow ended in each minimum."""
        sets = self.result
        if not isinstance(sets, StationarySets):
            return None
        return dict(zip(sets.flows, sets.counts.tolist(), strict=True))

    def curve(self, name: str) -> np.ndarray:
        """A residual along the flow.

        Args:
            name: ``support_residual`` or ``misalignment``.

        Returns:
            (T,) largest over layers.
        """
        assert self.flow is not None
        get = getattr(self.flow, name)
        return np.array([get(i).max() for i in range(len(self.flow.log_times))])


def _network(entry: FlowEntry) -> str:
    words = "-".join(map(str, entry.widths))
    return f"{words}, linear" if entry.linear and len(entry.widths) > 2 else words


class GradientFlows(Experiment[FlowConfig, FlowPreset, FlowEntry]):
    """Gradient flow of normalised weights."""

    settings = FlowConfig
    columns = (
        *keyed(run="name", group="group"),
        Column("task", lambda e: f"{e.group}: {e.task.samples} x {e.task.features}", key="task"),
        Column("network", _network, key="network"),
        Column("flow", lambda e: e.kind, key="flow"),
        Column("log t", lambda e: e.log_time, "g", "log_time", terminal="log t"),
        Column("separated at", lambda e: e.separated, ".1f", "separated_at"),
        Column("margin", lambda e: e.margin, ".5f", "margin", terminal="margin"),
        Column("drop", lambda e: e.drop, ".1e", "largest_drop", terminal="largest\ndrop"),
        Column("smoothed", lambda e: e.smoothed_drop, ".1e", "smoothed_drop"),
        Column("Lemma 1", lambda e: e.growth, ".1e", "growth_difference", terminal="Lemma 1"),
        Column("support", lambda e: e.support, ".2f", "support_size", terminal="support"),
        Column("eq. 15", lambda e: e.eq15, ".2g", "residual_eq15", terminal="eq. 15"),
        Column("eq. 5", lambda e: e.eq5, ".2g", "residual_eq5", terminal="eq. 5"),
        Column("from SVM", lambda e: e.distance, ".2g", "distance", terminal="from\nSVM"),
        Column("", lambda e: e.distance_unwhitened, key="distance_unwhitened"),
        Column("", lambda e: getattr(e.result, "row_drift", None), key="row_drift"),
        Column("", lambda e: e.counts, key="counts"),
    )

    def compute(self, work: Work[FlowConfig, FlowPreset]) -> list[FlowEntry]:
        """See :class:`~hessrmt.experiments.experiment.Experiment`."""
        seed = drawn_seed(work.settings.seed, "flow")
        planned = [*_flows(work.size, seed), *_sets(work.size, seed)]
        found = []
        for (name, *about), wanted, make in work.each("{0[0][0]}", planned):
            result = work.kept(name, wanted, make)
            hessians = None
            if not found:
                kept = work.kept(f"{name}-hessians", wanted, partial(_hessians, result))
                hessians = kept["indices"], kept["weights"], kept["directions"]
            group, kind, widths, task = about
            found.append(FlowEntry(name, group, kind, widths, task, result, hessians))
        return found

    def figures(self, entries: Sequence[FlowEntry]) -> Pictures:
        """See :class:`~hessrmt.experiments.experiment.Experiment`."""
        first = entries[0]
        pictures: dict[str, Callable[[], Any]] = {
            "margin": partial(plots.margin_growth, first.result)
        }
        if first.hessians is not None:
            pictures["hessians"] = partial(plots.curvature, first.flow, *first.hessians)
        followed = [e for e in entries if e.flow is not None]
        alike = {e.kind: e.flow for e in followed if e.group == first.group and _start(e) == 0}
        pictures["norms"] = partial(plots.norms, alike)
        pictures["residuals"] = partial(_residuals, followed)
        linear = [e for e in followed if e.linear]
        if linear:
            pictures["linear"] = partial(_linear, linear)
        batch = [e for e in entries if isinstance(e.result, BatchNormFlow) and not e.linear]
        if batch:
            pictures["batch-norm"] = partial(plots.batch_norm_margins, batch[0].result)
        for entry in entries:
            if isinstance(entry.result, StationarySets):
                pictures[f"{entry.name}"] = partial(plots.stationary_counts, entry.result)
        return pictures

    def conclusions(self, entries: Sequence[FlowEntry]) -> dict[str, str]:
        """See :class:`~hessrmt.experiments.experiment.Experiment`."""
        made = {
            "Lemma 1": _lemma_1(entries),
            "Lemma 3, Fig. 3": _lemma_3(entries),
            "eq. (15), Theorem 4.7": _eq_15(entries),
            "maximum margin": _maximum_margin(entries),
            "Theorem 4.6": _norms(entries),
            "Lemma 5": _sets_agree(entries, ("descent", "constrained", "weight-normalization")),
            "Lemma 2": _sets_agree(entries, ("constrained", FIXED)),
            "batch normalisation": _batch_norm(entries),
            "Hessian": _hessian(entries),
        }
        return {about: sentence for about, sentence in made.items() if sentence}


def _start(entry: FlowEntry) -> int:
    return int(entry.name.rpartition("-")[2])


Planned = tuple[tuple[Any, ...], dict[str, Any], Callable[[], Any]]
"""What an entry says of a result, the settings it depends on, and what computes it."""


def _flows(size: FlowPreset, seed: int) -> Iterable[Planned]:
    for one in size.flows:
        x, y = one.task.made()
        widths = (one.task.features, *one.hidden, 1)
        for kind in one.kinds:
            for number in range(one.starts):
                about = f"{one.name}-{kind}-{number}", one.name, kind, widths, one.task
                own = drawn_seed(seed, one.name, number)
                layers = bias_free.initial_layers(widths, own, one.scale)
                wanted = one.model_dump(exclude={"starts", "kinds"}) | {"kind": kind, "seed": own}
                options: dict[str, Any] = {"activation": one.activation, "saved": _grid(one)}
                if kind == BATCH:
                    yield about, wanted, partial(batch_norm_flow, layers, x, y, **options)
                else:
                    options |= {"kind": kind}
                    yield about, wanted, partial(gradient_flow, layers, x, y, **options)


def _grid(one: FollowedFlows) -> np.ndarray:
    """Values of log(1 + t), for long flows evenly in their logarithm."""
    if one.log_time <= _LONG:
        return np.linspace(0, one.log_time, 201)
    return np.concatenate([[0.0], np.geomspace(0.1, one.log_time, 200)])


_LONG = 200.0


def _sets(size: FlowPreset, seed: int) -> Iterable[Planned]:
    for one in size.sets:
        x, y = one.task.made()
        widths = (one.task.features, *one.hidden, 1)
        about = one.name, one.name, "all", widths, one.task
        options = {"starts": one.starts, "log_time": one.log_time, "rho": one.rho, "seed": seed}
        wanted = one.model_dump() | {"seed": seed, "flows": list(COUNTED)}
        yield about, wanted, partial(stationary_sets, widths, x, y, **options)


def _hessians(flow: Flow) -> dict[str, Any]:
    indices = np.linspace(0, len(flow.log_times) - 1, _HESSIANS).astype(int).tolist()
    return {
        "indices": indices,
        "weights": [spectrum(flow.problem(i), device="cpu") for i in indices],
        "directions": [spectrum(flow.normalized_problem(i), device="cpu") for i in indices],
    }


def _residuals(entries: Sequence[FlowEntry]) -> Any:
    """Residuals of eqs. 15 and 5 of the first flow of each network of more than one layer."""
    chosen: dict[str, FlowEntry] = {}
    for entry in entries:
        if len(entry.widths) > 2 and not entry.linear:
            chosen.setdefault(entry.group, entry)
    found = {
        group: (e.result, e.curve("support_residual"), e.curve("misalignment"))
        for group, e in chosen.items()
    }
    return plots.residuals(found)


def _linear(entries: Sequence[FlowEntry]) -> Any:
    found = {}
    for entry in entries[:4]:
        assert entry.flow is not None
        best = bias_free.maximum_margin(*entry.task.made())
        label = f"{counted(len(entry.widths) - 1, 'layer', 'layers')}, {entry.kind}"
        found[label] = entry.flow.log_times, direction_distances(entry.flow, best.direction)
    return plots.distances(found)


def _of(entries: Sequence[FlowEntry], kind: type[R]) -> list[tuple[FlowEntry, R]]:
    return [(entry, entry.result) for entry in entries if isinstance(entry.result, kind)]


def _lemma_1(entries: Sequence[FlowEntry]) -> str:
    found = [(e, e.growth) for e, _ in _of(entries, Flow) if e.growth is not None]
    if not found:
        return ""
    worst = max(value for _, value in found)
    norms = max(
        float(np.ptp(grown) / grown.mean())
        for grown in (f.scales[-1] ** 2 - f.scales[0] ** 2 for e, f in _of(entries, Flow)
                      if len(e.widths) > 2)
    )  # fmt: skip
    agrees = "agrees" if max(worst, norms) < _ROUND_OFF else "does not agree"
    return (
        f"dρ_k²/dt of the layers differ by {worst:.0e} at most from the gradients, what ρ_k² has "
        f"grown by when integrated by {norms:.0e} (relative, {len(found)} flows): {agrees}."
    )


def _lemma_3(entries: Sequence[FlowEntry]) -> str:
    found = [e for e, _ in _of(entries, Flow) if e.separated is not None and not e.linear]
    if not found:
        return ""
    falling = [e for e in found if (e.drop or 0) > _ROUND_OFF]
    smoothed = [e for e in found if (e.smoothed_drop or 0) > _ROUND_OFF]
    changes = [
        int(np.count_nonzero(np.diff(f.support[f.separated_from :]))) for e, f in _of(found, Flow)
    ]
    text = (
        f"the smallest margin never falls after separation in {len(found) - len(falling)} of "
        f"{len(found)} flows of ReLU networks; the support vector changes {min(changes)} to "
        f"{max(changes)} times"
    )
    if falling:
        worst = max(falling, key=lambda e: e.drop or 0)
        text += f"; it falls by up to {worst.drop:.0%} ({worst.name})"
    text += f"; the smoothed margin falls in {len(smoothed)}"
    if falling:
        return f"{text}: agrees in part: Lemma 3 holds only once one support vector dominates."
    return f"{text}: agrees here; before one support vector dominates nothing forbids a fall."


def _eq_15(entries: Sequence[FlowEntry]) -> str:
    every = [e for e, _ in _of(entries, Flow) if e.separated is not None]
    found = [e for e in every if (e.eq5 or 0.0) < _NEAR]
    if not found:
        return ""
    one = [e for e in found if (e.support or 0) <= _ONE]
    several = [e for e in found if (e.support or 0) > _ONE]
    parts = []
    for part, words in ((one, "one sample holds"), (several, "several samples hold")):
        if part:
            sines = [e.eq15 or 0.0 for e in part]
            others, sizes = [e.eq5 or 0.0 for e in part], [e.support or 0.0 for e in part]
            small = sum(map(_vanishes, part))
            parts.append(
                f"where {words} the directions ({len(part)} flows, effective number "
                f"{min(sizes):.3g} to {max(sizes):.3g}) the residual of eq. 15 ends at "
                f"{min(sines):.2g} to {max(sines):.2g}, that of eq. 5, with all samples, at "
                f"{min(others):.2g} to {max(others):.2g} (both vanish alike in {small})"
            )
    agrees = all(map(_vanishes, found))
    verdict = (
        "agrees"
        if agrees
        else "does not agree where several support vectors remain, which is the usual case: only "
        "their weighted sum, eq. 5, vanishes"
    )
    if len(found) < len(every):
        parts.append(
            f"{len(every) - len(found)} flows are far from their limit still (eq. 5 above {_NEAR})"
        )
    return f"{'; '.join(parts)}: {verdict}."


def _vanishes(entry: FlowEntry) -> bool:
    """Whether the residual of eq. 15 goes to zero with that of eq. 5, or is zero already."""
    return (entry.eq15 or 0.0) <= max(_ALIKE * (entry.eq5 or 0.0), _ROUND_OFF)


def _maximum_margin(entries: Sequence[FlowEntry]) -> str:
    found = [e for e, _ in _of(entries, Flow) if e.linear and e.separated is not None]
    if not found:
        return ""
    parts = [f"{_network(e)}, {e.kind}, log t = {e.log_time:g}: {e.distance:.1e}" for e in found]
    agrees = all((e.distance or 1) < _SMALL for e in found)
    return (
        f"distance of linear networks' directions from the support vector machine's: "
        f"{'; '.join(parts)}: {'agrees' if agrees else 'not reached in all of them'}."
    )


def _norms(entries: Sequence[FlowEntry]) -> str:
    parts, agrees = [], True
    for entry, flow in _of(entries, Flow):
        if not entry.linear or entry.kind != "descent" or entry.separated is None:
            continue
        late = flow.log_times > flow.log_times[-1] / 2
        gamma = bias_free.maximum_margin(*entry.task.made()).margin
        slope = fit_line(flow.log_times[late], flow.rho[late] * gamma).slope
        ends = flow.rho[-1] * gamma - flow.log_times[-1]
        power = float(log_slopes(flow.log_times[late], flow.scales[late, 0]))
        one = len(entry.widths) == 2
        agrees &= abs(slope - 1) < _SMALL and (one or power < 1 - _SMALL)
        parts.append(
            f"{counted(len(entry.widths) - 1, 'layer', 'layers')}: slope of γρ against log t "
            f"{slope:.5f}, γρ - log t = {ends:.3g}, ρ_1 ~ (log t)^{power:.2f}"
        )
    if not parts:
        return ""
    return (
        f"{'; '.join(parts)}: {'agrees' if agrees else 'does not agree'}; what deeper products "
        "gain over log t is of the order log log t."
    )


def _sets_agree(entries: Sequence[FlowEntry], flows: tuple[str, ...]) -> str:
    parts, agrees = [], True
    for entry, sets in _of(entries, StationarySets):
        known = [name for name in flows if name in sets.flows]
        rows = {name: sets.counts[sets.flows.index(name)] for name in known}
        common = np.all([row > 0 for row in rows.values()], axis=0)
        arrived = sum(int(row.sum()) for row in rows.values())
        inside = sum(int(row[common].sum()) for row in rows.values())
        missed = [
            (one, other, *found)
            for one in known
            for other in known
            if one != other
            for found in sets.alone(one, other)
        ]
        tried = max(len(known) * (len(known) - 1) * len(sets.outputs), 1)
        sure = [item for item in missed if item[-1] < 0.01 / tried]
        agrees &= not sure
        starts = sets.classes.shape[1]
        ends = ", ".join(
            f"{name} {np.count_nonzero(row)} ({row.sum()} of {starts} starts)"
            for name, row in rows.items()
        )
        text = (
            f"{entry.name} at ρ = {sets.rho:g}: separating minima found {ends}; {inside} of "
            f"{arrived} arrivals are at the {np.count_nonzero(common)} minima that all have"
        )
        elsewhere = {
            name: int(np.count_nonzero(sets.classes[sets.flows.index(name)] < 0)) for name in known
        }
        if any(elsewhere.values()):
            ends = ", ".join(f"{name} {count}" for name, count in elsewhere.items() if count)
            text += (
                "; starts that end with samples classified wrongly, not at rest, or can't be "
                f"followed to their end: {ends}"
            )
        if missed:
            rarest = min(missed, key=lambda item: item[-1])
            text += (
                f"; furthest from equal is the minimum with margin {sets.margins[rarest[2]]:.4f}, "
                f"{rarest[3]} times from {rarest[0]} and never from {rarest[1]} (p = "
                f"{rarest[4]:.2g} if both came there equally often, {tried} comparisons)"
            )
        parts.append(text)
    if not parts:
        return ""
    words = "agrees" if agrees else "a minimum is reached by one flow and hardly by the other"
    return f"{'; '.join(parts)}: {words}."


def _batch_norm(entries: Sequence[FlowEntry]) -> str:
    parts, agrees = [], True
    for entry, flow in _of(entries, BatchNormFlow):
        text = (
            f"{_network(entry)}: rows of W keep their norms to {flow.row_drift:.0e}, squared "
            f"scales grow alike to {flow.growth_difference:.0e}; after separation the margin falls "
            f"by {flow.largest_drop:.1g}, the smoothed one by {flow.smoothed_drop:.1g}"
        )
        agrees &= max(flow.row_drift, flow.growth_difference, flow.smoothed_drop) < _ROUND_OFF
        if entry.distance is not None and entry.distance_unwhitened is not None:
            text += (
                f", the direction ends {entry.distance:.1e} from the maximum margin of the "
                f"whitened samples and {entry.distance_unwhitened:.1e} from that of the samples as "
                "they are"
            )
        parts.append(text)
    if not parts:
        return ""
    verdict = "agrees that the margin is maximised under a norm" if agrees else "does not agree"
    return (
        f"{'; '.join(parts)}: {verdict}; the norm is the standard deviation over the batch, not "
        "‖V_k‖ = 1 as for weight normalisation."
    )


def _hessian(entries: Sequence[FlowEntry]) -> str:
    first = entries[0]
    if first.hessians is None or first.flow is None:
        return ""
    indices, weights, directions = first.hessians
    sizes = [float(np.abs(s.eigenvalues).max()) for s in weights]
    inside = [float(s.eigenvalues[-1]) for s in directions]
    positive = [int(np.count_nonzero(s.resolved > 0)) for s in directions]
    over = [v / first.flow.losses[i] for v, i in zip(inside, indices, strict=True)]
    falls = sizes[-1] < _ROUND_OFF * sizes[0] and min(positive) > 0
    return (
        f"largest |λ| in W from {sizes[0]:.2g} to {sizes[-1]:.1g}; in V {positive[0]} to "
        f"{positive[-1]} positive eigenvalues, the largest from {inside[0]:.2g} to "
        f"{inside[-1]:.1g}, over the loss from {over[0]:.2g} to {over[-1]:.2g}: "
        f"{'agrees' if falls else 'does not agree'}; the positive part in V stays only relative to "
        "the loss."
    )
