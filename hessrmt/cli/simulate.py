"""``hessrmt simulate``: spectra of a Gaussian-process model of the loss surface."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hessrmt.cli import console
from hessrmt.cli.options import (
    Json,
    Overwrite,
    Resume,
    Scheduler,
    Workers,
    pool_of,
    with_settings,
)
from hessrmt.config import SimulateConfig

if TYPE_CHECKING:
    from rich.console import Console

    from hessrmt.records import Spectra
    from hessrmt.runs.simulate import Summary


@with_settings
def simulate(
    settings: SimulateConfig,
    out: Annotated[Path, typer.Option("--out", "-o", help="Spectrum file to write (HDF5).")] = Path(
        "simulated.h5"
    ),
    resume: Resume = False,
    overwrite: Overwrite = False,
    workers: Workers = None,
    scheduler: Scheduler = None,
    json: Json = False,
) -> None:
    """Sample Hessians of a Gaussian-process loss and compute all their eigenvalues.

    The file is like one of hessrmt spectrum: levels, plot and info take it. A run that was killed
    continues with --resume.
    """
    from hessrmt.runs.simulate import run, summary

    with pool_of(workers, scheduler, settings.device) as pool, console.progress() as display:
        spectra = run(
            settings,
            out,
            resume=resume,
            overwrite=overwrite,
            tick=console.Meter(display),
            pool=pool,
        )
    found = summary(settings, spectra)
    _show(found, spectra, console.results(json))
    console.note(f"written: {out}")
    if json:
        console.emit_json(_as_json(found, spectra, out))


def _show(found: Summary, spectra: Spectra, to: Console) -> None:
    from rich.table import Table

    from hessrmt.theory.ratios import MEAN_RATIO_GOE

    to.print(
        f"{console.escape(console.source_in_words(spectra.provenance.config))}: "
        f"{len(spectra):,} of {spectra.planned:,} samples",
        soft_wrap=True,
    )
    levels = spectra.eigenvalues
    rows = {
        "a = Var H₁₂": f"{found.a:.6g}",
        "c = Cov(H₁₁, H₂₂)": f"{found.c:.6g}",
        "mean of H₁₁": f"{found.mean:.6g}",
        "radius of the bulk": f"{found.radius:.6g}",
        "levels": f"{levels.min():.4g} to {levels.max():.4g}",
    }
    if found.outside_expected:
        seen, expected = found.outside_seen, found.outside_expected
        rows["levels outside"] = f"{seen:.2f} in a sample, {expected:.2f} expected"
    rows["⟨r̃⟩"] = _ratio(found.mean_ratio, found.mean_ratio_error, MEAN_RATIO_GOE)
    if found.outside_expected:
        rows["⟨r̃⟩ of the bulk"] = _ratio(
            found.bulk_mean_ratio, found.bulk_mean_ratio_error, MEAN_RATIO_GOE
        )
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in rows.items():
        table.add_row(name, value)
    to.print(table)
    for item in found.outliers:
        spread = f" ± {item.spread:.2g}" if math.isfinite(item.spread) else ""
        to.print(
            f"outlier {item.value:g}: at {item.seen:.4g}{spread} from the middle of the bulk, "
            f"{item.position:.4g} for large matrices",
            soft_wrap=True,
        )


def _ratio(mean: float, error: float, law: float) -> str:
    if not math.isfinite(mean):
        return "not computable: too few levels"
    if not math.isfinite(error) or error == 0:
        return f"{mean:.4f}; GOE {law}"
    return f"{mean:.4f} ± {error:.4f}, {(mean - law) / error:+.1f} σ from GOE {law}"


def _as_json(found: Summary, spectra: Spectra, out: Path) -> dict[str, Any]:
    levels, source = spectra.eigenvalues, spectra.provenance
    return {
        "file": str(out),
        "dimension": spectra[0].dimension,
        "samples": len(spectra),
        "samples_planned": spectra.planned,
        "config": dict(source.config),
        "solver": spectra[0].solver,
        "device": source.device,
        "versions": dict(source.versions),
        "created": source.created,
        "lambda_min": levels.min(),
        "lambda_max": levels.max(),
        **found.to_dict(),
    }
