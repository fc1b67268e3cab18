"""Every verb of every backend against NumPy, LAPACK or its CPU twin, and how one is chosen.

The GPU backend runs everywhere over main memory, its kernels through fake_cupy: that shows
arguments, types, routes, fallbacks, refusals and results. Where there is a GPU (``-m gpu``) the
same tests run on it.
"""

import json
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cuda_samples import DTYPES, close, lower_only, symmetric
from dense_symmetric import families
from torch import nn

import hessrmt as hr
from hessrmt import rng
from hessrmt.backend import base, cpu, cuda_kernels, reference, solvers
from hessrmt.backend.cpu import CpuBackend
from hessrmt.backend.cuda import CudaBackend
from hessrmt.backend.cuda_kernels import KernelError
from hessrmt.backend.kernels import csrc
from hessrmt.backend.select import select
from hessrmt.curvature.spectrum import compute
from hessrmt.errors import ConfigError, ConvergenceError, DeviceError, NonFiniteError

pytest_plugins = ["fake_gpu"]

CPU = CpuBackend()
KEY = 0xA4093822299F31D0
EPS = float(np.finfo(float).eps)
ON_GPU = (
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
)
NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
SOLVERS = {"two-stage": "two-stage", "library": "cupy.", "torch": "torch."}
"""Our kernels, cuSOLVER through CuPy beside them, and only torch; how ``solver`` then begins."""


@pytest.fixture(
    params=[
        "cpu",
        *(f"stand-in, {name}" for name in SOLVERS),
        *(pytest.param(f"gpu, {name}", marks=ON_GPU) for name in SOLVERS),
    ]
)
def backend(request, monkeypatch):
    """One of all; whatever falls back to another route warns, and that is an error."""
    where, _, solver = request.param.partition(", ")
    monkeypatch.setattr(base, "_TILE", 32)  # so that small matrices have several
    if where == "cpu":
        found = CPU
    elif where == "gpu":
        found = CudaBackend(torch.device("cuda", 0), "auto" if solver == "torch" else solver)
        if solver == "torch":
            found.kernels = None
        elif found.kernels is None:
            pytest.skip("CuPy is not installed")
    elif solver == "torch":
        found = request.getfixturevalue("torch_only")
    else:
        found = request.getfixturevalue("make")(solver)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".* not used: ", category=RuntimeWarning)
        yield found


def there(backend, values):
    """A copy on the backend's device."""
    return torch.as_tensor(values).to(backend.device, copy=True)


# One matrix


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 2, 31, 32, 33, 100])
def test_symmetrize(backend, n, dtype):
    before = torch.from_numpy(np.random.default_rng(n).normal(size=(n, n))).to(dtype).numpy()
    a = there(backend, before)
    # one addition, one exact division: the same bits everywhere
    assert backend.symmetrize_(a) == np.abs(before - before.T).max()
    assert np.array_equal(a.cpu(), (before + before.T) / 2)
    assert backend.symmetrize_(a) == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_symmetrize_reports_what_is_not_finite(backend, value):
    for places in ([(0, 0)], [(0, 40)], [(40, 0)], [(49, 3)], [(40, 40)], [(0, 40), (40, 0)]):
        a = torch.zeros(50, 50, dtype=torch.float64)
        for place in places:  # the last pair: inf - inf
            a[place] = value
        assert not np.isfinite(backend.symmetrize_(there(backend, a)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [0, 1, 2, 4, 5, 9, 33])
def test_eigvalsh(backend, n, dtype):
    matrix = symmetric(n, dtype)
    found = backend.eigvalsh(there(backend, lower_only(matrix)))
    assert close(found, matrix)
    if isinstance(backend, CudaBackend) and n:
        kernels = backend.kernels is not None
        assert backend.solver.startswith(SOLVERS[backend._policy if kernels else "torch"])


@pytest.mark.parametrize("dtype", DTYPES)
def test_eigvalsh_of_matrices_of_every_kind(backend, dtype):
    for kind, a in families(11 if backend.device.type == "cpu" else 200, 4).items():
        matrix = torch.from_numpy(a).to(dtype)
        assert close(backend.eigvalsh(there(backend, matrix)), matrix), kind


def test_eigvalsh_of_a_matrix_that_is_not_contiguous(backend):
    large = symmetric(40)
    assert close(backend.eigvalsh(there(backend, large)[::2, ::2]), large[::2, ::2].clone())


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", [(0, 0), (7, 3)])
def test_eigvalsh_refuses_what_is_not_finite(backend, value, place):
    matrix = symmetric(9)
    matrix[place] = value
    with pytest.raises(NonFiniteError, match=r"the matrix has .* NaN or infinite"):
        backend.eigvalsh(there(backend, matrix))
    batch = [symmetric(n, seed=i) for i, n in enumerate([3, 9, 9])] + [matrix]
    with pytest.raises(NonFiniteError, match="matrix 3"):
        backend.eigvalsh_batch([there(backend, one) for one in batch])


def test_eigvalsh_refuses_what_is_no_matrix(backend):
    for a in (torch.zeros(3), torch.zeros(2, 3), torch.zeros(2, 2, dtype=torch.int64)):
        words = r"give an \(n, n\) matrix|give float64 or float32"
        with pytest.raises(ConfigError, match=f"the matrix .*({words})"):
            backend.eigvalsh(a)
        with pytest.raises(ConfigError, match=f"matrix 1 .*({words})"):
            backend.eigvalsh_batch([torch.zeros(2, 2), a])
    with pytest.raises(ConfigError, match=r"a stack of shape \(3, 3\)"):
        backend.eigvalsh_batch(torch.eye(3))


@pytest.mark.parametrize("operator", ["hessian", "ggn"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_spectrum(backend, operator, dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    x = torch.randn(20, 6, dtype=torch.float64)
    problem = hr.Problem(model, "cross-entropy", (x, torch.arange(20) % 3))
    here, found = (compute(problem, one, dtype, operator) for one in (CPU, backend))
    epsilon = np.finfo(dtype).eps
    # the two matrices differ by the rounding of sums of at most B·P terms' worth of ‖H‖, each
    # sum in another order: 10 P ε ‖H‖ in norm
    tolerance = 10 * here.dimension * epsilon * np.abs(here.eigenvalues).max()
    assert np.abs(found.eigenvalues - here.eigenvalues).max() <= tolerance
    assert abs(found.loss - here.loss) <= 64 * epsilon * here.loss
    assert found.provenance.device == backend.name


def test_a_hessian_without_rows(backend):
    """A reduction may leave nothing: no launch of an empty grid, no maximum of nothing."""
    assert backend.symmetrize_(there(backend, torch.empty(0, 0, dtype=torch.float64))) == 0
    model = nn.Linear(4, 3, bias=False)
    batch = torch.zeros(5, 4), torch.arange(5) % 3
    found = compute(hr.Problem(model, "cross-entropy", batch), backend, "float64", "hessian")
    assert (found.reduced_dimension, found.rank) == (0, 0)
    np.testing.assert_array_equal(found.eigenvalues, np.zeros(12))


# Batches


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 2, 5, 33])
def test_batches(backend, n, dtype):
    stack = torch.stack([symmetric(n, dtype, seed) for seed in range(3)])
    found = backend.eigvalsh_batch(there(backend, lower_only(stack)))
    assert len(found) == 3
    assert all(close(levels, matrix) for levels, matrix in zip(found, stack, strict=True))
    again = backend.eigvalsh_batch(list(there(backend, lower_only(stack))))
    assert np.array_equal(found, again)  # to the bit


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [5, 33])
def test_stacks_of_more_rows_than_one_block_takes(backend, monkeypatch, n, dtype):
    monkeypatch.setattr(solvers, "SMALL_LIMIT", 4)
    stack = torch.stack([symmetric(n, dtype, seed) for seed in range(3)])
    found = backend.eigvalsh_batch(there(backend, lower_only(stack)))
    assert all(close(levels, matrix) for levels, matrix in zip(found, stack, strict=True))
    again = backend.eigvalsh_batch(list(there(backend, lower_only(stack))))
    assert np.array_equal(found, again)  # to the bit


def test_a_stack_with_room_between_its_rows(backend):
    room = torch.stack([symmetric(9, seed=seed) for seed in range(4)])
    for part in (np.s_[::2, :5, :5], np.s_[:, ::2, ::2]):
        found = backend.eigvalsh_batch(there(backend, room)[part])
        assert all(close(levels, a) for levels, a in zip(found, room[part], strict=True))


def test_batches_of_several_sizes_keep_their_order(backend, monkeypatch):
    monkeypatch.setattr(cpu, "TOGETHER", 7)  # the largest one by one
    sizes = [3, 9, 3, 0, 5, 3, 9, 1]
    batch = [symmetric(n, DTYPES[i % 2], seed=i) for i, n in enumerate(sizes)]
    found = backend.eigvalsh_batch([there(backend, lower_only(matrix)) for matrix in batch])
    assert [len(levels) for levels in found] == sizes
    assert all(close(levels, a) for levels, a in zip(found, batch, strict=True))
    assert backend.eigvalsh_batch([]) == []
    assert backend.eigvalsh_batch(torch.zeros(0, 5, 5)) == []


def test_batches_leave_the_number_of_threads(monkeypatch):
    before, seen = torch.get_num_threads(), []

    def solve(matrix):
        seen.append(torch.get_num_threads())
        raise torch.linalg.LinAlgError("the algorithm failed to converge")

    monkeypatch.setattr(torch.linalg, "eigvalsh", solve)
    with pytest.raises(ConvergenceError, match="failed to converge"):
        CPU.eigvalsh_batch(torch.stack([symmetric(3)] * 4))
    assert set(seen) == {1}
    assert torch.get_num_threads() == before


# Bands, staircase, power laws, GOE


def banded(draw, count, width, n):
    """Bands, and the dense matrices that they stand for; what is behind a diagonal is not used."""
    bands = draw.normal(size=(count, width + 1, n))
    diagonals = [[np.diag(row[: n - k], -k) for k, row in enumerate(band)] for band in bands]
    lower = np.array([np.sum(some, axis=0) for some in diagonals])
    return bands, lower + np.tril(lower, -1).transpose(0, 2, 1)


@pytest.mark.parametrize(
    ("width", "n"), [(0, 1), (0, 3), (1, 1), (1, 2), (1, 33), (2, 3), (2, 2), (5, 33), (12, 13)]
)
def test_eigvalsh_banded(backend, width, n):
    if width >= n:
        with pytest.raises(ConfigError, match="with r < n"):
            backend.eigvalsh_banded(np.zeros((2, width + 1, n)))
        return
    bands, matrices = banded(rng.stream(0, "bands", width, n), 3, width, n)
    before = bands.copy()
    found = backend.eigvalsh_banded(bands)
    assert (found.shape, found.dtype) == ((3, n), np.float64)
    for levels, matrix in zip(found, matrices, strict=True):
        assert close(levels, torch.from_numpy(matrix))
    where, how = backend.banded_route(width)
    ours = isinstance(backend, CudaBackend) and backend.kernels is not None and width > 0
    assert (where, "Sturm" in how) == (backend.name if ours else "cpu", ours)
    assert ("chase" in how or "dsbtrd" in how) == (width > 1)
    # a matrix alone has the same bits
    np.testing.assert_array_equal(backend.eigvalsh_banded(before[1:2])[0], found[1])
    assert backend.eigvalsh_banded(before[:0]).shape == (0, n)


@pytest.mark.parametrize(
    ("bands", "error", "words"),
    [
        (np.zeros((2, 3)), ConfigError, r"shape \(2, 3\)"),
        (np.zeros((2, 0, 3)), ConfigError, r"give \(batch, r \+ 1, n\)"),
        (np.zeros((2, 2, 3), np.float32), ConfigError, "float32; give"),
        (np.array([np.eye(2), [[0, np.inf], [0, 0]]]), NonFiniteError, "band 1 has entries"),
    ],
)
def test_bad_bands(bands, error, words):
    with pytest.raises(error, match=words):
        CPU.eigvalsh_banded(bands)


# Rows of numbers


POOLS = [([], [3]), ([0, 0], [0, 3]), ([50], []), ([300, 1, 200], [9, 99])]


@pytest.mark.parametrize("sizes", POOLS)
def test_staircase(backend, sizes):
    draw = rng.stream(0, "staircase", str(sizes))
    pool, queries = ([np.sort(draw.normal(size=k).round(1)) for k in some] for some in sizes)
    found = backend.staircase(pool, queries)
    assert len(found) == len(queries)
    every = np.concatenate([np.empty(0), *pool])
    for counts, row in zip(found, queries, strict=True):
        assert counts.dtype == np.int64
        np.testing.assert_array_equal(counts, (every[None, :] < row[:, None]).sum(axis=1))


@pytest.mark.parametrize("two_sided", [False, True])
def test_powerlaw_scan(backend, two_sided):
    draw = rng.stream(0, "scan")
    layers = [np.sort(draw.pareto(1.5, n) + 1) for n in (300, 1, 0, 127, 128, 129)] + [np.ones(5)]
    layers.append(np.sort(draw.pareto(1.5, 20) + 1).astype(np.float32))
    found = backend.powerlaw_scan(layers, two_sided=two_sided)
    for ours, layer in zip(found, layers, strict=True):
        theirs = reference.powerlaw_scan(layer, np.array([0, len(layer)]), two_sided)
        # sums of n terms, and depths ln(x_max/x) each good to 4 ε of the tail's extent, here less
        # than 10 times its mean: ε (80 + n) relative to α - 1, less than 20 n ε for n > 4; an
        # exponent y is off by as much relative to itself, and y exp(-y) < 1
        tolerance = 20 * max(1, len(layer)) * EPS
        np.testing.assert_allclose(ours[0], theirs[0], rtol=tolerance)
        np.testing.assert_allclose(ours[1], theirs[1], rtol=0, atol=tolerance)
    assert backend.powerlaw_scan([]) == []


def test_powerlaw_scan_by_hand(backend):
    ((alpha, _),) = backend.powerlaw_scan([np.array([1.0, 2.0, 4.0])])
    # tails (1, 2, 4) and (2, 4): 1 + 3/ln 8 and 1 + 2/ln 2
    np.testing.assert_allclose(alpha, [1 + 3 / np.log(8), 1 + 2 / np.log(2), np.nan], rtol=8 * EPS)


UP = np.array([1.0, 2.0, 3.0])


@pytest.mark.parametrize(
    ("bad", "error", "words"),
    [
        (np.array([1.0, np.nan]), NonFiniteError, "NaN or infinite"),
        (np.array([1.0, np.inf]), NonFiniteError, "NaN or infinite"),
        (UP[::-1], ConfigError, "do not ascend; sort"),
        (UP[None], ConfigError, "give a vector"),
        (UP.astype(int), ConfigError, "floating-point"),
    ],
)
def test_bad_values(bad, error, words):
    for call, name in (
        (lambda: CPU.staircase([bad], [UP]), "pool 0"),
        (lambda: CPU.staircase([UP], [UP, UP, bad]), "queries 2"),
        (lambda: CPU.powerlaw_scan([UP, np.empty(0), bad]), "layer 2"),
    ):
        with pytest.raises(error, match=f"{name}: .*{words}"):
            call()


def test_bad_values_of_one_verb():
    with pytest.raises(ConfigError, match=r"layer 0: the smallest value is 0; .* values > 0"):
        CPU.powerlaw_scan([UP - 1])


@pytest.mark.parametrize("n", [1, 33, 70])
def test_sample_goe(backend, n):
    found = backend.sample_goe(n, 2, KEY, first=2**32 - 1)
    assert (found.dtype, found.device) == (torch.float64, backend.device)
    twin = reference.sample_goe(n, 2, KEY, first=2**32 - 1)
    # logarithm, root and cosine of two libraries (tests/test_goe_fill.py)
    np.testing.assert_allclose(found.cpu(), twin, rtol=11.5 * EPS, atol=0)
    assert torch.equal(found, found.mT)
    assert backend.sample_goe(n, 0, KEY).shape == (0, n, n)


@pytest.mark.parametrize(
    "changed", [{"n": 0}, {"count": -1}, {"key": 2**64}, {"key": -1}, {"first": -1}]
)
def test_sample_goe_of_bad_numbers(changed):
    with pytest.raises(ConfigError, match="GOE matrices"):
        CPU.sample_goe(**{"n": 2, "count": 1, "key": 1} | changed)


def test_sample_goe_without_enough_memory(monkeypatch):
    monkeypatch.setattr(cpu, "free_host_memory", lambda: 3 * 100 * 100 * 8 + 7)
    with pytest.raises(DeviceError, match=r"enough for 3; draw them in parts"):
        CPU.sample_goe(100, 4, KEY)


# Choosing


@pytest.mark.parametrize("word", ["gpu", "cuda:", "cuda:x", "cuda:-1", "CPU", "cpu:0", "", "mps"])
def test_unknown_devices(word):
    with pytest.raises(DeviceError, match=r"unknown device .*; known are auto, cpu, cuda"):
        select(word)


@NO_GPU
def test_without_a_gpu():
    for word in ("cuda", "cuda:0", "cuda:3"):
        with pytest.raises(DeviceError, match=r"'cuda:[03]': torch .*, or take the device cpu"):
            select(word)
    for word in ("auto", "cpu"):
        assert select(word).name.startswith("cpu (")


def test_gpu_number_out_of_range(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(
        DeviceError, match="'cuda:2' is not there; this machine has cuda:0 to cuda:1"
    ):
        select("cuda:2")


@pytest.mark.parametrize("number", ["256", "999", "99999999999999999999"])
def test_a_gpu_number_that_torch_cannot_hold(monkeypatch, number):
    """torch keeps it in eight bits: cuda:256 is cuda:0 there."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(DeviceError, match=f"'cuda:{number}' is not there; this machine has cuda:0"):
        select(f"cuda:{number}")
    for word in ("cuda:01", "cuda:\u0967", "cuda:-1"):
        with pytest.raises(DeviceError, match="unknown device"):
            select(word)


def test_eigenvalues_beyond_float64_are_no_result():
    for matrix in (torch.full((5, 5), 1.7e308, dtype=torch.float64), torch.full((5, 5), 1.7e38)):
        with pytest.raises(ConvergenceError, match="not finite"):
            CPU.eigvalsh(matrix)
        with pytest.raises(ConvergenceError, match="not finite"):
            CPU.eigvalsh_batch([torch.eye(3).double(), matrix])
    with pytest.raises(ConvergenceError, match="not finite"):
        CPU.eigvalsh_banded(np.full((1, 2, 5), 1.7e308))


def test_bands_from_the_end_and_what_is_not_used():
    bands = np.random.default_rng(0).normal(size=(2, 3, 7))
    expected = CPU.eigvalsh_banded(bands.copy())
    unused = bands.copy()
    unused[:, 1, 6:] = unused[:, 2, 5:] = np.nan
    for given in (unused, bands[::-1, ::-1][::-1, ::-1]):
        np.testing.assert_array_equal(CPU.eigvalsh_banded(given), expected)


@pytest.mark.gpu
@ON_GPU[1]
def test_auto_is_the_first_gpu_and_works_on_any_stream():
    found, matrix = select("auto"), symmetric(300)
    assert found.device == torch.device("cuda", 0)
    total = torch.cuda.get_device_properties(found.device).total_memory
    assert 0 < found.free_memory() <= total
    with torch.cuda.stream(torch.cuda.Stream(found.device)):
        assert close(found.eigvalsh(matrix.to(found.device, non_blocking=True) * 2 / 2), matrix)


# Whether the kernels compile


def test_nothing_is_compiled_without_a_gpu(cli):
    reason = f"not tried: {cuda_kernels.no_device()}"
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
        if file == "goe_fill":
            raise KernelError("goe_fill_f64 could not be compiled: nvrtc: no")

    kernels = SimpleNamespace(compiled=compiled)
    monkeypatch.setattr(cuda_kernels, "import_kernels", lambda device: kernels)
    found = cuda_kernels.compile_report(torch.device("cuda", 0))
    assert set(found) == {file.stem for file in csrc().glob("*.cu")}
    assert found.pop("goe_fill").endswith("could not be compiled: nvrtc: no")
    assert set(found.values()) == {"ok"}
    monkeypatch.setattr(cuda_kernels, "import_kernels", lambda device: None)
    missing = {"all": "not tried: CuPy is not installed"}
    assert cuda_kernels.compile_report(torch.device("cuda", 0)) == missing


def test_a_cupy_that_cannot_be_imported_is_not_called_missing(monkeypatch, tmp_path):
    (tmp_path / "cupy.py").write_text("raise ImportError('libnvrtc.so.12: no such file')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    reason = "CuPy cannot be imported: libnvrtc.so.12: no such file"
    assert cuda_kernels.no_cupy() == reason
    found = cuda_kernels.compile_report(torch.device("cuda", 0))
    assert found == {"all": f"not tried: {reason}"}


def test_a_wrong_solver_is_refused_on_every_device(monkeypatch):
    monkeypatch.setenv("HESSRMT_SOLVER", "twostage")
    for word in ("auto", "cpu"):
        with pytest.raises(ConfigError, match=r"HESSRMT_SOLVER.*twostage"):
            select(word)
