"""``hessrmt simulate``: spectra of a Gaussian-process model of the loss surface."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hessrmt.cli import console
from hessrmt.cli.options import (
    ConfigOption,
    DeviceOption,
    JsonOption,
    SchedulerOption,
    SeedOption,
    WorkersOption,
    pool_of,
)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from hessrmt.records import Spectra
    from hessrmt.workflows.simulate import Summary

_KERNEL, _MODEL = "Kernel", "Model"
"""Headings in the help."""


def _number(name: str, text: str) -> Any:
    return typer.Option(name, help=text, rich_help_panel=_KERNEL)


def simulate(
    kernel: Annotated[
        str | None,
        typer.Option(
            "--kernel",
            help="rbf, rational-quadratic, matern, p-spin, mixed-spherical, or paper: the "
            "published covariance. \\[default: rbf]",
            rich_help_panel=_KERNEL,
        ),
    ] = None,
    k1: Annotated[float | None, _number("--k1", "k'(0), of paper. \\[default: 1]")] = None,
    k2: Annotated[float | None, _number("--k2", "k''(0), of paper. \\[default: 1]")] = None,
    k0: Annotated[float | None, _number("--k0", "k(0), of paper. \\[default: 1]")] = None,
    length: Annotated[
        float | None,
        _number("--length", "Of rbf, rational-quadratic and matern. \\[default: 1]"),
    ] = None,
    variance: Annotated[
        float | None,
        _number("--variance", "k(0) of rbf, rational-quadratic and matern. \\[default: 1]"),
    ] = None,
    alpha: Annotated[
        float | None, _number("--alpha", "Shape of rational-quadratic. \\[default: 1]")
    ] = None,
    nu: Annotated[
        float | None, _number("--nu", "Smoothness of matern, above 2. \\[default: 2.5]")
    ] = None,
    p: Annotated[int | None, _number("--p", "Spins of p-spin. \\[default: 3]")] = None,
    coefficients: Annotated[
        str | None,
        _number("--coefficients", "Of t², t³, ... in ν(t) of mixed-spherical, e.g. 1,0.5."),
    ] = None,
    given_loss: Annotated[
        float | None,
        typer.Option(
            "--given-loss",
            help="The random part of the loss at the point, if it is known.",
            rich_help_panel=_KERNEL,
        ),
    ] = None,
    dimension: Annotated[
        int | None,
        typer.Option(
            "--dimension",
            help="Directions in which the loss is random. \\[default: 300]",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            "--samples", help="Hessians to sample. \\[default: 100]", rich_help_panel=_MODEL
        ),
    ] = None,
    outliers: Annotated[
        int | None,
        typer.Option(
            "--outliers",
            help="How many outliers s(1 + g²), g standard normal, are drawn for each sample. "
            "\\[default: 0]",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    outlier_scale: Annotated[
        float | None,
        typer.Option("--outlier-scale", help="s. \\[default: 10]", rich_help_panel=_MODEL),
    ] = None,
    outlier_values: Annotated[
        str | None,
        typer.Option(
            "--outlier-values",
            help="Outliers instead, the same in every sample, e.g. 30,50.",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    degenerate: Annotated[
        int | None,
        typer.Option(
            "--degenerate",
            help="Further directions in which the loss is constant: exact zeros. \\[default: 0]",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            help="tridiagonal (a band with outliers; no n × n matrix), dense, or auto. "
            "\\[default: auto]",
        ),
    ] = None,
    seed: SeedOption = None,
    device: DeviceOption = None,
    out: Annotated[Path, typer.Option("--out", help="Spectrum file to write (HDF5).")] = Path(
        "simulated.h5"
    ),
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the file if it is there.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the file if it is there.")
    ] = False,
    workers: WorkersOption = None,
    scheduler: SchedulerOption = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Sample Hessians of a Gaussian-process loss and compute all their eigenvalues.

    The file is like one of hessrmt spectrum: levels, plot and info take it. A run that was killed
    continues with --resume.
    """
    from hessrmt.config import SimulateConfig, load_settings
    from hessrmt.workflows.simulate import run, summary

    settings = load_settings(
        SimulateConfig,
        config,
        kernel=kernel,
        k1=k1,
        k2=k2,
        k0=k0,
        variance=variance,
        length=length,
        alpha=alpha,
        nu=nu,
        p=p,
        coefficients=coefficients,
        dimension=dimension,
        samples=samples,
        outliers=outliers,
        outlier_scale=outlier_scale,
        outlier_values=outlier_values,
        degenerate=degenerate,
        given_loss=given_loss,
        method=method,
        seed=seed,
        device=device,
    )
    with pool_of(workers, scheduler, settings.device) as pool, console.progress() as display:
        spectra = run(
            settings,
            out,
            resume=resume,
            overwrite=overwrite,
            observer=_Meter(display),
            pool=pool,
        )
    found = summary(settings, spectra)
    _show(found, spectra, console.results(json))
    console.note(f"written: {out}")
    if json:
        console.emit_json(_as_json(found, spectra, out))


class _Meter:
    """One bar: the samples."""

    def __init__(self, display: Progress) -> None:
        self._display = display
        self._task = display.add_task("samples", total=None, rate="")

    def __call__(self, done: int, total: int) -> None:
        self._display.update(self._task, completed=done, total=total)


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
    levels = spectra.eigenvalues
    return {
        "file": str(out),
        "dimension": spectra[0].dimension,
        "samples": len(spectra),
        "samples_planned": spectra.planned,
        "config": dict(spectra.provenance.config),
        "solver": spectra[0].solver,
        "device": spectra.provenance.device,
        "versions": dict(spectra.provenance.versions),
        "created": spectra.provenance.created,
        "lambda_min": levels.min(),
        "lambda_max": levels.max(),
        **found.to_dict(),
    }
