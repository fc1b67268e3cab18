"""Which eigenvalues count as levels, their ratios against their laws, and their spacings."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from properties import examples
from scipy import stats

import hessrmt as hr
from hessrmt import rng
from hessrmt.ensembles import goe
from hessrmt.errors import LevelsError
from hessrmt.levels import mean_ratio, select, spacings, unfold_selection
from hessrmt.levels.selection import ratio_samples
from hessrmt.records import Provenance, Spectra, Spectrum
from hessrmt.theory.ratios import (
    MEAN_RATIO_GOE,
    MEAN_RATIO_GOE_SURMISE,
    MEAN_RATIO_GSE,
    MEAN_RATIO_POISSON,
)


def test_ratios_by_hand():
    # spacings 1, 2, 1 whatever the order the levels come in
    np.testing.assert_allclose(hr.levels.ratios([3.0, 0.0, 1.0, 4.0]), [0.5, 0.5])
    assert len(hr.levels.ratios([1.0, 2.0])) == 0
    assert np.isnan(mean_ratio([1.0]))
    np.testing.assert_allclose(hr.levels.ratios([0.0, 0.0, 0.0, 1.0]), [0.0])
    with pytest.raises(ValueError, match="one-dimensional"):
        hr.levels.ratios(np.zeros((2, 2)))
    with pytest.raises(ValueError, match="finite"):
        hr.levels.ratios([0.0, np.nan, 1.0])


def test_constants_are_means_of_their_laws():
    r = np.linspace(0, 1, 200_001)
    surmise = 2 * 27 / 8 * (r + r**2) / (1 + r + r**2) ** 2.5
    assert np.trapezoid(surmise * r, r) == pytest.approx(MEAN_RATIO_GOE_SURMISE, abs=1e-9)
    assert np.trapezoid(2 / (1 + r) ** 2 * r, r) == pytest.approx(MEAN_RATIO_POISSON, abs=1e-9)


def test_goe_and_poisson_ensembles_have_their_means():
    draw = rng.stream(3, "levels")
    samples = 40
    goe = []
    for _ in range(samples):
        a = draw.normal(size=(300, 300))
        goe.append(mean_ratio(np.linalg.eigvalsh(a + a.T)))
    poisson = [mean_ratio(draw.uniform(size=300)) for _ in range(samples)]
    for found, law in ((goe, MEAN_RATIO_GOE), (poisson, MEAN_RATIO_POISSON)):
        assert abs(np.mean(found) - law) < 4 * stats.sem(found)


def test_unfolded_ratios_and_ratios_of_higher_order_by_hand():
    levels = [0.0, 1.0, 3.0, 4.0, 8.0, 9.0]  # spacings 1 2 1 4 1, of every second level 3 3 5 5
    np.testing.assert_allclose(hr.levels.ratios(levels, folded=False), [2, 0.5, 4, 0.25])
    np.testing.assert_allclose(hr.levels.ratios(levels, folded=False, order=2), [5 / 3, 5 / 3])
    np.testing.assert_allclose(hr.levels.ratios(levels, order=2), [3 / 5, 3 / 5])
    assert len(hr.levels.ratios(levels, order=3)) == 0
    # 0/0 has no value, 1/0 none that is finite, 0/1 is 0
    np.testing.assert_allclose(hr.levels.ratios([0, 0, 0, 1, 1, 3], folded=False), [0.0])
    np.testing.assert_allclose(hr.levels.ratios([0, 0, 0, 1, 1, 3]), [0, 0, 0])


def test_spacings_by_hand():
    levels = [4.0, 0.0, 1.0, 1.0, 3.0]
    np.testing.assert_array_equal(spacings(levels), [1, 0, 2, 1])
    np.testing.assert_array_equal(spacings(levels, order=3), [3, 3])
    assert len(spacings(levels, order=5)) == 0


@settings(max_examples=examples(50))
@given(arrays(np.float64, st.integers(3, 40), elements=st.integers(-1000, 1000)))
def test_ratios_know_neither_unit_origin_nor_sign(levels):
    """Whole numbers, so that all spacings are exact."""
    expected = np.sort(hr.levels.ratios(levels))
    for changed in (levels * 2.0**-30, levels + 4096, -levels):
        np.testing.assert_array_equal(np.sort(hr.levels.ratios(changed)), expected)


def test_every_second_level_of_goe_is_gse():
    """Mehta and Dyson, J. Math. Phys. 4, 713 (1963): exact, so order-2 ratios have GSE's mean."""
    found = [hr.levels.ratios(goe(300, 5, i).eigenvalues, order=2).mean() for i in range(40)]
    assert abs(np.mean(found) - MEAN_RATIO_GSE) < 4 * stats.sem(found)


def test_unfolded_ratios_follow_their_law():
    """P(r < 1) = 1/2 and P(r < x) = x/(1 + x) for independent levels, within 4 standard errors."""
    draw = rng.stream(4, "levels")
    rows = [hr.levels.ratios(draw.uniform(size=200), folded=False) for _ in range(100)]
    for x in (0.2, 1.0, 10.0):
        share = [np.mean(row < x) for row in rows]
        assert abs(np.mean(share) - x / (1 + x)) < 4 * stats.sem(share)


BAD_LEVELS = {
    "complex": (np.arange(5) + 1j, "complex"),
    "text": (["1", "2", "4"], "real numbers"),
    "truth values": (np.array([True, False, True]), "real numbers"),
    "nothing": (None, "real numbers"),
    "matrix": (np.eye(3), "one-dimensional"),
    "NaN": ([0.0, np.nan, 1.0], "finite"),
    "infinite": ([0.0, np.inf, 1.0], "finite"),
    "beyond float64": ([-1.7e308, 0.0, 1.7e308], "rescale"),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", BAD_LEVELS)
@pytest.mark.parametrize("function", [hr.levels.ratios, spacings])
def test_what_is_no_spectrum_is_refused(function, name):
    levels, words = BAD_LEVELS[name]
    with pytest.raises(LevelsError, match=words):
        function(levels)


@pytest.mark.parametrize("order", [0, -1, 1.0, True, "1", None])
@pytest.mark.parametrize("function", [hr.levels.ratios, spacings])
def test_an_order_is_a_positive_integer(function, order):
    with pytest.raises(LevelsError, match="order"):
        function([0.0, 1.0, 3.0], order=order)


def spectrum(eigenvalues, floor):
    n = len(eigenvalues)
    return Spectrum(np.sort(eigenvalues), noise_floor=floor, dimension=n, reduced_dimension=n)


BANDED = spectrum([-4, -3, -1.0, -1e-12, 0, 0, 1e-12, 1, 1.5, 3, 3, 3, 7], 1e-10)
"""Three negative levels, a band of four that is no level, six positive ones with two ties."""


def test_neighbours_across_a_discarded_band_are_never_used():
    chosen = select(BANDED)
    assert (chosen.n_levels, chosen.n_discarded, chosen.n_zeros, chosen.n_eigenvalues) == (
        9,
        4,
        2,
        13,
    )
    assert (chosen.n_spacings, chosen.n_ties, chosen.n_unresolved) == (2 + 5, 2, 2)
    # spacings 1 2 | 0.5 1.5 0 0 4: one ratio below the band; above it 1/3, 0, none for 0/0, 0
    np.testing.assert_allclose(ratio_samples(chosen)[0], [1 / 2, 1 / 3, 0, 0])
    unfolded = unfold_selection(chosen, "window").spacings[0]
    assert len(unfolded) == 7


def test_cutoffs():
    assert select(BANDED, "paper").n_discarded == 2  # 1e-12 passes for a level
    assert select(BANDED, 2.0).n_levels == 6
    everything = select(BANDED, None)
    assert (everything.n_levels, everything.n_discarded, everything.n_zeros) == (13, 0, 0)
    assert everything.n_ties == 3
    assert select(BANDED.eigenvalues).cutoff is None
    assert select(BANDED).cutoff == "certified"
    # |λ| must exceed the cutoff
    assert select([1.0, 2.0, 3.0, 4.0], 1.0).n_levels == 3


def test_unresolved_spacings_are_counted():
    close = spectrum([1.0, 1.0 + 1e-11, 2.0, 2.0, 3.0], 1e-10)
    chosen = select(close)
    assert (chosen.n_ties, chosen.n_unresolved) == (1, 2)


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
    for form in (
        rows,
        tuple(rows),
        spectra,
        list(stack),
        stack.tolist(),
        stack[:, ::-1],
        iter(rows),
    ):
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
    with pytest.raises(LevelsError, match="neighbouring"):
        select(spectrum([-2.0, -1.0, 0.0, 1.0, 2.0], 1e-9))


BAD_SELECTIONS = {
    "no spectrum": ([], {}, "no spectrum"),
    "no level": (np.empty(0), {}, "0 of 0"),
    "two levels": ([1.0, 2.0], {}, "2 of 2"),
    "all equal": (np.ones(9), {}, "equal"),
    "NaN": ([[1.0, 2.0, 3.0], [1.0, np.nan, 2.0]], {}, "spectrum 1 .*NaN"),
    "infinite": ([1.0, 2.0, np.inf], {}, "infinity"),
    "complex": (np.arange(9) * 1j, {}, "complex"),
    "complex numbers": ([1j, 2.0, 3.0], {}, "complex"),
    "text": ("spectra.h5", {}, "str"),
    "texts": (["1", "2", "3"], {}, "real numbers"),
    "a number": (3.0, {}, "float"),
    "None": (None, {}, "NoneType"),
    "three dimensions": (np.zeros((2, 3, 4)), {}, r"\(2, 3, 4\)"),
    "mixed": ([np.arange(4.0), 3.0], {}, "spectrum 1"),
    "cutoff above all": (np.arange(9.0), {"cutoff": 100}, "0 of 9"),
    "negative cutoff": (np.arange(9.0), {"cutoff": -1}, "-1"),
    "cutoff NaN": (np.arange(9.0), {"cutoff": np.nan}, "nan"),
    "cutoff infinite": (np.arange(9.0), {"cutoff": np.inf}, "inf"),
    "cutoff word": (np.arange(9.0), {"cutoff": "foo"}, "foo"),
    "certified arrays": (np.arange(9.0), {"cutoff": "certified"}, "noise floor"),
    "window beside": (np.arange(9.0), {"window": (20, 30)}, "20:30"),
    "window reversed": (np.arange(9.0), {"window": (2, 1)}, "LOW < HIGH"),
    "window NaN": (np.arange(9.0), {"window": (np.nan, 1)}, "LOW < HIGH"),
    "window number": (np.arange(9.0), {"window": 3}, "LOW, HIGH"),
    "window text": (np.arange(9.0), {"window": "1:2"}, "LOW, HIGH"),
    "window of three": (np.arange(9.0), {"window": (1, 2, 3)}, "LOW, HIGH"),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", BAD_SELECTIONS)
def test_bad_input_gives_no_selection(name):
    spectra, options, words = BAD_SELECTIONS[name]
    with pytest.raises(LevelsError, match=words):
        select(spectra, **options)
