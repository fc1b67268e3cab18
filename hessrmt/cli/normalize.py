"""``hessrmt normalize``: losses and margins of a trained network with its scale taken out."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hessrmt.cli.options import (
    ConfigOption,
    DataDirOption,
    DataOption,
    DeviceOption,
    JsonOption,
    LossOption,
    ModelOption,
    SeedOption,
)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from hessrmt.config.normalize import NormalizeConfig
    from hessrmt.workflows.normalize import NormalizeResult


def normalize(
    model: ModelOption = None,
    data: DataOption = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            "--checkpoint", help="Trained parameters (.pt, .pth, .safetensors); else random ones."
        ),
    ] = None,
    norm: Annotated[
        float | None,
        typer.Option(
            "--norm", help="p of the L_p norms, from 1 on; inf for the largest. \\[default: 2]"
        ),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            "--by",
            help="layers, or output: the norm of the output on the first training samples, for "
            "networks that are not homogeneous. \\[default: layers]",
        ),
    ] = None,
    reference: Annotated[
        int | None,
        typer.Option("--reference", help="How many samples --by output takes. \\[default: 1]"),
    ] = None,
    loss: LossOption = None,
    batch: Annotated[
        int | None, typer.Option("--batch", help="Samples computed at a time. \\[default: 1024]")
    ] = None,
    device: DeviceOption = None,
    seed: SeedOption = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    json: JsonOption = False,
) -> None:
    """Divide every layer of a trained network by its norm and measure what that reveals.

    f = Πρ f̃ with ρ the norm of a layer's weight: classification stays the same, and over networks
    of one architecture the training loss of f̃ tells its test loss. BatchNorm is folded first. All
    of it is computed in float64; a network for which it is not exact is refused.
    """
    from hessrmt.cli import console
    from hessrmt.config import load_settings
    from hessrmt.config.normalize import NormalizeConfig

    settings = load_settings(
        NormalizeConfig,
        config,
        model=model,
        data=data,
        checkpoint=checkpoint,
        norm=norm,
        by=by,
        reference=reference,
        loss=loss,
        batch=batch,
        device=device,
        seed=seed,
    )

    from hessrmt.workflows.normalize import run

    with console.progress() as bar:
        result = run(settings, folder=data_dir, observer=_Bar(bar))
    _show(result, settings, console.results(json))
    if json:
        console.emit_json(
            {**result.to_dict(), "norm": _number(settings.norm), "config": _plain(settings)}
        )


class _Bar:
    """One bar of samples for each split."""

    def __init__(self, bar: "Progress") -> None:
        self.bar = bar
        self.tasks: dict[str, TaskID] = {}

    def __call__(self, split: str, done: int, samples: int) -> None:
        if split not in self.tasks:
            self.tasks[split] = self.bar.add_task(f"measuring {split}", total=samples, rate="")
        self.bar.update(self.tasks[split], completed=done)


def _show(result: "NormalizeResult", settings: "NormalizeConfig", to: "Console") -> None:
    from rich.table import Table

    from hessrmt.cli.console import escape, note

    for line in result.notes:
        note(line)
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
        norms.add_row(escape(name), f"{factor:.6g}")
    norms.add_section()
    norms.add_row("product", f"{result.product:.6g}")
    to.print(norms)
    if result.folded:
        note(f"folded into the layers next to them: {', '.join(result.folded)}")
    note(f"the normalised network times the product equals the network to {result.deviation:.1e}")


def _number(norm: float) -> float | str:
    # JSON has no infinity
    return "inf" if norm == float("inf") else int(norm) if norm == int(norm) else norm


def _plain(settings: "NormalizeConfig") -> dict[str, Any]:
    return {**settings.model_dump(mode="json"), "norm": _number(settings.norm)}
