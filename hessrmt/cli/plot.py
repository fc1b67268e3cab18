"""``hessrmt plot``: the picture of what a file holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hessrmt.cli import console
from hessrmt.cli.options import Overwrite, Style, with_settings


@with_settings
def plot(
    file: Annotated[
        Path,
        typer.Argument(
            help="A file of spectra, a density, a history, a checkpoint or any saved result."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Picture to write (.png, .pdf, .svg). \\[default: FILE.png]"
        ),
    ] = None,
    block: Annotated[
        str | None,
        typer.Option(
            "--block",
            metavar="NAME",
            help="Of a file of blocks (spectrum --blocks): which one. \\[default: all]",
        ),
    ] = None,
    style: Style = "screen",
    compare: Annotated[
        bool,
        typer.Option("--compare", help="Show the published cutoff of 1e-20 beside spectra."),
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Draw what a file holds.

    Spectra: |λ| with the noise floor, which eigenvalues are real. A density with its extreme
    eigenvalues. A training history against epochs. Any other result its own picture.
    """
    from hessrmt.checks import one_of
    from hessrmt.errors import ConfigError
    from hessrmt.files import require_apart, require_new
    from hessrmt.plots.files import save
    from hessrmt.plots.style import LOOKS, relook
    from hessrmt.runs.stored import picture

    one_of("--style", style, LOOKS, error=ConfigError)
    target = out or file.with_suffix(".png")
    if not target.is_dir():
        target = target if target.suffix else target.with_suffix(".png")
    require_apart({"--out": target}, [file])
    require_new(target, may_exist=overwrite, resumable=False)
    drawn = picture(file, block, console.source_in_words, compare=compare)
    relook(drawn, style)
    save(drawn, target, replace=overwrite)
    console.note(f"written: {target}")
