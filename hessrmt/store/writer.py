"""The one writer of a spectrum file: rows complete or absent, whatever interrupts it.

HDF5 only lays the file out, in memory. Since no row ever changes the file's structure, rows are
then written by the operating system at their known offsets: HDF5 keeps unwritten changes of its
own, and after a write that failed (disk full) it can neither drop them nor close the file.
"""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeAlias

import h5py
import numpy as np

from hessrmt.errors import StoreError, WriteError
from hessrmt.store.hdf5 import DAMAGE, blocks_in, open_checked, reason, text
from hessrmt.store.layout import array, lay_out, lay_out_blocks
from hessrmt.store.schema import COLUMNS, DONE, EIGENVALUES, NOTHING, group_of

if TYPE_CHECKING:
    from types import TracebackType

    from hessrmt.arrays import Indices
    from hessrmt.records import Provenance, Spectrum
    from hessrmt.store.schema import Extra

    ExtraRow = Mapping[str, Any]


Row: TypeAlias = "Spectrum | Mapping[str, Spectrum]"
"""What a batch has given: a spectrum, or that of each block."""


class _Slot(NamedTuple):
    """Where a dataset with one row per batch lies in the file."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype


class SpectrumWriter:
    """The one writer of a spectrum file, which it holds locked until closed.

    Use :meth:`create` or :meth:`resume`, then :meth:`write` row by row in any order.

    Attributes:
        path: The file.
        done: (batches,) bool: which rows are complete.
    """

    def __init__(self, path: Path, descriptor: int, identity: Mapping[str, Any]) -> None:
        self.path = path
        self._descriptor = descriptor
        with open_checked(path) as file:
            try:
                stored = json.loads(text(file.attrs["identity"]))
                self._extra = frozenset(json.loads(text(file.attrs.get("extra", "[]"))))
                names = (EIGENVALUES, DONE, *COLUMNS, *self._extra)
                self._groups = {name: f"{group_of(name)}/" for name in blocks_in(file)}
                groups = tuple(self._groups.values()) or ("",)
                self._slots = {g + name: _slot(file, g + name) for g in groups for name in names}
                done = [np.asarray(file[group + DONE]).astype(bool) for group in groups]
                self.done = np.logical_and.reduce(done)
            except DAMAGE as error:
                raise StoreError(f"{path} cannot be continued: {reason(error)}") from error
        _check_identity(path, stored, identity)

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        identity: Mapping[str, Any],
        solver: str,
        dimension: int | Mapping[str, int],
        batch_indices: Indices,
        provenance: Provenance,
        extra: Extra = NOTHING,
        overwrite: bool = False,
    ) -> Self:
        """Make a new file with every row absent, and lock it.

        Args:
            path: Where; its folder must exist.
            identity: Plain values that a resumed run must share, e.g. the settings.
            solver: Eigenvalue routine.
            dimension: P; or names of blocks to the dimension of each.
            batch_indices: (batches, B) positions of each batch's samples.
            provenance: Stored as attributes.
            extra: What the file holds beside spectra.
            overwrite: Replace an existing file, unless it is being written.

        Returns:
            The writer.

        Raises:
            StoreError: If the file exists and may not be replaced, or cannot be written.
        """
        if os.path.isdir(path):
            raise StoreError(f"{path} is a folder; --out takes the name of a file")
        if os.path.exists(path) and not overwrite:
            raise StoreError(_exists(path))
        image = io.BytesIO()
        with h5py.File(image, "w", track_order=True) as file:
            parts: dict[str, Any] = {
                "solver": solver,
                "batch_indices": batch_indices,
                "provenance": provenance,
                "extra": extra,
            }
            if isinstance(dimension, Mapping):
                lay_out_blocks(file, dimension, identity, **parts)
            else:
                lay_out(file, identity, dimension=dimension, **parts)
        draft = path.with_name(f".{uuid.uuid4().hex[:8]}.{path.name}.part")
        descriptor = -1
        try:
            descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            _lock(descriptor, path)  # so that the file is locked from its first moment
            _write_at(descriptor, image.getbuffer(), 0)
            os.fsync(descriptor)
            if overwrite:
                _replace(draft, path)
            else:
                _publish(draft, path)
            return cls(path, descriptor, identity)
        except BaseException as error:
            if descriptor >= 0:
                os.close(descriptor)
                draft.unlink(missing_ok=True)
            if isinstance(error, FileExistsError):
                raise StoreError(_exists(path)) from error
            if isinstance(error, OSError):
                raise StoreError(f"cannot write {path}: {reason(error)}") from error
            raise

    @classmethod
    def resume(cls, path: Path, identity: Mapping[str, Any]) -> Self:
        """Lock an existing file and continue it.

        Args:
            path: The file.
            identity: What this run would have passed to :meth:`create`.

        Returns:
            The writer.

        Raises:
            StoreError: If the file is foreign, damaged, in use, or of another configuration.
        """
        open_checked(path).close()
        try:
            descriptor = os.open(path, os.O_RDWR)
        except OSError as error:
            raise StoreError(f"cannot write {path}: {reason(error)}") from error
        try:
            _lock(descriptor, path)
            if not os.path.samestat(os.fstat(descriptor), os.stat(path)):
                raise StoreError(f"another process has just replaced {path}; use --out")
            return cls(path, descriptor, identity)
        except BaseException as error:
            os.close(descriptor)
            if isinstance(error, OSError):
                raise StoreError(f"cannot write {path}: {reason(error)}") from error
            raise

    def write(self, row: int, spectrum: Row, extra: ExtraRow | None = None) -> None:
        """Store one complete row; it counts as done only once all of it is on disk.

        Args:
            row: Batch number.
            spectrum: The result; for a file of blocks that of each.
            extra: Value of every extra column of the file, if it has any.
        """
        self.write_all({row: spectrum}, {row: extra or {}})

    def write_all(
        self, rows: Mapping[int, Row], extra: Mapping[int, ExtraRow] | None = None
    ) -> None:
        """Store several complete rows with one wait for the disk; none is done before all are.

        Args:
            rows: Batch number to result.
            extra: Batch number to the value of every extra column, if the file has any.

        Raises:
            WriteError: If the disk refuses.
        """
        row = -1
        try:
            for row, found in rows.items():
                for group, spectrum in self._by_group(found):
                    self._put(group + EIGENVALUES, row, spectrum.eigenvalues)
                    for name in COLUMNS:
                        self._put(group + name, row, _value(spectrum, name))
                    self._put_extra(group, row, (extra or {}).get(row, {}))
            os.fsync(self._descriptor)
            for row in rows:
                for group in self._groups.values() or ("",):
                    self._put(group + DONE, row, 1)
            os.fsync(self._descriptor)
        except OSError as error:
            raise WriteError(
                f"writing batch {row} to {self.path} failed: {reason(error)}"
            ) from error
        self.done[list(rows)] = True

    def close(self) -> None:
        """Release the file."""
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

    def _by_group(self, found: Row) -> list[tuple[str, Spectrum]]:
        """Each spectrum of a row, and what stands before the names of its group's datasets."""
        if isinstance(found, Mapping):
            return [(self._groups[name], spectrum) for name, spectrum in found.items()]
        return [("", found)]

    def _put_extra(self, group: str, row: int, extra: ExtraRow) -> None:
        if extra.keys() != self._extra:
            names = ", ".join(sorted(extra.keys() ^ self._extra))
            raise StoreError(f"row {row} and {self.path} have different extra columns: {names}")
        for name, value in extra.items():
            self._put(group + name, row, value)

    def _put(self, name: str, row: int, value: Any) -> None:
        slot = self._slots[name]
        data = np.ascontiguousarray(value, dtype=slot.dtype)
        if not 0 <= row < slot.shape[0] or data.size != int(np.prod(slot.shape[1:])):
            raise StoreError(
                f"row {row} with {data.size:,} values does not fit {name} of shape {slot.shape}"
            )
        _write_at(self._descriptor, data.tobytes(), slot.offset + row * data.nbytes)


def _slot(file: h5py.File, name: str) -> _Slot:
    dataset = array(file, name)
    offset = dataset.id.get_offset()
    if offset is None:
        raise ValueError(f"{name} was stored anew in pieces by another program")
    return _Slot(offset, dataset.shape, dataset.dtype)


def _write_at(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def _lock(descriptor: int, path: Path) -> None:
    """Lock as HDF5 itself does; on a file system without locks, do without."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise StoreError(f"another process is writing {path}; wait for it or use --out") from error
    except OSError:
        return


def _replace(draft: Path, path: Path) -> None:
    """Put a finished draft in another file's place, unless that file is being written."""
    old = -1
    try:
        with suppress(FileNotFoundError):
            old = os.open(path, os.O_RDONLY)
            _lock(old, path)
        draft.replace(path)
    finally:
        if old >= 0:
            os.close(old)


def _publish(draft: Path, path: Path) -> None:
    """Give a finished draft its name without ever replacing another file."""
    try:
        os.link(draft, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if os.path.exists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        draft.replace(path)
    else:
        draft.unlink()


def _exists(path: Path) -> str:
    return f"{path} exists; --resume continues it, --overwrite replaces it; or name another file"


def _check_identity(path: Path, stored: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    asked = json.loads(json.dumps(dict(asked)))
    differing = [
        f"{key} ({stored.get(key)!r} in the file, {asked.get(key)!r} now)"
        for key in sorted({*stored, *asked})
        if stored.get(key) != asked.get(key)
    ]
    if differing:
        raise StoreError(
            f"{path} was made with another configuration: {'; '.join(differing)}. Use the same "
            "settings to resume, or a new file (--out, --history)"
        )


def _value(spectrum: Spectrum, name: str) -> float:
    if name.startswith("seconds_"):
        return spectrum.seconds.get(name.removeprefix("seconds_"), float("nan"))
    return getattr(spectrum, name)
