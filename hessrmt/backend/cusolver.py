"""cuSOLVER called directly: batches by ``XsyevBatched``, which CuPy doesn't bind.

By ctypes, in the libraries that torch and CuPy have loaded into this process; nothing is linked or
searched for. ``XsyevBatched`` came with CUDA 12.6 update 2; argument types are those of
cusolverDn.h.
"""

from __future__ import annotations

import ctypes
import weakref
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hessrmt.backend import solvers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jaxtyping import Float64
    from torch import Tensor

LOWER = 0
"""``CUBLAS_FILL_MODE_LOWER``."""

TYPES = {torch.float64: 1, torch.float32: 0}
"""``CUDA_R_64F`` and ``CUDA_R_32F``."""

BATCHED = f"cusolverDn{solvers.XSYEV}"

_AT_ONCE = 2**14
"""Matrices of one call: more than about 32,000 are refused by some versions, which no document says
(mujocolab/mjlab#732)."""

_NO_VECTORS = 0
"""``CUSOLVER_EIG_MODE_NOVECTOR``."""

_ENUM, _POINTER, _INT64, _SIZE = ctypes.c_int, ctypes.c_void_p, ctypes.c_int64, ctypes.c_size_t
# handle, params, jobz, uplo, n, dataTypeA, A, lda, dataTypeW, W, computeType
_MATRICES = (_POINTER, _POINTER, _ENUM, _ENUM, _INT64, _ENUM, _POINTER, _INT64)
_MATRICES += (_ENUM, _POINTER, _ENUM)
_ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "cusolverGetProperty": (_ENUM, _POINTER),
    "cusolverDnCreate": (_POINTER,),
    "cusolverDnDestroy": (_POINTER,),
    "cusolverDnCreateParams": (_POINTER,),
    "cusolverDnDestroyParams": (_POINTER,),
    "cusolverDnSetStream": (_POINTER, _POINTER),
    f"{BATCHED}_bufferSize": (*_MATRICES, _POINTER, _POINTER, _INT64),
    BATCHED: (*_MATRICES, _POINTER, _SIZE, _POINTER, _SIZE, _POINTER, _INT64),
}


class CusolverError(Exception):
    """cuSOLVER reported a failure, or lacks what it needs: take another route."""


def loaded() -> list[Path]:
    """Files of cuSOLVER that this process has loaded.

    Returns:
        Paths, torch's and CuPy's if they differ; none where the system does not tell.
    """
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8")
    except OSError:
        return []
    names = {row.split(maxsplit=5)[-1] for row in maps.splitlines() if "libcusolver.so" in row}
    return sorted(map(Path, names))


def libraries(device: torch.device) -> list[Any]:
    """What this process has loaded of cuSOLVER, after torch had to.

    Args:
        device: A GPU.

    Returns:
        ctypes libraries.
    """
    torch.linalg.eigvalsh(torch.eye(2, dtype=torch.float64, device=device))  # torch loads it late
    return [ctypes.CDLL(str(path)) for path in loaded()]


def version(library: Any) -> tuple[int, ...]:
    """Version of a library.

    Args:
        library: As :func:`libraries` gives it.

    Returns:
        Major, minor, patch.
    """
    words, value = [], ctypes.c_int()
    for which in range(3):
        _call(library, "cusolverGetProperty", which, ctypes.byref(value))
        words.append(value.value)
    return tuple(words)


def with_batches(device: torch.device) -> Any | None:
    """The newest library that has ``XsyevBatched``.

    Args:
        device: A GPU.

    Returns:
        None where there is none.
    """
    found = [library for library in libraries(device) if hasattr(library, BATCHED)]
    return max(found, key=version, default=None)


def _call(library: Any, name: str, *arguments: Any) -> None:
    function = getattr(library, name)
    if name in _ARGUMENTS:
        function.argtypes = _ARGUMENTS[name]
    function.restype = ctypes.c_int
    if status := function(*arguments):
        raise CusolverError(f"{name}: status {status}")


class Cusolver:
    """A handle on one device, given back with the object."""

    def __init__(self, library: Any, device: torch.device) -> None:
        """Make the handle.

        Args:
            library: As :func:`libraries` gives it.
            device: A GPU.
        """
        self._library, self._device = library, device
        self.handle, self.params = ctypes.c_void_p(), ctypes.c_void_p()
        with torch.cuda.device(device):
            self.call("cusolverDnCreate", ctypes.byref(self.handle))
            end = weakref.finalize(self, _destroy, library, self.handle, self.params)
            end.atexit = False  # the driver may have left before
            self.call("cusolverDnCreateParams", ctypes.byref(self.params))

    def call(self, name: str, *arguments: Any) -> None:
        """One function of the library.

        Args:
            name: Of the function.
            arguments: Numbers where cusolverDn.h's types are known here, else ctypes' instances.
        """
        _call(self._library, name, *arguments)

    @contextmanager
    def current(self) -> Iterator[None]:
        """The handle's device, and on it torch's current stream."""
        with torch.cuda.device(self._device):
            stream = torch.cuda.current_stream(self._device).cuda_stream
            self.call("cusolverDnSetStream", self.handle, stream)
            yield

    def batch(self, stack: Float64[Tensor, "batch n n"], free: int) -> Float64[Tensor, "batch n"]:
        """All eigenvalues of symmetric matrices by ``XsyevBatched``.

        In as many calls as its limit (:data:`.solvers.LIBRARY_NUMBERS`) and its workspace need.

        Args:
            stack: Contiguous, symmetric, finite, at least one, n >= 1; overwritten.
            free: Bytes that a workspace may take.

        Returns:
            Each row ascending, on the same device; all of it is there.

        Raises:
            CusolverError: If a call fails, a matrix is not solved, or the workspace of a single
                one does not fit.
        """
        count, n = stack.shape[:2]
        levels = stack.new_empty(count, n)
        info = torch.zeros(count, dtype=torch.int32, device=stack.device)
        most = min(count, _AT_ONCE, solvers.LIBRARY_NUMBERS // (n * n))
        if not most:
            raise CusolverError(f"n = {n:,} is more than {BATCHED} takes")
        with self.current():
            while (needed := self._workspace(stack[:most], levels)[0]) > free:
                if most == 1:
                    raise CusolverError(f"a workspace of {needed:,} bytes; {free:,} are free")
                most = (most + 1) // 2
            kept = []  # workspaces in main memory, until the device has done it all
            for part in range(0, count, most):
                those = slice(part, part + most)
                kept.append(self._solve(stack[those], levels[those], info[those]))
            failed = info.cpu()
        if int(failed.count_nonzero()):
            first = int(failed.ne(0).nonzero()[0])
            raise CusolverError(f"{BATCHED}: info {int(failed[first])} of matrix {first}")
        return levels

    def _arguments(self, stack: Tensor, levels: Tensor) -> tuple[Any, ...]:
        """What the routine and the query of its workspace have in common."""
        n, kind = stack.shape[1], TYPES[stack.dtype]
        matrices = kind, stack.data_ptr(), n, kind, levels.data_ptr(), kind
        return self.handle, self.params, _NO_VECTORS, LOWER, n, *matrices

    def _workspace(self, stack: Tensor, levels: Tensor) -> tuple[int, int]:
        """Bytes on the device and in main memory."""
        sizes = ctypes.c_size_t(), ctypes.c_size_t()
        places = map(ctypes.byref, sizes)
        arguments = self._arguments(stack, levels)
        self.call(f"{BATCHED}_bufferSize", *arguments, *places, len(stack))
        return sizes[0].value, sizes[1].value

    def _solve(self, stack: Tensor, levels: Tensor, info: Tensor) -> Tensor:
        """One call, not waited for; its workspace in main memory."""
        there, here = self._workspace(stack, levels)
        device = torch.empty(max(1, there), dtype=torch.uint8, device=stack.device)
        host = torch.empty(max(1, here), dtype=torch.uint8)
        buffers = device.data_ptr(), there, host.data_ptr(), here, info.data_ptr()
        self.call(BATCHED, *self._arguments(stack, levels), *buffers, len(stack))
        return host


def _destroy(library: Any, handle: ctypes.c_void_p, params: ctypes.c_void_p) -> None:
    if params:
        _call(library, "cusolverDnDestroyParams", params)
    _call(library, "cusolverDnDestroy", handle)
