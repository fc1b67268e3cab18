"""The GPU backend's own logic without a GPU: its kernels run on the CPU through fake_cupy.

Routes, fallbacks and memory; results are compared in test_backend.py. What this cannot show: that
CuPy and the driver take the launches, and speed; for that there is scripts/gpu_check.py.
"""

import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from cuda_samples import DTYPES, LIBRARY, close, fails, lower_only, symmetric
from fake_cupy import Device
from stand_in import GB

from hessrmt.backend import cuda_kernels, kernels, select, solvers
from hessrmt.backend.cpu import CpuBackend
from hessrmt.backend.cuda import (
    _COPIED,
    ONE_BLOCK,
    TWO_STAGE,
    TWO_STAGES,
    CudaBackend,
    cuda_backend,
)
from hessrmt.cli import info
from hessrmt.errors import ConfigError, ConvergenceError, DeviceError, NonFiniteError

pytest_plugins = ["fake_gpu"]

BLOCKS, ROWS = dict(cuda_kernels.THREADS), solvers.PANEL_ROWS


# Which route


def unknown(cupy):
    del cupy.cuda.cusolver


@pytest.mark.parametrize(
    ("version", "sizes"),
    [
        ((12, 0, 4), {"float64": 10, "float32": 20}),  # CUDA 13.0: one stage
        ((12, 4, 0), {"float64": 10, "float32": 20}),
        ((12, 4, 1), {}),  # CUDA 13.5: two stages of its own
        ((13, 0, 0), {}),
        (None, {}),
    ],
)
def test_auto_decides_by_the_version_of_cusolver_and_the_size(
    make, monkeypatch, cupy, version, sizes
):
    monkeypatch.setattr(solvers, "TWO_STAGE_FROM", {"float64": 10, "float32": 20})
    cupy.version = version
    if version is None:
        unknown(cupy)
    backend = make()
    table = backend.solver_table()
    for dtype in DTYPES:
        kind = str(dtype).removeprefix("torch.")
        for n in (9, 10, 19, 20):
            ours = n >= sizes.get(kind, np.inf)
            assert close(backend.eigvalsh(symmetric(n, dtype)), symmetric(n, dtype))
            assert backend.solver == (TWO_STAGE if ours else LIBRARY)
            memory = solvers.plan("two-stage" if ours else "library", n, dtype.itemsize)
            assert backend.eigen_bytes(n, dtype.itemsize) == sum(memory)
        known = "of unknown version" if version is None else ".".join(map(str, version))
        if kind in sizes:
            rows = table[f"{kind}, n < {sizes[kind]}"], table[f"{kind}, n >= {sizes[kind]}"]
            assert rows[0].startswith(LIBRARY)
            assert rows[1].startswith(TWO_STAGE)
            assert f"cuSOLVER {known} has one stage" in rows[1]
            assert all("modelled, not measured" in row for row in rows)
        else:
            row = table[f"{kind}, any n"]
            assert row.startswith(LIBRARY)
            assert f"cuSOLVER {known}" in row
            assert "not measured" in row


def test_provisional_thresholds(make):
    """What is claimed of them: that they come from a model."""
    assert solvers.TWO_STAGE_FROM == {"float64": 8_000, "float32": 14_000}
    assert solvers.BATCHED_FROM is None
    assert solvers.BASIS == "modelled, not measured"
    assert make().eigen_bytes(7_999, 8) == sum(solvers.plan("library", 7_999, 8))
    assert make().eigen_bytes(8_000, 8) == sum(solvers.plan("two-stage", 8_000, 8))


def test_policy_from_the_environment(monkeypatch, cupy):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.delenv("HESSRMT_SOLVER", raising=False)
    assert cuda_backend().solver.startswith("auto")
    monkeypatch.setenv("HESSRMT_SOLVER", "two-stage")
    assert "forced by HESSRMT_SOLVER" in cuda_backend().solver_table()["float64, any n"]
    found = cuda_backend(0, "library").solver_table()["float64, any n"]
    assert found == f"{LIBRARY}, forced by HESSRMT_SOLVER"
    monkeypatch.setenv("HESSRMT_SOLVER", "fast")
    with pytest.raises(ConfigError, match=r"'fast'.*auto, two-stage, library"):
        cuda_backend()


def test_torch_s_limit_is_explained(torch_only, monkeypatch):
    def fail(matrix):
        raise RuntimeError("CUSOLVER_STATUS_INVALID_VALUE")

    monkeypatch.setattr(torch.linalg, "eigvalsh", fail)
    with pytest.raises(ConvergenceError, match=r"INVALID_VALUE$"):
        torch_only.eigvalsh(symmetric(5))
    monkeypatch.setattr(solvers, "LIBRARY_NUMBERS", 24)
    with pytest.raises(ConvergenceError, match=r"n > 4 .* install CuPy"):
        torch_only.eigvalsh(symmetric(5))


def test_without_cupy_torch_does_it(torch_only):
    matrix = symmetric(23)
    assert close(torch_only.eigvalsh(lower_only(matrix)), matrix)
    assert torch_only.solver == "torch.linalg.eigvalsh (cuSOLVER, cuda)"
    forced = CudaBackend(torch.device("cpu"), "two-stage")
    with pytest.warns(RuntimeWarning, match="two-stage not used: CuPy is not installed"):
        assert close(forced.eigvalsh(matrix.clone()), matrix)
    assert forced.solver == "torch.linalg.eigvalsh (cuSOLVER, cuda)"


# What if a kernel fails


def nobody_waits(monkeypatch, *_):
    """Blocks that never look at another: the panel's QR gives up."""
    monkeypatch.setattr(cuda_kernels, "SPIN_LIMIT", 0)


def nobody_waits_in_the_chase(monkeypatch, *_):
    """Panels in one block, which has nobody to wait for."""
    monkeypatch.setattr(cuda_kernels, "SPIN_LIMIT", 0)
    monkeypatch.setattr(solvers, "PANEL_ROWS", 100)


def not_resident(monkeypatch, cupy, kernels):
    """Fewer blocks run at once than the device says: the panel's QR gives up."""
    monkeypatch.setattr(cuda_kernels, "SPIN_LIMIT", 1000)
    monkeypatch.setitem(Device.attributes, "MultiProcessorCount", 3)


def not_a_number(monkeypatch, cupy, kernels):
    """The bulge chase leaves what the bisection reports."""
    ours = kernels.chase

    def broken(band, b):
        d, e = ours(band, b)
        d[..., 3] = torch.nan
        return d, e

    monkeypatch.setattr(kernels, "chase", broken)


@pytest.mark.parametrize(
    ("breaks", "words"),
    [
        (lambda patch, cupy, _: fails(patch, cupy, "sturm_bisect"), "could not be compiled.*nvrtc"),
        (nobody_waits, "the panel's QR stopped: block [01] waited in vain"),
        (nobody_waits_in_the_chase, "the bulge chase stopped"),
        (not_resident, "the panel's QR stopped: block [01] waited in vain"),
        (not_a_number, "the bisection reports -1"),
    ],
)
def test_the_library_takes_over_from_two_stage(make, monkeypatch, cupy, breaks, words):
    backend, matrix = make("two-stage"), symmetric(23)
    breaks(monkeypatch, cupy, backend.kernels)
    with pytest.warns(RuntimeWarning, match=f"two-stage not used: .*{words}"):
        assert close(backend.eigvalsh(matrix.clone()), matrix)
    assert (backend.solver, cupy.solved) == (LIBRARY, 1)
    attempts = len(cupy.compiled)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        assert close(backend.eigvalsh(matrix.clone()), matrix)
    assert len(cupy.compiled) == attempts  # and tried once


def test_panels_by_torch_where_their_kernel_does_not_compile(make, monkeypatch, cupy):
    backend, matrix = make("two-stage"), symmetric(23)
    fails(monkeypatch, cupy, "panel_qr")
    with pytest.warns(RuntimeWarning, match="panel_qr not used: .*could not be compiled"):
        assert close(backend.eigvalsh(matrix.clone()), matrix)
    assert (backend.solver, cupy.solved) == (TWO_STAGE, 0)
    assert close(backend.eigvalsh(matrix.clone()), matrix)  # said once


def test_panels_by_torch_where_they_do_not_fit(make, monkeypatch):
    """The first ones of a tall matrix; the rest by the kernel."""
    room = solvers.panel_shared_bytes(9, 4, 8, cuda_kernels.THREADS["panel_qr"])
    monkeypatch.setitem(Device.attributes, "MaxSharedMemoryPerBlockOptin", room)
    taken = {"torch": [], "kernel": []}
    torch_s, run = cuda_kernels.geqrf_panel, cuda_kernels.Kernels._run

    def by_torch(panel):
        taken["torch"].append(len(panel))
        return torch_s(panel)

    def by_kernel(self, name, of, grid, *arguments, **options):
        if name == "panel_qr":
            taken["kernel"].append((len(of), *grid))
        return run(self, name, of, grid, *arguments, **options)

    monkeypatch.setattr(cuda_kernels, "geqrf_panel", by_torch)
    monkeypatch.setattr(cuda_kernels.Kernels, "_run", by_kernel)
    backend = make("two-stage")
    assert close(backend.eigvalsh(symmetric(31)), symmetric(31))
    assert backend.solver == TWO_STAGE
    assert taken == {"torch": [27, 23, 19], "kernel": [(15, 2), (11, 2), (7, 1), (3, 1)]}


def test_float32_products_of_fewer_bits(make, cupy):
    backend = make("two-stage")
    try:
        torch.set_float32_matmul_precision("high")
        with pytest.warns(RuntimeWarning, match="two-stage not used: .* TF32"):
            assert close(backend.eigvalsh(symmetric(9, torch.float32)), symmetric(9, torch.float32))
        assert backend.solver == LIBRARY
        assert close(backend.eigvalsh(symmetric(9)), symmetric(9))
        assert backend.solver == TWO_STAGE
    finally:
        torch.set_float32_matmul_precision("highest")


def test_failure_without_room_for_a_copy(make, monkeypatch, cupy, memory):
    n = 23
    size, workspace = solvers.plan("two-stage", n, 8)
    memory.free = workspace + size - 1
    backend = make("two-stage")
    assert close(backend.eigvalsh(symmetric(n)), symmetric(n))
    nobody_waits(monkeypatch)
    with pytest.raises(ConvergenceError, match="HESSRMT_SOLVER=library"):
        backend.eigvalsh(symmetric(n))
    assert cupy.solved == 0


def test_the_library_fails(make, monkeypatch, cupy):
    def fail(matrix, UPLO):
        raise np.linalg.LinAlgError("did not converge")

    monkeypatch.setattr(cupy.linalg, "eigvalsh", fail)
    with pytest.raises(ConvergenceError, match="did not converge"):
        make().eigvalsh(symmetric(5))
    monkeypatch.setattr(cupy.linalg, "eigvalsh", lambda a, UPLO: np.full(len(a), np.nan))
    with pytest.raises(ConvergenceError, match="not finite"):
        make().eigvalsh(symmetric(5))


@pytest.mark.parametrize("error_type", [MemoryError, torch.cuda.OutOfMemoryError])
def test_out_of_memory_after_all(make, monkeypatch, cupy, error_type):
    def fail(*_, **__):
        raise error_type("out of memory")

    monkeypatch.setattr(cupy.linalg, "eigvalsh", fail)
    with pytest.raises(DeviceError, match=r"library .* ran out of memory.* bytes"):
        make().eigvalsh(symmetric(5))
    backend = make("two-stage")
    monkeypatch.setattr(backend.kernels, "chase", fail)
    with pytest.raises(DeviceError, match=r"two-stage .* ran out of memory.* bytes"):
        backend.eigvalsh(symmetric(5))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_two_stage_with_the_gpu_s_blocks(make, monkeypatch, dtype):
    monkeypatch.setattr(solvers, "HALF_WIDTHS", (64, 32, 16))
    monkeypatch.setattr(solvers, "COLLECTED", 128)
    monkeypatch.setattr(solvers, "PANEL_ROWS", ROWS)
    for name, threads in BLOCKS.items():
        monkeypatch.setitem(cuda_kernels.THREADS, name, threads)
    backend = make("two-stage")
    assert close(backend.eigvalsh(symmetric(200, dtype)), symmetric(200, dtype))
    assert backend.solver == TWO_STAGE


# Batches and other verbs


def all_close(found, batch):
    return all(close(levels, matrix) for levels, matrix in zip(found, batch, strict=True))


def test_a_list_larger_than_its_share_of_memory(make, memory):
    memory.free = 4 * 2 * 9 * 8  # two matrices at once
    batch = [symmetric(3, seed=i) for i in range(5)]
    assert all_close(make().eigvalsh_batch(batch), batch)


def test_more_shared_memory_than_is_granted_unasked(make, cupy):
    n, backend = 110, make()
    assert solvers.small_shared_bytes(n) > 48 * 1024
    assert close(backend.eigvalsh_batch(symmetric(n)[None])[0], symmetric(n))
    assert backend.solver == ONE_BLOCK
    assert cupy.solved == 0


def test_small_kernel_does_not_compile(make, monkeypatch, cupy):
    fails(monkeypatch, cupy, "batched_small")
    stack = torch.stack([symmetric(5, seed=seed) for seed in range(3)])
    with pytest.warns(RuntimeWarning, match="batched_small not used"):
        assert all_close(make().eigvalsh_batch(lower_only(stack)), stack)


def test_small_kernel_misses_an_eigenvalue(make, monkeypatch):
    backend = make()
    ours = backend.kernels.small

    def misses(stack):
        levels, info = ours(stack)
        levels[1], info[1] = np.nan, 2
        return levels, info

    monkeypatch.setattr(backend.kernels, "small", misses)
    batch = [symmetric(5, seed=seed) for seed in range(3)]
    with pytest.warns(RuntimeWarning, match="not found in 1 matrices"):
        assert all_close(backend.eigvalsh_batch(batch), batch)


def test_a_stack_is_below_torch_s_limit():
    assert _COPIED // torch.float64.itemsize <= solvers.LIBRARY_NUMBERS


def test_other_kernels_that_do_not_compile(make, monkeypatch, cupy):
    fails(monkeypatch, cupy, "extern")
    backend = make()
    numbers = torch.arange(1.0, 5.0, dtype=torch.float64)
    bands = np.array([[[0.0, 0.0, 0.0], [3.0, 4.0, 0.0]]])
    assert backend.banded_route(1) == (backend.name, "Sturm bisection; csrc, cuda")
    with pytest.warns(RuntimeWarning, match="banded not used"):
        np.testing.assert_allclose(backend.eigvalsh_banded(bands), [[-5, 0, 5]], atol=1e-14)
    assert backend.banded_route(1) == ("cpu", "LAPACK dsterf")  # what has been done is told
    with pytest.warns(RuntimeWarning, match="powerlaw_scan not used"):
        assert len(backend.powerlaw_scan([numbers.numpy()])[0][0]) == 4
    with pytest.warns(RuntimeWarning, match="goe_fill not used"):
        assert backend.sample_goe(3, 1, 1).shape == (1, 3, 3)
    with pytest.warns(RuntimeWarning, match="symmetrize not used"):
        assert backend.symmetrize_(torch.eye(3)) == 0


def test_what_kernels_take_is_told_by_name(make):
    for file in kernels.csrc().glob("*.cu"):
        found = make().kernels.compiled(file.stem)
        assert list(found) == kernels.names(kernels.source(file.stem))
        assert all(kernel["registers"] > 0 for kernel in found.values())


# Stacks of more than one block's matrices


@pytest.fixture
def few(monkeypatch):
    """More than 7 rows are too many for one block."""
    monkeypatch.setattr(solvers, "SMALL_LIMIT", 7)


def mixed():
    """Eight matrices of both types; the last to be solved are two of 9 rows."""
    return [symmetric(n, DTYPES[i % 2], seed=i) for i, n in enumerate([3, 3, 5, 1, 1, 9, 3, 9])]


def batched(backend, batch):
    return all_close(backend.eigvalsh_batch([lower_only(a) for a in batch]), batch)


XSYEV = "cusolverDnXsyevBatched (cuSOLVER 12.0.4, cuda)"


@pytest.mark.parametrize(
    ("solver", "there", "route"),
    [
        ("auto", True, XSYEV),
        ("auto", False, TWO_STAGES),
        ("two-stage", True, TWO_STAGES),
        ("library", True, XSYEV),
        ("library", False, LIBRARY),  # one after another
    ],
)
def test_routes_of_a_stack(make, few, memory, cupy, solver, there, route):
    if not there:
        memory.cusolver.clear()
    backend = make(solver)
    assert batched(backend, mixed())
    assert backend.solver == route
    assert cupy.solved == (2 if route == LIBRARY else 0)
    calls = [(call["n"], call["batch"]) for one in memory.cusolver for call in one.calls]
    assert calls == ([(9, 2)] if route == XSYEV else [])
    word = "one after another" if route == LIBRARY else route
    assert backend.solver_table()["batches, 7 < n <= 3,000"].startswith(word)


def test_a_stack_without_cupy(torch_only, few, memory):
    assert batched(torch_only, mixed())
    assert torch_only.solver == XSYEV
    memory.cusolver.clear()
    alone = CudaBackend(torch.device("cpu"))
    assert batched(alone, mixed())
    assert alone.solver == "torch.linalg.eigvalsh (cuSOLVER, cuda)"


def test_the_threshold_of_stacks(make, few, monkeypatch):
    assert "is not measured against it" in make().solver_table()["batches, 7 < n <= 3,000"]
    monkeypatch.setattr(solvers, "BATCHED_FROM", 10)
    backend = make()
    for n, route in ((9, XSYEV), (10, TWO_STAGES)):
        assert batched(backend, [symmetric(n, seed=seed) for seed in range(2)])
        assert backend.solver == route
    table = backend.solver_table()
    assert table["batches, 7 < n <= 9"].startswith(XSYEV)
    assert table["batches, 9 < n <= 3,000"].startswith(TWO_STAGES)


def test_large_matrices_and_single_ones_are_no_stack(make, few, monkeypatch, memory, cupy):
    assert batched(make(), [symmetric(9), symmetric(10)])
    assert cupy.solved == 2
    monkeypatch.setattr(solvers, "BATCH_LIMIT", 8)
    assert batched(make(), mixed())
    assert cupy.solved == 4
    assert memory.cusolver[0].calls == []


def failed_call(patch, cupy, memory, kernels):
    memory.cusolver[0].statuses = {"cusolverDnXsyevBatched": 7}


def failed_handle(patch, cupy, memory, kernels):
    memory.cusolver[0].statuses = {"cusolverDnCreate": 1}


def failed_matrix(patch, cupy, memory, kernels):
    memory.cusolver[0].failing = {1: 3}


@pytest.mark.parametrize(
    ("breaks", "words"),
    [
        (failed_call, "cusolverDnXsyevBatched: status 7"),
        (failed_handle, "cusolverDnCreate: status 1"),
        (failed_matrix, "info 3 of matrix 1"),
    ],
)
def test_ours_take_over_from_cusolver_s_stack(make, few, monkeypatch, cupy, memory, breaks, words):
    backend, batch = make(), mixed()
    breaks(monkeypatch, cupy, memory, backend.kernels)
    with pytest.warns(RuntimeWarning, match=f"XsyevBatched not used: .*{words}"):
        assert batched(backend, batch)
    assert backend.solver == TWO_STAGES
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        assert batched(backend, batch)


def no_panels(patch, cupy, kernels):
    fails(patch, cupy, "panel_batch")


def no_memory(patch, cupy, kernels):
    def fail(*_):
        raise torch.cuda.OutOfMemoryError("out of memory")

    patch.setattr(kernels, "batched_panels", fail)


@pytest.mark.parametrize(
    ("breaks", "words"),
    [
        (no_panels, "panel_batch.* could not be compiled"),
        (no_memory, "out of memory"),
        (lambda patch, *_: nobody_waits(patch), "the bulge chase stopped"),
        (not_a_number, "the bisection reports -1"),
    ],
)
def test_one_after_another_takes_over_from_our_stack(
    make, few, monkeypatch, cupy, memory, breaks, words
):
    memory.cusolver.clear()
    backend = make()
    breaks(monkeypatch, cupy, backend.kernels)
    with pytest.warns(RuntimeWarning, match=f"batched two-stage not used: .*{words}"):
        assert batched(backend, mixed())
    assert (backend.solver, cupy.solved) == (LIBRARY, 2)


def test_a_stack_of_float32_is_computed_in_float64(make, few, memory, cupy):
    """With products of fewer bits too: they concern float32 alone."""
    memory.cusolver.clear()
    backend = make()
    for n in (5, 9):
        stack = torch.stack([symmetric(n, torch.float32, seed) for seed in range(3)])
        try:
            torch.set_float32_matmul_precision("high")
            found = backend.eigvalsh_batch(stack)
        finally:
            torch.set_float32_matmul_precision("highest")
        assert all_close(found, stack.double())
    assert backend.solver == TWO_STAGES


@pytest.mark.parametrize("there", [True, False])
def test_a_stack_names_the_matrix_that_is_not_finite(make, few, memory, there):
    if not there:
        memory.cusolver.clear()
    batch = mixed()
    batch[5][4, 2] = torch.inf
    with pytest.raises(NonFiniteError, match="matrix 5 of the batch"):
        make().eigvalsh_batch(batch)


@pytest.mark.parametrize("name", [solvers.XSYEV, solvers.BATCHED])
def test_a_stack_is_parted_by_memory(make, few, monkeypatch, memory, cupy, name):
    if name == solvers.BATCHED:
        memory.cusolver.clear()
    monkeypatch.setattr(solvers, "_FIXED", 0)
    sizes, stacked = [], torch.stack

    def stack(tensors, *arguments):
        if tensors[0].shape == (9, 9):
            sizes.append(len(tensors))
        return stacked(tensors, *arguments)

    monkeypatch.setattr(torch, "stack", stack)
    batch = [symmetric(9, seed=seed) for seed in range(5)]

    def smallest(count):
        return next(free for free in range(10**6) if solvers.together(name, 9, free) == count)

    memory.free = smallest(2)
    assert batched(make(), batch)
    assert sizes == [2, 2, 1]
    memory.free = max(smallest(2) - 1, sum(solvers.plan("library", 9, 8)))  # room for one
    assert solvers.together(name, 9, memory.free) < 2
    assert batched(make(), batch)
    assert cupy.solved == 5


def test_the_plan_of_a_stack_counts_what_is_allocated():
    """Peak of the numbers alive at once in to_bands, counted by hand, is below the plan."""
    n, count = 2_750, 32
    b = solvers.BATCH_HALF_WIDTH
    panel = 5 * n * b + 2 * b * b  # V, T, R, W, A W, Z, V (WᵀAW) / 2
    each = n * n + panel + 4 * n * b + n * (2 * b + 1)
    free = count * 8 * each
    assert solvers.together(solvers.BATCHED, n, free) < count
    assert solvers.together(solvers.BATCHED, n, int(1.1 * free) + solvers._FIXED) >= count
    # 64-bit sizes: numbers of one call of the library
    assert solvers.together(solvers.XSYEV, 40_000, 10**15) == 1
    assert solvers.together(solvers.XSYEV, 3_000, 10**15) * 3_000**2 <= 2**31 - 1


@pytest.mark.slow
def test_our_stack_with_the_gpu_s_blocks(make, few, monkeypatch, memory):
    memory.cusolver.clear()
    monkeypatch.setattr(solvers, "HALF_WIDTHS", (64, 32, 16))
    monkeypatch.setattr(cuda_kernels, "PANEL_THREADS", 512)
    for name, threads in BLOCKS.items():
        monkeypatch.setitem(cuda_kernels.THREADS, name, threads)
    backend = make()
    assert batched(backend, [symmetric(80, seed=seed) for seed in range(2)])
    assert backend.solver == TWO_STAGES


def test_info_says_which_solver_and_why(make, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(cuda_kernels, "compile_report", lambda _: {})
    monkeypatch.setattr(select, "select", lambda word: make() if word == "cuda:0" else CpuBackend())
    rows = dict(info._rows("", info._about_installation()))
    shown = rows[", eigenvalue solvers, cuda:0, float64, n >= 8,000"]
    assert (
        shown
        == f"{TWO_STAGE}; cuSOLVER 12.0.4 has one stage; the threshold is modelled, not measured"
    )
    assert XSYEV in rows[", eigenvalue solvers, cuda:0, batches, 160 < n <= 3,000"]


# Thresholds and memory


def test_the_plan_of_large_problems(make):
    """Bytes as makers count them, with 2 % of the device taken by CUDA itself."""
    for n, device in ((61_706, 80 * GB), (100_000, 141 * GB)):
        matrix, workspace = solvers.plan("two-stage", n, 8)
        assert matrix == 8 * n**2
        assert matrix + workspace < 0.98 * device
        assert workspace < 0.06 * matrix  # nothing of the matrix's size
    # the copy for the fallback fits beside the first, not beside the second
    assert 2 * 8 * 61_706**2 + solvers.plan("two-stage", 61_706, 8).workspace < 0.98 * 80 * GB
    # the library needs two matrices
    assert sum(solvers.plan("library", 61_706, 8)) < 0.98 * 80 * GB
    assert make("library").eigen_bytes(100_000, 8) > 141 * GB
    assert make("two-stage").eigen_bytes(100_000, 8) < 0.9 * 141 * GB  # in place: one GPU will do


def test_the_plan_counts_what_stage_1_allocates():
    """Peak of the numbers alive at once in to_band, counted by hand, is below the plan."""
    n, b = 20_060, 64
    outer = max(b, solvers.COLLECTED)
    sides = 2 * n * 2 * outer
    panel = 6 * n * b  # V, its factorisation, W, A W, Z, V (WᵀAW) / 2
    band = n * (2 * b + 1)
    assert solvers.plan("two-stage", n, 8).workspace > 8 * (sides + panel + band)


@pytest.mark.parametrize("solver", ["two-stage", "library"])
def test_too_large_is_refused_before_anything_is_allocated(make, memory, cupy, solver):
    matrix, workspace = solvers.plan(solver, 23, 8)
    memory.free = workspace - 1
    fits = solvers.largest(solver, matrix + memory.free, 8)
    assert fits == 22
    expected = rf"{workspace:,} bytes beside the matrix's {matrix:,}, .* the largest that fits has"
    with pytest.raises(DeviceError, match=expected + rf" {fits:,} rows"):
        make(solver).eigvalsh(symmetric(23))
    assert cupy.solved == 0
    memory.free = workspace
    assert close(make(solver).eigvalsh(symmetric(23)), symmetric(23))


def test_the_library_s_refusal_names_the_solver_that_fits():
    n = 100_000
    free = 141 * GB - 8 * n**2
    with pytest.raises(DeviceError, match=r"=two-stage .* works in place and would fit"):
        solvers.require_memory("library", n, 8, free, "fake")
    solvers.require_memory("two-stage", n, 8, free, "fake")


def test_shared_memory_decides_the_half_width():
    assert solvers.half_width(227 * 1024, 8, 256) == 64
    assert solvers.half_width(64 * 1024, 8, 256) == 32  # sm_75
    assert solvers.half_width(64 * 1024, 4, 256) == 64
    for shared in (48 * 1024, 227 * 1024):
        b = solvers.widest_band(shared, 8, 256)
        assert solvers.chase_shared_bytes(b, 8, 256) <= shared
        assert solvers.chase_shared_bytes(b + 1, 8, 256) > shared
    assert solvers.widest_band(1000, 8, 256) == 1  # no room for a chase: tridiagonal ones alone


def test_shared_memory_decides_which_panels_fit(monkeypatch):
    """The numbers of docs/gpu-kernels.md."""
    monkeypatch.setattr(solvers, "PANEL_ROWS", ROWS)
    threads = BLOCKS["panel_qr"]
    for itemsize, rows in ((8, 436), (4, 883)):
        assert solvers.panel_rows(227 * 1024, 64, itemsize, threads) == rows
        assert solvers.panel_shared_bytes(rows, 64, itemsize, threads) <= 227 * 1024
        assert solvers.panel_share(132 * rows, rows, 132) == rows
        assert solvers.panel_share(132 * rows + 1, rows, 132) == 0
    assert solvers.panel_rows(64 * 1024, 64, 8, threads) == 0
    assert [solvers.panel_share(m, 436, 132) for m in (1, 100, 5000, 20_000)] == [1, 100, 128, 152]
    for m in range(1, 60_000, 97):  # work and flags suffice for every panel
        if share := solvers.panel_share(m, 436, 132):
            blocks = -(-m // share)
            assert blocks <= min(132, -(-m // ROWS))
            assert -(-m // blocks) <= share


def test_shared_memory_decides_what_is_small():
    """The numbers of csrc/batched_small.cu."""
    for kilobytes, limit in ((64, 122), (99, 154), (163, 160), (227, 160)):
        assert solvers.small_limit(kilobytes * 1024) == limit
    assert solvers.small_shared_bytes(160) == 108_160
    assert solvers.small_limit(0) == 0


# Facts that the fake's launches rest on


def test_cupy_stays_in_one_file():
    package = Path(cuda_kernels.__file__).parents[1]
    importing = [f.name for f in package.rglob("*.py") if "import cupy" in f.read_text()]
    assert importing == ["cuda_kernels.py"]


def test_blocks_of_a_fixed_size_are_the_sources():
    tile = re.search(r"#define TILE (\d+)", kernels.source("powerlaw_scan"))
    assert int(tile[1]) == cuda_kernels.SCAN_THREADS
    for name in ("bulge_chase", "panel_qr"):
        assert f"__launch_bounds__({BLOCKS[name]})" in kernels.source(name)
    for name in ("symmetrize", "goe_fill"):
        assert re.search(r"#define TILE (\d+)", kernels.source(name))[1] == str(cuda_kernels.TILE)
