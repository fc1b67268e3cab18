"""Read all of an HDF5 file in a process of its own: damage can make the library loop or crash.

Run by :mod:`hessrmt.store.hdf5` as ``python probe.py FILE``; says on standard output what is wrong,
and ends with status 3 then. Imports nothing of the package, so that it starts at once.
"""

from __future__ import annotations

import math
import os
import resource
import sys
from contextlib import suppress

import h5py

_PIECE = 1 << 24
"""Bytes read at a time."""

_ALLOWED = 1 << 30
_LIMITS = ((1 << 28, 100), (_ALLOWED, 3))
"""Bytes that datasets may always have; beyond each, so many times as many as the file. Pictures and
statistics of numbers take ten times as much as the numbers."""


def require_held(name: str, claimed: int, size: int, needed: int = 0) -> None:
    """Refuse datasets that can't be in their file, before memory for them is taken.

    Args:
        name: Of the dataset.
        claimed: Its bytes, with those of others that are read.
        size: Bytes of the file.
        needed: Bytes of what is made of them, if they are more.

    Raises:
        ValueError: If more than 256 MiB are needed, and they have more than 100 times as many bytes
            as the file; or more than 1 GiB and three times.
    """
    if any(max(claimed, needed) > most and claimed > times * size for most, times in _LIMITS):
        raise ValueError(
            f"{name} claims {claimed:,} bytes, more than a file of {size:,} bytes can hold"
        )


def _read(item: h5py.Group | h5py.Dataset, size: int) -> None:
    for name in item.attrs:
        item.attrs[name]
    if not isinstance(item, h5py.Dataset):
        return
    if item.shape is None:  # it says itself that it is empty
        return
    width = item.dtype.itemsize
    row = width * math.prod(item.shape[1:])
    try:
        for claimed in (width * (item.size or 0), row, width * math.prod(item.chunks or ())):
            require_held(str(item.name), claimed, size)
    except ValueError:  # nobody reads it: hdf5.dataset refuses it for the same reasons
        return
    if item.external or item.is_virtual:
        return
    if not item.shape:
        item[()]
        return
    step = max(1, _PIECE // max(1, row))
    for start in range(0, len(item), step):
        item[start : start + step]


def _run(path: str) -> None:
    size = os.path.getsize(path)
    seconds = 2 + size // 2**26
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError, ValueError), open("/proc/self/statm", "rb") as about:
        held = int(about.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + _ALLOWED, held + _ALLOWED))
    with open(path, "rb") as handle, h5py.File(handle, "r") as file:  # without HDF5's locks
        _read(file, size)
        file.visititems(lambda _, item: _read(item, size))


if __name__ == "__main__":
    try:
        _run(sys.argv[1])
    except Exception as error:  # whatever it is, this file isn't read
        print(error or type(error).__name__)
        sys.exit(3)
