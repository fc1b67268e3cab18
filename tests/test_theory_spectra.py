"""Ratio laws, long-range statistics and level densities against quadrature and random matrices."""

import numpy as np
import pytest
from scipy import stats
from scipy.integrate import dblquad, quad

import hessrmt as hr
from hessrmt import rng
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


def test_block_law_at_zero_by_direct_integration():
    # Two blocks, second spacing 0: its two levels belong to different blocks, and so the first
    # spacing is a whole spacing of one block, empty in the other. P(0) = 2 ∫ x p(x) f(x) dx with
    # the density p and tail f of a spacing of 3 x 3 matrices, here by plain quadrature
    c = 9 / (4 * np.pi)

    def joint(v, x):
        return 9 * c**2.5 / np.sqrt(np.pi) * x * v * (x + v) * np.exp(-c * (x * x + x * v + v * v))

    x = np.linspace(0, 8, 401)
    density = np.array([quad(joint, 0, 12, args=(t,))[0] for t in x])
    step = x[1] - x[0]
    # the trapezoidal rule's error is step²/12 = 3e-5 times a difference of first derivatives
    beyond = np.array([np.trapezoid(density[i:], dx=step) for i in range(len(x))])
    expected = 2 * np.trapezoid(x * density * beyond, dx=step)
    assert theory.block_ratio_law(0.0) == pytest.approx(expected, abs=1e-4)
    assert dblquad(joint, 0, 12, 0, 12)[0] == pytest.approx(1, abs=1e-8)


@pytest.mark.parametrize("name", NAMES[:4])
def test_number_variance_and_rigidity_from_the_cluster_function(name):
    def cluster(r):
        return theory.cluster_function(r, name)

    assert cluster(0.0) == (0 if name == "poisson" else 1)
    variance = [
        length - 2 * integral(lambda r, L=length: (L - r) * cluster(r), 0, length)
        for length in LENGTHS
    ]
    np.testing.assert_allclose(theory.number_variance(LENGTHS, name), variance, atol=1e-10)
    # Mehta's form of Δ₃, from the cluster function rather than from Σ²
    rigid = [
        L / 15
        - integral(lambda u, L=L: (1 - u) ** 3 * (2 - 9 * u - 3 * u**2) * cluster(u * L), 0, 1)
        * L**2
        / 15
        for L in LENGTHS[1:]
    ]
    np.testing.assert_allclose(theory.rigidity(LENGTHS[1:], name), rigid, atol=1e-9)
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


def test_asymptotic_formulas_of_goe_and_superpositions():
    L = np.array([3.0, 30.0])
    goe = 2 / np.pi**2 * (np.log(2 * np.pi * L) + np.euler_gamma + 1 - np.pi**2 / 8)
    np.testing.assert_allclose(theory.number_variance_asymptotic(L), goe, rtol=1e-13)
    rigid = (np.log(2 * np.pi * L) + np.euler_gamma - 1.25 - np.pi**2 / 8) / np.pi**2
    np.testing.assert_allclose(theory.rigidity_asymptotic(L), rigid, rtol=1e-13)
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
        parts = [(0, 1), (1, 2), *((k, k + 2) for k in range(2, 300 if name == "goe" else 2, 2))]
        total = sum(
            quad(
                lambda t, r=r: (1 - theory.form_factor(t, name)) * np.cos(2 * np.pi * r * t),
                a,
                b,
                limit=200,
            )[0]
            for a, b in parts
        )
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
    np.testing.assert_allclose(
        theory.form_factor(t, "goe2"), theory.form_factor(2 * t, "goe"), rtol=1e-14
    )


def test_semicircle():
    for t in (-3.1, -2.9, -1.0, 0.0, 2.0, 3.1):
        below = integral(lambda u: theory.semicircle(u, 3.0), -3, np.clip(t, -3, 3))
        assert theory.semicircle_cdf(t, 3.0) == pytest.approx(below, abs=1e-9)
    np.testing.assert_array_equal(theory.semicircle_cdf([-np.inf, -2, 2, np.inf]), [0, 0, 1, 1])
    n = 200
    a = rng.stream(8, "semicircle").normal(size=(n, n))
    levels = np.linalg.eigvalsh((a + a.T) / np.sqrt(2))  # off-diagonal variance 1
    # levels are rigid: number fluctuations are of order √(ln n)/π < 1, so the staircase strays by
    # a few levels at most
    radius = theory.semicircle_radius(n)
    assert stats.kstest(levels, lambda x: theory.semicircle_cdf(x, radius)).statistic < 5 / n


@pytest.mark.parametrize("ratio", [0.1, 0.5, 1.0, 2.0, 5.0])
def test_marchenko_pastur(ratio):
    low, high = theory.marchenko_pastur_support(ratio, 2.0)
    mass = max(0.0, 1 - 1 / ratio)
    for x in np.linspace(low, high, 4)[1:]:
        below = quad(lambda t: theory.marchenko_pastur(t, ratio, 2.0), low, x, limit=100)
        found = theory.marchenko_pastur_cdf(x, ratio, 2.0)
        assert found == pytest.approx(mass + below[0], abs=1e-9 + below[1])
    np.testing.assert_allclose(
        theory.marchenko_pastur_cdf([-0.1, 0.0, high, 99], ratio, 2.0), [0, mass, 1, 1], atol=1e-12
    )
    np.testing.assert_array_equal(theory.marchenko_pastur([-1.0, high + 1], ratio, 2.0), 0)
    p, n = (200, int(200 / ratio)) if ratio >= 1 else (int(200 * ratio), 200)
    x = np.sqrt(2) * rng.stream(9, "wishart", p).normal(size=(p, n))
    levels = np.linalg.eigvalsh(x @ x.T / n)
    levels[: max(0, p - n)] = 0
    below = theory.marchenko_pastur_cdf(levels, ratio, 2.0)
    staircase = np.searchsorted(levels, levels, side="right") / p
    # rigid as well: a few levels at most
    assert np.abs(below - staircase).max() < 5 / p


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: theory.ratio_law(np.nan), "1 NaN"),
        (lambda: theory.ratio_law(1.0, beta=0), "one of 1, 2, 4"),
        (lambda: theory.ratio_law(1.0, cut=0), "cut is 0"),
        (lambda: theory.ratio_law_cdf(1.0, cut=np.nan), "cut is nan"),
        (lambda: theory.block_ratio_law(1.0, 0), "blocks is 0"),
        (lambda: theory.block_ratio_law(1.0, 2.5), "blocks is 2.5"),
        (lambda: theory.mean_ratio("goe3"), "one of 'goe'"),
        (lambda: theory.ratio_law_folded("x"), "one of 'goe'"),
        (lambda: theory.ratio_law_unfolded("poisson").moment(1), "order 1"),
        (lambda: theory.number_variance(-1.0), "not negative"),
        (lambda: theory.number_variance(np.inf), "finite"),
        (lambda: theory.number_variance(1.0, "goe3"), "one of 'goe'"),
        (lambda: theory.number_variance(1.0, fractions=(0.5,)), "sum 1"),
        (lambda: theory.number_variance_asymptotic([0.0, 1.0]), "above 0"),
        (lambda: theory.rigidity(1e6), "at most 1e5"),
        (lambda: theory.form_factor(np.nan), "NaN"),
        (lambda: theory.cluster_function(1.0, "goe2"), "one of 'goe'"),
        (lambda: theory.semicircle(0.0, radius=0.0), "radius is 0"),
        (lambda: theory.semicircle_radius(0), "dimension"),
        (lambda: theory.marchenko_pastur(1.0, -1.0), "ratio is -1"),
        (lambda: theory.marchenko_pastur_cdf(1.0, 0.5, np.nan), "scale is nan"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(ValueError, match=words):
        call()
