"""``hessrmt train``: train a model by the published protocol and write its checkpoint."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hessrmt.cli import console
from hessrmt.cli.options import DataDir, Group, Json, with_settings
from hessrmt.config import HistoryConfig, TrainConfig

if TYPE_CHECKING:
    from rich.console import Console

    from hessrmt.runs.history import Recording
    from hessrmt.runs.training import TrainResult

_HISTORY = "History of the network while it is trained"


@with_settings
def train(
    settings: TrainConfig,
    recorded: Annotated[HistoryConfig, Group("history-", _HISTORY)],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Checkpoint to write. \\[default: the model's name with .pt]"
        ),
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
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """Train a model and write its checkpoint, complete after every epoch.

    The defaults are the published protocol: 300 epochs of SGD, batch 128, learning rate 0.003
    falling to 0.00003 between epochs 150 and 270, momentum 0.9, weight decay 0.0005.

    With --history the Hessian's certified spectrum and the capacity metrics of the weights are
    recorded at chosen epochs, in one file.
    """
    recording = _recording(history, recorded)
    from hessrmt.runs.training import run

    with console.progress() as display:
        result = run(
            settings,
            # "mlp3" is itself, "path/file.py:factory" becomes "factory"
            out or Path((re.sub(r"\W", "_", settings.model.rpartition(":")[2]) or "model") + ".pt"),
            resume=resume,
            overwrite=overwrite,
            folder=data_dir,
            history=recording,
            tick=console.Meter(display),
            tell=console.note,
        )
    to = console.results(json)
    _show(result, to)
    if result.history is not None:
        _show_history(result.history, to)
    if json:
        console.emit_json({**result.to_dict(), "config": settings.model_dump(mode="json")})


def _recording(file: Path | None, options: Any) -> Recording | None:
    from hessrmt.config import load_settings
    from hessrmt.errors import ConfigError

    if file is None:
        if options:
            raise ConfigError(
                f"--history-{next(iter(options))} says what to record; say where with --history F"
            )
        return None
    try:
        settings = load_settings(HistoryConfig, **options)
    except ConfigError as error:
        raise ConfigError(f"--history-{error}") from error
    from hessrmt.runs.history import Recording

    return Recording(file, settings)


def _show(result: TrainResult, to: Console) -> None:
    from rich.table import Table

    table = Table("", "loss", "accuracy", title=f"after {result.epochs} epochs")
    rows = {
        "train": (result.train_loss, result.train_accuracy),
        "test": (result.test_loss, result.test_accuracy),
    }
    for split, (loss, accuracy) in rows.items():
        if loss is not None:
            table.add_row(split, f"{loss:.6f}", console.number(accuracy, ".4f", ""))
    to.print(table)
    for line in result.notes:
        if line != result.data:  # shown at the start
            console.note(f"note: {line}")
    console.note(f"checkpoint: {result.checkpoint} (sha256 {result.sha256[:16]}...)")


def _show_history(file: Path, to: Console) -> None:
    from hessrmt.levels.spacings import mean_ratio
    from hessrmt.store.history import load_history

    found = load_history(file)
    headings = ("epoch", "test\nloss", "⟨α⟩", "α̂", "⟨ln‖W‖⟩", "λ min", "λ max", "certified", "⟨r̃⟩")
    table = console.table(*headings)
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
    console.note(f"history: {file}; hessrmt plot draws it, hessrmt.load_history reads it")
