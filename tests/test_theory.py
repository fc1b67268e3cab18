"""Spacing laws against integrals, series, other determinants and random matrices."""

from itertools import pairwise

import numpy as np
import pytest
from scipy import stats
from scipy.integrate import quad

import hessrmt as hr
from hessrmt import rng
from hessrmt.theory.spacings import determinant, even_odd, exact_gap

theory = hr.theory

EXACT = {1: theory.goe_spacing, 2: theory.gue_spacing, 4: theory.gse_spacing}
# every law of the spacing that has mean 1 by definition, with its density and distribution
LAWS = [
    *map(theory.spacing_law, ("goe", "gue", "gse", "poisson", "goe2")),
    *map(theory.wigner_law, (1, 2, 4)),
    *map(theory.brody_law, (0.0, 0.3, 1.0, 2.0, 9.0)),
    theory.superposed_law(5),
    theory.superposed_law((0.2, 0.0, 0.8)),
]


def integral(function, *ends):
    """Adaptive quadrature by parts; its own error estimate stays below 1e-13."""
    parts = [quad(function, a, b, epsabs=1e-14, epsrel=1e-13, limit=200) for a, b in pairwise(ends)]
    assert sum(error for _, error in parts) < 1e-12
    return sum(value for value, _ in parts)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.name)
def test_spacing_laws_are_normalised_with_mean_one(law):
    ends = (0, 0.5, 1, 2, 4, 8, 16, 60)  # the Poisson tail beyond 60 is 1e-26
    for k in (0, 1):
        assert integral(lambda s, k=k: s**k * law.pdf(s), *ends) == pytest.approx(1, abs=1e-10)
        assert law.moment(k) == pytest.approx(1, abs=1e-10)
    for s in (0.05, 0.7, 1.0, 1.9, 3.3):
        assert law.cdf(s) == pytest.approx(integral(law.pdf, 0, s), abs=1e-11)
    np.testing.assert_array_equal(law.cdf([-1.0, 0.0, np.inf]), [0, 0, 1])
    np.testing.assert_array_equal(law.pdf([-1.0, 1e300, np.inf]), [0, 0, 0])


def test_exact_variances():
    # Mehta, Random Matrices: 0.286, 0.180 and 0.104 for β = 1, 2, 4
    for name, variance in (("goe", 0.286), ("gue", 0.180), ("gse", 0.104)):
        assert theory.spacing_law(name).variance == pytest.approx(variance, abs=5e-4)
    # infinitely many blocks are Poisson, variance 1; what is left of m blocks is of order 1/m
    assert theory.superposed_law(400).variance == pytest.approx(1, abs=1 / 100)


def test_exact_laws_at_small_spacings():
    # power series of E''(s) from the expansion of the Fredholm determinant; the next term is
    # smaller by a factor of order (πs)², or πs for β = 1
    s, pi = 1e-3, np.pi
    goe = pi**2 * s / 6 - pi**4 * s**3 / 60 + pi**4 * s**4 / 270
    assert theory.goe_spacing(s) == pytest.approx(goe, rel=(pi * s) ** 4)
    s = 1e-2  # absolute errors are near 1e-15, so β = 2, 4 need a density well above that
    gue = pi**2 * s**2 / 3 - 2 * pi**4 * s**4 / 45
    assert theory.gue_spacing(s) == pytest.approx(gue, rel=(pi * s) ** 4)
    assert theory.gse_spacing(s) == pytest.approx(16 * pi**4 * s**4 / 135, rel=(pi * s) ** 2)
    assert theory.goe_spacing(1e-12) == pytest.approx(pi**2 * 1e-12 / 6, rel=1e-9)


def test_gue_gap_is_the_determinant_of_the_whole_sine_kernel():
    # another discretisation: the sine kernel on (0, s), neither split by parity nor scaled
    lengths = np.array([0.1, 0.5, 1.0, 2.0, 3.0])
    x, w = np.polynomial.legendre.leggauss(50)
    whole = []
    for s in lengths:
        t, root = (x + 1) * s / 2, np.sqrt(w * s / 2)
        whole.append(np.linalg.det(np.eye(50) - np.outer(root, root) * np.sinc(t[:, None] - t)))
    np.testing.assert_allclose(theory.gap_probability(lengths, 2), whole, atol=1e-13)


@pytest.mark.parametrize("beta", [1, 2, 4])
def test_density_is_the_second_derivative_of_the_gap_probability(beta):
    # Chebyshev interpolation of E on [0.2, 3.2] and its own derivatives; degree 60 is far past
    # convergence, two derivatives of round-off cost up to 60⁴/(3 · 1.5²) = 2e6 times 1e-16
    series = np.polynomial.Chebyshev.interpolate(
        lambda s: theory.gap_probability(s, beta), 60, domain=[0.2, 3.2]
    )
    s = np.linspace(0.5, 3, 40)
    np.testing.assert_allclose(series.deriv(2)(s), EXACT[beta](s), atol=1e-9)
    np.testing.assert_allclose(1 + series.deriv(1)(s), theory.exact_spacing_cdf(s, beta), atol=1e-9)


def test_table_agrees_with_the_determinants_it_is_made_from():
    s = rng.stream(1, "lengths").uniform(0, 5, 300)
    for table, parity in zip(even_odd(s), (1, -1), strict=True):
        direct = determinant(s, parity)
        # round-off of I - A is divided by its smallest eigenvalue, 1e-6 at s = 5
        np.testing.assert_allclose(np.exp(table.log), np.exp(direct.log), atol=1e-14)
        np.testing.assert_allclose(table.slope, direct.slope, atol=1e-8)
        np.testing.assert_allclose(table.bend, direct.bend, atol=1e-7)


@pytest.mark.parametrize("beta", [1, 2, 4])
def test_far_tail_falls_monotonically_to_zero(beta):
    s = np.linspace(3, 60, 4001)
    density = theory.exact_spacing(s, beta)
    assert (density >= 0).all()
    assert (np.diff(density[density > 1e-300]) < 0).all()
    assert density[-1] == 0
    # Dyson 1976: ln E_1 = -π²s²/16 - πs/4 + O(ln s), ln E_2 = -π²s²/8 + O(ln s); ln 20 = 3 is
    # 1 % of the leading terms at s = 20
    if beta < 4:
        leading = {1: -(np.pi**2) * 400 / 16 - np.pi * 5, 2: -(np.pi**2) * 400 / 8}[beta]
        found = exact_gap(np.array([20.0]), beta).log[0]
        assert found == pytest.approx(leading, rel=0.01)


def test_closed_forms():
    s = np.linspace(0, 4, 50)
    np.testing.assert_allclose(
        theory.wigner_surmise(s), np.pi / 2 * s * np.exp(-np.pi * s**2 / 4), rtol=1e-14
    )
    np.testing.assert_allclose(theory.brody(s, 0), theory.poisson_spacing(s), rtol=1e-13)
    np.testing.assert_allclose(theory.brody(s, 1), theory.wigner_surmise(s), rtol=1e-13, atol=1e-18)
    for beta in (1, 2, 4):  # within 2 % of the maximum of the exact law, and not the same
        gap_ = np.abs(theory.wigner_surmise(s, beta) - EXACT[beta](s)).max()
        assert 1e-3 < gap_ < 0.02
    np.testing.assert_allclose(
        theory.superposed_spacing(s, 1), theory.goe_spacing(s), rtol=1e-13, atol=1e-18
    )
    np.testing.assert_allclose(
        theory.superposed_spacing(s, (0.25, 0, 0.25, 0.5)),
        theory.superposed_spacing(s, [0.5, 0.25, 0.25]),
        rtol=1e-13,
    )
    # levels of different blocks don't repel: p(0) = 1 - Σ f²
    assert theory.superposed_spacing(0.0, (0.3, 0.7)) == pytest.approx(1 - 0.09 - 0.49, abs=1e-14)


def test_attracting_brody_law():
    # mean 1 by the substitution u = s^(q+1), which turns the law into an exponential one
    q = -0.6
    b = theory.brody_cdf(1.0, q)
    assert theory.brody_law(q).ppf(b) == pytest.approx(1, rel=1e-12)
    assert theory.brody(0.0, q) == np.inf
    np.testing.assert_array_equal(theory.brody([-1.0, 1e300, np.inf], q), 0)
    rate = -np.log1p(-b)
    mean = integral(lambda u: (u / rate) ** (1 / (q + 1)) * np.exp(-u), 0, 10, 100)
    assert mean == pytest.approx(1, abs=1e-10)
    density = np.exp(-rate * 2 ** (q + 1)) * (q + 1) * rate * 2.0**q
    assert theory.brody(2.0, q) == pytest.approx(density, rel=1e-12)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.name)
def test_quantiles_invert_the_distribution(law):
    u = np.linspace(0, 1, 1001)
    np.testing.assert_allclose(law.cdf(law.ppf(u)), u, atol=1e-10)
    assert law.ppf(0.0) == 0


def test_samplers_follow_their_laws():
    for law in LAWS:
        sample = law.sample(20_000, rng.stream(2, "sample", law.name))
        assert stats.kstest(sample, law.cdf).pvalue > 1e-3


def test_a_million_spacings_tell_the_exact_law_from_the_surmise():
    law = theory.spacing_law("goe")
    sample = law.sample(1_000_000, rng.stream(4, "million"))
    assert stats.kstest(sample, law.cdf).pvalue > 1e-3
    assert stats.kstest(sample, theory.wigner_surmise_cdf).pvalue < 1e-6


def test_scalars_shapes_and_types():
    assert isinstance(theory.goe_spacing(1.0), float)
    assert isinstance(theory.spacing_law("goe").cdf(1), float)
    assert theory.goe_spacing(np.ones((2, 3))).shape == (2, 3)
    assert theory.goe_spacing([1, 2]).dtype == np.float64
    assert theory.goe_spacing([]).shape == (0,)
    s = np.full((10, 20), 0.5)
    assert theory.superposed_spacing(s, (0.1, 0.9)).shape == s.shape


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: theory.goe_spacing([1.0, np.nan]), "1 NaN among 2"),
        (lambda: theory.wigner_surmise(["a"]), "real numbers"),
        (lambda: theory.wigner_surmise(1j), "real numbers"),
        (lambda: theory.wigner_surmise(1.0, beta=3), "beta is 3, one of 1, 2, 4"),
        (lambda: theory.exact_spacing(1.0, beta=[1]), "one of 1, 2, 4"),
        (lambda: theory.brody(1.0, -1.0), "repulsion"),
        (lambda: theory.brody_law(np.nan), "repulsion"),
        (lambda: theory.superposed_spacing(1.0, (0.5, 0.6)), "sum 1"),
        (lambda: theory.superposed_spacing(1.0, (-0.5, 1.5)), "sum 1"),
        (lambda: theory.superposed_spacing(1.0, 0), "at least 1"),
        (lambda: theory.superposed_law(()), "sum 1"),
        (lambda: theory.spacing_law("wigner"), "'goe', 'gue'"),
        (lambda: theory.spacing_law("goe").ppf(1.5), "probabilities"),
        (lambda: theory.spacing_law("goe").sample(-1, rng.stream(0)), "number of draws"),
        (lambda: theory.spacing_law("goe").moment(-1), "order -1"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(ValueError, match=words):
        call()
