"""Tables of reported accuracies (CSV) and which network of a series each row is about."""

from __future__ import annotations

import csv
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hessrmt.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

NAMES = ("source", "file", "name", "model")
"""Columns that say which network a row is about; one is enough."""

_HASH = re.compile(r"-[0-9a-f]{8}$")
"""What torch.hub puts behind the names of weight files."""


@dataclass(frozen=True)
class Accuracies:
    """Accuracies of the networks of a series.

    Attributes:
        columns: Name to one value for each network, NaN where the table has none.
        notes: Networks without a row, rows without a network.
    """

    columns: Mapping[str, tuple[float, ...]]
    notes: tuple[str, ...]


def read(file: Path, sources: Sequence[str]) -> Accuracies:
    """Find the accuracies of some networks in a table.

    A row is about a network if one of its names is the network's path, file name, file name without
    ending, or that without a hash of eight digits behind it. Every other column of numbers is an
    accuracy.

    Args:
        file: CSV with a header.
        sources: The networks as they are given to the command.

    Returns:
        Their accuracies.

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
    cells = {name: [_number(row[name]) for row in rows] for name in header if name not in named}
    numbers = {
        name: [math.nan if value is None else value for value in values]
        for name, values in cells.items()
        if None not in values
    }
    if not numbers:
        raise ConfigError(f"{file} has no column of numbers; give e.g. top1 beside the names")
    places, notes = [], []
    for source in sources:
        keys = _keys(source)
        found = [i for i, row in enumerate(rows) if keys & {row[name] for name in named}]
        if len(found) > 1:
            raise ConfigError(f"{file} has {len(found)} rows about {source}; keep one")
        if not found:
            notes.append(f"{source} is not in {file}")
        places.append(found[0] if found else None)
    if all(place is None for place in places):
        some = ", ".join(row[named[0]] for row in rows[:4])
        raise ConfigError(f"none of the networks is in {file}, whose first rows are about {some}")
    missing = [row[named[0]] for i, row in enumerate(rows) if i not in places]
    if missing:
        notes.append(f"of {file} not given: {', '.join(missing)}")
    columns = {
        name: tuple(math.nan if place is None else values[place] for place in places)
        for name, values in numbers.items()
    }
    return Accuracies(columns, tuple(notes))


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


def _number(cell: str) -> float | None:
    """The number in a cell, NaN for an empty one, None for text."""
    if not cell:
        return math.nan
    try:
        return float(cell)
    except ValueError:
        return None


def labels(sources: Sequence[str]) -> tuple[str, ...]:
    """Short names of networks.

    Args:
        sources: The networks as they are given to the command.

    Returns:
        File names without ending and hash if these differ, else file names, else what was given.
    """
    names = [Path(source).name for source in sources]
    for short in ([_stem(source) for source in sources], names):
        if len(set(short)) == len(short):
            return tuple(short)
    return tuple(sources)


def _keys(source: str) -> set[str]:
    path = Path(source)
    return {source, path.name, path.stem, _stem(source)}


def _stem(source: str) -> str:
    return _HASH.sub("", Path(source).stem)
