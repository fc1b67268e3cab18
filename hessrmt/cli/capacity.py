"""``hessrmt capacity``: power laws, norms and ranks of the weight matrices of networks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hessrmt.cli import console
from hessrmt.cli.options import Json, PictureFormat, with_settings
from hessrmt.config import CapacityConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console
    from rich.table import Table

    from hessrmt.capacity.report import CapacityReport, Layer
    from hessrmt.runs.capacity import Series

_LEAST_NAME = 14
"""Width of the narrowest column of names."""


@with_settings
def capacity(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE",
            help="Checkpoints (.pt, .pth, .safetensors, .npz), folders of safetensors shards, or "
            "file.py:factory; several are a series.",
        ),
    ],
    settings: CapacityConfig,
    table: Annotated[
        Path | None, typer.Option("--csv", metavar="F", help="Write a row for each tensor.")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            metavar="DIR",
            help="Draw pictures into this folder: of each layer of one network, of a series.",
        ),
    ] = None,
    picture: PictureFormat = "png",
    json: Json = False,
) -> None:
    """Measure the capacity of trained networks from their weights alone.

    Power-law exponents of layer spectra, α̂, norms, ranks and Marchenko-Pastur bulks.

    Several networks are compared with their accuracies.
    """
    from hessrmt.plots.files import checked_ending, require_folder
    from hessrmt.runs.capacity import require_file, run, write_csv

    if plot is not None:
        checked_ending(picture)
        require_folder(plot)
    if table is not None:
        require_file(table)
    with console.progress() as display:
        series = run(settings, sources, console.Meter(display))
    for note in series.notes:
        console.note(note)
    to = console.results(json)
    if len(series.reports) == 1:
        _show(series.reports[0], to)
    else:
        _show_series(series, to)
    _show_correlations(series, to)
    if table is not None:
        write_csv(series, table)
        console.note(f"written: {table}")
    if plot is not None:
        _draw(series, plot, picture)
    if json:
        alone = len(series.reports) == 1 and settings.against is None
        console.emit_json(series.reports[0].to_dict() if alone else series.to_dict())


def _show(report: CapacityReport, to: Console) -> None:
    from hessrmt.runs.capacity import failed, named, skipped

    rows = [_cells(layer) for layer in report.analyzed]
    shown, width = _table(("shape", "α", "D", "λ max", "ln‖W‖", "stable\nrank"), rows, to)
    for layer, row in zip(report.analyzed, rows, strict=True):
        shown.add_row(console.escape(_short(layer.name.removesuffix(".weight"), width)), *row)
    to.print(f"Weights of {console.escape(report.source)}", soft_wrap=True)
    to.print(shown)
    for reason, names in failed(report).items():
        console.note(f"no power law: {named(names)}: {reason}")
    for reason, names in skipped(report).items():
        console.note(f"skipped: {named(names)}: {reason}")
    for note in report.notes:
        console.note(note)
    counts = report.counts
    lines = {
        "α̂ = Σ α ln λ_max": console.number(report.alpha_hat)
        + f" ({console.number(report.alpha_hat_log10)} with log10)",
        "⟨α log10 λ_max⟩, weightwatcher's": console.number(report.alpha_weighted),
        "⟨α⟩": console.number(report.mean_alpha),
        "⟨ln‖W‖_F⟩": console.number(report.mean_log_norm),
        "tensors": f"{counts['tensors']:,}: {counts['analyzed']:,} analysed in "
        f"{counts['spectra']:,} spectra, {counts['skipped']:,} skipped; "
        f"{counts['fits_failed']:,} fits failed",
    }
    for name, value in lines.items():
        to.print(f"{name}: {value}", soft_wrap=True)


def _cells(layer: Layer) -> tuple[str, ...]:
    alpha = console.with_error(layer.alpha, layer.sigma, ".2f").replace(" ", "")
    return (
        "×".join(map(str, layer.shape)),
        alpha,
        console.number(layer.ks_distance, ".3f"),
        console.number(layer.lambda_max, ".3g"),
        console.number(layer.log_frobenius, ".2f"),
        console.number(layer.stable_rank, ".3g"),
    )


def _show_series(series: Series, to: Console) -> None:
    accuracies = list(series.accuracies)[:2]
    rows = [
        (
            f"{report.counts['analyzed']:,}",
            console.number(report.alpha_hat, ".5g"),
            console.number(report.alpha_weighted, ".3f"),
            console.number(report.mean_alpha, ".3f"),
            console.number(report.mean_log_norm, ".3f"),
            f"{report.counts['fits_failed']:,}",
            *(console.number(series.accuracies[name][number], ".3f") for name in accuracies),
        )
        for number, report in enumerate(series.reports)
    ]
    headings = ("layers", "α̂", "⟨α log λ⟩", "⟨α⟩", "⟨ln‖W‖⟩", "fits\nfailed", *accuracies)
    shown, width = _table(headings, rows, to)
    for label, row in zip(series.labels, rows, strict=True):
        shown.add_row(console.escape(_short(label, width)), *row)
    to.print(shown)
    for report in series.reports:
        for note in report.notes:
            console.note(f"{report.source}: {note}")


def _show_correlations(series: Series, to: Console) -> None:
    if not series.correlations:
        return
    forms = {
        "slope": ".3g",
        "r_squared": ".3f",
        "kendall": "+.2f",
        "kendall_p": ".2g",
        "spearman": "+.2f",
        "spearman_p": ".2g",
    }
    rows = [
        (str(item.n), *(console.number(getattr(item, name), form) for name, form in forms.items()))
        for item in series.correlations
    ]
    shown, _ = _table(("n", "slope", "R²", "Kendall τ", "p", "Spearman ρ", "p"), rows, to)
    for item, row in zip(series.correlations, rows, strict=True):
        shown.add_row(console.escape(f"{item.accuracy}, {item.metric}"), *row)
    to.print(shown)
    for item in series.correlations:
        if item.failed is not None:
            console.note(f"{item.accuracy}, {item.metric}: {item.failed}")


def _draw(series: Series, folder: Path, ending: str) -> None:
    from hessrmt.plots.capacity import draw_layers, draw_series

    folder.mkdir(parents=True, exist_ok=True)
    if len(series.reports) == 1:
        drawn = draw_layers(series.reports[0], folder, ending)
    else:
        reports = dict(zip(series.labels, series.reports, strict=True))
        drawn = draw_series(reports, series.accuracies, series.correlations, folder, ending)
    missing = [item for item in drawn if item.path is None]
    for item in missing:
        console.note(f"not drawn: {item.name}: {item.reason}")
    console.note(f"written: {len(drawn) - len(missing)} pictures in {folder}")


def _table(
    headings: Sequence[str], rows: Sequence[Sequence[str]], to: Console
) -> tuple[Table, int]:
    """A table of names and what is said of them; how wide names can be."""
    columns = [headings, *rows]
    others = sum(
        2 + max(len(line) for row in columns for line in row[i].splitlines())
        for i in range(len(headings))
    )
    return console.table("", *headings), max(_LEAST_NAME, to.width - others - 4)


def _short(name: str, width: int) -> str:
    """The end of a name, which says more than its beginning."""
    return name if len(name) <= width else "…" + name[len(name) - width + 1 :]
