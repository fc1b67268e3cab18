"""Runs: a discarded band splits a spectrum, nothing is taken across; verdicts from few levels."""

import json

import numpy as np
import pytest
from level_samples import keep_surrogates
from scipy import stats

from hessrmt import rng
from hessrmt.ensembles import gaussian_levels, goe, goe2, poisson, wishart_levels
from hessrmt.errors import DataError
from hessrmt.experiments import controls
from hessrmt.experiments.controls import Cell, Controls, ControlsConfig, ControlsPreset
from hessrmt.levels import analyze, long_range, ratios, select, unfold, unfold_selection
from hessrmt.levels.analysis import FEWEST_RATIOS, RATE, brody_of
from hessrmt.levels.histograms import mean_ratios
from hessrmt.levels.selection import ratio_samples
from hessrmt.records import Spectrum
from hessrmt.theory import higher_mean_ratio, semicircle_cdf
from hessrmt.theory.ratios import MEAN_RATIO_GSE


@pytest.fixture
def kept(monkeypatch, tmp_path_factory):
    keep_surrogates(monkeypatch, tmp_path_factory)


def halves(seed=0, n=150):
    """GOE levels over ten decades on either side of zero, unequal halves, and a null space."""
    draw = rng.stream(seed, "halves")
    u = np.clip(semicircle_cdf(gaussian_levels(1, n, draw), 2 * n**0.5), 0, 1)
    low, high = u[u < 0.3], u[u >= 0.3]
    below = -(10 ** (10 * ((0.3 - low) / 0.3 - 1)))
    return below, 10 ** (10 * ((high - 0.3) / 0.7 - 1))


def whole(parts):
    return np.concatenate([parts[0], np.zeros(7), parts[1]])


@pytest.mark.parametrize("method", ["window", "kernel", "spline"])
def test_each_run_is_unfolded_by_itself(method):
    parts = [halves(seed) for seed in range(3)]
    found = unfold_selection(select([whole(two) for two in parts], 1e-300), method)
    for runs, two in zip(found.runs, parts, strict=True):
        for run, part in zip(runs, two, strict=True):
            # the second run begins where the first one ends: ε n of rounding
            np.testing.assert_allclose(np.diff(run), np.diff(unfold(part, method)), atol=1e-12)
    # a level for each step, the hole counted as one
    assert found.levels[0][-1] == pytest.approx(len(found.levels[0]) - 0.5, abs=5)


def test_pooled_spacings_do_not_bridge_the_hole():
    rows = [whole(halves(seed, 60)) for seed in range(9)]
    found = unfold_selection(select(rows, 1e-300), "pooled")
    below = [int((row < 0).sum()) for row in rows]
    for runs, count in zip(found.runs, below, strict=True):
        assert len(runs[0]) == count
    assert sum(map(len, found.spacings)) == sum(len(row) - 7 - 2 for row in rows)


@pytest.mark.parametrize("statistic", ["number_variance", "rigidity", "form_factor"])
def test_long_range_windows_lie_within_runs(statistic):
    parts = [halves(seed) for seed in range(3)]
    at = [0.8] if statistic == "form_factor" else [0.5, 3.0]
    split = unfold_selection(select([whole(two) for two in parts], 1e-300), "window")
    apart = unfold_selection(select([part for two in parts for part in two]), "window")
    one, other = (long_range(x, statistic, at) for x in (split, apart))
    np.testing.assert_allclose(one.values, other.values, rtol=1e-9)


def test_ratios_of_spectra_in_tables_stop_at_the_null_space():
    below, above = halves()
    n = len(below) + len(above) + 7
    spectrum = Spectrum(whole((below, above)), 1e-300, dimension=n, reduced_dimension=n)
    expected = np.concatenate([ratios(below), ratios(above)]).mean()
    assert mean_ratios([spectrum])[0, 0] == pytest.approx(expected)


def test_short_runs_have_ratios_but_no_unfolded_spacings(kept):
    levels = np.concatenate([[-9.0, -7.0, -6.0, -4.5], np.zeros(3), np.arange(1.0, 60) ** 1.1])
    data = select(levels, 0.5)
    found = unfold_selection(data, "window")
    assert len(ratio_samples(data)[0]) == 2 + 57
    assert (found.n_short, len(found.spacings[0])) == (4, 58)
    assert any("not unfolded" in note for note in analyze(levels, 0.5, surrogates=0).notes)


def test_outliers_beyond_a_gap_are_dropped():
    draw = rng.stream(3, "gap")
    bulk = gaussian_levels(1, 200, draw)
    outliers = bulk[-1] + 30 * np.arange(1, 5.0)
    found = select(np.concatenate([bulk, outliers]), drop_outliers="gap")
    np.testing.assert_array_equal(found.levels[0], bulk)
    assert (found.n_outliers, found.n_discarded) == (4, 4)
    # on both sides, and none where there is no gap
    both = select(np.concatenate([bulk, outliers, -outliers]), drop_outliers="gap")
    np.testing.assert_array_equal(both.levels[0], bulk)
    assert select(bulk, drop_outliers="gap").n_outliers == 0


def test_outliers_above_the_edge_of_marchenko_and_pastur_are_dropped():
    bulk = wishart_levels(200, 400, rng.stream(4, "edge"))
    spikes = np.array([1.6, 2.0, 4.0]) * bulk[-1]
    found = select(np.concatenate([bulk, spikes]), drop_outliers="marchenko-pastur")
    np.testing.assert_array_equal(found.levels[0], bulk)
    with pytest.raises(DataError, match="positive matrices"):
        select(np.concatenate([-bulk, bulk]), drop_outliers="marchenko-pastur")
    with pytest.raises(DataError, match="known: none, gap, marchenko-pastur"):
        select(bulk, drop_outliers="all")


def test_the_verdict_is_a_field_that_the_sentence_is_made_from(kept):
    few = analyze(goe(FEWEST_RATIOS + 1, 0).eigenvalues, surrogates=0)
    assert {law.excluded for law in few.laws.values()} == {None}
    assert few.conclusion.startswith("too few to say")
    for spectra, starts in (
        ([goe(60, 1, i).eigenvalues for i in range(3)], "consistent with GOE"),
        ([poisson(200, 1).eigenvalues], "GOE excluded"),
        ([goe2(200, 1, i).eigenvalues for i in range(2)], "GOE excluded"),
    ):
        found = analyze(spectra, surrogates=0)
        assert found.conclusion.startswith(starts)
        for law in found.laws.values():
            assert law.excluded == (law.p_value < RATE)


def test_goe_is_seldom_excluded_from_few_units_and_p_values_are_uniform(kept, tmp_path):
    """A rate of 0.3 %: of 400 sets more than 7 with a probability below 1e-4."""
    preset = ControlsPreset(sizes=((1, 60), (3, 45)), methods=("window",), sets=50, others=0)
    settings = ControlsConfig(experiment="controls", presets={"small": preset})
    cells = Controls().run(settings, "small", tmp_path)
    verdicts = [cell.excluded for cell in cells if cell.excluded is not None]
    assert len(verdicts) == 8
    assert round(sum(verdicts) * 50) <= 7
    nulls = [cell.uniform for cell in cells if cell.uniform is not None]
    assert min(nulls) > 0.01 / len(nulls)
    text = Controls().conclusions(cells)["repetition 1"]
    assert text.startswith(f"uniform p-values in all {len(nulls)} cells of GOE levels: holds")


@pytest.mark.parametrize("ensemble", ["GOE", "GOE, ten decades"])
def test_p_values_of_pooled_spacings_are_uniform_with_a_hole(kept, ensemble):
    """What lies over a hole is left out, and is longer than most: 1e-17 without that."""
    found = []
    for number in range(60):
        draw = rng.stream(0, "pooled hole", ensemble, number)
        data = controls._data(ensemble, True, 30, 60, draw)
        found.append(controls._of_spacings(data, "pooled", 0, 200))
    assert stats.kstest(found, "uniform").pvalue > 1e-3


def test_controls_write_their_table_into_a_new_folder(cli, tmp_path, monkeypatch):
    def cells(size, seed, task):  # the real one takes minutes
        return [Cell(*task[:4], "none", task[4], np.linspace(0.05, 0.95, size.sets), 0.0)]

    monkeypatch.setattr(controls, "_cells", cells)
    text = 'experiment = "controls"\ntitle = "few"\ndevice = "cpu"\nseed = 0\n[presets.small]\n'
    file = tmp_path / "few.toml"
    file.write_text(text + "sizes = [[1, 45]]\nsets = 10\nothers = 0\n")
    result = cli("reproduce", file.name, "--out", "new/folder", "--json")
    assert result.returncode == 0, result.stderr
    runs = json.loads(result.stdout)["runs"]
    assert [run["sets"] for run in runs] == [10] * 4  # of two ensembles, with and without hole
    assert (tmp_path / "new" / "folder" / "results.csv").is_file()


def test_brody_of_goe_and_poisson_levels_is_corrected_for_the_pool(kept):
    """0.953 and 0 within four standard errors, where the plain fit gives 0.86."""
    for ensemble, law in ((goe, "goe"), (poisson, "poisson")):
        found = analyze([ensemble(100, 2, index=i).eigenvalues for i in range(30)], surrogates=0)
        assert found.unfolding.startswith("pooled")
        assert abs(found.brody - brody_of(law)) < 4 * found.brody_error
        assert abs(found.brody_raw - getattr(found.alike["brody_raw"], law)) < 4 * found.brody_error
        for name in ("second_moment", "number_variance", "rigidity"):
            value, error = getattr(found, name), getattr(found, f"{name}_error")
            assert abs(value - getattr(found.alike[name], law)) < 5 * error, name


def test_higher_orders_beside_surrogates(kept):
    rows = [goe(200, 4, i).eigenvalues for i in range(12)]
    second, third = analyze(rows, surrogates=0, orders=3).higher
    assert (second.order, third.order) == (2, 3)
    by_hand = [ratios(row, order=2) for row in rows]
    assert second.mean_ratio == pytest.approx(np.concatenate(by_hand).mean())
    near = [row[3:] - row[1:-2] for row in rows], [row[2:-1] - row[:-3] for row in rows]
    smaller, larger = (f(*map(np.concatenate, near)) for f in (np.minimum, np.maximum))
    assert second.overlapping == pytest.approx((smaller / larger).mean())
    # every second level of the GOE is the GSE's; the bank of 15,000 levels knows it to 0.004
    assert abs(second.mean_ratio_alike.goe - MEAN_RATIO_GSE) < 0.008
    for one in (second, third):
        assert one.mean_ratio_p_value > 0.001
        # the law is off by some thousandths, the bank by 0.004
        assert abs(one.mean_ratio_alike.goe - higher_mean_ratio(one.order)) < 0.015
        assert abs(one.spacing_variance - one.spacing_variance_alike.goe) < (
            5 * one.spacing_variance_error
        )
    blocks = analyze([goe2(200, 4, i).eigenvalues for i in range(12)], surrogates=0, orders=2)
    assert blocks.higher[0].mean_ratio_p_value <= 1 / 1001


def test_a_hole_leaves_p_values_even(kept):
    """Eight sets of GOE levels with a null space and unequal halves: none is rejected at 0.3 %."""
    for seed in range(2):
        rows = [whole(halves(10 * seed + i, 200)) for i in range(8)]
        found = analyze(rows, 1e-300, "window", surrogates=200)
        assert found.laws["goe"].spacing_p_value > 0.01
        assert found.n_runs == 16
        assert found.laws["goe"].excluded is False
