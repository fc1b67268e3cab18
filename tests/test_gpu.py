"""Parity: every verb of the GPU backend against its CPU twin, and whole spectra."""

import warnings

import numpy as np
import pytest
import torch
from dense_symmetric import families
from torch import nn

import hessrmt as hr
from hessrmt import rng
from hessrmt.backend.cpu import CpuBackend
from hessrmt.backend.cuda import CudaBackend
from hessrmt.backend.select import select
from hessrmt.errors import NonFiniteError

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

CPU = CpuBackend()
SIZES = [1, 2, 31, 32, 33, 100, 513]
DTYPES = [torch.float64, torch.float32]
KEY = 0xA4093822299F31D0
ROUTES = {"two-stage": "two-stage", "library": "cupy.linalg.eigvalsh", "torch": "torch."}


@pytest.fixture(params=list(ROUTES))
def route(request):
    """Our kernels, cuSOLVER through CuPy beside them, and only torch."""
    return request.param


@pytest.fixture
def cuda(route):
    """The backend of a route; whatever falls back to another one warns, and that is an error."""
    backend = CudaBackend(torch.device("cuda", 0), "auto" if route == "torch" else route)
    if route == "torch":
        backend.kernels = None
    elif backend.kernels is None:
        pytest.skip("CuPy is not installed")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".* not used: ", category=RuntimeWarning)
        yield backend


def random_matrix(n, dtype, seed=0):
    generator = torch.Generator().manual_seed(1000 * seed + n)
    return torch.randn(n, n, dtype=dtype, generator=generator)


def symmetric(n, dtype, seed=0):
    matrix = random_matrix(n, dtype, seed)
    CPU.symmetrize_(matrix)
    return matrix


def close(found, matrix):
    """Two backward-stable solvers: ‖E‖₂ ≤ p(n) ε ‖A‖₂ with p(n) a low multiple of n, then Weyl."""
    expected = CPU.eigvalsh(matrix.double())
    assert (found.dtype, found.shape) == (np.float64, expected.shape)
    assert np.all(np.diff(found) >= 0)
    unit = max(1, len(expected)) * torch.finfo(matrix.dtype).eps * np.abs(expected).max(initial=0)
    return np.abs(found - expected).max(initial=0) <= 20 * unit


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", SIZES)
def test_symmetrize(cuda, n, dtype):
    here = random_matrix(n, dtype)
    there = here.to(cuda.device, copy=True)
    assert cuda.symmetrize_(there) == CPU.symmetrize_(here)
    # one addition, one exact division: the same bits everywhere
    assert torch.equal(there.cpu(), here)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", [(0, 0), (0, 40), (40, 0)])
def test_symmetrize_reports_what_is_not_finite(cuda, value, place):
    matrix = random_matrix(50, torch.float64).to(cuda.device)
    matrix[place] = value
    assert not np.isfinite(cuda.symmetrize_(matrix))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [0, *SIZES, 1100])
def test_eigvalsh(cuda, route, n, dtype):
    matrix = symmetric(n, dtype)
    above = torch.triu(torch.ones(n, n, dtype=torch.bool), 1)
    there = torch.where(above, torch.nan, matrix).to(cuda.device)
    assert close(cuda.eigvalsh(there), matrix)
    assert n == 0 or cuda.solver.startswith(ROUTES[route])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [65, 200])
def test_eigvalsh_of_matrices_of_every_kind(cuda, n, dtype):
    for kind, a in families(n, 64).items():
        matrix = torch.from_numpy(a).to(dtype)
        assert close(cuda.eigvalsh(matrix.to(cuda.device, copy=True)), matrix), kind


def test_eigvalsh_on_another_stream(cuda):
    matrix = symmetric(300, torch.float64)
    with torch.cuda.stream(torch.cuda.Stream(cuda.device)):
        there = matrix.to(cuda.device, non_blocking=True) * 2 / 2
        assert close(cuda.eigvalsh(there), matrix)


@pytest.mark.parametrize("place", [(0, 0), (40, 7)])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_eigenvalues_of_what_is_not_finite(cuda, value, place):
    matrix = symmetric(50, torch.float64).to(cuda.device)
    matrix[place] = value
    with pytest.raises(NonFiniteError):
        cuda.eigvalsh_batch(matrix[None].clone())
    with pytest.raises(NonFiniteError):
        cuda.eigvalsh(matrix)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 2, 31, 32, 33, 100, 160, 161, 300])
def test_eigvalsh_batch_of_a_stack(cuda, n, dtype):
    stack = torch.stack([symmetric(n, dtype, seed) for seed in range(5)])
    found = cuda.eigvalsh_batch(stack.to(cuda.device, copy=True))
    assert len(found) == 5
    assert all(close(levels, matrix) for levels, matrix in zip(found, stack, strict=True))


def test_eigvalsh_batch_of_every_size(cuda):
    sizes = [3, 200, 33, 0, 64, 33, 160, 161, 3]
    batch = [symmetric(n, DTYPES[i % 2], i) for i, n in enumerate(sizes)]
    found = cuda.eigvalsh_batch([matrix.to(cuda.device, copy=True) for matrix in batch])
    assert all(close(levels, matrix) for levels, matrix in zip(found, batch, strict=True))


@pytest.mark.parametrize(("m", "n"), [(0, 3), (50, 0), (1, 1), (10_000, 7001)])
def test_staircase(cuda, m, n):
    draw = rng.stream(0, "staircase", m, n)
    pool, queries = (torch.from_numpy(np.sort(draw.normal(size=k).round(2))) for k in (m, n))
    found = cuda.staircase(pool.to(cuda.device), queries.to(cuda.device))
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, CPU.staircase(pool, queries))


def test_powerlaw_scan(cuda):
    draw = rng.stream(0, "scan")
    sizes = (1000, 1, 0, 127, 128, 129)
    layers = [torch.from_numpy(np.sort(draw.pareto(1.5, n) + 1)) for n in sizes]
    layers.append(torch.ones(5, dtype=torch.float64))
    found = cuda.powerlaw_scan([layer.to(cuda.device) for layer in layers])
    for ours, theirs, layer in zip(found, CPU.powerlaw_scan(layers), layers, strict=True):
        # sums of n terms, and depths ln(x_max/x) each good to 4 ε of the tail's extent, here less
        # than 10 times its mean: ε (80 + n) relative to α - 1, less than 20 n ε for n > 4; an
        # exponent y is off by as much relative to itself, and y exp(-y) < 1
        tolerance = 20 * max(1, len(layer)) * np.finfo(float).eps
        np.testing.assert_allclose(ours[0], theirs[0], rtol=tolerance)
        np.testing.assert_allclose(ours[1], theirs[1], rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 33, 200])
def test_sample_goe(cuda, n, dtype):
    found = cuda.sample_goe(n, 3, KEY, dtype, first=2**32 - 1)
    assert (found.dtype, found.device) == (dtype, cuda.device)
    twin = CPU.sample_goe(n, 3, KEY, dtype, first=2**32 - 1)
    # CUDA's logarithm, root and cosine against NumPy's: 4 + 7.5 ε (tests/test_goe_fill.py), and
    # where that changes what float32 is rounded to, one ε of float32
    tolerance = 11.5 * 2.0**-52 + (0 if dtype == torch.float64 else torch.finfo(dtype).eps)
    np.testing.assert_allclose(found.cpu().numpy(), twin.numpy(), rtol=tolerance, atol=0)
    assert torch.equal(found, found.mT)


def test_free_memory(cuda):
    assert 0 < cuda.free_memory() <= torch.cuda.get_device_properties(cuda.device).total_memory


def test_auto_is_the_first_gpu():
    assert select("auto").device == torch.device("cuda", 0)


@pytest.mark.parametrize("operator", ["hessian", "ggn"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_spectrum(operator, dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    x = torch.randn(20, 6, dtype=torch.float64)
    problem = hr.Problem(model, "cross-entropy", (x, torch.arange(20) % 3))
    here = hr.spectrum(problem, device="cpu", dtype=dtype, operator=operator)
    there = hr.spectrum(problem, device="cuda", dtype=dtype, operator=operator)
    epsilon = np.finfo(dtype).eps
    # the two matrices differ by the rounding of sums of at most B·P terms' worth of ‖H‖, each
    # sum in another order: 10 P ε ‖H‖ in norm
    tolerance = 10 * here.dimension * epsilon * np.abs(here.eigenvalues).max()
    assert np.abs(there.eigenvalues - here.eigenvalues).max() <= tolerance
    assert abs(there.loss - here.loss) <= 64 * epsilon * here.loss
    assert there.provenance.device.startswith("cuda:0 (")
    assert "cuda" in there.solver
