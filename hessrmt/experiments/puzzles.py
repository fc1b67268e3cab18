"""``reproduce puzzles-...``: what training losses of normalised networks say about test losses.

"Generalization puzzles in deep networks" (2020) trains families of networks that differ in their
initial scale, in wrong labels before training, in width or in the number of samples. Divided by the
norms of their layers, their test losses lie on a line over their training losses, and networks
trained on random labels lie on it too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field, field_validator

from hessrmt.capacity.correlation import Correlation, correlate
from hessrmt.config import Settings
from hessrmt.errors import DataError
from hessrmt.experiments.experiment import (
    Column,
    Estimate,
    Experiment,
    Pictures,
    Presets,
    Table,
    Work,
)
from hessrmt.experiments.families import Family, SeededFamily, run_all
from hessrmt.generalization.fits import LineFit, fit_line
from hessrmt.plots import puzzles as plots
from hessrmt.results import Result, plain
from hessrmt.store.family import Member

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike

    from hessrmt.store.family import FamilyResult

_WORDS = {
    "initial-scale": "initial scale",
    "corruption": "corrupted share",
    "width": "width",
    "samples": "samples",
}


class PuzzlesPreset(Settings):
    """One size of an experiment.

    Attributes:
        families: In the order of the table.
    """

    families: tuple[Family, ...] = Field(min_length=1)

    @field_validator("families")
    @classmethod
    def _names_differ(cls, value: tuple[Family, ...]) -> tuple[Family, ...]:
        names = [family.name for family in value]
        if len(set(names)) < len(names):
            raise ValueError(f"families need different names, got {', '.join(names)}")
        return value


class ReferenceLine(Settings):
    """A published line test loss = slope · training loss + intercept, of normalised networks.

    Attributes:
        label: Where it was printed.
        slope: Of the line.
        intercept: Of the line.
        r2: R², as printed; None where it was not.
        rmse: Root mean square error, as printed; None where it was not.
    """

    label: str
    slope: float = Field(allow_inf_nan=False)
    intercept: float = Field(allow_inf_nan=False)
    r2: float | None = None
    rmse: float | None = None

    def __call__(self, x: float) -> float:
        """The line.

        Args:
            x: Normalised training loss.

        Returns:
            Normalised test loss.
        """
        return self.slope * x + self.intercept


class PuzzlesConfig(Presets[PuzzlesPreset]):
    """Settings of ``hessrmt reproduce puzzles-...``.

    Attributes:
        reference: Published lines, to be shown beside the measured ones.
    """

    reference: tuple[ReferenceLine, ...] = ()


ON_LINES = ("initial-scale", "corruption")
"""What may be varied in networks that lie on one line."""

LEVEL = 0.95
"""Probability of the band of single points that says whether a point lies on the line."""


@dataclass(frozen=True)
class FamilyEntry:
    """One family of an experiment.

    Attributes:
        name: Of the family, also of its file.
        settings: Of the family.
        result: Its networks.
        reference: Published lines of the experiment.
    """

    name: str
    settings: Family
    result: FamilyResult = field(repr=False)
    reference: tuple[ReferenceLine, ...] = field(default=(), repr=False)

    @property
    def random(self) -> bool:
        """Whether its labels are random."""
        return self.settings.labels == "random"

    @property
    def gaps(self) -> np.ndarray:
        """(n,) test loss less training loss of the normalised networks."""
        test, train = (self.result.column(f"normalized_{x}_loss") for x in ("test", "train"))
        return test - train

    @property
    def separating(self) -> tuple[np.ndarray, np.ndarray]:
        """1/η of f̃ and test errors of the networks that classify all training samples correctly."""
        margins, errors = (self.result.column(x) for x in ("normalized_margin", "test_error"))
        return 1 / margins[margins > 0], errors[margins > 0]

    @property
    def correlations(self) -> dict[str, Correlation]:
        """How the test error goes with 1/η of f̃, and with R̂/η, of the networks that have an η."""
        bounds, errors = (self.result.column(x) for x in ("complexity_over_margin", "test_error"))
        columns = {"margin": self.separating, "bound": (bounds, errors)}
        return {
            name: correlate(*values, (name, "test_error"))  # pyright: ignore[reportArgumentType]
            for name, values in columns.items()
        }

    @property
    def perfect(self) -> int:
        """Networks that classify every training sample correctly."""
        return sum(member.train_error == 0 for member in self.result.members)


@dataclass(frozen=True)
class RandomPoint(Result, derived="inside"):
    """Where a network with random labels lies against the line of those with natural ones.

    Attributes:
        family: Its family.
        value: Of what is varied.
        train: Normalised training loss.
        test: Normalised test loss.
        residual: Test loss less the line's.
        sigmas: The residual in standard deviations of a single point about the line.
        relative: The residual over the range of the natural networks' test losses.
        lower: Lower end of the 95 % prediction band there.
        upper: Its upper end.
    """

    family: str
    value: float
    train: float
    test: float
    residual: float
    sigmas: float
    relative: float
    lower: float
    upper: float

    @property
    def inside(self) -> bool:
        """Whether it lies in the band."""
        return self.lower <= self.test <= self.upper


@dataclass(frozen=True)
class FamilyLine(Result, derived="random_in_prediction_band"):
    """The line of all families with natural labels of one network.

    Attributes:
        families: Names of the families with natural labels.
        model: Their network.
        networks: How many.
        zero_training_error: Those without training error.
        normalized: Line of the normalised losses.
        unnormalized: Line of the losses as they are; None where all training losses are equal.
        with_random: Line of the normalised losses with the random-label networks, if there are
            any.
        with_random_unnormalized: The same of the losses as they are.
        random_residuals: Where those lie.
    """

    families: tuple[str, ...]
    model: str
    networks: int
    zero_training_error: int
    normalized: LineFit
    unnormalized: LineFit | None
    with_random: LineFit | None
    with_random_unnormalized: LineFit | None
    random_residuals: tuple[RandomPoint, ...]

    @property
    def random_in_prediction_band(self) -> bool | None:
        """Whether all of those lie in the band; None if there are none."""
        points = self.random_residuals
        return all(point.inside for point in points) if points else None


def lines(entries: Sequence[FamilyEntry]) -> list[FamilyLine]:
    """One line for each network that families over initial scale or corruption were trained of.

    Args:
        entries: Families.

    Returns:
        Those lines that can be fitted, in the order of the families.
    """
    groups: dict[Any, list[FamilyEntry]] = {}
    for entry in entries:
        if entry.settings.vary in ON_LINES:
            groups.setdefault(_networks_of(entry), []).append(entry)
    found = [_line(group) for group in groups.values()]
    return [line for line in found if line is not None]


def _networks_of(entry: FamilyEntry) -> tuple[Any, ...]:
    """What families share whose points belong into one picture."""
    return attrgetter("model", "data", "norm", "by")(entry.settings)


def gap_law(entry: FamilyEntry) -> LineFit | None:
    """ln(test loss - training loss) of the normalised networks against ln(training samples).

    Args:
        entry: A family over samples.

    Returns:
        The line, whose slope is the exponent; None where a gap is not positive, or too few.
    """
    if entry.settings.vary != "samples" or not (entry.gaps > 0).all():
        return None
    return _fitted(np.log(entry.result.column("value")), np.log(entry.gaps))


def _line(group: Sequence[FamilyEntry]) -> FamilyLine | None:
    natural, random = ([e for e in group if e.random is kind] for kind in (False, True))
    normalized = _fit(natural, "normalized_")
    if normalized is None:
        return None
    everyone = [*natural, *random] if random else []
    tests = np.concatenate([entry.result.column("normalized_test_loss") for entry in natural])
    span = float(np.ptp(tests))
    return FamilyLine(
        families=tuple(entry.name for entry in natural),
        model=natural[0].settings.model,
        networks=len(tests),
        zero_training_error=sum(entry.perfect for entry in natural),
        normalized=normalized,
        unnormalized=_fit(natural, ""),
        with_random=_fit(everyone, "normalized_"),
        with_random_unnormalized=_fit(everyone, ""),
        random_residuals=tuple(
            _point(entry.name, member, normalized, span)
            for entry in random
            for member in entry.result.members
        ),
    )


def _losses(entries: Sequence[FamilyEntry], prefix: str) -> Iterator[np.ndarray]:
    """Training and test losses of all networks of some families."""
    for split in ("train", "test"):
        found = [entry.result.column(f"{prefix}{split}_loss") for entry in entries]
        yield np.concatenate([[], *found])


def _fit(entries: Sequence[FamilyEntry], prefix: str) -> LineFit | None:
    return _fitted(*_losses(entries, prefix))


def _fitted(x: ArrayLike, y: ArrayLike) -> LineFit | None:
    try:
        return fit_line(x, y)
    except DataError:  # too few points, or all the same
        return None


def _point(family: str, member: Member, line: LineFit, span: float) -> RandomPoint:
    x, y = member.normalized_train_loss, member.normalized_test_loss
    lower, upper = line.prediction_band(x, LEVEL)
    residual = y - float(line(x))
    return RandomPoint(
        family=family,
        value=member.value,
        train=x,
        test=y,
        residual=residual,
        sigmas=residual / line.deviation if line.deviation else np.copysign(np.inf, residual),
        relative=residual / span,
        lower=float(lower),
        upper=float(upper),
    )


def _over_members(name: str, what: str, form: str, **options: Any) -> Column[FamilyEntry]:
    """Least and largest of a number of the members."""

    def cell(entry: FamilyEntry) -> str:
        values = sorted(getattr(member, what) for member in entry.result.members)
        low, high = f"{values[0]:{form}}", f"{values[-1]:{form}}"
        return low if low == high else f"{low}–{high}"

    return Column(name, cell, **options)


_varied = _over_members("", "value", "g")


def _perfect(entry: FamilyEntry) -> str:
    return f"{entry.perfect} of {len(entry.result.members)}"


Numbered = tuple[FamilyEntry, int, Member]
"""A family, the number of a network in it, and the network."""


def _member(name: str, what: str, form: str = "") -> Column[Numbered]:
    return Column(name, lambda row: getattr(row[2], what), form, what)


_NETWORKS: tuple[Column[Numbered], ...] = (
    Column("", lambda e: f"{e[0].name}-{e[1]}", key="run"),
    Column("", lambda e: e[0].name, key="family"),
    Column("", lambda e: e[0].settings.vary, key="vary"),
    Column("", lambda e: e[0].settings.labels, key="labels"),
    _member("", "value"),
    _member("parameters", "parameters", ","),
    _member("epoch", "epoch"),
    _member("train loss", "train_loss", ".3g"),
    _member("test loss", "test_loss", ".4g"),
    _member("train error", "train_error", ".2%"),
    _member("test error", "test_error", ".2%"),
    _member("train loss of f̃", "normalized_train_loss", ".6f"),
    _member("test loss of f̃", "normalized_test_loss", ".6f"),
    _member("product of norms", "product", ".4g"),
    Column("", lambda row: list(row[2].factors), key="factors"),
    _member("", "margin"),
    _member("smallest margin of f̃", "normalized_margin", ".3g"),
    _member("", "rademacher"),
    _member("R̂/η", "complexity_over_margin", ".2g"),
    _member("", "error_bound"),
    _member("", "error_bound_margin"),
    *(_member("", f"{raw}top_output_{what}") for raw in ("", "raw_") for what in ("mean", "std")),
)
"""What is said of each network."""


Worded = tuple[str, "LineFit | ReferenceLine"]
"""What a line is of, and the line."""


def _of_line(name: str, what: str, form: str, published: str = "") -> Column[Worded]:
    """A number of a line, with its error if there is one."""

    def cell(row: Worded) -> Estimate | str:
        line, value = row[1], getattr(row[1], what, None)
        if value is None:
            return "-"
        if isinstance(line, ReferenceLine):
            return f"{value:{published}}"
        return Estimate(value, getattr(line, f"{what}_error", np.nan))

    return Column(name, cell, form)


_LINES: tuple[Column[Worded], ...] = (
    Column("line", lambda row: row[0]),
    _of_line("slope", "slope", ".4f", "g"),
    _of_line("intercept", "intercept", ".4f", "g"),
    _of_line("R²", "r2", ".5f", ".4f"),
    _of_line("adjusted R²", "adjusted_r2", ".5f"),
    _of_line("RMSE", "rmse", ".2g", ".2g"),
    _of_line("networks", "n", ""),
)

_KINDS = {
    "normalized": "normalised",
    "with_random": "normalised, with random labels",
    "unnormalized": "unnormalised",
    "with_random_unnormalized": "unnormalised, with random labels",
}
"""Fit of a :class:`FamilyLine` to its words."""


class Puzzles(Experiment[PuzzlesConfig, PuzzlesPreset, FamilyEntry]):
    """Families of networks, and the lines on which their losses lie."""

    settings = PuzzlesConfig
    columns = (
        Column("family", lambda e: e.name),
        Column("network", lambda e: e.settings.model),
        Column("labels", lambda e: e.settings.labels),
        Column("varied", lambda e: f"{_WORDS[e.settings.vary]} {_varied.cell(e)}"),
        Column("no training error", _perfect, terminal="no training\nerror"),
        _over_members("train loss", "train_loss", ".2g"),
        _over_members("test loss", "test_loss", ".3g"),
        _over_members("test error", "test_error", ".1%", terminal="test error"),
        _over_members(
            "train loss of f̃", "normalized_train_loss", ".4f", terminal="train loss\nof f̃"
        ),
        _over_members("test loss of f̃", "normalized_test_loss", ".4f", terminal="test loss\nof f̃"),
        _over_members("product of norms", "product", ".3g"),
    )

    def compute(self, work: Work[PuzzlesConfig, PuzzlesPreset]) -> list[FamilyEntry]:
        """See :class:`~hessrmt.experiments.experiment.Experiment`."""
        wanted, settings = work.size.families, work.settings
        seeded = [
            SeededFamily(**family.model_dump(), seed=settings.seed, device=settings.device)
            for family in wanted
        ]
        results = run_all(seeded, work.out, folder=work.folder, tick=work.tick, pool=work.pool)
        return [
            FamilyEntry(family.name, family, result, settings.reference)
            for family, result in zip(wanted, results, strict=True)
        ]

    def table(self, entries: Sequence[FamilyEntry]) -> Table[Numbered]:
        """See :class:`~hessrmt.experiments.experiment.Experiment`."""
        rows = [(one, *row) for one in entries for row in enumerate(one.result.members)]
        return Table(_NETWORKS, rows)

    def markdown(self, entries: Sequence[FamilyEntry]) -> str:
        """See :class:`~hessrmt.experiments.experiment.Experiment`."""
        parts, rows = [super().markdown(entries)], []
        for line in lines(entries):
            fits = {words: getattr(line, kind) for kind, words in _KINDS.items()}
            names = ", ".join(line.families)
            rows += [(f"{names}: {words}", fit) for words, fit in fits.items() if fit is not None]
        rows += [(f"published: {line.label}", line) for line in _published(entries)]
        if rows:
            parts.append(Table(_LINES, rows).markdown())
        for entry in entries:
            columns = (Column(entry.name, _varied_in), *_NETWORKS)
            parts.append(Table(columns, self.table([entry]).entries).markdown())
        return "\n".join(parts)

    def conclusions(self, entries: Sequence[FamilyEntry]) -> dict[str, str]:
        """See :class:`~hessrmt.experiments.experiment.Experiment`."""
        found = {", ".join(line.families): _sentence(line) for line in lines(entries)}
        for entry in entries:
            if entry.settings.vary in ON_LINES and not entry.random:
                found[f"{entry.name}, margins"] = _of_margins(entry)
            if entry.settings.vary not in {"width", "samples"}:
                continue
            members, gaps = entry.result.members, entry.gaps
            first, last = members[0], members[-1]
            text = (
                f"from {first.value:g} to {last.value:g} ({_WORDS[entry.settings.vary]}) the test "
                f"error goes from {first.test_error:.2%} to {last.test_error:.2%}, the gap between "
                f"test and training loss from {first.test_loss - first.train_loss:.3g} to "
                f"{last.test_loss - last.train_loss:.3g}, that of the normalised networks from "
                f"{gaps[0]:.2g} to {gaps[-1]:.2g}"
            )
            law = gap_law(entry)
            if law is not None:
                text += f", as samples^({law.slope:.2f} ± {law.slope_error:.2f})"
            found[entry.name] = f"{text}; {_perfect(entry)} networks have no training error."
        return found

    def fits(self, entries: Sequence[FamilyEntry]) -> dict[str, Any]:
        """See :class:`~hessrmt.experiments.experiment.Experiment`."""
        found = lines(entries)
        laws = {entry.name: gap_law(entry) for entry in entries}
        return {
            **(found[0].normalized.to_dict() if found else {}),
            "lines": plain(found),
            "margins": {
                entry.name: plain(entry.correlations)
                for entry in entries
                if entry.settings.vary in ON_LINES
            },
            "gaps": plain({name: law for name, law in laws.items() if law is not None}),
            "reference": [line.model_dump() for line in _published(entries)],
        }

    def figures(self, entries: Sequence[FamilyEntry]) -> Pictures:
        """See :class:`~hessrmt.experiments.experiment.Experiment`."""
        partners = {entry.name: random_partner(entry, entries) for entry in entries}
        shown = {partner.name for partner in partners.values() if partner is not None}
        pictures: dict[str, Callable[[], Any]] = {}
        for entry in entries:
            name, partner = entry.name, partners[entry.name]
            if name in shown:
                continue
            if entry.settings.vary == "width":
                pictures[f"{name}-width"] = partial(plots.width, entry)
            elif entry.settings.vary == "samples":
                both = [entry] if partner is None else [entry, partner]
                pictures[f"{name}-errors"] = partial(plots.sample_errors, both)
                pictures[f"{name}-losses"] = partial(plots.sample_losses, both)
            else:
                published = entry.reference if entry.settings.by == "layers" else ()
                pictures |= {
                    f"{name}-losses": partial(family_losses, entry, partner, published),
                    f"{name}-capacity": partial(plots.capacity, entry, partner),
                    f"{name}-outputs": partial(plots.outputs, entry),
                    f"{name}-margins": partial(plots.margins, entry, partner),
                    f"{name}-bounds": partial(margin_error, entry, partner),
                    f"{name}-trend": partial(plots.against_value, entry),
                }
                if entry.settings.reference_loss is not None:
                    pictures[f"{name}-product"] = partial(plots.product_at_loss, entry)
        return pictures


def _varied_in(row: Numbered) -> str:
    return f"{_WORDS[row[0].settings.vary]} {row[2].value:g}"


def _published(entries: Sequence[FamilyEntry]) -> tuple[ReferenceLine, ...]:
    return entries[0].reference if entries else ()


def _sentence(line: FamilyLine) -> str:
    fit, raw = line.normalized, line.unnormalized
    before = "has none" if raw is None else f"= {raw.r2:.4f}"
    text = (
        f"normalised, test loss = {fit.slope:.4f} · training loss {fit.intercept:+.4f} with "
        f"R² = {fit.r2:.5f} over {line.networks} networks; unnormalised R² {before}. "
        f"{line.zero_training_error} of them have no training error."
    )
    for point in line.random_residuals:
        text += (
            f" Random labels ({point.family}): {point.sigmas:+.1f} standard deviations from the "
            f"line ({point.relative:+.1%} of its range), "
            f"{'inside' if point.inside else 'outside'} the 95 % prediction band."
        )
    if line.with_random is not None:
        text += f" With random labels in the fit R² = {line.with_random.r2:.5f}."
    return text


def random_partner(entry: FamilyEntry, entries: Sequence[FamilyEntry]) -> FamilyEntry | None:
    """The family with random labels that belongs into the pictures of one with natural labels.

    Args:
        entry: A family.
        entries: All families.

    Returns:
        The first one of the same networks, data and normalisation, where both vary the samples, or
        each the initial scale or the corruption; None if there is none.
    """
    one = entry.settings
    for other in entries:
        two = other.settings
        same = _networks_of(entry) == _networks_of(other)
        alike = one.vary == two.vary == "samples" or {one.vary, two.vary} <= set(ON_LINES)
        if two.labels == "random" and same and alike:
            return other if one.labels == "natural" else None
    return None


def family_losses(
    entry: FamilyEntry,
    random: FamilyEntry | None = None,
    references: Sequence[ReferenceLine] = (),
) -> Figure:
    """Test against training losses of a family, with the line fitted to it.

    Args:
        entry: A family.
        random: A family of the same networks that was trained on random labels.
        references: Published lines of normalised networks.

    Returns:
        The picture, see :func:`hessrmt.plots.puzzles.losses`.
    """
    found = {prefix: _own_line(entry, random, prefix) for prefix in ("", "normalized_")}
    return plots.losses(entry, found, random, references)


def margin_error(entry: FamilyEntry, random: FamilyEntry | None = None) -> Figure:
    """Test errors of a family against 1/η and against the bounds on them.

    Args:
        entry: A family.
        random: A family of the same networks that was trained on random labels.

    Returns:
        The picture, see :func:`hessrmt.plots.puzzles.margin_error`.
    """
    try:
        line: LineFit | str = fit_line(*entry.separating)
    except DataError as error:
        line = str(error)
    return plots.margin_error(entry, line, entry.correlations, random)


def _of_margins(entry: FamilyEntry) -> str:
    """What margins and bounds say about the test errors of a family."""
    found, bounds = entry.correlations, entry.result.column("error_bound")
    text = f"test error against 1/η of the normalised networks: {_in_words(found['margin'])}"
    if not np.isfinite(bounds).any():
        return f"{text}. No bound is proven for this network."
    proven = int(np.sum(bounds < 1))
    says = "nothing: no error exceeds 1" if not proven else f"something of {proven} networks"
    ratios = entry.result.column("complexity_over_margin")
    least = f" (at least {np.nanmin(ratios):.2g})" if np.isfinite(ratios).any() else ""
    return (
        f"{text}; against R̂/η{least}: {_in_words(found['bound'])}. "
        f"The bound by the Rademacher complexity says {says}."
    )


def _in_words(found: Correlation) -> str:
    if found.failed is not None:
        return found.failed
    low, high = found.spearman_interval
    known = "too few for an interval"
    if np.isfinite(low):
        known = f"95 % interval {low:+.2f} to {high:+.2f}"
    return f"Spearman ρ = {found.spearman:+.2f} ({known}, n = {found.n})"


def _own_line(
    entry: FamilyEntry, random: FamilyEntry | None, prefix: str
) -> tuple[LineFit | str, LineFit | None]:
    """The line of a family, or why there is none, and that of all points."""
    try:
        line = fit_line(*_losses([entry], prefix))
    except DataError as error:
        return str(error), None
    return line, None if random is None else _fit([entry, random], prefix)
