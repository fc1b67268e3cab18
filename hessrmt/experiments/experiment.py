"""What an experiment is: settings, entries computed from them, columns, figures and conclusions.

The table for people (Markdown), those for programs (JSON, CSV) and that of the terminal are made
from the same columns, each declared once.
"""

from __future__ import annotations

import csv
import io
import math
import tomllib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module, resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, TypeVar

import numpy as np

from hessrmt.config import Settings, load_settings
from hessrmt.errors import ConfigError

if TYPE_CHECKING:
    from hessrmt.progress import Tick
    from hessrmt.runs.run import Pool

S = TypeVar("S", bound=Settings)
E = TypeVar("E")

EXPERIMENTS = {
    "hessian-spacings": "hessrmt.experiments.spacings:Spacings",
    "gp-loss-model": "hessrmt.experiments.loss_model:LossModel",
    "iterate-averaging": "hessrmt.experiments.iterate_averaging:IterateAveraging",
    "training-budget": "hessrmt.experiments.training_budget:TrainingBudget",
    "puzzles": "hessrmt.experiments.puzzles:Puzzles",
}
"""Word after ``experiment =`` in a settings file to the class of the experiment."""


class Estimate(NamedTuple):
    """A mean over seeds.

    Attributes:
        mean: NaN where there is none.
        error: Its standard error; NaN for one seed.
        values: (seeds,) what it is the mean of.
    """

    mean: float
    error: float
    values: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray) -> Estimate:
        """Mean and standard error of some values.

        Args:
            values: (seeds,) any number of them.

        Returns:
            The estimate.
        """
        count = len(values)
        error = float(np.std(values, ddof=1)) / count**0.5 if count > 1 else math.nan
        return cls(float(np.mean(values)) if count else math.nan, error, values)


@dataclass(frozen=True)
class Column(Generic[E]):
    """One quantity of an entry.

    Attributes:
        name: Heading in tables for people; empty where only programs read it.
        get: Entry to a number, a text, or an :class:`Estimate`.
        form: How a number is written, e.g. ``".4f"``.
        key: Name in JSON and CSV, with a dot before the name inside another; empty where only
            people read it. An estimate is also stored as ``key_error_of_mean`` and in ``seeds``.
        unit: Of the number.
        terminal: Heading in the terminal's table; empty where it isn't shown there.
        percent: Whether people are shown percents.
    """

    name: str
    get: Callable[[E], Any]
    form: str = ""
    key: str = ""
    unit: str = ""
    terminal: str = ""
    percent: bool = False

    def cell(self, entry: E) -> str:
        """The quantity as people read it.

        Args:
            entry: Whose.

        Returns:
            A text; ``"-"`` for what is not known.
        """
        value = self.get(entry)
        if isinstance(value, str):
            return value
        scale = 100 if self.percent else 1
        if isinstance(value, Estimate):
            shown = _number(scale * value.mean, self.form)
            known = shown != "-" and math.isfinite(value.error)
            return (
                f"{shown} ± {scale * value.error:{self.form.replace(',', '')}}" if known else shown
            )
        return _number(None if value is None else scale * value, self.form)

    def plain(self, entry: E) -> dict[str, Any]:
        """The quantity as programs read it.

        Args:
            entry: Whose.

        Returns:
            Keys to plain values.
        """
        value = self.get(entry)
        if not isinstance(value, Estimate):
            return {self.key: value}
        error = None if len(value.values) < 2 else value.error
        return {
            self.key: value.mean,
            f"{self.key}_error_of_mean": error,
            f"seeds.{self.key}": value.values.tolist(),
        }


def _number(value: Any, form: str) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "-"
    return format(value, form)


@dataclass(frozen=True)
class Table(Generic[E]):
    """Columns and what they are of.

    Attributes:
        columns: From left to right.
        entries: A row each.
    """

    columns: Sequence[Column[E]]
    entries: Sequence[E] = field(repr=False)

    def markdown(self) -> str:
        """The table for people.

        Returns:
            Lines of Markdown.
        """
        shown = [column for column in self.columns if column.name]
        rows = [[column.name for column in shown], ["---"] * len(shown)]
        rows += [[column.cell(entry) for column in shown] for entry in self.entries]
        return "".join(f"| {' | '.join(cells)} |\n" for cells in rows)

    def plain(self) -> list[dict[str, Any]]:
        """The table for programs.

        Returns:
            A dictionary of plain values for each row.
        """
        rows = []
        for entry in self.entries:
            row: dict[str, Any] = {}
            for column in self.columns:
                for key, value in column.plain(entry).items() if column.key else ():
                    place, *inner = reversed(key.split("."))
                    target = row
                    for name in reversed(inner):
                        target = target.setdefault(name, {})
                    target[place] = value
            rows.append(row)
        return rows

    def csv(self) -> str:
        """The table for spreadsheets: numbers and texts, without lists.

        Returns:
            Comma-separated values with a header.
        """
        rows = [
            {
                key: value
                for column in self.columns
                if column.key
                for key, value in column.plain(entry).items()
                if isinstance(value, str | int | float)
            }
            for entry in self.entries
        ]
        text = io.StringIO()
        names = dict.fromkeys(name for row in rows for name in row)
        writer = csv.DictWriter(text, list(names), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()


class Experiment(ABC, Generic[S, E]):
    """A published experiment.

    Attributes:
        settings: Class of its settings, with ``experiment``, ``title`` and ``presets``.
        columns: Of its results; entries have a ``name``.
        divisible: Whether it has independent parts that workers can do.
    """

    settings: ClassVar[type[Settings]]
    columns: ClassVar[tuple[Column[Any], ...]]
    divisible: ClassVar[bool] = True

    @abstractmethod
    def run(
        self,
        settings: S,
        preset: str,
        out: Path,
        *,
        folder: Path | None = None,
        tick: Tick | None = None,
        pool: Pool | None = None,
    ) -> list[E]:
        """Do everything that is not done yet, and read and analyse all of it.

        Args:
            settings: Of the experiment.
            preset: Which size.
            out: Folder for everything.
            folder: Where to look for data first.
            tick: Told of progress.
            pool: Who computes independent parts.

        Returns:
            The entries of the results.
        """

    @abstractmethod
    def figures(self, settings: S, entries: Sequence[E]) -> Mapping[str, Callable[[], Any]]:
        """The figures of the results.

        Args:
            settings: Of the experiment.
            entries: From :meth:`run`.

        Returns:
            Name of a file, without its ending, to what draws it; that may raise a ``DataError``
            that says why there is none.
        """

    @abstractmethod
    def conclusions(self, entries: Sequence[E]) -> dict[str, str]:
        """What was found, in a sentence each.

        Args:
            entries: From :meth:`run`.

        Returns:
            What a sentence is about, to the sentence.
        """

    def fits(self, entries: Sequence[E]) -> Any:  # noqa: ARG002 (most have none)
        """What was fitted to all entries together, as plain values.

        Args:
            entries: From :meth:`run`.

        Returns:
            None where there is nothing.
        """
        return None

    def table(self, entries: Sequence[E]) -> Table[Any]:
        """The rows that programs read.

        Args:
            entries: From :meth:`run`.

        Returns:
            A table.
        """
        return Table(self.columns, entries)

    def markdown(self, entries: Sequence[E]) -> str:
        """All tables for people.

        Args:
            entries: From :meth:`run`.

        Returns:
            Lines of Markdown.
        """
        return Table(self.columns, entries).markdown()


def preset_of(settings: Any, preset: str) -> Any:
    """One size of an experiment.

    Args:
        settings: Of the experiment.
        preset: Its name.

    Returns:
        The settings of that size.

    Raises:
        ConfigError: If there is no such preset.
    """
    if preset not in settings.presets:
        raise ConfigError(
            f"{settings.experiment} has no preset {preset!r}; it has {', '.join(settings.presets)}"
        )
    return settings.presets[preset]


def names() -> dict[str, str]:
    """Experiments that come with the package.

    Returns:
        Name to title.
    """
    texts = {file.stem: file.read_text("utf-8") for file in sorted(_folder().glob("*.toml"))}
    settings = {name: tomllib.loads(text) for name, text in texts.items()}
    return {name: item["title"] for name, item in settings.items() if "experiment" in item}


def settings_file(name: str) -> Path:
    """Settings of an experiment.

    Args:
        name: One that comes with the package, or a TOML file.

    Returns:
        The file.

    Raises:
        ConfigError: If there is none.
    """
    for file in (_folder() / f"{name}.toml", Path(name)):
        if file.suffix == ".toml" and file.is_file():
            return file
    raise ConfigError(
        f"there is no experiment {name!r}; known are {', '.join(names())}, or give a TOML file"
    )


def load(file: Path) -> tuple[Experiment[Any, Any], Any]:
    """The experiment that a settings file is for.

    Args:
        file: A TOML file with a line ``experiment = "..."``.

    Returns:
        The experiment and its settings.

    Raises:
        ConfigError: If the file can't be read or is for no known experiment.
    """
    word = load_settings(_Any, file).experiment
    if word not in EXPERIMENTS:
        raise ConfigError(
            f"experiment: {file} is for {word!r}; known are {', '.join(sorted(EXPERIMENTS))}"
        )
    module, _, name = EXPERIMENTS[word].partition(":")
    found = getattr(import_module(module), name)()
    return found, load_settings(found.settings, file)


class _Any(Settings, extra="ignore"):
    """The one thing that the settings files of all experiments share."""

    experiment: str


def _folder() -> Path:
    """Folder of the settings files: in the wheel, or beside the package in a source tree."""
    package = Path(str(resources.files("hessrmt")))
    for found in (package / "configs", package.parent / "configs"):
        if (found / "hessian-spacings.toml").is_file():
            return found
    raise ConfigError("the settings files (configs/) are missing; reinstall hessrmt")
