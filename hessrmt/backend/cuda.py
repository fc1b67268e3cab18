"""One NVIDIA GPU: CuPy and this package's own kernels, torch tensors in and out (DLPack)."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hessrmt.backend.kernels import OPTIONS, source
from hessrmt.errors import ConvergenceError, DeviceError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hessrmt.arrays import Levels, Matrix

_TILE = 32
_BLOCK = (32, 8)


class CudaBackend:
    """One CUDA device.

    CuPy, where it is installed, compiles the kernels and reaches cuSOLVER's 64-bit ``Xsyevd``;
    without it torch does both jobs.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.name = f"{device} ({torch.cuda.get_device_name(device)})"
        self._cupy = _import_cupy()
        self._modules: dict[str, Any] = {}
        library = "cupy.linalg.eigvalsh" if self._cupy else "torch.linalg.eigvalsh"
        self.solver = f"{library} (cuSOLVER, cuda)"

    def free_memory(self) -> int:
        """Bytes free on the device, torch's own cache counted as free.

        Returns:
            A number of bytes.
        """
        free, _ = torch.cuda.mem_get_info(self.device)
        reserved = torch.cuda.memory_reserved(self.device)
        return free + reserved - torch.cuda.memory_allocated(self.device)

    def symmetrize_(self, matrix: Matrix) -> float:
        """Replace A by (A + Aᵀ)/2 in place (csrc/symmetrize.cu; torch without CuPy).

        Args:
            matrix: (n, n) contiguous, overwritten.

        Returns:
            The largest |A_ij - A_ji| before; NaN if any entry is not finite.
        """
        if self._cupy is None:
            worst = float((matrix - matrix.T).abs().max())
            matrix.add_(matrix.T.clone()).div_(2)
            return worst
        cp = self._cupy
        n = matrix.shape[0]
        tiles = -(-n // _TILE)
        kind = "f64" if matrix.dtype == torch.float64 else "f32"
        with self._current():
            worst_bits = cp.zeros(1, dtype=cp.uint64)
            kernel = self._module("symmetrize").get_function(f"symmetrize_{kind}")
            arguments = (cp.from_dlpack(matrix), np.int64(n), worst_bits)
            kernel((tiles, tiles), _BLOCK, arguments)
            return float(worst_bits.get().view(np.float64)[0])

    def eigvalsh(self, matrix: Matrix) -> Levels:
        """All eigenvalues of a symmetric matrix by cuSOLVER.

        Args:
            matrix: (n, n) symmetric.

        Returns:
            (n,) float64, ascending.

        Raises:
            ConvergenceError: If cuSOLVER reports a failure.
        """
        try:
            if self._cupy is None:
                return torch.linalg.eigvalsh(matrix).cpu().numpy().astype(np.float64)
            with self._current():
                levels = self._cupy.linalg.eigvalsh(self._cupy.from_dlpack(matrix))
                return levels.get().astype(np.float64)
        except (RuntimeError, np.linalg.LinAlgError) as error:
            raise ConvergenceError(f"the eigenvalue solver failed: {error}") from error

    def _module(self, name: str) -> Any:
        if name not in self._modules:
            assert self._cupy is not None
            self._modules[name] = self._cupy.RawModule(code=source(name), options=OPTIONS)
        return self._modules[name]

    @contextmanager
    def _current(self) -> Iterator[None]:
        """CuPy on torch's device and stream, so that both see each other's work in order."""
        assert self._cupy is not None
        index = self.device.index or 0
        pointer = torch.cuda.current_stream(self.device).cuda_stream
        stream = self._cupy.cuda.ExternalStream(pointer, device_id=index)
        with self._cupy.cuda.Device(index), stream:
            yield


def _import_cupy() -> Any:
    try:
        import cupy  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    return cupy


def cuda_backend(device: torch.device) -> CudaBackend:
    """Backend for one CUDA device.

    Args:
        device: ``cuda`` or ``cuda:i``.

    Returns:
        The backend.

    Raises:
        DeviceError: If torch sees no CUDA, or no device of that number.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        raise DeviceError(
            f"device {str(device)!r}: torch sees no CUDA device; use --device cpu, or install a "
            "CUDA build of torch and check the driver with nvidia-smi"
        )
    index = device.index or 0
    if index >= count:
        raise DeviceError(f"device {str(device)!r}: there are {count}, numbered from 0")
    return CudaBackend(torch.device("cuda", index))
