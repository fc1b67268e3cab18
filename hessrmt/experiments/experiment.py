"""What an experiment is: settings, entries computed from them, columns, figures and conclusions.

The table for people (Markdown), those for programs (JSON, CSV) and that of the terminal are made
from the same columns, each declared once.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, TypeAlias, TypeVar

import numpy as np
from pydantic import Field

from hessrmt import rng
from hessrmt.arrays import sample_mean
from hessrmt.backend.select import select
from hessrmt.config import Settings, TrainConfig
from hessrmt.errors import ConfigError
from hessrmt.progress import Tick, silent
from hessrmt.records import Provenance
from hessrmt.results import Result, flat
from hessrmt.runs import spectrum, trajectory
from hessrmt.runs.run import SERIAL, Pool, make_folders
from hessrmt.store import results
from hessrmt.store.files import require_same
from hessrmt.tables import to_csv, to_markdown

if TYPE_CHECKING:
    from hessrmt.config import SpectrumConfig
    from hessrmt.records import Spectra
    from hessrmt.runs.trajectory import Trajectory, TrajectoryPlan

S = TypeVar("S", bound="Presets[Any]")
SizeT = TypeVar("SizeT", bound=Settings)
E = TypeVar("E")
Item = TypeVar("Item")
R = TypeVar("R")
T = TypeVar("T", bound="TrainedPreset")


class Estimate(NamedTuple):
    """A mean over seeds.

    Attributes:
        mean: NaN where there is none.
        error: Its standard error; NaN for one seed.
        values: (seeds,) what it is the mean of, where programs are told.
    """

    mean: float
    error: float
    values: np.ndarray | tuple[()] = ()

    @classmethod
    def of(cls, values: np.ndarray) -> Estimate:
        """Mean and standard error of some values.

        Args:
            values: (seeds,) any number of them.

        Returns:
            The estimate.
        """
        known = sample_mean(values) if len(values) else (math.nan, math.nan)
        return cls(*known, values)

    def text(self, form: str, scale: float = 1) -> str:
        """The estimate as people read it.

        Args:
            form: How the mean is written, e.g. ``".4f"``.
            scale: What both are multiplied by.

        Returns:
            The mean, with its error where that is known; ``"-"`` where there is no mean.
        """
        shown = _number(scale * self.mean, form)
        if shown == "-" or not math.isfinite(self.error):
            return shown
        return f"{shown} ± {scale * self.error:{form.replace(',', '')}}"


@dataclass(frozen=True)
class Column(Generic[E]):
    """One quantity of an entry.

    Attributes:
        name: Heading in tables for people; empty where only programs read it.
        get: Entry to a number, a text, or an :class:`Estimate`.
        form: How a number is written, e.g. ``".4f"``.
        key: Name in JSON and CSV, with a dot before the name inside another; empty where only
            people read it. An estimate is also stored as ``key_error_of_mean`` and in ``seeds``.
        terminal: Heading in the terminal's table; empty where it isn't shown there.
        percent: Whether people are shown percents of an estimate.
        alone: Whether an estimate's mean alone is stored.
    """

    name: str
    get: Callable[[E], Any]
    form: str = ""
    key: str = ""
    terminal: str = ""
    percent: bool = False
    alone: bool = False

    def cell(self, entry: E) -> str:
        """The quantity as people read it.

        Args:
            entry: Whose.

        Returns:
            A text; ``"-"`` for what is not known.
        """
        value = self.get(entry)
        if isinstance(value, Estimate):
            return value.text(self.form, 100 if self.percent else 1)
        return value if isinstance(value, str) else _number(value, self.form)

    def plain(self, entry: E) -> dict[str, Any]:
        """The quantity as programs read it.

        Args:
            entry: Whose.

        Returns:
            Keys to plain values.
        """
        value = self.get(entry)
        if not isinstance(value, Estimate) or self.alone:
            return {self.key: value.mean if isinstance(value, Estimate) else value}
        error = None if len(value.values) < 2 else value.error
        return {
            self.key: value.mean,
            f"{self.key}_error_of_mean": error,
            f"seeds.{self.key}": np.asarray(value.values).tolist(),
        }


def keyed(**paths: str) -> tuple[Column[Any], ...]:
    """Columns that only programs read.

    Args:
        paths: Key to the attribute of an entry, with dots before those of attributes.

    Returns:
        A column each.
    """
    return tuple(Column("", attrgetter(path), key=key) for key, path in paths.items())


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
        heads = [column.name for column in self.columns if column.name]
        return to_markdown(heads, (list(row.values()) for row in self.texts()))

    def texts(self) -> list[dict[str, str]]:
        """The same table cell by cell.

        Returns:
            Heading to text, for each row.
        """
        shown = [column for column in self.columns if column.name]
        return [{column.name: column.cell(entry) for column in shown} for entry in self.entries]

    def plain(self) -> list[dict[str, Any]]:
        """The table for programs.

        Returns:
            A dictionary of plain values for each row.
        """
        rows: list[dict[str, Any]] = []
        for entry in self._flat():
            rows.append({})
            for key, value in entry.items():
                *around, name = key.split(".")
                target = rows[-1]
                for inner in around:
                    target = target.setdefault(inner, {})
                target[name] = value
        return rows

    def csv(self) -> str:
        """The table for spreadsheets.

        Returns:
            :meth:`flat` as comma-separated values with a header.
        """
        return to_csv(self.flat())

    def flat(self) -> list[dict[str, Any]]:
        """Numbers and texts of the table, without lists.

        Returns:
            Rows with the same keys.
        """
        rows = [
            {key: value for key, value in entry.items() if isinstance(value, str | int | float)}
            for entry in self._flat()
        ]
        names = dict.fromkeys(name for row in rows for name in row)
        return [dict.fromkeys(names) | row for row in rows]

    def _flat(self) -> Iterator[dict[str, Any]]:
        known = [column for column in self.columns if column.key]
        for entry in self.entries:
            yield {key: value for one in known for key, value in one.plain(entry).items()}


def drawn_seed(seed: int, *names: str | int) -> int:
    """A seed of its own for a part of an experiment, as settings hold it.

    Args:
        seed: Of everything.
        names: What the part is.

    Returns:
        The seed.
    """
    return int(rng.seed_sequence(seed, *names).generate_state(1)[0])


class Presets(Settings, Generic[SizeT]):
    """What the settings files of all experiments have.

    Attributes:
        experiment: Its name in :data:`hessrmt.experiments.EXPERIMENTS`.
        title: What it is about.
        device: ``auto``, ``cpu`` or ``cuda[:i]``.
        seed: Of everything.
        presets: Name to size.
    """

    experiment: str
    title: str = ""
    device: str = "auto"
    seed: int = Field(0, ge=0)
    presets: dict[str, SizeT] = Field(min_length=1)


class TrainedPreset(Settings):
    """What sizes of experiments have in which networks are trained with several seeds.

    Attributes:
        batch: Samples in a minibatch.
        momentum: Of SGD.
        weight_decay: Of SGD.
        seeds: Runs of each kind.
    """

    batch: int = Field(128, ge=1)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(5e-4, ge=0, allow_inf_nan=False)
    seeds: int = Field(1, ge=1)


class TrainedSettings(Presets[T], Generic[T]):
    """Settings of such an experiment.

    Attributes:
        data: Registry name, file or folder.
    """

    data: str = "mnist"

    def training(self, size: T, *names: str | int, **options: Any) -> TrainConfig:
        """Settings of one training run.

        Args:
            size: Of the experiment.
            names: Of the run's seed.
            options: What differs from run to run.

        Returns:
            The settings.
        """
        return TrainConfig(
            data=self.data,
            batch=size.batch,
            momentum=size.momentum,
            weight_decay=size.weight_decay,
            device=self.device,
            seed=drawn_seed(self.seed, self.experiment, *names),
            **options,
        )


def stem(model: str) -> str:
    """Name of a network in file names.

    Args:
        model: Registry name or ``file.py:factory``.

    Returns:
        The name alone.
    """
    return model.rpartition(":")[2].replace("/", "_")


@dataclass(frozen=True)
class Kept(Result):
    """A result of a part of an experiment as it lies in the experiment's folder.

    Attributes:
        settings: That it depends on.
        result: What was computed.
    """

    settings: Mapping[str, Any]
    result: Any


@dataclass(frozen=True)
class ExperimentResult(Result):
    """What an experiment has found: ``results.h5`` of its folder.

    Attributes:
        experiment: Name of its kind.
        title: What it is about.
        preset: Its size.
        conclusions: What a sentence is about to the sentence.
        table: A row for each entry: heading to text, as people read it.
        runs: The same with all numbers, as ``results.json`` has them.
        fits: What was fitted to all entries together, or None.
        provenance: Where it came from.
    """

    experiment: str
    title: str
    preset: str
    conclusions: Mapping[str, str]
    table: Sequence[Mapping[str, str]]
    runs: Sequence[Mapping[str, Any]]
    fits: Any = None
    provenance: Provenance = field(default_factory=Provenance)

    def rows(self) -> list[dict[str, Any]]:
        """The table with all numbers.

        Returns:
            A row for each entry, without lists.
        """
        rows = [flat(dict(row)) for row in self.runs]
        return [{k: v for k, v in row.items() if not isinstance(v, list | tuple)} for row in rows]

    def caption(self) -> str:
        """What it is about."""
        return self.title or self.experiment


@dataclass(frozen=True)
class Work(Generic[S, SizeT]):
    """What an experiment is to do, where, and with whom.

    Attributes:
        settings: Of the experiment.
        size: The chosen one of its presets.
        out: Folder for everything.
        folder: Where to look for data first.
        tick: Told of progress.
        pool: Who computes independent parts.
    """

    settings: S
    size: SizeT
    out: Path
    folder: Path | None = None
    tick: Tick = silent
    pool: Pool = SERIAL

    def each(self, words: str, items: Collection[Item]) -> Iterator[Item]:
        """Tell of progress while some things are done one after the other.

        Args:
            words: What is done, e.g. ``"levels of {.name}"``, where the item is filled in.
            items: With what.

        Yields:
            The items.
        """
        for number, item in enumerate(items):
            self.tick(words.format(item), number, len(items))
            yield item

    def spectra(self, name: str, wanted: SpectrumConfig) -> Spectra:
        """Spectra in a file of the folder ``spectra``, computed as far as they are not there.

        Args:
            name: Of the file, without its ending.
            wanted: Settings.

        Returns:
            The spectra.
        """
        make_folders(self.out, "spectra")
        prepared, file = spectrum.prepare(wanted, self.folder), self.out / "spectra" / f"{name}.h5"
        return spectrum.run(prepared, file, resume=True, pool=self.pool, folder=self.folder)

    def found(self, name: str, wanted: Mapping[str, Any]) -> Any:
        """A result in a file of the folder ``studies``.

        Args:
            name: Of the file, without its ending.
            wanted: Settings that the result depends on, plain values.

        Returns:
            The result; None if it is not there.
        """
        file = self.out / "studies" / f"{name}.h5"
        if not file.exists():
            return None
        kept: Any = results.load(file)
        require_same(file, kept.settings, wanted)
        return kept.result

    def kept(self, name: str, wanted: Mapping[str, Any], make: Callable[[], R]) -> R:
        """A result in a file of the folder ``studies``, computed if it is not there.

        Args:
            name: Of the file, without its ending.
            wanted: Settings that the result depends on, plain values.
            make: Computes it.

        Returns:
            The result.
        """
        make_folders(self.out, "studies")
        if (there := self.found(name, wanted)) is not None:
            return there
        made = make()
        Kept(json.loads(json.dumps(dict(wanted))), made).save(self.out / "studies" / f"{name}.h5")
        return made

    def trajectories(
        self: Work[Any, Any], items: Sequence[Item], plan: Callable[[Item, int], TrajectoryPlan]
    ) -> list[list[Trajectory]]:
        """Training runs of several kinds, each with all seeds of a :class:`TrainedPreset`.

        Args:
            items: The kinds.
            plan: Of a kind and the number of a seed.

        Returns:
            The finished runs of each kind.
        """
        make_folders(self.out, "checkpoints")
        seeds, out = self.size.seeds, self.out / "checkpoints"
        plans = [plan(item, number) for item in items for number in range(seeds)]
        done = trajectory.run_all(plans, out, folder=self.folder, tick=self.tick, pool=self.pool)
        return [done[first : first + seeds] for first in range(0, len(done), seeds)]


Pictures: TypeAlias = Mapping[str, Callable[[], Any]]
"""Name of a file, without its ending, to what draws it."""


class Experiment(ABC, Generic[S, SizeT, E]):
    """A published experiment.

    Attributes:
        settings: Class of its settings, with see :class:`Presets`.
        columns: Of its results; entries have a ``name``.
    """

    settings: ClassVar[type[Settings]]
    columns: ClassVar[tuple[Column[Any], ...]]

    @abstractmethod
    def compute(self, work: Work[S, SizeT]) -> list[E]:
        """Do everything that is not done yet, and read and analyse all of it.

        Args:
            work: What to do.

        Returns:
            The entries of the results.
        """

    def run(self, settings: S, preset: str, out: Path, **options: Any) -> list[E]:
        """Do everything that is not done yet, and read and analyse all of it.

        Args:
            settings: Of the experiment.
            preset: Which size.
            out: Folder for everything.
            options: Of :class:`Work`: ``folder``, ``tick`` and ``pool``.

        Returns:
            The entries of the results.

        Raises:
            ConfigError: If there is no such preset.
        """
        if preset not in settings.presets:
            raise ConfigError(
                f"{settings.experiment} has no preset {preset!r}; it has "
                f"{', '.join(settings.presets)}"
            )
        work = Work(settings, settings.presets[preset], out, **options)
        if work.pool.local:
            select(settings.device)  # refused before anything is written
        entries = self.compute(work)
        make_folders(out, ".")  # where nothing was kept on the way
        work.tick("done", len(entries), len(entries))
        return entries

    @abstractmethod
    def figures(self, entries: Sequence[E]) -> Pictures:
        """The figures of the results.

        Args:
            entries: From :meth:`run`.

        Returns:
            What draws each; that may raise a ``DataError`` that says why there is none.
        """

    @abstractmethod
    def conclusions(self, entries: Sequence[E]) -> dict[str, str]:
        """What was found, in a sentence each.

        Args:
            entries: From :meth:`run`.

        Returns:
            What a sentence is about, to the sentence.
        """

    def result(
        self, settings: S, preset: str, entries: Sequence[E], command: str
    ) -> ExperimentResult:
        """All that was found, to be kept.

        Args:
            settings: Of the experiment.
            preset: Its size.
            entries: From :meth:`run`.
            command: That made them.

        Returns:
            Conclusions and tables.
        """
        about: Any = settings
        config = {"command": command, "seed": about.seed, **about.presets[preset].model_dump()}
        return ExperimentResult(
            about.experiment,
            about.title,
            preset,
            self.conclusions(entries),
            Table(self.columns, entries).texts(),
            self.table(entries).plain(),
            self.fits(entries),
            Provenance(json.loads(json.dumps(config, default=str)), about.device),
        )

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
