"""The backend: a device and the few operations whose implementation depends on it.

Arguments are checked here, once for every device.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from hessrmt.arrays import fetched
from hessrmt.backend import reference
from hessrmt.errors import ConfigError, ConvergenceError, DeviceError, NonFiniteError

if TYPE_CHECKING:
    from jaxtyping import Float, Float64, Int64
    from torch import Tensor

    from hessrmt.arrays import Levels, Matrix

    Stack = Float[Tensor, "batch n n"] | Sequence[Matrix]
    Rows = Sequence[Float[np.ndarray, " n"]]
    Fits = list[tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, " n"]]]

FLOATS = (torch.float64, torch.float32)

_TILE = 512


class Backend(ABC):
    """A device and its operations; the only place where hardware makes a difference.

    Matrices live on the backend's device; bands and rows of numbers, which are drawn or computed in
    main memory, are NumPy arrays, and so are results, float64 or int64, except where a tensor is
    asked for. What a device does not do in a way of its own is done as here: by torch,
    or by the CPU twins of :mod:`.reference`.

    Attributes:
        name: The device in words, for files and terminals.
        device: Where tensors live.
        solver: The route of the last :meth:`eigvalsh` or :meth:`eigvalsh_batch` in words; before
            it, the policy.
        speed: About how many times more work than a CPU is given to it at a time.
    """

    name: str
    device: torch.device
    solver: str
    speed: int = 1

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

    def less_memory(self, n: int, itemsize: int, room: int) -> str:
        """What to change so that the eigenvalues of an (n, n) matrix fit, in words.

        Args:
            n: Dimension.
            itemsize: Bytes of a number.
            room: Bytes for the matrix and the solver's workspace.

        Returns:
            Empty if nothing is known.
        """
        del n, itemsize, room
        return ""

    @abstractmethod
    def solver_table(self) -> dict[str, str]:
        """Which route :meth:`eigvalsh` and :meth:`eigvalsh_batch` take: size range to words."""

    @property
    def scans(self) -> bool:
        """Whether :meth:`powerlaw_scan` of all tails is quicker than a search for the best one."""
        return False

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
        return finite_levels(self._eigvalsh(matrix.detach()))

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
        found = self._eigvalsh_batch([matrix.detach() for matrix in matrices])
        return [finite_levels(levels) for levels in found]

    def banded_route(self, width: int) -> tuple[str, str]:
        """Where and how :meth:`eigvalsh_banded` solves bands.

        Args:
            width: Their half-width r.

        Returns:
            The device and the solver in words.
        """
        return "cpu", "LAPACK dsterf" if width < 2 else "LAPACK dsbtrd, dsterf"

    def eigvalsh_banded(
        self, bands: Float64[np.ndarray, "batch width n"]
    ) -> Float64[np.ndarray, "batch n"]:
        """All eigenvalues of each of several symmetric band matrices of one shape.

        Args:
            bands: (batch, r + 1, n) float64, r < n: row k of each is the k-th subdiagonal in its
                first n - k numbers, the rest is not used; may be overwritten.

        Returns:
            (batch, n) float64, each row ascending.

        Raises:
            ConfigError: If the bands are of another shape or type.
            NonFiniteError: If a number is NaN or infinite.
            ConvergenceError: If the solver fails.
        """
        if bands.ndim != 3 or not 0 < bands.shape[1] <= bands.shape[2] or bands.dtype != np.float64:
            given = f"bands of shape {bands.shape}, {bands.dtype}"
            raise ConfigError(f"{given}; give (batch, r + 1, n) with r < n, float64")
        unused = (
            np.add.outer(np.arange(bands.shape[1]), np.arange(bands.shape[2])) >= bands.shape[2]
        )
        for number, band in enumerate(bands):
            require_finite(bool((np.isfinite(band) | unused).all()), f"band {number}")
        if not len(bands):
            return bands[:, 0]
        return finite_levels(self._eigvalsh_banded(np.ascontiguousarray(bands)))

    def staircase(self, pool: Rows, queries: Rows) -> list[Int64[np.ndarray, " n"]]:
        """Counting function of pooled levels: how many of them are less than each query.

        Args:
            pool: The levels of each spectrum, (m_i,) ascending.
            queries: Rows (n_i,), ascending.

        Returns:
            For each of the queries (n_i,) int64; equal levels are not counted.

        Raises:
            ConfigError: If a row is not a vector of floating-point numbers, or does not ascend.
            NonFiniteError: If a value is NaN or infinite.
        """
        levels, _ = _joined(pool, "pool")
        places, offsets = _joined(queries, "queries")
        return _parted(self._staircase(levels, places), offsets)

    def powerlaw_scan(self, values: Rows, *, two_sided: bool = False) -> Fits:
        """Fit ρ(x) ~ x^(-α) to the tail of every layer that begins at each of its values.

        Definitions and sources: :func:`hessrmt.backend.reference.powerlaw_scan`.

        Args:
            values: For each layer (n_i,) ascending, positive; computed with in float64.
            two_sided: Whether distances count the upper ends of the staircase's steps too.

        Returns:
            For each layer α and the Kolmogorov-Smirnov distance of each candidate, (n_i,) float64,
            NaN where the tail holds fewer than two distinct values; an empty list for none.

        Raises:
            ConfigError: If a layer is not a vector of floating-point numbers, does not ascend, or
                holds a value that is not positive.
            NonFiniteError: If a value is NaN or infinite.
        """
        every, offsets = _joined(values, "layer")
        for number, begin in enumerate(offsets[:-1]):
            if begin < offsets[number + 1] and every[begin] <= 0:
                smallest = f"the smallest value is {every[begin]:g}"
                raise ConfigError(f"layer {number}: {smallest}; a power law needs values > 0")
        fits = self._scan(every, offsets, two_sided) if len(values) else (every, every)
        return list(zip(*(_parted(of_each, offsets) for of_each in fits), strict=True))

    def sample_goe(
        self, n: int, count: int, key: int, first: int = 0
    ) -> Float64[Tensor, "count n n"]:
        """Draw matrices of the Gaussian orthogonal ensemble: N(0, 1), on the diagonal N(0, 2).

        The same on every device, up to the last bits of logarithm and cosine; see
        :func:`hessrmt.backend.reference.sample_goe`.

        Args:
            n: Dimension, at least 1.
            count: How many matrices, 0 or more.
            key: 64-bit word of a named stream.
            first: Number of the first matrix in the key's sequence.

        Returns:
            (count, n, n) on the backend's device, symmetric to the bit.

        Raises:
            ConfigError: If a number is out of its range.
            DeviceError: If the matrices are larger than the free memory.
        """
        if n < 1 or count < 0 or first < 0 or not 0 <= key < 2**64:
            raise ConfigError(
                f"GOE matrices with n = {n}, count {count}, first {first}, key {key}; "
                "give n >= 1, count >= 0, first >= 0 and a key of 64 bits"
            )
        each, free = 8 * n * n, self.free_memory()
        if count * each > free:
            raise DeviceError(
                f"{count:,} matrices of {n:,} x {n:,} need {count * each:,} bytes and {self.name} "
                f"has {free:,} free, enough for {free // each:,}; draw them in parts (first=...)"
            )
        return self._goe(n, count, key, first)

    @abstractmethod
    def _eigvalsh(self, matrix: Matrix) -> Levels: ...

    @abstractmethod
    def _eigvalsh_batch(self, matrices: Stack) -> list[Levels]: ...

    def _eigvalsh_banded(self, bands: np.ndarray) -> np.ndarray:
        return reference.banded_eigenvalues(bands)

    def _staircase(self, pool: np.ndarray, queries: np.ndarray) -> np.ndarray:
        return reference.staircase(pool, queries)

    def _scan(
        self, values: np.ndarray, offsets: np.ndarray, two_sided: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        return reference.powerlaw_scan(values, offsets, two_sided)

    def _goe(self, n: int, count: int, key: int, first: int) -> Tensor:
        drawn = reference.sample_goe(n, count, key, first=first)
        return torch.from_numpy(drawn).to(self.device)


def finite_levels(levels: np.ndarray) -> np.ndarray:
    """What a solver has found, if it is finite.

    Args:
        levels: Eigenvalues.

    Returns:
        The same in float64.

    Raises:
        ConvergenceError: If one is not finite.
    """
    if not np.all(np.isfinite(levels)):
        raise ConvergenceError(
            "the eigenvalue solver gave eigenvalues that are not finite though every entry of the "
            "matrix is; try a smaller scale"
        )
    return levels.astype(np.float64, copy=False)


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
    return not values.numel() or bool(np.isfinite(fetched(*torch.aminmax(values))).all())


def _require_square(matrix: Tensor, what: str) -> None:
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ConfigError(f"{what} has shape {tuple(matrix.shape)}; give an (n, n) matrix")
    if matrix.dtype not in FLOATS:
        raise ConfigError(f"{what} is of {matrix.dtype}; give float64 or float32")


def _joined(rows: Rows, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows one after another, float64, and where each begins; each must be finite and ascend."""
    for number, row in enumerate(rows):
        if row.ndim != 1 or row.dtype.kind != "f":
            given = f"{what} {number}: shape {row.shape}, {row.dtype}"
            raise ConfigError(f"{given}; give a vector of floating-point numbers")
    offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    every = np.concatenate([np.empty(0), *rows], dtype=np.float64)
    some = np.diff(offsets) > 0
    first, last = offsets[:-1][some], offsets[1:][some] - 1
    rises = every[1:] >= every[:-1]  # not where one is NaN
    rises[last[:-1]] = True  # from one row to the next
    # what ascends between finite ends is finite
    if not (rises.all() and np.isfinite(every[np.append(first, last)]).all()):
        _refuse_rows(rows, what)
    return every, offsets


def _refuse_rows(rows: Rows, what: str) -> None:
    """Say which row is the first that is not finite or does not ascend, and what is wrong."""
    for number, row in enumerate(rows):
        if not np.isfinite(row).all():
            raise NonFiniteError(f"{what} {number}: a value is NaN or infinite; remove it before")
        if (row[1:] < row[:-1]).any():
            raise ConfigError(f"{what} {number}: the values do not ascend; sort them before")


def _parted(values: np.ndarray, offsets: np.ndarray) -> list[np.ndarray]:
    """What belongs to each of several rows; an empty list for none."""
    return np.split(values, offsets[1:-1]) if len(offsets) > 1 else []
