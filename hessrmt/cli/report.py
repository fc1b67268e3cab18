"""``hessrmt report``: files of results as one page to keep or to send."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hessrmt.cli import console
from hessrmt.cli.options import Overwrite, Report, require_ending, with_settings


@with_settings
def report(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE", help="What hessrmt has written, or a folder of reproduce."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Page to write (.html).")] = Path(
        "report.html"
    ),
    title: Annotated[
        str, typer.Option("--title", help="Of the page. \\[default: what the files are about]")
    ] = "",
    surrogates: Annotated[
        int,
        typer.Option("--surrogates", help="Of level statistics; 0 for none.", min=0, max=100_000),
    ] = 200,
    overwrite: Overwrite = False,
) -> Report:
    """Write one page about files of results: conclusions, pictures, tables, settings.

    It needs nothing else and fetches nothing, so it can be sent as it is.

    Returns:
        What --json prints; --csv writes a row for each file.
    """
    from hessrmt.files import require_file, require_new, write_whole
    from hessrmt.runs.report import report as page

    require_ending(out, (".html", ".htm"))
    require_file(out, "--out")
    require_new(out, may_exist=overwrite, resumable=False)
    with console.Meter() as tick:
        text = page(files, title, surrogates=surrogates, tick=tick)
    write_whole(out, text, replace=overwrite)
    console.note(f"written: {out}")
    found = {"file": str(out), "files": [str(file) for file in files]}
    return Report(found, lambda: [{"file": file, "page": str(out)} for file in found["files"]])
