"""One NVIDIA GPU: this package's kernels where CuPy is installed, torch otherwise."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from hessrmt.backend import cusolver, solvers
from hessrmt.backend.base import Backend, all_finite, finite_levels, require_finite
from hessrmt.backend.cuda_kernels import KernelError, Kernels, import_kernels, no_cupy, no_device
from hessrmt.backend.cusolver import Cusolver, CusolverError
from hessrmt.backend.twostage import two_stage_batch, two_stage_eigenvalues
from hessrmt.errors import ConvergenceError, DeviceError, NoMemoryError

if TYPE_CHECKING:
    from torch import Tensor

    from hessrmt.arrays import Levels, Matrix
    from hessrmt.backend.base import Stack

_Result = TypeVar("_Result")
_Solve = Callable[["Tensor", Sequence[int]], np.ndarray]

TWO_STAGE = "two-stage (band, bulge chase, Sturm bisection; csrc, cuda)"
STURM = "Sturm bisection; csrc, cuda"
TWO_STAGES = "batched two-stage (bands, bulge chase, Sturm bisection; csrc, cuda)"
_MIRRORED = 1024
_COPIED = 2**30
"""Bytes of small matrices in one stack; as numbers fewer than :data:`.solvers.LIBRARY_NUMBERS`."""

ONE_BLOCK = "one block per matrix (csrc, cuda)"
_TORCH, _CUPY = (f"{name}.linalg.eigvalsh (cuSOLVER, cuda)" for name in ("torch", "cupy"))
_FAULTS = (CusolverError, KernelError, ConvergenceError, RuntimeError, MemoryError)
"""Of a stack's solver, after which the next one is tried; the last two are torch's."""

_SMALL = "one block per matrix"


class CudaBackend(Backend):
    """One CUDA device.

    Without CuPy, or where a kernel fails, another route is taken and, in the second case, a warning
    given: torch, or the CPU twin for what torch does not have.

    Attributes:
        kernels: This package's kernels; None where CuPy is not installed.
    """

    speed = solvers.SPEED

    def __init__(self, device: torch.device, solver: str = "auto") -> None:
        """Take the device; nothing is compiled yet.

        Args:
            device: ``cuda:i``.
            solver: ``"auto"``, ``"two-stage"`` or ``"library"``: the route of :meth:`eigvalsh`.
        """
        self.device = device
        self.name = f"{device} ({torch.cuda.get_device_name(device)})"
        self.kernels = import_kernels(device)
        self._policy = solvers.policy(solver)
        self.solver = f"{self._policy}, nothing solved yet (cuda)"
        self._warned: set[str] = set()
        self._failed: set[str] = set()  # solvers whose kernels failed: not tried on every matrix

    def free_memory(self) -> int:
        """See :class:`.Backend`; torch's own cache counts as free."""
        free, _ = torch.cuda.mem_get_info(self.device)
        reserved = torch.cuda.memory_reserved(self.device)
        return free + reserved - torch.cuda.memory_allocated(self.device)

    def eigen_bytes(self, n: int, itemsize: int) -> int:
        """See :class:`.Backend`; by the route that the size takes."""
        route = self._route(n, "float64" if itemsize == 8 else "float32")
        return sum(solvers.plan("library" if self.kernels is None else route, n, itemsize))

    def less_memory(self, n: int, itemsize: int, room: int) -> str:
        """See :class:`.Backend`; two stages work in place."""
        route = self._route(n, "float64" if itemsize == 8 else "float32")
        taken = self.kernels is not None and route == "two-stage"
        return "" if taken else solvers.in_place(n, itemsize, room)

    def solver_table(self) -> dict[str, str]:
        """See :class:`.Backend`."""
        words = {"library": self._library_words(), "two-stage": TWO_STAGE}
        kernels, version = self.kernels is not None, self._version
        return solvers.table(self._policy, words, self._batches(), kernels=kernels, version=version)

    @cached_property
    def _version(self) -> tuple[int, ...] | None:
        """Of the cuSOLVER that CuPy calls for one matrix; None if it is not known."""
        return None if self.kernels is None else self.kernels.library_version()

    @cached_property
    def _batching(self) -> Any | None:
        """The cuSOLVER that solves batches; None if there is none."""
        return cusolver.with_batches(self.device)

    @cached_property
    def _handle(self) -> Cusolver:
        return Cusolver(self._batching, self.device)

    def _route(self, n: int, kind: str) -> str:
        """The solver of one matrix."""
        return solvers.route(self._policy, n, kind, self._version)

    def symmetrize_(self, matrix: Matrix) -> float:
        """See :class:`.Backend`; csrc/symmetrize.cu, or torch, also for a part of a matrix."""
        if not matrix.is_contiguous():
            return super().symmetrize_(matrix)
        return self._run("symmetrize", super().symmetrize_, matrix)

    @property
    def scans(self) -> bool:
        """See :class:`.Backend`; by csrc/powerlaw_scan.cu."""
        return self.kernels is not None

    def banded_route(self, width: int) -> tuple[str, str]:
        """See :class:`.Backend`; csrc/bulge_chase.cu and sturm.cu, wide bands by the CPU."""
        if not self._takes_bands(width):
            return super().banded_route(width)
        return self.name, STURM if width == 1 else f"bulge chase, {STURM}"

    def _takes_bands(self, width: int) -> bool:
        """Whether bands of this half-width are solved by kernels, which have not failed."""
        if self.kernels is None or "banded" in self._warned:
            return False
        return 0 < width <= self.kernels.widest_band()

    def _eigvalsh_banded(self, bands: np.ndarray) -> np.ndarray:
        twin, width, n = super()._eigvalsh_banded, bands.shape[1] - 1, bands.shape[2]
        if not self._takes_bands(width):
            return twin(bands)
        most = max(1, self.free_memory() // (2 * solvers.banded_bytes(n, width)))
        starts = range(0, len(bands), most)
        return np.concatenate([self._run("banded", twin, bands[i : i + most]) for i in starts])

    def _staircase(self, pool: np.ndarray, queries: np.ndarray) -> np.ndarray:
        try:
            levels = torch.from_numpy(pool).to(self.device).sort().values
            places = torch.from_numpy(queries).to(self.device)
            return torch.searchsorted(levels, places).cpu().numpy()
        except torch.OutOfMemoryError as error:
            self._warn_once("counting function", error)
            return super()._staircase(pool, queries)

    def _scan(
        self, values: np.ndarray, offsets: np.ndarray, two_sided: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        return self._run("powerlaw_scan", super()._scan, values, offsets, two_sided)

    def _goe(self, n: int, count: int, key: int, first: int) -> Tensor:
        return self._run("goe_fill", super()._goe, n, count, key, first)

    def _run(self, kernel: str, twin: Callable[..., _Result], *arguments: Any) -> _Result:
        """The kernel where there is one and it works, else what every device can do."""
        if self.kernels is not None:
            try:
                return getattr(self.kernels, kernel)(*arguments)
            except (KernelError, MemoryError, torch.OutOfMemoryError) as error:
                self._warn_once(kernel, error)
        return twin(*arguments)

    def _warn_once(self, what: str, reason: object) -> None:
        """Say once for each cause that a kernel or solver is not used."""
        if what not in self._warned:
            self._warned.add(what)
            warnings.warn(f"{self.name}: {what} not used: {reason}", RuntimeWarning, stacklevel=3)

    def _give_up(self, solver: str, error: Exception) -> None:
        """Go on with the next solver; for good if it is the kernels that failed."""
        self._warn_once(solver, error)
        if isinstance(error, KernelError):
            self._failed.add(solver)

    # One matrix

    def _eigvalsh(self, matrix: Matrix, what: str = "the matrix") -> Levels:
        """By the two-stage solver or by cuSOLVER.

        Args:
            matrix: (n, n); overwritten where it is contiguous.
            what: It is called.

        Returns:
            (n,) float64, ascending.

        Raises:
            DeviceError: If the workspace does not fit beside the matrix.
        """
        n = matrix.shape[0]
        if n == 0:
            return np.empty(0)
        matrix = matrix.detach().contiguous()
        route = self._route(n, _kind(matrix.dtype))
        if route == "two-stage" and (reason := self._obstacle(matrix.dtype)):
            self._warn_once("two-stage", reason)
            route = "library"
        if "two-stage" in self._failed:
            route = "library"
        solvers.require_memory(route, n, matrix.element_size(), self.free_memory(), self.name)
        _mirror_(matrix)
        require_finite(all_finite(matrix), what)
        levels = None
        if self.kernels is not None and route == "two-stage":
            levels = self._two_stage(matrix, self.kernels)
        return self._library(matrix) if levels is None else levels

    def _obstacle(self, dtype: torch.dtype) -> str:
        """Why the two-stage solver can't be taken; empty if it can. Its kernels are compiled."""
        if self.kernels is None:
            return no_cupy()
        if dtype == torch.float32 and _coarse_products():
            return (
                "torch is set to compute float32 products in TF32, which stage 1 would inherit; "
                'set torch.set_float32_matmul_precision("highest")'
            )
        try:
            self.kernels.compile_two_stage(dtype)
        except KernelError as error:
            return str(error)
        return ""

    def _two_stage(self, matrix: Matrix, kernels: Kernels) -> Levels | None:
        """By our kernels; None if they failed and the matrix is as it was."""
        n, itemsize = matrix.shape[0], matrix.element_size()
        size, needed = solvers.plan("two-stage", n, itemsize)
        # the library comes after the copy is given back
        most = max(size + needed, solvers.plan("library", n, itemsize).workspace)
        copy = matrix.clone() if most <= self.free_memory() else None
        b = kernels.half_width(itemsize)
        try:
            with self._memory("two-stage", matrix):
                stages = self._stages(kernels, n, b, matrix.dtype)
                levels = two_stage_eigenvalues(matrix, b, max(b, solvers.COLLECTED), **stages)
        except (KernelError, ConvergenceError, RuntimeError) as error:
            if copy is None:
                raise ConvergenceError(
                    f"the two-stage eigenvalue solver failed ({error}), and {self.name} has no "
                    "room for the copy of the matrix that the library would need to take over; "
                    f"compute the matrix again with {solvers.VARIABLE}=library"
                ) from error
            self._give_up("two-stage", error)
            matrix.copy_(copy)
            return None
        self.solver = TWO_STAGE
        return levels

    def _stages(
        self, kernels: Kernels, n: int, b: int, dtype: torch.dtype
    ) -> dict[str, Callable[..., Any]]:
        """What two_stage_eigenvalues takes; panels by torch where their kernel does not compile."""
        stages = {"chase": kernels.chase, "tridiagonal": kernels.tridiagonal}
        try:
            panels = kernels.panels(n, b, dtype)
        except KernelError as error:
            self._warn_once("panel_qr", error)
            return stages

        def chase(band: Tensor, b: int) -> tuple[Tensor, Tensor]:
            panels.check()
            return kernels.chase(band, b)

        return stages | {"panel": panels.factor, "chase": chase}

    def _library(self, matrix: Matrix) -> Levels:
        """By cuSOLVER."""
        try:
            with self._memory("library", matrix):
                if self.kernels is not None:
                    levels = self.kernels.library_eigvalsh(matrix)
                else:
                    levels = torch.linalg.eigvalsh(matrix).cpu().numpy()
        except (RuntimeError, np.linalg.LinAlgError) as error:
            hint = ""
            if self.kernels is None and matrix.numel() > solvers.LIBRARY_NUMBERS:
                most = math.isqrt(solvers.LIBRARY_NUMBERS)
                hint = f"; torch's solver may refuse n > {most:,} on a GPU: install CuPy"
            raise ConvergenceError(f"the eigenvalue solver failed: {error}{hint}") from error
        self.solver = self._library_words()
        return levels.astype(np.float64)

    def _library_words(self) -> str:
        return _TORCH if self.kernels is None else _CUPY

    @contextmanager
    def _memory(self, route: str, matrix: Matrix) -> Iterator[None]:
        """Say what was planned if the memory does not suffice after all."""
        n, free = matrix.shape[0], self.free_memory()
        size, workspace = solvers.plan(route, n, matrix.element_size())
        try:
            yield
        except (MemoryError, torch.cuda.OutOfMemoryError) as error:
            raise NoMemoryError(
                f"the {route} eigenvalue solver ran out of memory on {self.name}: a {n:,} x {n:,} "
                f"matrix was planned with {workspace:,} bytes beside its own {size:,}, and "
                f"{free:,} were free; take a smaller problem, or a device with more memory"
            ) from error

    # Several matrices: those of one size together

    def _eigvalsh_batch(self, matrices: Stack) -> list[Levels]:
        found: dict[int, Levels] = {}
        groups: dict[int, list[int]] = {}
        for i, matrix in enumerate(matrices):
            groups.setdefault(matrix.shape[0], []).append(i)
        for n, members in groups.items():
            for name, solve in self._stacked(n, len(members)):
                most = max(1, self._together(name, n))
                left = [i for i in members if i not in found]
                try:
                    for begin in range(0, len(left), most):
                        part = left[begin : begin + most]
                        # no name for the copy: it is gone before the next one is made
                        levels = solve(_stack([matrices[i] for i in part]), part)
                        found.update(zip(part, levels, strict=True))
                    break
                except _FAULTS as error:
                    self._give_up(name, error)
            left = [i for i in members if i not in found]
            found |= {i: self._eigvalsh(matrices[i], f"matrix {i} of the batch") for i in left}
        return [found[i] for i in range(len(matrices))]

    def _stacked(self, n: int, count: int) -> Iterator[tuple[str, _Solve]]:
        """Solvers of stacks, to be tried in turn; what none has solved goes one by one."""
        if 0 < n <= self._small_limit():
            yield _SMALL, self._small
        elif n and count > 1:
            known = {solvers.XSYEV: self._by_cusolver, solvers.BATCHED: self._two_stages}
            for name in solvers.batch_routes(self._policy, n):
                tried = name in self._batches() and name not in self._failed
                if tried and self._together(name, n) > 1:
                    yield name, known[name]

    def _batches(self) -> dict[str, str]:
        """Routes of a stack that are there, in words."""
        found = {}
        if self._batching is not None:
            version = solvers.dotted(cusolver.version(self._batching))
            found[solvers.XSYEV] = f"{cusolver.BATCHED} (cuSOLVER {version}, cuda)"
        if self.kernels is not None:
            found[solvers.BATCHED] = TWO_STAGES
        return found

    def _together(self, name: str, n: int) -> int:
        """How many matrices are copied into one stack."""
        free = self.free_memory()
        if name != _SMALL:
            return solvers.together(name, n, free)
        return min(_COPIED, free // 4) // (8 * n * n)

    def _small_limit(self) -> int:
        """Largest n that is small."""
        if self.kernels is None or self._policy == "library":
            return solvers.SMALL_LIMIT  # by torch, whose call costs more than so small a matrix
        return self.kernels.small_limit()

    def _by_cusolver(self, stack: Tensor, numbers: Sequence[int]) -> np.ndarray:
        """By cuSOLVER's solver for batches."""
        _mirror_(stack)
        _require_all_finite(stack, numbers)
        levels = self._handle.batch(stack, self.free_memory())
        self.solver = self._batches()[solvers.XSYEV]
        return finite_levels(levels.cpu().numpy())

    def _two_stages(self, stack: Tensor, numbers: Sequence[int]) -> np.ndarray:
        """By our kernels, all matrices at once."""
        kernels, reason = self.kernels, self._obstacle(torch.float64)
        if kernels is None or reason:
            raise KernelError(reason)
        _mirror_(stack)
        _require_all_finite(stack, numbers)
        b = min(kernels.half_width(8), solvers.BATCH_HALF_WIDTH)
        stages = {"chase": kernels.chase, "tridiagonal": kernels.tridiagonal}
        levels = two_stage_batch(stack, b, panels=kernels.batched_panels, **stages)
        self.solver = TWO_STAGES
        return levels

    def _small(self, stack: Tensor, numbers: Sequence[int]) -> np.ndarray:
        """Small matrices of one size, which have these numbers in the batch."""
        levels, info = np.empty(stack.shape[:2]), np.ones(len(stack), dtype=np.int32)
        if self.kernels is not None and self._policy != "library":
            try:
                levels, info = self.kernels.small(stack)
            except KernelError as error:
                self._warn_once("batched_small", error)
            else:
                if missed := np.count_nonzero(info > 0):
                    reason = f"an eigenvalue was not found in {missed} matrices"
                    self._warn_once("batched_small", reason)
        rest = np.flatnonzero(info).tolist()
        if rest:
            levels[rest] = _by_torch(stack[rest], [numbers[i] for i in rest])
        self.solver = _TORCH if len(rest) == len(stack) else ONE_BLOCK
        return levels


def cuda_backend(index: int = 0, solver: str | None = None) -> CudaBackend:
    """Backend for one CUDA device.

    Args:
        index: Number of the device.
        solver: ``"auto"``, ``"two-stage"`` or ``"library"``; by default the environment variable
            ``HESSRMT_SOLVER``, and ``"auto"`` without it.

    Returns:
        The backend.

    Raises:
        DeviceError: If torch sees no CUDA, or no device of that number.
    """
    if reason := no_device():
        raise DeviceError(f"device 'cuda:{index}': {reason}, or take the device cpu")
    count = torch.cuda.device_count()
    if index >= count:
        there = "cuda:0" if count == 1 else f"cuda:0 to cuda:{count - 1}"
        raise DeviceError(f"device 'cuda:{index}' is not there; this machine has {there}")
    return CudaBackend(torch.device("cuda", index), solvers.policy(solver))


def _stack(matrices: Sequence[Matrix]) -> Tensor:
    """A copy in float64, which the solvers of batches are written for."""
    return torch.stack([matrix.detach().double() for matrix in matrices])


def _by_torch(stack: Tensor, numbers: Sequence[int]) -> np.ndarray:
    lower = torch.tril(stack)
    _require_all_finite(lower, numbers)
    try:
        return torch.linalg.eigvalsh(lower).cpu().numpy()
    except RuntimeError as error:
        raise ConvergenceError(f"the eigenvalue solver failed: {error}") from error


def _require_all_finite(stack: Tensor, numbers: Sequence[int]) -> None:
    """Matrices with these numbers in the batch; no temporary of their size."""
    ends = torch.stack(torch.aminmax(stack.flatten(1), dim=1))
    finite = torch.isfinite(ends).all(dim=0).cpu().numpy()
    worst = numbers[int(np.argmin(finite))]
    require_finite(bool(finite.all()), f"matrix {worst} of the batch")


def _kind(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _coarse_products() -> bool:
    """Whether torch computes float32 products on GPUs with fewer bits (newer and older setting)."""
    matmul = torch.backends.cuda.matmul
    precision = getattr(matmul, "fp32_precision", None)
    if precision is None:
        return bool(matmul.allow_tf32)
    if precision == "none":  # as the setting for everything
        precision = getattr(torch.backends, "fp32_precision", "none")
    return precision not in {"none", "ieee"}


def _mirror_(matrix: Tensor) -> None:
    """Copy the lower triangle to the upper one, of one matrix or several, without a second one."""
    n, tile = matrix.shape[-1], _MIRRORED if matrix.ndim == 2 else solvers.BATCH_TILE
    for i in range(0, n, tile):
        rows = slice(i, min(i + tile, n))
        matrix[..., :i, rows] = matrix[..., rows, :i].mT
        square = torch.tril(matrix[..., rows, rows])
        matrix[..., rows, rows] = square + torch.tril(square, -1).mT
