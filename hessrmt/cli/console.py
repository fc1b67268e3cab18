"""What is printed where: results on standard output, progress and notes on standard error."""

from __future__ import annotations

import io
import math
import os
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Self

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.markup import escape

from hessrmt.tables import counted, markdown_words, printable, to_markdown

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from rich.console import ConsoleOptions, RenderResult
    from rich.progress import TaskID
    from rich.table import Table

err = Console(stderr=True, highlight=False)
"""Progress, notes and errors."""

_STANDARD_OUTPUT, _STANDARD_ERROR = 1, 2
"""Numbers of descriptors."""

_SHORTEST, _WIDEST = 9, 10_000
"""Cells that a name is left at least, and of a line that is not wrapped."""

_SECONDS = 10.0
"""Between lines of a log on progress, at least."""

_wanted = {"quiet": False, "json": False, "markdown": False, "quick": False}
_before = [""]
"""What the last lines of Markdown were: a table, a list or sentences."""

OPERATORS = {"hessian": "Hessian", "ggn": "Gauss-Newton matrix"}
"""Operators in words."""


class _Plain(Console):
    """A file or a pipe: no line is wrapped, cut off, or filled up with blanks."""

    def __init__(self) -> None:
        super().__init__(highlight=False, width=_WIDEST)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print without blanks at the ends of lines."""
        with self.capture() as captured:
            super().print(*objects, **options)
        lines = captured.get().split("\n")
        self.file.write("\n".join(line.rstrip() for line in lines))
        self.file.flush()


def begin(*, quiet: bool, json: bool, markdown: bool = False, quick: bool = False) -> None:
    """Say what is to be printed from now on.

    Args:
        quiet: Results and errors alone.
        json: One JSON object on standard output; tables go to standard error.
        markdown: Tables and sentences as Markdown.
        quick: The command only looks something up: with ``json`` nothing else is printed.
    """
    _wanted.update(quiet=quiet, json=json, markdown=markdown, quick=quick)
    _before[0] = ""


def show(*parts: str | Numbers, style: str = "", markup: bool = False) -> None:
    """Print tables and sentences of a result.

    Args:
        parts: Each begins a line.
        style: Of sentences.
        markup: Whether square brackets in sentences are markup.
    """
    if _wanted["markdown"]:
        for part in parts:
            table = isinstance(part, Numbers)
            text = part.markdown() if table else markdown_words(part)
            _markdown("table" if table else "sentence", f"**{text}**" if style == "bold" else text)
        return
    if _wanted["json"]:
        if _wanted["quick"]:
            return
        to = err
    else:
        terminal = sys.stdout is not None and sys.stdout.isatty()
        to = Console(highlight=False) if terminal else _Plain()
    for part in parts:
        shown = printable(part, lines=True) if isinstance(part, str) else part
        to.print(shown, style=style or None, markup=markup, soft_wrap=True)


def show_row(cells: Sequence[str], widths: Sequence[int], *, heading: bool = False) -> None:
    """Print a row of a table whose later rows are not known yet.

    Args:
        cells: Of the row.
        widths: Cells of a terminal that each takes; longer ones move the others.
        heading: Whether it holds the names of the columns.
    """
    if not _wanted["markdown"]:
        seen = map(printable, cells)
        filled = (" " * (n - cell_len(cell)) + cell for cell, n in zip(seen, widths, strict=True))
        show(" ".join(filled))
        return
    head, rule, *line = to_markdown(cells, [] if heading else [cells]).splitlines()
    _markdown("row", f"{head}\n{rule}" if heading else line[0])


def _markdown(kind: str, text: str) -> None:
    """Print some Markdown, apart from what came before where it is of another kind."""
    apart = _before[0] and (kind != _before[0] or kind in {"sentence", "table"})
    sys.stdout.write(("\n" if apart else "") + text.rstrip("\n") + "\n")
    sys.stdout.flush()
    _before[0] = kind


def facts(rows: Mapping[str, str]) -> None:
    """Print a line for each name and what is said of it."""
    for name, value in rows.items():
        if _wanted["markdown"]:
            _markdown("fact", f"- **{markdown_words(name)}**: {markdown_words(value)}")
            continue
        show(f"[bold]{escape(name)}[/bold]: {escape(value)}", markup=True)


def listing(rows: Mapping[str, str]) -> None:
    """Print names in a column, and what is said of each behind them."""
    if _wanted["markdown"]:
        facts(rows)
        return
    width = max(map(len, rows), default=0)
    for name, value in rows.items():
        show(f"{name:<{width}}  {value}")


def take_descriptors() -> None:
    """Open what is closed of standard input, output and error, with nothing behind it.

    The next file that is opened would have their numbers, and libraries, which know no better,
    would write their messages into it.
    """
    while (opened := os.open(os.devnull, os.O_RDWR)) <= _STANDARD_ERROR:
        os.set_inheritable(opened, True)  # worker processes have the same need
    os.close(opened)


def accept_any_text() -> None:
    """Let a character that standard output cannot encode be escaped, as standard error does."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


@contextmanager
def silent_output() -> Iterator[None]:
    """Send to standard error what is printed meanwhile, also by other languages and processes.

    For a command whose standard output is one JSON object: user's code may print, too.

    Yields:
        None.
    """
    if sys.stdout is None:
        yield
        return
    sys.stdout.flush()
    kept, output = os.dup(_STANDARD_OUTPUT), sys.stdout
    try:
        os.dup2(_STANDARD_ERROR, _STANDARD_OUTPUT)
        sys.stdout = sys.stderr
        yield
    finally:
        output.flush()  # what was printed past sys.stdout
        sys.stdout = output
        os.dup2(kept, _STANDARD_OUTPUT)
        os.close(kept)


def emit_json(result: Any) -> None:
    """Print one JSON object on standard output; NaN and infinity become null.

    Raises:
        WriteError: If standard output is closed.
    """
    from hessrmt.errors import WriteError
    from hessrmt.results import to_json

    if sys.stdout is None:
        raise WriteError("standard output is closed: there is nowhere to print the JSON")
    sys.stdout.write(to_json(result) + "\n")
    sys.stdout.flush()


def note(*lines: str) -> None:
    """Print lines of information on standard error."""
    if not (_wanted["quiet"] or (_wanted["json"] and _wanted["quick"])):
        for line in lines:
            err.print(printable(line, lines=True), style="dim", markup=False, soft_wrap=True)


def warn(text: str) -> None:
    """Print one paragraph on standard error on what a reader of the numbers must know."""
    words = escape(printable(text, lines=True))
    err.print(f"[bold yellow]warning:[/bold yellow] {words}", soft_wrap=True)


def fail(text: str) -> None:
    """Print one error paragraph on standard error."""
    words = escape(printable(text, lines=True))
    err.print(f"[bold red]error:[/bold red] {words}", soft_wrap=True)


class Meter:
    """Progress bars on standard error: one for each kind of work, named by what precedes a colon.

    Where standard error is not a terminal that can redraw a line, as in a log, there are none.

    Args:
        one: Whether one bar shows whatever is being done.
        transient: Whether they disappear at the end.
        lines: Whether a log gets a line for every tenth of each kind of work instead; with ``one``,
            for whatever is being done by then, every ten seconds at most.
    """

    def __init__(self, *, one: bool = False, transient: bool = False, lines: bool = False) -> None:
        from rich import progress

        self._display = progress.Progress(
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[rate]}"),
            progress.TimeElapsedColumn(),
            progress.TextColumn("left"),
            progress.TimeRemainingColumn(),
            console=err,
            transient=transient,
            disable=_wanted["quiet"] or not err.is_interactive,
        )
        self._lines = lines and not err.is_interactive
        self._tenths: dict[str, int] = {}
        self._told = ("", -1, -math.inf)
        self._one = one
        self._bars: dict[str, TaskID] = {}
        self._begun: dict[str, tuple[str, float]] = {}

    def __enter__(self) -> Self:
        self._display.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._display.stop()

    def __call__(self, phase: str, done: int, total: int) -> None:
        """See :data:`hessrmt.progress.Tick`."""
        kind, _, words = ("", "", phase) if self._one else phase.partition(": ")
        now = time.perf_counter()
        if self._lines and total > 1 and self._is_news(kind, phase, 10 * done // total, now):
            note(f"{phase}, {done:,} of {total:,}")
        if kind not in self._bars:
            self._bars[kind] = self._display.add_task(phase, total=total, rate="")
        if self._begun.get(kind, ("", 0.0))[0] != phase:
            self._begun[kind] = phase, now
        elapsed = now - self._begun[kind][1]
        self._display.update(
            self._bars[kind],
            completed=done,
            # one long step reports nothing until it is done: a pulsing bar, not one stuck at zero
            total=None if total == 1 and done == 0 else total,
            description=printable(words or phase),
            rate=f"{done / elapsed:,.0f}/s" if total > 1 and elapsed > 1 else "",
        )

    def _is_news(self, kind: str, phase: str, tenth: int, now: float) -> bool:
        if self._one:
            if (phase, tenth) == self._told[:2] or now < self._told[2] + _SECONDS:
                return False
            self._told = phase, tenth, now
            return True
        # what begins again, as a search does, isn't told again
        if tenth <= self._tenths.get(kind, 0):
            return False
        self._tenths[kind] = tenth
        return True

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Take the bars off the terminal while something is printed, then put them back.

        Yields:
            None.
        """
        from rich.live import Live

        display = self._display
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


@dataclass(frozen=True)
class Numbers:
    """A table whose first column holds names and whose others hold numbers.

    On a terminal names are cut, in the middle or where that leaves them different, to make room for
    the numbers, which never are.

    Attributes:
        headings: Of the columns.
        rows: Their cells.
        title: Above it.
    """

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The table as rich shows it in a given width."""
        names = tuple(row[0] for row in self.rows)
        longest = max(map(cell_len, names), default=0)
        unlimited = options.update(width=_WIDEST)
        over = console.measure(self._table(names), options=unlimited).maximum - options.max_width
        room = max(longest - max(over, 0), min(longest, _SHORTEST))
        if room < longest:
            head = _head(names, room)
            names = tuple(cut(name, room, head) for name in names)
        yield from console.render(self._table(names), unlimited)

    def markdown(self) -> str:
        """The table, below its title, as Markdown."""
        title = f"**{markdown_words(self.title)}**\n\n" if self.title else ""
        return title + to_markdown(self.headings, self.rows)

    def _table(self, names: Iterable[str]) -> Table:
        from rich.box import SIMPLE_HEAD
        from rich.table import Table
        from rich.text import Text

        made = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), title=self.title)
        made.add_column(self.headings[0], no_wrap=True)
        for heading in self.headings[1:]:
            made.add_column(heading, justify="right", no_wrap=True)
        for name, row in zip(names, self.rows, strict=True):
            made.add_row(Text(name), *row[1:])
        return made


def table(
    headings: Sequence[str], rows: Iterable[Sequence[str]], title: str | None = None
) -> Numbers:
    """A table for :func:`show`.

    Args:
        headings: Of the columns.
        rows: Their cells, a name first.
        title: Above it.

    Returns:
        The table.
    """
    shown = [tuple(printable(cell, lines=True) for cell in row) for row in rows]
    return Numbers(headings, shown, title and printable(title))


@lru_cache(maxsize=64)
def _head(names: tuple[str, ...], width: int) -> int:
    """Cells before the ellipsis, as near the middle as leaves the fewest names alike."""
    middle = (width - 1) // 2
    choices = sorted(range(width), key=lambda head: abs(head - middle))
    return max(choices, key=lambda head: len({cut(name, width, head) for name in names}))


def cut(name: str, width: int, head: int) -> str:
    """A name in a given width, with an ellipsis inside if it is longer.

    Args:
        name: The name.
        width: Cells of a terminal that it may take, 1 or more.
        head: Of them those before the ellipsis.

    Returns:
        The name, or its beginning and its end.
    """
    if cell_len(name) <= width:
        return name
    begin = set_cell_size(name, head).rstrip()
    end = set_cell_size(name[::-1], width - 1 - head).rstrip()
    return f"{begin}…{end[::-1]}"


def headings(columns: Mapping[str, tuple[str, str]]) -> list[str]:
    """The headings of columns (as of :func:`cells`)."""
    return [heading for heading, _ in columns.values()]


def cells(item: Any, columns: Mapping[str, tuple[str, str]]) -> list[str]:
    """Numbers that an object has, as cells of a table.

    Args:
        item: The object.
        columns: Name of an attribute to heading and format.

    Returns:
        A cell for each.
    """
    return [number(getattr(item, name), form) for name, (_, form) in columns.items()]


def number(value: float | None, form: str = ".4g") -> str:
    """A number as a cell of a table.

    Args:
        value: The number; None or NaN where there is none.
        form: How it is written.

    Returns:
        The text; a dash where there is no number.
    """
    return "-" if value is None or not math.isfinite(value) else format(value, form)


def with_error(value: float, error: float | None, form: str = ".4f") -> str:
    """A number and its standard error, if there is one (arguments as of :func:`number`)."""
    known = math.isfinite(value) and error is not None and math.isfinite(error)
    return f"{value:{form}} ± {error:{form}}" if known else number(value, form)


def drawn(items: Sequence[Any], folder: Any = None) -> None:
    """Say how many pictures were written, and why others were not.

    Args:
        items: As of :func:`hessrmt.plots.files.draw_each`.
        folder: Where they are; None to say only which are missing.
    """
    missing = [item for item in items if item.path is None]
    note(*(f"not drawn: {item.name}: {item.reason}" for item in missing))
    if folder is not None:
        note(f"written: {counted(len(items) - len(missing), 'picture', 'pictures')} in {folder}")


def source_in_words(settings: Mapping[str, Any]) -> str:
    """What a file is about, as of :func:`hessrmt.records.source_in_words`."""
    from hessrmt.records import source_in_words as known

    return known(settings) or "a file"
