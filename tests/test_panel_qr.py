"""csrc/panel_qr.cu on the CPU with all blocks in flight: backward errors, and LAPACK's numbers."""

import shutil

import numpy as np
import pytest
import torch
from dense_symmetric import PANEL_BOUND, error, families, levels_of_band, panel_errors, panels
from host_kernels import Module, ptx_of
from scipy import linalg

from hessrmt.backend import solvers
from hessrmt.backend.twostage import geqrf_panel, to_band

PATIENCE = 1 << 28  # looks, of which every 64th sleeps: minutes, whatever else the machine does

EXTRA = """
extern "C" void jitter_of(long long percent) { jitter_percent = percent; }
"""

every_type = pytest.mark.parametrize("dtype", [np.float64, np.float32])


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return Module(tmp_path_factory.mktemp("csrc"), "panel_qr", EXTRA)


class Grid:
    """Launches on the CPU: the words that blocks wait for are kept between panels."""

    def __init__(self, library, blocks=2, *, threads=8, at_once=None, jitter=0, looks=PATIENCE):
        self.library, self.blocks, self.threads = library, blocks, threads
        self.at_once, self.jitter, self.looks = at_once or blocks, jitter, looks
        self.flags, self.failure = np.zeros(blocks, np.uint32), np.zeros(1, np.uint32)
        self.turn = 0

    def __call__(self, a):
        (m, b), k, blocks = a.shape, min(a.shape), self.blocks
        v, w, r = (np.full(shape, np.nan, a.dtype) for shape in ((m, k), (m, k), (k, b)))
        work = np.full(2 * b * (blocks + 1) + blocks * b * b, np.nan, a.dtype)
        shared = solvers.panel_shared_bytes(-(-m // blocks), b, a.itemsize, self.threads)
        words = (self.flags, self.failure, self.turn, self.looks)
        self.library.call("jitter_of", self.jitter)
        self.library.launch(
            *("panel_qr", (blocks,), (self.threads,)),
            *(a, a.strides[0] // a.itemsize, m, b, v, w, r, work, *words),
            shared=shared,
            at_once=self.at_once,
        )
        if not self.failure[0]:
            assert len(set(self.flags)) == 1
            assert self.turn + k <= self.flags[0] <= self.turn + 3 * k
        self.turn += 3 * b
        return v, w, r


def check(a, V, W, R, kind=""):
    """Backward stable, orthogonal as a whole, and of the form that stage 1 relies on."""
    m, b = a.shape
    assert all(np.isfinite(x).all() for x in (V, W, R)), kind
    assert max(panel_errors(a, V, W, R)) < PANEL_BOUND, kind
    assert np.array_equal(R, np.triu(R))
    assert np.array_equal(V, np.tril(V))
    one = np.diagonal(V)
    assert set(one) <= {0, 1}
    assert not V[:, one == 0].any()  # the identity
    assert not W[:, one == 0].any()
    Q = np.eye(m) - W.astype(np.float64) @ V.astype(np.float64).T
    unit = b * float(np.finfo(a.dtype).eps)
    assert linalg.norm(Q.T @ Q - np.eye(m)) < PANEL_BOUND * unit, kind


SHAPES = [(1, 1), (5, 1), (1, 4), (2, 4), (3, 4), (4, 4), (5, 4), (8, 4), (23, 4), (43, 8)]


@every_type
@pytest.mark.parametrize(("m", "b"), SHAPES)
def test_every_kind_at_every_shape(library, m, b, dtype):
    for kind, a in panels(m, b, dtype).items():
        for blocks in {1, min(3, m)}:
            check(a, *Grid(library, blocks)(a), kind)


@pytest.mark.parametrize("threads", [1, 3, 4, 5, 12])
def test_any_number_of_threads(library, threads):
    for a in (panels(11, 4)["random"], panels(11, 4)["zero columns"], panels(11, 4)["tiny"]):
        check(a, *Grid(library, 2, threads=threads)(a))


@every_type
@pytest.mark.parametrize("scale", [-0.98, -0.6, 0.6, 0.98])
def test_scales_beyond_what_prescaling_leaves(library, scale, dtype):
    """Squares vanish or overflow, and products with other columns too."""
    of = np.finfo(dtype)
    a = panels(23, 4, dtype)["random"] / dtype(8)
    scaled = a * dtype(float(of.max) ** scale)
    check(scaled, *Grid(library)(scaled))
    first = max(0, 0.45 * np.sign(scale))  # its square is a number, its product with the next not
    powers = np.array([first, scale, 0, -abs(scale)])
    mixed = a * (float(of.max) ** powers).astype(dtype)
    check(mixed, *Grid(library)(mixed))


@every_type
def test_numbers_of_lapack(library, dtype):
    """Signs included; the factors of a panel are as well determined as its condition says."""
    a = panels(60, 8, dtype)["random"]
    found = Grid(library, 3)(a)
    twin = [x.numpy() for x in geqrf_panel(torch.from_numpy(a))]
    (r,) = linalg.qr(a, mode="r")
    assert np.array_equal(np.sign(np.diagonal(found[2])), np.sign(np.diagonal(r)))
    for x, expected in zip(found, twin, strict=True):
        room = 8 * float(np.finfo(dtype).eps) * np.linalg.cond(a) * PANEL_BOUND
        assert linalg.norm(x - expected) < room * linalg.norm(expected)


def test_rows_of_a_larger_matrix(library):
    wide = np.random.default_rng(0).normal(size=(23, 11))
    a = wide[:, 3:7]
    expected = Grid(library)(np.ascontiguousarray(a))
    for x, y in zip(Grid(library)(a), expected, strict=True):
        assert np.array_equal(x, y)


def test_nothing_to_annihilate_comes_back_bit_for_bit(library):
    a = panels(23, 4)["triangular"]
    V, W, R = Grid(library)(a)
    assert not V.any()
    assert not W.any()
    assert np.array_equal(R, a[:4])


@pytest.mark.parametrize("kind", ["random", "zero columns", "down to the smallest number"])
@pytest.mark.parametrize("blocks", [2, 5])
def test_same_bits_every_time(library, kind, blocks):
    """Blocks and threads that yield and sleep at random when they synchronise change nothing."""
    a = panels(23, 4)[kind]
    first = Grid(library, blocks)(a)
    for _ in range(3):
        for x, y in zip(Grid(library, blocks, jitter=5)(a), first, strict=True):
            assert np.array_equal(x, y)


def test_panels_in_turn_share_their_flags(library):
    """As in stage 1: flags only rise, and a panel takes more of them or fewer."""
    grid = Grid(library, 3, jitter=2)
    for m, kind in ((23, "random"), (19, "zero"), (15, "tiny"), (9, "random"), (3, "random")):
        a = panels(m, 4)[kind]
        check(a, *grid(a))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("place", [(0, 0), (0, 3), (11, 2), (22, 0)])
@pytest.mark.parametrize("kind", ["random", "zero"])
def test_what_is_not_finite_is_not_hidden(library, kind, place, value):
    a = panels(23, 4)[kind]
    a[place] = value
    V, W, R = Grid(library)(a)
    assert not all(np.isfinite(x).all() for x in (V, W, R))


def test_more_blocks_than_run_at_once_are_reported(library):
    """The device holds two of three: those wait in vain, and the third finds that they did."""
    grid = Grid(library, 3, at_once=2, looks=1000)
    grid(panels(23, 4)["random"])
    assert grid.failure[0] in {1, 2}
    grid.at_once = 3
    for x in grid(panels(23, 4)["random"]):  # every later launch leaves at once
        assert np.isnan(x).all()


def test_a_single_block_waits_for_nobody(library):
    a = panels(23, 4)["random"]
    check(a, *Grid(library, 1, looks=0)(a))


@every_type
def test_the_band_of_every_kind(library, dtype):
    """Stage 1 with these panels has the eigenvalues of the matrix."""
    for kind, a in families(23, 4, dtype).items():
        grid = Grid(library)

        def factor(panel, grid=grid):
            return tuple(map(torch.from_numpy, grid(panel.numpy())))

        band = to_band(torch.from_numpy(a.copy()), 4, 8, factor)
        levels = levels_of_band(band, 4)
        assert error(levels, linalg.eigvalsh(a.astype(np.float64)), dtype) < 20, kind


@pytest.mark.skipif(not shutil.which("nvcc"), reason="no nvcc")
def test_memory_between_blocks_as_the_machine_sees_it(tmp_path):
    ptx = ptx_of("panel_qr", tmp_path)
    assert "ld.acquire.gpu" in ptx
    assert "st.release.gpu" in ptx
    assert ".nc." not in ptx
    assert "atom.global.add" not in ptx  # sums in one order


@pytest.mark.slow
@every_type
def test_the_gpus_block(library, dtype):
    a = panels(200, 64, dtype)["random"]
    check(a, *Grid(library, 2, threads=512)(a))
