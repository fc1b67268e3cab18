"""``hessrmt reproduce``: a published experiment from nothing to table and figures."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hessrmt.cli import console
from hessrmt.cli.options import (
    DataDir,
    PictureFormat,
    Report,
    Scheduler,
    Style,
    Workers,
    pool_of,
    with_settings,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

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
    style: Style = "screen",
    device: Annotated[
        str | None,
        typer.Option("--device", help="auto, cpu, cuda or cuda:N. \\[default: of the settings]"),
    ] = None,
    workers: Workers = None,
    scheduler: Scheduler = None,
    data_dir: DataDir = None,
) -> Report:
    """Run a published experiment from nothing to spectra, statistics, table and figures.

    What is in the folder already is not computed again, so a run that was killed continues, and a
    finished one is only drawn again, e.g. with --style paper --format pdf.

    Returns:
        What --json and --csv write.
    """
    from hessrmt.checks import one_of
    from hessrmt.errors import ConfigError
    from hessrmt.experiments import load, names, settings_file
    from hessrmt.files import write_whole
    from hessrmt.plots.files import checked_ending, draw_each
    from hessrmt.plots.style import LOOKS
    from hessrmt.results import to_json

    if name is None:
        console.facts(names())
        listed = [{"name": name, "title": title} for name, title in names().items()]
        return Report({"experiments": names()}, lambda: listed)
    ending = checked_ending(picture)
    one_of("--style", style, LOOKS, error=ConfigError)
    file = settings_file(name)
    experiment, settings = load(file)
    if device is not None:
        settings = settings.model_copy(update={"device": device})
    folder = out if out is not None else Path(file.stem)
    meter = console.Meter(one=True, lines=True)
    with pool_of(workers, scheduler, settings.device) as pool, meter as tick:
        entries = experiment.run(settings, preset, folder, folder=data_dir, tick=tick, pool=pool)
    table = experiment.table(entries)
    rows = table.plain()
    write_whole(folder / "results.md", experiment.markdown(entries))
    write_whole(folder / "results.csv", table.csv())
    write_whole(folder / "results.json", to_json(rows, indent=1) + "\n")
    command = shlex.join(["hessrmt", "reproduce", name, "--preset", preset])
    found = experiment.result(settings, preset, entries, command)
    found.save(folder / "results.h5", overwrite=True)
    figures = folder / "figures"
    console.drawn(draw_each(experiment.figures(entries), figures, ending, style))
    console.note(f"written: {figures}, {folder / 'results.md'}, results.csv, .json and .h5")
    _show(experiment, entries, found.conclusions)
    result = {"experiment": settings.experiment, "preset": preset, "runs": rows}
    return Report(result | ({} if found.fits is None else {"fits": found.fits}), table.flat)


def _show(
    experiment: Experiment[Any, Any, Any], entries: list[Any], conclusions: Mapping[str, str]
) -> None:
    shown = [column for column in experiment.columns if column.terminal]
    rows = [
        (entry.name, *(column.cell(entry).replace(" ± ", "±") for column in shown))
        for entry in entries
    ]
    console.show(console.table(("", *(column.terminal for column in shown)), rows))
    console.facts(conclusions)
