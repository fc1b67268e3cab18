"""What a spectrum file looks like before its first row, as :mod:`hessrmt.store.schema` names it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from hessrmt.store.schema import (
    BLOCKS,
    COLUMNS,
    DONE,
    EIGENVALUES,
    INDICES,
    SCHEMA,
    VERSION,
    group_of,
)

if TYPE_CHECKING:
    from hessrmt.arrays import Indices
    from hessrmt.records import Provenance
    from hessrmt.store.schema import Extra


def lay_out(
    file: h5py.File | h5py.Group,
    identity: Mapping[str, Any],
    solver: str,
    dimension: int,
    batch_indices: Indices,
    provenance: Provenance,
    extra: Extra,
) -> None:
    """Put every attribute and dataset into an empty file; every row absent.

    Args:
        file: Open for writing.
        identity: Plain values that a resumed run must share.
        solver: Eigenvalue routine.
        dimension: P.
        batch_indices: (batches, B) positions of each batch's samples.
        provenance: Stored as attributes.
        extra: What the file holds beside spectra.
    """
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
        array(file, name).make_scale(name)
    _add(file, EIGENVALUES, np.full((batches, dimension), np.nan), ("batch", "level"))
    array(file, EIGENVALUES).attrs["long_name"] = (
        "eigenvalues of the mean loss's Hessian, ascending"
    )
    _add(file, INDICES, np.asarray(batch_indices, dtype=np.int64), ("batch", "sample"))
    _add(file, DONE, np.zeros(batches, dtype=np.uint8), ("batch",))
    for name, column in COLUMNS.items():
        blank = np.nan if column.dtype is np.float64 else -1
        _add(file, name, np.full(batches, blank, dtype=column.dtype), ("batch",))
        array(file, name).attrs["long_name"] = column.units
    if extra.columns:
        file.attrs["extra"] = json.dumps(list(extra.columns))
    _add_extra(file, extra, batches)


def lay_out_blocks(
    file: h5py.File, blocks: Mapping[str, int], identity: Mapping[str, Any], **parts: Any
) -> None:
    """Put a group for each of several blocks of a matrix into an empty file.

    Args:
        file: Open for writing.
        blocks: Name to dimension.
        identity: Plain values that a resumed run must share.
        parts: What :func:`lay_out` puts into each group.
    """
    shared = {"schema": SCHEMA, "schema_version": VERSION, "identity": json.dumps(dict(identity))}
    for name, value in (shared | {BLOCKS: json.dumps(list(blocks))}).items():
        file.attrs[name] = value
    for name, dimension in blocks.items():
        group = file.create_group(group_of(name), track_order=True)
        lay_out(group, identity, dimension=dimension, **parts)


def array(file: h5py.File | h5py.Group, name: str) -> h5py.Dataset:
    """A dataset of a file.

    Returns:
        The dataset.
    """
    found = file[name]
    assert isinstance(found, h5py.Dataset)
    return found


def _add(
    file: h5py.File | h5py.Group, name: str, values: np.ndarray, dimensions: tuple[str, ...]
) -> None:
    data = file.create_dataset(name, data=values)
    for axis, scale in enumerate(dimensions):
        data.dims[axis].attach_scale(array(file, scale))


def _add_extra(file: h5py.File | h5py.Group, extra: Extra, batches: int) -> None:
    scales = {column.along for column in extra.columns.values()}
    for name, values in extra.labels.items():
        if name in scales:
            file.create_dataset(name, data=values)
            array(file, name).make_scale(name.rpartition("/")[2])
        else:
            _add(file, name, np.asarray(values), ("batch",))
    for name, (units, along) in extra.columns.items():
        row = () if along is None else (len(extra.labels[along]),)
        blank = np.full((batches, *row), np.nan)
        _add(file, name, blank, ("batch",) if along is None else ("batch", along))
        array(file, name).attrs["long_name"] = units
