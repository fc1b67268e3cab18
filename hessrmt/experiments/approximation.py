"""``reproduce approximation``: deep trees against shallow networks.

Poggio, Banburski and Liao (2020), section 2. Three kinds of studies: networks fitted to functions
with the graph of a binary tree (Theorem 1), polynomials realised with the numbers of units of
Theorems 2 and 3, and the square of the ReLU made of ReLUs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import comb
from operator import methodcaller
from typing import Any, Literal, Self

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
from hessrmt.generalization.approximation import (
    ACTIVATIONS,
    KINDS,
    TARGETS,
    ApproximationStudy,
    study,
)
from hessrmt.generalization.polynomials import PolynomialStudy, SquareStudy, realize, squares
from hessrmt.plots import generalization as plots

_SURE = 0.01
"""Probability below which a difference between deep and shallow networks is called one."""

_SIGMAS = 2.0
"""Standard errors by which an exponent may miss its bound."""


class FittedNetworks(Settings):
    """Networks fitted to functions of some numbers of variables, all combinations.

    Attributes:
        targets: Functions, of :data:`hessrmt.generalization.approximation.TARGETS`.
        inputs: n, powers of two.
        widths: Units at each node of the deep networks, increasing.
        activations: Of the units.
        samples: Points to fit, and as many to test; a power of two.
        start: ``nodes``: deep networks start from fits of their nodes; ``random``.
    """

    targets: tuple[str, ...] = Field(min_length=1)
    inputs: tuple[int, ...] = Field(min_length=1)
    widths: tuple[int, ...] = Field(min_length=2)
    activations: tuple[str, ...] = ("relu",)
    samples: int = Field(2048, ge=1)
    start: Literal["nodes", "random"] = "nodes"

    @model_validator(mode="after")
    def _known(self) -> Self:
        for names, known in ((self.targets, TARGETS), (self.activations, ACTIVATIONS)):
            for name in names:
                if name not in known:
                    raise ValueError(f"there is no {name!r}; known are {', '.join(known)}")
        for n in self.inputs:
            if n < 2 or n & (n - 1):
                raise ValueError(f"a binary tree has 2, 4, 8, 16, ... variables, not {n}")
        if any(b <= a for a, b in itertools.pairwise((0, *self.widths))):
            raise ValueError("widths should be positive numbers, ascending")
        return self


class RealizedPolynomials(Settings):
    """Random polynomials and the units of Theorem 2 or 3.

    Attributes:
        kind: ``shallow`` or ``deep``.
        inputs: n.
        degree: k.
        activation: Smooth.
    """

    kind: Literal["shallow", "deep"]
    inputs: int = Field(ge=1)
    degree: int = Field(ge=1)
    activation: Literal["softplus", "tanh"] = "softplus"


class ApproximationPreset(Settings):
    """One size of the experiment.

    Attributes:
        fits: Networks fitted to functions.
        seeds: Starts of each network.
        iterations: Of each fit.
        polynomials: Polynomials realised.
        repeats: How many polynomials of each kind.
        scales: h, falling.
        levels: Of the deep network for (z₊)².
    """

    fits: tuple[FittedNetworks, ...] = Field(min_length=1)
    seeds: int = Field(5, ge=2)
    iterations: int = Field(60, ge=1)
    polynomials: tuple[RealizedPolynomials, ...] = ()
    repeats: int = Field(5, ge=1)
    scales: tuple[float, ...] = tuple(2.0**-i for i in range(1, 11))
    levels: int = Field(10, ge=1, le=20)


class ApproximationConfig(Presets[ApproximationPreset]):
    """Settings of ``hessrmt reproduce approximation``.

    Attributes:
        device: Not used: the networks are small.
    """

    device: str = "cpu"


@dataclass(frozen=True)
class ApproximationEntry:
    """One study.

    Attributes:
        name: Of its file.
        claim: What of the paper it is about.
        target: What is approximated.
        inputs: n.
        activation: Of the units.
        start: Of deep networks, where they are fitted.
        study: What was found.
    """

    name: str
    claim: str
    target: str
    inputs: int
    activation: str
    start: str | None
    study: ApproximationStudy | PolynomialStudy | SquareStudy = field(repr=False)

    @property
    def units(self) -> list[int]:
        """Units of the networks."""
        return np.atleast_1d(self.study.units).astype(int).tolist()

    @property
    def fitted(self) -> ApproximationStudy | None:
        """The study if it is of fitted networks."""
        return self.study if isinstance(self.study, ApproximationStudy) else None

    @property
    def gain(self) -> tuple[Estimate, float]:
        """log(shallow error/deep error) at most units, and the probability of one as far from 0.

        By Student's t over seeds.
        """
        if self.fitted is None:
            return Estimate(np.nan, np.nan), np.nan
        mean, error = self.fitted.advantage()
        t = mean / error if error else np.copysign(np.inf, mean) if mean else 0.0
        return Estimate(mean, error), float(2 * stats.t.sf(abs(t), self.fitted.seeds - 1))

    def error(self, kind: str, place: int = -1) -> float | None:
        """Error of a kind of networks, the geometric mean over seeds.

        Args:
            kind: ``deep`` or ``shallow``.
            place: Which number of units.

        Returns:
            Relative root mean square, of (z₊)² the largest error; None where there is none.
        """
        found = self.study
        if isinstance(found, ApproximationStudy):
            return float(found.mean(kind)[0][place])
        if isinstance(found, SquareStudy):
            return float((found.deep if kind == "deep" else found.shallow)[place])
        return found.smallest if kind == found.kind else None

    def exponent(self, kind: str) -> Estimate | float | None:
        """How fast the error falls: with units, or, of a polynomial, with h.

        Args:
            kind: ``deep`` or ``shallow``.

        Returns:
            The exponent; None where there is none, as where networks reach the target itself.
        """
        found = self.study
        if isinstance(found, ApproximationStudy):
            return Estimate(*found.exponent(kind)) if found.has_power(kind) else None
        if isinstance(found, SquareStudy):
            return 2.0 if kind == "shallow" else None
        return found.exponent if kind == found.kind else None


def _error_range(entry: ApproximationEntry, kind: str) -> str:
    first, last = entry.error(kind, 0), entry.error(kind)
    if first is None or last is None:
        return "-"
    return (
        f"{last:.2g}" if isinstance(entry.study, PolynomialStudy) else f"{first:.2g} to {last:.2g}"
    )


def _unit_range(entry: ApproximationEntry) -> str:
    first, *rest = entry.units
    return f"{first:,} to {rest[-1]:,}" if rest else f"{first:,}"


def _gain(entry: ApproximationEntry) -> Any:
    return float(np.exp(entry.gain[0].mean)) if entry.fitted else None


def _enough(entry: ApproximationEntry, kind: str) -> int | None:
    return entry.fitted.enough(kind) if entry.fitted else None


def _of_fit(name: str) -> Callable[[ApproximationEntry], Any]:
    return lambda entry: getattr(entry.study, name, None)


class Approximation(Experiment[ApproximationConfig, ApproximationPreset, ApproximationEntry]):
    """Deep trees against shallow networks."""

    settings = ApproximationConfig
    columns = (
        *keyed(run="name"),
        Column("of", lambda e: e.claim, key="claim"),
        Column("target", lambda e: e.target, key="target"),
        Column("n", lambda e: e.inputs, key="inputs"),
        Column("units are", lambda e: e.activation, key="activation"),
        Column("start", lambda e: e.start or "-", key="start"),
        Column("", lambda e: e.units, key="units"),
        Column("units", _unit_range, terminal="units"),
        *(
            Column(f"{kind} error", partial(_error_range, kind=kind), terminal=f"{kind}\nerror")
            for kind in KINDS
        ),
        *(Column("", methodcaller("error", k), key=f"{k}_error") for k in KINDS),
        *(
            Column(
                *(f"{k} exponent", methodcaller("exponent", k), ".2f", f"{k}_exponent"),
                terminal=f"{k}\nexponent",
                alone=True,
            )
            for k in KINDS
        ),
        Column("gain", _gain, ".3g", "gain", terminal="gain"),
        Column("p", lambda e: e.gain[1] if e.fitted else None, ".1g", "p_of_gain"),
        Column("", _of_fit("smallest_with_fewer"), key="error_with_one_unit_less"),
        *(Column("", partial(_enough, kind=k), key=f"{k}_enough") for k in KINDS),
    )

    def compute(
        self, work: Work[ApproximationConfig, ApproximationPreset]
    ) -> list[ApproximationEntry]:
        """See :class:`~hessrmt.experiments.experiment.Experiment`."""
        seed = drawn_seed(work.settings.seed, "approximation")
        planned = [*_fits(work.size, seed), *_polynomials(work.size, seed), *_squares(work.size)]
        found = []
        for name, about, wanted, make in work.each("{0[0]}", planned):
            found.append(ApproximationEntry(name, *about, work.kept(name, wanted, make)))
        return found

    def figures(self, entries: Sequence[ApproximationEntry]) -> Pictures:
        """See :class:`~hessrmt.experiments.experiment.Experiment`."""
        pictures: dict[str, Callable[[], Any]] = {}
        groups: dict[str, list[Any]] = {}
        for entry in entries:
            if entry.fitted is not None:
                boolean = TARGETS[entry.target].boolean
                words = "boolean" if boolean else f"{entry.inputs}-{entry.activation}"
                name = f"errors-{words}" + ("-random" if entry.start == "random" else "")
                groups.setdefault(name, []).append(entry.study)
        for name, studies in groups.items():
            pictures[name] = partial(plots.approximation_errors, studies)
        polynomials = [e.study for e in entries if isinstance(e.study, PolynomialStudy)]
        if polynomials:
            pictures["polynomials"] = partial(plots.polynomial_errors, polynomials)
        for entry in entries:
            if isinstance(entry.study, SquareStudy):
                pictures["square"] = partial(plots.square_errors, entry.study)
        return pictures

    def conclusions(self, entries: Sequence[ApproximationEntry]) -> dict[str, str]:
        """See :class:`~hessrmt.experiments.experiment.Experiment`."""
        fits = [entry for entry in entries if entry.fitted is not None]
        real = [e for e in fits if e.start == "nodes" and not TARGETS[e.target].boolean]
        made = {
            "Theorem 1, rates": _rates(real),
            "Theorem 1, dimension": _dimension(real),
            "Theorem 1, equal units": _equal_units(real),
            "Fig. 1 (different nodes)": _equal_units([e for e in real if e.target == "different"]),
            "Boolean functions": _boolean([e for e in fits if TARGETS[e.target].boolean]),
            "Theorem 2": _realized(entries, "shallow"),
            "Theorem 3": _realized(entries, "deep"),
            "(z₊)² from ReLUs": _square(entries),
            "learning": _learning([e for e in fits if e.start == "random"], real),
        }
        return {about: sentence for about, sentence in made.items() if sentence}


Planned = tuple[str, tuple[str, str, int, str, str | None], dict[str, Any], Callable[[], Any]]
"""Name, what an entry says of a study, the settings it depends on, and what computes it."""


def _fits(size: ApproximationPreset, seed: int) -> Iterable[Planned]:
    for fits in size.fits:
        for target, n, activation in itertools.product(fits.targets, fits.inputs, fits.activations):
            wanted = {
                "constituent": target,
                "inputs": n,
                "widths": fits.widths,
                "seeds": size.seeds,
                "samples": fits.samples,
                "iterations": size.iterations,
                "start": fits.start,
                "activation": activation,
                "seed": seed,
            }
            name = f"{target}-{n}-{activation}-{fits.start}"
            claim = "Boolean" if TARGETS[target].boolean else "Theorem 1"
            about = claim, target, n, activation, fits.start
            yield name, about, wanted, partial(study, **wanted)


def _polynomials(size: ApproximationPreset, seed: int) -> Iterable[Planned]:
    for one in size.polynomials:
        wanted = one.model_dump() | {
            "scales": size.scales,
            "polynomials": size.repeats,
            "seed": seed,
        }
        name = f"polynomial-{one.kind}-{one.inputs}-{one.degree}-{one.activation}"
        claim, about = f"Theorem {2 + (one.kind == 'deep')}", f"degree {one.degree}"
        yield (
            name,
            (claim, about, one.inputs, one.activation, None),
            wanted,
            partial(realize, **wanted),
        )


def _squares(size: ApproximationPreset) -> Iterable[Planned]:
    about = "step to ReLUs", "(z₊)²", 1, "relu", None
    yield "square", about, {"levels": size.levels}, partial(squares, size.levels)


def _bound(kind: str, entry: ApproximationEntry) -> float:
    """The exponent of Theorem 1's bound on the error."""
    return 0.5 if kind == "deep" else 1 / entry.inputs


def _rates(entries: Sequence[ApproximationEntry]) -> str:
    if not entries:
        return ""
    parts = []
    for kind in KINDS:
        found = [(entry, entry.exponent(kind)) for entry in entries]
        rates = [(e, r) for e, r in found if isinstance(r, Estimate)]
        below = [e for e, r in rates if r.mean + _SIGMAS * r.error < _bound(kind, e)]
        means = [r.mean for _, r in rates]
        exact = [_case(e) for e, r in found if r is None]
        reached = f"{kind}: the target itself is reached by {', '.join(exact)}" if exact else ""
        if not means:
            parts.append(reached)
            continue
        text = (
            f"{kind}: exponents {min(means):.2f} to {max(means):.2f}, "
            f"{len(rates) - len(below)} of {len(rates)} at least the bound's "
            f"{'1/2' if kind == 'deep' else '1/n'} within {_SIGMAS:g} standard errors"
        )
        if below:
            text += f" (not: {', '.join(map(_case, below))})"
        parts += [text, reached] if reached else [text]
    parts.append(
        "the bounds are for the worst functions and for many units: an exponent above agrees, one "
        "below at these sizes is no contradiction"
    )
    return "; ".join(parts) + "."


def _case(entry: ApproximationEntry) -> str:
    return f"{entry.target} n = {entry.inputs} {entry.activation}"


def _dimension(entries: Sequence[ApproximationEntry]) -> str:
    groups: dict[tuple[str, str], list[ApproximationEntry]] = {}
    for entry in entries:
        groups.setdefault((entry.target, entry.activation), []).append(entry)
    kept, said = 0, []
    for (target, activation), part in groups.items():
        low, high = min(part, key=lambda e: e.inputs), max(part, key=lambda e: e.inputs)
        if low.inputs == high.inputs or None in (
            one.exponent(kind) for one in (low, high) for kind in KINDS
        ):
            continue
        change = {kind: _quotient(high.exponent(kind), low.exponent(kind)) for kind in KINDS}
        deep, shallow = change["deep"], change["shallow"]
        kept += deep.mean - shallow.mean > _SIGMAS * float(np.hypot(deep.error, shallow.error))
        words = f"{deep.text('.2f')} deep, {shallow.text('.2f')} shallow"
        said.append(f"{target} ({activation}) {words}")
    lost = len(said)
    if not said:
        return ""
    verdict = (
        "agrees" if kept == lost else "agrees in part" if 2 * kept > lost else "does not agree"
    )
    return (
        "the exponent in the largest dimension over that in the smallest is larger for deep "
        f"networks, by more than {_SIGMAS:g} standard errors, in {kept} of {lost} "
        f"({'; '.join(said)}): {verdict}."
    )


def _quotient(one: Any, other: Any) -> Estimate:
    """Of two exponents, with its standard error."""
    mean = one.mean / other.mean
    return Estimate(mean, float(np.hypot(one.error, mean * other.error)) / abs(other.mean))


def _equal_units(entries: Sequence[ApproximationEntry]) -> str:
    if not entries:
        return ""
    better = [e for e in entries if e.gain[1] < _SURE and e.gain[0].mean > 0]
    worse = [e for e in entries if e.gain[1] < _SURE and e.gain[0].mean < 0]
    by: dict[str, list[float]] = {}
    for entry in entries:
        # where one kind reaches the target itself, the ratio is that of an error to round-off
        if entry.fitted is not None and all(map(entry.fitted.has_power, KINDS)):
            by.setdefault(f"{entry.activation}, n = {entry.inputs}", []).append(entry.gain[0].mean)
    gains = "; ".join(f"{name}: {np.exp(np.mean(found)):.3g}" for name, found in by.items())
    ratio = f"; ratio of errors where none is exact {gains}" if gains else ""
    verdict = (
        "agrees" if len(better) == len(entries) else "agrees in part" if better else "not shown"
    )
    if worse:
        verdict += f", against it {', '.join(e.name for e in worse)}"
    return (
        f"at the largest number of units deep networks have the smaller error in {len(better)} of "
        f"{len(entries)} cases, shallow ones in {len(worse)} (Student's t, p < {_SURE:g})"
        f"{ratio}: {verdict}."
    )


def _boolean(entries: Sequence[ApproximationEntry]) -> str:
    parts = []
    for entry in entries:
        assert entry.fitted is not None
        most = f"more than {entry.units[-1]}"
        needed = [f"{kind} {entry.fitted.enough(kind) or most}" for kind in KINDS]
        parts.append(f"{entry.target} of {entry.inputs} bits: {', '.join(needed)} units")
    if not parts:
        return ""
    return (
        f"units with which the best fit is exact: {'; '.join(parts)}. Two ReLUs at each of the "
        "n - 1 nodes make every such tree, and fits find them; but parity is no example of an "
        "advantage in units: it is a function of Σx, which n ReLUs in one layer are, though fits "
        "of shallow networks may miss them."
    )


def _realized(entries: Sequence[ApproximationEntry], kind: str) -> str:
    found = [
        e.study for e in entries if isinstance(e.study, PolynomialStudy) and e.study.kind == kind
    ]
    if not found:
        return ""
    slopes = [study.exponent for study in found]
    smaller = sum(study.smallest < study.smallest_with_fewer / 2 for study in found)
    text = (
        f"{len(found)} kinds of polynomials with exactly the theorem's units: the error falls like "
        f"h^{min(slopes):.2f} to h^{max(slopes):.2f} (expected 1), down to "
        f"{min(s.smallest for s in found):.1g} to {max(s.smallest for s in found):.1g}; with one "
        f"unit less{' a node' if kind == 'deep' else ''} it stays at "
        f"{min(s.smallest_with_fewer for s in found):.1g} to "
        f"{max(s.smallest_with_fewer for s in found):.1g} (at least twice as large in {smaller} of "
        f"{len(found)})"
    )
    agrees = min(slopes) > 0.5 and smaller == len(found)
    if kind == "deep":
        counts = [
            f"n = {s.inputs}, k = {s.degree}: {s.units:,} units, as one polynomial "
            f"{comb(s.inputs + (d := s.degree ** (s.inputs.bit_length() - 1)), d):,}"
            for s in found
        ]
        text += f". By the two theorems' counts, {'; '.join(counts)}"
    return f"{text}: {'agrees' if agrees else 'agrees in part'}."


def _square(entries: Sequence[ApproximationEntry]) -> str:
    for entry in entries:
        if isinstance(entry.study, SquareStudy):
            found = entry.study
            levels = np.arange(1, len(found.units) + 1)
            off = float(np.abs(found.deep * 4.0 ** (levels + 1) - 1).max())
            first = np.flatnonzero(found.deep < found.bound)
            where = f"from {found.units[first[0]]:.0f} units on" if len(first) else "nowhere here"
            return (
                f"{levels[-1]} levels, {found.units[-1]:.0f} ReLUs: error {found.deep[-1]:.2g}, "
                f"4^-(m + 1) to {off:.0e}; no shallow network of as many has less than "
                f"{found.bound[-1]:.2g}; the deep one is below that bound {where}: agrees."
            )
    return ""


def _learning(random: Sequence[ApproximationEntry], nodes: Sequence[ApproximationEntry]) -> str:
    parts = []
    for entry in random:
        assert entry.fitted is not None
        best = {kind: entry.fitted.l2[kind][-1].min() for kind in KINDS}
        means = {kind: entry.error(kind) for kind in KINDS}
        parts.append(
            f"{entry.target} ({entry.activation}) deep {means['deep']:.2g}, best of seeds "
            f"{best['deep']:.2g}, shallow {means['shallow']:.2g}, best {best['shallow']:.2g}"
        )
    if not parts or not nodes:
        return ""
    return (
        f"from random starts, most units: {'; '.join(parts)}. The theorems say that good deep "
        "networks exist, not that they are found."
    )
