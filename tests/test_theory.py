"""Spacing laws against integrals, series, other determinants; all laws against matrices."""

from functools import partial
from itertools import pairwise

import numpy as np
import pytest
from scipy import stats
from scipy.integrate import quad

import hessrmt as hr
from hessrmt import rng
from hessrmt.theory.spacings import exact_gap

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
    surmise = np.pi / 2 * s * np.exp(-np.pi * s**2 / 4)
    equal = partial(np.testing.assert_allclose, rtol=1e-13, atol=1e-18)
    equal(theory.wigner_surmise(s), surmise)
    equal(theory.brody(s, 0), np.exp(-s))
    equal(theory.poisson_spacing(s), np.exp(-s))
    equal(theory.brody(s, 1), surmise)
    for beta in (1, 2, 4):  # within 2 % of the maximum of the exact law, and not the same
        far = np.abs(theory.wigner_surmise(s, beta) - EXACT[beta](s)).max()
        assert 1e-3 < far < 0.02
    blocks = theory.superposed_spacing
    equal(blocks(s, 1), theory.goe_spacing(s))
    equal(blocks(s, (0.25, 0, 0.25, 0.5)), blocks(s, [0.5, 0.25, 0.25]))
    # levels of different blocks don't repel: p(0) = 1 - Σ f²
    assert blocks(0.0, (0.3, 0.7)) == pytest.approx(1 - 0.09 - 0.49, abs=1e-14)


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
def test_quantiles_invert_the_distribution_and_samples_follow_it(law):
    u = np.linspace(0, 1, 1001)
    np.testing.assert_allclose(law.cdf(law.ppf(u)), u, atol=1e-10)
    assert law.ppf(0.0) == 0
    sample = law.sample(20_000, rng.stream(2, "sample", law.name))
    assert stats.kstest(sample, law.cdf).pvalue > 1e-3


def test_scalars_shapes_and_types():
    assert isinstance(theory.goe_spacing(1.0), float)
    assert isinstance(theory.spacing_law("goe").cdf(1), float)
    assert theory.goe_spacing([1, 2]).dtype == np.float64
    for shape in ((2, 3), (0,)):
        assert theory.superposed_spacing(np.full(shape, 0.5), (0.1, 0.9)).shape == shape


# against random matrices: circular orthogonal ensemble, and 3 x 3 GOE matrices


@pytest.fixture(scope="module")
def coe():
    """Sorted eigenphases of 240 COE matrices UᵀU of dimension 50, U Haar-distributed.

    The dimension, the phases, and those of two matrices superposed.
    """
    draw, n = rng.stream(10, "coe"), 50
    z = draw.normal(size=(240, n, n)) + 1j * draw.normal(size=(240, n, n))
    q, r = np.linalg.qr(z)
    d = np.diagonal(r, axis1=1, axis2=2)
    u = q * (d / np.abs(d))[:, None, :]
    phases = np.sort(np.angle(np.linalg.eigvals(u.swapaxes(1, 2) @ u)), axis=1)
    return n, phases, np.sort(np.concatenate([phases[:120], phases[120:]], axis=1), axis=1)


def agrees(found, expected, allowance):
    """The mean of independent values, within four standard errors and what n = 50 leaves."""
    assert abs(found.mean() - expected) < 4 * stats.sem(found) + allowance


def test_spacings_of_circular_ensembles(coe):
    # COE spectra are stationary: no unfolding. They differ from the limit by a few times 1/n²
    n, phases, both = coe
    s = np.diff(phases, axis=1, append=phases[:, :1] + 2 * np.pi) * n / (2 * np.pi)
    agrees(((s - 1) ** 2).mean(axis=1), theory.spacing_law("goe").variance, 4 / n**2)
    # leaving one spacing of 2n out moves the share by at most 1/2n, equally up and down
    pairs = np.diff(both, axis=1) * 2 * n / (2 * np.pi)
    for name, spacings in (("goe", s), ("goe2", pairs)):
        for x in (0.2, 0.8, 1.5, 2.2):
            agrees((spacings < x).mean(axis=1), theory.spacing_law(name).cdf(x), 4 / n**2)


def test_surmise_is_the_law_of_three_by_three_matrices():
    a = rng.stream(6, "three").normal(size=(20_000, 3, 3))
    spacings = np.diff(np.linalg.eigvalsh(a + a.swapaxes(1, 2)), axis=1)
    found = spacings[:, 1] / spacings[:, 0]
    assert stats.kstest(found, theory.ratio_law_cdf).pvalue > 1e-3
    assert stats.kstest(found, theory.poisson_ratio_law_cdf).pvalue < 1e-6


def test_ratios_of_circular_ensembles(coe):
    n, phases, both = coe
    # a few times 1/n², and the fits themselves: the corrected law is good to about 1e-4 (its
    # mean's error), the block law rests on the 3 x 3 surmise, which is 5e-3 off in the mean of
    # one block; neighbours from one block are a minority among two
    for levels, name, allowance in ((phases, "goe", 4 / n**2), (both, "goe2", 2e-3)):
        s = np.diff(levels, axis=1)
        small = np.minimum(s[:, 1:], s[:, :-1]) / np.maximum(s[:, 1:], s[:, :-1])
        agrees(small.mean(axis=1), theory.mean_ratio(name), allowance)
        for x in (0.2, 0.5, 0.8):
            agrees((small < x).mean(axis=1), theory.ratio_law_folded(name).cdf(x), allowance)


BAD = [
    (lambda: theory.goe_spacing([1.0, np.nan]), "1 NaN of 2"),
    (lambda: theory.wigner_surmise(1.0, beta=3), "beta 3; known: 1, 2, 4"),
    (lambda: theory.brody(1.0, -1.0), "repulsion"),
    (lambda: theory.superposed_spacing(1.0, (0.5, 0.6)), "sum 1"),
    (lambda: theory.spacing_law("wigner"), "known: goe, gue"),
    (lambda: theory.spacing_law("goe").ppf(1.5), "probabilities"),
    (lambda: theory.spacing_law("goe").sample(-1, rng.stream(0)), "draws"),
    (lambda: theory.spacing_law("goe").moment(-1), "got -1"),
    (lambda: theory.ratio_law(1.0, cut=0), "cut must be positive"),
    (lambda: theory.block_ratio_law(1.0, 0), "blocks must be"),
    (lambda: theory.mean_ratio("goe3"), "known: goe"),
    (lambda: theory.ratio_law_unfolded("poisson").moment(1), "got 1"),
    (lambda: theory.number_variance(1.0, "goe3"), "known: goe"),
    (lambda: theory.number_variance_asymptotic([0.0, 1.0]), "L must be positive"),
    (lambda: theory.rigidity(1e6), "at most 100000"),
    (lambda: theory.cluster_function(1.0, "goe2"), "known: goe"),
    (lambda: theory.semicircle(0.0, radius=0.0), "radius must be positive"),
    (lambda: theory.marchenko_pastur(1.0, -1.0), "ratio must be positive"),
    (lambda: theory.bbp_position(1.0, 5, -1.0), "a must be positive"),
    (lambda: theory.smeared_semicircle(0, 0, 0), "both 0"),
]


@pytest.mark.parametrize(("call", "words"), BAD)
def test_bad_input(call, words):
    with pytest.raises(ValueError, match=words):
        call()
