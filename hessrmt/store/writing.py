"""Writing spectrum files: laid out at once, then a row at a time.

Every dataset has its full size from the start and is contiguous, so that writing a row never
changes the file's structure: a process may die at any moment and the file stays valid.

HDF5 only lays the file out, in memory and without the rows. They are then written by the operating
system at their known offsets: HDF5 keeps unwritten changes of its own, and after a write that
failed (disk full) it can neither drop them nor close the file.
"""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import os
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import h5py
import numpy as np

from hessrmt.errors import DataError, HessrmtError, HessrmtWarning, StoreError, WriteError
from hessrmt.files import fail_writing, new_file, reason, require_new, write_whole
from hessrmt.records import BlockSpectra, Provenance, Spectra, Spectrum
from hessrmt.store.files import (
    ResumableFile,
    attributes_of,
    lock,
    provenance_of,
    reading,
    require_one,
    require_same,
)
from hessrmt.store.hdf5 import dataset, plain, put_attributes, sealed, text
from hessrmt.store.spectra import (
    BLOCKS,
    CHECKSUM,
    COLUMNS,
    DONE,
    EIGENVALUES,
    INDICES,
    NOTHING,
    SCHEMA,
    SECONDS_CHECKSUM,
    SOLVER,
    VERSION,
    Extra,
    Rows,
    checksums,
    damage,
    group_of,
    parts_of,
    read_rows,
    row_names,
)

if TYPE_CHECKING:
    from hessrmt.arrays import Indices
    from hessrmt.store.seal import Extent

GROWING = ("batches", "samples")
"""Numbers in the identity of a file that say how many rows it has: a resumed run may have more."""

Row: TypeAlias = "Spectrum | Mapping[str, Spectrum]"
"""What a batch has given: a spectrum, or that of each block."""

_PIECE = 1 << 20
"""Bytes written at a time."""


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


class _Slot(NamedTuple):
    """Where a dataset with one row per batch lies in the file, and what an absent row holds."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype
    blank: Any = None

    @property
    def row_bytes(self) -> int:
        return int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize

    @property
    def extent(self) -> Extent:
        return self.offset, self.shape[0] * self.row_bytes


class SpectrumWriter(ResumableFile):
    """The one writer of a spectrum file: a new one with every row absent, or one to continue.

    A file that is continued with more batches is extended: its rows are copied into a larger one,
    which takes its place at once. Damaged rows count as absent; before one is written anew, what is
    there is kept in a file beside, ``NAME.damaged-ROW.npz``, or
    ``NAME.damaged-ROW-2.npz`` if that is taken.

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
                layout.write(path, replace=overwrite)
            self._open()
        except BaseException as error:
            self.close()
            if isinstance(error, OSError):
                fail_writing(path, error)
            raise

    def _extend(self, layout: _Layout) -> None:
        """Make room for more rows than the file has, if that is all that differs."""
        with reading(self.path, SCHEMA, VERSION) as old:
            stored = plain(old.attrs["identity"], dict)
            require_same(self.path, stored, layout.identity, GROWING)
            parts = parts_of(old)
            first = next(iter(parts.values()))
            indices = np.asarray(dataset(first, INDICES))
            rows = len(indices)
            if len(layout.batch_indices) <= rows:
                return
            if not np.array_equal(indices, layout.batch_indices[:rows]):
                raise StoreError(f"{self.path} has other batches than the first {rows} of this run")
            before = provenance_of(first.attrs)
            note = f"extended from {rows} rows to {len(layout.batch_indices)}"
            provenance = dataclasses.replace(
                before, config=layout.provenance.config, notes=(*before.notes, note)
            )
            solver = text(first.attrs[SOLVER])
            larger = dataclasses.replace(layout, provenance=provenance, solver=solver)
            self._keep_damaged(parts)
            larger.write(self.path, replace=True, kept=parts)

    def _keep_damaged(self, parts: Mapping[str | None, Any]) -> None:
        """Name the damaged rows of a file that is to be replaced, and keep what they hold."""
        held: dict[int, dict[str, np.ndarray]] = {}
        for name, place in parts.items():
            rows = read_rows(place)
            if rows.damaged:
                of = "" if name is None else f", {group_of(name)}"
                warnings.warn(f"{self.path}{of}: {damage(rows)}", HessrmtWarning, stacklevel=5)
            held |= {row: {} for row in rows.damaged}
        for name, place in parts.items() if held else ():
            checked = [kind for kind in (CHECKSUM, SECONDS_CHECKSUM) if kind in place]
            prefix = "" if name is None else f"{group_of(name)}/"
            for kind in (*row_names(place), DONE, *checked):
                for row, values in held.items():
                    values[prefix + kind] = np.atleast_1d(dataset(place, kind)[row])
        for row, values in held.items():
            self._put_aside(row, values)

    def _open(self) -> None:
        with reading(self.path, SCHEMA, VERSION) as file:
            self._groups = {
                name or "": "" if name is None else f"{group_of(name)}/" for name in parts_of(file)
            }
            self._slots, done, damaged, unmarked = {}, [], set(), []
            for place in parts_of(file).values():
                self._extra = frozenset(row_names(place)) - {EIGENVALUES, SOLVER, *COLUMNS}
                checked = [name for name in (CHECKSUM, SECONDS_CHECKSUM) if name in place]
                kinds = [*row_names(place), DONE, *checked]
                group = "" if place.name == "/" else f"{place.name[1:]}/"
                self._slots |= {group + name: self._slot(place, name) for name in kinds}
                found = read_rows(place)
                done.append(np.isin(np.arange(found.planned), found.numbers))
                damaged |= {*found.damaged}
                marked = np.asarray(dataset(place, DONE))
                unmarked += [(group + DONE, row) for row in found.numbers if not marked[row]]
                self._indices = np.asarray(dataset(place, INDICES))
        self.done = np.logical_and.reduce(done)
        self._damaged = damaged
        self._descriptor = os.open(self.path, os.O_RDWR)
        lock(self._descriptor, self.path)  # other programs that use HDF5 look there
        for name, row in unmarked:  # killed between the last two writes: the row itself is whole
            self._put(name, int(row), 1)

    def _slot(self, place: Any, name: str) -> _Slot:
        found = dataset(place, name)
        offset = found.id.get_offset()
        if offset is None:
            raise StoreError(
                f"{self.path} cannot be continued: {name} was stored anew in pieces by another "
                "program"
            )
        return _Slot(offset, found.shape, np.dtype(found.dtype.str))

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
        row, last = -1, []
        try:
            for row, found in rows.items():
                further = (extra or {}).get(row, {})
                if further.keys() != self._extra:
                    other = ", ".join(sorted(further.keys() ^ self._extra))
                    raise StoreError(
                        f"row {row} and {self.path} have different extra columns: {other}"
                    )
                if row in self._damaged:
                    self._keep_aside(row)
                parts = found if isinstance(found, Mapping) else {"": found}
                for name, spectrum in parts.items():
                    put = self._put_row(self._groups[name], row, spectrum, further)
                    last += [(group_name, row, value) for group_name, value in put.items()]
            os.fsync(self._descriptor)
            for place in last:
                self._put(*place)
            os.fsync(self._descriptor)
        except OSError as error:
            raise WriteError(
                f"writing batch {row} to {self.path} failed: {reason(error)}"
            ) from error
        self.done[list(rows)] = True
        self._require_in_place()

    def _require_in_place(self) -> None:
        """Say where the rows are if another file has taken the place of this one meanwhile."""
        held = os.fstat(self._descriptor)
        with suppress(OSError):
            if os.path.samestat(held, os.stat(self.path)):
                return
        where = self.path
        with suppress(OSError):  # moved, where the system tells so; in use under that name, perhaps
            found = Path(os.readlink(f"/proc/self/fd/{self._descriptor}"))
            if os.path.samestat(held, os.stat(found)):
                where = found
        if where == self.path:
            where = self._rescued()
        count = int(self.done.sum())
        raise WriteError(
            f"{self.path} was removed or replaced by another program during this run; all {count} "
            f"finished rows are in {where}: continue with --resume --out {where}"
        )

    def _rescued(self) -> Path:
        """A new file with the rows of this one: beside it or, if its folder is gone, here."""
        name, why = f"{self.path.name}.rows-{uuid.uuid4().hex[:8]}.h5", ""
        for folder in (self.path.parent, Path()):
            where = folder / name
            try:
                with new_file(where, replace=False) as draft, draft.open("wb") as target:
                    offset = 0
                    while piece := os.pread(self._descriptor, _PIECE, offset):
                        offset += target.write(piece)
            except (HessrmtError, OSError) as error:
                why = why or reason(error.__cause__ or error)
            else:
                return where
        raise WriteError(
            f"{self.path} was removed or replaced by another program during this run, and its rows "
            f"cannot be kept elsewhere: {why}; run it again where the file can stay"
        )

    def __exit__(self, *error: object) -> None:
        try:
            if error[0] is None and self._descriptor >= 0:
                self._require_in_place()
        finally:
            super().__exit__(*error)

    def close(self) -> None:
        """Release the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        super().close()

    def _put_row(
        self, group: str, row: int, spectrum: Spectrum, further: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Write all of a row but what says that it is complete, which is returned."""
        values = {
            EIGENVALUES: spectrum.eigenvalues,
            **{column: _value(spectrum, column) for column in COLUMNS},
            **further,
        }
        if group + SOLVER in self._slots:
            values[SOLVER] = spectrum.solver.encode()
        stored = {name: self._put(group + name, row, value) for name, value in values.items()}
        checked = checksums(np.array([row]), {**stored, INDICES: self._indices[[row]]})
        last = {group + name: value for name, value in checked.items()}
        return {name: v for name, v in last.items() if name in self._slots} | {group + DONE: 1}

    def _put(self, name: str, row: int, value: Any) -> np.ndarray:
        """Write a number or a row of numbers, and give what was written, (1, …)."""
        slot = self._slots[name]
        data = np.ascontiguousarray(value, dtype=slot.dtype)
        if not 0 <= row < slot.shape[0] or data.nbytes != slot.row_bytes:
            raise StoreError(
                f"row {row} with {data.size:,} values does not fit {name} of shape {slot.shape}"
            )
        _write_at(self._descriptor, data.tobytes(), slot.offset + row * slot.row_bytes)
        return data.reshape(1, *slot.shape[1:])

    def _keep_aside(self, row: int) -> None:
        """What a damaged row holds, in a file of its own."""
        held = {}
        for name, slot in self._slots.items():
            data = os.pread(self._descriptor, slot.row_bytes, slot.offset + row * slot.row_bytes)
            held[name] = np.frombuffer(data, slot.dtype)
        self._put_aside(row, held)
        self._damaged.discard(row)

    def _put_aside(self, row: int, held: Mapping[str, np.ndarray]) -> None:
        """A file with what a row holds, under the first free name."""
        buffer = io.BytesIO()
        values = {name.replace("/", "."): value for name, value in held.items()}
        np.savez(buffer, allow_pickle=False, **values)
        name, number = f"{self.path.name}.damaged-{row}", 1
        aside = self.path.with_name(f"{name}.npz")
        while os.path.lexists(aside):
            number += 1
            aside = self.path.with_name(f"{name}-{number}.npz")
        write_whole(aside, buffer.getbuffer(), replace=False)


@dataclasses.dataclass(frozen=True)
class _Layout:
    """What a file is like before its first row."""

    identity: Mapping[str, Any]
    solver: str
    dimension: int | Mapping[str, int]
    batch_indices: np.ndarray
    provenance: Provenance
    extra: Extra

    def write(
        self, path: Path, *, replace: bool, kept: Mapping[str | None, Any] | None = None
    ) -> None:
        """Make the file, with every row absent but those that are kept.

        Args:
            path: The file.
            replace: Whether a file of that name may be replaced.
            kept: Name of a block to where its rows lie in the file of before.
        """
        slots: dict[str, _Slot] = {}

        def fill(file: h5py.File) -> list[Extent]:
            self._fill_all(file, slots)
            return [slot.extent for slot in slots.values()]

        image = sealed(fill)
        with new_file(path, replace=replace) as draft, draft.open("r+b") as file:
            descriptor = file.fileno()
            _reserve(descriptor, image.size)
            blanks = (_blanks(slot) for slot in slots.values())
            for offset, piece in chain(image.pieces(), *blanks):
                file.seek(offset)
                file.write(piece)
            file.flush()
            for name, place in (kept or {}).items():
                group = "" if name is None else f"{group_of(name)}/"
                self._copy(descriptor, slots, group, read_rows(place))

    def _copy(self, descriptor: int, slots: Mapping[str, _Slot], group: str, rows: Rows) -> None:
        values = dict(rows.values)
        if SOLVER not in values:
            values[SOLVER] = np.full(len(rows.numbers), self.solver.encode(), dtype="S128")
        sums = checksums(rows.numbers, values)
        del values[INDICES]
        done = np.ones(len(rows.numbers), dtype=np.uint8)
        for name, column in {**values, **sums, DONE: done}.items():
            slot = slots[group + name]
            for number, value in zip(rows.numbers, column.astype(slot.dtype), strict=True):
                _write_at(descriptor, value.tobytes(), slot.offset + number * slot.row_bytes)

    def _fill_all(self, file: h5py.File, slots: dict[str, _Slot]) -> None:
        if not isinstance(self.dimension, Mapping):
            self._fill(file, self.dimension, slots)
            return
        shared = {"schema": SCHEMA, "schema_version": VERSION}
        names = json.dumps(list(self.dimension))
        about = {**shared, "identity": json.dumps(dict(self.identity)), BLOCKS: names}
        put_attributes(file, about)
        for name, dimension in self.dimension.items():
            self._fill(file.create_group(group_of(name), track_order=True), dimension, slots)

    def _fill(self, file: h5py.File | h5py.Group, dimension: int, slots: dict[str, _Slot]) -> None:
        batches, size = self.batch_indices.shape
        group = "" if file.name == "/" else f"{str(file.name)[1:]}/"
        about = {
            **attributes_of(SCHEMA, VERSION, self.provenance, self.identity),
            SOLVER: self.solver,
            "seed": self.provenance.config.get("seed", 0),
            "checkpoint_sha256": self.identity.get("checkpoint_sha256", ""),
        }
        put_attributes(file, about)
        for name, length in (("batch", batches), ("level", dimension), ("sample", size)):
            file[name] = np.arange(length)
            dataset(file, name).make_scale(name)

        def room(
            name: str, dtype: Any, blank: Any, along: Sequence[str] = (), units: str | None = None
        ) -> None:
            shape = (batches, *(len(dataset(file, label)) for label in along))
            data = _without_content(file, name, shape, dtype)
            _describe(file, data, ("batch", *along), units)
            offset = data.id.get_offset() or 0  # none where there is no row
            slots[group + name] = _Slot(offset, shape, data.dtype, blank)

        units = "eigenvalues of the mean loss's Hessian, ascending"
        room(EIGENVALUES, np.float64, np.nan, ["level"], units)
        indices = file.create_dataset(INDICES, data=self.batch_indices.astype(np.int64))
        _describe(file, indices, ("batch", "sample"))
        room(DONE, np.uint8, 0)
        room(SOLVER, "S128", b"", units="eigenvalue routine")
        for name, what in (
            (CHECKSUM, "the row without timings, its number and its batch indices"),
            (SECONDS_CHECKSUM, "its number and its timings"),
        ):
            room(name, np.int64, -1, units=f"CRC-32 of {what}")
        if self.extra.columns:
            put_attributes(file, {"extra": json.dumps(list(self.extra.columns))})
        columns = {**COLUMNS, **self.extra.columns}
        scales = {column.along for column in columns.values()}
        for name, values in self.extra.labels.items():
            data = file.create_dataset(name, data=values)
            if name in scales:
                data.make_scale(name.rpartition("/")[2])
            else:
                _describe(file, data, ("batch",))
        for name, (units, dtype, along) in columns.items():
            blank = np.nan if dtype is np.float64 else -1
            room(name, dtype, blank, [] if along is None else [along], units)


def _without_content(
    file: h5py.File | h5py.Group, name: str, shape: tuple[int, ...], dtype: Any
) -> h5py.Dataset:
    """A dataset that has its place in the file, and whose numbers are not written."""
    settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    settings.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    settings.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    links = h5py.h5p.create(h5py.h5p.LINK_CREATE)
    links.set_create_intermediate_group(True)
    kind, space = h5py.h5t.py_create(np.dtype(dtype)), h5py.h5s.create_simple(shape)
    made = h5py.h5d.create(file.id, name.encode(), kind, space, dcpl=settings, lcpl=links)
    return h5py.Dataset(made)


def _describe(
    file: h5py.File | h5py.Group,
    data: h5py.Dataset,
    dimensions: tuple[str, ...],
    units: str | None = None,
) -> None:
    for axis, scale in enumerate(dimensions):
        data.dims[axis].attach_scale(dataset(file, scale))
    if units is not None:
        put_attributes(data, {"long_name": units})


def _blanks(slot: _Slot) -> Iterator[tuple[int, bytes]]:
    """What absent rows hold, in pieces; zeros are there already."""
    one = np.full(1, slot.blank, dtype=slot.dtype).tobytes()
    offset, left = slot.extent
    if not any(one):
        return
    piece = one * max(1, _PIECE // len(one))
    while left > 0:
        yield offset, piece[:left]
        offset, left = offset + len(piece), left - len(piece)


def _reserve(descriptor: int, size: int) -> None:
    """Take the disk space now, where the file system can: later is minutes of work too late."""
    try:
        os.posix_fallocate(descriptor, 0, size)
    except AttributeError:  # not of every system
        os.truncate(descriptor, size)
    except OSError as error:
        if error.errno not in {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}:
            raise
        os.truncate(descriptor, size)


def _write_at(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def _value(spectrum: Spectrum, name: str) -> Any:
    if name.startswith("seconds_"):
        return spectrum.seconds.get(name.removeprefix("seconds_"), float("nan"))
    return getattr(spectrum, name)
