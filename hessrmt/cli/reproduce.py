"""``hessrmt reproduce``: a published experiment from nothing to table and figures."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hessrmt.cli import console
from hessrmt.cli.options import DataDirOption, JsonOption

if TYPE_CHECKING:
    from rich.progress import Progress

    from hessrmt.workflows.reproduce import Entry


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
    data_dir: DataDirOption = None,
    json: JsonOption = False,
) -> None:
    """Run a published experiment: training, spectra, level statistics, table and figures.

    What is in the folder already is not computed again, so a run that was killed continues.
    """
    from hessrmt.config import SpacingsConfig, load_settings
    from hessrmt.plots.files import checked_ending
    from hessrmt.workflows import spacings
    from hessrmt.workflows.reproduce import names, settings_file

    if name is None:
        for known, title in names().items():
            console.err.print(f"[bold]{known}[/bold]: {console.escape(title)}", soft_wrap=True)
        if json:
            console.emit_json({"experiments": names()})
        return
    checked_ending(picture)
    file = settings_file(name)
    settings = load_settings(SpacingsConfig, file)
    folder = out if out is not None else Path(file.stem)
    with console.progress() as display:
        entries = spacings.run(settings, preset, folder, folder=data_dir, observer=_Meter(display))
    rows = spacings.table(entries)
    _write(folder / "results.md", spacings.markdown(entries))
    _write(folder / "results.json", console.to_json(rows, indent=1) + "\n")
    _draw(entries, folder / "figures", picture, settings.seed)
    _show(entries)
    if json:
        console.emit_json({"experiment": settings.experiment, "preset": preset, "runs": rows})


class _Meter:
    """One bar, for the part that is running."""

    def __init__(self, display: Progress) -> None:
        self._display = display
        self._task = display.add_task("starting", total=None, rate="")

    def __call__(self, phase: str, done: int, total: int) -> None:
        self._display.update(self._task, description=phase, completed=done, total=total)


def _show(entries: list[Entry]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from hessrmt.workflows.spacings import columns

    shown = {
        "⟨r̃⟩ published": "⟨r̃⟩\n(1e-20)",
        "certified": "levels\n(certified)",
        "⟨r̃⟩ certified": "⟨r̃⟩\n(certified)",
        "σ from GOE": "σ from\nGOE",
    }
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_lines=False)
    table.add_column("")
    for heading in shown.values():
        table.add_column(heading, justify="right", no_wrap=True)
    for entry in entries:
        cells = columns(entry)
        table.add_row(entry.name, *(cells[name].replace(" ± ", "±") for name in shown))
    console.err.print(table)
    for entry in entries:
        certified = entry.statistics["certified"]
        console.err.print(
            f"[bold]{console.escape(entry.name)}[/bold]: {console.escape(certified.conclusion)}",
            soft_wrap=True,
        )


def _draw(entries: list[Entry], folder: Path, ending: str, seed: int) -> None:
    from hessrmt.ensembles import goe
    from hessrmt.plots.reproduction import spacings_figures

    folder.mkdir(exist_ok=True)
    unfolded = {}
    for entry in entries:
        unfolded[entry.name] = entry.unfolded["certified"]
        if not entry.reduced:
            unfolded[f"{entry.name}-published"] = entry.unfolded["paper"]
    control = [goe(1000, seed, index) for index in range(20)]
    for item in spacings_figures(unfolded, control, folder, ending, seed=seed):
        if item.path is None:
            console.note(f"not drawn: {item.name}: {item.reason}")
    console.note(f"written: {folder}, {folder.parent / 'results.md'} and results.json")


def _write(path: Path, text: str) -> None:
    """Replace a file by its complete new text."""
    draft = path.with_name(f".{uuid.uuid4().hex[:8]}.{path.name}.part")
    try:
        draft.write_text(text, encoding="utf-8")
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
