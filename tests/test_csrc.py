"""The CUDA sources without a GPU: executed on the CPU from the same text, and compiled by nvcc.

What a backend gives by them is in test_backend.py, the kernels with a method of their own in files
with their names.
"""

import shutil
import subprocess

import numpy as np
import pytest
from host_kernels import Module
from hypothesis import example, given, settings
from hypothesis import strategies as st
from properties import examples

import hessrmt as hr
from hessrmt.backend import kernels
from hessrmt.backend.cuda_kernels import TILE, TILE_BLOCK
from hessrmt.backend.reference import staircase

COUNTER = """
extern "C" void atomics(long long *count) { *count = host_atomics.exchange(0); }
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return Module(tmp_path_factory.mktemp("csrc"), "symmetrize", COUNTER)


@pytest.fixture(scope="module")
def symmetrize(library):
    """The kernel's launch on the CPU: array in place, returns what the backend returns."""

    def run(a):
        worst, tiles = np.zeros(1, np.uint64), -(-len(a) // TILE)
        library.launch("symmetrize", (tiles, tiles), TILE_BLOCK, a, len(a), worst)
        return worst.view(np.float64)[0]

    return run


def test_symmetrize_takes_one_atomic_a_block(symmetrize, library):
    count = np.zeros(1, np.int64)
    library.call("atomics", count)
    symmetrize(np.random.default_rng(0).normal(size=(100, 100)))
    library.call("atomics", count)
    tiles = -(-100 // TILE)
    assert 0 < count[0] <= tiles * (tiles + 1) // 2


def test_source_is_self_contained():
    for file in kernels.csrc().glob("*.cu"):
        text = kernels.source(file.stem)
        assert "#include" not in text
        assert "ordered_bits(double" in text


@pytest.mark.skipif(not shutil.which("nvcc"), reason="no nvcc")
@pytest.mark.parametrize(
    "architecture",
    ["sm_80", "sm_90", *(pytest.param(a, marks=pytest.mark.slow) for a in ("sm_75", "sm_100"))],
)
@pytest.mark.parametrize("file", sorted(path.stem for path in kernels.csrc().glob("*.cu")))
def test_compiles_for_every_architecture(tmp_path, file, architecture):
    supported = subprocess.run(
        ["nvcc", "--list-gpu-code"], capture_output=True, text=True, check=True
    )
    if architecture not in supported.stdout.split():
        pytest.skip(f"this nvcc does not know {architecture}")
    text = tmp_path / f"{file}.cu"
    text.write_text(kernels.source(file))
    strict = ["-Werror", "all-warnings", "-cubin", f"-arch={architecture}"]
    command = ["nvcc", *kernels.OPTIONS, "-ftz=true", *strict]  # -ftz as CuPy adds
    done = subprocess.run(
        [*command, text, "-o", tmp_path / "a.cubin"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.cubin").stat().st_size > 0


# Staircases


THREADS = 256


@pytest.fixture(scope="module")
def staircase_kernel(tmp_path_factory):
    """The kernel on the CPU: counts for the queries."""
    loaded = Module(tmp_path_factory.mktemp("csrc"), "staircase")

    def run(pool, queries, block=THREADS):
        n = len(queries)
        counts = np.full(n, -7)
        if n:
            grid = (-(-n // block),)
            loaded.launch("staircase", grid, (block,), pool, len(pool), queries, n, counts)
        return counts

    return run


def counted(pool, queries):
    """The definition, pair by pair."""
    return (pool[None, :] < queries[:, None]).sum(axis=1)


numbers = st.lists(
    st.floats(allow_nan=False, width=32) | st.sampled_from([0.0, -0.0, 1.0, 2.0]), max_size=40
)


@settings(max_examples=examples(100))
@given(numbers, numbers, st.booleans(), st.sampled_from([np.float64, np.float32]))
@example(list(range(9)), [0.5] * (THREADS + 1), True, np.float64)
def test_counts_of_any_numbers(staircase_kernel, pool, queries, ascending, dtype):
    pool = np.sort(np.array(pool, dtype))
    queries = np.array(queries, dtype)
    if ascending:
        queries.sort()
    expected = counted(pool, queries)
    block = THREADS if len(queries) > THREADS else 8
    np.testing.assert_array_equal(staircase_kernel(pool, queries, block), expected)
    np.testing.assert_array_equal(staircase(pool, queries), expected)


def test_pooled_unfolding_is_the_staircase():
    spectra = [hr.ensembles.goe(50, 1, i).eigenvalues for i in range(4)]
    pool = np.sort(np.concatenate(spectra[1:]))
    expected = hr.levels.unfold(spectra[0], "pooled", pool=spectra[1:])
    np.testing.assert_array_equal(staircase(pool, spectra[0]) / 3, expected)
