"""csrc/batched_small.cu executed on the CPU: one block per symmetric matrix, against LAPACK."""

import dense_symmetric
import numpy as np
import pytest
import tridiagonals
from host_kernels import Module
from tridiagonals import glued, wilkinson

from hessrmt.backend.solvers import small_shared_bytes

GAP = 7.25  # between rows of eigenvalues


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return Module(tmp_path_factory.mktemp("small"), "batched_small")


def stack(library, a, n=None, threads=8):
    """Levels and info of (batch, n, n) or of the leading n x n of each matrix."""
    batch, n = len(a), n or a.shape[1]
    lda, stride = a.strides[1] // a.itemsize, a.strides[0] // a.itemsize
    assert a.strides[2] == a.itemsize
    levels, info = np.full((batch, n + 2), GAP), np.full(batch, 99, np.int32)
    shared = small_shared_bytes(n)  # the shim aborts if a kernel writes behind it
    sizes, grid = (n, lda, stride, batch), (min(batch, 2),)
    library.launch("batched_small", grid, (threads,), a, *sizes, levels, n + 2, info, shared=shared)
    assert np.all(levels[:, n:] == GAP)
    return levels[:, :n], info


def dense(d, e):
    return np.diag(d) + np.diag(e, 1) + np.diag(e, -1)


def faint(a, factor):
    """A block of order 1 all but uncoupled from the first row."""
    scale = np.where(np.arange(len(a)) == 0, factor, 1.0)
    return a * np.minimum.outer(scale, scale)


def matrices(n):
    rng = np.random.default_rng(n)
    normal = rng.normal(size=(n, n))
    noise = normal + normal.T
    odd = np.arange(n) % 2 == 1
    made = {f"tridiagonal, {name}": dense(*pair) for name, pair in tridiagonals.families(n).items()}
    return (
        made
        | dense_symmetric.families(n, 3)
        | {
            "positive": normal @ normal.T,
            "huge": 1e150 * noise,
            "tiny": 1e-150 * noise,
            # a column whose squares are subnormal beside a block of order 1
            "faint": faint(noise, 1e-161),
            "arrow": faint(np.where(np.minimum.outer(range(n), range(n)) == 0, noise, 0), 1e-9)
            + np.diag(normal[0]),
            "blocks": np.where(odd[:, None] == odd, noise, 0),
            "dyadic": np.round(noise),
        }
    )


def check(library, stack_of, names):
    a, names = np.array(stack_of), np.array(names)
    n = a.shape[1]
    # LAPACK on the same numbers, times a power of two: near 1
    q = np.frexp(np.abs(a).max(axis=(1, 2)))[1]
    exact = np.linalg.eigvalsh(np.ldexp(a, -q[:, None, None]))
    # only the lower triangle is read
    a[:, *np.triu_indices(n, 1)] = np.nan
    levels, info = stack(library, a)
    assert np.all(info == 0)
    assert np.all(np.diff(levels) >= 0)
    scale = np.abs(exact).max(axis=1)
    scaled = np.ldexp(levels, -q[:, None])
    # an eigenvalue that is subnormal in float64 loses what its exponent can't hold
    limit = 20 * n * np.finfo(float).eps * scale + np.ldexp(1.0, np.maximum(-1074 - q, -1074))
    error = np.abs(scaled - exact).max(axis=1)
    assert np.all(error <= limit), names[error > limit]


@pytest.mark.parametrize(
    "n",
    [1, 2, 3, 4, 31, 32, 33, *(pytest.param(n, marks=pytest.mark.slow) for n in (64, 100, 160))],
)
def test_every_family_agrees_with_lapack(library, n):
    made = matrices(n)
    check(library, list(made.values()), list(made))


def test_the_largest_matrices_agree_with_lapack(library):
    made, names = matrices(160), ["random", "rank-deficient", "graded", "two levels"]
    check(library, [made[name] for name in names], names)


def test_wilkinson(library):
    check(library, [dense(*wilkinson(10))], ["W21+"])
    for glue in (1e-8, 1e-14):
        check(library, [dense(*glued(4, glue))], [f"glued, {glue}"])


def test_the_bits_do_not_depend_on_the_block(library):
    a = np.random.default_rng(2).normal(size=(1, 37, 37))
    levels = [stack(library, a, threads=threads)[0] for threads in (1, 5, 32, 40, 64)]
    assert all(np.array_equal(levels[0], other) for other in levels)


def test_a_batch_gives_each_matrix_its_own_levels(library):
    room = np.random.default_rng(4).normal(size=(5, 20, 23))
    levels, info = stack(library, room, n=17)
    assert np.all(info == 0)
    for row in range(5):
        alone, _ = stack(library, np.ascontiguousarray(room[row : row + 1, :17, :17]))
        assert np.array_equal(levels[row], alone[0])


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(library, value):
    for n, place in [(1, (0, 0)), (2, (1, 0)), (33, (32, 0)), (33, (32, 32)), (33, (20, 11))]:
        a = np.random.default_rng(0).normal(size=(3, n, n))
        a[1][place] = value
        levels, info = stack(library, a)
        assert list(info) == [0, -1, 0]
        assert np.all(np.isnan(levels[1]))
        assert np.all(np.isfinite(levels[[0, 2]]))


def test_an_eigenvalue_beyond_float64_is_reported(library):
    levels, info = stack(library, np.full((1, 3, 3), 1.5e308))
    assert info[0] == 3  # 0, 0 and 4.5e308
    assert np.all(np.abs(levels[0, :2]) <= 20 * 3 * np.finfo(float).eps * 1.5e308 * 3)
    assert np.isnan(levels[0, 2])
