"""``hessrmt plot``: the picture of a spectrum file, or of the history of a training run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hessrmt.cli import console
from hessrmt.cli.options import with_settings


@with_settings
def plot(
    file: Annotated[Path, typer.Argument(help="A spectrum file.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Picture to write (.png, .pdf, .svg). \\[default: FILE.png]"
        ),
    ] = None,
) -> None:
    """Draw |λ| with the noise floor: which levels are real; a training history against epochs."""
    from hessrmt.errors import StoreError
    from hessrmt.files import require_new
    from hessrmt.levels.histograms import mean_ratios
    from hessrmt.plots.certification import certification
    from hessrmt.plots.files import save
    from hessrmt.plots.training import history
    from hessrmt.store.history import holds_history, load_history
    from hessrmt.store.spectra import load

    spectra = load(file)
    if not spectra:
        raise StoreError(f"{file} holds no finished batch yet; continue it with --resume")
    target = out or file.with_suffix(".png")
    require_new(target, may_exist=True)
    target = target if target.suffix else target.with_suffix(".png")
    settings = spectra.provenance.config
    title = f"{console.source_in_words(settings)}, {settings['operator']}, {settings['dtype']}"
    if holds_history(file):
        found = load_history(file)
        picture = history(found, mean_ratios(found.spectra), title)
    else:
        picture = certification(spectra, title)
    save(picture, target)
    console.note(f"written: {target}")
