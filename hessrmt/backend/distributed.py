"""A symmetric eigenvalue problem whose matrix is spread over the processes of an MPI run.

Every process keeps its part of a block-cyclic layout as a (columns, rows) tensor in C order: the
same bytes as the (rows, columns) array in Fortran order that ScaLAPACK's descendants expect.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import torch

from hessrmt import rng
from hessrmt.backend.blockcyclic import Layout, lay_out, process_grid
from hessrmt.backend.checks import FLOATS
from hessrmt.backend.memory import free_host_memory
from hessrmt.errors import ConfigError, NonFiniteError

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from hessrmt.arrays import Levels
    from hessrmt.backend.world import World


class DistributedBackend(Protocol):
    """Processes, each with a device, that diagonalise one matrix together.

    Every method is called by all of them, and in the same order.

    Attributes:
        world: The processes.
        name: What they are, in words.
        solver: The library's routine, in words.
        device: Where this process's part lives.
        hint: What to try where memory is short, or nothing.
    """

    world: World
    name: str
    solver: str
    device: torch.device
    hint: str

    def layout(self, n: int) -> Layout:
        """Which entries of an (n, n) matrix this process keeps.

        Args:
            n: Dimension.
        """
        ...

    def free_memory(self) -> int:
        """Bytes that this process may allocate now: its share, where several share a machine."""
        ...

    def eigen_bytes(self, layout: Layout, itemsize: int) -> int:
        """Bytes that a process holds while the matrix is diagonalised, its part included.

        Args:
            layout: Its layout.
            itemsize: Bytes of a number.
        """
        ...

    def eigvalsh(self, part: Float[Tensor, "columns rows"], layout: Layout) -> Levels:
        """All eigenvalues of a symmetric matrix.

        Args:
            part: This process's entries, [c, r] that of column ``layout.columns[c]`` and row
                ``layout.rows[r]``; float64 or float32. Overwritten.
            layout: The layout of the whole.

        Returns:
            (n,) float64, ascending; the same bits on every process.

        Raises:
            ConfigError: If a part has another shape or type, or the matrix is not symmetric.
            NonFiniteError: If an entry is NaN or infinite.
            ConvergenceError: If the solver fails.
        """
        ...


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


class CpuProcesses:
    """What the CPU solvers have in common: layout and memory.

    Attributes:
        world: The processes.
        name: What they are, in words.
        device: The CPU.
        grid: How they are arranged.
        hint: What to try where memory is short, or nothing.
    """

    largest_block = 64
    hint = ""

    def __init__(self, world: World) -> None:
        """Arrange the processes.

        Args:
            world: All of them.
        """
        self.world = world
        self.device = torch.device("cpu")
        self.grid = process_grid(world.size)
        self.name = (
            f"cpu ({world.size} processes on a {self.grid.rows} x {self.grid.columns} grid, "
            f"{torch.get_num_threads()} threads each)"
        )

    def layout(self, n: int) -> Layout:
        """Which entries of an (n, n) matrix this process keeps.

        Args:
            n: Dimension.

        Returns:
            The layout.
        """
        return lay_out(n, self.grid, self.world.rank, self.largest_block)

    def free_memory(self) -> int:
        """This process's share of the machine's free memory.

        Returns:
            Bytes.
        """
        return free_host_memory() // self.world.neighbours


def require_distributed(part: Tensor, layout: Layout, world: World, device: torch.device) -> None:
    """Refuse a distributed matrix that has no real eigenvalues, or not these entries.

    Args:
        part: This process's entries.
        layout: The layout of the whole.
        world: The processes.
        device: Where the entries should be.

    Raises:
        ConfigError: If the shape, type or place is another, or the matrix is not symmetric.
        NonFiniteError: If an entry is NaN or infinite.
    """
    shape = (len(layout.columns), len(layout.rows))
    with world.together():
        if tuple(part.shape) != shape or part.dtype not in FLOATS or not part.is_contiguous():
            raise ConfigError(
                f"a part of shape {tuple(part.shape)}, {part.dtype}; this process keeps {shape}, "
                "columns first, float64 or float32, contiguous"
            )
        if part.device != device:
            raise ConfigError(f"a part on {part.device}; this solver works on {device}")
        if not all(math.isfinite(float(end)) for end in torch.aminmax(part)):
            raise NonFiniteError(
                "the matrix has entries that are NaN or infinite, so it has no eigenvalues"
            )
    found = asymmetry(part, layout, world)
    with world.together():
        if not found.within(part.dtype):
            raise ConfigError(
                f"the matrix is not symmetric: |(A - Aᵀ)u| = {found.distance:.3g} for a random u, "
                f"where |A| = {found.norm:.3g}"
            )


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
