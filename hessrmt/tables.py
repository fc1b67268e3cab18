"""Tables as text that other programs read: CSV, Markdown, HTML.

Apart from :mod:`hessrmt.results`, which needs NumPy: the command line's ``--help`` does not.
"""

from __future__ import annotations

import csv
import io
import re
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def to_csv(rows: list[dict[str, Any]]) -> str:
    """A table as comma-separated values with a head.

    Returns:
        The text; empty for no rows.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    if rows:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def to_markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table as Markdown; nothing in a cell is taken for markup.

    Args:
        head: Names of the columns.
        lines: Their cells.

    Returns:
        The text, a line for each line.
    """
    rows = [[markdown_words(cell).replace("|", "\\|") for cell in row] for row in (head, *lines)]
    rows.insert(1, ["---"] * len(head))
    return "".join(f"| {' | '.join(cells)} |\n" for cells in rows)


def markdown_words(text: str) -> str:
    """A text in one line in which Markdown and HTML see no markup."""
    return re.sub(r"([\\`*_\[]|<(?=[a-zA-Z/!?]))", r"\\\1", text).replace("\n", "<br>")


def html_table(lines: list[list[str]], caption: str, head: list[str] | None = None) -> str:
    """A table for a notebook; all text is escaped.

    Args:
        lines: Its cells.
        caption: Above it.
        head: Names of the columns; if None, the first cell of each line is its name.

    Returns:
        HTML.
    """
    first = "td" if head else "th"
    rows = [[("th", cell) for cell in head]] if head else []
    rows += [[(first, line[0]), *(("td", cell) for cell in line[1:])] for line in lines]
    cells = ["".join(f"<{tag}>{escape(cell)}</{tag}>" for tag, cell in row) for row in rows]
    body = "".join(f"<tr>{row}</tr>" for row in cells)
    return f"<table><caption>{escape(caption)}</caption>{body}</table>"
