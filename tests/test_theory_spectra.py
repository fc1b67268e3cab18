"""Ratio laws, long-range statistics, densities and outliers against quadrature and samples."""

from functools import partial
from itertools import pairwise

import numpy as np
import pytest
from scipy import stats
from scipy.integrate import quad
from scipy.linalg import eigvalsh_tridiagonal

import hessrmt as hr
from hessrmt import rng
from hessrmt.errors import DataError
from hessrmt.lossmodel.sampler import goe_band
from hessrmt.theory import ratios

theory = hr.theory

NAMES = ("goe", "gue", "gse", "poisson", "goe2")
LENGTHS = np.array([0.01, 0.3, 1.0, 2.5, 10.0])


def integral(function, a, b):
    value, error = quad(function, a, b, epsabs=1e-13, epsrel=1e-12, limit=400)
    assert error < 1e-10
    return value


@pytest.mark.parametrize("name", NAMES)
def test_ratio_laws_are_normalised_and_symmetric(name):
    law, folded = theory.ratio_law_unfolded(name), theory.ratio_law_folded(name)
    assert integral(law.pdf, 0, 1) == pytest.approx(0.5, abs=1e-10)
    assert integral(law.pdf, 1, np.inf) == pytest.approx(0.5, abs=1e-9)
    r = np.array([0.0, 0.1, 0.7, 1.0])
    np.testing.assert_allclose(folded.pdf(r), 2 * law.pdf(r), rtol=1e-13)
    r = np.array([1.3, 2.0, 9.0])
    np.testing.assert_allclose(law.pdf(r), law.pdf(1 / r) / r**2, rtol=1e-12)
    for x in (0.2, 0.9):
        assert folded.cdf(x) == pytest.approx(integral(folded.pdf, 0, x), abs=1e-11)
    for x in (0.5, 3.0, 40.0):
        assert law.cdf(x) == pytest.approx(1 - integral(law.pdf, x, np.inf), abs=1e-9)
    np.testing.assert_array_equal(law.cdf([-1.0, 0.0, np.inf]), [0, 0, 1])
    np.testing.assert_allclose(folded.cdf([-1.0, 0.0, 1.0, 2.0]), [0, 0, 1, 1], atol=1e-12)
    np.testing.assert_array_equal(law.pdf([-1.0, np.inf]), [0, 0])
    np.testing.assert_array_equal(folded.pdf([-1.0, 1.5]), [0, 0])
    u = np.linspace(0, 1, 101)
    np.testing.assert_allclose(folded.cdf(folded.ppf(u)), u, atol=1e-11)
    np.testing.assert_allclose(law.cdf(law.ppf(u)), u, atol=1e-11)
    sample = law.sample(20_000, rng.stream(5, "ratios", name))
    assert stats.kstest(sample, law.cdf).pvalue > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_means_of_the_laws_are_the_published_ones(name):
    # Atas et al. give the means ± 1e-4; Giraud et al. four digits
    assert theory.ratio_law_folded(name).mean == pytest.approx(theory.mean_ratio(name), abs=1.5e-4)


def test_surmise_means_have_closed_forms():
    for beta, mean in (
        (1, ratios.MEAN_RATIO_GOE_SURMISE),
        (2, ratios.MEAN_RATIO_GUE_SURMISE),
        (4, ratios.MEAN_RATIO_GSE_SURMISE),
    ):
        found = integral(lambda r, b=beta: r * theory.ratio_law(r, b, folded=True), 0, 1)
        assert found == pytest.approx(mean, abs=1e-11)
        assert theory.ratio_law_cdf(1.0, beta) == pytest.approx(0.5, abs=1e-13)
    r = np.linspace(0, 5, 30)
    expected = 27 / 8 * (r + r**2) / (1 + r + r**2) ** 2.5
    np.testing.assert_allclose(theory.ratio_law(r), expected, rtol=1e-12)


def test_the_law_of_every_kth_level():
    """Of order 1 the surmise; every second level of the GOE as the surmise of the GSE, β' = 4."""
    r = np.array([-1.0, 0.0, 0.2, 1.0, 3.0, np.inf])
    for order, beta in ((1, 1), (2, 4)):
        expected = theory.ratio_law(r, beta)
        np.testing.assert_allclose(theory.higher_ratio_law(r, order), expected, rtol=1e-12)
    for order in (3, 40):
        for beta in (1, 4):
            law = partial(theory.higher_ratio_law, order=order, beta=beta, folded=True)
            assert quad(law, 0, 1, points=[0.9])[0] == pytest.approx(1, abs=1e-9)
            mean = quad(lambda r, law=law: r * law(r), 0, 1, points=[0.9])[0]
            assert theory.higher_mean_ratio(order, beta) == pytest.approx(mean, abs=1e-9)
    assert theory.higher_mean_ratio(2) == pytest.approx(ratios.MEAN_RATIO_GSE_SURMISE, abs=1e-12)
    for wrong in ({"order": 0}, {"order": 2, "beta": 3}):
        with pytest.raises(DataError, match=next(reversed(wrong))):
            theory.higher_mean_ratio(**wrong)


def test_cut_laws():
    share = theory.ratio_law_cdf(10.0)
    assert share == pytest.approx(0.985, abs=5e-4)
    r = np.array([0.5, 9.0, 10.5])
    expected = theory.ratio_law(r) / share * [1, 1, 0]
    np.testing.assert_allclose(theory.ratio_law(r, cut=10), expected, rtol=1e-13)
    for law, below in (
        (theory.ratio_law, theory.ratio_law_cdf),
        (theory.poisson_ratio_law, theory.poisson_ratio_law_cdf),
        (theory.block_ratio_law, theory.block_ratio_law_cdf),
    ):
        assert integral(lambda x, f=law: f(x, cut=10), 0, 10) == pytest.approx(1, abs=1e-9)
        assert below(20.0, cut=10) == 1
        found = integral(lambda x, f=law: f(x, cut=10), 0, 4)
        assert below(4.0, cut=10) == pytest.approx(found, abs=1e-9)
        assert below(0.5, folded=True, cut=0.5) == 1
    cut = theory.ratio_law_unfolded("goe", cut=10)
    sample = cut.sample(20_000, rng.stream(7, "cut"))
    assert sample.max() <= 10
    assert stats.kstest(sample, cut.cdf).pvalue > 1e-3
    assert cut.moment(2) < np.inf


def test_one_block_is_the_surmise_and_many_are_poisson():
    r = np.linspace(0, 4, 41)
    np.testing.assert_allclose(theory.block_ratio_law(r, 1), theory.ratio_law(r), atol=1e-11)
    # the correlations left among m blocks are of order 1/m
    poisson = theory.poisson_ratio_law(r)
    np.testing.assert_allclose(theory.block_ratio_law(r, 50), poisson, atol=1 / 50)
    for blocks in (2, 3, 7):
        total = integral(lambda x, m=blocks: theory.block_ratio_law(x, m), 0, 1)
        assert total == pytest.approx(0.5, abs=1e-10)


@pytest.mark.parametrize("name", NAMES[:4])
def test_number_variance_and_rigidity_from_the_cluster_function(name):
    def cluster(r):
        return theory.cluster_function(r, name)

    assert cluster(0.0) == (0 if name == "poisson" else 1)
    variance = [L - 2 * integral(lambda r, L=L: (L - r) * cluster(r), 0, L) for L in LENGTHS]
    np.testing.assert_allclose(theory.number_variance(LENGTHS, name), variance, atol=1e-10)

    # Mehta's form of Δ₃, from the cluster function rather than from Σ²
    def lost(u, L):
        return (1 - u) ** 3 * (2 - 9 * u - 3 * u**2) * cluster(u * L)

    long = LENGTHS[1:]
    rigid = [L / 15 - integral(lambda u, L=L: lost(u, L), 0, 1) * L**2 / 15 for L in long]
    np.testing.assert_allclose(theory.rigidity(long, name), rigid, atol=1e-9)
    assert theory.number_variance(0.0, name) == theory.rigidity(0.0, name) == 0
    assert theory.number_variance(1e-6, name) == pytest.approx(1e-6, rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_long_range_asymptotics(name):
    # remainders fall like 1/L (times at most 1/2 here)
    for L in (50.0, 2000.0):
        exact, far = theory.number_variance(L, name), theory.number_variance_asymptotic(L, name)
        assert exact == pytest.approx(far, abs=0.5 / L)
        exact, far = theory.rigidity(L, name), theory.rigidity_asymptotic(L, name)
        assert exact == pytest.approx(far, abs=0.5 / L)


def test_superpositions_are_sums_over_their_blocks():
    L = np.array([3.0, 30.0])
    np.testing.assert_allclose(theory.rigidity(L, "poisson"), L / 15)
    for statistic in (theory.number_variance, theory.rigidity):
        parts = statistic(0.3 * L, "gue") + statistic(0.7 * L, "gue")
        np.testing.assert_allclose(statistic(L, "gue", (0.3, 0.7)), parts, rtol=1e-12)
        np.testing.assert_allclose(statistic(L, "goe2"), statistic(L, "goe", 2), rtol=1e-14)
        np.testing.assert_allclose(statistic(L, "goe2"), 2 * statistic(L / 2), rtol=1e-12)
        np.testing.assert_allclose(statistic(L, "poisson", 3), statistic(L, "poisson"), rtol=1e-13)


@pytest.mark.parametrize("name", ["goe", "gue", "gse"])
def test_form_factor_is_the_transform_of_the_cluster_function(name):
    # Y(r) = 2 ∫ (1 - K(τ)) cos(2πrτ) dτ; 1 - K of GOE falls like 1/(12 τ²), which leaves
    # less than 2/(12 T² 2πr) = 1e-6 beyond T = 300 for r >= 0.3
    for r in (0.3, 0.6, 1.7):

        def wave(t, r=r):
            return (1 - theory.form_factor(t, name)) * np.cos(2 * np.pi * r * t)

        ends = [0, 1, *range(2, 301 if name == "goe" else 3, 2)]
        total = sum(quad(wave, a, b, limit=200)[0] for a, b in pairwise(ends))
        assert 2 * total == pytest.approx(theory.cluster_function(r, name), abs=1e-5)


def test_form_factor_values():
    t = np.array([0.0, 0.25, 1.0, 3.0])
    np.testing.assert_allclose(theory.form_factor(t, "gue"), [0, 0.25, 1, 1])
    np.testing.assert_allclose(theory.form_factor(t, "poisson"), 1)
    assert theory.form_factor(1.0) == pytest.approx(2 - np.log(3), rel=1e-14)
    assert theory.form_factor(1 + 1e-12) == pytest.approx(2 - np.log(3), rel=1e-9)
    assert theory.form_factor(-0.3) == theory.form_factor(0.3)
    assert theory.form_factor(np.inf) == pytest.approx(1)
    assert theory.form_factor(1.0, "gse") == np.inf
    assert theory.form_factor(2.0, "gse") == 1
    blocks = theory.form_factor(t, "goe2")
    np.testing.assert_allclose(blocks, theory.form_factor(2 * t, "goe"), rtol=1e-14)


def test_semicircle():
    for t in (-3.1, -2.9, -1.0, 0.0, 2.0, 3.1):
        below = integral(lambda u: theory.semicircle(u, 3.0), -3, np.clip(t, -3, 3))
        assert theory.semicircle_cdf(t, 3.0) == pytest.approx(below, abs=1e-9)
    np.testing.assert_array_equal(theory.semicircle_cdf([-np.inf, -2, 2, np.inf]), [0, 0, 1, 1])


@pytest.mark.parametrize("ratio", [0.1, 0.5, 1.0, 2.0, 5.0])
def test_marchenko_pastur(ratio):
    low, high = theory.marchenko_pastur_support(ratio, 2.0)
    mass = max(0.0, 1 - 1 / ratio)
    for x in np.linspace(low, high, 4)[1:]:
        below = quad(lambda t: theory.marchenko_pastur(t, ratio, 2.0), low, x, limit=100)
        found = theory.marchenko_pastur_cdf(x, ratio, 2.0)
        assert found == pytest.approx(mass + below[0], abs=1e-9 + below[1])
    found = theory.marchenko_pastur_cdf([-0.1, 0.0, high, 99], ratio, 2.0)
    np.testing.assert_allclose(found, [0, mass, 1, 1], atol=1e-12)
    np.testing.assert_array_equal(theory.marchenko_pastur([-1.0, high + 1], ratio, 2.0), 0)


# eigenvalues outside of the bulk, and the smeared semicircle

EPS = np.finfo(float).eps
TW_MEAN, TW_VARIANCE = -1.2065335745820, 1.6077810345810
"""Of the Tracy-Widom law for β = 1 (Bornemann, Markov Process. Relat. Fields 16, 803 (2010))."""


def largest(n, theta, samples, a=2.0):
    """Largest eigenvalues of a spiked GOE matrix of variance a, from its tridiagonal form."""
    found = []
    for k in range(samples):
        band = np.sqrt(a) * goe_band(n, 1, rng.stream(5, "bbp", n, str(theta), k))
        band[0, 0] += theta
        last = {"select": "i", "select_range": (n - 1, n - 1)}
        found += list(eigvalsh_tridiagonal(band[0], band[1, :-1], **last))
    return np.array(found)


@pytest.mark.parametrize("share", [1.5, 3.0, -1.5])
def test_outliers_above_the_threshold(share):
    n, a, samples = 3000, 2.0, 400
    theta = share * theory.bbp_threshold(n, a)
    position, width = theory.bbp_position(theta, n, a), theory.bbp_deviation(theta, n, a)
    # the spectrum of -√a G - θ has the law of that of √a G - θ, turned over
    found = np.sign(share) * largest(n, abs(theta), samples, a)
    # corrections of relative order 1/n to resolvent and dimension move the mean by O(√a/√n), each
    # with a coefficient of order s/(1 - 1/s²)², s = |share|, from two derivatives of θ + na/θ
    s = abs(share)
    correction = 2 * np.sqrt(a / n) / (1 - 1 / s**2) ** 2
    assert abs(found.mean() - position) < 4 * width / np.sqrt(samples) + correction
    # a normal sample's relative error of the variance is √(2/samples)
    assert abs(found.var() / width**2 - 1) < 4 * np.sqrt(2 / samples) + 10 / np.sqrt(n)
    assert stats.kstest((found - found.mean()) / found.std(), stats.norm.cdf).pvalue > 1e-3
    # the edge is far: the test would see an outlier that stayed there
    assert abs(position - 2 * np.sign(share) * np.sqrt(n * a)) > 40 * width / np.sqrt(samples)


@pytest.mark.parametrize("share", [0.0, 0.3, -0.3])
def test_below_the_threshold_the_edge_is_that_of_the_bulk(share):
    n, a, samples = 3000, 2.0, 400
    edge = theory.bbp_position(share * np.sqrt(n * a), n, a)
    assert edge == pytest.approx(np.copysign(2 * np.sqrt(n * a), share), rel=4 * EPS)
    assert np.isnan(theory.bbp_deviation(share * np.sqrt(n * a), n, a))
    beyond = largest(n, share * np.sqrt(n * a), samples, a) - 2 * np.sqrt(n * a)
    scaled = beyond / (np.sqrt(a) * n ** (-1 / 6))
    # Tracy-Widom, approached as n^(-1/3), from below the threshold with 1/(1 - share) before it
    slow = n ** (-1 / 3) / (1 - abs(share))
    assert abs(scaled.mean() - TW_MEAN) < 4 * np.sqrt(TW_VARIANCE / samples) + slow
    # kurtosis 0.165 beyond a normal law's is within the factor 2
    assert abs(scaled.var() / TW_VARIANCE - 1) < 4 * np.sqrt(2 * 2 / samples) + slow


def test_position_is_continuous_odd_and_in_closed_form():
    n, a = 50, 0.3
    edge = theory.bbp_threshold(n, a)
    assert edge == pytest.approx(np.sqrt(15), rel=2 * EPS)
    theta = edge * np.array([[-4.0, -1.0, 0.0], [0.5, 1.0 + 1e-6, 2.0]])
    found = theory.bbp_position(theta, n, a)
    expected = edge * np.array([[-4.25, -2, 2], [2, 2 + 1e-12, 2.5]])
    np.testing.assert_allclose(found, expected, rtol=8 * EPS)
    np.testing.assert_allclose(theory.bbp_position(-theta[theta != 0], n, a), -found[theta != 0])
    assert theory.bbp_deviation(2 * edge, n, a) == pytest.approx(np.sqrt(0.6 * 0.75), rel=8 * EPS)
    # far outside the bulk only the diagonal element fluctuates
    assert theory.bbp_deviation(1e9, n, a) == pytest.approx(np.sqrt(2 * a), rel=8 * EPS)


def convolved(x, radius, sigma):
    """The convolution by adaptive quadrature in the semicircle's angle, and its integral."""
    ends = np.arcsin(np.clip([(x - 12 * sigma) / radius, (x + 12 * sigma) / radius], -1, 1))

    def integral_of(law):
        def integrand(angle):
            return 2 / np.pi * np.cos(angle) ** 2 * law((x - radius * np.sin(angle)) / sigma)

        return quad(integrand, *ends, epsabs=1e-13, epsrel=1e-13, limit=200)[0]

    rest = theory.semicircle_cdf(x - 12 * sigma, radius)
    return integral_of(stats.norm.pdf) / sigma, integral_of(stats.norm.cdf) + rest


@pytest.mark.parametrize(
    ("radius", "sigma"), [(2.0, 1.0), (2.0, 0.1), (2.0, 1e-3), (0.5, 4.0), (1e-3, 1.0), (3.0, 0.5)]
)
def test_smeared_semicircle_is_the_convolution(radius, sigma):
    edges = radius + sigma * np.array([-9.9, -2, -0.3, 0, 0.3, 2, 6])
    x = np.concatenate([[0.0, 0.3 * radius], edges, -edges])
    density, below = np.transpose([convolved(y, radius, sigma) for y in x])
    found = theory.smeared_semicircle(x, radius, sigma)
    assert np.abs(found - density).max() < 1e-11 * max(found.max(), 1)
    assert np.abs(theory.smeared_semicircle_cdf(x, radius, sigma) - below).max() < 1e-11


def test_limits_of_the_smeared_semicircle():
    x = np.linspace(-3, 3, 61)
    for smeared, half, normal in (
        (theory.smeared_semicircle, theory.semicircle, stats.norm.pdf),
        (theory.smeared_semicircle_cdf, theory.semicircle_cdf, stats.norm.cdf),
    ):
        np.testing.assert_array_equal(smeared(x, 2.0, 0.0), half(x, 2.0))
        np.testing.assert_allclose(smeared(x, 0.0, 1.0), normal(x), rtol=0, atol=4 * EPS)
        # next order: R²/8 and σ²/2 times the second derivative; √σ at the semicircle's own edge
        np.testing.assert_allclose(smeared(x, 1e-7, 1.0), normal(x), rtol=0, atol=1e-14)
        inner = x[np.abs(x) < 1.9]
        np.testing.assert_allclose(smeared(inner, 2.0, 1e-8), half(inner, 2.0), rtol=0, atol=1e-14)
        assert abs(smeared(2.0, 2.0, 1e-12) - half(2.0, 2.0)) < 1e-6
        ends = smeared([-np.inf, -1e300, 1e300, np.inf], 2.0, 1.0)
        np.testing.assert_array_equal(ends, [0, 0, normal(np.inf), normal(np.inf)])
        assert isinstance(smeared(0.5, 2.0, 1.0), float)
