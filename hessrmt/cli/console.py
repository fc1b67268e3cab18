"""What is printed where: results on standard output, progress and notes on standard error."""

from __future__ import annotations

import io
import json
import math
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from rich.progress import Progress

err = Console(stderr=True, highlight=False)
"""Progress, notes and errors."""


class _Plain(Console):
    """A file or a pipe: no line is wrapped, cut off, or filled up with blanks."""

    def __init__(self) -> None:
        super().__init__(highlight=False, width=10_000)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print without blanks at the ends of lines."""
        with self.capture() as captured:
            super().print(*objects, **options)
        lines = captured.get().split("\n")
        self.file.write("\n".join(line.rstrip() for line in lines))
        self.file.flush()


def results(json: bool = False) -> Console:
    """Where the tables and sentences of a result go.

    Args:
        json: Whether standard output is kept for one JSON object.

    Returns:
        Standard output; standard error if that is for JSON.
    """
    if json:
        return err
    terminal = sys.stdout is not None and sys.stdout.isatty()
    return Console(highlight=False) if terminal else _Plain()


def accept_any_text() -> None:
    """Let a character that standard output cannot encode be escaped, as standard error does."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


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


def progress(transient: bool = False) -> Progress:
    """A progress display on standard error: task, bar, count, time left.

    Args:
        transient: Whether it disappears at the end.

    Returns:
        A ``rich.progress.Progress``; silent where standard error is not a terminal that can
        redraw a line.
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
        transient=transient,
        disable=not err.is_interactive,
    )


@contextmanager
def paused(display: Progress | None) -> Iterator[None]:
    """Take a transient display off the terminal while something is printed, then put it back.

    Standard output and standard error are mostly the same terminal, and what is printed between
    two drawings of the bars would be overwritten.

    Args:
        display: From :func:`progress`, if there is one.

    Yields:
        Nothing.
    """
    if display is None:
        yield
        return
    from rich.live import Live

    display.stop()
    try:
        yield
    finally:
        # one that was stopped would, if started again, erase the lines printed meanwhile
        display.live = Live(
            console=display.console,
            get_renderable=display.get_renderable,
            transient=display.live.transient,
            refresh_per_second=display.live.refresh_per_second,
        )
        display.start()


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
