"""Power-law fits at every x_min: the CUDA source on the CPU, its twin, a direct loop and SciPy."""

from decimal import Decimal, localcontext
from itertools import pairwise

import numpy as np
import pytest
from host_kernels import Module
from scipy import stats

from hessrmt import rng
from hessrmt.backend import reference
from hessrmt.backend.cuda_kernels import SCAN_THREADS as TILE
from hessrmt.backend.reference import powerlaw_scan

EPS = float(np.finfo(np.float64).eps)


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    """The kernel on the CPU: α and D."""
    loaded = Module(tmp_path_factory.mktemp("csrc"), "powerlaw_scan")

    def run(values, offsets, *, two_sided=False, rows=65535):
        layers = len(offsets) - 1
        alpha, distance = np.full((2, len(values)), -7.0)
        if len(values):
            grid = int(-(-np.diff(offsets).max() // TILE)), min(layers, rows)
            arguments = values, offsets, layers, int(two_sided), alpha, distance
            loaded.launch("powerlaw_scan", grid, (TILE,), *arguments)
        return alpha, distance

    return run


def pareto(n, *name, alpha=2.5):
    return np.sort((1 - rng.stream(0, "pareto", n, *name).random(n)) ** (-1 / (alpha - 1)))


def one(layer):
    return layer, np.array([0, len(layer)], np.int64)


def ragged(layers):
    return np.concatenate(layers), np.cumsum([0, *map(len, layers)], dtype=np.int64)


def direct(layer, two_sided):
    """The definitions, candidate by candidate."""
    alpha, distance = np.full((2, len(layer)), np.nan)
    for i, x_min in enumerate(layer):
        tail = layer[layer >= x_min]
        if tail[0] == tail[-1]:
            continue
        slope = len(tail) / np.log(tail / x_min).sum()
        law = 1 - (tail / x_min) ** -slope
        alpha[i] = 1 + slope
        below = np.abs(law - np.searchsorted(tail, tail, "left") / len(tail))
        above = np.abs(law - np.searchsorted(tail, tail, "right") / len(tail))
        distance[i] = max(below.max(), above.max() if two_sided else 0)
    return alpha, distance


def assert_same_fits(ours, theirs, layer, depth_error=4):
    """Within round-off: of depths ln(x_max/x), each good to ``depth_error`` ε of itself, and sums.

    A tail of n values, extent L and mean m = 1/(α-1) in ln x: each of the n terms of Σ is wrong by
    at most 2·depth_error·ε·L, the sum's own rounding adds at most n ε relative to it (of one
    running sum; less here). So α - 1 is wrong by ε (2·depth_error·L/m + n) relative to itself, and
    likewise the exponents y, of which exp(-y) sees at most y e^-y < 1, besides their own depths'
    2·depth_error·ε·L/m and a few ε of exp, quotient and difference. Whoever takes logarithms of
    rounded quotients is wrong by ε/2 in each, ε (α-1)/2 relative to Σ. Doubled for two parties.
    """
    (alpha, distance), (other_alpha, other_distance) = ours, theirs
    np.testing.assert_array_equal(np.isnan(alpha), np.isnan(other_alpha))
    np.testing.assert_array_equal(np.isnan(distance), np.isnan(other_distance))
    fits = ~np.isnan(alpha)
    slope = alpha[fits] - 1
    extent = np.log(max(layer, default=1) / layer[fits]) * slope
    relative = 2 * EPS * (2 * depth_error * extent + len(layer) + slope / 2 + 8)
    assert np.all(np.abs(alpha - other_alpha)[fits] <= relative * alpha[fits])
    assert np.all(np.abs(distance - other_distance)[fits] <= 2 * relative)


SAMPLES = {
    "one": np.array([3.0]),
    "two": np.array([1.0, 2.0]),
    "equal": np.full(5, 0.7),
    "tile - 1": pareto(TILE - 1),
    "tile": pareto(TILE),
    "tile + 1": pareto(TILE + 1),
    "two tiles + 1": pareto(2 * TILE + 1),
    "ties": np.ceil(4 * pareto(2 * TILE + 9, "ties")) / 4,
    "ties at the end": np.append(pareto(50), np.full(200, 1e3)),
    "ties at the beginning": np.append(np.full(200, 0.5), pareto(150)),
    "heavy tail": pareto(200, "heavy", alpha=1.1),
    "tiny": 1e-200 * pareto(100, "tiny"),
    "no power law": np.sort(rng.stream(0, "lognormal").lognormal(size=200)),
}


@pytest.mark.parametrize("two_sided", [False, True])
@pytest.mark.parametrize("name", SAMPLES)
def test_fits(kernel, name, two_sided):
    layer = SAMPLES[name]
    expected = direct(layer, two_sided)
    assert_same_fits(powerlaw_scan(*one(layer), two_sided=two_sided), expected, layer)
    assert_same_fits(kernel(*one(layer), two_sided=two_sided), expected, layer)


def test_two_sided_is_scipys_distance():
    layer = SAMPLES["ties"]
    alpha, distance = powerlaw_scan(*one(layer), two_sided=True)
    for i in range(0, len(layer) - 40, 10):
        tail = layer[layer >= layer[i]]
        law = stats.pareto(alpha[i] - 1, scale=layer[i])
        # the same α on both sides: what is left is the power of a quotient, rounded once
        bound = EPS * (8 + np.log(layer[-1] / layer[i]) * (alpha[i] - 1))
        assert abs(stats.kstest(tail, law.cdf).statistic - distance[i]) <= 4 * bound


def test_equal_candidates_are_equal(kernel):
    # the last ones lie across the border of two blocks, whose sums begin at different values
    layers = [layer for name, layer in SAMPLES.items() if name.startswith("ties")]
    for n in range(200, 208):
        layers.append(np.concatenate([0.1 * pareto(100), np.full(60, 1e2), 1e2 * pareto(n)]))
    for two_sided in (False, True):
        for scan in (kernel, powerlaw_scan):
            fits = np.array(scan(*ragged(layers), two_sided=two_sided))
            for layer, fit in zip(layers, np.split(fits, ragged(layers)[1][1:-1], 1), strict=True):
                same = layer[1:] == layer[:-1]
                np.testing.assert_array_equal(fit[:, 1:][:, same], fit[:, :-1][:, same])


def test_ragged_layers(kernel):
    sizes = [0, 5, TILE + 3, 1, 0, 2 * TILE, 40, 0]
    layers = [pareto(n, i) for i, n in enumerate(sizes)]
    values, offsets = ragged(layers)
    # more layers than rows of the grid: 2 ** 16 of them would take a while here
    found, wrapped = kernel(values, offsets), kernel(values, offsets, rows=3)
    np.testing.assert_array_equal(found, wrapped)
    twin = powerlaw_scan(values, offsets)
    for begin, end in pairwise(offsets):
        layer = values[begin:end]
        expected = direct(layer, False)
        for fits in (found, twin):
            assert_same_fits([fit[begin:end] for fit in fits], expected, layer)
        alone = powerlaw_scan(*one(layer))
        np.testing.assert_array_equal([fit[begin:end] for fit in twin], alone)


@pytest.mark.parametrize("sizes", [[], [0], [0, 0, 0]])
def test_nothing_to_fit(kernel, sizes):
    values, offsets = ragged([np.empty(0), *(np.empty(n) for n in sizes)])
    for scan in (kernel, powerlaw_scan):
        assert [len(fit) for fit in scan(values, offsets)] == [0, 0]


@pytest.mark.parametrize("width", [1e-3, 1e-6, 1e-9, 1e-12])
def test_narrow_tails_keep_their_digits(kernel, width):
    # log(x/x_min) of float64 quotients keeps a few digits only; ours is checked with 50
    layer = np.unique(1 + width * rng.stream(0, "narrow").random(30))
    with localcontext() as context:
        context.prec = 50
        exact = [Decimal(float(x)).ln() for x in layer]
        slopes = [
            float(len(tail) / sum((x - tail[0] for x in tail), Decimal(0)))
            for tail in (exact[i:] for i in range(len(exact) - 1))
        ]
    for scan in (kernel, powerlaw_scan):
        alpha, distance = scan(*one(layer))
        # as in assert_same_fits, for one party; extent/mean is at most n
        bound = EPS * (2 * 4 * len(layer) + len(layer))
        np.testing.assert_allclose(alpha[:-1], 1 + np.array(slopes), rtol=bound)
        assert np.all(distance[:-1] > 0)
        assert np.all(distance[:-1] < 1)


def test_numbers_of_the_whole_range_do_not_overflow(kernel):
    layer = np.array([5e-324, 1e-300, 1e-10, 1.0, 1e200, 1.7e308])
    logs = np.log(layer)
    for scan in (kernel, powerlaw_scan):
        alpha, distance = scan(*one(layer))
        for i in range(5):
            slope = (6 - i) / (logs[i:] - logs[i]).sum()
            # logarithms up to 745 lose no more than 2 · 745 ε of differences above 200
            np.testing.assert_allclose(alpha[i] - 1, slope, rtol=20 * EPS / slope)
        assert np.all((distance[:-1] > 0) & (distance[:-1] < 1))


def test_scale_invariance():
    # the law has no scale; a power of two changes no quotient and no difference's rounding
    layer = pareto(300)
    plain = powerlaw_scan(*one(layer))
    np.testing.assert_array_equal(powerlaw_scan(*one(layer * 2.0**60)), plain)


def test_chunks_do_not_matter(monkeypatch):
    layer = SAMPLES["ties at the beginning"]
    expected = powerlaw_scan(*one(layer), two_sided=True)
    for chunk in (1, 300, 5000):
        monkeypatch.setattr(reference, "_CHUNK", chunk)
        np.testing.assert_array_equal(powerlaw_scan(*one(layer), two_sided=True), expected)
