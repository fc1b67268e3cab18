"""From levels to statistics and a conclusion: controls, calibration, repeatability, bad input."""

import json

import numpy as np
import pytest
from level_samples import keep_surrogates
from scipy import stats

from hessrmt import rng
from hessrmt.ensembles import goe, goe2, gue, poisson
from hessrmt.errors import DataError
from hessrmt.levels import analyze, ratios
from hessrmt.levels.banks import bulks
from hessrmt.levels.goodness import LAWS
from hessrmt.levels.resampling import mean_and_error
from hessrmt.levels.unfolding import POOL_FROM
from hessrmt.records import Provenance, Spectra, Spectrum
from hessrmt.tables import p_equals
from hessrmt.theory.ratios import MEAN_RATIO_GOE


@pytest.fixture
def kept(monkeypatch, tmp_path_factory):
    keep_surrogates(monkeypatch, tmp_path_factory)


def draw(ensemble, count, n, seed=0):
    return [ensemble(n, seed, index=index) for index in range(count)]


@pytest.mark.parametrize(
    ("ensemble", "law", "sentence"),
    [
        (goe, "goe", "consistent with GOE ("),
        (gue, "gue", "; GUE fits"),
        (poisson, "poisson", "; Poisson (independent levels) fits"),
        (goe2, "goe2", "; two superposed GOE blocks fit"),
    ],
)
@pytest.mark.slow
def test_controls_are_recognised(kept, ensemble, law, sentence):
    """30 spectra of 100 levels: ⟨r̃⟩ is known to 0.005, the nearest laws are 0.037 apart."""
    found = analyze(draw(ensemble, 30, 100))
    assert sentence in found.conclusion
    fit = found.laws[law]
    assert abs(fit.sigmas) < 3
    assert fit.ratio_p_value > 0.01
    assert fit.spacing_p_value > 0.01
    for other in LAWS:
        if other != law:
            assert abs(found.laws[other].sigmas) > 3
            assert found.laws[other].ratio_p_value < 0.01
            assert found.laws[other].spacing_p_value < 0.01
            assert found.laws[other].log_likelihood_ratio < fit.log_likelihood_ratio
    assert found.mean_spacing == pytest.approx(1, abs=0.05)
    assert not found.not_computable.keys() - {"superposition_error"}


def p_values(count, n, seeds, law="goe", ensemble=goe, banks=1):
    found = []
    for seed in range(seeds):
        fit = analyze(draw(ensemble, count, n, 100 + seed), seed=seed % banks).laws[law]
        found.append((fit.ratio_p_value, fit.spacing_p_value))
    return np.array(found).T


@pytest.mark.parametrize(
    ("count", "n", "law", "ensemble"),
    [(30, 100, "goe", goe), (6, 200, "goe", goe), (6, 200, "poisson", poisson)],
)
@pytest.mark.slow
def test_p_values_of_a_few_data_sets_are_even(kept, count, n, law, ensemble):
    """Their mean is 1/2 ± 1/√(12·20): within four of these, beside 0.1 for the surrogates' bank.

    The bank of 30,000 levels misses the law by σ/√30,000, data of n levels by σ/√n: for 3,000
    levels the distances of all data sets shift together by a third of their spread, p by 0.1.
    """
    for values in p_values(count, n, 20, law, ensemble):
        assert abs(values.mean() - 0.5) < 4 / (12 * 20) ** 0.5 + 0.1
        assert values.min() < 0.5 < values.max()


@pytest.mark.slow
@pytest.mark.parametrize(("count", "n", "banks"), [(200, 400, 1), (6, 100, 10), (30, 100, 10)])
def test_p_values_are_uniform(kept, count, n, banks):
    """50 seeds of GOE matrices, ratios and spacings.

    Small data have ten surrogate banks in turn, so that the chance of a single one averages out.
    """
    for values in p_values(count, n, 50, banks=banks):
        assert stats.kstest(values, "uniform").pvalue > 0.01, np.sort(values)


@pytest.mark.parametrize(("count", "n"), [(20, 60), (4, 300), (1, 600)])
def test_the_error_of_the_mean_ratio_is_its_scatter(count, n):
    """Spectra, or stretches of fewer than ten, resampled; 80 data sets know a scatter to 8 %.

    The mean of the squared errors, each from u units, is known to √(2/(80 (u - 1))).
    """
    repeats = 80
    found = [
        mean_and_error([ratios(goe(n, seed, index).eigenvalues) for index in range(count)])
        for seed in range(repeats)
    ]
    means, errors = np.array(found).T
    scatter = means.std(ddof=1)
    tolerance = 4 * (1 / (2 * repeats) + 1 / (2 * repeats * 18)) ** 0.5
    assert np.sqrt(np.mean(errors**2)) == pytest.approx(scatter, rel=tolerance)
    # and ⟨r̃⟩ itself has no bias: the published mean is known to 0.0001, and matrices of 60 levels
    # differ from the limit by less than their ends make up, 2/58 of them at most 0.03 off
    assert abs(means.mean() - MEAN_RATIO_GOE) < 4 * scatter / repeats**0.5 + 0.001


def test_a_flat_density_leaves_the_mean_ratio_alone():
    """The smoothed density of GOE levels varies by 6 % over 20 levels, 0.3 % from one spacing to
    the next: first orders cancel, second ones are 1e-5, and so is the sampling of the former."""
    found = analyze(draw(goe, 40, 200), surrogates=0)
    assert found.mean_ratio_density == pytest.approx(MEAN_RATIO_GOE, abs=5e-4)


@pytest.mark.parametrize("rate", [0.05, 0.1])
@pytest.mark.slow
def test_a_curved_density_lowers_the_mean_ratio_as_predicted(rate):
    """Levels exp(rate·ξ): 200 over 4 or 9 decades. The change of ⟨r̃⟩ is compared on the same GOE
    levels before and after, whose own fluctuations cancel."""
    generator = rng.stream(1, "curved")
    before = bulks([200] * 100, 1, generator)
    after = [np.exp(rate * levels) for levels in before]
    changes = [
        ratios(one).mean() - ratios(other).mean() for one, other in zip(after, before, strict=True)
    ]
    found = analyze(after, surrogates=0)
    predicted = found.mean_ratio_density - MEAN_RATIO_GOE
    # twice the error of the change: the prediction moves 40 stretches of 400 levels, about as many
    error = 2 * stats.sem(changes)
    assert abs(predicted - np.mean(changes)) < 4 * error
    assert abs(found.mean_ratio - found.mean_ratio_density) < 4 * found.mean_ratio_error
    if rate == 0.1:  # 1,000 such spectra give -0.0023 ± 0.0001; two errors of 100 are 0.0007
        assert predicted == pytest.approx(-0.0023, abs=0.0007)


@pytest.mark.slow
def test_the_same_call_gives_the_same_statistics(kept):
    levels = draw(goe, 3, 20)
    one, other = (json.dumps(analyze(levels, seed=3).to_dict()) for _ in range(2))
    assert one == other
    # another seed draws other surrogates, and nothing else
    changed = analyze(levels, seed=4)
    assert changed.mean_ratio == json.loads(one)["mean_ratio"]
    assert json.dumps(changed.to_dict()) != one


def nulls_of(found):
    """Names of quantities that were not computed: of the statistics, and of the comparisons."""
    plain = found.to_dict()
    plain |= {f"{law}.{name}": x for law, fit in plain["laws"].items() for name, x in fit.items()}
    return {name for name, x in plain.items() if x is None} - {"window", "cutoff"}


def explained(found):
    """Each quantity that was not computed has a reason under its name."""
    reasons = found.not_computable
    assert all(reasons.values())
    return all(name in reasons or name.split(".")[-1] in reasons for name in nulls_of(found))


CURVED = np.exp(np.linspace(0, 40, 300) + 0.01 * np.sin(np.arange(300.0)))


def test_an_unfolding_that_cannot_follow_leaves_the_ratios(kept):
    found = analyze(CURVED, unfold="polynomial", surrogates=20)
    assert "spectrum 0" in found.not_computable["spacings"]
    assert found.n_spacings == 0
    assert explained(found)
    assert {"mean_spacing", "brody", "superposition", "goe.spacing_p_value"} <= nulls_of(found)
    # the ratios are those of an unfolding that can
    good = analyze(CURVED, unfold="window", surrogates=20)
    assert found.mean_ratio == good.mean_ratio
    for law in LAWS:
        assert found.laws[law].ratio_p_value == good.laws[law].ratio_p_value
    assert explained(good)


def test_spacings_of_a_known_density_are_compared_with_the_law_as_it_is(kept):
    """Levels of positive matrices by Marchenko-Pastur's law: nothing follows the data."""
    levels = np.linalg.svd(rng.stream(1, "wishart").normal(size=(5, 120, 240)))[1] ** 2
    found = analyze(levels, unfold="analytic", law="marchenko-pastur")
    assert found.n_spacings == 5 * 119
    assert found.laws["goe"].spacing_p_value > 0.01 > found.laws["poisson"].spacing_p_value
    assert explained(found)


def test_surrogates_that_the_unfolding_cannot_follow_leave_the_ratios(kept):
    """A polynomial that just follows even levels over three decades, but not those of a law."""
    found = analyze(10 ** np.linspace(0, 3, 200), unfold="polynomial", surrogates=5)
    assert found.n_spacings == 199
    assert found.laws["goe"].spacing_p_value is None
    assert found.laws["goe"].ratio_p_value is not None
    assert "misses the staircase" in found.not_computable["goe.spacing_p_value"]
    assert explained(found)


@pytest.mark.parametrize(
    ("levels", "words"),
    [
        ([0.0, 1.0, 3.0], "too few to say: ⟨r̃⟩ = 0.5000 from 1 ratios, fewer than 40"),
        ([0.0, 0.0, 1.0, 1.0, 2.0], ""),
        (
            np.arange(200.0),
            "no conclusion: ⟨r̃⟩ = 1.0000 from 198 ratios; the mean ratio",
        ),
        ([[1, 2, 4], [3, 5, 6]], ""),
    ],
    ids=["three", "ties", "picket fence", "two of three"],
)
@pytest.mark.parametrize("surrogates", [0, 5])
def test_what_little_data_cannot_tell_has_a_reason(kept, levels, words, surrogates):
    found = analyze(levels, surrogates=surrogates)
    assert explained(found)
    assert found.conclusion.startswith(words)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("unfold", ["window", "pooled", "kernel"])
def test_ties_are_counted_and_divide_nothing(kept, unfold):
    rows = np.round(rng.stream(2, "ties").normal(size=(12, 20)), 1)
    found = analyze(rows, unfold=unfold, surrogates=5)
    assert found.n_ties == sum(20 - len(np.unique(row)) for row in rows)
    assert found.n_spacings == 12 * 19
    assert found.n_ratios < 12 * 18
    assert any("exactly zero" in note for note in found.notes)
    assert explained(found)


def test_unusable_spectra_are_said():
    found = analyze([np.arange(9.0) ** 2, [1.0, 2.0]], surrogates=0)
    assert found.n_spectra == 1
    assert any("fewer than three" in note for note in found.notes)


WELL = np.arange(30.0) ** 1.5

BAD = [
    (WELL, {"cutoff": "certified"}, "noise floor"),
    (WELL, {"unfold": "pooled"}, "several batches"),
    (WELL, {"unfold": "foo"}, "'foo'; known"),
    ([WELL, WELL + 1], {"unfold": "pooled", "degree": 3}, "'degree'"),
    ([WELL] * POOL_FROM, {"neighbours": 3}, "'pooled' has no option"),
    (WELL, {"unfold": "window", "neighbours": -3}, "neighbours"),
    (WELL, {"surrogates": -1}, "surrogates"),
    (WELL, {"seed": -1}, "seed"),
]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("levels", "options", "words"), BAD)
def test_bad_input_gives_no_statistics(levels, options, words):
    with pytest.raises(DataError, match=words):
        analyze(levels, **options)


def test_html_names_the_main_numbers(kept):
    found = analyze(draw(goe, 3, 60), surrogates=20)
    page = found._repr_html_()
    assert f"{found.mean_ratio:.4f} ± {found.mean_ratio_error:.4f}" in page
    assert "180 of 3 spectra" in page
    assert found.conclusion.replace("<", "&lt;") in page
    for name, fit in found.laws.items():
        assert name in page
        assert f"D = {fit.ratio_distance:.4f}, {p_equals(found.p(fit, 'ratio_p_value'))}" in page
    small = analyze([0.0, 1.0, 3.0], surrogates=0)._repr_html_()
    assert "0.5000" in small
    assert "nan" not in small


def test_html_of_spectra_is_escaped():
    config = {"model": "<script>alert(1)</script>", "data": "a&b"}
    levels = np.array([-2.0, 0.0, 1e-15, 1.0, 3.0])
    spectrum = Spectrum(levels, 1e-12, 5, 4, loss=0.25, operator="<b>")
    page = spectrum._repr_html_()
    assert "<b>" not in page
    for words in ("5, from -2 to 3", "<td>3</td>", "0.25"):  # three certified levels
        assert words in page
    several = Spectra((spectrum,) * 2, np.zeros((2, 1), int), 7, Provenance(config=config))
    page = several._repr_html_()
    assert "<script>" not in page
    for words in ("&lt;script&gt;", "a&amp;b", "2 of 7 planned", "<td>3</td>"):
        assert words in page
    empty = Spectra((), np.zeros((0, 1), int), 7, Provenance())
    assert "0 of 7 planned" in empty._repr_html_()


def test_copies_of_a_spectrum_are_no_evidence():
    (levels,) = draw(goe, 1, 100)
    found = analyze([levels] * 20, surrogates=0)
    assert "copies" in found.conclusion
    assert found.laws["goe"].excluded is None
    assert "copies" in found.not_computable["excluded"]


@pytest.mark.slow
def test_few_surrogates_say_nothing_of_spacings(kept):
    """Of nine, GOE levels are the furthest in one case of ten."""
    sentences = [analyze(draw(goe, 2, 60, seed), surrogates=9).conclusion for seed in range(12)]
    assert not any("spacings are not (p" in sentence for sentence in sentences)


def test_errors_from_few_units_are_not_given(kept):
    """From two of them one deviation in five exceeds three errors."""
    found = analyze(draw(goe, 1, 60), surrogates=0, orders=3)
    assert np.isnan(found.mean_ratio_error)
    assert np.isnan([found.second_moment_error, found.laws["gue"].log_likelihood_ratio_error]).all()
    assert all(np.isnan(one.mean_ratio_error) for one in found.higher)
    assert "higher" in found.not_computable
    assert explained(found)


def test_few_surrogates_judge_no_spacings():
    spectra = draw(goe, 3, 60)
    told = {n: analyze(spectra, surrogates=n).conclusion for n in (0, 20, 200)}
    assert all(said.startswith("consistent with GOE") for said in told.values())
    few = "; the unfolded spacings are not judged: that takes 200 surrogates"
    assert {n: said.endswith(few) for n, said in told.items()} == {0: False, 20: True, 200: False}
