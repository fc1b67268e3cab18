"""A small spectrum file, for the tests of the store."""

import errno
import os

import h5py
import numpy as np

from hessrmt.records import Provenance, Spectrum
from hessrmt.store.writing import SpectrumWriter

NET = """
from torch import nn


def net():
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
"""

P, BATCHES, SIZE = 7, 3, 4
IDENTITY = {"model": "mlp3", "batch": SIZE, "checkpoint_sha256": "ab" * 32}
CONFIG = {"model": "mlp3", "operator": "hessian", "dtype": "float64", "seed": 11, "batch": SIZE}
DISK_FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def contents(path):
    """Every dataset of a file but the timings, bit for bit."""
    found = {}

    def add(name, item):
        if isinstance(item, h5py.Dataset) and "seconds_" not in name:
            values = item[()]
            found[name] = values.tolist() if values.dtype == object else values.tobytes()

    with h5py.File(path) as file:
        file.visititems(add)
    return found


def create(path, dimension=P, **changes):
    arguments = {
        "identity": IDENTITY,
        "solver": "LAPACK syevd",
        "dimension": dimension,
        "batch_indices": np.arange(BATCHES * SIZE).reshape(BATCHES, SIZE),
        "provenance": Provenance(config=CONFIG, device="cpu (2 threads)", notes=("a", "b")),
    }
    return SpectrumWriter(path, **{**arguments, **changes})


def resume(path, **changes):
    return create(path, resume=True, **changes)


def spectrum(row, dimension=P):
    levels = np.sort(np.random.default_rng(row).normal(size=dimension))
    return Spectrum(
        eigenvalues=levels,
        noise_floor=0.1,
        dimension=dimension,
        reduced_dimension=dimension - 1,
        loss=1.5 + row,
        gradient_norm=0.25,
        seconds={"matrix": 0.5, "eigenvalues": 0.125},
    )
