"""Matrices of the Gaussian orthogonal ensemble by counter: published vectors, twin, statistics."""

import numpy as np
import pytest
from host_kernels import Module
from scipy import stats

from hessrmt.backend import reference
from hessrmt.backend.cuda_kernels import TILE, TILE_BLOCK
from hessrmt.backend.reference import philox4x32_10, sample_goe

KEY = 0xA4093822299F31D0
P_VALUE = 1e-4  # on fixed keys; about ten tests of this kind here

# Two normals of the same words differ by the libraries' roundings, in units of ε relative to the
# number: logarithm (halved by the root), root, cosine or sine, product, product with √2. C library:
# 1/2 + 1/2 + 1 + 1/2 + 1/2 = 3, NumPy, whose vectorised functions may be 4 ulp off: 2 + 1/2 + 4 +
# 1/2 + 1/2 = 7.5 (CUDA's, 1 ulp for the logarithm and 2 for sine and cosine, would come to 4).
TOLERANCE = 10.5 * float(np.finfo(np.float64).eps)

# Random123's kat_vectors, "philox4x32 10": counter, key, result; the third are digits of pi
VECTORS = [
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([2**32 - 1] * 4, [2**32 - 1] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]

FUNCTIONS = """
extern "C" void philox(u32 *counter, u64 key) {
    philox4x32_10(counter, (u32)key, (u32)(key >> 32));
}
extern "C" void normal(u64 key, u64 matrix, u64 element, double *z) {
    *z = standard_normal(key, matrix, element);
}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return Module(tmp_path_factory.mktemp("csrc"), "goe_fill", FUNCTIONS)


@pytest.fixture(scope="module")
def kernel(library):
    """The kernel on the CPU: the matrices."""

    def run(n, count, key=KEY, first=0, depth=65535, rows=TILE_BLOCK[1]):
        matrices, tiles = np.full((count, n, n), np.nan), -(-n // TILE)
        if n:
            grid = tiles, tiles, min(count, depth)
            library.launch("goe_fill", grid, (TILE, rows), matrices, n, count, key, first)
        return matrices

    return run


def words_of_kernel(library, counter, key):
    words = np.array(counter, np.uint32)
    library.call("philox", words, key)
    return words.tolist()


@pytest.mark.parametrize(("counter", "key", "expected"), VECTORS)
def test_published_vectors_of_philox(library, counter, key, expected):
    key = key[0] + (key[1] << 32)
    assert words_of_kernel(library, counter, key) == expected
    words = philox4x32_10(tuple(np.array(word, np.uint64) for word in counter), key)
    assert [int(word) for word in words] == expected


@pytest.mark.parametrize("n", [0, 1, 2, TILE - 1, TILE, TILE + 1, 2 * TILE + 1])
def test_matrices_are_the_twins(kernel, n):
    ours, twin = kernel(n, 2), sample_goe(n, 2, KEY)
    np.testing.assert_allclose(ours, twin, rtol=TOLERANCE, atol=0)
    for matrices in (ours, twin):
        np.testing.assert_array_equal(matrices, matrices.swapaxes(1, 2))


def test_an_element_depends_on_its_place_alone(kernel):
    n, first = TILE + 2, 2**33 - 1  # the second matrix's number has another upper word
    batch = kernel(n, 3, first=first)
    np.testing.assert_array_equal(kernel(n, 3, first=first, depth=2), batch)
    np.testing.assert_array_equal(kernel(n, 3, first=first, rows=4), batch)
    np.testing.assert_array_equal(kernel(n, 1, first=first + 1)[0], batch[1])
    # a smaller matrix is the corner of a larger one
    np.testing.assert_array_equal(kernel(7, 1, first=first)[0], batch[0, :7, :7])
    np.testing.assert_allclose(sample_goe(n, 3, KEY, first=first), batch, rtol=TOLERANCE, atol=0)


@pytest.mark.parametrize("n", [1, 2, 60, 101])
def test_parts_do_not_matter_to_the_twin(monkeypatch, n):
    whole = sample_goe(n, 5, KEY)
    np.testing.assert_array_equal([sample_goe(n, 1, KEY, first=m)[0] for m in range(5)], whole)
    for chunk in (1, 700, 4000):  # rows, parts of matrices, several matrices at once
        monkeypatch.setattr(reference, "_CHUNK", chunk)
        np.testing.assert_array_equal(sample_goe(n, 5, KEY), whole)


@pytest.mark.parametrize("element", [0, 1, 2**32 - 1, 2**32, 2**33 + 1, 2**40 + 3])
def test_elements_beyond_32_bits(library, element):
    # n = 46,341 is the first whose elements a 32-bit number cannot count; too large to fill here
    ours = np.empty(1)
    library.call("normal", KEY, 3, element, ours)
    pair, matrix = np.array([element // 2], np.uint64), np.array([[3]], np.uint64)
    twin = reference._normal_pairs(pair, matrix, KEY)[0, element % 2]
    assert abs(ours[0] - twin) <= TOLERANCE * abs(twin)


def test_extreme_words_give_finite_numbers(monkeypatch):
    for word, expected in ((0, (106 * np.log(2)) ** 0.5), (2**32 - 1, 0.0)):
        words = (np.full((1, 1), word, np.uint64),) * 4
        monkeypatch.setattr(reference, "philox4x32_10", lambda *_, words=words: words)
        # one Box-Muller pair, at the angle 0 and just below 2π
        cosine, sine = reference._normal_pairs(
            np.zeros(1, np.uint64), np.zeros((1, 1), np.uint64), 0
        )[0]
        assert abs(cosine - expected) <= TOLERANCE * expected
        assert abs(sine) == 0


def elements(n=200, count=5):
    matrices = sample_goe(n, count, KEY)
    lower = np.tri(n, k=-1, dtype=bool)
    return matrices, matrices[:, lower].ravel(), np.einsum("mii->mi", matrices).ravel()


def test_elements_are_normal():
    _, off, diagonal = elements()
    assert stats.kstest(off, "norm").pvalue > P_VALUE
    assert stats.kstest(diagonal / np.sqrt(2), "norm").pvalue > P_VALUE
    # sample variance of a normal: relative standard error √(2/N); fourth moment 3, variance 96
    assert abs(off.var() - 1) < 4 * np.sqrt(2 / len(off))
    assert abs(diagonal.var() - 2) < 4 * 2 * np.sqrt(2 / len(diagonal))
    assert abs((off**4).mean() - 3) < 4 * np.sqrt(96 / len(off))


def test_elements_are_independent():
    matrices, *_ = elements()
    n = matrices.shape[1]
    flat = matrices[:, np.tri(n, dtype=bool)]
    other = sample_goe(n, 1, KEY + 1)[0][np.tri(n, dtype=bool)]
    pairs = [
        (flat[:, 0:-1:2], flat[:, 1::2]),  # cosine and sine of a pair
        (flat[:, 1:-1:2], flat[:, 2::2]),  # neighbouring pairs
        (flat[0], flat[1]),  # neighbouring matrices
        (flat[0], other),  # neighbouring keys
    ]
    for x, y in pairs:
        size = min(x.shape[-1], y.shape[-1])
        one, two = x[..., :size].ravel(), y[..., :size].ravel()
        for f in (np.asarray, np.square):
            # correlation of independent numbers: standard error 1/√N
            assert abs(np.corrcoef(f(one), f(two))[0, 1]) < 4 / np.sqrt(len(one))
