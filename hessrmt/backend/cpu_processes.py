"""ScaLAPACK and ELPA on CPU clusters: the installed shared libraries, through ctypes.

ScaLAPACK (Blackford et al. 1997): ``pdsyev``, one-stage tridiagonalisation (``pdsytrd``), then QL
iterations without vectors. ``pdsyevx`` and ``pdsyevr`` are no alternative: for speed they may move
the matrix to the largest square grid, with two processes to one of them. ELPA (Marek et al. 2014):
two-stage tridiagonalisation, almost all of whose work is matrix products, where ``pdsyev`` reads
the matrix once for each column.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch

from hessrmt.backend.distributed import DistributedBackend
from hessrmt.backend.world import vendor
from hessrmt.errors import ConvergenceError, DeviceError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from hessrmt.backend.distributed import Layout
    from hessrmt.backend.world import World

SCALAPACK, ELPA = "HESSRMT_SCALAPACK", "HESSRMT_ELPA"
"""Environment variables that hold the paths of the shared libraries."""

_SCALAPACK_VERSIONS = ("", ".2.2", ".2.1", ".2")
_ELPA_VERSIONS = (".19", "", ".20", ".21", ".18", ".17")
_ELPA_API = 20200417
_TWO_STAGE = 2

_ELPA_COPIES = 5
"""Memory in units of a process's part, that itself included: measured 3.7 on one process and 5.0
on two (benchmarks/processes.py); not measured on more."""

_Int = ctypes.c_int


class ScalapackBackend(DistributedBackend):
    """Processes with ScaLAPACK; the lower triangle is read."""

    solver = "pdsyev (ScaLAPACK)"
    most_entries = 2**31 - 1

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
                    f"{vendor()}, or set {SCALAPACK}"
                )
        self._context = _Int(0)
        self._library.Cblacs_get(_Int(0), _Int(0), ctypes.byref(self._context))
        self._library.Cblacs_gridinit(
            ctypes.byref(self._context), b"C", _Int(self.grid.rows), _Int(self.grid.columns)
        )

    def eigen_bytes(self, layout: Layout, itemsize: int) -> int:
        """See :class:`.DistributedBackend`; workspace are panels of one block, and some vectors."""
        panels = 4 * layout.block * (len(layout.rows) + len(layout.columns))
        return itemsize * (layout.most_entries + panels + 8 * layout.n)

    def _solve(self, part: Tensor, layout: Layout) -> np.ndarray:
        levels = np.zeros(layout.n, dtype=part.numpy().dtype)
        info = self._call(part, layout, levels)
        with self.world.together():
            if info:
                raise ConvergenceError(f"{self.solver} failed with info = {info}")
        return levels

    def _call(self, part: Tensor, layout: Layout, levels: np.ndarray) -> int:
        n, one = ctypes.byref(_Int(layout.n)), ctypes.byref(_Int(1))
        descriptor = (_Int * 9)(
            1, self._context, layout.n, layout.n, layout.block, layout.block, 0, 0, len(layout.rows)
        )
        routine = self._library["pdsyev_" if part.dtype == torch.float64 else "pssyev_"]
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


class ElpaBackend(DistributedBackend):
    """Processes with ELPA; both triangles are read."""

    solver = "ELPA two-stage"
    largest_block = 32
    most_entries = 2**31 - 1
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
            if self._library.elpa_init(_ELPA_API):
                raise DeviceError(f"ELPA does not know the version {_ELPA_API} of its interface")

    def eigen_bytes(self, layout: Layout, itemsize: int) -> int:
        """See :class:`.DistributedBackend`; its part and what ELPA allocates beside it."""
        panels = 16 * layout.block * (len(layout.rows) + len(layout.columns))
        return itemsize * (_ELPA_COPIES * layout.most_entries + panels + 64 * layout.n)

    def _solve(self, part: Tensor, layout: Layout) -> np.ndarray:
        levels = np.zeros(layout.n, dtype=part.numpy().dtype)
        single = part.dtype == torch.float32
        error = _Int(0)
        with self._handle(layout) as handle:
            matrix = ctypes.c_void_p(part.data_ptr())
            self._routine("f" if single else "d")(
                handle, matrix, _address(levels), ctypes.byref(error)
            )
        with self.world.together():
            if error.value:
                hint = "; many builds lack float32, which ScaLAPACK has" if single else ""
                raise ConvergenceError(f"{self.solver} failed with error {error.value}{hint}")
        return levels

    @contextmanager
    def _handle(self, layout: Layout) -> Iterator[ctypes.c_void_p]:
        """ELPA's object of one problem."""
        error = _Int(0)
        handle = ctypes.c_void_p(self._library.elpa_allocate(ctypes.byref(error)))
        try:
            self._set(handle, "na", layout.n)
            self._set(handle, "nev", layout.n)
            self._set(handle, "local_nrows", len(layout.rows))
            self._set(handle, "local_ncols", len(layout.columns))
            self._set(handle, "nblk", layout.block)
            self._set(handle, "mpi_comm_parent", self.world.fortran_handle)
            self._set(handle, "process_row", layout.row)
            self._set(handle, "process_col", layout.column)
            failed = self._library.elpa_setup(handle)
            with self.world.together():
                if failed:
                    raise DeviceError(f"ELPA cannot be set up for this layout (error {failed})")
            self._set(handle, "solver", _TWO_STAGE)
            yield handle
        finally:
            self._library.elpa_deallocate(handle, ctypes.byref(error))

    def _set(self, handle: ctypes.c_void_p, name: str, value: int) -> None:
        error = _Int(0)
        self._library.elpa_set_integer(handle, name.encode(), _Int(value), ctypes.byref(error))
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
    names = [f"libelpa.so{version}" for version in _ELPA_VERSIONS]
    return load_library(names, ELPA, "On Debian or Ubuntu: apt-get install libelpa-dev")


def load_scalapack() -> ctypes.CDLL:
    """The shared library that belongs to the MPI library of mpi4py.

    Returns:
        The library.
    """
    mpi = vendor()
    stems = (f"libscalapack-{mpi}.so", "libscalapack.so")
    names = [f"{stem}{version}" for stem in stems for version in _SCALAPACK_VERSIONS]
    hint = f"On Debian or Ubuntu: apt-get install libscalapack-{mpi}-dev"
    return load_library(names, SCALAPACK, hint)


def load_library(names: Sequence[str], variable: str, hint: str) -> ctypes.CDLL:
    """The first library of several names that is there.

    Args:
        names: File names, best first.
        variable: Environment variable that may hold a path instead.
        hint: How to install it.

    Returns:
        The library, its names visible to libraries loaded later.

    Raises:
        DeviceError: If none can be loaded.
    """
    given = os.environ.get(variable)
    reasons = []
    for name in [given] if given else names:
        try:
            return ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            reasons.append(str(error))
    raise DeviceError(
        f"{given or names[0]} cannot be loaded ({reasons[0]}). {hint}, or set {variable} to the "
        "path of the shared library"
    )


def _address(values: np.ndarray) -> ctypes.c_void_p:
    return values.ctypes.data_as(ctypes.c_void_p)
