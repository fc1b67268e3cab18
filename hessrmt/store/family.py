"""A family of trained networks on disk, ``hessrmt/family`` version 1.

The file is small, so a new row is written by replacing the whole file: it is always complete, and
a row is in it or is not. Datasets have one row for each planned network; rows with ``done == 0``
are NaN. ``history/...`` has a column for each measured epoch, NaN after the last of a network.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from jaxtyping import Float64

from hessrmt.errors import StoreError
from hessrmt.store.hdf5 import DAMAGE, reason, text
from hessrmt.store.layout import array

if TYPE_CHECKING:
    from hessrmt.records import Provenance

SCHEMA = "hessrmt/family"
VERSION = 1

SCALARS = {
    "value": "of what is varied",
    "parameters": "trainable parameters",
    "epoch": "epochs on the family's own labels",
    "train_loss": "mean training loss",
    "test_loss": "mean test loss",
    "normalized_train_loss": "mean training loss of the normalised network",
    "normalized_test_loss": "mean test loss of the normalised network",
    "train_error": "share of training samples classified wrongly",
    "test_error": "share of test samples classified wrongly",
    "product": "product of the norms",
    "margin": "smallest margin over the training samples",
    "normalized_margin": "the same of the normalised network",
    "top_output_mean": "mean of the normalised network's largest output, training samples",
    "top_output_std": "its standard deviation",
    "raw_top_output_mean": "mean of the network's largest output, training samples",
    "raw_top_output_std": "its standard deviation",
    "seconds": "wall-clock seconds of training and measuring",
}
"""Dataset to its meaning; names are those of a member's attributes."""

ROWS = {
    "factors": "norms, in the order of depth",
    "margin_quantiles": "quantiles of the normalised network's margins, training samples",
    "top_output_edges": "edges of the histogram of the normalised network's largest output",
    "top_output_counts": "training samples in each bin",
}
"""Dataset with several numbers for each network to its meaning."""

HISTORY = (
    "epoch",
    "rate",
    "train_loss",
    "test_loss",
    "train_error",
    "test_error",
    "normalized_train_loss",
    "normalized_test_loss",
    "margin",
    "product",
)
"""What is measured during training."""

Values = Float64[np.ndarray, " n"]


@dataclass(frozen=True, eq=False)
class Member:
    """One trained network.

    Losses are means of float64 outputs; f̃ = f/product is the normalised network.

    Attributes:
        value: Of what is varied.
        parameters: Trainable parameters.
        epoch: The epoch kept, of those on the family's own labels.
        train_loss: Of f over the training samples.
        test_loss: Of f over the test samples.
        normalized_train_loss: Of f̃.
        normalized_test_loss: Of f̃.
        train_error: Share of training samples classified wrongly.
        test_error: Share of test samples classified wrongly.
        product: Πρ_k, or the norm of the output.
        factors: ρ_k in the order of depth; one number where the output was normalised.
        margin: η of f, the smallest over the training samples; negative if one is wrong.
        normalized_margin: η of f̃.
        margin_quantiles: Of the margins of f̃, at ``QUANTILES`` of ``generalization``.
        top_output_mean: Mean over the training samples of f̃'s largest output.
        top_output_std: Its standard deviation.
        top_output_edges: (bins + 1,) edges of its histogram.
        top_output_counts: (bins,) samples in each bin.
        raw_top_output_mean: The mean for f.
        raw_top_output_std: The standard deviation for f.
        history: Each of :data:`HISTORY` after the measured epochs on the family's own labels,
            float64: the learning rate, the losses and errors, η and Πρ_k of that epoch, computed
            from the outputs of the network in float32.
        seconds: Wall-clock time of training and measuring.
    """

    value: float
    parameters: int
    epoch: int
    train_loss: float
    test_loss: float
    normalized_train_loss: float
    normalized_test_loss: float
    train_error: float
    test_error: float
    product: float
    factors: tuple[float, ...]
    margin: float
    normalized_margin: float
    margin_quantiles: Float64[np.ndarray, " quantiles"]
    top_output_mean: float
    top_output_std: float
    top_output_edges: Float64[np.ndarray, " edges"]
    top_output_counts: Float64[np.ndarray, " bins"]
    raw_top_output_mean: float
    raw_top_output_std: float
    history: Mapping[str, Values] = field(repr=False)
    seconds: float = 0.0


@dataclass(frozen=True)
class FamilyResult:
    """A family of trained networks, as far as it is done.

    Attributes:
        family: Its settings as plain values.
        members: The finished networks, in the order of the values.
        data: Where the samples came from, in words.
        device: Where it was begun, in words.
        complete: Whether all networks are there.
        notes: Anything a reader must know.
    """

    family: Mapping[str, Any]
    members: tuple[Member, ...]
    data: str
    device: str
    complete: bool
    notes: tuple[str, ...] = ()

    def column(self, name: str) -> Values:
        """One number of every member.

        Args:
            name: Of an attribute.

        Returns:
            (members,) in their order.
        """
        return np.array([getattr(member, name) for member in self.members], dtype=np.float64)


def load_family(path: str | Path) -> FamilyResult:
    """The finished networks of a family; also while others are still trained.

    Args:
        path: A file ``families/<name>.h5`` of an experiment.

    Returns:
        Its complete rows.

    Raises:
        StoreError: If the file is missing, damaged, foreign or of a newer schema.
    """
    path = Path(path)
    rows, attributes = read_file(path)
    try:
        return FamilyResult(
            family=json.loads(attributes["family"]),
            members=tuple(rows[index] for index in sorted(rows)),
            data=attributes["data"],
            device=attributes["device"],
            complete=len(rows) == int(attributes["planned"]),
            notes=tuple(json.loads(attributes["notes"])),
        )
    except DAMAGE as error:
        raise StoreError(f"{path} is damaged: {reason(error)}") from error


def read_file(path: Path) -> tuple[dict[int, Member], dict[str, str]]:
    """Everything in a file.

    Args:
        path: The file.

    Returns:
        Row to finished network, and the attributes as text.

    Raises:
        StoreError: If it is missing, damaged, foreign or of a newer schema.
    """
    if not path.exists():
        raise StoreError(f"there is no file {path}")
    try:
        file = h5py.File(path, "r", locking=False)
    except (OSError, RuntimeError) as error:
        raise StoreError(
            f"{path} cannot be opened as HDF5 (truncated, damaged or another format): "
            f"{reason(error)}"
        ) from error
    with file:
        try:
            attributes = {name: text(value) for name, value in file.attrs.items()}
            schema, version = attributes.get("schema", ""), attributes.get("schema_version", "0")
            if schema != SCHEMA:
                said = f"its schema is {schema!r}" if schema else "it has no schema attribute"
                raise StoreError(f"{path} holds no family: {said}, expected {SCHEMA!r}")
            if not 1 <= int(version) <= VERSION:
                raise StoreError(
                    f"{path} has schema version {version}, this hessrmt reads 1 to {VERSION}; a "
                    "newer hessrmt may read it"
                )
            done = np.flatnonzero(np.asarray(array(file, "done")))
            return {int(row): _read(file, int(row)) for row in done}, attributes
        except DAMAGE as error:
            raise StoreError(f"{path} is damaged: {reason(error)}") from error


def fill(
    file: h5py.File,
    values: Values,
    members: Mapping[int, Member],
    identity: Mapping[str, Any],
    provenance: Provenance,
) -> None:
    """Put a family into an empty file.

    Args:
        file: Open for writing.
        values: Of all planned networks.
        members: Row to finished network.
        identity: Plain values that a continued run must share; ``family`` in it is also stored by
            itself.
        provenance: Stored as attributes; ``data`` in its config says where the samples came from.
    """
    attributes = {
        "schema": SCHEMA,
        "schema_version": VERSION,
        "library": f"hessrmt {provenance.versions.get('hessrmt', '')}",
        "created": provenance.created,
        "device": provenance.device,
        "versions": json.dumps(dict(provenance.versions)),
        "notes": json.dumps(list(provenance.notes)),
        "identity": json.dumps(dict(identity)),
        "family": json.dumps(identity["family"]),
        "data": provenance.config["data"],
        "planned": len(values),
    }
    for name, value in attributes.items():
        file.attrs[name] = value
    done = np.zeros(len(values), dtype=np.uint8)
    done[list(members)] = 1
    file["done"] = done
    for name, meaning in SCALARS.items():
        found = {row: getattr(member, name) for row, member in members.items()}
        _put(file, name, meaning, _column(len(values), found))
    array(file, "value")[...] = values
    for name, meaning in ROWS.items():
        found = {row: np.asarray(getattr(member, name)) for row, member in members.items()}
        _put(file, name, meaning, _padded(len(values), found))
    for name in HISTORY:
        found = {row: member.history[name] for row, member in members.items()}
        _put(
            file,
            f"history/{name}",
            f"{name} after the measured epochs",
            _padded(len(values), found),
        )


def _put(file: h5py.File, name: str, meaning: str, data: np.ndarray) -> None:
    file.create_dataset(name, data=data).attrs["long_name"] = meaning


def _column(rows: int, found: Mapping[int, float]) -> np.ndarray:
    data = np.full(rows, np.nan)
    for row, value in found.items():
        data[row] = value
    return data


def _padded(rows: int, found: Mapping[int, np.ndarray]) -> np.ndarray:
    data = np.full((rows, max((len(row) for row in found.values()), default=0)), np.nan)
    for row, values in found.items():
        data[row, : len(values)] = values
    return data


def _read(file: h5py.File, row: int) -> Member:
    def several(name: str) -> np.ndarray:
        values = np.asarray(array(file, name)[row], dtype=np.float64)
        return values[~np.isnan(values)]

    scalars: dict[str, Any] = {name: float(array(file, name)[row]) for name in SCALARS}
    if not np.isfinite(list(scalars.values())).all():
        raise ValueError(f"row {row} is not complete")
    for name in ("parameters", "epoch"):
        scalars[name] = int(scalars[name])
    rows: dict[str, Any] = {name: several(name) for name in ROWS}
    rows["factors"] = tuple(rows["factors"].tolist())
    history = {name: several(f"history/{name}") for name in HISTORY}
    if len({len(values) for values in history.values()}) > 1:
        raise ValueError(f"the history of row {row} is not complete")
    return Member(**scalars, **rows, history=history)
