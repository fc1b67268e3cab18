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
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from hessrmt.workflows.history import Recording
    from hessrmt.workflows.train import TrainResult

_HISTORY = "History of the network while it is trained"


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
    history: Annotated[
        Path | None,
        typer.Option(
            "--history",
            metavar="F",
            help="Spectrum file to record Hessian spectra, α, norms and losses in.",
            rich_help_panel=_HISTORY,
        ),
    ] = None,
    history_epochs: Annotated[
        str | None,
        typer.Option(
            "--history-epochs",
            help="At which epochs: 0,1,5 (0 is the untrained network), or N for every N-th; the "
            "last one always. \\[default: 0,1,2,5,10,20,50 and so on]",
            rich_help_panel=_HISTORY,
        ),
    ] = None,
    history_batch: Annotated[
        int | None,
        typer.Option(
            "--history-batch",
            help="Samples of the Hessian's batch, the first of the test split. \\[default: 64]",
            rich_help_panel=_HISTORY,
        ),
    ] = None,
    history_only: Annotated[
        str | None,
        typer.Option(
            "--history-only",
            help="Pattern of the parameters whose Hessian it is, e.g. '7.*'. \\[default: all]",
            rich_help_panel=_HISTORY,
        ),
    ] = None,
    history_conv: Annotated[
        str | None,
        typer.Option(
            "--history-conv",
            help="Convolutions as slices, pooled or unfolded; see hessrmt capacity. "
            "\\[default: slices]",
            rich_help_panel=_HISTORY,
        ),
    ] = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    json: JsonOption = False,
) -> None:
    """Train a model and write its checkpoint, complete after every epoch.

    The defaults are the published protocol: 300 epochs of SGD, batch 128, learning rate 0.003
    falling to 0.00003 between epochs 150 and 270, momentum 0.9, weight decay 0.0005.

    With --history the Hessian's certified spectrum and the capacity metrics of the weights are
    recorded at chosen epochs, in one file.
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

    recorded = _recording(
        history,
        epochs=history_epochs,
        batch=history_batch,
        only=history_only,
        conv=history_conv,
    )

    from hessrmt.workflows.train import run

    with console.progress() as bar:
        result = run(
            settings,
            path,
            resume=resume,
            overwrite=overwrite,
            folder=data_dir,
            history=recorded,
            observer=_Bar(bar, settings.model),
        )
    to = console.results(json)
    _show(result, to)
    if result.history is not None:
        _show_history(result.history, to)
    if json:
        console.emit_json(_as_dict(result, settings.model_dump(mode="json")))


def _recording(file: Path | None, **options: Any) -> "Recording | None":
    from hessrmt.config import load_settings
    from hessrmt.config.history import HistoryConfig
    from hessrmt.errors import ConfigError

    if file is None:
        given = [f"--history-{name}" for name, value in options.items() if value is not None]
        if given:
            raise ConfigError(f"{given[0]} says what to record; say where with --history F")
        return None
    try:
        settings = load_settings(HistoryConfig, **options)
    except ConfigError as error:
        raise ConfigError(f"--history-{error}") from error

    from hessrmt.workflows.history import Recording

    return Recording(file, settings)


class _Bar:
    """A bar of epochs; for a history another one, of what is measured at an epoch."""

    def __init__(self, bar: "Progress", model: str) -> None:
        self.bar, self.model = bar, model
        self.measured: TaskID | None = None

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

    def measuring(self, epoch: int, phase: str, done: int, total: int) -> None:
        if self.measured is None:
            self.measured = self.bar.add_task("", total=None, rate="")
        steps = None if total == 1 and done == 0 else total  # one long step: a pulsing bar
        self.bar.update(
            self.measured, completed=done, total=steps, description=f"epoch {epoch}: {phase}"
        )


def _name(model: str) -> str:
    # "mlp3" is itself, "path/file.py:factory" becomes "factory"
    return re.sub(r"\W", "_", model.rpartition(":")[2]) or "model"


def _show(result: "TrainResult", to: "Console") -> None:
    from rich.table import Table

    from hessrmt.cli.console import note

    table = Table("", "loss", "accuracy", title=f"after {result.epochs} epochs")
    rows = {
        "train": (result.train_loss, result.train_accuracy),
        "test": (result.test_loss, result.test_accuracy),
    }
    for split, (loss, accuracy) in rows.items():
        if loss is not None:
            shown = "" if accuracy is None else f"{accuracy:.4f}"
            table.add_row(split, f"{loss:.6f}", shown)
    to.print(table)
    for line in result.notes:
        if line != result.data:  # shown at the start
            note(f"note: {line}")
    note(f"checkpoint: {result.checkpoint} (sha256 {result.sha256[:16]}...)")


def _show_history(file: Path, to: "Console") -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from hessrmt.cli.console import note
    from hessrmt.levels.spacings import mean_ratio
    from hessrmt.store.history import load_history

    found = load_history(file)
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    headings = ("epoch", "test\nloss", "⟨α⟩", "α̂", "⟨ln‖W‖⟩", "λ min", "λ max", "certified", "⟨r̃⟩")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for row, item in enumerate(found.spectra):
        numbers = {
            ".4f": found.training["test_loss"][row],
            ".3f": found.network["mean_alpha"][row],
            ".2f": found.network["alpha_hat"][row],
            ".4g": found.network["mean_log_norm"][row],
        }
        table.add_row(
            str(found.epochs[row]),
            *(format(value, form) for form, value in numbers.items()),
            f"{item.eigenvalues[0]:.3g}",
            f"{item.eigenvalues[-1]:.3g}",
            f"{item.rank:,}",
            f"{mean_ratio(item.resolved):.4f}",
        )
    to.print(table)
    note(f"history: {file}; hessrmt plot draws it, hessrmt.load_history reads it")


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
        "history": None if result.history is None else str(result.history),
        "config": settings,
    }
