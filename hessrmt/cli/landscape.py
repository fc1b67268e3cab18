"""``hessrmt landscape``: the loss along leading eigenvectors of its curvature."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hessrmt.cli import console
from hessrmt.cli.options import (
    DataDir,
    Overwrite,
    PictureFile,
    Report,
    check_picture,
    with_settings,
)
from hessrmt.config import LandscapeConfig


@with_settings
def landscape(
    settings: LandscapeConfig,
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write (HDF5).")] = Path(
        "landscape.h5"
    ),
    plot: PictureFile = None,
    overwrite: Overwrite = False,
    data_dir: DataDir = None,
) -> Report:
    """Evaluate the loss along one or two eigenvectors of the largest eigenvalues.

    Beside it stands the parabola that loss, gradient and eigenvalues promise.

    Returns:
        What --json prints; --csv writes every point.
    """
    from hessrmt.files import require_new
    from hessrmt.plots.files import save
    from hessrmt.runs.landscape import run

    check_picture(plot, may_exist=overwrite)
    require_new(out, may_exist=overwrite, resumable=False)
    with console.Meter(lines=True) as tick:
        found, notes = run(settings, data_dir, tick)
    console.note(*notes)
    found.save(out, overwrite=overwrite)
    rows = []
    for i, (value, bound, slope, reach) in enumerate(
        zip(found.eigenvalues, found.bounds, found.slopes, found.distances[:, -1], strict=True), 1
    ):
        rows.append((f"v{i}", f"{value:.6g}", f"{bound:.1g}", f"{slope:.3g}", f"{reach:.3g}"))
    headings = ("", "eigenvalue", "±", "slope", "distance")
    console.show(f"P = {found.dimension:,}, loss {found.loss:.6g}", console.table(headings, rows))
    console.note(f"written: {out}")
    if plot is not None:
        what = console.source_in_words(found.provenance.config)
        save(found.plot(title=f"{what}, {found.operator}"), plot, replace=overwrite)
        console.note(f"written: {plot}")
    return Report({"file": str(out), **found.to_dict()}, found.rows)
