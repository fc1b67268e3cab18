"""Dense to band to tridiagonal on the CPU, against LAPACK's one-stage solver."""

import numpy as np
import pytest
import torch
from dense_symmetric import error, families, levels_of_band, sizes
from scipy import linalg
from torch.utils._python_dispatch import TorchDispatchMode

from hessrmt.backend import twostage
from hessrmt.backend.twostage import prescale_, to_band, two_stage_eigenvalues
from hessrmt.errors import ConvergenceError

pytest_plugins = ["fake_gpu"]

# λ̂ of a backward stable method: |λ̂ - λ| <= c n ε ‖A‖₂
BOUND = 20

every_type = pytest.mark.parametrize("dtype", [np.float64, np.float32])


def tensor(a):
    return torch.from_numpy(a.copy())


def two_stage(a, b, outer=None, tridiagonal=levels_of_band):
    """Scaling and the first stage; the others by LAPACK, of the band as it is."""
    return two_stage_eigenvalues(
        tensor(a), b, outer or b, chase=lambda band, b: (band, b), tridiagonal=tridiagonal
    )


@every_type
@pytest.mark.parametrize(
    ("b", "n"), [(b, n) for b in (1, 4, 8, 32) for n in sizes(b)] + [(4, 200), (8, 200), (32, 200)]
)
def test_the_band_has_the_eigenvalues_of_every_kind_at_every_size(b, n, dtype):
    for kind, a in families(n, b, dtype).items():
        expected = linalg.eigvalsh(a.astype(np.float64))
        for outer in (b, 4 * b) if n == 5 * b + 3 else (4 * b,):  # single and double blocking
            assert error(two_stage(a, b, outer), expected, dtype) < BOUND, (kind, outer)


@pytest.mark.parametrize("outer", [4, 5, 8, 12, 1000])
def test_double_blocking(outer):
    a = families(43, 4)["random"]
    assert error(two_stage(a, 4, outer), linalg.eigvalsh(a)) < BOUND


@pytest.mark.parametrize("square", [1, 3, 7, 42])
def test_updates_by_block_columns_of_the_lower_triangle(monkeypatch, square):
    monkeypatch.setattr(twostage, "_SQUARE", square)
    for kind in ("random", "graded", "graded up"):
        a = families(43, 4)[kind]
        assert error(two_stage(a, 4, 8), linalg.eigvalsh(a)) < BOUND, kind


def test_the_matrix_is_worked_on_in_place():
    a = tensor(families(20, 4)["random"])
    band = to_band(a, 4, 4)
    assert torch.equal(torch.diagonal(a, -4), band[:16, 4])


@every_type
@pytest.mark.parametrize("power", [-1.03, -0.99, -0.5, 0.5, 0.99])
def test_scale(dtype, power):
    """Entries whose squares overflow or vanish, down to subnormal ones (power below -1)."""
    top = np.log2(float(np.finfo(dtype).max))
    scale = dtype(2.0 ** np.round(top * power))
    a = families(23, 4, dtype)["random"] / 32
    scaled = a * scale
    expected = linalg.eigvalsh((scaled / scale).astype(np.float64))
    levels = two_stage(scaled, 4) / float(scale)
    # a subnormal result has no more digits than the format
    room = np.finfo(np.float64).smallest_subnormal / float(scale)
    assert error(levels, expected, dtype) < BOUND or np.abs(levels - expected).max() <= room


def test_prescaling_is_exact_and_only_where_needed():
    a = families(9, 4)["random"]
    work = tensor(a)
    assert prescale_(work) == 1
    assert np.array_equal(work, a)
    work = tensor(a * 1e-200)
    factor = prescale_(work)
    assert np.log2(factor) % 1 == 0
    assert np.array_equal(work, a * 1e-200 * factor)
    assert 0.5 <= work.abs().max() < 1


WAITING = {"_local_scalar_dense", "_linalg_check_errors", "nonzero", "masked_select"}
"""On a GPU each of these copies a number to the host, hundreds of times for one matrix."""


class Operations(TorchDispatchMode):
    """Names of torch's operations as they are dispatched to a device, and sizes of new tensors."""

    def __init__(self, given):
        super().__init__()
        self.given, self.names, self.largest = given.untyped_storage().data_ptr(), set(), 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        found = function(*arguments, **(options or {}))
        self.names.add(function.overloadpacket.__name__)
        for one in found if isinstance(found, tuple | list) else (found,):
            if torch.is_tensor(one) and one.untyped_storage().data_ptr() != self.given:
                self.largest = max(self.largest, one.untyped_storage().nbytes() // one.itemsize)
        return found


def test_no_panel_waits_for_the_device_or_takes_a_second_matrix():
    n, b, outer = 500, 8, 16
    a = tensor(families(n, b)["random"])
    with Operations(a) as seen:
        to_band(a, b, outer)
    assert "geqrf" in seen.names
    assert not WAITING & seen.names
    assert seen.largest <= 2 * n * 2 * outer  # both sides of an update


def test_no_panel_of_the_gpu_waits_for_it(make):
    """Its kernel is launched; only whether a block waited in vain is read, after all panels."""
    n, b = 50, 4
    a = tensor(families(n, b)["random"])
    panels = make().kernels.panels(n, b, a.dtype)
    with Operations(a) as seen:
        to_band(a, b, 2 * b, panels.factor)
    assert not (WAITING | {"geqrf"}) & seen.names
    with Operations(a) as seen:
        panels.check()
    assert WAITING & seen.names


@pytest.mark.parametrize(
    ("a", "stage"),
    [(np.full((9, 9), 1e308), levels_of_band), (np.eye(9), lambda *_: np.full(9, np.nan))],
)
def test_what_is_not_finite_in_the_end_is_an_error(a, stage):
    """An eigenvalue beyond float64, and a later stage that fails."""
    with pytest.raises(ConvergenceError, match="not finite"):
        two_stage(a, 4, tridiagonal=stage)
