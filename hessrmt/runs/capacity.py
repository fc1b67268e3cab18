"""``hessrmt capacity``: networks to reports, a table, and correlations with their accuracies."""

from __future__ import annotations

import csv
import math
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hessrmt.capacity.analysis import analyze
from hessrmt.capacity.report import correlations
from hessrmt.errors import ConfigError, DataError
from hessrmt.files import write_whole
from hessrmt.progress import under
from hessrmt.results import Result, to_csv

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from hessrmt.capacity.report import CapacityReport, Correlation
    from hessrmt.config import CapacityConfig
    from hessrmt.progress import Tick


@dataclass(frozen=True)
class Series(Result, picture="capacity.alpha_histogram"):
    """Networks, analysed alike.

    Attributes:
        networks: The report of each, in the order given.
        accuracies: Name to one value for each network; empty without a table.
        correlations: Of every metric with every accuracy.
        notes: Anything a reader must know.
    """

    networks: tuple[CapacityReport, ...]
    accuracies: Mapping[str, tuple[float, ...]]
    correlations: tuple[Correlation, ...]
    notes: tuple[str, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """Short names: of files without ending and hash if these differ, else with, else paths."""
        sources = tuple(report.source for report in self.networks)
        for name in (_stem, lambda source: Path(source).name):
            short = tuple(map(name, sources))
            if len(set(short)) == len(short):
                return short
        return sources

    def rows(self) -> list[dict[str, Any]]:
        """A table of all tensors of all networks.

        Returns:
            The name of its network and the tensor's quantities, for each.
        """
        return [{"source": one.source} | row for one in self.networks for row in one.rows()]


def run(settings: CapacityConfig, sources: Sequence[str], tick: Tick | None = None) -> Series:
    """Analyse networks.

    Args:
        settings: What to compute.
        sources: Files, folders or factories.
        tick: Told of progress.

    Returns:
        The series.

    Raises:
        ConfigError: If a network is given twice, or a single one is to be compared layer by layer.
        DataError: If a network has nothing to analyse.
    """
    if settings.side_by_side and len(sources) < 2:
        raise ConfigError("side_by_side: one network was given; give two or more")
    twice = [source for source, count in Counter(sources).items() if count > 1]
    if twice:
        raise ConfigError(f"{twice[0]} is given twice")
    against = settings.against
    accuracies, notes = read_accuracies(against, sources) if against is not None else ({}, ())
    reports = tuple(_analyse(settings, source, tick) for source in sources)
    return Series(reports, accuracies, tuple(correlations(reports, accuracies)), notes)


_SAME = (
    "base",
    "conv",
    "seed",
    "initial",
    "randomize",
    "p_values",
    "exact",
    "min_size",
    "only",
    "device",
)
"""Settings that :func:`hessrmt.capacity.analyze` takes under the same names."""


def _analyse(settings: CapacityConfig, source: str, tick: Tick | None) -> CapacityReport:
    same = {name: getattr(settings, name) for name in _SAME}
    told = under(tick, f"{Path(source).name}: ")
    laws = settings.compare
    report = analyze(source, x_max=settings.upper, compare_with=laws, tick=told, **same)
    if not report.analyzed:
        listed = "; ".join(f"{reason}: {named(names)}" for reason, names in skipped(report).items())
        raise DataError(f"{source}: nothing to analyse. {listed}")
    return report


def skipped(report: CapacityReport, what: str = "skipped") -> dict[str, list[str]]:
    """Why tensors were skipped.

    Args:
        report: Of a network.
        what: ``"skipped"``, or ``"fit_failed"``: why power laws could not be fitted.

    Returns:
        Reason to names of tensors, the rarest reason first.
    """
    names: dict[str, list[str]] = {}
    for layer in report.layers:
        if (reason := getattr(layer, what)) is not None:
            names.setdefault(reason, []).append(layer.name)
    return dict(sorted(names.items(), key=lambda item: len(item[1])))


def named(names: Sequence[str], most: int = 3) -> str:
    """Some names, and how many more there are.

    Args:
        names: All of them.
        most: How many to spell out.

    Returns:
        E.g. ``"a, b, c and 12 more"``.
    """
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more:,} more" if more > 0 else "")


def write_csv(found: Result, file: Path) -> None:
    """Write the table of a result, e.g. all tensors of all networks, completely or not at all.

    Args:
        found: A :class:`Series`, or networks layer by layer.
        file: Replaced if it exists.

    Raises:
        StoreError: If it cannot be written.
    """
    rows = [{key: _cell(value) for key, value in row.items()} for row in found.rows()]
    write_whole(file, to_csv(rows))


def _cell(value: Any) -> Any:
    """NaN and None as empty cells."""
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else value


NAMES = ("source", "file", "name", "model")
"""Columns that say which network a row is about; one is enough."""

_HASH = re.compile(r"-[0-9a-f]{8}$")
"""What torch.hub puts behind the names of weight files."""


def read_accuracies(
    file: Path, sources: Sequence[str]
) -> tuple[dict[str, tuple[float, ...]], tuple[str, ...]]:
    """Find the accuracies of some networks in a table.

    A row is about a network if one of its names is the network's path, file name, file name without
    ending, or that without a hash of eight digits behind it. Every other column of numbers is an
    accuracy.

    Args:
        file: CSV with a header.
        sources: The networks as they are given to the command.

    Returns:
        Name of an accuracy to one value for each network, NaN where the table has none; and notes:
        networks without a row, rows without a network.

    Raises:
        ConfigError: If the table cannot be read, has no column of names or none of numbers, or no
            network of ``sources`` is in it, or one more than once.
    """
    header, rows = _table(file)
    named = [column for column in header if column.strip().lower() in NAMES]
    if not named:
        raise ConfigError(
            f"{file} has the columns {', '.join(header)}; the one that says which network a row "
            f"is about must be called {', '.join(NAMES[:-1])} or {NAMES[-1]}"
        )
    columns = {name: _numbers(row[name] for row in rows) for name in header if name not in named}
    numbers = {name: values for name, values in columns.items() if values is not None}
    if not numbers:
        raise ConfigError(f"{file} has no column of numbers; give e.g. top1 beside the names")
    places, notes = [], []
    for source in sources:
        path = Path(source)
        keys = {source, path.name, path.stem, _stem(source)}
        about = [i for i, row in enumerate(rows) if keys & {row[name] for name in named}]
        if len(about) > 1:
            raise ConfigError(f"{file} has {len(about)} rows about {source}; keep one")
        if not about:
            notes.append(f"{source} is not in {file}")
        places.append(about[0] if about else None)
    if all(place is None for place in places):
        some = ", ".join(row[named[0]] for row in rows[:4])
        raise ConfigError(f"none of the networks is in {file}, whose first rows are about {some}")
    missing = [row[named[0]] for i, row in enumerate(rows) if i not in places]
    if missing:
        notes.append(f"of {file} not given: {', '.join(missing)}")
    found = {
        name: tuple(math.nan if place is None else values[place] for place in places)
        for name, values in numbers.items()
    }
    return found, tuple(notes)


def _table(file: Path) -> tuple[list[str], list[dict[str, str]]]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(line for line in lines if not line.startswith("#"))
            rows = [{k: (v or "").strip() for k, v in row.items() if k} for row in reader]
            header = list(reader.fieldnames or ())
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror or error}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{file} is no table of comma-separated values: {error}") from error
    if not rows:
        raise ConfigError(f"{file} has no rows; give a header and a row for each network")
    return header, rows


def _numbers(cells: Iterable[str]) -> list[float] | None:
    """The numbers in a column, NaN for an empty cell; None if there is text in it."""
    try:
        return [float(cell or "nan") for cell in cells]
    except ValueError:
        return None


def _stem(source: str) -> str:
    return _HASH.sub("", Path(source).stem)
