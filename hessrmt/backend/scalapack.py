"""ScaLAPACK on CPU clusters: ``pdsyev`` of the installed shared library, through ctypes.

Source: Blackford et al., ScaLAPACK Users' Guide (SIAM 1997). One-stage tridiagonalisation
(``pdsytrd``), then QL iterations without vectors. ``pdsyevx`` and ``pdsyevr`` are no alternative:
for speed they may move the matrix to the largest square grid, with two processes to one of them.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import numpy as np
import torch

from hessrmt.backend.distributed import CpuProcesses, require_distributed
from hessrmt.backend.libraries import load_library
from hessrmt.backend.world import vendor
from hessrmt.errors import ConvergenceError, DeviceError

if TYPE_CHECKING:
    from torch import Tensor

    from hessrmt.arrays import Levels
    from hessrmt.backend.blockcyclic import Layout
    from hessrmt.backend.world import World

VARIABLE = "HESSRMT_SCALAPACK"
"""Environment variable that holds the path of the shared library."""

_VERSIONS = ("", ".2.2", ".2.1", ".2")
_LARGEST = 2**31 - 1
_Int = ctypes.c_int
_PREFIX = {torch.float64: "pd", torch.float32: "ps"}


class ScalapackBackend(CpuProcesses):
    """Processes with ScaLAPACK.

    Attributes:
        solver: The routine, in words.
    """

    solver = "pdsyev (ScaLAPACK)"

    def __init__(self, world: World) -> None:
        """Load the library and lay out its grid.

        Args:
            world: All processes of the run.

        Raises:
            DeviceError: If the library is missing or belongs to another MPI.
        """
        super().__init__(world)
        with world.together():
            self._library = load_scalapack()
            rank, size = _Int(-1), _Int(-1)
            self._library.Cblacs_pinfo(ctypes.byref(rank), ctypes.byref(size))
            if (rank.value, size.value) != (world.rank, world.size):
                raise DeviceError(
                    f"ScaLAPACK sees process {rank.value} of {size.value}, mpi4py {world.rank} of "
                    f"{world.size}: they use different MPI libraries. Install the ScaLAPACK of "
                    f"{vendor()}, or set {VARIABLE}"
                )
        self._context = _Int(0)
        self._library.Cblacs_get(_Int(0), _Int(0), ctypes.byref(self._context))
        self._library.Cblacs_gridinit(
            ctypes.byref(self._context), b"C", _Int(self.grid.rows), _Int(self.grid.columns)
        )

    def eigen_bytes(self, layout: Layout, itemsize: int) -> int:
        """Bytes that a process holds while the matrix is diagonalised.

        Args:
            layout: The layout.
            itemsize: Bytes of a number.

        Returns:
            Its part and the workspace: panels of one block, and some vectors.
        """
        panels = 4 * layout.block * (len(layout.rows) + len(layout.columns))
        return itemsize * (layout.most_entries + panels + 8 * layout.n)

    def eigvalsh(self, part: Tensor, layout: Layout) -> Levels:
        """All eigenvalues of a symmetric matrix; its lower triangle is read.

        Args:
            part: (columns, rows), this process's entries; overwritten.
            layout: The layout of the whole.

        Returns:
            (n,) float64, ascending.

        Raises:
            DeviceError: If a part has too many entries for the library's integers.
            ConvergenceError: If the solver fails.
        """
        require_distributed(part, layout, self.world, self.device)
        if layout.most_entries > _LARGEST:
            raise DeviceError(
                f"{layout.most_entries:,} entries on a process, ScaLAPACK counts them up to "
                f"{_LARGEST:,}; start more processes"
            )
        levels = np.zeros(layout.n, dtype=part.numpy().dtype)
        info = self._call(part, layout, levels)
        with self.world.together():
            if info:
                raise ConvergenceError(f"{self.solver} failed with info = {info}")
        return self.world.share(levels.astype(np.float64))

    def _call(self, part: Tensor, layout: Layout, levels: np.ndarray) -> int:
        n, one = ctypes.byref(_Int(layout.n)), ctypes.byref(_Int(1))
        descriptor = (_Int * 9)(
            1, self._context, layout.n, layout.n, layout.block, layout.block, 0, 0, len(layout.rows)
        )
        routine = self._library[f"{_PREFIX[part.dtype]}syev_"]
        info = _Int(0)

        def call(work: np.ndarray, length: int) -> int:
            routine(
                *(b"N", b"L", n),
                *(ctypes.c_void_p(part.data_ptr()), one, one, descriptor, _address(levels)),
                *(_address(unused), one, one, descriptor),
                *(_address(work), ctypes.byref(_Int(length)), ctypes.byref(info)),
                *(ctypes.c_size_t(1), ctypes.c_size_t(1)),  # lengths of the two strings
            )
            return info.value

        unused, size = np.zeros(1, levels.dtype), np.zeros(1, levels.dtype)
        if call(size, -1):
            return info.value
        # a float32 cannot hold every length: the next number up
        length = int(np.nextafter(size[0], np.inf)) + 1
        return call(np.zeros(length, levels.dtype), length)


def load_scalapack() -> ctypes.CDLL:
    """The shared library that belongs to the MPI library of mpi4py.

    Returns:
        The library.
    """
    mpi = vendor()
    names = [
        f"lib{name}.so{version}"
        for name in (f"scalapack-{mpi}", "scalapack")
        for version in _VERSIONS
    ]
    return load_library(
        names, VARIABLE, f"On Debian or Ubuntu: apt-get install libscalapack-{mpi}-dev"
    )


def _address(values: np.ndarray) -> ctypes.c_void_p:
    return values.ctypes.data_as(ctypes.c_void_p)
