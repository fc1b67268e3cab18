"""Tables as text that other programs read: CSV, Markdown, HTML; numbers with their nouns.

Apart from :mod:`hessrmt.results`, which needs NumPy: the command line's ``--help`` does not.
"""

from __future__ import annotations

import csv
import io
import math
import re
import unicodedata
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def counted(number: int, one: str, several: str) -> str:
    """A number with its noun.

    Args:
        number: How many.
        one: The noun for one of them.
        several: For any other number.

    Returns:
        Such as "1 picture".
    """
    return f"{number:,} {one if number == 1 else several}"


def measured(value: float, error: float | None, sign: str = " ±", most: int = 12) -> str:
    """A number with its error, to the digits that the error leaves.

    Args:
        value: The number.
        error: Its error or a bound on that; NaN or None if it isn't known.
        sign: What stands between the two.
        most: Digits at most.

    Returns:
        Such as "24.817 ± 0.021"; a dash for NaN.
    """
    if math.isnan(value):
        return "-"
    if error is None or not (math.isfinite(error) and error > 0 and math.isfinite(value)):
        return f"{value:.{min(most, 6)}g}"
    digits = math.ceil(math.log10(abs(value) / error)) + 2 if value else 2
    return f"{value:.{min(max(digits, 2), most)}g}{sign} {error:.2g}"


class AtMost(float):
    """A number of which only this upper bound is known."""


def at_most(value: float | None, smallest: float) -> float | None:
    """A probability that was counted.

    Args:
        value: The probability, or None.
        smallest: What counting can find at least.

    Returns:
        The value; as :class:`AtMost` where it is that smallest one.
    """
    return value if value is None or not value <= smallest else AtMost(smallest)


def probability(value: float | None) -> str:
    """A probability as a table has it.

    Args:
        value: Perhaps from :func:`at_most`; NaN or None where there is none.

    Returns:
        Such as "0.37", "≤ 1e-06" or a dash.
    """
    if isinstance(value, AtMost):
        return f"≤ {value:.1g}"
    return "-" if value is None or math.isnan(value) else f"{value:.2g}"


def p_equals(value: float | None) -> str:
    """A probability as a sentence has it: "p = 0.37" or "p ≤ 1e-06"."""
    text = probability(value)
    return f"p {text}" if text.startswith("≤") else f"p = {text}"


_FORMULA = re.compile(r"[=@]|[-+](?!(?:[\s\d.,±…%]|\de[-+]\d|inf|nan|to)*$)")
"""A cell that a spreadsheet takes for a formula; with a sign, all but numbers, their errors and
ranges."""


def printable(text: str, *, lines: bool = False) -> str:
    """A name or a sentence as it can be shown anywhere: characters that aren't seen are escaped.

    Args:
        text: From a file or a user, who may mean harm.
        lines: Whether it may have several.

    Returns:
        The same with escapes as in Python: a backslash and ``x1b``.
    """
    found = "".join(one if _is_seen(one) else ascii(one)[1:-1] for one in text)
    return found if lines else found.replace("\n", "\\n")


def _is_seen(one: str) -> bool:
    """Whether a character does no more than stand there: some move the cursor or turn the text."""
    return one.isprintable() or one == "\n" or unicodedata.category(one) == "Zs"


def html_words(text: str) -> str:
    """A text as HTML shows it, without anything that a browser takes for markup."""
    return escape(printable(text, lines=True))


def _cell(value: Any) -> Any:
    """A cell of a CSV file that a spreadsheet takes for a text if it is one."""
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if _FORMULA.match(text) else text


def to_csv(rows: list[dict[str, Any]]) -> str:
    """A table as comma-separated values with a head.

    Returns:
        The text; empty for no rows.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if rows:
        writer.writerow(map(_cell, rows[0]))
    writer.writerows([_cell(row.get(name, "")) for name in rows[0]] for row in rows)
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
    words = re.sub(r"([\\`*_\[]|<(?=[a-zA-Z/!?]))", r"\\\1", text)
    return printable(words, lines=True).replace("\n", "<br>")


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
    cells = ["".join(f"<{tag}>{html_words(cell)}</{tag}>" for tag, cell in row) for row in rows]
    body = "".join(f"<tr>{row}</tr>" for row in cells)
    return f"<table><caption>{html_words(caption)}</caption>{body}</table>"
