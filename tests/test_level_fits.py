"""Fits of one-parameter families to spacings: they find what was put in, with honest errors."""

import numpy as np
import pytest
from scipy import integrate

from hessrmt import rng
from hessrmt.errors import LevelsError
from hessrmt.levels import brody, superposition
from hessrmt.theory import spacing_law, superposed_law, wigner_law

REPEATS = 40
"""Samples of each law: 4 standard errors of a scatter are then 4/√(2·39) = 45 % of it."""

SCATTER = 4 / (2 * (REPEATS - 1)) ** 0.5


def spectra(law, rows, size, draw):
    return law.sample(rows * size, draw).reshape(rows, size)


def samples(law, rows, size):
    """For each repeat the spacings of several spectra, independent and of the law's own spread."""
    draw = rng.stream(1, "fits", law.name)
    return [list(spectra(law, rows, size, draw)) for _ in range(REPEATS)]


def finds(fits, truth):
    """No bias beyond four standard errors of the mean, and errors that are the scatter."""
    values, errors = np.array([(fit.value, fit.error) for fit in fits]).T
    scatter = values.std(ddof=1)
    assert abs(values.mean() - truth) < 4 * scatter / len(fits) ** 0.5
    assert np.sqrt(np.mean(errors**2)) == pytest.approx(scatter, rel=SCATTER)


@pytest.mark.parametrize(("law", "q"), [(spacing_law("poisson"), 0), (wigner_law(), 1)])
def test_brody_is_0_for_independent_levels_and_1_for_the_surmise(law, q):
    finds([brody(sample) for sample in samples(law, 20, 100)], q)


def test_brody_of_goe_is_just_below_1():
    """0.953 and 0.957 are quoted in the literature; spacings of the exact law are not Brody's."""
    draw = rng.stream(2, "fits")
    fit = brody(spectra(spacing_law("goe"), 20, 2000, draw))
    assert 0.94 < fit.value < 0.97


def test_errors_of_correlated_spacings_are_their_scatter():
    """Spectra whose spacings share a factor, as after a bad unfolding, count as one unit each."""
    draw = rng.stream(3, "fits")
    law = wigner_law()
    found = []
    for _ in range(REPEATS):
        scale = np.exp(0.1 * draw.normal(size=(20, 1)))
        found.append(brody(list(scale * spectra(law, 20, 100, draw))))
    values, errors = np.array([(fit.value, fit.error) for fit in found]).T
    assert np.sqrt(np.mean(errors**2)) == pytest.approx(values.std(ddof=1), rel=SCATTER)


@pytest.mark.parametrize("f", [0.2, 0.35])
def test_superposition_finds_the_share_of_a_second_block(f):
    finds([superposition(sample) for sample in samples(superposed_law((1 - f, f)), 20, 200)], f)


def test_superposition_of_one_block_is_0_and_of_two_equal_ones_near_a_half():
    n = 40_000
    draw = rng.stream(4, "fits")
    goe = superposition(spectra(spacing_law("goe"), 20, n // 20, draw))
    # P(s → 0) = 2 f (1 - f): a share f adds about 2 f n (0.2)² / 0.2 spacings below 0.2, where GOE
    # has n π² 0.2²/12 = 0.033 n ± √(0.033 n); three of these errors are f = 0.007
    assert 0 <= goe.value < 0.007
    half = superposed_law(2)
    equal = superposition(spectra(half, 20, n // 20, draw))
    assert distinguishable(equal.value, n) < 4.5
    assert not distinguishable(0.4, n) < 4.5


def distinguishable(f, n):
    """Log-likelihood that n spacings of two equal blocks lose with f; 4.5 is three σ.

    The likelihood is even about f = 1/2, where it is flat: there is no usual standard error.
    """
    half, other = superposed_law(2), superposed_law((1 - f, f))

    def loss(s):
        return half.pdf(s) * (np.log(half.pdf(s)) - np.log(other.pdf(s)))

    return n * integrate.quad(loss, 1e-9, 8, limit=200)[0]


def test_an_estimate_at_the_end_of_its_range_has_no_error():
    fit = superposition(np.full(300, 1.0))  # nothing repels better than a picket fence
    assert fit.value == 0
    assert np.isnan(fit.error)


def test_one_array_or_one_for_each_spectrum_have_the_same_estimate():
    rows = spectra(wigner_law(), 30, 50, rng.stream(5, "fits"))
    for fit in (brody, superposition):
        assert fit(list(rows)) == fit(rows)
        # the search stops within 1e-5 of the maximum
        assert fit(rows).value == pytest.approx(fit(rows.ravel()).value, abs=2e-5)


def test_resolution_of_a_pooled_unfolding():
    """Spacings in steps of 1/m: zeros among them stand for values below one step."""
    m, law = 30, wigner_law()
    rows = spectra(law, 20, 1000, rng.stream(6, "fits"))
    exact, stepped = brody(rows.ravel()), np.floor(rows * m) / m
    assert (stepped == 0).any()
    found = brody(list(stepped + 0.5 / m), 1 / m)
    assert abs(found.value - exact.value) < exact.error
    # without the resolution zeros are left out, which looks like more repulsion; with it not
    assert brody(list(stepped)).value > brody(list(stepped), 1 / m).value
    assert np.isfinite(brody([0.0, 1.0, 1.0, 1.0], 0.1).log_likelihood)


BAD = {
    "too few": ([1.0, 2.0], "3 spacings, got 2"),
    "none": ([], "3 spacings, got 0"),
    "negative": ([-1.0, 1.0, 1.0, 1.0], "negative"),
    "NaN": ([np.nan, 1.0, 1.0, 1.0], "finite"),
    "infinite": ([np.inf, 1.0, 1.0, 1.0], "finite"),
    "complex": (np.ones(9) + 1j, "complex"),
    "text": (["1", "2", "3"], "real numbers"),
    "three dimensions": (np.ones((2, 2, 2)), "one array"),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("fit", [brody, superposition])
def test_bad_spacings_give_no_parameter(fit, name):
    spacings, words = BAD[name]
    with pytest.raises(LevelsError, match=words):
        fit(spacings)


def test_zeros_without_a_resolution_are_no_spacings_for_brody():
    with pytest.raises(LevelsError, match="got 2"):
        brody([0.0, 0.0, 1.0, 1.0])
    with pytest.raises(LevelsError, match="resolution"):
        brody([1.0, 1.0, 1.0], float("nan"))
