"""The one writer of a family file: rows complete or absent, whatever interrupts it."""

from __future__ import annotations

import dataclasses
import fcntl
import io
import json
import os
import uuid
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import h5py
import numpy as np

from hessrmt.errors import StoreError, WriteError
from hessrmt.records import Provenance
from hessrmt.store.family import Member, fill, read_file
from hessrmt.store.hdf5 import DAMAGE, reason

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType


class FamilyWriter:
    """Makes or continues a family file; no other writer can until it is closed.

    The lock is on a file of its own beside the family's, since that is replaced with every row.

    Args:
        path: The file; its folder must exist.
        values: Of all planned networks.
        identity: Plain values that a continued run must share, with ``family``.
        provenance: Stored as attributes when the file is new, with ``data`` in its config.

    Attributes:
        path: The file.
        members: Row to finished network.

    Raises:
        StoreError: If the file is in use, damaged, foreign, or of another configuration, or the
            folder cannot be written to.
    """

    def __init__(
        self,
        path: Path,
        values: Sequence[float],
        identity: Mapping[str, Any],
        provenance: Provenance,
    ) -> None:
        self.path = path
        self.members: dict[int, Member] = {}
        self._values = np.asarray(values, dtype=np.float64)
        self._identity = json.loads(json.dumps(dict(identity)))
        self._provenance = provenance
        self._descriptor = _locked(path)
        try:
            if path.exists():
                self._continue()
            else:
                self._replace({})
        except BaseException:
            self.close()
            raise

    def write(self, row: int, member: Member) -> None:
        """Store one finished network; the file on disk is the old one or the new one, complete.

        Args:
            row: Position in the values.
            member: The network.

        Raises:
            StoreError: If there is no such row.
        """
        if not 0 <= row < len(self._values):
            raise StoreError(f"row {row} of {self.path}, which has {len(self._values)} rows")
        members = self.members | {row: member}
        self._replace(members)
        self.members = members

    def close(self) -> None:
        """Let others write."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _replace(self, members: Mapping[int, Member]) -> None:
        image = io.BytesIO()
        with h5py.File(image, "w", track_order=True) as file:
            fill(file, self._values, members, self._identity, self._provenance)
        draft = self.path.with_name(f".{uuid.uuid4().hex[:8]}.{self.path.name}.part")
        try:
            with draft.open("xb") as handle:
                handle.write(image.getbuffer())
                handle.flush()
                os.fsync(handle.fileno())
            os.replace(draft, self.path)
        except OSError as error:
            raise WriteError(f"writing {self.path} failed: {reason(error)}") from error
        finally:
            with suppress(OSError):
                draft.unlink(missing_ok=True)

    def _continue(self) -> None:
        self.members, attributes = read_file(self.path)
        try:
            stored = json.loads(attributes["identity"])
            then = Provenance(
                config={"data": attributes["data"]},
                device=attributes["device"],
                versions=json.loads(attributes["versions"]),
                created=attributes["created"],
                notes=tuple(json.loads(attributes["notes"])),
            )
        except DAMAGE as error:
            raise StoreError(f"{self.path} cannot be continued: {reason(error)}") from error
        differing = list(_differences(stored, self._identity))
        if differing:
            raise StoreError(
                f"{self.path} was made with another configuration: {'; '.join(differing)}. Use "
                "the same settings to continue, or another folder (--out)"
            )
        if then.device != self._provenance.device:
            note = f"continued on {self._provenance.device} with row {len(self.members)}"
            then = dataclasses.replace(then, notes=(*then.notes, note))
        self._provenance = then


def _locked(path: Path) -> int:
    beside = path.with_name(f".{path.name}.lock")
    try:
        descriptor = os.open(beside, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise StoreError(
            f"cannot write into the folder {path.parent}: {reason(error)}; give a path in a "
            "folder that exists and that you can write to"
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise StoreError(
            f"another process is writing {path}; wait for it, or give another folder (--out)"
        ) from error
    except OSError:  # a file system without locks
        return descriptor
    return descriptor


def _differences(stored: Any, asked: Any, name: str = "") -> list[str]:
    if isinstance(stored, dict) and isinstance(asked, dict):
        return [
            line
            for key in sorted({*stored, *asked})
            for line in _differences(stored.get(key), asked.get(key), f"{name}{key} ")
        ]
    if stored == asked:
        return []
    return [f"{name}({stored!r} in the file, {asked!r} now)"]
