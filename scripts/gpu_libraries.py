"""Other libraries' eigenvalue solvers on a GPU, the peers of ``gpu_check.py``.

CuPy binds neither ``XsyevBatched`` nor ``sytrd``: cuSOLVER is called directly, as the package does.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

import torch

from hessrmt.backend import cusolver, solvers

Solve = Callable[[torch.Tensor], torch.Tensor | None]


def single(stand_in: bool) -> dict[str, Solve]:
    """Solvers of one matrix.

    Args:
        stand_in: Whether there is no GPU; then cuSOLVER is left out.

    Returns:
        From a name to a function of (n, n), which may be overwritten; None is returned by what
        gives no eigenvalues.
    """
    known: dict[str, Solve] = {"torch": torch.linalg.eigvalsh}
    # before CuPy, which may load a cuSOLVER of its own
    ours = {} if stand_in else {"sytrd alone": tridiagonalise}
    return known | ours | {"cupy": _by_cupy}


def stacked(device: torch.device, free: Callable[[], int]) -> dict[str, Solve]:
    """Solvers of a stack.

    Args:
        device: A GPU.
        free: Says how many bytes are free on it.

    Returns:
        From a name to a function of (batch, n, n), contiguous, which may be overwritten.
    """

    @cache
    def handle() -> cusolver.Cusolver:
        library = cusolver.with_batches(device)
        if library is None:
            raise RuntimeError(f"no cuSOLVER with {solvers.XSYEV} is loaded")
        return cusolver.Cusolver(library, device)

    by_cusolver: Solve = lambda a: handle().batch(a, free())  # noqa: E731
    return {"torch": torch.linalg.eigvalsh, solvers.XSYEV: by_cusolver, "cupy": _by_cupy}


def _by_cupy(a: torch.Tensor) -> torch.Tensor:
    cupy = import_module("cupy")
    return torch.from_dlpack(cupy.linalg.eigvalsh(cupy.from_dlpack(a), UPLO="L"))


def cusolver_versions(device: torch.device) -> dict[str, str]:
    """Versions of cuSOLVER in this process.

    Args:
        device: A GPU.

    Returns:
        From a file to its version, e.g. ``"12.0.4"``.
    """
    found = cusolver.libraries(device)
    names = map(str, cusolver.loaded())
    versions = (solvers.dotted(cusolver.version(library)) for library in found)
    return dict(zip(names, versions, strict=True))


def _address(tensor: torch.Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def tridiagonalise(a: torch.Tensor) -> None:
    """Tridiagonalise by cuSOLVER's ``sytrd``, which is most of what a one-stage solver does.

    Args:
        a: (n, n) float64 symmetric, overwritten.

    Raises:
        RuntimeError: If cuSOLVER reports a failure.
    """
    n, solver = ctypes.c_int(a.shape[0]), cusolver.Cusolver(_newest(a.device), a.device)
    d, e, tau = (a.new_empty(a.shape[0]) for _ in range(3))
    info = torch.zeros(1, dtype=torch.int32, device=a.device)
    size, lower = ctypes.c_int(), ctypes.c_int(cusolver.LOWER)
    what = (lower, n, _address(a), n, _address(d), _address(e), _address(tau))
    with solver.current():
        solver.call("cusolverDnDsytrd_bufferSize", solver.handle, *what, ctypes.byref(size))
        work = a.new_empty(max(1, size.value))
        solver.call("cusolverDnDsytrd", solver.handle, *what, _address(work), size, _address(info))
        if failed := int(info):
            raise RuntimeError(f"sytrd reports {failed}")


def _newest(device: torch.device) -> Any:
    return max(cusolver.libraries(device), key=cusolver.version)
