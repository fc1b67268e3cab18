"""Which entries of a matrix lie on which process: the two-dimensional block-cyclic layout.

Blocks of b x b entries are dealt to a grid of processes like cards, so that every process keeps
about the same share of every part of the matrix while an algorithm works its way through it.
Source: Blackford et al., ScaLAPACK Users' Guide (SIAM 1997), §4.3; ``numroc`` is that of its tools.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from hessrmt.errors import ConfigError

if TYPE_CHECKING:
    from jaxtyping import Int64


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
        return numroc(self.n, self.block, 0, self.grid.rows) * numroc(
            self.n, self.block, 0, self.grid.columns
        )


def numroc(n: int, block: int, process: int, processes: int) -> int:
    """How many of n rows (or columns) one process keeps.

    Args:
        n: Rows in all.
        block: Rows of a block.
        process: Its number among ``processes``, the first of which keeps the first block.
        processes: Over how many they are dealt.

    Returns:
        The number.
    """
    whole, rest = divmod(n, block)
    rounds, extra = divmod(whole, processes)
    mine = rounds * block
    if process < extra:
        return mine + block
    return mine + rest if process == extra else mine


def owned(n: int, block: int, process: int, processes: int) -> Int64[np.ndarray, " k"]:
    """Which of n rows (or columns) one process keeps.

    Args:
        n: Rows in all.
        block: Rows of a block.
        process: Its number among ``processes``.
        processes: Over how many they are dealt.

    Returns:
        Their positions, ascending; :func:`numroc` of them.
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
