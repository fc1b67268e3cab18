"""Spectrum files in HDF5: one writer, rows complete or absent, readable at any moment."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import h5py
import numpy as np

from hessrmt.errors import StoreError, WriteError
from hessrmt.records import Provenance, Spectra, Spectrum
from hessrmt.store.schema import COLUMNS, DONE, EIGENVALUES, INDICES, PHASES, SCHEMA, VERSION

if TYPE_CHECKING:
    from types import TracebackType

    from hessrmt.arrays import Indices


class SpectrumWriter:
    """The one writer of a spectrum file, which it holds locked until closed.

    Use :meth:`create` or :meth:`resume`, then :meth:`write` row by row in any order.

    Attributes:
        path: The file.
        identity: What a run must agree on to continue the file.
    """

    def __init__(self, path: Path, file: h5py.File) -> None:
        self.path = path
        self._file = file
        self.identity: dict[str, Any] = json.loads(_text(file.attrs["identity"]))

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        identity: Mapping[str, Any],
        solver: str,
        dimension: int,
        batch_indices: Indices,
        provenance: Provenance,
        overwrite: bool = False,
    ) -> Self:
        """Make a new file with every row absent, and lock it.

        Args:
            path: Where; its folder must exist.
            identity: Plain values that a resumed run must share, e.g. the settings.
            solver: Eigenvalue routine.
            dimension: P.
            batch_indices: (batches, B) positions of each batch's samples.
            provenance: Stored as attributes.
            overwrite: Replace an existing file, unless another process is writing it.

        Returns:
            The writer.

        Raises:
            StoreError: If the file exists and may not be replaced, or cannot be written.
        """
        if path.exists():
            if not overwrite:
                raise StoreError(
                    f"{path} exists; --resume continues it, --overwrite replaces it, --out takes "
                    "another name"
                )
            _refuse_second_writer(path)
        draft = path.with_name(path.name + ".part")
        try:
            with h5py.File(draft, "w", locking="best-effort", track_order=True) as file:
                _fill(file, identity, solver, dimension, batch_indices, provenance)
            _sync(draft)
            if overwrite:
                draft.replace(path)
            else:
                _publish(draft, path)
        except OSError as error:
            draft.unlink(missing_ok=True)
            raise StoreError(f"cannot write {path}: {_reason(error)}") from error
        return cls(path, _open_for_writing(path))

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
        file = _open_for_writing(path)
        try:
            _check_schema(path, file)
            writer = cls(path, file)
            _check_identity(path, writer.identity, identity)
        except BaseException:
            file.close()
            raise
        return writer

    @property
    def done(self) -> np.ndarray:
        """(batches,) bool: which rows are complete."""
        return self._dataset(DONE)[:].astype(bool)

    def write(self, row: int, spectrum: Spectrum) -> None:
        """Store one complete row; it counts as done only once all of it is on disk.

        Args:
            row: Batch number.
            spectrum: The result.

        Raises:
            WriteError: If the disk refuses.
        """
        try:
            self._dataset(EIGENVALUES)[row] = spectrum.eigenvalues
            for name, column in COLUMNS.items():
                self._dataset(name)[row] = column.dtype(_value(spectrum, name))
            self._flush()
            self._dataset(DONE)[row] = 1
            self._flush()
        except OSError as error:
            raise WriteError(
                f"writing batch {row} to {self.path} failed: {_reason(error)}"
            ) from error

    def close(self) -> None:
        """Release the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _dataset(self, name: str) -> h5py.Dataset:
        found = self._file[name]
        assert isinstance(found, h5py.Dataset)
        return found

    def _flush(self) -> None:
        self._file.flush()
        _sync(self.path)


def load(path: str | Path) -> Spectra:
    """The complete spectra of a file; also while a run is still writing it.

    Args:
        path: A file written by ``hessrmt spectrum``.

    Returns:
        The spectra whose rows are complete, with their provenance.

    Raises:
        StoreError: If the file is missing, truncated, foreign or of a newer schema.
    """
    path = Path(path)
    with _open(path, "r", locking=False) as file:
        _check_schema(path, file)
        attributes = file.attrs
        settings = json.loads(_text(attributes["config"]))
        provenance = Provenance(
            config=settings,
            device=_text(attributes["device"]),
            versions=json.loads(_text(attributes["versions"])),
            created=_text(attributes["created"]),
            notes=tuple(json.loads(_text(attributes["notes"]))),
        )
        try:
            done = np.flatnonzero(np.asarray(file[DONE]))
            levels = np.asarray(file[EIGENVALUES])
            columns = {name: np.asarray(file[name]) for name in COLUMNS}
            indices = np.asarray(file[INDICES])
        except (KeyError, OSError) as error:
            raise StoreError(f"{path} is damaged: {_reason(error)}") from error
        items = tuple(
            Spectrum(
                eigenvalues=levels[row],
                noise_floor=float(columns["noise_floor"][row]),
                dimension=levels.shape[1],
                reduced_dimension=int(columns["reduced_dimension"][row]),
                loss=float(columns["loss"][row]),
                gradient_norm=float(columns["gradient_norm"][row]),
                operator=settings["operator"],
                dtype=settings["dtype"],
                solver=_text(attributes["solver"]),
                seconds={phase: float(columns[f"seconds_{phase}"][row]) for phase in PHASES},
                provenance=provenance,
            )
            for row in done
        )
        return Spectra(items, indices[done], planned=len(levels), provenance=provenance)


def _fill(
    file: h5py.File,
    identity: Mapping[str, Any],
    solver: str,
    dimension: int,
    batch_indices: Indices,
    provenance: Provenance,
) -> None:
    batches, size = batch_indices.shape
    attributes = {
        "schema": SCHEMA,
        "schema_version": VERSION,
        "library": f"hessrmt {provenance.versions.get('hessrmt', '')}",
        "created": provenance.created,
        "device": provenance.device,
        "versions": json.dumps(dict(provenance.versions)),
        "config": json.dumps(dict(provenance.config)),
        "notes": json.dumps(list(provenance.notes)),
        "identity": json.dumps(dict(identity)),
        "solver": solver,
        "seed": provenance.config.get("seed", 0),
        "checkpoint_sha256": identity.get("checkpoint_sha256", ""),
    }
    for name, value in attributes.items():
        file.attrs[name] = value
    for name, length in (("batch", batches), ("level", dimension), ("sample", size)):
        file[name] = np.arange(length)
        _array(file, name).make_scale(name)
    _add(file, EIGENVALUES, np.full((batches, dimension), np.nan), ("batch", "level"))
    _array(file, EIGENVALUES).attrs["long_name"] = (
        "eigenvalues of the mean loss's Hessian, ascending"
    )
    _add(file, INDICES, np.asarray(batch_indices, dtype=np.int64), ("batch", "sample"))
    _add(file, DONE, np.zeros(batches, dtype=np.uint8), ("batch",))
    for name, column in COLUMNS.items():
        blank = np.nan if column.dtype is np.float64 else -1
        _add(file, name, np.full(batches, blank, dtype=column.dtype), ("batch",))
        _array(file, name).attrs["long_name"] = column.units


def _array(file: h5py.File, name: str) -> h5py.Dataset:
    found = file[name]
    assert isinstance(found, h5py.Dataset)
    return found


def _add(file: h5py.File, name: str, values: np.ndarray, dimensions: tuple[str, ...]) -> None:
    data = file.create_dataset(name, data=values)
    for axis, scale in enumerate(dimensions):
        data.dims[axis].attach_scale(_array(file, scale))


def _value(spectrum: Spectrum, name: str) -> float:
    if name.startswith("seconds_"):
        return spectrum.seconds.get(name.removeprefix("seconds_"), float("nan"))
    return getattr(spectrum, name)


def _open(path: Path, mode: str, locking: bool | str) -> h5py.File:
    if not path.exists():
        raise StoreError(f"there is no file {path}")
    try:
        return h5py.File(path, mode, locking=locking)
    except BlockingIOError as error:
        raise StoreError(f"another process is writing {path}; wait for it or use --out") from error
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EWOULDBLOCK):
            raise StoreError(
                f"another process is writing {path}; wait for it or use --out"
            ) from error
        raise StoreError(
            f"{path} cannot be opened as HDF5 (truncated, damaged or another format): "
            f"{_reason(error)}"
        ) from error


def _open_for_writing(path: Path) -> h5py.File:
    return _open(path, "r+", locking="best-effort")


def _refuse_second_writer(path: Path) -> None:
    """Fail if a process holds the file's lock; a file that is no HDF5 is nobody's."""
    if path.is_file() and h5py.is_hdf5(path):
        _open_for_writing(path).close()


def _publish(draft: Path, path: Path) -> None:
    """Give a finished draft its name without ever replacing another file."""
    try:
        os.link(draft, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        draft.replace(path)
    else:
        draft.unlink()


def _check_schema(path: Path, file: h5py.File) -> None:
    schema = _text(file.attrs.get("schema", ""))
    if schema != SCHEMA:
        said = f"its schema is {schema!r}" if schema else "it has no schema attribute"
        raise StoreError(f"{path} was not written by hessrmt: {said}, expected {SCHEMA!r}")
    version = int(file.attrs["schema_version"])
    if not 1 <= version <= VERSION:
        raise StoreError(
            f"{path} has schema version {version}, this hessrmt reads up to {VERSION}; upgrade it"
        )


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
            "settings to resume, or --out for a new file"
        )


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno and error.strerror:
        return os.strerror(error.errno)
    return str(error)
