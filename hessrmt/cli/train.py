"""``hessrmt train``: train a model by the published protocol and write its checkpoint."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hessrmt.cli import console
from hessrmt.cli.options import DataDir, Group, Overwrite, Report, Resume, with_settings
from hessrmt.config import HistoryConfig, TrainConfig
from hessrmt.errors import ConfigError

if TYPE_CHECKING:
    from hessrmt.runs.training import TrainResult

_HISTORY = "History of the network while it is trained"


@with_settings
def train(
    settings: TrainConfig,
    recorded: Annotated[HistoryConfig, Group("--history-", _HISTORY)],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Checkpoint to write. \\[default: the model's name with .pt]"
        ),
    ] = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
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
) -> Report:
    """Train a model and write its checkpoint, complete after every epoch.

    The defaults are the published protocol: 300 epochs of SGD, batch 128, learning rate 0.003
    falling to 0.00003 between epochs 150 and 270, momentum 0.9, weight decay 0.0005.

    With --history the Hessian's certified spectrum and the capacity metrics of the weights are
    recorded at chosen epochs, in one file.

    Returns:
        What --json prints; --csv writes the epochs of the history, if there is one.

    Raises:
        ConfigError: If it is said what to record, but not where.
    """
    if history is None and recorded.model_fields_set:
        option = next(iter(recorded.model_fields_set))
        raise ConfigError(f"--history-{option} says what to record; say where with --history F")
    from hessrmt.runs.history import Recording
    from hessrmt.runs.training import run
    from hessrmt.store.history import load_history

    with console.Meter(lines=True) as tick:
        result = run(
            settings,
            # "mlp3" is itself, "path/file.py:factory" becomes "factory"
            out or Path((re.sub(r"\W", "_", settings.model.rpartition(":")[2]) or "model") + ".pt"),
            resume=resume,
            overwrite=overwrite,
            folder=data_dir,
            history=None if history is None else Recording(history, recorded),
            tick=tick,
            tell=console.note,
        )
    _show(result)
    if result.history is not None:
        _show_history(result.history)
    plain = {**result.to_dict(), "config": settings.model_dump(mode="json")}
    rows = result.rows if result.history is None else load_history(result.history).rows
    return Report(plain, rows)


def _show(result: TrainResult) -> None:
    splits = {
        "train": (result.train_loss, result.train_accuracy),
        "test": (result.test_loss, result.test_accuracy),
    }
    rows = [
        (split, f"{loss:.6f}", console.number(accuracy, ".4f"))
        for split, (loss, accuracy) in splits.items()
        if loss is not None
    ]
    console.show(
        console.table(("", "loss", "accuracy"), rows, title=f"after {result.epochs} epochs")
    )
    # what the data are was said at the start
    console.note(*(f"note: {line}" for line in result.notes if line != result.data))
    console.note(f"checkpoint: {result.checkpoint} (sha256 {result.sha256[:16]}...)")


def _show_history(file: Path) -> None:
    from hessrmt.levels.histograms import mean_ratios
    from hessrmt.store.history import load_history

    found = load_history(file)
    mean_ratio = mean_ratios(found.spectra)[:, 0]
    rows = [
        (
            str(found.epochs[row]),
            f"{found.training['test_loss'][row]:.4f}",
            f"{found.network['mean_alpha'][row]:.3f}",
            f"{found.network['alpha_hat'][row]:.2f}",
            f"{found.network['mean_log_norm'][row]:.4g}",
            f"{item.eigenvalues[0]:.3g}",
            f"{item.eigenvalues[-1]:.3g}",
            f"{item.rank:,}",
            f"{mean_ratio[row]:.4f}",
        )
        for row, item in enumerate(found.spectra)
    ]
    headings = ("epoch", "test\nloss", "⟨α⟩", "α̂", "⟨ln‖W‖⟩", "λ min", "λ max", "certified", "⟨r̃⟩")
    console.show(console.table(headings, rows))
    console.note(f"history: {file}; hessrmt plot draws it, hessrmt.load_history reads it")
