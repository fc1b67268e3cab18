"""Power laws of tails: the package powerlaw, SciPy's roots, full scans, known laws, bad input."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import optimize
from tail_samples import KINDS, pareto, spectrum

from hessrmt import rng
from hessrmt.backend.select import select
from hessrmt.capacity import powerlaw
from hessrmt.capacity.powerlaw import (
    PowerLawFit, Rule, compare, fit, fit_all, goodness_of_fit, sample_law, scan,
)
from hessrmt.errors import CapacityError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import powerlaw as peer

EPS = float(np.finfo(np.float64).eps)


@pytest.fixture
def quiet():
    """Powerlaw's warnings, that α is large or an optimiser stopped, are none of ours."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield


def numbers(one):
    return [one.alpha, one.x_min, one.ks_distance, one.sigma, one.n_tail]


def peer_numbers(one):
    return [one.alpha, one.xmin, one.D, one.sigma, one.n_tail]


# against the package powerlaw: it polishes exponents outside (1.5, 3] with Nelder-Mead, which can
# move off a maximum by √ε


@pytest.mark.parametrize("index", range(5))
@pytest.mark.parametrize("kind", KINDS)
def test_the_package_powerlaw(kind, index, quiet):
    values = spectrum(kind, index)
    theirs = peer.Fit(values, verbose=0, parameter_ranges={"alpha": [0, None]})
    np.testing.assert_allclose(numbers(fit(values)), peer_numbers(theirs), rtol=1e-6)
    limited = peer.Fit(values, verbose=0)
    ours = fit(values, max_alpha=3)
    if limited.xmin_fitting_results["valid_fits"].any():
        np.testing.assert_allclose(numbers(ours), peer_numbers(limited), rtol=1e-6)
    else:  # it reports 3, the bound
        assert "no tail has an exponent below 3" in ours.failed


def test_a_known_x_min(quiet):
    values = spectrum("pareto with a body", 7)
    for x_min in (1.0, values[80], 1.37):  # a value of the sample or none
        theirs = peer.Fit(values, xmin=x_min, verbose=0, parameter_ranges={"alpha": [0, None]})
        law = theirs.power_law
        expected = [law.alpha, x_min, law.D, law.standard_err, theirs.n_tail]
        np.testing.assert_allclose(numbers(fit(values, x_min=x_min)), expected, rtol=1e-6)


def test_a_cut_off_like_powerlaws(quiet):
    # its optimiser stops at simplices of 1e-4; it runs where α without a cut-off exceeds 3
    values = pareto(200, "cut", alpha=4.0)
    x_max = float(np.sort(values)[-4])
    theirs = peer.Fit(
        values, xmin=1.0, xmax=x_max, verbose=0, parameter_ranges={"alpha": [0, None]}
    ).power_law
    ours = fit(values, x_min=1.0, x_max=x_max)
    assert abs(ours.alpha - fit(values[values <= x_max], x_min=1.0).alpha) > 0.1
    assert ours.alpha == pytest.approx(theirs.alpha, abs=2e-4)
    assert ours.ks_distance == pytest.approx(theirs.D, abs=2e-4)
    assert (ours.n_above, ours.x_max) == (3, x_max)


# laws that end


def truncated_equation(t, extent):
    """Root in β = α - 1 of the likelihood's derivative, and the likelihood, as they are written."""

    def mean(beta):
        return 1 / beta - extent / np.expm1(beta * extent)

    sign = 1 if t.mean() < extent / 2 else -1
    low, high = sign * 1e-9, sign * 2 / min(t.mean(), extent - t.mean())
    root = optimize.brentq(lambda beta: mean(beta) - t.mean(), *sorted((low, high)), xtol=1e-13)
    return root, lambda beta: np.log(beta / -np.expm1(-beta * extent)) - beta * t.mean()


@pytest.mark.parametrize(("alpha", "cut"), [(2.5, 30.0), (4.0, 1.5), (1.2, 100.0), (-1.0, 5.0)])
def test_laws_that_end(alpha, cut):
    known = PowerLawFit(alpha, 2.0, 2 * cut, 0.0, 0.0, 500, 500, 0, 0, Rule())
    values = np.sort(sample_law(known, 500, rng.stream(0, "fit", "ends")))
    for x_max, end in (("max", values[-1]), (2 * cut, 2 * cut)):
        ours = fit(values, x_min=2.0, x_max=x_max)
        extent, t = np.log(end / 2), np.log(values / 2)
        root, likelihood = truncated_equation(t, extent)
        assert ours.alpha - 1 == pytest.approx(root, abs=1e-10)
        # σ from the likelihood's curvature; differences of step h: h² and ε/h² of rounding
        h = 1e-3
        curvature = sum(c * likelihood(root + k * h) for k, c in ((-1, 1), (0, -2), (1, 1))) / h**2
        assert ours.sigma == pytest.approx((-500 * curvature) ** -0.5, rel=1e-5)
        law = -np.expm1(-root * t) / -np.expm1(-root * extent)
        distance = np.abs(law - np.arange(500) / 500).max()
        assert ours.ks_distance == pytest.approx(distance, abs=1e-9)
        assert abs(ours.alpha - alpha) < 3 * ours.sigma


def test_no_cut_off_is_one_far_away():
    values = pareto(300, "far")
    near, far = fit(values, x_min=1.0), fit(values, x_min=1.0, x_max=1e200)
    np.testing.assert_allclose(numbers(near), numbers(far), rtol=1e-12)
    assert (near.x_max, far.x_max) == (math.inf, 1e200)


def test_evenly_spread_logarithms():
    # ⟨ln x⟩ half way: α = 1 exactly, where both terms of the equation diverge
    values = np.exp(np.linspace(0, 3, 101))
    ours = fit(values, x_min=1.0, x_max=float(values[-1]))
    assert ours.alpha == pytest.approx(1, abs=1e-12)
    assert ours.sigma == pytest.approx(1 / (3 / math.sqrt(12) * math.sqrt(101)))


def test_values_at_the_end_alone():
    # α far below 1: all but one value at the cut-off
    values = np.array([1.0, 1.5, 1.9, *np.linspace(1.999, 2, 3000)])
    ours = fit(values, x_min=1.0, x_max="max")
    t = np.log(values)
    root, _ = truncated_equation(t, np.log(2))
    assert ours.alpha - 1 == pytest.approx(root, rel=1e-9)
    assert 0 < ours.ks_distance < 1


def test_what_a_cut_off_at_the_largest_value_costs():
    # as the documentation of x_max states
    shifts = []
    for seed in range(100):
        values = (1 - rng.stream(seed, "fit", "bias").random(500)) ** (-1 / 1.5)
        free, ended = fit(values, x_min=1.0), fit(values, x_min=1.0, x_max="max")
        shifts.append((ended.alpha - free.alpha) / free.sigma)
    assert np.mean(shifts) == pytest.approx(-0.3, abs=0.05)


# recovery of known laws


@pytest.mark.parametrize("alpha", [2.0, 3.0, 4.0, 5.0])
def test_recovers_the_exponent(alpha):
    known, chosen = [], []
    for seed in range(60):
        draw = rng.stream(seed, "fit", "recover", str(alpha))
        tail = 2 * (1 - draw.random(1000)) ** (-1 / (alpha - 1))
        body = draw.uniform(0.5, 2, 500)  # no power law
        for found, one in (
            (known, fit(tail, x_min=2.0)),
            (chosen, fit(np.append(tail, body))),
        ):
            found.append((one.alpha - alpha) / one.sigma)
        assert one.x_min > 1.7
    # of 60 normal numbers 0.16 exceed 3; 3 or more with a probability of 6e-4
    assert (np.abs(known) > 3).sum() < 3
    assert (np.abs(chosen) > 3).sum() < 3
    # 4 standard errors; the bias of 1/Σ is σ/√n
    assert abs(np.mean(known)) < 4 / np.sqrt(60) + 1 / np.sqrt(1000)
    assert abs(np.std(known) - 1) < 4 / np.sqrt(2 * 60)


# pruned search, scans, backends


@pytest.mark.parametrize("x_max", [None, "max"])
@pytest.mark.parametrize("chunk", [64, 2**16])
def test_pruned_search_finds_the_least_distance(x_max, chunk, monkeypatch):
    monkeypatch.setattr(powerlaw, "_CHUNK", chunk)
    draw = rng.stream(0, "fit", "pruned")
    samples = [spectrum(kind, 9) for kind in KINDS]
    if chunk > 64:  # two and three levels of bounds
        samples += [pareto(1500, "pruned"), pareto(6000, "pruned"), draw.lognormal(size=3000)]
        samples.append(np.round(100 * pareto(3000, "ties")) / 100)
    for values in samples:
        ours, every = fit(values, x_max=x_max), scan(values, x_max=x_max)
        best = every.ks_distance[:-1].argmin()  # the last tail holds two distinct values
        assert ours.x_min == every.x_min[best]
        # another order of the same operations
        assert ours.alpha == pytest.approx(every.alpha[best], rel=8 * EPS)
        assert ours.ks_distance == pytest.approx(every.ks_distance[best], rel=1e-12)


def test_a_backend_gives_the_same_fits():
    spectra = [spectrum(kind, 3) for kind in KINDS] + [np.ones(5), np.empty(0)]
    floors = [0.0, 0.5] * 6
    alone = fit_all(spectra, floor=floors)
    for one, other in zip(
        alone, fit_all(spectra, floor=floors, backend=select("cpu")), strict=True
    ):
        np.testing.assert_allclose(numbers(one), numbers(other), rtol=1e-12)
        assert (one.n, one.n_excluded, one.failed) == (other.n, other.n_excluded, other.failed)
    assert [bool(one) for one in alone] == [True] * 10 + [False] * 2


def test_scans_of_too_little():
    for values in ([], [2.0], [2.0, 2.0]):
        assert [len(part) for part in scan(values)] == [0, 0, 0]


# what a fit leaves out, and what is none


def test_left_out_values_are_counted():
    values = spectrum("lognormal", 2)
    noise = [0.0, -3e-17, 2e-16, 1e-15]
    ours = fit([*noise, *values, 1e6], floor=1e-15, x_max=1e5, x_min=0.7)
    alone = fit(values, x_max=1e5, x_min=0.7)
    assert numbers(ours) == numbers(alone)
    assert (ours.n, ours.n_excluded, ours.n_above) == (120, 4, 1)
    assert (alone.n, alone.n_excluded, alone.n_above) == (120, 0, 0)


@pytest.mark.parametrize(
    ("values", "options", "reason"),
    [
        ([], {}, "0 distinct values above 0; 3 are needed"),
        ([0.0, -1.0], {}, "0 distinct values above 0"),
        ([2.0] * 9, {}, "1 distinct values above 0"),
        ([1.0, 2.0], {}, "2 distinct values above 0"),
        ([1.0, 2.0, 3.0], {"floor": 1.0}, "2 distinct values above 1"),
        ([1.0, 2.0, 3.0, 4.0], {"x_min": 3}, "2 distinct values from 3 on"),
        ([1.0, 2.0, 3.0, 4.0], {"x_max": 2.5}, "2 distinct values above 0"),
        ([1.0, 2.0, 3.0, 4.0], {"x_min": 3, "x_max": 2.5}, "0 distinct values from 3 on"),
        ([1.0, 2.0, 3.0, 4.0], {"min_tail": 5}, "4 distinct values above 0; 5 are needed"),
        ([1.0, 1.1, 1.2], {"max_alpha": 3}, "no tail has an exponent below 3"),
    ],
)
def test_a_fit_that_fails_has_a_reason_and_no_number(values, options, reason):
    ours = fit(values, **options)
    assert reason in ours.failed
    assert not ours
    assert np.isnan([ours.alpha, ours.x_min, ours.x_max, ours.ks_distance, ours.sigma]).all()
    assert ours.n_tail == 0
    assert ours.n + ours.n_excluded + ours.n_above == len(values)
    assert math.isnan(goodness_of_fit(values, ours, samples=5))
    versus = compare(values, ours)
    assert np.isnan([versus.log_likelihood_ratio, versus.p_value]).all()
    assert versus.parameters == {}


def test_three_values_are_a_tail():
    # Σ ln(x/x_min) = ln 2 + ln 4
    ours = fit([4.0, 1.0, 2.0])
    assert ours.alpha == pytest.approx(1 + 3 / np.log(8), rel=4 * EPS)
    assert (ours.n_tail, ours.x_min) == (3, 1.0)


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([1.0, math.nan, 2.0], {}, "1 of 3 values are NaN or infinite"),
        ([1.0, math.inf, -math.inf], {}, "2 of 3 values are NaN or infinite"),
        (np.ones((2, 2)), {}, r"shape \(2, 2\)"),
        (3.0, {}, r"shape \(\)"),
        ([1j, 2.0], {}, "complex128"),
        ([True, False], {}, "bool"),
        (["a"], {}, "vector of real numbers"),
        ([1.0], {"x_min": 0.0}, "x_min = 0.0; give None or a finite number above 0"),
        ([1.0], {"x_min": "max"}, "x_min = 'max'"),
        ([1.0], {"x_max": math.inf}, 'x_max = inf; give None, "max" or a finite number'),
        ([1.0], {"x_max": "least"}, "x_max = 'least'"),
        ([1.0], {"x_max": True}, "x_max = True"),
        ([1.0], {"floor": -1.0}, "floor = -1.0; give a finite number, 0 or more"),
        ([1.0], {"floor": math.nan}, "floor = nan"),
        ([1.0], {"max_alpha": 1.0}, "max_alpha = 1.0; give None or a finite number above 1"),
        ([1.0], {"min_tail": 2}, "min_tail = 2; give a whole number, 3 or more"),
        ([1.0], {"min_tail": 3.5}, "min_tail = 3.5"),
    ],
)
def test_refusals(values, options, message):
    with pytest.raises(CapacityError, match=message):
        fit(values, **options)


def test_refusals_of_a_fit_of_other_values():
    values = spectrum("lognormal", 0)
    one = fit(values)
    with pytest.raises(CapacityError, match="3 floors for 1 spectra"):
        fit_all([values], floor=[0.0, 1.0, 2.0])
    with pytest.raises(CapacityError, match="a fit of 120 values, given with 100"):
        goodness_of_fit(values[:100], one)
    with pytest.raises(CapacityError, match="0 synthetic samples"):
        goodness_of_fit(values, one, samples=0)
    with pytest.raises(CapacityError, match=r"a tail of .* values, of 0 here"):
        compare(values / 1e6, one)
    with pytest.raises(CapacityError, match="unknown law 'weibull'; known: lognormal, exp"):
        compare(values, one, "weibull")
    with pytest.raises(CapacityError, match="a law that ends at 50 is not compared"):
        compare(values, fit(values, x_max=50.0))
    wide = np.geomspace(1e-300, 1e300, 50)
    with pytest.raises(CapacityError, match="is too wide"):
        compare(wide, fit(wide, x_min=1e-300))


# symmetries

SAMPLES = hnp.arrays(np.float64, st.integers(4, 40), elements=st.floats(1e-6, 1e6))


@given(SAMPLES, st.integers(-400, 400), st.randoms(use_true_random=False))
def test_powers_of_two_and_order_do_not_matter(values, power, random):
    # scaling by a power of two rounds nothing
    shuffled = [*values.tolist(), 0.0, -1.0]
    random.shuffle(shuffled)
    one, other = fit(values), fit(2.0**power * np.array(shuffled))
    if one:
        assert (other.alpha, other.ks_distance, other.sigma, other.n_tail, other.x_min) == (
            one.alpha,
            one.ks_distance,
            one.sigma,
            one.n_tail,
            2.0**power * one.x_min,
        )
    else:
        assert not other
    assert other.n_excluded == 2


@given(SAMPLES, st.floats(1e-8, 1e8))
def test_alpha_has_no_unit(values, unit):
    values = np.unique(np.round(values, 3))[1:]  # differences far above a rounding of the product
    one, other = fit(values), fit(unit * values)
    assume(one)
    distances = np.sort(scan(values).ks_distance[:-1])
    # each value rounds by ε/2 of itself: depths of tails, at least 1e-9 wide, by ε
    assume(len(distances) < 2 or distances[1] - distances[0] > 1e-5)
    assert other.n_tail == one.n_tail
    assert other.x_min == unit * one.x_min
    np.testing.assert_allclose(other.alpha, one.alpha, rtol=len(values) * EPS / 1e-9)
    assert other.ks_distance == pytest.approx(one.ks_distance, abs=len(values) * EPS / 1e-9)
