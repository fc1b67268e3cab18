"""csrc/sturm.cu executed on the CPU: bisection on Sturm counts against LAPACK and closed forms."""

import numpy as np
import pytest
from host_kernels import Module
from hypothesis import given, settings
from hypothesis import strategies as st
from properties import examples
from scipy.linalg import eigvalsh_tridiagonal
from tridiagonals import families, glued, wilkinson

ULP = np.finfo(np.float64).eps
BLOCK = 16
GAP = 7.25  # between rows of eigenvalues

COUNTS = """
extern "C" void counts(const double *work, long long n, const double *x, long long many,
                       long long *count) {
    for (long long i = 0; i < many; ++i) {
        Sturm<1> sturm;
        sturm.start(0, 0);
        sturm.x[0] = x[i];
        sturm.advance(work, work + n, n, bounds(work[2 * n], n).pivmin);
        count[i] = sturm.count[0];
    }
}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return Module(tmp_path_factory.mktemp("sturm"), "sturm", COUNTS)


def prepare(library, d, e):
    """Rows of d and e with a gap between them, as they lie in memory."""
    batch, n = d.shape
    assert d.strides[1] == e.strides[1] == d.itemsize
    work, info = np.full(batch * (2 * n + 2), np.nan), np.full(batch, 99, np.int32)
    strides = (d.strides[0] // d.itemsize, e.strides[0] // e.itemsize)
    library.launch("sturm_prepare", (2,), (BLOCK,), d, e, n, *strides, batch, work, info)
    return work, info


def bisect(library, *arguments):
    blocks = -(-arguments[4] // BLOCK)
    library.launch("sturm_bisect_f64", (blocks, 2), (BLOCK,), *arguments)


def stack(library, d, e, first=0, wanted=None):
    batch, n = d.shape
    wanted = n if wanted is None else wanted
    work, info = prepare(library, d, e)
    levels = np.full((batch, wanted + 3), GAP)
    bisect(library, work, n, batch, first, wanted, levels, wanted + 3, info)
    assert np.all(levels[:, wanted:] == GAP)
    return levels[:, :wanted], info


def spectrum(library, d, e, dtype=np.float64):
    rows = [np.array(x, dtype, order="C").reshape(1, -1) for x in (d, e if len(e) else [0.0])]
    levels, info = stack(library, *rows)
    assert info[0] == 0
    assert np.all(np.diff(levels[0]) >= 0)
    return levels[0]


def reference(d, e):
    """LAPACK on the matrix times a power of two, near 1; the norm."""
    q = np.frexp(np.max(np.abs(np.concatenate([d, e]))))[1]
    levels = eigvalsh_tridiagonal(np.ldexp(d, -q), np.ldexp(e, -q)) if len(d) > 1 else d / 2.0**q
    return np.ldexp(levels, q), np.ldexp(np.max(np.abs(levels)), q)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(
    "n", [1, 2, 3, 33, *(pytest.param(n, marks=pytest.mark.slow) for n in (31, 32, 65, 1000))]
)
def test_every_family_agrees_with_lapack(library, n, dtype):
    for name, (d64, e64) in families(n).items():
        with np.errstate(over="ignore", under="ignore"):
            d, e = d64.astype(dtype), e64.astype(dtype)
        if not np.all(np.isfinite(np.concatenate([d, e]))):
            continue  # too large for float32
        exact, norm = reference(d.astype(np.float64), e.astype(np.float64))
        # float64's ulp for both: the float32 matrix is solved as it stands
        tolerance = 20 * n * ULP * norm
        found = spectrum(library, d, e, dtype)
        assert np.max(np.abs(found - exact)) <= tolerance + 2e-323, name


def in_extended_precision(d, e):
    """Plain bisection, no safeguards, in NumPy's longest floating-point type."""
    d, squares = np.longdouble(d), np.longdouble(np.concatenate([[0], e])) ** 2
    radius = 4 * np.longdouble(np.max(np.abs(np.concatenate([d, e]))))
    lower, upper = np.full((2, len(d)), -radius)
    upper = -lower
    for _ in range(70):
        x, pivot, count = (lower + upper) / 2, np.ones_like(lower), np.zeros(len(d), int)
        for j in range(len(d)):
            pivot = d[j] - squares[j] / pivot - x
            pivot[pivot == 0] = -1e-300
            count += pivot < 0
        below = count <= np.arange(len(d))
        lower, upper = np.where(below, x, lower), np.where(below, upper, x)
    return (lower + upper) / 2


@pytest.mark.slow
def test_the_error_is_a_few_ulps_of_the_norm(library):
    for name, (d, e) in families(100).items():
        if name in {"near overflow", "subnormal"}:
            continue
        coupling = np.abs(np.concatenate([[0], e, [0]]))
        norm = np.max(np.abs(d) + coupling[1:] + coupling[:-1])
        # sturm.cu's bound; LAPACK's own error, which grows with n, hides it elsewhere
        error = np.abs(spectrum(library, d, e) - in_extended_precision(d, e))
        assert np.max(error) <= 5 * ULP * norm, name


@pytest.mark.parametrize(
    ("d", "e"),
    [wilkinson(m) for m in (1, 10, 50)] + [glued(6, g) for g in (1e-3, 1e-14, 1e-200, 0)],
)
def test_wilkinson(library, d, e):
    exact, norm = reference(d, e)
    assert np.max(np.abs(spectrum(library, d, e) - exact)) <= 20 * len(d) * ULP * norm


@pytest.mark.parametrize("n", [2, 511, 512, 513, pytest.param(20_000, marks=pytest.mark.slow)])
def test_the_error_does_not_grow_with_n(library, n):
    # eigenvalues of the second difference; its row sums are at most 4
    d, e = np.full((1, n), 2.0), np.full((1, n), -1.0)
    wanted = min(n, 3)
    for first in {0, n // 2 - 1, n - wanted}:
        levels, info = stack(library, d, e, first, wanted)
        angle = np.pi * np.arange(first + 1, first + wanted + 1) / (2 * (n + 1))
        # sturm.cu's bound, and the rounding of the closed form (angle, sine, square: 3 ulp)
        assert np.max(np.abs(levels[0] - 4 * np.sin(angle) ** 2)) <= (5 * 4 + 3 * 4) * ULP
        assert info[0] == 0


def test_a_diagonal_matrix_is_sorted_to_half_an_ulp_of_its_norm(library):
    d = np.random.default_rng(3).uniform(-1, 1, 90)
    assert np.max(np.abs(spectrum(library, d, 0 * d[1:]) - np.sort(d))) <= ULP
    assert np.all(spectrum(library, 0 * d, 0 * d[1:]) == 0)


def test_equal_eigenvalues_come_out_equal(library):
    d, e = np.tile([0.0, 3.0, 3.0], 11), np.tile([4.0, 0.0, 0.0], 11)[:-1]
    levels = spectrum(library, d, e)
    # [[0, 4], [4, 3]] has eigenvalues 3/2 ± sqrt(73)/2
    exact = np.repeat([1.5 - np.sqrt(73) / 2, 3, 1.5 + np.sqrt(73) / 2], 11)
    assert np.max(np.abs(levels - exact)) <= (5 + 1) * 7 * ULP
    assert len(np.unique(levels)) == 3


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_batch_gives_each_matrix_its_own_levels(library, dtype):
    rng = np.random.default_rng(8)
    room = rng.normal(size=(2, 5, 25)).astype(dtype)
    d, e = room[0, :, :20], room[1, :, :23]
    levels, info = stack(library, d, e, 3, 12)
    assert np.all(info == 0)
    for row in range(5):
        alone = spectrum(library, d[row].copy(), e[row, :19].copy(), dtype)
        assert np.array_equal(levels[row], alone[3:15])


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(library, dtype, value):
    for where, place in [(0, 0), (0, 39), (1, 0), (1, 38)]:
        room = np.random.default_rng(0).normal(size=(2, 3, 40)).astype(dtype)
        room[where, 1, place] = value
        levels, info = stack(library, *room)
        assert list(info) == [0, -1, 0]
        assert np.all(np.isnan(levels[1]))
        assert np.all(np.isfinite(levels[[0, 2]]))


def test_an_unused_last_coupling_may_be_anything(library):
    d, e = np.ones((1, 6)), np.full((1, 6), 0.5)
    expected, _ = stack(library, d, e)
    e[0, 5] = np.nan
    levels, info = stack(library, d, e)
    assert info[0] == 0
    assert np.array_equal(levels, expected)


def test_an_eigenvalue_beyond_float64_is_reported(library):
    d, e = np.full((1, 2), 1.5e308), np.full((1, 2), 1.5e308)
    levels, info = stack(library, d, e)
    assert info[0] == 2  # 0 and 3e308
    assert abs(levels[0, 0]) <= 5 * ULP * 1.5e308 * 2
    assert np.isnan(levels[0, 1])


def test_a_bad_bracket_is_reported(library):
    d = np.random.default_rng(1).normal(size=(1, 9))
    work, info = prepare(library, d, d)
    work[18] /= 4  # the norm: now eigenvalues lie outside the bounds
    levels = np.empty((1, 9))
    bisect(library, work, 9, 1, 0, 9, levels, 9, info)
    assert info[0] == 9
    assert np.isnan(levels[0, 8])


ENTRY = st.one_of(
    st.floats(-1, 1), st.sampled_from([0.0, 1.0, -1.0, 1e-8, 1e-16, 1e-154, 1e-160, 1e-300, 5e-324])
)


@settings(max_examples=examples(200))
@given(
    st.integers(1, 12).flatmap(lambda n: st.tuples(*[st.lists(ENTRY, min_size=n, max_size=n)] * 2)),
    st.lists(st.floats(-3, 3), max_size=10),
)
def test_counts_never_fall_as_the_shift_grows(library, entries, shifts):
    d, e = np.array(entries)[:, None]
    n = d.shape[1]
    work, _ = prepare(library, d, e)
    # where rounding is hardest: eigenvalues, diagonal entries and their neighbours in float64
    levels = eigvalsh_tridiagonal(work[:n], np.sqrt(work[n + 1 : 2 * n])) if n > 1 else work[:1]
    x = np.concatenate([shifts, work[:n], levels, [-work[2 * n], work[2 * n]]])
    x = np.concatenate([x, np.nextafter(x, -9), np.nextafter(x, 9)])
    x = np.sort(np.concatenate([x, np.nextafter(x, -9), np.nextafter(x, 9)]))
    count = np.full(len(x), -1, np.int64)
    library.call("counts", work, n, x, len(x), count)
    assert np.all(np.diff(count) >= 0)
    assert count.min() >= 0
    assert count.max() <= n


def test_counts_are_the_numbers_of_eigenvalues_below(library):
    d, e = np.random.default_rng(5).normal(size=(2, 1, 50))
    work, _ = prepare(library, d, e)
    levels = eigvalsh_tridiagonal(work[:50], np.sqrt(work[51:100]))
    middles = (levels[1:] + levels[:-1]) / 2
    count = np.empty(49, np.int64)
    library.call("counts", work, 50, middles, 49, count)
    assert np.array_equal(count, np.arange(1, 50))
