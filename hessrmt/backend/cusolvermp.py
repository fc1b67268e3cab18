"""cuSOLVERMp on many GPUs, one process for each, through nvmath-python's bindings and NCCL.

Written against nvmath-python 1.0 and nccl4py 0.3; **it has never run on a GPU**. Eigenvalues alone
(``jobz = "N"``) need cuSOLVERMp 0.9; older versions refuse them.
"""

from __future__ import annotations

import ctypes
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from hessrmt.backend.cusolver import LOWER, TYPES
from hessrmt.backend.distributed import DistributedBackend
from hessrmt.errors import ConvergenceError, DeviceError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from hessrmt.backend.distributed import Layout
    from hessrmt.backend.world import World


class Libraries(NamedTuple):
    """The modules that this backend calls.

    Attributes:
        solver: ``nvmath.bindings.cusolverMp``.
        nccl: ``nccl.core``.
    """

    solver: Any
    nccl: Any


class CusolverMpBackend(DistributedBackend):
    """Processes with a GPU each; the lower triangle is read."""

    solver = "cusolverMpSyevd (cuSOLVERMp)"
    largest_block = 256
    """A power of two, which the library's divide and conquer needs. Not measured."""

    def __init__(
        self, world: World, device: torch.device, libraries: Libraries | None = None
    ) -> None:
        """Connect the GPUs.

        Args:
            world: All processes of the run.
            device: This process's GPU.
            libraries: Taken instead of the installed ones.

        Raises:
            DeviceError: If the bindings are missing or the GPUs cannot be connected.
        """
        super().__init__(world, device)
        with world.together():
            self._solver, nccl = libraries or import_libraries()
            if device.type == "cuda":
                torch.cuda.set_device(device)
        with world.together():
            identity = nccl.get_unique_id() if world.rank == 0 else None
        identity = world.share(identity)
        with world.together():
            try:
                self._nccl = nccl.Communicator.init(
                    nranks=world.size, rank=world.rank, unique_id=identity
                )
                self._handle = self._solver.create(device.index or 0, _stream(device))
                shape = self.grid.rows, self.grid.columns
                order = int(self._solver.GridMapping.COL_MAJOR)
                self._grid = self._solver.create_device_grid(
                    self._handle, self._nccl.ptr, *shape, order
                )
            except Exception as error:
                raise DeviceError(f"the GPUs cannot be connected: {error}") from error

    def free_memory(self) -> int:
        """See :class:`.DistributedBackend`; of this process's GPU."""
        return torch.cuda.mem_get_info(self.device)[0]

    def eigen_bytes(self, layout: Layout, itemsize: int) -> int:
        """See :class:`.DistributedBackend`; the workspace is what the library asks for."""
        dtype = {8: torch.float64, 4: torch.float32}[itemsize]
        # sizes alone are asked for, of a matrix that is not there yet
        with self._arguments(layout, dtype, 0, 0) as arguments:
            workspace = self._solver.syevd_buffer_size(*arguments)
        return itemsize * layout.most_entries + sum(workspace)

    def _solve(self, part: Tensor, layout: Layout) -> np.ndarray:
        with self.world.together():
            try:
                info, levels = self._call(part, layout)
            except Exception as error:
                raise ConvergenceError(
                    f"{self.solver} failed: {error}. Eigenvalues alone need cuSOLVERMp 0.9"
                ) from error
            if info:
                raise ConvergenceError(f"{self.solver} failed with info = {info}")
        return levels

    def _call(self, part: Tensor, layout: Layout) -> tuple[int, np.ndarray]:
        levels = torch.zeros(layout.n, dtype=part.dtype, device=self.device)
        info = torch.zeros(1, dtype=torch.int32, device=self.device)
        matrix, values = part.data_ptr(), levels.data_ptr()
        with self._arguments(layout, part.dtype, matrix, values) as arguments:
            on_device, on_host = self._solver.syevd_buffer_size(*arguments)
            work = torch.empty(max(1, on_device), dtype=torch.uint8, device=self.device)
            host = torch.empty(max(1, on_host), dtype=torch.uint8)
            workspace = (work.data_ptr(), on_device, host.data_ptr(), on_host)
            self._solver.set_stream(self._handle, _stream(self.device))
            self._solver.syevd(*arguments, *workspace, info.data_ptr())
            return int(info.cpu()[0]), levels.cpu().numpy()  # waits for the stream

    @contextmanager
    def _arguments(
        self, layout: Layout, dtype: torch.dtype, matrix: int, values: int
    ) -> Iterator[tuple[int, ...]]:
        """What the routine and the query of its workspace have in common."""
        n, block, kind, no_vectors = layout.n, layout.block, TYPES[dtype], 0
        descriptor = self._solver.create_matrix_desc(
            self._grid, kind, n, n, block, block, 0, 0, len(layout.rows)
        )
        try:
            yield (
                *(self._handle, ctypes.addressof(_JOB), LOWER, n),
                *(matrix, 1, 1, descriptor, values),
                *(no_vectors, 1, 1, descriptor, kind),
            )
        finally:
            self._solver.destroy_matrix_desc(descriptor)


def import_libraries() -> Libraries:
    """The installed bindings.

    Returns:
        The modules.

    Raises:
        DeviceError: If they are not installed.
    """
    try:
        import nccl.core as nccl  # pyright: ignore[reportMissingImports]
        from nvmath.bindings import cusolverMp  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise DeviceError(
            f"a run on several GPUs needs nvmath-python with cuSOLVERMp and NCCL ({error}). Try: "
            "pip install 'hessrmt[cusolvermp12]' or, with CUDA 13, 'hessrmt[cusolvermp13]'"
        ) from error
    return Libraries(cusolverMp, nccl)


_JOB = ctypes.create_string_buffer(b"N")
"""Eigenvalues without vectors; the bindings take the address of the letter."""


def _stream(device: torch.device) -> int:
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
