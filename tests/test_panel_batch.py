"""csrc/panel_batch.cu on the CPU: QR of panels, and the batched first stage that is made of it."""

import numpy as np
import pytest
import torch
from dense_symmetric import error, families, levels_of_band, sizes
from host_kernels import Module
from scipy import linalg

from hessrmt.backend.solvers import batched_panel_bytes
from hessrmt.backend.twostage import two_stage_batch
from hessrmt.errors import ConvergenceError

# Householder's QR and what is built on it are backward stable: errors of c n ε ‖A‖
BOUND = 20
EPS = np.finfo(float).eps


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return Module(tmp_path_factory.mktemp("csrc"), "panel_batch")


@pytest.fixture(scope="module")
def panels(library):
    """The kernel's launch on the CPU: columns (batch, b, rows), a view too, to V, T, R."""

    def run(given, threads=4, blocks=2):
        batch, b, rows = given.shape
        v, (t, r) = np.full((batch, b, rows), np.nan), np.zeros((2, batch, b, b))
        strides = (given.strides[1] // given.itemsize, given.strides[0] // given.itemsize)
        library.launch(
            *("panel_batch", (blocks,), (threads,)),
            *(given, *strides, rows, b, batch, v, t, r),
            shared=batched_panel_bytes(rows, b),
        )
        k = min(rows, b)
        assert not t[:, k:].any()
        assert not r[:, k:].any()
        return v[:, :k].swapaxes(1, 2), t[:, :k, :k], r[:, :k]

    return run


def kinds(rows, b):
    """Panels (rows, b) that are hard on a reflector."""
    noise = np.random.default_rng([rows, b]).normal(size=(rows, b)) / 4
    tiny, first = float(np.finfo(float).tiny), np.arange(b) == b // 2
    return {
        "random": noise,
        "zero": 0 * noise,
        "rank 1": np.outer(noise[:, 0], noise[0]),
        "equal columns": np.repeat(noise[:, :1], b, axis=1),
        "triangular": np.triu(noise),
        "graded": noise * np.logspace(0, np.log10(tiny), b),
        "graded rows": noise * np.logspace(0, np.log10(tiny), rows)[:, None],
        "graded rows, up": noise * np.logspace(np.log10(tiny), 0, rows)[:, None],
        "a column whose squares vanish": np.where(first, noise * np.sqrt(tiny) / 8, noise),
        "a subnormal column": np.where(first, noise * tiny / 8, noise),
    }


@pytest.mark.parametrize(
    ("rows", "b"), [(1, 1), (33, 1), (1, 4), (3, 4), (4, 4), (5, 4), (40, 4), (70, 8)]
)
def test_a_panel_is_an_orthogonal_matrix_times_a_triangle(panels, rows, b):
    given = kinds(rows, b)
    v, t, r = panels(np.ascontiguousarray(np.stack(list(given.values())).swapaxes(1, 2)))
    allowed, k = BOUND * max(rows, b) * EPS, min(rows, b)
    dropped = np.sqrt(b) * 1e-140  # of columns so small
    for number, (kind, a) in enumerate(given.items()):
        V, T, R = (x[number] for x in (v, t, r))
        assert np.array_equal(V, np.tril(V, -1) + np.eye(rows, k)), kind
        assert np.array_equal(T, np.triu(T)), kind
        assert np.array_equal(R, np.triu(R)), kind
        Q = np.eye(rows) - V @ T @ V.T
        assert np.linalg.norm(Q.T @ Q - np.eye(rows), 2) <= allowed, kind
        distance = np.linalg.norm(Q[:, :k] @ R - a, 2)
        assert distance <= allowed * np.linalg.norm(a) + dropped, kind


@pytest.mark.parametrize(("threads", "blocks"), [(1, 1), (3, 2), (32, 1), (40, 4)])
def test_same_bits_for_any_block(panels, threads, blocks):
    given = np.random.default_rng(0).normal(size=(3, 4, 37))
    expected = panels(given)
    found = panels(given, threads, blocks)
    assert all(np.array_equal(x, y) for x, y in zip(found, expected, strict=True))


def test_a_panel_inside_a_larger_matrix(panels):
    """As it is given: the rows of the block that mirrors the panel."""
    a = np.random.default_rng(0).normal(size=(3, 20, 20))
    part = a[:, 4:8, 8:]
    expected = panels(np.ascontiguousarray(part))
    assert all(np.array_equal(x, y) for x, y in zip(panels(part), expected, strict=True))


# The first stage of a batch


@pytest.fixture(scope="module")
def two_stages(panels):
    """Scaling and the first stage, here with the kernel; the others by LAPACK."""

    def first(given):
        return tuple(torch.from_numpy(x) for x in panels(given.numpy()))

    def rest(bands, b):
        return np.stack([levels_of_band(band, b) for band in bands])

    def run(stack, b, tridiagonal=rest):
        there = torch.from_numpy(stack.copy())
        same = {"panels": first, "chase": lambda bands, b: (bands, b)}
        return two_stage_batch(there, b, tridiagonal=tridiagonal, **same)

    return run


@pytest.mark.parametrize(("b", "n"), [(b, n) for b in (1, 4) for n in sizes(b)] + [(8, 43)])
def test_the_bands_have_the_eigenvalues_of_every_kind(two_stages, b, n):
    every = families(n, b)
    found = two_stages(np.stack(list(every.values())), b)
    for (kind, a), levels in zip(every.items(), found, strict=True):
        assert error(levels, linalg.eigvalsh(a)) < BOUND, kind


def test_scales_do_not_mix(two_stages):
    """From the largest numbers down to subnormal ones in one stack, and zeros."""
    a, top = families(23, 4)["random"] / 32, np.log2(float(np.finfo(float).max))
    scales = [2.0 ** np.round(top * power) for power in (0.99, 0.5, 0, -0.5, -0.99, -1.03)]
    stack = np.stack([*(a * scale for scale in scales), 0 * a])
    found = two_stages(stack, 4)
    for scale, given, levels in zip(scales, stack, found, strict=False):
        expected = linalg.eigvalsh(given / scale)
        # a subnormal result has no more digits than the format
        room = np.finfo(float).smallest_subnormal / scale
        gap = np.abs(levels / scale - expected).max()
        assert error(levels / scale, expected) < BOUND or gap <= room
    assert not found[-1].any()


def test_what_is_not_finite_in_the_end_is_an_error(two_stages):
    with pytest.raises(ConvergenceError, match="not finite"):
        two_stages(np.full((2, 9, 9), 1e308), 4)
    with pytest.raises(ConvergenceError, match="not finite"):
        two_stages(np.stack([np.eye(9)] * 2), 4, lambda *_: np.full((2, 9), np.nan))
