"""A search for the range of a matrix, kept on disk while it goes on.

The file grows by one record at a time: a line of JSON with the record's numbers, the shapes of its
arrays and a checksum, then the arrays. What a killed process left unfinished at the end is cut off;
nothing before it is ever written again.
"""

from __future__ import annotations

import json
import math
import os
import time
import warnings
import zlib
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from hessrmt.errors import HessrmtWarning, StoreError
from hessrmt.files import reason
from hessrmt.store.files import lock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import BufferedRandom, BufferedReader
    from pathlib import Path

_SCHEMA = b"hessrmt/search 1\n"

EVERY = 120.0
"""Seconds after which a search is written to disk again: as much work as a kill may cost, beside
one block of products."""


def is_search(path: Path) -> bool:
    """Whether a file is one of :class:`SearchFile`."""
    try:
        with path.open("rb") as file:
            return file.read(len(_SCHEMA)) == _SCHEMA
    except OSError:
        return False


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
    """The file of one search, locked from its first use until it is closed.

    Args:
        path: Its name.
        every: Seconds between two records; :data:`EVERY` if None.

    Raises:
        StoreError: If there is another kind of file under that name.
    """

    def __init__(self, path: Path, every: float | None = None) -> None:
        self.path, self._every = path, EVERY if every is None else every
        self._last, self._fails = time.monotonic(), False
        self._file: BufferedRandom | None = None
        try:
            with path.open("rb") as file:
                head = file.read(len(_SCHEMA))
        except FileNotFoundError:
            return
        except OSError as error:
            raise StoreError(f"cannot read {path}: {reason(error)}") from error
        if head != _SCHEMA[: len(head)]:
            raise StoreError(
                f"{path} is no search that hessrmt keeps; remove it, or name another file"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def due(self) -> bool:
        """Whether it is time for another record."""
        return not self._fails and time.monotonic() - self._last >= self._every

    def read(self) -> Iterator[Record]:
        """Records of an earlier run, in order; the file is cut behind the last whole one.

        Yields:
            Each record. Raises StoreError if another process keeps its search there.
        """
        try:
            file = self._opened()
            if file.readline() != _SCHEMA:  # new, or killed before that
                file.truncate(0)
                file.seek(0)
                file.write(_SCHEMA)
            end = file.tell()
            while (record := _record(file)) is not None:
                end = file.tell()
                yield record
            file.truncate(end)
            file.seek(end)
        except OSError as error:  # the search itself can go on
            self._fail(error)

    def append(self, record: Record) -> None:
        """Write a record behind the others, and wait until it is on disk.

        Args:
            record: What is new. If the disk refuses, a warning says so and no other is written.
        """
        if self._fails:
            return
        try:
            self._append(record)
        except OSError as error:
            self._fail(error)
        self._last = time.monotonic()

    def clear(self) -> None:
        """Begin anew: drop all records."""
        if self._file is not None:
            self._file.truncate(len(_SCHEMA))
            self._file.seek(len(_SCHEMA))

    def remove(self) -> None:
        """Take the file away, if this search was kept there, and let others use its name."""
        if self._file is not None:
            self.path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Let others use the file."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
            self._file = None

    def _opened(self) -> BufferedRandom:
        if self._file is None:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                lock(descriptor, self.path)
            except StoreError:
                os.close(descriptor)
                raise
            self._file = os.fdopen(descriptor, "r+b")
        return self._file

    def _append(self, record: Record) -> None:
        arrays = [np.ascontiguousarray(array) for array in record.arrays]
        checksum = 0
        for array in arrays:
            checksum = zlib.crc32(array.data, checksum)
        described = [[array.dtype.str, array.shape] for array in arrays]
        head = {"numbers": record.numbers, "arrays": described, "crc32": checksum}
        file = self._opened()
        for part in (json.dumps(head).encode() + b"\n", *(array.data for array in arrays)):
            file.write(part)
        file.flush()
        os.fsync(file.fileno())

    def _fail(self, error: OSError) -> None:
        self._fails = True
        warnings.warn(
            f"the search can't be kept in {self.path}: {reason(error)}; it goes on, and would "
            "begin anew after an interruption",
            HessrmtWarning,
            stacklevel=3,
        )


def whole_records(path: Path) -> tuple[int, int]:
    """How much of a search can be continued from.

    Args:
        path: Of a search.

    Returns:
        Whole records, and bytes behind them: of one that was being written, or of damaged ones.
    """
    with path.open("rb") as file:
        file.readline()
        count, end = 0, file.tell()
        while _record(file) is not None:
            count, end = count + 1, file.tell()
        return count, os.fstat(file.fileno()).st_size - end


def _record(file: BufferedReader | BufferedRandom) -> Record | None:
    """The next record; None at the end, or if it is not whole."""
    try:
        head = json.loads(file.readline())
        arrays, checksum, size = [], 0, os.fstat(file.fileno()).st_size
        for kind, shape in head["arrays"]:
            dtype = np.dtype(kind)
            # before memory is taken; bytes in place of objects would be taken for addresses
            if dtype.kind not in "biufc" or math.prod(shape) * dtype.itemsize > size - file.tell():
                return None
            array = np.empty(shape, dtype)
            if file.readinto(array.data) != array.nbytes:
                return None
            checksum = zlib.crc32(array.data, checksum)
            arrays.append(array)
        return Record(head["numbers"], arrays) if checksum == head["crc32"] else None
    except (ValueError, KeyError, TypeError, MemoryError):
        return None
