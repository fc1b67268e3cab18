"""``hessrmt capacity``: networks to reports, a table, and correlations with their accuracies."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from hessrmt.capacity.analysis import analyze
from hessrmt.capacity.report import correlations
from hessrmt.errors import ConfigError, DataError
from hessrmt.problems.readers import INDEX, SAFETENSORS, SHARD, WHOLE
from hessrmt.progress import under
from hessrmt.records import Provenance
from hessrmt.results import Result
from hessrmt.runs.tables import numbers_of, read_table, spoilt
from hessrmt.tables import printable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hessrmt.capacity.report import CapacityReport, Correlation
    from hessrmt.config import CapacityConfig
    from hessrmt.progress import Tick


@dataclass(frozen=True)
class Series(Result, omitted="provenance", picture="capacity.alpha_histogram"):
    """Networks, analysed alike.

    Attributes:
        networks: The report of each, in the order given.
        accuracies: Name to one value for each network; empty without a table.
        correlations: Of every metric with every accuracy.
        notes: Anything a reader must know.
        provenance: Settings, machine, versions and time; None in files of the first versions.
    """

    networks: tuple[CapacityReport, ...]
    accuracies: Mapping[str, tuple[float, ...]]
    correlations: tuple[Correlation, ...]
    notes: tuple[str, ...]
    provenance: Provenance | None = None

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
        sources: Files, folders or factories; a folder of several networks is all of them, and
            without any source the networks are those in the column ``path`` of ``against``.
        tick: Told of progress.

    Returns:
        The series.

    Raises:
        ConfigError: If a network is given twice, or a single one is to be compared layer by layer.
        DataError: If a network has nothing to analyse.
    """
    against = settings.against
    given = list(sources)
    sources = [one for source in sources or read_paths(against) for one in networks_in(source)]
    if settings.side_by_side and len(sources) < 2:
        raise ConfigError("side_by_side: one network was given; give two or more")
    counts = Counter(map(_same_file, sources))
    twice = [source for source in sources if counts[_same_file(source)] > 1]
    if twice:
        raise ConfigError(f"{twice[0]} is given twice")
    accuracies, notes = {}, ()
    if settings.columns and against is None:
        raise ConfigError("columns: they are those of a table of accuracies; give it (--against)")
    if against is not None:
        accuracies, notes = read_accuracies(against, sources, settings.columns)
    reports = tuple(_analyse(settings, source, tick) for source in sources)
    parts = [source for source in sources if SHARD.search(Path(source).name)]
    notes += tuple(
        f"{name} is one of several files of a network: name their folder" for name in parts
    )
    config = {"sources": given, **settings.model_dump(mode="json")}
    made = Provenance(config, reports[0].device)
    reports = tuple(replace(one, provenance=made) for one in reports)
    return Series(reports, accuracies, tuple(correlations(reports, accuracies)), notes, made)


def _same_file(source: str) -> str:
    """One name for all names of a file."""
    return str(Path(source).resolve()) if Path(source).exists() else source


_SAME = (
    "base",
    "conv",
    "seed",
    "initial",
    "randomize",
    "p_values",
    "two_sided",
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
    return ", ".join(map(printable, names[:most])) + (f" and {more:,} more" if more > 0 else "")


PATH = "path"
"""Column of the networks' files, from the folder of the table on."""

NAMES = ("source", "file", PATH, "name", "model", "run")
"""Columns that say which network a row is about; one is enough."""

_HASH = re.compile(r"-[0-9a-f]{8}$|\.final$")
"""What torch.hub puts behind the names of weight files, and what experiments do."""


def networks_in(source: str) -> list[str]:
    """The networks that a source stands for.

    Args:
        source: File, folder or factory.

    Returns:
        The files in a folder of several networks, in the order of their names, numbers by size;
        otherwise the source. A folder with an index, ``config.json`` or ``adapter_config.json`` is
        one network, and so is one of safetensors, unless the same tensor is in two of its files.
    """
    folder = Path(source).expanduser()
    alone = (f"*{INDEX}", "config.json", "adapter_config.json")
    if not folder.is_dir() or any([*folder.glob(name)] for name in alone):
        return [source]
    files = [path for path in folder.iterdir() if path.is_file()]
    found = [path for path in files if path.name.lower().endswith(WHOLE)]
    shards = [path for path in files if path.suffix.lower() == SAFETENSORS]
    if len(shards) > 1 and not _parts_of_one(shards):
        found += shards
    elif shards or any(SHARD.search(path.name) for path in found):
        return [source]  # one network, or what has to be told apart by hand
    return [str(path) for path in sorted(found, key=_natural)] or [source]


def _parts_of_one(files: Sequence[Path]) -> bool:
    """Whether no two of some safetensors files hold a tensor of the same name."""
    names: list[str] = []
    try:
        for file in files:
            with safe_open(file, framework="numpy") as content:
                names += content.keys()
    except (SafetensorError, OSError):
        return True  # whoever reads them says what is wrong
    return len(set(names)) == len(names)


def _natural(path: Path) -> list[tuple[int, str]]:
    """Names by their words and the size of their numbers: net-2 before net-10."""
    return [
        (int(part), "") if part.isdigit() else (-1, part)
        for part in re.split(r"(\d+)", path.name)
        if part
    ]


def read_paths(file: Path | None) -> list[str]:
    """The networks that a table lists.

    Args:
        file: CSV with a column ``path``, or None.

    Returns:
        Their paths, relative ones from the folder of the table on.

    Raises:
        ConfigError: If there is no table, it cannot be read or has no such column, or a path is
            missing.
    """
    if file is None:
        raise ConfigError("no network is given: name files, or --against a table with their paths")
    header, rows = read_table(file)
    column = next((name for name in header if name.strip().lower() == PATH), None)
    if column is None:
        raise ConfigError(
            f"no network is given, and {file} has the columns {', '.join(header)}; name files, or "
            f"add a column {PATH}"
        )
    empty = [number for number, row in enumerate(rows, 1) if not row[column]]
    if empty:
        raise ConfigError(f"{file}: the {PATH} in row {empty[0]} is empty")
    return [str(_from(file, row[column])) for row in rows]


def _from(file: Path, path: str) -> Path:
    return file.parent / Path(path).expanduser()


def read_accuracies(
    file: Path, sources: Sequence[str], columns: Sequence[str] = ()
) -> tuple[dict[str, tuple[float, ...]], tuple[str, ...]]:
    """Find the accuracies of some networks in a table.

    A row is about a network if one of its names is the network's path, file name, file name without
    ending, or that without a hash of eight digits, or ``.final``, behind it. Every other column of
    numbers is an accuracy.

    Args:
        file: CSV with a header.
        sources: The networks as they are given to the command.
        columns: The accuracies to take; all if empty.

    Returns:
        Name of an accuracy to one value for each network, NaN where the table has none; and notes:
        networks without a row, rows without a network.

    Raises:
        ConfigError: If the table cannot be read, has no column of names or none of numbers, lacks
            one of ``columns``, or no network of ``sources`` is in it, or one more than once.
    """
    header, rows = read_table(file)
    named = [column for column in header if column.strip().lower() in NAMES]
    if not named:
        raise ConfigError(
            f"{file} has the columns {', '.join(header)}; the one that says which network a row "
            f"is about must be called {', '.join(NAMES[:-1])} or {NAMES[-1]}"
        )
    others = {name: [row[name] for row in rows] for name in header if name not in named}
    numbers = {name: found for name, of in others.items() if (found := numbers_of(of)) is not None}
    wrong = {name: words for name, of in others.items() if (words := spoilt(name, of)) is not None}
    if not numbers:
        why = "; ".join(wrong.values()) or "give e.g. top1 beside the names"
        raise ConfigError(f"{file} has no column of numbers: {why}")
    for name in columns:
        if name in wrong:
            raise ConfigError(f"{file}: {wrong[name]}")
        if name not in numbers:
            raise ConfigError(
                f"{file} has no column of numbers {name!r}; it has {', '.join(numbers)}"
            )
    numbers = {name: numbers[name] for name in columns or numbers}
    places, notes = [], [] if columns else [f"{file}: {why}" for why in wrong.values()]
    for source in sources:
        path = Path(source)
        keys = {source, path.name, path.stem, _stem(source)}
        about = [i for i, row in enumerate(rows) if keys & _called(file, row, named)]
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


def _called(file: Path, row: Mapping[str, str], named: Sequence[str]) -> set[str]:
    """What a row calls its network."""
    paths = {str(_from(file, row[name])) for name in named if name.strip().lower() == PATH}
    return {row[name] for name in named} | paths


def _stem(source: str) -> str:
    return _HASH.sub("", Path(source).stem)
