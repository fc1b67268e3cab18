"""The backend: a device and the few operations whose implementation depends on it.

Arguments are checked here, once for every device.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from hessrmt.backend import reference
from hessrmt.errors import ConfigError, DeviceError, NonFiniteError

if TYPE_CHECKING:
    from jaxtyping import Float, Float64, Int64
    from torch import Tensor

    from hessrmt.arrays import Levels, Matrix

    Stack = Float[Tensor, "batch n n"] | Sequence[Matrix]
    Fits = list[tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, " n"]]]

FLOATS = (torch.float64, torch.float32)

_TILE = 512


class Backend(ABC):
    """A device and its operations; the only place where hardware makes a difference.

    Arguments live on the backend's device. Results are float64 or int64 NumPy arrays, except where
    a tensor is asked for. What a device does not do in a way of its own is done as here: by torch,
    or by the CPU twins of :mod:`.reference`.

    Attributes:
        name: The device in words, for files and terminals.
        device: Where tensors live.
        solver: The route of the last :meth:`eigvalsh` or :meth:`eigvalsh_batch` in words; before
            it, the policy.
    """

    name: str
    device: torch.device
    solver: str

    @abstractmethod
    def free_memory(self) -> int:
        """Bytes that can be allocated now."""

    @abstractmethod
    def eigen_bytes(self, n: int, itemsize: int) -> int:
        """Bytes held while an (n, n) matrix is diagonalised: the matrix and the solver's workspace.

        Args:
            n: Dimension.
            itemsize: Bytes of a number.
        """

    @abstractmethod
    def solver_table(self) -> dict[str, str]:
        """Which route :meth:`eigvalsh` and :meth:`eigvalsh_batch` take: size range to words."""

    def symmetrize_(self, matrix: Matrix) -> float:
        """Replace A by (A + Aᵀ)/2 in place.

        Returns:
            The largest |A_ij - A_ji| before; NaN if any entry is not finite.
        """
        worst = matrix.new_zeros(())
        starts = range(0, matrix.shape[0], _TILE)
        for i in starts:
            for j in starts[: i // _TILE + 1]:
                lower = matrix[i : i + _TILE, j : j + _TILE]
                upper = matrix[j : j + _TILE, i : i + _TILE].T
                # inf - inf and NaN both give NaN, and torch.maximum keeps it
                worst = torch.maximum(worst, (lower - upper).abs().max())
                mean = (lower + upper) / 2
                lower.copy_(mean)
                upper.copy_(mean)
        return float(worst)

    def eigvalsh(self, matrix: Matrix) -> Levels:
        """All eigenvalues of a symmetric matrix.

        Args:
            matrix: (n, n) float64 or float32. The lower triangle is read; may be overwritten.

        Returns:
            (n,) float64, ascending.

        Raises:
            ConfigError: If the matrix is not square or of another type.
            NonFiniteError: If an entry is NaN or infinite.
            ConvergenceError: If the solver fails.
        """
        _require_square(matrix, "the matrix")
        return self._eigvalsh(matrix)

    def eigvalsh_batch(self, matrices: Stack) -> list[Levels]:
        """All eigenvalues of each of several symmetric matrices.

        Args:
            matrices: (batch, n, n), or matrices (n_i, n_i) of any sizes; float64 or float32. The
                lower triangles are read; may be overwritten.

        Returns:
            For each matrix, in the order given, (n_i,) float64, ascending; an empty list for none.

        Raises:
            ConfigError: If a matrix is not square or of another type.
            NonFiniteError: If an entry is NaN or infinite.
            ConvergenceError: If the solver fails.
        """
        if isinstance(matrices, torch.Tensor) and matrices.ndim != 3:
            raise ConfigError(f"a stack of shape {tuple(matrices.shape)}; give (batch, n, n)")
        for number, matrix in enumerate(matrices):
            _require_square(matrix, f"matrix {number}")
        return self._eigvalsh_batch(matrices)

    def staircase(
        self, pool: Float64[Tensor, " m"], queries: Float64[Tensor, " n"]
    ) -> Int64[np.ndarray, " n"]:
        """Counting function of a pool of levels: how many are less than each query.

        Args:
            pool: (m,) float64, ascending.
            queries: (n,) float64, ascending.

        Returns:
            (n,) int64; equal levels are not counted.

        Raises:
            ConfigError: If an argument is not a vector of float64, or does not ascend.
            NonFiniteError: If a value is NaN or infinite.
        """
        for what, values in (("pool", pool), ("queries", queries)):
            _require_ascending(values, what)
            if values.dtype != torch.float64:
                raise ConfigError(f"{what}: {values.dtype}; give float64")
        return self._staircase(pool.contiguous(), queries.contiguous())

    def powerlaw_scan(self, values: Sequence[Float[Tensor, " n"]]) -> Fits:
        """Fit ρ(x) ~ x^(-α) to the tail of every layer that begins at each of its values.

        Definitions and sources: :func:`hessrmt.backend.reference.powerlaw_scan`.

        Args:
            values: For each layer (n_i,) ascending, positive; computed with in float64.

        Returns:
            For each layer α and the Kolmogorov-Smirnov distance of each candidate, (n_i,) float64,
            NaN where the tail holds fewer than two distinct values; an empty list for none.

        Raises:
            ConfigError: If a layer is not a vector of floating-point numbers, does not ascend, or
                holds a value that is not positive.
            NonFiniteError: If a value is NaN or infinite.
        """
        for number, layer in enumerate(values):
            what = f"layer {number}"
            _require_ascending(layer, what)
            if len(layer) and float(layer[0]) <= 0:
                smallest = f"the smallest value is {float(layer[0]):g}"
                raise ConfigError(f"{what}: {smallest}; a power law needs values > 0")
        if not len(values):
            return []
        offsets = np.cumsum([0, *map(len, values)], dtype=np.int64)
        alpha, distance = self._scan(torch.cat([layer.double() for layer in values]), offsets)
        cuts = offsets[1:-1]
        return list(zip(np.split(alpha, cuts), np.split(distance, cuts), strict=True))

    def sample_goe(
        self, n: int, count: int, key: int, dtype: torch.dtype = torch.float64, first: int = 0
    ) -> Float[Tensor, "count n n"]:
        """Draw matrices of the Gaussian orthogonal ensemble: N(0, 1), on the diagonal N(0, 2).

        The same on every device, up to the last bits of logarithm and cosine; see
        :func:`hessrmt.backend.reference.sample_goe`.

        Args:
            n: Dimension, at least 1.
            count: How many matrices, 0 or more.
            key: 64-bit word of a named stream.
            dtype: ``torch.float64`` or ``torch.float32``.
            first: Number of the first matrix in the key's sequence.

        Returns:
            (count, n, n) on the backend's device, symmetric to the bit.

        Raises:
            ConfigError: If a number is out of its range or ``dtype`` is another.
            DeviceError: If the matrices are larger than the free memory.
        """
        if n < 1 or count < 0 or first < 0 or not 0 <= key < 2**64 or dtype not in FLOATS:
            raise ConfigError(
                f"GOE matrices with n = {n}, count {count}, first {first}, key {key}, {dtype}; "
                "give n >= 1, count >= 0, first >= 0, a key of 64 bits and float64 or float32"
            )
        each, free = n * n * dtype.itemsize, self.free_memory()
        if count * each > free:
            raise DeviceError(
                f"{count:,} matrices of {n:,} x {n:,} need {count * each:,} bytes and {self.name} "
                f"has {free:,} free, enough for {free // each:,}; draw them in parts (first=...)"
            )
        return self._goe(n, count, key, dtype, first)

    @abstractmethod
    def _eigvalsh(self, matrix: Matrix) -> Levels: ...

    @abstractmethod
    def _eigvalsh_batch(self, matrices: Stack) -> list[Levels]: ...

    def _staircase(self, pool: Tensor, queries: Tensor) -> np.ndarray:
        return reference.staircase(pool.cpu().numpy(), queries.cpu().numpy())

    def _scan(self, values: Tensor, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return reference.powerlaw_scan(values.cpu().numpy(), offsets)

    def _goe(self, n: int, count: int, key: int, dtype: torch.dtype, first: int) -> Tensor:
        kind = np.float64 if dtype == torch.float64 else np.float32
        drawn = reference.sample_goe(n, count, key, first=first, dtype=kind)
        return torch.from_numpy(drawn).to(self.device)


def require_finite(finite: bool, what: str = "the matrix") -> None:
    """Raise unless all entries of a matrix are finite.

    Args:
        finite: Whether they are.
        what: Its name in the error.

    Raises:
        NonFiniteError: If not.
    """
    if not finite:
        raise NonFiniteError(
            f"{what} has entries that are NaN or infinite, so it has no eigenvalues; look for an "
            "overflow in what it was computed from, e.g. with float64 instead of float32"
        )


def all_finite(values: Tensor) -> bool:
    """Whether no value is NaN or infinite, without a temporary of the same size.

    Args:
        values: Of any shape.

    Returns:
        True also if there are none.
    """
    # NaN is kept by both ends
    return not values.numel() or all(math.isfinite(float(end)) for end in torch.aminmax(values))


def _require_square(matrix: Tensor, what: str) -> None:
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ConfigError(f"{what} has shape {tuple(matrix.shape)}; give an (n, n) matrix")
    if matrix.dtype not in FLOATS:
        raise ConfigError(f"{what} is of {matrix.dtype}; give float64 or float32")


def _require_ascending(values: Tensor, what: str) -> None:
    if values.ndim != 1 or values.dtype not in FLOATS:
        given = f"shape {tuple(values.shape)}, {values.dtype}"
        raise ConfigError(f"{what}: {given}; give a vector of float64 or float32")
    if not all_finite(values):
        raise NonFiniteError(f"{what}: a value is NaN or infinite; remove it before")
    if bool((values[1:] < values[:-1]).any()):
        raise ConfigError(f"{what}: the values do not ascend; sort them before")
