"""Distances from laws, surrogates and their p-values, the cache, and the sentence."""

import os
import re

import numpy as np
import pytest
from level_samples import keep_surrogates
from scipy import stats

from hessrmt import rng
from hessrmt.ensembles import block_levels, gaussian_levels, poisson_levels
from hessrmt.levels import LawFit, banks, pooled, ratios, select, unfold
from hessrmt.levels.analysis import conclude
from hessrmt.levels.banks import bank, bulks
from hessrmt.levels.goodness import (
    LAWS,
    POINTS,
    STATISTICS,
    Null,
    distances,
    judge,
    likelihood_ratio,
    quantiles,
)
from hessrmt.levels.smoothing import Smooth
from hessrmt.levels.surrogates import Surrogates, plan, pooled_cdf
from hessrmt.theory import mean_ratio
from hessrmt.theory.longrange import number_variance


@pytest.fixture
def kept(monkeypatch, tmp_path_factory):
    keep_surrogates(monkeypatch, tmp_path_factory)


def test_distances_are_those_of_kolmogorov_and_of_anderson_and_darling():
    law = STATISTICS["spacing"]("poisson")
    values = np.sort(law.sample(60, rng.stream(1, "distance")))
    smirnov, darling, _ = distances(values, law)
    assert smirnov == pytest.approx(stats.kstest(values, stats.expon.cdf)[0])
    # A² by its sum over the sample (Anderson, Darling, JASA 49, 765, 1954). The package takes the
    # integral by 512 midpoints, which miss each step of F_n by up to half an interval: an error of
    # at most Σ |change of the integrand|/1024. The two end intervals, a thousandth of F, count
    # the integrand F/(1 - F) ≤ 0.001 there
    n, f = len(values), law.cdf(values)
    k = np.arange(1, n + 1)
    expected = -1 - ((2 * k - 1) * (np.log(f) + np.log(1 - f[::-1]))).sum() / n**2
    jumps = np.abs((k / n - f) ** 2 - ((k - 1) / n - f) ** 2) / (f * (1 - f))
    assert abs(darling - expected) < (jumps.sum() + 2) / 1024
    tied = np.repeat(np.log(2.0), 10)  # the median: F_n jumps from 0 to 1 where F = 1/2
    assert distances(tied, law)[0] == pytest.approx(0.5)


def test_likelihood_ratio_is_the_relative_entropy():
    """Mean of ln(p/q) over samples of p, within four of its own standard errors."""
    goe, gue = map(STATISTICS["ratio"], ("goe", "gue"))
    rows = gue.sample(40_000, rng.stream(3, "likelihood")).reshape(40, -1)
    gain, error = likelihood_ratio(list(rows), gue, goe)
    x = (np.arange(4000) + 0.5) / 4000
    entropy = np.mean(gue.pdf(x) * np.log(gue.pdf(x) / goe.pdf(x)))
    assert abs(gain - entropy) < 4 * error
    assert gain > 10 * error
    assert likelihood_ratio(list(rows), goe, goe) == (0.0, 0.0)
    # a value that a law excludes costs much, but no infinity and no warning
    assert np.isfinite(likelihood_ratio([np.array([0.0, 0.0, 0.5])], gue, goe)[0])


def deviation(values, law):
    """F_n - F at the law's quantiles."""
    below = np.searchsorted(np.sort(values), quantiles(law), side="right") / len(values)
    return below - (np.arange(POINTS) + 0.5) / POINTS


def test_p_value_by_hand():
    """Independent uniform values, for which the distance has Kolmogorov's law."""
    draw = rng.stream(4, "p")
    law = STATISTICS["ratio"]("poisson")
    sets = np.array([deviation(law.sample(200, draw), law) for _ in range(2000)])
    null = Null(np.zeros(POINTS), sets, 200.0, np.inf)
    for n in (200, 800):  # the surrogates' fluctuations are brought to the size of the data
        for _ in range(5):
            smirnov, _, p = distances(np.sort(law.sample(n, draw)), law, null)
            exact = stats.kstwo.sf(smirnov, n)
            # 2000 surrogates; and the distance is taken at 512 points, which miss up to half of
            # 1/512 of it, at a slope of the p-value of at most 1.7 √n for each unit
            assert abs(p - exact) < 4 * 0.5 / 2000**0.5 + 1.7 * n**0.5 / (2 * POINTS)
    assert distances(np.full(200, 0.5), law, null)[2] == 1 / 2001


DRAW = {
    "goe": lambda n, draw: gaussian_levels(1, n, draw),
    "gue": lambda n, draw: gaussian_levels(2, n, draw),
    "poisson": poisson_levels,
    "goe2": lambda n, draw: block_levels([n // 2, n - n // 2], draw),
}


def literal(law, count, n, method, sets):
    """Distances of data sets drawn afresh at full size: ratio and spacing, (2, sets)."""
    draw = rng.stream(7, "literal", law)
    found = []
    for number in range(sets):
        rows = [DRAW[law](n, draw) for _ in range(count)]
        levels = [unfold(row, method) for row in rows] if method != "pooled" else None
        levels = levels or pooled(rows, seed=number).levels
        samples = {"ratio": map(ratios, rows), "spacing": map(np.diff, levels)}
        gaps = [deviation(np.concatenate([*x]), STATISTICS[k](law)) for k, x in samples.items()]
        found.append(np.abs(gaps).max(axis=1))
    return np.array(found).T


def largest(null, size):
    return np.abs(null.bias + null.of_size(size)).max(axis=1)


FULL_SIZE = [
    ("goe", 12, 300, "pooled", 400),
    ("gue", 40, 100, "pooled", 400),
    ("goe2", 40, 100, "pooled", 400),
    ("goe", 6, 300, "window", 400),
    ("goe", 6, 300, "kernel", 400),
    ("poisson", 6, 300, "spline", 400),
    ("goe", 3, 1500, "window", 120),  # above 1,000 levels: stretches from the bulk
    ("goe", 12, 1500, "pooled", 40),
]


@pytest.mark.parametrize(
    ("law", "count", "n", "method", "sets"),
    [
        ("goe", 12, 60, "pooled", 200),
        ("goe", 5, 100, "window", 200),
        ("poisson", 5, 100, "window", 200),
        *(pytest.param(*row, marks=pytest.mark.slow) for row in FULL_SIZE),
    ],
)
def test_surrogates_are_as_far_as_fresh_data(kept, law, count, n, method, sets):
    """Median and 90 % quantile of the distance: fresh data sets against surrogates.

    The error of the former from the binomial law of ranks, that of the latter from the scatter
    over independent banks.
    """
    banks = 6
    fresh = literal(law, count, n, method, sets)
    sizes = {"ratio": count * (n - 2), "spacing": count * (n - 1)}
    plans = [planned([n] * count, method, 200, seed) for seed in range(banks)]
    made = [Surrogates(law, one) for one in plans]
    found = [{"ratio": one.ratios(), "spacing": one.spacings()} for one in made]
    for row, (statistic, size) in zip(fresh, sizes.items(), strict=True):
        simulated = np.array([largest(null[statistic], size) for null in found])
        for q in (0.5, 0.9):
            spread = stats.norm.ppf(0.8413) * (q * (1 - q) / sets) ** 0.5
            low, value, high = np.quantile(row, [q - spread, q, q + spread])
            each = np.quantile(simulated, q, axis=1)
            error = np.hypot((high - low) / 2, each.std(ddof=1) / banks**0.5)
            assert abs(each.mean() - value) < 4 * error, (statistic, q, each.mean() / value)


def planned(sizes, method, count, seed):
    return plan(select([np.arange(float(n)) for n in sizes], None), method, count, seed)


def test_plans_imitate_runs_as_they_are_and_longer_ones_by_pieces():
    zeros = np.zeros(5)
    holes = [np.concatenate([np.arange(-30.0, -1), zeros, np.arange(1.0, 101)])] * 3
    found = plan(select(holes, 0.5), "window", 200, 0)
    assert [run.size for run in found.runs] == [29, 100] * 3
    assert not any(run.cut for run in found.runs)
    long = planned([3000], "window", 200, 0)
    assert {run.size for run in long.runs} == {375}
    assert all(run.cut for run in long.runs)
    many = planned([300] * 400, "window", 200, 0)
    assert 11_000 < sum(run.size for run in many.runs) < 13_000
    whole = planned([300] * 12, "pooled", 200, 0)
    assert (whole.spectra, whole.levels, whole.whole) == (12, 300, True)
    large = planned([5000] * 400, "pooled", 200, 0)
    assert (large.spectra, large.levels, large.whole) == (200, 150, False)


@pytest.mark.parametrize("rate", [0.0, 0.02, -0.05])
def test_an_exponential_density_is_followed_exactly(rate):
    """Evenly spaced levels moved to that of exp(rate i): spacings in geometric progression."""
    levels = np.cumsum(np.exp(rate * np.arange(200.0)))
    steps = Smooth.of(np.diff(levels)).spacings(np.arange(200.0))
    growth = np.diff(np.log(steps))
    # differences of levels lose ε max|λ|/s_min of their digits, sums of 200 terms n ε
    lost = np.finfo(float).eps * levels[-1] / np.diff(levels).min()
    np.testing.assert_allclose(growth, rate, atol=200 * lost, rtol=0)


def test_what_unfolding_does_is_known_to_an_error_that_does_not_fall():
    """Chance falls with the number of values up to a bound, the error of the bias not at all."""
    sets, unknown = np.ones((20, POINTS)), np.full((20, POINTS), 3.0)
    null = Null(np.zeros(POINTS), sets, 100.0, np.inf, unknown, 400.0)
    for n, chance in ((100, 1.0), (400, 0.5), (1600, 0.5)):
        np.testing.assert_allclose(null.of_size(n), chance + 3.0, rtol=1e-15)


def test_only_unfoldings_that_follow_the_levels_have_such_an_error(kept):
    draw = np.random.default_rng(0)
    data = select([np.sort(draw.uniform(size=60)) for _ in range(9)])
    nulls = {
        method: Surrogates("goe", plan(data, method, 20, 0)).spacings()
        for method in ("window", "pooled")
    }
    assert np.isscalar(nulls["pooled"].unknown)
    assert np.isinf(nulls["pooled"].most)
    assert 0.001 < np.abs(nulls["window"].unknown).max() < 0.02
    assert nulls["window"].most == pytest.approx(60 * 59)  # sixty runs of 59 spacings


def test_a_verdict_by_hand():
    """Independent ratios: the mean in units of σ/√n, the distance with the tail of a normal law."""
    draw, law = rng.stream(5, "judge"), STATISTICS["ratio"]("poisson")
    sets = np.array([deviation(law.sample(300, draw), law) for _ in range(1000)])
    null = Null(np.zeros(POINTS), sets, 300.0, np.inf)
    values = np.sort(law.sample(300, draw))
    found = judge(values, law, mean_ratio("poisson"), null)
    error = (law.variance / 300) ** 0.5
    # the spread of 1000 sets is known to 1/√2000
    expected = (values.mean() - mean_ratio("poisson")) / error
    assert found.sigmas == pytest.approx(expected, rel=4 / 2000**0.5, abs=0.02)
    assert found.expected == pytest.approx(mean_ratio("poisson"), abs=1e-12)
    assert found.p_value == found.simulated
    # far away both go on, the simulated one down to 1/1001
    moved = judge(np.sqrt(values), law, mean_ratio("poisson"), null)
    assert moved.simulated == 1 / 1001
    assert moved.p_value == 1e-6
    # what density makes of the law is no deviation
    shifted = deviation(np.sqrt(law.sample(200_000, draw)), law)
    alike = judge(np.sqrt(values), law, mean_ratio("poisson"), null._replace(bias=shifted))
    assert alike.p_value == pytest.approx(found.p_value, abs=0.1)


@pytest.mark.parametrize("law", ["goe", "poisson", "goe2"])
def test_distribution_of_pooled_spacings(law):
    """∫ p(t) P(K ≤ m s | t) dt against spectra of which m others are the pool, in the bulk."""
    draw = rng.stream(8, "pooled", law)
    m, n, repeats = 8, 60, 150
    s = np.array([0.05, 0.3, 0.5, 1.0, 1.7, 2.5])
    shares = []
    for _ in range(repeats):
        rows = [stretch(law, n, draw) for _ in range(m + 1)]
        unfolded = unfold(rows[0], "pooled", pool=rows[1:])
        inner = np.diff(unfolded)[12:-12]
        shares.append((inner[:, None] <= s).mean(axis=0))
    found, error = np.mean(shares, axis=0), stats.sem(shares, axis=0)
    # beside the Monte-Carlo error, counts of m levels are taken as normal: Edgeworth's first term
    # is the skewness/6 ~ 1/(6 √(m Σ²)), here on a share of at most 0.4 of it
    normal = 0.4 / (6 * np.sqrt(m * number_variance(1.0, law))) / 2
    assert (np.abs(found - pooled_cdf(s, law, m)) < 4 * error + normal).all()


def stretch(law, n, draw):
    if law == "poisson":
        return poisson_levels(n, draw)
    if law == "goe":
        return bulks([n], 1, draw)[0]
    return np.sort(2 * np.concatenate(bulks([n // 2] * 2, 1, draw)))


def files(folder):
    return sorted((folder / "hessrmt" / "surrogates").iterdir())


@pytest.fixture
def folder(tmp_path, monkeypatch):
    place = tmp_path / "kept"
    monkeypatch.setenv("XDG_CACHE_HOME", str(place))
    monkeypatch.setattr(banks, "STRETCH", 20)
    monkeypatch.setattr(banks, "_memory", {})
    return place


def stretches(seed=0, law="goe"):
    banks._memory.clear()
    return bank(law, seed, banks.select("cpu"))


def test_levels_are_kept_and_found_again(folder, monkeypatch):
    first = stretches()
    assert first.shape == (200, 20)
    assert len(files(folder)) == 1
    with monkeypatch.context() as without:
        without.setattr(banks, "bulks", None)  # calling it would fail
        np.testing.assert_array_equal(stretches(), first)
    assert not np.array_equal(stretches(1), first)
    assert not np.array_equal(stretches(0, "gue"), first)
    assert len(files(folder)) == 3
    assert not any(path.suffix != ".npz" for path in files(folder))  # no draft is left


def test_damaged_or_foreign_levels_are_drawn_again(folder):
    first = stretches()
    (path,) = files(folder)
    whole = path.read_bytes()
    for size in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert banks.read_kept(path) is None
    draw = rng.stream(9, "damage")
    for place in [*range(0, 300, 3), *draw.integers(len(whole), size=200)]:
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        path.write_bytes(damaged)
        found = banks.read_kept(path)  # some bytes of a zip file mean nothing
        assert found is None or np.array_equal(found["levels"], first)
    np.save(path.with_suffix(".npy"), np.zeros(3))
    os.replace(path.with_suffix(".npy"), path)
    assert banks.read_kept(path) is None
    path.write_bytes(b"precious")
    np.testing.assert_array_equal(stretches(), first)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("kind", ["a file", "read-only", "absent device", "full"])
def test_a_cache_that_cannot_be_written_costs_only_time(folder, tmp_path, monkeypatch, kind):
    def full(_descriptor):
        raise OSError(28, "No space left on device")

    expected = stretches()
    place = tmp_path / "place"
    if kind == "a file":
        place.write_text("precious")
    elif kind == "absent device":
        place = "/dev/null/cache"
    elif kind == "read-only":
        place.mkdir()
        place.chmod(0o500)  # means nothing to root, whose run then fills the cache
    else:
        monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setenv("XDG_CACHE_HOME", str(place))
    for _ in range(2):
        np.testing.assert_array_equal(stretches(), expected)
    if kind == "a file":
        assert place.read_text() == "precious"
    if kind == "full":
        assert files(place) == []


def fit(mean_ratio, sigmas, p=0.5, far=0.01, excluded=False, spacings=0.5):
    numbers = mean_ratio, sigmas, far, 0.0, p, far, 0.0, spacings, 0.0, 0.1
    return LawFit(*numbers, mean_ratio, p, excluded)


def laws(**changed):
    none = {name: fit(0.5, 20.0, 1e-6, 0.1, True) for name in LAWS}
    return none | changed


NEAR, SHAPE = fit(0.5307, -0.7), fit(0.5307, 0.7, 0.002, excluded=True)
SENTENCES = [
    (
        {"goe": NEAR},
        0.001,
        "^consistent with GOE .⟨r̃⟩ = 0.5300 ± 0.0010, 0.7 σ from the 0.5307 ± 0.0010 of GOE",
    ),
    (
        {"goe": NEAR},
        float("nan"),
        "^consistent with GOE .⟨r̃⟩ = 0.5300, 0.7 σ from the 0.5307 ± 0.0010 of GOE levels alike.$",
    ),
    ({"goe": NEAR, "gue": fit(0.5996, 1.0)}, 0.001, "also with GUE: too few levels to tell them"),
    ({}, 0.001, "^GOE excluded .20.0 σ, p ≤ 1e-06: "),
    ({"gue": fit(0.5996, 0.3)}, 0.001, "; GUE fits$"),
    ({"goe2": fit(0.4234, 0.3)}, 0.001, "; two superposed GOE blocks fit$"),
    ({"goe": SHAPE}, 0.001, r"excluded by the shape of P\(r̃\) \(p = 0.002"),
    ({"poisson": fit(0.3863, 9.0, 1e-6, 0.05, True)}, 0.001, "nearest is Poisson"),
    ({"goe": fit(0.5307, 9.0, 1e-6, 0.05, True)}, 0.001, "no other reference law comes nearer"),
    ({"goe": fit(0.5307, 9.0, 0.3, 0.05, None)}, 0.001, "^too few to say: .* 1000 ratios, fewer"),
    (
        {"goe": fit(0.5307, 0.7, spacings=0.002)},
        0.001,
        r"^undecided: the ratios are consistent with GOE \(.*spacings are not \(p\(s\) ≤ 0.002\);",
    ),
    (
        {"goe": fit(0.5307, -3.3, 0.0037)},
        0.001,
        r"^GOE only just not excluded \(p = 0.0037 where 0.003 is the limit: ⟨r̃⟩ = .* 3.3 σ from",
    ),
    (
        {"goe": fit(0.5307, -3.3, 0.0037), "gue": fit(0.5996, 1.0)},
        0.001,
        "^GOE only just not .*; nor is GUE$",
    ),
    (
        {"goe": fit(0.5307, -3.3, 0.0037, spacings=0.002)},
        0.001,
        r"^GOE unlikely: only just not excluded by the ratios .*disagree too \(p\(s\) ≤ 0.002\)$",
    ),
    ({}, 0.0, "copies, or evenly spaced"),
]


def test_the_sentence():
    for changed, error, words in SENTENCES:
        assert re.search(words, conclude(0.53, error, laws(**changed), 1000))
    text = conclude(0.53, 0.001, laws(goe=NEAR), 1000, 0.13)
    assert text.endswith("but 13% of the spacings lie below the noise floor")
