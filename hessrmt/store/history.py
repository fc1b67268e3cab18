"""The history of a training run: spectra and capacity metrics of the same weights, epoch by epoch.

A history is a spectrum file whose rows are epochs, all of one batch, with extra columns in the
groups ``capacity`` (epochs x layers), ``network`` and ``training`` (one number for each epoch).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hessrmt.errors import StoreError
from hessrmt.results import Result
from hessrmt.store import results
from hessrmt.store.files import reading, schema_of
from hessrmt.store.hdf5 import dataset, text
from hessrmt.store.spectra import SCHEMA, VERSION, Column, Extra, read_rows, spectra_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jaxtyping import Float64, Int64

    from hessrmt.records import Spectra

    PerLayer = Float64[np.ndarray, "epochs layers"]
    PerEpoch = Float64[np.ndarray, " epochs"]

EPOCH = "epoch"
LAYER = "capacity/layer"

CAPACITY = {
    "alpha": "power-law exponent of the layer's tail",
    "sigma": "standard error of alpha",
    "x_min": "where the tail begins, in units of the eigenvalues of W^T W/N",
    "n_tail": "eigenvalues in the tails",
    "ks_distance": "Kolmogorov-Smirnov distance of the tail to the law",
    "n_failed": "spectra of the layer without a power law",
    "lambda_max": "largest eigenvalue of W^T W/N",
    "rank": "eigenvalues above the noise floor",
    "log_frobenius": "ln of the Frobenius norm",
    "log_spectral": "ln of the spectral norm",
    "log_alpha_norm": "ln of the sum of lambda^alpha",
    "stable_rank": "squared Frobenius norm over squared spectral norm",
    "log_stable_rank": "ln of squared Frobenius norm over ln lambda_max",
    "entropy": "entropy of lambda/sum(lambda) over ln rank, 0 to 1",
    "alpha_hat": "alpha ln lambda_max, summed over the layer's matrices",
    "alpha_weighted": "alpha log10 of N lambda_max",
    "mp_variance": "sigma^2 of the Marchenko-Pastur bulk",
    "mp_edge": "where the bulk ends",
    "spikes": "eigenvalues above the bulk; NaN without one",
    "soft_rank": "edge of the bulk over lambda_max",
    "distance_frobenius": "distance to the initial weights over their norm, Frobenius",
    "distance_spectral": "distance to the initial weights over their norm, spectral",
}
"""Column of the group ``capacity`` to its meaning; names are those of a layer's attributes."""

NETWORK = {
    "alpha_hat": "sum of alpha ln lambda_max",
    "alpha_weighted": "mean of alpha log10 of N lambda_max",
    "mean_alpha": "mean of alpha over layers",
    "mean_log_norm": "mean of ln of the Frobenius norm over layers",
}
"""Column of the group ``network`` to its meaning; names are those of a report's attributes."""

TRAINING = {
    "train_loss": "mean loss over the training samples, evaluation mode",
    "train_accuracy": "fraction of them classified correctly; NaN without classes",
    "test_loss": "mean loss over the test samples; NaN without a test split",
    "test_accuracy": "fraction of them classified correctly; NaN without classes",
}
"""Column of the group ``training`` to its meaning."""

HESSIAN = {
    "largest": "The Hessian's largest eigenvalue.",
    "smallest": "The Hessian's smallest eigenvalue.",
    "rank": "Eigenvalues of the Hessian above the noise floor.",
}
"""Column of a history's table that its spectra give to its meaning."""

_GROUPS = {"capacity": CAPACITY, "network": NETWORK, "training": TRAINING}


@dataclass(frozen=True)
class History(Result, axes={"epoch": "epochs"}, picture="training.history"):
    """Spectra and capacity metrics of a network at several epochs of its training.

    The spectra are those of one batch at different parameters: not independent of each other, so
    statistics pooled over them have no standard error.

    Attributes:
        epochs: (n,) completed epochs at each row; 0 is the untrained network.
        spectra: One for each.
        layers: Names of the layers that were analysed.
        capacity: Quantity to its (n, layers) values, NaN where there is none; see :data:`CAPACITY`
            and :class:`hessrmt.capacity.Layer`.
        network: Quantity of the whole network to its (n,) values; see :data:`NETWORK`.
        training: Loss and accuracy to their (n,) values; see :data:`TRAINING`.
    """

    epochs: Int64[np.ndarray, " n"]
    spectra: Spectra
    layers: tuple[str, ...]
    capacity: Mapping[str, PerLayer]
    network: Mapping[str, PerEpoch]
    training: Mapping[str, PerEpoch]

    def __len__(self) -> int:
        return len(self.epochs)

    def row(self, epoch: int) -> int:
        """Where an epoch is in all the arrays.

        Args:
            epoch: Completed epochs.

        Returns:
            Its row.

        Raises:
            StoreError: If that epoch was not recorded.
        """
        found = np.flatnonzero(self.epochs == epoch)
        if not len(found):
            known = ", ".join(map(str, self.epochs)) or "none"
            raise StoreError(f"epoch {epoch} was not recorded; recorded are {known}")
        return int(found[0])

    def rows(self) -> list[dict[str, Any]]:
        """Its table: losses, numbers of the network and of the Hessian after each epoch."""
        ends = self.spectra.eigenvalues[:, [-1, 0]].T if len(self) else ([], [])
        hessian = dict(zip(HESSIAN, ends, strict=False))
        hessian["rank"] = np.array([one.rank for one in self.spectra])
        columns = {"epoch": self.epochs, **self.training, **self.network, **hessian}
        return [{name: v[row].item() for name, v in columns.items()} for row in range(len(self))]


def columns(epochs: Sequence[int], layers: Sequence[str]) -> Extra:
    """What a history has beside spectra.

    Args:
        epochs: The epochs to be recorded, ascending.
        layers: Names of the layers to be analysed.

    Returns:
        Labels and columns of its file.
    """
    return Extra(
        labels={EPOCH: np.asarray(epochs, dtype=np.int64), LAYER: tuple(layers)},
        columns={
            f"{group}/{name}": Column(units, along=LAYER if group == "capacity" else None)
            for group, meanings in _GROUPS.items()
            for name, units in meanings.items()
        },
    )


def holds_history(path: str | Path) -> bool:
    """Whether the rows of a spectrum file are epochs of a training run.

    Args:
        path: A spectrum file.

    Returns:
        Whether :func:`load_history` can read it.
    """
    if schema_of(path) != SCHEMA:  # of the published code
        return False
    with reading(path, SCHEMA, VERSION) as file:
        return EPOCH in file


def load_history(path: str | Path) -> History:
    """The recorded epochs of a training run; also while it still runs.

    Args:
        path: A file written by ``hessrmt train --history``, or by ``save`` of a history.

    Returns:
        The complete rows.

    Raises:
        StoreError: If the file is missing, damaged, foreign, or holds the spectra of batches.
    """
    if schema_of(path) == results.SCHEMA and isinstance(found := results.load(path), History):
        return found
    with reading(path, SCHEMA, VERSION) as file:
        if EPOCH not in file:
            raise StoreError(
                f"{path} holds spectra of batches, not of epochs: read it with hessrmt.load; "
                "hessrmt train --history writes a history"
            )
        rows = read_rows(file)
        groups = {
            group: {key: rows.values[f"{group}/{key}"] for key in meanings}
            for group, meanings in _GROUPS.items()
        }
        return History(
            epochs=np.asarray(dataset(file, EPOCH))[rows.numbers],
            spectra=spectra_of(file, rows),
            layers=tuple(map(text, np.asarray(dataset(file, LAYER)))),
            **groups,
        )
