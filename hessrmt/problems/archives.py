"""Zip files, such as ``.npz`` and checkpoints of torch: looked through before they are read."""

from __future__ import annotations

import os
import pickle
from collections import Counter
from functools import cache
from math import prod
from typing import IO, TYPE_CHECKING, Any, BinaryIO, ClassVar
from zipfile import ZIP_STORED, BadZipFile, ZipFile, ZipInfo

import numpy as np
import torch
from numpy.lib import format as npy

from hessrmt.errors import DeviceError
from hessrmt.memory import free_host_memory
from hessrmt.problems.protocols import PICKLED, PICKLES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

_PIECE = 1 << 20
_HEADER = 30
"""Bytes of a member's own header before its name."""

_EMPTY = 22
"""Bytes of a zip file without members."""

_LAST, _MANY = (1 << 16) + 22, 0xFFFF
"""Bytes in which the end of the directory lies, and what it says of more members than that."""

_MOST_IN_TUPLE = 10_000
"""Parts that a tuple may always have, those of tuples in it counted wherever they stand."""

_MOST = 1 << 28
"""Bytes that may always be unpacked from a file; beyond, so many times the file's:"""
_MOST_DEFLATED = 100


def most_unpacked(stored: int) -> int:
    """How large what a file holds may be, unpacked.

    Deflate packs up to 1032 : 1, but numbers that mean something are far from that.

    Args:
        stored: Bytes of the file.

    Returns:
        Bytes.
    """
    return max(_MOST, _MOST_DEFLATED * stored)


def require_memory(path: Path, needed: int) -> None:
    """Refuse to unpack what main memory has no room for.

    Args:
        path: The file, for the message.
        needed: Bytes.

    Raises:
        DeviceError: If less is free.
    """
    if needed > _MOST and needed > (free := free_host_memory()):
        raise DeviceError(
            f"{path} unpacks to {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB of memory are "
            "free; use a machine with more"
        )


def look_through(path: Path) -> bool:
    """Check every member of a zip file: its place, its length, its checksum.

    torch compares no checksums, and maps packed members as if they weren't. Files of torch may have
    been written without checksums (``set_crc32_options(False)``): then all of them are 0.

    Args:
        path: The file.

    Returns:
        Whether all members are stored as they are, so that they can be mapped into memory.

    Raises:
        BadZipFile: If something doesn't fit.
    """
    about = os.stat(path)
    return _look_through(path, (about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns))


@cache
def _look_through(path: Path, _known_by: tuple[int, ...]) -> bool:
    with path.open("rb") as raw, ZipFile(raw) as archive:
        size = os.fstat(raw.fileno()).st_size
        members = sorted(archive.infolist(), key=lambda member: member.header_offset)
        lost = members[0].header_offset > 0 if members else size > _EMPTY
        if lost or _counted(raw, size) not in {len(members), _MANY}:
            raise BadZipFile("its directory has lost members")
        _require_own_names(members)
        starts = [*(member.header_offset for member in members), archive.start_dir]
        for member, after in zip(members, starts[1:], strict=True):
            if _end(raw, member) > after:
                raise BadZipFile(f"its member {member.filename!r} reaches into another")
        unpacked = sum(member.file_size for member in members)
        if unpacked > most_unpacked(size):
            raise BadZipFile(
                f"its members claim to unpack to {unpacked:,} bytes, {unpacked // size:,} times "
                f"the file; {_MOST_DEFLATED} times are read"
            )
        if not any(member.CRC for member in members):
            for member in members:
                del member.CRC  # zipfile then compares none
        for member in members:
            with archive.open(member) as handle:
                while handle.read(_PIECE):  # compares the checksum at the end
                    pass
        for member in members:
            if member.filename.rpartition("/")[2] == PICKLED:
                _require_storages(archive, member)
    return all(member.compress_type == ZIP_STORED for member in members)


def _require_own_names(members: Iterable[ZipInfo]) -> None:
    """Refuse names that stand for two members: which of them is read depends on the reader."""
    names = [member.filename for member in members]
    # torch finds names whatever their case; in .npz files W and w are two arrays
    if any(name.rpartition("/")[2] == PICKLED for name in names):
        names = [name.casefold() for name in names]
    name, times = Counter(names).most_common(1)[0] if names else ("", 0)
    if times > 1:
        raise BadZipFile(f"{times} of its members are called {name!r}")


def npy_header(archive: ZipFile, member: str) -> tuple[tuple[int, ...], np.dtype]:
    """What an array in an ``.npz`` file says of itself, before memory for it is taken.

    Args:
        archive: The file, open.
        member: A name in it that ends in ``.npy``.

    Returns:
        Shape and type.

    Raises:
        BadZipFile: If the member doesn't hold as many numbers as that.
    """
    with archive.open(member) as handle:
        first = npy.read_magic(handle) == (1, 0)
        reads = npy.read_array_header_1_0 if first else npy.read_array_header_2_0
        shape, _, dtype = reads(handle)
        held = archive.getinfo(member).file_size - handle.tell()
    needed = prod(shape) * dtype.itemsize
    if not dtype.hasobject and held != needed:
        raise BadZipFile(
            f"its member {member!r} has {held:,} bytes of numbers, its shape {shape} needs "
            f"{needed:,}"
        )
    return shape, dtype


class Inert:
    """In place of any other object of a pickle: holds nothing, does nothing."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass

    def __setitem__(self, _: object, __: object) -> None:
        pass

    def append(self, _: object) -> None:
        """Take an item of a list and forget it."""


class EndlessError(pickle.UnpicklingError):
    """A pickle that would take for ever."""


def _counting(load: Callable[[Any], None]) -> Callable[[Any], None]:
    def counted(reader: _Storages) -> None:
        load(reader)
        reader.require_few()

    return counted


_PYTHON = pickle._Unpickler.dispatch
_TUPLES = (pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3)


class _Storages(pickle._Unpickler):  # the one in C takes any memory that a file asks for
    """What storages a checkpoint of torch refers to; nothing of its pickle is executed."""

    dispatch: ClassVar = _PYTHON | {code[0]: _counting(_PYTHON[code[0]]) for code in _TUPLES}
    stack: list[Any]

    def __init__(self, file: IO[bytes], size: int) -> None:
        super().__init__(file)
        self.found: list[tuple[str, str, int]] = []
        self._most = max(_MOST_IN_TUPLE, size)
        self._sizes: dict[int, tuple[Any, int]] = {}

    def find_class(self, module: str, name: str) -> Any:  # noqa: ARG002
        return type(name, (Inert,), {})

    def persistent_load(self, pid: Any) -> Any:
        _, kind, key, _, count, *_ = pid  # torch's older format adds where views lie
        self.found.append((kind.__name__, str(key), int(count)))
        return Inert()

    def require_few(self) -> None:
        """Refuse a tuple that holds others many times: the hash of a key visits each of them."""
        made = self.stack[-1]
        size = 1 + sum(self._sizes.get(id(part), (None, 1))[1] for part in made)
        if size > self._most:
            raise EndlessError(f"a tuple in it has {size:,} parts, most of them shared")
        self._sizes[id(made)] = made, size  # kept, so that no other gets its id


def require_end(path: Path) -> None:
    """Refuse a pickle, as files of torch's older format are, with keys that take for ever.

    Args:
        path: The file.

    Raises:
        EndlessError: If it has them; all else that may be wrong is left to its reader.
    """
    with path.open("rb") as file:
        for _ in range(PICKLES):
            try:
                _Storages(file, path.stat().st_size).load()
            except EndlessError:
                raise
            except Exception:
                return


def _require_storages(archive: ZipFile, pickled: ZipInfo) -> None:
    """Refuse storages that are larger than the members which hold them: mapped, they go beyond."""
    with archive.open(pickled) as file:
        storages = _Storages(file, pickled.file_size)
        storages.load()
    folder = pickled.filename.removesuffix(PICKLED)
    for kind, key, count in storages.found:
        dtype = torch.uint8 if kind == "UntypedStorage" else getattr(torch, kind).dtype
        name = f"{folder}data/{key}"
        held, needed = archive.getinfo(name).file_size, count * dtype.itemsize
        if held < needed:
            raise BadZipFile(f"{name!r} has {held:,} bytes, its tensors need {needed:,}")


def _counted(raw: BinaryIO, size: int) -> int:
    """How many members the end of a zip file says that there are."""
    raw.seek(max(0, size - _LAST))
    last = raw.read()
    place = last.rfind(b"PK\5\6") + 10
    return int.from_bytes(last[place : place + 2], "little")


def _end(raw: BinaryIO, member: ZipInfo) -> int:
    """Where a member ends by its own header, which may be longer than the directory says."""
    raw.seek(member.header_offset)
    header = raw.read(_HEADER)
    if header[:4] != b"PK\x03\x04" or len(header) < _HEADER:
        raise BadZipFile(f"its member {member.filename!r} is not where it should be")
    name, extra = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
    return member.header_offset + _HEADER + name + extra + member.compress_size
