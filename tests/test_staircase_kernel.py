"""Counting function of a pool: the CUDA source on the CPU against its twin and against counting."""

import numpy as np
import pytest
from host_kernels import build, call
from hypothesis import given, settings
from hypothesis import strategies as st
from properties import examples

import hessrmt as hr
from hessrmt import rng
from hessrmt.backend.reference import staircase

BLOCK = 256
CANARY = -7

LAUNCHERS = """
extern "C" void run_@(long long grid, long long block, const REAL *pool, long long m,
                      const REAL *queries, long long n, long long *counts) {
    launch(dim3{unsigned(grid)}, dim3{unsigned(block)}, staircase_@, pool, m, queries, n, counts);
}
"""


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    """The kernel on the CPU: counts for the queries, with nothing written around them."""
    loaded = build(tmp_path_factory.mktemp("csrc"), "staircase", LAUNCHERS)

    def run(pool, queries, block=BLOCK):
        assert pool.dtype == queries.dtype
        room = np.full(len(queries) + 2 * BLOCK, CANARY, np.int64)
        counts = room[BLOCK : BLOCK + len(queries)]
        function = {8: loaded.run_f64, 4: loaded.run_f32}[pool.itemsize]
        grid = -(-len(queries) // block)
        call(function, grid, block, pool, len(pool), queries, len(queries), counts)
        assert np.all(np.delete(room, np.s_[BLOCK : BLOCK + len(queries)]) == CANARY)
        return counts

    return run


def counted(pool, queries):
    """The definition, pair by pair."""
    return (pool[None, :] < queries[:, None]).sum(axis=1)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("m", [0, 1, 2, 1000])
@pytest.mark.parametrize("n", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1])
def test_counts(kernel, n, m, dtype):
    draw = rng.stream(0, "staircase", n, m)
    # rounded, so that many values coincide, also between pool and queries
    pool = np.sort(draw.normal(size=m).round(1)).astype(dtype)
    queries = np.sort(draw.normal(size=n).round(1)).astype(dtype)
    expected = counted(pool, queries)
    for counts in (kernel(pool, queries), staircase(pool, queries)):
        assert counts.dtype == np.int64
        np.testing.assert_array_equal(counts, expected)


numbers = st.lists(
    st.floats(allow_nan=False, width=32) | st.sampled_from([0.0, -0.0, 1.0, 2.0]), max_size=40
)


@settings(max_examples=examples(100))
@given(numbers, numbers, st.booleans(), st.sampled_from([np.float64, np.float32]))
def test_counts_of_any_numbers(kernel, pool, queries, ascending, dtype):
    pool = np.sort(np.array(pool, dtype))
    queries = np.array(queries, dtype)
    if ascending:
        queries.sort()
    expected = counted(pool, queries)
    np.testing.assert_array_equal(kernel(pool, queries, block=8), expected)
    np.testing.assert_array_equal(staircase(pool, queries), expected)


def test_pooled_unfolding_is_the_staircase():
    spectra = [hr.ensembles.goe(50, 1, i).eigenvalues for i in range(4)]
    pool = np.sort(np.concatenate(spectra[1:]))
    expected = hr.levels.unfold(spectra[0], "pooled", pool=spectra[1:])
    np.testing.assert_array_equal(staircase(pool, spectra[0]) / 3, expected)
