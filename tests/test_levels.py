"""Which eigenvalues count as levels, their ratios and spacings, and fits of spacing laws."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from properties import examples
from scipy import integrate, stats

from hessrmt import rng
from hessrmt.ensembles import goe
from hessrmt.errors import DataError
from hessrmt.levels import (
    brody,
    mean_ratio,
    ratios,
    select,
    spacings,
    superposition,
    unfold_selection,
)
from hessrmt.levels.selection import ratio_samples
from hessrmt.records import Provenance, Spectra, Spectrum
from hessrmt.theory import spacing_law, superposed_law, wigner_law
from hessrmt.theory.ratios import (
    MEAN_RATIO_GSE,
)


def test_ratios_by_hand():
    # spacings 1, 2, 1 whatever the order the levels come in
    np.testing.assert_allclose(ratios([3.0, 0.0, 1.0, 4.0]), [0.5, 0.5])
    assert len(ratios([1.0, 2.0])) == 0
    assert np.isnan(mean_ratio([1.0]))
    levels = [0.0, 1.0, 3.0, 4.0, 8.0, 9.0]  # spacings 1 2 1 4 1, of every second level 3 3 5 5
    np.testing.assert_allclose(ratios(levels, folded=False), [2, 0.5, 4, 0.25])
    np.testing.assert_allclose(ratios(levels, folded=False, order=2), [5 / 3, 5 / 3])
    np.testing.assert_allclose(ratios(levels, order=2), [3 / 5, 3 / 5])
    assert len(ratios(levels, order=3)) == 0
    # 0/0 has no value, 1/0 none that is finite, 0/1 is 0
    np.testing.assert_allclose(ratios([0, 0, 0, 1, 1, 3], folded=False), [0.0])
    np.testing.assert_allclose(ratios([0, 0, 0, 1, 1, 3]), [0, 0, 0])


@pytest.mark.parametrize("measure", [ratios, mean_ratio, spacings])
def test_masked_levels_are_refused_and_not_used(measure):
    levels = np.ma.masked_greater(np.array([0.0, 1.0, 3.0, 4.0, 900.0]), 10)
    with pytest.raises(DataError, match="must not be masked"):
        measure(levels)
    assert np.array_equal(measure(levels.compressed()), measure([0.0, 1.0, 3.0, 4.0]))


def test_spacings_by_hand():
    levels = [4.0, 0.0, 1.0, 1.0, 3.0]
    np.testing.assert_array_equal(spacings(levels), [1, 0, 2, 1])
    np.testing.assert_array_equal(spacings(levels, order=3), [3, 3])
    assert len(spacings(levels, order=5)) == 0


@settings(max_examples=examples(50))
@given(arrays(np.float64, st.integers(3, 40), elements=st.integers(-1000, 1000)))
def test_ratios_know_neither_unit_origin_nor_sign(levels):
    """Whole numbers, so that all spacings are exact."""
    expected = np.sort(ratios(levels))
    for changed in (levels * 2.0**-30, levels + 4096, -levels):
        np.testing.assert_array_equal(np.sort(ratios(changed)), expected)


def test_every_second_level_of_goe_is_gse():
    """Mehta and Dyson, J. Math. Phys. 4, 713 (1963): exact, so order-2 ratios have GSE's mean."""
    found = [ratios(goe(300, 5, i).eigenvalues, order=2).mean() for i in range(40)]
    assert abs(np.mean(found) - MEAN_RATIO_GSE) < 4 * stats.sem(found)


def test_unfolded_ratios_follow_their_law():
    """P(r < 1) = 1/2 and P(r < x) = x/(1 + x) for independent levels, within 4 standard errors."""
    draw = rng.stream(4, "levels")
    rows = [ratios(draw.uniform(size=200), folded=False) for _ in range(100)]
    for x in (0.2, 1.0, 10.0):
        share = [np.mean(row < x) for row in rows]
        assert abs(np.mean(share) - x / (1 + x)) < 4 * stats.sem(share)


BAD_LEVELS = {
    "complex": (np.arange(5) + 1j, "complex"),
    "text": (["1", "2", "4"], "real numbers"),
    "truth values": (np.array([True, False, True]), "real numbers"),
    "nothing": (None, "dimension"),
    "matrix": (np.eye(3), "one-dimensional"),
    "infinite": ([0.0, np.inf, 1.0], "finite"),
    "beyond float64": ([-1.7e308, 0.0, 1.7e308], "rescale"),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("function", [ratios, spacings])
def test_what_is_no_spectrum_or_no_order_is_refused(function):
    for levels, words in BAD_LEVELS.values():
        with pytest.raises(DataError, match=words):
            function(levels)
    for order in (0, -1, 1.0, True, "1", None):
        with pytest.raises(DataError, match="order"):
            function([0.0, 1.0, 3.0], order=order)


def spectrum(eigenvalues, floor):
    n = len(eigenvalues)
    return Spectrum(np.sort(eigenvalues), noise_floor=floor, dimension=n, reduced_dimension=n)


BANDED = spectrum([-4, -3, -1.0, -1e-12, 0, 0, 1e-12, 1, 1.5, 3, 3, 3, 7], 1e-10)
"""Three negative levels, a band of four that is no level, six positive ones with two ties."""


def test_neighbours_across_a_discarded_band_are_never_used():
    chosen = select(BANDED)
    counts = chosen.n_levels, chosen.n_discarded, chosen.n_zeros, chosen.n_eigenvalues
    assert counts == (9, 4, 2, 13)
    assert (chosen.n_spacings, chosen.n_ties, chosen.n_unresolved) == (2 + 5, 2, 2)
    # spacings 1 2 | 0.5 1.5 0 0 4: one ratio below the band; above it 1/3, 0, none for 0/0, 0
    np.testing.assert_allclose(ratio_samples(chosen)[0], [1 / 2, 1 / 3, 0, 0])
    assert len(unfold_selection(chosen, "window").spacings[0]) == 7


def test_cutoffs():
    assert select(BANDED, "paper").n_discarded == 2  # 1e-12 passes for a level
    assert select(BANDED, 2.0).n_levels == 6
    everything = select(BANDED, None)
    assert (everything.n_levels, everything.n_discarded, everything.n_ties) == (13, 0, 3)
    assert select(BANDED.eigenvalues).cutoff is None
    assert select(BANDED).cutoff == "certified"
    # |λ| must exceed the cutoff
    assert select([1.0, 2.0, 3.0, 4.0], 1.0).n_levels == 3
    close = select(spectrum([1.0, 1.0 + 1e-11, 2.0, 2.0, 3.0], 1e-10))
    assert (close.n_ties, close.n_unresolved) == (1, 2)


def test_the_window_includes_its_ends():
    levels = np.arange(10.0)
    chosen = select(levels, window=(2.0, 6.0))
    np.testing.assert_array_equal(chosen.levels[0], np.arange(2.0, 7.0))
    assert chosen.n_discarded == 5
    assert chosen.n_zeros == 1
    assert select(levels, window=(-np.inf, 4)).n_levels == 5
    # a window inside a cutoff: both hold
    assert select(levels, 3, (0, 8)).n_levels == 5


def test_forms_of_spectra_are_equal():
    rows = [goe(50, 3, i) for i in range(4)]
    stack = np.array([row.eigenvalues for row in rows])
    spectra = Spectra(tuple(rows), np.zeros((4, 1), int), 4, Provenance())
    expected = select(stack, 1e-3)
    forms = (rows, tuple(rows), spectra, list(stack), stack.tolist(), stack[:, ::-1], iter(rows))
    for form in forms:
        found = select(form, 1e-3)
        assert found.n_discarded == expected.n_discarded
        for one, other in zip(found.levels, expected.levels, strict=True):
            np.testing.assert_array_equal(one, other)
    for form in (rows[0], stack[0], list(stack[0]), stack[:1], [rows[0]]):
        np.testing.assert_array_equal(select(form, 1e-3).levels[0], expected.levels[0])


def test_spectra_with_too_few_levels_are_left_out_and_said():
    chosen = select([[1.0, 2.0, 4.0], [1.0, 2.0], [], [3.0, 5.0, 6.0]])
    assert chosen.unusable == (1, 2)
    assert len(chosen.levels) == 2
    # three levels, but never three neighbours
    with pytest.raises(DataError, match="neighbouring"):
        select(spectrum([-2.0, -1.0, 0.0, 1.0, 2.0], 1e-9))


BAD_SELECTIONS = [
    ([], {}, "no spectrum"),
    (np.empty(0), {}, "0 of 0"),
    ([1.0, 2.0], {}, "2 of 2"),
    (np.ones(9), {}, "equal"),
    ([[1.0, 2.0, 3.0], [1.0, np.nan, 2.0]], {}, "spectrum 1 .*NaN"),
    ("spectra.h5", {}, "str"),
    (3.0, {}, "float"),
    (np.zeros((2, 3, 4)), {}, r"\(2, 3, 4\)"),
    ([np.arange(4.0), 3.0], {}, "spectrum 1"),
    (np.arange(9.0), {"cutoff": 100}, "0 of 9"),
    (np.arange(9.0), {"cutoff": -1}, "-1"),
    (np.arange(9.0), {"cutoff": "foo"}, "foo"),
    (np.arange(9.0), {"cutoff": "certified"}, "noise floor"),
    (spectrum(np.arange(9.0), 100.0), {}, "certified: 0 of 9"),
    (np.arange(9.0), {"window": (20, 30)}, "20:30"),
    (np.arange(9.0), {"window": (2, 1)}, "LOW < HIGH"),
    (np.arange(9.0), {"window": (np.nan, 1)}, "LOW < HIGH"),
    (np.arange(9.0), {"window": "1:2"}, "LOW, HIGH"),
    (np.arange(9.0), {"window": (1, 2, 3)}, "LOW, HIGH"),
]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("spectra", "options", "words"), BAD_SELECTIONS)
def test_bad_input_gives_no_selection(spectra, options, words):
    with pytest.raises(DataError, match=words):
        select(spectra, **options)


# fits of one-parameter families: they find what was put in, with honest errors

REPEATS = 40
"""Samples of each law: 4 standard errors of a scatter are then 4/√(2·39) = 45 % of it."""

SCATTER = 4 / (2 * (REPEATS - 1)) ** 0.5


def drawn(law, rows, size, draw):
    return law.sample(rows * size, draw).reshape(rows, size)


def samples(law, rows, size):
    """For each repeat the spacings of several spectra, independent and of the law's own spread."""
    draw = rng.stream(1, "fits", law.name)
    return [list(drawn(law, rows, size, draw)) for _ in range(REPEATS)]


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
    fit = brody(drawn(spacing_law("goe"), 20, 2000, rng.stream(2, "fits")))
    assert 0.94 < fit.value < 0.97


def test_errors_of_correlated_spacings_are_their_scatter():
    """Spectra whose spacings share a factor, as after a bad unfolding, count as one unit each."""
    draw = rng.stream(3, "fits")
    fits = []
    for _ in range(REPEATS):
        scale = np.exp(0.1 * draw.normal(size=(20, 1)))
        fits.append(brody(list(scale * drawn(wigner_law(), 20, 100, draw))))
    values, errors = np.array([(fit.value, fit.error) for fit in fits]).T
    assert np.sqrt(np.mean(errors**2)) == pytest.approx(values.std(ddof=1), rel=SCATTER)


@pytest.mark.parametrize("f", [0.2, 0.35])
def test_superposition_finds_the_share_of_a_second_block(f):
    finds([superposition(sample) for sample in samples(superposed_law((1 - f, f)), 20, 200)], f)


def test_superposition_of_one_block_is_0_and_of_two_equal_ones_near_a_half():
    n = 40_000
    draw = rng.stream(4, "fits")
    goe = superposition(drawn(spacing_law("goe"), 20, n // 20, draw))
    # P(s → 0) = 2 f (1 - f): a share f adds about 2 f n (0.2)² / 0.2 spacings below 0.2, where GOE
    # has n π² 0.2²/12 = 0.033 n ± √(0.033 n); three of these errors are f = 0.007
    assert 0 <= goe.value < 0.007
    half = superposed_law(2)
    equal = superposition(drawn(half, 20, n // 20, draw))
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
    rows = drawn(wigner_law(), 30, 50, rng.stream(5, "fits"))
    for fit in (brody, superposition):
        assert fit(list(rows)) == fit(rows)
        # the search stops within 1e-5 of the maximum
        assert fit(rows).value == pytest.approx(fit(rows.ravel()).value, abs=2e-5)


def test_resolution_of_a_pooled_unfolding():
    """Spacings in steps of 1/m: zeros among them stand for values below one step."""
    m, law = 30, wigner_law()
    rows = drawn(law, 20, 1000, rng.stream(6, "fits"))
    exact, stepped = brody(rows.ravel()), np.floor(rows * m) / m
    assert (stepped == 0).any()
    found = brody(list(stepped + 0.5 / m), 1 / m)
    assert abs(found.value - exact.value) < exact.error
    # without the resolution zeros are left out, which looks like more repulsion; with it not
    assert brody(list(stepped)).value > brody(list(stepped), 1 / m).value
    assert np.isfinite(brody([0.0, 1.0, 1.0, 1.0], 0.1).log_likelihood)


BAD_SPACINGS = [
    ([1.0, 2.0], "3 spacings, got 2"),
    ([], "3 spacings, got 0"),
    ([-1.0, 1.0, 1.0, 1.0], "negative"),
    ([np.nan, 1.0, 1.0, 1.0], "finite"),
    (np.ones(9) + 1j, "complex"),
    (["1", "2", "3"], "real numbers"),
    (np.ones((2, 2, 2)), "1 dimension"),
]


@pytest.mark.filterwarnings("error")
def test_bad_spacings_give_no_parameter():
    for sample, words in BAD_SPACINGS:
        for fit in (brody, superposition):
            with pytest.raises(DataError, match=words):
                fit(sample)
    with pytest.raises(DataError, match="got 2"):  # zeros without a resolution are no spacings
        brody([0.0, 0.0, 1.0, 1.0])
    with pytest.raises(DataError, match="resolution"):
        brody([1.0, 1.0, 1.0], float("nan"))
