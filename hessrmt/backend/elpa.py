"""ELPA on CPU clusters: two-stage tridiagonalisation, through ctypes.

Source: Marek et al., The ELPA library, J. Phys.: Condens. Matter 26 (2014) 213201. Almost all of
its work is matrix products, where ScaLAPACK's ``pdsyev`` reads the matrix once for each column.
"""

from __future__ import annotations

import ctypes
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch

from hessrmt.backend.distributed import CpuProcesses, require_distributed
from hessrmt.backend.libraries import load_library
from hessrmt.errors import ConvergenceError, DeviceError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from hessrmt.arrays import Levels
    from hessrmt.backend.blockcyclic import Layout
    from hessrmt.backend.world import World

VARIABLE = "HESSRMT_ELPA"
"""Environment variable that holds the path of the shared library."""

_VERSIONS = (".19", "", ".20", ".21", ".18", ".17")
_API = 20200417
_TWO_STAGE = 2

_COPIES = 5
"""Memory in units of a process's part, that itself included: measured 3.7 on one process and 5.0
on two (benchmarks/processes.py); not measured on more."""

_LETTER = {torch.float64: "d", torch.float32: "f"}
_LARGEST = 2**31 - 1


class ElpaBackend(CpuProcesses):
    """Processes with ELPA.

    Attributes:
        solver: The routine, in words.
    """

    solver = "ELPA two-stage"
    largest_block = 32
    hint = "--mpi scalapack works in place and needs about a fifth; "

    def __init__(self, world: World) -> None:
        """Load the library.

        Args:
            world: All processes of the run.

        Raises:
            DeviceError: If the library is missing or does not start.
        """
        super().__init__(world)
        with world.together():
            self._library = load_elpa()
            self._library.elpa_allocate.restype = ctypes.c_void_p
            if self._library.elpa_init(_API):
                raise DeviceError(f"ELPA does not know the version {_API} of its interface")

    def eigen_bytes(self, layout: Layout, itemsize: int) -> int:
        """Bytes that a process holds while the matrix is diagonalised.

        Args:
            layout: The layout.
            itemsize: Bytes of a number.

        Returns:
            Its part and what ELPA allocates beside it.
        """
        panels = 16 * layout.block * (len(layout.rows) + len(layout.columns))
        return itemsize * (_COPIES * layout.most_entries + panels + 64 * layout.n)

    def eigvalsh(self, part: Tensor, layout: Layout) -> Levels:
        """All eigenvalues of a symmetric matrix, both triangles of which are read.

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
                f"{layout.most_entries:,} entries on a process, ELPA counts them up to "
                f"{_LARGEST:,}; start more processes"
            )
        levels = np.zeros(layout.n, dtype=part.numpy().dtype)
        error = ctypes.c_int(0)
        with self._handle(layout) as handle:
            self._routine(_LETTER[part.dtype])(
                handle,
                ctypes.c_void_p(part.data_ptr()),
                levels.ctypes.data_as(ctypes.c_void_p),
                ctypes.byref(error),
            )
        with self.world.together():
            if error.value:
                single = part.dtype == torch.float32
                hint = "; many builds lack float32, which ScaLAPACK has" if single else ""
                raise ConvergenceError(f"{self.solver} failed with error {error.value}{hint}")
        return self.world.share(np.sort(levels.astype(np.float64)))

    @contextmanager
    def _handle(self, layout: Layout) -> Iterator[ctypes.c_void_p]:
        """ELPA's object of one problem."""
        error = ctypes.c_int(0)
        handle = ctypes.c_void_p(self._library.elpa_allocate(ctypes.byref(error)))
        try:
            for name, value in {
                "na": layout.n,
                "nev": layout.n,
                "local_nrows": len(layout.rows),
                "local_ncols": len(layout.columns),
                "nblk": layout.block,
                "mpi_comm_parent": self.world.fortran_handle,
                "process_row": layout.row,
                "process_col": layout.column,
            }.items():
                self._set(handle, name, value)
            failed = self._library.elpa_setup(handle)
            with self.world.together():
                if failed:
                    raise DeviceError(f"ELPA cannot be set up for this layout (error {failed})")
            self._set(handle, "solver", _TWO_STAGE)
            yield handle
        finally:
            self._library.elpa_deallocate(handle, ctypes.byref(error))

    def _set(self, handle: ctypes.c_void_p, name: str, value: int) -> None:
        error = ctypes.c_int(0)
        self._library.elpa_set_integer(
            handle, name.encode(), ctypes.c_int(value), ctypes.byref(error)
        )
        with self.world.together():
            if error.value:
                raise DeviceError(f"ELPA refuses {name} = {value} (error {error.value})")

    def _routine(self, letter: str) -> ctypes._NamedFuncPointer:
        """The C function, which had another name before 2021."""
        for name in (f"elpa_eigenvalues_a_h_a_{letter}", f"elpa_eigenvalues_{letter}"):
            if hasattr(self._library, name):
                return self._library[name]
        raise DeviceError("this ELPA has no eigenvalue routine of its C interface")


def load_elpa() -> ctypes.CDLL:
    """The shared library.

    Returns:
        The library.
    """
    names = [f"libelpa.so{version}" for version in _VERSIONS]
    return load_library(names, VARIABLE, "On Debian or Ubuntu: apt-get install libelpa-dev")
