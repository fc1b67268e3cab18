"""Thresholds and memory of the eigenvalue solvers: arithmetic, and what is refused by it."""

import pytest
from cuda_samples import close, symmetric
from stand_in import GB

from hessrmt.backend import solvers
from hessrmt.errors import DeviceError

pytest_plugins = ["fake_gpu"]


def test_the_plan_of_large_problems():
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
    assert sum(solvers.plan("library", 100_000, 8)) > 141 * GB


def test_the_plan_counts_what_stage_1_allocates():
    """Peak of the numbers alive at once in to_band, counted by hand, is below the plan."""
    n, b = 20_060, 64
    outer = solvers.collected(b)
    sides = 2 * n * 2 * outer
    panel = 6 * n * b  # V, its factorisation, W, A W, Z, V (WᵀAW) / 2
    band = n * (2 * b + 1)
    assert solvers.plan("two-stage", n, 8).workspace > 8 * (sides + panel + band)


@pytest.mark.parametrize("solver", ["two-stage", "library"])
@pytest.mark.parametrize("itemsize", [8, 4])
def test_largest(solver, itemsize):
    for total in (80 * GB, 141 * GB, 10**6):
        n = solvers.largest(solver, total, itemsize)
        fits = [sum(solvers.plan(solver, m, itemsize)) <= total for m in (n, n + 1)]
        assert fits == ([True, False] if n else [False, False])


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


def test_shared_memory_decides_what_is_small():
    """The numbers of csrc/batched_small.cu."""
    for kilobytes, limit in ((64, 122), (99, 154), (163, 160), (227, 160)):
        assert solvers.small_limit(kilobytes * 1024, 8) == limit
        assert solvers.small_limit(kilobytes * 1024, 4) == 160
    assert solvers.small_shared_bytes(160, 8) == 108_160
    assert solvers.small_limit(0, 8) == 0
