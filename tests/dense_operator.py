"""A dense symmetric matrix as a matrix-free operator, and matrices with a given spectrum."""

import numpy as np
import torch

from hessrmt import Operator


class DenseOperator(Operator):
    """Products with a matrix, row by row, and how many there were."""

    def __init__(self, matrix, dtype=torch.float64):
        self.matrix = torch.from_numpy(np.asarray(matrix, dtype=np.float64)).to(dtype)
        self.dimension, self.dtype = len(self.matrix), dtype
        self.device, self.count = torch.device("cpu"), 0

    def __call__(self, block):
        self.count += len(block)
        return torch.stack([self.matrix @ row for row in block])


def with_spectrum(values, seed=0):
    """A symmetric matrix with given eigenvalues in a random orthonormal basis."""
    values = np.asarray(values, dtype=np.float64)
    draw = np.random.default_rng(seed).normal(size=(len(values), len(values)))
    basis = np.linalg.qr(draw)[0]
    matrix = (basis * values) @ basis.T
    return (matrix + matrix.T) / 2


def hessian_like(size=400, outliers=(7.0, 5.0, 4.0), zeros=150):
    """Outliers, a bulk of both signs over some decades, and a large null space."""
    bulk = size - zeros - len(outliers)
    up = np.geomspace(1.0, 1e-4, bulk - bulk // 3)
    down = -np.geomspace(0.5, 1e-3, bulk // 3)
    return np.sort(np.concatenate([outliers, up, down, np.zeros(zeros)]))
