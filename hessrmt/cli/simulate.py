"""``hessrmt simulate``: spectra of a Gaussian-process model of the loss surface."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from hessrmt.cli import console
from hessrmt.cli.options import (
    Overwrite,
    Report,
    Resume,
    Scheduler,
    SpectrumFile,
    Workers,
    pool_of,
    with_settings,
)
from hessrmt.config import SimulateConfig

if TYPE_CHECKING:
    from hessrmt.records import Spectra
    from hessrmt.runs.simulate import Summary


@with_settings
def simulate(
    settings: SimulateConfig,
    out: SpectrumFile = Path("simulated.h5"),
    resume: Resume = False,
    overwrite: Overwrite = False,
    workers: Workers = None,
    scheduler: Scheduler = None,
) -> Report:
    """Sample Hessians of a Gaussian-process loss and compute all their eigenvalues.

    The file is like one of hessrmt spectrum: levels, plot and info take it. A run that was killed
    continues with --resume.

    Returns:
        What --json prints; --csv writes a row for each sample.
    """
    from hessrmt.runs.simulate import run, summary

    with pool_of(workers, scheduler, settings.device) as pool, console.Meter() as tick:
        spectra = run(settings, out, resume=resume, overwrite=overwrite, tick=tick, pool=pool)
    found = summary(settings, spectra)
    _show(found, spectra)
    console.note(f"written: {out}")
    eigenvalues, first = spectra.eigenvalues, spectra[0]
    plain = {
        "file": str(out),
        "dimension": first.dimension,
        "samples": len(spectra),
        "samples_planned": spectra.planned,
        "solver": first.solver,
        "lambda_min": eigenvalues.min(),
        "lambda_max": eigenvalues.max(),
        **{name: value for name, value in vars(spectra.provenance).items() if name != "notes"},
        **found.to_dict(),
    }
    return Report(plain, spectra.rows)


def _show(found: Summary, spectra: Spectra) -> None:
    eigenvalues, source = spectra.eigenvalues, console.source_in_words(spectra.provenance.config)
    rows = {
        "a = Var H₁₂": f"{found.a:.6g}",
        "c = Cov(H₁₁, H₂₂)": f"{found.c:.6g}",
        "mean of H₁₁": f"{found.mean:.6g}",
        "radius of the bulk": f"{found.radius:.6g}",
        "eigenvalues": f"{eigenvalues.min():.4g} to {eigenvalues.max():.4g}",
        "⟨r̃⟩": _ratio(found.mean_ratio, found.mean_ratio_error),
    }
    if found.outside_expected:
        seen, expected = found.outside_seen, found.outside_expected
        rows["outside the bulk"] = f"{seen:.2f} in a sample, {expected:.2f} expected"
        rows["⟨r̃⟩ of the bulk"] = _ratio(found.bulk_mean_ratio, found.bulk_mean_ratio_error)
    console.show(f"{source}: {len(spectra):,} of {spectra.planned:,} samples")
    console.facts(rows)
    for item in found.outliers:
        spread = f" ± {item.spread:.2g}" if math.isfinite(item.spread) else ""
        console.show(
            f"outlier {item.value:g}: at {item.seen:.4g}{spread} from the middle of the bulk, "
            f"{item.position:.4g} for large matrices"
        )


def _ratio(mean: float, error: float) -> str:
    from hessrmt.theory.ratios import MEAN_RATIO_GOE as LAW

    if not math.isfinite(mean):
        return "not computable: too few levels"
    return f"{console.with_error(mean, error or math.nan)}; GOE {LAW}"
