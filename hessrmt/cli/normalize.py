"""``hessrmt normalize``: losses and margins of a trained network with its scale taken out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hessrmt.cli import console
from hessrmt.cli.options import DataDir, with_settings
from hessrmt.config import NormalizeConfig

if TYPE_CHECKING:
    from hessrmt.runs.normalize import NormalizeResult


@with_settings
def normalize(settings: NormalizeConfig, data_dir: DataDir = None) -> dict[str, Any]:
    """Divide every layer of a trained network by its norm and measure what that reveals.

    f = Πρ f̃ with ρ the norm of a layer's weight: classification stays the same, and over networks
    of one architecture the training loss of f̃ tells its test loss. BatchNorm is folded first. All
    of it is computed in float64; a network for which it is not exact is refused.

    Returns:
        What --json prints.
    """
    from hessrmt.runs.normalize import run

    with console.Meter() as tick:
        result = run(settings, folder=data_dir, tick=tick)
    norm = _number(settings.norm)
    _show(result, norm)
    config = {**settings.model_dump(mode="json"), "norm": norm}
    return {**result.to_dict(), "norm": norm, "config": config}


def _show(result: NormalizeResult, norm: float | str) -> None:
    console.note(*result.notes)
    splits = {"train": result.train, "test": result.test}
    shown = {name: found for name, found in splits.items() if found is not None}
    rows = [
        ["loss", *(f"{found.loss:.6f}" for found in shown.values())],
        ["loss, normalised", *(f"{found.normalized_loss:.8f}" for found in shown.values())],
    ]
    margins = [found.margins for found in shown.values() if found.margins is not None]
    if len(margins) == len(shown):
        rows += [
            ["classification error", *(f"{one.error:.4f}" for one in margins)],
            ["smallest margin η", *(f"{one.minimum:.6g}" for one in margins)],
            ["η, normalised", *(f"{one.normalized_minimum:.6g}" for one in margins)],
            ["median margin", *(f"{one.quantiles([0.5])[0.5]:.6g}" for one in margins)],
            ["1/η", *(f"{one.bound:.6g}" for one in margins)],
            ["support examples", *(", ".join(map(str, one.support(3))) for one in margins)],
        ]
    factors = {**result.factors, "product": result.product}
    console.show(
        console.table(("", *shown), rows, "before and after normalisation"),
        console.table(
            ("layer", f"ρ (L{norm})"), ((k, f"{v:.6g}") for k, v in factors.items()), "norms"
        ),
    )
    if result.folded:
        console.note(f"folded into the layers next to them: {', '.join(result.folded)}")
    console.note(
        f"the normalised network times the product equals the network to {result.deviation:.1e}"
    )


def _number(norm: float) -> float | str:
    # JSON has no infinity
    return "inf" if norm == float("inf") else int(norm) if norm == int(norm) else norm
