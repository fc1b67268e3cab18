"""The steps of ``gpu_check.py``, one in each process; nothing here is called by hand.

A step yields entries, plain dictionaries, which are written as they come: comparisons have
``agrees``, timings ``race``, ``route`` and ``median`` seconds. Matrices are those of the tests.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import signal
import statistics
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module, metadata, resources
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import dense_symmetric  # noqa: E402
import gpu_libraries as libraries  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import tridiagonals  # noqa: E402

import hessrmt as hr  # noqa: E402
from hessrmt import rng  # noqa: E402
from hessrmt.backend import cuda_kernels, kernels, solvers  # noqa: E402
from hessrmt.backend.cpu import CpuBackend  # noqa: E402
from hessrmt.backend.cuda import CudaBackend  # noqa: E402
from hessrmt.backend.cuda_kernels import KernelError, Kernels  # noqa: E402
from hessrmt.backend.select import select  # noqa: E402
from hessrmt.backend.twostage import (  # noqa: E402
    geqrf_panel,
    two_stage_batch,
    two_stage_eigenvalues,
)
from hessrmt.curvature.spectrum import compute  # noqa: E402
from hessrmt.levels import unfolding  # noqa: E402
from hessrmt.levels.goodness import LAWS  # noqa: E402
from hessrmt.levels.surrogates import Surrogates, plan  # noqa: E402
from hessrmt.lossmodel.sampler import sample_spectra  # noqa: E402
from hessrmt.problems import data, models  # noqa: E402

Entry = dict[str, Any]
ROUTES = ("auto", "two-stage")
DTYPES = (torch.float64, torch.float32)
_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG
JACOBI_UP_TO = 300
"""Largest n of CuPy's batches: it takes Jacobi's method, minutes beyond."""
PEERS = ("torch", "cupy", solvers.XSYEV)
EPS = float(np.finfo(np.float64).eps)


class Sizes(NamedTuple):
    """How large; the second set is for main memory in place of a GPU.

    Attributes:
        few: n of kernels that are one launch.
        small: n of one block per matrix.
        panels: Rows of panels, every kind.
        tall: Rows of panels that are timed.
        chased: n of bulge chases.
        two_stage: n of whole problems.
        timed: Names of the steps of one matrix, and its n.
        tuned: n of the tuning.
        batches: Matrices of a batch, and their n.
        model: Whose spectra are computed.
        samples: Of a batch of such a spectrum.
        searched: A network whose range is searched for, on one sample.
        levels: Rows of sampled matrices, and how many there are.
        repeats: Of a timing, after one that warms up.
    """

    few: tuple[int, ...]
    small: tuple[int, ...]
    panels: tuple[int, ...]
    tall: tuple[int, ...]
    chased: tuple[int, ...]
    two_stage: tuple[int, ...]
    timed: dict[str, int]
    tuned: int
    batches: tuple[tuple[int, int], ...]
    model: str
    samples: int
    searched: str
    levels: tuple[int, int]
    repeats: int


TIMED = {"n = 20,060": 20_060, "n = 10,000": 10_000, "n = 5,000": 5_000, "n = 40,000": 40_000}
GPU = Sizes(
    few=(1, 2, 31, 33, 65, 1000),
    small=(1, 2, 31, 32, 33, 64, 100, 160),
    panels=(1, 2, 63, 64, 65, 129, 1000),
    tall=(5_000, 20_000, 40_000),
    chased=(1, 2, 65, 130, 500),
    two_stage=(1, 2, 65, 200, 1000),
    timed=TIMED,
    tuned=10_000,
    batches=((100, 32), (100, 64), (100, 160), (100, 300), (32, 2750)),
    model="mlp3",
    samples=64,
    searched="lenet5",
    levels=(300, 60),
    repeats=2,
)
STAND_IN = Sizes(
    few=(1, 2, 31, 33, 65),
    small=(1, 2, 5, 33),
    panels=(1, 3, 5, 30),
    tall=(20, 40, 60),
    chased=(1, 2, 33, 70),
    two_stage=(1, 2, 9, 30),
    timed=dict(zip(TIMED, (50, 40, 20, 60), strict=True)),
    tuned=40,
    batches=((4, 5), (4, 8), (4, 12), (4, 16), (2, 20)),
    model="logistic",
    samples=3,
    searched="conv3s2-1",
    levels=(12, 6),
    repeats=1,
)
SANITIZED = GPU._replace(
    few=(1, 33, 70),
    small=(1, 33, 70),
    panels=(33, 300),
    tall=(),
    chased=(1, 70),
    two_stage=(2, 70),
    repeats=1,
)


class Machine:
    """The device, its kernels and the sizes."""

    def __init__(self, folder: Path, *, stand_in: bool, sanitized: bool = False) -> None:
        self.folder, self.stand_in = folder, stand_in
        self.cpu = CpuBackend()
        if stand_in:
            import_module("stand_in").install(folder)
            self.device, self.sizes = torch.device("cpu"), STAND_IN
        else:
            self.device, self.sizes = torch.device("cuda", 0), SANITIZED if sanitized else GPU
            torch.cuda.set_device(self.device)

        self.routes = {policy: CudaBackend(self.device, policy) for policy in ROUTES}

    @property
    def kernels(self) -> Kernels:
        """The kernels themselves: unlike a backend they raise where they fail."""
        found = self.routes["auto"].kernels
        if found is None:
            raise RuntimeError("CuPy is not installed: there are no kernels to check")
        return found

    def there(self, a: Any, dtype: torch.dtype | None = None) -> torch.Tensor:
        """A copy on the device."""
        return torch.as_tensor(np.asarray(a)).to(device=self.device, dtype=dtype, copy=True)

    def wait(self) -> None:
        """Until the device has done all that it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def release(self) -> None:
        """Give back what torch and CuPy keep: each is blind to the other's cache."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            cupy = sys.modules.get("cupy")
            if cupy is not None:
                cupy.get_default_memory_pool().free_all_blocks()

    def random(self, n: int, count: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
        """Symmetric matrices on the device, (count, n, n), drawn there."""
        key = int(rng.seed_sequence(0, "gpu_check", n).generate_state(1, np.uint64)[0])
        draw = torch.Generator(self.device).manual_seed(key >> 1)
        stack = torch.randn(count, n, n, dtype=dtype, device=self.device, generator=draw)
        for matrix in stack:
            self.kernels.symmetrize(matrix)
        return stack

    def stacked_two_stage(self, stack: torch.Tensor, b: int | None = None) -> np.ndarray:
        """Eigenvalues of a stack by our kernels; it is overwritten."""
        ours = self.kernels
        b = b or min(ours.half_width(8), solvers.BATCH_HALF_WIDTH)
        stages = {"chase": ours.chase, "tridiagonal": ours.tridiagonal}
        return two_stage_batch(stack, b, panels=ours.batched_panels, **stages)

    def seconds(self, work: Callable[[], Any]) -> tuple[list[float], Any]:
        """Wall-clock times of a call, after one that warms up; what the last one returned."""
        self.release()
        times: list[float] = []
        found: Any = None
        for _ in range(1 + self.sizes.repeats):
            self.wait()
            start = time.perf_counter()
            found = work()
            self.wait()
            times.append(time.perf_counter() - start)
            if times[0] > 3:  # a long call needs no warming up, and nobody has the time
                return times, found
        return times[1:], found


class Stages:
    """Seconds between marks on the device's own clock."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._marks: list[tuple[str, Any]] = []

    def mark(self, name: str) -> None:
        """What ends here."""
        if self._machine.device.type == "cuda":
            event: Any = torch.cuda.Event(enable_timing=True)
            event.record()
        else:
            event = time.perf_counter()
        self._marks.append((name, event))

    def seconds(self) -> dict[str, float]:
        """From each mark but the first to the seconds since the one before."""
        self._machine.wait()
        found = {}
        for (_, before), (name, after) in zip(self._marks, self._marks[1:], strict=False):
            if isinstance(after, float):
                found[name] = after - before
            else:
                found[name] = before.elapsed_time(after) / 1000
        return found


# Comparisons


def compared(what: str, found: Any, expected: Any, allowed: float) -> Entry:
    """Two arrays; NaN at the same places agree, others never."""
    found, expected = (np.atleast_1d(np.asarray(x, np.float64)) for x in (found, expected))
    difference = float("nan")
    if found.shape == expected.shape:
        gap = np.abs(found - expected)
        gap[np.isnan(found) & np.isnan(expected)] = 0
        difference = float(gap.max(initial=0.0))
    agrees = bool(difference <= allowed)
    known = difference if np.isfinite(difference) else None  # JSON has no NaN
    return {"what": what, "difference": known, "allowed": allowed, "agrees": agrees}


def allowance(levels: np.ndarray, dtype: torch.dtype = torch.float64) -> float:
    """Backward stability of two solvers: 20 n ε ‖A‖₂, at least n times the smallest number."""
    of, n = torch.finfo(dtype), max(1, len(levels))
    return max(20 * n * of.eps * float(np.abs(levels).max(initial=0.0)), n * of.tiny)


def kind_of(dtype: torch.dtype) -> str:
    """``float64`` or ``float32``."""
    return str(dtype).removeprefix("torch.")


# Versions, and whether the kernels compile


def versions(machine: Machine) -> Iterator[Entry]:
    """What takes part; cuSOLVER is the peer of every claim of speed."""
    found: Entry = {"python": sys.version.split()[0], "torch's CUDA": torch.version.cuda}
    for name in ("torch", "cupy-cuda12x", "cupy-cuda13x", "numpy", "scipy", "h5py", "hessrmt"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    yield {"versions": found}
    if machine.stand_in:
        return
    of = torch.cuda.get_device_properties(machine.device)
    yield {
        "device": of.name,
        "compute capability": f"{of.major}.{of.minor}",
        "multiprocessors": of.multi_processor_count,
        "memory": of.total_memory,
        "free": machine.routes["auto"].free_memory(),
    }
    cupy = import_module("cupy")
    yield {
        "driver's CUDA": cupy.cuda.runtime.driverGetVersion(),
        "CuPy's CUDA": cupy.cuda.runtime.runtimeGetVersion(),
        "NVRTC": list(cupy.cuda.nvrtc.getVersion()),
    }
    eye = torch.eye(40, dtype=torch.float64, device=machine.device)
    cupy.linalg.eigvalsh(cupy.from_dlpack(eye))
    yield {"cuSOLVER": libraries.cusolver_versions(machine.device)}


def compile_all(machine: Machine) -> Iterator[Entry]:
    """Every source at the same time; registers and local memory of every kernel."""
    names = sorted(file.stem for file in kernels.csrc().glob("*.cu"))
    ours = machine.kernels

    def one(name: str) -> Entry:
        start = time.perf_counter()
        try:
            found: Entry = {"kernels": ours.compiled(name), "agrees": True}
        except KernelError as error:
            found = {"error": str(error), "agrees": False}
        return {"what": f"compile {name}", "seconds": time.perf_counter() - start, **found}

    with ThreadPoolExecutor(len(names)) as pool:
        yield from pool.map(one, names)


# The ladder, from the simplest kernel to the whole solver


def symmetrize(machine: Machine) -> Iterator[Entry]:
    """The same bits as the CPU's."""
    for dtype in DTYPES:
        for n in machine.sizes.few:
            draw = rng.torch_generator(0, "gpu_check", n)
            here = torch.randn(n, n, dtype=dtype, generator=draw)
            there = machine.there(here)
            worst = [machine.kernels.symmetrize(there), machine.cpu.symmetrize_(here)]
            found, expected = (
                np.append(a.cpu().double().numpy(), w)
                for a, w in zip((there, here), worst, strict=True)
            )
            yield compared(f"symmetrize, n = {n}, {kind_of(dtype)}", found, expected, 0.0)
    broken = torch.eye(33, dtype=torch.float64)
    broken[32, 1] = torch.nan
    seen = machine.kernels.symmetrize(machine.there(broken))
    yield compared("symmetrize sees NaN", seen, np.nan, 0.0)


def goe(machine: Machine) -> Iterator[Entry]:
    """The same draws as the CPU's, up to a few ulp of logarithm and cosine; |x| < 9 √2."""
    key, first = 2**63 + 12345, 2**32 - 1
    for n in machine.sizes.few:
        found = machine.kernels.goe_fill(n, 3, key, first).cpu().numpy()
        expected = machine.cpu.sample_goe(n, 3, key, first).numpy()
        yield compared(f"goe, n = {n}", found, expected, 32 * EPS * 13)


def scan(machine: Machine) -> Iterator[Entry]:
    """Power laws at every x_min; layers of no, one, equal and many values."""
    draw = rng.stream(0, "gpu_check", "scan")
    layers = [np.sort(1 + draw.pareto(2, size=n)) for n in (1, 2, 33, 0, 1000)] + [np.ones(5)]
    offsets = np.cumsum([0, *map(len, layers)], dtype=np.int64)
    values = np.concatenate(layers)
    for two_sided, names in ((False, ("alpha", "distance")), (True, ("alpha", "two-sided"))):
        found = machine.kernels.powerlaw_scan(values, offsets, two_sided)
        expected = machine.cpu.powerlaw_scan(layers, two_sided=two_sided)
        for number, name in enumerate(names):
            wanted = np.concatenate([fit[number] for fit in expected])
            # sums of at most 1,000 positive terms; relative to alpha, distances are at most 1
            scale = max(1.0, float(np.nanmax(np.abs(wanted))))
            yield compared(f"scan, {name}", found[number], wanted, 2 * 1000 * EPS * scale)


def small(machine: Machine) -> Iterator[Entry]:
    """One block per matrix, matrices of every kind."""
    for n in machine.sizes.small:
        if n > machine.kernels.small_limit():
            continue
        kinds = dense_symmetric.families(n, 8)
        stack = machine.there(np.stack(list(kinds.values())))
        found, info = machine.kernels.small(stack)
        for kind, levels, failed, a in zip(kinds, found, info, stack, strict=True):
            expected = machine.cpu.eigvalsh(a.cpu())
            entry = compared(f"small, {kind}, n = {n}", levels, expected, allowance(expected))
            yield entry | {"agrees": entry["agrees"] and not failed, "info": int(failed)}


def sturm(machine: Machine) -> Iterator[Entry]:
    """Tridiagonal matrices of every kind, one large."""
    from scipy.linalg import eigvalsh_tridiagonal

    for n in machine.sizes.few:
        for kind, (d, e) in tridiagonals.families(n).items():
            if "overflow" in kind:
                continue  # LAPACK overflows where the kernel doesn't; the tests have closed forms
            found = machine.kernels.tridiagonal(machine.there(d), machine.there(np.append(e, 0)))
            expected = np.asarray(eigvalsh_tridiagonal(d, e) if n > 1 else d)
            allowed = allowance(expected)
            yield compared(f"sturm, {kind}, n = {n}", found, expected, allowed)


def banded(machine: Machine) -> Iterator[Entry]:
    """Several bands of one half-width at once: packed, chased, bisected."""
    for n in machine.sizes.few:
        for width in (w for w in (1, 2, 20) if w < n):
            bands = rng.stream(0, "gpu_check", "banded", n).normal(size=(3, width + 1, n))
            expected = machine.cpu.eigvalsh_banded(bands.copy())
            allowed = max(map(allowance, expected))
            found = machine.kernels.banded(bands)
            yield compared(f"banded, r = {width}, n = {n}", found, expected, allowed)


def panel(machine: Machine) -> Iterator[Entry]:
    """QR of panels of every kind by all blocks together; seconds of tall ones, and of geqrf's."""
    b = machine.kernels.half_width(8)
    for dtype in DTYPES:
        for m in machine.sizes.panels:
            for kind, a in dense_symmetric.panels(m, b, np.dtype(kind_of(dtype)).type).items():
                factor, check = machine.kernels.panels(m, b, dtype)
                found = factor(machine.there(a))
                check()
                yield from panel_entries(f"{kind}, m = {m}, {kind_of(dtype)}", a, found)
    for m in machine.sizes.tall:
        draw = rng.stream(0, "gpu_check", "panel", m)
        wide = machine.there(draw.normal(size=(m, 2 * b)))
        there = wide[:, b:]  # rows are farther apart than they are long, as those of a matrix
        seconds = {}
        for route, work in (("geqrf", torch.geqrf), ("geqrf, V and W", geqrf_panel)):
            times, found = machine.seconds(lambda work=work, there=there: work(there))
            seconds[route] = statistics.median(times)
        expected, usual = found[2].cpu().numpy(), solvers.PANEL_ROWS
        for rows in (usual // 2, 2 * usual, usual):
            try:
                solvers.PANEL_ROWS = rows
                factor, check = machine.kernels.panels(m, b, there.dtype)
                times, found = machine.seconds(lambda factor=factor, there=there: factor(there))
            finally:
                solvers.PANEL_ROWS = usual
            check()
            seconds[f"panel_qr, {rows} rows a block"] = statistics.median(times)
        yield from panel_entries(f"m = {m:,}", there.cpu().numpy(), found)
        # random columns are nearly orthogonal: R is as well determined as Q R
        allowed = dense_symmetric.PANEL_BOUND * b * EPS * float(torch.linalg.norm(there))
        yield compared(f"panel, m = {m:,}, R of geqrf", found[2].cpu(), expected, allowed)
        yield {"what": f"seconds of a panel, m = {m:,}", "b": b, "seconds": seconds}


def panel_entries(what: str, a: np.ndarray, factors: Any) -> Iterator[Entry]:
    """Backward error and orthogonality of a panel's factors."""
    residual, apart = dense_symmetric.panel_errors(a, *(x.cpu().numpy() for x in factors))
    yield compared(f"panel, {what}, A - QR", residual, 0.0, dense_symmetric.PANEL_BOUND)
    yield compared(f"panel, {what}, QᵀQ - 1", apart, 0.0, dense_symmetric.PANEL_BOUND)


def bulge_chase(machine: Machine) -> Iterator[Entry]:
    """Bands of half-width 16, 32 and 64, zero ones and such as are tridiagonal already."""
    from scipy.linalg import eigvals_banded, eigvalsh_tridiagonal

    for dtype in DTYPES:
        for b in (16, 32, 64):
            for n in machine.sizes.chased:
                draw = rng.stream(0, "gpu_check", "band", n)
                full = np.zeros((n, 2 * b + 1))
                for k in range(min(b + 1, n)):
                    full[: n - k, k] = draw.normal(size=n - k)
                for kind, upto in (("full", b), ("tridiagonal", 1), ("diagonal", 0), ("zero", -1)):
                    band = np.where(np.arange(2 * b + 1) <= upto, full, 0)
                    there = machine.there(band, dtype)
                    lower = there.cpu().double().numpy()[:, : min(b + 1, n)].T
                    d, e = machine.kernels.chase(there, b)
                    d, e = d.cpu().double().numpy(), e.cpu().double().numpy()[:-1]
                    found = eigvalsh_tridiagonal(d, e) if n > 1 else d
                    expected = np.asarray(eigvals_banded(lower, lower=True))
                    what = f"chase, {kind}, b = {b}, n = {n}, {kind_of(dtype)}"
                    yield compared(what, found, expected, allowance(expected, dtype))


def two_stage(machine: Machine) -> Iterator[Entry]:
    """Dense matrices of every kind through all three stages."""
    backend = machine.routes["two-stage"]
    for dtype in DTYPES:
        for n in machine.sizes.two_stage:
            for kind, a in dense_symmetric.families(n, 8).items():
                there = machine.there(a, dtype)
                expected = machine.cpu.eigvalsh(there.cpu().double())
                found = backend.eigvalsh(there)
                what = f"two-stage, {kind}, n = {n}, {kind_of(dtype)}"
                yield compared(what, found, expected, allowance(expected, dtype))
                if not backend.solver.startswith("two-stage"):
                    yield {"what": f"{what}: {backend.solver}", "agrees": False}


def stacks(machine: Machine) -> Iterator[Entry]:
    """Dense matrices of every kind in stacks, by our kernels and by `XsyevBatched`."""
    peer = libraries.stacked(machine.device, machine.routes["auto"].free_memory)[solvers.XSYEV]
    routes = {solvers.BATCHED: machine.stacked_two_stage, solvers.XSYEV: peer}
    for n in machine.sizes.two_stage:
        kinds = dense_symmetric.families(n, 8)
        stack = machine.there(np.stack(list(kinds.values())))
        expected = machine.cpu.eigvalsh_batch(stack.cpu())
        for route, solve in routes.items():
            try:
                found = solve(stack.clone())
            except Exception as error:
                if route == solvers.XSYEV:  # CUDA before 12.6
                    yield no_peer(f"stacks, n = {n}", route, error)
                    continue
                raise
            rows = found.cpu().numpy() if isinstance(found, torch.Tensor) else found
            for kind, levels, wanted in zip(kinds, rows, expected, strict=True):
                yield compared(f"{route}, {kind}, n = {n}", levels, wanted, allowance(wanted))


# Timings


def staged(machine: Machine, a: torch.Tensor, b: int, outer: int) -> tuple[np.ndarray, Entry]:
    """The two-stage solver with a mark after each stage.

    Args:
        machine: Where.
        a: (n, n), overwritten.
        b: Half-width of the band.
        outer: Columns collected before an update.

    Returns:
        Eigenvalues, and the seconds of each stage.
    """
    stages, ours = Stages(machine), machine.kernels
    panels = ours.panels(len(a), b, a.dtype)

    def chased(band: torch.Tensor, b: int) -> tuple[torch.Tensor, torch.Tensor]:
        stages.mark("dense to band")
        panels.check()
        found = ours.chase(band, b)
        stages.mark("band to tridiagonal")
        return found

    def bisected(d: torch.Tensor, e: torch.Tensor) -> np.ndarray:
        found = ours.tridiagonal(d, e)
        stages.mark("tridiagonal to eigenvalues")
        return found

    stages.mark("start")
    rest = {"chase": chased, "tridiagonal": bisected}
    found = two_stage_eigenvalues(a, b, outer, panel=panels.factor, **rest)
    return found, stages.seconds()


def timing(race: str, route: str, times: list[float], **about: Any) -> Entry:
    """An entry of a race."""
    return {
        "race": race,
        "route": route,
        "seconds": times,
        "median": statistics.median(times),
        **about,
    }


def no_peer(race: str, route: str, error: Exception) -> Entry:
    """A peer that could not be timed: no fault of ours."""
    return {"race": race, "route": route, "not timed": f"{type(error).__name__}: {error}"[:500]}


def single(machine: Machine, n: int) -> Iterator[Entry]:
    """One matrix: ours stage by stage, then torch, CuPy, and cuSOLVER's tridiagonalisation."""
    race = f"n = {n:,}"
    a = machine.random(n, 1)[0]
    b = machine.kernels.half_width(8)
    for number in range(2):  # the first warms up
        _, stages = staged(machine, a.clone(), b, max(b, solvers.COLLECTED))
        yield {"what": f"stages, run {number}", "n": n, "b": b, "stages": stages}
    backend = machine.routes["two-stage"]
    times, levels = machine.seconds(lambda: backend.eigvalsh(a.clone()))
    yield timing(race, "two-stage", times, n=n, solver=backend.solver)
    each = allowance(levels)
    norm = float(np.abs(levels).max())
    yield compared(f"{race}, trace", levels.sum(), float(a.trace()), n * each)
    squares = float((a**2).sum())
    yield compared(f"{race}, sum of squares", (levels**2).sum(), squares, 2 * norm * n * each)
    if n == max(machine.sizes.timed.values()):
        return  # minutes that a peer would need are not there
    for route, solve in libraries.single(machine.stand_in).items():
        try:
            solve(a[:64, :64].clone())  # so that a single long call is not its first
            times, found = machine.seconds(lambda solve=solve: solve(a.clone()))
        except Exception as error:
            yield no_peer(race, route, error)
            continue
        yield timing(race, route, times, n=n)
        if found is not None:
            expected = found.cpu().numpy()
            yield compared(f"{race}, against {route}", levels, expected, allowance(expected))


def tuning(machine: Machine) -> Iterator[Entry]:
    """Half-width, columns collected and threads, one at a time around the defaults."""
    n = machine.sizes.tuned
    a = machine.random(n, 1)[0]
    b = machine.kernels.half_width(8)
    chosen = {
        "b": b,
        "outer": max(b, solvers.COLLECTED),
        "threads": cuda_kernels.THREADS["bulge_chase"],
    }
    tried = [chosen]
    tried += [chosen | {"b": k, "outer": max(k, chosen["outer"])} for k in (b // 2, b // 4) if k]
    tried += [chosen | {"outer": k * b} for k in (1, 2, 4, 8, 16) if k * b != chosen["outer"]]
    tried += [chosen | {"threads": k} for k in (64, 128, 256) if k != chosen["threads"]]
    for one in tried:
        threads = dict(cuda_kernels.THREADS)
        if not machine.stand_in:
            cuda_kernels.THREADS["bulge_chase"] = one["threads"]
        try:
            runs = [staged(machine, a.clone(), one["b"], one["outer"])[1] for _ in range(2)]
        finally:
            cuda_kernels.THREADS.update(threads)
        yield {"what": "tuning", "n": n, **one, "stages": runs[-1], "total": sum(runs[-1].values())}


def batches(machine: Machine) -> Iterator[Entry]:
    """Stacks of matrices of one size by every route, ours and others'; half-widths of our bands."""
    backend = machine.routes["auto"]
    for count, n in machine.sizes.batches:
        race = f"{count} x n = {n:,}"
        stack = machine.random(n, count)
        routes: dict[str, Callable[[torch.Tensor], Any]] = {
            **libraries.stacked(machine.device, backend.free_memory),
            solvers.BATCHED: machine.stacked_two_stage,
            "one by one": lambda s: np.stack([backend.eigvalsh(a) for a in s]),
            "auto": lambda s: np.stack(backend.eigvalsh_batch(s)),
        }
        if n <= machine.kernels.small_limit():
            routes["one block"] = lambda s: machine.kernels.small(s)[0]
        elif n > JACOBI_UP_TO:
            del routes["cupy"]
        found: dict[str, np.ndarray] = {}
        for route, solve in routes.items():
            try:
                times, levels = machine.seconds(lambda solve=solve, s=stack: solve(s.clone()))
            except Exception as error:
                if route in PEERS:
                    yield no_peer(race, route, error)
                    continue
                raise
            about = {"solver": backend.solver} if route == "auto" else {}
            yield timing(race, route, times, n=n, count=count, **about)
            found[route] = np.asarray(levels.cpu() if isinstance(levels, torch.Tensor) else levels)
        for route, levels in found.items():
            allowed = max(allowance(row) for row in found["torch"])
            yield compared(f"{race}, {route} against torch", levels, found["torch"], allowed)
        for b in solvers.HALF_WIDTHS:
            times, _ = machine.seconds(lambda b=b, s=stack: machine.stacked_two_stage(s.clone(), b))
            yield {"what": "tuning of stacks", "n": n, "count": count, "b": b, "seconds": times}


# Whole spectra, and what runs in programs of its own


def problem(model: str, samples: int, number: int) -> hr.Problem:
    """A batch of the embedded digits, the model at its initialisation of seed 0."""
    # by its path: finding a data set by name needs the package pooch
    digits = data.load(str(resources.files("hessrmt") / "problems" / "assets" / "mnist10k.npz"))
    network = models.build(model, input_shape=digits.input_shape, outputs=digits.outputs, seed=0)
    pair = digits.tensors(slice(samples * number, samples * (number + 1)), torch.float64)
    return hr.Problem(network.eval(), "cross-entropy", pair)


def spectrum(machine: Machine) -> Iterator[Entry]:
    """Three batches by each route, the first against the CPU; a search; what the time goes into."""
    from torch.profiler import ProfilerActivity, profile

    model = machine.sizes.model
    given = [problem(model, machine.sizes.samples, number) for number in range(3)]
    here = compute(given[0], machine.cpu, "float64", "hessian")
    for policy, backend in machine.routes.items():
        for number, one in enumerate(given):
            start = time.perf_counter()
            found = compute(one, backend, "float64", "hessian")
            machine.wait()
            yield {
                "what": f"spectrum of {model}, batch {number}, {policy}",
                "seconds": time.perf_counter() - start,
                "phases": dict(found.seconds),
                "solver": found.solver,
                "rows": found.reduced_dimension,
                "rank": found.rank,
            }
            if number == 0:
                what = f"spectrum of {model}, {policy}, against the CPU"
                yield compared(what, found.eigenvalues, here.eigenvalues, 20 * here.noise_floor)
    few, how = problem(machine.sizes.searched, 1, 0), ("float64", "hessian", "range")
    here, start = compute(few, machine.cpu, *how), time.perf_counter()
    found = compute(few, machine.routes["auto"], *how)
    machine.wait()
    what = f"range of {machine.sizes.searched}"
    facts = {"phases": dict(found.seconds), "rows": found.reduced_dimension, "rank": found.rank}
    yield {"what": what, "seconds": time.perf_counter() - start, **facts}
    allowed = here.noise_floor + found.noise_floor
    yield compared(f"{what}, against the CPU", found.eigenvalues, here.eigenvalues, allowed)
    on_gpu = [] if machine.stand_in else [ProfilerActivity.CUDA]
    with profile(activities=[ProfilerActivity.CPU, *on_gpu]) as profiled:
        compute(given[2], machine.routes["auto"], "float64", "hessian")
        machine.wait()
    rows = profiled.key_averages()

    def cost(row: Any) -> float:
        return row.self_cpu_time_total if machine.stand_in else row.self_device_time_total

    yield {
        "what": f"profile of {model}, auto",
        "top": [
            {
                "name": row.key[:100],
                "calls": row.count,
                "device ms": getattr(row, "self_device_time_total", 0) / 1000,
                "cpu ms": row.self_cpu_time_total / 1000,
            }
            for row in sorted(rows, key=cost, reverse=True)[:15]
        ],
    }


def commands(machine: Machine) -> Iterator[Entry]:
    """What hessrmt simulate, levels and capacity compute, on the CPU and on the device."""
    n, count = machine.sizes.levels
    for method, outliers in (("tridiagonal", ()), ("tridiagonal", (40.0, -30.0)), ("dense", ())):
        model = hr.lossmodel.rbf(), n, count, outliers, 1.0, 0, method
        pair, seconds = twice(lambda where, model=model: sample_spectra(*model, device=where))
        here, there = (np.array([one.eigenvalues for one in spectra]) for spectra in pair)
        what = f"simulate, {method}, {len(outliers)} outliers, {count} x n = {n}"
        yield compared(what, there, here, max(map(allowance, here))) | seconds
    rows = [hr.ensembles.goe(n, 0, index).eigenvalues for index in range(count)]
    pair, seconds = twice(lambda where: unfolding.pooled(rows, backend=select(where)))
    here, there = (np.concatenate(found.levels) for found in pair)
    yield compared(f"pooled unfolding, {count} x n = {n}", there, here, 0.0) | seconds
    scheme = plan(hr.levels.select(rows), "pooled", 20, 0)
    for law in LAWS:
        pair, seconds = twice(
            lambda where, law=law: Surrogates(law, scheme, select(where)).spacings()
        )
        here, there = (null.deviations for null in pair)
        # shares of counts: a level that round-off moves across a point changes one by 1/size
        allowed = 4 / pair[0].size
        yield compared(f"surrogates of {law}, {count} x n = {n}", there, here, allowed) | seconds
    draw = rng.stream(0, "gpu_check", "weights")
    weights = {"w": draw.pareto(2, size=(n, 2 * n)), "k": draw.normal(size=(n // 2, 8, 3, 3))}
    pair, seconds = twice(lambda where: hr.capacity.analyze(weights, p_values=20, device=where))
    for name in ("alpha", "ks_distance", "p_value", "lambda_max"):
        here, there = ([getattr(one, name) for one in found.layers] for found in pair)
        allowed = 1e-9 * float(np.nanmax(np.abs(here), initial=1.0))
        yield compared(f"capacity, {name}", there, here, allowed) | seconds


def twice(work: Callable[[str], Any]) -> tuple[list[Any], Entry]:
    """What a call gives on the CPU and on the device, and the seconds of both."""
    found, seconds = [], []
    for where in ("cpu", "cuda"):
        start = time.perf_counter()
        found.append(work(where))
        seconds.append(time.perf_counter() - start)
    return found, {"seconds on the CPU": seconds[0], "seconds": seconds[1]}


def everything_small(machine: Machine) -> Iterator[Entry]:
    """All kernels on matrices of at most 70 rows, for compute-sanitizer."""
    for step in (
        symmetrize,
        goe,
        scan,
        small,
        sturm,
        panel,
        banded,
        bulge_chase,
        two_stage,
        stacks,
    ):
        yield from step(machine)


def sanitized(tool: str) -> Callable[[Machine], Iterator[Entry]]:
    """The step that runs everything small under one of compute-sanitizer's tools."""

    def step(machine: Machine) -> Iterator[Entry]:
        record = machine.folder / f"under-{tool}.json"
        this = [sys.executable, __file__, "sanitized", "--record", str(record), "--now"]
        quiet = ["--report-api-errors", "no"]  # CuPy asks for attributes that a driver may not have
        command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", *quiet, *this]
        # each tensor an allocation of its own, or a step over its end stays inside torch's pool
        alone = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        yield ran(tool, [*command, "--folder", str(machine.folder)], alone)
        yield from json.loads(record.read_text(encoding="utf-8"))["entries"]

    return step


def parity_tests(machine: Machine) -> Iterator[Entry]:
    """tests/test_backend.py."""
    options = ["-q", "-o", "addopts=", "-m", "gpu", "-p", "no:cacheprovider", "-p", "no:xdist"]
    entry = ran("pytest", [sys.executable, "-m", "pytest", *options, "tests/test_backend.py"], {})
    some = machine.stand_in or any(" passed" in line for line in entry["said"])
    yield entry | {"agrees": entry["agrees"] and some}  # all skipped is no success on a GPU


def ran(what: str, command: list[str], environment: dict[str, str]) -> Entry:
    """A program: it agrees if it exits with 0."""
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    said = f"{done.stdout}\n{done.stderr}".strip().splitlines()
    return {
        "what": what,
        "exit code": done.returncode,
        "said": said[-40:],
        "agrees": done.returncode == 0,
    }


STEPS: dict[str, Callable[[Machine], Iterator[Entry]]] = {
    "versions": versions,
    "compile": compile_all,
    "symmetrize": symmetrize,
    "goe": goe,
    "power-law scan": scan,
    "small batches": small,
    "sturm": sturm,
    "panel": panel,
    "bulge chase": bulge_chase,
    "banded": banded,
    "two-stage": two_stage,
    "stacks": stacks,
    **{
        name: lambda machine, name=name: single(machine, machine.sizes.timed[name])
        for name in TIMED
    },
    "tuning": tuning,
    "batches": batches,
    "spectrum": spectrum,
    "simulate, levels, capacity": commands,
    "memcheck": sanitized("memcheck"),
    "racecheck": sanitized("racecheck"),
    "parity tests": parity_tests,
    "sanitized": everything_small,
}


def run(name: str, machine: Callable[[], Machine], write: Callable[..., None]) -> None:
    """Run a step; what it yields is written as it comes.

    Args:
        name: Of the step.
        machine: Makes what it is given.
        write: Takes the status, the entries and, by name, an error.
    """
    entries: list[Entry] = []
    try:
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always", RuntimeWarning)
            for entry in STEPS[name](machine()):
                entries.append(entry)
                write("running", entries)
        fallbacks = {str(w.message) for w in heard if " not used: " in str(w.message)}
        entries += [{"what": words, "agrees": False} for words in sorted(fallbacks)]
    except Exception:
        write("failed", entries, error=traceback.format_exc(limit=6))
    else:
        good = all(entry.get("agrees", True) for entry in entries)
        write("passed" if good else "failed", entries)


def main() -> None:
    """One step, when the word comes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--stand-in", action="store_true")
    parser.add_argument("--plant", choices=["hang", "crash"])
    parser.add_argument("--now", action="store_true", help="don't wait for the word")
    options = parser.parse_args()
    with contextlib.suppress(AttributeError):  # end with the parent, where the system is Linux
        ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL)
    if not options.now and not sys.stdin.readline():
        return  # nobody is there any more

    def write(status: str, entries: list[Entry], **more: Any) -> None:
        draft = options.record.with_suffix(".draft")
        draft.write_text(json.dumps({"status": status, "entries": entries, **more}))
        draft.replace(options.record)

    def machine() -> Machine:
        return Machine(
            options.folder, stand_in=options.stand_in, sanitized=options.step == "sanitized"
        )

    if options.plant == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if options.plant == "hang":
        time.sleep(1e6)
    run(options.step, machine, write)
    if options.now:  # under compute-sanitizer, whose exit code says whether it found anything
        sys.exit(0)


if __name__ == "__main__":
    main()
