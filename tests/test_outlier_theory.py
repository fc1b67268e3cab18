"""Outliers of spiked matrices and the smeared semicircle against quadrature and samples."""

import numpy as np
import pytest
from scipy import integrate, stats
from scipy.linalg import eigvalsh_tridiagonal

from hessrmt import rng, theory
from hessrmt.lossmodel.sampler import goe_band

EPS = np.finfo(float).eps
TW_MEAN, TW_VARIANCE = -1.2065335745820, 1.6077810345810
"""Of the Tracy-Widom law for β = 1 (Bornemann, Markov Process. Relat. Fields 16, 803 (2010))."""


def largest(n, theta, samples, a=2.0):
    """Largest eigenvalues of a spiked GOE matrix of variance a, from its tridiagonal form."""
    found = []
    for k in range(samples):
        band = np.sqrt(a) * goe_band(n, 1, rng.stream(5, "bbp", n, str(theta), k))
        band[0, 0] += theta
        found += list(
            eigvalsh_tridiagonal(band[0], band[1, :-1], select="i", select_range=(n - 1, n - 1))
        )
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
    scaled = (largest(n, share * np.sqrt(n * a), samples, a) - 2 * np.sqrt(n * a)) / (
        np.sqrt(a) * n ** (-1 / 6)
    )
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
    np.testing.assert_allclose(
        found, edge * np.array([[-4.25, -2, 2], [2, 2 + 1e-12, 2.5]]), rtol=8 * EPS
    )
    np.testing.assert_allclose(theory.bbp_position(-theta[theta != 0], n, a), -found[theta != 0])
    assert theory.bbp_deviation(2 * edge, n, a) == pytest.approx(np.sqrt(0.6 * 0.75), rel=8 * EPS)
    # far outside the bulk only the diagonal element fluctuates
    assert theory.bbp_deviation(1e9, n, a) == pytest.approx(np.sqrt(2 * a), rel=8 * EPS)


def convolved(x, radius, sigma):
    """The convolution by adaptive quadrature in the semicircle's angle, and its integral."""
    ends = np.arcsin(np.clip([(x - 12 * sigma) / radius, (x + 12 * sigma) / radius], -1, 1))

    def density(angle):
        u = (x - radius * np.sin(angle)) / sigma
        return 2 / np.pi * np.cos(angle) ** 2 * stats.norm.pdf(u) / sigma

    def below(angle):
        u = (x - radius * np.sin(angle)) / sigma
        return 2 / np.pi * np.cos(angle) ** 2 * stats.norm.cdf(u)

    rest = theory.semicircle_cdf(x - 12 * sigma, radius)
    density, below = (
        integrate.quad(f, *ends, epsabs=1e-13, epsrel=1e-13, limit=200)[0] for f in (density, below)
    )
    return density, below + rest


@pytest.mark.parametrize(
    ("radius", "sigma"), [(2.0, 1.0), (2.0, 0.1), (2.0, 1e-3), (0.5, 4.0), (1e-3, 1.0), (3.0, 0.5)]
)
def test_smeared_semicircle_is_the_convolution(radius, sigma):
    edges = radius + sigma * np.array([-9.9, -2, -0.3, 0, 0.3, 2, 6])
    x = np.concatenate([[0.0, 0.3 * radius], edges, -edges])
    found = (
        theory.smeared_semicircle(x, radius, sigma),
        theory.smeared_semicircle_cdf(x, radius, sigma),
    )
    expected = np.transpose([convolved(y, radius, sigma) for y in x])
    top = found[0].max()
    assert np.abs(found[0] - expected[0]).max() < 1e-11 * max(top, 1)
    assert np.abs(found[1] - expected[1]).max() < 1e-11


def test_limits_and_moments_of_the_smeared_semicircle():
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
    # variance R²/4 + σ²: trapezoids converge geometrically for an analytic integrand
    y = np.linspace(-14, 14, 2001)
    density = theory.smeared_semicircle(y, 2.0, 1.5) * (y[1] - y[0])
    np.testing.assert_allclose([density.sum(), density @ y**2], [1, 1 + 2.25], rtol=1e-13)
    np.testing.assert_allclose(
        theory.smeared_semicircle_cdf(y, 2.0, 1.5) + theory.smeared_semicircle_cdf(-y, 2.0, 1.5),
        1,
        rtol=1e-14,
    )


def test_smeared_semicircle_is_the_law_of_its_samples():
    draw = rng.stream(3, "smeared")
    # 2 Beta(3/2, 3/2) - 1 is the semicircle of radius 1
    samples = 2 * (2 * draw.beta(1.5, 1.5, size=4000) - 1) + 0.7 * draw.normal(size=4000)
    law = theory.smeared_semicircle_cdf
    assert stats.kstest(samples, lambda x: law(x, 2.0, 0.7)).pvalue > 1e-3
    assert stats.kstest(samples, lambda x: law(x, 2.0, 0.3)).pvalue < 1e-3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.bbp_threshold(0), "n is 0"),
        (lambda: theory.bbp_threshold(2.5), "n is 2.5"),
        (lambda: theory.bbp_threshold(True), "n is True"),
        (lambda: theory.bbp_position(1.0, 5, -1.0), "a is -1"),
        (lambda: theory.bbp_position(1.0, 5, np.inf), "a is inf"),
        (lambda: theory.bbp_position([np.nan], 5), "theta has 1 NaN"),
        (lambda: theory.bbp_deviation("x", 5), "theta has dtype"),
        (lambda: theory.smeared_semicircle(0, -1.0, 1.0), "radius is -1"),
        (lambda: theory.smeared_semicircle_cdf(0, 1.0, np.nan), "sigma is nan"),
        (lambda: theory.smeared_semicircle(0, 0, 0), "both 0"),
        (lambda: theory.smeared_semicircle(np.nan, 1.0, 1.0), "x has 1 NaN"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
