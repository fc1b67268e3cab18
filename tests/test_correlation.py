"""Correlations of a series: scipy, coverage of the intervals, p-values without a connection."""

import math

import numpy as np
import pytest
from scipy import stats

from hessrmt.capacity import correlate
from hessrmt.capacity.correlation import FEWEST_FOR_INTERVAL, PERMUTATIONS
from hessrmt.errors import DataError

TESTS = {"pearson": stats.pearsonr, "spearman": stats.spearmanr, "kendall": stats.kendalltau}


def normal(draw, n, r):
    x, noise = draw.normal(size=(2, n))
    return x, r * x + math.sqrt(1 - r * r) * noise


def heavy(draw, n, r):
    """Student's t with three degrees of freedom, both with the same scale."""
    wide = np.sqrt(3 / draw.chisquare(3, n))
    return tuple(wide * part for part in normal(draw, n, r))


def skewed(draw, n, r):
    return tuple(np.exp(part) for part in normal(draw, n, r))


def true_values(kind, r):
    """Of the population; τ of every elliptical law, and of monotone functions of it."""
    tau = 2 / math.pi * math.asin(r)
    if kind is heavy:  # ρ of this law has no closed form: 10⁶ draws, 0.001
        x, y = heavy(np.random.default_rng(0), 1_000_000, r)
        rho = np.corrcoef(stats.rankdata(x), stats.rankdata(y))[0, 1]
    else:
        rho = 6 / math.pi * math.asin(r / 2)
    linear = math.expm1(r) / math.expm1(1) if kind is skewed else r
    return {"pearson": linear, "spearman": rho, "kendall": tau}


@pytest.mark.parametrize(
    ("n", "ties"), [(5, False), (7, True), (15, True), (24, False), (60, True)]
)
def test_coefficients_and_p_values_are_those_of_scipy(n, ties):
    x, y = normal(np.random.default_rng(n), n, 0.4)
    if ties:
        x, y = np.round(2 * x), np.round(2 * y)
    found = correlate(x, y)
    for name, test in TESTS.items():
        expected = test(x, y)
        value, p_value = getattr(found, name), getattr(found, f"{name}_p")
        assert value == pytest.approx(expected.statistic, abs=1e-14)
        if n > 25:
            assert p_value == expected.pvalue
            continue
        draw = np.random.default_rng(1)
        drawn = [abs(test(x, draw.permutation(y)).statistic) for _ in range(400)]
        share = np.mean(np.array(drawn) >= abs(value) - 1e-12)
        error = math.sqrt(max(share, 3e-3) * (1 - share) * (1 / 400 + 1 / PERMUTATIONS))
        assert p_value == pytest.approx(share, abs=5 * error)


def test_exact_p_values():
    """Of n! orders two give |τ| = |ρ| = |r| = 1: the one that is there and its reverse."""
    for n in (3, 5, 7):
        found = correlate(range(n), range(n))
        for name in TESTS:
            assert getattr(found, f"{name}_p") == 2 / math.factorial(n)
    x, y = normal(np.random.default_rng(2), 7, 0.5)
    assert correlate(x, y).kendall_p == pytest.approx(stats.kendalltau(x, y).pvalue, rel=1e-12)


def test_p_values_without_a_connection():
    """At most `level` of them lie below it, whatever the columns' own laws are."""
    draw, sets = np.random.default_rng(11), 250
    found = {name: np.empty(sets) for name in TESTS}
    for place in range(sets):
        item = correlate(draw.standard_t(2, size=7), draw.exponential(size=7) ** 3)
        for name in TESTS:
            found[name][place] = getattr(item, f"{name}_p")
    for name in TESTS:
        for level in (0.05, 0.2, 0.5):
            most = level + 4 * math.sqrt(level * (1 - level) / sets)
            assert np.mean(found[name] <= level) <= most, name


def covered(kind, n, r, sets, seed):
    """Shares of intervals that hold the true value."""
    draw, true = np.random.default_rng(seed), true_values(kind, r)
    hits = dict.fromkeys(true, 0)
    for _ in range(sets):
        item = correlate(*kind(draw, n, r))
        for name, value in true.items():
            low, high = getattr(item, f"{name}_interval")
            assert -1 <= low <= getattr(item, name) <= high <= 1
            hits[name] += low <= value <= high
    return {name: count / sets for name, count in hits.items()}


@pytest.mark.parametrize("n", range(6, 20))
@pytest.mark.parametrize("sign", [1, -1])
def test_intervals_of_the_same_order_hold_its_coefficients(n, sign):
    x = np.random.default_rng(n).normal(size=n)
    item = correlate(x, sign * x**3)
    for name in ("kendall", "spearman"):
        low, high = getattr(item, f"{name}_interval")
        assert low <= getattr(item, name) <= high
        assert getattr(item, name) == pytest.approx(sign)


LEAST = 0.92
"""What docs/capacity.md promises of 95 % intervals."""


@pytest.mark.parametrize(
    ("kind", "n", "r"), [(normal, 7, 0.5), (heavy, 30, 0.9), (skewed, 30, 0.5)]
)
def test_intervals_hold_the_true_value(kind, n, r):
    sets = 100
    for name, share in covered(kind, n, r, sets, 3).items():
        assert share >= LEAST - 3 * math.sqrt(LEAST * (1 - LEAST) / sets), name


@pytest.mark.slow
@pytest.mark.parametrize("r", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("kind", [normal, heavy, skewed])
def test_coverage_of_all_sizes(kind, r):
    sets = 1000
    for n in (6, 8, 12, 16, 25, 50):
        for name, share in covered(kind, n, r, sets, n).items():
            assert share >= LEAST - 3 * math.sqrt(LEAST * (1 - LEAST) / sets), (name, n, share)


@pytest.mark.slow
def test_intervals_for_normal_columns_are_not_wasteful():
    """Fisher's interval for r, of n normal pairs, but for Student's t instead of the normal law."""
    n = 400
    x, y = normal(np.random.default_rng(5), n, 0.6)
    found = correlate(x, y)
    half = stats.norm.ppf(0.975) / math.sqrt(n - 3)
    expected = np.tanh(np.arctanh(found.pearson) + np.array([-half, half]))
    # the jackknife's error of an error is about 1/√(2n), 4 %; the larger of two is taken
    width = np.ptp(found.pearson_interval)
    assert np.ptp(expected) <= width <= 1.15 * np.ptp(expected)
    wider = correlate(x, y, level=0.99)
    assert np.ptp(wider.pearson_interval) > width


def test_too_few_networks_and_perfect_order():
    few = correlate(range(FEWEST_FOR_INTERVAL - 1), [1, 3, 2, 5, 4])
    assert np.isnan([*few.kendall_interval, *few.spearman_interval, *few.pearson_interval]).all()
    assert few.failed is None
    found = correlate(range(8), [0, 1, 2, 4, 8, 16, 32, 64])
    for name in ("kendall", "spearman"):
        low, high = getattr(found, f"{name}_interval")
        assert 0 < low < 0.9
        assert high == getattr(found, name) == 1
    # without the last network nothing is known
    alone = correlate([1, 1, 1, 1, 1, 1, 2], [3, 1, 2, 5, 4, 6, 7])
    assert alone.pearson_interval == alone.kendall_interval == (-1, 1)
    with pytest.raises(DataError, match="level is 2"):
        correlate([1, 2, 3], [1, 2, 3], level=2)
