"""HDF5 files as they are read and laid out here: checked before the library sees them, and sealed.

A damaged file can make HDF5 loop for ever, take any amount of memory or read other files. What has
a seal (:mod:`hessrmt.store.seal`) is compared with it; what has none, from other programs and
earlier versions, is first read in a process of its own, which may hang or crash.
"""

from __future__ import annotations

import io
import json
import math
import os
import subprocess
import sys
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import h5py
import numpy as np

from hessrmt.errors import StoreError
from hessrmt.files import reason
from hessrmt.store import probe
from hessrmt.store.seal import Extent, is_sealed, padding, seal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

PlainT = TypeVar("PlainT", dict[str, Any], list[str])

_PAGE = 1 << 16

_PATIENCE = 60.0
"""Seconds of a process that reads a file first, beside its limit of processor time."""

_ENDLESS = "the HDF5 library doesn't come to an end with it"

_LONGEST = 60_000
"""Bytes of an attribute with its text inside; HDF5 has room for 64 KiB."""

_FLOAT64 = 8
"""Bytes of the numbers that are made of those of any dataset."""

_claimed: dict[str, dict[str, tuple[int, int]]] = {}
"""Of open files: datasets that were asked for, with their bytes, stored and as float64."""

_SIGNATURE = b"\x89HDF\r\n\x1a\n"


class Image(io.RawIOBase):
    """A file in memory that holds only what has been written to it; the rest is zeros."""

    def __init__(self) -> None:
        self._pages: dict[int, bytearray] = {}
        self._size = self._place = 0

    def readable(self) -> bool:
        """Whether it can be read."""
        return True

    def writable(self) -> bool:
        """Whether it can be written to."""
        return True

    def seekable(self) -> bool:
        """Whether it has places."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place, which is returned."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        self._place = start + offset
        return self._place

    def truncate(self, size: int | None = None) -> int:
        """Set the size, which is returned."""
        self._size = self._place if size is None else size
        return self._size

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer from the current place."""
        view = memoryview(buffer).cast("B")
        count = max(0, min(len(view), self._size - self._place))
        view[:count] = self.at(self._place, count)
        self._place += count
        return count

    def write(self, buffer: Any) -> int:
        """Write at the current place."""
        view = memoryview(buffer).cast("B")
        done = 0
        while done < len(view):
            number, start = divmod(self._place + done, _PAGE)
            page = self._pages.setdefault(number, bytearray(_PAGE))
            part = view[done : done + _PAGE - start]
            page[start : start + len(part)] = part
            done += len(part)
        self._place += done
        self._size = max(self._size, self._place)
        return done

    def at(self, offset: int, count: int) -> bytes:
        """Bytes from a place on.

        Args:
            offset: Where.
            count: How many.

        Returns:
            As many, zeros behind the end.
        """
        first, last = offset // _PAGE, (offset + count - 1) // _PAGE
        blank = bytes(_PAGE)
        pages = [self._pages.get(number, blank) for number in range(first, last + 1)]
        return b"".join(pages)[offset - first * _PAGE :][:count]

    def pieces(self) -> Iterator[tuple[int, bytes]]:
        """What was written.

        Yields:
            Offset and bytes, in order.
        """
        for number in sorted(self._pages):
            start = number * _PAGE
            yield start, bytes(self._pages[number][: max(0, self._size - start)])

    @property
    def size(self) -> int:
        """Bytes."""
        return self._size


def sealed(fill: Callable[[h5py.File], Sequence[Extent] | None]) -> Image:
    """An HDF5 file in memory, sealed.

    Args:
        fill: Puts everything into the empty file; returns what will be written row by row.

    Returns:
        The file.
    """
    found = Image()
    with h5py.File(found, "w", track_order=True) as file:
        rows = fill(file) or ()
    found.truncate(found.size + padding(found.size))
    found.seek(0, os.SEEK_END)
    found.write(seal(found.size, found.at, rows))
    return found


def hdf5_bytes(fill: Callable[[h5py.File], None]) -> bytes:
    """The same for files that are written at once.

    Args:
        fill: Puts everything into the empty file.

    Returns:
        Its bytes.
    """
    found = sealed(fill)
    return found.at(0, found.size)


def put_attributes(place: h5py.Group | h5py.Dataset, values: Mapping[str, Any]) -> None:
    """Set attributes; texts have a fixed length, so that they lie where HDF5 guards them.

    Args:
        place: A file, group or dataset.
        values: Name to number or text.
    """
    for name, value in values.items():
        if isinstance(value, str) and len(data := value.encode()) <= _LONGEST:
            kind = h5py.string_dtype("utf-8", max(1, len(data)))
            place.attrs.create(name, np.array(data, kind), dtype=kind)
        else:
            place.attrs[name] = value


class _Handle(io.BufferedReader):
    """A file that Python opens: HDF5 itself would lock it if HDF5_USE_FILE_LOCKING says so."""

    def __repr__(self) -> str:
        """Its path, which h5py takes for its name."""
        return os.fsdecode(self.name)


@contextmanager
def opened(path: str | Path) -> Iterator[h5py.File]:
    """Any HDF5 file, open for reading without a lock: also while a run is writing it.

    Args:
        path: The file.

    Yields:
        The open file; what is in it may still be anything.

    Raises:
        StoreError: If it is missing, no HDF5 file, or damaged.
    """
    if not os.path.exists(path):
        raise StoreError(f"there is no file {path}")
    handle, file, why, cause = None, None, "", None
    try:
        if not is_sealed(path):
            about = os.stat(path)
            why = _fault(str(path), (about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns))
        if not why:
            handle = _Handle(io.FileIO(path))
            file = h5py.File(handle, "r")
    except (OSError, RuntimeError) as error:
        why, cause = reason(error), error
    with handle or nullcontext():
        if file is None:
            raise StoreError(
                f"{path} cannot be opened as HDF5 (truncated, damaged or another format): {why}"
            ) from cause
        name = str(file.filename)
        first = _claimed.setdefault(name, {}) == {}
        try:
            with file:
                yield file
        finally:
            if first:
                _claimed.pop(name, None)


@cache
def _fault(path: str, _known_by: tuple[int, ...]) -> str:
    """Read a file in a process of its own, once for each state of it.

    Returns:
        Why it can't be read to its end in bounded time and memory; empty if it can.
    """
    with open(path, "rb") as file:
        places = [0, *(512 * 2**k for k in range(24))]
        starts = (file.seek(place) == place and file.read(8) for place in places)
        if _SIGNATURE not in starts:
            return "it has no HDF5 signature"
    command = [sys.executable, "-P", str(Path(probe.__file__)), path]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        return _ENDLESS
    said = done.stdout.decode(errors="replace").strip().splitlines()
    return (said[-1] if said else _ENDLESS) if done.returncode else ""


def dataset(file: h5py.File | h5py.Group, name: str) -> h5py.Dataset:
    """A dataset of a file, whose numbers lie in that file.

    Args:
        file: An open file or group.
        name: Of a dataset in it, perhaps in a group.

    Returns:
        The dataset.

    Raises:
        KeyError: If there is none of that name.
        ValueError: If it lies in another file, or is larger than the file can hold, together with
            what has been read of it since it was opened.
    """
    place: Any = file
    for part in name.strip("/").split("/"):
        link = place.get(part, getlink=True) if isinstance(place, h5py.Group) else None
        if link is not None and not isinstance(link, h5py.HardLink):
            raise ValueError(f"{name} is a link, which isn't followed")
        place = place[part]
    if not isinstance(place, h5py.Dataset) or place.shape is None:
        raise KeyError(f"{name} is no dataset")
    if place.external or place.is_virtual:
        raise ValueError(f"{name} keeps its numbers in another file, which isn't read")
    largest = max(place.size or 0, math.prod(place.chunks or ()))
    if os.path.exists(where := str(place.file.filename)):
        every = _claimed.get(where, {})
        every[str(place.name)] = largest * place.dtype.itemsize, largest * _FLOAT64
        claimed, needed = map(sum, zip(*every.values(), strict=True))
        probe.require_held(name, claimed, os.path.getsize(where), needed)
    return place


def text(value: Any) -> str:
    """An attribute as text, whichever of HDF5's kinds of string it was stored as.

    Returns:
        The text.
    """
    return value.decode() if isinstance(value, bytes) else str(value)


def plain(value: Any, kind: type[PlainT]) -> PlainT:
    """What an attribute says in JSON.

    Args:
        value: Of the attribute.
        kind: dict for names with anything; list for words.

    Returns:
        The dictionary or list.

    Raises:
        ValueError: If it is something else.
    """
    found = json.loads(text(value))
    if not isinstance(found, kind) or (
        isinstance(found, list) and not all(isinstance(item, str) for item in found)
    ):
        wanted = "words" if kind is list else "names with their values"
        raise ValueError(f"an attribute that must list {wanted} holds {text(value)[:40]!r}")
    return found
