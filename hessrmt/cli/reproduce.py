"""``hessrmt reproduce``: a published experiment from nothing to table and figures."""

from __future__ import annotations

import inspect
import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hessrmt.cli import console
from hessrmt.cli.experiments import experiment_of
from hessrmt.cli.options import (
    DataDirOption,
    JsonOption,
    SchedulerOption,
    WorkersOption,
    pool_of,
)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from hessrmt.cli.experiments import Conductor


def reproduce(
    name: Annotated[
        str | None,
        typer.Argument(help="An experiment, or a TOML file like theirs; without it, the list."),
    ] = None,
    preset: Annotated[
        str, typer.Option("--preset", help="small (minutes on two cores) or full.")
    ] = "small",
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Folder for everything. \\[default: the name]"),
    ] = None,
    picture: Annotated[
        str, typer.Option("--format", help="Of the figures: png, svg or pdf.")
    ] = "png",
    workers: WorkersOption = None,
    scheduler: SchedulerOption = None,
    data_dir: DataDirOption = None,
    json: JsonOption = False,
) -> None:
    """Run a published experiment from nothing to spectra, statistics, table and figures.

    What is in the folder already is not computed again, so a run that was killed continues.
    """
    from hessrmt.plots.files import checked_ending
    from hessrmt.workflows.reproduce import names, settings_file

    if name is None:
        to = console.results(json)
        for known, title in names().items():
            to.print(f"[bold]{known}[/bold]: {console.escape(title)}", soft_wrap=True)
        if json:
            console.emit_json({"experiments": names()})
        return
    checked_ending(picture)
    file = settings_file(name)
    experiment = experiment_of(file)
    settings, conductor = experiment.load(file), experiment.conductor
    folder = out if out is not None else Path(file.stem)
    if workers is not None or scheduler is not None:
        _require_parts(conductor, settings.experiment)
    with pool_of(workers, scheduler) as pool, console.progress() as display:
        given = {} if pool.local else {"pool": pool}
        entries = conductor.run(
            settings, preset, folder, folder=data_dir, observer=_Meter(display), **given
        )
    rows = conductor.table(entries)
    _write(folder / "results.md", conductor.markdown(entries))
    _write(folder / "results.json", console.to_json(rows, indent=1) + "\n")
    figures = folder / "figures"
    figures.mkdir(exist_ok=True)
    for item in experiment.draw(settings, entries, figures, picture):
        if item.path is None:
            console.note(f"not drawn: {item.name}: {item.reason}")
    console.note(f"written: {figures}, {folder / 'results.md'} and results.json")
    _show(conductor, entries, console.results(json))
    if json:
        result = {"experiment": settings.experiment, "preset": preset, "runs": rows}
        fits = getattr(conductor, "fits", None)
        console.emit_json(result | ({"fits": fits(entries)} if fits else {}))


def _require_parts(conductor: Conductor, name: str) -> None:
    from hessrmt.errors import ConfigError

    if "pool" not in inspect.signature(conductor.run).parameters:
        raise ConfigError(
            f"the experiment {name} has no independent parts: leave out --workers and --scheduler"
        )


class _Meter:
    """One bar, for the part that is running."""

    def __init__(self, display: Progress) -> None:
        self._display = display
        self._task = display.add_task("starting", total=None, rate="")

    def __call__(self, phase: str, done: int, total: int) -> None:
        self._display.update(self._task, description=phase, completed=done, total=total)


def _show(conductor: Conductor, entries: list[Any], to: Console) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_lines=False)
    table.add_column("", no_wrap=True)
    for heading in conductor.SHOWN.values():
        table.add_column(heading, justify="right", no_wrap=True)
    for entry in entries:
        cells = conductor.columns(entry)
        table.add_row(entry.name, *(cells[name].replace(" ± ", "±") for name in conductor.SHOWN))
    to.print(table)
    for name, sentence in conductor.sentences(entries).items():
        to.print(f"[bold]{console.escape(name)}[/bold]: {console.escape(sentence)}", soft_wrap=True)


def _write(path: Path, text: str) -> None:
    """Replace a file by its complete new text."""
    draft = path.with_name(f".{uuid.uuid4().hex[:8]}.{path.name}.part")
    try:
        draft.write_text(text, encoding="utf-8")
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
