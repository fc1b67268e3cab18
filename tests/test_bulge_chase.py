"""csrc/bulge_chase.cu on the CPU, several blocks in flight, against LAPACK and its plain twin."""

import shutil

import numpy as np
import pytest
import torch
from dense_symmetric import error as error_of
from dense_symmetric import families, levels_of_band, sizes
from host_kernels import Module, ptx_of
from scipy import linalg

from hessrmt.backend.solvers import chase_shared_bytes
from hessrmt.backend.twostage import two_stage_eigenvalues

PATIENCE = 1 << 28  # looks, of which every 64th sleeps: minutes, whatever else the machine does

JITTER = """
extern "C" void jitter_of(long long percent) { jitter_percent = percent; }
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return Module(tmp_path_factory.mktemp("csrc"), "bulge_chase", JITTER)


class GaveUpError(Exception):
    pass


@pytest.fixture(scope="module")
def chase(library):
    """The kernel's launch on the CPU: bands of a batch to d, e; bands are overwritten."""

    def run(
        bands, b, *, in_flight=2, blocks=None, threads=4, jitter=0, looks=PATIENCE, begun=(0, 0)
    ):
        bands = np.ascontiguousarray(bands)
        batch, n, height = bands.shape
        assert height == 2 * b + 1
        d, e = (np.full((batch, n), np.nan, bands.dtype) for _ in range(2))
        state = np.zeros(2 + batch * n, np.uint32)
        state[:2] = begun  # sweeps taken, and the failed one
        library.call("jitter_of", jitter)
        library.launch(
            *("bulge_chase", (blocks or in_flight,), (threads,)),
            *(bands, n, b, batch, d, e, state, looks),
            shared=chase_shared_bytes(b, bands.itemsize, threads),
            at_once=in_flight,
        )
        if state[1]:
            raise GaveUpError(int(state[1]))
        # every sweep did its steps, and said so
        done = state[2:].reshape(batch, n)
        steps = -(-(n - 1 - np.arange(n)) // b)
        assert np.array_equal(done, np.broadcast_to(np.maximum(steps, 1), (batch, n)))
        assert np.all(e[:, -1] == 0)
        return d, e[:, :-1]

    return run


def random_band(n, b, seed=0, dtype=np.float64, width=None):
    """(n, 2b+1) band of half-width ``width``, with room for the bulges."""
    band = np.zeros((n, 2 * b + 1), dtype)
    rng = np.random.default_rng([seed, n, b])
    for k in range(min(n, (b if width is None else width) + 1)):
        band[: n - k, k] = rng.normal(size=n - k)
    return band


def error(d, e, expected, dtype=np.float64):
    """Largest error of the eigenvalues in units of n ε ‖A‖₂."""
    return error_of(tridiagonal(d, e), expected, dtype)


def tridiagonal(d, e):
    d, e = d.astype(np.float64), e.astype(np.float64)
    return linalg.eigvalsh_tridiagonal(d, e) if len(d) > 1 else d


def same_bits(one, other):
    return all(np.array_equal(x, y) for x, y in zip(one, other, strict=True))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(("b", "n"), [(b, n) for b in (1, 2, 4, 8) for n in sizes(b)])
def test_eigenvalues_are_those_of_the_band(chase, b, n, dtype):
    band = random_band(n, b, dtype=dtype)
    expected = levels_of_band(band, b)
    d, e = chase(band[None], b)
    assert error(d[0], e[0], expected, dtype) < 20


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(("b", "n"), [(4, n) for n in sizes(4)] + [(8, 43)])
@pytest.mark.slow
def test_dense_matrices_of_every_kind(chase, b, n, dtype):
    """The way of the GPU but for the third stage: to_band, this kernel."""

    def second(band, b):
        d, e = chase(band.numpy()[None], b)
        return d[0], e[0]

    for kind, a in families(n, b, dtype).items():
        expected = linalg.eigvalsh(a.astype(np.float64))
        given = torch.from_numpy(a.copy())
        levels = two_stage_eigenvalues(given, b, 2 * b, chase=second, tridiagonal=tridiagonal)
        assert error_of(levels, expected, dtype) < 20, kind


@pytest.mark.parametrize("threads", [1, 3, 4, 8, 12])
def test_any_number_of_threads(chase, threads):
    band = random_band(23, 4)
    d, e = chase(band[None].copy(), 4, threads=threads)
    assert error(d[0], e[0], levels_of_band(band, 4)) < 20


@pytest.mark.parametrize("in_flight", [1, 2, 3, 6])
def test_same_bits_for_any_number_of_blocks(chase, in_flight):
    """Blocks that yield and sleep at random when they synchronise change nothing."""
    band = random_band(60, 4, seed=1)
    alone = chase(band[None].copy(), 4, in_flight=1)
    for blocks in (in_flight, in_flight + 3):  # the second: more blocks than the device holds
        together = chase(band[None].copy(), 4, in_flight=in_flight, blocks=blocks, jitter=5)
        assert same_bits(alone, together)
    assert error(alone[0][0], alone[1][0], levels_of_band(band, 4)) < 20


def test_batch(chase):
    bands = np.stack([random_band(23, 4, seed) for seed in range(3)])
    d, e = chase(bands.copy(), 4, in_flight=4, jitter=5)
    for i, band in enumerate(bands):
        assert same_bits(chase(band[None].copy(), 4), (d[i : i + 1], e[i : i + 1]))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("width", [0, 1, 2])
def test_narrower_bands(chase, width, dtype):
    """Diagonal and tridiagonal input has nothing to annihilate and comes back bit for bit."""
    band = random_band(23, 4, dtype=dtype, width=width)
    d, e = chase(band[None].copy(), 4)
    if width < 2:
        assert np.array_equal(d[0], band[:, 0])
        assert np.array_equal(e[0], band[:-1, 1])
    assert error(d[0], e[0], levels_of_band(band, 4), dtype) < 20


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("power", [-0.98, -0.6, 0.6, 0.98])
def test_scales_whose_squares_vanish_or_overflow(chase, dtype, power):
    scale = dtype(float(np.finfo(dtype).max) ** power)
    band = random_band(23, 4, dtype=dtype) / 8
    d, e = chase((band * scale)[None], 4)
    exact = levels_of_band(band * scale / scale, 4)
    # below the normal numbers ε is as large as the spacing of the subnormal ones
    lost = 23 * float(np.finfo(dtype).smallest_subnormal) / float(scale) / np.abs(exact).max()
    gap = error(d[0].astype(np.float64) / scale, e[0].astype(np.float64) / scale, exact, dtype)
    assert gap < 20 + 20 * lost / np.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_graded(chase, dtype):
    """Entries fall over the whole range of the exponent: columns whose squares vanish, beside 1."""
    band = random_band(43, 4, dtype=dtype)
    grade = np.logspace(0, np.log10(np.finfo(dtype).tiny), 43)
    for k in range(5):
        band[: 43 - k, k] *= np.sqrt(grade[: 43 - k] * grade[k:]).astype(dtype)
    expected = levels_of_band(band, 4)
    d, e = chase(band[None], 4)
    assert error(d[0], e[0], expected, dtype) < 20


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("place", [(0, 0), (0, 3), (11, 2), (22, 0)])
def test_what_is_not_finite_is_not_hidden(chase, value, place):
    band = random_band(23, 4)
    band[place] = value
    d, e = chase(band[None], 4)
    assert not (np.isfinite(d).all() and np.isfinite(e).all())
    d, e = chase(np.where(np.isfinite(band), 0, band)[None], 4)
    assert not (np.isfinite(d).all() and np.isfinite(e).all())


@pytest.mark.parametrize("in_flight", [1, 2, 3])
def test_a_wait_without_end_is_reported(chase, in_flight):
    """Nobody has sweep 0, the others wait in vain: every block leaves, and the kernel says so."""
    with pytest.raises(GaveUpError, match=r"^[234]$"):
        chase(random_band(23, 4)[None], 4, in_flight=in_flight, looks=1000, begun=(1, 0))


def test_blocks_leave_when_another_has_failed(chase):
    with pytest.raises(GaveUpError, match=r"^7$"):
        chase(random_band(23, 4)[None], 4, in_flight=2, begun=(0, 7))


@pytest.mark.skipif(not shutil.which("nvcc"), reason="no nvcc")
def test_the_pointers_are_never_read_through_the_read_only_cache(tmp_path):
    ptx = ptx_of("bulge_chase", tmp_path)
    assert "ld.global.f64" in ptx
    assert ".nc." not in ptx
    assert "ld.acquire.gpu" in ptx
    assert "st.release.gpu" in ptx


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_the_gpus_block(chase, dtype):
    band = random_band(140, 64, dtype=dtype)
    expected = levels_of_band(band, 64)
    d, e = chase(band[None], 64, threads=256)
    assert error(d[0], e[0], expected, dtype) < 20
