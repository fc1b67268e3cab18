"""Density files, ``hessrmt/density`` version 1: small, and each version of one is complete.

A file holds a few random vectors' quadratures and some thousand levels at most, so every change
writes a new file beside the old one and puts it in its place at once: whatever interrupts a run,
the file is that of the last finished probe, trace or set of edge levels.

==================  ===============================================================================
dataset             meaning
==================  ===============================================================================
``nodes``           (probes, steps) float64, ascending; NaN where a probe has no more of them, and
                    in rows that are not done
``weights``         (probes, steps) float64; 0 where there is no node
``done``            (probes,) uint8
``edges/values``    (n,) float64, ascending, those of the lower end first; only when complete
``edges/residuals`` (n,) float64
==================  ===============================================================================

Groups ``edges`` and ``traces`` carry their single numbers as attributes, the root carries the
settings, versions and everything else that a spectrum file has.
"""

from __future__ import annotations

import fcntl
import io
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import h5py
import numpy as np

from hessrmt.errors import StoreError, WriteError
from hessrmt.store.hdf5 import DAMAGE, reason, text

if TYPE_CHECKING:
    from types import TracebackType

SCHEMA = "hessrmt/density"
VERSION = 1


class Content(NamedTuple):
    """What is in a file.

    Attributes:
        attributes: Name to number or text; of a group as ``"edges/norm"``.
        arrays: Name of the dataset to its values.
    """

    attributes: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray]


def is_density(path: str | Path) -> bool:
    """Whether a file says that it is a density file.

    Args:
        path: Any path.

    Returns:
        False also if it is not there or cannot be read.
    """
    try:
        with h5py.File(path, "r", locking=False) as file:
            return text(file.attrs.get("schema", "")) == SCHEMA
    except DAMAGE:
        return False


def read(path: str | Path) -> Content:
    """Everything in a density file; also while a run is writing it.

    Args:
        path: The file.

    Returns:
        Its content.

    Raises:
        StoreError: If it is missing, damaged, foreign or of a newer schema.
    """
    if not os.path.exists(path):
        raise StoreError(f"there is no file {path}")
    try:
        with h5py.File(path, "r", locking=False) as file:
            schema = text(file.attrs.get("schema", ""))
            if schema != SCHEMA:
                said = f"its schema is {schema!r}" if schema else "it has no schema attribute"
                raise StoreError(f"{path} is no density file: {said}, expected {SCHEMA!r}")
            version = int(np.asarray(file.attrs["schema_version"]).item())
            if not 1 <= version <= VERSION:
                raise StoreError(
                    f"{path} has schema version {version}, this hessrmt reads 1 to {VERSION}; a "
                    "newer hessrmt may read it"
                )
            attributes, arrays = dict(file.attrs), {}

            def visit(name: str, item: Any) -> None:
                if isinstance(item, h5py.Dataset):
                    arrays[name] = np.asarray(item)
                else:
                    attributes.update({f"{name}/{key}": v for key, v in item.attrs.items()})

            file.visititems(visit)
    except StoreError:
        raise
    except DAMAGE as error:
        raise StoreError(
            f"{path} cannot be read as HDF5 (truncated, damaged or another format): {reason(error)}"
        ) from error
    return Content(attributes, arrays)


class DensityWriter:
    """The one writer of a density file, which holds a lock beside it until closed.

    Args:
        path: The file; its folder must exist.
        overwrite: Whether an existing file may be replaced: to continue it, or by a new one.

    Attributes:
        path: The file.

    Raises:
        StoreError: If it cannot be written, exists, or is being written by another process.
    """

    def __init__(self, path: Path, *, overwrite: bool = False) -> None:
        if os.path.isdir(path):
            raise StoreError(f"{path} is a folder; --out takes the name of a file")
        if os.path.exists(path) and not overwrite:
            raise StoreError(
                f"{path} exists; --resume continues it, --overwrite replaces it; or name another "
                "file (--out)"
            )
        self.path = path
        self._guard = path.with_name(f".{path.name}.lock")
        try:
            self._lock = os.open(self._guard, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise StoreError(f"cannot write {path}: {reason(error)}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._lock)
            raise StoreError(
                f"another process is writing {path}; wait for it or use --out"
            ) from error
        except OSError:  # a file system without locks
            return

    def write(self, content: Content) -> None:
        """Put a new version of the file in place of the old one.

        Args:
            content: All of it.

        Raises:
            WriteError: If the disk refuses; the old version stays.
        """
        image = io.BytesIO()
        with h5py.File(image, "w", track_order=True) as file:
            file.attrs["schema"], file.attrs["schema_version"] = SCHEMA, VERSION
            for name, values in content.arrays.items():
                file.create_dataset(name, data=values)
            for name, value in content.attributes.items():
                group, _, key = name.rpartition("/")
                place = file.require_group(group) if group else file
                place.attrs[key] = value
        draft = self.path.with_name(f".{uuid.uuid4().hex[:8]}.{self.path.name}.part")
        try:
            with draft.open("xb") as target:
                target.write(image.getbuffer())
                target.flush()
                os.fsync(target.fileno())
            draft.replace(self.path)
        except OSError as error:
            draft.unlink(missing_ok=True)
            raise WriteError(f"writing {self.path} failed: {reason(error)}") from error

    def close(self) -> None:
        """Release the file."""
        if self._lock >= 0:
            self._guard.unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
