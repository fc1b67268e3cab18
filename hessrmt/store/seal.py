"""Seals: a checksum at the end of a file, which tells damage before anything else is read.

What comes before the seal is whole 4 KiB blocks, so that no single lost block of a disk takes the
seal together with what it guards. HDF5 doesn't look beyond the end that a file states itself: other
programs read a sealed file as any other, and one that changes it cuts the seal off.

===========  ======================================================================================
part         meaning
===========  ======================================================================================
content      padded with zeros
JSON         ``size`` of the padded content, ``rows``: [offset, bytes] of what is written row by row
             and has checksums of its own, ``crc32`` of all else
last bytes   ``hrmtseal``, then the JSON's length and CRC-32, four bytes each, least significant
             first
===========  ======================================================================================
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from typing import TYPE_CHECKING

from hessrmt.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path
    from typing import BinaryIO

_BLOCK = 4096
_LAST = struct.Struct("<8sII")
_MAGIC = b"hrmtseal"
_PIECE = 1 << 20
"""Bytes read at a time."""

Extent = tuple[int, int]
"""Offset and length in bytes."""


def padding(size: int) -> int:
    """Zeros between a content and its seal.

    Args:
        size: Bytes of the content.

    Returns:
        How many.
    """
    return -size % _BLOCK


def seal(size: int, read: Callable[[int, int], bytes], rows: Sequence[Extent] = ()) -> bytes:
    """The seal of a content.

    Args:
        size: Bytes of the padded content.
        read: Gives the bytes at an offset; of the padding, too.
        rows: What will change.

    Returns:
        What is to be written behind the padding.
    """
    merged = _merged(rows)
    about = {"size": size, "rows": merged, "crc32": _checksum(size, read, merged)}
    text = json.dumps(about).encode()
    return text + _LAST.pack(_MAGIC, len(text), zlib.crc32(text))


def has_seal(path: str | Path) -> bool:
    """Whether a file ends with a seal, right or wrong.

    Args:
        path: The file.

    Returns:
        Whether it does.
    """
    with open(path, "rb") as file:
        end = os.fstat(file.fileno()).st_size
        return end >= _LAST.size and _at(file, end - _LAST.size, 8) == _MAGIC


def is_sealed(path: str | Path) -> bool:
    """Whether a file has a seal; one that has matches it.

    Args:
        path: The file.

    Returns:
        Whether it has one: files of other programs and of earlier versions have none.

    Raises:
        StoreError: If it doesn't match its seal.
    """
    if not has_seal(path):
        return False
    with open(path, "rb") as file:
        end = os.fstat(file.fileno()).st_size
        _, length, checksum = _LAST.unpack(_at(file, end - _LAST.size, _LAST.size))
        size = end - _LAST.size - length
        text = _at(file, size, length) if size >= 0 else b""
        if zlib.crc32(text) == checksum:
            stated = _stated(text, size)
            if stated is not None:
                rows, expected = stated
                found = _checksum(size, lambda offset, count: _at(file, offset, count), rows)
                if found == expected:
                    return True
    raise StoreError(
        f"{path} is damaged: it doesn't match the checksum that was written with it. Take a copy "
        "of it, or make it again"
    )


def is_cut(path: str | Path) -> bool:
    """Whether an HDF5 file that was sealed has neither its seal nor the end that it states.

    A program that changes a file through HDF5 leaves it with the end that it states.

    Args:
        path: The file, which has no seal.

    Returns:
        Whether it was cut short, or its seal is damaged.
    """
    with open(path, "rb") as file:
        head = file.read(48)
        place = _END_STATED.get(head[8], 40)
        return os.fstat(file.fileno()).st_size != int.from_bytes(head[place : place + 8], "little")


_END_STATED = {0: 40, 1: 44, 2: 28, 3: 28}
"""Version of HDF5's superblock to where it states the end of the file, offsets of eight bytes."""


def _stated(text: bytes, size: int) -> tuple[list[Extent], int] | None:
    """Rows and checksum of a seal's JSON; None if it can't be that of a content of this size."""
    try:
        about = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(about, dict) or about.get("size") != size:
        return None
    rows, checksum, place = about.get("rows"), about.get("crc32"), 0
    if not isinstance(rows, list) or type(checksum) is not int:
        return None
    for row in rows:
        if not isinstance(row, list) or [type(number) for number in row] != [int, int]:
            return None
        if row[0] < place or row[1] < 0:
            return None
        place = sum(row)
    return ([(offset, count) for offset, count in rows], checksum) if place <= size else None


def _at(file: BinaryIO, offset: int, count: int) -> bytes:
    file.seek(offset)
    return file.read(count)


def _checksum(size: int, read: Callable[[int, int], bytes], rows: Iterable[Extent]) -> int:
    """CRC-32 of all but the rows."""
    checksum = 0
    for start, stop in _between(rows, size):
        for offset in range(start, stop, _PIECE):
            checksum = zlib.crc32(read(offset, min(_PIECE, stop - offset)), checksum)
    return checksum


def _between(rows: Iterable[Extent], size: int) -> Iterator[tuple[int, int]]:
    start = 0
    for offset, count in rows:
        yield start, offset
        start = offset + count
    yield start, size


def _merged(rows: Iterable[Extent]) -> list[Extent]:
    found: list[Extent] = []
    for offset, count in sorted(rows):
        if found and sum(found[-1]) == offset:
            found[-1] = found[-1][0], found[-1][1] + count
        else:
            found.append((offset, count))
    return found
