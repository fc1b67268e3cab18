"""Backends: how one is chosen, the CPU's verbs against NumPy, and how much memory is free."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.linalg
import torch

from hessrmt.backend import cpu, cuda_kernels
from hessrmt.backend.base import _TILE
from hessrmt.backend.cpu import CpuBackend
from hessrmt.backend.cuda_kernels import KernelError
from hessrmt.backend.kernels import csrc
from hessrmt.backend.select import select
from hessrmt.errors import ConfigError, ConvergenceError, DeviceError, NonFiniteError

CPU = CpuBackend()
NO_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


# Choosing


@pytest.mark.parametrize("word", ["gpu", "cuda:", "cuda:x", "cuda:-1", "CPU", "cpu:0", "", "mps"])
def test_unknown_devices(word):
    with pytest.raises(DeviceError, match=r"unknown device .*; known are auto, cpu, cuda"):
        select(word)


@NO_CUDA
@pytest.mark.parametrize("word", ["cuda", "cuda:0", "cuda:3"])
def test_absent_gpu(word):
    with pytest.raises(DeviceError, match=f"'{word}': torch sees no CUDA device; use --device cpu"):
        select(word)


def test_gpu_number_out_of_range(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(DeviceError, match="'cuda:2': there are 2, numbered from 0"):
        select("cuda:2")


@NO_CUDA
def test_auto_is_the_cpu_without_a_gpu():
    for word in ("auto", "cpu"):
        backend = select(word)
        assert backend.device == torch.device("cpu")
        assert backend.name.startswith("cpu (")


# Verbs


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("n", [1, 2, 511, 512, 513, 1100])
def test_symmetrize(n, dtype):
    assert _TILE == 512  # so that the sizes lie around one tile and beyond two
    a = torch.randn(n, n, dtype=dtype, generator=torch.Generator().manual_seed(n))
    before = a.numpy().copy()
    assert CPU.symmetrize_(a) == np.abs(before - before.T).max()
    assert np.array_equal(a.numpy(), (before + before.T) / 2)
    assert CPU.symmetrize_(a) == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [(0, 0), (0, 513), (513, 0), (600, 3), (513, 513)])
def test_symmetrize_reports_what_is_not_finite(value, place):
    a = torch.zeros(700, 700, dtype=torch.float64)
    a[place] = value
    assert not np.isfinite(CPU.symmetrize_(a))


def test_symmetrize_reports_infinities_in_both_halves():
    a = torch.zeros(600, 600, dtype=torch.float64)
    a[599, 0] = a[0, 599] = torch.inf  # inf - inf
    assert np.isnan(CPU.symmetrize_(a))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("n", [1, 2, 17, 300])
def test_eigvalsh(n, dtype):
    a = torch.randn(n, n, dtype=dtype, generator=torch.Generator().manual_seed(n))
    a = (a + a.T) / 2
    expected = scipy.linalg.eigvalsh(a.double().numpy(), driver="ev")
    found = CPU.eigvalsh(a.clone())
    assert (found.dtype, found.shape) == (np.float64, (n,))
    assert np.all(np.diff(found) >= 0)
    # backward stability: ‖E‖₂ ≤ p(n) ε ‖A‖₂ with p(n) a low multiple of n, then Weyl
    tolerance = 10 * n * torch.finfo(dtype).eps * np.abs(expected).max()
    assert np.abs(found - expected).max() <= tolerance


def test_solver_failure_is_a_convergence_error(monkeypatch):
    def fail(matrix):
        raise torch.linalg.LinAlgError("the algorithm failed to converge")

    monkeypatch.setattr(torch.linalg, "eigvalsh", fail)
    with pytest.raises(ConvergenceError, match="failed to converge"):
        CPU.eigvalsh(torch.eye(2))


# Bad matrices


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("solve", [CPU.eigvalsh, lambda a: CPU.eigvalsh_batch([torch.eye(2), a])])
def test_eigvalsh_refuses_what_is_not_finite(solve, value):
    a = torch.eye(5, dtype=torch.float64)
    a[0, 3] = value  # the upper triangle is not read
    solve(a)
    a[3, 0] = value
    with pytest.raises(NonFiniteError, match=r"the matrix has|matrix 1 has"):
        solve(a)


@pytest.mark.parametrize(
    "a", [torch.zeros(3), torch.zeros(2, 3), torch.zeros(2, 2, dtype=torch.int64)]
)
def test_eigvalsh_refuses_what_is_no_matrix(a):
    for solve in (CPU.eigvalsh, lambda a: CPU.eigvalsh_batch([a])):
        with pytest.raises(ConfigError, match=r"give an \(n, n\) matrix|give float64 or float32"):
            solve(a)


def test_eigvalsh_of_no_rows():
    assert CPU.eigvalsh(torch.zeros(0, 0)).shape == (0,)


# Batches


def symmetric(n, count, dtype=torch.float64):
    a = torch.randn(count, n, n, dtype=dtype, generator=torch.Generator().manual_seed(n))
    return a + a.mT


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_batches_equal_single_matrices_to_rounding_and_themselves_to_the_bit(dtype):
    stack = symmetric(150, 7, dtype)
    found = CPU.eigvalsh_batch(stack.clone())
    for levels, matrix in zip(found, stack, strict=True):
        expected = CPU.eigvalsh(matrix)
        assert (levels.dtype, levels.shape) == (np.float64, (150,))
        # two runs of a backward-stable solver: ‖E‖₂ a low multiple of n ε ‖A‖₂, then Weyl
        tolerance = 10 * 150 * torch.finfo(dtype).eps * np.abs(expected).max()
        assert np.abs(levels - expected).max() <= tolerance
    for again in (CPU.eigvalsh_batch(stack), CPU.eigvalsh_batch(list(stack))):
        assert all(np.array_equal(x, y) for x, y in zip(found, again, strict=True))


def test_batches_of_several_sizes_keep_their_order(monkeypatch):
    monkeypatch.setattr(cpu, "TOGETHER", 30)  # the largest one by one
    given = [(i + 1.0) * torch.eye(n) for i, n in enumerate((1, 40, 7, 0, 33, 30, 31))]
    found = CPU.eigvalsh_batch(given)
    assert [len(levels) for levels in found] == [1, 40, 7, 0, 33, 30, 31]
    assert all(np.all(levels == i + 1) for i, levels in enumerate(found))
    assert CPU.eigvalsh_batch([]) == []
    assert CPU.eigvalsh_batch(torch.zeros(0, 5, 5)) == []


def test_batches_leave_the_number_of_threads(monkeypatch):
    before = torch.get_num_threads()
    seen = []

    def solve(matrix):
        seen.append(torch.get_num_threads())
        raise torch.linalg.LinAlgError("the algorithm failed to converge")

    monkeypatch.setattr(torch.linalg, "eigvalsh", solve)
    with pytest.raises(ConvergenceError):
        CPU.eigvalsh_batch(symmetric(3, 4))
    assert set(seen) == {1}
    assert torch.get_num_threads() == before


def test_a_batch_that_is_no_stack():
    with pytest.raises(ConfigError, match=r"a stack of shape \(3, 3\)"):
        CPU.eigvalsh_batch(torch.eye(3))


# Staircase, power laws, GOE


def test_staircase():
    pool = torch.tensor([-1.0, 0.0, 0.0, 2.0], dtype=torch.float64)
    queries = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0, 3.0], dtype=torch.float64)
    counts = CPU.staircase(pool, queries)
    assert counts.dtype == np.int64
    assert counts.tolist() == [0, 0, 1, 3, 3, 4]
    assert CPU.staircase(pool[:0], queries).tolist() == [0] * 6
    assert CPU.staircase(pool, queries[:0]).tolist() == []


def test_powerlaw_scan():
    layers = [
        torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64),
        torch.tensor([]),
        torch.ones(2),
        torch.tensor([1.0, 2.0, 4.0]),
    ]
    first, empty, flat, single = CPU.powerlaw_scan(layers)
    # tails (1, 2, 4) and (2, 4): 1 + 3/ln 8 and 1 + 2/ln 2
    alpha = [1 + 3 / np.log(8), 1 + 2 / np.log(2), np.nan]
    np.testing.assert_allclose(first[0], alpha, rtol=8 * np.finfo(float).eps)
    assert [len(part) for part in (*empty, *flat)] == [0, 0, 2, 2]
    assert np.isnan(flat).all()
    np.testing.assert_array_equal(first, single)  # float32 holds these values
    assert CPU.powerlaw_scan([]) == []


UP = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)


@pytest.mark.parametrize(
    ("bad", "error", "words"),
    [
        (torch.tensor([1.0, np.nan], dtype=torch.float64), NonFiniteError, "NaN or infinite"),
        (torch.tensor([1.0, np.inf], dtype=torch.float64), NonFiniteError, "NaN or infinite"),
        (UP.flip(0), ConfigError, "do not ascend; sort"),
        (UP[None], ConfigError, "give a vector"),
        (UP.long(), ConfigError, "float64"),
    ],
)
def test_bad_values(bad, error, words):
    for call, name in (
        (lambda: CPU.staircase(bad, UP), "pool"),
        (lambda: CPU.staircase(UP, bad), "queries"),
        (lambda: CPU.powerlaw_scan([UP, bad]), "layer 1"),
    ):
        with pytest.raises(error, match=f"{name}: .*{words}"):
            call()


def test_bad_values_of_one_verb():
    with pytest.raises(ConfigError, match=r"pool: torch.float32; give float64"):
        CPU.staircase(UP.float(), UP)
    with pytest.raises(ConfigError, match=r"layer 0: the smallest value is 0; .* values > 0"):
        CPU.powerlaw_scan([UP - 1])


@pytest.mark.parametrize(
    ("n", "count", "key", "first", "dtype"),
    [
        (0, 1, 1, 0, torch.float64),
        (2, -1, 1, 0, torch.float64),
        (2, 1, 2**64, 0, torch.float64),
        (2, 1, -1, 0, torch.float64),
        (2, 1, 1, -1, torch.float64),
        (2, 1, 1, 0, torch.float16),
    ],
)
def test_sample_goe_of_bad_numbers(n, count, key, first, dtype):
    with pytest.raises(ConfigError, match="GOE matrices"):
        CPU.sample_goe(n, count, key, dtype, first)


# Whether the kernels compile


def test_nothing_is_compiled_without_a_gpu(cli):
    reason = "not tried: no CUDA device"
    assert cuda_kernels.compile_report(CPU.device) == {"all": reason}
    if not torch.cuda.is_available():
        found = json.loads(cli("info", "--json").stdout)
        assert found["CUDA kernels"] == reason
        assert found["eigenvalue solvers"] == {"cpu": CPU.solver_table()}
        shown = " ".join(cli("info").stdout.split())
        for words in (reason, "eigenvalue solvers, cpu, any n", "syevd"):
            assert words in shown


def test_kernels_that_compile_and_one_that_does_not(monkeypatch):
    def compiled(file):
        if file == "staircase":
            raise KernelError("staircase_f64 could not be compiled: nvrtc: no")

    kernels = SimpleNamespace(compiled=compiled)
    monkeypatch.setattr(cuda_kernels, "import_kernels", lambda device: kernels)
    found = cuda_kernels.compile_report(torch.device("cuda", 0))
    assert set(found) == {file.stem for file in csrc().glob("*.cu")}
    assert found.pop("staircase").endswith("could not be compiled: nvrtc: no")
    assert set(found.values()) == {"ok"}
    monkeypatch.setattr(cuda_kernels, "import_kernels", lambda device: None)
    missing = {"all": "not tried: CuPy is not installed"}
    assert cuda_kernels.compile_report(torch.device("cuda", 0)) == missing
