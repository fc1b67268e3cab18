"""Lines through families of networks: test loss against training loss, gap against samples."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from hessrmt.errors import GeneralizationError
from hessrmt.generalization.fits import LineFit, fit_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike

    from hessrmt.config import Family, ReferenceLine
    from hessrmt.store.family import FamilyResult, Member

ON_LINES = ("initial-scale", "corruption")
"""What may be varied in networks that lie on one line."""

LEVEL = 0.95
"""Probability of the band of single points that says whether a point lies on the line."""


@dataclass(frozen=True)
class Entry:
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
    def perfect(self) -> int:
        """Networks that classify every training sample correctly."""
        return sum(member.train_error == 0 for member in self.result.members)


@dataclass(frozen=True)
class RandomPoint:
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

    def to_dict(self) -> dict[str, Any]:
        """The point as plain values.

        Returns:
            Name to value.
        """
        return {**vars(self), "inside": self.inside}


@dataclass(frozen=True)
class Line:
    """The line of all families with natural labels of one network.

    Attributes:
        families: Names of the families with natural labels.
        model: Their network.
        networks: How many.
        perfect: Those without training error.
        normalized: Line of the normalised losses.
        unnormalized: Line of the losses as they are; None where all training losses are equal.
        with_random: Line of the normalised losses with the random-label networks, if there are
            any.
        with_random_unnormalized: The same of the losses as they are.
        random: Where those lie.
    """

    families: tuple[str, ...]
    model: str
    networks: int
    perfect: int
    normalized: LineFit
    unnormalized: LineFit | None
    with_random: LineFit | None
    with_random_unnormalized: LineFit | None
    random: tuple[RandomPoint, ...]

    def to_dict(self) -> dict[str, Any]:
        """The line as plain values, e.g. for JSON.

        Returns:
            Name to value.
        """
        return {
            "families": list(self.families),
            "model": self.model,
            "networks": self.networks,
            "zero_training_error": self.perfect,
            "normalized": self.normalized.to_dict(),
            "unnormalized": _plain(self.unnormalized),
            "with_random": _plain(self.with_random),
            "with_random_unnormalized": _plain(self.with_random_unnormalized),
            "random_residuals": [point.to_dict() for point in self.random],
            "random_in_prediction_band": (
                all(point.inside for point in self.random) if self.random else None
            ),
        }


def lines(entries: Sequence[Entry]) -> list[Line]:
    """One line for each network that families over initial scale or corruption were trained of.

    Args:
        entries: Families.

    Returns:
        Those lines that can be fitted, in the order of the families.
    """
    groups: dict[Any, list[Entry]] = {}
    for entry in entries:
        if entry.settings.vary in ON_LINES:
            s = entry.settings
            groups.setdefault((s.model, s.data, s.norm, s.by), []).append(entry)
    found = []
    for group in groups.values():
        line = _line(group)
        if line is not None:
            found.append(line)
    return found


def gap_law(entry: Entry) -> LineFit | None:
    """ln(test loss - training loss) of the normalised networks against ln(training samples).

    Args:
        entry: A family over samples.

    Returns:
        The line, whose slope is the exponent; None where a gap is not positive, or too few.
    """
    if entry.settings.vary != "samples":
        return None
    gaps = gaps_of(entry.result.members)
    if not (gaps > 0).all():
        return None
    return _fitted(np.log(entry.result.column("value")), np.log(gaps))


def gaps_of(members: Sequence[Member]) -> np.ndarray:
    """Test loss less training loss of normalised networks.

    Args:
        members: Networks.

    Returns:
        (n,) gaps.
    """
    return np.array([m.normalized_test_loss - m.normalized_train_loss for m in members])


def _line(group: Sequence[Entry]) -> Line | None:
    natural = [entry for entry in group if not entry.random]
    members = [member for entry in natural for member in entry.result.members]
    random = [(e.name, m) for e in group if e.random for m in e.result.members]
    normalized = _fit(members, "normalized_")
    if normalized is None:
        return None
    everyone = [*members, *(member for _, member in random)]
    span = float(np.ptp([member.normalized_test_loss for member in members]))
    return Line(
        families=tuple(entry.name for entry in natural),
        model=natural[0].settings.model,
        networks=len(members),
        perfect=sum(entry.perfect for entry in natural),
        normalized=normalized,
        unnormalized=_fit(members, ""),
        with_random=_fit(everyone, "normalized_") if random else None,
        with_random_unnormalized=_fit(everyone, "") if random else None,
        random=tuple(_point(name, member, normalized, span) for name, member in random),
    )


def _fit(members: Sequence[Member], prefix: str) -> LineFit | None:
    train = [getattr(member, f"{prefix}train_loss") for member in members]
    return _fitted(train, [getattr(member, f"{prefix}test_loss") for member in members])


def _fitted(x: ArrayLike, y: ArrayLike) -> LineFit | None:
    try:
        return fit_line(x, y)
    except GeneralizationError:  # too few points, or all the same
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


def _plain(line: LineFit | None) -> dict[str, Any] | None:
    return None if line is None else line.to_dict()
