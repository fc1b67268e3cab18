"""The GPU backend's batches and other verbs without a GPU (see test_cuda_backend.py)."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from cuda_samples import DTYPES, close, fails, lower_only, symmetric
from torch import nn

import hessrmt as hr
from hessrmt import capacity, rng
from hessrmt.backend import cuda_kernels, kernels, reference, solvers
from hessrmt.backend.cpu import CpuBackend
from hessrmt.curvature.spectrum import compute
from hessrmt.errors import DeviceError, NonFiniteError

pytest_plugins = ["fake_gpu"]

CPU = CpuBackend()
KEY = 0xA4093822299F31D0


# Batches


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 2, 5, 33])
def test_a_stack(make, cupy, n, dtype):
    stack = torch.stack([symmetric(n, dtype, seed) for seed in range(3)])
    found = make().eigvalsh_batch(lower_only(stack))
    assert len(found) == 3
    assert all(close(levels, matrix) for levels, matrix in zip(found, stack, strict=True))
    assert cupy.solved == 0


def test_a_stack_with_room_between_its_rows(make):
    room = torch.stack([symmetric(9, seed=seed) for seed in range(4)])
    for stack in (room[::2, :5, :5], room[:, ::2, ::2]):
        found = make().eigvalsh_batch(stack)
        assert all(close(levels, matrix) for levels, matrix in zip(found, stack, strict=True))


def test_a_ragged_list_keeps_its_order(make, monkeypatch, cupy):
    monkeypatch.setattr(solvers, "SMALL_LIMIT", 7)
    sizes = [3, 9, 3, 0, 5, 3, 9, 1]
    batch = [
        symmetric(n, DTYPES[i % 2], seed=i) if n else torch.empty(0, 0) for i, n in enumerate(sizes)
    ]
    for solver, library in (("auto", 2), ("two-stage", 0)):
        cupy.solved = 0
        found = make(solver).eigvalsh_batch([lower_only(matrix) for matrix in batch])
        assert [len(levels) for levels in found] == sizes
        assert all(close(levels, a) for levels, a in zip(found, batch, strict=True))
        assert cupy.solved == library


def test_a_list_larger_than_its_share_of_memory(make, memory):
    memory.free = 4 * 2 * 9 * 8  # two matrices at once
    batch = [symmetric(3, seed=i) for i in range(5)]
    found = make().eigvalsh_batch(batch)
    assert all(close(levels, a) for levels, a in zip(found, batch, strict=True))


def test_an_empty_batch(make):
    assert make().eigvalsh_batch([]) == []
    assert make().eigvalsh_batch(torch.empty(0, 3, 3)) == []


def test_more_shared_memory_than_is_granted_unasked(make, cupy):
    n = 110
    assert solvers.small_shared_bytes(n, 8) > 48 * 1024
    assert close(make().eigvalsh_batch(symmetric(n)[None])[0], symmetric(n))
    assert cupy.solved == 0


@pytest.mark.parametrize("solver", ["auto", "library"])
def test_what_is_not_finite_in_a_batch(make, solver):
    batch = [symmetric(n, seed=i) for i, n in enumerate([3, 4, 4, 4])]
    batch[2][3, 1] = torch.nan
    with pytest.raises(NonFiniteError, match="matrix 2 of the batch"):
        make(solver).eigvalsh_batch(batch)


def test_small_kernel_does_not_compile(make, monkeypatch, cupy):
    fails(monkeypatch, cupy, "batched_small")
    stack = torch.stack([symmetric(5, seed=seed) for seed in range(3)])
    backend = make()
    with pytest.warns(RuntimeWarning, match="batched_small not used"):
        found = backend.eigvalsh_batch(lower_only(stack))
    assert all(close(levels, matrix) for levels, matrix in zip(found, stack, strict=True))


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
        found = backend.eigvalsh_batch(batch)
    assert all(close(levels, matrix) for levels, matrix in zip(found, batch, strict=True))


def test_torch_s_stacks_stay_below_its_limit(torch_only, monkeypatch):
    monkeypatch.setattr(solvers, "LIBRARY_NUMBERS", 60)
    calls = []
    solve = torch.linalg.eigvalsh

    def counting(stack):
        calls.append(tuple(stack.shape))
        return solve(stack)

    monkeypatch.setattr(torch.linalg, "eigvalsh", counting)
    stack = torch.stack([symmetric(5, seed=seed) for seed in range(5)])
    found = torch_only.eigvalsh_batch(lower_only(stack))
    assert all(close(levels, matrix) for levels, matrix in zip(found, stack, strict=True))
    assert calls == [(2, 5, 5), (2, 5, 5), (1, 5, 5)]


# The other verbs


@pytest.fixture(params=["kernels", "torch"])
def backend(request):
    return (
        request.getfixturevalue("make")()
        if request.param == "kernels"
        else (request.getfixturevalue("torch_only"))
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 33])
def test_symmetrize(backend, n, dtype):
    here = torch.from_numpy(np.random.default_rng(n).normal(size=(n, n))).to(dtype)
    there = here.clone()
    assert backend.symmetrize_(there) == CPU.symmetrize_(here)
    assert torch.equal(there, here)
    there[n - 1, 0] = torch.nan
    assert not np.isfinite(backend.symmetrize_(there))


def test_a_hessian_without_rows(backend):
    """A reduction may leave nothing: no launch of an empty grid, no maximum of nothing."""
    assert backend.symmetrize_(torch.empty(0, 0, dtype=torch.float64)) == 0
    model = nn.Linear(4, 3, bias=False)
    batch = torch.zeros(5, 4), torch.arange(5) % 3
    found = compute(hr.Problem(model, "cross-entropy", batch), backend, "float64", "hessian")
    assert (found.reduced_dimension, found.rank) == (0, 0)
    np.testing.assert_array_equal(found.eigenvalues, np.zeros(12))


@pytest.mark.parametrize(("m", "n"), [(0, 3), (50, 0), (50, 30)])
def test_staircase(backend, m, n):
    draw = rng.stream(0, "staircase", m, n)
    pool, queries = (np.sort(draw.normal(size=k).round(1)) for k in (m, n))
    found = backend.staircase(torch.from_numpy(pool), torch.from_numpy(queries))
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, (pool[None, :] < queries[:, None]).sum(axis=1))


def test_power_laws_of_layers_are_those_of_the_cpu(backend):
    draw = rng.stream(1, "layers")
    layers = [draw.pareto(2.5, n) + 1 for n in (60, 1, 150)] + [np.full(9, 2.0)]
    for found, expected in zip(
        capacity.fit_all(layers, backend=backend), capacity.fit_all(layers), strict=True
    ):
        assert (found.n_tail, found.x_min) == (expected.n_tail, expected.x_min) or (
            np.isnan(found.x_min) and np.isnan(expected.x_min)
        )
        # as in test_powerlaw_scan, n <= 150
        tolerance = 20 * 150 * np.finfo(float).eps
        np.testing.assert_allclose(found.ks_distance, expected.ks_distance, rtol=0, atol=tolerance)
        np.testing.assert_array_equal(found.alpha, expected.alpha)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sample_goe(backend, dtype):
    kind = {torch.float64: np.float64, torch.float32: np.float32}[dtype]
    found = backend.sample_goe(33, 2, KEY, dtype, first=3)
    assert (found.dtype, found.shape) == (dtype, (2, 33, 33))
    twin = reference.sample_goe(33, 2, KEY, first=3, dtype=kind)
    # logarithm, root and cosine of two libraries (tests/test_goe_fill.py), one rounding to dtype
    np.testing.assert_allclose(found.numpy(), twin, rtol=10.5 * 2.0**-52 + np.finfo(kind).eps)
    assert torch.equal(found, found.mT)
    assert backend.sample_goe(5, 0, KEY, dtype).shape == (0, 5, 5)


def test_sample_goe_refusals(make, memory):
    memory.free = 3 * 100 * 100 * 8 + 7
    with pytest.raises(DeviceError, match=r"enough for 3; draw them in parts"):
        make().sample_goe(100, 4, KEY, torch.float64)


def test_other_kernels_that_do_not_compile(make, monkeypatch, cupy):
    fails(monkeypatch, cupy, "extern")
    backend = make()
    numbers = torch.arange(1.0, 5.0, dtype=torch.float64)
    with pytest.warns(RuntimeWarning, match="staircase not used"):
        assert backend.staircase(numbers, numbers).tolist() == [0, 1, 2, 3]
    with pytest.warns(RuntimeWarning, match="powerlaw_scan not used"):
        assert len(backend.powerlaw_scan([numbers])[0][0]) == 4
    with pytest.warns(RuntimeWarning, match="goe_fill not used"):
        assert backend.sample_goe(3, 1, KEY, torch.float64).shape == (1, 3, 3)
    with pytest.warns(RuntimeWarning, match="symmetrize not used"):
        assert backend.symmetrize_(torch.eye(3)) == 0


def test_what_kernels_take_is_told_by_name(make):
    for file in kernels.csrc().glob("*.cu"):
        found = make().kernels.compiled(file.stem)
        assert list(found) == kernels.names(kernels.source(file.stem))
        assert all(kernel["registers"] > 0 for kernel in found.values())
    assert "bulge_chase_f32" in make().kernels.compiled("bulge_chase")


# Facts that the fake's launches rest on


def test_cupy_stays_in_one_file():
    package = Path(cuda_kernels.__file__).parents[1]
    importing = [f.name for f in package.rglob("*.py") if "import cupy" in f.read_text()]
    assert importing == ["cuda_kernels.py"]


def test_blocks_of_a_fixed_size_are_the_sources():
    tile = re.search(r"#define TILE (\d+)", kernels.source("powerlaw_scan"))
    assert int(tile[1]) == cuda_kernels.SCAN_THREADS
    assert "__launch_bounds__(256)" in kernels.source("bulge_chase")
    for name in ("symmetrize", "goe_fill"):
        assert re.search(r"#define TILE (\d+)", kernels.source(name))[1] == str(cuda_kernels.TILE)
