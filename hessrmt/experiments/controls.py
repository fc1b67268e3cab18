"""``reproduce controls``: are the p-values and verdicts of level statistics right where one knows?

Spectra of known ensembles, whole and with a hole, evenly dense and over ten decades, go through
every unfolding. GOE levels show whether p-values are uniform under the null hypothesis and how
often GOE is excluded all the same; the others show how often it is excluded as it should be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from operator import attrgetter
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field
from scipy import stats

from hessrmt import rng
from hessrmt.config import Settings
from hessrmt.ensembles import block_levels, gaussian_levels
from hessrmt.errors import DataError
from hessrmt.experiments.experiment import Column, Experiment, Pictures, Presets, Work, keyed
from hessrmt.levels.analysis import FEWEST_RATIOS, RATE
from hessrmt.levels.goodness import STATISTICS, distances, judge
from hessrmt.levels.selection import Selection, ratio_samples, select
from hessrmt.levels.surrogates import Surrogates, plan
from hessrmt.levels.unfolding import POOL_FROM, unfold_selection
from hessrmt.plots import levels as plots
from hessrmt.results import Result
from hessrmt.theory import mean_ratio

if TYPE_CHECKING:
    from jaxtyping import Float64

    from hessrmt.arrays import Levels

    Values = Float64[np.ndarray, " sets"]

_HOLE = 0.1
"""Share of the levels that a hole takes, about."""

_HALF = 0.35
"""Share of the levels below zero where they span decades: unequal halves."""

_DECADES = 10.0

_SPECTRA = 200
"""From which mean positions are taken."""

_BEYOND = 9.0
"""Spacings to which these are continued; the outermost level of a spectrum lies within three."""

_METHODS = ("window", "kernel", "spline", "polynomial", "pooled")

_CUTOFF = 1e-300
"""Of the exact zeros alone."""

_UNIFORM = 0.01
"""Smallest p-value of the test of uniformity, of all cells together."""


class ControlsPreset(Settings):
    """One size of the experiment.

    Attributes:
        sizes: Spectra of a data set and levels of each.
        methods: Unfoldings.
        sets: Data sets of GOE levels in each cell.
        others: Data sets of other levels.
        seeds: Independent repetitions of all.
        surrogates: For each p-value.
    """

    sizes: tuple[tuple[int, int], ...] = Field(min_length=1)
    methods: tuple[Literal["window", "kernel", "spline", "polynomial", "pooled"], ...] = _METHODS
    sets: int = Field(200, ge=10)
    others: int = Field(50, ge=0)
    seeds: int = Field(1, ge=1)
    surrogates: int = Field(200, ge=20)


class ControlsConfig(Presets[ControlsPreset]):
    """Settings of ``hessrmt reproduce controls``."""


@dataclass(frozen=True)
class Cell(Result):
    """Data sets of one ensemble through one unfolding.

    Attributes:
        ensemble: Name of the ensemble.
        hole: Whether a band of levels was discarded.
        spectra: Of a data set.
        levels: Of each spectrum.
        unfold: Method; ``"none"`` for the ratios, which need none.
        repetition: Which, from 0.
        p_values: (sets,) of GOE levels.
        excluded: Share of the data sets in which GOE is excluded; None for spacings, which exclude
            nothing.
        reason: Why there are no p-values; empty if there are.
    """

    ensemble: str
    hole: bool
    spectra: int
    levels: int
    unfold: str
    repetition: int
    p_values: Values
    excluded: float | None = None
    reason: str = ""

    @property
    def name(self) -> str:
        """Of the cell."""
        hole = ", hole" if self.hole else ""
        return f"{self.ensemble}{hole}, {self.spectra} × {self.levels}, {self.unfold}"

    @property
    def is_null(self) -> bool:
        """Whether the levels are the GOE's."""
        return self.ensemble.startswith("GOE")

    @property
    def uniform(self) -> float | None:
        """p-value of the hypothesis that the p-values are uniform (Kolmogorov and Smirnov)."""
        if not self.is_null or not len(self.p_values):
            return None
        return float(stats.kstest(self.p_values, "uniform").pvalue)

    def below(self, level: float) -> float | None:
        """Share of the p-values below some level."""
        return float(np.mean(self.p_values < level)) if len(self.p_values) else None


@dataclass(frozen=True)
class Cells(Result):
    """All unfoldings of the data sets of one ensemble and size.

    Attributes:
        cells: One for the ratios, and one for each unfolding.
    """

    cells: tuple[Cell, ...]


class Controls(Experiment[ControlsConfig, ControlsPreset, Cell]):
    """Level statistics of known ensembles."""

    settings = ControlsConfig
    columns = (
        *keyed(ensemble="ensemble", hole="hole", spectra="spectra", levels="levels"),
        *keyed(unfold="unfold", repetition="repetition"),
        Column("levels", lambda e: f"{e.ensemble}{', hole' if e.hole else ''}"),
        Column("spectra × levels", lambda e: f"{e.spectra} × {e.levels}"),
        Column("p-value of", lambda e: "ratios" if e.unfold == "none" else f"s, {e.unfold}"),
        Column("repetition", lambda e: str(e.repetition + 1)),
        Column("data sets", lambda e: len(e.p_values), key="sets", terminal="sets"),
        Column("uniform: p", attrgetter("uniform"), ".2g", key="uniform", terminal="uniform\np"),
        Column("p < 0.05", lambda e: e.below(0.05), ".3f", key="below_5", terminal="p <\n0.05"),
        Column("p < 0.01", lambda e: e.below(0.01), ".3f", key="below_1", terminal="p <\n0.01"),
        Column(
            "GOE excluded", attrgetter("excluded"), ".3f", key="excluded", terminal="GOE\nexcluded"
        ),
        Column("", attrgetter("reason"), key="reason"),
    )

    def compute(self, work: Work[ControlsConfig, ControlsPreset]) -> list[Cell]:
        """See :class:`~hessrmt.experiments.experiment.Experiment`."""
        size, seed = work.size, work.settings.seed
        tasks = [
            (name, hole, count, n, repetition)
            for repetition in range(size.seeds)
            for count, n in size.sizes
            for name in ENSEMBLES
            for hole in (False, True)
            if size.others or name.startswith("GOE")
        ]
        wanted = {"seed": seed, **size.model_dump(exclude={"sizes", "seeds"})}
        kept = {task: work.found(_file(task), wanted) for task in tasks}
        missing = [task for task in tasks if kept[task] is None]
        draw, before = partial(_cells, size, seed), len(tasks) - len(missing)
        work.tick("controls", before, len(tasks))
        for done, (index, cells) in enumerate(work.pool.map_unordered(draw, missing), before + 1):
            task = missing[index]
            kept[task] = work.kept(_file(task), wanted, partial(Cells, tuple(cells)))
            work.tick("controls", done, len(tasks))
        return [cell for found in kept.values() for cell in found.cells]

    def figures(self, entries: Sequence[Cell]) -> Pictures:
        """See :class:`~hessrmt.experiments.experiment.Experiment`."""
        nulls = [cell for cell in entries if cell.uniform is not None]
        shown = {
            "ratios": [cell.p_values for cell in nulls if cell.unfold == "none"],
            **{
                f"s, {method}": [cell.p_values for cell in nulls if cell.unfold == method]
                for method in _METHODS
            },
        }
        shown = {name: values for name, values in shown.items() if values}
        return {"p-values": partial(plots.p_values, shown, "p-values of GOE levels")}

    def conclusions(self, entries: Sequence[Cell]) -> dict[str, str]:
        """See :class:`~hessrmt.experiments.experiment.Experiment`."""
        found = {}
        for repetition in sorted({cell.repetition for cell in entries}):
            part = [cell for cell in entries if cell.repetition == repetition]
            nulls = [(cell.uniform, cell) for cell in part if cell.uniform is not None]
            least, worst = min(nulls, key=lambda pair: pair[0])
            bound = _UNIFORM / len(nulls)
            words = "holds" if least > bound else "does not hold"
            ratios = [cell for cell in part if cell.excluded is not None]
            false = [cell for cell in ratios if cell.is_null]
            sets = sum(len(cell.p_values) for cell in false)
            wrong = round(sum((cell.excluded or 0) * len(cell.p_values) for cell in false))
            text = (
                f"uniform p-values in all {len(nulls)} cells of GOE levels: {words} (the smallest "
                f"p is {least:.2g}, of {worst.name}; it should exceed {bound:.2g}); GOE excluded "
                f"in {wrong} of {sets:,} data sets of GOE levels (nominal: {RATE * sets:.1f})"
            )
            others = [cell for cell in ratios if not cell.is_null]
            for name in dict.fromkeys(cell.ensemble for cell in others):
                powers = [cell.excluded or 0.0 for cell in others if cell.ensemble == name]
                text += f"; of {name} levels in {min(powers):.0%} to {max(powers):.0%}"
            found[f"repetition {repetition + 1}"] = text + "."
        return found


def _file(task: tuple[str, bool, int, int, int]) -> str:
    """Of the cells, in the experiment's folder."""
    name, hole, count, n, repetition = task
    words = f"{name} {'hole ' if hole else ''}{count}x{n} {repetition + 1}"
    return words.replace(",", "").replace(" ", "-")


def _even(name: str, n: int, draw: np.random.Generator) -> Levels:
    """Levels about zero, of the ensemble's own density."""
    if name == "Poisson":
        return np.sort(draw.uniform(-1, 1, size=n))
    if name == "two GOE blocks":
        return block_levels([n // 2, n - n // 2], draw)
    return gaussian_levels(2 if name == "GUE" else 1, n, draw)


@lru_cache(maxsize=8)
def _mean_levels(n: int) -> tuple[Levels, Levels]:
    """Mean position of each level of a GOE spectrum, and its number, both continued evenly."""
    draw = rng.stream(0, "controls", "mean levels", n)
    mean = np.mean([gaussian_levels(1, n, draw) for _ in range(_SPECTRA)], axis=0)
    beyond = _BEYOND * (mean[1] - mean[0]), _BEYOND * (mean[-1] - mean[-2])
    places = np.concatenate([[mean[0] - beyond[0]], mean, [mean[-1] + beyond[1]]])
    return places, np.concatenate([[-_BEYOND], np.arange(n), [n - 1 + _BEYOND]]) + 0.5


def _decades(n: int, hole: bool, draw: np.random.Generator) -> Levels:
    """GOE levels over ten decades: positive ones, or unequal halves with zeros between them."""
    share = np.interp(gaussian_levels(1, n, draw), *_mean_levels(n)) / n
    if not hole:
        return 10 ** (_DECADES * (share - 1))
    below, above = share[share < _HALF], share[share >= _HALF]
    negative = -(10 ** (_DECADES * ((_HALF - below) / _HALF - 1)))
    positive = 10 ** (_DECADES * ((above - _HALF) / (1 - _HALF) - 1))
    return np.concatenate([negative, np.zeros(5), positive])


ENSEMBLES = ("GOE", "GUE", "Poisson", "two GOE blocks", "GOE, ten decades")
"""Of the data; two blocks are independent and of equal size."""


def _data(name: str, hole: bool, count: int, n: int, draw: np.random.Generator) -> Selection:
    if name == "GOE, ten decades":
        return select([_decades(n, hole, draw) for _ in range(count)], _CUTOFF)
    rows = [_even(name, n, draw) for _ in range(count)]
    if not hole:
        return select(rows)
    middle = [np.sort(np.abs(row))[int(_HOLE * n)] for row in rows]
    return select(rows, float(np.median(middle)))


def _cells(size: ControlsPreset, seed: int, task: tuple[str, bool, int, int, int]) -> list[Cell]:
    """All unfoldings of the data sets of one ensemble and size."""
    name, hole, count, n, repetition = task
    sets = size.sets if name.startswith("GOE") else size.others
    methods = [x for x in size.methods if x != "pooled" or count >= POOL_FROM]
    p_values: dict[str, list[float]] = {method: [] for method in ("none", *methods)}
    reasons: dict[str, str] = {}
    excluded = 0
    for number in range(sets):
        draw = rng.stream(seed, "controls", name, int(hole), count, n, repetition, number)
        data = _data(name, hole, count, n, draw)
        p, verdict = _of_ratios(data, seed, size.surrogates)
        p_values["none"].append(p)
        excluded += verdict
        for method in methods:
            if method in reasons:
                continue
            try:
                p_values[method].append(_of_spacings(data, method, seed, size.surrogates))
            except DataError as error:
                reasons[method], p_values[method] = str(error), []
    where = name, hole, count, n
    return [
        Cell(
            *where,
            method,
            repetition,
            np.array(values),
            excluded / sets if method == "none" else None,
            reasons.get(method, ""),
        )
        for method, values in p_values.items()
    ]


def _of_ratios(data: Selection, seed: int, surrogates: int) -> tuple[float, bool]:
    """p-value of GOE for the ratios, and whether it is excluded."""
    ratios, law = np.sort(np.concatenate(ratio_samples(data))), STATISTICS["ratio"]("goe")
    null = Surrogates("goe", plan(data, "none", surrogates, seed)).ratios()
    verdict = judge(ratios, law, mean_ratio("goe"), null)
    return verdict.simulated, len(ratios) >= FEWEST_RATIOS and verdict.p_value < RATE


def _of_spacings(data: Selection, method: str, seed: int, surrogates: int) -> float:
    """p-value of GOE for the unfolded spacings."""
    unfolded, law = unfold_selection(data, method, seed=seed), STATISTICS["spacing"]("goe")
    null = Surrogates("goe", plan(data, method, surrogates, seed)).spacings()
    _, _, p = distances(np.sort(np.concatenate(unfolded.spacings)), law, null)
    return float("nan") if p is None else p
