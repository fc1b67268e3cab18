"""What is printed where: results on standard output, progress and notes on standard error."""

from __future__ import annotations

import io
import json
import math
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from rich.progress import Progress, TaskID
    from rich.table import Table

err = Console(stderr=True, highlight=False)
"""Progress, notes and errors."""

_quiet = [False]


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


def be_quiet(wanted: bool) -> None:
    """Print results and errors alone from now on, or everything."""
    _quiet[0] = wanted


def note(text: str) -> None:
    """Print one line of information on standard error."""
    if _quiet[0]:
        return
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
        disable=_quiet[0] or not err.is_interactive,
    )


class Meter:
    """Progress bars: one for each kind of work, named by what stands before a colon.

    Args:
        display: From :func:`progress`.
        one: Whether one bar shows whatever is being done.
    """

    def __init__(self, display: Progress, one: bool = False) -> None:
        self._display, self._one = display, one
        self._bars: dict[str, TaskID] = {}
        self._begun: dict[str, tuple[str, float]] = {}

    def __call__(self, phase: str, done: int, total: int) -> None:
        """See :data:`hessrmt.progress.Tick`."""
        name = "" if self._one else phase.partition(":")[0]
        if name not in self._bars:
            self._bars[name] = self._display.add_task(phase, total=total, rate="")
        now = time.perf_counter()
        if self._begun.get(name, ("", 0.0))[0] != phase:
            self._begun[name] = phase, now
        elapsed = now - self._begun[name][1]
        # one long step reports nothing until it is done: a pulsing bar, not one stuck at zero
        steps = None if total == 1 and done == 0 else total
        rate = f"{done / elapsed:,.0f}/s" if total > 1 and elapsed > 1 else ""
        words = escape(phase.partition(": ")[2] or phase) if not self._one else escape(phase)
        self._display.update(
            self._bars[name], completed=done, total=steps, description=words, rate=rate
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


def table(*headings: str, title: str | None = None) -> Table:
    """A table whose first column holds names and whose others hold numbers.

    Args:
        headings: Of the columns.
        title: Above them.

    Returns:
        A table of rich.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    made = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), title=title)
    for number, heading in enumerate(headings):
        made.add_column(escape(heading), justify="right" if number else "left", no_wrap=True)
    return made


def number(value: float | None, form: str = ".4g", otherwise: str = "-") -> str:
    """A number as a cell of a table.

    Args:
        value: The number.
        form: How it is written.
        otherwise: What stands for None, NaN and infinity.

    Returns:
        The cell.
    """
    return otherwise if value is None or not math.isfinite(value) else format(value, form)


def with_error(value: float, error: float | None, form: str = ".4f", otherwise: str = "-") -> str:
    """A number and its standard error, if there is one (arguments as of :func:`number`)."""
    shown = number(value, form, otherwise)
    known = shown != otherwise and error is not None and math.isfinite(error)
    return f"{shown} ± {error:{form}}" if known else shown


def drawn(items: Iterable[Any]) -> None:
    """Say which pictures were written, and why others were not."""
    for item in items:
        note(f"written: {item.path}" if item.path else f"not drawn: {item.name}: {item.reason}")


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
