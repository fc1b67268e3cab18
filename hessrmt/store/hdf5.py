"""Reading spectrum files; also while a run is still writing them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from hessrmt.errors import StoreError
from hessrmt.records import Provenance, Spectra, Spectrum
from hessrmt.store.schema import (
    BLOCKS,
    COLUMNS,
    DONE,
    EIGENVALUES,
    INDICES,
    PHASES,
    SCHEMA,
    VERSION,
    group_of,
)

DAMAGE = (OSError, KeyError, ValueError, TypeError, IndexError, RuntimeError)
"""What h5py and json raise on a file that lacks something or is bent."""


def load(path: str | Path, block: str | None = None) -> Spectra:
    """The complete spectra of a file; also while a run is still writing it.

    Args:
        path: A file written by ``hessrmt spectrum``.
        block: Name of a layer, for a file written with ``--blocks layer``.

    Returns:
        The spectra whose rows are complete, with their provenance.

    Raises:
        StoreError: If the file is missing, truncated, foreign or of a newer schema, or the block is
            not the name of one.
    """
    path = Path(path)
    with open_checked(path) as file:
        try:
            names = blocks_in(file)
            if (block is None) == bool(names) or (names and block not in names):
                raise StoreError(
                    f"{path} holds the spectra of the blocks {', '.join(map(repr, names))}; name "
                    "one of them: hr.load(path, block)"
                    if names
                    else f"{path} holds no blocks; hr.load(path) gives its spectra"
                )
            part = file if block is None else file[group_of(block)]
            return read_rows(part, done_rows(part))  # type: ignore[arg-type]
        except DAMAGE as error:
            raise StoreError(f"{path} is damaged: {reason(error)}") from error


def load_all(path: str | Path) -> Spectra | dict[str, Spectra]:
    """The complete spectra of a file, by blocks if it has some.

    Args:
        path: As for :func:`load`.

    Returns:
        The spectra, or those of each block. Raises StoreError as :func:`load`.
    """
    with open_checked(Path(path)) as file:
        names = blocks_in(file)
    return {name: load(path, name) for name in names} if names else load(path)


def blocks_in(file: h5py.File) -> tuple[str, ...]:
    """Names of the blocks whose spectra an open file holds.

    Returns:
        None for a file of whole matrices.
    """
    return tuple(json.loads(text(file.attrs.get(BLOCKS, "[]"))))


def done_rows(file: h5py.File | h5py.Group) -> np.ndarray:
    """Which rows of an open file are complete; to be read before the rows themselves.

    Returns:
        Their numbers, ascending; these rows never change again.
    """
    return np.flatnonzero(np.asarray(file[DONE]))


def read_rows(file: h5py.File | h5py.Group, done: np.ndarray) -> Spectra:
    """Some complete spectra of an open file.

    Args:
        file: From :func:`open_checked`, or a group of it.
        done: Numbers of complete rows.

    Returns:
        Their spectra, with the provenance.
    """
    attributes = file.attrs
    settings = json.loads(text(attributes["config"]))
    provenance = Provenance(
        config=settings,
        device=text(attributes["device"]),
        versions=json.loads(text(attributes["versions"])),
        created=text(attributes["created"]),
        notes=tuple(json.loads(text(attributes["notes"]))),
    )
    levels = np.asarray(file[EIGENVALUES])
    columns = {name: np.asarray(file[name]) for name in COLUMNS}
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
            solver=text(attributes["solver"]),
            check=float(columns["check"][row]),
            seconds={
                phase: float(columns[f"seconds_{phase}"][row])
                for phase in PHASES
                if not np.isnan(columns[f"seconds_{phase}"][row])
            },
            provenance=provenance,
        )
        for row in done
    )
    indices = np.asarray(file[INDICES])
    return Spectra(items, indices[done], planned=len(levels), provenance=provenance)


def open_checked(path: Path) -> h5py.File:
    """A spectrum file, open for reading without a lock, its schema checked.

    Args:
        path: The file.

    Returns:
        The open file.

    Raises:
        StoreError: If it is missing, not HDF5, foreign or of a newer schema.
    """
    if not os.path.exists(path):
        raise StoreError(f"there is no file {path}")
    try:
        file = h5py.File(path, "r", locking=False)
    except (OSError, RuntimeError) as error:
        raise StoreError(
            f"{path} cannot be opened as HDF5 (truncated, damaged or another format): "
            f"{reason(error)}"
        ) from error
    try:
        _check_schema(path, file)
    except BaseException:
        file.close()
        raise
    return file


def _check_schema(path: Path, file: h5py.File) -> None:
    try:
        schema = text(file.attrs.get("schema", ""))
        version = int(file.attrs.get("schema_version", 0))
    except DAMAGE as error:
        raise StoreError(f"{path} is damaged: {reason(error)}") from error
    if schema != SCHEMA:
        said = f"its schema is {schema!r}" if schema else "it has no schema attribute"
        raise StoreError(f"{path} was not written by hessrmt: {said}, expected {SCHEMA!r}")
    if not 1 <= version <= VERSION:
        raise StoreError(
            f"{path} has schema version {version}, this hessrmt reads 1 to {VERSION}; a newer "
            "hessrmt may read it"
        )


def text(value: Any) -> str:
    """An attribute as text, whichever of HDF5's kinds of string it was stored as.

    Returns:
        The text.
    """
    return value.decode() if isinstance(value, bytes) else str(value)


def reason(error: BaseException) -> str:
    """The short cause of a failed file operation.

    Returns:
        The system's words for its error number if it has one, else the message.
    """
    if isinstance(error, OSError) and error.errno and error.strerror:
        return os.strerror(error.errno)
    return str(error)
