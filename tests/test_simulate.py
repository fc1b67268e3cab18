"""``hessrmt simulate``: a spectrum file like any other, its summary, and one error per mistake."""

import json

import numpy as np
import pytest
from scipy import stats
from store_samples import DISK_FULL, contents

from hessrmt import lossmodel
from hessrmt.config import SimulateConfig, load_settings
from hessrmt.lossmodel.sampler import bulk, centre, expected_outside, mean_density, sample_spectra
from hessrmt.records import Spectrum
from hessrmt.runs import simulate
from hessrmt.runs.simulate import run, summary
from hessrmt.store.spectra import load
from hessrmt.store.writing import SpectrumWriter

SMALL = ["simulate", "--dimension", 40, "--samples", 12, "--out", "sim.h5"]


def parsed(result):
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_what_is_in_the_file(cli, tmp_path):
    words = ["--kernel", "paper", "--k1", 2, "--k2", 0.5, "--outlier-values", "30,-20"]
    found = parsed(cli(*SMALL, *words, "--degenerate", 10, "--seed", 4, "--json"))
    path = tmp_path / "sim.h5"
    spectra = load(path)
    wanted = sample_spectra(lossmodel.paper(2, 0.5), 40, 12, [30, -20], degenerate=10, seed=4)
    np.testing.assert_array_equal(spectra.eigenvalues, [item.eigenvalues for item in wanted])
    assert spectra[0].dimension == found["dimension"] == 50
    assert {item.rank for item in spectra} == {40}
    assert {item.operator for item in spectra} == {"ensemble"}
    assert (found["a"], found["c"], found["mean"]) == (0.5, 4.0, 0.0)
    assert found["radius"] == pytest.approx(2 * (40 * 0.5) ** 0.5)
    assert [item["value"] for item in found["outliers"]] == [-20, 30]


def test_a_known_loss_moves_and_narrows(cli, tmp_path):
    found = parsed(cli(*SMALL, "--given-loss", 0.5, "--json"))
    # squared exponential of length 1: k(0) = k'(0) = k''(0) = 1
    assert (found["a"], found["c"], found["mean"]) == (1.0, 0.0, -0.5)
    assert {item.loss for item in load(tmp_path / "sim.h5")} == {0.5}


def test_outliers_where_large_matrices_have_them(tmp_path):
    config = load_settings(SimulateConfig, outlier_values="100,-60", samples=60, seed=2)
    found = summary(config, run(config, tmp_path / "sim.h5"))
    assert [item.value for item in found.outliers] == [-60, 100]
    for item in found.outliers:
        expected = item.value + 300 / item.value
        assert item.position == pytest.approx(expected)
        # second order of 1/n: the mean is off by O(a/θ), far below the standard error
        assert abs(item.seen - expected) < 4 * item.spread / 60**0.5 + 1 / abs(item.value)
        # normal with variance 2a (1 - n a/θ²); a standard deviation from 60 is known to 1/√120
        width = (2 * (1 - 300 / item.value**2)) ** 0.5
        assert abs(item.spread / width - 1) < 4 / 120**0.5
    assert found.outside_expected == 2
    # both, and by chance one of 120 ends of the bulk, at 0.001 each
    assert found.outside_seen in {2, 2 + 1 / 60}


def test_an_outlier_below_the_transition_stays_at_the_edge(tmp_path):
    config = load_settings(SimulateConfig, outlier_values="5", samples=30)
    found = summary(config, run(config, tmp_path / "sim.h5"))
    (item,) = found.outliers
    assert item.position == pytest.approx(2 * 300**0.5)
    # Tracy-Widom: the largest level scatters by n^(-1/6) about an edge that is off by as much
    assert abs(item.seen - item.position) < 3 * 300 ** (-1 / 6)
    assert found.outside_expected == 0


def test_mean_density_is_a_density_and_that_of_dense_samples():
    cov = lossmodel.HessianCovariance(1.0, 4.0, 0.5)
    x = np.linspace(-80, 160, 48_001)
    density = mean_density(x, cov, 100, [60.0, 3.0], degenerate=25)
    assert np.trapezoid(density, x) == pytest.approx(100 / 125, abs=1e-6)
    spectra = sample_spectra(cov, 100, 150, [60.0, 3.0], degenerate=25, method="dense", seed=1)
    cdf = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)]) * (x[1] - x[0]) * 1.25
    levels = np.array([item.eigenvalues[item.eigenvalues != 0] for item in spectra])
    # of each spectrum the share below a point: their mean has the error of the common shift
    for point in np.linspace(-20, 20, 9):
        shares = (levels <= point).mean(axis=1)
        expected = np.interp(point, x, cdf)
        # the outlier pushes the bulk by a/θ and the density is off by O(1/n)
        assert abs(shares.mean() - expected) < 4 * stats.sem(shares) + 1 / 100


def test_expected_outside_is_the_chance_of_a_large_outlier():
    cov = lossmodel.paper(0, 1)
    below, above = expected_outside(cov, 300, 20, 10.0)
    # θ > √300 means g² > √300/10 - 1
    assert above == pytest.approx(20 * stats.chi2.sf(300**0.5 / 10 - 1, 1), abs=20 / 2000)
    assert below == 0
    assert expected_outside(cov, 300, [-18.0, 17.0, 18.0]) == (1, 1)


def test_bulk_and_centre():
    levels = np.array([-9.0, -2.0, -1.0, 0.0, 0.0, 1.0, 4.0, 20.0])
    item = Spectrum(levels, noise_floor=0.0, dimension=8, reduced_dimension=6)
    np.testing.assert_array_equal(bulk(item, 1, 1).eigenvalues, [-2, -1, 0, 0, 1, 4])
    np.testing.assert_array_equal(bulk(item).eigenvalues, levels)
    assert centre(item, 1, 1) == 0.0
    assert centre(item, 2, 2) == 0.0
    assert len(bulk(item, 4, 4).eigenvalues) == 0
    assert np.isnan(centre(item, 4, 4))


@pytest.mark.parametrize("method", ["tridiagonal", "dense"])
def test_resumed_is_bit_for_bit_the_same(cli, tmp_path, monkeypatch, method):
    words = [*SMALL, "--kernel", "matern", "--outliers", 3, "--method", method]
    assert cli(*words).returncode == 0
    whole = contents(tmp_path / "sim.h5")
    monkeypatch.setattr(simulate, "_GROUP", 5)
    stored = SpectrumWriter.write_all

    def full(self, rows):
        if 5 in rows:
            raise DISK_FULL
        stored(self, rows)

    with monkeypatch.context() as patch:
        patch.setattr(SpectrumWriter, "write_all", full)
        result = cli(*words, "--overwrite")
    assert result.returncode == 1
    assert len(load(tmp_path / "sim.h5")) == 5
    assert cli(*words).returncode == 2
    assert cli(*words, "--resume").returncode == 0
    assert contents(tmp_path / "sim.h5") == whole
    before = (tmp_path / "sim.h5").read_bytes()
    assert cli(*words, "--resume").returncode == 0
    assert (tmp_path / "sim.h5").read_bytes() == before


def test_other_settings_do_not_resume(cli, refused):
    assert cli(*SMALL).returncode == 0
    said = ["made with another configuration", "samples (12 in the file, only 11 now)"]
    refused([*SMALL, "--samples", 11, "--resume"], said)
    # nor does a run that cannot be cost the old file
    refused([*SMALL, "--overwrite", "--outliers", 41])


def test_other_commands_take_the_file(cli, tmp_path):
    words = ["--degenerate", 7, "--kernel", "p-spin", "--outliers", 2]
    assert cli(*SMALL, *words).returncode == 0
    result = cli("levels", "sim.h5", "--json", "--surrogates", 0)
    found = parsed(result)
    assert found["n_levels"] == 12 * 40
    assert found["n_zeros"] == found["n_discarded"] == 12 * 7
    # no ratio bridges the zeros: where they lie between two levels, two ratios fewer
    assert found["n_ratios"] == 12 * 36
    source = "loss model, kernel p-spin, n = 40, 2 outliers, 7 degenerate: 12 spectra"
    assert source in result.stderr
    assert cli("plot", "sim.h5").returncode == 0


def test_too_few_levels_for_a_ratio(cli):
    few = cli("simulate", "--dimension", 2, "--samples", 1, "--out", "few.h5", "--json")
    assert parsed(few)["mean_ratio"] is None
    assert "not computable: too few levels" in few.stderr


def test_settings_from_a_file(cli, tmp_path):
    (tmp_path / "mine.toml").write_text(
        'kernel = "mixed-spherical"\ncoefficients = [1, 0.5]\noutlier_values = [90.0]\nseed = 3\n'
    )
    found = parsed(cli(*SMALL, "--config", "mine.toml", "--seed", 5, "--json"))
    assert found["config"]["seed"] == 5
    assert found["outliers"][0]["value"] == 90
    assert found["a"] == lossmodel.mixed_spherical([1, 0.5]).a
