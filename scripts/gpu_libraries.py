"""Other libraries' eigenvalue solvers on a GPU, the peers of ``gpu_check.py``; cuSOLVER directly.

CuPy binds neither ``XsyevBatched`` nor ``sytrd``: they are called through ctypes in the library
that torch has loaded.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

_REAL_64 = 1  # CUDA_R_64F
_LOWER = 0  # CUBLAS_FILL_MODE_LOWER
_NO_VECTORS = 0  # CUSOLVER_EIG_MODE_NOVECTOR
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


def stacked(stand_in: bool) -> dict[str, Solve]:
    """Solvers of a stack.

    Args:
        stand_in: Whether there is no GPU; then only torch is left.

    Returns:
        From a name to a function of (batch, n, n), which may be overwritten.
    """
    known: dict[str, Solve] = {"torch": torch.linalg.eigvalsh}
    return known if stand_in else known | {"XsyevBatched": xsyev_batched, "cupy": _by_cupy}


def _by_cupy(a: torch.Tensor) -> torch.Tensor:
    cupy = import_module("cupy")
    return torch.from_dlpack(cupy.linalg.eigvalsh(cupy.from_dlpack(a), UPLO="L"))


def loaded() -> list[Path]:
    """Files of cuSOLVER that this process has loaded.

    Returns:
        Paths, torch's and CuPy's if they differ.
    """
    maps = Path("/proc/self/maps").read_text(encoding="utf-8")
    names = {row.split(maxsplit=5)[-1] for row in maps.splitlines() if "libcusolver.so" in row}
    return sorted(map(Path, names))


def cusolver_versions() -> dict[str, str]:
    """Versions of cuSOLVER in this process.

    Returns:
        From a file to its version, e.g. ``"12.0.4"``.
    """
    found = {}
    for path in loaded():
        library, words = ctypes.CDLL(str(path)), []
        for which in range(3):  # major, minor, patch
            value = ctypes.c_int()
            library.cusolverGetProperty(ctypes.c_int(which), ctypes.byref(value))
            words.append(str(value.value))
        found[str(path)] = ".".join(words)
    return found


class _Cusolver:
    """A handle on torch's current stream."""

    def __init__(self, device: torch.device) -> None:
        torch.linalg.eigvalsh(torch.eye(2, dtype=torch.float64, device=device))  # loads it
        self._library = ctypes.CDLL(str(loaded()[0]))
        self.handle, self.params = ctypes.c_void_p(), ctypes.c_void_p()
        self("cusolverDnCreate", ctypes.byref(self.handle))
        self("cusolverDnCreateParams", ctypes.byref(self.params))
        stream = ctypes.c_void_p(torch.cuda.current_stream(device).cuda_stream)
        self("cusolverDnSetStream", self.handle, stream)

    def __call__(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            raise RuntimeError(f"{name}: status {status}")

    def close(self) -> None:
        self("cusolverDnDestroyParams", self.params)
        self("cusolverDnDestroy", self.handle)


def _address(tensor: torch.Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def _checked(what: str, info: torch.Tensor) -> None:
    if int(info.abs().max()):
        raise RuntimeError(f"{what} reports {info.tolist()}")


def tridiagonalise(a: torch.Tensor) -> None:
    """Tridiagonalise by cuSOLVER's ``sytrd``, which is most of what a one-stage solver does.

    Args:
        a: (n, n) float64 symmetric, overwritten.

    Raises:
        RuntimeError: If cuSOLVER reports a failure.
    """
    n, solver = ctypes.c_int(a.shape[0]), _Cusolver(a.device)
    d, e, tau = (a.new_empty(a.shape[0]) for _ in range(3))
    info = torch.zeros(1, dtype=torch.int32, device=a.device)
    size = ctypes.c_int()
    parts = (_address(a), n, _address(d), _address(e), _address(tau))
    solver("cusolverDnDsytrd_bufferSize", solver.handle, _LOWER, n, *parts, ctypes.byref(size))
    work = a.new_empty(max(1, size.value))
    solver(
        "cusolverDnDsytrd", solver.handle, _LOWER, n, *parts, _address(work), size, _address(info)
    )
    _checked("sytrd", info)
    solver.close()


def xsyev_batched(a: torch.Tensor) -> torch.Tensor:
    """All eigenvalues of a stack by cuSOLVER's ``XsyevBatched`` (CUDA 12.6 and later).

    Args:
        a: (batch, n, n) float64 symmetric and contiguous, overwritten.

    Returns:
        (batch, n).

    Raises:
        RuntimeError: If cuSOLVER reports a failure.
    """
    count, n = ctypes.c_int64(a.shape[0]), ctypes.c_int64(a.shape[1])
    solver = _Cusolver(a.device)
    levels = a.new_empty(a.shape[:2])
    info = torch.zeros(a.shape[0], dtype=torch.int32, device=a.device)
    sizes = ctypes.c_size_t(), ctypes.c_size_t()
    what = (solver.handle, solver.params, _NO_VECTORS, _LOWER, n)
    what += (_REAL_64, _address(a), n, _REAL_64, _address(levels), _REAL_64)
    solver("cusolverDnXsyevBatched_bufferSize", *what, *map(ctypes.byref, sizes), count)
    there = torch.empty(max(1, sizes[0].value), dtype=torch.uint8, device=a.device)
    here = ctypes.create_string_buffer(max(1, sizes[1].value))
    buffers = (_address(there), sizes[0], here, sizes[1], _address(info))
    solver("cusolverDnXsyevBatched", *what, *buffers, count)
    _checked("XsyevBatched", info)
    solver.close()
    return levels
