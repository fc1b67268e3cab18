"""Files compared with the checksums that they carry: every row, seal and member, whatever it takes.

What reads a file otherwise checks what it uses. Here all of it is read, and nothing else is done.
"""

from __future__ import annotations

import gzip
import os
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile, is_zipfile

import numpy as np

from hessrmt.errors import HessrmtError, StoreError
from hessrmt.files import reason
from hessrmt.problems import readers
from hessrmt.problems.archives import look_through
from hessrmt.store import search, spectra
from hessrmt.store.files import SEALED_FROM, reading, schema_of
from hessrmt.store.hdf5 import opened
from hessrmt.store.seal import has_seal
from hessrmt.tables import counted

_PIECE = 1 << 20
_HDF5, _ZIP, _GZIP = b"\x89HDF", b"PK\x03\x04", b"\x1f\x8b"
_HDF5_ENDINGS = (".h5", ".hdf5")


@dataclass
class Verified:
    """What a file's checksums say of it.

    Attributes:
        file: Its name.
        format: ``HDF5``, ``zip``, ``gzip``, ``search`` or ``other``.
        checked: What was compared with a checksum and is as it was written: seals, rows, members of
            a zip file, streams of a gzip file, records of a search.
        damage: What isn't, in words.
        notes: What else a reader must know.
    """

    file: Path
    format: str
    checked: dict[str, int] = field(default_factory=dict)
    damage: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def state(self) -> str:
        """``verified``, ``damaged``, or ``no checksums``: nothing was compared."""
        return "damaged" if self.damage else "verified" if any(self.checked.values()) else _NONE

    @property
    def words(self) -> str:
        """One line."""
        counts = [counted(n, name, _PLURALS[name]) for name, n in self.checked.items() if n]
        said = f"verified: {', '.join(counts)}" if counts else f"{_NONE} in this format"
        if self.damage:
            rest = f" ({', '.join(counts)} as written)" if counts else ""
            said = f"damaged: {'; '.join(self.damage)}{rest}"
        return "; ".join([said, *self.notes])

    def to_dict(self) -> dict[str, Any]:
        """Plain values.

        Returns:
            A dictionary.
        """
        return {
            "file": str(self.file),
            "format": self.format,
            "state": self.state,
            "checked": dict(self.checked),
            "damage": list(self.damage),
            "notes": list(self.notes),
        }


_NONE = "no checksums"
_PLURALS = {
    "seal": "seals",
    "row": "rows",
    "member": "members",
    "stream": "streams",
    "record": "records",
}
"""Name of what carries a checksum to that of several."""


def verify(path: Path) -> Verified:
    """Read all of a file and compare it with the checksums in it.

    Args:
        path: Any file.

    Returns:
        What was found.

    Raises:
        StoreError: If there is no such file, or it can't be read.
    """
    if not os.path.isfile(path):
        what = "is no file" if os.path.exists(path) else "does not exist"
        raise StoreError(f"{path} {what}; give files that hessrmt reads or writes")
    try:
        name, check = _how(path)
    except OSError as error:
        raise StoreError(f"cannot read {path}: {reason(error)}") from error
    found = Verified(path, name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what ours say is said here
            check(path, found)
    except HessrmtError as error:
        found.damage.append(_without(path, str(error)))
    except OSError as error:
        raise StoreError(f"cannot read {path}: {reason(error)}") from error
    return found


def _how(path: Path) -> tuple[str, Callable[[Path, Verified], None]]:
    """What a file is, by how it begins or ends, or else by its name: either may be damaged."""
    with path.open("rb") as file:
        start, ending = file.read(4), path.suffix.lower()
    if search.is_search(path):
        return "search", _search
    if start == _HDF5 or ending in _HDF5_ENDINGS or has_seal(path):
        return "HDF5", _hdf5
    if start == _ZIP or ending == ".npz" or is_zipfile(path):
        return "zip", _zip
    if start[:2] == _GZIP or ending == ".gz":
        return "gzip", _gzip
    return "other", _other


def _hdf5(path: Path, found: Verified) -> None:
    with opened(path):  # compares the seal
        pass
    found.checked["seal"] = int(has_seal(path))
    if schema_of(path) != spectra.SCHEMA:
        with opened(path) as file:
            version = _version(file)
        if version >= SEALED_FROM and not has_seal(path):
            found.damage.append(_UNSEALED)
        return
    with reading(path, spectra.SCHEMA, spectra.VERSION) as file:
        if _version(file) >= SEALED_FROM and not has_seal(path):
            found.damage.append(_UNSEALED)
        found.checked["row"] = 0
        for name, part in spectra.parts_of(file).items():
            rows, of = spectra.read_rows(part), "" if name is None else f" of block {name}"
            found.damage += [
                f"row {row}{of} doesn't match its checksum or can't be a spectrum"
                for row in rows.damaged
            ]
            if spectra.CHECKSUM in part:
                found.checked["row"] += len(rows.numbers)
            else:
                found.notes.append(
                    f"{counted(len(rows.numbers), 'row', 'rows')}{of} without checksums"
                )
            absent = rows.planned - len(rows.numbers) - len(rows.damaged)
            if absent:
                found.notes.append(f"{counted(absent, 'row', 'rows')}{of} not computed yet")


def _version(file: Any) -> int:
    return int(np.asarray(file.attrs.get("schema_version", 0)).item())


_UNSEALED = "its seal is missing, so another program has changed it after it was written"


def _zip(path: Path, found: Verified) -> None:
    try:
        look_through(path)
        with ZipFile(path) as archive:
            members = archive.infolist()
    except (BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        found.damage.append(reason(error) or type(error).__name__)
        return
    except Exception as error:  # what says which tensors there are raises almost anything
        found.damage.append(f"{type(error).__name__}: {error}")
        return
    found.checked["member"] = len(members) if any(member.CRC for member in members) else 0


def _gzip(path: Path, found: Verified) -> None:
    try:
        with gzip.open(path) as file:
            while file.read(_PIECE):
                pass
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        found.damage.append(reason(error) or type(error).__name__)
    else:
        found.checked["stream"] = 1


def _search(path: Path, found: Verified) -> None:
    found.checked["record"], rest = search.whole_records(path)
    if rest:
        found.notes.append(f"{rest:,} bytes behind them are not whole and will be left out")


def _other(path: Path, found: Verified) -> None:
    if path.suffix.lower() in readers.WRITTEN:
        try:
            readers.read(path)  # torch's older format, or what is left of a zip file
        except readers.ForeignError as error:
            found.notes.append(_without(path, str(error)))


def _without(path: Path, text: str) -> str:
    """A message without the name that it begins with."""
    return text.removeprefix(f"{path} ").removeprefix(f"{path}: ").removeprefix("is damaged: ")
