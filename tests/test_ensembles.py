"""Sampled ensembles against their moments and against dense matrices."""

import numpy as np
import pytest
from scipy import stats

import hessrmt as hr
from hessrmt import ensembles, rng
from hessrmt.ensembles import block_levels, gaussian_levels, poisson_levels, wishart_levels
from hessrmt.errors import EnsembleError, HessrmtError
from hessrmt.levels import mean_ratio
from hessrmt.theory.densities import marchenko_pastur_cdf, semicircle_cdf
from hessrmt.theory.ratios import MEAN_RATIO_GOE, MEAN_RATIO_POISSON

P_VALUE = 1e-4
"""Below it a test calls two samples different; each is run some tens of times, on fixed seeds."""


def dense_gaussian(beta, n, draw):
    """Levels of a dense matrix of independent elements, (n,)."""
    a, b, c, d = (draw.normal(size=(n, n)) for _ in range(4))
    # off-diagonal components of variance 1, a diagonal of variance 2
    real = (a + a.T) / 2**0.5
    skew = [(x - x.T) / 2**0.5 for x in (b, c, d)]
    if beta == 1:
        return np.linalg.eigvalsh(real)
    if beta == 2:
        return np.linalg.eigvalsh(real + 1j * skew[0])
    # quaternion a + bi + cj + dk as the complex 2x2 block [[a + bi, c + di], [-c + di, a - bi]]
    upper, right = real + 1j * skew[0], skew[1] + 1j * skew[2]
    pairs = np.linalg.eigvalsh(np.block([[upper, right], [-right.conj(), upper.conj()]]))
    # Kramers' degeneracy; each is within m² ε ‖H‖ of the exact one, m = 2n the dimension (a
    # sequence of m reflections of m elements: Higham, Accuracy and Stability, §19.3)
    bound = 2 * (2 * n) ** 2 * np.finfo(float).eps * np.abs(pairs).max()
    np.testing.assert_allclose(pairs[::2], pairs[1::2], atol=bound, rtol=0)
    return pairs[::2]


def dense_wishart(n, m, draw):
    x = draw.normal(size=(n, m))
    return np.linalg.eigvalsh(x @ x.T / m)


def assert_same_law(ours, dense):
    """KS tests of every order statistic and of one spacing ratio, one number from each sample."""
    for one, two in zip(ours.T, dense.T, strict=True):
        assert stats.ks_2samp(one, two).pvalue > P_VALUE
    if ours.shape[1] > 2:
        one, two = (np.diff(x[:, :3], axis=1) for x in (ours, dense))
        assert stats.ks_2samp(one.min(1) / one.max(1), two.min(1) / two.max(1)).pvalue > P_VALUE


@pytest.mark.parametrize("beta", [1, 2, 4])
@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_gaussian_law_is_that_of_dense_matrices(beta, n):
    draw, samples = rng.stream(1, "dense", beta, n), 1500
    ours = np.array([gaussian_levels(beta, n, draw) for _ in range(samples)])
    dense = np.array([dense_gaussian(beta, n, draw) for _ in range(samples)])
    assert_same_law(ours, dense)


@pytest.mark.parametrize(("name", "beta"), [("goe", 1), ("gue", 2), ("gse", 4)])
def test_gaussian_spectra_fill_their_semicircle(name, beta):
    n = 1000
    law = semicircle_cdf(getattr(ensembles, name)(n, seed=3).eigenvalues, 2 * np.sqrt(beta * n))
    # the counting function is rigid: it leaves n F by a few levels, √(log n) and O(1) at the edges
    assert np.abs((np.arange(n) + 0.5) / n - law).max() < 5 / n


@pytest.mark.parametrize(("n", "m"), [(3, 5), (4, 4), (6, 4), (3, 40)])
def test_wishart_law_is_that_of_dense_matrices(n, m):
    draw, samples, rank = rng.stream(4, "wishart", n, m), 1500, min(n, m)
    ours = np.array([wishart_levels(n, m, draw) for _ in range(samples)])
    dense = np.array([dense_wishart(n, m, draw) for _ in range(samples)])
    assert (ours[:, : n - rank] == 0).all()
    assert_same_law(ours[:, n - rank :], dense[:, n - rank :])


@pytest.mark.parametrize("beta", [1, 2, 4])
def test_wishart_moments(beta):
    n, m, samples = 7, 12, 4000
    draw = rng.stream(5, "wishart", beta)
    levels = np.array([wishart_levels(n, m, draw, beta) for _ in range(samples)]) * m
    # m tr W is χ² with βnm degrees of freedom
    df = beta * n * m
    assert abs(levels.sum(1).mean() - df) < 4 * np.sqrt(2 * df / samples)
    assert stats.kstest(levels.sum(1), stats.chi2(df).cdf).pvalue > P_VALUE
    # det W is a product of independent χ² with β(m - k) degrees of freedom, k = 0 ... n - 1
    draws = [draw.chisquare(beta * (m - k), size=samples) for k in range(n)]
    assert stats.ks_2samp(levels.prod(1), np.prod(draws, axis=0)).pvalue > P_VALUE


@pytest.mark.parametrize(("n", "m"), [(600, 1200), (600, 600), (900, 600)])
def test_wishart_spectrum_is_marchenko_pastur(n, m):
    spectrum = ensembles.wishart(n, m, seed=6)
    levels = spectrum.eigenvalues[max(n - m, 0) :]
    counted = (np.arange(len(levels)) + 0.5 + max(n - m, 0)) / n
    assert np.abs(counted - marchenko_pastur_cdf(levels, n / m)).max() < 5 / n
    assert spectrum.rank == min(n, m)


DENSITIES = {
    "uniform": stats.uniform(0, 3000).cdf,
    "semicircle": lambda x: semicircle_cdf(x, 2 * np.sqrt(3000)),
    "normal": stats.norm.cdf,
    "exponential": stats.expon.cdf,
}


@pytest.mark.parametrize("density", DENSITIES)
def test_poisson_levels_are_independent_draws_of_their_density(density):
    levels = ensembles.poisson(3000, seed=7, density=density).eigenvalues
    assert stats.kstest(levels, DENSITIES[density]).pvalue > P_VALUE
    found = [mean_ratio(poisson_levels(300, rng.stream(8, density, i), density)) for i in range(50)]
    assert abs(np.mean(found) - MEAN_RATIO_POISSON) < 4 * stats.sem(found)


def test_blocks_are_independent_and_share_their_support():
    levels = block_levels([300, 100], rng.stream(9, "blocks"))
    assert np.abs((np.arange(400) + 0.5) / 400 - semicircle_cdf(levels, 40)).max() < 8 / 400
    # the blocks are drawn one after the other
    draw = rng.stream(10)
    parts = [gaussian_levels(2, n, draw) * np.sqrt(5 / n) for n in (2, 3)]
    found = block_levels([2, 3], rng.stream(10), 2)
    np.testing.assert_allclose(found, np.sort(np.concatenate(parts)), rtol=1e-15)
    whole, halves = ensembles.goe2(7, seed=1), ensembles.blocks([4, 3], seed=1)
    np.testing.assert_array_equal(whole.eigenvalues, halves.eigenvalues)


def test_blocks_lower_the_mean_ratio():
    one = [mean_ratio(ensembles.goe(300, 11, i).eigenvalues) for i in range(60)]
    assert abs(np.mean(one) - MEAN_RATIO_GOE) < 4 * stats.sem(one)
    two = [mean_ratio(ensembles.goe2(300, 11, i).eigenvalues) for i in range(60)]
    # about 0.423 for two blocks, to three digits
    assert abs(np.mean(two) - 0.423) < 4 * stats.sem(two) + 5e-4


def test_samples_are_named_streams():
    first = ensembles.goe(40, seed=5, index=2).eigenvalues
    np.testing.assert_array_equal(first, gaussian_levels(1, 40, rng.stream(5, "goe", 2)))
    np.testing.assert_array_equal(first, ensembles.goe(40, seed=5, index=2).eigenvalues)
    others = [ensembles.goe(40, 5, 3), ensembles.goe(40, 6, 2), ensembles.gue(40, 5, 2)]
    assert all(not np.isclose(first, other.eigenvalues).any() for other in others)


def test_a_sample_is_a_spectrum_like_any_other():
    spectrum = ensembles.wishart(30, 20, seed=2, index=4)
    assert isinstance(spectrum, hr.Spectrum)
    assert spectrum.dimension == spectrum.reduced_dimension == 30
    assert spectrum.operator == "ensemble"
    assert spectrum.noise_floor == 30 * np.finfo(float).eps * spectrum.eigenvalues[-1]
    assert len(spectrum.resolved) == spectrum.rank == 20
    settings = {"ensemble": "wishart", "n": 30, "seed": 2, "index": 4, "m": 20, "beta": 1}
    assert spectrum.provenance.config == settings
    for name in ("goe", "gue", "gse", "poisson", "goe2"):
        sample = getattr(ensembles, name)(9)
        assert (np.diff(sample.eigenvalues) >= 0).all()
        assert sample.eigenvalues.dtype == np.float64
        assert sample.provenance.config["n"] == sample.rank == 9


BAD = [
    (lambda: ensembles.goe(0), "n must be a whole number from 1 on, got 0"),
    (lambda: ensembles.gue(True), "n must be"),
    (lambda: ensembles.gse(3, seed=-1), "seed must be"),
    (lambda: ensembles.goe(3, index="a"), "index must be"),
    (lambda: ensembles.wishart(3, 0), "m must be"),
    (lambda: gaussian_levels(3, 5, rng.stream(0)), "unknown beta 3; known: 1, 2, 4"),
    (lambda: ensembles.poisson(3, density="cauchy"), "known: uniform"),
    (lambda: ensembles.blocks([]), "at least one block"),
    (lambda: ensembles.blocks(5), "dimensions of at least one block, got 5"),
    (lambda: ensembles.blocks([5, 0]), "sizes"),
    (lambda: ensembles.goe2(1), "from 2 on"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(EnsembleError, match=message) as caught:
        call()
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, HessrmtError)
