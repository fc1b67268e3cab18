"""``hessrmt normalize``: a trained network's losses and margins before and after normalisation."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hessrmt.errors import ConfigError, DataError
from hessrmt.generalization import evaluate, fit_line, normalize, output_normalize
from hessrmt.generalization.fits import FEWEST_POINTS
from hessrmt.problems import losses
from hessrmt.results import Result, finite, plain
from hessrmt.runs.run import Inputs
from hessrmt.runs.tables import numbers_of, read_table
from hessrmt.runs.training import Splits

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from hessrmt.config import NormalizeConfig
    from hessrmt.generalization import Evaluation, LineFit
    from hessrmt.problems.data import Dataset
    from hessrmt.progress import Tick

_PLAIN = ("factors", "deviation", "folded", "checkpoint_sha256", "device", "notes")
"""Attributes of the result that its plain values have under the same names."""

_CHECKED = 64
"""Training samples on which the network must be homogeneous and the result is compared."""


@dataclass(frozen=True, eq=False)
class NormalizeResult(Result):
    """A network measured before and after normalisation.

    Attributes:
        train: Over the training samples, or over everything where data have no splits.
        test: Over the test samples; None where there are none.
        factors: Name of the layer, or ``output``, to ρ_k.
        product: Πρ_k.
        deviation: Largest |f̃ Πρ_k - f| over the largest |f| on the first training samples.
        folded: BatchNorm modules folded into layers.
        checkpoint_sha256: Of the checkpoint, hexadecimal; empty where there is none.
        device: In words.
        notes: Anything a reader must know.
    """

    train: Evaluation
    test: Evaluation | None
    factors: Mapping[str, float]
    product: float
    deviation: float
    folded: tuple[str, ...]
    checkpoint_sha256: str
    device: str
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values, e.g. for JSON.

        Returns:
            Name to value; None for what the data do not have.
        """
        numbers: dict[str, Any] = {}
        margins: dict[str, Any] = {}
        for split, found in (("train", self.train), ("test", self.test)):
            numbers |= {
                f"{split}_loss": None if found is None else found.loss,
                f"normalized_{split}_loss": None if found is None else found.normalized_loss,
                f"{split}_error": None if found is None else found.error,
            }
            summary = None if found is None else found.margins
            margins[split] = None if summary is None else summary.to_dict()
        numbers |= {
            "product_norm": self.product,
            "margins": margins,
            **{name: plain(getattr(self, name)) for name in _PLAIN},
        }
        return finite(numbers)


def run(
    settings: NormalizeConfig, *, folder: Path | None = None, tick: Tick | None = None
) -> NormalizeResult:
    """Normalise a trained network and measure it on both splits, in float64.

    Args:
        settings: What and how.
        folder: Folder searched first for data sets.
        tick: Told of progress.

    Returns:
        Losses, errors, norms and margins.

    Raises:
        ConfigError: If ``reference`` asks for more training samples than there are.
    """
    splits = Splits.load(settings.data, folder)
    samples = splits.train
    if settings.reference > len(samples):
        raise ConfigError(
            f"reference is {settings.reference:,}, but there are {len(samples):,} training samples"
        )
    inputs = Inputs.read(settings, samples)
    loss = losses.resolve(settings.loss)
    model = inputs.model.to(device=inputs.backend.device, dtype=torch.float64)
    if settings.by == "layers":
        found = normalize(model, samples.tensors(slice(_CHECKED))[0], settings.norm)
    else:
        fixed = samples.tensors(slice(settings.reference))[0]
        found = output_normalize(model, fixed, settings.norm)

    def measured(part: Dataset) -> Evaluation:
        return evaluate(model, _batches(part, settings.batch, tick), loss, found.product)

    return NormalizeResult(
        train=measured(samples),
        test=None if splits.test is None else measured(splits.test),
        factors=found.factors,
        product=found.product,
        deviation=found.deviation,
        folded=tuple(name for layer in found.layers for name in (*layer.before, *layer.after)),
        checkpoint_sha256=inputs.digests["checkpoint"],
        device=inputs.backend.name,
        notes=inputs.notes,
    )


def _batches(samples: Dataset, batch: int, tick: Tick | None) -> Iterator[tuple[Tensor, Tensor]]:
    for first in range(0, len(samples), batch):
        yield samples.tensors(slice(first, first + batch))
        if tick is not None:
            tick(f"measuring {samples.split}", min(first + batch, len(samples)), len(samples))


@dataclass(frozen=True, eq=False)
class TablePoint(Result, derived="inside"):
    """A network of a table beside the line of the others.

    Attributes:
        name: What the table calls it, or the number of its row.
        train: Training loss.
        test: Test loss; None where the table has none.
        predicted: Test loss on the line of the other networks; NaN if these have none.
        lower: Lower end of the prediction interval from those.
        upper: Its upper end.
        beyond: Whether the training loss lies outside of those of the others: extrapolated.
    """

    name: str
    train: float
    test: float | None
    predicted: float
    lower: float
    upper: float
    beyond: bool

    @property
    def inside(self) -> bool | None:
        """Whether the test loss lies in the interval; None where either is not known."""
        if self.test is None or math.isnan(self.lower):
            return None
        return self.lower <= self.test <= self.upper


@dataclass(frozen=True, eq=False)
class TableFit(Result, derived="outside", picture="generalization.table_line"):
    """The line of test against training losses in a table, and what it says of each network.

    Attributes:
        source: The table.
        columns: Its training and its test column.
        line: Through all networks with both losses.
        level: Probability of the prediction intervals.
        points: All networks. Each is predicted from the line of the *other* ones, so that the
            interval of one which has a test loss is that of a network not seen.
        notes: Anything a reader must know.
    """

    source: str
    columns: tuple[str, str]
    line: LineFit
    level: float
    points: tuple[TablePoint, ...]
    notes: tuple[str, ...] = ()

    @property
    def outside(self) -> int:
        """Networks with a test loss outside of their interval."""
        return sum(point.inside is False for point in self.points)

    def rows(self) -> list[dict[str, Any]]:
        """A row for each network."""
        return [point.to_dict() for point in self.points]


def fit_table(settings: NormalizeConfig) -> TableFit:
    """Fit the line of test against training losses in a table of networks from anywhere.

    Args:
        settings: ``fit``, ``columns`` and ``level`` count.

    Returns:
        The line, and a prediction for each network.

    Raises:
        ConfigError: If the table cannot be read, lacks a column, holds what is no finite number, or
            it is not clear which columns are meant.
        DataError: If there are too few networks for a line and its errors.

    Source: Draper and Smith 1998, §1.2-1.4 and §3.1.
    """
    file = settings.fit
    if file is None:
        raise ConfigError("fit is not given; name a table")
    header, rows = read_table(file)
    names = _chosen(file, header, settings.columns)
    if names[0] == names[1]:
        raise ConfigError(f"columns: both are {names[0]!r}; name that of the test loss too")
    x, y = (_column(file, rows, name) for name in names)
    if np.isnan(x).any():
        raise ConfigError(f"{file}: row {1 + int(np.argmax(np.isnan(x)))} has no {names[0]}")
    known = ~np.isnan(y)
    if (count := int(known.sum())) <= FEWEST_POINTS:
        raise DataError(
            f"{file} has {count} networks with both losses; at least {FEWEST_POINTS + 1} are "
            "needed, a line of three for each of them"
        )
    line, points = fit_line(x[known], y[known]), []
    for place, row in enumerate(rows):
        others = known & (np.arange(len(rows)) != place)
        predicted = lower = upper = float("nan")
        with suppress(DataError):  # all others have the same training loss
            own = fit_line(x[others], y[others]) if known[place] else line
            lower, upper = own.prediction_band(x[place], settings.level)
            predicted = float(own(x[place]))
        points.append(
            TablePoint(
                name=next((row[n] for n in header if n not in names and row[n]), str(place + 1)),
                train=float(x[place]),
                test=float(y[place]) if known[place] else None,
                predicted=predicted,
                lower=float(lower),
                upper=float(upper),
                beyond=not x[others].min() <= x[place] <= x[others].max(),
            )
        )
    far = [point.name for point in points if point.beyond and not np.isnan(point.predicted)]
    alone = [point.name for point in points if np.isnan(point.predicted)]
    words = "extrapolated, beyond the training losses of the others"
    notes = (f"{words}: {', '.join(far)}",) if far else ()
    if alone:
        why = "the others have the same training loss, and no line"
        notes += (f"not predicted: {', '.join(alone)}: {why}",)
    return TableFit(str(file), names, line, settings.level, tuple(points), notes)


_PAIRS = tuple(
    (f"{before}train{after}", f"{before}test{after}")
    for before, after in (("", ""), ("", "_loss"), ("normalized_", "_loss"))
)


def _chosen(file: Path, header: Sequence[str], asked: Sequence[str]) -> tuple[str, str]:
    pairs = [pair for pair in _PAIRS if set(pair) <= set(header)]
    if asked:
        pairs = [(asked[0], asked[1])]
    has = f"{file} has the columns {', '.join(header)}"
    if len(pairs) > 1:
        which = " or ".join(",".join(pair) for pair in pairs)
        raise ConfigError(f"{has}; say which two are meant: --columns {which}")
    if not pairs or not set(pairs[0]) <= set(header):
        wanted = ",".join(pairs[0]) if pairs else "train and test"
        raise ConfigError(f"{has}, but not {wanted}; say which two are meant: --columns TRAIN,TEST")
    return pairs[0]


def _column(file: Path, rows: Sequence[Mapping[str, str]], name: str) -> np.ndarray:
    found = numbers_of(row[name] for row in rows)
    if found is None or np.isinf(found).any():
        raise ConfigError(f"{file}: the column {name} holds what is no finite number")
    return np.array(found)
