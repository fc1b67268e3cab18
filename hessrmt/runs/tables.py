"""Tables of networks that users bring: comma-separated values with a header."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING

from hessrmt.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


def read_table(file: Path) -> tuple[list[str], list[dict[str, str]]]:
    """A table as it stands in its file; lines that begin with # are comments.

    Args:
        file: CSV with a header.

    Returns:
        Names of the columns, and a dictionary of cells without blanks around them for each row.

    Raises:
        ConfigError: If it cannot be read, is no table or has no rows.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(line for line in lines if not line.startswith("#"))
            rows = [{k: (v or "").strip() for k, v in row.items() if k} for row in reader]
            header = list(reader.fieldnames or ())
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror or error}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{file} is no table of comma-separated values: {error}") from error
    if not rows:
        raise ConfigError(f"{file} has no rows; give a header and a row for each network")
    return header, rows


def numbers_of(cells: Iterable[str]) -> list[float] | None:
    """The numbers in a column.

    Args:
        cells: As :func:`read_table` has them.

    Returns:
        A number for each, NaN for an empty cell; None if there is text in it.
    """
    try:
        return [float(cell or "nan") for cell in cells]
    except ValueError:
        return None
