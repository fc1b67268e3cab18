"""``hessrmt normalize``: losses and margins of a trained network with its scale taken out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hessrmt.cli import console
from hessrmt.cli.options import DataDir, Json, with_settings
from hessrmt.config import NormalizeConfig

if TYPE_CHECKING:
    from rich.console import Console

    from hessrmt.runs.normalize import NormalizeResult


@with_settings
def normalize(settings: NormalizeConfig, data_dir: DataDir = None, json: Json = False) -> None:
    """Divide every layer of a trained network by its norm and measure what that reveals.

    f = Πρ f̃ with ρ the norm of a layer's weight: classification stays the same, and over networks
    of one architecture the training loss of f̃ tells its test loss. BatchNorm is folded first. All
    of it is computed in float64; a network for which it is not exact is refused.
    """
    from hessrmt.runs.normalize import run

    with console.progress() as display:
        result = run(settings, folder=data_dir, tick=console.Meter(display))
    _show(result, settings, console.results(json))
    if json:
        console.emit_json(
            {**result.to_dict(), "norm": _number(settings.norm), "config": _plain(settings)}
        )


def _show(result: NormalizeResult, settings: NormalizeConfig, to: Console) -> None:
    from rich.table import Table

    for line in result.notes:
        console.note(line)
    splits = {"train": result.train, "test": result.test}
    shown = {name: found for name, found in splits.items() if found is not None}
    table = Table("", *shown, title="before and after normalisation")
    rows = {
        "loss": [f"{found.loss:.6f}" for found in shown.values()],
        "loss, normalised": [f"{found.normalized_loss:.8f}" for found in shown.values()],
    }
    summaries = [found.margins for found in shown.values() if found.margins is not None]
    if len(summaries) == len(shown):
        rows |= {
            "classification error": [f"{one.error:.4f}" for one in summaries],
            "smallest margin η": [f"{one.minimum:.6g}" for one in summaries],
            "η, normalised": [f"{one.normalized_minimum:.6g}" for one in summaries],
            "median margin": [f"{one.quantiles([0.5])[0.5]:.6g}" for one in summaries],
            "1/η": [f"{one.bound:.6g}" for one in summaries],
            "support examples": [", ".join(map(str, one.support(3).tolist())) for one in summaries],
        }
    for name, values in rows.items():
        table.add_row(name, *values)
    to.print(table)
    norms = Table("layer", f"ρ (L{_number(settings.norm)})", title="norms")
    for name, factor in result.factors.items():
        norms.add_row(console.escape(name), f"{factor:.6g}")
    norms.add_section()
    norms.add_row("product", f"{result.product:.6g}")
    to.print(norms)
    if result.folded:
        console.note(f"folded into the layers next to them: {', '.join(result.folded)}")
    console.note(
        f"the normalised network times the product equals the network to {result.deviation:.1e}"
    )


def _number(norm: float) -> float | str:
    # JSON has no infinity
    return "inf" if norm == float("inf") else int(norm) if norm == int(norm) else norm


def _plain(settings: NormalizeConfig) -> dict[str, Any]:
    return {**settings.model_dump(mode="json"), "norm": _number(settings.norm)}
