"""Tables of networks that users bring: comma-separated values with a header."""

from __future__ import annotations

import csv
import re
from typing import TYPE_CHECKING

from hessrmt.errors import ConfigError

_COMMA = re.compile(r"[-+]?\d+,\d+([eE][-+]?\d+)?%?")
"""A number with a decimal comma."""

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path


def read_table(file: Path) -> tuple[list[str], list[dict[str, str]]]:
    """A table as it stands in its file; lines that begin with # are comments.

    Args:
        file: CSV with a header; semicolons or tabs between the cells will do.

    Returns:
        Names of the columns, and a dictionary of cells without blanks around them for each row.

    Raises:
        ConfigError: If it cannot be read, is no table or has no rows.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            given = [line for line in lines if not line.startswith("#")]
            mark = _delimiter(given)
            reader = csv.DictReader(given, delimiter=mark)
            rows = []
            for row in reader:
                if None in row:
                    raise ConfigError(
                        f"{file}, row {len(rows) + 1} of the table has more cells than its header "
                        "names columns"
                    )
                rows.append({k: _point(v or "", mark) for k, v in row.items() if k})
            header = [name for name in reader.fieldnames or () if name]
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror or error}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{file} is no table of comma-separated values: {error}") from error
    if twice := sorted({name for name in header if header.count(name) > 1}):
        raise ConfigError(f"{file} has several columns called {twice[0]!r}; rename all but one")
    if not rows:
        raise ConfigError(f"{file} has no rows; give a header and a row for each network")
    return header, rows


def _delimiter(lines: list[str]) -> str:
    """What stands between the names of the columns: a comma, or what spreadsheets write instead."""
    header = lines[0] if lines else ""
    return next((mark for mark in (",", ";", "\t") if mark in header), ",")


def _point(cell: str, mark: str) -> str:
    """A cell without blanks around it, a decimal comma as a point; between commas there is none."""
    cell = cell.strip()
    return cell.replace(",", ".") if mark != "," and _COMMA.fullmatch(cell) else cell


def numbers_of(cells: Iterable[str]) -> list[float] | None:
    """The numbers in a column.

    Of percentages the % is left out, if all are.

    Args:
        cells: As :func:`read_table` has them.

    Returns:
        A number for each, NaN for an empty cell; None if there is text in it.
    """
    given = list(cells)
    if all(cell.endswith("%") for cell in given if cell):
        given = [cell.removesuffix("%") for cell in given]
    try:
        return [float(cell or "nan") for cell in given]
    except ValueError:
        return None


def spoilt(name: str, cells: Sequence[str]) -> str | None:
    """Words on the first cell that is no number, in a column most of whose cells are.

    Args:
        name: Of the column.
        cells: As :func:`read_table` has them.

    Returns:
        Which cell it is; None in a column of numbers, or of text.
    """
    wrong = [place for place, cell in enumerate(cells) if numbers_of([cell]) is None]
    if not wrong or 2 * len(wrong) > len(cells):
        return None
    return f"{cells[wrong[0]]!r} in row {wrong[0] + 1} of column {name} is no number"
