"""P-values and comparisons of power laws: known laws, the package powerlaw, SciPy's laws."""

import math
import warnings
from dataclasses import asdict

import numpy as np
import pytest
from scipy import stats
from tail_samples import pareto, spectrum

from hessrmt import rng
from hessrmt.backend.select import select
from hessrmt.capacity import powerlaw
from hessrmt.capacity.powerlaw import PowerLawFit, Rule, compare, fit, goodness_of_fit, sample_law

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import powerlaw as peer


@pytest.fixture
def quiet():
    """Powerlaw's warnings, that α is large or an optimiser stopped, are none of ours."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield


# goodness of fit


@pytest.mark.parametrize(
    ("alpha", "x_max"), [(2.5, math.inf), (3.5, 10.0), (0.2, 10.0), (1.0, 10.0)]
)
def test_samples_of_a_law(alpha, x_max):
    law = PowerLawFit(alpha, 2.0, x_max, 0.0, 0.0, 9, 9, 0, 0, Rule())
    values = sample_law(law, 4000, rng.stream(0, "fit", "law", str(alpha)))
    if alpha == 1.0:
        cdf = stats.loguniform(2, x_max).cdf
    else:
        top = (x_max / 2) ** (1 - alpha)

        def cdf(x):
            return (1 - (x / 2) ** (1 - alpha)) / (1 - top)

    assert stats.kstest(values, cdf).pvalue > 1e-3


def test_p_of_power_laws_is_uniform():
    # with bodies, x_min chosen anew in each sample; p is uniform up to its 30 samples' grain
    found = []
    for seed in range(40):
        draw = rng.stream(seed, "fit", "uniform p")
        values = np.append((1 - draw.random(80)) ** (-1 / 1.5), draw.uniform(0.3, 1, 40))
        found.append(goodness_of_fit(values, fit(values), samples=30, seed=seed))
    # the null is composite and partly estimated: p leans to large values, never to small ones
    assert np.mean(np.array(found) <= 0.1) <= 0.1 + 4 * math.sqrt(0.09 / 40)
    assert np.mean(found) > 0.5 - 4 / math.sqrt(12 * 40)
    assert max(found) > 0.8


def test_p_of_another_law_is_small():
    values = rng.stream(0, "fit", "no law").exponential(size=400) + 1
    one = fit(values, x_min=1.0)  # the whole sample as a tail
    assert goodness_of_fit(values, one, samples=100) == 0
    ended = fit(values, x_min=1.0, x_max="max")
    assert goodness_of_fit(values, ended, samples=50) < 0.1


def test_p_is_seeded_and_counts_distances(monkeypatch):
    values = spectrum("pareto with a body", 1)
    one = fit(values)
    p = goodness_of_fit(values, one, samples=40, seed=5)
    assert p == goodness_of_fit(values[::-1], one, samples=40, seed=5)
    assert p == goodness_of_fit(values, one, samples=40, seed=5, backend=select("cpu"))
    monkeypatch.setattr(powerlaw, "_TOGETHER", 300)
    assert p == goodness_of_fit(values, one, samples=40, seed=5)
    # the same samples by hand
    draw = rng.stream(5, "powerlaw", "bootstrap")
    ordered = np.sort(values)
    body, farther = ordered[ordered < one.x_min], 0
    for _ in range(40):
        k = draw.binomial(one.n, one.n_tail / one.n)
        below = draw.choice(body, one.n - k)
        tail = one.x_min * (1 - draw.random(k)) ** (-1 / (one.alpha - 1))
        farther += fit(np.append(below, tail)).ks_distance >= one.ks_distance
    assert p == farther / 40


# likelihood ratios

NAMES = {
    "lognormal": "lognormal",
    "exponential": "exponential",
    "truncated": "truncated_power_law",
}


# where its optimiser ends at its bound α ≥ 0
STOPPED = {("exponential", "truncated")}


@pytest.fixture(scope="module")
def compared():
    """Samples of tails with α < 3, which is where powerlaw's laws are, and its fits."""
    draw = rng.stream(2, "fit", "compared")
    samples = {
        "pareto": (1 - draw.random(1500)) ** (-1 / 1.5),
        "lognormal": draw.lognormal(sigma=1.5, size=1500),
        "exponential": 1 + draw.exponential(size=800),
        "gamma": draw.gamma(0.5, size=800),
    }
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return {
            name: (values, fit(values, max_alpha=3), peer.Fit(values, verbose=0))
            for name, values in samples.items()
        }


@pytest.mark.parametrize("against", powerlaw.ALTERNATIVES)
@pytest.mark.parametrize("name", ["pareto", "lognormal", "exponential", "gamma"])
def test_comparisons_like_powerlaws(name, against, compared, quiet):
    values, one, theirs = compared[name]
    ours = compare(values, one, against)
    ratio, p = theirs.distribution_compare("power_law", NAMES[against])
    normalized, _ = theirs.distribution_compare("power_law", NAMES[against], normalized_ratio=True)
    # ours is a maximum, of densities that are powerlaw's
    tail = values[values >= one.x_min]
    theirs_at = getattr(theirs, NAMES[against])
    ours_at = type(theirs_at)(
        xmin=one.x_min,
        parameters=list(ours.parameters.values()),
        parameter_ranges={"alpha": [None, None]},
        verbose=0,
    )
    power = theirs.power_law.loglikelihoods(tail).sum()
    total = ours_at.loglikelihoods(tail).sum()
    assert power - total == pytest.approx(ours.log_likelihood_ratio, abs=1e-7)
    assert total >= theirs_at.loglikelihoods(tail).sum() - 1e-7
    if (name, against) in STOPPED:
        assert ours.parameters["alpha"] < 0
        return
    # its optimiser stops where the log-likelihood changes by less than 1e-4 and parameters by 1e-4
    # or so: R is flat there, the normalised ratio is not
    assert ours.log_likelihood_ratio == pytest.approx(ratio, abs=2e-4)
    assert ours.normalized_ratio == pytest.approx(normalized, rel=2e-3, abs=2e-4)
    # z moves by 2e-3 z, and ln p of a normal number by z times that
    z = abs(ours.normalized_ratio)
    assert ours.p_value == pytest.approx(p, rel=2e-3 * (1 + z) ** 2, abs=1e-15)


@pytest.mark.parametrize("against", ["lognormal", "truncated"])
def test_the_power_law_as_the_best_of_a_wider_family(against):
    # 1/⟨t⟩² > 2/⟨t²⟩ and a mean excess above the power law's: heavier than the family's edge
    values = np.append(pareto(300, "edge", alpha=3.2), [40.0, 70.0])
    one = fit(values, x_min=1.0)
    ours = compare(values, one, against)
    assert (ours.log_likelihood_ratio, ours.normalized_ratio, ours.p_value) == (0, 0, 1)
    expected = {
        "lognormal": {"mu": -math.inf, "sigma": math.inf},
        "truncated": {"alpha": one.alpha, "Lambda": 0.0},
    }
    assert ours.parameters == expected[against]
    # on the way there the likelihood rises without reaching it; t ≥ 0 is a cut normal law
    if against == "lognormal":
        t = np.log(values[values >= 1])
        power = (math.log(one.alpha - 1) - (one.alpha - 1) * t).sum()
        gaps = []
        for sigma in (5.0, 10.0, 20.0, 40.0):
            mean = -(one.alpha - 1) * sigma**2
            law = stats.norm(mean, sigma)
            gaps.append(power - (law.logpdf(t) - law.logsf(0)).sum())
        assert np.all(np.diff(gaps) < 0)
        assert 0 < gaps[-1] < 0.1


def test_comparisons_have_no_unit():
    values = spectrum("lognormal", 4)
    for against in powerlaw.ALTERNATIVES:
        one, other = (asdict(compare(v, fit(v), against)) for v in (values, 1e-9 * values))
        for key in ("log_likelihood_ratio", "normalized_ratio", "p_value"):
            # Newton's method ends within 1e-12 of the maximum; parameters within its root
            assert one[key] == pytest.approx(other[key], rel=1e-5, abs=1e-8)


def test_integrals_of_the_families():
    # against closed forms of a cut normal law, a peak inside and outside
    family = powerlaw._Family(lambda s: s**2, lambda q: q / 2, 1.0)
    for a, b in ((1.0, 0.5), (-30.0, 2.0), (-3.0, 1e-3), (0.0, 4.0)):
        sigma = (2 * b) ** -0.5
        mean = -a * sigma**2
        law = stats.truncnorm(-mean / sigma, np.inf, loc=mean, scale=sigma)
        log_z, moments, covariance = family.integrals(np.array([a, b]))
        exact = -law.logpdf(1e-3) - a * 1e-3 - b * 1e-6
        assert log_z == pytest.approx(exact, rel=1e-9)
        np.testing.assert_allclose(moments, [law.moment(1), law.moment(2)], rtol=1e-7)
        assert covariance[0, 0] == pytest.approx(law.var(), rel=1e-6)
    # nearly exponential: to first order in b
    log_z, moments, _ = family.integrals(np.array([1e3, 1e-6]))
    assert log_z == pytest.approx(-math.log(1e3) - 2e-12, abs=1e-13)
    np.testing.assert_allclose(moments, [1e-3, 2e-6], rtol=1e-10)
