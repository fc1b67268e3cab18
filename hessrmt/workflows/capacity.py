"""``hessrmt capacity``: networks to reports, a table, and correlations with their accuracies."""

from __future__ import annotations

import csv
import io
import math
import os
import uuid
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hessrmt.capacity.analysis import analyze
from hessrmt.capacity.report import correlations
from hessrmt.errors import CapacityError, ConfigError, StoreError
from hessrmt.workflows import accuracies

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hessrmt.capacity.report import CapacityReport, Correlation
    from hessrmt.config.capacity import CapacityConfig

Observer = Callable[[str, str, int, int], None]
"""Progress: network, its layer that is done, tensors done and in all."""


@dataclass(frozen=True)
class Series:
    """Networks, analysed alike.

    Attributes:
        reports: One for each, in the order given.
        accuracies: Name to one value for each network; empty without a table.
        correlations: Of every metric with every accuracy.
        notes: Anything a reader must know.
    """

    reports: tuple[CapacityReport, ...]
    accuracies: Mapping[str, tuple[float, ...]]
    correlations: tuple[Correlation, ...]
    notes: tuple[str, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """Short names of the networks, as :func:`hessrmt.workflows.accuracies.labels` has them."""
        return accuracies.labels(self.sources)

    @property
    def sources(self) -> tuple[str, ...]:
        """The networks as they were given."""
        return tuple(report.source for report in self.reports)

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values.

        Returns:
            ``networks`` as a list of reports, accuracies, correlations, notes.
        """
        return {
            "networks": [report.to_dict() for report in self.reports],
            "accuracies": {name: list(values) for name, values in self.accuracies.items()},
            "correlations": [item.to_dict() for item in self.correlations],
            "notes": list(self.notes),
        }


def run(
    settings: CapacityConfig, sources: Sequence[str], observer: Observer | None = None
) -> Series:
    """Analyse networks.

    Args:
        settings: What to compute.
        sources: Files, folders or factories.
        observer: Told of progress.

    Returns:
        The series.

    Raises:
        ConfigError: If a network is given twice.
        CapacityError: If a network has nothing to analyse.
    """
    twice = [source for source, count in Counter(sources).items() if count > 1]
    if twice:
        raise ConfigError(f"{twice[0]} is given twice")
    table = accuracies.Accuracies({}, ())
    if settings.against is not None:
        table = accuracies.read(settings.against, sources)
    reports = tuple(_analyse(settings, source, observer) for source in sources)
    found = correlations(reports, table.columns)
    return Series(reports, table.columns, tuple(found), table.notes)


def _analyse(settings: CapacityConfig, source: str, observer: Observer | None) -> CapacityReport:
    def tick(layer: str, done: int, total: int) -> None:
        if observer:
            observer(source, layer, done, total)

    report = analyze(
        source,
        settings.conv,
        settings.seed,
        initial=settings.initial,
        randomize=settings.randomize,
        p_values=settings.p_values,
        x_max=settings.upper,
        compare_with=settings.compare,
        exact=settings.exact,
        min_size=settings.min_size,
        only=settings.only,
        device=settings.device,
        tick=tick,
    )
    if not report.analyzed:
        listed = "; ".join(f"{reason}: {named(names)}" for reason, names in skipped(report).items())
        raise CapacityError(f"{source}: nothing to analyse. {listed}")
    return report


def skipped(report: CapacityReport) -> dict[str, list[str]]:
    """Why tensors were skipped.

    Args:
        report: Of a network.

    Returns:
        Reason to the names of the tensors, the rarest reason first.
    """
    found: dict[str, list[str]] = {}
    for layer in report.layers:
        if layer.skipped is not None:
            found.setdefault(layer.skipped, []).append(layer.name)
    return dict(sorted(found.items(), key=lambda item: len(item[1])))


def failed(report: CapacityReport) -> dict[str, list[str]]:
    """Why power laws could not be fitted (as for :func:`skipped`)."""
    found: dict[str, list[str]] = {}
    for layer in report.layers:
        if layer.fit_failed is not None:
            found.setdefault(layer.fit_failed, []).append(layer.name)
    return dict(sorted(found.items(), key=lambda item: len(item[1])))


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


def require_file(file: Path) -> None:
    """Refuse a file that cannot be written before minutes of work.

    Args:
        file: To be written.

    Raises:
        ConfigError: If it is a folder, or its folder is missing.
    """
    if file.is_dir() or not file.absolute().parent.is_dir():
        problem = "is a folder" if file.is_dir() else "lies in a folder that doesn't exist"
        raise ConfigError(f"{file} {problem}; --csv takes the name of a file")


def write_csv(series: Series, file: Path) -> None:
    """Write all tensors of all networks as a table, completely or not at all.

    Args:
        series: The networks.
        file: Replaced if it exists.

    Raises:
        StoreError: If it cannot be written.
    """
    text = io.StringIO()
    rows = [{"source": report.source} | row for report in series.reports for row in report.rows()]
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    draft = file.with_name(f".{uuid.uuid4().hex[:8]}.{file.name}.part")
    try:
        draft.write_text(text.getvalue(), encoding="utf-8")
        os.replace(draft, file)
    except OSError as error:
        raise StoreError(f"cannot write {file}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            draft.unlink()


def _cell(value: Any) -> Any:
    """NaN and None as empty cells."""
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else value
