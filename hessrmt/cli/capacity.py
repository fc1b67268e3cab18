"""``hessrmt capacity``: power laws, norms and ranks of the weight matrices of networks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

import typer

from hessrmt.cli import console
from hessrmt.cli.options import (
    Out,
    Overwrite,
    PictureFormat,
    PlotFolder,
    Report,
    check_pictures,
    require_result,
    with_settings,
)
from hessrmt.config import CapacityConfig
from hessrmt.tables import printable, probability

if TYPE_CHECKING:
    from hessrmt.capacity.correlation import Correlation
    from hessrmt.capacity.report import CapacityReport, SideBySide
    from hessrmt.runs.capacity import Series

_LAYER = {
    "ks_distance": ("D", ".3f"),
    "lambda_max": ("λ max", ".3g"),
    "log_frobenius": ("ln‖W‖", ".2f"),
    "stable_rank": ("stable\nrank", ".3g"),
}
_ASKED_FOR = {
    "p_value": ("p", ".2g"),
    "traps": ("traps", "d"),
    "distance_frobenius": ("‖ΔW‖/\n‖W₀‖", ".3g"),
}
"""Columns where they were computed."""

_NETWORK = {
    "alpha_hat": ("α̂", ".5g"),
    "alpha_weighted": ("⟨α log λ⟩", ".3f"),
    "mean_alpha": ("⟨α⟩", ".3f"),
    "mean_log_norm": ("⟨ln‖W‖⟩", ".3f"),
}
_BESIDE = {
    "alpha": ("α", ".2f"),
    "lambda_max": ("λ max", ".3g"),
    "log_frobenius": ("ln‖W‖", ".2f"),
    "log_alpha_norm": ("ln Σ λ^α", ".2f"),
    "stable_rank": ("stable\nrank", ".3g"),
}
_LINE = {"n": ("n", "d"), "r_squared": ("R²", ".3f")}
_COEFFICIENTS = {"pearson": "Pearson r", "spearman": "Spearman ρ", "kendall": "Kendall τ"}
"""Attributes of layers, networks and correlations that are columns: heading and format."""

_WIDTH, _NAME, _CELL = 80, 24, 9
"""Characters of a table, of them for names of layers and for a number."""


@with_settings
def capacity(
    settings: CapacityConfig,
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SOURCE",
            help="Checkpoints (.pt, .pth, .bin, .ckpt, .pth.tar, .safetensors, .npz), folders of "
            "shards or of networks, LoRA adapters, or file.py:factory; several are a series.",
        ),
    ] = None,
    out: Out = None,
    plot: PlotFolder = None,
    picture: PictureFormat = "png",
    overwrite: Overwrite = False,
) -> Report:
    """Measure the capacity of trained networks from their weights alone.

    Power-law exponents of layer spectra, α̂, norms, ranks and Marchenko-Pastur bulks.

    Several networks are compared with their accuracies.

    Returns:
        What --json and --csv write.
    """
    from hessrmt.capacity.report import side_by_side
    from hessrmt.plots.capacity import draw_layers, draw_series
    from hessrmt.runs.capacity import run

    check_pictures(plot, picture)
    if out is not None:
        require_result(out, may_exist=overwrite)
    with console.Meter() as tick:
        series = run(settings, sources or (), tick)
    console.note(*series.notes)
    reports = dict(zip(series.labels, series.networks, strict=True))
    alone = series.networks[0] if len(reports) == 1 else None
    if alone:
        _show(alone)
    else:
        _show_series(reports, series)
    if series.correlations:
        _show_correlations(series)
    beside = side_by_side(reports) if settings.side_by_side else None
    if beside:
        _show_side_by_side(beside)
    if plot is not None:
        about = (reports, series.accuracies, series.correlations, beside)
        drawn = draw_layers(alone, plot, picture) if alone else draw_series(*about, plot, picture)
        console.drawn(drawn, plot)
    table = beside or series
    single = alone if settings.against is None else None
    if out is not None:
        (single or series).save(out, overwrite=overwrite)
        console.note(f"written: {out}")
    if single:
        return Report(single.to_dict(), table.rows)
    return Report(
        series.to_dict() | ({"side_by_side": beside.to_dict()} if beside else {}), table.rows
    )


def _show(report: CapacityReport) -> None:
    from hessrmt.runs.capacity import named, skipped

    known = {
        name
        for name in _ASKED_FOR
        for layer in report.analyzed
        if (value := getattr(layer, name)) is not None and not math.isnan(value)
    }
    columns = {name: look for name, look in _ASKED_FOR.items() if name in known} | _LAYER
    rows = []
    for layer in report.analyzed:
        alpha = console.with_error(layer.alpha, layer.sigma, ".2f").replace(" ", "")
        name, shape = printable(layer.name.removesuffix(".weight")), "×".join(map(str, layer.shape))
        found = dict(zip(columns, console.cells(layer, columns), strict=True))
        if "p_value" in found:
            found["p_value"] = probability(report.p(layer))
        rows.append((name, shape, alpha, *found.values()))
    headings = ("", "shape", "α", *console.headings(columns))
    console.show(f"Weights of {report.source}", console.table(headings, rows))
    for what, attribute in {"no power law": "fit_failed", "skipped": "skipped"}.items():
        found = skipped(report, attribute)
        console.note(*(f"{what}: {named(names)}: {why}" for why, names in found.items()))
    console.note(*report.notes)
    counts = report.counts
    number = console.number
    console.facts(
        {
            "α̂ = Σ α ln λ_max": f"{number(report.alpha_hat)} "
            f"({number(report.alpha_hat_log10)} with log10)",
            "⟨α log10 λ_max⟩, weightwatcher's": number(report.alpha_weighted),
            "⟨α⟩": number(report.mean_alpha),
            "⟨ln‖W‖_F⟩": number(report.mean_log_norm),
            "tensors": f"{counts['tensors']:,}: {counts['analyzed']:,} analysed in "
            f"{counts['spectra']:,} spectra, {counts['skipped']:,} skipped; "
            f"{counts['fits_failed']:,} fits failed",
        }
        | {
            f"{law} fits better than a power law (p < 0.05)": named(better) or "in no layer"
            for law, better in _better(report).items()
        }
    )


def _better(report: CapacityReport) -> dict[str, list[str]]:
    """Alternatives to the layers with a tail that prefers them."""
    names: dict[str, list[str]] = {}
    for layer in report.analyzed:
        for matrix in layer.matrices:
            for law, found in matrix.comparisons.items():
                of = names.setdefault(law, [])
                if found.log_likelihood_ratio < 0 and found.p_value < 0.05 and layer.name not in of:
                    of.append(layer.name)
    return names


def _show_series(reports: dict[str, CapacityReport], series: Series) -> None:
    accuracies = list(series.accuracies)[:2]
    rows = []
    for place, (label, report) in enumerate(reports.items()):
        analysed, failed = (f"{report.counts[key]:,}" for key in ("analyzed", "fits_failed"))
        beside = (console.number(series.accuracies[name][place], ".3f") for name in accuracies)
        rows.append((label, analysed, *console.cells(report, _NETWORK), failed, *beside))
    headings = ("", "layers", *console.headings(_NETWORK), "fits\nfailed", *accuracies)
    console.show(console.table(headings, rows))
    for report in series.networks:
        console.note(*(f"{report.source}: {note}" for note in report.notes))


def _show_correlations(series: Series) -> None:
    found = [item for item in series.correlations if item.failed is None]
    if found:
        rows = (
            (
                f"{item.accuracy},\n{item.metric}",
                *console.cells(item, _LINE),
                *(_coefficient(item, one) for one in _COEFFICIENTS),
            )
            for item in found
        )
        headings = ("", *console.headings(_LINE), *_COEFFICIENTS.values())
        console.show(console.table(headings, rows))
        console.note(
            f"with {found[0].level:.0%} intervals over networks",
            "p: probability of a coefficient as far from 0 if there were no connection",
        )
    failed: dict[str, list[str]] = {}
    for item in series.correlations:
        if item.failed is not None:
            failed.setdefault(f"{item.accuracy}: {item.failed}", []).append(item.metric)
    for why, metrics in failed.items():
        console.show(f"no correlation with {why} ({', '.join(metrics)})")


def _show_side_by_side(found: SideBySide) -> None:
    """Tables of as many numbers as 80 columns hold beside a name; letters stand for networks."""
    letters = [_letter(place) for place in range(len(found.networks))]
    console.facts(dict(zip(letters, found.networks, strict=True)))
    together = max(1, (_WIDTH - _NAME) // (_CELL * len(letters)))
    metrics = list(_BESIDE)
    for first in range(0, len(metrics), together):
        chosen = {name: _BESIDE[name] for name in metrics[first : first + together]}
        headings = [f"{head} {x}" for head, _ in chosen.values() for x in letters]
        rows = []
        for place, layer in enumerate(found.layers):
            numbers = (
                console.number(float(value), form)
                for name, (_, form) in chosen.items()
                for value in found.values[name][:, place]
            )
            rows.append((printable(layer.removesuffix(".weight")), *numbers))
        console.show(console.table(("", *headings), rows))


def _letter(place: int) -> str:
    """A, B, ..., Z, AA, AB, ..."""
    before = _letter(place // 26 - 1) if place >= 26 else ""
    return before + chr(ord("A") + place % 26)


def _coefficient(item: Correlation, name: str) -> str:
    """A coefficient, its interval and its p-value, in a line each."""
    number = console.number
    ends = getattr(item, f"{name}_interval")
    known = f"{ends[0]:.2f} to {ends[1]:.2f}" if ends[0] == ends[0] else "-"
    p_value = f"p {probability(item.p(name))}"
    return "\n".join((number(getattr(item, name), "+.2f"), known, p_value))
