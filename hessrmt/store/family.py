"""A family of trained networks on disk, ``hessrmt/family`` version 2.

The file is small, so a new row is written by replacing the whole file: it is always complete, and
a row is in it or is not. Datasets have one row for each planned network; rows with ``done == 0``
are NaN. ``history/...`` has a column for each measured epoch, NaN after the last of a network.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_origin, get_type_hints

import h5py
import numpy as np
from jaxtyping import Float64

from hessrmt.files import write_whole
from hessrmt.records import Provenance
from hessrmt.results import Result
from hessrmt.store.files import (
    ResumableFile,
    attributes_of,
    provenance_of,
    reading,
    require_same,
)
from hessrmt.store.hdf5 import dataset, hdf5_bytes, plain, put_attributes, text

if TYPE_CHECKING:
    from collections.abc import Sequence

SCHEMA = "hessrmt/family"
VERSION = 2

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


@dataclass(frozen=True, eq=False, kw_only=True)
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
        margin: η of f, the smallest over the training samples; negative if one is wrong.
        normalized_margin: η of f̃.
        top_output_mean: Mean over the training samples of f̃'s largest output.
        top_output_std: Its standard deviation.
        raw_top_output_mean: The mean for f.
        raw_top_output_std: The standard deviation for f.
        seconds: Wall-clock time of training and measuring.
        rademacher: Bound on the Rademacher complexity of all networks no larger than this one, see
            :mod:`hessrmt.generalization.rademacher`; NaN where there is none, e.g. for residual
            networks, and in files from before it was stored.
        error_bound: Bound on the share of samples to come that are classified wrongly, which holds
            with probability 0.95; likewise.
        error_bound_margin: The margin γ of f̃ at which that bound is smallest; likewise.
        factors: ρ_k in the order of depth; one number where the output was normalised.
        margin_quantiles: Of the margins of f̃, at ``QUANTILES`` of ``generalization``.
        top_output_edges: (bins + 1,) edges of the histogram of f̃'s largest output.
        top_output_counts: (bins,) samples in each bin.
        history: Each of :data:`HISTORY` after the measured epochs on the family's own labels,
            float64: the learning rate, the losses and errors, η and Πρ_k of that epoch, computed
            from the outputs of the network in float32.
    """

    value: Annotated[float, "of what is varied"]
    parameters: Annotated[int, "trainable parameters"]
    epoch: Annotated[int, "epochs on the family's own labels"]
    train_loss: Annotated[float, "mean training loss"]
    test_loss: Annotated[float, "mean test loss"]
    normalized_train_loss: Annotated[float, "mean training loss of the normalised network"]
    normalized_test_loss: Annotated[float, "mean test loss of the normalised network"]
    train_error: Annotated[float, "share of training samples classified wrongly"]
    test_error: Annotated[float, "share of test samples classified wrongly"]
    product: Annotated[float, "product of the norms"]
    margin: Annotated[float, "smallest margin over the training samples"]
    normalized_margin: Annotated[float, "the same of the normalised network"]
    top_output_mean: Annotated[
        float, "mean of the normalised network's largest output, training samples"
    ]
    top_output_std: Annotated[float, "its standard deviation"]
    raw_top_output_mean: Annotated[float, "mean of the network's largest output, training samples"]
    raw_top_output_std: Annotated[float, "its standard deviation"]
    seconds: Annotated[float, "wall-clock seconds of training and measuring"] = 0.0
    rademacher: Annotated[float, "bound on the Rademacher complexity"] = math.nan
    error_bound: Annotated[float, "bound on the classification error, probability 0.95"] = math.nan
    error_bound_margin: Annotated[
        float, "margin of the normalised network at which the bound is smallest"
    ] = math.nan
    factors: Annotated[tuple[float, ...], "norms, in the order of depth"]
    margin_quantiles: Annotated[
        Float64[np.ndarray, " quantiles"],
        "quantiles of the normalised network's margins, training samples",
    ]
    top_output_edges: Annotated[
        Float64[np.ndarray, " edges"],
        "edges of the histogram of the normalised network's largest output",
    ]
    top_output_counts: Annotated[Float64[np.ndarray, " bins"], "training samples in each bin"]
    history: Mapping[str, Values] = field(repr=False)

    @property
    def complexity_over_margin(self) -> float:
        """R̂/η; NaN where no bound on R̂ is known, or not all training samples are right."""
        return self.rademacher / self.margin if self.margin > 0 else math.nan


_MEANINGS: dict[str, str] = {
    name: hint.__metadata__[0]
    for name, hint in get_type_hints(Member, include_extras=True).items()
    if get_origin(hint) is Annotated
}
"""Dataset of the file to what it means: those fields of a member that are annotated so."""

_ROWS = ("factors", "margin_quantiles", "top_output_edges", "top_output_counts")
"""Datasets with several numbers for each network; the others have one."""

_LATER = ("rademacher", "error_bound", "error_bound_margin")
"""Datasets that files of the first versions lack, and that may have no number."""


@dataclass(frozen=True)
class FamilyResult(Result, picture="puzzles.family"):
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

    def rows(self) -> list[dict[str, Any]]:
        """Its table: a row for each network, without what has several numbers."""
        names = [name for name in _MEANINGS if name not in _ROWS]
        return [{name: getattr(member, name) for name in names} for member in self.members]


def load_family(path: str | Path) -> FamilyResult:
    """The finished networks of a family; also while others are still trained.

    Args:
        path: A file of :class:`FamilyWriter`.

    Returns:
        The family.
    """
    rows, attributes = _read_file(Path(path))
    return FamilyResult(
        family=plain(attributes["family"], dict),
        members=tuple(rows[index] for index in sorted(rows)),
        data=attributes["data"],
        device=attributes["device"],
        complete=len(rows) == int(attributes["planned"]),
        notes=tuple(plain(attributes["notes"], list)),
    )


class FamilyWriter(ResumableFile):
    """Makes or continues a family file; no other writer can until it is closed.

    Args:
        path: The file; its folder must exist.
        values: (n,) of what is varied, one for each network.
        identity: Plain values that a run which continues the file must share, with ``family``.
        provenance: Where the numbers come from; ``config["data"]`` says where the data do.

    Attributes:
        path: The file.
        members: Row to network, of those that are done.
    """

    def __init__(
        self,
        path: Path,
        values: Sequence[float],
        identity: Mapping[str, Any],
        provenance: Provenance,
    ) -> None:
        super().__init__(path)
        self.members: dict[int, Member] = {}
        self._values = np.asarray(values, dtype=np.float64)
        self._identity = identity
        self._provenance = provenance
        try:
            if path.exists():
                self._continue()
            else:
                self._replace({})
        except BaseException:
            self.close()
            raise

    def write(self, row: int, member: Member) -> None:
        """Store one finished network; the file on disk is the old one or the new one, complete.

        Args:
            row: Of which value.
            member: Its numbers.
        """
        self._replace(self.members | {row: member})

    def _replace(self, members: dict[int, Member]) -> None:
        write_whole(self.path, hdf5_bytes(partial(self._fill, members)))
        self.members = members

    def _fill(self, members: Mapping[int, Member], file: h5py.File) -> None:
        count = len(self._values)
        about = {
            **attributes_of(SCHEMA, VERSION, self._provenance, self._identity),
            "family": json.dumps(self._identity["family"]),
            "data": self._provenance.config["data"],
            "planned": count,
        }
        put_attributes(file, about)
        file["done"] = np.isin(np.arange(count), list(members)).astype(np.uint8)

        def put(name: str, meaning: str, found: Mapping[int, Any], least: int = 0) -> None:
            rows = {row: np.atleast_1d(value) for row, value in found.items()}
            data = np.full((count, max(map(len, rows.values()), default=least)), np.nan)
            for row, numbers in rows.items():
                data[row, : len(numbers)] = numbers
            file.create_dataset(name, data=data[:, 0] if least else data)
            file[name].attrs["long_name"] = meaning

        for name, meaning in _MEANINGS.items():
            found = {row: getattr(member, name) for row, member in members.items()}
            put(name, meaning, found, least=int(name not in _ROWS))
        dataset(file, "value")[...] = self._values
        for name in HISTORY:
            found = {row: member.history[name] for row, member in members.items()}
            put(f"history/{name}", f"{name} after the measured epochs", found)

    def _continue(self) -> None:
        self.members, attributes = _read_file(self.path)
        require_same(self.path, plain(attributes["identity"], dict), self._identity)
        then = replace(provenance_of(attributes), config={"data": attributes["data"]})
        if then.device != self._provenance.device:
            note = f"continued on {self._provenance.device} with row {len(self.members)}"
            then = replace(then, notes=(*then.notes, note))
        self._provenance = then


def _read_file(path: Path) -> tuple[dict[int, Member], dict[str, str]]:
    with reading(path, SCHEMA, VERSION) as file:
        attributes = {name: text(value) for name, value in file.attrs.items()}
        provenance_of(attributes)  # what is missing is said now
        for name in ("family", "identity"):
            plain(attributes[name], dict)
        int(attributes["planned"])
        attributes["data"] = text(file.attrs["data"])
        done = np.flatnonzero(np.asarray(dataset(file, "done")))
        return {int(row): _read(file, int(row)) for row in done}, attributes


def _read(file: h5py.File, row: int) -> Member:
    def known(name: str) -> np.ndarray:
        if name in _LATER and name not in file:
            return np.empty(0)
        numbers = np.atleast_1d(np.asarray(dataset(file, name)[row], dtype=np.float64))
        return numbers[~np.isnan(numbers)]

    stored: dict[str, Any] = {name: known(name) for name in _MEANINGS}
    for name in _LATER:
        stored[name] = stored[name] if len(stored[name]) else np.array([math.nan])
    for name in _MEANINGS.keys() - {*_ROWS}:
        if name not in _LATER and np.isfinite(stored[name]).sum() != 1:
            raise ValueError(f"row {row} is not complete")
        stored[name] = stored[name].item()
    for name in ("parameters", "epoch"):
        stored[name] = int(stored[name])
    stored["factors"] = tuple(stored["factors"].tolist())
    history = {name: known(f"history/{name}") for name in HISTORY}
    if len({len(values) for values in history.values()}) > 1:
        raise ValueError(f"the history of row {row} is not complete")
    return Member(**stored, history=history)
