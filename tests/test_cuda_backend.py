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

from hessrmt.backend import cuda_kernels, kernels, solvers
from hessrmt.backend.cuda import _COPIED, TWO_STAGE, CudaBackend, cuda_backend
from hessrmt.errors import ConfigError, ConvergenceError, DeviceError

pytest_plugins = ["fake_gpu"]

BLOCKS, ROWS = dict(cuda_kernels.THREADS), solvers.PANEL_ROWS


# Which route


def test_nothing_is_measured_yet_so_auto_is_the_library(make, cupy):
    assert solvers.TWO_STAGE_FROM == {"float64": None, "float32": None}
    backend = make()
    for dtype in DTYPES:
        assert close(backend.eigvalsh(symmetric(23, dtype)), symmetric(23, dtype))
        assert backend.solver == LIBRARY
    assert cupy.solved == 2
    assert cupy.compiled == []
    assert "not measured" in backend.solver_table()["float64, any n"]


def test_thresholds(make, monkeypatch):
    monkeypatch.setitem(solvers.TWO_STAGE_FROM, "float64", 10)
    backend = make()
    for n, dtype, expected in (
        (9, torch.float64, LIBRARY),
        (10, torch.float64, TWO_STAGE),
        (10, torch.float32, LIBRARY),
    ):
        assert close(backend.eigvalsh(symmetric(n, dtype)), symmetric(n, dtype))
        assert backend.solver == expected
    table = backend.solver_table()
    assert (table["float64, n < 10"], table["float64, n >= 10"]) == (LIBRARY, TWO_STAGE)


def test_policy_from_the_environment(monkeypatch, cupy):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    device = torch.device("cuda")
    monkeypatch.delenv("HESSRMT_SOLVER", raising=False)
    assert cuda_backend(device).solver.startswith("auto")
    monkeypatch.setenv("HESSRMT_SOLVER", "two-stage")
    assert "forced by HESSRMT_SOLVER" in cuda_backend(device).solver_table()["float64, any n"]
    assert cuda_backend(device, "library").solver_table()["float64, any n"] == LIBRARY
    monkeypatch.setenv("HESSRMT_SOLVER", "fast")
    with pytest.raises(ConfigError, match=r"'fast'.*auto, two-stage, library"):
        cuda_backend(device)


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
        d[3] = torch.nan
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


@pytest.mark.parametrize(("solver", "library"), [("auto", 2), ("two-stage", 0)])
def test_large_matrices_of_a_batch_take_the_solver_s_route(
    make, monkeypatch, cupy, solver, library
):
    monkeypatch.setattr(solvers, "SMALL_LIMIT", 7)
    batch = [symmetric(n, DTYPES[i % 2], seed=i) for i, n in enumerate([3, 9, 3, 5, 3, 9, 1])]
    assert all_close(make(solver).eigvalsh_batch([lower_only(a) for a in batch]), batch)
    assert cupy.solved == library


def test_a_list_larger_than_its_share_of_memory(make, memory):
    memory.free = 4 * 2 * 9 * 8  # two matrices at once
    batch = [symmetric(3, seed=i) for i in range(5)]
    assert all_close(make().eigvalsh_batch(batch), batch)


def test_more_shared_memory_than_is_granted_unasked(make, cupy):
    n = 110
    assert solvers.small_shared_bytes(n, 8) > 48 * 1024
    assert close(make().eigvalsh_batch(symmetric(n)[None])[0], symmetric(n))
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
    assert _COPIED // torch.float32.itemsize <= solvers.LIBRARY_NUMBERS


def test_other_kernels_that_do_not_compile(make, monkeypatch, cupy):
    fails(monkeypatch, cupy, "extern")
    backend = make()
    numbers = torch.arange(1.0, 5.0, dtype=torch.float64)
    with pytest.warns(RuntimeWarning, match="staircase not used"):
        assert backend.staircase(numbers, numbers).tolist() == [0, 1, 2, 3]
    with pytest.warns(RuntimeWarning, match="powerlaw_scan not used"):
        assert len(backend.powerlaw_scan([numbers])[0][0]) == 4
    with pytest.warns(RuntimeWarning, match="goe_fill not used"):
        assert backend.sample_goe(3, 1, 1, torch.float64).shape == (1, 3, 3)
    with pytest.warns(RuntimeWarning, match="symmetrize not used"):
        assert backend.symmetrize_(torch.eye(3)) == 0


def test_what_kernels_take_is_told_by_name(make):
    for file in kernels.csrc().glob("*.cu"):
        found = make().kernels.compiled(file.stem)
        assert list(found) == kernels.names(kernels.source(file.stem))
        assert all(kernel["registers"] > 0 for kernel in found.values())


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
    with pytest.raises(DeviceError, match="HESSRMT_SOLVER=two-stage works in place"):
        solvers.require_memory("library", n, 8, free, "fake")
    solvers.require_memory("two-stage", n, 8, free, "fake")


def test_shared_memory_decides_the_half_width():
    assert solvers.half_width(227 * 1024, 8, 256) == 64
    assert solvers.half_width(64 * 1024, 8, 256) == 32  # sm_75
    assert solvers.half_width(64 * 1024, 4, 256) == 64


def test_shared_memory_decides_which_panels_fit(monkeypatch):
    """The numbers of docs/gpu.md."""
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
        assert solvers.small_limit(kilobytes * 1024, 8) == limit
        assert solvers.small_limit(kilobytes * 1024, 4) == 160
    assert solvers.small_shared_bytes(160, 8) == 108_160
    assert solvers.small_limit(0, 8) == 0


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
