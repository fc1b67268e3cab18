"""Parity: every verb of the GPU backend against its CPU twin, and whole spectra."""

import numpy as np
import pytest
import torch
from torch import nn

import hessrmt as hr
from hessrmt.backend.cpu import CpuBackend
from hessrmt.backend.cuda import CudaBackend
from hessrmt.backend.select import select

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

CPU = CpuBackend()
SIZES = [1, 2, 31, 32, 33, 100, 513]
DTYPES = [torch.float64, torch.float32]


@pytest.fixture(params=["cupy", "torch"])
def cuda(request):
    """The backend with this package's kernels and CuPy, and the one that has only torch."""
    backend = CudaBackend(torch.device("cuda", 0))
    if request.param == "torch":
        backend._cupy = None
    elif backend._cupy is None:
        pytest.skip("CuPy is not installed")
    return backend


def random_matrix(n, dtype):
    return torch.randn(n, n, dtype=dtype, generator=torch.Generator().manual_seed(n))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", SIZES)
def test_symmetrize(cuda, n, dtype):
    here = random_matrix(n, dtype)
    there = here.to(cuda.device)
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
@pytest.mark.parametrize("n", SIZES)
def test_eigvalsh(cuda, n, dtype):
    matrix = random_matrix(n, dtype)
    CPU.symmetrize_(matrix)
    expected = CPU.eigvalsh(matrix.clone())
    found = cuda.eigvalsh(matrix.to(cuda.device))
    assert (found.dtype, found.shape) == (np.float64, (n,))
    assert np.all(np.diff(found) >= 0)
    # two backward-stable solvers: ‖E‖₂ ≤ p(n) ε ‖A‖₂ with p(n) a low multiple of n, then Weyl
    tolerance = 10 * n * torch.finfo(dtype).eps * np.abs(expected).max()
    assert np.abs(found - expected).max() <= tolerance


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
