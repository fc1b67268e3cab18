"""Dense to band to tridiagonal on the CPU, NumPy and torch, against LAPACK's one-stage solver."""

import tracemalloc

import numpy as np
import pytest
import torch
from dense_symmetric import error, families, sizes
from scipy import linalg
from torch.utils._python_dispatch import TorchDispatchMode

from hessrmt.backend.twostage import chase_band, prescale_, to_band, two_stage_eigenvalues
from hessrmt.errors import ConvergenceError

# λ̂ of a backward stable method: |λ̂ - λ| <= c n ε ‖A‖₂
BOUND = 20
NAMESPACES = {"numpy": np, "torch": torch}

every_type = pytest.mark.parametrize(
    ("xp", "dtype"),
    [("numpy", np.float64), ("torch", np.float64), ("torch", np.float32)],
    indirect=["xp"],
)


def array(a, xp):
    return a.copy() if xp is np else torch.from_numpy(a.copy())


def levels_of_band(band, b):
    band = np.asarray(band)
    assert not band[:, b + 1 :].any()
    return linalg.eigvals_banded(band[:, : b + 1].T.astype(np.float64), lower=True)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Threads cost far more than they bring at these sizes, above all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=NAMESPACES)
def xp(request):
    return NAMESPACES[request.param]


@every_type
@pytest.mark.parametrize(("b", "n"), [(b, n) for b in (1, 4, 8) for n in sizes(b)])
def test_every_kind_at_every_size(xp, b, n, dtype):
    for kind, a in families(n, b, dtype).items():
        expected = linalg.eigvalsh(a.astype(np.float64))
        levels = two_stage_eigenvalues(array(a, xp), xp, b)
        assert error(levels, expected, dtype) < BOUND, kind


@every_type
@pytest.mark.parametrize(("b", "n"), [(32, n) for n in sizes(32)] + [(4, 200), (8, 200), (32, 200)])
def test_the_band_has_the_eigenvalues(xp, b, n, dtype):
    """First stage alone, the second by LAPACK; single and double blocking."""
    for kind, a in families(n, b, dtype).items():
        expected = linalg.eigvalsh(a.astype(np.float64))
        for outer in (b, 4 * b) if n == 5 * b + 3 else (4 * b,):
            band = to_band(array(a, xp), b, xp, outer=outer)
            assert error(levels_of_band(band, b), expected, dtype) < BOUND, (kind, outer)


@pytest.mark.parametrize("outer", [4, 5, 8, 12, 1000])
def test_double_blocking(xp, outer):
    a = families(43, 4)["random"]
    levels = two_stage_eigenvalues(array(a, xp), xp, 4, outer=outer)
    assert error(levels, linalg.eigvalsh(a)) < BOUND


@pytest.mark.parametrize("b", [1, 2, 5])
def test_chase_of_a_band(b):
    rng = np.random.default_rng(b)
    band = np.zeros((17, 2 * b + 1))
    for k in range(b + 1):
        band[: 17 - k, k] = rng.normal(size=17 - k)
    expected = levels_of_band(band, b)
    d, e = chase_band(band, b)
    assert error(linalg.eigvalsh_tridiagonal(d, e), expected) < BOUND


def test_no_temporary_of_the_matrixs_size():
    n, b, outer = 500, 8, 16
    a = np.random.default_rng(0).normal(size=(n, n))
    a += a.T
    tracemalloc.start()
    to_band(a, b, np, outer=outer)
    peak = tracemalloc.get_traced_memory()[1] / a.itemsize
    tracemalloc.stop()
    assert peak < 6 * n * outer + (2 * b + 1) * n + 8 * n * b
    assert peak < n * n / 2


def test_the_matrix_is_worked_on_in_place(xp):
    a = array(families(20, 4)["random"], xp)
    band = to_band(a, 4, xp)
    assert float(abs(xp.diagonal(a, -4) - band[:16, 4]).max()) == 0


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("power", [-1.03, -0.99, -0.5, 0.5, 0.99])
def test_scale(xp, dtype, power):
    """Entries whose squares overflow or vanish, down to subnormal ones (power below -1)."""
    top = np.log2(float(np.finfo(dtype).max))
    scale = dtype(2.0 ** np.round(top * power))
    a = families(23, 4, dtype)["random"] / 32
    scaled = a * scale
    expected = linalg.eigvalsh((scaled / scale).astype(np.float64))
    levels = two_stage_eigenvalues(array(scaled, xp), xp, 4) / float(scale)
    # a subnormal result has no more digits than the format
    room = np.finfo(np.float64).smallest_subnormal / float(scale)
    assert error(levels, expected, dtype) < BOUND or np.abs(levels - expected).max() <= room


def test_prescaling_is_exact_and_only_where_needed(xp):
    a = families(9, 4)["random"]
    work = array(a, xp)
    assert prescale_(work) == 1
    assert np.array_equal(np.asarray(work), a)
    work = array(a * 1e-200, xp)
    factor = prescale_(work)
    assert np.log2(factor) % 1 == 0
    assert np.array_equal(np.asarray(work), a * 1e-200 * factor)
    assert 0.5 <= np.abs(np.asarray(work)).max() < 1


class Operations(TorchDispatchMode):
    """Names of torch's operations, as they are dispatched to a device."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        self.names.add(function.overloadpacket.__name__)
        return function(*arguments, **(options or {}))


def test_no_panel_waits_for_the_device():
    """On a GPU each of these copies a number to the host, hundreds of times for one matrix."""
    waiting = {"_local_scalar_dense", "_linalg_check_errors", "nonzero", "masked_select"}
    a = array(families(60, 4)["random"], torch)
    with Operations() as seen:
        to_band(a, 4, torch, outer=8)
    assert "geqrf" in seen.names
    assert not waiting & seen.names


def test_an_eigenvalue_beyond_float64_is_an_error():
    with pytest.raises(ConvergenceError, match="not finite"):
        two_stage_eigenvalues(np.full((9, 9), 1e308), np, 4)


def test_a_later_stage_that_fails_yields_no_number():
    with pytest.raises(ConvergenceError, match="not finite"):
        two_stage_eigenvalues(np.eye(9), np, 4, tridiagonal=lambda d, e: d * np.nan)
