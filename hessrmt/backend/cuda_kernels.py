"""The kernels of csrc/ on one GPU through CuPy: torch tensors in and out, by DLPack.

Only here is CuPy imported. Every array, workspace included, is a torch tensor, so that one
allocator knows all memory; CuPy compiles and launches. Functions trust their arguments.
"""

from __future__ import annotations

from contextlib import contextmanager
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from hessrmt.backend import solvers, twostage
from hessrmt.backend.kernels import OPTIONS, csrc, names, source
from hessrmt.errors import DeviceError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jaxtyping import Float, Float64, Int32, Int64
    from torch import Tensor

    from hessrmt.arrays import Matrix

TILE = 32
TILE_BLOCK = (32, 8)
THREADS = {"bulge_chase": 256, "sturm_prepare": 256, "sturm_bisect": 128, "staircase": 256}
"""Threads of a block, where the kernel leaves the choice."""

SCAN_THREADS = 128
"""Threads of a block of csrc/powerlaw_scan.cu, which is compiled for them."""

_GRID_LIMIT = 65535
_RESERVED_SHARED = 1024
_LARGE = 64 * 2**20


class KernelError(Exception):
    """A kernel could not be compiled or launched, or reported failure: take another route."""


class Kernels:
    """Launches on one device."""

    def __init__(self, cupy: Any, device: torch.device) -> None:
        self._cupy = cupy
        self._device = device
        self._modules: dict[str, Any] = {}

    # Linear algebra

    def symmetrize_(self, matrix: Matrix) -> float:
        """A ← (A + Aᵀ)/2 in place; the largest |A_ij - A_ji| before, or NaN."""
        n = matrix.shape[0]
        tiles = -(-n // TILE)
        worst = torch.zeros(1, dtype=torch.int64, device=self._device)
        self._run("symmetrize", matrix, (tiles, tiles), TILE_BLOCK, matrix, np.int64(n), worst)
        return float(worst.view(torch.float64)[0])

    def half_width(self, itemsize: int) -> int:
        """Half-width of the band that this device's shared memory allows."""
        return solvers.half_width(self._shared(), itemsize, THREADS["bulge_chase"])

    def compile_two_stage(self, dtype: torch.dtype) -> None:
        """Compile what the two-stage solver launches, while the matrix is still untouched."""
        self._kernel("bulge_chase", f"bulge_chase_{_KINDS[dtype]}")
        self._kernel("sturm", f"sturm_prepare_{_KINDS[dtype]}")
        self._kernel("sturm", "sturm_bisect_f64")

    def chase(
        self, band: Float[Tensor, "n width"], b: int
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """Band to tridiagonal.

        Args:
            band: (n, 2b+1) contiguous; overwritten.
            b: Half-width.

        Returns:
            Diagonal, and subdiagonal with a 0 behind it.

        Raises:
            KernelError: If a block waited in vain.
        """
        n, itemsize = band.shape[0], band.element_size()
        threads = THREADS["bulge_chase"]
        shared = twostage.chase_launch(n, b, itemsize, resident=1, threads=threads).shared_bytes
        kernel = self._kernel("bulge_chase", f"bulge_chase_{_KINDS[band.dtype]}", shared)
        resident = self._resident(kernel, shared, threads)
        config = twostage.chase_launch(n, b, itemsize, resident=resident, threads=threads)
        d, e = band.new_empty(n), band.new_empty(n)
        state = torch.zeros(config.state_words, dtype=torch.int32, device=self._device)
        sizes = np.int32(n), np.int32(b), np.int32(1)
        arguments = (band, *sizes, d, e, state, np.uint32(twostage.SPIN_LIMIT))
        self._launch(kernel, (config.blocks,), (threads,), *arguments, shared=shared)
        if failed := int(state[1]):
            raise KernelError(f"the bulge chase stopped: sweep {failed - 1} waited in vain")
        return d, e

    def tridiagonal(
        self, d: Float[Tensor, " n"], e: Float[Tensor, " n"]
    ) -> Float64[np.ndarray, " n"]:
        """Eigenvalues of a symmetric tridiagonal matrix by bisection, in float64.

        Args:
            d: Diagonal.
            e: Subdiagonal, of which the last place is not read.

        Returns:
            (n,) ascending.

        Raises:
            KernelError: If an input is not finite or an eigenvalue was not found.
        """
        n = d.shape[0]
        work = torch.empty(2 * n + 2, dtype=torch.float64, device=self._device)
        levels = torch.empty(n, dtype=torch.float64, device=self._device)
        info = torch.zeros(1, dtype=torch.int32, device=self._device)
        size, one = np.int64(n), np.int64(1)
        kernel = self._kernel("sturm", f"sturm_prepare_{_KINDS[d.dtype]}")
        threads = (THREADS["sturm_prepare"],)
        self._launch(kernel, (1,), threads, d, e, size, size, size, one, work, info)
        kernel = self._kernel("sturm", "sturm_bisect_f64")
        threads = THREADS["sturm_bisect"]
        arguments = (work, size, one, np.int64(0), size, levels, size, info)
        self._launch(kernel, (-(-n // threads), 1), (threads,), *arguments)
        if failed := int(info[0]):
            raise KernelError(f"the bisection reports {failed}")
        return levels.cpu().numpy()

    def small_limit(self, itemsize: int) -> int:
        """Largest n of :meth:`small`."""
        return solvers.small_limit(self._shared(), itemsize)

    def small(
        self, stack: Float[Tensor, "batch n n"]
    ) -> tuple[Float64[np.ndarray, "batch n"], Int32[np.ndarray, " batch"]]:
        """All eigenvalues of small symmetric matrices, one block for each.

        Args:
            stack: (batch, n, n), the lower triangles are read; rows contiguous.

        Returns:
            Eigenvalues, ascending, and for each matrix 0, or -1 (not finite), or the number of an
            eigenvalue that was not found.
        """
        batch, n = stack.shape[:2]
        shared = solvers.small_shared_bytes(n, stack.element_size())
        levels = torch.empty((batch, n), dtype=torch.float64, device=self._device)
        info = torch.zeros(batch, dtype=torch.int32, device=self._device)
        sizes = map(np.int64, (n, stack.stride(1), stack.stride(0), batch))
        arguments = (stack, *sizes, levels, np.int64(n), info)
        grid, block = (min(batch, _GRID_LIMIT),), (32 * -(-n // 32),)
        self._run("batched_small", stack, grid, block, *arguments, shared=shared)
        return levels.cpu().numpy(), info.cpu().numpy()

    def library_eigvalsh(self, matrix: Matrix) -> np.ndarray:
        """``cupy.linalg.eigvalsh``: cuSOLVER's ``Xsyevd``.

        It has 64-bit sizes from CUDA 13.0 on; before, it failed above n ≈ 25,000. CuPy has a pool
        of its own, which can't use what torch's has cached: for large matrices torch's cache is
        emptied before, CuPy's pool after.

        Args:
            matrix: (n, n), of which the lower triangle is read.

        Returns:
            (n,) ascending, in the matrix's precision.
        """
        large = matrix.numel() * matrix.element_size() > _LARGE
        if large:
            torch.cuda.empty_cache()
        with self._current():
            try:
                levels = self._cupy.linalg.eigvalsh(self._cupy.from_dlpack(matrix), UPLO="L")
                return torch.from_dlpack(levels).cpu().numpy()
            finally:
                if large:
                    self._cupy.get_default_memory_pool().free_all_blocks()

    # The rest

    def staircase(
        self, pool: Float64[Tensor, " m"], queries: Float64[Tensor, " n"]
    ) -> Int64[np.ndarray, " n"]:
        """How many of an ascending pool are less than each query."""
        n, threads = queries.shape[0], THREADS["staircase"]
        counts = torch.empty(n, dtype=torch.int64, device=self._device)
        arguments = (pool, np.int64(pool.shape[0]), queries, np.int64(n), counts)
        self._run("staircase", pool, (-(-n // threads),), (threads,), *arguments)
        return counts.cpu().numpy()

    def powerlaw_scan(
        self, values: Float64[Tensor, " total"], offsets: Int64[np.ndarray, " layers+1"]
    ) -> tuple[Float64[np.ndarray, " total"], Float64[np.ndarray, " total"]]:
        """Power-law fits of ragged layers at every x_min: α and distance, one-sided."""
        alpha = torch.empty(values.shape[0], dtype=torch.float64, device=self._device)
        distance = torch.empty_like(alpha)
        layers, longest = len(offsets) - 1, int(np.diff(offsets).max())
        starts = torch.from_numpy(offsets).to(self._device)
        grid = (-(-longest // SCAN_THREADS), min(layers, _GRID_LIMIT))
        arguments = (values, starts, np.int64(layers), np.int32(0), alpha, distance)
        self._run("powerlaw_scan", values, grid, (SCAN_THREADS,), *arguments)
        return alpha.cpu().numpy(), distance.cpu().numpy()

    def goe(
        self, n: int, count: int, key: int, dtype: torch.dtype, first: int
    ) -> Float[Tensor, "count n n"]:
        """GOE matrices ``first`` ... of a key's sequence."""
        matrices = torch.empty((count, n, n), dtype=dtype, device=self._device)
        tiles = -(-n // TILE)
        sizes = (np.int64(n), np.int64(count), np.uint64(key), np.uint64(first))
        grid = (tiles, tiles, min(count, _GRID_LIMIT))
        self._run("goe_fill", matrices, grid, TILE_BLOCK, matrices, *sizes)
        return matrices

    # Compiling and launching

    def compiled(self, file: str) -> dict[str, dict[str, int]]:
        """Compile a file of csrc/, without its ending; what each of its kernels takes.

        Args:
            file: E.g. ``"sturm"``.

        Returns:
            From a kernel's name to its registers, and its bytes of local and of static shared
            memory, all for one thread or block.
        """
        found = {name: self._kernel(file, name) for name in names(source(file))}
        with self._current(), _as_kernel_error(f"{file} can't be asked what it takes"):
            words = "registers", "local bytes", "static shared bytes"
            take = attrgetter("num_regs", "local_size_bytes", "shared_size_bytes")
            return {name: dict(zip(words, take(k), strict=True)) for name, k in found.items()}

    def _kernel(self, file: str, name: str, shared: int = 0) -> Any:
        with self._current(), _as_kernel_error(f"{name} could not be compiled"):
            found = self._modules.get(file)
            if isinstance(found, Exception):
                raise found  # compiling takes seconds: not again
            try:
                if found is None:
                    found = self._cupy.RawModule(code=source(file), options=OPTIONS)
                kernel = found.get_function(name)
            except DeviceError:
                raise
            except Exception as error:
                self._modules[file] = error
                raise
            self._modules[file] = found
            if shared > solvers.OPT_IN:
                kernel.max_dynamic_shared_size_bytes = shared
            return kernel

    def _run(
        self,
        file: str,
        of: Tensor,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        *arguments: Any,
        shared: int = 0,
    ) -> None:
        """Launch the kernel that has its file's name, for a tensor's type."""
        kernel = self._kernel(file, f"{file}_{_KINDS[of.dtype]}", shared)
        self._launch(kernel, grid, block, *arguments, shared=shared)

    def _launch(
        self, kernel: Any, grid: tuple[int, ...], block: tuple[int, ...], *arguments: Any, shared=0
    ) -> None:
        if 0 in grid:  # nothing to do, which CUDA calls an invalid configuration
            return
        with self._current(), _as_kernel_error("a kernel could not be launched"):
            given = tuple(
                self._cupy.from_dlpack(x.detach()) if isinstance(x, torch.Tensor) else x
                for x in arguments
            )
            kernel(grid, block, given, shared_mem=shared)

    def _attributes(self) -> dict[str, int]:
        return self._cupy.cuda.Device(self._device.index or 0).attributes

    def _shared(self) -> int:
        """Bytes of shared memory that a block may ask for."""
        return self._attributes()["MaxSharedMemoryPerBlockOptin"]

    def _resident(self, kernel: Any, shared: int, threads: int) -> int:
        """Blocks that the device holds at once (a guess is right too, only slower)."""
        of = self._attributes()
        each = min(
            of["MaxSharedMemoryPerMultiprocessor"] // (shared + _RESERVED_SHARED),
            of["MaxThreadsPerMultiProcessor"] // threads,
            of["MaxRegistersPerMultiprocessor"] // (max(1, kernel.num_regs) * threads),
        )
        return of["MultiProcessorCount"] * max(1, each)

    @contextmanager
    def _current(self) -> Iterator[None]:
        """CuPy on torch's device and stream, so that both see each other's work in order."""
        stream = _TorchStream(torch.cuda.current_stream(self._device).cuda_stream)
        with (
            self._cupy.cuda.Device(self._device.index or 0),
            self._cupy.cuda.Stream.from_external(stream),
        ):
            yield


class _TorchStream(NamedTuple):
    """A stream by CUDA's stream protocol, which torch's own class has in newer versions only."""

    pointer: int

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.pointer


_KINDS = {torch.float64: "f64", torch.float32: "f32"}


@contextmanager
def _as_kernel_error(what: str) -> Iterator[None]:
    """CuPy's errors (compiler, driver) have no common base but Exception; ours pass."""
    try:
        yield
    except (DeviceError, MemoryError):
        raise
    except Exception as error:
        raise KernelError(f"{what}: {error}") from error


def import_kernels(device: torch.device) -> Kernels | None:
    """The kernels of one device.

    Args:
        device: A CUDA device.

    Returns:
        None where CuPy is not installed.
    """
    try:
        import cupy  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    return Kernels(cupy, device)


def compile_report(device: torch.device) -> dict[str, str]:
    """Try to compile every kernel source for a device.

    Args:
        device: Any device.

    Returns:
        For each file of csrc/, without its ending, ``"ok"`` or the reason why not; where nothing
        can be tried, one entry ``"all"`` that says why.
    """
    if device.type != "cuda":
        return {"all": "not tried: no CUDA device"}
    kernels = import_kernels(device)
    if kernels is None:
        return {"all": "not tried: CuPy is not installed"}
    found = {}
    for file in sorted(csrc().glob("*.cu")):
        try:
            kernels.compiled(file.stem)
        except KernelError as error:
            found[file.stem] = str(error).strip()
        else:
            found[file.stem] = "ok"
    return found
