"""A search for the range of a matrix, kept on disk while it goes on.

The file grows by one record at a time: a line of JSON with the record's numbers, the shapes of its
arrays and a checksum, then the arrays. What a killed process left unfinished at the end is cut off;
nothing before it is ever written again.
"""

from __future__ import annotations

import json
import os
import time
import warnings
import zlib
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hessrmt.errors import StoreError
from hessrmt.files import reason

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import BufferedIOBase
    from pathlib import Path

_SCHEMA = "hessrmt/search 1"

EVERY = 120.0
"""Seconds after which a search is written to disk again: as much work as a kill may cost, beside
one block of products."""


@dataclass(frozen=True)
class Record:
    """What a search found between two looks.

    Attributes:
        numbers: Its plain values, those of the whole search so far.
        arrays: New rows of the basis first, then the blocks that were computed.
    """

    numbers: dict[str, Any]
    arrays: list[np.ndarray]


class SearchFile:
    """The file of one search.

    Args:
        path: Its name.
        every: Seconds between two records; :data:`EVERY` if None.
    """

    def __init__(self, path: Path, every: float | None = None) -> None:
        self.path, self._every = path, EVERY if every is None else every
        self._last, self._full = time.monotonic(), False

    def due(self) -> bool:
        """Whether it is time for another record."""
        return time.monotonic() - self._last >= self._every

    def read(self) -> Iterator[Record]:
        """Records of an earlier run, in order; the file is cut behind the last whole one.

        Yields:
            Each record.

        Raises:
            StoreError: If the file cannot be read, or is of another kind.
        """
        try:
            with self.path.open("r+b") as file:
                if file.readline().decode("utf-8", "replace").rstrip("\n") != _SCHEMA:
                    raise StoreError(
                        f"{self.path} is no search that hessrmt keeps; remove it, or name another"
                    )
                end = file.tell()
                while (record := _record(file)) is not None:
                    end = file.tell()
                    yield record
                file.truncate(end)
        except FileNotFoundError:
            return
        except OSError as error:
            raise StoreError(f"cannot read {self.path}: {reason(error)}") from error

    def append(self, record: Record) -> None:
        """Write a record behind the others, and wait until it is on disk.

        Args:
            record: What is new. If the disk refuses, a warning says so and no other is written.
        """
        if self._full:
            return
        try:
            self._append(record)
        except OSError as error:  # the search itself can go on
            self._full = True
            warnings.warn(
                f"the search can't be kept in {self.path}: {reason(error)}; it goes on, and would "
                "begin anew after an interruption",
                stacklevel=2,
            )
        self._last = time.monotonic()

    def _append(self, record: Record) -> None:
        arrays = [np.ascontiguousarray(array) for array in record.arrays]
        checksum = 0
        for array in arrays:
            checksum = zlib.crc32(array.data, checksum)
        described = [[array.dtype.str, array.shape] for array in arrays]
        head = {"numbers": record.numbers, "arrays": described, "crc32": checksum}
        with self.path.open("ab") as file:
            end = file.tell()
            try:
                if not end:
                    file.write(f"{_SCHEMA}\n".encode())
                for part in (json.dumps(head).encode() + b"\n", *(array.data for array in arrays)):
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                with suppress(OSError):
                    file.truncate(end)
                raise

    def remove(self) -> None:
        """Take the file away."""
        self.path.unlink(missing_ok=True)


def _record(file: BufferedIOBase) -> Record | None:
    """The next record; None at the end, or if it is not whole."""
    try:
        head = json.loads(file.readline())
        arrays, checksum = [], 0
        for kind, shape in head["arrays"]:
            array = np.empty(shape, kind)
            if file.readinto(array.data) != array.nbytes:
                return None
            checksum = zlib.crc32(array.data, checksum)
            arrays.append(array)
        return Record(head["numbers"], arrays) if checksum == head["crc32"] else None
    except (ValueError, KeyError, TypeError, MemoryError):
        return None
