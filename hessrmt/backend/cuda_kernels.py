"""The kernels of csrc/ on one GPU through CuPy: torch tensors in and out, by DLPack.

Only here is CuPy imported. Every array, workspace included, is a torch tensor, so that one
allocator knows all memory; CuPy compiles and launches. Functions trust their arguments.
"""

from __future__ import annotations

import itertools
import math
from contextlib import contextmanager
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from hessrmt.backend import solvers
from hessrmt.backend.kernels import OPTIONS, csrc, names, source
from hessrmt.backend.twostage import geqrf_panel
from hessrmt.errors import DeviceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from jaxtyping import Float, Float64, Int32, Int64
    from torch import Tensor

    from hessrmt.arrays import Matrix

TILE = 32
TILE_BLOCK = (32, 8)
THREADS = {
    "bulge_chase": 256,
    "panel_qr": 512,
    "sturm_prepare": 256,
    "sturm_bisect": 128,
}
"""Threads of a block, where the kernel leaves the choice."""

SCAN_THREADS = 128
"""Threads of a block of csrc/powerlaw_scan.cu, which is compiled for them."""

PANEL_THREADS = 512
"""Threads of a block of csrc/panel_batch.cu."""

SPIN_LIMIT = 1 << 24
"""How often a block looks for another before the kernel reports failure (some seconds)."""

_FILES = {"sturm_prepare": "sturm", "sturm_bisect": "sturm"}
"""Kernels in a file of csrc/ that has another name."""

_KINDS = {torch.float64: "f64", torch.float32: "f32"}
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

    def symmetrize(self, matrix: Matrix) -> float:
        """A ← (A + Aᵀ)/2 in place; the largest |A_ij - A_ji| before, or NaN."""
        tiles = _blocks(len(matrix), TILE)
        worst = self._zeros(1, torch.int64)
        self._run("symmetrize", matrix, (tiles, tiles), TILE_BLOCK, matrix, len(matrix), worst)
        return float(worst.view(torch.float64)[0])

    def half_width(self, itemsize: int) -> int:
        """Half-width of the band that this device's shared memory allows."""
        return solvers.half_width(self._shared(), itemsize, THREADS["bulge_chase"])

    def widest_band(self) -> int:
        """Largest half-width that the bulge chase takes, float64."""
        return solvers.widest_band(self._shared(), 8, THREADS["bulge_chase"])

    def compile_two_stage(self, dtype: torch.dtype) -> None:
        """Compile what the two-stage solver launches, while the matrix is still untouched."""
        self._kernel("bulge_chase", dtype)
        self._kernel("sturm_prepare", dtype)
        self._kernel("sturm_bisect", torch.float64)

    def panels(self, n: int, b: int, dtype: torch.dtype) -> Panels:
        """QR of the panels of one matrix, each by a grid whose blocks are all resident.

        Args:
            n: Rows of the matrix.
            b: Columns of a panel.
            dtype: Of the matrix.

        Returns:
            The factorisation, which takes :func:`.twostage.geqrf_panel` for a panel that does not
            fit into the shared memory of one block on every multiprocessor.

        Raises:
            KernelError: If the kernel does not compile.
        """
        threads, most = THREADS["panel_qr"], self._attributes()["MultiProcessorCount"]
        rows = solvers.panel_rows(self._shared(), b, dtype.itemsize, threads)
        self._kernel("panel_qr", dtype)
        work = self._zeros(solvers.panel_numbers(n, b), dtype)
        words = self._zeros(1 + _blocks(n, solvers.PANEL_ROWS), torch.int32)
        failure, flags = words[:1], words[1:]
        turns = itertools.count(0, 3 * b)  # flags only rise: none is set back between panels

        def factor(panel: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            m, k = len(panel), min(panel.shape)
            share = solvers.panel_share(m, rows, most)
            if share == 0:
                return geqrf_panel(panel)
            blocks = _blocks(m, share)
            v, w, r = (panel.new_empty(size) for size in ((m, k), (m, k), (k, b)))
            shared = solvers.panel_shared_bytes(_blocks(m, blocks), b, dtype.itemsize, threads)
            sizes = (panel.stride(0), np.int32(m), np.int32(b))
            waits = (flags, failure, np.uint32(next(turns)), np.uint32(SPIN_LIMIT))
            arguments = (panel, *sizes, v, w, r, work, *waits)
            self._run("panel_qr", panel, (blocks,), (threads,), *arguments, shared=shared)
            return v, w, r

        def check() -> None:
            if failed := int(failure[0]):
                raise KernelError(f"the panel's QR stopped: block {failed - 1} waited in vain")

        return Panels(factor, check)

    def chase(
        self, band: Float[Tensor, "*batch n width"], b: int
    ) -> tuple[Float[Tensor, "*batch n"], Float[Tensor, "*batch n"]]:
        """Band to tridiagonal, one matrix or several.

        Args:
            band: ([batch,] n, 2b+1), ``band[j, k] = A[j+k, j]``, zeros for k > b; overwritten.
            b: Half-width, at most that of :meth:`widest_band`.

        Returns:
            Diagonal and, with one number more than it has, subdiagonal.

        Raises:
            KernelError: If a block waited in vain for its predecessor.
        """
        *many, n, _ = band.shape
        batch, threads = math.prod(many), THREADS["bulge_chase"]
        shared = solvers.chase_shared_bytes(b, band.element_size(), threads)
        resident = self._resident(self._kernel("bulge_chase", band.dtype, shared), shared, threads)
        blocks = min(resident, batch * (n // (2 * b) + 2))  # as many as have work
        d, e = self._zeros((2, *many, n), band.dtype)
        state = self._zeros(2 + batch * n, torch.int32)
        arguments = (band, *map(np.int32, (n, b, batch)), d, e, state, np.uint32(SPIN_LIMIT))
        self._run("bulge_chase", band, (blocks,), (threads,), *arguments, shared=shared)
        if failed := int(state[1]):
            raise KernelError(f"the bulge chase stopped: sweep {failed - 1} waited in vain")
        return d, e

    def tridiagonal(
        self, d: Float[Tensor, "*batch n"], e: Float[Tensor, "*batch n"]
    ) -> Float64[np.ndarray, "*batch n"]:
        """Eigenvalues of symmetric tridiagonal matrices, one or several, by bisection in float64.

        Args:
            d: ([batch,] n) diagonals.
            e: ([batch,] n) subdiagonals; the last number of each is not used.

        Returns:
            ([batch,] n) ascending.

        Raises:
            KernelError: If an eigenvalue was not found or a matrix is not finite.
        """
        n, batch = d.shape[-1], math.prod(d.shape[:-1])
        work, levels = self._zeros(batch * (2 * n + 2)), self._zeros(tuple(d.shape))
        info = self._zeros(batch, torch.int32)
        along, threads = min(batch, _GRID_LIMIT), THREADS["sturm_prepare"]
        arguments = (d, e, n, n, n, batch, work, info)
        self._run("sturm_prepare", d, (along,), (threads,), *arguments)
        threads = THREADS["sturm_bisect"]
        arguments = (work, n, batch, 0, n, levels, n, info)
        self._run("sturm_bisect", work, (_blocks(n, threads), along), (threads,), *arguments)
        failed = info.cpu().numpy()
        if failed.any():
            raise KernelError(f"the bisection reports {failed[failed != 0][0]}")
        return levels.cpu().numpy()

    def banded(self, bands: Float64[np.ndarray, "batch width n"]) -> Float64[np.ndarray, "batch n"]:
        """Eigenvalues of symmetric band matrices, 1 <= r < n; row k is the k-th subdiagonal."""
        b, n = bands.shape[1] - 1, bands.shape[2]
        there = torch.from_numpy(bands).to(self._device)
        if b == 1:
            return self.tridiagonal(there[:, 0].contiguous(), there[:, 1].contiguous())
        packed = self._zeros((len(bands), n, 2 * b + 1))
        row, column = (torch.arange(size, device=self._device) for size in (b + 1, n))
        packed[..., : b + 1] = torch.where(row + column[:, None] < n, there.mT, 0)
        return self.tridiagonal(*self.chase(packed, b))

    def small_limit(self) -> int:
        """Largest n of :meth:`small`."""
        return solvers.small_limit(self._shared())

    def small(
        self, stack: Float64[Tensor, "batch n n"]
    ) -> tuple[Float64[np.ndarray, "batch n"], Int32[np.ndarray, " batch"]]:
        """All eigenvalues of small symmetric matrices, one block for each.

        Args:
            stack: (batch, n, n), rows contiguous, n at most :meth:`small_limit`; only the lower
                triangles are read, and nothing is changed.

        Returns:
            Eigenvalues, each row ascending, and for each matrix 0, -1 if it is not finite, or the
            number of an eigenvalue that was not found.
        """
        batch, n = stack.shape[:2]
        shared = solvers.small_shared_bytes(n)
        levels, info = self._zeros((batch, n)), self._zeros(batch, torch.int32)
        sizes = (n, stack.stride(1), stack.stride(0), batch)
        grid, block = (min(batch, _GRID_LIMIT),), (32 * _blocks(n, 32),)
        arguments = (stack, *sizes, levels, n, info)
        self._run("batched_small", stack, grid, block, *arguments, shared=shared)
        return levels.cpu().numpy(), info.cpu().numpy()

    def batched_panels(
        self, given: Float64[Tensor, "batch b rows"]
    ) -> tuple[
        Float64[Tensor, "batch rows k"], Float64[Tensor, "batch k k"], Float64[Tensor, "batch k b"]
    ]:
        """QR of a batch of panels, (I - V T Vᵀ) R, one block for each.

        Args:
            given: The panels column by column, each column contiguous, entries of order 1.

        Returns:
            V, unit lower trapezoidal, T, upper triangular, and R, with k = min(rows, b).
        """
        batch, b, rows = given.shape
        k, shared = min(rows, b), solvers.batched_panel_bytes(rows, b)
        v = torch.empty((batch, b, rows), dtype=given.dtype, device=self._device)
        t, r = self._zeros((2, batch, b, b), given.dtype)
        grid, block = (min(batch, _GRID_LIMIT),), (PANEL_THREADS,)
        sizes = (given.stride(1), given.stride(0), rows, np.int32(b), batch)
        self._run("panel_batch", given, grid, block, given, *sizes, v, t, r, shared=shared)
        return v[:, :k].mT, t[:, :k, :k], r[:, :k]

    def library_version(self) -> tuple[int, ...] | None:
        """Version of the cuSOLVER that CuPy calls; None where CuPy does not tell."""
        try:
            return tuple(self._cupy.cuda.cusolver._getVersion())
        except Exception:  # of any kind: a private name, a library that it loads late
            return None

    def library_eigvalsh(self, matrix: Matrix) -> np.ndarray:
        """``cupy.linalg.eigvalsh``: cuSOLVER's ``Xsyevd``.

        CuPy's workspace has another allocator than torch: both give back what they keep before and
        after a large matrix.

        Args:
            matrix: (n, n) contiguous, symmetric; overwritten.

        Returns:
            (n,) ascending, in the matrix's type.
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

    def powerlaw_scan(
        self,
        values: Float64[np.ndarray, " total"],
        offsets: Int64[np.ndarray, " layers+1"],
        two_sided: bool = False,
    ) -> tuple[Float64[np.ndarray, " total"], Float64[np.ndarray, " total"]]:
        """Power-law fits of ragged layers at every x_min: α and distance."""
        alpha, distance = self._zeros((2, len(values)))
        layers, longest = len(offsets) - 1, int(np.diff(offsets).max())
        there, starts = (torch.from_numpy(a).to(self._device) for a in (values, offsets))
        grid = (_blocks(longest, SCAN_THREADS), min(layers, _GRID_LIMIT))
        arguments = (there, starts, layers, np.int32(two_sided), alpha, distance)
        self._run("powerlaw_scan", there, grid, (SCAN_THREADS,), *arguments)
        return alpha.cpu().numpy(), distance.cpu().numpy()

    def goe_fill(self, n: int, count: int, key: int, first: int) -> Float64[Tensor, "count n n"]:
        """GOE matrices ``first`` ... of a key's sequence."""
        matrices = torch.empty((count, n, n), dtype=torch.float64, device=self._device)
        tiles = _blocks(n, TILE)
        arguments = (matrices, n, count, np.uint64(key), np.uint64(first))
        grid = (tiles, tiles, min(count, _GRID_LIMIT))
        self._run("goe_fill", matrices, grid, TILE_BLOCK, *arguments)
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
        found = {name: self._compiled(file, name) for name in names(source(file))}
        with self._current(), _as_kernel_error(f"{file} can't be asked what it takes"):
            words = "registers", "local bytes", "static shared bytes"
            take = attrgetter("num_regs", "local_size_bytes", "shared_size_bytes")
            return {name: dict(zip(words, take(k), strict=True)) for name, k in found.items()}

    def _kernel(self, kernel: str, dtype: torch.dtype, shared: int = 0) -> Any:
        return self._compiled(_FILES.get(kernel, kernel), f"{kernel}_{_KINDS[dtype]}", shared)

    def _compiled(self, file: str, name: str, shared: int = 0) -> Any:
        with self._current(), _as_kernel_error(f"{name} could not be compiled"):
            if file not in self._modules:
                try:
                    module = self._cupy.RawModule(code=source(file), options=OPTIONS)
                    module.get_function(name)  # compiles
                except DeviceError:
                    raise
                except Exception as error:
                    module = error
                self._modules[file] = module
            if isinstance(self._modules[file], Exception):
                raise self._modules[file]  # compiling takes seconds: not again
            kernel = self._modules[file].get_function(name)
            if shared > solvers.OPT_IN:
                kernel.max_dynamic_shared_size_bytes = shared
            return kernel

    def _run(
        self,
        name: str,
        of: Tensor,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        *arguments: Any,
        shared: int = 0,
    ) -> None:
        """Launch a kernel for a tensor's type; Python's whole numbers are passed as 64 bits."""
        kernel = self._kernel(name, of.dtype, shared)
        if 0 in grid:  # nothing to do, which CUDA calls an invalid configuration
            return
        with self._current(), _as_kernel_error("a kernel could not be launched"):
            kernel(grid, block, tuple(map(self._argument, arguments)), shared_mem=shared)

    def _argument(self, x: Any) -> Any:
        if isinstance(x, torch.Tensor):
            return self._cupy.from_dlpack(x.detach())
        return np.int64(x) if isinstance(x, int) else x

    def _zeros(self, shape: int | tuple[int, ...], dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=self._device)

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


class Panels(NamedTuple):
    """QR of the panels of one matrix, in any number and order.

    Attributes:
        factor: As :func:`.twostage.geqrf_panel`; it does not wait for the device.
        check: Waits, and raises :class:`KernelError` if a block of any panel waited in vain; the
            factors are then worthless.
    """

    factor: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
    check: Callable[[], None]


class _TorchStream(NamedTuple):
    """A stream by CUDA's stream protocol, which torch's own class has in newer versions only."""

    pointer: int

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.pointer


def _blocks(n: int, size: int) -> int:
    return -(-n // size)


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
        None where CuPy can't be used.
    """
    if no_cupy():
        return None
    import cupy  # pyright: ignore[reportMissingImports]

    return Kernels(cupy, device)


def no_device() -> str:
    """Why there is no CUDA device, and what to do about it.

    Returns:
        Empty if there is one.
    """
    if torch.cuda.is_available() and torch.cuda.device_count():
        return ""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA; install a CUDA build of it"
    return "torch finds no CUDA device; check nvidia-smi and CUDA_VISIBLE_DEVICES"


def no_cupy() -> str:
    """Why CuPy can't be used.

    Returns:
        Empty if it can.
    """
    try:
        import cupy  # pyright: ignore[reportMissingImports] # noqa: F401
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "cupy":
            return "CuPy is not installed"
        return f"CuPy cannot be imported: {error}"
    return ""


def cupy_version() -> str:
    """Version of CuPy, or why it can't be used.

    Returns:
        For people.
    """
    if reason := no_cupy():
        return reason
    import cupy  # pyright: ignore[reportMissingImports]

    return str(getattr(cupy, "__version__", "of unknown version"))


def compile_report(device: torch.device) -> dict[str, str]:
    """Try to compile every kernel source for a device.

    Args:
        device: Any device.

    Returns:
        For each file of csrc/, without its ending, ``"ok"`` or the reason why not; where nothing
        can be tried, one entry ``"all"`` that says why.
    """
    if device.type != "cuda":
        return {"all": f"not tried: {no_device() or 'no CUDA device is asked about'}"}
    kernels = import_kernels(device)
    if kernels is None:
        return {"all": f"not tried: {no_cupy()}"}
    found = {}
    for file in sorted(csrc().glob("*.cu")):
        try:
            kernels.compiled(file.stem)
        except KernelError as error:
            found[file.stem] = str(error).strip()
        else:
            found[file.stem] = "ok"
    return found
