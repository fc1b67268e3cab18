"""``hessrmt train``: train a model by the published protocol and write its checkpoint."""

import re
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
    from rich.progress import Progress

    from hessrmt.workflows.train import TrainResult


def train(
    model: ModelOption = None,
    data: DataOption = None,
    loss: LossOption = None,
    epochs: Annotated[
        int | None, typer.Option("--epochs", help="Passes over the training data. \\[default: 300]")
    ] = None,
    batch: Annotated[
        int | None, typer.Option("--batch", help="Samples in a minibatch. \\[default: 128]")
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option("--lr", help="Learning rate up to --decay-start. \\[default: 0.003]"),
    ] = None,
    final_lr: Annotated[
        float | None,
        typer.Option("--final-lr", help="Learning rate from --decay-end on. \\[default: 0.00003]"),
    ] = None,
    momentum: Annotated[
        float | None, typer.Option("--momentum", help="Momentum of SGD. \\[default: 0.9]")
    ] = None,
    weight_decay: Annotated[
        float | None, typer.Option("--weight-decay", help="Weight decay. \\[default: 0.0005]")
    ] = None,
    decay_start: Annotated[
        int | None,
        typer.Option(
            "--decay-start", help="Epoch at which the rate starts to fall. \\[default: 150]"
        ),
    ] = None,
    decay_end: Annotated[
        int | None,
        typer.Option("--decay-end", help="Epoch at which the rate stops falling. \\[default: 270]"),
    ] = None,
    device: DeviceOption = None,
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="float32 or float64. \\[default: float32]")
    ] = None,
    seed: SeedOption = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Checkpoint to write. \\[default: the model's name with .pt]"),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Continue the checkpoint in --out; start afresh if there is none."
        ),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the checkpoint in --out.")
    ] = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    json: JsonOption = False,
) -> None:
    """Train a model and write its checkpoint, complete after every epoch.

    The defaults are the published protocol: 300 epochs of SGD, batch 128, learning rate 0.003
    falling to 0.00003 between epochs 150 and 270, momentum 0.9, weight decay 0.0005.
    """
    from hessrmt.cli import console
    from hessrmt.config import TrainConfig, load_settings

    settings = load_settings(
        TrainConfig,
        config,
        model=model,
        data=data,
        loss=loss,
        epochs=epochs,
        batch=batch,
        lr=lr,
        final_lr=final_lr,
        momentum=momentum,
        weight_decay=weight_decay,
        decay_start=decay_start,
        decay_end=decay_end,
        device=device,
        dtype=dtype,
        seed=seed,
    )
    path = out if out is not None else Path(_name(settings.model) + ".pt")

    from hessrmt.workflows.train import run

    with console.progress() as bar:
        result = run(
            settings,
            path,
            resume=resume,
            overwrite=overwrite,
            folder=data_dir,
            observer=_Bar(bar, settings.model),
        )
    _show(result)
    if json:
        console.emit_json(_as_dict(result, settings.model_dump(mode="json")))


class _Bar:
    """Shows a run as one bar of epochs."""

    def __init__(self, bar: "Progress", model: str) -> None:
        self.bar, self.model = bar, model

    def begin(self, origin: str, device: str, done: int, epochs: int) -> None:
        from hessrmt.cli.console import note

        note(f"data: {origin}")
        note(f"device: {device}")
        if done:
            note(f"resuming after epoch {done} of {epochs}")
        self.task = self.bar.add_task(
            f"training {_name(self.model)}", total=epochs, completed=done, rate=""
        )

    def epoch(self, entry: dict[str, float]) -> None:
        shown = f"loss {entry['train_loss']:.4f}  lr {entry['lr']:.2g}"
        self.bar.update(self.task, completed=entry["epoch"], rate=shown)


def _name(model: str) -> str:
    # "mlp3" is itself, "path/file.py:factory" becomes "factory"
    return re.sub(r"\W", "_", model.rpartition(":")[2]) or "model"


def _show(result: "TrainResult") -> None:
    from rich.table import Table

    from hessrmt.cli.console import err, note

    table = Table("", "loss", "accuracy", title=f"after {result.epochs} epochs")
    rows = {
        "train": (result.train_loss, result.train_accuracy),
        "test": (result.test_loss, result.test_accuracy),
    }
    for split, (loss, accuracy) in rows.items():
        if loss is not None:
            shown = "" if accuracy is None else f"{accuracy:.4f}"
            table.add_row(split, f"{loss:.6f}", shown)
    err.print(table)
    for line in result.notes:
        if line != result.data:  # shown at the start
            note(f"note: {line}")
    note(f"checkpoint: {result.checkpoint} (sha256 {result.sha256[:16]}...)")


def _as_dict(result: "TrainResult", settings: dict[str, Any]) -> dict[str, Any]:
    return {
        "checkpoint": str(result.checkpoint),
        "sha256": result.sha256,
        "epochs": result.epochs,
        "train_loss": result.train_loss,
        "train_accuracy": result.train_accuracy,
        "test_loss": result.test_loss,
        "test_accuracy": result.test_accuracy,
        "seconds": result.seconds,
        "data": result.data,
        "notes": list(result.notes),
        "config": settings,
    }
