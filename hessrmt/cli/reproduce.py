"""``hessrmt reproduce``: a published experiment from nothing to table and figures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hessrmt.cli import console
from hessrmt.cli.options import (
    DataDir,
    Json,
    PictureFormat,
    Scheduler,
    Workers,
    pool_of,
    with_settings,
)

if TYPE_CHECKING:
    from rich.console import Console

    from hessrmt.experiments.experiment import Experiment


@with_settings
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
        typer.Option(
            "--out", "-o", metavar="DIR", help="Folder for everything. \\[default: the name]"
        ),
    ] = None,
    picture: PictureFormat = "png",
    workers: Workers = None,
    scheduler: Scheduler = None,
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """Run a published experiment from nothing to spectra, statistics, table and figures.

    What is in the folder already is not computed again, so a run that was killed continues.
    """
    from hessrmt.experiments import load, names, settings_file
    from hessrmt.files import write_whole
    from hessrmt.plots.files import checked_ending, draw_each

    to = console.results(json)
    if name is None:
        for known, title in names().items():
            to.print(f"[bold]{known}[/bold]: {console.escape(title)}", soft_wrap=True)
        if json:
            console.emit_json({"experiments": names()})
        return
    ending = checked_ending(picture)
    file = settings_file(name)
    experiment, settings = load(file)
    folder = out if out is not None else Path(file.stem)
    with pool_of(workers, scheduler) as pool, console.progress() as display:
        entries = experiment.run(
            settings,
            preset,
            folder,
            folder=data_dir,
            tick=console.Meter(display, one=True),
            pool=pool,
        )
    table = experiment.table(entries)
    rows = table.plain()
    write_whole(folder / "results.md", experiment.markdown(entries))
    write_whole(folder / "results.csv", table.csv())
    write_whole(folder / "results.json", console.to_json(rows, indent=1) + "\n")
    figures = folder / "figures"
    figures.mkdir(exist_ok=True)
    for item in draw_each(experiment.figures(entries), figures, ending):
        if item.path is None:
            console.note(f"not drawn: {item.name}: {item.reason}")
    console.note(f"written: {figures}, {folder / 'results.md'}, results.csv and results.json")
    _show(experiment, entries, to)
    if json:
        result = {"experiment": settings.experiment, "preset": preset, "runs": rows}
        fits = experiment.fits(entries)
        console.emit_json(result | ({} if fits is None else {"fits": fits}))


def _show(experiment: Experiment[Any, Any, Any], entries: list[Any], to: Console) -> None:
    shown = [column for column in experiment.columns if column.terminal]
    table = console.table("", *(column.terminal for column in shown))
    for entry in entries:
        cells = (column.cell(entry).replace(" ± ", "±") for column in shown)
        table.add_row(console.escape(entry.name), *map(console.escape, cells))
    to.print(table)
    for name, sentence in experiment.conclusions(entries).items():
        to.print(f"[bold]{console.escape(name)}[/bold]: {console.escape(sentence)}", soft_wrap=True)
