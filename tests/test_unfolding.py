"""Unfolding: mean spacing 1 whatever the density, the pooled staircase to the letter."""

from functools import partial
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from properties import examples
from scipy import integrate, stats

from hessrmt import rng
from hessrmt.ensembles import gaussian_levels, poisson_levels, wishart_levels
from hessrmt.errors import DataError
from hessrmt.levels import pooled, unfold
from hessrmt.levels.unfolding import METHODS
from hessrmt.theory import densities

EPS = np.finfo(np.float64).eps
SELF = ("window", "kernel", "spline", "polynomial")
GOE_VARIANCE = 0.286
"""Of nearest-neighbour spacings: Mehta, Random Matrices (2004), ch. 16, σ²(0) for β = 1."""


def bulk(n, draw):
    """(n,) unfolded levels between 0 and 1 from the bulk of a GOE matrix twice as large."""
    counted = densities.semicircle_cdf(gaussian_levels(1, 2 * n, draw), 2 * np.sqrt(2 * n))
    levels = np.sort(counted)[n // 2 : n // 2 + n]
    return (levels - 0.25) / 0.5


def bimodal(n, draw):
    """GOE levels mapped to two Gaussian bumps four standard deviations apart, cut at 3 σ."""
    x = np.linspace(-5, 5, 4001)
    counted = (stats.norm.cdf(x + 2) + stats.norm.cdf(x - 2)) / 2
    return np.interp(bulk(n, draw), (counted - counted[0]) / (counted[-1] - counted[0]), x)


def decades(n, draw):
    """GOE levels spread evenly over ten decades, from 1e-10 to 1."""
    return 10.0 ** (10 * (bulk(n, draw) - 1))


SPECTRA = {
    "goe": partial(gaussian_levels, 1, 400),
    "wishart": partial(wishart_levels, 300, 600),
    "hard edge": partial(wishart_levels, 300, 310),
    "bimodal": partial(bimodal, 400),
    "decades": partial(decades, 400),
    "poisson": partial(poisson_levels, 400),
    "few": partial(gaussian_levels, 1, 24),
}


def unfolded(name, method, samples=10, **options):
    draw = rng.stream(1, "unfold", name)
    found = []
    for _ in range(samples):
        levels = SPECTRA[name](draw)
        found.append(unfold(draw.permutation(levels), method, **options))
        assert found[-1].shape == levels.shape
        assert (np.diff(found[-1]) >= 0).all()
    return found


@pytest.mark.parametrize("name", ["goe", "wishart", "bimodal"])
def test_a_polynomial_of_mean_spacing_one_for_every_smooth_density(name):
    # the best polynomial of degree 9 falls somewhere in some of these; a rising one is found
    for levels in unfolded(name, "polynomial", 20):
        assert np.diff(levels).mean() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("method", ["window", "kernel", "spline"])
@pytest.mark.parametrize("name", SPECTRA)
def test_mean_spacing_is_one_for_every_density(name, method):
    spacings = [np.diff(levels) for levels in unfolded(name, method)]
    means = [s.mean() for s in spacings]
    # 1 ± 0.02; 24 levels hold 23 spacings and edges of a few levels that no smoothing follows
    assert abs(np.mean(means) - 1) < (0.05 if name == "few" else 0.02)
    # and so it is in the middle half, not only on the average over the spectrum
    inner = [s[len(s) // 4 : -(len(s) // 4)].mean() for s in spacings]
    # unfolded with its own density, a spectrum holds half of its m levels there to about one, a
    # standard error of 2/m for one sample
    error = 2 / len(spacings[0]) / len(spacings) ** 0.5
    assert abs(np.mean(inner) - 1) < 0.02 + 4 * error


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("window", {"passes": 1}),
        ("window", {"neighbours": 30}),
        ("kernel", {"width": 5}),
        ("kernel", {"width": 10.0, "neighbours": 40}),
        ("spline", {"knots": 5}),
        ("polynomial", {"degree": 5}),
        ("analytic", {}),
    ],
)
def test_options_unfold_the_goe(method, options):
    every = [np.diff(x) for x in unfolded("goe", method, 20, **options)]
    assert abs(np.concatenate(every).mean() - 1) < 0.02
    # away from the edges: 4,000 nearly independent spacings of kurtosis about 3.2, so that their
    # variance has the relative error √(2.2/4000); 3 % is what smoothing takes from the variance
    inner = np.concatenate([s[100:-99] for s in every])
    assert abs(inner.var() / GOE_VARIANCE - 1) < 0.03 + 4 * np.sqrt(2.2 / len(inner))


def test_the_kernel_is_the_sum_it_says():
    levels = SPECTRA["decades"](rng.stream(2, "kernel"))
    n, w = len(levels), 15
    low = np.maximum(np.arange(n) - w, 0)
    high = np.minimum(np.arange(n) + w, n - 1)
    h = 5 * (levels[high] - levels[low]) / (high - low)
    centres = np.concatenate([levels, 2 * levels[0] - levels[1:], 2 * levels[-1] - levels[:-1]])
    width = np.concatenate([h, h[1:], h[:-1]])
    total = stats.norm.cdf((levels[:, None] - centres) / width).sum(1)
    # each of the 3n steps is cut at Φ(-8) = 6e-16 and summed with rounding
    expected = 0.5 + total - total[0]
    np.testing.assert_allclose(unfold(levels, "kernel"), expected, atol=3 * n * n * EPS)


def test_the_window_by_hand():
    levels = SPECTRA["wishart"](rng.stream(3, "window"))
    n, w = len(levels), 4
    expected = [0.5]
    for i in range(n - 1):
        low, high = max(i - w + 1, 0), min(i + w, n - 1)
        density = (high - low) / (levels[high] - levels[low])
        expected.append(expected[-1] + (levels[i + 1] - levels[i]) * density)
    found = unfold(levels, neighbours=w, passes=1)
    # spacings lose ε max|λ|/s_min of their digits in either way of summing
    lost = EPS * levels[-1] / np.diff(levels).min()
    np.testing.assert_allclose(np.diff(found), np.diff(expected), rtol=20 * lost, atol=n * n * EPS)
    twice = unfold(found, neighbours=2 * w, passes=1)
    np.testing.assert_allclose(unfold(levels, neighbours=w), twice, rtol=0, atol=n * n * EPS * 100)


def test_polynomials_of_low_degree_are_recovered():
    # levels whose staircase is a cubic exactly: i + 1/2 = 50 (x³ + x + 2)
    steps = np.arange(200) + 0.5
    x = np.array([np.roots([1, 0, 1, 2 - y / 50])[-1].real for y in steps])
    assert np.abs(50 * (x**3 + x + 2) - steps).max() < 1e-9
    for method, options in (("polynomial", {"degree": 3}), ("spline", {}), ("polynomial", {})):
        # least squares amplify the rounding of 200 by the conditioning, below 1e3 for these bases
        found = unfold(x, method, **options)
        np.testing.assert_allclose(found, steps, atol=200 * 1e3 * EPS + 1e-9)


def test_analytic_is_the_integral_of_the_density():
    marchenko = {"law": "marchenko-pastur", "ratio": 0.5, "scale": 1}
    for spectrum, density, parameters, options in (
        ("goe", densities.semicircle, (40.0,), {"centre": 0, "radius": 40.0}),
        ("wishart", densities.marchenko_pastur, (0.5,), marchenko),
    ):
        levels = SPECTRA[spectrum](rng.stream(4, "analytic"))
        found = unfold(levels, "analytic", **options)
        points = np.linspace(5, len(levels) - 5, 12).astype(int)
        for i, j in pairwise(points):
            ends = levels[i], levels[j]
            area = integrate.quad(density, *ends, parameters, epsabs=1e-12, epsrel=1e-12)[0]
            assert found[j] - found[i] == pytest.approx(len(levels) * area, abs=1e-8)


def test_analytic_laws_are_fitted_by_moments():
    n, m = 400, 800
    draw = rng.stream(5, "moments")
    goe, wishart = gaussian_levels(1, n, draw), wishart_levels(n, m, draw)
    steps = np.arange(n) + 0.5
    for scale, shift in ((1, 0), (1e-6, 3.0), (1e8, -1.0)):
        assert np.abs(unfold(scale * goe + shift, "analytic") - steps).max() < 4
    for scale in (1, 1e-9, 1e5):
        found = unfold(scale * wishart, "analytic", law="marchenko-pastur")
        assert np.abs(found - steps).max() < 4
    law = stats.semicircular(scale=2 * np.sqrt(n))
    expected = unfold(goe, "analytic", centre=0, radius=2 * np.sqrt(n))
    for same in (law, law.cdf):
        np.testing.assert_allclose(unfold(goe, "analytic", law=same), expected, atol=1e-9)


def test_a_fit_that_is_no_staircase_is_refused():
    draw = rng.stream(6, "refused")
    for levels, method, options, words in (
        (decades(400, draw), "polynomial", {}, "try 'window'"),
        (decades(400, draw), "analytic", {}, "try 'window'"),
        (bimodal(2000, draw), "polynomial", {"degree": 8}, "misses the staircase"),
        (gaussian_levels(1, 2000, draw), "analytic", {"radius": 150}, "misses the staircase"),
        (bimodal(2000, draw), "spline", {"knots": 0}, "misses the staircase"),
    ):
        with pytest.raises(DataError, match=words):
            unfold(levels, method, **options)


def test_eq_10_is_a_strict_count():
    draw = rng.stream(7, "count")
    # integers, so that levels of different spectra coincide
    pool = [draw.integers(0, 40, size=size).astype(float) for size in (30, 50, 1)]
    levels = draw.integers(-3, 44, size=60).astype(float)
    expected = [sum(np.count_nonzero(other < x) for other in pool) / 3 for x in np.sort(levels)]
    np.testing.assert_array_equal(unfold(levels, "pooled", pool=pool), expected)


@pytest.mark.parametrize("rotate", [True, False])
@pytest.mark.parametrize(("count", "folds"), [(2, 3), (3, 3), (30, 3), (11, 4), (9, 2)])
def test_pooled_is_eq_10_with_the_other_groups(count, folds, rotate):
    draw = rng.stream(8, "pooled", count)
    sizes = draw.integers(5, 60, size=count)
    spectra = [draw.integers(0, 50, size=size).astype(float) for size in sizes]
    result = pooled(spectra, folds=folds, rotate=rotate, seed=3)
    groups, pools = np.array(result.groups), []
    assert [x is not None for x in result.levels] == (rotate | (groups == 0)).tolist()
    for levels, found, group in zip(spectra, result.levels, groups, strict=True):
        if found is not None:
            pool = [spectra[i] for i in np.flatnonzero(groups != group)]
            pools.append(len(pool))
            np.testing.assert_array_equal(found, unfold(levels, "pooled", pool=pool))
    assert result.resolution == 1 / min(pools)
    members = np.bincount(groups)
    assert len(members) == min(folds, count)
    assert np.ptp(members) <= 1
    assert pooled(spectra, folds=folds, rotate=rotate, seed=3).groups == result.groups
    if count > 3:
        assert result.groups != pooled(spectra, folds=folds, seed=4).groups


def test_pooled_spacings_have_mean_one():
    draw = rng.stream(10, "pool mean")
    spectra = [gaussian_levels(1, 200, draw) for _ in range(60)]
    result = pooled(spectra)
    spacings = np.concatenate([np.diff(x) for x in result.levels if x is not None])
    assert abs(spacings.mean() - 1) < 0.02
    # relative error √(2.2/12000) of the variance; the pool's own rigid fluctuations, 1/40 of a
    # level's, and the few levels at the edges add a few per cent
    assert abs(spacings.var() / GOE_VARIANCE - 1) < 0.08 + 4 * np.sqrt(2.2 / len(spacings))
    np.testing.assert_allclose(spacings * 40, np.round(spacings * 40), atol=200 * 40 * EPS)


def moves(largest):
    """Affine maps that make no rounding error on integers: scale, shift, direction."""
    return st.tuples(st.integers(-60, 60), st.integers(-largest, largest), st.sampled_from([1, -1]))


def moved_spacings(levels, move, method, **options):
    power, shift, sign = move
    moved = sign * (levels + shift) * 2.0**power
    return np.diff(unfold(moved, method, **options))[::sign]


@settings(max_examples=examples(50))
@given(
    levels=st.lists(st.integers(-(2**20), 2**20), min_size=4, max_size=120, unique=True),
    move=moves(2**30),
    method=st.sampled_from(["window", "kernel"]),
)
def test_units_do_not_matter_for_local_methods(levels, move, method):
    levels = np.array(levels, dtype=float)
    before = np.diff(unfold(levels, method))
    # they only use differences, which are exact, in sums of at most n terms up to n; the kernel
    # takes c ± 8 h at c up to 2^30, but only to tell which steps are complete to Φ(-8) = 3 ε
    n = len(levels)
    after = moved_spacings(levels, move, method)
    np.testing.assert_allclose(after, before, rtol=0, atol=20 * n * EPS * n)


@settings(max_examples=examples(50))
@given(
    spacings=st.lists(st.integers(1, 8), min_size=40, max_size=120),
    move=moves(2**20),
    method=st.sampled_from(["spline", "polynomial"]),
)
def test_units_do_not_matter_for_fits(spacings, move, method):
    levels = np.cumsum(np.array(spacings, dtype=float))
    options = {"degree": 3} if method == "polynomial" else {}
    try:
        before = np.diff(unfold(levels, method, **options))
    except DataError:
        reject()  # a cubic does not follow every density
    # knots and the scaled range are rounded at 2^20, ε 2^20 of the range of 40 or more at worst;
    # N̄ up to n changes by as much of n, times the condition of the bases' normal equations, < 100
    n, loss = len(levels), EPS * 2**20 / np.ptp(levels)
    after = moved_spacings(levels, move, method, **options)
    np.testing.assert_allclose(after, before, rtol=0, atol=100 * n * (loss + EPS))


@settings(max_examples=examples(40))
@given(
    levels=st.lists(st.integers(0, 12), min_size=3, max_size=60),
    method=st.sampled_from(SELF),
)
def test_ties_stay_ties_and_nothing_is_nan(levels, method):
    levels = np.array(levels, dtype=float)
    try:
        found = unfold(levels, method)
    except DataError:
        assert method in ("spline", "polynomial") or np.ptp(levels) == 0
        return
    assert np.isfinite(found).all()
    steps = np.diff(found)
    assert (steps >= 0).all()
    assert (steps[np.diff(np.sort(levels)) == 0] == 0).all()


@pytest.mark.parametrize("method", ["window", "kernel"])
def test_few_levels_or_many_in_one_place_are_enough_for_local_methods(method):
    for n in (3, 4, 5, 10):
        found = unfold(np.arange(n) * 2.5e-9, method)
        np.testing.assert_allclose(found, np.arange(n) + 0.5, atol=100 * n * EPS, rtol=0)
    levels = np.concatenate([np.zeros(100), np.arange(1, 60.0), np.full(50, 60.0)])
    found = unfold(levels, method)
    assert np.isfinite(found).all()
    assert (np.diff(found)[:99] == 0).all()


BAD = [
    ([[1.0, 2, 3]], "window", {}, r"one-dimensional|shape \(1, 3\)"),
    ([1.0, np.nan, 2], "kernel", {}, "finite"),
    ([1.0, 2.0], "window", {}, "at least 3 levels, got 2"),
    ([2.0] * 50, "window", {}, "coincide"),
    ([-1e308, 0, 1e308], "window", {}, "rescale"),
    (range(50), "spectral", {}, f"known: {', '.join(METHODS)}"),
    (range(50), "window", {"degree": 3}, "no option 'degree'; known: neighbours, passes"),
    (range(50), "pooled", {"pool": [[1.0]], "degree": 3}, "no option 'degree'; known: none"),
    (range(50), "window", {"neighbours": 1}, "neighbours must be a whole number from 2 on"),
    (range(50), "window", {"passes": 0}, "passes"),
    (range(50), "kernel", {"width": 0}, "width must be positive"),
    (range(50), "polynomial", {"degree": 2.5}, "degree must be a whole number"),
    (range(8), "polynomial", {}, "at least 11 distinct levels, got 8"),
    (range(8), "spline", {"knots": 5}, "at least 15 distinct levels, got 8"),
    (range(50), "spline", {"knots": -1}, "knots must be a whole number"),
    (range(50), "analytic", {"law": "cauchy"}, "known: semicircle, marchenko-pastur"),
    (range(50), "analytic", {"ratio": 0.5}, "no option 'ratio'; known: centre, radius"),
    (range(50), "analytic", {"radius": -1}, "radius must be positive"),
    (range(50), "analytic", {"law": lambda x: x}, "no distribution function"),
    (range(50), "analytic", {"law": lambda x: x * np.nan}, "no distribution function"),
    (range(50), "analytic", {"law": abs, "ratio": 1}, "no option 'ratio'; known: none"),
    (range(50), "analytic", {"law": "marchenko-pastur"}, "lowest level is 0"),
    (range(1, 50), "analytic", {"law": "marchenko-pastur", "ratio": 2}, "ratio must be"),
    (range(50), "polynomial:degree=5", {}, "arguments of their own: 'polynomial', degree=5"),
    (range(50), "auto", {}, "unknown unfolding method 'auto'; known: window"),
    (range(50), "pooled", {}, "needs the other spectra"),
    (range(50), "pooled", {"pool": []}, "empty"),
    (range(50), "pooled", {"pool": [[1.0], [np.nan]]}, r"pool\[1\] must be finite"),
    (range(50), "window", {"pool": [[1.0]]}, "takes no pool"),
]


@pytest.mark.parametrize(("levels", "method", "options", "message"), BAD)
def test_bad_input_never_yields_a_number(levels, method, options, message):
    with pytest.raises(DataError, match=message):
        unfold(levels, method, **options)


@pytest.mark.parametrize(
    ("spectra", "options", "message"),
    [
        ([], {}, "several batches, got 0"),
        ([[1.0, 2, 3]], {}, "several batches, got 1; for one: 'window'"),
        ([[1.0, 2, 3], [1.0]], {}, r"spectra\[1\].*at least 3"),
        ([[1.0, 2, 3], [1.0, 2, np.nan]], {}, r"spectra\[1\] must be finite"),
        ([[1.0, 2, 3]] * 3, {"folds": 1}, "folds must be a whole number from 2 on"),
    ],
)
def test_pooled_refuses_what_it_cannot_pool(spectra, options, message):
    with pytest.raises(DataError, match=message):
        pooled(spectra, **options)
