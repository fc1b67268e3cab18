"""A symmetric eigenvalue problem whose matrix is spread over the processes of an MPI run.

Blocks of b x b entries are dealt to a grid of processes like cards, so that every process keeps
about the same share of every part of the matrix while an algorithm works its way through it: the
two-dimensional block-cyclic layout (Blackford et al. 1997, section 4.3). Every process keeps its
part as a (columns, rows) tensor in C order: the same bytes as the (rows, columns) array in Fortran
order that ScaLAPACK's descendants expect.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from hessrmt import rng
from hessrmt.backend.base import FLOATS, all_finite, require_finite
from hessrmt.errors import ConfigError, DeviceError
from hessrmt.memory import free_host_memory

if TYPE_CHECKING:
    from jaxtyping import Float, Int64
    from torch import Tensor

    from hessrmt.arrays import Levels
    from hessrmt.backend.world import World


class DistributedBackend(ABC):
    """Processes, each with a device, that diagonalise one matrix together.

    Every method is called by all of them, and in the same order. A solver's class says what
    :meth:`eigen_bytes` is and solves.

    Attributes:
        world: The processes.
        grid: How they are arranged.
        name: What they are, in words.
        solver: The library's routine, in words.
        device: Where this process's part lives.
        hint: What to try where memory is short, or nothing.
    """

    solver: str
    hint = ""
    largest_block = 64
    most_entries: float = math.inf
    """Entries of a part that the library can count."""

    def __init__(self, world: World, device: torch.device | None = None) -> None:
        """Arrange the processes.

        Args:
            world: All of them.
            device: This process's GPU; by default the CPU.
        """
        self.world, self.device = world, device or torch.device("cpu")
        self.grid = process_grid(world.size)
        shape = f"on a {self.grid.rows} x {self.grid.columns} grid"
        threads = f"{torch.get_num_threads()} threads each"
        self.name = f"cpu ({world.size} processes {shape}, {threads})"
        if device is not None:
            self.name = f"{world.size} GPUs {shape}"

    def layout(self, n: int) -> Layout:
        """Which entries of an (n, n) matrix this process keeps.

        Args:
            n: Dimension.

        Returns:
            The layout.
        """
        return lay_out(n, self.grid, self.world.rank, self.largest_block)

    def free_memory(self) -> int:
        """Bytes that this process may allocate now: its share, where several share a machine.

        Returns:
            Bytes.
        """
        return free_host_memory() // self.world.neighbours

    @abstractmethod
    def eigen_bytes(self, layout: Layout, itemsize: int) -> int:
        """Bytes that a process holds while the matrix is diagonalised, its part included.

        Args:
            layout: Its layout.
            itemsize: Bytes of a number.

        Returns:
            Bytes.
        """

    def eigvalsh(self, part: Float[Tensor, "columns rows"], layout: Layout) -> Levels:
        """All eigenvalues of a symmetric matrix.

        Args:
            part: This process's entries, [c, r] that of column ``layout.columns[c]`` and row
                ``layout.rows[r]``; float64 or float32. Overwritten.
            layout: The layout of the whole.

        Returns:
            (n,) float64, ascending; the same bits on every process.

        Raises:
            ConfigError: On every process, if a part is not of that shape, type or device, or the
                matrix is not symmetric to half the digits of its type.
            DeviceError: If a part has too many entries for the library's integers.
        """
        shape = (len(layout.columns), len(layout.rows))
        with self.world.together():
            if tuple(part.shape) != shape or part.dtype not in FLOATS or not part.is_contiguous():
                raise ConfigError(
                    f"a part of shape {tuple(part.shape)}, {part.dtype}; this process keeps "
                    f"{shape}, columns first, float64 or float32, contiguous"
                )
            if part.device != self.device:
                raise ConfigError(f"a part on {part.device}; this solver works on {self.device}")
            require_finite(all_finite(part))
        found = asymmetry(part, layout, self.world)
        with self.world.together():
            if not found.within(part.dtype):
                raise ConfigError(
                    f"the matrix is not symmetric: |(A - Aᵀ)u| = {found.distance:.3g} for a "
                    f"random u, where |A| = {found.norm:.3g}"
                )
            if layout.most_entries > self.most_entries:
                raise DeviceError(
                    f"{layout.most_entries:,} entries on a process, {self.solver} counts them up "
                    f"to {self.most_entries:,}; start more processes"
                )
        return self.world.share(np.sort(self._solve(part, layout).astype(np.float64)))

    @abstractmethod
    def _solve(self, part: Tensor, layout: Layout) -> np.ndarray:
        """All eigenvalues of the whole matrix, in any order, on one process at least."""


@dataclass(frozen=True)
class Grid:
    """Processes in a rectangle, numbered down the columns.

    Attributes:
        rows: Processes in a column of the grid.
        columns: Processes in a row of it.
    """

    rows: int
    columns: int

    def place(self, rank: int) -> tuple[int, int]:
        """Row and column of a process.

        Args:
            rank: Its number, from 0.

        Returns:
            Both from 0.
        """
        return rank % self.rows, rank // self.rows


@dataclass(frozen=True)
class Layout:
    """The part of an (n, n) matrix that one process keeps.

    Attributes:
        n: Dimension of the whole.
        block: Rows, and columns, of a block.
        grid: The processes.
        rank: This process.
    """

    n: int
    block: int
    grid: Grid
    rank: int

    @property
    def row(self) -> int:
        """This process's row in the grid."""
        return self.grid.place(self.rank)[0]

    @property
    def column(self) -> int:
        """This process's column in the grid."""
        return self.grid.place(self.rank)[1]

    @cached_property
    def rows(self) -> Int64[np.ndarray, " r"]:
        """Rows of the matrix that are kept here, ascending."""
        return self.rows_of(self.row)

    @cached_property
    def columns(self) -> Int64[np.ndarray, " c"]:
        """Columns of the matrix that are kept here, ascending."""
        return owned(self.n, self.block, self.column, self.grid.columns)

    def rows_of(self, row: int) -> Int64[np.ndarray, " r"]:
        """Rows of the matrix that a row of the grid keeps, ascending.

        Args:
            row: Which row of the grid.

        Returns:
            Their positions.
        """
        return owned(self.n, self.block, row, self.grid.rows)

    @property
    def entries(self) -> int:
        """Matrix entries kept here."""
        return len(self.rows) * len(self.columns)

    @property
    def most_entries(self) -> int:
        """Matrix entries kept by the process that keeps most."""
        shape = self.grid.rows, self.grid.columns
        return math.prod(len(owned(self.n, self.block, 0, processes)) for processes in shape)


def owned(n: int, block: int, process: int, processes: int) -> Int64[np.ndarray, " k"]:
    """Which of n rows (or columns) one process keeps.

    Args:
        n: Rows in all.
        block: Rows of a block.
        process: Its number among ``processes``.
        processes: Over how many they are dealt.

    Returns:
        Their positions, ascending.
    """
    starts = np.arange(process * block, n, processes * block, dtype=np.int64)
    positions = (starts[:, None] + np.arange(block, dtype=np.int64)).ravel()
    return positions[positions < n]


def process_grid(processes: int) -> Grid:
    """The most nearly square grid of all processes, never taller than wide.

    Args:
        processes: How many.

    Returns:
        The grid.
    """
    rows = next(r for r in range(math.isqrt(processes), 0, -1) if processes % r == 0)
    return Grid(rows, processes // rows)


def lay_out(n: int, grid: Grid, rank: int, largest: int) -> Layout:
    """The layout of an (n, n) matrix in which no process stays empty.

    Args:
        n: Dimension.
        grid: The processes.
        rank: This process.
        largest: Largest block; smaller powers of two are taken for small matrices.

    Returns:
        The layout.

    Raises:
        ConfigError: If there are more processes than rows to deal.
    """
    fits = n // max(grid.rows, grid.columns)
    if fits < 1:
        raise ConfigError(
            f"a matrix of {n:,} rows cannot be dealt to a {grid.rows} x {grid.columns} grid of "
            "processes without leaving some empty; start fewer processes"
        )
    return Layout(n, min(largest, 1 << (fits.bit_length() - 1)), grid, rank)


class Asymmetry(NamedTuple):
    """How far a distributed matrix A is from a symmetric one.

    Attributes:
        distance: ‖(A - Aᵀ)u‖ for a standard normal u, whose mean square is ‖A - Aᵀ‖² (Frobenius).
        norm: ‖A‖ (Frobenius).
    """

    distance: float
    norm: float

    def within(self, dtype: torch.dtype) -> bool:
        """Whether A is symmetric to half the digits of its type."""
        return self.distance <= torch.finfo(dtype).eps ** 0.5 * self.norm


def asymmetry(part: Tensor, layout: Layout, world: World) -> Asymmetry:
    """Measure it with two products; no process sees more than its part.

    Args:
        part: This process's entries, finite.
        layout: The layout of the whole.
        world: The processes.

    Returns:
        The same numbers on every process.
    """
    generator = rng.torch_generator(0, "asymmetry")
    u = torch.randn(layout.n, generator=generator, dtype=torch.float64).to(part)
    rows, columns = _positions(layout, part.device)
    difference = torch.zeros_like(u)
    difference[rows] += u[columns] @ part
    difference[columns] -= part @ u[rows]
    norm = math.hypot(*world.gather(float(torch.linalg.vector_norm(part))))
    return Asymmetry(float(_sum(difference, world).norm()), norm)


def multiply(part: Tensor, layout: Layout, world: World, v: Tensor) -> Tensor:
    """A v.

    Args:
        part: This process's entries of A.
        layout: The layout of the whole.
        world: The processes.
        v: (n,), the same on every process.

    Returns:
        (n,), the same on every process.
    """
    rows, columns = _positions(layout, part.device)
    product = torch.zeros_like(v)
    product[rows] = v[columns] @ part
    return _sum(product, world)


def scatter(matrix: Float[np.ndarray, "n n"], layout: Layout) -> Tensor:
    """This process's part of a matrix that every process has; for tests and small problems.

    Args:
        matrix: The whole.
        layout: Its layout.

    Returns:
        The part, on the CPU.
    """
    return torch.from_numpy(np.ascontiguousarray(matrix.T[np.ix_(layout.columns, layout.rows)]))


def _positions(layout: Layout, device: torch.device) -> tuple[Tensor, Tensor]:
    rows, columns = torch.from_numpy(layout.rows), torch.from_numpy(layout.columns)
    return rows.to(device), columns.to(device)


def _sum(values: Tensor, world: World) -> Tensor:
    return torch.from_numpy(world.sum(values.cpu().numpy())).to(values.device)
