"""Spectrum files, ``hessrmt/spectra`` version 2: each row is complete or absent, always.

Every dataset has its full size from the start and is contiguous, so that writing a row never
changes the file's structure: a process may die at any moment and the file stays valid.
``hessian_evals`` keeps the name and layout of the published code of Baskerville, Granziol and
Keating (2022), (batches, P) float64 ascending per row; rows with ``done == 0`` are NaN. A row
counts if it matches its own checksum; what stays as it was laid out is under the file's seal
(:mod:`hessrmt.store.seal`). Files of version 1 have neither. :mod:`hessrmt.store.writing` makes and
continues such files.
"""

from __future__ import annotations

import dataclasses
import warnings
import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from hessrmt.errors import HessrmtError, HessrmtWarning, StoreError
from hessrmt.records import Provenance, Spectra, Spectrum
from hessrmt.store.files import DAMAGE, SEALED_FROM, provenance_of, reading, schema_of
from hessrmt.store.hdf5 import dataset, opened, plain, text

if TYPE_CHECKING:
    from pathlib import Path

    import h5py

SCHEMA = "hessrmt/spectra"
VERSION = 2

EIGENVALUES = "hessian_evals"
INDICES = "batch_indices"
DONE = "done"
SOLVER = "solver"
"""Eigenvalue routine of each row, in words; files from before it have only the attribute of that
name, which holds what was chosen before the first row."""

CHECKSUM, SECONDS_CHECKSUM = _SUMS = "checksum", "seconds_checksum"
"""CRC-32 of each row, its number and its batch indices, and of its timings, which are never the
same twice; -1 where there is none yet."""

BLOCKS = "blocks"
"""Attribute of a file that holds a group for each of several blocks, all in this layout: their
names as JSON."""

PHASES = ("reduction", "matrix", "eigenvalues")
"""Timed phases; each is stored as ``seconds_<phase>``."""


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

_READ = 1 << 21
"""Eigenvalues read at a time."""

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


def load_all(path: str | Path) -> dict[str | None, Spectra]:
    """The complete spectra of a file, by blocks.

    Args:
        path: The file.

    Returns:
        Name of a block to its spectra, as of :func:`load`; None to those of whole matrices.
    """
    if not schema_of(path) and (published := _published(path)):
        return {None: published}
    found: dict[str | None, Spectra] = {}
    with reading(path, SCHEMA, VERSION) as file:
        for name, part in parts_of(file).items():
            found[name] = spectra_of(part, read_rows(part))
    return found


def _published(path: str | Path) -> Spectra | None:
    """What a file of the published code holds, eigenvalues alone; None for another file."""
    try:
        with opened(path) as file:
            if "schema" in file.attrs or EIGENVALUES not in file:
                return None
            try:
                found = dataset(file, EIGENVALUES)
            except ValueError as error:
                raise StoreError(f"{path}: {error}") from error
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


def parts_of(file: h5py.File) -> dict[str | None, Any]:
    """Where the spectra in an open file lie.

    Returns:
        Name of a block to its group; None to the file itself if it holds whole matrices.
    """
    names = plain(file.attrs.get(BLOCKS, "[]"), list)
    return {name: file[group_of(name)] for name in names} or {None: file}


def group_of(block: str) -> str:
    """Where the spectra of a block lie in its file.

    Returns:
        The name of a group.
    """
    return f"{BLOCKS}/{block or '(root)'}"


class Rows(NamedTuple):
    """The complete rows of a file, or of the group of a block.

    Attributes:
        numbers: (n,) which they are.
        values: Name of a dataset that has one row for each batch to its n rows.
        damaged: Rows that claim to be complete, but don't match their checksum or can't be right.
        planned: Rows that the file has room for.
    """

    numbers: np.ndarray
    values: Mapping[str, np.ndarray]
    damaged: tuple[int, ...]
    planned: int


def row_names(place: Any) -> list[str]:
    """Datasets of an open file, or of the group of a block, that are written row by row.

    Returns:
        Their names, those of further columns last; neither ``done`` nor checksums.
    """
    extra = plain(place.attrs.get("extra", "[]"), list)
    return [EIGENVALUES, *COLUMNS, *([SOLVER] if SOLVER in place else []), *extra]


def checksums(numbers: np.ndarray, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The checksums of rows.

    Args:
        numbers: (n,) which rows.
        values: Name to n rows, of all that :func:`row_names` names and of the batch indices.

    Returns:
        Name of the dataset to its (n,) int64.
    """
    found, count = {}, len(numbers)
    timed = [name for name in sorted(values) if name.startswith("seconds_")]
    rest = [name for name in sorted(values) if name not in timed]
    for kind, names in ((CHECKSUM, rest), (SECONDS_CHECKSUM, timed)):
        parts = [np.asarray(numbers, dtype=np.int64), *(values[name] for name in names)]
        flat = [
            np.ascontiguousarray(part).reshape(count, -1 if count else 0).view(np.uint8)
            for part in parts
        ]
        found[kind] = np.array([zlib.crc32(row) for row in np.hstack(flat)], dtype=np.int64)
    return found


def read_rows(place: Any) -> Rows:
    """All complete rows of an open file, or of the group of a block.

    Args:
        place: The file or group.

    Returns:
        What is complete and right.

    Raises:
        ValueError: If its datasets don't fit each other.
    """
    kinds = [name for name in _SUMS if name in place]
    version = int(np.asarray(place.file.attrs["schema_version"]).item())
    if len(kinds) != (2 if version >= SEALED_FROM else 0):
        raise ValueError(f"its rows have {len(kinds)} checksums, not those of version {version}")
    held = {name: dataset(place, name) for name in (*row_names(place), INDICES, DONE, *kinds)}
    _require_types(held)
    done = np.asarray(held.pop(DONE)) != 0
    sums = {name: np.asarray(held.pop(name)) for name in kinds}
    claimed = np.logical_or.reduce([done, *(found >= 0 for found in sums.values())])
    step = max(1, _READ // max(1, held[EIGENVALUES].shape[1]))
    numbers, damaged, pieces = [np.empty(0, dtype=np.int64)], [], []
    for start in range(0, len(done), step):
        asked = start + np.flatnonzero(claimed[start : start + step])
        if not len(asked) and pieces:
            continue
        here = slice(start, start + step)
        values = {name: np.asarray(data[here])[asked - start] for name, data in held.items()}
        right = _plausible(values)
        if sums:
            expected = checksums(asked, values)
            right &= np.logical_and.reduce([sums[name][asked] == expected[name] for name in sums])
        damaged += asked[~right & done[asked]].tolist()
        pieces.append(values if right.all() else {k: v[right] for k, v in values.items()})
        numbers.append(asked[right])
    whole = pieces[0] if len(pieces) == 1 else {}
    joined = {name: np.concatenate([p[name] for p in pieces]) for name in held if not whole}
    return Rows(np.concatenate(numbers), whole or joined, tuple(damaged), len(done))


def _require_types(held: Mapping[str, Any]) -> None:
    """Refuse datasets of other types or shapes: their numbers aren't those that were computed."""
    count = len(held[DONE]) if held[DONE].ndim else -1
    for name, data in held.items():
        column = COLUMNS.get(name, Column("", np.int64))
        kinds, axes = {np.dtype(column.dtype).str[1:]}, {1}
        if name == EIGENVALUES:
            kinds = {"f8"}
        elif name == DONE:
            kinds = {"u1"}
        elif name == SOLVER:
            kinds = {data.dtype.str[1:]} if data.dtype.kind == "S" else {"S128"}
        elif name not in {INDICES, *COLUMNS, *_SUMS}:  # a further column
            kinds, axes = {"f8", "i8"}, {1, 2}
        if name in {EIGENVALUES, INDICES}:
            axes = {2}
        if data.dtype.str[1:] not in kinds:
            raise ValueError(f"{name} has numbers of another type, {data.dtype}")
        if data.ndim not in axes or len(data) != count:
            raise ValueError(f"{name} has the shape {data.shape} beside {count} rows")
    if not held[EIGENVALUES].shape[1]:
        raise ValueError(f"{EIGENVALUES} has no columns")


def _plausible(values: Mapping[str, np.ndarray]) -> np.ndarray:
    """Which rows could be spectra: finite, ascending, with a floor and a rank that exist."""
    levels, floor = values[EIGENVALUES], values["noise_floor"]
    right = np.isfinite(levels).all(axis=1) & (levels[:, 1:] >= levels[:, :-1]).all(axis=1)
    right &= np.isfinite(floor) & (floor >= 0)
    for name in ("rank", "reduced_dimension"):
        right &= (values[name] >= 0) & (values[name] <= levels.shape[1])
    return right


def spectra_of(place: Any, rows: Rows) -> Spectra:
    """The spectra of an open file, or of the group of a block.

    Args:
        place: The file or group.
        rows: What was read of it.

    Returns:
        Its spectra.

    Raises:
        ValueError: If the settings can't be those of spectra.
    """
    provenance = provenance_of(place.attrs)
    settings, values = provenance.config, rows.values
    for name in ("operator", "dtype"):
        if not isinstance(settings[name], str):
            raise ValueError(f"its settings name {settings[name]!r} as {name}")
    if rows.damaged:
        where = "" if place.name == "/" else f", {place.name[1:]}"
        warnings.warn(f"{place.file.filename}{where}: {damage(rows)}", HessrmtWarning, stacklevel=4)
        provenance = dataclasses.replace(provenance, notes=(*provenance.notes, damage(rows)))
    seconds = {phase: values[f"seconds_{phase}"] for phase in PHASES}
    every = np.full(len(rows.numbers), text(place.attrs[SOLVER]).encode())
    solvers = values.get(SOLVER, every)
    items = tuple(
        Spectrum(
            eigenvalues=levels,
            dimension=len(levels),
            **{name: values[name][row].item() for name in _STORED},
            operator=settings["operator"],
            dtype=settings["dtype"],
            solver=solvers[row].decode(errors="replace"),
            seconds={p: float(v[row]) for p, v in seconds.items() if v[row] >= 0},
            provenance=provenance,
        )
        for row, levels in enumerate(values[EIGENVALUES])
    )
    return Spectra(items, values[INDICES], rows.planned, provenance, rows.damaged)


def damage(rows: Rows) -> str:
    """What is said of rows that are left out.

    Args:
        rows: Of a file.

    Returns:
        A sentence without its full stop.
    """
    which = ", ".join(map(str, rows.damaged))
    which = f"rows {which} are" if len(rows.damaged) > 1 else f"row {which} is"
    return (
        f"{which} damaged and left out: the numbers stored there don't match their checksum or "
        "can't be a spectrum; --resume computes them again"
    )
