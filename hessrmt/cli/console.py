"""What the terminal shows: people read standard error, programs read standard output."""

from __future__ import annotations

import json
import math
import sys
from typing import TYPE_CHECKING, Any

from rich.console import Console

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.progress import Progress

err = Console(stderr=True, highlight=False)
"""Everything for people: progress, notes, tables, errors."""


def emit_json(result: dict[str, Any]) -> None:
    """Print one JSON object on standard output; NaN and infinity become null."""
    sys.stdout.write(to_json(result) + "\n")
    sys.stdout.flush()


def to_json(result: Any, indent: int | None = None) -> str:
    """JSON that every reader takes: NaN and infinity become null.

    Returns:
        The text.
    """
    return json.dumps(_plain(result), allow_nan=False, indent=indent)


def note(text: str) -> None:
    """Print one line of information on standard error."""
    err.print(f"[dim]{escape(text)}[/dim]", soft_wrap=True)


def fail(text: str) -> None:
    """Print one error paragraph on standard error."""
    err.print(f"[bold red]error:[/bold red] {escape(text)}", soft_wrap=True)


def progress() -> Progress:
    """A progress display on standard error: task, bar, count, time left.

    Returns:
        A ``rich.progress.Progress``; silent where standard error is not a terminal.
    """
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=err,
        disable=not err.is_terminal,
    )


def source_in_words(settings: Mapping[str, Any]) -> str:
    """What a spectrum file is about.

    Args:
        settings: Configuration stored in the file.

    Returns:
        E.g. ``"mlp3, mnist, test, batch 64"``; ``"a file"`` if it doesn't say.
    """
    if settings.get("ensemble") == "loss-model":
        outliers = settings.get("outliers") or 0
        count = outliers if isinstance(outliers, int) else len(outliers)
        parts = [f"loss model, kernel {settings['kernel']}", f"n = {settings['n']:,}"]
        parts += [f"{count} outliers"] if count else []
        parts += [f"{settings['degenerate']:,} degenerate"] if settings["degenerate"] else []
        return ", ".join(parts)
    parts = [str(settings[key]) for key in ("model", "data", "split") if settings.get(key)]
    parts += [f"batch {settings['batch']}"] if settings.get("batch") else []
    return ", ".join(parts) or "a file"


def escape(text: str) -> str:
    """Text in which square brackets are not markup.

    Returns:
        The text, safe to print through :data:`err`.
    """
    from rich.markup import escape

    return escape(text)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
