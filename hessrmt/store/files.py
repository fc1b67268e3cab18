"""Files that a run can continue: one writer at a time, replaced at once, never half of something.

HDF5 files of spectra, densities and families, and training checkpoints: what differs between them
is only what they hold. How any file is replaced is in :mod:`hessrmt.files`.
"""

from __future__ import annotations

import fcntl
import json
import os
import warnings
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from hessrmt.errors import ConfigError, HessrmtError, HessrmtWarning, StoreError
from hessrmt.files import fail_writing, reason
from hessrmt.records import SOURCE, Provenance
from hessrmt.store.hdf5 import opened, plain, text
from hessrmt.store.seal import has_seal, is_cut

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import h5py

DAMAGE = (OSError, KeyError, ValueError, TypeError, IndexError, RuntimeError)
"""What h5py and json raise on a file that lacks something or is bent."""


SEALED_FROM = 2
"""Schema version of every kind of file since which files have a seal."""


def require_one(*, resume: bool, overwrite: bool) -> None:
    """Refuse to continue a file and to replace it at the same time.

    Raises:
        ConfigError: If both are asked for.
    """
    if resume and overwrite:
        raise ConfigError("--resume and --overwrite exclude each other")


def require_same(
    path: Path, stored: Mapping[str, Any], asked: Mapping[str, Any], growing: Sequence[str] = ()
) -> None:
    """Refuse to continue what was begun with another configuration.

    Args:
        path: The file.
        stored: What the run that wrote it had to share with one that continues it.
        asked: The same of this run.
        growing: Names of numbers that may be larger now: the file is extended.

    Raises:
        StoreError: If anything differs; the message says what.
    """
    differing = _differences(stored, json.loads(json.dumps(dict(asked))), growing)
    if differing:
        raise StoreError(
            f"{path} was made with another configuration: {'; '.join(differing)}. Use the same "
            "settings to resume, or a new file (--out, --history)"
        )


def _differences(stored: Any, asked: Any, growing: Sequence[str], name: str = "") -> list[str]:
    if isinstance(stored, dict) and isinstance(asked, dict):
        return [
            line
            for key in sorted({*stored, *asked} - _one_place(stored, asked))
            if key in stored or not key.endswith(SOURCE)  # older files lack it
            for line in _differences(stored.get(key), asked.get(key), growing, f"{name}{key} ")
        ]
    alike = type(stored) is type(asked) or {type(stored), type(asked)} == {int, float}
    with suppress(RuntimeError, ValueError):  # of tensors, which a checkpoint may hold anywhere
        if alike and stored == asked:
            return []
    if name.strip().endswith(SOURCE):
        return [f"the code of the {name.strip().removesuffix(SOURCE)} (its file has changed since)"]
    if name.strip() in growing and type(stored) is int and type(asked) is int:
        return [] if 0 < stored < asked else [f"{name}({stored} in the file, only {asked} now)"]
    return [f"{name}({stored!r} in the file, {asked!r} now)"]


_DATA, _DATA_SHA256 = "data", "data_sha256"
_PLACES = (_DATA, "model", "loss")
"""Settings that may name a file, or an object of one."""


def _one_place(stored: Mapping[str, Any], asked: Mapping[str, Any]) -> set[str]:
    """Which of these settings name the same file, by whatever way to it."""

    def place(spec: str) -> str:
        return os.path.realpath(os.path.expanduser(spec))

    found = set()
    for key in _PLACES:
        one, other = stored.get(key), asked.get(key)
        if not isinstance(one, str) or not isinstance(other, str):
            continue
        # a relative name may be of another folder
        alike = key == _DATA and os.path.basename(one) == os.path.basename(other)
        digest = stored.get(_DATA_SHA256)
        if place(one) == place(other) or (alike and digest and digest == asked.get(_DATA_SHA256)):
            found.add(key)
    return found


def lock(descriptor: int, path: Path) -> None:
    """Lock an open file as HDF5 itself does; on a file system without locks, do without.

    Args:
        descriptor: Of the open file.
        path: What an error calls it.

    Raises:
        StoreError: If another process holds it.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise StoreError(
            f"another process is writing {path}; wait for it, or name another file"
        ) from error
    except OSError:
        return


class ResumableFile:
    """A file with one writer, which holds a lock beside it until it is closed.

    Args:
        path: The file; its folder must exist.

    Attributes:
        path: The file.

    Raises:
        StoreError: If its folder cannot be written to, another process writes the file, or
            something else has the name of the lock.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = -1
        try:
            real = Path(os.path.realpath(path))  # whichever link leads to it
        except OSError as error:
            fail_writing(path, error)
        self._beside = beside = real.with_name(f".{real.name}.lock")
        while self._lock < 0:
            try:
                descriptor = os.open(beside, os.O_RDWR | os.O_CREAT, 0o666)
            except OSError as error:
                fail_writing(path, error)
            try:
                if os.fstat(descriptor).st_size:  # a lock is empty, and removed at the end
                    raise StoreError(
                        f"{beside} has the name of {path}'s lock and isn't empty; move it away"
                    )
                lock(descriptor, path)
            except StoreError:
                os.close(descriptor)
                raise
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(beside)):
                    self._lock = descriptor
                    return
            os.close(descriptor)  # whoever held it has just removed it

    @property
    def closed(self) -> bool:
        """Whether others may write."""
        return self._lock < 0

    def close(self) -> None:
        """Let others write."""
        if self._lock >= 0:
            self._beside.unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def reading(path: str | Path, schema: str, newest: int) -> Iterator[h5py.File]:
    """An HDF5 file of ours, open for reading without a lock: also while a run is writing it.

    Args:
        path: The file.
        schema: What its attribute of that name must be.
        newest: The largest version that can be read.

    Yields:
        The open file.

    Raises:
        StoreError: If it is missing, damaged, foreign or of a newer version; also where what is
            done with the open file fails as it does with a damaged one.
    """
    with opened(path) as file:
        try:
            found = text(file.attrs.get("schema", ""))
            version = int(np.asarray(file.attrs.get("schema_version", 0)).item())
            if found != schema:
                said = f"its schema is {found!r}" if found else "it has no schema attribute"
                raise StoreError(f"{path} cannot be used here: {said}, expected {schema!r}")
            if not 1 <= version <= newest:
                raise StoreError(
                    f"{path} has schema version {version}, this hessrmt reads 1 to {newest}; a "
                    "newer hessrmt may read it"
                )
            if version >= SEALED_FROM and not has_seal(path):
                if is_cut(path):
                    raise StoreError(f"{path} is damaged: it was cut short after it was written")
                said = "was changed by another program after it was written"
                warnings.warn(f"{path} {said}", HessrmtWarning, stacklevel=4)
            yield file
        except DAMAGE as error:
            if isinstance(error, HessrmtError):
                raise
            raise StoreError(f"{path} is damaged: {reason(error)}") from error


def schema_of(path: str | Path) -> str:
    """What an HDF5 file says that it is.

    Args:
        path: Any path.

    Returns:
        Its schema; empty if it has none, is not there or cannot be read.
    """
    try:
        with opened(path) as file:
            return text(file.attrs.get("schema", ""))
    except (StoreError, *DAMAGE):
        return ""


def attributes_of(
    schema: str, version: int, provenance: Provenance, identity: Mapping[str, Any]
) -> dict[str, Any]:
    """What every file of ours says of itself.

    Args:
        schema: What it is.
        version: Of its layout.
        provenance: Where its content came from.
        identity: Plain values that a run which continues it must share.

    Returns:
        Attributes of the file.
    """
    return {
        "schema": schema,
        "schema_version": version,
        "library": f"hessrmt {provenance.versions.get('hessrmt', '')}",
        "created": provenance.created,
        "device": provenance.device,
        "versions": json.dumps(dict(provenance.versions)),
        "config": json.dumps(dict(provenance.config)),
        "notes": json.dumps(list(provenance.notes)),
        "identity": json.dumps(dict(identity)),
    }


def provenance_of(attributes: Any) -> Provenance:
    """Where the content of a file came from.

    Args:
        attributes: Of the file, as :func:`attributes_of` made them.

    Returns:
        The provenance.
    """
    return Provenance(
        config=plain(attributes.get("config", "{}"), dict),
        device=text(attributes["device"]),
        versions=plain(attributes["versions"], dict),
        created=text(attributes["created"]),
        notes=tuple(plain(attributes["notes"], list)),
    )


def written_by(path: Path) -> Provenance:
    """When and with what a file of ours was written, and the settings in it.

    Args:
        path: Of the file.

    Returns:
        The provenance; one that knows nothing of a file of another program.

    Raises:
        StoreError: If what it says isn't what such a file says.
    """
    with opened(path) as file:
        if "versions" in file.attrs:
            try:
                return provenance_of(file.attrs)
            except DAMAGE as error:
                raise StoreError(f"{path} is damaged: {reason(error)}") from error
    return Provenance({}, "unknown", {}, "unknown")
