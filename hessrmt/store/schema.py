"""The layout of a spectrum file, ``hessrmt/spectra`` version 1.

Every dataset has its full size from the start and is contiguous, so that writing a row never
changes the file's structure: a process may die at any moment and the file stays valid.

``hessian_evals`` keeps the name and layout of the published code of [B], (batches, P) float64
ascending per row; rows with ``done == 0`` are NaN.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

SCHEMA = "hessrmt/spectra"
VERSION = 1

EIGENVALUES = "hessian_evals"
INDICES = "batch_indices"
DONE = "done"

BLOCKS = "blocks"
"""Attribute of a file that holds a group for each of several blocks, all in this layout: their
names as JSON."""


def group_of(block: str) -> str:
    """Where the spectra of a block lie in its file.

    Returns:
        The name of a group.
    """
    return f"{BLOCKS}/{block or '(root)'}"


PHASES = ("reduction", "matrix", "eigenvalues")
"""Timed phases; each is stored as ``seconds_<phase>``."""


class Column(NamedTuple):
    """One number for each batch.

    Attributes:
        dtype: NumPy type on disk.
        units: What it is, stored as the dataset's ``long_name``.
    """

    dtype: type
    units: str


COLUMNS: dict[str, Column] = {
    "noise_floor": Column(np.float64, "|eigenvalue| below which it is round-off"),
    "rank": Column(np.int64, "eigenvalues above the noise floor"),
    "reduced_dimension": Column(np.int64, "dimension of the matrix diagonalised"),
    "n_paper_cutoff": Column(np.int64, "eigenvalues above 1e-20 in magnitude, the cutoff of [B]"),
    "n_paper_cutoff_ratios": Column(np.int64, "eigenvalues above 1e-10 in magnitude"),
    "resolved_spacings": Column(np.int64, "spacings of certified levels above the noise floor"),
    "gap_decades": Column(np.float64, "width of the widest gap in log|eigenvalue| near the floor"),
    "check": Column(np.float64, "relative residual of the matrix times a random v"),
    "loss": Column(np.float64, "mean loss of the batch"),
    "gradient_norm": Column(np.float64, "Euclidean norm of the gradient"),
    **{f"seconds_{phase}": Column(np.float64, f"wall-clock seconds: {phase}") for phase in PHASES},
}


class ExtraColumn(NamedTuple):
    """A further number, or row of numbers, for each batch: float64.

    Attributes:
        units: What it is, stored as the dataset's ``long_name``.
        along: Name of the labels that say what the numbers of a row belong to; None for one number.
    """

    units: str
    along: str | None = None


class Extra(NamedTuple):
    """Datasets that a file has beside those of every spectrum file; names may have a group.

    Attributes:
        labels: Name to values known from the start: of the rows, or of what columns lie along.
        columns: Name to what is written with every row, complete or absent like the row itself.
    """

    labels: Mapping[str, np.ndarray | Sequence[str]]
    columns: Mapping[str, ExtraColumn]


NOTHING = Extra({}, {})
"""What most files have beside their spectra."""
