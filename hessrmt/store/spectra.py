"""Spectrum files, ``hessrmt/spectra`` version 1: each row is complete or absent, always.

Every dataset has its full size from the start and is contiguous, so that writing a row never
changes the file's structure: a process may die at any moment and the file stays valid.
``hessian_evals`` keeps the name and layout of the published code of Baskerville, Granziol and
Keating (2022), (batches, P) float64 ascending per row; rows with ``done == 0`` are NaN.

HDF5 only lays the file out, in memory. Rows are then written by the operating system at their known
offsets: HDF5 keeps unwritten changes of its own, and after a write that failed (disk full) it can
neither drop them nor close the file.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import h5py
import numpy as np

from hessrmt.errors import DataError, HessrmtError, StoreError, WriteError
from hessrmt.files import new_file, reason, require_new, write_whole
from hessrmt.records import BlockSpectra, Provenance, Spectra, Spectrum
from hessrmt.store.files import (
    DAMAGE,
    ResumableFile,
    attributes_of,
    dataset,
    hdf5_image,
    lock,
    provenance_of,
    reading,
    require_one,
    require_same,
    schema_of,
    text,
)

if TYPE_CHECKING:
    from hessrmt.arrays import Indices

SCHEMA = "hessrmt/spectra"
VERSION = 1

EIGENVALUES = "hessian_evals"
INDICES = "batch_indices"
DONE = "done"
SOLVER = "solver"
"""Eigenvalue routine of each row, in words; files from before it have only the attribute of that
name, which holds what was chosen before the first row."""

BLOCKS = "blocks"
"""Attribute of a file that holds a group for each of several blocks, all in this layout: their
names as JSON."""

PHASES = ("reduction", "matrix", "eigenvalues")
"""Timed phases; each is stored as ``seconds_<phase>``."""

GROWING = ("batches", "samples")
"""Numbers in the identity of a file that say how many rows it has: a resumed run may have more."""

Row: TypeAlias = "Spectrum | Mapping[str, Spectrum]"
"""What a batch has given: a spectrum, or that of each block."""


class Column(NamedTuple):
    """A number, or row of numbers, for each batch.

    Attributes:
        units: What it is.
        dtype: float64 or int64; blank rows are NaN or -1.
        along: Label that a row of numbers runs along; None for one number.
    """

    units: str
    dtype: type = np.float64
    along: str | None = None


COLUMNS: dict[str, Column] = {
    "noise_floor": Column("|eigenvalue| below which it is round-off"),
    "rank": Column("eigenvalues above the noise floor", np.int64),
    "reduced_dimension": Column("dimension of the matrix diagonalised", np.int64),
    "n_paper_cutoff": Column(
        "eigenvalues above 1e-20 in magnitude, the published cutoff", np.int64
    ),
    "n_paper_cutoff_ratios": Column("eigenvalues above 1e-10 in magnitude", np.int64),
    "resolved_spacings": Column("spacings of certified levels above the noise floor", np.int64),
    "gap_decades": Column("width of the widest gap in log|eigenvalue| near the floor"),
    "check": Column("relative residual of the matrix times a random v"),
    "loss": Column("mean loss of the batch"),
    "gradient_norm": Column("Euclidean norm of the gradient"),
    **{f"seconds_{phase}": Column(f"wall-clock seconds: {phase}") for phase in PHASES},
}

_STORED = ("noise_floor", "reduced_dimension", "loss", "gradient_norm", "check")
"""Columns that a spectrum is made from; the others follow from its eigenvalues."""


class Extra(NamedTuple):
    """Datasets that a file has beside those of every spectrum file; names may have a group.

    Attributes:
        labels: Name to values: along the batches, or what a column runs along.
        columns: Name to column.
    """

    labels: Mapping[str, np.ndarray | Sequence[str]]
    columns: Mapping[str, Column]


NOTHING = Extra({}, {})
"""What most files have beside their spectra."""


def load(path: str | Path, block: str | None = None) -> Spectra:
    """The complete spectra of a file; also while a run is still writing it.

    Args:
        path: A file written by ``hessrmt spectrum`` or ``hessrmt simulate``, or by the published
            code, with ``hessian_evals`` alone.
        block: Which block's spectra, for a file of blocks; of one block none need be named.

    Returns:
        Its spectra, in batch order.

    Raises:
        StoreError: If the file is missing, damaged, foreign or of a newer schema, if it has blocks
            and none or an unknown one is named, or one is named and it has none.
    """
    found = load_all(path)
    if block is None and len(found) == 1:
        return next(iter(found.values()))
    if block in found:
        return found[block]
    raise StoreError(
        f"{path} holds no blocks; hr.load(path) gives its spectra"
        if None in found
        else f"{path} holds the spectra of the blocks {', '.join(map(repr, found))}; name one of "
        "them: hr.load(path, block)"
    )


def save(result: Spectrum | Spectra | BlockSpectra, path: Path, *, overwrite: bool = False) -> None:
    """Write spectra that were computed in a program as the command would have written them.

    Args:
        result: One spectrum, several of the same matrix size, or as many of each block.
        path: The file.
        overwrite: Whether to replace a file of that name.

    Raises:
        DataError: If there is no spectrum, or not one for each row of batch indices.
    """
    blocks = isinstance(result, BlockSpectra)
    parts: dict[str, Any] = dict(result) if blocks else {"": result}
    several = {name: isinstance(part, Spectra) for name, part in parts.items()}
    rows = {name: part.items if several[name] else (part,) for name, part in parts.items()}
    if not parts or not all(rows.values()) or len(set(map(len, rows.values()))) > 1:
        raise DataError(
            f"there are {list(map(len, rows.values()))} spectra; there must be some, "
            "and of each block as many"
        )
    name, first = next((name, items[0]) for name, items in rows.items())
    count, source = len(rows[name]), first.provenance
    indices = parts[name].batch_indices if several[name] else np.empty((1, 0), dtype=np.int64)
    if len(indices) != count:
        raise DataError(f"there are {count} spectra and {len(indices)} rows of batch indices")
    config = {"operator": first.operator, "dtype": first.dtype, **source.config}
    with new_file(path, replace=overwrite) as draft:
        file = SpectrumWriter(
            draft,
            identity=config,
            solver=first.solver,
            dimension={k: items[0].dimension for k, items in rows.items()}
            if blocks
            else first.dimension,
            batch_indices=indices,
            provenance=dataclasses.replace(source, config=config),
            overwrite=True,
        )
        with file:
            file.write_all(
                {
                    row: {k: items[row] for k, items in rows.items()} if blocks else rows[name][row]
                    for row in range(count)
                }
            )


def load_all(path: str | Path) -> dict[str | None, Spectra]:
    """The complete spectra of a file, by blocks.

    Args:
        path: The file.

    Returns:
        Name of a block to its spectra, as of :func:`load`; None to those of whole matrices.
    """
    if not schema_of(path) and (published := _published(path)):
        return {None: published}
    with reading(path, SCHEMA, VERSION) as file:
        blocks: dict[Any, Any] = {name: file[_group_of(name)] for name in blocks_in(file)}
        parts = blocks or {None: file}
        return {name: read_rows(part, done_rows(part)) for name, part in parts.items()}


def _published(path: str | Path) -> Spectra | None:
    """What a file of the published code holds, eigenvalues alone; None for another file."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            link, found = file.get(EIGENVALUES, getlink=True), file.get(EIGENVALUES)
            if "schema" in file.attrs or not isinstance(found, h5py.Dataset):
                return None
            if not isinstance(link, h5py.HardLink) or found.external or found.is_virtual:
                raise StoreError(f"{path} keeps {EIGENVALUES} in another file, which isn't read")
            if found.dtype.kind != "f" or not found.size or found.ndim > 2:
                raise StoreError(f"{path}: {EIGENVALUES} must be a table of real numbers")
            values = np.atleast_2d(np.asarray(found, dtype=np.float64))
    except DAMAGE as error:
        if isinstance(error, HessrmtError):
            raise
        return None
    if not np.isfinite(values).all():
        raise StoreError(f"{path}: {EIGENVALUES} holds NaN or infinite values")
    with np.errstate(over="ignore"):
        dtype = "float32" if np.array_equal(values, values.astype(np.float32)) else "float64"
    count, size = values.shape
    note = f"{EIGENVALUES} alone: the noise floor is that of {dtype}, n·ε·max|λ|"
    about = {"operator": "hessian", "dtype": dtype}
    provenance = Provenance(about, "unknown", {}, "unknown", (note,))
    floors = size * float(np.finfo(dtype).eps) * np.abs(values).max(axis=1)
    items = tuple(
        Spectrum(np.sort(row), float(floor), size, size, dtype=dtype, provenance=provenance)
        for row, floor in zip(values, floors, strict=True)
    )
    return Spectra(items, np.empty((count, 0), dtype=np.int64), count, provenance)


def blocks_in(file: h5py.File) -> tuple[str, ...]:
    """Names of the blocks whose spectra an open file holds.

    Returns:
        None for a file of whole matrices.
    """
    return tuple(json.loads(text(file.attrs.get(BLOCKS, "[]"))))


def done_rows(file: h5py.File | h5py.Group) -> np.ndarray:
    """Which rows of an open file are complete; to be read before the rows themselves.

    Returns:
        Their numbers.
    """
    return np.flatnonzero(np.asarray(file[DONE]))


def read_rows(file: h5py.File | h5py.Group, done: np.ndarray) -> Spectra:
    """Some complete spectra of an open file.

    Args:
        file: The file, or the group of a block.
        done: Which rows.

    Returns:
        Their spectra.
    """
    provenance = provenance_of(file.attrs)
    settings, levels = provenance.config, np.asarray(file[EIGENVALUES])
    columns = {name: np.asarray(file[name]) for name in COLUMNS}
    seconds = {phase: columns[f"seconds_{phase}"] for phase in PHASES}
    solvers = _solvers(file)
    items = tuple(
        Spectrum(
            eigenvalues=levels[row],
            dimension=levels.shape[1],
            **{name: columns[name][row].item() for name in _STORED},
            operator=settings["operator"],
            dtype=settings["dtype"],
            solver=solvers[row].decode(errors="replace"),
            seconds={p: float(values[row]) for p, values in seconds.items() if values[row] >= 0},
            provenance=provenance,
        )
        for row in done
    )
    indices = np.asarray(file[INDICES])
    return Spectra(items, indices[done], planned=len(levels), provenance=provenance)


def _solvers(file: Any) -> Any:
    """Eigenvalue routine of each row of an open file, UTF-8."""
    if SOLVER in file:
        return np.asarray(file[SOLVER])
    return np.full(len(file[DONE]), text(file.attrs[SOLVER]).encode())


class _Slot(NamedTuple):
    """Where a dataset with one row per batch lies in the file."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype


class SpectrumWriter(ResumableFile):
    """The one writer of a spectrum file: a new one with every row absent, or one to continue.

    A file that is continued with more batches is extended: its rows are copied into a larger one,
    which takes its place at once.

    Args:
        path: The file.
        identity: Plain values that a resumed run must share; ``batches`` or ``samples`` may grow.
        solver: Eigenvalue routine.
        dimension: P, or name to P for blocks.
        batch_indices: (batches, B) positions of each batch's samples in its split.
        provenance: Where the spectra come from.
        extra: Further columns.
        resume: Continue the file if it is there.
        overwrite: Replace the file if it is there.

    Attributes:
        path: The file.
        done: (batches,) whether each row is complete.

    Raises:
        ConfigError: If both resume and overwrite are asked for.
        StoreError: If it cannot be written, exists, is being written by another process, or was
            made with another configuration.
    """

    def __init__(
        self,
        path: Path,
        *,
        identity: Mapping[str, Any],
        solver: str,
        dimension: int | Mapping[str, int],
        batch_indices: Indices,
        provenance: Provenance,
        extra: Extra = NOTHING,
        resume: bool = False,
        overwrite: bool = False,
    ) -> None:
        require_one(resume=resume, overwrite=overwrite)
        require_new(path, may_exist=resume or overwrite)
        super().__init__(path)
        self._descriptor = -1
        layout = _Layout(identity, solver, dimension, np.asarray(batch_indices), provenance, extra)
        try:
            if resume and os.path.exists(path):
                self._extend(layout)
            else:
                write_whole(path, hdf5_image(layout.fill), replace=overwrite)
            self._open()
        except BaseException as error:
            self.close()
            cause = error.__cause__ if isinstance(error, WriteError) else error
            if isinstance(cause, OSError):
                raise StoreError(f"cannot write {path}: {reason(cause)}") from error
            raise

    def _extend(self, layout: _Layout) -> None:
        """Make room for more rows than the file has, if that is all that differs."""
        with reading(self.path, SCHEMA, VERSION) as old:
            stored = json.loads(text(old.attrs["identity"]))
            require_same(self.path, stored, layout.identity, GROWING)
            parts = [old[_group_of(name)] for name in blocks_in(old)] or [old]
            indices = np.asarray(parts[0][INDICES])  # type: ignore[index]
            rows = len(indices)
            if len(layout.batch_indices) <= rows:
                return
            if not np.array_equal(indices, layout.batch_indices[:rows]):
                raise StoreError(f"{self.path} has other batches than the first {rows} of this run")
            before = provenance_of(parts[0].attrs)
            note = f"extended from {rows} rows to {len(layout.batch_indices)}"
            provenance = dataclasses.replace(
                before, config=layout.provenance.config, notes=(*before.notes, note)
            )
            solver = text(parts[0].attrs[SOLVER])
            larger = dataclasses.replace(layout, provenance=provenance, solver=solver)

            def fill(new: h5py.File) -> None:
                larger.fill(new)
                for part in parts:
                    for name in (EIGENVALUES, DONE, *COLUMNS):
                        target = dataset(new, f"{part.name}/{name}")
                        target[:rows] = np.asarray(part[name])  # type: ignore[index]
                    dataset(new, f"{part.name}/{SOLVER}")[:rows] = _solvers(part)

            image = hdf5_image(fill)
        write_whole(self.path, image)

    def _open(self) -> None:
        with reading(self.path, SCHEMA, VERSION) as file:
            self._extra = frozenset(json.loads(text(file.attrs.get("extra", "[]"))))
            names = (EIGENVALUES, DONE, *COLUMNS, *self._extra)
            self._groups = {name: f"{_group_of(name)}/" for name in blocks_in(file)} or {"": ""}
            groups = self._groups.values()
            places = [g + name for g in groups for name in names]
            places += [g + SOLVER for g in groups if g + SOLVER in file]
            self._slots = {name: self._slot(file, name) for name in places}
            done = [np.asarray(file[group + DONE]).astype(bool) for group in groups]
        self.done = np.logical_and.reduce(done)
        self._descriptor = os.open(self.path, os.O_RDWR)
        lock(self._descriptor, self.path)  # other programs that use HDF5 look there

    def _slot(self, file: h5py.File, name: str) -> _Slot:
        found = dataset(file, name)
        offset = found.id.get_offset()
        if offset is None:
            raise StoreError(
                f"{self.path} cannot be continued: {name} was stored anew in pieces by another "
                "program"
            )
        return _Slot(offset, found.shape, found.dtype)

    def write(self, row: int, spectrum: Row, extra: Mapping[str, Any] | None = None) -> None:
        """Store one complete row; it counts as done only once all of it is on disk.

        Args:
            row: Batch number.
            spectrum: What was computed.
            extra: Values of the further columns.
        """
        self.write_all({row: spectrum}, {row: extra or {}})

    def write_all(
        self, rows: Mapping[int, Row], extra: Mapping[int, Mapping[str, Any]] | None = None
    ) -> None:
        """Store several complete rows with one wait for the disk; none is done before all are.

        Args:
            rows: Batch number to what was computed.
            extra: Batch number to values of the further columns.

        Raises:
            StoreError: If a row doesn't fit the file.
            WriteError: If the disk refuses; the rows are then absent.
        """
        row = -1
        try:
            for row, found in rows.items():
                further = (extra or {}).get(row, {})
                if further.keys() != self._extra:
                    other = ", ".join(sorted(further.keys() ^ self._extra))
                    raise StoreError(
                        f"row {row} and {self.path} have different extra columns: {other}"
                    )
                parts = found if isinstance(found, Mapping) else {"": found}
                for name, spectrum in parts.items():
                    values = {
                        EIGENVALUES: spectrum.eigenvalues,
                        **{column: _value(spectrum, column) for column in COLUMNS},
                        **further,
                    }
                    if self._groups[name] + SOLVER in self._slots:
                        values[SOLVER] = spectrum.solver.encode()
                    for column, value in values.items():
                        self._put(self._groups[name] + column, row, value)
            os.fsync(self._descriptor)
            for row in rows:
                for group in self._groups.values():
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
        super().close()

    def _put(self, name: str, row: int, value: Any) -> None:
        slot = self._slots[name]
        data = np.ascontiguousarray(value, dtype=slot.dtype)
        if not 0 <= row < slot.shape[0] or data.size != int(np.prod(slot.shape[1:])):
            raise StoreError(
                f"row {row} with {data.size:,} values does not fit {name} of shape {slot.shape}"
            )
        _write_at(self._descriptor, data.tobytes(), slot.offset + row * data.nbytes)


@dataclasses.dataclass(frozen=True)
class _Layout:
    """What a file is like before its first row."""

    identity: Mapping[str, Any]
    solver: str
    dimension: int | Mapping[str, int]
    batch_indices: np.ndarray
    provenance: Provenance
    extra: Extra

    def fill(self, file: h5py.File) -> None:
        """Put every attribute and dataset into an empty file; every row absent."""
        if not isinstance(self.dimension, Mapping):
            self._fill(file, self.dimension)
            return
        shared = {"schema": SCHEMA, "schema_version": VERSION}
        names = json.dumps(list(self.dimension))
        file.attrs.update(shared | {"identity": json.dumps(dict(self.identity)), BLOCKS: names})
        for name, dimension in self.dimension.items():
            self._fill(file.create_group(_group_of(name), track_order=True), dimension)

    def _fill(self, file: h5py.File | h5py.Group, dimension: int) -> None:
        batches, size = self.batch_indices.shape
        file.attrs.update(
            {
                **attributes_of(SCHEMA, VERSION, self.provenance, self.identity),
                SOLVER: self.solver,
                "seed": self.provenance.config.get("seed", 0),
                "checkpoint_sha256": self.identity.get("checkpoint_sha256", ""),
            }
        )
        for name, length in (("batch", batches), ("level", dimension), ("sample", size)):
            file[name] = np.arange(length)
            dataset(file, name).make_scale(name)
        levels = np.full((batches, dimension), np.nan)
        units = "eigenvalues of the mean loss's Hessian, ascending"
        _add(file, EIGENVALUES, levels, ("batch", "level"), units)
        _add(file, INDICES, self.batch_indices.astype(np.int64), ("batch", "sample"))
        _add(file, DONE, np.zeros(batches, dtype=np.uint8), ("batch",))
        _add(file, SOLVER, np.full(batches, b"", dtype="S128"), ("batch",), "eigenvalue routine")
        if self.extra.columns:
            file.attrs["extra"] = json.dumps(list(self.extra.columns))
        columns = {**COLUMNS, **self.extra.columns}
        scales = {column.along for column in columns.values()}
        for name, values in self.extra.labels.items():
            if name in scales:
                file.create_dataset(name, data=values).make_scale(name.rpartition("/")[2])
            else:
                _add(file, name, np.asarray(values), ("batch",))
        for name, (units, dtype, along) in columns.items():
            dimensions = ("batch",) if along is None else ("batch", along)
            shape = [batches, *(len(self.extra.labels[label]) for label in dimensions[1:])]
            blank = np.nan if dtype is np.float64 else -1
            _add(file, name, np.full(shape, blank, dtype=dtype), dimensions, units)


def _add(
    file: h5py.File | h5py.Group,
    name: str,
    values: np.ndarray,
    dimensions: tuple[str, ...],
    units: str | None = None,
) -> None:
    data = file.create_dataset(name, data=values)
    for axis, scale in enumerate(dimensions):
        data.dims[axis].attach_scale(dataset(file, scale))
    if units is not None:
        data.attrs["long_name"] = units


def _group_of(block: str) -> str:
    """Where the spectra of a block lie in its file."""
    return f"{BLOCKS}/{block or '(root)'}"


def _write_at(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def _value(spectrum: Spectrum, name: str) -> Any:
    if name.startswith("seconds_"):
        return spectrum.seconds.get(name.removeprefix("seconds_"), float("nan"))
    return getattr(spectrum, name)
