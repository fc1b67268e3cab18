"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) in their "python version": batches of pickled arrays.

A batch is a dictionary with ``data``, (N, 3072) uint8, the red, green and blue 32 x 32 values of an
image one after the other, and ``labels`` or ``fine_labels``. Batches are read by
:mod:`~hessrmt.problems.pickles`, which executes nothing, and also straight from the ``.tar.gz``
archive. ``batches.meta`` and ``meta``, the names of the classes, are not needed.

[G] standardises each channel with mean (0.4914, 0.4822, 0.4465) and standard deviation (0.2023,
0.1994, 0.2010). Here pixels v become (v / 255 - 0.5) / 0.5 in all channels, as in every other set.
"""

from __future__ import annotations

import gzip
import os
import tarfile
import zlib
from typing import IO, TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from hessrmt.errors import DataError
from hessrmt.problems import pickles

if TYPE_CHECKING:
    from pathlib import Path

_UNPACKED = 2 * pickles.LARGEST
_GZIP = b"\x1f\x8b"
_DAMAGE = (tarfile.TarError, EOFError, zlib.error, ValueError, OverflowError, MemoryError)


class Set(NamedTuple):
    """How a set is published.

    Attributes:
        title: For people.
        folder: In the archive.
        archive: File name of the archive.
        batches: Split to the names of its batches, in order.
        labels: Key of the labels of a batch.
        classes: Number of classes.
    """

    title: str
    folder: str
    archive: str
    batches: dict[str, tuple[str, ...]]
    labels: str
    classes: int


SETS = {
    "cifar10": Set(
        "CIFAR-10",
        "cifar-10-batches-py",
        "cifar-10-python.tar.gz",
        {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)},
        "labels",
        10,
    ),
    "cifar100": Set(
        "CIFAR-100",
        "cifar-100-python",
        "cifar-100-python.tar.gz",
        {"train": ("train",), "test": ("test",)},
        "fine_labels",
        100,
    ),
}
"""By name; CIFAR-100 with its 100 fine labels."""


def find(name: str, place: Path) -> Path | None:
    """Where in a folder a set is.

    Args:
        name: One of ``SETS``.
        place: A folder.

    Returns:
        The folder of all batches (``place`` itself, or below it in torchvision's layout or in a
        folder of the set's name), else the archive; None if neither is there.
    """
    known = SETS[name]
    folders = (place / known.folder, place / name, place / name / known.folder, place)
    for folder in folders:
        if not _missing(name, folder):
            return folder
    archives = (folder / known.archive for folder in (place, place / name))
    return next((path for path in archives if os.path.isfile(path)), None)


def recognise(path: Path) -> str | None:
    """Which set a folder with batches or an archive is.

    Args:
        path: A folder, or a file.

    Returns:
        The name, by the names of files only; None if it is neither.
    """
    for name, known in SETS.items():
        files = [file for batches in known.batches.values() for file in batches]
        if any(os.path.isfile(path / file) for file in files):
            return name
        if path.name == known.archive and os.path.isfile(path):
            return name
    return None


def read(name: str, source: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of one split.

    Args:
        name: One of ``SETS``.
        source: The folder of the batches, or the archive.
        split: ``train`` or ``test``.

    Returns:
        (N, 3, 32, 32) uint8 and (N,) int64.

    Raises:
        DataError: If a batch is missing, damaged, or does not hold what it should.
    """
    known = SETS[name]
    if os.path.isdir(source):
        missing = " and ".join(_missing(name, source))
        if missing:
            raise DataError(
                f"the folder {source} lacks {missing}; expected the batches of {known.title} "
                f"({', '.join(b for s in known.batches.values() for b in s)}). Unpack "
                f"{known.archive} again, or put the archive itself there."
            )
        contents = {str(source / file): _bytes(source / file) for file in known.batches[split]}
    else:
        contents = _from_archive(known, source, split)
    parts = [_batch(known, pickles.read(raw, file), file) for file, raw in contents.items()]
    return np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts])


def _missing(name: str, folder: Path) -> list[str]:
    files = (file for batches in SETS[name].batches.values() for file in batches)
    return [file for file in files if not os.path.isfile(folder / file)]


def _bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            raw = file.read(pickles.LARGEST + 1)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}.") from error
    pickles.refuse_large(len(raw), str(path))
    return raw


class _Bounded:
    """A file that gives an error behind a number of bytes: no archive unpacks without end."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self.file = file
        self.path = path
        self.left = _UNPACKED

    def read(self, size: int) -> bytes:
        raw = self.file.read(size)
        self.left -= len(raw)
        if self.left < 0:
            raise DataError(
                f"{self.path} unpacks to more than {_UNPACKED >> 20} MiB, which no archive of a "
                "CIFAR set does. Download it again."
            )
        return raw


def _from_archive(known: Set, path: Path, split: str) -> dict[str, bytes]:
    """The batches of a split, read without writing anything to disk."""
    wanted = [f"{known.folder}/{file}" for file in known.batches[split]]
    found: dict[str, bytes] = {}
    try:
        with path.open("rb") as file:
            packed = file.read(2) == _GZIP
        with gzip.open(path) if packed else path.open("rb") as file:
            stream = cast("Any", _Bounded(cast("IO[bytes]", file), path))
            with tarfile.open(fileobj=stream, mode="r|", bufsize=1 << 20) as archive:
                for member in archive:
                    if member.name not in wanted or not member.isreg():
                        continue
                    pickles.refuse_large(member.size, f"{member.name} in {path}")
                    found[member.name] = cast("IO[bytes]", archive.extractfile(member)).read()
            while stream.read(1 << 20):  # to the end, where gzip's checksum is
                pass
    except (gzip.BadGzipFile, *_DAMAGE) as error:
        raise DataError(f"{path} is a damaged archive ({error}). Download it again.") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}.") from error
    missing = " and ".join(name for name in wanted if name not in found)
    if missing:
        raise DataError(
            f"{path} lacks {missing}; expected the python version of {known.title}, as published. "
            "Download it again."
        )
    return {f"{name} in {path}": found[name] for name in wanted}


def _batch(known: Set, batch: dict[str, Any], file: str) -> tuple[np.ndarray, np.ndarray]:
    lacking = " and ".join(key for key in ("data", known.labels) if key not in batch)
    if lacking:
        names = ", ".join(map(str, sorted(batch, key=str)))[:200] or "nothing"
        raise DataError(
            f"{file} holds {names}, but not {lacking}; expected a batch of {known.title}."
        )
    x, y = batch["data"], batch[known.labels]
    if not isinstance(x, np.ndarray) or x.dtype != np.uint8 or x.shape[1:] != (3072,):
        found = f"{x.dtype} {x.shape}" if isinstance(x, np.ndarray) else type(x).__name__
        raise DataError(f"{file}: data is {found}, expected uint8 (N, 3072).")
    y = y.tolist() if isinstance(y, np.ndarray) and y.ndim == 1 else y
    if not isinstance(y, list) or not all(type(label) is int for label in y):
        raise DataError(f"{file}: {known.labels} is not a list of integers.")
    if len(y) != len(x) or not y:
        raise DataError(
            f"{file}: {len(x)} images but {len(y)} labels; expected as many, one or more."
        )
    row = next((row for row, label in enumerate(y) if not 0 <= label < known.classes), None)
    if row is not None:
        raise DataError(
            f"{file}: the label in row {row} is {y[row]}; expected 0 to {known.classes - 1}."
        )
    return x.reshape(-1, 3, 32, 32), np.array(y, np.int64)
