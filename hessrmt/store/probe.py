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
"""Bytes that a dataset may always have; beyond, three times as many as the file."""


def require_held(name: str, claimed: int, size: int, needed: int = 0) -> None:
    """Refuse a dataset that can't be in its file, before memory for it is taken.

    Args:
        name: Of the dataset.
        claimed: Its bytes.
        size: Bytes of the file.
        needed: Bytes of what is made of it, if they are more.

    Raises:
        ValueError: If more than 1 GiB is needed for it, and it has more than three times as many
            bytes as the file.
    """
    if max(claimed, needed) > _ALLOWED and claimed > 3 * size:
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
